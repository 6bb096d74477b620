"""`LayerContents`: mount layers and containers, compare layers, take what they hold out and put more in.

A layer of an additional store that gets a child here, or is mounted as a layer, is *borrowed*: it and all
below it become rows and directories of ours, of which the files stay where they are.  They go when nothing is
on them any more.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

from fusestore.config import StoreOptions
from fusestore.digest import ChainID, Readable, new_cache_id
from fusestore.driver import diff
from fusestore.driver.api import Change
from fusestore.driver.below import opened
from fusestore.driver.stack import merged
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.tree import Union
from fusestore.errors import (
    LayerInUse,
    LayerNotFound,
    NotMounted,
    NotReproducible,
    NotSupported,
    StoreIsReadOnly,
)
from fusestore.store.imagemounts import ImageMounts
from fusestore.store.items import LayerItem
from fusestore.store.layer import exact_tar
from fusestore.store.metadata import LayerRecord
from fusestore.store.tarsplit import assemble
from fusestore.tar_stream import compressed_stream, tar_stream


class LayerContents(ImageMounts):
    """The part of `fusestore.store.storage.Store` that works with what is in layers."""

    options: StoreOptions

    # -- mounting -------------------------------------------------------------------------------------

    def mount(self, name: str, mount_label: str = "") -> Path:
        """Mount a container's layer, or a layer, or count one more user of its mount; the directory.

        `mount_label` is for privileged drivers.  A layer that has children, or was made of a tar to be
        read-only, is mounted read-only.  Raises LayerNotFound, FuseUnavailable, MountFailed, OSError.
        """
        return self.layer_items.mount(self._borrowed(self._mountable(name)))

    def unmount(self, name: str, *, force: bool = False) -> bool:
        """Give back one `mount` of a container, layer or mountpoint; with `force`, all of them.

        True while others have it.  Raises LayerNotFound, NotMounted, LayerInUse when it is busy.
        """
        layer = self.layer_items.at(name) or self._mountable(name)
        if not self.layer_items.exists(layer):
            raise NotMounted(name)
        try:
            still = self.layer_items.unmount(layer, force=force)
        except NotMounted:
            raise NotMounted(name) from None
        if not still:
            self._give_back_now(layer)
        return still

    def mounted(self, name: str) -> int:
        """How many `mount` of a container or layer have not been given back."""
        layer = self._mountable(name)
        return self.layer_items.mounted(layer) if self.layer_items.exists(layer) else 0

    def mountpoint(self, name: str) -> Path:
        """Where a container or layer is mounted when it is."""
        return self.graph_driver.mountpoint(self.layer_items.record(self._mountable(name)).cache_id)

    def _mountable(self, name: str) -> str:
        """The id of a container's layer, or of a layer."""
        for container in self.container_store.exact(name):
            return self.container_store.get(container).layer
        layers = self.layer_items.exact(name)
        layers = layers or [self.container_store.get(c).layer for c in self.container_store.by_prefix(name)]
        return layers[0] if len(layers) == 1 else self.layer(name).id

    # -- what is in them ------------------------------------------------------------------------------

    def changes(self, from_: str, to: str) -> list[Change]:
        """What makes the layer `to` out of `from_`, sorted by path.

        `from_` "" is its parent, and so, as upstream, is one that is not known.  Raises LayerNotFound.
        """
        parent, layer = self._pair(from_, to)
        if self._are_ours(parent, layer.id):
            return self.layer_items.changes(parent, layer.id)
        with ExitStack() as stack:
            return diff.changes(*self._views(parent, layer.id, stack))

    def diff_size(self, from_: str, to: str) -> int:
        """Bytes of the files in the tar of that."""
        parent, layer = self._pair(from_, to)
        if self._are_ours(parent, layer.id):
            return self.layer_items.diff_size(parent, layer.id)
        with ExitStack() as stack:
            return diff.diff_size(*self._views(parent, layer.id, stack))

    def diff(self, from_: str, to: str, compression: str | None = None) -> IO[bytes]:
        """That as a tar to read and close; the exact one that was applied where `from_` is the parent.

        `compression` is one of `fusestore.compression.FORMATS`, "" for none, None for that of the tar that
        was applied.  Raises LayerNotFound; reads raise CorruptStore when the tar cannot be put together.
        """
        parent, layer = self._pair(from_, to)
        form = layer.compression if compression is None else compression
        if self._are_ours(parent, layer.id) and self._is_kept_here(layer.id):
            return self.layer_items.diff(parent, layer.id, form)
        return self._diff_of_additional(parent, layer, form)

    def tar_stream(self, name: str) -> IO[bytes]:
        """The exact tar that was applied to a layer, to read and close.

        Raises LayerNotFound, NotReproducible; reads raise CorruptStore.
        """
        layer = self.layer(name)
        if self._is_kept_here(layer.id):
            return exact_tar(self.graph_driver, self.layer_items.record(layer.id))
        return self._exact_of_additional(layer)

    def changes_stream(self, name: str) -> IO[bytes]:
        """What makes a layer out of its parent as a tar, made anew even where there is an exact one.

        Read and close it.  Raises LayerNotFound.
        """
        layer = self.layer(name)
        if self.layer_items.exists(layer.id):
            cache_id = self.layer_items.record(layer.id).cache_id
            return tar_stream(self.graph_driver.diff(cache_id, self.layer_items.cache_id(layer.parent)))
        return self._diff_of_views(layer.parent or None, layer.id)

    def _diff_of_views(self, parent: str | None, layer: str) -> io.BufferedReader:
        with ExitStack() as stack:
            pieces = diff.diff(*self._views(parent, layer, stack), diff.whiteout_time())
            return tar_stream(pieces, None, stack.pop_all().close)

    def apply_diff(self, to: str, diff: Readable) -> int:
        """Carry out what a layer tar, plain or compressed, says; bytes of the uncompressed tar.

        Raises LayerNotFound, InvalidLayer, LayerInUse for a layer that is mounted or takes no changes.
        """
        return self.layer_items.apply_diff(self._own_layer(to), diff)

    def _pair(self, from_: str, to: str) -> tuple[str | None, LayerItem]:
        layer = self.layer(to)
        if from_:
            with suppress(LayerNotFound):
                return self.layer(from_).id, layer
        return layer.parent or None, layer

    def _views(self, parent: str | None, layer: str, stack: ExitStack) -> tuple[MergedUnion, Union | None]:
        """The merged views of two layers, of which at least one is an additional store's."""
        driver = self.graph_driver
        kept = driver.ownership, driver.spelling
        view = stack.enter_context(merged(self._specs_held(layer, stack), *kept))
        if parent is None:
            return view, None
        return view, stack.enter_context(opened(self._specs_held(parent, stack), *kept))

    def _diff_of_additional(self, parent: str | None, layer: LayerItem, form: str) -> IO[bytes]:
        """The exact tar, where its store has kept what it takes; else one of the changes."""
        if parent == (layer.parent or None):
            with suppress(NotReproducible):
                return compressed_stream(self._exact_of_additional(layer), form)
        return compressed_stream(self._diff_of_views(parent, layer.id), form)

    def _exact_of_additional(self, layer: LayerItem) -> io.BufferedReader:
        """The exact tar of an additional store's layer.  Raises NotReproducible."""
        store = self.additional_of(layer.id)
        record = store.record(layer.id) if store else None
        if store is None or record is None:
            raise NotReproducible(layer.id)
        with ExitStack() as stack:
            stack.callback(record.close)
            files = store.files(layer.id)
            stack.callback(files.close)
            pieces = assemble(record, files, layer.id)
            return tar_stream(pieces, layer.uncompressed_digest, stack.pop_all().close)

    def _are_ours(self, *layers: str | None) -> bool:
        return all(self.layer_items.exists(layer) for layer in layers if layer)

    def _is_kept_here(self, layer: str) -> bool:
        """True for a layer whose tar we can answer for: one of ours that is not borrowed from who has it."""
        if not self.layer_items.exists(layer):
            return False
        return self.layer_items.record(layer).origin is None or self.additional_of(layer) is None

    def _own_layer(self, name: str) -> str:
        layer = self.layer(name)
        if layer.read_only:
            raise StoreIsReadOnly(layer.id)
        return layer.id

    def layer_parent_owners(self, name: str) -> tuple[list[int], list[int]]:
        """Uids and gids that own directories above a layer's files, and that the id maps do not have.

        Without maps there are none.  Raises LayerNotFound.
        """
        cache_id = self.layer_items.record(self._mountable(name)).cache_id
        top = Path(self.graph_driver.layer_specs([cache_id])[0].path)
        owners = [os.stat(directory) for directory in top.parents]
        uids, gids = self.options.uid_map, self.options.gid_map
        return _unmapped({st.st_uid for st in owners}, uids), _unmapped({st.st_gid for st in owners}, gids)

    # -- borrowing ------------------------------------------------------------------------------------

    def _borrowed(self, layer: str) -> str:
        """The id of a layer that is a row of ours, made so if it is an additional store's."""
        if not self.layer_items.exists(layer):
            with self._database.transaction():
                self._borrow(layer)
        return layer

    def _borrow(self, layer: str) -> None:
        """Inside a transaction: have rows and directories for a layer and all below it."""
        if self.layer_items.exists(layer):
            return
        store = self.additional_of(layer)
        item = store.layer(layer) if store else None
        if store is None or item is None:
            raise LayerNotFound(layer)
        parent = ChainID(item.parent) if item.parent else None
        if parent:
            self._borrow(parent)
        record = LayerRecord(
            ChainID(layer),
            item.uncompressed_digest,
            parent,
            new_cache_id(),
            item.size,
            reproducible=False,
            created=item.created,
            diff_size=item.uncompressed_size,
            owners=(item.uids, item.gids) if item.uids is not None and item.gids is not None else None,
            origin=str(store.path),
        )
        self._metadata.add(record)
        top, *lowers = store.specs(layer)  # a driver that copies has no lowers
        if len(lowers) > (len(store.specs(parent)) if parent else 0):
            raise NotSupported(
                f"{layer}: its files are in several places (podman --userns); it can only be read"
            )
        below = self._metadata.get(parent).cache_id if parent and lowers else None
        self.graph_driver.borrow(record.cache_id, below, top).close()

    def _give_back_now(self, layer: str) -> None:
        """Give back a layer that was borrowed for nothing."""
        if self.layer_items.exists(layer) and self.layer_items.record(layer).origin is not None:
            with ExitStack() as stack, self._database.transaction():
                self._give_back(layer, stack)

    def _give_back_all(self) -> None:
        """Give back whatever is borrowed and not needed, such as by processes that died."""
        for (layer,) in self._database.select("SELECT id FROM layers WHERE origin IS NOT NULL"):
            self._give_back_now(layer)

    def _give_back(self, layer: str | None, stack: ExitStack) -> None:
        """Inside a transaction: unname a borrowed layer that nothing is on, and those below it."""
        while layer is not None:
            record = self.layer_items.record(layer)
            if record.origin is None or self._metadata.is_needed(record.chain_id):
                return
            try:
                self.layer_items.doom(layer, stack)
            except LayerInUse:
                return
            layer = record.parent


def _unmapped(ids: set[int], ranges: Sequence[tuple[int, int, int]]) -> list[int]:
    """Those that no range (in the container, here, count) has, sorted; none where there are no ranges."""
    return sorted(i for i in ids if ranges and not any(here <= i < here + count for _, here, count in ranges))
