"""`Store` knows what it does not have: errors, ids and lookup, on both drivers.

The rules are those of containers/storage's interface ``Store`` (seeds.md 1.5, 4.6: TestStore).
"""

import io

import pytest
from support import stores
from support.fsck import problems
from support.stores import A, contents

from fusestore.errors import (
    AmbiguousName,
    ContainerNotFound,
    DuplicateID,
    DuplicateName,
    ImageNotFound,
    ItemNotFound,
    LayerNotFound,
)

DIGEST = "sha256:" + "0" * 64

#: The class to be raised, then the calls, of which `w` is the word that nothing has.
UNKNOWN = {
    LayerNotFound: [
        lambda s, w: s.layer(w),
        lambda s, w: s.create_layer("", w or "nothing"),
        lambda s, w: s.put_layer("", w or "nothing", diff=io.BytesIO(A)),
        lambda s, w: s.create_image("", (), w or "nothing"),
        lambda s, w: s.delete_layer(w),
        lambda s, w: s.mount(w),
        lambda s, w: s.unmount(w),
        lambda s, w: s.unmount(w, force=True),
        lambda s, w: s.mounted(w),
        lambda s, w: s.changes("", w),
        lambda s, w: s.diff_size("", w),
        lambda s, w: s.diff("", w),
        lambda s, w: s.apply_diff(w, io.BytesIO(A)),
        lambda s, w: s.layer_size(w),
        lambda s, w: s.images_by_top_layer(w),
        lambda s, w: s.container_by_layer(w),
        lambda s, w: s.layer_parent_owners(w),
        lambda s, w: s.list_layer_big_data(w),
        lambda s, w: s.layer_big_data(w, "key"),
        lambda s, w: s.layer_big_data_size(w, "key"),
        lambda s, w: s.layer_big_data_digest(w, "key"),
        lambda s, w: s.set_layer_big_data(w, "key", b"data"),
    ],
    ImageNotFound: [
        lambda s, w: s.image(w),
        lambda s, w: s.create_container("", (), w or "nothing"),
        lambda s, w: s.delete_image(w),
        lambda s, w: s.delete_image(w, commit=False),
        lambda s, w: s.image_size(w),
        lambda s, w: s.list_image_big_data(w),
        lambda s, w: s.image_big_data(w, "key"),
        lambda s, w: s.image_big_data_size(w, "key"),
        lambda s, w: s.image_big_data_digest(w, "key"),
        lambda s, w: s.set_image_big_data(w, "key", b"data"),
    ],
    ContainerNotFound: [
        lambda s, w: s.container(w),
        lambda s, w: s.delete_container(w),
        lambda s, w: s.container_size(w),
        lambda s, w: s.container_directory(w),
        lambda s, w: s.container_run_directory(w),
        lambda s, w: s.set_container_directory_file(w, "file", b"data"),
        lambda s, w: s.from_container_directory(w, "file"),
        lambda s, w: s.set_container_run_directory_file(w, "file", b"data"),
        lambda s, w: s.from_container_run_directory(w, "file"),
        lambda s, w: s.container_parent_owners(w),
        lambda s, w: s.list_container_big_data(w),
        lambda s, w: s.container_big_data(w, "key"),
        lambda s, w: s.container_big_data_size(w, "key"),
        lambda s, w: s.container_big_data_digest(w, "key"),
        lambda s, w: s.set_container_big_data(w, "key", b"data"),
    ],
    ItemNotFound: [
        lambda s, w: s.any(w),
        lambda s, w: s.lookup(w),
        lambda s, w: s.delete(w),
        lambda s, w: s.names(w),
        lambda s, w: s.set_names(w, ["name"]),
        lambda s, w: s.add_names(w, ["name"]),
        lambda s, w: s.remove_names(w, ["name"]),
        lambda s, w: s.metadata(w),
        lambda s, w: s.set_metadata(w, "text"),
        lambda s, w: s.set_flag(w, "flag", True),
        lambda s, w: s.clear_flag(w, "flag"),
    ],
}
WORDS = [
    "nothing",
    "",
    "0" * 64,
    DIGEST,
    "sha256:z",
    "docker.io/library/x:1",
    "/a/b",
    "..",
    "%",
    "é",
    "\udcff",
]


@pytest.fixture(params=stores.DRIVERS)
def store(request, store_root, runroot):
    yield from stores.checked(store_root, runroot, request.param)


@pytest.fixture
def full(store):
    return stores.filled(store)


@pytest.fixture(params=["empty", "full"])
def either(request, store):
    return stores.filled(store) if request.param == "full" else store


def refusal(call, store, word):
    """The error of a call, as its class; None for one that is not refused."""
    try:
        call(store, word)
    except ItemNotFound as exc:
        return type(exc)
    return None


def test_every_call_refuses_what_is_not_known(either):
    store, before = either, contents(either)
    for word in WORDS:
        for error, calls in UNKNOWN.items():
            assert [refusal(call, store, word) for call in calls] == [error] * len(calls), ascii(word)
        assert store.exists(word) is False
        assert contents(store) == before, ascii(word)


def test_an_empty_store_has_nothing_and_can_be_wiped_and_shut_down(store):
    for listed in (store.layers, store.images, store.containers):
        assert listed() == []
    for by_digest in (
        store.layers_by_compressed_digest,
        store.layers_by_uncompressed_digest,
        store.images_by_digest,
    ):
        assert by_digest(DIGEST) == []
    store.wipe()
    store.shutdown()
    store.shutdown(force=True)
    assert ("Backing Filesystem" in dict(store.status()), bool(dict(store.version())["Version"])) == (
        True,
        True,
    )
    assert (list(store.ro_layer_stores), list(store.ro_image_stores), store.graph_options) == ([], [], ())


def test_a_store_says_where_and_what_it_is(store, store_root, runroot):
    assert (store.graph_root, store.run_root) == (store_root, runroot)
    assert store.graph_driver_name == store.graph_driver.name
    assert (store_root / store.graph_driver_name).is_dir()


# -- ids ----------------------------------------------------------------------------------------------


def test_ids_are_made_up_and_no_number(store):
    made = [
        store.create_layer().id,
        store.create_image(layer=store.layers()[0].id).id,
        store.create_container().id,
    ]
    made.append(store.container(made[2]).layer)
    assert len(set(made)) == 4
    for item in made:
        assert len(item) == 64
        assert not item[:12].isdigit()
        int(item, 16)


def test_ids_are_any_text_and_free_again_when_their_item_is_deleted(store):
    for item in ("Layer", "a/b", "..", "é" * 40, "~1", "sha256"):
        for _ in range(2):
            layer, image = store.create_layer(item), store.create_image(item, layer=item)
            container = store.create_container(item, image=item, layer_id=item + "-layer")
            assert (layer.id, image.id, container.id) == (item, item, item)
            for set_big_data in (
                store.set_layer_big_data,
                store.set_image_big_data,
                store.set_container_big_data,
            ):
                set_big_data(item, "key", b"data")
            store.set_container_directory_file(item, "file", item.encode())
            assert store.from_container_directory(item, "file") == item.encode()
            store.delete_container(item)
            assert store.delete_image(item) == [item]
    assert problems(store.graph_root) == []


@pytest.mark.parametrize("item", ["x" * 300, "é" * 200, "sha256:" + "0" * 64, "sha256:x"])
def test_ids_that_cannot_be_are_refused(store, item):
    with pytest.raises(ValueError, match=r"id"):
        store.create_layer(item)
    with pytest.raises(ValueError, match=r"id"):
        store.put_layer(item, diff=io.BytesIO(A))
    assert contents(store)["driver"] == []


def test_an_id_or_a_name_is_taken_once_for_each_kind(full):
    before = contents(full)
    for error, calls in {
        DuplicateID: [
            lambda: full.create_layer("base"),
            lambda: full.put_layer("base", diff=io.BytesIO(A)),
            lambda: full.create_image("img"),
            lambda: full.create_container("ctr"),
            lambda: full.create_container("", (), "img", "ctr-layer"),
            lambda: full.create_container("", (), "", "base"),
        ],
        DuplicateName: [
            lambda: full.create_layer(names=["new", "base-name"]),
            lambda: full.put_layer(names=["base-name"], diff=io.BytesIO(A)),
            lambda: full.create_image(names=["new", "image-name"]),
            lambda: full.create_container(names=["new", "container-name"]),
        ],
    }.items():
        for call in calls:
            with pytest.raises(error):
                call()
    assert contents(full) == before
    names = ["base-name", "image-name", "container-name"]
    full.create_image("img2", [names[0], names[2]])
    full.create_container("ctr2", names[:2])
    full.create_layer("base2", names=names[1:])
    assert full.layer("image-name").id == "base2"


# -- lookup -------------------------------------------------------------------------------------------


def test_lookup_goes_from_ids_to_names_to_beginnings(store):
    store.create_layer("abcdef", names=["one", "abc-name"])
    store.create_layer("abcxyz", names=["abcdef-no", "two"])
    store.create_layer("two")
    for name, expected in {
        "abcdef": "abcdef",
        "one": "abcdef",
        "abcdef-no": "abcxyz",
        "abcd": "abcdef",
        "abcx": "abcxyz",
        "two": "two",
    }.items():
        assert (store.layer(name).id, store.lookup(name)) == (expected, expected)
    for name in ("abc", "a"):
        with pytest.raises(AmbiguousName, match="fits more than one"):
            store.layer(name)
    for name in ("abc-nam", "on", "ABCDEF", "abcdef "):
        with pytest.raises(LayerNotFound):
            store.layer(name)


def test_an_id_that_begins_another_is_still_found(store):
    for item in ("ab", "abc", "abcd"):
        store.create_layer(item)
        store.create_image(item, layer=item)
    assert [store.layer(item).id for item in ("ab", "abc", "abcd")] == ["ab", "abc", "abcd"]
    assert [store.image(item).id for item in ("ab", "abc", "abcd")] == ["ab", "abc", "abcd"]


def test_lookup_takes_layers_before_images_before_containers(store):
    store.create_layer("l", names=["all", "layer-image"])
    store.create_image("i", ["all", "image-container", "layer-image"], "l")
    store.create_container("c", ["all", "image-container"], "i", "c-layer")
    assert [store.lookup(name) for name in ("all", "layer-image", "image-container")] == ["l", "l", "i"]
    assert (store.container("all").id, store.image("all").id) == ("c", "i")
    assert (store.container("c-layer").id, store.lookup("c-layer")) == ("c", "c-layer")


def test_an_exact_name_of_a_container_comes_before_the_beginning_of_a_layers_id(store):
    store.create_layer("abcdef")
    store.create_container("c", ["abc"])
    assert (store.lookup("abc"), store.lookup("abcd"), store.layer("abc").id) == ("c", "abcdef", "abcdef")


def test_a_container_is_found_by_its_layer(full):
    full.add_names("ctr-layer", ["its-layer"])
    for name in ("ctr-layer", "its-layer", "ctr-l"):
        assert full.container_by_layer(name).id == "ctr"
    assert full.container("ctr-layer").id == "ctr"
    with pytest.raises(ContainerNotFound):
        full.container_by_layer("base")


def test_registered_layers_are_found_by_chain_id_with_or_without_the_algorithm(full):
    (chain_id,) = full.layer_store.map()
    digits = chain_id.removeprefix("sha256:")
    for name in (chain_id, chain_id[:12], digits, digits[:8]):
        assert full.layer(name).id == chain_id
    with pytest.raises(LayerNotFound):
        full.layer("")
