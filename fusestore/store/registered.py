"""`RegisteredLayers`: register layers from tars, get them by chain ID, release them (moby: ``layer.Store``).

Registering unpacks into a staged layer while hashing and while recording what the tar holds besides files
(`fusestore.store.tarsplit`), and names it last.  Two callers who register the same layer at once both get a
handle on one layer; whoever comes second throws his own work away.  Releasing the last handle of a layer that
nothing is on deletes it, and then its parents under the same condition.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_NB

from fusestore.digest import CacheID, ChainID, DiffID, HashingReader, Readable, chain_id, new_cache_id
from fusestore.driver.api import Applied, Driver, Held, Limits
from fusestore.errors import (
    AmbiguousName,
    DigestMismatch,
    LayerInUse,
    LayerNotFound,
    LayerNotRetained,
    MaxDepthExceeded,
)
from fusestore.store.layer import Layer, lock_handles
from fusestore.store.metadata import LayerRecord, MetadataStore, MetadataTransaction
from fusestore.store.tarsplit import RECORD, Writer

_PREFIX = re.compile(r"[0-9a-f]{1,64}")

#: moby's: "127 max in some graphdrivers plus the 2 additional layers used to create a rwlayer".
MAX_DEPTH = 125


@dataclass(frozen=True, slots=True)
class Released:
    """A layer that `release` deleted.  Sizes in bytes: of the chain, and of the layer alone."""

    chain_id: ChainID
    diff_id: DiffID | None
    size: int
    diff_size: int


class RegisteredLayers:
    """All read-only layers of a store, kept by one driver."""

    def __init__(self, metadata: MetadataStore, driver: Driver, limits: Limits | None = None) -> None:
        metadata.claim(driver.name)
        self.driver = driver
        self._metadata = metadata
        self._limits = limits or Limits()
        self._handles: set[Layer] = set()
        self._collected = False

    def driver_name(self) -> str:
        """``fuse`` or ``vfs``."""
        return self.driver.name

    def driver_status(self) -> list[tuple[str, str]]:
        """Facts about the driver and its filesystem, as rows of name and value."""
        return self.driver.status()

    def close(self) -> None:
        """Let go of every handle that was not given back; the layers stay as they are."""
        while self._handles:
            self._handles.pop().drop()

    # -- register -------------------------------------------------------------------------------------

    def register(
        self, stream: Readable, parent: ChainID | None = None, expected: DiffID | None = None
    ) -> Layer:
        """Unpack the uncompressed tar `stream` as a layer on top of `parent`; a handle on it.

        A layer that exists already is no error.  `expected` is the diff ID it must turn out to have.

        Raises LayerNotFound, MaxDepthExceeded, InvalidLayer, DigestMismatch, OSError; the store is then as
        it was.
        """
        return self.register_with_descriptor(stream, parent, {}, expected)

    def register_with_descriptor(
        self,
        stream: Readable,
        parent: ChainID | None,
        descriptor: Mapping[str, object],
        expected: DiffID | None = None,
    ) -> Layer:
        """`register`, and remember the descriptor (OCI image-spec, descriptor.md) of what was downloaded.

        One without a digest says nothing and is not kept (moby: ``storeLayer``).
        """
        self.collect()
        chain = self._metadata.chain(parent)
        if len(chain) >= MAX_DEPTH:
            raise MaxDepthExceeded(len(chain) + 1, MAX_DEPTH)
        cache_id = new_cache_id()
        with ExitStack() as stack:
            below = chain[0].cache_id if chain else None
            if chain:
                stack.callback(self._hold(chain[0]).close)
            stack.callback(self.discard, cache_id)
            self.driver.stage(cache_id, below)
            applied, diff_id, diff_size = self.unpack(cache_id, stream)
            if expected is not None and diff_id != expected:
                raise DigestMismatch("layer", expected, diff_id)
            record = LayerRecord(
                chain_id(parent, diff_id),
                diff_id,
                parent,
                cache_id,
                applied.size,
                applied.reproducible,
                descriptor=descriptor if descriptor.get("digest") else {},
                diff_size=diff_size,
                owners=applied.owners,
            )
            return self._commit(record, chain)

    def unpack(self, cache_id: CacheID, stream: Readable) -> tuple[Applied, DiffID, int]:
        """Unpack an uncompressed tar into a layer of the driver, and record it; its digest and its bytes."""
        reader = HashingReader(stream)
        notes = self.driver.notes(cache_id)
        partial = notes / f"{RECORD}.partial"
        try:
            with partial.open("wb") as file:
                applied = self.driver.apply_diff(cache_id, reader, self._limits, Writer(file))
            partial.rename(notes / RECORD)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return applied, DiffID(reader.digest()), reader.size

    def _commit(self, record: LayerRecord, chain: list[LayerRecord]) -> Layer:
        """Name a staged layer, or take the one of that name that is there by now."""
        published: Held | None = None
        try:
            with self._metadata.start_transaction() as transaction:
                present = self._metadata.find(record.chain_id)
                if present is not None:
                    return self._handle(present, chain, self.driver.hold(present.cache_id))
                transaction.add(record)
                published = self.driver.publish(record.cache_id)
        except BaseException:
            if published is not None:
                self.unpublish(record.cache_id, published)
            raise
        return self._handle(record, chain, published)

    def discard(self, cache_id: CacheID) -> None:
        """Throw away a staged layer, after the outcome is decided: an error here must not change that."""
        with suppress(OSError):  # what is left is unlocked in tmp/, for the next sweep
            self.driver.discard(cache_id)

    def adopt(self, record: LayerRecord) -> Layer:
        """Name a layer that the driver has already and nobody names; a handle on it, or on the one there is.

        Raises LayerNotFound for a missing parent, FileNotFoundError when the driver does not have it.
        """
        chain = self._metadata.chain(record.parent)
        with self._metadata.start_transaction() as transaction:
            present = self._metadata.find(record.chain_id)
            held = self.driver.hold(present.cache_id if present else record.cache_id)
            if present is None:
                transaction.add(record)
        return self._handle(present or record, chain, held)

    def unpublish(self, cache_id: CacheID, published: Held) -> None:
        """Delete a layer whose row did not come to be, or leave it to a collector."""
        published.close()
        self._collected = False
        with suppress(LayerInUse, OSError):
            self.driver.abandon(cache_id)
            with ExitStack() as stack, self._metadata.start_transaction() as transaction:
                transaction.settle()
                stack.enter_context(self.driver.removing(cache_id))

    def _handle(self, record: LayerRecord, chain: list[LayerRecord], held: Held) -> Layer:
        size = record.size + sum(below.size for below in chain)
        layer = Layer(record, size, held, self._metadata, self.driver)
        self._handles.add(layer)
        return layer

    def _hold(self, record: LayerRecord) -> Held:
        try:
            return self.driver.hold(record.cache_id)
        except FileNotFoundError:
            raise LayerNotFound(record.chain_id) from None

    # -- get and release ------------------------------------------------------------------------------

    def get(self, chain_id: ChainID) -> Layer:
        """A new handle on a layer.  Raises LayerNotFound."""
        chain = self._metadata.chain(chain_id)
        return self._handle(chain[0], chain[1:], self._hold(chain[0]))

    def lookup(self, name: str) -> LayerRecord:
        """The layer of a chain ID or of enough of it.  Raises LayerNotFound, AmbiguousName."""
        digits = name.removeprefix("sha256:")
        found = self._metadata.by_prefix(f"sha256:{digits}") if _PREFIX.fullmatch(digits) else []
        if len(found) > 1:
            raise AmbiguousName(name)
        if not found:
            raise LayerNotFound(name)
        return self._metadata.get(found[0])

    def delete(self, chain_id: ChainID) -> None:
        """Delete one layer, and not what is below it.  Raises LayerNotFound, LayerInUse."""
        with ExitStack() as stack, self._metadata.start_transaction() as transaction:
            record = self._metadata.get(chain_id)
            transaction.refuse_needed(chain_id)
            stack.enter_context(self.driver.removing(record.cache_id))
            transaction.remove(chain_id)

    def map(self) -> dict[ChainID, LayerRecord]:
        """A snapshot of all layers.  Takes no handles."""
        return {record.chain_id: record for record in self._metadata.all()}

    def release(self, layer: Layer) -> list[Released]:
        """Give a handle back; the layers that were deleted because nothing needs them, topmost first.

        Raises LayerNotRetained for a handle that is not (or no longer) one of this store's.
        """
        if layer not in self._handles:
            raise LayerNotRetained(layer.chain_id)
        layer.drop()
        try:
            released = self.delete_unneeded(layer.chain_id)
        except BaseException:
            with suppress(LayerNotFound):
                layer.keep(self._hold(layer.record))
            raise
        self._handles.remove(layer)
        return released

    def let_go(self, layer: Layer) -> None:
        """Close a handle; the layer stays, needed or not.  May be called twice."""
        self._handles.discard(layer)
        layer.drop()

    def delete_unneeded(self, chain_id: ChainID | None, stack: ExitStack | None = None) -> list[Released]:
        """Delete the layer unless somebody needs it, then its parent likewise, and so on down.

        Files go when `stack` is left, which must be after the transaction around this call; without one,
        here. With one, raises LayerInUse if the layer is not needed but held; without, a held layer stays.
        """
        if stack is not None:
            with self._metadata.start_transaction() as transaction:
                return self._unname(chain_id, stack, transaction)
        with ExitStack() as stack, self._metadata.start_transaction() as transaction:
            try:
                return self._unname(chain_id, stack, transaction)
            except LayerInUse:
                return []

    def _unname(
        self, chain_id: ChainID | None, stack: ExitStack, transaction: MetadataTransaction
    ) -> list[Released]:
        released: list[Released] = []
        chain = self._metadata.chain(chain_id) if chain_id and self._metadata.find(chain_id) else []
        size = sum(record.size for record in chain)
        for record in chain:
            if transaction.is_needed(record.chain_id):
                break
            try:
                stack.enter_context(self.driver.removing(record.cache_id))
            except LayerInUse:
                if not released:
                    raise
                break
            transaction.remove(record.chain_id)
            released.append(Released(record.chain_id, record.diff_id, size, record.size))
            size -= record.size
        return released

    def collect(self) -> None:
        """Delete driver layers that no row names, left by processes that died.  Does so once a process."""
        self._metadata.refuse_read_only()
        if self._collected:
            return
        self._collected = True
        with ExitStack() as stack, self._metadata.start_transaction() as transaction:
            for cache_id in set(self.driver.list_layers()) - self._metadata.owned():
                with suppress(LayerInUse, BlockingIOError):
                    self._abandon(cache_id)
                    stack.enter_context(self.driver.removing(cache_id))
                    transaction.settle()

    def _abandon(self, cache_id: CacheID) -> None:
        """Unmount an init layer whose maker has died.  Raises BlockingIOError when he lives."""
        with suppress(FileNotFoundError), closing(lock_handles(self.driver, cache_id, LOCK_EX | LOCK_NB)):
            self.driver.abandon(cache_id)

    def cleanup(self) -> None:
        """Delete whatever processes that died have left, now (moby: ``Cleanup``)."""
        self._collected = False
        self.collect()
        self.driver.cleanup()
