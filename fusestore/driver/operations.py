"""pyfuse3 adapter: translate arguments, call `Union`, translate the answer.  No decisions are made here.

The fastest request is the one the kernel does not send.  Layers do not change while mounted and the kernel is
the only writer, so entries and attributes are valid for ever, a missing name is answered by an entry
with ``st_ino == 0`` (which the kernel caches; an error it would not), pages survive the close of a file, and
FLUSH is answered ENOSYS once, after which the kernel stops asking.

Owners pass through the maps of the mount's `View` here, and nowhere else.

Each handler converts its errors itself: an untaken ``except`` costs nothing, a decorator a second coroutine.
An ``OSError`` becomes its errno; anything else is a bug of ours, is logged and becomes EIO.  A handler never
ends the mount.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from fusestore.driver import loop
from fusestore.driver.idmap import group_map, user_map
from fusestore.driver.layout import View
from fusestore.driver.loop import Loop
from fusestore.driver.union.nodes import Node
from fusestore.driver.union.tree import Union
from fusestore.syscalls import owns_every_id

_log = logging.getLogger(__name__)

# A lower file this small is put into the page cache while it is opened, which saves the READ request.
_PREFILL = 128 << 10

_STATVFS = ["bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"]

_NO_SUCH_CALL = FUSEError(errno.ENOSYS)

# A listed name without attributes: the kernel looks it up when it is used, and then gets the error.
_UNREADABLE = EntryAttributes()
_UNREADABLE.st_ino = 0


def error(exc: Exception) -> FUSEError:
    """`exc` as the only thing a handler may raise."""
    if isinstance(exc, FUSEError):
        return exc
    if isinstance(exc, OSError) and exc.errno:
        if exc.errno == errno.EIO:
            _log.error("%s", exc)
        return FUSEError(exc.errno)
    _log.error("a handler failed", exc_info=exc)
    return FUSEError(errno.EIO)


class Operations(pyfuse3.Operations):
    """A read-only `Union` for pyfuse3, shown as `view` says.

    `started` is called when the kernel has finished its handshake.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, union: Union, view: View, loop: Loop, started: Callable[[], None]) -> None:
        super().__init__()
        self._union = union
        self._view = view
        self._loop = loop
        self._started = started
        self._prefilled: set[int] = set()
        self._is_root = owns_every_id()
        self._uids = user_map(view.uids, view.squash_uid, os.getuid() if view.root_is_me else None)
        self._gids = group_map(view.gids, view.squash_gid, os.getgid() if view.root_is_me else None)
        self._absent = EntryAttributes()
        self._absent.st_ino = 0
        self._absent.entry_timeout = view.timeout

    def _reply(self, node: Node) -> EntryAttributes:
        """The kernel's picture of a node, made once and kept on it until the node changes."""
        reply: EntryAttributes | None = node.reply
        if reply is None:
            reply = node.reply = self._picture(node)
        return reply

    def _picture(self, node: Node) -> EntryAttributes:
        attr, reply = self._union.attr(node), EntryAttributes()
        reply.st_ino = node.ino
        reply.generation = node.generation
        reply.st_mode = attr.mode
        reply.st_nlink = 1 if self._view.static_nlink and stat.S_ISDIR(attr.mode) else attr.nlink
        reply.st_uid = self._uids.shown(attr.uid)
        reply.st_gid = self._gids.shown(attr.gid)
        reply.st_rdev = attr.rdev
        reply.st_size = attr.size
        reply.st_blocks = attr.blocks
        reply.st_atime_ns = attr.atime_ns
        reply.st_mtime_ns = attr.mtime_ns
        reply.st_ctime_ns = attr.ctime_ns
        reply.entry_timeout = reply.attr_timeout = self._view.timeout
        return reply

    def init(self) -> None:
        """FUSE_INIT."""
        self._loop.negotiate(loop.PARALLEL_DIROPS | loop.CACHE_SYMLINKS)
        self._started()

    async def lookup(self, parent: int, name: bytes, ctx: object) -> EntryAttributes:
        """FUSE_LOOKUP."""
        try:
            node = self._union.lookup(parent, name)
            return self._absent if node is None else self._reply(node)
        except Exception as exc:
            raise error(exc) from None

    async def forget(self, counts: Sequence[tuple[int, int]]) -> None:
        """FUSE_FORGET and FUSE_BATCH_FORGET."""
        for ino, count in counts:
            self.forget_one(ino, count)

    def forget_one(self, ino: int, count: int) -> None:
        """The kernel drops `count` of its references to `ino`."""
        self._union.forget(ino, count)
        self._prefilled.discard(ino)

    async def getattr(self, ino: int, ctx: object) -> EntryAttributes:
        """FUSE_GETATTR."""
        try:
            return self._reply(self._union.node(ino))
        except Exception as exc:
            raise error(exc) from None

    async def readlink(self, ino: int, ctx: object) -> bytes:
        """FUSE_READLINK."""
        try:
            return self._union.readlink(ino)
        except Exception as exc:
            raise error(exc) from None

    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        """FUSE_OPEN.  The handle is the fd of the backing file, so that `read` is one pread."""
        try:
            fd = self._union.open(ino, flags)
        except Exception as exc:
            raise error(exc) from None
        if ino not in self._prefilled:
            self._prefill(ino, fd)
        return FileInfo(fh=fd)

    def _prefill(self, ino: int, fd: int) -> None:
        """Only of a file of the lowers: of others the kernel may have newer pages than we."""
        self._prefilled.add(ino)
        node = self._union.node(ino)
        try:
            if 0 < node.attr.size <= _PREFILL and not node.upper:
                pyfuse3.notify_store(ino, 0, os.pread(fd, _PREFILL, 0))
        except OSError as exc:  # then the kernel asks, and is told what is wrong
            _log.info("could not fill the page cache: %s", exc)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """FUSE_READ."""
        try:
            return self._union.read(fh, size, offset)
        except Exception as exc:
            raise error(exc) from None

    async def flush(self, fh: int) -> None:
        """FUSE_FLUSH: nothing is written, so the kernel need not ask again."""
        raise _NO_SUCH_CALL

    async def release(self, fh: int) -> None:
        """FUSE_RELEASE."""
        try:
            self._union.release(fh)
        except Exception as exc:
            raise error(exc) from None

    async def opendir(self, ino: int, ctx: object) -> int:
        """FUSE_OPENDIR."""
        try:
            handle = self._union.opendir(ino)
            self._loop.cache_listing()
            return handle
        except Exception as exc:
            raise error(exc) from None

    async def readdir(self, fh: int, start: int, token: Any) -> None:  # noqa: ANN401
        """FUSE_READDIRPLUS: every name comes with its attributes and counts as looked up."""
        try:
            count, put, picture = self._union.count, pyfuse3.readdir_reply, self._reply
            for name, node, offset in self._union.readdir(fh, start):
                if isinstance(node, OSError):
                    _log.error("%s", node)
                    if not put(token, name, _UNREADABLE, offset):
                        break
                elif not put(token, name, picture(node), offset):
                    break
                elif offset > 2:  # not . and ..
                    count(node)
        except Exception as exc:
            raise error(exc) from None

    async def releasedir(self, fh: int) -> None:
        """FUSE_RELEASEDIR."""
        try:
            self._union.releasedir(fh)
        except Exception as exc:
            raise error(exc) from None

    async def getxattr(self, ino: int, name: bytes, ctx: object) -> bytes:
        """FUSE_GETXATTR."""
        self._check_xattr(name)
        try:
            return self._union.getxattr(ino, name)
        except Exception as exc:
            raise error(exc) from None

    async def listxattr(self, ino: int, ctx: object) -> list[bytes]:
        """FUSE_LISTXATTR."""
        self._check_xattr(b"")
        try:
            names = self._union.listxattr(ino)
            # The kernel gives trusted.* to nobody but root, so nobody else should be told of it.
            return names if self._is_root else [n for n in names if not n.startswith(b"trusted.")]
        except Exception as exc:
            raise error(exc) from None

    def _check_xattr(self, name: bytes) -> None:
        if not self._view.xattrs:
            raise _NO_SUCH_CALL  # after which the kernel asks for no xattr any more

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        """FUSE_STATFS."""
        try:
            backing, reply = self._union.statvfs(), pyfuse3.StatvfsData()
            for field in _STATVFS:
                setattr(reply, f"f_{field}", getattr(backing, f"f_{field}"))
            reply.f_namemax = self._union.name_max(backing)
            return reply
        except Exception as exc:
            raise error(exc) from None

    async def access(self, ino: int, mode: int, ctx: object) -> bool:
        """FUSE_ACCESS, sent only without default_permissions: the mount's user is its root (DESIGN 1.9).

        As root would be: everything may be read and written, and run if anybody may.
        """
        try:
            permissions = self._union.node(ino).attr.mode
            return not mode & os.X_OK or stat.S_ISDIR(permissions) or bool(permissions & 0o111)
        except Exception as exc:
            raise error(exc) from None
