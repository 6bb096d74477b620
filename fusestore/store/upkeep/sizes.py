"""How many bytes things in a store are: of content, as podman counts.

A layer is the bytes of its own files, each inode once, directories not at all; a file shared by reflinks or
on a filesystem that compresses takes less on disk, a small one more, and the driver ``vfs`` has a full copy
of all below.  What is borrowed from another store is nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from fusestore.digest import CacheID
from fusestore.errors import CorruptStore, ItemNotFound
from fusestore.files import opened, tree_usage
from fusestore.store.bigdata import item_name
from fusestore.store.items import Container, Image, Item, LayerItem
from fusestore.store.metadata import RWRecord
from fusestore.store.storage import Store


class Sizes:
    """A store's own items at one time, and their sizes, each found out once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.images = store.image_store.all()
        self.containers = store.container_store.all()
        self.layers = {layer.id: layer for layer in store.layer_items.all()}
        self.rw_layers = store.layer_store.rw_layers()
        self._known: dict[str, int] = {}

    def chain(self, layer: str | None) -> list[str]:
        """The layer and all below it, topmost first."""
        found: list[str] = []
        while layer and layer in self.layers:
            found.append(layer)
            layer = self.layers[layer].parent
        return found

    def layer(self, layer: str) -> int:
        """Bytes of a layer, and of its data."""
        if layer not in self._known:
            item = self.layers[layer]
            self._known[layer] = self._files(item) + _data(item)
        return self._known[layer]

    def _files(self, item: LayerItem) -> int:
        if item.read_only:
            return 0
        try:
            record = self._store.layer_items.record(item.id)
            took_changes = (self._store.graph_driver.path / record.cache_id / "work").exists()
            if record.diff_id is not None and not took_changes:
                return record.size
            below = self._store.layer_items.record(record.parent).cache_id if record.parent else None
            return self._changes(record.cache_id, below)
        except (ItemNotFound, FileNotFoundError, CorruptStore):  # gone meanwhile, or damaged
            return 0

    def _changes(self, cache_id: CacheID, below: CacheID | None) -> int:
        driver = self._store.graph_driver
        return driver.usage(cache_id).size if driver.stacked else driver.diff_size(cache_id, below)

    def image(self, image: Image) -> tuple[int, int]:
        """Bytes of what an image shares with others, and of what it alone has."""
        chain = self.chain(image.top_layer)
        shared = sum(self.layer(layer) for layer in chain if len(self.images_on[layer]) > 1)
        return shared, sum(map(self.layer, chain)) - shared + _data(image)

    @cached_property
    def images_on(self) -> Mapping[str, list[str]]:
        """The images on each layer that has any."""
        found: dict[str, list[str]] = {}
        for image in self.images:
            for layer in self.chain(image.top_layer):
                found.setdefault(layer, []).append(image.id)
        return found

    def container(self, container: Container) -> int:
        """Bytes of a container: its layer, its data, its directories."""
        size = self.layer(container.layer) + _data(container)
        for place in (self._store.graph_root, self._store.run_root):
            try:
                with opened(place / "containers" / item_name(container.id)) as fd:
                    size += tree_usage(fd)[0]
            except FileNotFoundError:
                continue
        return size

    def data(self, item: Item) -> int:
        """Bytes of an item's data."""
        return _data(item)

    def rw_layer(self, record: RWRecord) -> int:
        """Bytes of an RW layer, with what its init function made."""
        below = self.layers.get(record.parent or "")
        under = self._store.layer_items.record(below.id).cache_id if below else None
        try:
            if record.init_id is None:
                return self._changes(record.mount_id, under)
            return self._changes(record.mount_id, record.init_id) + self._changes(record.init_id, under)
        except (FileNotFoundError, CorruptStore):
            return 0


def _data(item: Item) -> int:
    return sum(blob.size for blob in item.big_data.values())
