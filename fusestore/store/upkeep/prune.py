"""Prune: delete what nobody needs (podman: ``image prune``, ``system prune``).

*Dangling* are images without a name, and layers without a name that nothing is on.  With `everything` names
do not count: images that no container was made from go, and layers that nothing is on.  Containers go only
where that is asked for, and first.  What is mounted stays, and so does what others work with just then.

`plan` says what would go; `prune` looks at each again in the transaction that deletes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

from fusestore.digest import ChainID
from fusestore.errors import ImageUsedByContainer, ItemNotFound, LayerInUse
from fusestore.store.database import Database
from fusestore.store.items import Container, Image, Item, LayerItem
from fusestore.store.metadata import LayerMetadata
from fusestore.store.storage import Store
from fusestore.store.upkeep.sizes import Sizes

Wanted = Callable[[Item], bool]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be deleted; layers topmost first, those of the images included.  `size` is in bytes."""

    containers: Sequence[Container]
    images: Sequence[Image]
    layers: Sequence[LayerItem]
    size: int
    everything: bool


@dataclass(slots=True)
class Pruned:
    """What was deleted, by id, with its bytes; an image's are with those of its layers."""

    containers: dict[str, int] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """All of it, in bytes."""
        return sum(sum(gone.values()) for gone in (self.containers, self.images, self.layers))


def plan(
    store: Store,
    sizes: Sizes,
    *,
    everything: bool = False,
    containers: bool = False,
    wanted: Wanted = lambda item: True,
) -> Plan:
    """What `prune` would delete, of what `wanted` says yes to.  Raises OSError."""
    gone = [c for c in sizes.containers if containers and wanted(c) and not _is_mounted(store, c.layer)]
    left = [c for c in sizes.containers if c not in gone]
    used = {c.image for c in left}
    images = [
        image
        for image in sizes.images
        if (everything or not image.names) and image.id not in used and wanted(image)
        if not store.mounts_of(image)
    ]
    layers = _unneeded(store, sizes, left, {image.id for image in images}, wanted, everything=everything)
    theirs = {c.layer for c in gone}
    layers = [layer for layer in layers if layer.id not in theirs]
    size = sum(map(sizes.container, gone)) + sum(map(sizes.data, images))
    size += sum(sizes.layer(layer.id) for layer in layers)
    return Plan(gone, images, layers, size, everything)


def _unneeded(
    store: Store,
    sizes: Sizes,
    containers: Sequence[Container],
    images: set[str],
    wanted: Wanted,
    *,
    everything: bool,
) -> list[LayerItem]:
    """The layers that nothing will need when the images are gone, topmost first."""
    below = {layer for image in sizes.images if image.id in images for layer in sizes.chain(image.top_layer)}
    tops = [image.top_layer for image in sizes.images if image.id not in images]
    tops += [container.layer for container in containers]
    tops += [record.parent for record in sizes.rw_layers]
    tops += [
        layer.id
        for layer in sizes.layers.values()
        if layer.id not in below and not (wanted(layer) and (everything or not layer.names))
    ]
    tops += [layer for layer in sizes.layers if _is_mounted(store, layer)]
    needed = {layer for top in tops for layer in sizes.chain(top)}
    free = [layer for layer in sizes.layers.values() if layer.id not in needed and not layer.read_only]
    return sorted(free, key=lambda layer: len(sizes.chain(layer.id)), reverse=True)


def _is_mounted(store: Store, layer: str) -> bool:
    try:
        return store.layer_items.mounted(layer) > 0
    except ItemNotFound:
        return False


def prune(store: Store, planned: Plan, sizes: Sizes) -> Pruned:
    """Delete what was planned, as far as it is still so.  Raises OSError."""
    with closing(Database(store.graph_root / "store.db")) as database:
        return _prune(store, planned, sizes, LayerMetadata(database))


def _prune(store: Store, planned: Plan, sizes: Sizes, metadata: LayerMetadata) -> Pruned:
    pruned = Pruned()
    for container in planned.containers:
        size = sizes.container(container)
        with suppress(ItemNotFound, LayerInUse):
            if not _is_mounted(store, container.layer):
                store.delete_container(container.id)
                pruned.containers[container.id] = size
    for image in planned.images:
        with suppress(ItemNotFound, LayerInUse, ImageUsedByContainer):
            if planned.everything or not store.image_store.get(image.id).names:
                gone = store.delete_image(image.id)
                pruned.images[image.id] = sizes.data(image)
                pruned.layers |= {layer: sizes.layer(layer) for layer in gone if layer in sizes.layers}
    for layer in planned.layers:
        size = sizes.layer(layer.id)
        with suppress(ItemNotFound, LayerInUse):
            if store.delete_layers(partial(_if_free, store, layer.id, planned, metadata)):
                pruned.layers[layer.id] = size
    return pruned


def _if_free(store: Store, layer: str, planned: Plan, metadata: LayerMetadata) -> list[str]:
    """Inside the transaction: the layer, if it may go.  Raises LayerInUse."""
    if not store.layer_items.exists(layer) or _is_mounted(store, layer):
        return []
    if store.layer_items.get(layer).names and not planned.everything:
        return []
    metadata.refuse_needed(ChainID(layer))
    return [layer]
