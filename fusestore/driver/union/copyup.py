"""Copy-up: bringing one object from a lower layer to the upper before its first change.

Three steps, so that the copying of data keeps nobody waiting but those who want this file:

* *plan* (`WritableUnion.plan`, synchronous) copies the directories above up and opens both files;
* *run* (here, in any thread) writes one file in the work directory - data, owner, xattrs, mode, times - and
  touches no node;
* *commit* (`WritableUnion.commit`, synchronous) moves it into place by one rename, and points the handles of
  readers to it.

While `run` was out, the file may have been renamed or unlinked; `commit` goes by what is true then.

A change of attributes alone needs no data where the upper allows metacopy: then the new file is empty, as
long as the old one, and says where its data are.  The first write brings them ("completing" below): into
the file in place, because it may have several names, and a killed process leaves it what it was, a
metacopy.
"""

from __future__ import annotations

import os
import stat

from fusestore.driver.ownership import Metadata, Ownership, create_file, finish
from fusestore.driver.union.layerdir import METACOPY, REDIRECT, Attr, LayerDir, Place
from fusestore.driver.union.nodes import Node
from fusestore.driver.union.upper import Upper
from fusestore.syscalls import copy_data

_CAPABILITY = b"security.capability"


class CopyUp:
    """One regular file on its way up.

    `size` bytes are to be copied from `source` to `target`; `staged` is the new file's name in the work
    directory, None where data are brought to a metacopy.  `waiting` belongs to whoever runs it.
    """

    __slots__ = (
        "_fresh",
        "_source",
        "_sync",
        "_target",
        "_upper",
        "is_metacopy",
        "node",
        "size",
        "staged",
        "waiting",
    )

    def __init__(
        self,
        node: Node,
        upper: Upper,
        source: int,
        target: int,
        size: int,
        staged: bytes | None = None,
        fresh: tuple[Metadata, dict[bytes, bytes]] | None = None,
    ) -> None:
        self.node = node
        self.size = size
        self.staged = staged
        self.waiting: object = None
        self.is_metacopy = fresh is not None and METACOPY in fresh[1]
        self._upper, self._source, self._target, self._fresh = upper, source, target, fresh
        self._sync = upper.sync and not self.is_metacopy

    def run(self) -> None:
        """Copy.  Raises OSError, and then what was staged is of no use; closes both files in any case."""
        try:
            privileges = self._privileges()
            if self.size:
                copy_data(self._source, self._target, self.size)
            if self._fresh is None:
                # Before it is no longer a metacopy: one that is shorter shows the beginning, a hole shows
                # zeros.
                os.ftruncate(self._target, self.size)
                if privileges is not None:
                    os.setxattr(self._target, _CAPABILITY, privileges)
            else:
                meta, marks = self._fresh
                self._upper.set_marks(self._target, marks)
                finish(self._target, meta, self._upper.ownership)
            if self._sync:
                os.fsync(self._target)
        finally:
            self.close()

    def _privileges(self) -> bytes | None:
        """The file capabilities of a metacopy, which the kernel takes away with the first write."""
        if self._fresh is not None or self._upper.ownership is not Ownership.REAL:
            return None
        try:
            return os.getxattr(self._target, _CAPABILITY)
        except OSError:
            return None

    def close(self) -> None:
        """Close both files."""
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)


def plan(node: Node, upper: Upper, marks: dict[bytes, bytes], *, data: bool, limit: int | None) -> CopyUp:
    """Begin to copy a lower file up; with `data` the first `limit` bytes of it (None: all).

    Without, it becomes a metacopy.  Raises OSError.
    """
    layer, size = node.layers[0], node.attr.size
    wanted = min(size, size if limit is None else limit) if data else 0
    meta = metadata(layer, node.path, node.attr)
    if not data:
        marks = {**marks, METACOPY: b"", REDIRECT: b"/" + node.path}
    source = layer.open(node.path) if wanted else -1
    staged = upper.stage()
    try:
        target = create_file(upper.work.fd, staged)
    except BaseException:
        if source >= 0:
            os.close(source)
        raise
    if not data:
        os.ftruncate(target, size)
    return CopyUp(node, upper, source, target, wanted, staged, (meta, marks))


def complete(node: Node, upper: Upper, place: Place, *, limit: int | None) -> CopyUp:
    """Begin to bring the first `limit` bytes of its data (None: all) to the metacopy at `place`."""
    layer = node.layers[0]
    size = node.attr.size if limit is None else min(node.attr.size, limit)
    source = layer.open(node.path) if size else -1
    try:
        target = upper.open(place, os.O_WRONLY)
    except BaseException:
        if source >= 0:
            os.close(source)
        raise
    return CopyUp(node, upper, source, target, size)


def stage_other(node: Node, upper: Upper, marks: dict[bytes, bytes]) -> bytes:
    """A copy of a lower directory (without its content), symlink or special file in the work directory."""
    layer = node.layers[0]
    meta = metadata(layer, node.path, node.attr)
    if stat.S_ISDIR(meta.mode):
        staged = upper.stage_directory(meta, marks)
        os.utime(staged, ns=(meta.atime_ns, meta.mtime_ns), dir_fd=upper.work.fd)
        return staged
    target = layer.readlink(node.path) if stat.S_ISLNK(meta.mode) else b""
    return upper.stage_other(meta, target, marks)


def metadata(layer: LayerDir, path: bytes, attr: Attr) -> Metadata:
    """All that a lower object is, besides its name and content."""
    xattrs = {name: layer.getxattr(path, name) or b"" for name in layer.listxattr(path)}
    meta = Metadata(attr.mode, attr.uid, attr.gid, attr.mtime_ns, rdev=attr.rdev, xattrs=xattrs)
    meta.atime_ns = attr.atime_ns
    return meta
