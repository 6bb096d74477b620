"""Killed, or refused something by the machine, at the calls by which a `Store` changes something.

What must hold, and the operations, are in support/store_kill_points.py.  Here a sample of the points is
tried; FUSESTORE_ALL_POINTS=1 tries every one (some 7,500: half an hour).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import shim

TESTS = Path(__file__).parents[1]
ALL = os.environ.get("FUSESTORE_ALL_POINTS") == "1"
DEADLINE = 3600 if ALL else 100


@pytest.mark.parametrize(("driver", "share"), [("vfs", "2"), ("fuse", "1")])
@pytest.mark.timeout(DEADLINE + 20)
def test_a_store_survives_faults(tmp_path, driver, share):
    environment = shim.environment(shim.compiled(tmp_path))
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    program = [
        sys.executable,
        "-bb",
        "-m",
        "support.store_kill_points",
        tmp_path / "place",
        "--driver",
        driver,
    ]
    command = [*program, *([] if ALL else ["--points", share])]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
    print(answer.stdout)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert int(re.search(r"^(\d+) points, 0 failed$", answer.stdout, re.MULTILINE)[1]) >= 12
