"""Layer rows of the database.

A row says what a layer is and where the driver keeps it.  Who still needs a layer is never stored but asked:
child layers and images are rows that name it, handles and mounts are locks on its directory.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from fusestore.digest import CacheID, ChainID, DiffID
from fusestore.errors import LayerNotFound, NotSupported
from fusestore.store.database import Database


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One row of ``layers``.  `size` counts its own files in bytes; `created` is in s since 1970."""

    chain_id: ChainID
    diff_id: DiffID
    parent: ChainID | None
    cache_id: CacheID
    size: int
    reproducible: bool
    created: int


class LayerMetadata:
    """The ``layers`` table."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, driver: str) -> None:
        """Say which driver keeps the layers; one store has one.  Raises NotSupported for another."""
        query = "SELECT value FROM settings WHERE key = 'driver'"
        rows = self.database.select(query)
        if not rows:
            self.database.select("INSERT OR IGNORE INTO settings VALUES ('driver', ?)", driver)
            rows = self.database.select(query)
        if rows[0]["value"] != driver:
            raise NotSupported(f"this store is kept by the driver {rows[0]['value']}, not {driver}")

    def get(self, chain_id: ChainID) -> LayerRecord:
        """The row of a layer.  Raises LayerNotFound."""
        rows = self.database.select("SELECT * FROM layers WHERE chain_id = ?", chain_id)
        if not rows:
            raise LayerNotFound(chain_id)
        return _record(tuple(rows[0]))

    def find(self, chain_id: ChainID) -> LayerRecord | None:
        """The row of a layer, or None."""
        try:
            return self.get(chain_id)
        except LayerNotFound:
            return None

    def all(self) -> list[LayerRecord]:
        """Every row, oldest first."""
        rows = self.database.select("SELECT * FROM layers ORDER BY created, chain_id")
        return [_record(tuple(row)) for row in rows]

    def chain(self, chain_id: ChainID | None) -> list[LayerRecord]:
        """The layer and all below it, topmost first.  Raises LayerNotFound."""
        found: list[LayerRecord] = []
        while chain_id is not None:
            record = self.get(chain_id)
            found.append(record)
            chain_id = record.parent
        return found

    def add(self, record: LayerRecord) -> None:
        """Insert a row; inside a transaction.  Raises sqlite3.IntegrityError for a missing parent."""
        self.database.select(
            "INSERT INTO layers VALUES (?, ?, ?, ?, ?, ?, ?)",
            record.chain_id,
            record.diff_id,
            record.parent,
            record.cache_id,
            record.size,
            int(record.reproducible),
            record.created,
        )

    def remove(self, chain_id: ChainID) -> None:
        """Delete a row; inside a transaction."""
        self.database.select("DELETE FROM layers WHERE chain_id = ?", chain_id)

    def is_needed(self, chain_id: ChainID) -> bool:
        """True while a child layer or an image names it."""
        query = """SELECT EXISTS (SELECT 1 FROM layers WHERE parent = ?1)
                       OR EXISTS (SELECT 1 FROM images WHERE top_layer = ?1)"""
        return bool(self.database.select(query, chain_id)[0][0])


def new_record(
    chain_id: ChainID,
    diff_id: DiffID,
    parent: ChainID | None,
    cache_id: CacheID,
    size: int,
    reproducible: bool,
) -> LayerRecord:
    """A row for a layer made now."""
    return LayerRecord(chain_id, diff_id, parent, cache_id, size, reproducible, int(time.time()))


def _record(row: tuple[Any, ...]) -> LayerRecord:
    chain_id, diff_id, parent, cache_id, size, reproducible, created = row
    return LayerRecord(chain_id, diff_id, parent, cache_id, size, bool(reproducible), created)
