"""containers/storage's stores.bats with mounts, each call in a process of its own.

Another fusestore's root is read behind a store, its images are mounted where they are, and layers and
containers are made on top of them.
"""

import os
import shutil

import pytest
from support.fsck import problems
from support.stores import ABOVE, DRIVERS, TREE, A
from support_real.commands import Place, is_a_mountpoint
from support_real.storage_steps import STDIN, Failed, Steps

MADE_BY_EITHER = pytest.mark.parametrize("steps", DRIVERS, indirect=True)


@pytest.fixture
def steps(request, place, tmp_path):
    """A store, and behind it one with an image of two layers."""
    other = Steps(
        Place(tmp_path / "ro", tmp_path / "ro-run"), {"FUSESTORE_DRIVER": getattr(request, "param", "fuse")}
    )
    other("put_layer", "ro-lower", "", ["lower-name"], diff=STDIN, data=TREE)
    other("put_layer", "ro-upper", "ro-lower", ["upper-name"], diff=STDIN, data=ABOVE)
    other("create_image", "ro-image", ["localhost/ro:1"], "ro-upper")
    yield Steps(place, {"FUSESTORE_ADDITIONAL_STORES": str(tmp_path / "ro")})
    place.unmount_all()
    assert problems(tmp_path / "ro") == []


@MADE_BY_EITHER
def test_a_container_on_a_read_only_image(steps):
    steps("create_container", "c", ["container"], "ro:1", "cl")
    root = steps.mount("container")
    assert sorted(os.listdir(root)) == ["etc", "new"]
    (root / "new").unlink()
    (root / "etc/issue").write_text("changed")
    (root / "own").write_text("own")
    assert steps("unmount", "c") is False
    root = steps.mount("c")
    assert sorted(os.listdir(root)) == ["etc", "own"]  # what was deleted stays deleted
    assert (root / "etc/issue").read_text() == "changed"
    told = ["C etc", "C etc/issue", "D new", "A own"]
    assert steps("changes", "", "cl") == told
    assert sorted({image["read_only"] for image in steps("images")}) == [True]
    steps("delete_container", "c")
    assert [layer["id"] for layer in steps("layers") if not layer["read_only"]] == []
    assert problems(steps.place.root) == []


@MADE_BY_EITHER
def test_a_layer_on_a_read_only_layer_and_a_mount_of_that(steps):
    steps("create_layer", "own", "upper-name")
    own = steps.mount("own")
    (own / "new").unlink()
    (own / "file").write_text("x")
    steps("unmount", "own")
    lower = steps.mount("ro-upper")
    assert sorted(os.listdir(lower)) == ["etc", "new"]
    with pytest.raises(OSError, match="Read-only"):
        (lower / "more").touch()
    assert steps("unmount", "upper-name") is False
    assert not is_a_mountpoint(lower)
    steps("put_layer", "above", "own", diff=STDIN, data=A)
    assert sorted(os.listdir(steps.mount("above"))) == ["a", "etc", "file"]
    steps("unmount", "above")
    assert steps("changes", "ro-upper", "above") == ["A a", "A file", "D new"]
    steps("delete_layer", "above")
    steps("delete_layer", "own")
    assert [layer for layer in steps("layers") if not layer["read_only"]] == []
    assert problems(steps.place.root) == []


def test_the_command_line_shows_and_mounts_a_read_only_image(steps):
    place, environment = steps.place, {**steps.place.environment(), **steps.more}
    listed = place.listed("images", env=environment)
    assert [(image["Id"], image["ReadOnly"]) for image in listed] == [("ro-image", True)]
    root = place.mount("ro:1", env=environment)
    assert sorted(os.listdir(root)) == ["etc", "new"]
    assert place.ok("cat", "ro:1:/etc/issue", env=environment) == "x" * 700
    place.ok("unmount", "ro:1", env=environment)
    assert not is_a_mountpoint(root)


def test_an_image_that_was_pulled_up_and_deleted_is_read_only_again(steps):
    assert steps("names", "ro:1") == ["localhost/ro:1"]
    steps("add_names", "ro:1", ["localhost/own:1"])
    assert steps("image", "own:1")["read_only"] is False
    assert steps("names", "ro-image") == ["localhost/own:1", "localhost/ro:1"]
    steps("create_container", "c", image="own:1")
    assert sorted(os.listdir(steps.mount("c"))) == ["etc", "new"]
    with pytest.raises(Failed, match="ImageUsedByContainer"):
        steps("delete_image", "own:1")
    steps("delete_container", "c")
    steps("delete_image", "own:1")
    assert (steps("image", "ro:1")["read_only"], steps("exists", "localhost/own:1")) == (True, False)
    assert problems(steps.place.root) == []


def test_what_is_mounted_here_cannot_be_deleted_there(steps, tmp_path):
    other = Steps(Place(tmp_path / "ro", tmp_path / "ro-run"))
    steps("create_container", "c", image="ro:1")
    root = steps.mount("c")
    with pytest.raises(Failed, match="LayerInUse"):
        other("delete_image", "ro-image")
    assert (root / "new").read_text() == "new"
    steps("unmount", "c")
    assert other("delete_image", "ro-image") == ["ro-upper", "ro-lower"]
    with pytest.raises(Failed, match=f"CorruptStore: {tmp_path}/ro"):
        steps.mount("c")
    steps("delete_container", "c")
    assert steps("layers") == steps("images") == []


def test_when_the_read_only_store_is_gone_a_mount_says_so(steps, tmp_path):
    steps("create_container", "c", image="ro:1", layer_id="cl")
    steps("create_container", "alone")
    shutil.rmtree(tmp_path / "ro")
    with pytest.raises(Failed, match=f"{tmp_path}/ro"):
        steps("images")
    alone = Steps(steps.place)
    with pytest.raises(Failed, match=f"CorruptStore: {tmp_path}/ro.*are gone"):
        alone.mount("c")
    assert alone("mounted", "c") == 0
    alone.mount("alone")
    alone("delete_container", "c")
    assert [layer["id"] for layer in alone("layers") if layer["read_only"]] == []
    (tmp_path / "ro").mkdir()  # for the fixture
