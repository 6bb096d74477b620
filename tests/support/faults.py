"""Run a command once for each system call by which it changes something, with a fault there (strace)."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

CHANGING = (
    "write,pwrite64,writev,pwritev2,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,"
    "symlink,symlinkat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,setxattr,lsetxattr,"
    "fsetxattr,removexattr,fremovexattr,fsync,fdatasync,syncfs,truncate,ftruncate,fallocate,utimensat,"
    "copy_file_range,open,openat"
)
_FOR_WRITING = re.compile("O_(WRONLY|RDWR|CREAT)")


class Point(NamedTuple):
    """The `number`-th call of `syscall` that one thread makes."""

    syscall: str
    number: int


def points(command: Sequence[str], environment: dict[str, str], below: Path) -> list[Point]:
    """Every call of `command` that changes something below the directory `below`, in order."""
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        trace = ["-y", "-o", log.name, "-e", "trace=?" + CHANGING.replace(",", ",?")]
        _strace(trace, command, environment).check_returncode()
        lines = log.readlines()
    counts: Counter[tuple[str, str]] = Counter()
    found = {}
    for line in lines:
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:
            continue
        thread, syscall = match.groups()
        counts[thread, syscall] += 1
        if str(below) in line and (not syscall.startswith("open") or _FOR_WRITING.search(line)):
            found[Point(syscall, counts[thread, syscall])] = None
    return list(found)


def run(command: Sequence[str], environment: dict[str, str], point: Point, fault: str) -> int:
    """Run with SIGKILL (``kill``) or an errno such as ``ENOSPC`` at `point`; the exit status."""
    how = "signal=SIGKILL" if fault == "kill" else f"error={fault}"
    inject = f"inject={point.syscall}:{how}:when={point.number}"
    trace = ["-o", "/dev/null", "-e", f"trace={point.syscall}", "-e", inject]
    return _strace(trace, command, environment).returncode


def _strace(
    options: Sequence[str], command: Sequence[str], environment: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    strace = ["strace", "-f", "-qq", "-e", "signal=none", *options, "--", *command]
    return subprocess.run(strace, env=environment, capture_output=True, timeout=60)
