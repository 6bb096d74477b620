"""What the README tells people to type does what it says."""

import re
import subprocess
import sys
from pathlib import Path

from support.images import oci
from support.tars import folder, member, tar

README = Path(__file__).parents[2] / "README.md"


def test_the_example_of_the_layer_store(place):
    """It registers, mounts, changes, prints, commits and deletes; what it prints is in its comment."""
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = (text for text in examples if "layers.commit" in text)
    result = subprocess.run(
        [sys.executable, "-bb", "-c", example],
        env=place.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    *changes, committed = result.stdout.splitlines()
    assert changes == re.search(r"# (C etc, .*)", example)[1].split(", ")
    assert re.fullmatch(r"sha256:[0-9a-f]{64} 13", committed)
    assert place.is_empty()


def test_the_example_of_images(place, tmp_path):
    """It loads an image, looks inside, mounts it, which it prints, and unmounts it."""
    archive = tar(folder("etc"), member("etc/os-release", b"0123456789", uid=42))
    oci(tmp_path / "deb", archive, name="debian")
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = (text for text in examples if "store.image(" in text)
    result = subprocess.run(
        [sys.executable, "-bb", "-c", example],
        env=place.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["42 10", str(place.runroot / "mnt/debian-latest")]
    assert place.mounts() == []
    assert [image["Names"] for image in place.listed("images")] == [["localhost/debian:latest"]]
