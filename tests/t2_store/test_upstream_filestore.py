"""moby's tests of what a layer store keeps on disk (layer/{filestore,empty,migration}_test.go), in our terms.

A transaction is the database's and a staged directory; what may be in its way is the store's ``tmp/``, the
driver's directory and its links.  An orphan is a layer of the driver that no row names.
"""

import io
import os

import pytest
from support.fsck import problems
from support.images import sha256
from support.layers import paths
from support.tars import END, Stream, member, tar

from fusestore.digest import create_chain_id, new_cache_id, parse_cache_id
from fusestore.errors import CorruptStore, NotAParent
from fusestore.store.layer import EMPTY_DIFF_ID, EmptyLayer, is_empty
from fusestore.store.migration import checksum_for_graph_id, register_by_graph_id


@pytest.fixture
def base(layers):
    """The chain ID of a layer."""
    return layers.register(Stream(tar(member("file")))).chain_id


def exact(layer):
    with layer.tar_stream() as stream:
        return stream.read()


# -- digests, names, the empty layer -----------------------------------------------------------------------

A, B, AB = (
    "sha256:" + digits
    for digits in (
        "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
        "51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676",
    )
)


@pytest.mark.parametrize(("diff_ids", "chain_id"), [([], None), ([A], A), ([B], B), ([A, B], AB)])
def test_create_chain_id(diff_ids, chain_id):
    assert create_chain_id(diff_ids) == chain_id


@pytest.mark.parametrize(
    ("name", "is_valid"),
    [
        ("b" * 64, True),
        ("0123456789abcdef" * 4, True),
        ("b" * 64 + "-init", False),  # moby's; init layers have names of their own here
        ("b" * 63, False),
        ("b" * 65, False),
        ("B" * 64, False),
        ("g" * 64, False),
        ("b" * 64 + "\n", False),
        ("", False),
        ("-init", False),
    ],
)
def test_is_valid_id(name, is_valid):
    if is_valid:
        assert parse_cache_id(name) == name
    else:
        with pytest.raises(ValueError, match="not a cache ID"):
            parse_cache_id(name)


def test_empty_layer(layers):
    """It is what registering the tar of nothing gives."""
    empty, registered = EmptyLayer(), layers.register(io.BytesIO(END))
    for name in ("chain_id", "diff_id", "parent", "size", "diff_size", "reproducible"):
        assert getattr(empty, name) == getattr(registered, name)
    assert exact(empty) == exact(registered) == END
    assert empty.metadata() == {}
    assert empty.tar_stream_from(None).read() == END
    with pytest.raises(NotAParent):
        empty.tar_stream_from(registered.chain_id)
    assert is_empty(EMPTY_DIFF_ID)
    assert sha256(END) == EMPTY_DIFF_ID
    assert not is_empty(sha256(b""))


# -- filestore_test.go: what is in the way, and what was left behind ---------------------------------------


def in_the_way(place):
    """A file where a directory belongs."""
    place.rename(f"{place}.away")
    place.touch()


def out_of_the_way(place):
    place.unlink()
    os.rename(f"{place}.away", place)


HINDRANCES = {
    "a file": (in_the_way, out_of_the_way, NotADirectoryError),
    "unwritable": (lambda place: place.chmod(0o500), lambda place: place.chmod(0o700), PermissionError),
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
@pytest.mark.parametrize("where", ["tmp", ".", "l"])
def test_start_transaction_and_commit_failure(layers, store_root, base, where, hindrance):
    """The error is the machine's own; nothing is half made, and all of it works once the cause is gone."""
    hinder, repair, error = HINDRANCES[hindrance]
    place = store_root / "tmp" if where == "tmp" else layers.driver.path / where
    rw = layers.create_rw_layer("before", base)
    before = layers.map(), layers.rw_layers()
    made = [
        lambda: layers.register(Stream(tar(member("new"))), None),
        lambda: layers.register(Stream(tar(member("new"))), base),
        lambda: layers.create_rw_layer("new", None),
        lambda: layers.create_rw_layer("newer", base),
        lambda: layers.create_rw_layer("newest", base, init_func=os.listdir),
        lambda: layers.commit(rw),
    ]
    hinder(place)
    try:
        for make in made:
            with pytest.raises((error, CorruptStore)) as caught:
                make()
            assert str(place) in str(caught.value) or isinstance(caught.value, CorruptStore)
            assert (layers.map(), layers.rw_layers()) == before
    finally:
        repair(place)
    assert problems(store_root) == []
    assert all(make() for make in made)


@pytest.mark.parametrize("name", ["tmp", "driver"])
def test_opening_a_store_with_a_file_in_place_of_a_directory(reopened, store_root, name):
    place = store_root / "tmp" if name == "tmp" else reopened().driver.path
    if name == "tmp":
        reopened()
    in_the_way(place)
    try:
        with pytest.raises(OSError, match=str(place)):
            reopened()
    finally:
        out_of_the_way(place)
    assert reopened().map() == {}


def test_get_orphan(layers, store_root):
    """None for a layer that is there, one for a layer whose row went first; `cleanup` takes it away."""
    layer, orphan = (
        layers.register(Stream(archive)) for archive in (tar(member("layer1.txt")), tar(member("layer2.txt")))
    )
    layers.cleanup()
    assert len(layers.driver.list_layers()) == 2
    layers._metadata.remove(orphan.chain_id)
    orphan.drop()
    (layers.driver.path / layer.record.cache_id).with_name("not-a-cache-id").mkdir()
    os.rename(layers.driver.path / "not-a-cache-id", store_root / "tmp" / f"{'0' * 64}-removing")
    assert len(problems(store_root)) == 3  # the layer, its link, what was being removed
    layers.cleanup()
    assert problems(store_root) == []
    with layers.driver.union(layer.record.cache_id) as union:
        assert paths(union) == [b"layer1.txt"]
    assert layers.driver.list_layers() == [layer.record.cache_id]


# -- migration_test.go -------------------------------------------------------------------------------------


def test_layer_migration_no_tarsplit(layers, tmp_path):
    """A driver's own layer becomes the layer that registering its diff makes, whichever comes first."""
    driver, below, graph, tars = layers.driver, None, [], []
    for name in ("first", "second"):
        graph.append(new_cache_id())
        driver.create(graph[-1], below)
        driver.apply_diff(graph[-1], Stream(tar(member(name, name.encode() * 100))))
        tars.append(b"".join(driver.diff(graph[-1], below)))
        below = graph[-1]
    held = [driver.hold(graph_id) for graph_id in graph]
    diff_id, size = checksum_for_graph_id(layers, graph[0], None, tmp_path / "first")
    assert (diff_id, size) == (sha256(tars[0]), 500)
    adopted = register_by_graph_id(layers, graph[0], None, diff_id, tmp_path / "first", size)
    registered = layers.register(Stream(tars[0]))
    assert registered.record == adopted.record
    assert (adopted.diff_size, layers.driver.diff_size(graph[0], None)) == (500, 500)
    assert registered.record.cache_id == graph[0]
    assert exact(adopted) == tars[0]

    child = layers.register(Stream(tars[1]), adopted.chain_id)
    diff_id, size = checksum_for_graph_id(layers, graph[1], graph[0], tmp_path / "second")
    again = register_by_graph_id(layers, graph[1], adopted.chain_id, diff_id, tmp_path / "second", size)
    assert again.record == child.record
    assert again.record.cache_id != graph[1]
    assert exact(again) == tars[1]

    for hold in held:
        hold.close()
    layers.cleanup()
    assert graph[1] not in driver.list_layers()
    assert layers.release(adopted) == layers.release(again) == layers.release(registered) == []
    assert [gone.diff_id for gone in layers.release(child)] == [sha256(tars[1]), sha256(tars[0])]
