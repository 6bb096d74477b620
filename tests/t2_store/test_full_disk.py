"""Full disks, for real: on each size of tmpfs that is too small the store says so and stays sound."""

import os
import subprocess
import sys
from pathlib import Path

from support.images import oci
from support.tars import member, tar

TESTS = Path(__file__).parents[1]


def test_every_size_of_disk_that_is_too_small(tmp_path):
    """Nothing half-made is left, and once there is room the same image loads."""
    layers = tar(*(member(f"d/{i}", b"x" * 9000) for i in range(8))), tar(member("d/.wh.0"), member("b"))
    image = oci(tmp_path / "oci", *layers)
    (tmp_path / "disk").mkdir()
    command = [
        "unshare",
        "-Urm",
        "--propagation=slave",
        sys.executable,
        "-m",
        "support.full_disk",
        image,
        tmp_path / "disk",
    ]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    answer = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=100
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    if "no user xattrs" not in answer.stdout:
        assert int(answer.stdout) > 30
