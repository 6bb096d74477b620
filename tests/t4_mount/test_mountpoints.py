"""Where an image may be mounted, and how the place is named.

Runs through fusermount3, and again inside ``unshare -Urm`` (see test_user_namespace.py).
"""

import os
import subprocess

import pytest
from support_real import layouts, tars
from support_real.commands import mounted_below


@pytest.fixture
def two(place):
    """A store with two images whose short names are the same."""
    for domain in ("one.example", "two.example"):
        archive = layouts.docker_archive(
            [tars.tar([tars.file(b"who", domain.encode())])], f"{domain}/lib/app:1.0"
        )
        place.ok("load", input=archive)
    return place


def untouched(place, *mountpoints):
    return place.mounts() == [] and not [m for m in mountpoints if mounted_below(m)] and not place.half_made()


# -- default mountpoints ------------------------------------------------------------------------------


def test_the_default_mountpoint_has_the_images_short_name(two):
    assert two.mount("one.example/lib/app:1.0") == two.runroot / "mnt/app-1.0"


def test_of_two_images_of_one_name_the_second_gets_its_id_too(two):
    first, second = (two.mount(f"{domain}/lib/app:1.0") for domain in ("one.example", "two.example"))
    image = next(i for i in two.listed("images") if "two.example/lib/app:1.0" in i["Names"])
    assert second == two.runroot / f"mnt/app-1.0-{image['Id'][:12]}"
    assert (first / "who").read_text() == "one.example"
    assert (second / "who").read_text() == "two.example"
    assert two.mount("two.example/lib/app:1.0") == second


def test_an_image_without_a_name_is_mounted_under_its_id(place):
    archive = layouts.docker_archive([tars.tar([tars.file(b"f")])], tag="NOT a name")
    image = place.ok("load", input=archive)
    assert place.mount(image) == place.runroot / f"mnt/{image[:12]}"


def test_the_runroot_is_private(loaded):
    loaded.mount("zoo")
    assert {oct(os.stat(p).st_mode & 0o777) for p in (loaded.runroot, loaded.root)} == {"0o700"}


def test_df_shows_the_images_name(two):
    top = two.mount("one.example/lib/app:1.0")
    shown = subprocess.check_output(["df", "--output=source,fstype", top], text=True).splitlines()[-1].split()
    assert shown == ["one.example/lib/app:1.0", "fuse.fusestore"]


def test_mount_lists_images_and_places(two):
    top = two.mount("one.example/lib/app:1.0")
    assert two.ok("mount").split() == ["one.example/lib/app:1.0", str(top)]
    (row,) = two.mounts()
    assert row["Image"] == "one.example/lib/app:1.0"
    assert row["State"] == "alive"


# -- places of the user's -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        " two  blanks ",
        "comma,allow_other,dev",
        "back\\slash\\040",
        "équipe ☃",
        "tab\tand\nnewline",
        "-u",
        "quote'\"$(id)",
        "x" * 255,
    ],
)
def test_a_mountpoint_may_have_any_name(loaded, tmp_path, name):
    (tmp_path / name).mkdir()
    top = loaded.mount("zoo", tmp_path / name)
    assert (top / "etc/kept").read_bytes() == b"kept"
    assert [m["Mountpoint"] for m in loaded.mounts()] == [str(tmp_path / name)]
    assert loaded.ok("unmount", tmp_path / name) == str(tmp_path / name)
    assert untouched(loaded, tmp_path)


def test_a_mountpoint_may_have_a_name_that_is_not_utf_8(loaded, tmp_path):
    top = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(top)
    assert os.fsencode(loaded.ok("mount", "zoo", os.fsdecode(top))) == top
    with open(top + b"/etc/kept", "rb") as file:
        assert file.read() == b"kept"
    loaded.ok("unmount", os.fsdecode(top))
    assert untouched(loaded, tmp_path)


def test_a_store_may_have_any_name(tmp_path, zoo_layout, place):
    odd = type(place)(tmp_path / "a store, with: \\ ☃\n", tmp_path / "a run, with: \\ ☃\n")
    try:
        odd.ok("load", f"oci:{zoo_layout}:zoo")
        assert (odd.mount("zoo") / "bin/ash").read_bytes() == b"busybox" * 500
    finally:
        odd.destroy()


def test_a_relative_mountpoint_is_taken_from_the_working_directory(loaded, tmp_path):
    (tmp_path / "here").mkdir()
    assert loaded.mount("zoo", "here", cwd=tmp_path) == tmp_path / "here"


def test_a_second_image_on_a_mountpoint_is_refused(two, tmp_path):
    (tmp_path / "m").mkdir()
    two.mount("one.example/lib/app:1.0", tmp_path / "m")
    assert "one.example/lib/app:1.0 is mounted there" in two.fails(
        "mount", "two.example/lib/app:1.0", tmp_path / "m"
    )
    assert (tmp_path / "m/who").read_text() == "one.example"


def test_one_image_may_be_mounted_at_several_places(loaded, tmp_path):
    places = [tmp_path / name for name in ("a", "b")]
    for top in places:
        top.mkdir()
        loaded.mount("zoo", top)
    places.append(loaded.mount("zoo"))
    assert {(top / "etc/kept").read_bytes() for top in places} == {b"kept"}
    assert len(loaded.mounts()) == 3
    assert len(loaded.ok("unmount", "zoo").splitlines()) == 3


# -- places that must not be mounted on ---------------------------------------------------------------


def missing(top):
    return top / "missing", "no such directory"


def not_empty(top):
    (top / "full").mkdir()
    (top / "full/file").touch()
    return top / "full", "not empty"


def a_file(top):
    (top / "file").touch()
    return top / "file", "not a directory"


def below_a_file(top):
    (top / "file").touch()
    return top / "file/sub", "Not a directory"


def too_long(top):
    return top / ("x" * 256), "File name too long"


def a_dangling_link(top):
    (top / "dangling").symlink_to("nowhere")
    return top / "dangling", "no such directory"


def a_mounted_one(top):
    return "/proc", "mount"


def the_root(top):
    return "/", "cannot mount here"


@pytest.mark.parametrize(
    "bad", [missing, not_empty, a_file, below_a_file, too_long, a_dangling_link, a_mounted_one, the_root]
)
def test_a_bad_mountpoint_is_refused_in_one_line(loaded, tmp_path, bad):
    mountpoint, reason = bad(tmp_path)
    said = loaded.fails("mount", "zoo", mountpoint)
    assert reason in said
    assert said.startswith(f"fusestore: {mountpoint}") or bad is a_dangling_link
    assert untouched(loaded, tmp_path)


def test_the_store_itself_is_refused(loaded):
    for mountpoint in (loaded.root, loaded.root / "fuse", loaded.root / "fuse/l"):
        loaded.fails("mount", "zoo", mountpoint)
    assert untouched(loaded, loaded.root)
    assert loaded.ok("cat", "zoo:/etc/kept") == "kept"


def test_a_mountpoint_that_cannot_be_written_is_refused(loaded, tmp_path):
    if os.geteuid() == 0:  # root of a namespace may write to its own directories whatever their mode
        return
    (tmp_path / "closed").mkdir(mode=0o555)
    assert "not a directory of yours" in loaded.fails("mount", "zoo", tmp_path / "closed")
    assert "not a directory of yours" in loaded.fails("mount", "zoo", "/opt")
    assert untouched(loaded, tmp_path)
