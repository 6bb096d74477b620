"""Count the calls by which this process changes, opens or reads files; fail, or die, at one of them.

A Python process that was started with `environment` has the shim (support/shim.c) between itself and libc.
`arm` it, do something, `disarm` it.  Children of the process do their calls undisturbed.
"""

import ctypes
import os
import subprocess
from pathlib import Path

CHANGE, OPEN, READ = 1, 2, 4

#: Faults by name: what the call does instead, and at which calls.  ``kill``: it is not made, and the process
#: is dead; ``torn``: half of the bytes are written first; ``short``: half of them are, and it goes on.
FAULTS = {
    "kill": (-1, CHANGE),
    "torn": (-2, CHANGE),
    "short": (-3, CHANGE),
    "ENOSPC": (28, CHANGE),
    "EDQUOT": (122, CHANGE),
    "EIO": (5, CHANGE | OPEN | READ),
    "EMFILE": (24, OPEN),
}
_PARTLY = ("write", "pwrite", "pwrite64", "copy_file_range", "sendfile64")

_libc = ctypes.CDLL(None)
if present := hasattr(_libc, "shim_arm"):
    _libc.shim_arm.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_int]
    _libc.shim_disarm.restype = ctypes.c_long
    _libc.shim_name.argtypes = [ctypes.c_long]
    _libc.shim_name.restype = ctypes.c_char_p


def compiled(directory: Path) -> Path:
    """The shim as a library in `directory`."""
    library, source = directory / "shim.so", Path(__file__).with_suffix(".c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def environment(library: Path) -> dict[str, str]:
    """For a process that is to have the shim."""
    return os.environ | {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1"}


def arm(fault: str, number: int) -> None:
    """Count the calls at which `fault` can happen; at the `number`-th, from 1, it does (0: never)."""
    what, classes = FAULTS[fault]
    _libc.shim_arm(classes, number, what)


def disarm() -> int:
    """Count no more; how many calls there were."""
    return int(_libc.shim_disarm())


def calls(fault: str, count: int) -> dict[int, str]:
    """The numbers and names of those of the `count` calls at which `fault` means something."""
    named = {number: _libc.shim_name(number).decode() for number in range(1, count + 1)}
    partly = fault in ("torn", "short")
    return {number: name for number, name in named.items() if not partly or name in _PARTLY}


def adopt_orphans() -> None:
    """Become the parent of all that our descendants leave behind (prctl PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(36, 1, 0, 0, 0)
