"""Layers are registered once, stay while anyone has a handle, and go when nothing needs them."""

import io
import os

import pytest
from support.fsck import problems
from support.images import sha256
from support.layers import paths, tree
from support.tars import END, Stream, folder, member, tar

from fusestore.digest import chain_id
from fusestore.driver.api import Limits
from fusestore.errors import (
    CorruptStore,
    DigestMismatch,
    InvalidLayer,
    LayerNotFound,
    LayerNotRetained,
    MaxDepthExceeded,
    NotSupported,
)
from fusestore.store.registered import MAX_DEPTH, Released

A, B, C, D = (tar(member(name, name * 10)) for name in (b"a", b"b", b"c", b"d"))


def register(store, *archives, parent=None):
    """A chain of layers; a handle on each."""
    handles = []
    for archive in archives:
        handles.append(store.register(Stream(archive), parent))
        parent = handles[-1].chain_id
    return handles


def names(store, layer):
    with store.driver.union(layer.record.cache_id) as union:
        return paths(union)


def test_register_computes_the_ids(layers):
    base, above = register(layers, A, B)
    assert (base.diff_id, base.chain_id, base.parent) == (sha256(A), sha256(A), None)
    assert (above.diff_id, above.parent) == (sha256(B), base.chain_id)
    assert above.chain_id == chain_id(base.chain_id, above.diff_id)
    assert set(layers.map()) == {base.chain_id, above.chain_id}
    assert names(layers, above) == [b"a", b"b"]


def test_the_diff_id_covers_what_follows_the_end_of_the_tar(layers):
    archive = A + bytes(7000) + b"rubbish"
    (layer,) = register(layers, archive)
    assert layer.diff_id == sha256(archive)
    assert names(layers, layer) == [b"a"]


@pytest.mark.parametrize("archive", [b"", bytes(512), END], ids=["nothing", "half", "moby's empty layer"])
def test_empty_layers(layers, archive):
    (layer,) = register(layers, archive)
    assert layer.diff_id == sha256(archive)
    assert (layer.size, names(layers, layer)) == (0, [])


def test_streams_that_dribble(layers):
    assert layers.register(Stream(A, 100)).diff_id == sha256(A)
    assert layers.register(io.BytesIO(B)).diff_id == sha256(B)


def test_layer_size(layers):
    base, above = register(
        layers, tar(member("x", b"1" * 13)), tar(member("y", b"1" * 14), member("x", b"2" * 13))
    )
    assert (base.diff_size, base.size) == (13, 13)
    assert (above.diff_size, above.size) == (27, 40)


def test_register_existing_layer(layers, store_root):
    first, second = layers.register(Stream(A)), layers.register(Stream(A))
    assert first is not second
    assert first.chain_id == second.chain_id
    assert first.record == second.record
    assert len(layers.map()) == len(layers.driver.list_layers()) == 1
    assert layers.release(first) == []
    assert names(layers, second) == [b"a"]
    assert [r.chain_id for r in layers.release(second)] == [second.chain_id]


def test_the_same_tar_on_different_parents_is_different_layers(layers):
    _, on_a = register(layers, A, C)
    _, on_b = register(layers, B, C)
    assert on_a.diff_id == on_b.diff_id
    assert on_a.chain_id != on_b.chain_id
    assert names(layers, on_a) == [b"a", b"c"]
    assert names(layers, on_b) == [b"b", b"c"]


def test_get(layers):
    (layer,) = register(layers, A)
    again = layers.get(layer.chain_id)
    assert again is not layer
    assert (again.chain_id, again.diff_id, again.parent, again.size) == (
        layer.chain_id,
        layer.diff_id,
        None,
        10,
    )


def test_get_of_what_is_not_there(layers):
    with pytest.raises(LayerNotFound, match="layer does not exist"):
        layers.get(sha256(b"nothing"))
    with pytest.raises(LayerNotFound):
        layers.register(Stream(A), sha256(b"nothing"))
    assert layers.map() == {}


def test_layer_release(layers):
    """L1 <- L2 <- {L3a, L3b}: what goes with whom, and what is told of it."""
    one, two, left = register(layers, A, B, C)
    (right,) = register(layers, D, parent=two.chain_id)
    assert layers.release(one) == []
    assert layers.release(two) == []
    assert len(layers.map()) == 4
    assert layers.release(right) == [Released(right.chain_id, sha256(D), 30, 10)]
    assert len(layers.map()) == 3
    assert layers.release(left) == [
        Released(left.chain_id, sha256(C), 30, 10),
        Released(two.chain_id, sha256(B), 20, 10),
        Released(one.chain_id, sha256(A), 10, 10),
    ]
    assert layers.map() == {}
    assert layers.driver.list_layers() == []


def test_a_parent_that_is_held_stays(layers):
    base, above = register(layers, A, B)
    assert [r.chain_id for r in layers.release(above)] == [above.chain_id]
    assert set(layers.map()) == {base.chain_id}
    assert [r.chain_id for r in layers.release(base)] == [base.chain_id]


def test_release_twice(layers):
    (layer,) = register(layers, A)
    layers.release(layer)
    with pytest.raises(LayerNotRetained):
        layers.release(layer)


def test_release_of_another_stores_handle(layers, reopened):
    (layer,) = register(layers, A)
    with pytest.raises(LayerNotRetained):
        reopened().release(layer)
    assert len(layers.map()) == 1


def test_store_restore(reopened):
    """Another process sees the same; a layer that nobody holds stays until somebody takes and releases it."""
    first = reopened()
    handles = register(first, A, B, C)
    second = reopened()
    assert second.map() == first.map()
    top = second.get(handles[2].chain_id)
    assert (top.record, top.size) == (handles[2].record, 30)
    for handle in reversed(handles):
        assert first.release(handle) == []
    assert [r.diff_id for r in second.release(top)] == [sha256(C), sha256(B), sha256(A)]
    assert first.map() == second.map() == {}


def test_a_layer_that_another_process_holds_stays(reopened):
    first, second = reopened(), reopened()
    (mine,) = register(first, A)
    theirs = second.get(mine.chain_id)
    assert first.release(mine) == []
    assert names(second, theirs) == [b"a"]
    assert len(second.release(theirs)) == 1


def test_a_layer_can_come_back(layers):
    for _ in range(2):
        base, above = register(layers, A, B)
        assert names(layers, above) == [b"a", b"b"]
        layers.release(base)
        layers.release(above)
        assert layers.map() == {}


def test_125_layers_and_no_more(layers):
    """moby: maxLayerDepth."""
    assert MAX_DEPTH == 125
    parent = None
    for i in range(125):
        layer = layers.register(Stream(tar(member(f"f{i % 5}", b"%d" % i))), parent)
        parent = layer.chain_id
    with layers.driver.union(layer.record.cache_id) as union:
        found = tree(union)
    assert {path: found[path].content for path in found if path} == {
        b"f%d" % i: b"12%d" % i for i in range(5)
    }
    with pytest.raises(MaxDepthExceeded, match="max depth exceeded"):
        layers.register(Stream(A), parent)
    assert len(layers.map()) == len(layers.driver.list_layers()) == 125


def test_not_reproducible_layers_say_so(layers):
    once, twice = register(layers, tar(member("x")), tar(member("x", b"1"), member("x", b"2")))
    assert (once.reproducible, twice.reproducible) == (True, False)
    assert layers.map()[twice.chain_id].reproducible is False


# -- registering fails ---------------------------------------------------------------------------------------


class Broken(Stream):
    """Breaks off with an error of the machine's."""

    def read(self, size, /):
        data = super().read(size)
        if not data:
            raise OSError(5, "Input/output error")
        return data


FAILURES = {
    "no tar": (Stream(b"this is no tar archive" * 100), InvalidLayer),
    "cut": (Stream(member("x", b"y" * 2000)[:-600]), InvalidLayer),
    "cut after good entries": (
        Stream(member("x", b"y") + folder("d") + member("z", b"y" * 2000)[:1000]),
        InvalidLayer,
    ),
    "escape": (Stream(tar(member("x"), member("../../x"))), InvalidLayer),
    "read error": (Broken(member("x", b"y" * 3000)), OSError),
    "read error behind the tar": (Broken(A), OSError),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_register_that_fails_leaves_nothing(layers, store_root, name):
    """graph's TestInterruptedRegister; and the same layer can be registered afterwards."""
    stream, error = FAILURES[name]
    stream.position = 0
    base = layers.register(Stream(A))
    with pytest.raises(error):
        layers.register(stream, base.chain_id)
    assert problems(store_root) == []
    assert set(layers.map()) == {base.chain_id}
    assert layers.register(Stream(B), base.chain_id).diff_id == sha256(B)


def test_a_wrong_diff_id_is_refused(layers, store_root):
    with pytest.raises(DigestMismatch) as caught:
        layers.register(Stream(A), None, sha256(B))
    assert (caught.value.expected, caught.value.actual) == (sha256(B), sha256(A))
    assert layers.map() == {}
    assert problems(store_root) == []
    assert layers.register(Stream(A), None, sha256(A)).diff_id == sha256(A)


def test_limits_of_a_store(reopened, store_root):
    layers = reopened()
    layers._limits = Limits(size=5)
    with pytest.raises(InvalidLayer, match="5 bytes"):
        layers.register(Stream(A))
    assert problems(store_root) == []


def test_an_interrupt_leaves_nothing(layers, store_root):
    class Interrupted(Stream):
        def read(self, size, /):
            if self.position:
                raise KeyboardInterrupt
            return super().read(600)

    with pytest.raises(KeyboardInterrupt):
        layers.register(Interrupted(A))
    assert problems(store_root) == []


# -- what dead processes left --------------------------------------------------------------------------------


def test_a_driver_layer_without_a_row_is_collected(reopened, store_root):
    """A process that died between publishing and committing."""
    first = reopened()
    (layer,) = register(first, A)
    first._metadata.remove(layer.chain_id)
    layer.drop()
    assert any("no row names it" in problem for problem in problems(store_root))
    second = reopened()
    assert second.register(Stream(B)).diff_id == sha256(B)
    assert problems(store_root) == []
    assert len(second.driver.list_layers()) == 1


def test_collecting_leaves_alone_what_somebody_makes_or_holds(reopened, store_root):
    first, second = reopened(), reopened()
    (held,) = register(first, A)

    class Meanwhile(Stream):
        def read(self, size, /):
            second.register(Stream(C))
            second.collect()
            return super().read(size)

    made = first.register(Meanwhile(B), held.chain_id)
    assert names(first, made) == [b"a", b"b"]
    assert len(second.map()) == 3


def test_a_layer_whose_directory_is_gone(layers, store_root):
    (layer,) = register(layers, A)
    home = store_root / layers.driver.name
    os.rename(home / layer.record.cache_id, store_root / "elsewhere")
    with pytest.raises((LayerNotFound, CorruptStore)):
        layers.get(layer.chain_id)
    os.rename(store_root / "elsewhere", home / layer.record.cache_id)
    assert layers.get(layer.chain_id).chain_id == layer.chain_id


def test_a_store_has_one_driver(reopened, store_root):
    layers = reopened()
    register(layers, A)
    other = {"fuse": "vfs", "vfs": "fuse"}[layers.driver.name]
    with pytest.raises(NotSupported, match=other):
        layers._metadata.claim(other)
