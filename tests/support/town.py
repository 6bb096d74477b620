"""A store with a bit of everything, to be copied: made once for each driver, so that a test costs a `cp`."""

import os
import sqlite3
import subprocess
from contextlib import closing
from fnmatch import fnmatchcase
from pathlib import Path

from support.images import configuration, dumped, sha256
from support.stores import opened
from support.tars import Stream, folder, hard_link, member, symlink, tar

from fusestore.digest import chain_id
from fusestore.store.graph import Graph
from fusestore.store.storage import NewImage
from fusestore.store.v1image import V1Image

BASE = tar(
    folder("d"),
    member("d/f", b"f" * 600, uid=7, mode=0o4755),
    hard_link("d/g", "d/f"),
    symlink("s", "d", uid=3),
)
TOP = tar(
    member("b", b"b" * 50, extra={"SCHILY.xattr.user.x": "1"}), folder("d", mode=0o700), hard_link("h", "d/f")
)
OTHER, RW, LONE = (tar(member(name, name * 9)) for name in (b"other", b"under-rw", b"lone"))

CONFIGURATION = dumped(configuration([BASE, TOP]))
IMAGE = sha256(CONFIGURATION)[7:]
LAYER = chain_id(sha256(BASE), sha256(TOP))
GRAPH = "ab" * 32

#: The words for some ids.
WORDS = {"LAYER": LAYER, "BASE": sha256(BASE), "IMAGE": IMAGE}


def town(root: Path, runroot: Path, driver: str) -> None:
    """An image of two layers; one made by hand, and its container; an RW layer; a lone layer; a v1 image."""
    with opened(root, runroot, driver) as store:
        layers = store.layer_store
        lower = layers.register(Stream(BASE))
        layers.register(Stream(TOP), lower.chain_id)
        store.create_images([NewImage(["localhost/x:1"], LAYER, CONFIGURATION, b'{"a": "manifest"}')])
        store.put_layer("other", "", ["name of other"], diff=Stream(OTHER))
        store.set_layer_big_data("other", "k", b"layer data")
        store.create_image("made", ["localhost/made:1"], "other", big_data={"k": b"image data"})
        store.create_container("c", ["box"], "made", "c-layer")
        store.set_container_big_data("c", "k", b"container data")
        layers.create_rw_layer("rw", layers.register(Stream(RW)).chain_id)
        layers.register(Stream(LONE))
        Graph(store._database, store.graph_driver, root).register(V1Image(id=GRAPH), Stream(LONE))


class Copy:
    """A copy of a town, open to nobody; the town is made below `base`, if it is not there yet."""

    def __init__(self, base: Path, place: Path, driver: str = "fuse") -> None:
        template = base / f"town-{driver}"
        if not template.exists():
            template.mkdir()
            town(template / "store", template / "run", driver)
        subprocess.run(["cp", "-a", template, place], check=True)
        self.root, self.runroot, self.driver = place / "store", place / "run", driver

    def open(self, *additional: Path):
        return opened(self.root, self.runroot, self.driver, *additional)

    def sql(self, statement: str, *values: object) -> list[tuple]:
        with closing(sqlite3.connect(self.root / "store.db")) as database, database:
            return database.execute(statement, values).fetchall()

    def items(self) -> set[str]:
        """The ids of everything, those that damages have names for by these."""
        rows = self.sql(
            "SELECT id FROM layers UNION SELECT id FROM images UNION SELECT id FROM containers"
            " UNION SELECT name FROM rw_layers UNION SELECT id FROM graph_images"
        )
        return {next((word for word, item in WORDS.items() if item == row), row) for (row,) in rows}

    def directory(self, layer: str) -> Path:
        """A layer's own directory."""
        table, key, column = {
            "rw": ("rw_layers", "name", "mount_id"),
            GRAPH: ("graph_images", "id", "cache_id"),
        }.get(layer, ("layers", "id", "cache_id"))
        ((cache_id,),) = self.sql(f"SELECT {column} FROM {table} WHERE {key} = ?", layer)
        return self.root / self.driver / cache_id

    def link(self, layer: str) -> Path:
        """The short link to it."""
        links = self.directory(layer).parent / "l"
        return next(p for p in links.iterdir() if os.readlink(p) == f"../{self.directory(layer).name}/diff")

    def blob(self, kind: str, item: str, key: str) -> Path:
        """The file of a data item."""
        query = "SELECT file FROM big_data WHERE kind = ? AND item = ? AND key = ?"
        return self.root / "big" / self.sql(query, kind, item, key)[0][0]


def lines(found: object) -> list[str]:
    """The problems of a report, or those left of it, as lines with words for ids."""
    told = [str(problem) for problem in found]
    for word, item in WORDS.items():
        told = [line.replace(item, word) for line in told]
    return sorted(told)


def told(found: object, expected: tuple[str, ...]) -> bool:
    """True when every problem is one of those expected, and every one of those is there."""
    present = lines(found)
    return all(any(fnmatchcase(line, e) for e in expected) for line in present) and all(
        any(fnmatchcase(line, e) for line in present) for e in expected
    )
