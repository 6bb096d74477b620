"""What a store keeps with items: big data, digests, sizes, the directories of containers; on both drivers.

containers/storage: bigdata.bats, images-by-digest.bats, container-dirs.bats, image.bats; seeds.md 1.5.
"""

import os
import stat
from dataclasses import replace

import pytest
from support import stores
from support.images import sha256
from support.stores import ABOVE, TREE, contents
from support.tars import Stream

from fusestore.errors import (
    BigDataNotFound,
    ContainerNotFound,
    CorruptStore,
    DuplicateID,
    ImageNotFound,
    InvalidBigDataName,
    LayerNotFound,
)
from fusestore.store.storage import Store

KINDS = ("layer", "image", "container")
ITEM = {"layer": "l", "image": "i", "container": "c"}


@pytest.fixture(params=stores.DRIVERS)
def store(request, store_root, runroot):
    """A store with the layer `l`, the image `i` on it, and the container `c`, each with a name."""
    for store in stores.checked(store_root, runroot, request.param):
        store.put_layer("l", names=["l-name"], diff=Stream(TREE))
        store.create_image("i", ["i-name"], "l")
        store.create_container("c", ["c-name"], "i", "cl")
        yield store


def verb(store, what, kind, *arguments):
    """Store.WHAT_KIND_big_data... as in ``verb(store, "list", "image", ...)``."""
    name = {
        "list": f"list_{kind}_big_data",
        "get": f"{kind}_big_data",
        "size": f"{kind}_big_data_size",
        "digest": f"{kind}_big_data_digest",
        "set": f"set_{kind}_big_data",
    }[what]
    return getattr(store, name)(*arguments)


# -- big data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_big_data_come_back_by_id_and_name_with_size_and_digest(store, kind):
    values = {"manifest": b"{}", "Key": b"", "sha256:ab": os.urandom(5000), "a/b": b"slash", "é": b"\xff\0"}
    for key, value in values.items():
        verb(store, "set", kind, ITEM[kind] + "-name", key, value)
    for item in (ITEM[kind], ITEM[kind] + "-name"):
        assert verb(store, "list", kind, item) == sorted(values)
        for key, value in values.items():
            assert verb(store, "get", kind, item, key) == value
            assert verb(store, "size", kind, item, key) == len(value)
            assert verb(store, "digest", kind, item, key) == sha256(value)
    told = store.any(ITEM[kind]).big_data
    assert {key: blob.size for key, blob in told.items()} == {key: len(v) for key, v in values.items()}
    for other in set(KINDS) - {kind}:
        assert verb(store, "list", other, ITEM[other]) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_set_again_takes_the_place_of_the_old_one(store, store_root, kind):
    for value in (b"one", b"two", b"", b"two", b"the last"):
        verb(store, "set", kind, ITEM[kind], "key", value)
        verb(store, "set", kind, ITEM[kind], "Key", value + b"!")
        assert verb(store, "get", kind, ITEM[kind], "key") == value
        assert verb(store, "size", kind, ITEM[kind], "key") == len(value)
        assert verb(store, "digest", kind, ITEM[kind], "key") == sha256(value)
        files = [path for path in (store_root / "big").rglob("*") if path.is_file()]
        assert sorted(path.read_bytes() for path in files) == sorted([value, value + b"!"])
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_key_is_another_error_than_an_unknown_item(store, kind):
    unknown = {"layer": LayerNotFound, "image": ImageNotFound, "container": ContainerNotFound}[kind]
    for what in ("get", "size", "digest"):
        with pytest.raises(BigDataNotFound, match="big data nothing does not exist"):
            verb(store, what, kind, ITEM[kind], "nothing")
        with pytest.raises(unknown):
            verb(store, what, kind, "nothing", "key")


@pytest.mark.parametrize("kind", KINDS)
def test_d33_a_key_that_would_lie_elsewhere_is_refused(store, kind):
    before = contents(store)
    for key in ("", ".", "..", "/", "a/", "\0"):
        with pytest.raises(InvalidBigDataName):
            verb(store, "set", kind, ITEM[kind], key, b"data")
        with pytest.raises(InvalidBigDataName):
            store.create_image("i2", layer="l", big_data={"good": b"x", key: b"data"})
    assert contents(store) == before
    verb(store, "set", kind, ITEM[kind], "../../escape", b"data")
    assert verb(store, "get", kind, ITEM[kind], "../../escape") == b"data"


def test_big_data_go_with_their_item(store, store_root):
    for kind in KINDS:
        for key in ("one", "Two"):
            verb(store, "set", kind, ITEM[kind], key, b"data")
    store.delete_container("c")
    store.delete_image("i")
    assert list((store_root / "big").iterdir()) == []
    store.create_layer("l")
    store.create_image("i", layer="l", big_data={"other": b"x"})
    assert (store.list_layer_big_data("l"), store.list_image_big_data("i")) == ([], ["other"])


def test_big_data_that_were_changed_behind_our_back_are_told(store, store_root):
    for kind in KINDS:
        verb(store, "set", kind, ITEM[kind], "key", b"data")
    for path in [path for path in (store_root / "big").rglob("*") if path.is_file()]:
        kept = path.read_bytes()
        for fault in (lambda path=path: path.write_bytes(b"DATA"), path.unlink):
            fault()
            with pytest.raises(CorruptStore, match=path.name):
                [verb(store, "get", kind, ITEM[kind], "key") for kind in KINDS]
        path.write_bytes(kept)
    assert [verb(store, "get", kind, ITEM[kind], "key") for kind in KINDS] == [b"data"] * 3


# -- digests of images --------------------------------------------------------------------------------


def test_an_image_is_found_by_the_digests_of_its_manifests(store):
    own, one, two, other = (sha256(value) for value in (b"own", b"1", b"2", b"other"))
    store.create_image("j", ["j-name"], digest=own, big_data={"manifest": b"1", "other": b"other"})
    store.set_image_big_data("j", "manifest-list", b"2")
    store.set_image_big_data("i", "manifest", b"1")
    assert store.image("j").digests == (own, one, two)
    assert (store.image("j").digest, store.image("i").digests) == (own, (one,))
    ids = {digest: sorted(i.id for i in store.images_by_digest(digest)) for digest in (own, one, two, other)}
    assert ids == {own: ["j"], one: ["i", "j"], two: ["j"], other: []}
    store.set_image_big_data("j", "manifest", b"3")
    assert [i.id for i in store.images_by_digest(one)] == ["i"]
    assert [i.id for i in store.images_by_digest(sha256(b"3"))] == ["j"]
    store.delete_image("j")
    assert [store.images_by_digest(digest) for digest in (own, two, sha256(b"3"))] == [[], [], []]


# -- sizes --------------------------------------------------------------------------------------------


def test_the_size_of_an_image_without_layer_is_that_of_its_big_data(store):
    store.create_image("empty")
    assert store.image_size("empty") == 0
    for key in ("one", "Two"):
        store.set_image_big_data("empty", key, bytes(256))
    assert store.image_size("empty") == 512


def test_the_size_of_an_image_counts_tars_and_big_data(store):
    store.put_layer("l2", "l", diff=Stream(ABOVE))
    store.create_image("j", layer="l2", big_data={"manifest": bytes(100)})
    assert store.image_size("j") == len(TREE) + len(ABOVE) + 100
    assert store.image("j").size == 706 + 3


def test_the_size_of_an_image_counts_what_was_written_through_a_mount(store_root, runroot):
    for store in stores.checked(store_root, runroot, "vfs"):  # where mounting needs no FUSE
        store.put_layer("l", diff=Stream(TREE))
        store.create_layer("written", "l")
        (store.mount("written") / "file").write_bytes(bytes(1000))
        store.unmount("written")
        store.create_image("j", layer="written")
        assert store.image_size("j") == len(TREE) + 1000
        assert store.image("j").size == 706 + 1000


def test_the_size_of_a_container_counts_changes_big_data_and_files(store):
    assert store.container_size("c") == 0
    store.apply_diff("cl", Stream(ABOVE))
    assert store.container_size("c") == 3
    store.set_container_big_data("c", "key", bytes(10))
    store.set_container_directory_file("c", "d/f", bytes(200))
    store.set_container_run_directory_file("c", "f", bytes(3000))
    assert store.container_size("c") == 3213


def test_d36_the_size_of_a_layer_of_no_tar_is_not_known(store):
    store.create_layer("made")
    assert (store.layer_size("made"), store.layer_size("l"), store.layer_size("l-name")) == (
        -1,
        len(TREE),
        len(TREE),
    )
    with pytest.raises(LayerNotFound):
        store.layer_size("nothing")


# -- directories of containers ------------------------------------------------------------------------


def directories(store, name):
    return store.container_directory(name), store.container_run_directory(name)


def test_the_directories_of_a_container_are_below_root_and_runroot(store, store_root, runroot):
    kept, run = directories(store, "c-name")
    assert kept.is_relative_to(store_root)
    assert run.is_relative_to(runroot)
    assert directories(store, "c") == directories(store, "cl") == (kept, run)
    for directory in (kept, run):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert list(directory.iterdir()) == []
    store.delete_container("c")
    for directory in (kept, run):
        assert not directory.exists()
        assert not directory.parent.exists()


@pytest.mark.parametrize("which", ["", "_run"])
def test_files_in_the_directories_of_a_container(store, which):
    put = getattr(store, f"set_container{which}_directory_file")
    take = getattr(store, f"from_container{which}_directory")
    directory = directories(store, "c")[bool(which)]
    for file, data in {"f": b"1", "d/e/f": b"2", "d/g": b"", "/absolute": b"3", "x/../y": b"4"}.items():
        put("c-name", file, data)
        assert take("c", file) == data
        put("c", file, data + b"again")
        assert take("cl", file) == data + b"again"
    found = {str(path.relative_to(directory)): path.stat() for path in directory.rglob("*")}
    assert {
        name: oct(stat.S_IMODE(st.st_mode)) for name, st in found.items() if stat.S_ISREG(st.st_mode)
    } == dict.fromkeys(("f", "d/e/f", "d/g", "absolute", "y"), "0o600")
    assert all(stat.S_IMODE(st.st_mode) == 0o700 for st in found.values() if stat.S_ISDIR(st.st_mode))
    with pytest.raises(FileNotFoundError):
        take("c", "nothing")
    with pytest.raises(FileNotFoundError):
        take("c", "nothing/there")


@pytest.mark.parametrize("which", ["", "_run"])
def test_files_outside_of_the_directories_are_refused(store, which):
    for file in ("", ".", "..", "../f", "d/../../f", "/..", "\0", "/"):
        with pytest.raises(ValueError, match=r"file name|null byte"):
            getattr(store, f"set_container{which}_directory_file")("c", file, b"data")
        with pytest.raises(ValueError, match=r"file name|null byte"):
            getattr(store, f"from_container{which}_directory")("c", file)


def test_a_link_in_the_directory_is_replaced_and_not_followed(store, tmp_path):
    canary = tmp_path / "canary"
    canary.write_bytes(b"mine")
    (store.container_directory("c") / "file").symlink_to(canary)
    store.set_container_directory_file("c", "file", b"data")
    assert (canary.read_bytes(), store.from_container_directory("c", "file")) == (b"mine", b"data")


# -- containers ---------------------------------------------------------------------------------------


def test_a_container_without_image_is_empty(store):
    container = store.create_container("bare", ["bare-name"], metadata="text")
    assert (container.image, container.metadata, store.layer(container.layer).parent) == ("", "text", "")
    assert stores.changes(store, "", container.layer) == []
    store.create_image("layerless")
    again = store.create_container(image="layerless")
    assert (again.image, store.layer(again.layer).parent) == ("layerless", "")


def test_a_container_is_on_the_top_layer_of_its_image(store):
    container = store.container("c")
    assert (container.image, container.layer, store.layer("cl").parent) == ("i", "cl", "l")
    assert store.create_container(image="i-name").image == "i"
    assert stores.changes(store, "", "cl") == []
    assert stores.changes(store, "nothing below", "cl") == []


def test_a_container_that_cannot_be_leaves_no_layer(store):
    before = contents(store)
    for arguments in (("c",), ("new", ["c-name"]), ("new", ["n"], "i", "l"), ("new", [], "nothing")):
        with pytest.raises((ValueError, ImageNotFound)):
            store.create_container(*arguments)
    with pytest.raises(DuplicateID):
        store.create_container("c", layer_id="free")
    assert contents(store) == before


def test_owners_of_the_directories_above(store):
    """Only those that the id maps do not have are told, so without maps none."""
    assert store.layer_parent_owners("l-name") == store.container_parent_owners("c") == ([], [])
    mapped = replace(store.options, uid_map=((0, os.getuid(), 1),), gid_map=((0, os.getgid(), 1),))
    with Store(options=mapped) as other:
        uids, gids = other.container_parent_owners("c-name")
        assert (set(uids), set(gids)) == owners_above(other.graph_root)


def owners_above(place):
    """Uids and gids of a directory and those above it, but for our own."""
    found = [os.stat(directory) for directory in (place, *place.parents)]
    return {st.st_uid for st in found} - {os.getuid()}, {st.st_gid for st in found} - {os.getgid()}
