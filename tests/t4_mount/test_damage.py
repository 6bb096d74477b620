"""A layer that is damaged behind the mount's back costs what is damaged, and never the mount.

Runs through fusermount3, and again inside ``unshare -Urm`` (see test_user_namespace.py).
"""

import errno
import os
from pathlib import Path

import pytest
from support_real.commands import is_a_mountpoint, may_call_mount

OVERRIDE_STAT = "user.containers.override_stat"


@pytest.fixture
def backing(owned):
    """The directory of the bottom layer."""
    (image,) = owned.listed("inspect", "zoo")
    return Path(image["GraphDriver"]["Data"]["LowerDir"].split(":")[-1])


def goes_on(top):
    """True when what is not damaged can still be read and listed."""
    return (top / "bin/su").read_bytes() == b"su" * 1000 and "su" in os.listdir(top / "bin")


DAMAGE = [
    "rubbish",
    "1:2",
    "",
    "0:0:0644:file:more",
    "99999999999:0:0644:file",
    "0:-7:0644:file",
    "0:0:0644:door",
]


@pytest.mark.parametrize("value", DAMAGE)
def test_a_damaged_owner_is_an_io_error_and_a_line_in_the_log(owned, backing, value):
    os.setxattr(backing / "blocks", OVERRIDE_STAT, value.encode())
    top = owned.mount("zoo")
    with pytest.raises(OSError) as caught:
        os.stat(top / "blocks")
    assert caught.value.errno == errno.EIO
    assert "blocks" in owned.log(top)
    assert goes_on(top)


def test_a_damaged_file_does_not_hide_its_neighbours(owned, backing):
    os.setxattr(backing / "times/1969", OVERRIDE_STAT, b"rubbish")
    top = owned.mount("zoo")
    assert {"1935", "epoch", "2100", "link", "dir"} <= set(os.listdir(top / "times"))


def test_a_layer_that_cannot_be_read_any_more(owned, backing):
    top = owned.mount("zoo")
    os.chmod(backing / "home", 0)
    try:
        with pytest.raises(PermissionError):
            os.stat(top / "home/large-ids")
    except pytest.fail.Exception:
        assert may_call_mount()  # root of the namespace may read it all the same
    assert goes_on(top)


def test_a_file_that_vanished_between_stat_and_open(owned, backing):
    top = owned.mount("zoo")
    os.stat(top / "pair-1")
    os.unlink(backing / "pair-1")
    with pytest.raises(OSError) as caught:
        open(top / "pair-1", "rb").close()
    assert caught.value.errno in (errno.ENOENT, errno.EIO, errno.ESTALE)
    assert goes_on(top)


def test_a_file_that_became_shorter(owned, backing):
    top = owned.mount("zoo")
    os.stat(top / "blocks")
    os.truncate(backing / "blocks", 1000)
    assert (top / "blocks").read_bytes()[:1000] == bytes(range(256)) * 3 + bytes(range(232))
    assert goes_on(top)


def test_a_file_that_became_a_fifo_does_not_stop_the_server(owned, backing):
    """Opening a fifo that nobody writes to waits for ever."""
    top = owned.mount("zoo")
    for name in ("blocks", "pair-1"):
        os.stat(top / name)
        os.unlink(backing / name)
        os.mkfifo(backing / name)
        with pytest.raises(OSError):
            (top / name).read_bytes()
    assert goes_on(top)


def test_a_mount_that_cannot_start_says_why_and_leaves_nothing(owned, backing):
    backing.rename(backing.with_name("moved"))
    said = owned.fails("mount", "zoo")
    backing.with_name("moved").rename(backing)
    assert str(backing) in said
    assert "No such file or directory" in said
    assert owned.mounts() == []
    assert not is_a_mountpoint(owned.runroot / "mnt/zoo-latest")
    assert not (owned.runroot / "mnt/zoo-latest").exists()
    assert list((owned.runroot / "mounts").iterdir()) == []
