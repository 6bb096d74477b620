"""Another fusestore's root, read without opening it as a store.

Oracle: the store itself.  The reader has a connection of its own and sees what was committed last; it makes
nothing, also where it could, and all it keeps others from is deleting what it holds.
"""

import io
import os
import sqlite3
from dataclasses import replace

import pytest
from support.fsck import problems
from support.images import oci, sha256
from support.layers import tree
from support.tars import folder, hard_link, member, tar

from fusestore import config
from fusestore.driver import below
from fusestore.driver.ownership import Ownership
from fusestore.errors import (
    BigDataNotFound,
    CorruptStore,
    ImageNotFound,
    LayerInUse,
    LayerNotFound,
    NotSupported,
)
from fusestore.store.additional import FusestoreRoot
from fusestore.store.storage import Store
from fusestore.store.tarsplit import assemble
from fusestore.transport.pipeline import load

TARS = (
    tar(folder("d", mode=0o700, uid=70), member("d/a", b"1" * 100, mode=0o4755), member("b", b"1")),
    tar(member("d/.wh.a"), member("d/c", b"2"), hard_link("d/e", "d/c")),
    tar(member(".wh.b"), member("f", b"3")),
)


@pytest.fixture(params=["fuse", "vfs"])
def options(request, store_root, runroot):
    return config.options(str(store_root), str(runroot), driver=request.param)


@pytest.fixture
def store(options, tmp_path):
    """With an image of three layers, a layer that takes changes, and one of which the exact tar is lost."""
    with Store(options=options) as store:
        load(store, f"oci:{oci(tmp_path / 'oci', *TARS)}")
        (image,) = store.images()
        store.create_layer("changing", image.top_layer, ["localhost/changing"])
        store.put_layer("twice", image.top_layer, diff=io.BytesIO(tar(member("x", b"1"), member("x", b"2"))))
        store.set_layer_big_data("changing", "Key", b"value")
        store.add_names(image.id, ["localhost/more:1"])
        yield store
    assert problems(options.graph_root) == []


@pytest.fixture
def root(store):
    root = FusestoreRoot(store.graph_root)
    yield root
    root.close()
    root.close()


def read_only(items):
    return [replace(item, read_only=True) for item in items]


def test_records_are_the_stores(store, root):
    assert (root.path, root.driver_name) == (store.graph_root, store.graph_driver_name)
    assert root.images() == read_only(store.images())
    assert root.layers() == read_only(store.layers())
    assert [root.layer(layer.id) for layer in store.layers()] == root.layers()
    assert [root.image(image.id) for image in store.images()] == root.images()
    assert root.layer("localhost/changing") is root.image("localhost/more:1") is root.layer("") is None
    assert dict(root.status())["Root"] == str(store.graph_root)


def test_what_the_store_commits_is_seen_at_once(store, root):
    (image,) = store.images()
    store.remove_names(image.id, ["localhost/more:1"])
    store.create_layer("new")
    assert "localhost/more:1" not in root.image(image.id).names
    assert root.layer("new") == replace(store.layer("new"), read_only=True)
    store.delete_layer("new")
    assert root.layer("new") is None
    for call in (root.specs, root.record, root.files, root.hold, root.unreadable):
        with pytest.raises(LayerNotFound):
            call("new")


def test_big_data_is_verified(store, root):
    (image,) = store.images()
    for key in image.big_data:
        assert root.big_data("image", image.id, key) == store.image_big_data(image.id, key)
    assert root.big_data("layer", "changing", "Key") == b"value"
    asked = [
        ("image", image.id, "Key", BigDataNotFound), ("image", "x", "Key", ImageNotFound),
        ("layer", "changing", "x", BigDataNotFound), ("layer", image.id, "x", LayerNotFound),
    ]  # fmt: skip
    for kind, item, key, error in asked:
        with pytest.raises(error):
            root.big_data(kind, item, key)
    (file,) = (store.graph_root / "big" / image.id).glob("manifest")
    data = file.read_bytes()
    file.write_bytes(b"changed")
    with pytest.raises(CorruptStore):
        root.big_data("image", image.id, "manifest")
    file.write_bytes(data)


def shown(root, layer):
    """What the directories of a layer show to a store that keeps owners otherwise."""
    with below.opened(root.specs(layer), Ownership.REAL, None) as union:
        return tree(union)


def test_trees_are_the_stores(store, root):
    (image,) = store.images()
    with store.union(image) as union:
        assert shown(root, image.top_layer) == tree(union)
    layer = store.layer(image.top_layer)
    while layer.parent:
        layer = store.layer(layer.parent)
        with store.graph_driver.union(store.layer_items.record(layer.id).cache_id) as union:
            assert shown(root, layer.id) == tree(union)
    assert shown(root, layer.id)[b"d"].uid == 70
    assert shown(root, "changing").keys() == shown(root, image.top_layer).keys()
    assert root.unreadable(image.top_layer) == (), "all files are ours, whatever the image says"


def test_tars_are_the_stores(store, root):
    for layer in store.layers():
        record = root.record(layer.id)
        if layer.id in ("changing", "twice"):
            assert record is None
            continue
        files = root.files(layer.id)
        with record:
            assert sha256(b"".join(assemble(record, files, layer.id))) == layer.uncompressed_digest
        files.close()


def test_a_layer_that_is_held_cannot_be_deleted(store, root):
    hold, files = root.hold("twice"), root.files("twice")
    for held in (hold, files):
        with pytest.raises(LayerInUse):
            store.delete_layer("twice")
        held.close()
        held.close()
    store.delete_layer("twice")
    with pytest.raises(LayerNotFound):
        root.hold("twice")


def test_a_root_that_is_closed_to_writing_is_read_and_stays_as_it_is(store, store_root):
    (image,) = store.images()
    with store.union(image) as union:
        expected = tree(union)
    big_data = store.image_big_data(image.id, "manifest")
    listed = read_only(store.images()), read_only(store.layers())
    store.close()
    paths = sorted([store_root, *store_root.rglob("*")])
    modes = {
        path: path.lstat().st_mode for path in paths if not path.is_symlink() and not path.is_char_device()
    }
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    locked = next(store_root.glob(f"*/{'?' * 64}/lock"))
    locked.chmod(0)
    try:
        root = FusestoreRoot(store_root)
        assert (root.images(), root.layers()) == listed
        assert root.big_data("image", image.id, "manifest") == big_data
        assert shown(root, image.top_layer) == expected
        specs = [spec for layer in root.layers() for spec in root.specs(layer.id)]
        assert {spec.lock for spec in specs if spec.path.startswith(str(locked.parent))} <= {None}
        for layer in root.layers():
            root.hold(layer.id).close()
        root.close()
        assert sorted([store_root, *store_root.rglob("*")]) == paths
    finally:
        for path, mode in modes.items():
            path.chmod(mode)


def test_what_it_has_borrowed_itself_is_found_where_it_is(store, root, tmp_path):
    with Store(
        options=config.options(
            str(tmp_path / "other"), str(tmp_path / "run"), additional_stores=[str(store.graph_root)]
        )
    ) as other:
        (image,) = store.images()
        other.create_layer("mine", image.top_layer)
        reader = FusestoreRoot(other.graph_root)
        assert shown(reader, "mine").keys() == shown(root, image.top_layer).keys()
        assert {spec.path for spec in root.specs(image.top_layer)} < {s.path for s in reader.specs("mine")}
        assert {layer.id for layer in reader.layers()} >= {"mine", image.top_layer}
        reader.close()
        other.delete_layer("mine")


def test_what_is_no_store_of_ours_is_refused(store, tmp_path):
    with pytest.raises(FileNotFoundError):
        FusestoreRoot(tmp_path)
    (tmp_path / "store.db").write_bytes(b"x" * 5000)
    with pytest.raises(CorruptStore):
        FusestoreRoot(tmp_path)
    (tmp_path / "newer").mkdir()
    with (
        sqlite3.connect(store.graph_root / "store.db") as here,
        sqlite3.connect(tmp_path / "newer/store.db") as copy,
    ):
        here.backup(copy)
        copy.execute("PRAGMA user_version = 99")
    here.close()
    copy.close()
    with pytest.raises(NotSupported):
        FusestoreRoot(tmp_path / "newer")


def test_damage_is_named(store, root):
    (image,) = store.images()
    (spec, *_) = root.specs(image.top_layer)
    os.rename(spec.path, spec.path + ".away")
    with pytest.raises(CorruptStore) as caught:
        root.specs(image.top_layer)
    assert caught.value.path == spec.path
    os.rename(spec.path + ".away", spec.path)
    home = store.graph_driver.path / "home.json"
    data = home.read_bytes()
    home.write_bytes(b"{}")
    with pytest.raises(CorruptStore) as caught:
        root.specs(image.top_layer)
    assert caught.value.path == str(home)
    home.write_bytes(data)


def test_an_empty_store_has_nothing(store_root, runroot):
    with Store(str(store_root), str(runroot)) as store:
        root = FusestoreRoot(store.graph_root)
        assert (root.images(), root.layers(), root.layer("x"), root.driver_name) == ([], [], None, "fuse")
        root.close()
