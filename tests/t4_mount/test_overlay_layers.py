"""What fusestore-overlay reads in lowers and writes into the upper: whiteouts, opaque marks, owners.

Layers come from everywhere: containers/storage unpacks them with ``.wh.`` names, the kernel's overlayfs and
fuse-overlayfs leave devices 0:0 and xattrs, each its own, and a store with force_mask keeps owners in
xattrs.

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py).
"""

import errno
import os
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from support_real.overlays import as_seen_here, overlay, populate, tree

WITHOUT_DEVICES = {"FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT": "1"}
OPAQUE = ("user.overlay.opaque", "user.fuseoverlayfs.opaque")


@pytest.fixture
def over(tmp_path):
    """One lower, not mounted yet."""
    with overlay(tmp_path) as made:
        yield made


@pytest.fixture
def two(tmp_path):
    """Two lowers, not mounted yet."""
    with overlay(tmp_path, lowers=2) as made:
        populate(made.lowers[1], {"f": "2", "kept": "2", "d": {"x": "2", "sub": {"y": "2"}}})
        yield made


# -- whiteouts of every spelling -----------------------------------------------------------------------


def device(directory, name):
    os.mknod(directory / name, stat.S_IFCHR, 0)


def aufs(directory, name):
    (directory / f".wh.{name}").touch()


def xattr(directory, name):
    """Linux 6.7: for uppers that are themselves inside an overlay."""
    (directory / name).touch()
    os.setxattr(directory / name, "user.overlay.whiteout", b"y")
    os.setxattr(directory, "user.overlay.opaque", b"x")


SPELLINGS = [device, aufs, xattr]


@pytest.mark.parametrize("whiteout", SPELLINGS)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_a_whiteout_of_any_spelling_hides_what_is_below(two, whiteout, where):
    layer = two.lower if where == "lower" else two.upper
    whiteout(layer, "f")
    (layer / "d").mkdir()
    whiteout(layer / "d", "sub")
    two.mount()
    assert tree(two.merged) == {"kept": "2", "d": {"x": "2"}}
    (two.merged / "f").write_text("again")
    (two.merged / "d/sub").mkdir()
    two.remount()
    assert tree(two.merged) == {"kept": "2", "d": {"x": "2", "sub": {}}, "f": "again"}


@pytest.mark.parametrize("whiteout", SPELLINGS)
def test_a_whiteout_of_nothing_shows_nowhere(two, whiteout):
    whiteout(two.lower, "nothing")
    whiteout(two.upper, "nothing either")
    two.mount()
    assert sorted(os.listdir(two.merged)) == ["d", "f", "kept"]
    for name in ("nothing", ".wh.nothing", "nothing either"):
        assert not os.path.lexists(two.merged / name)


@pytest.mark.parametrize("whiteout", [device, aufs])
def test_what_a_whiteout_hid_stays_hidden_in_a_directory_made_again_above(tmp_path, whiteout):
    """#136, #324: the directory comes back in a layer above the whiteout, its old content does not."""
    with overlay(tmp_path, lowers=3) as over:
        populate(over.lowers[2], {"d": {"sub": {"old": ""}, "old": ""}})
        whiteout(over.lowers[1], "d")
        populate(over.lowers[0], {"d": {"sub": {"new": ""}}})
        over.mount()
        assert tree(over.merged) == {"d": {"sub": {"new": ""}}}
        (over.merged / "d/sub/more").touch()
        over.remount()
        assert tree(over.merged) == {"d": {"sub": {"new": "", "more": ""}}}


def test_a_whiteout_in_the_root_hides_nothing_elsewhere(two):
    """#151."""
    aufs(two.lower, "x")
    two.mount()
    assert tree(two.merged) == {"f": "2", "kept": "2", "d": {"x": "2", "sub": {"y": "2"}}}


def test_a_file_beside_its_own_whiteout_stays_visible(two):
    """OCI: a whiteout concerns the layers below; the order of a tar's members does not count."""
    populate(two.lower, {"f": "1", ".wh.f": "", "d": {"new": "1"}, ".wh.d": ""})
    two.mount()
    assert tree(two.merged) == {"f": "1", "kept": "2", "d": {"new": "1"}}


# -- opaque directories --------------------------------------------------------------------------------


def opaque_name(directory):
    (directory / ".wh..wh..opq").touch()


def opaque_xattr(name):
    def mark(directory):
        os.setxattr(directory, name, b"y")

    mark.__name__ = name
    return mark


MARKS = [opaque_name, *(opaque_xattr(name) for name in OPAQUE)]


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("where", ["lower", "upper"])
def test_an_opaque_directory_hides_all_below_at_every_depth(two, mark, where):
    """#425: the files of a lower showed again two levels below the mark."""
    layer = two.lower if where == "lower" else two.upper
    populate(layer, {"d": {"new": "1", "sub": {"new": "1"}}})
    mark(layer / "d")
    two.mount()
    os.listdir(two.merged / "d")
    os.listdir(two.merged / "d/sub")
    assert tree(two.merged) == {"f": "2", "kept": "2", "d": {"new": "1", "sub": {"new": "1"}}}
    (two.merged / "d/sub/y").touch()
    two.remount()
    assert tree(two.merged)["d"] == {"new": "1", "sub": {"new": "1", "y": ""}}


@pytest.mark.parametrize("mark", MARKS)
def test_an_opaque_root_hides_all_below(two, mark):
    populate(two.lower, {"new": "1"})
    mark(two.lower)
    two.mount()
    assert tree(two.merged) == {"new": "1"}


# -- what is written -----------------------------------------------------------------------------------


def test_deleted_files_and_directories_become_devices(two):
    two.mount()
    (two.merged / "f").unlink()
    subprocess.run(["rm", "-r", two.merged / "d"], check=True)
    (two.merged / "new").touch()
    (two.merged / "new").unlink()
    assert {e.name: (e.stat().st_mode & stat.S_IFCHR, e.stat().st_rdev) for e in os.scandir(two.upper)} == {
        "f": (stat.S_IFCHR, 0),
        "d": (stat.S_IFCHR, 0),
    }


def test_where_devices_are_forbidden_whiteouts_are_names(two):
    """virtiofs, some network filesystems: mknod of 0:0 works and is no whiteout afterwards."""
    two.mount(env=WITHOUT_DEVICES)
    (two.merged / "f").unlink()
    subprocess.run(["rm", "-r", two.merged / "d"], check=True)
    (two.merged / "d").mkdir()
    (two.merged / "d/new").touch()
    (two.merged / "kept").rename(two.merged / "moved")
    after = {"d": {"new": ""}, "moved": "2"}
    assert tree(two.merged) == after
    assert {".wh.f", ".wh.kept", "moved", "d"} <= set(os.listdir(two.upper))
    assert not [path for path in two.upper.rglob("*") if path.is_char_device()]
    two.remount(env=WITHOUT_DEVICES)
    assert tree(two.merged) == after
    two.remount()
    assert tree(two.merged) == after
    (two.merged / "f").touch()
    (two.merged / "f").unlink()
    two.remount()
    assert tree(two.merged) == after


@pytest.mark.parametrize("environment", [{}, WITHOUT_DEVICES])
def test_a_directory_made_again_is_empty_after_a_remount(two, environment):
    two.mount(env=environment)
    subprocess.run(["rm", "-r", two.merged / "d"], check=True)
    (two.merged / "d").mkdir()
    (two.merged / "d/sub").mkdir()
    assert tree(two.merged)["d"] == {"sub": {}}
    two.remount(env=environment)
    assert tree(two.merged)["d"] == {"sub": {}}


def test_a_copy_leaves_no_mark_but_what_it_needs(two):
    """What was changed and nothing else: a layer's size is what it costs to push it."""
    two.mount()
    (two.merged / "d/sub/y").write_text("changed")
    (two.merged / "plain").mkdir()
    (two.merged / "kept").chmod(0o600)
    assert tree(two.upper) == {"d": {"sub": {"y": "changed"}}, "kept": "2", "plain": {}}


# -- names and xattrs that are not for users -----------------------------------------------------------


@pytest.mark.parametrize("name", [".wh.x", ".wh.", ".wh..wh..opq", ".wh.f"])
def test_a_whiteouts_name_cannot_be_made(two, name):
    """T10: planted, it would hide a file at the next mount."""
    two.mount()
    forbidden, file = two.merged / name, two.merged / "f"
    calls = [
        lambda: os.close(os.open(forbidden, os.O_CREAT | os.O_WRONLY)),
        lambda: os.mkdir(forbidden),
        lambda: os.symlink("x", forbidden),
        lambda: os.mkfifo(forbidden),
        lambda: os.link(file, forbidden),
        lambda: os.rename(file, forbidden),
        lambda: os.rename(two.merged / "d", forbidden),
    ]
    for call in calls:
        with pytest.raises(OSError) as caught:
            call()
        assert errno.errorcode[caught.value.errno] == "EINVAL"
    for call in (os.stat, os.unlink, os.listdir):
        with pytest.raises(FileNotFoundError):
            call(forbidden)
    two.remount()
    assert tree(two.merged) == {"f": "2", "kept": "2", "d": {"x": "2", "sub": {"y": "2"}}}


def test_a_whiteout_device_cannot_be_made(two):
    two.mount()
    with pytest.raises(PermissionError):
        os.mknod(two.merged / "x", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    assert not os.path.lexists(two.upper / "x")


@pytest.mark.parametrize(
    "name",
    [
        *["user.overlay.opaque", "user.overlay.whiteout", "user.overlay.redirect", "user.overlay.metacopy"],
        *["user.overlay.origin", "user.fuseoverlayfs.opaque", "user.fuseoverlayfs.override_stat"],
        *["user.containers.override_stat", "user.fusestore.anything"],
    ],
)
def test_xattrs_of_union_filesystems_cannot_be_seen_or_set(over, name):
    """M12."""
    for layer, directory in ((over.lower, "low"), (over.upper, "up")):
        (layer / directory).mkdir()
        os.setxattr(layer / directory, "user.mine", b"1")
        os.setxattr(layer / directory, name, b"0:0:0755:dir" if "stat" in name else b"y")
    over.mount()
    for path in (over.merged / "low", over.merged / "up"):
        assert os.listxattr(path) == ["user.mine"]
        with pytest.raises(OSError) as caught:
            os.getxattr(path, name)
        assert caught.value.errno == errno.ENODATA
        with pytest.raises(OSError) as caught:
            os.setxattr(path, name, b"n")
        assert caught.value.errno in (errno.EPERM, errno.EOPNOTSUPP)
    assert os.getxattr(over.upper / "up", name) != b"n"


# -- owners in xattrs ----------------------------------------------------------------------------------

OVERRIDDEN = {
    "file": ("file", "1:2:0640:file", 0o100640, 1, 2, 0),
    "suid": ("file", "0:0:4755", 0o104755, 0, 0, 0),
    "of fuse-overlayfs": ("file", "3:4:102755", 0o102755, 3, 4, 0),
    "null": ("", "0:0:0666:char-1-3", 0o020666, 0, 0, os.makedev(1, 3)),
    "disk": ("", "0:6:0660:block-259-70000", 0o060660, 0, 6, os.makedev(259, 70000)),
    "pipe": ("", "5:5:0600:pipe", 0o010600, 5, 5, 0),
    "socket": ("", "5:5:0755:socket", 0o140755, 5, 5, 0),
    "link": ("target", "7:8:0777:symlink", 0o120777, 7, 8, 0),
    "directory": (None, "9:9:0751:dir", 0o040751, 9, 9, 0),
}


@pytest.fixture(params=["user.containers.override_stat", "user.fuseoverlayfs.override_stat"])
def overridden(over, request):
    """A lower as containers/storage or fuse-overlayfs makes it with force_mask."""
    os.setxattr(over.lower, request.param, b"0:0:0755:dir")
    for name, (content, value, *_) in OVERRIDDEN.items():
        populate(over.lower, {name: {} if content is None else content})
        os.setxattr(over.lower / name, request.param, value.encode())
    return over


def shown(path):
    st = os.lstat(path)
    return st.st_mode, st.st_uid, st.st_gid, st.st_rdev


def expected(mode, uid, gid, device):
    return mode, as_seen_here(uid), as_seen_here(gid), device


def test_owner_type_and_device_number_come_from_override_stat(overridden):
    """T9."""
    overridden.mount()
    for name, (_, _, *attributes) in OVERRIDDEN.items():
        assert (name, shown(overridden.merged / name)) == (name, expected(*attributes))
    assert os.readlink(overridden.merged / "link") == "target"
    assert os.listxattr(overridden.merged / "file") == []


def test_sockets_and_pipes_can_be_made_and_used(over):
    over.mount()
    directory = os.open(over.merged, os.O_RDONLY)
    short = f"/proc/self/fd/{directory}/s"  # a socket's path has 107 bytes at most
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(short)
        server.listen()
        client.connect(short)
        server.accept()[0].close()
    os.close(directory)
    os.mkfifo(over.merged / "p", 0o622)
    with subprocess.Popen(["cat", over.merged / "p"], stdout=subprocess.PIPE) as reader:
        (over.merged / "p").write_text("through the pipe")
        assert reader.stdout.read() == b"through the pipe"
    over.remount()
    assert {name: stat.S_IFMT(os.lstat(over.merged / name).st_mode) for name in ("s", "p")} == {
        "s": stat.S_IFSOCK,
        "p": stat.S_IFIFO,
    }


# -- filesystems ---------------------------------------------------------------------------------------


def test_lower_on_one_filesystem_and_upper_on_another(over):
    """Apptainer: tmpfs has user xattrs since Linux 6.6."""
    populate(over.lower, {"f": "lower", "d": {"x": "", "y": ""}})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        over.upper, over.work = Path(memory, "upper"), Path(memory, "work")
        over.upper.mkdir()
        over.work.mkdir()
        over.mount()
        (over.merged / "f").write_text("upper")
        os.setxattr(over.merged / "f", "user.key", b"value")
        (over.merged / "d/x").unlink()
        (over.merged / "d/y").rename(over.merged / "moved")
        for _ in range(2):
            assert tree(over.merged) == {"f": "upper", "d": {}, "moved": ""}
            assert os.getxattr(over.merged / "f", "user.key") == b"value"
            over.remount()
        over.unmount()


def test_two_lowers_on_different_filesystems_have_different_inodes(two):
    """#112, #455: everything in a mount shares one st_dev, so inode numbers must not meet."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for number in range(200):
            (Path(memory) / f"m{number}").touch()
            (two.lower / f"l{number}").touch()
        two.lowers.append(Path(memory))
        two.mount()
        entries = [*two.merged.iterdir()]
        assert len({os.lstat(path).st_ino for path in entries}) == len(entries) == 403
        assert {e.name: e.inode() for e in os.scandir(two.merged)} == {
            path.name: os.lstat(path).st_ino for path in entries
        }
        two.unmount()


def test_a_filesystem_mounted_inside_a_lower_does_not_show_or_hang(over):
    """#437, #359, #311: only what is on the layer's own filesystem belongs to the layer."""
    populate(over.lower, {"f": "lower", "inner": {}})
    with overlay(over.base / "inside") as inside:
        inside.merged = over.lower / "inner"
        populate(inside.lower, {"hidden": ""})
        inside.mount()
        try:
            over.mount()
            seen = tree(over.merged)
            assert seen in ({"f": "lower", "inner": {}}, {"f": "lower", "inner": {"hidden": ""}})
            over.unmount()
        finally:
            inside.unmount()
