"""What a layer store remembers of its layers: the protocols it asks for, and them over the database.

The tables have other layers too, which containers/storage's calls make and name by other ids
(`fusestore.store.layeritems`); they are rows here like any, but not among the layers of this store.

A row says what a layer is and where the driver keeps it.  Who still needs a layer is never stored but asked:
child layers, RW layers and images are rows that name it, handles and mounts are locks on its directory.

moby's layer store keeps the same in files (``layerdb/``, seeds of `MetadataStore` and
`MetadataTransaction`).  Its getters and setters of single values are columns of a record here, because a
record is written as one; its tar-split reader and writer are files beside the layer
(`fusestore.store.tarsplit`), because they appear and go with it.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from fusestore.digest import CacheID, ChainID, DiffID
from fusestore.driver.api import Owners
from fusestore.errors import (
    LayerHasChildren,
    LayerInUse,
    LayerNotFound,
    LayerUsedByContainer,
    LayerUsedByImage,
    MountNameConflict,
    NotSupported,
    RWLayerNotFound,
)
from fusestore.store.database import Database


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer.  `size` counts its own files in bytes; `created` is in s since 1970.

    `chain_id` is another id for a layer that is not registered, and `diff_id` None where no tar was applied.
    `descriptor` is what it was downloaded as (OCI image-spec, descriptor.md), empty where it was not.
    `diff_size` is the tar's bytes, `owners` the uids and gids in it; None where not known.  `origin` is the
    additional store that a borrowed layer is in.
    """

    chain_id: ChainID
    diff_id: DiffID | None
    parent: ChainID | None
    cache_id: CacheID
    size: int
    reproducible: bool
    created: int = field(default_factory=_now)
    descriptor: Mapping[str, object] = field(default_factory=dict)
    diff_size: int | None = None
    owners: Owners | None = None
    label: str = ""
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class RWRecord:
    """An RW layer.  `init_id` is the driver's layer between it and the parent's, if there is one.

    `label` is the SELinux label that its mounts are to have; `created` is in s since 1970.
    """

    name: str
    mount_id: CacheID
    init_id: CacheID | None
    parent: ChainID | None
    label: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    created: int = field(default_factory=_now)


class MetadataTransaction(Protocol):
    """Changes that take effect together when `MetadataStore.start_transaction`'s context ends well."""

    def add(self, record: LayerRecord) -> None:
        """Name a layer.  Raises LayerNotFound when its parent is not there."""

    def remove(self, chain_id: ChainID) -> None:
        """Unname a layer that nothing needs."""

    def add_mount(self, record: RWRecord) -> None:
        """Name an RW layer.  Raises MountNameConflict, LayerNotFound."""

    def remove_mount(self, name: str) -> None:
        """Unname an RW layer."""

    def is_needed(self, chain_id: ChainID) -> bool:
        """True while a child layer, an RW layer or an image is on the layer, or it is a container's."""

    def refuse_needed(self, chain_id: ChainID) -> None:
        """Raises LayerInUse, of the class that says why, for a layer that is needed."""

    def settle(self) -> None:
        """See to it that no transaction that failed can come back; for whoever deletes what it named."""


class MetadataStore(Protocol):
    """The layers and RW layers of one store (moby: ``layer.MetadataStore``)."""

    def claim(self, driver: str) -> None:
        """Say which driver keeps the layers; one store has one.  Raises NotSupported for another."""

    def refuse_read_only(self) -> None:
        """Raises StoreIsReadOnly for a store that is not to be written."""

    def start_transaction(self) -> AbstractContextManager[MetadataTransaction]:
        """Begin to change things, alone.  An exception undoes all of it."""

    def get(self, chain_id: ChainID) -> LayerRecord:
        """A layer.  Raises LayerNotFound."""

    def find(self, chain_id: ChainID) -> LayerRecord | None:
        """A layer, or None."""

    def by_prefix(self, prefix: str) -> list[ChainID]:
        """At most two layers whose chain ID begins with `prefix`."""

    def all(self) -> list[LayerRecord]:
        """Every layer, oldest first."""

    def chain(self, chain_id: ChainID | None) -> list[LayerRecord]:
        """The layer and all below it, topmost first; nothing for None.  Raises LayerNotFound."""

    def get_mount(self, name: str) -> RWRecord:
        """An RW layer.  Raises RWLayerNotFound."""

    def mounts(self) -> list[RWRecord]:
        """Every RW layer, by name."""

    def owned(self) -> set[CacheID]:
        """Every layer of the driver that something here names."""


class LayerMetadata:
    """`MetadataStore` and `MetadataTransaction` over the tables ``layers`` and ``rw_layers``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(self, driver: str) -> None:
        """Say which driver keeps the layers; one store has one.  Raises NotSupported for another."""
        query = "SELECT value FROM settings WHERE key = 'driver'"
        rows = self._database.select(query)
        if not rows:
            self._database.select("INSERT OR IGNORE INTO settings VALUES ('driver', ?)", driver)
            rows = self._database.select(query)
        if rows[0]["value"] != driver:
            raise NotSupported(f"this store is kept by the driver {rows[0]['value']}, not {driver}")

    def refuse_read_only(self) -> None:
        """Raises StoreIsReadOnly for a store that is not to be written."""
        self._database.refuse_read_only()

    @contextmanager
    def start_transaction(self) -> Iterator[LayerMetadata]:
        """Changes made until the context ends take effect together, or not at all."""
        with self._database.transaction():
            yield self

    # -- registered layers ----------------------------------------------------------------------------

    def get(self, chain_id: ChainID) -> LayerRecord:
        """A layer.  Raises LayerNotFound."""
        rows = self._database.select("SELECT * FROM layers WHERE id = ?", chain_id)
        if not rows:
            raise LayerNotFound(chain_id)
        return _record(rows[0])

    def find(self, chain_id: ChainID) -> LayerRecord | None:
        """A layer, or None."""
        try:
            return self.get(chain_id)
        except LayerNotFound:
            return None

    def by_prefix(self, prefix: str) -> list[ChainID]:
        """At most two layers whose chain ID begins with `prefix`."""
        query = "SELECT id FROM layers WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2"
        return [ChainID(chain_id) for (chain_id,) in self._database.select(query, prefix)]

    def all(self) -> list[LayerRecord]:
        """Every registered layer, oldest first."""
        rows = self._database.select("SELECT * FROM layers WHERE id GLOB 'sha256:*' ORDER BY created, id")
        return [_record(row) for row in rows]

    def chain(self, chain_id: ChainID | None) -> list[LayerRecord]:
        """The layer and all below it, topmost first; nothing for None.  Raises LayerNotFound."""
        found: list[LayerRecord] = []
        while chain_id is not None:
            record = self.get(chain_id)
            found.append(record)
            chain_id = record.parent
        return found

    def add(self, record: LayerRecord) -> None:
        """Insert a row; inside a transaction.  Raises LayerNotFound for a missing parent."""
        columns = _columns(record)
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO layers ({', '.join(columns)}) VALUES ({marks})"
        try:
            self._database.select(statement, *columns.values())
        except sqlite3.IntegrityError:
            raise LayerNotFound(str(record.parent)) from None

    def replace(self, record: LayerRecord) -> None:
        """Change a layer's row; inside a transaction."""
        columns = _columns(record)
        changes = ", ".join(f"{column} = ?" for column in columns)
        statement = f"UPDATE layers SET {changes} WHERE id = ?"
        self._database.select(statement, *columns.values(), record.chain_id)

    def remove(self, chain_id: ChainID) -> None:
        """Delete a row; inside a transaction."""
        self._database.select("DELETE FROM layers WHERE id = ?", chain_id)

    def is_needed(self, chain_id: ChainID) -> bool:
        """True while a child layer, an RW layer, an image or a container names it."""
        return bool(self._database.select(f"SELECT 1 WHERE {_NEEDED}", chain_id))

    def refuse_needed(self, chain_id: ChainID) -> None:
        """Raises LayerInUse, of the class that says why, for a layer that is needed."""
        for query, error, reason in _NEEDS:
            for (name,) in self._database.select(f"{query} LIMIT 1", chain_id):
                raise error(chain_id, reason.format(name))

    def settle(self) -> None:
        """Inside a transaction: see `Database.settle`."""
        self._database.settle()

    # -- RW layers ------------------------------------------------------------------------------------

    def get_mount(self, name: str) -> RWRecord:
        """An RW layer.  Raises RWLayerNotFound."""
        rows = self._database.select("SELECT * FROM rw_layers WHERE name = ?", name)
        if not rows:
            raise RWLayerNotFound(name)
        return _rw_record(tuple(rows[0]))

    def mounts(self) -> list[RWRecord]:
        """Every RW layer, by name."""
        rows = self._database.select("SELECT * FROM rw_layers ORDER BY name")
        return [_rw_record(tuple(row)) for row in rows]

    def add_mount(self, record: RWRecord) -> None:
        """Insert a row; inside a transaction.  Raises MountNameConflict, LayerNotFound."""
        try:
            self._database.select(
                "INSERT INTO rw_layers VALUES (?, ?, ?, ?, ?, ?, ?)",
                record.name,
                record.mount_id,
                record.init_id,
                record.parent,
                record.label,
                json.dumps(dict(record.options)),
                record.created,
            )
        except sqlite3.IntegrityError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
                raise LayerNotFound(str(record.parent)) from None
            raise MountNameConflict(record.name) from None

    def remove_mount(self, name: str) -> None:
        """Delete a row; inside a transaction."""
        self._database.select("DELETE FROM rw_layers WHERE name = ?", name)

    def owned(self) -> set[CacheID]:
        """Every layer of the driver that a row names."""
        query = """SELECT cache_id FROM layers UNION SELECT mount_id FROM rw_layers
                   UNION SELECT init_id FROM rw_layers WHERE init_id IS NOT NULL
                   UNION SELECT cache_id FROM graph_images"""
        return {CacheID(cache_id) for (cache_id,) in self._database.select(query)}


#: Who needs a layer: which rows, what to raise, and its words.
_NEEDS = (
    ("SELECT id FROM layers WHERE parent = ?1", LayerHasChildren, "the layer {} is on it"),
    ("SELECT id FROM images WHERE top_layer = ?1", LayerUsedByImage, "the image {} is on it"),
    ("SELECT id FROM containers WHERE layer = ?1", LayerUsedByContainer, "it is the container {}'s"),
    ("SELECT name FROM rw_layers WHERE parent = ?1", LayerInUse, "the RW layer {} is on it"),
)
_NEEDED = " OR ".join(f"EXISTS ({query})" for query, _, _ in _NEEDS)


def _columns(record: LayerRecord) -> dict[str, object]:
    return {
        "id": record.chain_id,
        "parent": record.parent,
        "cache_id": record.cache_id,
        "size": record.size,
        "reproducible": int(record.reproducible),
        "created": record.created,
        "diff_id": record.diff_id,
        "diff_size": record.diff_size,
        "descriptor": json.dumps(dict(record.descriptor)) if record.descriptor else None,
        "owners": json.dumps(record.owners) if record.owners is not None else None,
        "label": record.label,
        "origin": record.origin,
    }


def _record(row: sqlite3.Row) -> LayerRecord:
    return LayerRecord(
        row["id"],
        row["diff_id"],
        row["parent"],
        row["cache_id"],
        row["size"],
        bool(row["reproducible"]),
        row["created"],
        json.loads(row["descriptor"]) if row["descriptor"] else {},
        row["diff_size"],
        _owners(row["owners"]),
        row["label"],
        row["origin"],
    )


def _owners(text: str | None) -> Owners | None:
    if text is None:
        return None
    uids, gids = json.loads(text)
    return tuple(uids), tuple(gids)


def _rw_record(row: tuple[Any, ...]) -> RWRecord:
    name, mount_id, init_id, parent, label, options, created = row
    return RWRecord(name, mount_id, init_id, parent, label, json.loads(options), created)
