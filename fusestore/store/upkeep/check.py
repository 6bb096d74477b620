"""Check: is everything there that the store says it has, as it was when it came, and nothing else?

(containers/storage: ``Store.Check``.)  Nothing is changed.  Others may work with the store meanwhile: rows
are of one moment (`rows`), a layer is held while it is read, and what looks wrong in a layer
or a file counts only if its row is still the same afterwards.  A layer that is held cannot be deleted;
whoever tries is told that another process works with it.

A problem of a layer is one of all layers above it, of the images and of the containers on them.  What nobody
needs any more is told only with `max_age`: a layer that was registered and has no image is no mistake.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import Row
from typing import NamedTuple

from fusestore import digest
from fusestore.digest import CacheID, ChainID
from fusestore.driver.home import short_name
from fusestore.errors import CorruptStore, InvalidLayer, LayerNotFound
from fusestore.store.database import Database
from fusestore.store.images import MANIFEST, configuration_key
from fusestore.store.metadata import LayerMetadata, LayerRecord
from fusestore.store.storage import Store
from fusestore.store.tarsplit import RECORD
from fusestore.store.upkeep import rows as row_checks
from fusestore.store.upkeep.additions import additional_problems
from fusestore.store.upkeep.layertree import differences, verify
from fusestore.store.upkeep.leftovers import leftovers
from fusestore.store.upkeep.report import (
    INCORRECT_DIGEST,
    MODIFIED,
    WRONG_DIGEST,
    Kind,
    Problem,
    Remedy,
    Report,
)
from fusestore.store.upkeep.rows import KINDS, Rows

Progress = Callable[[str, int], None]

#: Errors that say nothing of what was read.
_NOT_THE_LAYER = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def check(
    store: Store,
    *,
    quick: bool = False,
    max_age: float | None = None,
    progress: Progress = lambda layer, size: None,
) -> Report:
    """Look for problems; `quick` does not read what is in layers.

    `max_age`: layers that no image or container needs are problems when they are older, in s; None: never.
    `progress` is told of each layer before it is read: its id, and bytes.  Raises OSError.
    """
    with closing(Database(store.graph_root / "store.db", read_only=store.read_only)) as database:
        try:
            return Report(tuple(_Check(store, database, progress, quick=quick).run(max_age)))
        except CorruptStore as exc:
            return Report((Problem(Kind.DATABASE, "store.db", exc.reason),))


class Place(NamedTuple):
    """A layer of the driver that a row names, and those below it, topmost first."""

    kind: Kind
    item: str
    cache_id: CacheID
    below: Sequence[CacheID]


class _Check:
    def __init__(self, store: Store, database: Database, progress: Progress, *, quick: bool) -> None:
        self._store, self._database, self._progress, self._quick = store, database, progress, quick
        self._driver, self._metadata = store.graph_driver, LayerMetadata(database)
        self._damaged: dict[str, Problem] = {}  # layers, with what is wrong with them or below

    def run(self, max_age: float | None) -> Iterator[Problem]:
        for what in self._database.problems():
            yield Problem(Kind.DATABASE, "store.db", what)
        rows = Rows.read(self._database)
        elsewhere = [image.id for store in self._store.additional_stores for image in store.images()]
        found = [*row_checks.problems(rows, elsewhere), *self._places(rows), *self._blobs(rows)]
        yield from found
        yield from self._layers(rows, found)
        yield from self._above(rows, found)
        if max_age is not None:
            unneeded = row_checks.unreferenced(rows, time.time() - max_age)
            yield from (problem for problem in unneeded if problem.item not in self._damaged)
        yield from leftovers(self._store, self._database)
        for store in self._store.additional_stores:
            yield from additional_problems(store, self._progress, quick=self._quick)

    # -- what the driver has --------------------------------------------------------------------------

    def _places(self, rows: Rows) -> Iterator[Problem]:
        for place in _named_places(rows):
            try:
                held = self._driver.hold(place.cache_id)
            except FileNotFoundError:
                if self._is_named(place.cache_id):
                    yield self._missing(place)
                continue
            except PermissionError as exc:
                yield Problem(place.kind, place.item, f"it cannot be read: {exc}")
                continue
            with closing(held):
                found = list(self._place(place))
                if found and self._is_named(place.cache_id):
                    yield from found

    def _is_named(self, cache_id: CacheID) -> bool:
        return cache_id in self._metadata.owned()

    def _missing(self, place: Place) -> Problem:
        if self._driver.exists(place.cache_id):
            what, remedy = "its lock is missing", Remedy.RESTORE
        else:
            what, remedy = f"its directory {place.cache_id} is missing", Remedy.DELETE
        return Problem(place.kind, place.item, what, remedy, place.cache_id)

    def _place(self, place: Place) -> Iterator[Problem]:
        """What is wrong with the directory of a layer."""

        def problem(what: str, remedy: Remedy) -> Problem:
            return Problem(place.kind, place.item, what, remedy, place.cache_id)

        directory = self._driver.path / place.cache_id
        try:
            borrowed = self._driver.borrowed(place.cache_id)
        except CorruptStore as exc:
            yield problem(exc.reason, Remedy.NONE)
            return
        if borrowed is not None and not os.path.isdir(borrowed.path):
            yield problem(f"its files at {borrowed.path}, in another store, are gone", Remedy.NONE)
        elif borrowed is None and ((directory / "diff").is_symlink() or not (directory / "diff").is_dir()):
            yield problem(f"its files in {place.cache_id}/diff are missing", Remedy.DELETE)
        for path, content in furniture(place.cache_id, place.below, stacked=self._driver.stacked).items():
            if _content(self._driver.path / path) != content:
                yield problem(f"{path} is missing or wrong", Remedy.RESTORE)

    # -- what is in layers ----------------------------------------------------------------------------

    def _layers(self, rows: Rows, found: Sequence[Problem]) -> Iterator[Problem]:
        """What is in layers, base up; not read above a damaged one, whose fault it may be."""
        damaged = {p.item: p for p in found if p.kind is Kind.LAYER and p.is_damage}
        for row in rows.base_up():
            item, below = row["id"], self._damaged.get(row["parent"])
            if item in damaged:
                self._damaged[item] = damaged[item]
            elif below is not None:
                self._damaged[item] = below
                yield _inherited(Kind.LAYER, item, below, row["cache_id"])
            elif row["origin"] is None:
                for problem in self._layer(row):
                    yield problem
                    if problem.is_damage:
                        self._damaged[item] = problem

    def _layer(self, row: Row) -> Iterator[Problem]:
        """What is wrong in a layer that was there just now, unless somebody deletes or changes it."""
        try:
            record = self._metadata.get(ChainID(row["id"]))
            held = self._driver.hold(record.cache_id)
        except (LayerNotFound, FileNotFoundError, PermissionError):  # the last two have been told
            return
        with closing(held):
            found = self._record(record)
            if not self._quick:
                found = found or self._content(record) or self._size(record)
            if found and self._metadata.find(record.chain_id) == record:
                what, remedy = found
                yield Problem(Kind.LAYER, record.chain_id, what, remedy, record.cache_id)

    def _record(self, record: LayerRecord) -> tuple[str, Remedy] | None:
        if record.reproducible and not (self._driver.notes(record.cache_id) / RECORD).is_file():
            return "its tar-split record is missing", Remedy.DELETE
        return None

    def _content(self, record: LayerRecord) -> tuple[str, Remedy] | None:
        if not record.reproducible:
            return None
        self._progress(record.chain_id, record.diff_size or record.size)
        try:
            found = self._differences(record)
        except (CorruptStore, InvalidLayer) as exc:
            reason = exc.reason if isinstance(exc, CorruptStore) else WRONG_DIGEST
            return INCORRECT_DIGEST if reason.startswith(WRONG_DIGEST) else reason, Remedy.DELETE
        except OSError as exc:
            if exc.errno in _NOT_THE_LAYER:
                raise
            return f"it cannot be read: {exc.strerror}", Remedy.NONE
        return (", ".join([*found, MODIFIED]), Remedy.DELETE) if found else None

    def _differences(self, record: LayerRecord) -> list[str]:
        """How a layer differs from its tar; where we may not write, only whether it has its digest."""
        if self._store.read_only:
            verify(self._driver, record)
            return []
        parent = self._metadata.get(record.parent).cache_id if record.parent else None
        return differences(self._driver, record, parent)

    def _size(self, record: LayerRecord) -> tuple[str, Remedy] | None:
        """Of a layer that never took changes, and is kept apart from those below, the size is known."""
        if not self._driver.stacked or record.diff_id is None or self._took_changes(record.cache_id):
            return None
        size = self._driver.usage(record.cache_id).size
        if size == record.size:
            return None
        what = f"its size is written down as {record.size}, that of its files is {size}"
        return what, Remedy.RESIZE if record.reproducible else Remedy.NONE

    def _took_changes(self, cache_id: CacheID) -> bool:
        return (self._driver.path / cache_id / "work").exists()

    def _above(self, rows: Rows, found: Sequence[Problem]) -> Iterator[Problem]:
        """What is on damaged layers, and containers of damaged images."""
        images = {p.item: p for p in found if p.kind is Kind.IMAGE and p.is_damage}
        for item, row in rows.images.items():
            if row["top_layer"] in self._damaged:
                images[item] = _inherited(Kind.IMAGE, item, self._damaged[row["top_layer"]])
                yield images[item]
        for item, row in rows.containers.items():
            below = self._damaged.get(row["layer"]) or images.get(row["image"])
            if below is not None:
                yield _inherited(Kind.CONTAINER, item, below)
        for item, row in rows.rw_layers.items():
            if row["parent"] in self._damaged:
                yield _inherited(Kind.RW_LAYER, item, self._damaged[row["parent"]], row["mount_id"])

    # -- big data -------------------------------------------------------------------------------------

    def _blobs(self, rows: Rows) -> Iterator[Problem]:
        documents: dict[str, dict[str, bytes]] = {}  # of images: what they are made of
        for row in rows.big_data:
            if row["kind"] not in KINDS or row["item"] not in rows.table(KINDS[row["kind"]]):
                continue
            found = self._blob(row)
            if found is not None:
                if self._is_current(row):
                    yield found
            elif row["kind"] == "image" and row["key"] in (MANIFEST, configuration_key(row["item"])):
                with suppress(FileNotFoundError):  # it was deleted just now
                    data = self._path(row).read_bytes()
                    if digest.of_bytes(data) == row["digest"]:
                        documents.setdefault(row["item"], {})[row["key"]] = data
        for item, blobs in documents.items():
            yield from _documents(rows, rows.images[item], blobs)

    def _path(self, row: Row) -> Path:
        return Path(self._store.graph_root, "big", row["file"])

    def _is_current(self, row: Row) -> bool:
        query = "SELECT * FROM big_data WHERE kind = ? AND item = ? AND key = ?"
        return [tuple(r) for r in self._database.select(query, *row[:3])] == [tuple(row)]

    def _blob(self, row: Row) -> Problem | None:
        """What is wrong with the file of a data item."""
        kind, name = KINDS[row["kind"]], f"{row['kind']} data item {row['key']!r}"
        try:
            with self._path(row).open("rb") as file:
                told, size = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", file.tell()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return Problem(kind, row["item"], f"{name} is missing", Remedy.DELETE)
        except OSError as exc:
            return Problem(kind, row["item"], f"{name} cannot be read: {exc.strerror}")
        if told != row["digest"]:
            what = "size mismatch" if size != row["size"] else "checksum failure"
            return Problem(kind, row["item"], f"{name} was changed: {what}", Remedy.DELETE)
        if size != row["size"]:
            what = f"{name}: its size is written down as {row['size']}, it has {size} bytes"
            return Problem(kind, row["item"], what, Remedy.RESIZE)
        return None


def furniture(cache_id: CacheID, below: Sequence[CacheID], *, stacked: bool) -> dict[str, str]:
    """What a driver has for a layer besides its directory: paths below its home, and what they hold."""
    found = {f"l/{short_name(cache_id)}": f"../{cache_id}/diff"}
    if stacked and below:
        found[f"{cache_id}/lower"] = ":".join(f"l/{short_name(layer)}" for layer in below)
    return found


def _content(path: object) -> str | None:
    """What a link leads to, or a small file holds."""
    try:
        return os.readlink(str(path))
    except OSError:
        pass
    try:
        with open(str(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _named_places(rows: Rows) -> Iterator[Place]:
    """Every layer of the driver that a row names."""
    for item, row in rows.layers.items():
        yield Place(Kind.LAYER, item, row["cache_id"], rows.below(row))
    for item, row in rows.rw_layers.items():
        below = rows.chain(row["parent"])
        chain = [row["mount_id"], *filter(None, [row["init_id"]]), *(layer["cache_id"] for layer in below)]
        for position in range(2 if row["init_id"] else 1):
            yield Place(Kind.RW_LAYER, item, chain[position], chain[position + 1 :])
    for item, row in rows.graph_images.items():
        yield Place(Kind.GRAPH_IMAGE, item, row["cache_id"], rows.graph_below(row))


def place_of(rows: Rows, cache_id: CacheID) -> Place | None:
    """What names a layer of the driver, if anything does."""
    return next((place for place in _named_places(rows) if place.cache_id == cache_id), None)


def _inherited(kind: Kind, item: str, below: Problem, cache_id: str = "") -> Problem:
    """The problem of what is on something damaged."""
    return Problem(kind, item, str(below), below.remedy, cache_id)


def _documents(rows: Rows, image: Row, blobs: dict[str, bytes]) -> Iterator[Problem]:
    """What is wrong with the documents of an image that was loaded; one made by hand may have any data."""
    configuration, manifest = blobs.get(configuration_key(image["id"])), blobs.get(MANIFEST)
    if configuration is None:
        return
    chain = rows.chain(image["top_layer"])
    wanted = [layer["diff_id"] for layer in reversed(chain)]
    lent = any(layer["origin"] for layer in chain)  # some stores have several as one
    is_known = rows.is_whole(image["top_layer"]) and not lent
    try:
        diff_ids = json.loads(configuration)["rootfs"]["diff_ids"]
        json.loads(manifest or b"{}")
    except (ValueError, KeyError, TypeError):
        diff_ids = None
    faults = (
        ("its documents cannot be read", diff_ids is None),
        ("its id is not the digest of its configuration", _hex(configuration) != image["id"]),
        ("its layers are not those of its configuration", is_known and diff_ids not in (None, wanted)),
    )
    for what, is_so in faults:
        if is_so:
            yield Problem(Kind.IMAGE, image["id"], what, Remedy.DELETE)
    if manifest is not None and digest.of_bytes(manifest) != image["digest"]:
        what = "its digest is not that of its manifest"
        yield Problem(Kind.IMAGE, image["id"], what, Remedy.RESIZE)


def _hex(data: bytes) -> str:
    return digest.encoded(digest.of_bytes(data))
