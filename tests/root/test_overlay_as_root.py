"""fusestore-overlay started by root: real owners, for everybody, with marks that root's kernel reads."""

import os
import stat
import subprocess

import pytest
from support_real.commands import mounted_below
from support_real.overlays import overlay, populate, tree


@pytest.fixture
def over(ground, tmp_path):
    """One lower, in a place that others may enter."""
    ground.chmod(0o755)
    with overlay(ground / tmp_path.name) as made:
        populate(made.lower, {"f": "lower", "d": {"x": "", "sub": {"y": ""}}})
        yield made


def owner(path):
    st = os.lstat(path)
    return st.st_uid, st.st_gid


def test_owners_modes_and_devices_are_the_inodes(over):
    over.mount("suid", "dev")
    os.chown(over.merged / "f", 1234, 5678)
    (over.merged / "f").chmod(0o6755)
    os.mknod(over.merged / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    for top in (over.merged, over.upper):
        assert owner(top / "f") == (1234, 5678)
        assert stat.S_IMODE((top / "f").stat().st_mode) == 0o6755
        assert (top / "null").stat().st_rdev == os.makedev(1, 3)
        (top / "null").write_text("discarded")


def test_everybody_may_enter_and_is_kept_to_modes(over, as_user):
    over.mount()
    (over.merged / "open").write_text("open")
    (over.merged / "closed").write_text("closed")
    (over.merged / "closed").chmod(0o600)
    os.chmod(over.merged, 0o755)
    assert subprocess.check_output([*as_user, "cat", over.merged / "open"]) == b"open"
    for command in (
        ["cat", over.merged / "closed"],
        ["touch", over.merged / "open"],
        ["rm", over.merged / "f"],
    ):
        result = subprocess.run(
            [*as_user, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert result.returncode != 0
        assert "ermission denied" in result.stderr


def test_a_users_new_file_is_the_users(over, as_user, user):
    over.mount()
    (over.merged / "d").chmod(0o1777)
    subprocess.run([*as_user, "mkdir", "-m", "700", over.merged / "d/mine"], check=True)
    subprocess.run([*as_user, "touch", over.merged / "d/mine/file"], check=True)
    assert owner(over.upper / "d/mine") == owner(over.upper / "d/mine/file") == (user.pw_uid, user.pw_gid)


def test_a_user_may_change_of_roots_files_what_their_modes_allow(over, as_user, user):
    """fuse-overlayfs #428, #232: of a user who cannot give files away the owners are kept in xattrs."""
    populate(over.lower, {"open": "root's", "free": {"x": "", "sub": {"y": ""}}, "closed": "root's"})
    for name, mode in {"open": 0o666, "free": 0o777, "free/sub": 0o777, "closed": 0o644}.items():
        (over.lower / name).chmod(mode)
    for directory in (over.upper, over.work, over.merged):
        os.chown(directory, user.pw_uid, user.pw_gid)
    over.mount("xattr_permissions=2", before=as_user)
    script = """
        echo ' and mine' >>open; rm free/x; mv free/sub/y free/y; rmdir free/sub; mkdir free/new; cat open
        ! sh -c 'echo no >>closed' 2>/dev/null; cat closed; echo; ls free
    """
    command = [*as_user, "sh", "-ec", f'cd "$1"; {script}', "sh", over.merged]
    said = subprocess.check_output(command, text=True)
    assert said.split() == ["root's", "and", "mine", "root's", "new", "y"]
    over.unmount()
    assert (over.upper / "open").read_text() == "root's and mine\n"
    assert tree(over.lower)["open"] == "root's"


# -- mappings ------------------------------------------------------------------------------------------


def test_a_mapping_works_in_both_directions(over):
    """Podman: uidmapping=host:container:len."""
    os.chown(over.lower / "f", 100_005, 200_005)
    os.chown(over.lower / "d", 5, 5)
    over.mount("uidmapping=100000:0:1000:300000:5000:10", "gidmapping=200000:0:1000")
    assert owner(over.merged / "f") == (5, 5)
    assert owner(over.merged / "d") == (65534, 65534)
    os.chown(over.merged / "f", 5003, 9)
    assert owner(over.merged / "f") == (5003, 9)
    assert owner(over.upper / "f") == (300_003, 200_009)
    (over.merged / "new").touch()
    assert owner(over.merged / "new") == (0, 0)
    assert owner(over.upper / "new") == (100_000, 200_000)
    over.remount()
    assert owner(over.merged / "f") == (300_003, 200_009)


def test_an_owner_outside_of_the_mapping_cannot_be_given(over):
    os.chown(over.lower / "f", 100_005, 200_005)
    over.mount("uidmapping=100000:0:1000", "gidmapping=200000:0:1000")
    with pytest.raises(OSError):
        os.chown(over.merged / "f", 1000, -1)
    assert owner(over.merged / "f") == (5, 5)


@pytest.mark.parametrize(
    ("options", "shown"), [(["squash_to_root"], (0, 0)), (["squash_to_uid=5", "squash_to_gid=6"], (5, 6))]
)
def test_under_a_squash_chown_does_nothing_and_succeeds(over, options, shown):
    """What dpkg and tar do as root must not fail."""
    os.chown(over.lower / "f", 7, 8)
    over.mount(*options)
    os.chown(over.merged / "f", 100, 101)
    assert owner(over.merged / "f") == shown
    (over.merged / "f").chmod(0o640)
    assert stat.S_IMODE((over.merged / "f").stat().st_mode) == 0o640


@pytest.mark.parametrize("number", [1, 2])
def test_owners_and_modes_may_be_kept_in_xattrs(over, number):
    """What is on the disk is then root's, and not setuid."""
    over.mount(f"xattr_permissions={number}")
    os.chown(over.merged / "f", 3, 4)
    (over.merged / "f").chmod(0o4711)
    assert owner(over.upper / "f") == (0, 0)
    assert (over.upper / "f").stat().st_mode & 0o7000 == 0
    over.remount(f"xattr_permissions={number}")
    assert owner(over.merged / "f") == (3, 4)
    assert stat.S_IMODE((over.merged / "f").stat().st_mode) == 0o4711


# -- with root's own overlayfs -------------------------------------------------------------------------


def kernel(over, *options):
    """Mount the same directories with the kernel's overlayfs, whose marks are trusted.overlay.*."""
    data = over.options(*options)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", data, over.merged], check=True)


def test_roots_overlayfs_and_fusestore_overlay_take_turns(over):
    over.mount()
    subprocess.run(["rm", "-r", over.merged / "d"], check=True)
    (over.merged / "d").mkdir()
    (over.merged / "d/new").touch()
    over.unmount()
    kernel(over)
    assert tree(over.merged) == {"f": "lower", "d": {"new": ""}}
    (over.merged / "f").unlink()
    subprocess.run(["rm", "-r", over.merged / "d"], check=True)
    (over.merged / "d").mkdir()
    (over.merged / "d/sub").mkdir()
    subprocess.run(["umount", over.merged], check=True)
    over.mount()
    assert tree(over.merged) == {"d": {"sub": {}}}
    (over.merged / "f").write_text("again")
    over.unmount()
    kernel(over)
    assert tree(over.merged) == {"d": {"sub": {}}, "f": "again"}
    subprocess.run(["umount", over.merged], check=True)
    assert not mounted_below(over.base)


def test_redirects_and_metadata_copies_of_roots_overlayfs_are_read(over):
    """Made with redirect_dir=on,metacopy=on, as rootful podman does it."""
    (over.lower / "big").write_bytes(b"data" * 100_000)
    kernel(over, "redirect_dir=on", "metacopy=on")
    (over.merged / "d").rename(over.merged / "moved")
    (over.merged / "big").chmod(0o600)
    (over.merged / "moved/sub").rename(over.merged / "up")
    os.link(over.merged / "f", over.merged / "link")
    subprocess.run(["umount", over.merged], check=True)
    over.mount()
    moved = {"moved": {"x": ""}, "up": {"y": ""}, "f": "lower", "link": "lower"}
    assert tree(over.merged) == moved | {"big": "data" * 100_000}
    assert stat.S_IMODE((over.merged / "big").stat().st_mode) == 0o600
    with open(over.merged / "big", "r+b") as file:
        file.write(b"DATA")
    assert (over.merged / "big").read_bytes() == b"DATA" + b"data" * 99_999
