"""Image rows: names, the top layer, and named blobs such as the manifest and the configuration.

The id of an image that was loaded is the hex digest of its configuration, so the same image loaded twice is
one image; whoever makes one by hand chooses the id.  Names move: giving an image a name that another one has
takes it away there, and both remember it in their history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from sqlite3 import Row

from fusestore.digest import Digest, of_bytes
from fusestore.errors import ImageNotFound
from fusestore.store.bigdata import BigData
from fusestore.store.items import Image, Items

MANIFEST = "manifest"


class ImageStore(Items[Image]):
    """The images of a store (containers/storage: ``imageStore``)."""

    kind = "image"
    table = "images"
    order = "created DESC, id"
    not_found = ImageNotFound

    def _record(self, row: Row, names: tuple[str, ...], blobs: Mapping[str, BigData]) -> Image:
        return Image(
            id=row["id"],
            names=names,
            metadata=row["metadata"],
            created=row["created"],
            flags=json.loads(row["flags"]),
            big_data=blobs,
            top_layer=row["top_layer"],
            digest=row["digest"] or _first_manifest(blobs),
            size=row["size"],
            names_history=tuple(json.loads(row["history"])),
        )

    def by_top_layer(self, layer: str) -> list[Image]:
        """The images whose topmost layer has this id."""
        return self._records("top_layer = ?", layer)

    def by_digest(self, digest: Digest) -> list[Image]:
        """The images of which this is the digest of a manifest."""
        items = "SELECT item FROM big_data WHERE kind = 'image' AND key GLOB 'manifest*' AND digest = ?1"
        return self._records(f"digest = ?1 OR id IN ({items})", digest)

    def add(self, image: Image, blobs: Mapping[str, bytes]) -> None:
        """Inside a transaction: add an image with its blobs; of one that is there, only these are new.

        Raises sqlite3.IntegrityError when its top layer is not there (any more).
        """
        row = (image.id, image.top_layer, image.digest, image.size, image.created, image.metadata)
        self._database.select(
            "INSERT INTO images (id, top_layer, digest, size, created, metadata, flags, history)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET digest = excluded.digest",
            *row, json.dumps(dict(image.flags)), json.dumps(list(image.names_history)),
        )  # fmt: skip
        self._blobs.set_all(self.kind, image.id, blobs)

    def update_names(self, item: str, change: Callable[[tuple[str, ...]], Iterable[str]]) -> None:
        """As for all items; the history gets each name of the new list in turn, so the last is its newest."""
        with self._database.transaction():
            names = tuple(dict.fromkeys(change(self.get(item).names)))
            history = dict.fromkeys([*reversed(names), *self.get(item).names_history])
            self._update(item, "history", json.dumps(list(history)))
            self.name(item, names)

    def set_big_data(self, item: str, key: str, data: bytes) -> None:
        """As for all items; an image that is known by its manifest's digest is known by the new one's."""
        with self._blobs.setting(), self._database.transaction():
            image = self.get(item)
            super().set_big_data(item, key, data)
            if key == MANIFEST and key in image.big_data and image.digest == image.big_data[key].digest:
                self._update(item, "digest", of_bytes(data))

    def remove_names(self, names: Iterable[str]) -> None:
        """Take names away from whatever images have them."""
        with self._database.transaction() as execute:
            for name in names:
                execute("DELETE FROM names WHERE kind = 'image' AND name = ?", (name,))

    def collect(self, *, deep: bool = False) -> None:
        """Delete blobs that no row names, of items of any kind."""
        self._blobs.collect(deep=deep)


def _first_manifest(blobs: Mapping[str, BigData]) -> Digest | None:
    """What an image is known by that was given no digest (containers/storage: ``recomputeDigests``)."""
    return next((blob.digest for key, blob in blobs.items() if key.startswith(MANIFEST)), None)


def configuration_key(image_id: str) -> str:
    """The key of an image's configuration: its digest, as in containers/storage."""
    return f"sha256:{image_id}"
