"""Container rows, and the directories that a store keeps for whoever runs them.

A container is a name for a layer of its own that takes changes.  ``containers/<id>/userdata`` below the root
lives as long as the container, the same below the runroot as long as the machine is up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from sqlite3 import Row

from fusestore.errors import ContainerNotFound, InvalidBigDataName, InvalidText
from fusestore.files import opened, remove_tree, tree_usage, write_durably
from fusestore.store.bigdata import BigData, Blobs, item_name
from fusestore.store.database import Database
from fusestore.store.items import Container, Items


class ContainerStore(Items[Container]):
    """The containers of a store (containers/storage: ``containerStore``)."""

    kind = "container"
    table = "containers"
    not_found = ContainerNotFound

    def __init__(self, database: Database, blobs: Blobs, root: Path, runroot: Path) -> None:
        super().__init__(database, blobs)
        self._tmp = root / "tmp"
        self._places = root / "containers", runroot / "containers"

    def _record(self, row: Row, names: tuple[str, ...], blobs: Mapping[str, BigData]) -> Container:
        return Container(
            id=row["id"],
            names=names,
            metadata=row["metadata"],
            created=row["created"],
            flags=json.loads(row["flags"]),
            big_data=blobs,
            image=row["image"],
            layer=row["layer"],
        )

    def exact(self, name: str) -> list[str]:
        """A container is also found by the id of its layer."""
        found = super().exact(name)
        with suppress(InvalidText):
            query = "SELECT id FROM containers WHERE layer = ?"
            found = found or [row["id"] for row in self._database.select(query, name)]
        return found

    def add(self, container: Container) -> None:
        """Inside a transaction.  Raises DuplicateID, DuplicateName, sqlite3.IntegrityError for its layer."""
        self.refuse_taken(container.id, container.names)
        self._database.select(
            "INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?)",
            container.id, container.image, container.layer, container.created, container.metadata,
            json.dumps(dict(container.flags)),
        )  # fmt: skip
        self.name(container.id, container.names)

    def of_layer(self, layer: str) -> Container | None:
        """The container that has this layer."""
        found = self._records("layer = ?", layer)
        return found[0] if found else None

    def of_image(self, image: str) -> list[Container]:
        """The containers that were made from an image."""
        return self._records("image = ?", image)

    # -- directories ----------------------------------------------------------------------------------

    def directory(self, container: str, *, run: bool) -> Path:
        """The directory that lives with a container, or with `run` until the machine is down; 0700."""
        place = self._place(container, run=run) / "userdata"
        if not place.is_dir() and run and self._database.read_only:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not place.is_dir():
            with self._database.transaction():  # so that it is not made for a container that goes just now
                self.get(container)
                place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return place

    def size(self, container: str) -> int:
        """Bytes of the files in both directories."""
        size = 0
        for run in (False, True):
            with suppress(FileNotFoundError), opened(self._place(container, run=run)) as fd:
                size += tree_usage(fd)[0]
        return size

    def _place(self, container: str, *, run: bool) -> Path:
        return self._places[run] / item_name(container)

    def write(self, container: str, file: str, data: bytes, *, run: bool) -> None:
        """Write `data` durably to `file` in that directory, 0600, making directories on the way.

        Raises InvalidBigDataName when it would lie elsewhere.
        """
        path = self._inside(container, file, run=run)
        with self._database.transaction():
            self.get(container)
            for directory in reversed(path.parents):
                directory.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, data, path.parent if run else self._tmp)

    def read(self, container: str, file: str, *, run: bool) -> bytes:
        """What `file` in that directory holds.  Raises InvalidBigDataName, FileNotFoundError."""
        return self._inside(container, file, run=run).read_bytes()

    def _inside(self, container: str, file: str, *, run: bool) -> Path:
        directory = self.directory(container, run=run)
        path = Path(os.path.normpath(directory / file.lstrip("/")))
        if path == directory or directory not in path.parents:
            raise InvalidBigDataName(file)
        return path

    def delete_directories(self, container: str) -> None:
        """Delete those of a container whose row is gone, unless another process has just made it again."""
        with self._database.transaction():
            if not self.exists(container):
                for run in (False, True):
                    remove_tree(self._place(container, run=run))

    def collect(self) -> None:
        """Delete directories of containers that no row names."""
        with self._database.transaction():
            for path in self.unnamed():
                remove_tree(path)

    def unnamed(self) -> list[Path]:
        """Directories of containers that no row names."""
        known = {item_name(row["id"]) for row in self._database.select("SELECT id FROM containers")}
        found = []
        for place in self._places:
            names = os.listdir(place) if place.is_dir() else []
            found += [place / name for name in names if name not in known]
        return found
