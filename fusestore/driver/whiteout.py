"""The spellings of "deleted" and "opaque", and the maps between them.

========================  ===========================  ==========================================
where                     NAME is deleted              directory DIR is opaque
========================  ===========================  ==========================================
layer tar (OCI, AUFS)     empty file ``.wh.NAME``      empty file ``DIR/.wh..wh..opq``
overlayfs                 char device 0:0 at NAME      ``trusted.`` or ``user.overlay.opaque``
overlayfs, Linux 6.7      empty file with              (the directory then has
                          ``*.overlay.whiteout``       ``*.overlay.opaque`` = ``x``)
fuse-overlayfs            either of the first two      also ``user.fuseoverlayfs.opaque``
========================  ===========================  ==========================================

We read all of them and write what the kernel's own overlayfs reads: a 0:0 device (any user may make one since
Linux 5.8) and ``user.overlay.opaque``; where mknod is refused, ``.wh.`` files.  An opaque mark hides *lower*
layers only, and so does a whiteout: ``foo`` beside ``.wh.foo`` in one layer stays (OCI image-spec, layer.md,
"Whiteouts").
"""

from __future__ import annotations

import os
import secrets
import stat
from enum import Enum

PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
OPAQUE_XATTR = b"user.overlay.opaque"
OPAQUE_XATTRS = (OPAQUE_XATTR, b"trusted.overlay.opaque", b"user.fuseoverlayfs.opaque")
WHITEOUT_XATTRS = (b"user.overlay.whiteout", b"trusted.overlay.whiteout")


class Spelling(Enum):
    """How whiteouts are written in one driver home."""

    DEVICE = "device"
    NAME = "name"


class Marker(Enum):
    """What a tar entry's last component says."""

    NONE = 0
    WHITEOUT = 1
    OPAQUE = 2
    AUFS = 3  # AUFS's own bookkeeping: no meaning for us, never visible
    INVALID = 4


def tar_marker(name: bytes) -> tuple[Marker, bytes]:
    """What the tar name `name` (one component) marks, and the name it marks."""
    if not name.startswith(PREFIX):
        return Marker.NONE, name
    if name == OPAQUE_NAME:
        return Marker.OPAQUE, b""
    if name.startswith(PREFIX + PREFIX):
        return Marker.AUFS, b""
    target = name[len(PREFIX) :]
    if target in (b"", b".", b".."):  # would remove the directory itself, or its parent
        return Marker.INVALID, target
    return Marker.WHITEOUT, target


def is_device(st: os.stat_result) -> bool:
    """True for overlayfs's whiteout: a character device 0:0."""
    return stat.S_ISCHR(st.st_mode) and st.st_rdev == 0


def make(directory: int, name: bytes, spelling: Spelling) -> None:
    """Mark `name` in the directory behind fd `directory` as deleted.  Raises OSError."""
    if spelling is Spelling.DEVICE:
        os.mknod(name, stat.S_IFCHR | 0o600, os.makedev(0, 0), dir_fd=directory)
    else:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(PREFIX + name, flags, 0o600, dir_fd=directory))


def probe(directory: int) -> Spelling:
    """The spelling that the filesystem behind fd `directory` and our privileges allow."""
    name = b".whiteout-probe-" + secrets.token_hex(8).encode()
    try:
        make(directory, name, Spelling.DEVICE)
    except (PermissionError, FileNotFoundError):  # fuse-overlayfs makes a whiteout of its own, and sees none
        return Spelling.NAME
    os.unlink(name, dir_fd=directory)
    return Spelling.DEVICE
