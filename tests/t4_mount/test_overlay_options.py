"""What each option of fusestore-overlay does; the names and meanings are fuse-overlayfs's.

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py),
where one id is all there is. What takes all ids is in tests/root/test_overlay_as_root.py.
"""

import contextlib
import errno
import mmap
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from support_real.commands import (
    may_call_mount,
    unmount_by_hand,
)
from support_real.overlays import as_seen_here, overlay, populate, tree


@pytest.fixture
def over(tmp_path):
    """One lower, not mounted yet."""
    with overlay(tmp_path) as made:
        populate(made.lower, {"f": "lower", "d": {"x": "", "sub": {"y": ""}}, "link": Path("f")})
        yield made


def owners(over):
    """The (uid, gid) of everything in the mount."""
    return {(st.st_uid, st.st_gid) for st in map(os.lstat, [over.merged, *over.merged.rglob("*")])}


def as_seen(uid, gid):
    return {(as_seen_here(uid), as_seen_here(gid))}


# -- owners --------------------------------------------------------------------------------------------


def test_without_a_mapping_owners_are_those_on_disk(over):
    over.mount()
    assert owners(over) == {(os.getuid(), os.getgid())}


def test_a_mapping_shows_host_ids_as_others(over):
    """host:to:len, several triples."""
    me, group = os.getuid(), os.getgid()
    over.mount(f"uidmapping=900000:0:5:{me}:7:1:900100:900:5", f"gidmapping={group}:8:1")
    assert owners(over) == as_seen(7, 8)


def test_a_mapping_has_a_length(over):
    me, group = os.getuid(), os.getgid()
    first = max(me - 3, 0)
    over.mount(f"uidmapping={first}:100:10", f"gidmapping={group}:0:1")
    assert owners(over) == as_seen(100 + me - first, 0)


def test_an_id_outside_of_the_mapping_is_shown_as_nobody(over):
    over.mount("uidmapping=900000:0:5", "gidmapping=900000:0:5")
    assert owners(over) == {(65534, 65534)}


def test_everything_can_be_shown_as_roots(over):
    over.mount("squash_to_root")
    assert owners(over) == {(0, 0)}


def test_everything_can_be_shown_as_one_users(over):
    over.mount("squash_to_uid=5", "squash_to_gid=6")
    assert owners(over) == as_seen(5, 6)


def test_one_user_goes_before_root_and_root_before_a_mapping(over):
    over.mount("squash_to_root", "squash_to_uid=5", f"uidmapping={os.getuid()}:7:1")
    assert owners(over) == as_seen(5, 0)


@pytest.mark.parametrize("option", ["squash_to_root", "squash_to_uid=0"])
def test_files_made_under_a_squash_are_the_mounting_users_on_disk(over, option):
    over.upper.chmod(0o777)
    (over.lower / "f").chmod(0o666)
    over.mount(option)
    (over.merged / "new").write_text("new")
    (over.merged / "f").write_text("changed")
    assert tree(over.upper) == {"new": "new", "f": "changed"}
    assert {path.stat().st_uid for path in over.upper.iterdir()} == {os.getuid()}


# -- attributes in xattrs ------------------------------------------------------------------------------


def override_stat(path):
    return os.getxattr(path, "user.containers.override_stat", follow_symlinks=False).decode()


def test_owners_and_modes_go_into_override_stat_when_asked(over):
    """xattr_permissions=2, what podman passes where a force_mask is set."""
    over.mount("xattr_permissions=2")
    (over.merged / "new").touch()
    (over.merged / "new").chmod(0o6751)
    (over.merged / "made").mkdir()
    (over.merged / "made").chmod(0o1700)
    (over.merged / "f").chmod(0o4555)
    wanted = {"new": "6751", "made": "1700", "f": "4555"}
    for name, mode in wanted.items():
        found = re.fullmatch(rf"(\d+):(\d+):0?{mode}(:file|:dir)?", override_stat(over.upper / name))
        assert found, override_stat(over.upper / name)
        assert (over.upper / name).stat().st_mode & 0o7000 == 0
    assert override_stat(over.upper)
    over.remount("xattr_permissions=2")
    assert {n: oct((over.merged / n).stat().st_mode & 0o7777) for n in wanted} == {
        name: oct(int(mode, 8)) for name, mode in wanted.items()
    }
    over.unmount()
    assert over.start(program=["fuse-overlayfs"]).returncode == 0  # the mark on the root tells it
    assert {n: oct((over.merged / n).stat().st_mode & 0o7777) for n in wanted} == {
        name: oct(int(mode, 8)) for name, mode in wanted.items()
    }


def test_owners_and_modes_are_the_inodes_unless_asked(over):
    over.mount()
    (over.merged / "f").chmod(0o604)
    assert (over.upper / "f").stat().st_mode & 0o7777 == 0o604
    assert not [name for name in os.listxattr(over.upper / "f") if "override" in name]


# -- xattrs and ACLs -----------------------------------------------------------------------------------


def fails_as_not_supported(call, *arguments):
    with pytest.raises(OSError) as caught:
        call(*arguments)
    return caught.value.errno == errno.EOPNOTSUPP


def test_xattrs_can_be_turned_off(over):
    os.setxattr(over.lower / "f", "user.key", b"value")
    over.mount("noxattrs=1")
    path = over.merged / "f"
    assert fails_as_not_supported(os.setxattr, path, "user.key", b"")
    assert fails_as_not_supported(os.getxattr, path, "user.key")
    assert fails_as_not_supported(os.listxattr, path)
    assert fails_as_not_supported(os.removexattr, path, "user.key")
    path.write_text("changed")
    assert path.read_text() == "changed"


def test_xattrs_work(over):
    os.setxattr(over.lower / "f", "user.key", b"value")
    over.mount()
    path = over.merged / "f"
    os.setxattr(path, "user.new", b"\0\xff" * 100)
    assert sorted(os.listxattr(path)) == ["user.key", "user.new"]
    os.removexattr(path, "user.key")
    over.remount()
    assert os.listxattr(path) == ["user.new"]
    assert os.getxattr(path, "user.new") == b"\0\xff" * 100
    assert os.listxattr(over.lower / "f") == ["user.key"]


def acl(path):
    command = ["getfacl", "--omit-header", "--numeric", "--absolute-names", path]
    return subprocess.check_output(command, text=True).split()


def test_acls_work_and_are_inherited(over):
    """#304."""
    entry = f"u:{os.getuid()}:r-x"
    over.mount()
    subprocess.run(["setfacl", "-m", entry, over.merged / "f"], check=True)
    subprocess.run(["setfacl", "-d", "-m", entry, over.merged / "d"], check=True)
    (over.merged / "d/new").touch()
    for _ in range(2):
        assert f"user:{os.getuid()}:r-x" in acl(over.merged / "f")
        assert [line for line in acl(over.merged / "d/new") if line.startswith(f"user:{os.getuid()}:r-x")]
        over.remount()


def test_acls_can_be_turned_off(over):
    over.mount("noacl")
    result = subprocess.run(
        ["setfacl", "-m", f"u:{os.getuid()}:r-x", over.merged / "f"], capture_output=True, text=True
    )
    assert "Operation not supported" in result.stderr
    assert acl(over.merged / "f")[:1] == ["user::rw-"]


# -- what is cached ------------------------------------------------------------------------------------


def requests(over, work, *options):
    """How many LOOKUP and GETATTR the kernel sends while `work` is done, as the debugging output tells."""
    with over.foreground("-d", *options) as (process, log):
        work()
        unmount_by_hand(over.merged)
        assert over.exit_code(process) == 0
    return len(re.findall(r"opcode: (LOOKUP|GETATTR)", log.read_text(errors="replace")))


@pytest.mark.parametrize(
    ("options", "fewest", "most"), [([], 1, 5), (["timeout=0"], 20, 100), (["timeout=1000"], 1, 5)]
)
def test_the_timeout_says_how_long_the_kernel_may_remember(over, options, fewest, most):
    def work():
        for _ in range(20):
            os.stat(over.merged / "f")

    assert fewest <= requests(over, work, *options) <= most


def test_the_kernel_may_remember_that_a_name_is_missing(over):
    """T8: one request for each missing name, not one for each question."""

    def work():
        for _ in range(20):
            assert not os.path.lexists(over.merged / "missing")

    assert 1 <= requests(over, work) <= 5


@pytest.mark.parametrize("option", ["writeback=0", "writeback=1", "timeout=0"])
def test_data_are_the_same_however_they_are_cached(over, option):
    over.mount(option)
    path = over.merged / "f"
    with open(path, "r+b", buffering=0) as one, open(path, "ab", buffering=0) as two:
        two.write(b" appended")
        one.write(b"LOW")
        with mmap.mmap(one.fileno(), 14) as mapped:
            mapped[3:5] = b"ER"
        two.write(b"!")
        assert os.pread(one.fileno(), 100, 0) == b"LOWER appended!"
        one.truncate(10)
    assert path.read_bytes() == (over.upper / "f").read_bytes() == b"LOWER appe"


# -- links of directories ------------------------------------------------------------------------------


def test_directories_may_be_shown_with_one_link(over):
    """#182: counting subdirectories takes reading them."""
    over.mount("static_nlink")
    assert {os.stat(over.merged / name).st_nlink for name in ("", "d", "d/sub")} == {1}


# -- flags of the mount --------------------------------------------------------------------------------


def mount_options(over):
    output = subprocess.check_output(["findmnt", "-no", "VFS-OPTIONS,FS-OPTIONS", over.merged], text=True)
    return set(re.split(r"[,\s]+", output.strip()))


def test_flags_of_the_mount_are_passed_on(over):
    populate(over.lower, {"script": "#!/bin/sh\n"})
    (over.lower / "script").chmod(0o755)
    over.mount("noexec", "nosuid", "nodev")
    assert {"noexec", "nosuid", "nodev"} <= mount_options(over)
    with pytest.raises(PermissionError):
        subprocess.run([over.merged / "script"], check=True)


def test_the_defaults_are_fuse_overlayfs_s(over):
    """Root's mounts are for everybody and honour setuid programs; nobody else may ask for that."""
    over.mount()
    found = mount_options(over)
    assert "noatime" in found
    assert ("allow_other" in found) == may_call_mount()
    assert ("nosuid" in found) == (not may_call_mount())
    assert "noexec" not in found


def test_default_permissions_lets_the_kernel_check_modes(over):
    over.mount("default_permissions")
    assert "default_permissions" in mount_options(over)
    if os.geteuid():
        (over.merged / "f").chmod(0)
        with pytest.raises(PermissionError):
            (over.merged / "f").read_text()


# -- what reaches the disk -----------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "synced"), [("fsync=1", True), ("fsync=0", False), ("volatile", False)])
def test_fsync_reaches_the_disk_unless_it_is_turned_off(over, option, synced):
    """podman run --rm passes volatile."""
    over.mount(option)
    log = over.base / "trace"
    with traced(over.server(), log), open(over.merged / "f", "r+") as file:
        file.write("changed")
        file.flush()
        for sync in (os.fsync, os.fdatasync):
            sync(file.fileno())
        directory = os.open(over.merged / "d", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    assert log.read_text().count("sync(") >= 2 if synced else log.read_text() == ""
    assert (over.upper / "f").read_text() == "changed"


@contextlib.contextmanager
def traced(pid, log):
    """What of `pid` and all its threads concerns the disk's cache goes into `log`."""
    calls = "fsync,fdatasync,sync,syncfs,sync_file_range"
    command = ["strace", "-f", "-o", log, "-e", f"trace={calls}", "-e", "signal=none", "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        try:
            assert b"attached" in strace.stderr.readline()
            yield
        finally:
            strace.send_signal(signal.SIGINT)


# -- extensions of the kernel's overlayfs --------------------------------------------------------------


def overlay_xattrs(directory):
    """Every xattr that the kernel's overlayfs would read, below `directory`."""
    found = set()
    for path in [directory, *directory.rglob("*")]:
        names = os.listxattr(path, follow_symlinks=False)
        found |= {name for name in names if name.startswith(("user.overlay.", "trusted.overlay."))}
    return found


def test_a_renamed_directory_is_copied_whole_so_that_others_can_read_the_upper(over):
    over.mount()
    (over.merged / "d").rename(over.merged / "moved")
    (over.merged / "f").chmod(0o600)
    (over.merged / "link").rename(over.merged / "moved/link")
    moved = {"x": "", "sub": {"y": ""}, "link": Path("f")}
    assert {k: v for k, v in tree(over.upper).items() if v is not None} == {"moved": moved, "f": "lower"}
    assert not overlay_xattrs(over.upper) & {"user.overlay.redirect", "user.overlay.metacopy"}
    over.remount()
    assert tree(over.merged) == {"f": "lower", "moved": moved}


def test_a_renamed_directory_is_only_marked_when_redirects_are_on(over):
    over.mount("redirect_dir=on")
    (over.merged / "d").rename(over.merged / "moved")
    assert tree(over.upper)["moved"] == {}
    assert "user.overlay.redirect" in overlay_xattrs(over.upper)
    moved = {"x": "", "sub": {"y": ""}}
    for _ in range(2):
        assert tree(over.merged) == {"f": "lower", "link": Path("f"), "moved": moved}
        over.remount("redirect_dir=on")
    (over.merged / "moved/x").write_text("changed")
    assert tree(over.upper)["moved"] == {"x": "changed"}


def test_a_new_mode_copies_no_data_when_metacopy_is_on(over):
    """T18."""
    (over.lower / "big").write_bytes(b"data" * 500_000)
    over.mount("metacopy=on")
    (over.merged / "big").chmod(0o600)
    os.utime(over.merged / "big", (5, 5))
    assert (over.upper / "big").stat().st_blocks < 100
    assert "user.overlay.metacopy" in overlay_xattrs(over.upper)
    for _ in range(2):
        st = (over.merged / "big").stat()
        assert (st.st_mode & 0o7777, st.st_mtime, st.st_size) == (0o600, 5, 2_000_000)
        assert (over.merged / "big").read_bytes() == b"data" * 500_000
        over.remount("metacopy=on")
    with open(over.merged / "big", "r+b") as file:
        file.write(b"DATA")
    assert (over.upper / "big").read_bytes() == b"DATA" + b"data" * 499_999
    assert "user.overlay.metacopy" not in overlay_xattrs(over.upper)


def test_a_new_mode_copies_the_data_unless_metacopy_is_on(over):
    (over.lower / "big").write_bytes(b"data" * 500_000)
    over.mount()
    (over.merged / "big").chmod(0o600)
    assert (over.upper / "big").read_bytes() == b"data" * 500_000
