"""pyfuse3 adapter for the changing calls; as `fusestore.driver.operations`, it decides nothing.

WRITE is not here but in `fusestore.driver.raw_requests`.

What may take long, the copying of a large file and fsync, happens in a thread while other requests are
answered (`Loop.aside`).  Two who want the same file copied up: the second waits for the first.

With the writeback cache the kernel merges small writes and keeps size and mtime of a file itself until it
sends them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

from fusestore.driver import loop
from fusestore.driver.acl import ACCESS, DEFAULT
from fusestore.driver.layout import View
from fusestore.driver.loop import Loop
from fusestore.driver.operations import Operations, error
from fusestore.driver.union.files import Writer
from fusestore.driver.union.writable import Owner, WritableUnion

# Below this many bytes a file is copied at once: a thread costs 0.1 ms, what 128 KiB take.
_LARGE = 128 << 10
_ACLS = (ACCESS, DEFAULT)
_NO_SUCH_CALL = FUSEError(errno.ENOSYS)


class WritableOperations(Operations):
    """A `WritableUnion` for pyfuse3."""

    def __init__(self, union: WritableUnion, view: View, loop: Loop, started: Callable[[], None]) -> None:
        super().__init__(union, view, loop, started)
        self._writable = union
        self._copying = 0  # large copy-ups that are under way
        union.kernel_keeps_times = view.writeback
        union.announce = _invalidate
        self.enable_writeback_cache = view.writeback
        self.enable_acl = view.acls

    def init(self) -> None:
        """FUSE_INIT."""
        wanted = loop.PARALLEL_DIROPS | loop.CACHE_SYMLINKS | loop.DONT_MASK | loop.HANDLE_KILLPRIV_V2
        self._loop.negotiate(wanted)
        self._started()

    def _owner(self, ctx: RequestContext) -> Owner:
        """Whose a new object is."""
        if self._view.as_root:
            return Owner(0, 0, ctx.umask)
        uid, gid = self._uids.stored_of_caller(ctx.uid), self._gids.stored_of_caller(ctx.gid)
        return Owner(uid, gid, ctx.umask)

    def _writer(self, ctx: RequestContext) -> Writer:
        """Who writes: the host's root keeps setuid, which is more than root of a user namespace may."""
        return None if self._is_root and not ctx.uid else partial(_is_in_group, ctx)

    # -- copy-up --------------------------------------------------------------------------------------

    async def _raise(self, ino: int, *, data: bool = True, limit: int | None = None) -> None:
        """Wait until the union can change the file `ino` at once."""
        while (job := self._writable.plan(ino, data=data, limit=limit)) is not None:
            if isinstance(job.waiting, trio.Event):
                await self._loop.step_aside(job.waiting)
                continue
            try:
                if job.size < _LARGE:
                    job.run()
                else:
                    job.waiting = trio.Event()
                    self._copying += 1
                    await self._loop.aside(job.run)
            except BaseException:
                self._writable.abandon(job)
                raise
            else:
                self._writable.commit(job)
            finally:
                if isinstance(job.waiting, trio.Event):
                    self._copying -= 1
                    job.waiting.set()
                    job.waiting = None

    async def _await_copy(self, parent: int, name: bytes) -> None:
        """Wait for the copy-up of what is going to lose this name, and to have its others copied with it."""
        if not self._copying:  # nearly always
            return
        node = self._writable.lookup(parent, name)
        if node is None:
            return
        try:
            while node.live is not None and node.live.job is not None:
                if not isinstance(node.live.job.waiting, trio.Event):
                    break
                await self._loop.step_aside(node.live.job.waiting)
        finally:
            self._writable.forget(node.ino, 1)

    async def _raise_named(self, parent: int, name: bytes) -> None:
        """The same for what is to be renamed, and all that has to be copied with it."""
        node = self._writable.lookup(parent, name)
        if node is None:
            return
        nodes = [node]
        try:
            nodes += self._writable.large_files(node.ino, _LARGE)
            for one in nodes:
                await self._raise(one.ino, data=one is not node)
        finally:
            for one in nodes:
                self._writable.forget(one.ino, 1)

    # -- inodes ---------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, ctx: RequestContext) -> FileInfo:
        """FUSE_OPEN."""
        if not self._writable.changes(flags):
            return await super().open(ino, flags, ctx)
        try:
            await self._raise(ino, limit=0 if flags & os.O_TRUNC else None)
            return FileInfo(fh=self._writable.open(ino, flags, self._writer(ctx)))
        except Exception as exc:
            raise error(exc) from None

    async def fsync(self, fh: int, datasync: bool) -> None:
        """FUSE_FSYNC."""
        if not self._view.fsync:
            raise _NO_SUCH_CALL  # after which the kernel does not ask any more
        try:
            self._writable.settle(fh)
            await self._loop.aside(lambda: self._writable.fsync(fh, data_only=datasync))
        except Exception as exc:
            raise error(exc) from None

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """FUSE_FSYNCDIR."""
        if not self._view.fsync:
            raise _NO_SUCH_CALL
        try:
            fd = self._writable.open_directory(fh)
            try:
                await self._loop.aside(lambda: os.fsync(fd))
            finally:
                os.close(fd)
        except Exception as exc:
            raise error(exc) from None

    async def setattr(
        self, ino: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_SETATTR."""
        try:
            size = attr.st_size if fields.update_size else None
            wanted: dict[str, Any] = {
                "size": size,
                "mode": attr.st_mode if fields.update_mode else None,
                "uid": self._stored_uid(attr) if fields.update_uid else None,
                "gid": self._stored_gid(attr) if fields.update_gid else None,
                "atime_ns": attr.st_atime_ns if fields.update_atime else None,
                "mtime_ns": attr.st_mtime_ns if fields.update_mtime else None,
            }
            node = self._writable.node(ino)
            # The kernel writes times back that it has kept; those that we have need no copy-up.
            if fields.update_ctime and wanted["mtime_ns"] == self._writable.attr(node).mtime_ns:
                wanted["mtime_ns"] = None
            if all(value is None for value in wanted.values()):
                return self._reply(node)
            if node.live is None or not node.live.unnamed:
                await self._raise(ino, data=size is not None, limit=size)
            return self._reply(self._writable.setattr(ino, **wanted, handle=fh, writer=self._writer(ctx)))
        except Exception as exc:
            raise error(exc) from None

    def _stored_uid(self, attr: EntryAttributes) -> int | None:
        return None if self._uids.squashes else self._uids.stored(attr.st_uid)

    def _stored_gid(self, attr: EntryAttributes) -> int | None:
        return None if self._gids.squashes else self._gids.stored(attr.st_gid)

    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: object) -> None:
        """FUSE_SETXATTR."""
        self._check_xattr(name)
        try:
            await self._raise(ino, data=False)
            self._writable.setxattr(ino, name, value)
        except Exception as exc:
            raise error(exc) from None

    async def removexattr(self, ino: int, name: bytes, ctx: object) -> None:
        """FUSE_REMOVEXATTR."""
        self._check_xattr(name)
        try:
            self._writable.getxattr(ino, name)  # before anything is copied up for nothing
            await self._raise(ino, data=False)
            self._writable.removexattr(ino, name)
        except Exception as exc:
            raise error(exc) from None

    def _check_xattr(self, name: bytes) -> None:
        super()._check_xattr(name)
        if name in _ACLS and not (self._view.acls or self._view.as_root):
            raise FUSEError(errno.EOPNOTSUPP)

    # -- names ----------------------------------------------------------------------------------------

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """FUSE_CREATE."""
        try:
            owner, writer = self._owner(ctx), self._writer(ctx)
            node, fd = self._writable.create(parent, name, stat.S_IMODE(mode), flags, owner, writer)
            return FileInfo(fh=fd), self._reply(node)
        except Exception as exc:
            raise error(exc) from None

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        """FUSE_MKDIR."""
        try:
            return self._reply(self._writable.mkdir(parent, name, stat.S_IMODE(mode), self._owner(ctx)))
        except Exception as exc:
            raise error(exc) from None

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """FUSE_MKNOD."""
        try:
            return self._reply(self._writable.mknod(parent, name, mode, rdev, self._owner(ctx)))
        except Exception as exc:
            raise error(exc) from None

    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        """FUSE_SYMLINK."""
        try:
            return self._reply(self._writable.symlink(parent, name, target, self._owner(ctx)))
        except Exception as exc:
            raise error(exc) from None

    async def link(self, ino: int, parent: int, name: bytes, ctx: object) -> EntryAttributes:
        """FUSE_LINK."""
        try:
            await self._raise(ino, data=False)
            return self._reply(self._writable.link(ino, parent, name))
        except Exception as exc:
            raise error(exc) from None

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        """FUSE_UNLINK."""
        try:
            await self._await_copy(parent, name)
            self._writable.unlink(parent, name)
        except Exception as exc:
            raise error(exc) from None

    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        """FUSE_RMDIR."""
        try:
            self._writable.rmdir(parent, name)
        except Exception as exc:
            raise error(exc) from None

    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: object
    ) -> None:
        """FUSE_RENAME and FUSE_RENAME2."""
        try:
            await self._raise_named(parent, name)
            if flags:
                await self._raise_named(new_parent, new_name)
            await self._await_copy(new_parent, new_name)
            self._writable.rename(parent, name, new_parent, new_name, flags)
        except Exception as exc:
            raise error(exc) from None


def _invalidate(ino: int) -> None:
    """Make the kernel ask for attributes again, which it takes for unchanged by a write or an ACL."""
    with contextlib.suppress(FileNotFoundError):
        pyfuse3.invalidate_inode(ino, attr_only=True)


def _is_in_group(ctx: RequestContext, gid: int) -> bool:
    """True when the process that sent a request is in the group `gid`."""
    if gid == ctx.gid:
        return True
    try:
        with open(f"/proc/{ctx.pid}/status", encoding="ascii") as lines:
            groups = next(line for line in lines if line.startswith("Groups:"))
    except (OSError, StopIteration):
        return False
    return str(gid) in groups.split()[1:]
