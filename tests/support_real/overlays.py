"""Overlays thrown together from plain directories, mounted by a program with fuse-overlayfs's command line.

FUSESTORE_OVERLAY_PROGRAM in the environment names another program, to see what the tests say of that one.
"""

import contextlib
import errno
import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from support_real.commands import (
    DEADLINE,
    detach,
    eventually,
    is_a_mountpoint,
    is_running,
    mounted_below,
    remove_all,
    unmount_by_hand,
)

OURS = (sys.executable, "-bb", "-m", "fusestore.driver.program")
PROGRAM = tuple(shlex.split(os.environ.get("FUSESTORE_OVERLAY_PROGRAM", ""))) or OURS
FUSE_MAGIC = "65735546"
_MARK = "FUSESTORE_TEST_OVERLAY"  # in the environment of all that we start, and so of servers


class Overlay:
    """The directories of one mount below `base`: lowers, topmost first; upper; work; merged."""

    def __init__(self, base: Path, lowers: int = 1) -> None:
        self.base = base
        self.lowers = [base / f"lower{number}" for number in range(lowers)]
        self.upper, self.work, self.merged = base / "upper", base / "work", base / "merged"
        self.mark = uuid.uuid4().hex
        for directory in (*self.lowers, self.upper, self.work, self.merged):
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def lower(self) -> Path:
        return self.lowers[0]

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {_MARK: self.mark}

    def options(self, *more: str, writable: bool = True) -> str:
        """The value of -o."""
        parts = [f"lowerdir={':'.join(map(str, self.lowers))}"]
        parts += [f"upperdir={self.upper}", f"workdir={self.work}"] if writable else []
        return ",".join([*parts, *more])

    def run(self, *arguments, before=(), program=PROGRAM, **more) -> subprocess.CompletedProcess[bytes]:
        """Run the program in `base`; its stdout and stderr are pipes, read to their end as by podman."""
        environment = self.environment | more.pop("env", {})
        return subprocess.run(
            [*before, *program, *map(str, arguments)],
            **({"cwd": self.base, "stdin": subprocess.DEVNULL} | more),
            env=environment,
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )

    def start(self, *options: str, writable=True, **more) -> subprocess.CompletedProcess[bytes]:
        return self.run("-o", self.options(*options, writable=writable), self.merged, **more)

    def mount(self, *options: str, **more) -> Path:
        """Mount without a word on stderr; where."""
        result = self.start(*options, **more)
        assert (result.returncode, result.stdout, result.stderr) == (0, b"", b""), result
        return self.merged

    def refused(self, *arguments) -> str:
        """Run the program, which must mount nothing and say why in one line; that line."""
        result = self.run(*arguments)
        said = result.stderr.decode(errors="replace")
        assert (result.returncode, result.stdout) == (1, b""), said
        assert said.endswith("\n"), said
        assert said.count("\n") == 1, said
        assert not mounted_below(self.base)
        assert not self.servers()
        return said[:-1]

    def servers(self) -> list[int]:
        """Everything that is left of what this overlay has started, asked of the kernel."""
        found, mark = [], f"{_MARK}={self.mark}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and is_running(int(entry.name)):
                    found.append(int(entry.name))
        return found

    def server(self) -> int:
        """The pid of the one server."""
        (pid,) = self.servers()
        return pid

    def wait_until_gone(self) -> None:
        """Wait for the end of all servers; one that another namespace keeps is ended by force."""
        eventually(lambda: not self.servers() or is_kept_elsewhere(self.base), f"the end of {self.servers()}")
        for pid in self.servers():
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.servers(), "the end of servers that were killed")

    def exit_code(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of a program in the foreground; 0 for one that another namespace keeps."""
        eventually(
            lambda: process.poll() is not None or is_kept_elsewhere(self.base), f"the end of {process}"
        )
        return process.poll() or 0

    def unmount(self) -> None:
        """Unmount by hand; the server must end by itself."""
        unmount_by_hand(self.merged)
        self.wait_until_gone()

    @contextlib.contextmanager
    def foreground(self, flag: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
        """The program with -f or -d, mounted, and the file with what it says; killed at the end."""
        log = self.base / "said"
        with open(log, "wb") as output:
            command = [*PROGRAM, flag, "-o", self.options(*options), self.merged]
            process = subprocess.Popen(
                command, cwd=self.base, env=self.environment, stdout=output, stderr=output
            )
        with process:
            try:
                eventually(lambda: is_a_mountpoint(self.merged) or process.poll() is not None, "the mount")
                yield process, log
            finally:
                self.take_away()
                process.kill()

    def unmount_and_go(self) -> None:
        """Unmount by hand, without waiting for the server; one that another namespace keeps is ended."""
        unmount_by_hand(self.merged)
        if is_kept_elsewhere(self.base):
            self.wait_until_gone()

    def remount(self, *options: str, **more) -> Path:
        self.unmount()
        return self.mount(*options, **more)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send all servers a signal and wait until they are gone."""
        for pid in self.servers():
            os.kill(pid, number)
        eventually(lambda: not self.servers(), "the end of servers that were told to")

    def take_away(self) -> None:
        """Unmount whatever is mounted, in whatever state."""
        for mountpoint in reversed(mounted_below(self.base)):
            detach(mountpoint)


@contextlib.contextmanager
def overlay(base: Path, lowers: int = 1) -> Iterator[Overlay]:
    """An overlay, not mounted yet.  At the end nothing of it is mounted and no process is left."""
    made = Overlay(base, lowers)
    try:
        yield made
    finally:
        made.take_away()
        try:
            made.wait_until_gone()
        finally:
            made.kill()
            remove_all(base)


def is_dead(mountpoint) -> bool:
    """True for a mount whose server is gone.  What stat(2) says of it the kernel may have kept."""
    try:
        os.statvfs(mountpoint)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def as_seen_here(number: int) -> int:
    """How the owner `number` of a file is shown: a namespace of one id shows all others as nobody."""
    one_id = int(Path("/proc/self/uid_map").read_text().split()[2]) == 1
    return 65534 if one_id and number else number


def is_kept_elsewhere(base: Path) -> bool:
    """True when a mount below `base` is gone here, but not in a mount namespace made while it was there.

    A namespace begins with a copy of every mount, which keeps its server.  Tests that run at the same time
    make such namespaces.
    """
    if mounted_below(base):
        return False
    seen, place = set(), os.fsencode(os.path.realpath(base))
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            namespace = os.readlink(entry / "ns/mnt")
            if namespace not in seen and place in (entry / "mountinfo").read_bytes():
                return True
            seen.add(namespace)
    return False


def file_system(path) -> str:
    """The magic number of the filesystem at `path`, as podman asks for it."""
    return subprocess.check_output(["stat", "-f", "-c", "%t", path], text=True).strip()


def populate(directory: Path, tree: dict[str, object]) -> None:
    """Make what `tree` says: text and bytes are files, None whiteouts, dicts directories, Paths symlinks."""
    for name, content in tree.items():
        path = directory / name
        if isinstance(content, dict):
            path.mkdir(exist_ok=True)
            populate(path, content)
        elif content is None:
            os.mknod(path, 0o020000, 0)
        elif isinstance(content, Path):
            path.symlink_to(content)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def tree(directory: Path) -> dict[str, object]:
    """The inverse of `populate`; other kinds of objects are not expected."""
    found = {}
    for entry in sorted(os.scandir(directory), key=lambda e: e.name):
        path = directory / entry.name
        if entry.is_symlink():
            found[entry.name] = Path(os.readlink(path))
        elif entry.is_dir():
            found[entry.name] = tree(path)
        elif entry.is_file():
            content = path.read_bytes()
            found[entry.name] = content.decode("utf-8", "surrogateescape")
        else:
            found[entry.name] = None
    return found
