"""What layers, images and containers have in common: an id, names, metadata, flags and big data.

The records are what callers get; they are values, and do not follow the store.  The same records describe
what additional read-only stores hold; `read_only` tells them apart (containers/storage: types Layer, Image,
Container).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from sqlite3 import Row
from typing import Generic, TypeVar

from fusestore.digest import DiffID, Digest
from fusestore.errors import BigDataNotFound, DuplicateID, DuplicateName, InvalidText, ItemNotFound
from fusestore.store.bigdata import BigData, Blobs, item_name
from fusestore.store.database import Database

_ID_LIMIT = 200  # bytes of a file name made of an id; 255 is the kernel's limit, and some have a prefix
_LAST = chr(0x10FFFF)  # behind every letter that an id can have


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What all kinds have.  `created` is in s since 1970; `flags` are JSON values.

    `read_only` is True for what an additional store has.
    """

    id: str
    names: tuple[str, ...] = ()
    metadata: str = ""
    created: int = 0
    flags: Mapping[str, object] = field(default_factory=dict)
    big_data: Mapping[str, BigData] = field(default_factory=dict)
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerItem(Item):
    """A layer.  `parent` is an id, "" for a base layer; `size` is the bytes of its own files.

    The digests and sizes are those of the tar that was applied, as it came and uncompressed; None where none
    was, or where they are not known.  `compression` is ``gzip``, ``zstd``, ... or "" for none.  `uids` and
    `gids` are the owners that the tar has, None where not known.
    """

    parent: str = ""
    mount_label: str = ""
    size: int = 0
    uncompressed_digest: DiffID | None = None
    uncompressed_size: int | None = None
    compressed_digest: Digest | None = None
    compressed_size: int | None = None
    compression: str = ""
    uids: tuple[int, ...] | None = None
    gids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Item):
    """An image.  `size` is bytes of files in all layers; `top_layer` is an id, None for an image without.

    `digest` is its manifest's, None where it has none; `digests` are those of all its manifests, that first.
    `names_history` holds every name it was given, newest first.
    """

    top_layer: str | None = None
    digest: Digest | None = None
    size: int = 0
    names_history: tuple[str, ...] = ()

    @property
    def digests(self) -> tuple[Digest, ...]:
        """Of every manifest: the image's own digest, then of big data whose key begins with ``manifest``."""
        told = [blob.digest for key, blob in self.big_data.items() if key.startswith("manifest")]
        return tuple(dict.fromkeys(digest for digest in (self.digest, *told) if digest))


@dataclass(frozen=True, slots=True, kw_only=True)
class Container(Item):
    """A container: a layer that takes changes, on top of an image's ("" where it has none)."""

    image: str = ""
    layer: str = ""


T = TypeVar("T", bound=Item)


class Items(ABC, Generic[T]):
    """The items of one kind: its table, its names, its big data (containers/storage: ``layerStore``, ...).

    `table` has the columns id, metadata and flags.  Methods raise ItemNotFound of the kind's own class.
    """

    kind: str
    table: str
    order = "rowid"
    not_found: Callable[[str], ItemNotFound]

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs

    # -- finding --------------------------------------------------------------------------------------

    def all(self) -> list[T]:
        """Every item, oldest first."""
        return self._records("1")

    def get(self, item: str) -> T:
        """The item with exactly this id."""
        found = self._records("id = ?", item)
        if not found:
            raise self.not_found(item)
        return found[0]

    def exact(self, name: str) -> list[str]:
        """The id of what has exactly this id or name, if anything has."""
        with suppress(InvalidText):
            rows = self._database.select(f"SELECT id FROM {self.table} WHERE id = ?", name)
            rows = rows or self._database.select(
                "SELECT item FROM names WHERE kind = ? AND name = ?", self.kind, name
            )
            return [row[0] for row in rows]
        return []

    def by_prefix(self, prefix: str) -> list[str]:
        """At most two ids that begin with `prefix`; none for ""."""
        query = f"SELECT id FROM {self.table} WHERE id >= ?1 AND id < ?2 LIMIT 2"
        with suppress(InvalidText):
            return [row[0] for row in self._database.select(query, prefix, prefix + _LAST) if prefix]
        return []

    def exists(self, item: str) -> bool:
        """True for an id."""
        return bool(self._database.select(f"SELECT 1 FROM {self.table} WHERE id = ?", item))

    def _records(self, where: str, *values: object) -> list[T]:
        """The items that `where` selects, in the kind's order."""
        with self._database.snapshot():
            rows = self._database.select(
                f"SELECT * FROM {self.table} WHERE {where} ORDER BY {self.order}", *values
            )
            those = f"SELECT id FROM {self.table} WHERE {where}"
            names: dict[str, list[str]] = {}
            those_names = f"FROM names WHERE kind = '{self.kind}' AND item IN ({those})"
            query = f"SELECT item, name {those_names} ORDER BY item, position, name"
            for item, name in self._database.select(query, *values):
                names.setdefault(item, []).append(name)
            blobs = self._blobs.described(self.kind, those, values)
        return [self._record(row, tuple(names.get(row["id"], ())), blobs.get(row["id"], {})) for row in rows]

    @abstractmethod
    def _record(self, row: Row, names: tuple[str, ...], blobs: Mapping[str, BigData]) -> T:
        """A row of the table as a record."""

    # -- names ----------------------------------------------------------------------------------------

    def refuse_taken(self, item: str, names: Iterable[str]) -> None:
        """Inside a transaction: raises DuplicateID, DuplicateName, ValueError for what nobody can have."""
        if not item or len(item_name(item)) > _ID_LIMIT:
            raise ValueError(
                f"{item[:20]!r}: not an id: it must be of 1 to about {_ID_LIMIT * 3 // 4} letters"
            )
        if self.exists(item):
            raise DuplicateID(self.kind, item)
        for name in names:
            holder = self._database.select(
                "SELECT item FROM names WHERE kind = ? AND name = ?", self.kind, name
            )
            if holder:
                raise DuplicateName(self.kind, name, holder[0]["item"])

    def name(self, item: str, names: Iterable[str]) -> None:
        """Inside a transaction: give an item just these names, in this order, whoever has them now."""
        self._database.select("DELETE FROM names WHERE kind = ? AND item = ?", self.kind, item)
        for position, name in enumerate(dict.fromkeys(names)):
            values = (self.kind, name, item, position)
            self._database.select("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", *values)

    def update_names(self, item: str, change: Callable[[tuple[str, ...]], Iterable[str]]) -> None:
        """Give an item what `change` makes of the names it has (containers/storage: ``updateNames``)."""
        with self._database.transaction():
            self.name(item, change(self.get(item).names))

    # -- metadata, flags, big data --------------------------------------------------------------------

    def set_metadata(self, item: str, metadata: str) -> None:
        """Replace the text that the store keeps with an item and does not read."""
        self._update(item, "metadata", metadata)

    def set_flags(self, item: str, change: Callable[[dict[str, object]], object]) -> None:
        """Have `change` edit the flags of an item."""
        with self._database.transaction():
            flags = dict(self.get(item).flags)
            change(flags)
            self._update(item, "flags", json.dumps(flags))

    def _update(self, item: str, column: str, value: object) -> None:
        with self._database.transaction() as execute:
            if not execute(f"UPDATE {self.table} SET {column} = ? WHERE id = ?", (value, item)).rowcount:
                raise self.not_found(item)

    def big_data(self, item: str, key: str) -> bytes:
        """A blob of an item, verified.  Raises BigDataNotFound, CorruptStore."""
        try:
            return self._blobs.get(self.kind, item, key)
        except BigDataNotFound:
            self.get(item)
            raise

    def set_big_data(self, item: str, key: str, data: bytes) -> None:
        """Keep a blob with an item, durably, in the place of what it has under this key.

        Raises InvalidBigDataName.
        """
        with self._blobs.setting(), self._database.transaction():
            self.get(item)
            self._blobs.set(self.kind, item, key, data)

    def delete(self, item: str) -> None:
        """Inside a transaction: unname an item.  Its names and big data go with it."""
        self._database.select(f"DELETE FROM {self.table} WHERE id = ?", item)


class Listed(Generic[T]):
    """Items of an additional store, to be found as our own are."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items = {item.id: item for item in items}

    def get(self, item: str) -> T:
        """The item with exactly this id.  Raises KeyError."""
        return self._items[item]

    def exact(self, name: str) -> list[str]:
        """The id of what has exactly this id or name, if anything has."""
        return [name] if name in self._items else [i.id for i in self._items.values() if name in i.names]

    def by_prefix(self, prefix: str) -> list[str]:
        """Ids that begin with `prefix`."""
        return (
            [item for item in self._items if item.startswith((prefix, "sha256:" + prefix))] if prefix else []
        )
