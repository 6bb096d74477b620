"""Owner, mode, type and device in ``user.containers.override_stat``: round trips, and forgeries refused."""

import os
import stat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusestore.driver import ownership as own
from fusestore.driver.ownership import Metadata, Ownership

TYPES = [stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK, stat.S_IFCHR]
IDS = st.integers(0, 2**32 - 2)


@given(
    st.sampled_from(TYPES), st.integers(0, 0o7777), IDS, IDS, st.integers(0, 4095), st.integers(0, 2**20 - 1)
)
def test_round_trip(kind, permissions, uid, gid, major, minor):
    rdev = os.makedev(major, minor) if kind in (stat.S_IFBLK, stat.S_IFCHR) else 0
    value = own.encode(Metadata(kind | permissions, uid, gid, rdev=rdev))
    assert own.decode(value) == (uid, gid, permissions, kind, rdev)


@pytest.mark.parametrize(
    ("meta", "value"),
    [
        (Metadata(stat.S_IFREG | 0o4755, 1, 2), b"1:2:4755:file"),
        (Metadata(stat.S_IFDIR | 0o1777), b"0:0:1777:dir"),
        (Metadata(stat.S_IFLNK | 0o777, 5, 6), b"5:6:0777:symlink"),
        (Metadata(stat.S_IFIFO), b"0:0:0000:pipe"),
        (Metadata(stat.S_IFSOCK | 0o600), b"0:0:0600:socket"),
        (Metadata(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3)), b"0:0:0666:char-1-3"),
        (Metadata(stat.S_IFBLK | 0o660, 0, 6, rdev=os.makedev(259, 70000)), b"0:6:0660:block-259-70000"),
    ],
)
def test_spelling_of_containers_storage(meta, value):
    assert own.encode(meta) == value


def test_value_without_a_type():
    """Older containers/storage wrote none."""
    assert own.decode(b"1:2:0644") == (1, 2, 0o644, None, 0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"0",
        b"0:0",
        b"0:0:0644:file:x",
        b"a:0:0644:file",
        b"0:0:0999:file",
        b"0:0:0644:whatever",
        b"0:0:0644:",
        b"0:0:0644:char-1-2-3",
        b"0:0:0644:char-x-3",
        b"0:0:0644:char-99999999999-0",
        b"0:0:0644:char--1-3",
        b"-1:0:0644:file",
        b"4294967295:0:0644:file",
        b"0:0:4294967295:0644:file",
        b"0:0:170644:file",
        b"0:0:-644:file",
        b"\xff:0:0644:file",
    ],
)
def test_what_is_no_override_stat(value):
    with pytest.raises(ValueError, match=r"override_stat|invalid literal"):
        own.decode(value)


@given(st.binary(max_size=40))
@example(b"0:0:0:char-9999999999999999999-0")
@example(b"1_0: 5:+7:file")
def test_any_bytes_are_sound_or_refused(value):
    try:
        uid, gid, permissions, kind, _ = own.decode(value)
    except ValueError:
        return
    assert 0 <= uid < 2**32 - 1
    assert 0 <= gid < 2**32 - 1
    assert 0 <= permissions <= 0o7777
    assert kind is None or kind in TYPES


@pytest.mark.parametrize(
    "name",
    [
        b"trusted.overlay.opaque",
        b"user.overlay.whiteout",
        b"user.overlay.redirect",
        b"user.fuseoverlayfs.origin",
        b"security.fuseoverlayfs.x",
        b"user.containers.override_stat",
        b"user.containers.override_security.capability",
        b"user.rootlesscontainers",
        b"user.fusestore.x",
        b"security.selinux",
    ],
)
def test_internal_xattrs(name):
    assert own.is_internal(name)
    assert own.visible_xattrs([name, b"user.kept"], Ownership.REAL) == [b"user.kept"]
    forged = [own.OVERRIDE_PREFIX + name, name, b"user.kept"]
    assert own.visible_xattrs(forged, Ownership.OVERRIDE) in (
        [b"user.kept"],
        [b"user.kept", b"security.capability"],
    )


@pytest.mark.parametrize(
    "name", [b"user.a", b"security.capability", b"trusted.x", b"user.overlay", b"system.posix_acl_access"]
)
def test_xattrs_of_images(name):
    assert not own.is_internal(name)
    backing = own.backing_xattr(name, Ownership.OVERRIDE)
    assert own.visible_xattrs([backing], Ownership.OVERRIDE) == [name]
    assert own.backing_xattr(name, Ownership.REAL) == name


@given(st.integers(0, 0o7777))
def test_backing_files_have_no_special_bits_and_open_for_their_owner(permissions):
    for kind in (stat.S_IFREG, stat.S_IFDIR):
        mode = own.backing_mode(kind | permissions)
        assert mode & 0o7000 == 0
        assert mode & 0o600 == 0o600
        assert mode & 0o077 == permissions & 0o077


def test_what_a_backing_file_carries():
    xattrs = {b"user.a": b"1", b"security.capability": b"2"}
    assert own.override_xattrs(Metadata(stat.S_IFREG | 0o4755, 1, 2, xattrs=xattrs)) == {
        b"user.containers.override_stat": b"1:2:4755:file",
        b"user.containers.override_security.capability": b"2",
        b"user.a": b"1",
    }
