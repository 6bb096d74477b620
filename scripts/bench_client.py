"""What one process of a benchmark does: mount, work, unmount, and tell how long each took.

The client is started inside whatever namespaces its side needs, gets its job as JSON on stdin, and answers
with JSON on stdout.  It becomes the parent of a server that detaches itself, so that it can await its end.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from subprocess import PIPE
from time import perf_counter
from typing import Any

DEADLINE = 300  # seconds for any one process

Entry = list[Any]  # path and mode; of files also size, digest and time, of links the target
Job = dict[str, Any]  # "mount" and "unmount": commands; "top": the mountpoint; the rest is the work's
Samples = dict[str, dict[str, list[float]]]  # row -> side -> values


def run_client(perform: Callable[[Job], dict[str, Any]]) -> None:
    """Do the job on stdin: mount, `perform`, unmount; on stdout what it returned, and seconds."""
    job = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
    gc.disable()
    result: dict[str, Any] = {"mount": timed(mount, job["mount"], job["top"])}
    try:
        result |= perform(job)
    finally:
        result["unmount"] = timed(unmount, job["unmount"])
    json.dump(result, sys.stdout)


def timed(function: Callable[..., object], *arguments: object) -> float:
    """Seconds."""
    started = perf_counter()
    function(*arguments)
    return perf_counter() - started


def mount(command: Sequence[str], top: str) -> None:
    """Mount; done when the first listing is."""
    run(command)
    if not os.listdir(top):
        raise FileNotFoundError(f"{top}: empty, though {command[0]} said it was mounted")


def unmount(command: Sequence[str]) -> None:
    """Unmount; done when the server behind the mount, if there is one, has ended."""
    run(command)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def servers() -> list[str]:
    """The pid of the server behind the mount, if there is one."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def memory() -> int:
    """Bytes of resident memory of the server behind the mount; 0 if there is none."""
    told = "".join(Path(f"/proc/{pid}/status").read_text() for pid in servers())
    return sum(1024 * int(kib) for kib in re.findall(r"^VmRSS:\s+(\d+)", told, re.MULTILINE))


def run(command: Sequence[str], stdin: str = "") -> str:
    """What a command prints.  One that fails raises RuntimeError with its words."""
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        try:
            said, complaint = process.communicate(stdin, DEADLINE)
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise RuntimeError(f"{command[0]}: {complaint.strip() or f'exit status {process.returncode}'}")
    return said


def _end(process: subprocess.Popen[str]) -> None:
    """Gently, as a client unmounts then."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()


def version(name: str) -> str:
    """What the program of that name says it is.  Raises RuntimeError."""
    if name == "kernel":
        return f"Linux {os.uname().release}"
    return next(line for line in run([name, "--version"]).splitlines() if line.startswith(name))


def filesystem(place: Path) -> str:
    """The type of the filesystem that a directory is on."""
    return run(["findmnt", "-n", "-f", "-o", "FSTYPE", "-T", str(place)]).strip()


def in_memory() -> Path | None:
    """A directory in memory whose files can have the xattrs of a store."""
    shm = Path("/dev/shm")
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=shm) as file:
        os.setxattr(file.name, "user.fusestore.bench", b"")
        return shm
    return None


def inventory(top: str, *, times: bool = True) -> list[Entry]:
    """All that every side must agree on; owners are not, as a side without FUSE cannot show the image's."""
    found = []
    for directory, subdirectories, files in os.walk(top):
        for name in subdirectories + files:
            path = os.path.join(directory, name)
            st = os.lstat(path)
            facts: Entry = [os.path.relpath(path, top), st.st_mode]
            if stat.S_ISLNK(st.st_mode):
                facts.append(os.readlink(path))
            elif stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    facts += [st.st_size, hashlib.file_digest(file, "sha256").hexdigest()]
                facts += [st.st_mtime_ns] if times else []
            found.append(facts)
    return sorted(found, key=str)


def differing(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[str]:
    """The first entries that two inventories do not share."""
    return sorted({*map(str, ours)} ^ {*map(str, theirs)})[:2]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"bench: {text}", file=sys.stderr, flush=True)
