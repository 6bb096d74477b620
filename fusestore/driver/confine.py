"""Resolve the names in a hostile tar inside one directory, never outside it.

Every step is one ``openat(parent fd, component, O_PATH | O_DIRECTORY | O_NOFOLLOW)``: a component is
entered only if it *is* a directory of this layer, so neither the kernel nor we ever follow a link by
accident.  A symlink that this layer holds is followed here, by hand, with ``/`` and ``..`` clamped at the
layer's root; that is what RESOLVE_IN_ROOT does, and it also works for symlinks that `ownership` keeps as
regular files.  Nothing else writes to a staged layer, so what was checked stays true.

A *path* below is canonical: bytes without leading slash, ``.``, ``..`` or symlinks; the root is ``b""``.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable

from fusestore.driver import whiteout
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership, decode
from fusestore.errors import InvalidLayer
from fusestore.files import empty_directory

# PATH_MAX less the room for what we put before a path to reach its xattrs (a cache ID, or /proc/self/fd/N).
PATH_LIMIT = 4096 - 128
LINK_LIMIT = 4095
NAME_LIMIT = 255
_MAX_LINKS = 40  # as the kernel
_MAX_STEPS = 8192  # components on the way, symlinks' included; a path has at most 1,984
_KNOWN_PATHS = 4096
_OPEN_DIRECTORIES = 128  # fds kept; tars list a directory's files together, so almost all steps hit


def split(name: bytes) -> list[bytes]:
    """A tar name as components, ``.`` and ``..`` taken out.  Raises InvalidLayer if it leaves the root."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise InvalidLayer("leads out of the layer", name)
            parts.pop()
        elif part not in (b"", b"."):
            # A whiteout's own name is never made where a device can take its place.
            if len(part.removeprefix(whiteout.PREFIX)) > NAME_LIMIT:
                raise InvalidLayer(f"a name of {len(part)} bytes, over the limit of {NAME_LIMIT}", name)
            parts.append(part)
    if sum(map(len, parts)) + len(parts) - 1 > PATH_LIMIT:
        raise InvalidLayer(f"a path over the limit of {PATH_LIMIT} bytes", name)
    return parts


def join(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`."""
    return directory + b"/" + name if directory else name


def parent(path: bytes) -> bytes:
    """The directory of a path other than the root."""
    return path.rpartition(b"/")[0]


def base(path: bytes) -> bytes:
    """The last component of a path."""
    return path.rpartition(b"/")[2]


def ancestors(path: bytes) -> list[bytes]:
    """The directories above `path`, nearest first, the root last."""
    found = []
    while path:
        path = parent(path)
        found.append(path)
    return found


class Confined:
    """A directory being filled.  `implied(path)` is told of each directory made on the way to a name."""

    def __init__(self, root: int, ownership: Ownership, implied: Callable[[bytes], None]) -> None:
        self.root = root
        self._ownership = ownership
        self._implied = implied
        self._fds: OrderedDict[bytes, int] = OrderedDict()
        self._canonical: dict[bytes, bytes] = {}

    def close(self) -> None:
        """Close every fd but the root's, and forget all we knew."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()
        self._canonical.clear()

    # -- walking --------------------------------------------------------------------------------------

    def enter(self, parts: list[bytes]) -> tuple[int, bytes]:
        """The directory of `parts` as (fd, path); missing ones are made.  The fd stays ours.

        Raises InvalidLayer when a component is something that cannot have children.
        """
        raw = b"/".join(parts)
        path = self._canonical.get(raw)
        if path is None:
            path = self._walk(parts, create=True)
            if len(self._canonical) >= _KNOWN_PATHS:
                self._canonical.clear()
            self._canonical[raw] = path
        return self._open(path), path

    def locate(self, parts: list[bytes]) -> bytes:
        """The path that `parts` name; nothing is made, and directories that are not there are imagined."""
        if not parts:
            return b""
        return join(self._walk(parts[:-1], create=False), parts[-1])

    def _walk(self, parts: list[bytes], *, create: bool) -> bytes:
        path, todo, links, steps = b"", parts[::-1], 0, 0
        absent: bytes | None = None  # below this there is nothing
        while todo:
            part = todo.pop()
            steps += 1
            if steps > _MAX_STEPS:
                raise InvalidLayer("too many components on the way", b"/".join(parts))
            if part in (b"", b"."):
                continue
            if part == b"..":
                path = parent(path) if path else b""
                continue
            if part.startswith(whiteout.PREFIX):  # out of a symlink's target
                raise InvalidLayer("leads through the name of a whiteout", b"/".join(parts))
            below = join(path, part)
            if len(below) > PATH_LIMIT:
                raise InvalidLayer(f"a path over the limit of {PATH_LIMIT} bytes", below)
            if absent is not None and below.startswith(absent):
                path = below
                continue
            if self._is_directory(below, create=create):
                path = below
                continue
            target = self.read_symlink(below)
            if target is None:
                if self.lstat(below) is None:  # only when not creating: take it for a directory
                    path, absent = below, below + b"/"
                    continue
                raise InvalidLayer("its parent is not a directory", b"/".join([below, *todo[::-1]]))
            links += 1
            if links > _MAX_LINKS:
                raise InvalidLayer("too many symlinks on the way", b"/".join(parts))
            path = b"" if target.startswith(b"/") else path
            todo += target.split(b"/")[::-1]
        return path

    def _is_directory(self, path: bytes, *, create: bool) -> bool:
        try:
            self._open(path)
        except FileNotFoundError:
            if not create:
                return False
            os.mkdir(base(path), 0o700, dir_fd=self._open(parent(path)))
            self._implied(path)
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        return True

    def _open(self, path: bytes) -> int:
        """The fd of the directory `path`, all of whose ancestors are directories."""
        if not path:
            return self.root
        fd = self._fds.get(path)
        if fd is not None:
            self._fds.move_to_end(path)
            return fd
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        above = self._fds.get(parent(path))
        if above is not None:
            fd = os.open(base(path), flags, dir_fd=above)
        else:
            fd = os.open(path, flags, dir_fd=self.root)
        self._fds[path] = fd
        if len(self._fds) > _OPEN_DIRECTORIES:
            os.close(self._fds.popitem(last=False)[1])
        return fd

    def directory(self, path: bytes) -> int:
        """The directory at `path`, which exists, as an O_PATH fd that stays ours.  Raises OSError."""
        return self._open(path)

    # -- changing -------------------------------------------------------------------------------------

    def link(self, source: bytes, target: bytes) -> None:
        """Make `target` another name of `source`; the directories of both exist.  Raises OSError."""
        fds = {"src_dir_fd": self._open(parent(source)), "dst_dir_fd": self._open(parent(target))}
        os.link(base(source), base(target), **fds, follow_symlinks=False)

    def remove(self, path: bytes) -> list[bytes]:
        """Delete `path`, with all below it if it is a directory; the paths that are gone.  Raises OSError."""
        gone, fd = [path], self._open(parent(path))
        if stat.S_ISDIR(os.stat(base(path), dir_fd=fd, follow_symlinks=False).st_mode):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            doomed = os.open(base(path), flags, dir_fd=fd)
            try:
                gone += [join(path, below) for below in empty_directory(doomed)]
            finally:
                os.close(doomed)
            os.rmdir(base(path), dir_fd=fd)
        else:
            os.unlink(base(path), dir_fd=fd)
        self.close()  # what led through it leads elsewhere now
        return gone

    # -- looking --------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> os.stat_result | None:
        """The backing object at `path`; None when there is none."""
        try:
            return os.stat(path or b".", dir_fd=self.root, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_symlink(self, path: bytes) -> bytes | None:
        """The target of the symlink at `path`; None when it is not one."""
        st = self.lstat(path)
        if st is None:
            return None
        if stat.S_ISLNK(st.st_mode):
            return os.readlink(path, dir_fd=self.root)
        if self._ownership is Ownership.REAL or not stat.S_ISREG(st.st_mode):
            return None
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.root)
        try:
            if decode(os.getxattr(fd, OVERRIDE_STAT))[3] != stat.S_IFLNK:
                return None
            return os.read(fd, LINK_LIMIT)
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
            return None
        finally:
            os.close(fd)
