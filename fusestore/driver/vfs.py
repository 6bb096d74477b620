"""Graphdriver ``vfs``: every layer is a full copy of its parent with its own changes carried out on it.

Slow and obvious.  It needs no FUSE and no mount, and is what the ``fuse`` driver is compared with: copy the
parent's tree, unpack the layer by itself beside it, and do to the copy what the layer says.  Changes are
found by comparing two whole trees.

`VfsDriver.get` gives the tree as it lies on disk; owners that the disk cannot hold are in xattrs
(`ownership`).  Programs that work in an RW layer do not know of those, so a mode that is not what the xattr
would have made it is one they have set.  A file that is changed without its size and mtime is taken for
unchanged, as by moby's and containers/storage's naive comparison.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from fusestore.digest import CacheID, Readable
from fusestore.driver import below
from fusestore.driver.api import Applied, Limits
from fusestore.driver.apply import unpack
from fusestore.driver.home import Home
from fusestore.driver.layout import record_links
from fusestore.driver.merge import copy_attributes, merge
from fusestore.driver.ownership import OVERRIDE_STAT, Metadata, Ownership, backing_mode, decode, encode
from fusestore.driver.union.layerdir import Attr, LayerDir
from fusestore.driver.union.tree import Union
from fusestore.errors import LayerInUse
from fusestore.files import filesystem_type, opened, scratch, walk
from fusestore.syscalls import copy_data, syncfs
from fusestore.tar import Record


class VfsDriver(Home):
    """See `fusestore.driver.api.Driver`."""

    name = "vfs"
    stacked = False

    @contextmanager
    def removing(self, cache_id: CacheID) -> Iterator[None]:
        """As for all drivers; no mount keeps the layer, so the count has to."""
        with super().removing(cache_id):
            self._refuse_mounted(cache_id)
            yield

    def _refuse_mounted(self, cache_id: CacheID) -> None:
        if self.mounted(cache_id):
            raise LayerInUse(cache_id, "it is mounted")

    def _complete(self, cache_id: CacheID) -> None:
        """Put the modes that programs have set where they cannot keep us from reading."""
        if self.ownership is Ownership.REAL or not self.is_read_write(cache_id):
            return
        with opened(self.path / cache_id / "diff") as top:
            for _, fd, entries in walk(top):
                for entry in entries:
                    st = entry.stat(follow_symlinks=False)
                    is_ours = stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode)
                    if is_ours and stat.S_IMODE(st.st_mode) != backing_mode(st.st_mode):
                        _keep_mode(f"/proc/self/fd/{fd}/{entry.name}", st.st_mode)

    def _furnish(self, directory: Path, parent: CacheID | None, read_write: bool) -> None:
        if parent is not None:
            with self.hold(parent):
                _copy_tree(os.fsencode(self.path / parent / "diff"), os.fsencode(directory / "diff"))
        if read_write:
            (directory / "work").mkdir(mode=0o700)

    def apply_diff(
        self,
        cache_id: CacheID,
        stream: Readable,
        limits: Limits | None = None,
        record: Record | None = None,
    ) -> Applied:
        """Unpack the tar beside the tree, then merge it in.  Raises InvalidLayer, OSError."""
        if self.is_read_write(cache_id):
            with self.hold(cache_id):
                self._refuse_mounted(cache_id)
                return self._apply(self.path / cache_id, cache_id, stream, limits, record)
        directory, parent = self.staged(cache_id)
        return self._apply(directory, parent, stream, limits, record)

    def _apply(
        self,
        directory: Path,
        under: CacheID | None,
        stream: Readable,
        limits: Limits | None,
        record: Record | None,
    ) -> Applied:
        tree = os.fsencode(directory / "diff")
        with scratch(self.tmp) as place, below.under(self.union(under) if under else None) as lower:
            changes = os.fsencode(place / "changes")
            os.mkdir(changes)
            unpacked = unpack(
                stream, changes, lower, self.ownership, self.spelling, limits or Limits(), record
            )
            merge(changes, tree, self.spelling, stacked=False)
        record_links(directory / "diff", directory / "links")
        with opened(directory) as fd:
            syncfs(fd)
        return Applied(unpacked.size, unpacked.reproducible, unpacked.entries, unpacked.owners())

    # -- looking at them ------------------------------------------------------------------------------

    @contextmanager
    def union(self, cache_id: CacheID) -> Iterator[Union]:
        """The tree, with true owners, as a library object.  Holds the layer."""
        directory = self.path / cache_id
        self._complete(cache_id)
        links = None if self.is_read_write(cache_id) else str(directory / "links")
        with (
            self.hold(cache_id),
            _Written(str(directory / "diff"), self.ownership, self.spelling, links) as tree,
        ):
            yield Union([tree])

    @contextmanager
    def _pair(self, cache_id: CacheID, parent: CacheID | None) -> Iterator[tuple[Union, Union | None]]:
        with self.union(cache_id) as tree, self.union(parent) if parent else nullcontext() as under:
            yield tree, under

    def mountpoint(self, cache_id: CacheID) -> Path:
        """What `get` gives: nothing is mounted."""
        return self.path / cache_id / "diff"

    def get(self, cache_id: CacheID) -> bytes:
        """The tree on disk."""
        with self.hold(cache_id), self._counter.users(cache_id) as users:
            users[0] += 1
        return os.fsencode(self.mountpoint(cache_id))

    def put(self, cache_id: CacheID) -> None:
        """One user less; nothing is mounted, so nothing is unmounted."""
        with self._counter.users(cache_id) as users:
            users[0] = max(users[0] - 1, 0)

    def abandon(self, cache_id: CacheID) -> None:
        """Nobody has it any more."""
        with self._counter.users(cache_id) as users:
            users[0] = 0

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """``SourceDir``, as moby's vfs calls it.  Raises FileNotFoundError."""
        with self.hold(cache_id):
            return {"SourceDir": str(self.path / cache_id / "diff")}

    def status(self) -> list[tuple[str, str]]:
        """How this home keeps owners."""
        return [("Backing Filesystem", filesystem_type(self.path)), ("Ownership", self.ownership.value)]


class _Written(LayerDir):
    """A tree in which programs have been that know nothing of ``override_stat``."""

    def _apply_override(self, path: bytes, attr: Attr, name: bytes) -> None:
        on_disk = attr.mode
        super()._apply_override(path, attr, name)
        same_type = stat.S_IFMT(attr.mode) == stat.S_IFMT(on_disk)
        if same_type and backing_mode(attr.mode) != stat.S_IMODE(on_disk):
            attr.mode = on_disk


def _keep_mode(path: str, mode: int) -> None:
    """Put `mode` into the ``override_stat`` of a file or directory, and give it one that lets us read it."""
    os.chmod(path, backing_mode(mode))
    try:
        uid, gid, *_ = decode(os.getxattr(path, OVERRIDE_STAT))
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        uid = gid = 0
    os.setxattr(path, OVERRIDE_STAT, encode(Metadata(mode, uid, gid)))


def _copy_tree(source: bytes, target: bytes) -> None:
    """Copy the tree `source` into the empty directory `target`: data, links, attributes."""
    first_name: dict[int, bytes] = {}
    directories = [b""]
    for path in directories:  # grows while we walk
        for entry in list(os.scandir(source + path)):
            name = path + b"/" + entry.name
            st = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                os.mkdir(target + name, 0o700)
                directories.append(name)
            elif st.st_ino in first_name:
                os.link(target + first_name[st.st_ino], target + name, follow_symlinks=False)
            else:
                first_name[st.st_ino] = name
                _copy_object(source + name, target + name, st)
    for path in reversed(directories):
        copy_attributes(source + path, target + path)


def _copy_object(source: bytes, target: bytes, st: os.stat_result) -> None:
    if stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(st.st_mode):
        with open(source, "rb") as reader, open(target, "xb") as writer:
            copy_data(reader.fileno(), writer.fileno(), st.st_size)
    else:
        os.mknod(target, st.st_mode, st.st_rdev)
    copy_attributes(source, target)
