"""A graphdriver in a home of its own, worked with as upstream's graphtest does: through `get` and `put`."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import naive
from support_real.commands import Place

from fusestore.digest import CacheID, new_cache_id
from fusestore.driver.api import Driver
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver

DRIVERS = {"fuse": FuseDriver, "vfs": VfsDriver}


class Graph:
    """The driver, and the place of its home and mounts."""

    def __init__(self, kind: str, base: Path) -> None:
        self.kind = kind
        self.place = Place(base / "store", base / "run")
        self.driver = self.reopened()

    def reopened(self) -> Driver:
        """The driver as another process has it."""
        return DRIVERS[self.kind](self.place.root, self.place.runroot)

    def made(self, parent: CacheID | None = None, *work: Callable[[Path], None]) -> CacheID:
        """A new RW layer in which each of `work` has been done, mounted afresh for each."""
        layer = new_cache_id()
        self.driver.create_read_write(layer, parent)
        for one in work:
            with self.mounted(layer) as top:
                one(top)
        return layer

    @contextlib.contextmanager
    def mounted(self, layer: CacheID) -> Iterator[Path]:
        top = self.get(layer)
        try:
            yield top
        finally:
            self.driver.put(layer)

    def get(self, layer: CacheID) -> Path:
        """Where the layer is mounted; to be `put` back."""
        return Path(os.fsdecode(self.driver.get(layer)))

    def changes(self, layer: CacheID, parent: CacheID | None) -> list[str]:
        """As ``podman diff`` writes them."""
        return [f"{letter} {os.fsdecode(path)}" for letter, path in naive.letters(self.driver, layer, parent)]

    def elsewhere(self, expression: str, **environment: str) -> str:
        """What another process prints of `expression`, where `driver` is the driver."""
        script = (
            "import sys; from pathlib import Path; from support_real.graphs import DRIVERS\n"
            "driver = DRIVERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))\n"
            f"print({expression})"
        )
        command = [sys.executable, "-c", script, self.kind, self.place.root, self.place.runroot]
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, **environment}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=60)
        return done.stdout.decode().rstrip("\n")


@contextlib.contextmanager
def graph_of(kind: str, base: Path) -> Iterator[Graph]:
    """At the end nothing is mounted and nothing half-made."""
    graph = Graph(kind, base)
    try:
        yield graph
        still = {layer: graph.driver.mounted(layer) for layer in graph.driver.list_layers()}
        assert not any(still.values()), "not put back"
        assert graph.place.half_made() == []
    finally:
        graph.place.destroy()


@pytest.fixture(params=DRIVERS)
def graph(request, tmp_path):
    """An empty home of each driver."""
    with graph_of(request.param, tmp_path) as made:
        yield made


def listing(top: Path) -> list[str]:
    """Every path below `top`, directories with a final slash."""
    found = []
    for place, directories, files in os.walk(top):
        above = os.path.relpath(place, top).removeprefix(".").lstrip("/")
        found += [os.path.join(above, name) for name in (*(f"{name}/" for name in directories), *files)]
    return sorted(found)
