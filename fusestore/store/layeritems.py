"""Layers by id and name, which callers make, mount and fill as they like (containers/storage: layerStore).

A layer made empty takes changes while it is mounted, until it has children.  One made of a tar keeps the
record of it, so that the exact tar can be given back; it takes changes if its maker asked for that, and the
first mount costs it the exact tar.  Registered layers are found here too, by their chain ID as id.

What upstream marks "incomplete" in its JSON cannot be seen here: a layer is staged, and appears whole.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from sqlite3 import Row

from fusestore.digest import CacheID, ChainID, HashingReader, Readable, new_cache_id
from fusestore.driver.api import Change, Driver, Held
from fusestore.errors import InvalidLayer, LayerInUse, LayerNotFound, MaxDepthExceeded, NotMounted
from fusestore.store.bigdata import BigData, Blobs
from fusestore.store.database import Database
from fusestore.store.items import Items, LayerItem
from fusestore.store.layer import exact_tar
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata, LayerRecord
from fusestore.store.tarsplit import RECORD
from fusestore.tar_stream import compressed_stream, tar_stream

#: OCI image-spec, layer.md; of a compressed one, see `media_type`.
LAYER = "application/vnd.oci.image.layer.v1.tar"
#: Of a chain (containers/storage, overlay: ``maxDepth``); an open union has an fd for each layer.
MAX_DEPTH = 500

_CACHE_ID = 64  # letters


class LayerItems(Items[LayerItem]):
    """The layers of a store, all of them."""

    kind = "layer"
    table = "layers"
    not_found = LayerNotFound

    def __init__(
        self, database: Database, blobs: Blobs, metadata: LayerMetadata, layer_store: LayerStore
    ) -> None:
        super().__init__(database, blobs)
        self._metadata = metadata
        self._layer_store = layer_store
        self._driver: Driver = layer_store.driver

    def _record(self, row: Row, names: tuple[str, ...], blobs: Mapping[str, BigData]) -> LayerItem:
        descriptor = json.loads(row["descriptor"] or "{}")
        uids, gids = json.loads(row["owners"] or "[null, null]")
        return LayerItem(
            id=row["id"],
            names=names,
            metadata=row["metadata"],
            created=row["created"],
            flags=json.loads(row["flags"]),
            big_data=blobs,
            read_only=row["origin"] is not None,
            parent=row["parent"] or "",
            mount_label=row["label"],
            size=row["size"],
            uncompressed_digest=row["diff_id"],
            uncompressed_size=row["diff_size"],
            compressed_digest=descriptor.get("digest"),
            compressed_size=descriptor.get("size"),
            compression=compression_of(descriptor),
            uids=None if uids is None else tuple(uids),
            gids=None if gids is None else tuple(gids),
        )

    def by_prefix(self, prefix: str) -> list[str]:
        """Chain IDs may be given without their ``sha256:``."""
        return [*super().by_prefix(prefix), *super().by_prefix("sha256:" + prefix)] if prefix else []

    def by_compressed_digest(self, digest: str) -> list[LayerItem]:
        """The layers that came as a blob of this digest."""
        return self._records("json_extract(descriptor, '$.digest') = ?", digest)

    def by_uncompressed_digest(self, digest: str) -> list[LayerItem]:
        """The layers of which the tar has this digest."""
        return self._records("diff_id = ?", digest)

    def record(self, item: str) -> LayerRecord:
        """The row of a layer.  Raises LayerNotFound."""
        return self._metadata.get(ChainID(item))

    # -- making and deleting --------------------------------------------------------------------------

    def create(
        self,
        item: str,
        parent: str | None,
        names: Sequence[str] = (),
        mount_label: str = "",
        *,
        writeable: bool = True,
        diff: Readable | None = None,
        also: Callable[[], None] = lambda: None,
    ) -> LayerItem:
        """Make a layer, empty or of the tar `diff`, compressed or not; `also` runs in the same transaction.

        Raises DuplicateID, DuplicateName, LayerNotFound, MaxDepthExceeded, InvalidLayer, OSError; all is then
        as it was.
        """
        if item.startswith("sha256:"):
            raise ValueError(f"{item}: ids that begin with sha256: are those of registered layers")
        self._layer_store.collect()
        with self._database.transaction():
            self.refuse_taken(item, names)  # early, for a clear error before the work
        chain = self._metadata.chain(ChainID(parent) if parent else None)
        if len(chain) >= MAX_DEPTH:
            raise MaxDepthExceeded(len(chain) + 1, MAX_DEPTH)
        below = chain[0] if chain else None
        cache_id = new_cache_id()
        with ExitStack() as stack:
            if below is not None:
                stack.callback(self._hold(below).close)
            stack.callback(self._layer_store.discard, cache_id)
            self._driver.stage(
                cache_id, below.cache_id if below else None, read_write=diff is None or writeable
            )
            record = LayerRecord(ChainID(item), None, below.chain_id if below else None, cache_id, 0, False)
            if diff is not None:
                record = self._applied(record, diff)
            return self._publish(replace(record, label=mount_label), names, also)

    def _applied(self, record: LayerRecord, diff: Readable) -> LayerRecord:
        """Apply a tar, plain or compressed, to a layer; the record with what it turned out to be."""
        from fusestore.compression import decompressed  # who only lists has no use for it

        blob = HashingReader(diff)
        plain = decompressed(blob)
        applied, diff_id, size = self._layer_store.unpack(record.cache_id, plain)
        blob.drain()
        return replace(
            record,
            diff_id=diff_id,
            diff_size=size,
            size=applied.size,
            reproducible=applied.reproducible,
            owners=applied.owners,
            descriptor={"mediaType": media_type(plain.format), "digest": blob.digest(), "size": blob.size},
        )

    def _publish(self, record: LayerRecord, names: Sequence[str], also: Callable[[], None]) -> LayerItem:
        published: Held | None = None
        try:
            with self._database.transaction():
                self.refuse_taken(record.chain_id, names)
                self._metadata.add(record)
                self.name(record.chain_id, names)
                also()
                made = self.get(record.chain_id)
                published = self._driver.publish(record.cache_id)
        except BaseException:
            if published is not None:
                self._layer_store.unpublish(record.cache_id, published)
            raise
        published.close()
        return made

    def _hold(self, record: LayerRecord) -> Held:
        try:
            return self._driver.hold(record.cache_id)
        except FileNotFoundError:
            raise LayerNotFound(record.chain_id) from None

    def doom(self, item: str, stack: ExitStack) -> None:
        """Inside a transaction: unname a layer that nothing needs; its files go when `stack` is left.

        Raises LayerInUse while another process works with it.
        """
        record = self.record(item)
        stack.enter_context(self._driver.removing(record.cache_id))
        self.delete(item)

    def leaves(self) -> list[str]:
        """The ids of some layers that no other is on; none when there are no layers.

        Some, because whoever deletes them all at once needs an fd for each.
        """
        query = (
            "SELECT id FROM layers AS l WHERE NOT EXISTS (SELECT 1 FROM layers WHERE parent = l.id) LIMIT 100"
        )
        return [row["id"] for row in self._database.select(query)]

    # -- mounting -------------------------------------------------------------------------------------

    def mount(self, item: str) -> Path:
        """Mount a layer, or count one more user of its mount; the directory."""
        record = self.record(item)
        if self._driver.is_read_write(record.cache_id):
            self._database.refuse_read_only()
            if record.reproducible:
                self._forget_tar(record)
        with self._there(item):
            return Path(os.fsdecode(self._driver.get(record.cache_id)))

    @contextmanager
    def _there(self, *items: str | None) -> Iterator[None]:
        """The driver does not find what another process has just deleted.  Raises LayerNotFound."""
        try:
            yield
        except FileNotFoundError:
            for item in filter(None, items):
                self.record(item)
            raise

    def _forget_tar(self, record: LayerRecord) -> None:
        """Whoever mounts the layer may change what its tar was."""
        self._update(record.chain_id, "reproducible", 0)
        (self._driver.notes(record.cache_id) / RECORD).unlink(missing_ok=True)

    def unmount(self, item: str, *, force: bool = False) -> bool:
        """Give back one mount, or with `force` all of them; True while others have it.  Raises NotMounted."""
        cache_id = self.record(item).cache_id
        if not self._driver.mounted(cache_id):
            raise NotMounted(item)
        if force:
            self._driver.abandon(cache_id)
        else:
            self._driver.put(cache_id)
        return self._driver.mounted(cache_id) > 0

    def mounted(self, item: str) -> int:
        """How often a layer is mounted."""
        return self._driver.mounted(self.record(item).cache_id)

    def at(self, path: str) -> str | None:
        """The id of the layer that has its mountpoint at `path`."""
        try:
            place = Path(os.path.abspath(path))
        except FileNotFoundError:  # a relative one, and our working directory is gone
            return None
        cache_ids = [CacheID(part) for part in place.parts if len(part) == _CACHE_ID]
        for cache_id in cache_ids:
            for row in self._database.select("SELECT id FROM layers WHERE cache_id = ?", cache_id):
                if self._driver.mountpoint(cache_id) == place:
                    return str(row["id"])
        return None

    # -- what is in them ------------------------------------------------------------------------------

    def changes(self, parent: str | None, item: str) -> list[Change]:
        """What makes the layer out of `parent` (None: out of nothing), sorted by path."""
        with self._there(item, parent):
            return self._driver.changes(self.record(item).cache_id, self.cache_id(parent))

    def diff_size(self, parent: str | None, item: str) -> int:
        """Bytes of the files in the tar of that."""
        with self._there(item, parent):
            return self._driver.diff_size(self.record(item).cache_id, self.cache_id(parent))

    def size(self, record: LayerRecord) -> int:
        """Bytes of a layer's own files, as they are now."""
        return self.diff_size(record.parent, record.chain_id)

    def diff(self, parent: str | None, item: str, form: str) -> io.BufferedReader:
        """That as a tar: the exact one that was applied, where there is one; compressed as `form`.

        Close the stream.
        """
        record = self.record(item)
        with self._there(item, parent), ExitStack() as stack:
            if record.reproducible and parent == record.parent:
                return compressed_stream(exact_tar(self._driver, record), form)
            for cache_id in filter(None, (record.cache_id, self.cache_id(parent))):
                stack.callback(self._driver.hold(cache_id).close)  # the stream has not begun to
            pieces = self._driver.diff(record.cache_id, self.cache_id(parent))
            return compressed_stream(tar_stream(pieces, None, stack.pop_all().close), form)

    def cache_id(self, item: str | None) -> CacheID | None:
        """The driver's name of a layer; None for "" and None."""
        return self.record(item).cache_id if item else None

    def apply_diff(self, item: str, diff: Readable) -> int:
        """Carry out what a layer tar says in a layer that takes changes; bytes of the uncompressed tar.

        Of a layer that was empty the tar is remembered.  Raises InvalidLayer, LayerInUse while it is mounted
        or has children.
        """
        record = self.record(item)
        if not self._driver.is_read_write(record.cache_id):
            raise LayerInUse(item, "it takes no changes; make a layer on top of it")
        was_empty = not self.changes(record.parent, item)
        self._update(item, "reproducible", 0)
        try:
            made = self._applied(record, diff)
        except (InvalidLayer, LayerInUse) as exc:  # which change nothing
            self._update(item, "reproducible", int(record.reproducible))
            if isinstance(exc, LayerInUse):
                raise LayerInUse(item, exc.reason) from None
            raise
        size = self.size(record)
        with self._database.transaction():
            self._metadata.replace(replace(made, size=size, reproducible=made.reproducible and was_empty))
        return made.diff_size or 0


def media_type(form: str) -> str:
    """The media type of a layer's tar, compressed as `form`; "" for not at all."""
    return f"{LAYER}+{form}" if form else LAYER


def compression_of(descriptor: Mapping[str, object]) -> str:
    """How the blob of a descriptor is compressed, by its media type; "" for not at all."""
    return str(descriptor.get("mediaType", "")).partition("+")[2]
