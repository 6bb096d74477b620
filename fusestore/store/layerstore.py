"""`LayerStore`: registered layers, and RW layers on top of them by name (moby: ``layer.Store``).

An RW layer is a row that names a layer of the driver which takes changes, on top of the parent's, or of an
*init layer* between the two: what the caller's init function writes there is seen by the RW layer, but is
none of its changes.  The row comes last and goes first, as everywhere.  Handles say who works with it; how
often it is mounted is counted by the driver, for all processes.

Two generations of moby are served: handles (``CreateRWLayer`` ... ``ReleaseRWLayer``), and docker 1.10's
calls by name (``Mount``, ``Unmount``, ``DeleteMount``, ``Changes``, ``Metadata``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fcntl import LOCK_SH
from pathlib import Path

from fusestore.digest import CacheID, ChainID, new_cache_id
from fusestore.driver.api import Change, Driver, Held, Limits
from fusestore.errors import (
    ActiveMount,
    FusestoreError,
    LayerInUse,
    LayerNotRetained,
    MountNameConflict,
    RWLayerNotFound,
)
from fusestore.store.layer import Layer, RWLayer, lock_handles
from fusestore.store.metadata import MetadataStore, RWRecord
from fusestore.store.registered import RegisteredLayers, Released

#: Writes what an RW layer is to find into the directory it is given.
InitFunction = Callable[[Path], None]

_log = logging.getLogger(__name__)


class LayerStore(RegisteredLayers):
    """All layers of a store, kept by one driver."""

    def __init__(self, metadata: MetadataStore, driver: Driver, limits: Limits | None = None) -> None:
        super().__init__(metadata, driver, limits)
        self._rw_handles: set[RWLayer] = set()

    def close(self) -> None:
        """Let go of every handle that was not given back; layers and mounts stay as they are."""
        super().close()
        while self._rw_handles:
            self._rw_handles.pop().drop()

    # -- RW layers ------------------------------------------------------------------------------------

    def create_rw_layer(
        self,
        name: str,
        parent: ChainID | None = None,
        *,
        mount_label: str = "",
        init_func: InitFunction | None = None,
        storage_opt: Mapping[str, str] | None = None,
    ) -> RWLayer:
        """Make an RW layer on top of `parent` (None: of nothing); a handle on it.

        `mount_label` is kept; the drivers cannot apply it without privileges.  Raises MountNameConflict,
        LayerNotFound, NotSupported for a size limit, ValueError for an unknown option, OSError and whatever
        `init_func` raises; the store is then as it was.
        """
        self.collect()
        with suppress(RWLayerNotFound):
            self._metadata.get_mount(name)
            raise MountNameConflict(name)
        chain, options = self._metadata.chain(parent), dict(storage_opt or {})
        below, mount_id, init_id = chain[0].cache_id if chain else None, new_cache_id(), None
        with ExitStack() as held, ExitStack() as undo:
            if chain:
                held.callback(self._hold(chain[0]).close)
            if init_func is not None:
                below = init_id = self._init_layer(below, init_func, held, undo)
            undo.callback(self.discard, mount_id)
            self.driver.stage(mount_id, below, read_write=True, storage_opt=options)
            handle = self._name(RWRecord(name, mount_id, init_id, parent, mount_label, options))
            undo.pop_all()
        return handle

    def _init_layer(
        self, below: CacheID | None, init_func: InitFunction, held: ExitStack, undo: ExitStack
    ) -> CacheID:
        """A layer that `init_func` has written to; no row names it yet, so we hold it."""
        init_id = new_cache_id()
        undo.callback(self.discard, init_id)
        self.driver.stage(init_id, below, read_write=True)
        held.callback(lock_handles(self.driver, init_id, LOCK_SH).close)
        with self._metadata.start_transaction():  # others collect inside theirs only
            published = self.driver.publish(init_id)
        held.callback(published.close)
        undo.callback(self.unpublish, init_id, published)
        path = self.driver.get(init_id)
        try:
            init_func(Path(os.fsdecode(path)))
        finally:
            self.driver.put(init_id)
        return init_id

    def _name(self, record: RWRecord) -> RWLayer:
        """Name a staged RW layer."""
        published: Held | None = None
        handle = RWLayer(record, self._metadata, self.driver)
        try:
            with self._metadata.start_transaction() as transaction:
                transaction.add_mount(record)
                published = self.driver.publish(record.mount_id)
                handle.keep()
        except BaseException:
            handle.drop()
            if published is not None:
                self.unpublish(record.mount_id, published)
            raise
        published.close()
        self._rw_handles.add(handle)
        return handle

    def get_rw_layer(self, name: str) -> RWLayer:
        """A new handle on an RW layer.  Raises RWLayerNotFound."""
        handle = self._named(name)
        handle.keep()
        self._rw_handles.add(handle)
        return handle

    def get_mount_id(self, name: str) -> CacheID:
        """The driver's name of an RW layer.  Raises RWLayerNotFound."""
        return self._metadata.get_mount(name).mount_id

    def rw_layers(self) -> list[RWRecord]:
        """A snapshot of all RW layers, by name.  Takes no handles."""
        return self._metadata.mounts()

    def release_rw_layer(self, handle: RWLayer) -> list[Released]:
        """Give a handle back; the last one deletes the RW layer, and the layers that nothing is on then.

        A handle on an RW layer that is gone is no error.  Raises LayerNotRetained for one that was given
        back, ActiveMount while it is mounted; then the handle stays good.
        """
        if handle not in self._rw_handles:
            with suppress(RWLayerNotFound):
                handle.verify_named()
                raise LayerNotRetained(handle.name)
            return []
        with self._dropped([handle]):
            return self._delete(handle) or []

    @contextmanager
    def _dropped(self, handles: list[RWLayer]) -> Iterator[None]:
        """Take handles away, unless the context fails."""
        for handle in handles:
            handle.drop()
        try:
            yield
        except BaseException:
            for handle in handles:
                with suppress(RWLayerNotFound):
                    handle.keep()
            raise
        self._rw_handles.difference_update(handles)

    def _delete(self, layer: RWLayer) -> list[Released] | None:
        """Unname an RW layer and delete it; None when there are handles on it.

        Raises ActiveMount, LayerInUse while another process reads it.
        """
        record = layer.record
        with ExitStack() as stack, self._metadata.start_transaction() as transaction:
            try:
                layer.verify_named()
                alone = layer.alone()
            except RWLayerNotFound:
                return []
            except LayerInUse:
                return None
            if alone is not None:
                stack.callback(alone.close)
            if self.driver.mounted(record.mount_id):
                raise ActiveMount(record.name)
            for cache_id in filter(None, (record.mount_id, record.init_id)):
                stack.enter_context(self.driver.removing(cache_id))
            transaction.remove_mount(record.name)
            try:
                return self._unname(record.parent, stack, transaction)
            except LayerInUse:
                return []

    def commit(self, layer: RWLayer) -> Layer:
        """Register the changes of an RW layer as a layer on top of its parent; a handle on that.

        Only what has changed is read.  The RW layer stays.  Raises as `register`.
        """
        with layer.tar_stream() as changes:
            return self.register(changes, layer.parent)

    # -- by name (docker 1.10) ------------------------------------------------------------------------

    def mount(
        self,
        name: str,
        parent: ChainID | None = None,
        mount_label: str = "",
        init_func: InitFunction | None = None,
    ) -> RWLayer:
        """Make an RW layer of this name, unless there is one, and mount it.

        Of one that is there, the other arguments are ignored.  What comes back is no handle: the layer stays
        until `delete_mount`, and there is nothing to release.
        """
        while True:
            try:
                layer = self.get_rw_layer(name)
            except RWLayerNotFound:
                try:
                    layer = self.create_rw_layer(name, parent, mount_label=mount_label, init_func=init_func)
                except MountNameConflict:  # another process was faster
                    continue
            try:
                layer.mount()
            finally:
                self._rw_handles.remove(layer)
                layer.drop()
            return layer

    def unmount(self, name: str) -> None:
        """Give back one mount.  Raises RWLayerNotFound, NotMounted."""
        self._named(name).unmount()

    def delete_mount(self, name: str) -> list[Released]:
        """Delete an RW layer, whoever has handles here; the layers that nothing is on then.

        Raises RWLayerNotFound, ActiveMount while it is mounted, LayerInUse while another process has it.
        """
        layer = self._named(name)
        mine = [h for h in self._rw_handles if h.record.mount_id == layer.record.mount_id]
        with self._dropped(mine):
            released = self._delete(layer)
            if released is None:
                raise LayerInUse(name, "another process has a handle on it")
        return released

    def changes(self, name: str) -> list[Change]:
        """What has been changed in an RW layer.  Raises RWLayerNotFound."""
        return self._named(name).changes()

    def metadata(self, name: str) -> dict[str, str]:
        """Where the driver keeps an RW layer.  Raises RWLayerNotFound."""
        return self._named(name).metadata()

    def _named(self, name: str) -> RWLayer:
        """An RW layer, without keeping anybody from deleting it."""
        return RWLayer(self._metadata.get_mount(name), self._metadata, self.driver)


def log_released(released: Sequence[Released]) -> None:
    """Log the layers that a release has deleted (moby: ``LogReleaseMetadata``)."""
    for layer in released:
        _log.info("layer %s (%s) deleted, %d bytes", layer.chain_id, layer.diff_id, layer.diff_size)


def release_and_log(store: LayerStore, layer: Layer) -> None:
    """Release a handle where nobody is left to be told of an error (moby: ``ReleaseAndLog``)."""
    try:
        log_released(store.release(layer))
    except (FusestoreError, OSError) as exc:
        _log.error("layer %s could not be released: %s", layer.chain_id, exc)
