"""What the README tells people to type does what it says."""

import re
import subprocess
import sys
from pathlib import Path

from support.images import oci
from support.tars import folder, member, tar

README = Path(__file__).parents[2] / "README.md"


def run_example(mark, place, directory):
    """Run the example that has `mark` in it in a directory: what it prints, and what it says it prints."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = (text for text in examples if mark in text)
    result = subprocess.run(
        [sys.executable, "-bb", "-c", example],
        env=place.environment(),
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines(), re.search(r"# (C etc, .*)", example)[1].split(", ")


def test_the_example_of_the_layer_store(place, tmp_path):
    """It registers, mounts, changes, prints, commits and deletes; what it prints is in its comment."""
    (*changes, committed), told = run_example("layers.commit", place, tmp_path)
    assert changes == told
    assert re.fullmatch(r"sha256:[0-9a-f]{64} 13", committed)
    assert place.is_empty()


def test_the_example_of_images_and_containers(place, tmp_path):
    """It loads an image, looks inside, mounts it, and changes a container on it, which it deletes again."""
    release = member("etc/os-release", b"0123456789", uid=42)
    oci(tmp_path / "deb", tar(folder("etc"), member("etc/motd"), release), name="debian")
    (*looks, mounted, changed, more), told = run_example("store.image(", place, tmp_path)
    assert (looks, mounted) == (["42 10"], str(place.runroot / "mnt/debian-latest"))
    assert [changed, more] == told
    assert (place.mounts(), place.listed("containers")) == ([], [])
    assert [image["Names"] for image in place.listed("images")] == [["localhost/debian:latest"]]
