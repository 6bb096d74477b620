"""Adopt layers that a graphdriver has already, without unpacking them again (moby: ``layer/migration.go``).

A store of docker before 1.10 knew its layers by random graph IDs.  Each becomes a registered layer in two
steps: `checksum_for_graph_id` makes the tar that it would be and records it, `register_by_graph_id` names it.
Nobody names the driver's layer before, so a collector would delete it: hold it (`Driver.hold`) until the end.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from fusestore.digest import CacheID, ChainID, DiffID, HashingReader, chain_id
from fusestore.store.layer import Layer
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerRecord
from fusestore.store.tarsplit import RECORD, Writer
from fusestore.tar import TarReader
from fusestore.tar_stream import tar_stream


def checksum_for_graph_id(
    store: LayerStore, graph_id: CacheID, parent: CacheID | None, record: Path
) -> tuple[DiffID, int]:
    """The diff ID of a driver's layer as a change of `parent`, and bytes of files in it.

    The layer is frozen; the tar-split of its tar is written to the new file `record`.  Raises
    FileNotFoundError when the driver does not have it, OSError.
    """
    store.driver.freeze(graph_id)
    with tar_stream(store.driver.diff(graph_id, parent)) as stream, record.open("xb") as file:
        hashing = HashingReader(stream)
        reader = TarReader(hashing, Writer(file))
        for member in reader:
            if member.size:
                for _ in reader.chunks():
                    pass  # so that the record counts it as the content of a file
        reader.drain()
    return DiffID(hashing.digest()), store.driver.diff_size(graph_id, parent)


def register_by_graph_id(
    store: LayerStore, graph_id: CacheID, parent: ChainID | None, diff_id: DiffID, record: Path, size: int
) -> Layer:
    """Name a driver's layer; a handle on it.  The last arguments are what `checksum_for_graph_id` made.

    Where the store has that layer already, a handle on the one it has; then `graph_id` is left to be
    collected.  Raises LayerNotFound, FileNotFoundError, OSError.
    """
    copyfile(record, store.driver.notes(graph_id) / RECORD)
    return store.adopt(
        LayerRecord(chain_id(parent, diff_id), diff_id, parent, graph_id, size, reproducible=True)
    )
