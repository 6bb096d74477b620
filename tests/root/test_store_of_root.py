"""A store that root makes: the inodes hold owners, modes, devices and xattrs, the mount shows the image."""

import os
import subprocess

import pytest
from support_real import layouts, tars, trees, zoo
from support_real.commands import Place


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The zoo in a store of root's, and where it is mounted by mount(2)."""
    directory = tmp_path_factory.mktemp("roots")
    place = Place(directory / "store", directory / "run")
    layout = layouts.oci(directory / "oci", [tars.tar(layer) for layer in zoo.LAYERS], "zoo")
    place.ok("load", f"oci:{layout}:zoo")
    yield place
    place.unmount_all()
    place.destroy()


@pytest.fixture(scope="module")
def top(roots):
    return roots.mount("zoo")


def test_every_attribute_of_every_object_is_the_images(top):
    """Root may see trusted.* too."""
    seen, expected = trees.described(top), {path: dict(a) for path, a in zoo.EXPECTED.items()}
    for path in zoo.IMPLIED & seen.keys():
        expected[path]["mtime"] = seen[path]["mtime"]
    assert trees.differences(seen, expected) == []


def test_the_inodes_of_the_bottom_layer_hold_the_truth(roots):
    (image,) = roots.listed("inspect", "zoo")
    bottom = image["GraphDriver"]["Data"]["LowerDir"].split(":")[-1]
    tree = trees.described(bottom)
    assert (tree["home/large-ids"]["uid"], tree["home/large-ids"]["gid"]) == (2**31 + 5, 2**32 - 2)
    assert tree["bin/su"]["mode"] == "4755"
    assert tree["dev/sda"]["device"] == [8, 0]
    assert tree["caps"]["xattrs"] == {"security.capability": zoo.CAPABILITY.hex()}
    assert not [
        name for a in tree.values() for name in a["xattrs"] if name.startswith("user.containers.override_")
    ]


def test_a_setuid_file_and_a_device_of_the_image_have_no_power_here(top):
    """The mount is nosuid and nodev."""
    assert os.statvfs(top).f_flag & (os.ST_NOSUID | os.ST_NODEV) == os.ST_NOSUID | os.ST_NODEV
    with pytest.raises(PermissionError):
        open(top / "dev/sda", "rb").close()


def test_others_are_kept_out_of_the_store_and_the_mount(roots, top, as_user):
    for path in (roots.root, roots.runroot, top / "etc/kept"):
        result = subprocess.run([*as_user, "ls", path], capture_output=True, check=False)
        assert b"Permission denied" in result.stderr


def test_the_kernels_own_overlayfs_shows_the_same_tree(roots, top, tmp_path):
    """What we write is what overlayfs reads: 0:0 devices and overlay.opaque, here with ``userxattr``."""
    (image,) = roots.listed("inspect", "zoo")
    data = image["GraphDriver"]["Data"]
    lowers = (
        os.path.relpath(data["UpperDir"], roots.root),
        *(os.path.relpath(path, roots.root) for path in data["LowerDir"].split(":")),
    )
    (tmp_path / "kernel").mkdir()
    options = f"ro,userxattr,lowerdir={':'.join(lowers)}"
    command = ["mount", "-t", "overlay", "-o", options, "none", tmp_path / "kernel"]
    subprocess.run(command, cwd=roots.root, check=True)
    try:
        theirs, ours = trees.described(tmp_path / "kernel"), trees.described(top)
    finally:
        subprocess.run(["umount", tmp_path / "kernel"], check=True)
    for tree in (theirs, ours):
        for attributes in tree.values():
            attributes.pop("nlink", None)  # overlayfs counts names that a layer above hides
            attributes["xattrs"] = {
                n: v for n, v in attributes["xattrs"].items() if not n.startswith("trusted.")
            }
    assert trees.differences(ours, theirs) == []
