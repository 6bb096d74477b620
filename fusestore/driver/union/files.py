"""What is in a file of a writable union and what is said about it: content, attributes, xattrs.

Handles are fds, so that `read` and `write` are one system call.  Those of readers that opened a file while it
was in a lower layer are re-pointed (dup2) when it is copied up.

Setuid, setgid and capabilities come off a file that is written to or given away.  The kernel leaves that to
us (FUSE_HANDLE_KILLPRIV_V2), and the backing file does not do it either where we are root, or where it has
none of them because the truth is in xattrs.  Who writes is known when a file is opened: `Writer` is None
for somebody who may keep them (CAP_FSETID), else it tells whether the writer is in a group.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Sequence

from fusestore.driver import acl
from fusestore.driver.ownership import Ownership
from fusestore.driver.union.layerdir import LayerDir, Place
from fusestore.driver.union.merged import stale
from fusestore.driver.union.nodes import Live, Node
from fusestore.driver.union.raising import RaisingUnion, changed
from fusestore.driver.union.upper import Upper
from fusestore.syscalls import fallocate

_CAPABILITY = b"security.capability"

Writer = Callable[[int], bool] | None


class FilesUnion(RaisingUnion):
    """The verbs that act on one inode."""

    def __init__(self, upper: Upper, layers: Sequence[LayerDir]) -> None:
        super().__init__(upper, layers)
        #: True where the kernel keeps the mtime of a file that is written to, and tells us later if at all.
        self.kernel_keeps_times = False
        #: Called with the number of an inode of which the mode has changed without being asked for.
        self.announce: Callable[[int], None] = lambda _: None
        self._handles: dict[int, tuple[Node, bool, Writer]] = {}  # fd of an open file: its node, may it write
        self._strict: dict[int, Writer] = {}  # those whose next write has to drop setuid

    def open(self, ino: int, flags: int, writer: Writer = None) -> int:
        """A file of the union as an fd, to be closed by `release`.

        One opened for writing can also be read: the kernel's page cache fills up partly written pages.
        """
        node = self.node(ino)
        if node.live is not None and node.live.gone:
            return self._open_gone(node, node.live, flags, writer)
        if not self.changes(flags):
            return self._open_for_reading(node)
        truncate = flags & os.O_TRUNC
        self._raise(node, limit=0 if truncate else None)
        try:
            fd = self.upper.open(self.at(node), os.O_RDWR | truncate)
        except PermissionError:
            fd = self.upper.open(self.at(node), os.O_WRONLY | truncate)
        if truncate:
            changed(node)
            self._drop_privileges(node, writer)
        self._register(fd, node, writer, writable=True)
        return fd

    @staticmethod
    def changes(flags: int) -> bool:
        """True for open(2) flags that may change a file."""
        return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)

    def _open_gone(self, node: Node, live: Live, flags: int, writer: Writer) -> int:
        """Open a file that has just lost its last name, for somebody who had found that name before."""
        if live.anchor < 0:
            raise stale()
        mode = flags & (os.O_ACCMODE | os.O_TRUNC)
        fd = os.open(b"/proc/self/fd/%d" % live.anchor, mode | os.O_CLOEXEC | os.O_NONBLOCK)
        self._register(fd, node, writer, writable=False)
        self._handles[fd] = node, self.changes(flags), writer
        return fd

    def _open_for_reading(self, node: Node) -> int:
        layer, path = self.data_at(node)
        fd = layer.open(path)
        self._register(fd, node, None, writable=False)
        return fd

    def _register(self, fd: int, node: Node, writer: Writer, *, writable: bool) -> None:
        live = self._live(node)
        live.open += 1
        self._handles[fd] = node, writable, writer
        if not writable and node.layers:
            live.handles.append(fd)
        elif writable and self._has_privileges(node):
            self._strict[fd] = writer

    def _watch(self, node: Node) -> None:
        """`node` may have got something that the next write has to take away."""
        for fd, (opened, writable, writer) in self._handles.items():
            if opened is node and writable:
                self._strict[fd] = writer

    def release(self, handle: int) -> None:
        node, writable, _ = self._handles.pop(handle)
        live = self._live(node)
        live.open -= 1
        if writable:
            self._strict.pop(handle, None)
            self._keep_mtime(node, live, handle)
        elif handle in live.handles:
            live.handles.remove(handle)
        os.close(handle)
        if live.is_nothing():
            node.live = None

    def _keep_mtime(self, node: Node, live: Live, handle: int) -> None:
        """The kernel's clock ticks every 4 ms: a file that it thinks unchanged since then stays as old."""
        if live.written:
            live.written = False
            st = os.fstat(handle)
            if st.st_mtime_ns != node.attr.mtime_ns:
                os.utime(handle, ns=(st.st_atime_ns, node.attr.mtime_ns))

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write at `offset` of an open file; how many bytes were."""
        self._written(handle)
        return os.pwrite(handle, data, offset)

    def _written(self, handle: int) -> None:
        """The file behind `handle` is about to change."""
        node = self._handles[handle][0]
        if handle in self._strict:
            self._drop_privileges(node, self._strict.pop(handle))
        node.stale, node.reply = True, None
        if self.kernel_keeps_times and node.live is not None:
            node.live.written = True

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2) on an open file; `mode` is FALLOC_FL_*."""
        self._written(handle)
        fallocate(handle, mode, offset, length)

    def copy_range(self, source: int, start: int, target: int, offset: int, length: int) -> int:
        """copy_file_range(2) between open files; how many bytes were copied."""
        self._written(target)
        return os.copy_file_range(source, target, length, start, offset)

    def settle(self, handle: int) -> None:
        """All that the kernel had for an open file has come; it is to have the time that the kernel says."""
        node = self._handles[handle][0]
        if node.live is not None:
            self._keep_mtime(node, node.live, handle)

    def fsync(self, handle: int, *, data_only: bool) -> None:
        """Make an open file durable."""
        if data_only:
            os.fdatasync(handle)
        else:
            os.fsync(handle)

    def open_directory(self, handle: int) -> int:
        """An open directory as an fd of the backing one, for fsync; the caller's to close."""
        layer, path = self.at(self._opened[handle].node)
        return os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=layer.fd)

    def setattr(
        self,
        ino: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        handle: int | None = None,
        writer: Writer = None,
    ) -> Node:
        """Change attributes; those that are None stay.  `handle` is the open file, if it came through one.

        What has no name any more and is only to be looked at is not worth a copy.
        """
        node = self.node(ino)
        live = node.live
        if live is not None and (live.gone or (live.unnamed and not node.upper and size is None)):
            _imagine(node, mode, uid, gid, atime_ns, mtime_ns)
            return node
        self._raise(node, data=size is not None, limit=size)
        changed(node)
        if size is not None:
            # One that keeps its size keeps its time, for a kernel that keeps times.
            if not (self.kernel_keeps_times and self.attr(node).size == size):
                self._truncate(node, size, handle)
            self._drop_privileges(node, writer)
        if mode is not None or uid is not None or gid is not None:
            self._set_owner_and_mode(node, mode, uid, gid)
        if atime_ns is not None or mtime_ns is not None:
            attr = self.attr(node)
            atime_ns = attr.atime_ns if atime_ns is None else atime_ns
            attr.mtime_ns = attr.mtime_ns if mtime_ns is None else mtime_ns
            self.upper.set_times(self.at(node), atime_ns, attr.mtime_ns)
            node.stale = True
        return node

    def _truncate(self, node: Node, size: int, handle: int | None) -> None:
        if handle is not None and self._handles[handle][1]:
            os.ftruncate(handle, size)
        else:
            fd = self.upper.open(self.at(node), os.O_WRONLY)
            try:
                os.ftruncate(fd, size)
            finally:
                os.close(fd)

    def _set_owner_and_mode(self, node: Node, mode: int | None, uid: int | None, gid: int | None) -> None:
        attr, place = self.attr(node), self.at(node)
        if mode is not None:
            attr.mode = stat.S_IFMT(attr.mode) | mode & 0o7777
        elif not stat.S_ISDIR(attr.mode):
            attr.mode = _without_privileges(attr.mode, in_group=True)
            self._drop_capability(place)
        attr.uid = attr.uid if uid is None else uid
        attr.gid = attr.gid if gid is None else gid
        node.stale = True
        self.upper.set_owner_and_mode(place, attr)
        if mode is not None and mode & 0o6000:
            self._watch(node)
        if mode is not None and self.upper.ownership is Ownership.OVERRIDE:
            access = self.tree.getxattr(place[1], acl.ACCESS) if place[0] is self.tree else None
            if access is not None:
                self.upper.set_xattr(place, acl.ACCESS, acl.changed_mode(access, mode))

    def _has_privileges(self, node: Node) -> bool:
        layer, path = self.at(node)
        return bool(self.attr(node).mode & 0o6000) or layer.getxattr(path, _CAPABILITY) is not None

    def _drop_privileges(self, node: Node, writer: Writer) -> None:
        """What Linux does to a file that somebody writes to: only root keeps setuid, and nobody
        capabilities."""
        attr, place = self.attr(node), self.at(node)
        mode = attr.mode
        if mode & 0o6000 and writer is not None:
            attr.mode = _without_privileges(mode, in_group=writer(attr.gid))
        if attr.mode != mode:
            self.upper.set_owner_and_mode(place, attr)
            self.announce(node.ino)
        self._drop_capability(place)
        changed(node)

    def _drop_capability(self, place: Place) -> None:
        layer, path = place
        if self.upper.ownership is Ownership.OVERRIDE and layer.getxattr(path, _CAPABILITY) is not None:
            self.upper.remove_xattr(place, _CAPABILITY)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        if self._is_lost(self.node(ino)):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return super().getxattr(ino, name)

    def listxattr(self, ino: int) -> list[bytes]:
        return [] if self._is_lost(self.node(ino)) else super().listxattr(ino)

    @staticmethod
    def _is_lost(node: Node) -> bool:
        """True for a file of which nothing is left."""
        return node.live is not None and node.live.gone and not stat.S_ISDIR(node.attr.mode)

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        """Set an xattr; of an ACL, also the permission bits that it amounts to."""
        node = self.node(ino)
        self._raise(node, data=False)
        place = self.at(node)
        changed(node)
        if name == _CAPABILITY:
            self._watch(node)
        if self.upper.ownership is Ownership.REAL or name not in (acl.ACCESS, acl.DEFAULT):
            self.upper.set_xattr(place, name, value)
        elif acl.is_empty(value):
            self._remove_if_there(place, name)
        elif name == acl.DEFAULT:
            acl.mode(value)
            if not stat.S_ISDIR(node.attr.mode):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            self.upper.set_xattr(place, name, value)
        else:
            bits, minimal = acl.mode(value)
            attr = self.attr(node)
            attr.mode = attr.mode & ~0o777 | bits
            self.upper.set_owner_and_mode(place, attr)
            node.stale = True
            self.announce(ino)
            if minimal:
                self._remove_if_there(place, name)
            else:
                self.upper.set_xattr(place, name, value)

    def _remove_if_there(self, place: Place, name: bytes) -> None:
        layer, path = place
        if layer.getxattr(path, name) is not None:
            self.upper.remove_xattr(place, name)

    def removexattr(self, ino: int, name: bytes) -> None:
        """Remove an xattr.  ENODATA when there is none."""
        self.getxattr(ino, name)  # before anything is copied up for nothing
        node = self.node(ino)
        self._raise(node, data=False)
        changed(node)
        self.upper.remove_xattr(self.at(node), name)


def _imagine(
    node: Node, mode: int | None, uid: int | None, gid: int | None, atime_ns: int | None, mtime_ns: int | None
) -> None:
    """Change the attributes of an object of which nothing else is left."""
    attr = node.attr
    if mode is not None:
        attr.mode = stat.S_IFMT(attr.mode) | mode & 0o7777
    elif (uid is not None or gid is not None) and not stat.S_ISDIR(attr.mode):
        attr.mode = _without_privileges(attr.mode, in_group=True)
    attr.uid = attr.uid if uid is None else uid
    attr.gid = attr.gid if gid is None else gid
    attr.atime_ns = attr.atime_ns if atime_ns is None else atime_ns
    attr.mtime_ns = attr.mtime_ns if mtime_ns is None else mtime_ns
    attr.ctime_ns = time.time_ns()
    node.reply = None


def _without_privileges(mode: int, *, in_group: bool) -> int:
    """`mode` without setuid, and without setgid where it means that and no mandatory locking, or where the
    writer is not `in_group` (setattr_should_drop_sgid in fs/attr.c)."""
    drop_group = mode & stat.S_IXGRP or not in_group
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if drop_group else 0))
