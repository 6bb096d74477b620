"""Processes that register, mount, commit, release and clean up on one layer store at once.

What each was told is compared with what the others had at that time (support/races.py): nothing that anybody
has is deleted or not found, names are one's who made them, and in the end, when all is given back, nothing is
left.  FUSESTORE_RACES=16x200 has 16 processes do 200 things each, in every mix.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.races import MIXES
from support.scenes import DRIVERS

TESTS = Path(__file__).parents[1]
LARGE = os.environ.get("FUSESTORE_RACES")
DEADLINE = 400 if LARGE else 100


def sizes(mix):
    """How many processes do how much; mounting takes its time."""
    if LARGE:
        return [tuple(LARGE.split("x"))]
    if mix == "all":
        return [("8", "20")]
    return [("2", "15" if mix == "mounting" else "50")]


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(
    ("mix", "processes", "operations"), [(mix, *size) for mix in MIXES for size in sizes(mix)]
)
@pytest.mark.timeout(DEADLINE + 20)
def test_everybody_is_told_the_truth(tmp_path, driver, mix, processes, operations):
    program = [sys.executable, "-bb", "-m", "support.races", tmp_path / "place"]
    options = ["--driver", driver, "--mix", mix, "--processes", processes, "--operations", operations]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [*program, *options]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    print(answer.stdout)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "register ok" in answer.stdout
