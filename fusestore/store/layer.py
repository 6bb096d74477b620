"""`Layer`: the handle a caller holds on a registered layer.

Every call that gives a layer gives a new handle; handles compare by identity, and each keeps its layer from
being deleted, in this process or any other, until it is released (moby: ``getReference``).
"""

from __future__ import annotations

from fusestore.digest import ChainID, DiffID
from fusestore.driver.api import Held
from fusestore.store.metadata import LayerRecord


class Layer:
    """A registered read-only layer.  Release it with `LayerStore.release`."""

    def __init__(self, record: LayerRecord, size: int, held: Held) -> None:
        self.record = record
        self._size = size
        self._held = held

    @property
    def chain_id(self) -> ChainID:
        """The name of the layer and all below it."""
        return self.record.chain_id

    @property
    def diff_id(self) -> DiffID:
        """The digest of its tar."""
        return self.record.diff_id

    @property
    def parent(self) -> ChainID | None:
        """The chain ID of the layer below; None for a base layer."""
        return self.record.parent

    @property
    def size(self) -> int:
        """Bytes of files in the whole chain."""
        return self._size

    @property
    def diff_size(self) -> int:
        """Bytes of files in this layer."""
        return self.record.size

    @property
    def reproducible(self) -> bool:
        """False when the exact tar cannot be put together again (it held something twice)."""
        return self.record.reproducible

    def drop(self) -> None:
        """Let go of the layer's lock; `LayerStore.release` does."""
        self._held.close()

    def __repr__(self) -> str:
        return f"<Layer {self.chain_id}>"
