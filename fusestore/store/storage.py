"""`Store`: layers, images and containers in one place, and every rule that spans them.

Open one, use it, close it; it is also a context manager.  Any number of processes may have the same store
open.  Opening sweeps ``tmp/`` of what dead processes left.  The methods are containers/storage's (its
interface ``Store``), but for those that work on images as such: `create_images`, `mount_image`, `union`.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fusestore import __version__, config, digest
from fusestore.config import StoreOptions
from fusestore.digest import ChainID, Digest, Readable
from fusestore.driver import mounter
from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.home import verify_options
from fusestore.errors import (
    DuplicateID,
    ImageNotFound,
    ImageUsedByContainer,
    LayerInUse,
    LayerNotFound,
    LayerUsedByContainer,
    NotSupported,
    ParentIsContainer,
    StoreIsReadOnly,
)
from fusestore.files import sweep
from fusestore.store.additional import AdditionalStore
from fusestore.store.bigdata import Blobs
from fusestore.store.catalog import Driver
from fusestore.store.containers import ContainerStore
from fusestore.store.contents import LayerContents
from fusestore.store.database import Database
from fusestore.store.images import MANIFEST, ImageStore, configuration_key
from fusestore.store.items import Container, Image, LayerItem
from fusestore.store.layeritems import LayerItems
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be added: full names, its topmost layer, and its documents as the exact bytes."""

    names: Sequence[str]
    top_layer: ChainID | None
    configuration: bytes
    manifest: bytes


class Store(LayerContents):
    """A store at `graph_root`, with its mounts recorded at `run_root` (defaults: see `fusestore.config`).

    One that the caller may not write is opened read-only.  Raises CorruptStore, NotSupported, OSError.
    """

    def __init__(
        self,
        graph_root: str | None = None,
        run_root: str | None = None,
        *,
        options: StoreOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.options = options or config.options(graph_root, run_root)
        self.graph_root, self.run_root = self.options.graph_root, config.private(self.options.run_root)
        self.read_only = self.graph_root.is_dir() and not os.access(self.graph_root, os.W_OK)
        if not self.read_only:
            config.owned(self.graph_root)
        self.graph_driver = _driver(self.options)
        if not self.read_only:
            sweep(self.graph_root / "tmp")
        self._database = Database(self.graph_root / "store.db", read_only=self.read_only)
        self._metadata = LayerMetadata(self._database)
        self._blobs = Blobs(self._database, self.graph_root)
        self.layer_store = LayerStore(self._metadata, self.graph_driver, limits)
        self.layer_items = LayerItems(self._database, self._blobs, self._metadata, self.layer_store)
        self.image_store = ImageStore(self._database, self._blobs)
        self.container_store = ContainerStore(self._database, self._blobs, self.graph_root, self.run_root)
        self.additional_stores: list[AdditionalStore] = []
        try:
            for path in self.options.additional_stores:
                self.additional_stores.append(_additional(path))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the database and let go of handles.  Mounts stay."""
        self.layer_store.close()
        self._database.close()
        for store in self.additional_stores:
            store.close()

    def free(self) -> None:
        """Close the store and have `get_store` open it anew.  May be called twice."""
        if _open_stores.get(self._places()) is self:
            del _open_stores[self._places()]
        self.close()

    def _places(self) -> tuple[Path, Path]:
        return self.graph_root, self.run_root

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- what it is -----------------------------------------------------------------------------------

    @property
    def graph_driver_name(self) -> str:
        """``fuse`` or ``vfs``."""
        return self.graph_driver.name

    @property
    def graph_options(self) -> tuple[str, ...]:
        """The options for the driver, as DRIVER.KEY=VALUE."""
        return self.options.graph_options

    @property
    def ro_layer_stores(self) -> Sequence[AdditionalStore]:
        """The additional stores, which are looked into after this one, in this order."""
        return self.additional_stores

    @property
    def ro_image_stores(self) -> Sequence[AdditionalStore]:
        """The same: each has images and layers."""
        return self.additional_stores

    def status(self) -> list[tuple[str, str]]:
        """Facts about the driver and its filesystem, as rows of name and value."""
        return self.graph_driver.status()

    def version(self) -> list[tuple[str, str]]:
        """Rows of name and value."""
        return [("Version", __version__)]

    # -- layers ---------------------------------------------------------------------------------------

    def create_layer(
        self,
        layer_id: str = "",
        parent: str = "",
        names: Sequence[str] = (),
        mount_label: str = "",
        *,
        writeable: bool = True,
    ) -> LayerItem:
        """Make an empty layer on top of `parent` ("": of nothing); an id is made up for "".

        It takes changes while it is mounted, until it has a child; `writeable` is ignored, as upstream.
        Names must be free.  Raises LayerNotFound, ParentIsContainer, DuplicateID, DuplicateName, OSError.
        """
        return self.put_layer(layer_id, parent, names, mount_label, writeable=writeable)

    def put_layer(
        self,
        layer_id: str = "",
        parent: str = "",
        names: Sequence[str] = (),
        mount_label: str = "",
        *,
        writeable: bool = False,
        diff: Readable | None = None,
    ) -> LayerItem:
        """Make a layer of the tar `diff`, plain or compressed, on top of `parent`.

        What `LayerItem.uncompressed_size` has is what upstream returns beside the layer.  Raises as
        `create_layer`, and InvalidLayer; all is then as it was.
        """
        layer_id = layer_id or new_id()

        def make(below: str | None) -> LayerItem:
            return self.layer_items.create(
                layer_id, below, names, mount_label, writeable=writeable, diff=diff
            )

        return self._on(self._parent(parent) if parent else None, make)

    def register(self, tar: Readable, parent: str | None = None) -> LayerItem:
        """Make a registered layer, which has its chain ID as id, of an uncompressed tar; or find it.

        It stays until it is deleted, or an image on it is.  Raises as `LayerStore.register`, and NotSupported
        for a parent without a chain ID.
        """
        if parent is not None and not parent.startswith("sha256:"):
            raise NotSupported(f"{parent}: not a registered layer, so what is on it has no chain ID")
        below = self._borrowed(parent) if parent else None
        handle = self.layer_store.register(tar, ChainID(below) if below else None)
        try:
            return self.layer_items.get(handle.chain_id)
        finally:
            self.layer_store.let_go(handle)

    def _parent(self, name: str) -> str:
        """The id of a layer that others may be put on.  Raises LayerNotFound, ParentIsContainer."""
        layer = self.layer(name)
        container = self.container_store.of_layer(layer.id)
        if container is not None:
            raise ParentIsContainer(layer.id, container.id)
        return layer.id

    def _on(self, layer: str | None, make: Callable[[str | None], LayerItem]) -> LayerItem:
        """What `make` makes on top of a layer, which is borrowed first where it has to be."""
        if layer is None:
            return make(None)
        try:
            try:
                return make(self._borrowed(layer))
            except LayerNotFound:  # another process may have given back just now what it had borrowed
                return make(self._borrowed(layer))
        except BaseException:
            self._give_back_now(layer)
            raise

    def delete_layer(self, name: str) -> None:
        """Delete a layer that nothing needs; it is unmounted.

        Raises LayerNotFound, LayerHasChildren, LayerUsedByImage, LayerUsedByContainer, LayerInUse,
        StoreIsReadOnly.
        """
        layer = self._own_layer(name)

        def choose() -> list[str]:
            self._metadata.refuse_needed(ChainID(layer))
            return [layer]

        self.delete_layers(choose)

    def delete_layers(
        self, choose: Callable[[], Sequence[str]], after: Callable[[], None] = lambda: None
    ) -> bool:
        """Unmount and delete the layers that `choose` gives inside the transaction; False for none.

        Borrowed ones that nothing needs then go too.  `after` runs behind the transaction.
        """
        with ExitStack() as stack:
            with self._database.transaction():
                layers = choose()
                for layer in layers:
                    record = self.layer_items.record(layer)
                    self.graph_driver.abandon(record.cache_id)
                    self.layer_items.doom(layer, stack)
                    self._give_back(record.parent, stack)
            for layer in layers:  # before the files of layers, which may take long
                self._blobs.delete_unnamed("layer", layer)
            after()
        return bool(layers)

    # -- images ---------------------------------------------------------------------------------------

    def create_image(
        self,
        image_id: str = "",
        names: Sequence[str] = (),
        layer: str = "",
        metadata: str = "",
        *,
        created: int = 0,
        digest: Digest | None = None,
        big_data: Mapping[str, bytes] | None = None,
        flags: Mapping[str, object] | None = None,
    ) -> Image:
        """Make an image on a layer ("": without one); `created` is in s since 1970, 0 for now.

        Raises LayerNotFound, DuplicateID, DuplicateName, InvalidBigDataName, OSError.
        """
        top = self._borrowed(self.layer(layer).id) if layer else None
        image = Image(
            id=image_id or new_id(),
            names=tuple(dict.fromkeys(names)),
            metadata=metadata,
            created=created or int(time.time()),
            flags=flags or {},
            top_layer=top,
            digest=digest,
            size=self._size_of_chain(top),
        )
        return self._add_image(image, big_data or {})

    def _add_image(self, image: Image, blobs: Mapping[str, bytes]) -> Image:
        try:
            with self._blobs.setting(), self._database.transaction():
                self.image_store.refuse_taken(image.id, image.names)
                self.image_store.add(image, blobs)
                self.image_store.name(image.id, image.names)
                return self.image_store.get(image.id)
        except BaseException as exc:
            self.image_store.collect()
            if image.top_layer:
                self._give_back_now(image.top_layer)
            if isinstance(exc, sqlite3.IntegrityError):
                raise LayerNotFound(str(image.top_layer)) from None
            raise

    def create_images(self, new: Sequence[NewImage]) -> list[Image]:
        """Add images on layers that the caller holds, all of them or none; their names move to them.

        An image's id is the digest of its configuration.  Raises LayerNotFound, OSError.
        """
        try:
            with self._blobs.setting(), self._database.transaction():
                return [self._create_image(image) for image in new]
        except BaseException as exc:
            self.image_store.collect()
            if isinstance(exc, sqlite3.IntegrityError):
                raise LayerNotFound(", ".join(str(image.top_layer) for image in new)) from None
            raise

    def _create_image(self, new: NewImage) -> Image:
        image_id = digest.encoded(digest.of_bytes(new.configuration))
        image = Image(
            id=image_id,
            created=created_of(new.configuration),
            top_layer=new.top_layer,
            digest=digest.of_bytes(new.manifest),
            size=self._size_of_chain(new.top_layer),
        )
        blobs = {MANIFEST: new.manifest, configuration_key(image_id): new.configuration}
        self.image_store.add(image, blobs)
        self.image_store.update_names(image_id, lambda present: (*new.names, *present))
        return self.image_store.get(image_id)

    def _size_of_chain(self, layer: str | None) -> int:
        """Bytes of files; of layers that were filled through a mount they are counted now."""
        chain = self._metadata.chain(ChainID(layer) if layer else None)
        return sum(
            self.layer_items.size(record) if record.diff_id is None else record.size for record in chain
        )

    def pull_up(self, image: Image) -> None:
        """Copy an image of an additional store into this one, but for its layers, which are borrowed."""
        blobs = {key: self.big_data(image, key) for key in image.big_data}
        top = self._borrowed(image.top_layer) if image.top_layer else None
        free = [name for name in image.names if not self.image_store.exact(name)]
        with suppress(DuplicateID):  # another process was faster
            self._add_image(replace(image, top_layer=top, names=tuple(free), read_only=False), blobs)

    def untag(self, names: Sequence[str]) -> None:
        """Take full names away from their images; the images stay."""
        self.image_store.remove_names(names)

    def delete_image(self, name: str, *, commit: bool = True) -> list[str]:
        """Delete an image and the layers that nothing else needs; the ids of those, topmost first.

        With `commit` False nothing is deleted, and the list is that of what would be if nothing is mounted or
        held.  Raises ImageNotFound, ImageUsedByContainer, LayerInUse while it is mounted, StoreIsReadOnly.
        """
        image = self.image(name)
        if image.read_only:
            raise StoreIsReadOnly(image.id)
        with ExitStack() as stack:
            with suppress(_DryRun), self._database.transaction():
                image = self.image_store.get(image.id)
                for container in self.container_store.of_image(image.id):
                    raise ImageUsedByContainer(image.id, container.id)
                self.image_store.delete(image.id)
                deleted = self._delete_unneeded(image, stack if commit else None)
                if not commit:
                    raise _DryRun
            if commit:
                self._blobs.delete_unnamed("image", image.id)
                for layer in deleted:
                    self._blobs.delete_unnamed("layer", layer)
        return deleted

    def _delete_unneeded(self, image: Image, stack: ExitStack | None) -> list[str]:
        """Inside a transaction: unname the layers of an image whose row is gone, while nothing is on them."""
        deleted: list[str] = []
        for record in self._metadata.chain(ChainID(image.top_layer) if image.top_layer else None):
            if self._metadata.is_needed(record.chain_id):
                break
            try:
                if stack is None:
                    self.layer_items.delete(record.chain_id)
                else:
                    self.layer_items.doom(record.chain_id, stack)
            except LayerInUse:
                if deleted:
                    break
                places = self.mounts_of(image)
                if self.graph_driver.mounted(record.cache_id):
                    places.append(str(self.graph_driver.mountpoint(record.cache_id)))
                reason = f"mounted at {', '.join(places)}" if places else "another process works with it"
                raise LayerInUse(image.names[0] if image.names else image.id[:12], reason) from None
            if record.origin is None:
                deleted.append(str(record.chain_id))
        return deleted

    def image_size(self, name: str) -> int:
        """Bytes of an image: the tars of its layers, and its big data.  Raises ImageNotFound."""
        image = self.image(name)
        layers = sum(
            self.diff_size("", layer.id) if layer.uncompressed_size is None else layer.uncompressed_size
            for layer in self.chain(image)
        )
        return layers + sum(blob.size for blob in image.big_data.values())

    def configuration(self, image: Image) -> Mapping[str, object]:
        """The image's configuration (OCI image-spec, config.md).  Raises BigDataNotFound, CorruptStore."""
        return dict(json.loads(self.big_data(image, configuration_key(image.id))))

    def manifest(self, image: Image) -> Mapping[str, object]:
        """The image's manifest.  Raises BigDataNotFound, CorruptStore."""
        return dict(json.loads(self.big_data(image, MANIFEST)))

    # -- containers -----------------------------------------------------------------------------------

    def create_container(
        self,
        container_id: str = "",
        names: Sequence[str] = (),
        image: str = "",
        layer_id: str = "",
        metadata: str = "",
        *,
        flags: Mapping[str, object] | None = None,
        mount_label: str = "",
    ) -> Container:
        """Make a container on an image ("": on nothing), with an RW layer of the id `layer_id`.

        Ids are made up for "".  Raises ImageNotFound, DuplicateID, DuplicateName, OSError; all is then as it
        was.
        """
        found = self.image(image) if image else None
        container = Container(
            id=container_id or new_id(),
            names=tuple(dict.fromkeys(names)),
            metadata=metadata,
            created=int(time.time()),
            flags=flags or {},
            image=found.id if found else "",
            layer=layer_id or new_id(),
        )
        with self._database.transaction():
            self.container_store.refuse_taken(container.id, container.names)

        def also() -> None:
            if found and not found.read_only and not self.image_store.exists(found.id):
                raise ImageNotFound(image)  # deleted meanwhile
            self.container_store.add(container)

        def make(below: str | None) -> LayerItem:
            return self.layer_items.create(container.layer, below, mount_label=mount_label, also=also)

        self._on(found.top_layer if found else None, make)
        return container

    def delete_container(self, name: str) -> None:
        """Delete a container, its layer, which is unmounted, and its directories.

        Raises ContainerNotFound, LayerInUse while another process works with its layer.
        """
        container = self.container(name)

        def choose() -> list[str]:
            layer = self.container_store.get(container.id).layer
            self.container_store.delete(container.id)
            self._metadata.refuse_needed(ChainID(layer))
            return [layer]

        def delete_files() -> None:
            self._blobs.delete_unnamed("container", container.id)
            self.container_store.delete_directories(container.id)

        self.delete_layers(choose, delete_files)

    def container_size(self, name: str) -> int:
        """Bytes of a container: the tar of its changes, its big data, and files in its directories."""
        container = self.container(name)
        size = self.diff_size("", container.layer) + sum(blob.size for blob in container.big_data.values())
        return size + self.container_store.size(container.id)

    def container_parent_owners(self, name: str) -> tuple[list[int], list[int]]:
        """The same for a container's."""
        return self.layer_parent_owners(self.container(name).layer)

    # -- everything -----------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Delete a container, an image's record, or a layer.

        Not as upstream, which checks nothing here: what others need is refused, as by the calls for one kind;
        an image's layers stay.  Raises ItemNotFound and what those raise.
        """
        item = self.any(name)
        if isinstance(item, Container):
            self.delete_container(item.id)
        elif isinstance(item, LayerItem):
            self.delete_layer(item.id)
        else:
            with self._database.transaction():
                self._own(item).get(item.id)
                for container in self.container_store.of_image(item.id):
                    raise ImageUsedByContainer(item.id, container.id)
                self.image_store.delete(item.id)
            self._blobs.delete_unnamed("image", item.id)

    def wipe(self) -> None:
        """Delete every container, image and layer of this store, whoever has made it; all is unmounted first.

        Raises LayerInUse while another process works with a layer; what is gone by then stays gone.
        """
        self.unmount_all()
        for rw_layer in self.layer_store.rw_layers():
            self.layer_store.delete_mount(rw_layer.name)
        with self._database.transaction() as execute:
            execute("DELETE FROM images")
            execute("DELETE FROM containers")
        while self.delete_layers(self.layer_items.leaves):
            pass
        self.collect(deep=True)

    def unmount_all(self) -> list[str]:
        """Take every mount away, whoever has it; where they were, or for a driver without mounts, of what."""
        found = [present.mountpoint for present in self.mounts()]
        for mountpoint in found:
            mounter.unmount(Path(mountpoint), self.run_root, force=True)
        for cache_id in self.graph_driver.counted():
            if self.graph_driver.mounted(cache_id):
                found.append(str(self.graph_driver.path / cache_id))
                self.graph_driver.abandon(cache_id)
        return found

    def shutdown(self, *, force: bool = False) -> None:
        """Release what the driver holds, unless something is mounted; with `force`, that is unmounted first.

        Raises LayerUsedByContainer, as upstream also when `force` has just unmounted what was; the second
        call is clean.
        """
        if force and (gone := self.unmount_all()):
            raise LayerUsedByContainer(", ".join(gone), "it was mounted, and is not any more")
        places = [m.mountpoint for m in self.mounts()] + list(
            filter(self.graph_driver.mounted, self.graph_driver.counted())
        )
        if places:
            raise LayerUsedByContainer(", ".join(places), "it is mounted; unmount it, or use --force")
        self.graph_driver.cleanup()

    def collect(self, *, deep: bool = False) -> None:
        """Delete what no row names: leftovers of processes that died."""
        if deep:
            self.layer_store.cleanup()
        self.layer_store.collect()
        self.image_store.collect(deep=deep)
        if deep:
            self.container_store.collect()
            self._give_back_all()


#: The stores that `get_store` has opened, by root and runroot.
_open_stores: dict[tuple[Path, Path], Store] = {}


def get_store(options: StoreOptions | None = None) -> Store:
    """The one store of this process at the places that the options say (containers/storage: ``GetStore``).

    It is opened with them if it is not open yet; for one thread at a time.  `Store.free` lets it go.
    """
    options = options or config.options()
    places = options.graph_root, options.run_root
    if places not in _open_stores:
        _open_stores[places] = Store(options=options)
    return _open_stores[places]


def _driver(options: StoreOptions) -> Driver:
    verify_options(dict(option.partition(".")[2].split("=", 1) for option in options.graph_options))
    if options.graph_driver_name == "vfs":
        from fusestore.driver.vfs import VfsDriver  # what few need, nobody has to wait for

        return VfsDriver(options.graph_root, options.run_root)
    return FuseDriver(options.graph_root, options.run_root)


def _additional(path: Path) -> AdditionalStore:
    """Another fusestore's root, or a containers/storage graphroot.  Raises NotSupported, OSError."""
    if (path / "store.db").exists():
        from fusestore.store.additional import FusestoreRoot

        return FusestoreRoot(path)
    from fusestore.store.graphroot import GraphRoot

    return GraphRoot(path)


def created_of(configuration: bytes) -> int:
    """Seconds since 1970 of a configuration's RFC 3339 ``created``; 0 when it has none that can be read."""
    text = json.loads(configuration).get("created") or ""
    try:
        # Go writes nanoseconds, which fromisoformat refuses.
        moment = datetime.fromisoformat(re.sub(r"\.\d+", "", str(text)))
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):  # astimezone() too: the first and last years have edges
        return 0


class _DryRun(Exception):
    """Ends a transaction that was only to be looked at."""


def new_id() -> str:
    """A random id: 64 hex digits of which the first 12 are no number (containers/storage: stringid)."""
    while True:
        found = secrets.token_hex(32)
        if not found[:12].isdigit():
            return found
