"""containers/storage's bats tests that mount layers and containers, each call in a process of its own.

mount-layer, create-layer, create-container, layers (130 of them), overlay-recreate, abs and shutdown; and
what becomes of counts and data when somebody else unmounts, a server dies, or the machine is booted anew
(seeds.md 9: D20, D26-D28; 12).
"""

import os
import shutil

import pytest
from support.fsck import problems
from support.stores import ABOVE, TREE, A
from support.tars import Stream, member, tar
from support_real.commands import (
    detach,
    eventually,
    is_a_mountpoint,
    is_dead,
    is_running,
    kill,
    unmount_by_hand,
)
from support_real.storage_steps import STDIN, Failed, Steps

from fusestore.store.storage import Store

COUNT = 130  # layers


@pytest.fixture
def steps(place):
    return Steps(place)


def fails(steps, kind, method, *arguments, **keywords):
    with pytest.raises(Failed) as caught:
        steps(method, *arguments, **keywords)
    assert caught.value.kind == kind
    return caught.value.message


def test_mounts_of_a_layer_are_counted(steps):
    steps("create_layer", "abcdef", "", ["name"])
    assert steps("mounted", "name") == 0
    assert "name: not mounted" in fails(steps, "NotMounted", "unmount", "name")
    place = steps.mount("name")
    assert steps.mount("abcdef") == steps.mount("abc") == place
    assert is_a_mountpoint(place)
    (place / "file").write_text("kept")
    assert steps("mounted", "abc") == 3
    assert steps("unmount", "abcdef") is True
    assert steps("unmount", "name") is True
    assert steps("unmount", str(place)) is False
    assert not is_a_mountpoint(place)
    fails(steps, "NotMounted", "unmount", str(place))
    for _ in range(2):
        assert (steps.mount("abc") / "file").read_text() == "kept"
    assert steps("unmount", "abc", force=True) is False
    assert (is_a_mountpoint(place), steps("mounted", "abcdef")) == (False, 0)
    steps("delete_layer", "abc")
    assert not place.exists()
    fails(steps, "LayerNotFound", "mount", "abcdef")


def test_what_is_written_in_a_layer_is_in_no_other(steps):
    steps("create_layer", "lower")
    for name in ("file1", "file2"):
        (steps.mount("lower") / name).write_text(name)
    steps("unmount", "lower", force=True)
    for layer in ("mid", "sibling"):
        steps("create_layer", layer, "lower")
    mid, sibling = steps.mount("mid"), steps.mount("sibling")
    (mid / "file1").unlink()
    (mid / "file2").write_text("changed")
    (mid / "new").write_text("new")
    assert sorted(os.listdir(mid)) == ["file2", "new"]
    assert sorted(os.listdir(sibling)) == ["file1", "file2"]
    lower = steps.mount("lower")
    assert [(lower / name).read_text() for name in ("file1", "file2")] == ["file1", "file2"]
    with pytest.raises(OSError, match="Read-only"):
        (lower / "more").touch()
    assert steps("changes", "", "mid") == ["D file1", "C file2", "A new"]
    assert steps("changes", "", "sibling") == []


def test_containers_with_and_without_image(steps):
    steps("put_layer", "l", diff=STDIN, data=TREE)
    steps("create_image", "i", ["image"], "l")
    steps("create_container", "c", ["container"], "image")
    steps("create_container", "bare", layer_id="bare-layer")
    bare, root = steps.mount("bare"), steps.mount("container")
    assert os.listdir(bare) == []
    assert (root / "etc/motd").read_text() == "hello\n"
    (bare / "file").write_text("x")
    (root / "etc/motd").write_text("changed")
    assert steps("mounted", "bare-layer") == 1
    assert steps("unmount", str(root)) is False
    assert (steps.mount("c") / "etc/motd").read_text() == "changed"
    assert steps("changes", "", steps("container", "c")["layer"]) == ["C etc", "C etc/motd"]
    steps("delete_container", "container")
    assert not root.exists()
    steps("delete_container", "bare")
    assert steps("delete_image", "i") == ["l"]
    assert problems(steps.place.root) == []


def test_many_layers(place):
    """layers.bats has 301, which take too long here; these are more than moby's 125."""
    with Store(str(place.root), str(place.runroot)) as store:
        parent = ""
        for number in range(1, COUNT + 1):
            archive = tar(member(f"layer{number}", b"%d" % number))
            parent = store.put_layer(f"{number:03}", parent, diff=Stream(archive)).id
        store.create_image("i", layer=parent)
    steps = Steps(place)
    steps("create_container", "c", image="i")
    root = steps.mount("c")
    assert {path.name: path.read_text() for path in root.iterdir()} == {
        f"layer{number}": str(number) for number in range(1, COUNT + 1)
    }
    (root / "layer1").unlink()
    assert steps("changes", "", steps("container", "c")["layer"]) == ["D layer1"]
    steps("delete_container", "c")
    assert steps("delete_image", "i") == [f"{number:03}" for number in range(COUNT, 0, -1)]
    assert problems(place.root) == []


def test_links_and_mountpoints_that_are_lost_are_made_again(steps):
    steps("put_layer", "lower", diff=STDIN, data=TREE)
    steps("put_layer", "mid", "lower", diff=STDIN, data=ABOVE)
    steps("create_layer", "upper", "mid")
    place = steps.mount("upper")
    (place / "own").touch()
    steps("unmount", "upper")
    links = steps.place.root / "fuse/l"
    for lost in (
        lambda: [link.unlink() for link in links.iterdir()],
        lambda: shutil.rmtree(links),
        place.parent.rmdir,
    ):
        lost()
        assert sorted(os.listdir(steps.mount("upper"))) == ["etc", "new", "own"]
        assert steps("unmount", "upper") is False
    steps("create_layer", "more", "upper")
    assert sorted(os.listdir(steps.mount("more"))) == ["etc", "new", "own"]
    steps("delete_layer", "more")


@pytest.mark.parametrize("by", [unmount_by_hand, detach])
def test_d28_what_somebody_else_has_unmounted_is_not_counted(steps, by):
    steps("create_layer", "l")
    for _ in range(3):
        place = steps.mount("l")
    (place / "file").touch()
    by(place)
    assert steps("mounted", "l") == 0
    fails(steps, "NotMounted", "unmount", "l")
    assert os.listdir(steps.mount("l")) == ["file"]
    assert steps("mounted", "l") == 1
    assert steps("unmount", "l") is False


def test_a_server_that_died_is_replaced_and_all_it_was_told_to_write_is_there(steps):
    steps("create_layer", "l")
    place = steps.mount("l")
    (place / "file").write_text("written")
    kill(steps.place.server(place))
    assert is_dead(place)
    assert steps("changes", "", "l") == ["A file"]
    assert (steps.mount("l") / "file").read_text() == "written"
    assert steps("unmount", "l", force=True) is False
    assert steps("mounted", "l") == 0


def test_after_a_reboot_nothing_is_mounted_and_nothing_lost(steps):
    steps("create_layer", "l")
    steps("create_container", "c", layer_id="cl")
    steps("set_container_directory_file", "c", "file", "kept")
    steps("set_container_run_directory_file", "c", "file", "lost")
    places = [steps.mount("l"), steps.mount("c"), steps.mount("c")]
    servers = [steps.place.server(place) for place in places[:2]]
    (places[1] / "file").write_text("kept")
    for place in places[:2]:
        unmount_by_hand(place)
    for server in servers:
        eventually(lambda server=server: not is_running(server), f"the end of {server}")
    shutil.rmtree(steps.place.runroot)
    assert [steps("mounted", name) for name in ("l", "c")] == [0, 0]
    assert (steps.mount("c") / "file").read_text() == "kept"
    assert steps("mounted", "c") == 1
    assert steps.raw("from_container_directory", "c", "file") == b"kept"
    fails(steps, "FileNotFoundError", "from_container_run_directory", "c", "file")


def test_processes_that_mount_at_once_share_one_mount(steps):
    steps("create_layer", "l")
    mounting = [steps.start("mount", "l") for _ in range(3)]
    told = {process.communicate(timeout=60) for process in mounting}
    assert [process.returncode for process in mounting] == [0] * 3
    assert len(told) == 1
    assert steps("mounted", "l") == 3
    unmounting = [steps.start("unmount", "l") for _ in range(3)]
    answers = sorted(process.communicate(timeout=60)[0].strip() for process in unmounting)
    assert answers == [b"false", b"true", b"true"]
    assert steps("mounted", "l") == 0


def test_a_mount_that_is_busy_is_not_taken_away_unless_by_force(steps):
    steps("create_layer", "l")
    place = steps.mount("l")
    with open(place / "file", "w"):
        assert "in use" in fails(steps, "LayerInUse", "unmount", "l")
        assert is_a_mountpoint(place)
        assert steps("unmount", "l", force=True) is False
    assert not is_a_mountpoint(place)


def test_a_layer_or_container_that_is_mounted_can_be_deleted(steps):
    steps("create_layer", "l")
    steps("create_container", "c")
    for name, method in (("l", "delete_layer"), ("c", "delete_container")):
        places = [steps.mount(name) for _ in range(2)]
        server = steps.place.server(places[0])
        steps(method, name)
        assert not places[0].exists()
        eventually(lambda server=server: not is_running(server), "the end of the server")
    assert problems(steps.place.root) == []


def test_d20_d21_a_forced_shutdown_unmounts_and_complains_once(steps):
    steps("put_layer", "l", diff=STDIN, data=A)
    steps("create_image", "i", layer="l")
    steps("create_container", "c", image="i")
    place = steps.mount("c")
    for _ in range(2):
        steps.mount("l")
    assert str(place) in fails(steps, "LayerUsedByContainer", "shutdown")
    assert str(place) in fails(steps, "LayerUsedByContainer", "shutdown", force=True)
    assert [steps("mounted", name) for name in ("c", "l")] == [0, 0]
    steps("shutdown", force=True)
    steps("shutdown")


def test_paths_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Store("store", "run") as store:
        store.create_layer("l")
        store.create_container("c", layer_id="cl")
        store.mount("l")
        kept = store.container_directory("c")
    monkeypatch.chdir("/")
    with Store(str(tmp_path / "store"), str(tmp_path / "run")) as store:
        assert store.mounted("l") == 1
        place = store.mount("l")
        assert place.is_relative_to(tmp_path)
        assert is_a_mountpoint(place)
        assert store.container_directory("c") == kept
        assert store.unmount("l", force=True) is False
    assert problems(tmp_path / "store") == []


def test_a_layer_that_is_put_while_its_process_is_killed_is_not_there(steps):
    """cleanup-layer.bats: there a flag in layers.json, here what lies in tmp/.  D23: several of them."""
    steps("put_layer", "l", diff=STDIN, data=A)
    archive = tar(member("big", bytes(1 << 20)))
    dying = [steps.start("put_layer", f"dying{n}", "l", ["name"], diff=STDIN) for n in range(3)]
    for process in dying:
        process.stdin.write(archive[:600_000])
        process.stdin.flush()  # more than a pipe holds: it is being unpacked
    assert len(steps.place.half_made()) >= 3
    for process in dying:
        process.kill()
        process.communicate()
    assert steps.ids("layers") == ["l"]
    assert steps.place.half_made() == []
    assert problems(steps.place.root) == []
    steps("put_layer", "dying0", "l", ["name"], diff=STDIN, data=archive)
    assert steps.ids("layers") == ["l", "dying0"]
