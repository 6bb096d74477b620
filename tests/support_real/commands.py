"""The command line as a user runs it, in a process of its own, on a store that a test threw together."""

import contextlib
import errno
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fusestore.files import remove_tree
from fusestore.store.storage import Store

DEADLINE = 30  # seconds for anything that has to happen
FUSESTORE = (sys.executable, "-bb", "-m", "fusestore")
IN_NAMESPACE = ("unshare", "-Urm", "--propagation=slave", "--")


@dataclass(frozen=True)
class Place:
    """A store and its mounts."""

    root: Path
    runroot: Path

    def environment(self) -> dict[str, str]:
        return {**os.environ, "FUSESTORE_ROOT": str(self.root), "FUSESTORE_RUNROOT": str(self.runroot)}

    def run(self, *arguments, before=(), **more) -> subprocess.CompletedProcess[bytes]:
        """Run fusestore; `before` is put before the command line.  stdin is empty unless `more` says so."""
        more = {"stdin": subprocess.DEVNULL} | more if "input" not in more else more
        return subprocess.run(
            [*before, *FUSESTORE, *map(str, arguments)],
            **({"env": self.environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more),
            timeout=90,
            check=False,
        )

    def ok(self, *arguments, **more) -> str:
        """Run fusestore, which must succeed; its output without the last newline."""
        result = self.run(*arguments, **more)
        assert result.returncode == 0, result.stderr.decode(errors="replace")
        return os.fsdecode(result.stdout).removesuffix("\n")

    def fails(self, *arguments, code=125, **more) -> str:
        """Run fusestore, which must fail with one line on stderr and nothing on stdout; that line."""
        result = self.run(*arguments, **more)
        said = result.stderr.decode()
        assert (result.returncode, result.stdout) == (code, b""), said
        assert said.endswith("\n"), said
        assert said.count("\n") == 1, said
        return said[:-1]

    def listed(self, *arguments, **more):
        return json.loads(self.ok(*arguments, "--format", "json", **more))

    def mount(self, *arguments, **more) -> Path:
        return Path(self.ok("mount", *arguments, **more))

    def mounts(self) -> list[dict]:
        return self.listed("mount")

    def server(self, mountpoint) -> int:
        """The pid of the server behind `mountpoint`."""
        return json.loads(self.record(mountpoint).read_bytes())["pid"]

    def log(self, mountpoint) -> str:
        """What the server behind `mountpoint` has logged."""
        return self.record(mountpoint).with_suffix(".log").read_text()

    def record(self, mountpoint) -> Path:
        """The file that records the mount on `mountpoint`."""
        for record in (self.runroot / "mounts").glob("*.json"):
            if json.loads(record.read_bytes())["mountpoint"] == str(mountpoint):
                return record
        raise AssertionError(f"no record of {mountpoint}")

    def half_made(self) -> list[Path]:
        """What lies in the store's ``tmp/``; must be nothing whenever no command runs."""
        return list((self.root / "tmp").glob("*"))

    def is_empty(self) -> bool:
        """Nothing half-made, no image, no layer, no mount."""
        if self.half_made() or mounted_below(self.runroot):  # first: opening a store sweeps it
            return False
        with Store(str(self.root), str(self.runroot)) as store:
            return not (
                store.images()
                or store.layer_store.map()
                or store.graph_driver.list_layers()
                or store.mounts()
            )

    def unmount_all(self) -> None:
        """Unmount all that this runroot knows or that is mounted beside it, whatever state it is in."""
        records = list(self.runroot.glob("mounts/*.json"))
        servers = [json.loads(record.read_bytes())["pid"] for record in records]
        if records:
            self.run("unmount", "--all", "--force")
        for mountpoint in mounted_below(self.runroot.parent):
            detach(mountpoint)
        for pid in servers:
            eventually(lambda pid=pid: not is_running(pid), f"the end of server {pid}")

    def destroy(self) -> None:
        """Unmount everything and delete the store."""
        self.unmount_all()
        for directory in (self.root, self.runroot):
            remove_all(directory)


def remove_all(directory: Path) -> None:
    """Delete a tree although its directories may be closed to their owner."""
    for parent, names, _ in os.walk(os.fsencode(directory)):
        for name in names:
            path = os.path.join(parent, name)
            with contextlib.suppress(OSError):
                os.chmod(path, 0o700, follow_symlinks=True) if not os.path.islink(path) else None
    remove_tree(directory)


def may_call_mount() -> bool:
    """True inside ``unshare -Urm``, where mounts are made by mount(2)."""
    return os.geteuid() == 0


def detach(mountpoint) -> None:
    """Take a mount away by hand, as a user would who has lost patience."""
    command = ["umount", "-l"] if may_call_mount() else ["fusermount3", "-uz"]
    subprocess.run([*command, "--", mountpoint], capture_output=True, check=False)


def unmount_by_hand(mountpoint) -> None:
    command = ["umount"] if may_call_mount() else ["fusermount3", "-u"]
    subprocess.run([*command, "--", mountpoint], capture_output=True, check=True)


def mounted_below(directory: Path) -> list[str]:
    """Every mountpoint at or below `directory` in the kernel's table."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            place = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), line.split(" ")[4])
            if Path(place).is_relative_to(os.path.realpath(directory)):
                found.append(place)
    return found


def eventually(condition, what: str) -> None:
    """Wait until `condition()` is true, for `DEADLINE` seconds at most."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE} s"
        select.select([], [], [], 0.01)


def is_running(pid: int) -> bool:
    """True until all of a process is gone; its first thread may end before those that hold its files."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


def kill(pid: int) -> None:
    """End a server the hard way and wait until it is gone."""
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), f"the end of {pid}")


def is_dead(mountpoint) -> bool:
    """True for a mount whose server is gone; stat(2) may answer from the kernel's cache."""
    try:
        os.statvfs(mountpoint)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def is_a_mountpoint(path) -> bool:
    return str(path) in mounted_below(Path(path))


def inode(path) -> int:
    return os.stat(path, follow_symlinks=False).st_ino


def is_directory(path) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


@contextlib.contextmanager
def namespace(script: str):
    """A user and mount namespace where the shell has run `script`: what goes before a command to be there."""
    holder = subprocess.Popen(
        [*IN_NAMESPACE, "sh", "-ec", f"{script}\necho ready\nread -r _"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder, holder.stdin:
        assert holder.stdout.readline() == b"ready\n", f"cannot {script}"
        yield ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid), "--")
