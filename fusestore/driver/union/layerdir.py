"""One directory tree on disk taking part in a union, read through its root fd.

The only reader of lowers.  It answers in the image's terms: `look` gives the `Attr` that the image says an
object has (see `fusestore.driver.ownership`), or `WHITEOUT` where this layer says "deleted", or None where
it says nothing.  Paths are canonical and relative (``usr/bin/ls``; the root is ``b""``); the caller has
found every parent to be a directory of this layer, so no symlink of the tree is ever followed.

xattrs have no ``*at`` calls before Linux 6.13, so they are reached by a path: through ``/proc/self/fd`` in a
library, where the working directory belongs to somebody else, or through `prefix` where the process is ours
to chdir (4.2 us against 1.9 us a call here).

Others may keep layers too (`foreign`), with files that we must not read.  Whatever needs such a file, or
looks into such a directory, gets EACCES, for nobody can say what a name in it means; the object itself is
found, and so are its neighbours.  A mark whose value we must not read is taken for set: to hide too much is
the lesser error.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator

from fusestore.driver import whiteout
from fusestore.driver.idmap import Owners
from fusestore.driver.ownership import (
    OVERRIDE_STAT,
    OVERRIDE_STATS,
    PRIVATE,
    Ownership,
    backing_xattr,
    decode,
    is_internal,
    visible_xattrs,
)
from fusestore.driver.whiteout import Spelling

# What a union remembers of an object, as xattrs; see `fusestore.driver.union.upper`.
OPAQUE, REDIRECT, METACOPY, ORIGIN = b"opaque", b"redirect", b"metacopy", b"fusestore.origin"

_PATH_LIMIT = 3968  # bytes; the kernel takes 4,095, and a prefix has to go before
_PARTS = 15  # names of at most 255 bytes that make a path below the limit

_ABSENT = (errno.ENOENT, errno.ENOTDIR)
_NO_XATTR = (errno.ENODATA, errno.EOPNOTSUPP)


class Attr:
    """What stat(2) tells of an object.  `ino` and `dev` are the backing file's; times are in ns."""

    __slots__ = (
        "atime_ns", "blocks", "ctime_ns", "dev", "gid", "ino", "mode", "mtime_ns", "nlink", "rdev", "size",
        "uid",
    )  # fmt: skip

    def __init__(self, st: os.stat_result) -> None:
        self.mode = st.st_mode
        self.ino = st.st_ino
        self.dev = st.st_dev
        self.nlink = st.st_nlink
        self.uid = st.st_uid
        self.gid = st.st_gid
        self.rdev = st.st_rdev
        self.size = st.st_size
        self.blocks = st.st_blocks
        self.atime_ns = st.st_atime_ns
        self.mtime_ns = st.st_mtime_ns
        self.ctime_ns = st.st_ctime_ns


#: `LayerDir.look`'s answer for a deleted name.  Never shown; only its identity counts.
WHITEOUT = Attr(os.stat_result(range(os.stat_result.n_sequence_fields)))


class LayerDir:
    """A layer directory; `close` it.  `spelling` None means: its whiteouts may be spelled either way.

    `ownership` None means: as fuse-overlayfs does, tell by whether the root carries ``override_stat``.
    `links` is the file with the layer's groups of hard-linked names, if there is one.  `mutable` is for the
    upper to set.  A `foreign` layer is never written to; `owners` says what the ids on its inodes mean,
    `opaque` which directories are so besides those that show it.  Raises OSError.
    """

    def __init__(
        self,
        path: str,
        ownership: Ownership | None = None,
        spelling: Spelling | None = None,
        links: str | None = None,
        prefix: bytes | None = None,
        *,
        foreign: bool = False,
        owners: Owners | None = None,
        opaque: frozenset[bytes] = frozenset(),
    ) -> None:
        self.path = path
        self.fd = _open_root(path)
        self._prefix = prefix if prefix is not None else b"/proc/self/fd/%d/" % self.fd
        self._named = spelling is not Spelling.DEVICE
        self.mutable = False
        self._foreign = foreign
        self._opaque = opaque
        self._noatime = os.O_NOATIME
        self._covered: tuple[bytes, int] | None = None
        self._reached: tuple[bytes, int] = b"", -1
        #: The xattr in which the owner is kept; None where it is the inode's.
        self.override: bytes | None = OVERRIDE_STAT if ownership is Ownership.OVERRIDE else None
        if ownership is None:
            names = self._raw_names(b"")
            self.override = next((name for name in OVERRIDE_STATS if name in names), None)
        self.ownership = Ownership.REAL if self.override is None else Ownership.OVERRIDE
        self._owners = owners if self.override is None else None
        self._links_path = links
        self._links: dict[bytes, list[bytes]] | None = None

    def close(self) -> None:
        """Close the root fd."""
        os.close(self.fd)
        if self._reached[1] >= 0:
            os.close(self._reached[1])

    def __enter__(self) -> LayerDir:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- paths that the kernel would not take ---------------------------------------------------------

    def go_below(self, path: bytes, fd: int) -> None:
        """From now on reach the directory `path`, on which something is going to be mounted, by its `fd`."""
        self._covered = path, fd

    def _way(self, path: bytes) -> bytes:
        """`path`, or one through a directory fd: around a mount on the way, or where it is too long."""
        if self._covered is not None:
            place, fd = self._covered
            if path == place or path.startswith(place + b"/"):
                return b"/proc/self/fd/%d/.%s" % (fd, path[len(place) :])
        if len(path) <= _PATH_LIMIT or path[:1] == b"/":
            return path
        directory, _, name = path.rpartition(b"/")
        return b"/proc/self/fd/%d/%s" % (self._reach(directory), name)

    def _reach(self, directory: bytes) -> int:
        """An fd of a directory with a long path; the last one is kept, which serves all names in it."""
        known, fd = self._reached
        if known != directory or fd < 0:
            at = self.fd
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            for start in range(0, len(parts := directory.split(b"/")), _PARTS):
                step = os.open(b"/".join(parts[start : start + _PARTS]), flags, dir_fd=at)
                if at != self.fd:
                    os.close(at)
                at = step
            if fd >= 0:
                os.close(fd)
            self._reached = directory, at
        return self._reached[1]

    # -- one object -----------------------------------------------------------------------------------

    def look(self, path: bytes) -> Attr | None:
        """What this layer has at `path`: its attributes, `WHITEOUT`, or None.  Raises OSError."""
        if self._named and path.rpartition(b"/")[2].startswith(whiteout.PREFIX):
            return None
        try:
            if self._covered is not None or len(path) > _PATH_LIMIT:
                path = self._way(path)
            st = os.stat(path, dir_fd=self.fd, follow_symlinks=False) if path else os.fstat(self.fd)
            attr = Attr(st)
        except OSError as exc:
            if exc.errno in _ABSENT:
                return WHITEOUT if self._named and self._has_whiteout_file(path) else None
            raise
        kind = attr.mode & 0o170000
        if kind == stat.S_IFCHR and attr.rdev == 0:
            return WHITEOUT
        if kind == stat.S_IFREG and attr.size == 0 and self._named and self._is_xattr_whiteout(path):
            return WHITEOUT
        if kind == stat.S_IFREG and attr.size and not attr.blocks and (not self.mutable or self._foreign):
            self._refuse_metacopy(path)
        if self.override is not None:
            self._apply_override(path, attr, self.override)
        elif self._owners is not None:
            attr.uid, attr.gid = self._owners.uid(attr.uid), self._owners.gid(attr.gid)
        return attr

    def _refuse_metacopy(self, path: bytes) -> None:
        """A file without data may be one of which they are elsewhere, which only an upper may have."""
        if METACOPY in self.marks(path):
            raise OSError(errno.EIO, "a metacopy in a lower layer, which fusestore does not read", path)

    def _apply_override(self, path: bytes, attr: Attr, name: bytes) -> None:
        """Put the image's owner, mode and type in the place of the backing file's."""
        attr.uid = attr.gid = 0
        kind = attr.mode & 0o170000
        if kind not in (stat.S_IFREG, stat.S_IFDIR):
            return  # cannot carry the xattr
        try:
            value = self._xattr(path, name)
        except PermissionError:
            return
        if value is None:
            return
        try:
            attr.uid, attr.gid, permissions, told, attr.rdev = decode(value)
        except ValueError:
            raise OSError(errno.EIO, "damaged override_stat", path) from None
        attr.mode = permissions | (kind if told is None else told)
        if told is not None and told not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
            attr.size = attr.blocks = 0

    def marks(self, path: bytes) -> dict[bytes, bytes]:
        """The union's own xattrs (`OPAQUE`, ...) of the file or directory at `path`.  Raises OSError.

        Root's overlayfs has them as ``trusted.``, others as ``user.``.
        """
        names = [name for name in self._raw_names(path) if name.startswith(PRIVATE)]
        return {name.split(b".", 2)[2]: self._mark(path, name) for name in names}

    def is_opaque(self, path: bytes, marks: dict[bytes, bytes] | None = None) -> bool:
        """True when the directory at `path` hides those of the layers below; `marks` if known already."""
        if marks is None:
            marks = self.marks(path)
        if marks.get(OPAQUE) == b"y" or path in self._opaque:
            return True
        if not self._named:
            return False
        marker = path + b"/" + whiteout.OPAQUE_NAME if path else whiteout.OPAQUE_NAME
        try:
            return self.exists(marker) or bool(path and self._has_whiteout_file(path))
        except PermissionError:
            return True

    def scan(self, path: bytes) -> Iterator[tuple[bytes, bool]]:
        """The names in the directory at `path`, each with whether it is a whiteout.  Raises OSError."""
        names: dict[bytes, bool] = {}
        suspect = self._named and self._may_hold_xattr_whiteouts(path)
        fd = self.open(path or b".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            entries = list(os.scandir(fd))  # by fd, so that reading a lower directory does not set its atime
            for entry in entries:
                name = os.fsencode(entry.name)
                if self._named and name.startswith(whiteout.PREFIX):
                    marker, target = whiteout.tar_marker(name)
                    if marker is whiteout.Marker.WHITEOUT:
                        names.setdefault(target, True)
                elif entry.is_file(follow_symlinks=False):
                    empty = suspect and not entry.stat(follow_symlinks=False).st_size
                    names[name] = empty and self._is_xattr_whiteout(path + b"/" + name if path else name)
                elif entry.is_dir(follow_symlinks=False) or entry.is_symlink():
                    names[name] = False
                else:
                    names[name] = whiteout.is_device(entry.stat(follow_symlinks=False))
        finally:
            os.close(fd)
        return iter(names.items())

    # -- content --------------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> int:
        """The regular file at `path` as an fd of ours.  Raises OSError.

        O_NONBLOCK: should it be something else after all, such as a fifo, we must not wait on it.
        """
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return os.open(self._way(path), flags | self._noatime, dir_fd=self.fd)
        except PermissionError as exc:
            if exc.errno != errno.EPERM or not self._noatime:
                raise
        self._noatime = 0  # not our files
        return os.open(self._way(path), flags, dir_fd=self.fd)

    def readlink(self, path: bytes) -> bytes:
        """The target of the symlink at `path`.  Raises OSError."""
        try:
            return os.readlink(self._way(path), dir_fd=self.fd)
        except OSError as exc:
            if exc.errno != errno.EINVAL or self.override is None:
                raise
        fd = self.open(path)
        try:
            return os.pread(fd, 4096, 0)
        finally:
            os.close(fd)

    def getxattr(self, path: bytes, name: bytes) -> bytes | None:
        """The image's xattr `name` of the object at `path`; None when it has none.  Raises OSError."""
        if is_internal(name):
            return None
        value = self._xattr(path, backing_xattr(name, self.ownership))
        return value if value is None or self._owners is None else self._owners.xattr(name, value)

    def listxattr(self, path: bytes) -> list[bytes]:
        """The names of the image's xattrs of the object at `path`.  Raises OSError."""
        return visible_xattrs(self._raw_names(path), self.ownership)

    def linked(self, path: bytes) -> list[bytes] | None:
        """All names in this layer of the file at `path`, itself included; None when that is not recorded."""
        if self._links is None:
            self._links = _read_links(self._links_path)
        return self._links.get(path)

    def find_links(self, path: bytes) -> list[bytes]:
        """The same, where not recorded found by looking through the whole layer, once.  Raises OSError."""
        names = self.linked(path)
        if names is None and self._links_path is None:
            self._links = self._find_links()
            names = self._links.get(path)
        return names or [path]

    def links_below(self, directory: bytes) -> list[bytes]:
        """The names below `directory` of files that have several in this layer.  Raises OSError."""
        self.find_links(directory)
        return [name for name in self._links or () if name.startswith(directory + b"/")]

    def _find_links(self) -> dict[bytes, list[bytes]]:
        groups: dict[int, list[bytes]] = {}

        def skip(exc: OSError) -> None:
            """A name in a directory that we must not read is visible to nobody."""
            if self.mutable or exc.errno != errno.EACCES:
                raise exc

        for directory, _, names, fd in os.fwalk(b".", onerror=skip, dir_fd=self.fd):
            for name in names:
                try:
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except OSError as exc:
                    skip(exc)
                    continue
                if st.st_nlink > 1:
                    groups.setdefault(st.st_ino, []).append(os.path.join(directory, name)[2:])
        return {name: group for group in groups.values() for name in group}

    def statvfs(self) -> os.statvfs_result:
        """The backing filesystem's.  Raises OSError."""
        return os.fstatvfs(self.fd)

    # -- the backing file -----------------------------------------------------------------------------

    def exists(self, path: bytes) -> bool:
        """True when there is a file of any kind at `path`, whatever it means.  Raises OSError."""
        try:
            os.stat(self._way(path), dir_fd=self.fd, follow_symlinks=False)
        except OSError as exc:
            if exc.errno in (*_ABSENT, errno.ENAMETOOLONG):
                return False
            raise
        return True

    def _has_whiteout_file(self, path: bytes) -> bool:
        directory, slash, name = path.rpartition(b"/")
        return self.exists(directory + slash + whiteout.PREFIX + name)

    def _is_xattr_whiteout(self, path: bytes) -> bool:
        """Linux 6.7's spelling; as the kernel, only in a directory that says it may contain some."""
        if not any(name in whiteout.WHITEOUT_XATTRS for name in self._raw_names(path)):
            return False
        return self._may_hold_xattr_whiteouts(path.rpartition(b"/")[0])

    def _may_hold_xattr_whiteouts(self, directory: bytes) -> bool:
        try:
            return any(self._xattr(directory, name) == b"x" for name in whiteout.OPAQUE_XATTRS)
        except PermissionError:
            return True

    def named(self, path: bytes) -> bytes:
        """`path` for calls that take no directory fd; an absolute one (see `Upper`) stays."""
        path = self._way(path)
        if path[:1] == b"/":
            return path
        return self._prefix + path or b"."

    def _mark(self, path: bytes, name: bytes) -> bytes:
        try:
            return self._xattr(path, name) or b""
        except PermissionError:
            return b"y"

    def _xattr(self, path: bytes, name: bytes) -> bytes | None:
        try:
            return os.getxattr(self.named(path), name, follow_symlinks=not path)
        except OSError as exc:
            if exc.errno in _NO_XATTR:
                return None
            if exc.errno == errno.EACCES and self.mutable and not self._foreign:
                return self._unreadable_xattr(path, name)
            raise

    def _unreadable_xattr(self, path: bytes, name: bytes) -> bytes | None:
        """An xattr of what its owner, who is not root, must not read; in a layer of ours we may let
        ourselves."""
        mode = os.stat(path, dir_fd=self.fd, follow_symlinks=False).st_mode
        os.chmod(path, mode & 0o7777 | 0o400, dir_fd=self.fd)
        try:
            return os.getxattr(self.named(path), name, follow_symlinks=False)
        except OSError:
            return None
        finally:
            os.chmod(path, mode & 0o7777, dir_fd=self.fd)

    def _raw_names(self, path: bytes) -> list[bytes]:
        try:
            names = os.listxattr(self.named(path), follow_symlinks=not path)
        except OSError as exc:
            if exc.errno in _NO_XATTR:
                return []
            raise
        return [os.fsencode(name) for name in names]


Place = tuple[LayerDir, bytes]


def _open_root(path: str) -> int:
    """A directory as an fd to start from; one that we must not list may still be entered."""
    flags = os.O_DIRECTORY | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_RDONLY)
    except PermissionError:
        return os.open(path, flags | os.O_PATH)


def _read_links(path: str | None) -> dict[bytes, list[bytes]]:
    """The groups in a layer's ``links`` file: one JSON array of names a line."""
    if path is None or not os.path.exists(path):
        return {}
    found: dict[bytes, list[bytes]] = {}
    with open(path, encoding="ascii") as lines:
        for line in lines:
            group = [os.fsencode(name) for name in json.loads(line)]
            found.update(dict.fromkeys(group, group))
    return found
