"""Whatever bytes are registered: the store then has the layer, and its tar for who asks, or is as it was."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wild
from support.arena import LIMITS, LOWER, Canary, harmful, state
from support.fsck import problems
from support.images import sha256
from support.layers import tree
from support.tars import Stream

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import InvalidLayer, NotReproducible
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata


@pytest.fixture(scope="module", params=[FuseDriver, VfsDriver], ids=["fuse", "vfs"])
def store(request, tmp_path_factory):
    """A layer store with one layer, a canary beside it."""
    place = tmp_path_factory.mktemp("fuzz")
    canary, root = Canary(place), place / "store"
    root.mkdir()
    database, driver = Database(root / "store.db"), request.param(root, place / "run")
    store = LayerStore(LayerMetadata(database), driver, LIMITS)
    lower = store.register(Stream(LOWER))
    before = state(driver.path / lower.record.cache_id)
    yield store, driver, root, lower.chain_id
    assert state(driver.path / lower.record.cache_id) == before
    canary.verify()
    store.release(lower)
    assert problems(root) == []
    database.close()


@settings(max_examples=60)
@given(st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_wild_archives(store, random, change, on_lower):
    store, driver, root, lower = store
    archive = wild.archive(random)
    if change:
        archive = wild.mutated(random, archive)
    before = store.map()
    try:
        layer = store.register(Stream(archive), lower if on_lower else None)
    except InvalidLayer:
        assert store.map() == before
    else:
        assert layer.diff_id == sha256(archive)
        with driver.union(layer.record.cache_id) as union:
            tree(union)
        assert harmful(driver.path) == []
        if layer.reproducible:
            with layer.tar_stream() as stream:
                assert stream.read() == archive
        else:
            with pytest.raises(NotReproducible):
                layer.tar_stream()
        store.release(layer)
    assert problems(root) == []
