"""Graphdriver ``fuse``: a layer holds only what it changed; a union filesystem shows the chain as one tree.

Layers are directories (`fusestore.driver.layout`), mounts are server processes
(`fusestore.driver.mounter`). `FuseDriver.get` counts its callers in ``<runroot>/mounts/<cache-id>.count``,
so that the last `put` of any process unmounts; a mount whose server died is replaced by the next `get`.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fusestore.digest import CacheID, Readable
from fusestore.driver import below, diff, mounter
from fusestore.driver.api import Applied, Change, Limits
from fusestore.driver.apply import unpack
from fusestore.driver.layout import Home, MountSpec, UpperSpec, View
from fusestore.driver.ownership import Metadata, finish
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.tree import Union
from fusestore.files import lock, opened


class FuseDriver(Home):
    """See `fusestore.driver.api.Driver` for the methods without a word of their own."""

    name = "fuse"
    stacked = True

    def __init__(self, root: Path, runroot: Path) -> None:
        super().__init__(root)
        self._runroot = runroot.absolute()

    def apply_diff(self, cache_id: CacheID, stream: Readable, limits: Limits) -> Applied:
        """Unpack an uncompressed layer tar into the staged layer.  Raises InvalidLayer, OSError."""
        directory, parent = self.staged(cache_id)
        with below.under(self.union(parent) if parent else None) as lower:
            diff = os.fsencode(directory / "diff")
            unpacked = unpack(stream, diff, lower, self.ownership, self.spelling, limits)
        if unpacked.links:
            lines = [json.dumps([os.fsdecode(name) for name in group]) + "\n" for group in unpacked.links]
            (directory / "links").write_text("".join(lines), encoding="ascii")
        self.sync(cache_id)
        return Applied(unpacked.size, unpacked.reproducible, unpacked.entries)

    def create_read_write(self, cache_id: CacheID, parent: CacheID | None) -> None:
        """Make an empty layer on top of `parent` that takes changes, and publish it."""
        self.create(cache_id, parent)
        try:
            directory, _ = self.staged(cache_id)
            (directory / "work").mkdir(mode=0o700)
            with below.under(self.union(parent) if parent else None) as lower:
                root = lower.directory(b"") or Metadata(stat.S_IFDIR | 0o755, mtime_ns=time.time_ns())
            with opened(directory / "diff") as fd:
                finish(fd, root, self.ownership)
            self.sync(cache_id)
            self.publish(cache_id).close()
        except BaseException:
            self.discard(cache_id)
            raise

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """``UpperDir``, and ``LowerDir`` where the layer has parents."""
        upper, *lowers = [spec.path for spec in self.layer_specs(self.chain(cache_id))]
        return {"UpperDir": upper} | ({"LowerDir": ":".join(lowers)} if lowers else {})

    def status(self) -> list[tuple[str, str]]:
        """How this home keeps owners and whiteouts."""
        return [("Ownership", self.ownership.value), ("Whiteouts", self.spelling.value)]

    # -- the merged view ------------------------------------------------------------------------------

    @contextmanager
    def union(self, cache_id: CacheID) -> Iterator[Union]:
        """The merged view as a library object: no FUSE, no mount.  Holds the layer."""
        with self.hold(cache_id):
            specs = self.layer_specs(self.chain(cache_id))
            with below.opened(specs, self.ownership, self.spelling) as union:
                yield union

    @contextmanager
    def _with_changes(self, cache_id: CacheID) -> Iterator[MergedUnion]:
        """The layer on top of its parents, told apart.  Holds it."""
        with self.hold(cache_id), ExitStack() as stack:
            tree, *lowers = (
                stack.enter_context(LayerDir(spec.path, self.ownership, self.spelling, spec.links))
                for spec in self.layer_specs(self.chain(cache_id))
            )
            yield MergedUnion(tree, lowers)

    def changes(self, cache_id: CacheID) -> list[Change]:
        """What the layer changes in its parents."""
        with self._with_changes(cache_id) as union:
            return diff.changes(union)

    def diff(self, cache_id: CacheID) -> Iterator[bytes]:
        """The layer's changes as a tar; the time of whiteouts is SOURCE_DATE_EPOCH, else 0."""
        with self._with_changes(cache_id) as union:
            yield from diff.diff(union, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))

    def diff_directory(self, cache_id: CacheID) -> Path:
        """Where the layer's own files are."""
        return self.path / cache_id / "diff"

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

    def get(self, cache_id: CacheID) -> bytes:
        """Mount the layer, or count one more user of its mount; the mountpoint."""
        mountpoint = self._mountpoint(cache_id)
        with self._users(cache_id) as users:
            mounter.mount(self.spec(cache_id, cache_id[:12]), mountpoint, self._runroot)
            users.append(users.pop() + 1)
        return os.fsencode(mountpoint)

    def put(self, cache_id: CacheID) -> None:
        """One user less; the last one unmounts.  A `put` without a `get` does nothing."""
        mountpoint = self._mountpoint(cache_id)
        with self._users(cache_id) as users:
            count = users.pop()
            users.append(max(count - 1, 0))
            if count == 1 and mounter.find(mountpoint, self._runroot) is not None:
                mounter.unmount(mountpoint, self._runroot)

    def _mountpoint(self, cache_id: CacheID) -> Path:
        directory = self._runroot / "mnt"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory / cache_id

    @contextmanager
    def _users(self, cache_id: CacheID) -> Iterator[list[int]]:
        """The count of a mount's users, as a list of one to change, under a lock."""
        directory = self._runroot / "mounts"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = lock(directory / f"{cache_id}.count", fcntl.LOCK_EX, os.O_CREAT)
        try:
            users = [int(os.pread(fd, 20, 0) or b"0")]
            yield users
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d" % users[0], 0)
        finally:
            os.close(fd)
