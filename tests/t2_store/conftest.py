"""Layer stores on both drivers, and a store that must not have changed."""

from contextlib import ExitStack

import pytest
from support.fsck import problems

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata


@pytest.fixture(params=[FuseDriver, VfsDriver], ids=["fuse", "vfs"])
def reopened(request, store_root, runroot):
    """Opens the same layer store as often as one likes, each time as another process would."""
    store_root.mkdir()
    runroot.mkdir()
    with ExitStack() as stack:

        def again():
            database = Database(store_root / "store.db")
            stack.callback(database.close)
            return LayerStore(LayerMetadata(database), request.param(store_root, runroot))

        yield again
    assert problems(store_root) == []


@pytest.fixture
def layers(reopened):
    """An empty layer store."""
    return reopened()
