"""The mount points of a container appear in any tree, however hostile, and nothing outside it is touched.

seeds.md 1.3, SetupInitLayer: what is no directory goes, directories stay, and what is missing is made.
"""

import os
import shutil
import stat
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fusestore.store.initlayer import setup_init_layer

DIRECTORY, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFLNK | 0o777
MADE = {
    **dict.fromkeys(("dev", "dev/pts", "dev/shm", "etc", "proc", "sys"), DIRECTORY),
    **dict.fromkeys((".dockerinit", ".dockerenv", "dev/console"), FILE),
    **dict.fromkeys(("etc/resolv.conf", "etc/hosts", "etc/hostname"), FILE),
    "etc/mtab": LINK,
}


@pytest.fixture
def tree(tmp_path):
    """A tree to be filled, beside a directory that nobody may touch."""
    victim, root = tmp_path / "victim", tmp_path / "tree"
    for place in (victim, victim / "pts", root):
        place.mkdir()
    for name in ("hosts", "mtab", "console", "resolv.conf", "file"):
        (victim / name).write_text("precious")
    before = snapshot(victim)
    yield root
    assert snapshot(victim) == before


def snapshot(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below a directory: mode, time, inode and content."""
    found = {}
    for path in sorted([place, *place.rglob("*")]):
        st = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(place))] = (st.st_mode, st.st_mtime_ns, st.st_ino, content)
    return found


def modes(place: Path) -> dict[str, int]:
    return {str(path.relative_to(place)): path.lstat().st_mode for path in place.rglob("*")}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_an_empty_tree(tree, umask):
    before = os.umask(umask)
    try:
        setup_init_layer(tree)
        setup_init_layer(tree)  # it is no error that all of it is there
    finally:
        os.umask(before)
    assert modes(tree) == MADE
    assert os.readlink(tree / "etc/mtab") == "/proc/mounts"
    assert {path.stat().st_size for path in tree.rglob("*") if stat.S_ISREG(path.lstat().st_mode)} == {0}


OBSTACLES = {
    "absolute symlink": lambda path, victim: path.symlink_to(victim),
    "relative symlink": lambda path, victim: path.symlink_to(os.path.relpath(victim, path.parent)),
    "symlink to a file": lambda path, victim: path.symlink_to(victim / "file"),
    "symlink to the root": lambda path, victim: path.symlink_to("/"),
    "dangling symlink": lambda path, victim: path.symlink_to(victim / "made by you"),
    "loop": lambda path, victim: path.symlink_to(path.name),
    "up": lambda path, victim: path.symlink_to(".."),
    "file": lambda path, victim: path.write_text("in the way"),
    "hard link": lambda path, victim: os.link(victim / "file", path),
    "fifo": lambda path, victim: os.mkfifo(path),
    "nothing to read": lambda path, victim: path.touch(mode=0),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_whatever_is_in_the_way_goes(tree, obstacle):
    for number, name in enumerate(MADE):
        root = tree / str(number)
        path = root / name
        path.parent.mkdir(parents=True)
        OBSTACLES[obstacle](path, tree.parent / "victim")
        setup_init_layer(root)
        assert modes(root) == MADE, name
        assert os.readlink(root / "etc/mtab") == "/proc/mounts"
        assert (root / "etc/hosts").stat().st_size == 0


def test_directories_stay_as_they_are(tree):
    """Also where a file is wanted."""
    for number, name in enumerate(MADE):
        root = tree / str(number)
        path = root / name
        path.mkdir(parents=True)
        (path / "own").write_text("own")
        path.chmod(0o700)
        setup_init_layer(root)
        assert modes(root) == MADE | {name: stat.S_IFDIR | 0o700, f"{name}/own": stat.S_IFREG | 0o644}
        assert (path / "own").read_text() == "own"


def test_files_of_the_image_come_out_empty(tree):
    (tree / "etc").mkdir()
    for name in ("hosts", "passwd"):
        (tree / "etc" / name).write_text("of the image")
    setup_init_layer(tree)
    assert [(tree / "etc" / name).read_text() for name in ("hosts", "passwd")] == ["", "of the image"]


def test_a_tree_that_is_no_tree(tmp_path):
    with pytest.raises(FileNotFoundError):
        setup_init_layer(tmp_path / "missing")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        setup_init_layer(tmp_path / "file")


def test_a_directory_that_turns_into_a_symlink_while_it_works(tree):
    """Whoever can write to the tree does so at the worst moment: before any one of the system calls."""
    victim = tree.parent / "victim"
    calls, number, refused = 1000, 0, 0

    def profile(frame, event, function):
        nonlocal calls
        if event == "c_call" and getattr(function, "__module__", "") == "posix":
            calls += 1
            if calls == number:
                (tree / "etc").rename(tree / f"moved{number}")
                (tree / "etc").symlink_to(victim)

    while number <= calls:
        number, calls = number + 1, 0
        with suppress(FileNotFoundError):
            (tree / "etc").unlink()
        (tree / "etc").mkdir(exist_ok=True)
        sys.setprofile(profile)
        try:
            setup_init_layer(tree)
        except OSError:
            refused += 1
        finally:
            sys.setprofile(None)
        if (tree / "etc").is_symlink():
            (tree / "etc").unlink()
        else:
            shutil.rmtree(tree / "etc")
    assert number > 60
    assert 0 < refused < number
