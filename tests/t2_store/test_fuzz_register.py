"""Whatever bytes are registered: the store then has the layer, and its tar for who asks, or is as it was."""

from contextlib import nullcontext, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wild
from support.arena import LOWER, Canary, harmful, state
from support.fsck import problems
from support.images import sha256
from support.layers import tree
from support.tars import Stream, member, tar

from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import InvalidLayer, NotReproducible
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata

LIMITS = Limits(size=64 << 20, entries=500)


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


@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_wild_archives_on_an_rw_layer(store, random):
    """Three on one layer, where each meets the symlinks of those before; what comes of it is committed."""
    store, driver, root, lower = store
    before, archives = store.map(), [wild.archive(random) for _ in range(3)]
    layer = store.create_rw_layer("rw", lower)
    try:
        for archive in archives:
            shown = seen(driver, layer.record.mount_id)
            try:
                layer.apply_diff(Stream(archive))
            except InvalidLayer:
                assert seen(driver, layer.record.mount_id) == shown
        shown = seen(driver, layer.record.mount_id)
        with suppress(InvalidLayer) if sum(e.size for e in shown.values()) > LIMITS.size else nullcontext():
            committed = store.commit(layer)
            there = seen(driver, committed.record.cache_id)
            store.release(committed)
            assert there == shown
        assert harmful(driver.path) == []
    finally:
        store.release_rw_layer(layer)
    assert store.map() == before
    assert problems(root) == []


def seen(driver, layer):
    """The tree, without inode numbers and counts of links, which a tar does not say of lower files.

    Nor with the content of files on vfs, which takes one for unchanged that has the size and time it had.
    """
    with driver.union(layer) as union:
        found = {path: entry._replace(ino=0, nlink=0) for path, entry in tree(union).items()}
    if driver.name == "vfs":
        return {path: entry._replace(content=None) for path, entry in found.items()}
    return found


def test_a_change_of_nothing_but_content_is_committed(store):
    """As in packages whose times are clamped."""
    store, driver, _, lower = store
    layer = store.create_rw_layer("rw", lower)
    layer.apply_diff(Stream(tar(member("low/sub/x", b"2"))))
    committed = store.commit(layer)
    with driver.union(committed.record.cache_id) as union:
        found = tree(union)[b"low/sub/x"].content
    store.release_rw_layer(layer)
    store.release(committed)
    assert found == (b"1" if driver.name == "vfs" else b"2")
