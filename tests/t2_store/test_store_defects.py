"""The register of defects in the stores that we follow (seeds.md 9), D16-D37: those of containers/storage.

One test for each, its number in its name; it fails with the defect.  Those that need a FUSE mount are in
t4_mount/test_store_bats_mounts (D26-D28 there too), D30, D33 and D36 in test_store_layers and
test_store_items, D1-D15 and D38-D40 in test_defects.  Also here: what may be deleted, and that a dry run
tells it (seeds.md 4.8).
"""

import hashlib
import io
import itertools
import os
import random
import time

import pytest
from support import stores
from support.images import sha256
from support.stores import ABOVE, JUNK, TREE, ZIPPED, A, B, contents
from support.tars import Stream

from fusestore.compression import FORMATS
from fusestore.errors import (
    CorruptStore,
    FusestoreError,
    ImageNotFound,
    ImageUsedByContainer,
    InvalidBigDataName,
    ItemNotFound,
    LayerHasChildren,
    LayerNotFound,
    LayerUsedByContainer,
    LayerUsedByImage,
    NotMounted,
)


@pytest.fixture(params=stores.DRIVERS)
def store(request, store_root, runroot):
    yield from stores.checked(store_root, runroot, request.param)


@pytest.fixture
def vfs(store_root, runroot):
    """A store where mounting needs no FUSE."""
    yield from stores.checked(store_root, runroot, "vfs")


def test_d16_names_of_images_are_found(store):
    store.create_image("i", ["one", "two"])
    assert store.names("i") == store.names("one") == store.names("two") == ("one", "two")
    store.add_names("two", ["three"])
    assert store.names("i") == ("three", "one", "two")


def test_d17_an_image_without_date_is_made_now(store):
    before = int(time.time())
    made = [store.create_image(), store.create_image(created=0), store.create_image(created=86400)]
    assert all(before <= image.created <= time.time() for image in made[:2])
    assert made[2].created == 86400


def test_d18_a_layer_that_is_needed_is_not_deleted_by_its_name_or_the_beginning_of_its_id(store):
    store.create_layer("aaaa", names=["parent"])
    store.create_layer("bbbb", "aaaa", names=["of-image"])
    store.create_image("i", layer="bbbb")
    store.create_container("c", layer_id="cccc")
    store.add_names("cccc", ["of-container"])
    before = contents(store)
    for error, words in {
        LayerHasChildren: ("parent", "aa"),
        LayerUsedByImage: ("of-image", "bb"),
        LayerUsedByContainer: ("of-container", "cc"),
    }.items():
        for word in words:
            with pytest.raises(error):
                store.delete_layer(word)
    assert contents(store) == before


def test_d19_images_of_a_layer_are_all_different(store):
    store.create_layer("l", names=["name"])
    for image in ("x", "y", "z"):
        store.create_image(image, layer="l")
    store.create_image("elsewhere")
    assert sorted(image.id for image in store.images_by_top_layer("name")) == ["x", "y", "z"]


def test_d20_d21_a_forced_shutdown_ends_and_complains_once(vfs):
    for layer in ("one", "two"):
        vfs.create_layer(layer)
        for _ in range(3):
            vfs.mount(layer)
    with pytest.raises(LayerUsedByContainer, match="unmount it, or use --force"):
        vfs.shutdown()
    assert (vfs.mounted("one"), vfs.mounted("two")) == (3, 3)
    with pytest.raises(LayerUsedByContainer, match="it was mounted, and is not any more"):
        vfs.shutdown(force=True)
    assert (vfs.mounted("one"), vfs.mounted("two")) == (0, 0)
    vfs.shutdown(force=True)
    vfs.shutdown()


def test_d22_records_that_cannot_be_read_are_refused_and_left_alone(store_root, runroot):
    with stores.opened(store_root, runroot, "fuse") as store:
        store.create_layer("l")
    database = store_root / "store.db"
    for damage in (b"[]", b"\0" * 8192, database.read_bytes()[:2000]):
        database.write_bytes(damage)
        with pytest.raises(CorruptStore, match=r"store\.db"):
            stores.opened(store_root, runroot, "fuse")
        assert database.read_bytes() == damage
        assert len(os.listdir(store_root / "fuse")) == 3  # the layer, its links, the home


def test_d24_what_could_not_be_made_is_not_there(store, store_root):
    store.create_layer("l")
    store.create_image("i", ["name"], "l")
    before = contents(store)
    (store_root / "tmp").chmod(0o500)
    calls = [
        lambda: store.create_layer("new", names=["n"]),
        lambda: store.put_layer("new", "l", diff=Stream(A)),
        lambda: store.create_container("new", ["n"], "i"),
        lambda: store.create_image("new", ["n"], "l", big_data={"key": b"data"}),
        lambda: store.set_image_big_data("i", "key", b"data"),
    ]
    try:
        if os.geteuid():
            for call in calls:
                with pytest.raises(OSError, match="Permission denied"):
                    call()
                assert not store.exists("new")
    finally:
        (store_root / "tmp").chmod(0o700)
    for call in (
        lambda: store.put_layer("new", "l", ["n"], diff=Stream(JUNK)),
        lambda: store.create_image("new", ["n"], "l", big_data={"key": b"data", "..": b"x"}),
        lambda: store.create_image("new", ["n", "name"], "l", big_data={"key": b"data"}),
        lambda: store.create_container("new", ["n"], "i", "l"),
    ):
        with pytest.raises((FusestoreError, ValueError)):
            call()
        assert not store.exists("new")
        assert not store.exists("n")
    assert contents(store) == before


def test_d25_d37_the_names_and_digests_of_what_was_deleted_are_free(store):
    for _ in range(2):
        store.put_layer("l", names=["name"], diff=Stream(ZIPPED))
        store.create_image("i", ["name"], "l", big_data={"manifest": b"{}"})
        store.create_container("c", ["name"], "i", "cl")
        store.delete_container("c")
        store.delete_image("i")
        assert store.layers_by_compressed_digest(sha256(ZIPPED)) == []
        assert store.layers_by_uncompressed_digest(sha256(A)) == []
        assert store.images_by_digest(sha256(b"{}")) == []
        for name in ("name", "l", "i", "c", "cl"):
            with pytest.raises(ItemNotFound):
                store.lookup(name)


def test_d26_a_layer_is_mounted_and_unmounted_by_any_of_its_names(vfs):
    vfs.create_layer("abcdef", names=["name"])
    vfs.create_container("c", ["cn"], layer_id="cl")
    for words in itertools.permutations(("abcdef", "name", "abc")):
        places = {vfs.mount(word) for word in words}
        assert len(places) == 1
        assert [vfs.mounted(word) for word in words] == [3, 3, 3]
        assert [vfs.unmount(word) for word in reversed(words)] == [True, True, False]
    assert vfs.mount("cn") == vfs.mount("cl") == vfs.mount("c")
    assert vfs.unmount("cn", force=True) is False
    assert vfs.mounted("c") == 0


def test_d27_what_is_not_mounted_is_not_unmounted(vfs):
    vfs.create_layer("l")
    for force in (False, True):
        with pytest.raises(NotMounted, match="l: not mounted"):
            vfs.unmount("l", force=force)
    vfs.mount("l")
    vfs.unmount("l")
    with pytest.raises(NotMounted):
        vfs.unmount("l")
    assert vfs.mounted("l") == 0
    vfs.mount("l")
    assert vfs.mounted("l") == 1


def test_d29_a_diff_that_has_to_be_made_is_compressed_too(store):
    store.create_layer("l")
    store.put_layer("base", diff=Stream(TREE))
    store.put_layer("above", "base", diff=Stream(ABOVE))
    for form in FORMATS:
        with store.diff("", "l", form) as empty, store.diff("above", "base", form) as made:
            assert (stores_form(empty), stores_form(made)) == (form, form)


def stores_form(stream) -> str:
    from fusestore.compression import decompressed

    return decompressed(stream).format


@pytest.mark.parametrize("form", ["", *FORMATS])
def test_d29_an_error_while_a_diff_is_compressed_reaches_the_reader(store, form):
    noise = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(1 << 15))
    layer = store.put_layer("l", diff=Stream(stores.tar(stores.member("f", noise))))
    cache_id = store.layer_items.record(layer.id).cache_id
    (store.graph_driver.path / cache_id / "diff/f").write_bytes(noise[:-1] + b"!")
    with store.diff("", "l", form) as stream, pytest.raises(CorruptStore, match="integrity checksum failed"):
        stream.read()


def test_d31_whoever_has_the_store_open_sees_every_commit(store, store_root, runroot):
    with stores.opened(store_root, runroot, store.graph_driver_name) as other:
        for number in range(5):
            store.create_layer(f"l{number}", names=["newest"] if not number else [])
            store.set_names(f"l{number}", ["newest"])
            assert other.layer("newest").id == f"l{number}"
            assert len(other.layers()) == number + 1


def test_d32_delete_takes_all_of_a_container_with_it_and_checks(store, store_root, runroot):
    store.create_layer("l")
    store.create_image("i", ["image"], "l", big_data={"key": b"data"})
    store.create_container("c", ["container"], "i", "cl")
    store.set_container_big_data("c", "Key", b"data")
    store.set_container_directory_file("c", "f", b"data")
    store.set_container_run_directory_file("c", "f", b"data")
    for word, error in {
        "cl": LayerUsedByContainer,
        "l": LayerHasChildren,
        "image": ImageUsedByContainer,
    }.items():
        with pytest.raises(error):
            store.delete(word)
    store.delete("container")
    assert (store.exists("c"), store.exists("cl")) == (False, False)
    assert (list((store_root / "containers").iterdir()), list(runroot.glob("containers/*"))) == ([], [])
    store.delete("i")
    assert ([image.id for image in store.images()], [layer.id for layer in store.layers()]) == ([], ["l"])
    assert list((store_root / "big").iterdir()) == []
    store.delete("l")


def test_d34_a_layer_to_compare_with_that_is_not_known_is_the_parent(store):
    store.put_layer("base", diff=Stream(TREE))
    store.put_layer("above", "base", diff=Stream(ABOVE))
    for word in ("nothing", "", "base"):
        assert stores.changes(store, word, "above") == stores.changes(store, "base", "above")
        assert store.diff_size(word, "above") == 3
        with store.diff(word, "above", "") as stream:
            assert stream.read() == ABOVE
    with pytest.raises(LayerNotFound):
        store.changes("base", "nothing")


def test_d35_a_store_is_opened_once_for_each_root_and_runroot(tmp_path):
    from fusestore.config import StoreOptions
    from fusestore.store.storage import get_store

    roots = [StoreOptions(tmp_path / root, tmp_path / run) for root in "ab" for run in "cd"]
    opened = [get_store(options) for options in roots]
    assert [get_store(options) for options in roots] == opened
    assert len({id(store) for store in opened}) == 4
    opened[0].create_layer("l")
    assert [store.exists("l") for store in opened] == [True, True, False, False]
    for store in opened:
        store.free()
        store.free()
    again = get_store(roots[0])
    assert again is not opened[0]
    assert again.exists("l")
    again.free()


# -- deleting images ----------------------------------------------------------------------------------


def test_two_images_on_one_layer_are_deleted_one_by_one(store):
    """containers/storage: TestStoreDelete."""
    before = contents(store)
    store.create_layer("shared")
    store.create_layer("unused")
    for name in ("1", "2"):
        store.create_image("i" + name, layer="shared")
        store.create_container("c" + name, image="i" + name)
    with pytest.raises(ImageUsedByContainer, match='in use by the container "c1"'):
        store.delete_image("i1")
    store.delete_container("c1")
    assert store.delete_image("i1") == []
    with pytest.raises(ImageUsedByContainer):
        store.delete_image("i2")
    store.delete_container("c2")
    assert store.delete_image("i2") == ["shared"]
    store.delete_layer("unused")
    assert contents(store) == before


@pytest.mark.parametrize("seed", range(3))
def test_a_dry_run_of_deleting_an_image_tells_what_is_deleted(store, seed):
    """Random forests of layers with images and containers; the rules are told here once more."""
    chance = random.Random(seed)
    parent = {}
    for number in range(12):
        layer = f"l{number}"
        parent[layer] = chance.choice(["", *parent])
        store.create_layer(layer, parent[layer])
    tops = {f"i{number}": chance.choice([*parent, ""]) for number in range(6)}
    for image, top in tops.items():
        store.create_image(image, layer=top, big_data={"manifest": image.encode()})
    store.create_container("c", image="i0", layer_id="cl")
    parent["cl"] = tops["i0"]
    for image in chance.sample(list(tops), len(tops)):
        everything = contents(store)
        if image == "i0":
            with pytest.raises(ImageUsedByContainer):
                store.delete_image(image, commit=False)
            store.delete_container("c")
            del parent["cl"]
        expected = []
        layer = tops.pop(image)
        while layer and layer not in tops.values() and layer not in parent.values():
            expected.append(layer)
            layer = parent.pop(layer)
        everything = contents(store)
        assert store.delete_image(image, commit=False) == expected
        assert contents(store) == everything
        assert store.delete_image(image) == expected
        assert {found.id for found in store.layers()} == set(parent)
        with pytest.raises(ImageNotFound):
            store.delete_image(image, commit=False)


def test_an_image_is_deleted_with_registered_layers_but_not_what_an_rw_layer_is_on(store):
    base = store.layer_store.register(io.BytesIO(A))
    top = store.layer_store.register(io.BytesIO(B), base.chain_id)
    store.create_image("i", layer=top.chain_id)
    store.create_layer("stays", base.chain_id)
    store.layer_store.close()
    assert store.delete_image("i", commit=False) == store.delete_image("i") == [top.chain_id]
    assert [layer.id for layer in store.layers()] == [base.chain_id, "stays"]


def test_a_key_that_is_refused_makes_no_image(store):
    with pytest.raises(InvalidBigDataName):
        store.create_image("i", big_data={"..": b"x"})
    assert store.images() == []
