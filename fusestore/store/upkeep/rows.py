"""All rows of a store as they were at one instant, and what can be wrong with them as rows.

They are of one moment, so a writer's rows are here whole or not at all, and nothing found in them can be a
writer's doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from sqlite3 import Row

from fusestore.digest import CacheID, ChainID, DiffID, chain_id
from fusestore.store.database import Database
from fusestore.store.upkeep.report import UNREFERENCED, Kind, Problem, Remedy

#: The kinds that have names and big data, by what the rows of those call them.
KINDS = {"layer": Kind.LAYER, "image": Kind.IMAGE, "container": Kind.CONTAINER}

_TABLES = ("layers", "rw_layers", "graph_images", "images", "containers")
_JSON = {
    Kind.LAYER: ("flags", "descriptor", "owners"),
    Kind.IMAGE: ("flags", "history"),
    Kind.CONTAINER: ("flags",),
}


@dataclass(frozen=True, slots=True)
class Rows:
    """The tables of a store, by id or name; `big_data` and `names` as they come."""

    layers: Mapping[str, Row]
    rw_layers: Mapping[str, Row]
    graph_images: Mapping[str, Row]
    images: Mapping[str, Row]
    containers: Mapping[str, Row]
    names: list[Row]
    big_data: list[Row]

    @classmethod
    def read(cls, database: Database) -> Rows:
        """As they are now.  Raises CorruptStore."""
        with database.snapshot():
            layers, rw_layers, graph_images, images, containers = (_keyed(database, t) for t in _TABLES)
            names, big_data = (database.select(f"SELECT * FROM {table}") for table in ("names", "big_data"))
        return cls(layers, rw_layers, graph_images, images, containers, names, big_data)

    def table(self, kind: Kind) -> Mapping[str, Row]:
        """The rows of layers, images or containers."""
        return {Kind.LAYER: self.layers, Kind.IMAGE: self.images, Kind.CONTAINER: self.containers}[kind]

    def chain(self, layer: str | None) -> list[Row]:
        """The layer and all below it, topmost first, as far as there are rows."""
        found: list[Row] = []
        while layer is not None and layer in self.layers and len(found) < len(self.layers):
            found.append(self.layers[layer])
            layer = found[-1]["parent"]
        return found

    def is_whole(self, layer: str | None) -> bool:
        """True when no layer of a chain is missing."""
        chain = self.chain(layer)
        return layer is None or (bool(chain) and chain[-1]["parent"] is None)

    def base_up(self) -> list[Row]:
        """Every layer, those below others first."""
        found: dict[str, Row] = {}
        for layer in self.layers:
            for row in reversed(self.chain(layer)):
                found.setdefault(row["id"], row)
        return list(found.values())

    def below(self, row: Row) -> list[CacheID]:
        """The driver's layers below that of a layer."""
        return [CacheID(above["cache_id"]) for above in self.chain(row["parent"])]

    def graph_below(self, row: Row) -> list[CacheID]:
        """The driver's layers below that of a graph image."""
        found: list[CacheID] = []
        while row["parent"] in self.graph_images and len(found) < len(self.graph_images):
            row = self.graph_images[row["parent"]]
            found.append(CacheID(row["cache_id"]))
        return found


def _keyed(database: Database, table: str) -> dict[str, Row]:
    return {row[0]: row for row in database.select(f"SELECT * FROM {table}")}


# -- what is wrong with them --------------------------------------------------------------------------


def problems(rows: Rows, elsewhere: Iterable[str]) -> Iterator[Problem]:
    """What the rows by themselves show; `elsewhere` are the ids of images in additional stores."""
    for kind, columns in _JSON.items():
        for item, row in rows.table(kind).items():
            for column in columns:
                if not _is_json(row[column]):
                    yield Problem(kind, item, f"its {column} are no JSON", Remedy.DELETE)
    yield from _layers(rows)
    yield from _images(rows)
    yield from _containers(rows, {"", *rows.images, *elsewhere})
    yield from _dangling(rows)


def _is_json(text: str | None) -> bool:
    try:
        json.loads(text or "{}")
    except ValueError:
        return False
    return True


def _layers(rows: Rows) -> Iterator[Problem]:
    for item, row in rows.layers.items():
        if row["parent"] is not None and row["parent"] not in rows.layers:
            yield Problem(Kind.LAYER, item, f"its parent {row['parent']} does not exist", Remedy.DELETE)
        if not item.startswith("sha256:"):
            continue
        parent = ChainID(row["parent"]) if row["parent"] is not None else None
        if not row["diff_id"] or item != chain_id(parent, DiffID(row["diff_id"])):
            what = "that is not the chain ID of its parent and diff ID"
            yield Problem(Kind.LAYER, item, what, Remedy.DELETE)


def _images(rows: Rows) -> Iterator[Problem]:
    for item, row in rows.images.items():
        if row["top_layer"] is not None and row["top_layer"] not in rows.layers:
            yield Problem(Kind.IMAGE, item, f"its layer {row['top_layer']} does not exist", Remedy.DELETE)
            continue
        chain = rows.chain(row["top_layer"])
        is_fixed = all(layer["id"].startswith("sha256:") for layer in chain)  # others may have grown
        if is_fixed and rows.is_whole(row["top_layer"]):
            size = sum(layer["size"] for layer in chain)
            if row["size"] != size:
                what = f"its size is written down as {row['size']}, that of its layers is {size}"
                yield Problem(Kind.IMAGE, item, what, Remedy.RESIZE)


def _containers(rows: Rows, images: set[str]) -> Iterator[Problem]:
    for item, row in rows.containers.items():
        if row["layer"] not in rows.layers:
            yield Problem(Kind.CONTAINER, item, f"its layer {row['layer']} does not exist", Remedy.DELETE)
        if row["image"] not in images:
            yield Problem(Kind.CONTAINER, item, f"its image {row['image']} does not exist", Remedy.DELETE)


def _dangling(rows: Rows) -> Iterator[Problem]:
    """Names and blobs of nothing."""
    for row in rows.names:
        if row["kind"] not in KINDS or row["item"] not in rows.table(KINDS[row["kind"]]):
            what = f"the name {row['name']} is that of the {row['kind']} {row['item']}, which does not exist"
            yield Problem(Kind.DATABASE, "names", what, Remedy.UNNAME)
    for row in rows.big_data:
        if row["kind"] not in KINDS or row["item"] not in rows.table(KINDS[row["kind"]]):
            what = f"the data item {row['key']} is the {row['kind']} {row['item']}'s, which does not exist"
            yield Problem(Kind.DATABASE, "big_data", what, Remedy.UNNAME)


def unreferenced(rows: Rows, before: float) -> Iterator[Problem]:
    """Layers made before `before`, in s since 1970, that nothing needs but others of them.

    Borrowed ones come and go with what is on them (containers/storage: ErrLayerUnreferenced).
    """
    tops = [row["top_layer"] for row in rows.images.values()]
    tops += [row["layer"] for row in rows.containers.values()]
    tops += [row["parent"] for row in rows.rw_layers.values()]
    tops += [row["id"] for row in rows.layers.values() if row["origin"] or row["created"] > before]
    needed = {row["id"] for top in tops for row in rows.chain(top)}
    for item, row in rows.layers.items():
        if item not in needed:
            yield Problem(Kind.LAYER, item, UNREFERENCED, Remedy.DELETE, row["cache_id"])
