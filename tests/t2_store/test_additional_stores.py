"""Another fusestore's root behind a store: read, built upon and never written (stores.bats).

The other store is closed to writing all the while and looked at afterwards: not a byte of it, not a time has
changed.  With mounts the same is in t4_mount/test_store_bats_additional; podman's stores: test_graphroot*.
"""

import shutil

import pytest
from support import stores
from support.fsck import problems
from support.layers import paths
from support.stores import ABOVE, JUNK, TREE, A, B, changes, contents, opened
from support.tars import Stream, member, tar

from fusestore.config import StoreOptions
from fusestore.errors import (
    CorruptStore,
    ImageUsedByContainer,
    InvalidLayer,
    LayerNotFound,
    NotMounted,
    NotSupported,
    StoreIsReadOnly,
)
from fusestore.store.storage import Store


def lend(root, runroot, driver, *, image="ro-image", names=("ro-name",)):
    """Make a store with the layers ro-lower and ro-upper and an image on them."""
    with opened(root, runroot, driver) as store:
        store.put_layer("ro-lower", names=["lower-name"], diff=Stream(TREE))
        store.put_layer("ro-upper", "ro-lower", ["upper-name"], diff=Stream(ABOVE))
        store.set_layer_big_data("ro-upper", "key", b"of the layer")
        store.set_metadata("ro-upper", "text")
        big_data = {"manifest": b"{}", "Key": b"of the image"}
        store.create_image(image, names, "ro-upper", "metadata", created=1000, big_data=big_data)
        store.create_container("ro-container", ["ro-container-name"], image)


@pytest.fixture(params=stores.DRIVERS)
def ro(request, tmp_path):
    """The root of another store, made by either driver."""
    root = tmp_path / "ro"
    lend(root, tmp_path / "ro-run", request.param)
    before = stores.close_to_writing(root)
    yield root
    assert stores.snapshot(root) == before
    stores.open_to_writing(root)


@pytest.fixture
def store(ro, store_root, runroot):
    with opened(store_root, runroot, "fuse", ro) as store:
        yield store
    assert problems(store_root) == []


def rows(store):
    """The ids that are rows of the store's own."""
    return [layer.id for layer in store.layer_items.all()]


# -- looking ------------------------------------------------------------------------------------------


def test_all_of_it_is_listed_and_found_as_read_only(store):
    assert [(layer.id, layer.read_only) for layer in store.layers()] == [
        ("ro-lower", True), ("ro-upper", True), *((layer.id, True) for layer in store.layers()[2:]),
    ]  # fmt: skip
    assert [(image.id, image.read_only) for image in store.images()] == [("ro-image", True)]
    assert store.containers() == []
    for word, item in {
        "ro-upper": "ro-upper", "upper-name": "ro-upper", "ro-u": "ro-upper",
        "ro-name": "ro-image", "ro-image": "ro-image", "ro-i": "ro-image",
    }.items():  # fmt: skip
        assert (store.lookup(word), store.any(word).read_only) == (item, True)
    assert store.exists("ro-container-name") is False
    image = store.image("ro-name")
    assert (image.names, image.metadata, image.created) == (("ro-name",), "metadata", 1000)
    assert (store.names("ro-upper"), store.metadata("upper-name")) == (("upper-name",), "text")
    assert [store.path for store in store.ro_image_stores] == [store.path for store in store.ro_layer_stores]
    assert rows(store) == []


def test_big_data_digests_and_sizes_are_read_there(store):
    assert store.list_image_big_data("ro-name") == ["Key", "manifest"]
    assert store.image_big_data("ro-name", "Key") == b"of the image"
    assert store.image_big_data_size("ro-image", "Key") == 12
    assert store.layer_big_data("upper-name", "key") == b"of the layer"
    assert [i.id for i in store.images_by_digest(store.image_big_data_digest("ro-name", "manifest"))] == [
        "ro-image"
    ]
    assert [i.id for i in store.images_by_top_layer("upper-name")] == ["ro-image"]
    digest = store.layer("ro-upper").uncompressed_digest
    assert [layer.id for layer in store.layers_by_uncompressed_digest(digest)] == ["ro-upper"]
    assert store.layer_size("upper-name") == len(ABOVE)
    assert store.image_size("ro-name") == len(TREE) + len(ABOVE) + 14


def test_changes_diffs_and_trees_of_its_layers(store):
    assert [line for line in changes(store, "", "ro-upper") if line != "C etc"] == ["D etc/motd", "A new"]
    assert changes(store, "", "lower-name") == ["A etc", "A etc/issue", "A etc/motd"]
    assert (store.diff_size("", "ro-lower"), store.diff_size("ro-lower", "ro-upper")) == (706, 3)
    for from_, to, archive in (
        ("", "ro-lower", TREE),
        ("", "upper-name", ABOVE),
        ("ro-lower", "ro-upper", ABOVE),
    ):
        with store.diff(from_, to) as stream:
            assert stream.read() == archive
    with store.union(store.image("ro-name")) as union:
        assert paths(union) == [b"etc", b"etc/issue", b"new"]
    assert rows(store) == []


def test_nothing_of_it_is_changed(store):
    before = contents(store)
    for call in (
        lambda: store.delete_layer("ro-upper"),
        lambda: store.delete_image("ro-name"),
        lambda: store.delete_image("ro-name", commit=False),
        lambda: store.delete("ro-upper"),
        lambda: store.delete("ro-name"),
        lambda: store.set_metadata("ro-upper", "x"),
        lambda: store.set_metadata("ro-image", "x"),
        lambda: store.set_flag("ro-image", "x", 1),
        lambda: store.clear_flag("ro-upper", "x"),
        lambda: store.set_names("ro-upper", ["x"]),
        lambda: store.add_names("upper-name", ["x"]),
        lambda: store.set_image_big_data("ro-name", "x", b""),
        lambda: store.set_layer_big_data("ro-upper", "x", b""),
        lambda: store.apply_diff("ro-upper", Stream(A)),
    ):
        with pytest.raises(StoreIsReadOnly, match="read-only"):
            call()
    assert contents(store) == before
    store.wipe()
    store.shutdown(force=True)
    assert contents(store) == before


# -- building on it -----------------------------------------------------------------------------------


def test_layers_images_and_containers_on_top_of_it(store):
    own = store.put_layer("own", "upper-name", diff=Stream(tar(member("etc/.wh.issue"), member("own", b"o"))))
    assert own.parent == "ro-upper"
    assert [line for line in changes(store, "", "own") if line != "C etc"] == ["D etc/issue", "A own"]
    image = store.create_image("img", ["own-image"], "own")
    assert (image.size, [layer.id for layer in store.chain(image)]) == (710, ["own", "ro-upper", "ro-lower"])
    with store.union(image) as union:
        assert paths(union) == [b"etc", b"new", b"own"]
    container = store.create_container("c", image="ro-name", layer_id="cl")
    assert (container.image, store.layer("cl").parent) == ("ro-image", "ro-upper")
    store.apply_diff("cl", Stream(tar(member(".wh.new"))))
    assert changes(store, "", "cl") == ["D new"]
    for from_, expected in (("ro-lower", ["C etc", "D etc/motd"]), ("ro-upper", ["D new"])):
        assert [line for line in changes(store, from_, "cl") if line != "C etc"] == expected[-1:]
    with store.diff("", "own") as stream:
        assert (
            store.put_layer("again", "ro-upper", diff=stream).uncompressed_digest == own.uncompressed_digest
        )


def test_what_is_borrowed_looks_as_before_and_is_given_back(store):
    before = store.layers(), store.images()
    store.create_layer("own", "upper-name")
    assert [layer for layer in store.layers() if layer.id != "own"] == before[0]
    for word in ("ro-upper", "upper-name", "ro-lower", "lower-name"):
        assert store.layer(word).read_only
    assert store.layer_big_data("upper-name", "key") == b"of the layer"
    with store.diff("", "upper-name") as stream:
        assert stream.read() == ABOVE
    for word in ("ro-upper", "lower-name"):
        with pytest.raises(StoreIsReadOnly):
            store.delete_layer(word)
        with pytest.raises(StoreIsReadOnly):
            store.set_metadata(word, "x")
    store.create_container("c", image="ro-name")
    store.delete_layer("own")
    assert changes(store, "", store.container("c").layer) == []
    store.delete_container("c")
    assert (store.layers(), store.images()) == before
    assert rows(store) == []


def test_what_could_not_be_put_on_it_borrows_nothing(store):
    before = contents(store)
    with pytest.raises(InvalidLayer):
        store.put_layer("own", "ro-upper", diff=Stream(JUNK))
    with pytest.raises(ValueError, match="exists"):
        store.create_container("c", layer_id="c"), store.create_container("c", image="ro-name")
    store.delete_container("c")
    assert contents(store) == before
    assert rows(store) == []


def test_names_of_a_read_only_image_pull_it_up(store, ro):
    store.add_names("ro-name", ["own-name"])
    image = store.image("own-name")
    assert (image.id, image.names, image.read_only) == ("ro-image", ("own-name", "ro-name"), False)
    assert (image.metadata, image.created, image.size) == ("metadata", 1000, 709)
    assert store.image_big_data("own-name", "Key") == b"of the image"
    assert [i.id for i in store.images()] == ["ro-image"]
    store.remove_names("own-name", ["ro-name"])
    assert store.exists("ro-name") is False  # it is hidden, not another
    store.set_image_big_data("own-name", "more", b"x")
    store.create_container("c", image="own-name")
    with pytest.raises(ImageUsedByContainer):
        store.delete_image("own-name")
    store.delete_container("c")
    with pytest.raises(StoreIsReadOnly):
        store.delete_layer("ro-upper")
    assert store.delete_image("own-name", commit=False) == store.delete_image("own-name") == []
    image = store.image("ro-name")
    assert (image.id, image.names, image.read_only) == ("ro-image", ("ro-name",), True)
    assert store.exists("own-name") is False
    assert rows(store) == []


def test_names_taken_from_a_read_only_image(store):
    store.remove_names("ro-image", ["ro-name", "not its name"])
    assert (store.names("ro-image"), store.image("ro-image").read_only) == ((), False)
    assert store.exists("ro-name") is False
    assert store.delete_image("ro-image") == []
    assert store.image("ro-name").read_only
    store.create_image("own", ["ro-name"])
    assert store.image("ro-name").id == "own"
    store.set_names("ro-image", ["other", "ro-name"])
    assert (store.image("ro-name").id, store.names("own")) == ("ro-image", ())


def test_a_store_with_full_copies_reads_and_does_not_borrow(ro, store_root, runroot):
    with opened(store_root, runroot, "vfs", ro) as store:
        assert store.image("ro-name").read_only
        with store.diff("", "upper-name") as stream:
            assert stream.read() == ABOVE
        before = contents(store)
        for call in (
            lambda: store.create_layer("own", "ro-upper"),
            lambda: store.create_container("c", image="ro-name"),
        ):
            with pytest.raises(NotSupported, match="use the fuse driver"):
                call()
        assert contents(store) == before
        assert rows(store) == []
    assert problems(store_root) == []


# -- several, and one that is gone --------------------------------------------------------------------


def test_of_two_stores_the_first_counts(store_root, runroot, tmp_path):
    lend(tmp_path / "1", tmp_path / "r1", "fuse", names=("both", "first"))
    lend(tmp_path / "2", tmp_path / "r2", "fuse", names=("both", "second"))
    lend(tmp_path / "3", tmp_path / "r3", "fuse", image="third-image", names=("both", "third"))
    places = [tmp_path / number for number in "123"]
    for order, names in ((places, ("both", "first")), (places[::-1], ("both", "third"))):
        with opened(store_root, runroot, "fuse", *order) as store:
            assert store.image("both").names == names
            assert sorted(image.id for image in store.images()) == ["ro-image", "third-image"]
            assert [s.path for s in store.ro_image_stores] == order
    with opened(store_root, runroot, "fuse", *places) as store:
        assert store.image("ro-image").names == ("both", "first")
        assert store.image("third").id == "third-image"
        store.create_image("own", ["both"])
        assert store.image("both").id == "own"
    assert problems(store_root) == []


def test_when_the_other_store_is_gone_all_else_works(store_root, runroot, tmp_path):
    ro = tmp_path / "ro"
    lend(ro, tmp_path / "ro-run", "fuse")
    with opened(store_root, runroot, "fuse", ro) as store:
        store.put_layer("own", "ro-upper", diff=Stream(A))
        store.create_image("img", ["name"], "own")
        store.create_container("c", image="img", layer_id="cl")
        store.put_layer("alone", diff=Stream(B))
    shutil.rmtree(ro)
    with pytest.raises((OSError, NotSupported), match=str(ro)):
        opened(store_root, runroot, "fuse", ro)
    with opened(store_root, runroot, "fuse") as store:
        assert [image.id for image in store.images()] == ["img"]
        assert {layer.id for layer in store.layers()} == {"ro-lower", "ro-upper", "own", "cl", "alone"}
        assert changes(store, "", "alone") == ["A b"]
        with store.diff("", "own") as stream:
            assert stream.read() == A
        for call in (
            lambda: changes(store, "", "cl"),
            lambda: changes(store, "ro-lower", "own"),
            lambda: store.put_layer("more", "own", diff=Stream(B)),
            lambda: store.union(store.image("name")).__enter__(),
        ):
            with pytest.raises(CorruptStore, match=str(ro)):
                call()
        assert not store.exists("more")
        store.delete_container("c")
        assert store.delete_image("name") == ["own"]
        assert [layer.id for layer in store.layers()] == ["alone"]
    assert problems(store_root) == []


def test_a_layer_that_the_other_store_has_deleted(store_root, runroot, tmp_path):
    ro = tmp_path / "ro"
    lend(ro, tmp_path / "ro-run", "fuse")
    with opened(ro, tmp_path / "ro-run", "fuse") as other, opened(store_root, runroot, "fuse", ro) as store:
        store.create_layer("own", "ro-lower")
        other.delete("ro-container")
        assert other.delete_image("ro-image") == ["ro-upper", "ro-lower"]
        assert store.images() == []
        with pytest.raises(LayerNotFound):
            store.layer("ro-upper")
        with pytest.raises(CorruptStore, match=str(ro)):
            changes(store, "", "own")
        store.delete_layer("own")
        assert store.layers() == []


def test_what_is_no_store_is_no_additional_store(store_root, runroot, tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "nothing"):
        with pytest.raises((OSError, NotSupported), match=str(place)):
            Store(options=StoreOptions(store_root, runroot, additional_stores=(place,)))


def test_layers_of_both_stores_are_compared(store):
    store.put_layer("own", diff=Stream(A))
    whole = ["A etc", "A etc/issue", "A etc/motd"]
    assert changes(store, "own", "ro-lower") == [*["D a"], *whole]
    assert changes(store, "ro-lower", "own") == ["A a", "D etc"]
    assert (store.diff_size("own", "ro-lower"), store.diff_size("ro-lower", "own")) == (706, 10)
    with store.diff("ro-lower", "own", "") as stream:
        made = store.put_layer("made", "ro-lower", diff=stream)
    assert changes(store, "own", made.id) == []
    assert changes(store, made.id, "own") == []


def test_asking_about_mounts_borrows_nothing(store):
    assert store.mounted("ro-upper") == store.mounted("upper-name") == 0
    with pytest.raises(NotMounted):
        store.unmount("upper-name")
    assert rows(store) == []
    store.create_layer("own", "ro-upper")
    with pytest.raises(StoreIsReadOnly):
        store.delete_layer("ro-lower")
    assert rows(store) == ["ro-lower", "ro-upper", "own"]
