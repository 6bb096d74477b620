"""Owner, mode, device number and xattrs of a file that its holder may not set on the inode.

A user without root can store neither ``uid 42`` nor a setuid bit nor ``/dev/null``.  What the inode cannot
hold goes beside it, in the formats that podman, buildah and fuse-overlayfs read:

* ``user.containers.override_stat`` = ``uid:gid:mode:type``, mode in octal, type one of ``file dir
  symlink pipe socket block-MAJ-MIN char-MAJ-MIN`` (containers/storage, pkg/idtools);
* ``user.containers.override_NAME`` = the value of an xattr NAME outside ``user.*``.

Every file and directory of such a tree has ``override_stat``; fuse-overlayfs fails on one without.
Symlinks, devices, fifos and sockets cannot carry user xattrs: a symlink of 0:0 stays one (whoever owns the
tree stands for root, as in podman's user namespaces), all others are regular files with the type in
``override_stat`` and a symlink's target as content.  No backing file has a setuid, setgid or sticky bit,
all are readable by their owner, and the only device nodes are whiteouts.

`Ownership.REAL` is for callers who own every id (root, not in a restricted user namespace): the inode holds
the truth.  Which one is chosen once, when a driver's home is made.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from enum import Enum
from functools import lru_cache

OVERRIDE_STAT = b"user.containers.override_stat"
#: Under which names it may be; fuse-overlayfs's own two are for REAL xattrs otherwise, and older.
OVERRIDE_STATS = (
    b"security.fuseoverlayfs.override_stat",
    OVERRIDE_STAT,
    b"user.fuseoverlayfs.override_stat",
)
OVERRIDE_PREFIX = b"user.containers.override_"

#: xattrs by which a union filesystem remembers what it did: opaque, redirect, metacopy, origin.
PRIVATE = (b"user.overlay.", b"trusted.overlay.", b"user.fuseoverlayfs.")

# Names by which stores and union filesystems talk to themselves.  One list for every door: dropped from
# tars, invisible and unsettable in a mount, left out of diffs.
_INTERNAL = (
    *PRIVATE,
    b"security.fuseoverlayfs.",
    OVERRIDE_PREFIX,
    b"user.rootlesscontainers",
    b"user.fusestore.",
)
# The host's label of the backing file, not the image's (containers/storage ignores it too).
_HOST_ONLY = b"security.selinux"

_ID_LIMIT = (1 << 32) - 1  # chown(2) takes this id for "leave it"

_TYPES = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_OVERRIDE = re.compile(
    rb"(?P<uid>\d{1,10}):(?P<gid>\d{1,10}):(?P<mode>[0-7]{1,7})"
    rb"(?::(?:(?P<type>file|dir|symlink|pipe|socket)|(?P<device>block|char)-(?P<major>\d+)-(?P<minor>\d+)))?"
)
_TYPE_NAMES = {mode: name for name, mode in _TYPES.items()}


class Ownership(Enum):
    """Where the truth about an object is kept."""

    REAL = "real"
    OVERRIDE = "override"


class Metadata:
    """All that a tar header or an inode says about an object besides its name and content.

    `mode` includes the type bits; `rdev` counts for devices; times are integers in ns since 1970; `xattrs`
    holds visible names only.
    """

    __slots__ = ("atime_ns", "gid", "mode", "mtime_ns", "rdev", "uid", "xattrs")

    def __init__(
        self,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        *,
        rdev: int = 0,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        self.mode, self.uid, self.gid, self.rdev = mode, uid, gid, rdev
        self.atime_ns = self.mtime_ns = mtime_ns
        self.xattrs = xattrs or {}


def is_internal(name: bytes) -> bool:
    """True for an xattr that must never pass between an image and its store."""
    return name.startswith(_INTERNAL) or name == _HOST_ONLY


def encode(meta: Metadata) -> bytes:
    """`meta` as an ``override_stat`` value."""
    kind = _TYPE_NAMES[stat.S_IFMT(meta.mode)]
    if kind in (b"block", b"char"):
        kind = b"%s-%d-%d" % (kind, os.major(meta.rdev), os.minor(meta.rdev))
    return b"%d:%d:%04o:%s" % (meta.uid, meta.gid, meta.mode & 0o7777, kind)


@lru_cache(4096)  # a distribution has a few dozen values; a hit costs 0.1 us, a match 1.2 us
def decode(value: bytes) -> tuple[int, int, int, int | None, int]:
    """An ``override_stat`` value as (uid, gid, permission bits, type bits or None, rdev).

    fuse-overlayfs 1.10 has the type in the mode.  Raises ValueError for anything that is not one.
    """
    match = _OVERRIDE.fullmatch(value)
    if match is None:
        raise ValueError(f"override_stat {value!r}")
    uid, gid, permissions = int(match["uid"]), int(match["gid"]), int(match["mode"], 8)
    major, minor = int(match["major"] or 0), int(match["minor"] or 0)
    named = match["type"] or match["device"]
    kind = _TYPES[named] if named else stat.S_IFMT(permissions) or None
    if max(uid, gid) >= _ID_LIMIT or permissions > 0o177777 or not is_device_number(major, minor):
        raise ValueError(f"override_stat {value!r}")
    if kind is not None and (kind not in _TYPE_NAMES or stat.S_IFMT(permissions) not in (0, kind)):
        raise ValueError(f"override_stat {value!r}")
    return uid, gid, permissions & 0o7777, kind, os.makedev(major, minor)


def is_device_number(major: int, minor: int) -> bool:
    """True for a number that Linux can have: 12 and 20 bits."""
    return 0 <= major < 1 << 12 and 0 <= minor < 1 << 20


def backing_mode(mode: int) -> int:
    """The permission bits of a backing file: those of `mode` without the special ones, open to its owner."""
    return mode & 0o777 | (0o700 if stat.S_ISDIR(mode) else 0o600)


def override_xattrs(meta: Metadata) -> dict[bytes, bytes]:
    """The xattrs of the backing file or directory of `meta`."""
    xattrs = {n if n.startswith(b"user.") else OVERRIDE_PREFIX + n: v for n, v in meta.xattrs.items()}
    xattrs[OVERRIDE_STAT] = encode(meta)
    return xattrs


def visible_xattrs(names: list[bytes], ownership: Ownership) -> list[bytes]:
    """The xattr names of an image among those of a backing file."""
    if ownership is Ownership.REAL:
        return [n for n in names if not is_internal(n)]
    plain = [n for n in names if n.startswith(b"user.") and not is_internal(n)]
    hidden = [
        n[len(OVERRIDE_PREFIX) :] for n in names if n.startswith(OVERRIDE_PREFIX) and n != OVERRIDE_STAT
    ]
    return plain + [n for n in hidden if not is_internal(n)]


def backing_xattr(name: bytes, ownership: Ownership) -> bytes:
    """The name under which a backing file keeps the image's xattr `name`."""
    if ownership is Ownership.REAL or name.startswith(b"user."):
        return name
    return OVERRIDE_PREFIX + name


# -- creating objects ---------------------------------------------------------------------------------


def create_symlink(
    directory: int, name: bytes, target: bytes, meta: Metadata, ownership: Ownership, *, as_file: bool = False
) -> None:
    """Make a symlink with all its metadata.  Raises OSError (EEXIST included).

    `as_file`: where there is the choice, make it a file, which can have xattrs.
    """
    if ownership is Ownership.OVERRIDE and (as_file or meta.uid or meta.gid or meta.xattrs):
        fd = create_file(directory, name)
        try:
            os.write(fd, target)
            finish(fd, meta, ownership)
        finally:
            os.close(fd)
        return
    os.symlink(target, name, dir_fd=directory)
    _finish_by_name(directory, name, meta, ownership)


def create_special(directory: int, name: bytes, meta: Metadata, ownership: Ownership) -> None:
    """Make a device, fifo or socket with all its metadata.  Raises OSError (EEXIST included)."""
    if ownership is Ownership.OVERRIDE:
        fd = create_file(directory, name)
        try:
            finish(fd, meta, ownership)
        finally:
            os.close(fd)
        return
    os.mknod(name, stat.S_IFMT(meta.mode) | 0o600, meta.rdev, dir_fd=directory)
    _finish_by_name(directory, name, meta, ownership)
    os.chmod(name, meta.mode & 0o7777, dir_fd=directory)


def create_file(directory: int, name: bytes) -> int:
    """A new empty file that no one else can open; its fd.  Raises OSError (EEXIST included)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, 0o600, dir_fd=directory)


def finish(fd: int, meta: Metadata, ownership: Ownership) -> None:
    """Give the file or directory behind `fd` its metadata, times last.  Raises OSError."""
    describe(fd, meta, ownership)
    os.utime(fd, ns=(meta.atime_ns, meta.mtime_ns))


def describe(fd: int, meta: Metadata, ownership: Ownership) -> None:
    """Give the file or directory behind `fd` its metadata but for times.  Raises OSError.

    The mode comes after the owner, whose change would clear setuid, and before nothing that needs access.
    """
    if ownership is Ownership.REAL:
        os.fchown(fd, meta.uid, meta.gid)
        mode, xattrs = meta.mode & 0o7777, meta.xattrs
    else:
        mode, xattrs = backing_mode(meta.mode), override_xattrs(meta)
    for name, value in xattrs.items():
        set_xattr(fd, name, value)
    os.fchmod(fd, mode)


def set_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    """setxattr(2) on an fd, or on a path without following it.  Raises OSError."""
    try:
        os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
    except OSError as exc:
        # ext4 keeps the xattrs of a file in one block, and calls a full block "no space" as it does a
        # full disk.
        if exc.errno == errno.ENOSPC and (st := os.statvfs(target)).f_bavail and st.f_favail:
            raise OSError(errno.E2BIG, "more xattrs than this filesystem keeps of a file") from None
        raise


def _finish_by_name(directory: int, name: bytes, meta: Metadata, ownership: Ownership) -> None:
    """`finish` for objects that cannot be opened without side effects."""
    if ownership is Ownership.REAL:
        os.chown(name, meta.uid, meta.gid, dir_fd=directory, follow_symlinks=False)
        path = b"/proc/self/fd/%d/%s" % (directory, name)
        for key, value in meta.xattrs.items():
            set_xattr(path, key, value)
    os.utime(name, ns=(meta.atime_ns, meta.mtime_ns), dir_fd=directory, follow_symlinks=False)
