"""Additional stores: what other people's stores hold, read and never written (containers/storage:
additional image stores).

`AdditionalStore` is what a store asks of one, whoever made it; `FusestoreRoot` reads the root of another
fusestore, `fusestore.store.graphroot.GraphRoot` what podman and buildah keep.  The other program goes on
working meanwhile, so every call tells what is true now.  Nothing is made there, not even a lock file, and
nothing is locked exclusively.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Literal, NamedTuple, Protocol

from fusestore.digest import ChainID
from fusestore.driver.api import FileGetter, Held
from fusestore.driver.getter import DiffGetter
from fusestore.driver.idmap import Range
from fusestore.driver.layout import LayerSpec, Origin, read_borrowed
from fusestore.driver.ownership import Ownership
from fusestore.driver.stack import open_layer
from fusestore.driver.whiteout import Spelling
from fusestore.errors import CorruptStore, ImageNotFound, LayerNotFound
from fusestore.files import Hold, filesystem_type, lock
from fusestore.store.bigdata import Blobs
from fusestore.store.database import Database
from fusestore.store.images import ImageStore
from fusestore.store.items import Image, Items, LayerItem
from fusestore.store.layeritems import LayerItems
from fusestore.store.metadata import LayerMetadata, LayerRecord
from fusestore.store.tarsplit import RECORD

Kind = Literal["layer", "image"]


class ForeignOwner(NamedTuple):
    """A user whose files may be closed to us: the uid that images have for them, and the one on disk."""

    shown: int
    stored: int

    def __str__(self) -> str:
        """As in "files of uid 70 (100069 here) cannot be read"."""
        return f"uid {self.shown}" + (f" ({self.stored} here)" if self.stored != self.shown else "")


class AdditionalStore(Protocol):
    """Somebody else's layers and images.

    Ids are exact; names and prefixes are for the store that searches several.  Methods that need a layer or
    an image that is not there (any more) raise LayerNotFound, ImageNotFound; all may raise CorruptStore for
    records that cannot be read, which name the file, and OSError.
    """

    @property
    def path(self) -> Path:
        """The store's root directory."""

    @property
    def driver_name(self) -> str:
        """The graphdriver that its layers are made by: ``overlay``, ``vfs``, ``fuse``."""

    def images(self) -> Sequence[Image]:
        """Every image, in the store's order; all are `read_only`."""

    def layers(self) -> Sequence[LayerItem]:
        """Every whole layer, in the store's order; all are `read_only`."""

    def image(self, image_id: str) -> Image | None:
        """The image with exactly this id."""

    def layer(self, layer_id: str) -> LayerItem | None:
        """The layer with exactly this id."""

    def big_data(self, kind: Kind, item: str, key: str) -> bytes:
        """A blob, verified where its digest is recorded.  Raises BigDataNotFound, CorruptStore."""

    def specs(self, layer_id: str) -> tuple[LayerSpec, ...]:
        """The directories that make the layer, topmost first, for a mount or a `Union`.

        Raises NotSupported where they are kept in a way that we cannot read.
        """

    def record(self, layer_id: str) -> IO[bytes] | None:
        """The layer's tar-split stream, gzip'd, to be closed; None where none was kept."""

    def files(self, layer_id: str) -> FileGetter:
        """The layer's own files by the names its tar gave them, to put that together; close it."""

    def unreadable(self, layer_id: str) -> tuple[ForeignOwner, ...] | None:
        """Who owns files of the layer, or of one below, and is not us: some may be closed to us.

        Taken from what is recorded of the layers' owners, not from the disk.  None: not all is recorded, and
        what is are all ours.
        """

    def hold(self, layer_id: str) -> Held:
        """Keep the layer from being removed, as far as that store has a way."""

    def status(self) -> list[tuple[str, str]]:
        """Facts about the store, as rows of name and value."""

    def close(self) -> None:
        """Let go of what is open.  Holds stay.  May be called twice."""


# -- whose files are in it ----------------------------------------------------------------------------


class Part(NamedTuple):
    """A layer as `predicted` needs it: who made its store, and the uids in its tar, None where not known."""

    spec: LayerSpec
    owner: int
    uids: Sequence[int] | None


def predicted(layers: Iterable[Part]) -> tuple[ForeignOwner, ...] | None:
    """For `AdditionalStore.unreadable`, in order of the uids."""
    found: set[ForeignOwner] = set()
    is_known = True
    for spec, owner, uids in layers:
        ranges = spec.origin.uids if spec.origin else ()
        if ownership_of(spec) is Ownership.OVERRIDE:  # all files are whose the store is, who is root there
            ranges, uids = ((owner, 0, 1),), (0,)
        is_known &= uids is not None
        found |= foreign(owner, ranges, uids or ())
    return tuple(sorted(found)) if found or is_known else None


def foreign(owner: int, ranges: Sequence[Range], shown: Iterable[int]) -> set[ForeignOwner]:
    """Those of the uids `shown` by a layer whose files are not ours.  Nothing is closed to root.

    A uid that the owner of the store could not give to a file has been left the owner's.
    """
    me = os.geteuid()
    found = {ForeignOwner(uid, _stored(ranges, uid, owner)) for uid in shown}
    return {one for one in found if me not in (0, one.stored)}


def _stored(ranges: Sequence[Range], uid: int, owner: int) -> int:
    if not ranges:
        return uid
    places = (stored + uid - shown for stored, shown, count in ranges if shown <= uid < shown + count)
    return next(places, owner)


def ownership_of(spec: LayerSpec) -> Ownership:
    """Where a layer keeps its owners, told by its root; a root that we must not read tells nothing."""
    try:
        with open_layer(spec, None, None) as layer:
            return layer.ownership
    except PermissionError:
        return Ownership.REAL


# -- another fusestore --------------------------------------------------------------------------------


class _Layers(LayerItems):
    """What the rows of layers say; there is no driver here that could do more."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        Items.__init__(self, database, blobs)


class FusestoreRoot:
    """The root of another fusestore as an `AdditionalStore`.

    Raises FileNotFoundError where there is no store, CorruptStore, NotSupported for one of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._database = Database(self.path / "store.db", read_only=True)
        blobs = Blobs(self._database, self.path)
        self._images, self._layers = ImageStore(self._database, blobs), _Layers(self._database, blobs)
        self._metadata = LayerMetadata(self._database)

    @property
    def driver_name(self) -> str:
        """``fuse`` or ``vfs``; a store without layers may become either."""
        rows = self._database.select("SELECT value FROM settings WHERE key = 'driver'")
        return str(rows[0]["value"]) if rows else "fuse"

    # -- records --------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Every image, newest first."""
        return [replace(image, read_only=True) for image in self._images.all()]

    def layers(self) -> list[LayerItem]:
        """Every layer, oldest first, also those that it borrows itself."""
        return [replace(layer, read_only=True) for layer in self._layers.all()]

    def image(self, image_id: str) -> Image | None:
        """The image with exactly this id."""
        try:
            return replace(self._images.get(image_id), read_only=True)
        except ImageNotFound:
            return None

    def layer(self, layer_id: str) -> LayerItem | None:
        """The layer with exactly this id."""
        try:
            return replace(self._layers.get(layer_id), read_only=True)
        except LayerNotFound:
            return None

    def big_data(self, kind: Kind, item: str, key: str) -> bytes:
        """A blob, verified."""
        items: Items[Image] | Items[LayerItem] = self._images if kind == "image" else self._layers
        return items.big_data(item, key)

    # -- files ----------------------------------------------------------------------------------------

    def specs(self, layer_id: str) -> tuple[LayerSpec, ...]:
        """The directories that make the layer, topmost first.

        Raises LayerNotFound, CorruptStore when one is missing.
        """
        return tuple(map(self._spec, self._stack(self._metadata.get(ChainID(layer_id)))))

    def _stack(self, record: LayerRecord) -> list[Path]:
        """The directories that the driver puts on one another; not all parents, where one is a full copy."""
        top = self._directory(record)
        try:
            links = (top / "lower").read_text().split(":")
        except FileNotFoundError:
            return [top]
        try:
            return [top, *(top.parent / (top.parent / link).readlink().parent.name for link in links)]
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise CorruptStore(str(top / "lower"), str(exc)) from None

    def _directory(self, record: LayerRecord) -> Path:
        return self.path / self.driver_name / record.cache_id

    def _spec(self, directory: Path) -> LayerSpec:
        takes_changes = (directory / "work").is_dir() and not (directory / "committed").exists()
        links = None if takes_changes else f"{directory}/links"  # nothing is recorded of them
        spec = read_borrowed(directory) or LayerSpec(
            f"{directory}/diff", links, f"{directory}/lock", self._origin()
        )
        if not os.path.isdir(spec.path):
            raise CorruptStore(spec.path, "the files of this layer are not there")
        return spec if os.access(f"{directory}/lock", os.R_OK) else replace(spec, lock=None)

    def _origin(self) -> Origin:
        """What all its own layers are like; see `fusestore.driver.home`."""
        file = self.path / self.driver_name / "home.json"
        try:
            data = json.loads(file.read_bytes())
            return Origin(Ownership(data["ownership"]), Spelling(data["whiteouts"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError) as exc:
            raise CorruptStore(str(file), str(exc)) from None

    def record(self, layer_id: str) -> IO[bytes] | None:
        """The layer's tar-split stream; None where its exact tar is lost."""
        record = self._metadata.get(ChainID(layer_id))
        return (self._directory(record) / RECORD).open("rb") if record.reproducible else None

    def files(self, layer_id: str) -> FileGetter:
        """The layer's own files by the names its tar gave them; the layer is held meanwhile."""
        spec, held = self.specs(layer_id)[0], self.hold(layer_id)
        try:
            return DiffGetter(os.fsencode(spec.path), ownership_of(spec), held)
        except BaseException:
            held.close()
            raise

    def unreadable(self, layer_id: str) -> tuple[ForeignOwner, ...] | None:
        """Who owns files of the layer, or of one below, and is not us."""
        owner = self.path.stat().st_uid
        chain = self._metadata.chain(ChainID(layer_id))
        return predicted(
            Part(self._spec(self._directory(record)), owner, record.owners[0] if record.owners else None)
            for record in chain
        )

    def hold(self, layer_id: str) -> Held:
        """Keep the layer from being removed by its own store, where its lock is open to us."""
        record = self._metadata.get(ChainID(layer_id))
        try:
            held = Hold(lock(self._directory(record) / "lock", fcntl.LOCK_SH))
        except FileNotFoundError:
            raise LayerNotFound(layer_id) from None
        except PermissionError:
            return Hold(-1)
        if self._metadata.find(record.chain_id) is None:  # removed while we waited for the lock
            held.close()
            raise LayerNotFound(layer_id)
        return held

    def status(self) -> list[tuple[str, str]]:
        """Facts about the store."""
        return [
            ("Root", str(self.path)),
            ("Driver Name", self.driver_name),
            ("Backing Filesystem", filesystem_type(self.path)),
        ]

    def close(self) -> None:
        """Close the database."""
        self._database.close()
