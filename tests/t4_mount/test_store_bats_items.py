"""containers/storage's bats tests of records, each call in a process of its own.

bigdata, container, container-dirs, create-*, delete*, image, images-by-digest, metadata, names, status.
What one process has written the next one reads; nothing here is mounted.
"""

import pytest
from support.fsck import problems
from support.images import sha256
from support.stores import TREE
from support_real.storage_steps import STDIN, Failed, Steps


@pytest.fixture
def steps(place):
    """A store with layer `l`, image `i` on it and container `c` of that, whose layer is `cl`."""
    steps = Steps(place)
    steps("put_layer", "l", "", ["layer-one", "layer-two"], diff=STDIN, data=TREE)
    steps("create_image", "i", ["image-one", "image-two"], "l")
    steps("create_container", "c", ["container-one", "container-two"], "image-one", "cl")
    return steps


ITEMS = {"layer": "l", "image": "i", "container": "c"}


@pytest.mark.parametrize("kind", ITEMS)
def test_big_data_of_items(steps, kind):
    item, value = f"{kind}-one", "contents of big data\n" * 100
    steps(f"set_{kind}_big_data", item, "big-item-1", value)
    steps(f"set_{kind}_big_data", item, "small", "x")
    assert steps(f"list_{kind}_big_data", item) == ["big-item-1", "small"]
    assert steps.raw(f"{kind}_big_data", ITEMS[kind], "big-item-1") == value.encode()
    assert steps(f"{kind}_big_data_size", item, "big-item-1") == len(value)
    assert steps(f"{kind}_big_data_digest", item, "big-item-1") == sha256(value.encode())
    with pytest.raises(Failed, match="big data nothing does not exist"):
        steps(f"{kind}_big_data", item, "nothing")
    with pytest.raises(Failed, match=r"not known|layer does not exist"):
        steps(f"{kind}_big_data", "nothing", "small")


@pytest.mark.parametrize("kind", ITEMS)
def test_names_are_added_set_moved_and_removed(steps, kind):
    """names.bats: the 12 cases that need no other store."""
    one, two = f"{kind}-one", f"{kind}-two"
    assert steps("names", one) == steps("names", two) == [one, two]
    steps("add_names", one, ["added"])
    assert steps("names", ITEMS[kind]) == ["added", one, two]
    steps("set_names", "added", ["set", "set", two])
    assert steps("names", two) == ["set", two]
    other = steps(f"create_{kind}", names=["other"])["id"]
    steps("add_names", other, ["set"])
    assert (steps("names", "other"), steps("names", two)) == (["set", "other"], [two])
    steps("remove_names", "set", ["set", "not its name"])
    assert steps("exists", "set") is False
    assert steps("lookup", "other") == other


@pytest.mark.parametrize("kind", ["image", "container"])
def test_metadata_of_items(steps, kind):
    made = steps(f"create_{kind}", "", ["new"], metadata="given at first\n")
    assert (made["metadata"], steps("metadata", "new")) == ("given at first\n", "given at first\n")
    steps("set_metadata", "new", "replaced\n")
    assert steps(kind, made["id"])["metadata"] == "replaced\n"
    assert steps("metadata", f"{kind}-one") == ""


def test_images_by_the_digest_of_a_manifest(steps):
    own, first, second = (sha256(text.encode()) for text in ("own", "first", "second"))
    steps("create_image", "j", ["j-name"], digest=own)
    for image, key, text in (
        ("i", "manifest", "first"),
        ("j", "manifest", "first"),
        ("j", "other", "second"),
    ):
        steps("set_image_big_data", image, key, text)
    steps("set_image_big_data", "j", "manifest-2", "second")

    def found(digest):
        return sorted(image["id"] for image in steps("images_by_digest", digest))

    assert (found(own), found(first), found(second)) == (["j"], ["i", "j"], ["j"])
    assert steps("image", "j")["digests"] == [own, first, second]
    steps("delete_image", "j")
    assert (found(own), found(first), found(second)) == ([], ["i"], [])


def test_the_size_of_an_image_without_layer(steps):
    steps("create_image", "bare", ["bare-name"])
    for key in ("random1", "random2"):
        steps("set_image_big_data", "bare", key, "x" * 256)
    assert (steps("image_size", "bare-name"), steps("image", "bare")["top_layer"]) == (512, None)


def test_directories_of_a_container(steps):
    kept, run = steps("container_directory", "container-one"), steps("container_run_directory", "c")
    assert kept.startswith(str(steps.place.root))
    assert run.startswith(str(steps.place.runroot))
    steps("set_container_directory_file", "c", "path/to/file", "kept")
    steps("set_container_run_directory_file", "c", "path/to/file", "run")
    assert steps.raw("from_container_directory", "cl", "path/to/file") == b"kept"
    assert steps.raw("from_container_run_directory", "cl", "path/to/file") == b"run"
    with pytest.raises(Failed, match="No such file or directory"):
        steps("from_container_directory", "c", "nothing")


def test_what_needs_what_is_deleted_from_the_top(steps):
    """delete.bats, delete-layer.bats, delete-image.bats, delete-container.bats."""
    steps("create_layer", "child", "l")
    for method, item, kind in (
        ("delete_layer", "layer-one", "LayerHasChildren"),
        ("delete_layer", "cl", "LayerUsedByContainer"),
        ("delete_image", "i", "ImageUsedByContainer"),
        ("delete", "i", "ImageUsedByContainer"),
        ("delete_container", "i", "ContainerNotFound"),
        ("delete_image", "c", "ImageNotFound"),
        ("delete_layer", "i", "LayerNotFound"),
        ("delete", "nothing", "ItemNotFound"),
    ):
        with pytest.raises(Failed) as caught:
            steps(method, item)
        assert caught.value.kind == kind
    steps("delete", "container-two")
    steps("delete_layer", "child")
    with pytest.raises(Failed) as caught:
        steps("delete_layer", "l")
    assert caught.value.kind == "LayerUsedByImage"
    assert steps("delete_image", "image-two", commit=False) == steps("delete_image", "i") == ["l"]
    assert [steps.ids(what) for what in ("layers", "images", "containers")] == [[], [], []]
    assert problems(steps.place.root) == []


def test_status_shutdown_and_wipe(steps):
    rows = dict(steps("status"))
    assert {"Backing Filesystem", "Native Overlay Diff"} <= set(rows)
    assert dict(steps("version"))["Version"]
    steps("shutdown")
    steps("wipe")
    assert [steps.ids(what) for what in ("layers", "images", "containers")] == [[], [], []]
    assert problems(steps.place.root) == []
