"""The graphroot of containers/storage: what podman, buildah and skopeo keep, read while they use it.

::

    <graphroot>/<driver>-layers/layers.json        volatile-layers.json
                               /<id>.tar-split.gz
                               /<id>/<big data>
    <graphroot>/<driver>-images/images.json
                               /<id>/<big data>
    <graphroot>/overlay/<id>/diff                  diff1 diff2 ... : older parts, below it
    <graphroot>/vfs/dir/<id>                       the layer and all below it

The JSON files are read again when they have changed; their writers replace them by a rename, so there is no
half of one, and no lock is needed to read.  What lies below a layer is told by its record's ``parent``; the
driver's ``lower`` and ``link`` files and ``l/`` say the same once more, and may be lost (containers/storage
makes them again: overlay-recreate.bats).

Opaque directories in a store of root's have ``trusted.`` xattrs, which nobody else can see.  The layers' tars
have entries for them too, whose names are in the tar-split records.

A store may have been used with two drivers.  ``overlay`` is taken then, unless ``vfs`` is asked for: vfs is
what podman falls back to.
"""

from __future__ import annotations

import base64
import errno
import gzip
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Generic, TypeVar

from fusestore import digest
from fusestore.driver import whiteout
from fusestore.driver.api import FileGetter, Held
from fusestore.driver.getter import DiffGetter
from fusestore.driver.layout import LayerSpec, Origin
from fusestore.errors import BigDataNotFound, CorruptStore, ImageNotFound, LayerNotFound, NotSupported
from fusestore.files import Hold, filesystem_type
from fusestore.store.additional import ForeignOwner, Kind, Part, ownership_of, predicted
from fusestore.store.bigdata import big_data_name
from fusestore.store.graphroot_owners import owner_of, shown_in
from fusestore.store.graphroot_records import StoredLayer, read_images, read_layers
from fusestore.store.items import Image, LayerItem
from fusestore.syscalls import owns_every_id

_DRIVERS = ("overlay", "vfs")

T = TypeVar("T")


class Records(Generic[T]):
    """What some files say, read again when one of them has changed."""

    def __init__(self, files: Sequence[Path], read: Callable[[Iterable[tuple[Path, bytes]]], T]) -> None:
        self._files, self._read = files, read
        self._states: tuple[object, ...] = ()
        self._records: T | None = None

    def get(self) -> T:
        """All of it, and the same object as long as nothing changes.  Raises what reading does."""
        states = tuple(map(_state, self._files))  # first: what changes from here on is read once more
        if self._records is None or states != self._states:
            self._records = self._read([(path, _content(path)) for path in self._files])
            self._states = states
        return self._records


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        st = path.stat()
    except FileNotFoundError:
        return None
    return st.st_mtime_ns, st.st_size, st.st_ino


def _content(path: Path) -> bytes:
    try:
        with _opened(path) as file:
            return file.read()
    except FileNotFoundError:
        return b""


class GraphRoot:
    """The store at `path`, as one driver keeps it; see `fusestore.store.additional.AdditionalStore`.

    `image_stores` are further graphroots where parents of its layers may be (storage.conf:
    additionalimagestores, imagestore).  Raises FileNotFoundError where no graphroot is, NotSupported where
    one is that only other drivers keep.
    """

    def __init__(self, path: Path, driver: str | None = None, *, image_stores: Iterable[Path] = ()) -> None:
        self.path = path.absolute()
        self.driver_name = _driver(self.path, driver)
        self._layers_at = self.path / f"{self.driver_name}-layers"
        self._images_at = self.path / f"{self.driver_name}-images"
        self._owner = owner_of(self.path)
        self._stores = [self, *(GraphRoot(other, self.driver_name) for other in image_stores)]
        layers = [self._layers_at / name for name in ("layers.json", "volatile-layers.json")]
        self._layers = Records(layers, lambda files: read_layers(files, self._size_on_disk("layer")))
        images = [self._images_at / "images.json"]
        self._images = Records(images, lambda files: read_images(files, self._size_on_disk("image")))
        self._hides_marks = self.driver_name == "overlay" and not _sees_marks(self._owner.uid)
        self._opaque_of: dict[str, tuple[str, ...]] = {}
        self._sized: dict[str, Image] = {}
        self._sized_from: list[object] = []

    # -- records --------------------------------------------------------------------------------------

    def layers(self) -> list[LayerItem]:
        """Every whole layer, containers' too; `size` is that of its tar, 0 where that is not known."""
        return [layer.item for layer in self._layers.get().values()]

    def layer(self, layer_id: str) -> LayerItem | None:
        """The layer with exactly this id."""
        layer = self._layers.get().get(layer_id)
        return layer and layer.item

    def images(self) -> list[Image]:
        """Every image.  `size` is podman's: all layers' tars and big data (containers/storage: ImageSize)."""
        return list(self._sized_images().values())

    def image(self, image_id: str) -> Image | None:
        """The image with exactly this id."""
        return self._sized_images().get(image_id)

    def _sized_images(self) -> dict[str, Image]:
        """The images with the sizes of their layers; those that are gone meanwhile have none."""
        images, tables = self._images.get(), self._tables()
        sources = [images, *tables]
        if list(map(id, sources)) != list(map(id, self._sized_from)):
            self._sized = {}
            for image in images.values():
                size = sum(layer.item.size for _, layer in _chain(tables, image.top_layer or ""))
                self._sized[image.id] = replace(image, size=image.size + size)
            self._sized_from = sources
        return self._sized

    # -- what lies below a layer ----------------------------------------------------------------------

    def _tables(self) -> list[dict[str, StoredLayer]]:
        return [store._layers.get() for store in self._stores]

    def _chain(self, layer_id: str) -> list[tuple[GraphRoot, StoredLayer]]:
        """The layer and those below as (where it is, what it is).  Raises LayerNotFound, CorruptStore."""
        chain = [(self._stores[index], layer) for index, layer in _chain(self._tables(), layer_id)]
        if not chain:
            raise LayerNotFound(layer_id)
        if parent := chain[-1][1].item.parent:
            reason = f"layer {layer_id} has no base: {parent} is not there, or above itself"
            raise CorruptStore(str(self._layers_at / "layers.json"), reason)
        return chain

    def specs(self, layer_id: str) -> tuple[LayerSpec, ...]:
        """The directories that make the layer, topmost first.

        Raises LayerNotFound, CorruptStore when a part is missing, NotSupported for composefs.
        """
        chain = self._chain(layer_id)
        if self.driver_name == "vfs":
            chain = chain[:1]
        return tuple(spec for store, layer in chain for spec in store._own(layer))

    def _own(self, layer: StoredLayer) -> list[LayerSpec]:
        """The layer's own directories."""
        uids, gids = shown_in(self._owner.uids, layer.uids), shown_in(self._owner.gids, layer.gids)
        origin = Origin(uids=uids, gids=gids)
        if self._hides_marks and layer.item.parent:
            origin = replace(origin, opaque=self._opaque(layer.item.id))
        return [LayerSpec(str(path), origin=origin) for path in self._directories(layer.item.id)]

    def _opaque(self, layer_id: str) -> tuple[str, ...]:
        """The directories of a layer that hide those below, by its tar, which does not change."""
        if layer_id not in self._opaque_of:
            record = self.record(layer_id)
            self._opaque_of[layer_id] = _opaque_directories(record, layer_id) if record else ()
        return self._opaque_of[layer_id]

    def _directories(self, layer_id: str) -> list[Path]:
        if self.driver_name == "vfs":
            found = [self.path / "vfs/dir" / layer_id]
        else:
            home = self.path / "overlay" / layer_id
            if (home / "composefs-data/composefs.blob").exists():
                raise NotSupported(f"{home}: a composefs image, which fusestore does not read")
            found = [home / "diff"]
            while (part := home / f"diff{len(found)}").is_dir():
                found.append(part)
        if not found[0].is_dir():
            raise CorruptStore(str(found[0]), f"the files of layer {layer_id} are not there")
        return found

    def unreadable(self, layer_id: str) -> tuple[ForeignOwner, ...] | None:
        """Who owns files of the layer, or of one below, and is not us."""
        return predicted(
            Part(store._own(layer)[0], store._owner.uid, layer.item.uids)
            for store, layer in self._chain(layer_id)
        )

    # -- files ----------------------------------------------------------------------------------------

    def _big_data_path(self, kind: Kind, item: str, key: str) -> Path:
        directory = self._layers_at if kind == "layer" else self._images_at
        return directory / item / big_data_name(key)

    def _size_on_disk(self, kind: Kind) -> Callable[[str, str], int]:
        """For `read_layers`: bytes, or -1 (containers/storage: ErrSizeUnknown)."""

        def size(item: str, key: str) -> int:
            try:
                return self._big_data_path(kind, item, key).stat().st_size
            except (OSError, ValueError):
                return -1

        return size

    def big_data(self, kind: Kind, item: str, key: str) -> bytes:
        """A blob.  Raises LayerNotFound, ImageNotFound, BigDataNotFound, CorruptStore for one that is missing
        or has another digest than is recorded."""
        found = self.layer(item) if kind == "layer" else self.image(item)
        if found is None:
            raise LayerNotFound(item) if kind == "layer" else ImageNotFound(item)
        if key not in found.big_data:
            raise BigDataNotFound(item, key)
        path = self._big_data_path(kind, item, key)
        try:
            with _opened(path) as file:
                data = file.read()
        except FileNotFoundError:
            raise CorruptStore(str(path), f"the big data {key} of {item} is missing") from None
        expected = found.big_data[key].digest
        if expected is not None and digest.of_bytes(data) != expected:
            raise CorruptStore(str(path), f"the big data {key} of {item} has not the digest {expected}")
        return data

    def record(self, layer_id: str) -> IO[bytes] | None:
        """The layer's tar-split stream, gzip'd; None where there is none, as for containers' layers."""
        if self.layer(layer_id) is None:
            raise LayerNotFound(layer_id)
        try:
            return _opened(self._layers_at / f"{layer_id}.tar-split.gz")
        except FileNotFoundError:
            return None

    def files(self, layer_id: str) -> FileGetter:
        """The layer's own files by the names its tar gave them."""
        spec = self.specs(layer_id)[0]
        return DiffGetter(os.fsencode(spec.path), ownership_of(spec), self.hold(layer_id))

    def hold(self, layer_id: str) -> Held:
        """Nothing: containers/storage has no lock for a layer, and those for all would stop its writers."""
        return Hold(-1)

    def status(self) -> list[tuple[str, str]]:
        """Facts about the store."""
        return [
            ("Root", str(self.path)),
            ("Driver Name", self.driver_name),
            ("Backing Filesystem", filesystem_type(self.path)),
        ]

    def close(self) -> None:
        """Nothing is open."""


def _chain(tables: Sequence[dict[str, StoredLayer]], layer_id: str) -> Iterator[tuple[int, StoredLayer]]:
    """The layer and those below, each with the index of the table that it is in.

    Ends early at one that is in none, and before one a second time.
    """
    seen = set()
    while layer_id not in seen:
        seen.add(layer_id)
        index = next((index for index, table in enumerate(tables) if layer_id in table), None)
        if index is None:
            return
        layer = tables[index][layer_id]
        yield index, layer
        layer_id = layer.item.parent


def _driver(path: Path, wanted: str | None) -> str:
    """The driver to read: the one that is asked for, or the first of ours that has kept something."""
    parts = [name.rpartition("-") for name in os.listdir(path)]
    present = {driver for driver, _, kind in parts if driver and kind in ("layers", "images")}
    found = [name for name in _DRIVERS if name in present and wanted in (None, name)]
    if found:
        return found[0]
    if present:
        readable = f"not {wanted}" if wanted else f"and fusestore reads {' and '.join(_DRIVERS)}"
        raise NotSupported(f"{path}: this store is kept by {', '.join(sorted(present))}, {readable}")
    raise FileNotFoundError(errno.ENOENT, "no store of podman or buildah", str(path))


def _opened(path: Path) -> IO[bytes]:
    """A file to read, which must not make us wait.  Raises CorruptStore for what is none, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CorruptStore(str(path), "not a file")
    return os.fdopen(fd, "rb")


def _sees_marks(owner: int) -> bool:
    """True where nothing that a driver has noted of its files is hidden from us."""
    return owns_every_id() or owner == os.geteuid()


def _opaque_directories(record: IO[bytes], what: str) -> tuple[str, ...]:
    """The directories for which a tar has ``.wh..wh..opq``, by its record, which is closed.

    Raises CorruptStore.
    """
    found = set()
    try:
        with record, gzip.open(record) as lines:
            for line in lines:
                if whiteout.OPAQUE_NAME in line or b'"name_raw"' in line:
                    name = os.path.normpath(b"/" + _name(json.loads(line)))
                    directory, _, last = name.rpartition(b"/")
                    found |= {os.fsdecode(directory[1:])} if last == whiteout.OPAQUE_NAME else set()
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptStore(what, f"its tar-split record cannot be read: {exc}") from None
    return tuple(sorted(found))


def _name(entry: dict[str, str]) -> bytes:
    return base64.b64decode(entry["name_raw"]) if "name_raw" in entry else entry["name"].encode()
