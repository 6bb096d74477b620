"""Disk usage, in podman's rows (podman: ``system df``).

Sizes are of content (`sizes`), and each layer counts once: with the images if one is on it,
else with the container that it is, else with the layers.  RW layers are counted with those.  Reclaimable is
what pruning everything would free of it (`prune`), containers included for their own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fusestore.store.items import Container, Image, LayerItem
from fusestore.store.storage import Store
from fusestore.store.upkeep.prune import plan
from fusestore.store.upkeep.sizes import Sizes


@dataclass(frozen=True, slots=True)
class Summary:
    """One kind of thing: how many, how many of them are used; bytes of all, and of what could go."""

    kind: str
    total: int
    active: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class ImageUsage:
    """An image: bytes that it shares with other images, bytes of its own, how many containers it has."""

    image: Image
    shared: int
    unique: int
    containers: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store takes, and for what."""

    summaries: Sequence[Summary]
    images: Sequence[ImageUsage]
    containers: Sequence[tuple[Container, int]]
    layers: Sequence[tuple[LayerItem, int]]


def usage(store: Store) -> Usage:
    """What the store's own images, containers, layers and mounts take.  Raises OSError."""
    sizes = Sizes(store)
    of_containers = {container.layer for container in sizes.containers}
    others = [
        layer for layer in sizes.layers.values() if layer.id not in of_containers | sizes.images_on.keys()
    ]
    summaries = [
        _images(store, sizes),
        _containers(store, sizes),
        _layers(store, sizes, others),
        _mounts(store),
    ]
    used = [container.image for container in sizes.containers]
    return Usage(
        summaries,
        [ImageUsage(image, *sizes.image(image), used.count(image.id)) for image in sizes.images],
        [(container, sizes.container(container)) for container in sizes.containers],
        [(layer, sizes.layer(layer.id)) for layer in sizes.layers.values()],
    )


def _images(store: Store, sizes: Sizes) -> Summary:
    planned = plan(store, sizes, everything=True)
    active = {container.image for container in sizes.containers} & {image.id for image in sizes.images}
    size = sum(map(sizes.layer, sizes.images_on)) + sum(map(sizes.data, sizes.images))
    free = sum(sizes.layer(layer.id) for layer in planned.layers if layer.id in sizes.images_on)
    return Summary(
        "Images", len(sizes.images), len(active), size, free + sum(map(sizes.data, planned.images))
    )


def _containers(store: Store, sizes: Sizes) -> Summary:
    planned = plan(store, sizes, containers=True)
    active = len(sizes.containers) - len(planned.containers)
    size, free = (sum(map(sizes.container, some)) for some in (sizes.containers, planned.containers))
    return Summary("Containers", len(sizes.containers), active, size, free)


def _layers(store: Store, sizes: Sizes, others: Sequence[LayerItem]) -> Summary:
    free = {layer.id for layer in plan(store, sizes, everything=True).layers}
    active = sum(layer.id not in free for layer in others) + len(sizes.rw_layers)
    size = sum(sizes.layer(layer.id) for layer in others) + sum(map(sizes.rw_layer, sizes.rw_layers))
    return Summary(
        "Layers",
        len(others) + len(sizes.rw_layers),
        active,
        size,
        sum(sizes.layer(layer.id) for layer in others if layer.id in free),
    )


def _mounts(store: Store) -> Summary:
    mounts = store.mounts()
    return Summary("Mounts", len(mounts), sum(mount.alive for mount in mounts), 0, 0)
