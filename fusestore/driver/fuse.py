"""Graphdriver ``fuse``: a layer holds only what it changed; a union filesystem shows the chain as one tree.

Layers are directories (`fusestore.driver.layout`), mounts are server processes
(`fusestore.driver.mounter`). `FuseDriver.get` counts its callers, so that the last `put` of any process
unmounts.  Changes and Diff read the layer's own directory (`fusestore.driver.diff`), not a mount.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from fusestore.digest import CacheID, Readable
from fusestore.driver import below, mounter
from fusestore.driver.api import Applied, Limits
from fusestore.driver.apply import unpack
from fusestore.driver.flush import flush
from fusestore.driver.home import Home
from fusestore.driver.layout import MountSpec, UpperSpec, View, write_links
from fusestore.driver.merge import merge
from fusestore.driver.ownership import Metadata, finish
from fusestore.driver.stack import merged
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.tree import Union
from fusestore.errors import LayerInUse
from fusestore.files import filesystem_type, opened, scratch, walk
from fusestore.syscalls import RENAME_EXCHANGE, rename, syncfs
from fusestore.tar import Record
from fusestore.tar_stream import tar_stream


class FuseDriver(Home):
    """See `fusestore.driver.api.Driver` for the methods without a word of their own."""

    name = "fuse"
    stacked = True

    def __init__(self, root: Path, runroot: Path) -> None:
        super().__init__(root, runroot)
        self._runroot = runroot.absolute()

    # -- making layers --------------------------------------------------------------------------------

    def _furnish(self, directory: Path, parent: CacheID | None, read_write: bool) -> None:
        """An RW layer has a work directory, and from the start the root directory of its parent."""
        if not read_write:
            return
        (directory / "work").mkdir(mode=0o700)
        with below.under(self.union(parent) if parent else None) as lower:
            root = lower.directory(b"") or Metadata(stat.S_IFDIR | 0o755, mtime_ns=time.time_ns())
        with opened(directory / "diff") as fd:
            finish(fd, root, self.ownership)

    def apply_diff(
        self,
        cache_id: CacheID,
        stream: Readable,
        limits: Limits | None = None,
        record: Record | None = None,
    ) -> Applied:
        """Unpack an uncompressed layer tar.  Raises InvalidLayer, LayerInUse, OSError."""
        if self.is_read_write(cache_id):
            return self._apply_to_read_write(cache_id, stream, limits, record)
        directory, parent = self.staged(cache_id)
        applied = self._unpack(stream, directory, parent, limits, record)
        self.sync(cache_id)
        return applied

    def _unpack(
        self,
        stream: Readable,
        directory: Path,
        parent: CacheID | None,
        limits: Limits | None,
        record: Record | None = None,
    ) -> Applied:
        """Unpack a tar as a layer on top of `parent` into ``diff`` below `directory`."""
        with below.under(self.union(parent) if parent else None) as lower:
            diff = os.fsencode(directory / "diff")
            unpacked = unpack(stream, diff, lower, self.ownership, self.spelling, limits or Limits(), record)
        write_links(directory / "links", unpacked.links)
        return Applied(unpacked.size, unpacked.reproducible, unpacked.entries, unpacked.owners())

    def _apply_to_read_write(
        self, cache_id: CacheID, stream: Readable, limits: Limits | None, record: Record | None
    ) -> Applied:
        """Unpack the tar on top of what the layer is now, then move what came out into it."""
        tree = self.diff_directory(cache_id)
        with self.hold(cache_id), self._unmounted(cache_id) as fd, scratch(self.tmp) as directory:
            (directory / "diff").mkdir()
            applied = self._unpack(stream, directory, cache_id, limits, record)
            merge(os.fsencode(directory / "diff"), os.fsencode(tree), self.spelling, stacked=True)
            syncfs(fd)
        return applied

    @contextmanager
    def _unmounted(self, cache_id: CacheID) -> Iterator[int]:
        """The directory of an RW layer, locked as a mount would lock it.  Raises LayerInUse."""
        with opened(self.diff_directory(cache_id)) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LayerInUse(cache_id, "it is mounted") from None
            yield fd

    def _complete(self, cache_id: CacheID) -> None:
        """A lower layer must have no metacopies and renamed directories: make anew an upper that has.

        The new one takes the old one's place in one step.
        """
        self._flush(cache_id)
        if not _has_shortcuts(self.diff_directory(cache_id)):
            return
        parent = next(iter(self.chain(cache_id)[1:]), None)
        with self._unmounted(cache_id), scratch(self.tmp) as directory:
            (directory / "diff").mkdir()
            with tar_stream(self.diff(cache_id, parent)) as stream:
                self._unpack(stream, directory, parent, None)
            with opened(directory) as made, opened(self.path / cache_id) as present:
                syncfs(made)
                rename(made, b"diff", present, b"diff", RENAME_EXCHANGE)
                os.fsync(present)

    # -- looking at them ------------------------------------------------------------------------------

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """``UpperDir``; ``LowerDir`` if the layer has parents; ``WorkDir`` and ``MergedDir`` if it is RW."""
        with self.hold(cache_id):
            upper, *lowers = [spec.path for spec in self.layer_specs(self.chain(cache_id))]
        found = {"UpperDir": upper} | ({"LowerDir": ":".join(lowers)} if lowers else {})
        if self.is_read_write(cache_id):
            found |= {
                "WorkDir": str(self.path / cache_id / "work"),
                "MergedDir": str(self._runroot / "mnt" / cache_id),
            }
        return found

    def status(self) -> list[tuple[str, str]]:
        """How this home keeps owners and whiteouts; overlay2's words where it has them."""
        return [
            ("Backing Filesystem", filesystem_type(self.path)),
            ("Native Overlay Diff", "true"),
            ("Ownership", self.ownership.value),
            ("Whiteouts", self.spelling.value),
        ]

    @contextmanager
    def union(self, cache_id: CacheID) -> Iterator[Union]:
        """The merged view as a library object: no FUSE, no mount.  Holds the layer."""
        if (self.path / cache_id / "work").is_dir():
            with self._view(cache_id) as view:
                yield view
            return
        with self.hold(cache_id):
            specs = self.layer_specs(self.chain(cache_id))
            with below.opened(specs, self.ownership, self.spelling) as union:
                yield union

    @contextmanager
    def _view(self, cache_id: CacheID) -> Iterator[MergedUnion]:
        """The layer on top of its parents, told apart.  Holds it."""
        with self.hold(cache_id):
            self._flush(cache_id)
            specs = list(self.layer_specs(self.chain(cache_id)))
            if self.is_read_write(cache_id):  # nothing is recorded of its links
                specs[0] = replace(specs[0], links=None)
            with merged(specs, self.ownership, self.spelling) as view:
                yield view

    def _flush(self, cache_id: CacheID) -> None:
        """Have in the directory of an RW layer what programs have written into its mounts."""
        if not self.is_read_write(cache_id):
            return
        upper = str(self.diff_directory(cache_id))
        for present in mounter.mounted(self._runroot):
            if present.alive and present.spec.upper is not None and present.spec.upper.path == upper:
                flush(present.pid, os.fsencode(upper), os.fsencode(present.mountpoint))

    @contextmanager
    def _pair(self, cache_id: CacheID, parent: CacheID | None) -> Iterator[tuple[Union, Union | None]]:
        """The merged views of a layer and of `parent`."""
        with self._view(cache_id) as view, self.union(parent) if parent else nullcontext() as under:
            yield view, under

    def diff_directory(self, cache_id: CacheID) -> Path:
        """Where the layer's own files are."""
        borrowed = self.borrowed(cache_id)
        return Path(borrowed.path) if borrowed else self.path / cache_id / "diff"

    def spec(self, cache_id: CacheID, label: str, *, allow_other: bool = False) -> MountSpec:
        """What a mount of the layer is made of; `label` is what df shows.  RW layers are mounted writable."""
        layers = self.layer_specs(self.chain(cache_id))
        upper = None
        if self.is_read_write(cache_id):
            top, layers = layers[0], layers[1:]
            upper = UpperSpec(top.path, str(self.path / cache_id / "work"), top.lock)
        return MountSpec(
            layers,
            str(self.path),
            self.ownership,
            self.spelling,
            label,
            allow_other,
            upper=upper,
            view=View(
                as_root=not allow_other,
                root_is_me=upper is not None and not allow_other,
                acls=upper is not None and allow_other,
            ),
        )

    # -- the merged view ------------------------------------------------------------------------------

    def get(self, cache_id: CacheID) -> bytes:
        """Mount the layer, or count one more user of its mount; the mountpoint.

        A mount whose server died is replaced.  Where there is none any more, nobody else has it.  One that
        was made before the layer got a child still takes changes.
        """
        mountpoint = self.mountpoint(cache_id)
        with self.hold(cache_id), self._counter.users(cache_id) as users:
            present = mounter.find(mountpoint, self._runroot)
            users[0] = users[0] + 1 if present else 1
            if present is None or not present.alive:
                mounter.mount(self.spec(cache_id, cache_id[:12]), mountpoint, self._runroot)
        return os.fsencode(mountpoint)

    def abandon(self, cache_id: CacheID) -> None:
        """Take the mount away, whoever has got it."""
        mountpoint = self.mountpoint(cache_id)
        with self._counter.users(cache_id) as users:
            users[0] = 0
            if mounter.find(mountpoint, self._runroot) is not None:
                mounter.unmount(mountpoint, self._runroot, force=True)

    def put(self, cache_id: CacheID) -> None:
        """One user less; the last one unmounts.  A `put` without a `get` does nothing."""
        mountpoint = self.mountpoint(cache_id)
        with self._counter.users(cache_id) as users:
            users[0] = max(users[0] - 1, 0)
            if users[0] == 0 and mounter.find(mountpoint, self._runroot) is not None:
                mounter.unmount(mountpoint, self._runroot)

    def mounted(self, cache_id: CacheID) -> int:
        """How many `get` have not been given back; none where somebody else has unmounted it."""
        count = super().mounted(cache_id)
        return count if mounter.find(self.mountpoint(cache_id), self._runroot) is not None else 0

    def cleanup(self) -> None:
        """Delete what dead processes left behind, also mountpoints on which nothing is mounted."""
        super().cleanup()
        mounter.sweep(self._runroot)

    def mountpoint(self, cache_id: CacheID) -> Path:
        directory = self._runroot / "mnt"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / cache_id


def _has_shortcuts(directory: Path) -> bool:
    """True when an upper has a file or directory that goes on in the lowers elsewhere than at its place."""
    with opened(directory) as top:
        for _, fd, entries in walk(top):
            for entry in entries:
                marks = os.listxattr(f"/proc/self/fd/{fd}/{entry.name}", follow_symlinks=False)
                if any(mark.endswith((".overlay.redirect", ".overlay.metacopy")) for mark in marks):
                    return True
    return False
