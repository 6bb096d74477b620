"""Image rows: names, the top layer, and named blobs such as the manifest and the configuration.

An image's id is the hex digest of its configuration, so the same image loaded twice is one image.  Blobs
lie in ``big/<id>/<key>`` and are on disk before the row that names them.  Names move: giving an image a
name that another one has takes it away there.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusestore import digest
from fusestore.digest import ChainID, Digest
from fusestore.errors import CorruptStore
from fusestore.files import fsync_directory, remove_tree, write_durably
from fusestore.store.database import Database

_PLAIN_KEY = re.compile(r"[a-z0-9]+")
MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class Image:
    """An image.  `size` is bytes of files in all layers; `created`, in s since 1970, is what it claims."""

    id: str
    names: tuple[str, ...]
    top_layer: ChainID | None
    digest: Digest
    size: int
    created: int


class ImageStore:
    """The ``images``, ``names`` and ``big_data`` tables, and the directory ``big/``."""

    def __init__(self, database: Database, root: Path) -> None:
        self._database = database
        self._big = root / "big"
        self._tmp = root / "tmp"
        self._big.mkdir(mode=0o700, exist_ok=True)

    def all(self) -> list[Image]:
        """Every image, newest first."""
        rows = self._database.select("SELECT * FROM images ORDER BY created DESC, id")
        names: dict[str, list[str]] = {}
        for name, image in self._database.select("SELECT name, image FROM names ORDER BY name"):
            names.setdefault(image, []).append(name)
        return [_image(tuple(row), names.get(row["id"], [])) for row in rows]

    def get(self, image_id: str) -> Image | None:
        """The image with exactly this id."""
        rows = self._database.select("SELECT * FROM images WHERE id = ?", image_id)
        names = self._database.select("SELECT name FROM names WHERE image = ? ORDER BY name", image_id)
        return _image(tuple(rows[0]), [name for (name,) in names]) if rows else None

    def by_name(self, name: str) -> Image | None:
        """The image with exactly this full name."""
        rows = self._database.select("SELECT image FROM names WHERE name = ?", name)
        return self.get(rows[0]["image"]) if rows else None

    def by_prefix(self, prefix: str) -> list[str]:
        """The ids that begin with `prefix`."""
        query = "SELECT id FROM images WHERE id >= ?1 AND id < ?1 || 'g'"
        return [row["id"] for row in self._database.select(query, prefix)]

    def create(self, image: Image, blobs: Mapping[str, bytes]) -> None:
        """Add an image with its blobs, or only its names if it is there.  Raises sqlite3.IntegrityError.

        The error means that its top layer is not there (any more).
        """
        directory = self._big / image.id
        with self._database.transaction() as execute:
            directory.mkdir(mode=0o700, exist_ok=True)
            for key, data in blobs.items():
                write_durably(directory / _file_name(key), data, self._tmp)
            fsync_directory(os.fsencode(self._big))
            execute(
                "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?)",
                (image.id, image.top_layer, image.digest, image.size, image.created),
            )
            for key, data in blobs.items():
                row = (image.id, key, len(data), digest.of_bytes(data))
                execute("INSERT OR REPLACE INTO big_data VALUES (?, ?, ?, ?)", row)
            for name in image.names:
                execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (name, image.id))

    def collect(self) -> None:
        """Delete blobs of images that no row names.

        In a transaction, as is whoever adds an image: nobody is between its blobs and its row.
        """
        with self._database.transaction():
            known = {row["id"] for row in self._database.select("SELECT id FROM images")}
            for name in set(os.listdir(self._big)) - known:
                remove_tree(self._big / name)

    def delete_row(self, image_id: str) -> None:
        """Unname an image, its names and its blobs; inside a transaction."""
        self._database.select("DELETE FROM images WHERE id = ?", image_id)

    def delete_blobs(self, image_id: str) -> None:
        """Delete the files of an image whose row is gone, unless another process has just made it again."""
        with self._database.transaction():
            if self.get(image_id) is None:
                remove_tree(self._big / image_id)

    def remove_names(self, names: Iterable[str]) -> None:
        """Take names away from whatever images have them."""
        with self._database.transaction() as execute:
            for name in names:
                execute("DELETE FROM names WHERE name = ?", (name,))

    def big_data(self, image_id: str, key: str) -> bytes:
        """A blob, verified against its digest.  Raises KeyError, CorruptStore."""
        query = "SELECT digest FROM big_data WHERE item = ? AND key = ?"
        rows = self._database.select(query, image_id, key)
        if not rows:
            raise KeyError(key)
        path = self._big / image_id / _file_name(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CorruptStore(
                str(path), "a file of an image is missing; remove and load the image again"
            ) from None
        if digest.of_bytes(data) != rows[0]["digest"]:
            raise CorruptStore(str(path), "a file of an image was changed; remove and load the image again")
        return data


def configuration_key(image_id: str) -> str:
    """The key of an image's configuration: its digest, as in containers/storage."""
    return f"sha256:{image_id}"


def _file_name(key: str) -> str:
    """The file of a blob: the key itself if it is plain, else base64 (containers/storage's scheme)."""
    if _PLAIN_KEY.fullmatch(key):
        return key
    return "=" + base64.b64encode(key.encode(), altchars=b"+_").decode()


def _image(row: tuple[object, ...], names: list[str]) -> Image:
    image_id, top_layer, manifest_digest, size, created = row
    return Image(image_id, tuple(names), top_layer, manifest_digest, size, created)  # type: ignore[arg-type]
