"""Unpack a layer tar into an empty directory of its own, without ever leaving it.

The directory ends up holding what this layer *says*: its files, its directories, marks for what it deletes.
It is never unpacked over the layers below, so a symlink down there cannot redirect anything; they are only
asked (`Below`) for what the tar leaves unsaid:

* a directory mentioned only as somebody's parent keeps the attributes it has below;
* a hard link to a file that only a lower layer has copies that file up, with all its visible names;
* a whiteout is written only if it hides something.

Within one tar the last entry of a name wins.  Whiteouts and opaque markers speak about lower layers only,
wherever in the tar they stand, so they are collected and written at the end; so are the attributes of
directories, which making their children would change.

Malformed or hostile input raises `InvalidLayer`, a full disk and the like ``OSError``; either way the caller
throws the directory away.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

from fusestore.digest import Readable
from fusestore.driver import ownership as own
from fusestore.driver import whiteout
from fusestore.driver.api import Limits, Owners
from fusestore.driver.confine import LINK_LIMIT, Confined, ancestors, base, join, parent, split
from fusestore.driver.ownership import Metadata, Ownership
from fusestore.driver.whiteout import Marker, Spelling
from fusestore.errors import InvalidLayer, printable
from fusestore.files import tree_usage
from fusestore.syscalls import copy_data
from fusestore.tar import (
    BLOCK_DEVICE,
    CHAR,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    REGULAR,
    SYMLINK,
    Member,
    Record,
    TarReader,
)

_TYPE_BITS = {
    REGULAR: stat.S_IFREG,
    SYMLINK: stat.S_IFLNK,
    CHAR: stat.S_IFCHR,
    BLOCK_DEVICE: stat.S_IFBLK,
    DIRECTORY: stat.S_IFDIR,
    FIFO: stat.S_IFIFO,
}
_NAMESPACES = (b"user.", b"security.", b"trusted.", b"system.")
_FAULTS_OF_THE_INPUT = (
    errno.ENAMETOOLONG,
    errno.EFBIG,
    errno.ELOOP,
    errno.E2BIG,
    errno.EMLINK,
    errno.EINVAL,  # an xattr of the kernel's own that makes no sense
    errno.EOPNOTSUPP,
)
_HOLE = 1 << 16  # zero bytes that are not worth writing
_PER_PATH = 150  # bytes that Python needs for a path in a dict, besides its letters
_XATTR_NAME_LIMIT = 255
_OWNERS = 1000  # that are remembered of a layer; the largest image we know has 40
_XATTR_VALUE_LIMIT = 1 << 16
_DEFAULT_DIRECTORY_MODE = stat.S_IFDIR | 0o755


@dataclass(slots=True)
class LowerFile:
    """A file of the layers below: an fd to read it (ours to close), what it is, and all its visible names."""

    fd: int
    metadata: Metadata
    size: int
    target: bytes
    names: list[bytes]


class Below(Protocol):
    """What `unpack` may ask about the merged layers under the one it makes.  Paths are canonical."""

    def exists(self, path: bytes) -> bool:
        """True when anything has this path."""

    def directory(self, path: bytes) -> Metadata | None:
        """The attributes of the directory at `path`; None when there is none."""

    def file(self, path: bytes) -> LowerFile | None:
        """The regular file or symlink at `path`; None when there is none."""


@dataclass(slots=True)
class Unpacked:
    """What came out: bytes of files (each inode once), entries, groups of hard-linked names, owners."""

    size: int = 0
    entries: int = 0
    reproducible: bool = True
    links: list[list[bytes]] = field(default_factory=list)
    uids: set[int] = field(default_factory=set)
    gids: set[int] = field(default_factory=set)

    def owners(self) -> Owners | None:
        """The owners; None where they are too many to keep."""
        if max(len(self.uids), len(self.gids)) > _OWNERS:
            return None
        return tuple(sorted(self.uids)), tuple(sorted(self.gids))


def unpack(
    stream: Readable,
    directory: bytes,
    below: Below,
    ownership: Ownership,
    spelling: Spelling,
    limits: Limits,
    record: Record | None = None,
) -> Unpacked:
    """Unpack the uncompressed tar `stream` into the empty `directory`; `record` hears of all its bytes.

    Reads `stream` to its end, also what follows the tar's end marker.  Raises InvalidLayer, OSError.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    unpacker = _Unpacker(root, below, ownership, spelling, limits)
    try:
        return unpacker.run(TarReader(stream, record))
    finally:
        unpacker.tree.close()
        os.close(root)


class _Unpacker:
    def __init__(
        self, root: int, below: Below, ownership: Ownership, spelling: Spelling, limits: Limits
    ) -> None:
        self.tree = Confined(root, ownership, self._imply)
        self._below, self._ownership, self._spelling, self._limits = below, ownership, spelling, limits
        self._result = Unpacked()
        # For the limits: bytes, entries with implied directories, bytes of paths.
        self._written = self._made = self._remembered = 0
        self._directories: dict[bytes, int | None] = {b"": None}  # mtime in ns; None: only implied
        self._groups: dict[bytes, list[bytes]] = {}  # path -> all names of that inode
        self._copies: dict[bytes, list[bytes]] = {}  # name below -> all names of the file's copy here
        self._whiteouts: set[bytes] = set()  # as the tar has them, but for the marks
        self._opaque: set[bytes] = set()
        self._replaced = False
        self._make = {
            REGULAR: self._file,
            DIRECTORY: self._directory,
            SYMLINK: self._symlink,
            HARD_LINK: self._hard_link,
            CHAR: self._special,
            BLOCK_DEVICE: self._special,
            FIFO: self._special,
        }

    def run(self, reader: TarReader) -> Unpacked:
        self._reader = reader
        for member in reader:
            self._result.entries += 1
            self._count_entry()
            try:
                self._member(member)
            except OSError as exc:
                raise _blamed(exc, member.name) from None
        reader.drain()
        try:
            return self._finish()
        except OSError as exc:
            raise _blamed(exc) from None

    def _count_entry(self) -> None:
        self._made += 1
        if self._made > self._limits.entries:
            raise InvalidLayer(f"more than {self._limits.entries} entries")

    def _remember(self, path: bytes) -> None:
        """One more path is kept to the end."""
        self._remembered += len(path) + _PER_PATH
        if self._remembered > self._limits.memory:
            raise InvalidLayer(f"more than {self._limits.memory} bytes of names", path)

    def _count(self, size: int, name: bytes) -> None:
        """`size` more bytes are going to be written."""
        self._written += size
        if self._written > self._limits.size:
            raise InvalidLayer(f"unpacks to more than {self._limits.size} bytes", name)

    # -- entries --------------------------------------------------------------------------------------

    def _member(self, member: Member) -> None:
        if b"\0" in member.name or b"\0" in member.link:
            raise InvalidLayer("NUL in a name", member.name)
        parts = split(member.name)
        if not parts:
            if member.kind is not DIRECTORY:
                raise InvalidLayer("the layer's root must be a directory", member.name)
            self._note_directory(b"", self._metadata(member))
        elif not self._mark(member, parts):
            self._create(member, parts)

    def _create(self, member: Member, parts: list[bytes]) -> None:
        fd, above = self.tree.enter(parts[:-1])
        make, path = self._make[member.kind], join(above, parts[-1])
        try:
            make(member, fd, path)
        except FileExistsError:
            self._replace(path)
            make(member, self.tree.enter(parts[:-1])[0], path)

    def _mark(self, member: Member, parts: list[bytes]) -> bool:
        """Take note of a whiteout or opaque marker; False for an ordinary entry."""
        if whiteout.PREFIX not in member.name:  # nearly always
            return False
        markers = [whiteout.tar_marker(part)[0] for part in parts]
        if Marker.AUFS in markers or Marker.OPAQUE in markers[:-1]:
            return True
        if Marker.WHITEOUT in markers[:-1] or Marker.INVALID in markers:
            raise InvalidLayer("invalid whiteout entry", member.name)
        marker, target = whiteout.tar_marker(parts[-1])
        if marker is Marker.NONE:
            return False
        if marker is Marker.OPAQUE:
            if member.kind is REGULAR:
                self._note_mark(self._opaque, parts[:-1])
            return True
        if member.kind is not REGULAR:
            raise InvalidLayer("a whiteout must be a regular file", member.name)
        self._note_mark(self._whiteouts, [*parts[:-1], target])
        return True

    def _note_mark(self, marks: set[bytes], parts: list[bytes]) -> None:
        path = b"/".join(parts)
        if path in marks:
            self._reader.unname()
            return
        self._remember(path)
        marks.add(path)

    def _file(self, member: Member, fd: int, path: bytes) -> None:
        file = own.create_file(fd, base(path))
        try:
            if member.size:
                self._content(member, file)
            own.finish(file, self._metadata(member), self._ownership)
        finally:
            os.close(file)

    def _content(self, member: Member, file: int) -> None:
        sparse = member.sparse is not None
        for offset, chunk in self._reader.chunks():
            self._count(len(chunk), member.name)
            if _is_hole(chunk):
                sparse = True
                continue
            while chunk:
                written = os.pwrite(file, chunk, offset)
                chunk, offset = chunk[written:], offset + written
        if sparse:
            os.ftruncate(file, member.size)
        self._result.size += member.size

    def _directory(self, member: Member, fd: int, path: bytes) -> None:
        if path not in self._directories:
            os.mkdir(base(path), 0o700, dir_fd=fd)
        self._note_directory(path, self._metadata(member))

    def _note_directory(self, path: bytes, metadata: Metadata) -> None:
        """Give a directory its attributes; its time is lost with the next child, and comes at the end."""
        with self._opened(path) as fd:
            if self._directories.get(path) is not None:  # a second time
                self._reader.unname()
                for name in os.listxattr(fd):
                    os.removexattr(fd, name)
            own.describe(fd, metadata, self._ownership)
        if path not in self._directories:
            self._remember(path)
        self._directories[path] = metadata.mtime_ns

    def _symlink(self, member: Member, fd: int, path: bytes) -> None:
        if not member.link:
            raise InvalidLayer("a symlink without a target", member.name)
        if len(member.link) > LINK_LIMIT:
            raise InvalidLayer(f"a symlink target over the limit of {LINK_LIMIT} bytes", member.name)
        own.create_symlink(fd, base(path), member.link, self._metadata(member), self._ownership)
        self._result.size += len(member.link)

    def _special(self, member: Member, fd: int, path: bytes) -> None:
        metadata = self._metadata(member)
        if self._ownership is Ownership.REAL and member.kind is CHAR and not metadata.rdev:
            raise InvalidLayer("a device 0:0, which on disk would be a whiteout", member.name)
        own.create_special(fd, base(path), metadata, self._ownership)

    def _hard_link(self, member: Member, fd: int, path: bytes) -> None:
        parts = split(member.link)
        if not parts:
            raise InvalidLayer("a hard link to nothing", member.name)
        if whiteout.tar_marker(parts[-1])[0] is not Marker.NONE:
            raise InvalidLayer("a hard link to a whiteout", member.name)
        target = self.tree.locate(parts)
        if target == path or target.startswith(path + b"/"):
            raise InvalidLayer("a hard link to itself, or into itself", member.name)
        st = self.tree.lstat(target)
        if st is not None and stat.S_ISDIR(st.st_mode):
            raise InvalidLayer("a hard link to a directory", member.name)
        copies = self._copies.get(target)
        if st is None and not copies:
            self._copy_up(member, target, fd, path)
            return
        source = copies[0] if st is None and copies else target
        self.tree.link(source, path)
        self._join_group(source, path)

    def _join_group(self, known: bytes, new: bytes) -> None:
        group = self._groups.setdefault(known, [known])
        self._remember(new)
        group.append(new)
        self._groups[new] = group

    def _copy_up(self, member: Member, target: bytes, fd: int, path: bytes) -> None:
        """Make `path` of a file that only the layers below have; the other names of that file come last."""
        lower = self._below.file(target)
        if lower is None:
            raise InvalidLayer(f"a hard link to {printable(target)}, which no layer has", member.name)
        try:
            self._write_copy(lower, fd, base(path))
        finally:
            if lower.fd >= 0:
                os.close(lower.fd)
        self._result.size += lower.size
        for name in lower.names:  # which it is going to have here too
            self._count_entry()
            self._remember(name)
        self._groups[path] = [path]
        self._copies.update(dict.fromkeys(lower.names, self._groups[path]))

    def _write_copy(self, lower: LowerFile, fd: int, name: bytes) -> None:
        if stat.S_ISLNK(lower.metadata.mode):
            own.create_symlink(fd, name, lower.target, lower.metadata, self._ownership)
            return
        if not stat.S_ISREG(lower.metadata.mode):
            own.create_special(fd, name, lower.metadata, self._ownership)
            return
        self._count(os.fstat(lower.fd).st_blocks * 512, name)
        file = own.create_file(fd, name)
        try:
            copy_data(lower.fd, file, lower.size)
            own.finish(file, lower.metadata, self._ownership)
        finally:
            os.close(file)

    def _metadata(self, member: Member) -> Metadata:
        """A member's attributes, internal and impossible xattrs left out."""
        xattrs = member.xattrs
        if xattrs:
            xattrs = {name: value for name, value in xattrs.items() if _keeps(name, value, member)}
            self._count(sum(map(len, xattrs.values())), member.name)
            if self._ownership is Ownership.REAL and member.kind not in (REGULAR, DIRECTORY):
                _refuse_user_xattrs(xattrs, member)
        if not own.is_device_number(member.major, member.minor):
            raise InvalidLayer(f"device number {member.major}:{member.minor} is out of range", member.name)
        if len(self._result.uids) <= _OWNERS >= len(self._result.gids):
            self._result.uids.add(member.uid)
            self._result.gids.add(member.gid)
        # Linux knows no modes of symlinks; tars carry all kinds of them.
        permissions = 0o777 if member.kind is SYMLINK else member.mode
        return Metadata(
            permissions | _TYPE_BITS[member.kind],
            member.uid,
            member.gid,
            member.mtime_ns,
            rdev=os.makedev(member.major, member.minor) if member.major or member.minor else 0,
            xattrs=xattrs,
        )

    # -- one name twice -------------------------------------------------------------------------------

    def _replace(self, path: bytes) -> None:
        """Remove what this layer has at `path`; the last entry of a name wins, and the tar is lost."""
        self._replaced = True
        self._result.reproducible = False
        for gone in self.tree.remove(path):
            self._directories.pop(gone, None)
            group = self._groups.pop(gone, None)
            if group is not None:
                group.remove(gone)

    # -- the end --------------------------------------------------------------------------------------

    def _imply(self, path: bytes) -> None:
        self._count_entry()
        self._remember(path)
        self._directories[path] = None

    def _finish(self) -> Unpacked:
        opaque, deleted = self._marked(self._opaque), self._marked(self._whiteouts)
        hidden = _Hidden(deleted, opaque)
        self._link_copies(hidden)
        marks = {path for path in opaque if self._wants_opaque(path, hidden)}
        marks |= self._write_whiteouts(deleted, hidden)
        for path, mtime_ns in self._directories.items():
            with self._opened(path) as fd:
                if path in marks:
                    os.setxattr(fd, whiteout.OPAQUE_XATTR, b"y")
                if mtime_ns is None:
                    own.finish(fd, self._inherited(path, hidden), self._ownership)
                else:
                    os.utime(fd, ns=(mtime_ns, mtime_ns))
        if self._replaced:
            self._result.size = tree_usage(self.tree.root)[0]
        groups = {id(group): group for group in self._groups.values() if len(group) > 1}
        self._result.links = [sorted(group) for group in groups.values()]
        return self._result

    def _link_copies(self, hidden: _Hidden) -> None:
        """Give the files copied up the names they have below, where this layer leaves those alone."""
        for name, copies in self._copies.items():
            if not copies or hidden(name) or self.tree.lstat(name) is not None:
                continue
            made = (self.tree.lstat(above) for above in ancestors(name))
            if all(st is None or stat.S_ISDIR(st.st_mode) for st in made):
                self.tree.enter(split(parent(name)))
                self.tree.link(copies[0], name)
                self._join_group(copies[0], name)

    def _marked(self, marks: set[bytes]) -> set[bytes]:
        """The paths that markers speak of; below what is no directory here, there is nothing to hide."""
        found = set()
        for path in marks:
            with suppress(InvalidLayer):
                found.add(self.tree.locate(path.split(b"/") if path else []))
        return found

    def _wants_opaque(self, path: bytes, hidden: _Hidden) -> bool:
        """True when the directory must be marked; one that is only below gets a place to hold the mark."""
        if hidden(path) or self._below.directory(path) is None:
            return False
        st = self.tree.lstat(path)
        if st is None:
            self.tree.enter(split(path))
        return st is None or stat.S_ISDIR(st.st_mode)

    def _write_whiteouts(self, deleted: set[bytes], hidden: _Hidden) -> set[bytes]:
        """Mark deleted names; the directories among them that this layer has anew and that become opaque."""
        renewed = set()
        for path in sorted(deleted):
            if hidden.above(path) or not self._below.exists(path):
                continue
            st = self.tree.lstat(path)
            if st is None:
                fd, _ = self.tree.enter(split(parent(path)))
                whiteout.make(fd, base(path), self._spelling)
            elif stat.S_ISDIR(st.st_mode) and self._below.directory(path) is not None:
                renewed.add(path)
        return renewed

    def _inherited(self, path: bytes, hidden: _Hidden) -> Metadata:
        """The attributes of a directory that the tar only implies."""
        below = None if path and hidden(path) else self._below.directory(path)
        return below or Metadata(_DEFAULT_DIRECTORY_MODE)

    @contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        """A directory of the layer, to be described; O(1) where its parent was the last one."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        fd = os.open(b".", flags, dir_fd=self.tree.directory(path))
        try:
            yield fd
        finally:
            os.close(fd)


class _Hidden:
    """Which paths of the layers below this layer hides."""

    def __init__(self, deleted: set[bytes], opaque: set[bytes]) -> None:
        self._deleted, self._opaque = deleted, opaque

    def __call__(self, path: bytes) -> bool:
        return path in self._deleted or self.above(path)

    def above(self, path: bytes) -> bool:
        """True when an ancestor hides `path` already."""
        return bool(self._deleted or self._opaque) and any(
            a in self._deleted or a in self._opaque for a in ancestors(path)
        )


def _is_hole(chunk: memoryview) -> bool:
    """True for much of nothing, as in the 1 TB that a diff has of a sparse /var/log/lastlog."""
    return len(chunk) >= _HOLE and not chunk[0] and not chunk[-1] and bytes(chunk) == bytes(len(chunk))


def _blamed(exc: OSError, name: bytes | None = None) -> Exception:
    """An error of the kernel as the input's fault, where it is."""
    return InvalidLayer(str(exc.strerror), name) if exc.errno in _FAULTS_OF_THE_INPUT else exc


def _keeps(name: bytes, value: bytes, member: Member) -> bool:
    longest = max(len(name), len(own.backing_xattr(name, Ownership.OVERRIDE)))
    if len(value) > _XATTR_VALUE_LIMIT or longest > _XATTR_NAME_LIMIT:
        raise InvalidLayer("an xattr larger than Linux allows", member.name)
    return name.startswith(_NAMESPACES) and not name.endswith(b".") and not own.is_internal(name)


def _refuse_user_xattrs(xattrs: dict[bytes, bytes], member: Member) -> None:
    """Linux keeps those of files and directories only (xattr(7))."""
    if any(name.startswith(b"user.") for name in xattrs):
        raise InvalidLayer("a user xattr of what is neither file nor directory", member.name)
