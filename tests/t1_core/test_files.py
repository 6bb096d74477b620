"""Operations on whole files and trees: atomic writes, sweeping what the dead left, removal, copies."""

import fcntl
import os
import subprocess
import sys

import pytest

from fusestore import files
from fusestore.syscalls import copy_data


@pytest.fixture
def tmp(tmp_path):
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


def test_write_durably_replaces(tmp, tmp_path):
    target = tmp_path / "file"
    files.write_durably(target, b"one", tmp)
    files.write_durably(target, b"two", tmp)
    assert target.read_bytes() == b"two"
    assert target.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp) == []


def test_write_durably_leaves_nothing_when_it_fails(tmp, tmp_path):
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        files.write_durably(tmp_path / "directory", b"x", tmp)
    assert os.listdir(tmp) == []


def test_sweep_deletes_what_nobody_has_locked(tmp):
    for name in ("dead", "alive"):
        (tmp / name / "diff").mkdir(parents=True)
        (tmp / name / "lock").touch()
    (tmp / "file").touch()
    (tmp / "without lock").mkdir()
    (tmp / "link").symlink_to("/etc")
    os.mkfifo(tmp / "fifo")
    os.mknod(tmp / "whiteout", 0o20600, 0)
    held = files.lock(tmp / "alive" / "lock", fcntl.LOCK_EX)
    files.sweep(tmp)
    assert os.listdir(tmp) == ["alive"]
    os.close(held)
    files.sweep(tmp)
    assert os.listdir(tmp) == []
    assert os.path.isdir("/etc")


def test_sweep_waits_for_nobody_who_is_making_something(tmp):
    (tmp / "new").mkdir()
    with files.sweeping(tmp):
        files.sweep(tmp)
        assert os.listdir(tmp) == ["new"]
    files.sweep(tmp)
    assert os.listdir(tmp) == []


def test_sweep_respects_locks_of_other_processes(tmp):
    (tmp / "theirs").mkdir()
    (tmp / "theirs" / "lock").touch()
    code = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", code, tmp / "theirs" / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        child.stdout.readline()
        files.sweep(tmp)
        assert os.listdir(tmp) == ["theirs"]
        child.stdin.close()
    files.sweep(tmp)
    assert os.listdir(tmp) == []


def test_remove_tree_follows_no_symlink(tmp, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "kept").touch()
    tree = tmp / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d" / "link").symlink_to(tmp_path / "outside")
    (tree / "file link").symlink_to(tmp_path / "outside" / "kept")
    files.remove_tree(tree)
    assert not tree.exists()
    (tmp / "itself").symlink_to(tmp_path / "outside")
    files.remove_tree(tmp / "itself")
    assert os.listdir(tmp) == []
    assert os.listdir(tmp_path / "outside") == ["kept"]


def test_remove_tree_of_odd_things(tmp):
    files.remove_tree(tmp / "absent")
    tree = tmp / "tree"
    os.makedirs(os.fsencode(tree) + b"/\xff\n/" + b"n" * 255)
    os.mkfifo(tree / "fifo")
    os.mknod(tree / "whiteout", 0o20000, 0)
    (tree / "unreadable").touch(mode=0)
    files.remove_tree(tree)
    assert os.listdir(tmp) == []


def test_remove_tree_deeper_than_a_path_may_be_long(tmp):
    """It stands below the store's own path, so what is relative to it may use all of PATH_MAX."""
    names = ["tree", *["d" * 250] * 16, "d" * 70]
    with files.opened(tmp) as top:
        for i in range(len(names)):
            os.mkdir("/".join(names[: i + 1]), dir_fd=top)
    with pytest.raises(OSError, match="too long"):
        os.stat(tmp.joinpath(*names))
    files.remove_tree(tmp / "tree")
    assert os.listdir(tmp) == []


def test_tree_size_counts_each_inode_once(tmp):
    (tmp / "d").mkdir()
    (tmp / "d" / "a").write_bytes(b"12345")
    (tmp / "b").hardlink_to(tmp / "d" / "a")
    (tmp / "c").symlink_to("123")
    with files.opened(tmp) as fd:
        assert files.tree_usage(fd)[0] == 8


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
def test_copy_data(tmp, size):
    content = os.urandom(size)
    (tmp / "a").write_bytes(content)
    with open(tmp / "a", "rb") as source, open(tmp / "b", "wb") as target:
        copy_data(source.fileno(), target.fileno(), size)
    assert (tmp / "b").read_bytes() == content


def test_copy_data_keeps_holes(tmp):
    with open(tmp / "a", "wb") as file:
        file.seek(1 << 26)
        file.write(b"end")
        file.truncate(1 << 27)
    with open(tmp / "a", "rb") as source, open(tmp / "b", "wb") as target:
        copy_data(source.fileno(), target.fileno(), 1 << 27)
    copied = os.stat(tmp / "b")
    assert (copied.st_size, copied.st_blocks * 512 < 1 << 20) == (1 << 27, True)
    with open(tmp / "b", "rb") as file:
        file.seek(1 << 26)
        assert file.read(4) == b"end\0"
