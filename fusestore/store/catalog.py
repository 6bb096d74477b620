"""`Catalog`: what a store holds, by id or name, with what its additional read-only stores hold behind it.

A word means, in this order: an id, a name, the beginning of one id.  The store's own items come first, then
those of the additional stores in the order in which they were given; calls that take any kind look for a
layer, an image, a container, and for exact words before beginnings.  (Upstream takes a beginning of a layer's
id for a match before an image's whole name.)

What is changed must be the store's own.  An image of an additional store whose names are changed is *pulled
up*: its record and its big data are copied, and from then on hide the other's (containers/storage).
"""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from fusestore import digest, reference
from fusestore.digest import DiffID, Digest
from fusestore.driver.fuse import FuseDriver
from fusestore.errors import (
    AmbiguousName,
    BigDataNotFound,
    ContainerNotFound,
    FusestoreError,
    ImageNotFound,
    InvalidReference,
    ItemNotFound,
    LayerNotFound,
    StoreIsReadOnly,
)
from fusestore.store.additional import AdditionalStore, ForeignOwner, Kind
from fusestore.store.bigdata import BigData, Blobs
from fusestore.store.containers import ContainerStore
from fusestore.store.database import Database
from fusestore.store.images import ImageStore
from fusestore.store.items import Container, Image, Item, Items, LayerItem, Listed
from fusestore.store.layeritems import LayerItems
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata

if TYPE_CHECKING:
    from fusestore.driver.vfs import VfsDriver

Driver: TypeAlias = "FuseDriver | VfsDriver"

_log = logging.getLogger(__name__)

T = TypeVar("T", LayerItem, Image, Container)


class Catalog(ABC):
    """The part of `fusestore.store.storage.Store` that finds things and changes what is known of them."""

    graph_root: Path
    run_root: Path
    graph_driver: Driver
    layer_store: LayerStore
    image_store: ImageStore
    container_store: ContainerStore
    layer_items: LayerItems
    additional_stores: Sequence[AdditionalStore]
    _database: Database
    _metadata: LayerMetadata
    _blobs: Blobs

    # -- lists ----------------------------------------------------------------------------------------

    def layers(self) -> list[LayerItem]:
        """Every layer, the store's own first, oldest first."""
        return self._with_additional(self.layer_items.all(), lambda store: store.layers())

    def images(self) -> list[Image]:
        """Every image, the store's own first, newest first."""
        return self._with_additional(self.image_store.all(), lambda store: store.images())

    def containers(self) -> list[Container]:
        """Every container, oldest first.  Additional stores have none."""
        return self.container_store.all()

    def _with_additional(self, own: list[T], listed: Callable[[AdditionalStore], Sequence[T]]) -> list[T]:
        found = {item.id: item for item in own}
        for items in self._listed(listed):
            for item in items:
                present = found.setdefault(item.id, item)
                if present.read_only:  # borrowed: its own store knows it better
                    found[item.id] = item
        return list(found.values())

    def _listed(self, listed: Callable[[AdditionalStore], Sequence[T]]) -> Iterator[Sequence[T]]:
        """What each additional store lists; one that cannot be read is no reason to refuse the others."""
        for store in self.additional_stores:
            try:
                yield listed(store)
            except (FusestoreError, OSError) as exc:
                _log.warning("the additional store %s is left out: %s", store.path, exc)

    # -- one of them ----------------------------------------------------------------------------------

    def layer(self, name: str) -> LayerItem:
        """The layer of an id, a name or the beginning of an id.  Raises LayerNotFound, AmbiguousName."""
        return self._find(self.layer_items, [name], lambda store: store.layers())

    def container(self, name: str) -> Container:
        """The same for a container, which is found by its layer's id too.  Raises ContainerNotFound."""
        return self._find(self.container_store, [name], lambda store: ())

    def image(self, name: str) -> Image:
        """The same for an image, also by a short name, as in ``debian`` or ``debian@sha256:...``.

        Raises ImageNotFound, which has names that may have been meant, and AmbiguousName.
        """
        try:
            return self._image(name)
        except ImageNotFound:
            raise ImageNotFound(name, self._near(name)) from None

    def _image(self, name: str) -> Image:
        """The same, but the error names no others: finding them takes a look at every image."""
        bare = name.removeprefix("sha256:")
        try:
            return self._find(self.image_store, [bare, name, *_spellings(name)], lambda store: store.images())
        except ImageNotFound:
            found = self._by_digest(name)
            if found is None:
                raise
            return found

    def _find(
        self, own: Items[T], words: Sequence[str], listed: Callable[[AdditionalStore], Sequence[T]]
    ) -> T:
        # Other stores are read only when they have to be.
        sources = itertools.chain[Items[T] | Listed[T]]((own,), map(Listed, self._listed(listed)))
        for source in sources:
            found = next(filter(None, map(source.exact, words)), None) or source.by_prefix(words[0])
            # What was pulled up is not to be found under the names that it had.
            found = [
                item for item in found if source is own or not own.exists(item) or own.get(item).read_only
            ]
            if len(found) > 1:
                raise AmbiguousName(words[0])
            if found:
                item = source.get(found[0])
                return self.exact_layer(item.id) if isinstance(item, LayerItem) else item
        raise own.not_found(words[0])

    def _by_digest(self, name: str) -> Image | None:
        """The image of ``NAME@DIGEST``: one with that digest, in a repository of that name."""
        for candidate in _spellings(name):
            tagged, at, wanted = candidate.partition("@")
            for image in self.images_by_digest(Digest(wanted)) if at else ():
                repository = reference.repository_and_tag(tagged)[0]
                if any(reference.repository_and_tag(n)[0] == repository for n in image.names):
                    return image
        return None

    def _near(self, name: str) -> list[str]:
        """Names that may have been meant: spelled alike, or the same repository with another tag."""
        import difflib  # what few need, nobody has to wait for

        known = {n: n for image in self.images() for n in image.names}
        known |= {n.rpartition("/")[2]: n for n in known}
        known |= {n.partition(":")[0]: full for n, full in known.items()}
        bare = name.rpartition("/")[2].partition(":")[0]
        close = [m for n in (name, bare) for m in difflib.get_close_matches(n, known, n=3, cutoff=0.6)]
        return list(dict.fromkeys(known[n] for n in close))[:3]

    def any(self, name: str, order: Sequence[type[Item]] = (LayerItem, Image, Container)) -> Item:
        """The item that `name` means, of the first of these kinds that has one.  Raises ItemNotFound."""
        finders: dict[type[Item], Callable[[str], Item]] = {
            LayerItem: self.layer,
            Image: self._image,
            Container: self.container,
        }
        for exact in (True, False):
            for kind in order:
                try:
                    item = finders[kind](name)
                except (ItemNotFound, AmbiguousName):
                    continue
                if not exact or name == item.id or name in item.names:
                    return item
        raise ItemNotFound(name)

    def lookup(self, name: str) -> str:
        """The id of the layer, image or container that `name` means.  Raises ItemNotFound."""
        return self.any(name).id

    def exists(self, name: str) -> bool:
        """True when `name` means something."""
        try:
            return bool(self.any(name))
        except ItemNotFound:
            return False

    def chain(self, image: Image) -> list[LayerItem]:
        """The layers of an image, topmost first.  Raises LayerNotFound."""
        found: list[LayerItem] = []
        layer = image.top_layer
        while layer:
            found.append(self.exact_layer(layer))
            layer = found[-1].parent
        return found

    def exact_layer(self, layer: str) -> LayerItem:
        """The layer of exactly this id.  Raises LayerNotFound."""
        own = self.layer_items.get(layer) if self.layer_items.exists(layer) else None
        if own is not None and not own.read_only:
            return own
        store = self.additional_of(layer)
        found = (store.layer(layer) if store else None) or own
        if found is None:
            raise LayerNotFound(layer)
        return found

    def additional_of(self, layer: str) -> AdditionalStore | None:
        """The additional store that has the layer of this id, if one has."""
        return next((s for s in self.additional_stores if s.layer(layer) is not None), None)

    def unreadable(self, item: Item) -> tuple[ForeignOwner, ...]:
        """The owners of files of an additional store that may be closed to us, as far as they are recorded.

        Reading such a file fails with EACCES.
        """
        layer = top_layer(item)
        store = self.additional_of(layer) if layer else None
        return store.unreadable(layer) or () if store and layer else ()

    # -- by what they are -----------------------------------------------------------------------------

    def layers_by_compressed_digest(self, digest: Digest) -> list[LayerItem]:
        """The layers that came as a blob of this digest."""
        own = self.layer_items.by_compressed_digest(digest)
        return self._with_additional(own, lambda s: [i for i in s.layers() if i.compressed_digest == digest])

    def layers_by_uncompressed_digest(self, digest: DiffID) -> list[LayerItem]:
        """The layers of which the uncompressed tar has this digest."""
        own = self.layer_items.by_uncompressed_digest(digest)
        return self._with_additional(
            own, lambda s: [i for i in s.layers() if i.uncompressed_digest == digest]
        )

    def images_by_top_layer(self, name: str) -> list[Image]:
        """The images of which this is the topmost layer.  Raises LayerNotFound."""
        layer = self.layer(name).id
        own = self.image_store.by_top_layer(layer)
        return self._with_additional(own, lambda s: [i for i in s.images() if i.top_layer == layer])

    def images_by_digest(self, digest: Digest) -> list[Image]:
        """The images with a manifest of this digest."""
        own = self.image_store.by_digest(digest)
        return self._with_additional(own, lambda s: [i for i in s.images() if digest in i.digests])

    def container_by_layer(self, name: str) -> Container:
        """The container that has this layer.  Raises LayerNotFound, ContainerNotFound."""
        layer = self.layer(name).id
        found = self.container_store.of_layer(layer)
        if found is None:
            raise ContainerNotFound(layer)
        return found

    def layer_size(self, name: str) -> int:
        """Bytes of a layer's uncompressed tar; -1 where not known.  Raises LayerNotFound."""
        size = self.layer(name).uncompressed_size
        return -1 if size is None else size

    # -- names, metadata, flags -----------------------------------------------------------------------

    def names(self, name: str) -> tuple[str, ...]:
        """The names of an item.  Raises ItemNotFound, as all below."""
        return self.any(name).names

    def set_names(self, name: str, names: Iterable[str]) -> None:
        """Give an item these names and no others; from other items of its kind they are taken away."""
        self._change_names(name, lambda present: names)

    def add_names(self, name: str, names: Iterable[str]) -> None:
        """Give an item more names; the new come first."""
        self._change_names(name, lambda present: (*names, *present))

    def remove_names(self, name: str, names: Iterable[str]) -> None:
        """Take names away from an item."""
        doomed = set(names)
        self._change_names(name, lambda present: (n for n in present if n not in doomed))

    def _change_names(self, name: str, change: Callable[[tuple[str, ...]], Iterable[str]]) -> None:
        item = self.any(name)
        if item.read_only and isinstance(item, Image):
            self.pull_up(item)
            self._items_of(item).update_names(item.id, change)
        else:
            self._own(item).update_names(item.id, change)

    @abstractmethod
    def pull_up(self, image: Image) -> None:
        """Copy an image of an additional store, but for its layers, into this one."""

    def metadata(self, name: str) -> str:
        """The text that is kept with an item."""
        return self.any(name).metadata

    def set_metadata(self, name: str, metadata: str) -> None:
        """Replace it.  Raises StoreIsReadOnly for an item of an additional store."""
        item = self.any(name)
        self._own(item).set_metadata(item.id, metadata)

    def set_flag(self, name: str, flag: str, value: object) -> None:
        """Set a flag of an item to a JSON value.  Raises StoreIsReadOnly."""
        item = self.any(name)
        self._own(item).set_flags(item.id, lambda flags: flags.update({flag: value}))

    def clear_flag(self, name: str, flag: str) -> None:
        """Remove a flag of an item, if it is there.  Raises StoreIsReadOnly."""
        item = self.any(name)
        self._own(item).set_flags(item.id, lambda flags: flags.pop(flag, None))

    def _items_of(self, item: Item) -> Items[LayerItem] | Items[Image] | Items[Container]:
        if isinstance(item, LayerItem):
            return self.layer_items
        return self.image_store if isinstance(item, Image) else self.container_store

    def _own(self, item: Item) -> Items[LayerItem] | Items[Image] | Items[Container]:
        if item.read_only:
            raise StoreIsReadOnly(item.id)
        return self._items_of(item)

    # -- big data -------------------------------------------------------------------------------------

    def big_data(self, item: Item, key: str) -> bytes:
        """A blob of an item, verified.  Raises BigDataNotFound, CorruptStore."""
        if not item.read_only:
            return self._items_of(item).big_data(item.id, key)
        kind: Kind = "layer" if isinstance(item, LayerItem) else "image"
        for store in self.additional_stores:
            if (store.layer if kind == "layer" else store.image)(item.id) is not None:
                return store.big_data(kind, item.id, key)
        raise BigDataNotFound(item.id, key)

    def set_big_data(self, item: Item, key: str, data: bytes) -> None:
        """Keep a blob with an item.  Raises InvalidBigDataName, StoreIsReadOnly."""
        self._own(item).set_big_data(item.id, key, data)

    def list_image_big_data(self, name: str) -> list[str]:
        """The keys of an image's big data, sorted.  Raises ImageNotFound, as all of these."""
        return sorted(self.image(name).big_data)

    def image_big_data(self, name: str, key: str) -> bytes:
        """A blob of an image.  Raises BigDataNotFound, CorruptStore."""
        return self.big_data(self.image(name), key)

    def image_big_data_size(self, name: str, key: str) -> int:
        """Its bytes.  Raises BigDataNotFound."""
        return self._described(self.image(name), key).size

    def image_big_data_digest(self, name: str, key: str) -> Digest:
        """Its digest.  Raises BigDataNotFound."""
        return self._digest(self.image(name), key)

    def set_image_big_data(self, name: str, key: str, data: bytes) -> None:
        """Keep a blob with an image, in the place of what it has under this key.

        An image is found by the digest of what it has under keys that begin with ``manifest``.  Raises
        InvalidBigDataName, StoreIsReadOnly.
        """
        self.set_big_data(self.image(name), key, data)

    def list_container_big_data(self, name: str) -> list[str]:
        """The keys of a container's big data, sorted.  Raises ContainerNotFound, as all of these."""
        return sorted(self.container(name).big_data)

    def container_big_data(self, name: str, key: str) -> bytes:
        """A blob of a container.  Raises BigDataNotFound, CorruptStore."""
        return self.big_data(self.container(name), key)

    def container_big_data_size(self, name: str, key: str) -> int:
        """Its bytes.  Raises BigDataNotFound."""
        return self._described(self.container(name), key).size

    def container_big_data_digest(self, name: str, key: str) -> Digest:
        """Its digest.  Raises BigDataNotFound."""
        return self._digest(self.container(name), key)

    def set_container_big_data(self, name: str, key: str, data: bytes) -> None:
        """Keep a blob with a container.  Raises InvalidBigDataName."""
        self.set_big_data(self.container(name), key, data)

    def list_layer_big_data(self, name: str) -> list[str]:
        """The keys of a layer's big data, sorted.  Raises LayerNotFound, as all of these."""
        return sorted(self.layer(name).big_data)

    def layer_big_data(self, name: str, key: str) -> bytes:
        """A blob of a layer.  Raises BigDataNotFound, CorruptStore."""
        return self.big_data(self.layer(name), key)

    def layer_big_data_size(self, name: str, key: str) -> int:
        """Its bytes.  Raises BigDataNotFound."""
        return self._described(self.layer(name), key).size

    def layer_big_data_digest(self, name: str, key: str) -> Digest:
        """Its digest.  Raises BigDataNotFound."""
        return self._digest(self.layer(name), key)

    def set_layer_big_data(self, name: str, key: str, data: bytes) -> None:
        """Keep a blob with a layer.  Raises InvalidBigDataName, StoreIsReadOnly."""
        self.set_big_data(self.layer(name), key, data)

    def _described(self, item: Item, key: str) -> BigData:
        try:
            return item.big_data[key]
        except KeyError:
            raise BigDataNotFound(item.id, key) from None

    def _digest(self, item: Item, key: str) -> Digest:
        told = self._described(item, key).digest
        return told or digest.of_bytes(self.big_data(item, key))

    # -- directories of containers --------------------------------------------------------------------

    def container_directory(self, name: str) -> Path:
        """A directory for whoever runs the container; it goes with it.  Raises ContainerNotFound, as all."""
        return self.container_store.directory(self.container(name).id, run=False)

    def container_run_directory(self, name: str) -> Path:
        """The same below the runroot, which a reboot empties."""
        return self.container_store.directory(self.container(name).id, run=True)

    def set_container_directory_file(self, name: str, file: str, data: bytes) -> None:
        """Write a file there, whole or not at all; directories on the way are made."""
        self.container_store.write(self.container(name).id, file, data, run=False)

    def from_container_directory(self, name: str, file: str) -> bytes:
        """Read a file there.  Raises FileNotFoundError."""
        return self.container_store.read(self.container(name).id, file, run=False)

    def set_container_run_directory_file(self, name: str, file: str, data: bytes) -> None:
        """Write a file in the run directory."""
        self.container_store.write(self.container(name).id, file, data, run=True)

    def from_container_run_directory(self, name: str, file: str) -> bytes:
        """Read a file in the run directory.  Raises FileNotFoundError."""
        return self.container_store.read(self.container(name).id, file, run=True)


def top_layer(item: Item) -> str | None:
    """The id of the layer with an item's files; None for an image without layers."""
    if isinstance(item, Container):
        return item.layer
    return item.top_layer if isinstance(item, Image) else item.id


def _spellings(name: str) -> list[str]:
    """The full names that a short one may stand for."""
    try:
        return reference.candidates(name)
    except InvalidReference:
        return []
