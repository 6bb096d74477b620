"""Does all kinds of things with a store for some seconds, beside others.

    python -m support.busy ROOT RUNROOT SEED SECONDS

What others may have brought about - items that are gone, layers that somebody works with - is no error.
"""

import json
import random
import sys
import time
from pathlib import Path

from support.images import configuration, dumped
from support.stores import opened
from support.tars import Stream, hard_link, member, tar

from fusestore.errors import (
    DuplicateID,
    ImageUsedByContainer,
    ItemNotFound,
    LayerInUse,
    ParentIsContainer,
    RWLayerNotFound,
)
from fusestore.store.storage import NewImage, Store

_FROM_OTHERS = (
    DuplicateID,
    ImageUsedByContainer,
    ItemNotFound,
    LayerInUse,
    ParentIsContainer,
    RWLayerNotFound,
)


class Busy:
    """One of those who write."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store, self._random = store, random.Random(seed)
        self._name = f"w{seed}"

    def step(self) -> None:
        """One thing or another."""
        kinds = (self._load, self._load, self._drop, self._layer, self._container, self._data, self._rw)
        self._random.choice(kinds)()

    def _archive(self) -> bytes:
        number = self._random.randrange(4)
        return tar(
            *(member(f"f{number}{i}", b"%d" % i * 3000) for i in range(9)), hard_link("h", f"f{number}0")
        )

    def _load(self) -> None:
        archives = [self._archive() for _ in range(2)]
        lower = self._store.layer_store.register(Stream(archives[0]))
        upper = self._store.layer_store.register(Stream(archives[1]), lower.chain_id)
        settings = dumped(configuration(archives))
        name = f"localhost/{self._random.randrange(3)}:1"
        self._store.create_images([NewImage([name], upper.chain_id, settings, json.dumps([name]).encode())])
        for layer in (upper, lower):
            self._store.layer_store.release(layer)

    def _drop(self) -> None:
        for image in self._store.images()[:1]:
            self._store.delete_image(image.id)

    def _layer(self) -> None:
        layers = self._store.layers()
        parent = self._random.choice(layers).id if layers else ""
        made = self._store.put_layer("", parent, diff=Stream(self._archive()))
        self._store.set_layer_big_data(made.id, "k", b"x" * self._random.randrange(100))
        self._store.delete_layer(made.id)

    def _container(self) -> None:
        for image in self._store.images()[:1]:
            made = self._store.create_container("", [], image.id)
            self._store.set_container_directory_file(made.id, "f", b"x")
            self._store.set_container_big_data(made.id, "k", b"x")
            self._store.delete_container(made.id)

    def _data(self) -> None:
        for image in self._store.images()[:1]:
            for _ in range(3):
                self._store.set_image_big_data(image.id, "k", b"x" * self._random.randrange(100))

    def _rw(self) -> None:
        layers = self._store.layer_store
        layers.release_rw_layer(layers.create_rw_layer(f"{self._name}{self._random.random()}", None))


def main(root: str, runroot: str, seed: str, seconds: str) -> None:
    """Do it."""
    with opened(Path(root), Path(runroot), "fuse") as store:
        busy, end = Busy(store, int(seed)), time.monotonic() + float(seconds)
        while time.monotonic() < end:
            try:
                busy.step()
            except _FROM_OTHERS:
                continue


if __name__ == "__main__":
    main(*sys.argv[1:])
