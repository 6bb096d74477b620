"""What can be changed of items: names, metadata, flags; and all of a store at once, on both drivers.

containers/storage: names.bats, TestHistoryNames, metadata.bats (seeds.md 1.5, 4.6).
"""

import io

import pytest
from support import stores
from support.stores import JUNK, contents

from fusestore.errors import DuplicateID, InvalidLayer


@pytest.fixture(params=stores.DRIVERS)
def store(request, store_root, runroot):
    yield from stores.checked(store_root, runroot, request.param)


@pytest.fixture
def full(store):
    return stores.filled(store)


# -- names --------------------------------------------------------------------------------------------


def test_names_at_creation_are_told_once_each_in_their_order(store):
    names = ["b", "a", "b", "c", "a"]
    store.create_layer("l", names=names)
    store.create_image("i", names)
    store.create_container("c", names)
    for item in (store.layer("l"), store.image("i"), store.container("c")):
        assert item.names == ("b", "a", "c")
    assert store.names("i") == ("b", "a", "c")


def test_names_move_within_a_kind(full):
    full.create_layer("layer2")
    full.create_image("image2")
    full.create_container("container2")
    for one, other, name in (
        ("base", "layer2", "base-name"),
        ("img", "image2", "image-name"),
        ("ctr", "container2", "container-name"),
    ):
        full.set_names(other, [name, "more", name])
        assert (full.names(one), full.names(other)) == ((), (name, "more"))
        full.add_names(one, ["first", "more"])
        assert (full.names(one), full.names(other)) == (("first", "more"), (name,))
        full.remove_names(one, ["more", "not its name"])
        full.set_names(other, [])
        assert (full.names(one), full.names(other)) == (("first",), ())


def test_the_history_of_an_images_names(store):
    """containers/storage: TestHistoryNames."""
    store.create_image("first")
    store.create_image("second")
    store.set_names("first", ["1", "2"])
    store.set_names("second", ["2", "3"])

    def told(item):
        image = store.image(item)
        return image.names, image.names_history

    assert told("first") == (("1",), ("2", "1"))
    assert told("second") == (("2", "3"), ("3", "2"))
    store.set_names("second", ["1", "2", "3", "4"])
    assert told("first") == ((), ("2", "1"))
    assert told("second") == (("1", "2", "3", "4"), ("4", "3", "2", "1"))
    store.add_names("second", ["5"])
    assert told("second") == (("5", "1", "2", "3", "4"), ("4", "3", "2", "1", "5"))
    store.remove_names("second", ["1", "3"])
    assert told("second") == (("5", "2", "4"), ("4", "2", "5", "3", "1"))
    store.create_image("third", ["6"])
    assert told("third") == (("6",), ())


# -- metadata and flags -------------------------------------------------------------------------------


def test_metadata_is_kept_with_every_kind(full):
    for name, item in (("base-name", "base"), ("image-name", "img"), ("container-name", "ctr")):
        assert full.metadata(name) == ""
        for text in ("first", "", "ünï\n\t{}" * 1000):
            full.set_metadata(name, text)
            assert (full.metadata(item), full.any(item).metadata) == (text, text)
    full.create_image("i2", metadata="given")
    full.create_container("c2", metadata="too")
    assert (full.metadata("i2"), full.metadata("c2")) == ("given", "too")


def test_flags_are_json_values_and_can_be_taken_away(full):
    values = {"text": "x", "number": 3, "yes": True, "none": None, "list": [1, "two"], "map": {"a": {}}}
    for item in ("base", "img", "ctr"):
        for flag, value in values.items():
            full.set_flag(item, flag, value)
        assert full.any(item).flags == values
        full.set_flag(item, "number", 4)
        full.clear_flag(item, "text")
        full.clear_flag(item, "never set")
        assert full.any(item).flags == {k: v for k, v in values.items() if k != "text"} | {"number": 4}
        with pytest.raises(TypeError):
            full.set_flag(item, "wrong", {1, 2})
        assert "wrong" not in full.any(item).flags
    full.create_image("i2", flags=values)
    full.create_container("c2", flags=values)
    assert full.image("i2").flags == full.container("c2").flags == values


# -- all of it ----------------------------------------------------------------------------------------


def test_wipe_leaves_nothing_of_any_kind(full):
    full.set_image_big_data("img", "key", b"data")
    full.set_container_directory_file("ctr", "file", b"data")
    full.set_container_run_directory_file("ctr", "file", b"data")
    full.layer_store.create_rw_layer("rw", full.layer_store.map().popitem()[0])
    full.create_layer("other", "base")
    full.layer_store.close()
    full.wipe()
    left = contents(full)
    assert all(found == [] for found in left.values()), left
    assert list(full.run_root.glob("containers/*")) == []
    assert [c for c in full.graph_driver.counted() if full.graph_driver.mounted(c)] == []


def test_another_store_object_sees_every_change_at_once(full, store_root, runroot):
    with stores.opened(store_root, runroot, full.graph_driver_name) as other:
        full.set_names("img", ["moved"])
        assert other.image("moved").id == "img"
        other.create_layer("theirs", "base")
        with pytest.raises(DuplicateID):
            full.create_layer("theirs")
        other.delete_layer("theirs")
        assert full.create_layer("theirs").parent == ""
        full.delete_container("ctr")
        assert other.containers() == []
        assert other.delete_image("moved") == ["base"]
        assert full.exists("base") is False


def test_junk_is_refused_and_leaves_nothing(store):
    before = contents(store)
    for call in (
        lambda: store.put_layer("l", diff=io.BytesIO(JUNK)),
        lambda: store.put_layer("l", names=["n"], diff=io.BytesIO(JUNK), writeable=True),
    ):
        with pytest.raises(InvalidLayer):
            call()
    assert contents(store) == before
