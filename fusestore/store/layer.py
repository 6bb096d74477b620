"""Handles on layers: `Layer` on a registered one, `RWLayer` on one that takes changes.

Every call that gives a layer gives a new handle; handles compare by identity, and each keeps its layer from
being deleted, in this process or any other, until it is released (moby: ``getReference``).  Handles belong to
the store that gave them and are for one thread at a time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH
from pathlib import Path

from fusestore.digest import CacheID, ChainID, DiffID, Readable
from fusestore.driver.api import Change, Driver, Held
from fusestore.errors import (
    CorruptStore,
    LayerInUse,
    LayerNotFound,
    NotAParent,
    NotMounted,
    NotReproducible,
    RWLayerNotFound,
)
from fusestore.files import Hold, lock
from fusestore.store.metadata import LayerRecord, MetadataStore, RWRecord
from fusestore.store.tarsplit import RECORD, assemble
from fusestore.tar_stream import tar_stream
from fusestore.tar_writer import END

_HANDLES = "handles"  # a file in the directory of an RW layer, locked by every handle on it

#: The tar of nothing, 1,024 zero bytes (moby: ``layer.DigestSHA256EmptyTar``).
EMPTY_DIFF_ID = DiffID("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")


class Layer:
    """A registered read-only layer.  Release it with `LayerStore.release`."""

    def __init__(
        self, record: LayerRecord, size: int, held: Held, metadata: MetadataStore, driver: Driver
    ) -> None:
        self.record = record
        self._size = size
        self._held = held
        self._metadata, self._driver = metadata, driver

    @property
    def chain_id(self) -> ChainID:
        """The name of the layer and all below it."""
        return self.record.chain_id

    @property
    def diff_id(self) -> DiffID:
        """The digest of its tar."""
        assert self.record.diff_id is not None, "a registered layer has one"
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

    @property
    def descriptor(self) -> Mapping[str, object]:
        """What it was downloaded as (`LayerStore.register_with_descriptor`); empty where it was not."""
        return self.record.descriptor

    def metadata(self) -> dict[str, str]:
        """Where the driver keeps it."""
        return self._driver.metadata(self._id())

    def tar_stream(self) -> io.BufferedReader:
        """The exact tar that was registered, as a file to read and close.

        It stays readable when the handle is released.  Raises NotReproducible; its reads raise CorruptStore
        when the layer's files or its tar-split record have been changed (moby: ``verifiedReadCloser``).
        """
        self._id()
        return exact_tar(self._driver, self.record)

    def tar_stream_from(self, parent: ChainID | None) -> io.BufferedReader:
        """What makes this layer out of `parent`, a layer below it (None: everything), as a tar.

        The bytes are ours, the same each time, and not those of any tar registered.  Raises NotAParent.
        """
        self._id()
        below = {record.chain_id: record.cache_id for record in self._metadata.chain(self.parent)}
        if parent is not None and parent not in below:
            raise NotAParent(parent)
        return tar_stream(self._driver.diff(self.record.cache_id, below[parent] if parent else None))

    def _id(self) -> CacheID:
        """The driver's layer, which is there.  Raises LayerNotFound, CorruptStore."""
        if not self._driver.exists(self.record.cache_id):
            if self._metadata.get(self.chain_id).cache_id == self.record.cache_id:
                raise CorruptStore(self.chain_id, "the files of this layer are gone")
            raise LayerNotFound(self.chain_id)  # it was deleted, and made again
        return self.record.cache_id

    def drop(self) -> None:
        """Let go of the layer's lock; `LayerStore.release` does."""
        self._held.close()

    def keep(self, held: Held) -> None:
        """The opposite: a release has failed."""
        self._held = held

    def __repr__(self) -> str:
        return f"<Layer {self.chain_id}>"


def exact_tar(driver: Driver, record: LayerRecord) -> io.BufferedReader:
    """The exact tar of a layer, as a file to read and close; see `Layer.tar_stream`."""
    if not record.reproducible:
        raise NotReproducible(record.chain_id)
    path = driver.notes(record.cache_id) / RECORD
    files = driver.diff_getter(record.cache_id)
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        files.close()
        raise CorruptStore(str(path), "the layer's tar-split record is missing") from None

    def close() -> None:
        stream.close()
        files.close()

    return tar_stream(assemble(stream, files, record.chain_id), record.diff_id, close)


class EmptyLayer:
    """The layer of an empty tar, which no store needs to keep (moby: ``layer.EmptyLayer``)."""

    chain_id = ChainID(EMPTY_DIFF_ID)
    diff_id = EMPTY_DIFF_ID
    parent = None
    size = diff_size = 0
    reproducible = True

    def metadata(self) -> dict[str, str]:
        """It is nowhere."""
        return {}

    def tar_stream(self) -> io.BufferedReader:
        """1,024 zero bytes."""
        return tar_stream(iter((END,)), self.diff_id)

    def tar_stream_from(self, parent: ChainID | None) -> io.BufferedReader:
        """The same, of nothing.  Raises NotAParent."""
        if parent is not None:
            raise NotAParent(parent)
        return self.tar_stream()


def is_empty(diff_id: DiffID) -> bool:
    """True for the layer of an empty tar (moby: ``layer.IsEmpty``)."""
    return diff_id == EMPTY_DIFF_ID


def lock_handles(driver: Driver, cache_id: CacheID, operation: int) -> Held:
    """Lock what every handle on an RW layer, and the maker of an init layer, has locked shared.

    A mount does not have it.  Raises BlockingIOError for LOCK_NB, FileNotFoundError when the layer is gone.
    """
    return Hold(lock(driver.notes(cache_id) / _HANDLES, operation, os.O_CREAT))


class RWLayer:
    """A layer that takes changes, by name.  Release it with `LayerStore.release_rw_layer`.

    When its files are gone, all methods that need them raise CorruptStore; it can be released.
    """

    def __init__(self, record: RWRecord, metadata: MetadataStore, driver: Driver) -> None:
        self.record = record
        self._held: Held | None = None
        self._metadata, self._driver = metadata, driver

    @property
    def name(self) -> str:
        """The name it was made with."""
        return self.record.name

    @property
    def parent(self) -> ChainID | None:
        """The registered layer that it is on; None when there is none."""
        return self.record.parent

    @property
    def path(self) -> Path:
        """Where it is mounted.  Raises NotMounted."""
        if not self._driver.mounted(self.record.mount_id):
            raise NotMounted(self.name)
        path = self.mount()
        self._driver.put(self.record.mount_id)
        return path

    def mount(self) -> Path:
        """Mount it, or count one more user of its mount; the directory.  Each has to be unmounted.

        Raises what the driver's `get` raises.
        """
        return Path(os.fsdecode(self._driver.get(self._id())))

    def unmount(self) -> None:
        """Give back one `mount`; the last one takes the directory away.  Raises NotMounted."""
        if not self._driver.mounted(self.record.mount_id):
            raise NotMounted(self.name)
        self._driver.put(self.record.mount_id)

    def changes(self) -> list[Change]:
        """What has been changed since it was made, sorted by path; what its init function did is not."""
        return self._driver.changes(self._id(), self._below())

    def tar_stream(self) -> io.BufferedReader:
        """The changes as a layer tar, the same bytes each time."""
        return tar_stream(self._driver.diff(self._id(), self._below()))

    def size(self) -> int:
        """Bytes of files in that tar."""
        return self._driver.diff_size(self._id(), self._below())

    def apply_diff(self, stream: Readable) -> int:
        """Carry out what the uncompressed layer tar `stream` says; bytes of files in it.

        Raises InvalidLayer, LayerInUse while it is mounted.
        """
        return self._driver.apply_diff(self._id(), stream).size

    def metadata(self) -> dict[str, str]:
        """Where the driver keeps it; ``ID`` is its name."""
        return {"ID": self.name} | self._driver.metadata(self._id())

    def _id(self) -> CacheID:
        """The driver's layer, which is there, as is the one below it."""
        self.verify_named()
        for cache_id in filter(None, (self.record.mount_id, self.record.init_id)):
            if not self._driver.exists(cache_id):
                raise CorruptStore(
                    self.name, "the files of this RW layer are gone; release it and make another"
                )
        return self.record.mount_id

    def verify_named(self) -> None:
        """Raises RWLayerNotFound when the layer is gone, also when its name has another one by now."""
        if self._metadata.get_mount(self.name).mount_id != self.record.mount_id:
            raise RWLayerNotFound(self.name)

    def _below(self) -> CacheID | None:
        """The driver's layer that it is compared with."""
        if self.record.init_id is not None or self.parent is None:
            return self.record.init_id
        return self._metadata.get(self.parent).cache_id

    def keep(self) -> None:
        """Have all processes know of this handle.  Raises RWLayerNotFound when the layer was just deleted."""
        held: Held | None = None
        try:
            held = self._lock(LOCK_SH)
        except FileNotFoundError:  # its files are gone; all it is good for is to be released
            pass
        try:
            self.verify_named()
        except RWLayerNotFound:
            if held is not None:
                held.close()
            raise
        self._held = held

    def drop(self) -> None:
        """Let them forget it; `LayerStore.release_rw_layer` does."""
        if self._held is not None:
            self._held.close()

    def alone(self) -> Held | None:
        """A lock that no handle has, until it is closed; None when the files are gone.  Raises LayerInUse.

        To be called inside a transaction.
        """
        try:
            return self._lock(LOCK_EX | LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            raise LayerInUse(self.name, "there is another handle on it") from None

    def _lock(self, operation: int) -> Held:
        return lock_handles(self._driver, self.record.mount_id, operation)

    def __repr__(self) -> str:
        return f"<RWLayer {self.name}>"
