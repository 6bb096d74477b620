"""Killed, or refused by the disk, at the calls by which a command changes something: the store stays sound.

A sample of the points here; all of them with HYPOTHESIS_PROFILE=deep.
"""

import errno
import gc
import os
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from support import faults
from support.fsck import broken, problems
from support.images import oci
from support.layers import paths
from support.tars import CHAR, folder, hard_link, member, symlink, tar

from fusestore.errors import ImageNotFound
from fusestore.files import remove_tree
from fusestore.store.storage import Store
from fusestore.transport.pipeline import load

BASE = tar(
    folder("d"), member("d/a", b"1", uid=5), symlink("s", "d"), member("n", kind=CHAR, major=1), member("x")
)
TOP = tar(member(".wh.x"), hard_link("h", "d/a"), member("d/.wh..wh..opq"), member("d/b", b"2"))
SHOWN = [b"d", b"d/b", b"h", b"n", b"s"]
DEEP = settings.get_current_profile_name() == "deep"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An image below the store, one above it, and the store's two directories."""
    oci(tmp_path / "base", BASE, name="base:1")
    oci(tmp_path / "full", BASE, TOP, name="full:1")
    for name, place in (("FUSESTORE_ROOT", "store"), ("FUSESTORE_RUNROOT", "run")):
        monkeypatch.setenv(name, str(tmp_path / place))
    return tmp_path


def sampled(every, share):
    """`every` point, or here and there one, never two runs of one kind in a row left out."""
    return every if DEEP else every[:: max(len(every) // share, 1)]


def restore(places: Path, before):
    for name in ("store", "run"):
        if (places / name).exists():
            remove_tree(places / name)
    with Store() as store:
        for name in before:
            load(store, str(places / name))
    if not before:
        remove_tree(places / "store")


SCENES = {
    "load into nothing": ([], ["load", "-q", "full"], ["full:1"]),
    "load more": (["base"], ["load", "-q", "full"], ["base:1", "full:1"]),
    "delete all": (["full"], ["rmi", "full:1"], []),
    "delete some": (["base", "full"], ["rmi", "full:1"], ["base:1"]),
}


def verify(places, point, before, after):
    """At the instant of the fault no row is wrong; the next process finds what was or what should be."""
    assert broken(places / "store") == [], point
    with Store() as store:
        store.collect()
        assert problems(places / "store") == [], point
        names = [name.rpartition("/")[2] for image in store.images() for name in image.names]
        assert sorted(names) in (sorted(f"{name}:1" for name in before), sorted(after)), point
        for name in names:
            with store.union(store.image(name)) as union:
                assert paths(union), point


def repeat(places, command, after):
    """The same again does what it should have done."""
    with Store() as store:
        if command[0] == "load":
            (image,) = load(store, str(places / "full"))
            with store.union(image) as union:
                assert paths(union) == SHOWN
        else:
            try:
                store.delete_image(store.image("full:1").id)
            except ImageNotFound:
                pass
        assert sorted(name.rpartition("/")[2] for image in store.images() for name in image.names) == after
    assert problems(places / "store") == []


@pytest.mark.parametrize("fault", ["kill", "ENOSPC", "EIO"])
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.timeout(1200 if DEEP else 120)
def test_faults(places, scene, fault):
    before, arguments, after = SCENES[scene]
    command = [sys.executable, "-m", "fusestore", *(a if a != "full" else str(places / a) for a in arguments)]
    environment = dict(os.environ)
    restore(places, before)
    every = faults.points(command, environment, places)
    assert len(every) > 30
    reached = 0
    for point in sampled(every, 10 if fault == "kill" else 4):
        restore(places, before)
        status = faults.run(command, environment, point, fault)
        reached += status != 0
        assert status in ((0, -9) if fault == "kill" else (0, 125)), point
        verify(places, point, before, after)
        repeat(places, arguments, after)
    assert reached


def open_files():
    """What this process has open.  SQLite may keep fds of its database for later, lest it lose its locks."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return [name for link in links if os.path.lexists(link) and "store.db" not in (name := os.readlink(link))]


def test_few_file_descriptors(places):
    """EMFILE wherever it happens is an error of the machine's, leaks nothing, and passes."""
    with Store() as store:
        load(store, str(places / "base"))  # all modules are imported now
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        used = len(open_files())
        refused = 0
        for limit in range(used + 3, used + 27):  # 3: the database, its log and its shared memory
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                store.delete_image(load(store, str(places / "full"))[0].id)
            except OSError as exc:
                assert exc.errno == errno.EMFILE or "store.db" in str(exc), limit  # noqa: PT017
                refused += 1
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            gc.collect()
            assert len(open_files()) <= used, limit
            Store().close()  # takes away what could not be taken away for want of descriptors
            assert problems(places / "store") == [], limit
            assert [image.names for image in store.images()] == [("docker.io/library/base:1",)], limit
        assert 4 < refused < 24
