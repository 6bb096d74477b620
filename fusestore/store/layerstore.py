"""`LayerStore`: register layers from tars, get them by chain ID, release them (moby: ``layer.Store``).

Registering unpacks into a staged layer while hashing, and names it last.  Two callers who register the same
layer at once both get a handle on one layer; whoever comes second throws his own work away.  Releasing the
last handle of a layer that no child and no image needs deletes it, and then its parents under the same
condition.
"""

from __future__ import annotations

import sqlite3
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from fusestore.digest import ChainID, DiffID, HashingReader, Readable, chain_id, new_cache_id
from fusestore.driver.api import Driver, Held, Limits
from fusestore.errors import DigestMismatch, LayerInUse, LayerNotFound, LayerNotRetained, MaxDepthExceeded
from fusestore.store.layer import Layer
from fusestore.store.metadata import LayerMetadata, LayerRecord, new_record

#: moby's: "127 max in some graphdrivers plus the 2 additional layers used to create a rwlayer".
MAX_DEPTH = 125


@dataclass(frozen=True, slots=True)
class Released:
    """A layer that `release` deleted.  Sizes in bytes: of the chain, and of the layer alone."""

    chain_id: ChainID
    diff_id: DiffID
    size: int
    diff_size: int


class LayerStore:
    """All layers of a store, kept by one driver."""

    def __init__(self, metadata: LayerMetadata, driver: Driver, limits: Limits | None = None) -> None:
        metadata.claim(driver.name)
        self._metadata = metadata
        self._driver = driver
        self._limits = limits or Limits()
        self._handles: set[Layer] = set()
        self._collected = False

    # -- register -------------------------------------------------------------------------------------

    def register(
        self, stream: Readable, parent: ChainID | None = None, expected: DiffID | None = None
    ) -> Layer:
        """Unpack the uncompressed tar `stream` as a layer on top of `parent`; a handle on it.

        A layer that exists already is no error.  `expected` is the diff ID it must turn out to have.

        Raises LayerNotFound, MaxDepthExceeded, InvalidLayer, DigestMismatch, OSError; the store is then as
        it was.
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
            stack.callback(self._driver.discard, cache_id)
            self._driver.create(cache_id, below)
            reader = HashingReader(stream)
            applied = self._driver.apply_diff(cache_id, reader, self._limits)
            reader.drain()
            diff_id = DiffID(reader.digest())
            if expected is not None and diff_id != expected:
                raise DigestMismatch("layer", expected, diff_id)
            name = chain_id(parent, diff_id)
            record = new_record(name, diff_id, parent, cache_id, applied.size, applied.reproducible)
            return self._commit(record, chain)

    def _commit(self, record: LayerRecord, chain: list[LayerRecord]) -> Layer:
        """Name a staged layer, or take the one of that name that is there by now."""
        published: Held | None = None
        try:
            with self._metadata.database.transaction():
                present = self._metadata.find(record.chain_id)
                if present is not None:
                    return self._handle(present, chain, self._driver.hold(present.cache_id))
                self._metadata.add(record)
                published = self._driver.publish(record.cache_id)
        except BaseException as exc:
            if published is not None:
                published.close()
                with self._driver.removing(record.cache_id):
                    pass
            if isinstance(exc, sqlite3.IntegrityError):
                raise LayerNotFound(str(record.parent)) from None
            raise
        return self._handle(record, chain, published)

    def _handle(self, record: LayerRecord, chain: list[LayerRecord], held: Held) -> Layer:
        layer = Layer(record, record.size + sum(below.size for below in chain), held)
        self._handles.add(layer)
        return layer

    def _hold(self, record: LayerRecord) -> Held:
        try:
            return self._driver.hold(record.cache_id)
        except FileNotFoundError:
            raise LayerNotFound(record.chain_id) from None

    # -- get and release ------------------------------------------------------------------------------

    def get(self, chain_id: ChainID) -> Layer:
        """A new handle on a layer.  Raises LayerNotFound."""
        chain = self._metadata.chain(chain_id)
        return self._handle(chain[0], chain[1:], self._hold(chain[0]))

    def map(self) -> dict[ChainID, LayerRecord]:
        """A snapshot of all layers.  Takes no handles."""
        return {record.chain_id: record for record in self._metadata.all()}

    def release(self, layer: Layer) -> list[Released]:
        """Give a handle back; the layers that were deleted because nothing needs them, topmost first.

        Raises LayerNotRetained for a handle that is not (or no longer) one of this store's.
        """
        if layer not in self._handles:
            raise LayerNotRetained(layer.chain_id)
        self._handles.remove(layer)
        layer.drop()
        return self.delete_unneeded(layer.chain_id)

    def delete_unneeded(self, chain_id: ChainID | None, stack: ExitStack | None = None) -> list[Released]:
        """Delete the layer unless somebody needs it, then its parent likewise, and so on down.

        Files go when `stack` is left, which must be after the transaction around this call; without one,
        here. With one, raises LayerInUse if the layer is not needed but held; without, a held layer stays.
        """
        if stack is None:
            with ExitStack() as stack, self._metadata.database.transaction():
                try:
                    return self._unname(chain_id, stack)
                except LayerInUse:
                    return []
        return self._unname(chain_id, stack)

    def _unname(self, chain_id: ChainID | None, stack: ExitStack) -> list[Released]:
        released: list[Released] = []
        chain = self._metadata.chain(chain_id) if chain_id and self._metadata.find(chain_id) else []
        size = sum(record.size for record in chain)
        for record in chain:
            if self._metadata.is_needed(record.chain_id):
                break
            try:
                stack.enter_context(self._driver.removing(record.cache_id))
            except LayerInUse:
                if not released:
                    raise
                break
            self._metadata.remove(record.chain_id)
            released.append(Released(record.chain_id, record.diff_id, size, record.size))
            size -= record.size
        return released

    def collect(self) -> None:
        """Delete driver layers that no row names, left by processes that died.  Does so once a process."""
        if self._collected:
            return
        self._collected = True
        with ExitStack() as stack, self._metadata.database.transaction():
            named = {record.cache_id for record in self._metadata.all()}
            for cache_id in self._driver.list_layers():
                if cache_id not in named:
                    with suppress(LayerInUse):
                        stack.enter_context(self._driver.removing(cache_id))
