"""What a layer store remembers of its layers: the protocols it asks for, and them over the database.

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
from fusestore.errors import LayerNotFound, MountNameConflict, NotSupported, RWLayerNotFound
from fusestore.store.database import Database


def _now() -> int:
    return int(time.time())


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A registered layer.  `size` counts its own files in bytes; `created` is in s since 1970.

    `descriptor` is what it was downloaded as (OCI image-spec, descriptor.md), empty where it was not.
    """

    chain_id: ChainID
    diff_id: DiffID
    parent: ChainID | None
    cache_id: CacheID
    size: int
    reproducible: bool
    created: int = field(default_factory=_now)
    descriptor: Mapping[str, object] = field(default_factory=dict)


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
        """True while a child layer, an RW layer or an image is on the layer."""

    def settle(self) -> None:
        """See to it that no transaction that failed can come back; for whoever deletes what it named."""


class MetadataStore(Protocol):
    """The layers and RW layers of one store (moby: ``layer.MetadataStore``)."""

    def claim(self, driver: str) -> None:
        """Say which driver keeps the layers; one store has one.  Raises NotSupported for another."""

    def start_transaction(self) -> AbstractContextManager[MetadataTransaction]:
        """Begin to change things, alone.  An exception undoes all of it."""

    def get(self, chain_id: ChainID) -> LayerRecord:
        """A layer.  Raises LayerNotFound."""

    def find(self, chain_id: ChainID) -> LayerRecord | None:
        """A layer, or None."""

    def by_prefix(self, prefix: str) -> list[ChainID]:
        """The layers whose chain ID begins with `prefix`."""

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

    @contextmanager
    def start_transaction(self) -> Iterator[LayerMetadata]:
        """Changes made until the context ends take effect together, or not at all."""
        with self._database.transaction():
            yield self

    # -- registered layers ----------------------------------------------------------------------------

    def get(self, chain_id: ChainID) -> LayerRecord:
        """A layer.  Raises LayerNotFound."""
        rows = self._database.select("SELECT * FROM layers WHERE chain_id = ?", chain_id)
        if not rows:
            raise LayerNotFound(chain_id)
        return _record(tuple(rows[0]))

    def find(self, chain_id: ChainID) -> LayerRecord | None:
        """A layer, or None."""
        try:
            return self.get(chain_id)
        except LayerNotFound:
            return None

    def by_prefix(self, prefix: str) -> list[ChainID]:
        """The layers whose chain ID begins with `prefix`."""
        query = "SELECT chain_id FROM layers WHERE chain_id >= ?1 AND chain_id < ?1 || 'g'"
        return [ChainID(chain_id) for (chain_id,) in self._database.select(query, prefix)]

    def all(self) -> list[LayerRecord]:
        """Every layer, oldest first."""
        rows = self._database.select("SELECT * FROM layers ORDER BY created, chain_id")
        return [_record(tuple(row)) for row in rows]

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
        try:
            self._database.select(
                "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                record.chain_id,
                record.diff_id,
                record.parent,
                record.cache_id,
                record.size,
                int(record.reproducible),
                record.created,
                json.dumps(dict(record.descriptor)) if record.descriptor else None,
            )
        except sqlite3.IntegrityError:
            raise LayerNotFound(str(record.parent)) from None

    def remove(self, chain_id: ChainID) -> None:
        """Delete a row; inside a transaction."""
        self._database.select("DELETE FROM layers WHERE chain_id = ?", chain_id)

    def is_needed(self, chain_id: ChainID) -> bool:
        """True while a child layer, an RW layer or an image names it."""
        query = """SELECT EXISTS (SELECT 1 FROM layers WHERE parent = ?1)
                       OR EXISTS (SELECT 1 FROM rw_layers WHERE parent = ?1)
                       OR EXISTS (SELECT 1 FROM images WHERE top_layer = ?1)"""
        return bool(self._database.select(query, chain_id)[0][0])

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


def _record(row: tuple[Any, ...]) -> LayerRecord:
    chain_id, diff_id, parent, cache_id, size, reproducible, created, descriptor = row
    told = json.loads(descriptor) if descriptor else {}
    return LayerRecord(chain_id, diff_id, parent, cache_id, size, bool(reproducible), created, told)


def _rw_record(row: tuple[Any, ...]) -> RWRecord:
    name, mount_id, init_id, parent, label, options, created = row
    return RWRecord(name, mount_id, init_id, parent, label, json.loads(options), created)
