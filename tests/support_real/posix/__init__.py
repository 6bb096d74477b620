"""Our own checks of what POSIX and the Linux man pages say about files; `results` runs them all.

Each module is one family of calls.  A check is a generator function: what is before its ``yield`` prepares
the objects, what is after it is the check, and both run inside a directory of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]

NOT_WITH_FUSE = (
    # The writeback cache takes what the disk refuses later.
    "opening.larger_than_any_file(pwrite",
    # The kernel has the server truncate the file, and then looks whether it runs.
    "opening.a_program_that_runs_is_not_written(open and truncate",
)


def results(directory, commands, before=()):
    """Run all checks on each of the filesystems that the commands mount; see __main__ for all of these."""
    program = [sys.executable, "-bb", "-m", "support_real.posix", directory, json.dumps(commands)]
    python_path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    result = subprocess.run(
        [*before, *program],
        env={**os.environ, "PYTHONPATH": python_path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=115,
        check=True,
    )
    found = json.loads(result.stdout)
    assert found.keys() == commands.keys(), f"cut off: {commands.keys() - found.keys()}"
    return found


def worse(ours, theirs):
    """The checks that fail on our filesystem and not on theirs, but for what FUSE cannot; one per line."""
    return "".join(
        f"{name}: {why}\n"
        for name, why in ours["failures"].items()
        if name not in theirs["failures"] and not name.startswith(NOT_WITH_FUSE)
    )


def passed(result, situation=""):
    """The share of the checks, all or those in this situation, that pass."""
    checks = [name for name in result["checks"] if name.endswith(situation)]
    return sum(name not in result["failures"] for name in checks) / len(checks)
