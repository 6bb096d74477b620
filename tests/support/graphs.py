"""Graphs on disk, and images to register in them."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from support.fsck import problems
from support.layers import paths
from support.tars import Stream

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.store.database import Database
from fusestore.store.graph import Graph
from fusestore.store.v1image import V1Image

DRIVERS = {"fuse": FuseDriver, "vfs": VfsDriver}


@contextmanager
def graphs(driver: str, root: Path, runroot: Path) -> Iterator[Callable[[], Graph]]:
    """What opens one graph as often as one likes, each time as another process would.

    When all is done its images are deleted, and the store must be as empty as a new one.
    """
    root.mkdir()
    with ExitStack() as stack:

        def again() -> Graph:
            database = Database(root / "store.db")
            stack.callback(database.close)
            return Graph(database, DRIVERS[driver](root, runroot), root)

        yield again
        graph = again()
        for id_ in graph.unreadable[:]:
            graph.delete(id_)
        while heads := graph.heads():
            for id_ in heads:
                graph.delete(id_)
    assert problems(root) == []


def sql(root: Path, statement: str, *values: object) -> list[tuple]:
    """Run a statement as somebody who is not a graph."""
    with closing(sqlite3.connect(root / "store.db")) as connection, connection:
        return connection.execute(statement, values).fetchall()


def image(id_: str = "", parent: str = "") -> V1Image:
    """An image to register; `id_` is how its id begins."""
    return V1Image(id=id_ + new_cache_id()[len(id_) :], parent=parent, comment="testing")


def chain(graph: Graph, *archives: bytes) -> list[V1Image]:
    """Images one on top of the other, the base first."""
    found: list[V1Image] = []
    for archive in archives:
        parent = found[-1].id if found else ""
        found.append(graph.register(image(parent=parent), Stream(archive)))
    return found


def names(graph: Graph, name: str) -> list[bytes]:
    """The paths that an image shows."""
    with graph.driver.union(graph.cache_id(name)) as union:
        return paths(union)
