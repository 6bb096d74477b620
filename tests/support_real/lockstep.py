"""The same system calls on two union mounts of the same lower layers: the kernel's overlayfs and ours.

A program: it runs inside a user namespace, where both can be mounted, reads commands as lines of JSON and
answers with lines of JSON (`Lockstep`).  Everything lies in a tmpfs of its own, which goes with the
namespace.

The lowers hold many *cases*, directories with the same content, so that many sequences of operations can run
on one mount.  What the kernel's overlayfs does not do by design is done for it (`Kernel`).
"""

import errno
import fcntl
import json
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support_real import trees
from support_real.commands import DEADLINE, eventually, is_a_mountpoint
from support_real.trees import differences

from fusestore import syscalls
from fusestore.driver.ownership import is_internal

LONG_AGO = 1_000_000_000 * 10**9
_OLD = 1_500_000_000 * 10**9  # later times are those of the test itself

# Topmost first.  bytes: a file; None: a directory; ("->", target); ("fifo",); ("whiteout",).
LAYERS = [
    {
        "d/g": ("whiteout",),
        "d/h": b"h of the upper lower",
        "d/sub/x": b"x above x",
        "e": None,  # opaque
        "e/w": b"w",
        "t/in": b"t is a directory over a file",
        "u": b"u is a file over a directory",
        "v": ("whiteout",),
        "n/": None,
    },
    {
        "d/f": b"f" * 5000,
        "d/g": b"g",
        "d/sub/x": b"x",
        "d/sub/y": b"y" * 100,
        "d/sub/deep/z": b"z",
        "e/z": b"hidden",
        "t": b"t was a file",
        "u/z": b"u was a directory",
        "v/z": b"deleted",
        "f": bytes(range(256)) * 40,
        "setuid": b"#!",
        "s": ("->", "d/f"),
        "dangling": ("->", "nowhere"),
        "p": ("fifo",),
        "n": None,
    },
]
_MODES = {"e": 0o700, "setuid": 0o6755, "d/sub": 0o1777, "d/sub/y": 0o400, "d/sub/deep": 0o2755}


def make_layer(layer: dict, place: Path) -> None:
    """One layer's part of one case."""
    place.mkdir(parents=True)
    for name, content in layer.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match content:
            case None:
                path.mkdir(exist_ok=True)
            case bytes():
                path.write_bytes(content)
            case ("->", target):
                path.symlink_to(target)
            case ("fifo",):
                os.mkfifo(path)
            case ("whiteout",):
                os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))
    if "e/w" in layer:
        os.setxattr(place / "e", "user.overlay.opaque", b"y")
    for name, mode in _MODES.items():
        if name in layer or (place / name).is_dir():
            (place / name).chmod(mode)
    for name in ("d", "f", "d/sub/y"):
        if (place / name).exists():
            os.setxattr(place / name, f"user.{place.parent.name}", b"\0of " + name.encode())
    for parent, _, files in os.walk(place, topdown=False):
        for name in [*files, "."]:
            os.utime(os.path.join(parent, name), ns=(LONG_AGO, LONG_AGO + len(name)), follow_symlinks=False)


def _told(st: os.stat_result, *, nlink: bool) -> dict:
    """Of what stat(2) says, what two filesystems must agree about."""
    kind = stat.S_IFMT(st.st_mode)
    told = {"mode": f"{st.st_mode:o}", "owner": [st.st_uid, st.st_gid], "mtime": _time(st.st_mtime_ns)}
    if kind != stat.S_IFDIR:
        told |= {"size": st.st_size, "rdev": st.st_rdev}
        if nlink:
            told["nlink"] = st.st_nlink
    return told


def _time(ns: int) -> int | str:
    return ns if ns < _OLD else "now"


class Side:
    """One of the two mounts: its directories, and every operation on a case in it."""

    name = ""

    def __init__(self, place: Path, lowers: list[Path]) -> None:
        self.lowers = lowers
        self.upper, self.work, self.mountpoint = place / "upper", place / "work", place / "mnt"
        for directory in (self.upper, self.work, self.mountpoint):
            directory.mkdir(parents=True)
        self.case = Path()
        self.fds: dict[int, int] = {}

    @property
    def options(self) -> str:
        return f"lowerdir={':'.join(map(str, self.lowers))},upperdir={self.upper},workdir={self.work}"

    def begin(self, case: str) -> None:
        self.case = self.mountpoint / case
        os.umask(0o022)

    def run(self, operation: list) -> object:
        """The result of an operation, or the name of its error."""
        name, *arguments = operation
        try:
            return getattr(self, f"do_{name}")(*arguments)
        except OSError as exc:
            return errno.errorcode[exc.errno]

    def end(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def tree(self, case: str) -> dict[str, dict]:
        """All that `case` shows but a union's notes to itself, with fresh times as "now"."""
        seen = trees.described(self.mountpoint / case)
        for attributes in seen.values():
            attributes["names"] = self.names(attributes.pop("nlink", 1), attributes.pop("links", [""]))
            attributes["mtime"] = _time(attributes["mtime"])
            attributes["xattrs"] = {
                name: value for name, value in attributes["xattrs"].items() if not is_internal(name.encode())
            }
        return seen

    @staticmethod
    def names(nlink: int, links: list[str]) -> int:
        """How many names a file has: as stat(2) says, and as many as were found."""
        assert nlink == len(links), links
        return nlink

    def numbers(self, case: str) -> dict[str, dict]:
        """The inode numbers in `case`, but of what cannot carry an xattr: that has another after its copy-
        up."""
        top, seen = self.mountpoint / case, trees.described(self.mountpoint / case)
        kept = [path for path, attributes in seen.items() if attributes["type"] in ("file", "directory")]
        return {path: {"number": os.lstat(top / path).st_ino} for path in kept}

    # -- files ----------------------------------------------------------------------------------------

    def do_open(self, slot: int, path: str, flags: int, mode: int = 0) -> None:
        fd = os.open(self.case / path, flags | os.O_NONBLOCK | os.O_NOFOLLOW, mode)
        self._close(slot)
        self.fds[slot] = fd

    def _close(self, slot: int) -> None:
        if slot in self.fds:
            os.close(self.fds.pop(slot))

    def _fd(self, slot: int) -> int:
        if slot not in self.fds:
            raise OSError(errno.EBADF, "no such slot")
        return self.fds[slot]

    def do_close(self, slot: int) -> None:
        self._close(slot)

    def do_read(self, slot: int, size: int, offset: int) -> str:
        return os.pread(self._fd(slot), size, offset).hex()

    def do_write(self, slot: int, offset: int, text: str) -> int:
        return os.pwrite(self._fd(slot), text.encode(), offset)

    def do_map(self, slot: int, text: str) -> str:
        """Write through a shared mapping, and see what else is there."""
        if not os.fstat(self._fd(slot)).st_size:
            return ""
        with mmap.mmap(self._fd(slot), 0) as mapped:
            data = text.encode()[: len(mapped)]
            mapped[: len(data)] = data
            mapped.flush()
            return bytes(mapped[:100]).hex()

    def do_ftruncate(self, slot: int, size: int) -> None:
        # To the size that it has: whether that is a change is not the same for FUSE with a writeback cache.
        if os.fstat(self._fd(slot)).st_size != size:
            os.ftruncate(self._fd(slot), size)

    def do_fallocate(self, slot: int, offset: int, size: int) -> None:
        os.posix_fallocate(self._fd(slot), offset, size)

    def do_copy(self, source: int, target: int, size: int) -> int:
        """copy_file_range, all of it, through whichever way the filesystem leaves."""
        return os.copy_file_range(self._fd(source), self._fd(target), size, 0, 1)

    def do_fstat(self, slot: int) -> dict:
        return _told(os.fstat(self._fd(slot)), nlink=False)

    def do_fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._fd(slot), mode)

    def do_futime(self, slot: int, ns: int) -> None:
        os.utime(self._fd(slot), ns=(ns, ns))

    def do_fsetxattr(self, slot: int, name: str, value: str) -> None:
        os.setxattr(self._fd(slot), name, value.encode())

    def do_fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    # -- names ----------------------------------------------------------------------------------------

    def do_umask(self, mask: int) -> None:
        os.umask(mask)

    def do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.case / path, mode)

    def do_mkfifo(self, path: str, mode: int) -> None:
        os.mkfifo(self.case / path, mode)

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, self.case / path)

    def do_link(self, old: str, new: str) -> None:
        os.link(self.case / old, self.case / new, follow_symlinks=False)

    def do_unlink(self, path: str) -> None:
        os.unlink(self.case / path)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(self.case / path)

    def do_rename(self, old: str, new: str, flags: int) -> None:
        syscalls.rename(-100, os.fsencode(self.case / old), -100, os.fsencode(self.case / new), flags)

    def do_list(self, path: str) -> list[str]:
        return sorted(os.listdir(self.case / path))

    # -- attributes -----------------------------------------------------------------------------------

    def do_stat(self, path: str) -> dict:
        return _told(os.lstat(self.case / path), nlink=True)

    def do_readlink(self, path: str) -> str:
        return os.readlink(self.case / path)

    def do_access(self, path: str, mode: int) -> bool:
        return os.access(self.case / path, mode)

    def do_chmod(self, path: str, mode: int) -> None:
        if os.path.islink(self.case / path):  # chmod(2) would follow it, out of the case
            raise OSError(errno.ELOOP, "a symlink")
        os.chmod(self.case / path, mode)

    def do_chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self.case / path, uid, gid, follow_symlinks=False)

    def do_truncate(self, path: str, size: int) -> None:
        if os.stat(self.case / path).st_size != size:
            os.truncate(self.case / path, size)

    def do_utime(self, path: str, ns: int) -> None:
        os.utime(self.case / path, ns=(ns, ns), follow_symlinks=False)

    def do_setxattr(self, path: str, name: str, value: str, flags: int) -> None:
        os.setxattr(self.case / path, name, value.encode(), flags, follow_symlinks=False)

    def do_removexattr(self, path: str, name: str) -> None:
        os.removexattr(self.case / path, name, follow_symlinks=False)

    def do_getxattr(self, path: str, name: str) -> str:
        return os.getxattr(self.case / path, name, follow_symlinks=False).hex()

    def do_listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self.case / path, follow_symlinks=False))


class Kernel(Side):
    """The kernel's overlayfs, with what it leaves out by design done by hand."""

    name = "the kernel"

    @staticmethod
    def names(nlink: int, links: list[str]) -> int:
        """Names of one file that were met before its copy-up go on having a number of their own."""
        return nlink

    def mount(self) -> None:
        options = os.fsencode(f"userxattr,{self.options}")
        syscalls.mount(b"overlay", os.fsencode(self.mountpoint), b"overlay", 0, options)

    def unmount(self) -> None:
        syscalls.umount(os.fsencode(self.mountpoint))

    def do_read(self, slot: int, size: int, offset: int) -> str:
        with self._fresh(slot) as fd:
            return os.pread(fd, size, offset).hex()

    def do_copy(self, source: int, target: int, size: int) -> int:
        with self._fresh(source) as fd:
            return os.copy_file_range(fd, self._fd(target), size, 0, 1)

    @contextmanager
    def _fresh(self, slot: int) -> Iterator[int]:
        """A file opened before its copy-up goes on showing what the lower has; opened again it does not."""
        fd = self._fd(slot)
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
            yield fd
            return
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK)
        try:
            yield again
        finally:
            os.close(again)

    def do_rename(self, old: str, new: str, flags: int) -> None:
        """A directory of a lower is not renamed: make another, and move everything there."""
        try:
            super().do_rename(old, new, flags)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            if flags & syscalls.RENAME_EXCHANGE:
                for source, target in ((old, f"{old}~"), (new, old), (f"{old}~", new)):
                    self.do_rename(source, target, syscalls.RENAME_NOREPLACE)
            else:
                self._move(old, new)

    def _move(self, old: str, new: str) -> None:
        source, target = self.case / old, self.case / new
        st, umask = os.stat(source), os.umask(0)
        os.umask(umask)
        if target.is_dir():
            target.rmdir()
        target.mkdir()
        for name in os.listdir(source):
            self.do_rename(f"{old}/{name}", f"{new}/{name}", syscalls.RENAME_NOREPLACE)
        for name in os.listxattr(source):
            os.setxattr(target, name, os.getxattr(source, name))
        target.chmod(stat.S_IMODE(st.st_mode))
        os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns))
        source.rmdir()


class Program(Side):
    """A program with the command line of fuse-overlayfs."""

    def __init__(
        self, place: Path, lowers: list[Path], command: list[str], upper: Path | None = None
    ) -> None:
        super().__init__(place, lowers)
        self.name, self.command = command[0], command
        self.upper = upper or self.upper
        self.server: subprocess.Popen | None = None

    def mount(self) -> None:
        self.server = subprocess.Popen([*self.command, "-f", "-o", self.options, self.mountpoint])
        mounted = lambda: is_a_mountpoint(self.mountpoint) or self.server.poll() is not None  # noqa: E731
        eventually(mounted, f"the mount by {self.name}")
        assert self.server.poll() is None, f"{self.name} has ended with {self.server.returncode}"

    def unmount(self) -> None:
        syscalls.umount(os.fsencode(self.mountpoint))
        assert self.server.wait(DEADLINE) == 0, f"{self.name} has ended with {self.server.returncode}"


class FuseOverlayfs(Program):
    """Which counts only the names of a file that it has met."""

    @staticmethod
    def names(nlink: int, links: list[str]) -> int:
        return len(links)


class Lockstep:
    """Both mounts.  Its public methods are the commands."""

    def __init__(self, place: Path, command: list[str]) -> None:
        self._place, self._command = place, command
        self._numbers: list[dict] = []  # of the inodes, per case that was used
        self._sides: list[Side] = []

    def begin(self, cases: int) -> None:
        """New layers with as many cases, mounted twice."""
        syscalls.mount(b"tmpfs", os.fsencode(self._place), b"tmpfs", 0, b"mode=0755")
        lowers = [self._place / f"lower{i}" for i in range(len(LAYERS))]
        for layer, place in zip(LAYERS, lowers, strict=True):
            for case in range(cases):
                make_layer(layer, place / f"case{case}")
        self._numbers = []
        self._sides = [
            Kernel(self._place / "kernel", lowers),
            Program(self._place / "ours", lowers, self._command),
        ]
        for side in self._sides:
            side.mount()

    def run(self, operations: list) -> list:
        """Run operations on the next case: for each the pair of results, then how the trees differ."""
        case = f"case{len(self._numbers)}"
        for side in self._sides:
            side.begin(case)
        try:
            found = [[side.run(operation) for side in self._sides] for operation in operations]
        finally:
            for side in self._sides:
                side.end()
        self._numbers.append(self._sides[1].numbers(case))
        return [*found, differences(*(side.tree(case) for side in self._sides))]

    def end(self) -> list[list[str]]:
        """Mount everything again, then our upper by other programs: for each case what differs; unmount
        all."""
        kernel, ours = self._sides
        for side in self._sides:
            side.unmount()
            side.mount()
        cases = [f"case{case}" for case in range(len(self._numbers))]
        known = [ours.tree(case) for case in cases]
        found = [
            [f"mounted again, {line}" for line in differences(kernel.tree(case), tree)]
            + [f"inode number of {line}" for line in differences(numbers, ours.numbers(case))]
            for case, tree, numbers in zip(cases, known, self._numbers, strict=True)
        ]
        for side in self._sides:
            side.unmount()
        kernel.upper = ours.upper
        others = FuseOverlayfs(self._place / "reader", ours.lowers, ["fuse-overlayfs"], ours.upper)
        for reader in (kernel, others):
            reader.mount()
            for case, tree, lines in zip(cases, known, found, strict=True):
                lines += [f"by {reader.name}, {line}" for line in differences(tree, reader.tree(case))]
            reader.unmount()
        self._sides = []
        syscalls.umount(os.fsencode(self._place))
        return found

    def abandon(self) -> None:
        for side in self._sides:
            side.end()
            with suppress(OSError):
                syscalls.umount(os.fsencode(side.mountpoint), syscalls.MNT_DETACH)
            if isinstance(side, Program) and side.server:
                side.server.wait(DEADLINE)


def main() -> None:
    lockstep = Lockstep(Path(sys.argv[1]), sys.argv[2:])
    try:
        for line in sys.stdin:
            name, *arguments = json.loads(line)
            print(json.dumps(getattr(lockstep, name)(*arguments)), flush=True)
    finally:
        lockstep.abandon()


if __name__ == "__main__":
    main()
