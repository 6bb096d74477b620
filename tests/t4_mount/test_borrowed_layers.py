"""Layers of other stores in real mounts: read, changed on top, closed to us, gone, and mounted over.

Theory: a server opens what other programs keep by the same rules as the library (tests/t1_core), but for
users who know nothing of layers: they must see an errno that says what it is, and whatever they do, every
inode of the other store stays as it was.  Locks keep a layer while it is mounted, also where we may only
read the file to lock.
"""

import fcntl
import os
import shutil
import stat
from pathlib import Path

import pytest
from support import naive
from support.foreign import MAPPED, TOLD_BY_ITSELF, borrow, made, refusal, state
from support.layers import add, stack
from support.tars import folder, hard_link, member, tar
from support_real.commands import is_running
from support_real.graphs import graph_of, listing

from fusestore.driver import mounter
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import LayerSpec, MountSpec, Origin
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import CorruptStore, InvalidMountpoint, LayerInUse


@pytest.fixture
def graph(tmp_path):
    """An empty home of the fuse driver."""
    with graph_of("fuse", tmp_path / "ours") as made:
        yield made


@pytest.fixture
def theirs(tmp_path):
    """A tree of another program's, made by a user of whom the image knows nothing."""
    files = {"d/f": b"data", "d/g": b"more", "d/sub/": b"", "gone": b"", "deep/": b""}
    root = made(tmp_path / "theirs", files)
    os.link(root / "d/f", root / "deep/linked")
    (root / "d/sub").chmod(0o1750)
    os.setxattr(root / "d/f", "user.k", b"v")
    yield root
    if (root / "closed").exists():
        (root / "closed").chmod(0o700)


def owner(path):
    st = path.lstat()
    return st.st_uid, st.st_gid


def test_a_mount_of_ours_over_theirs_over_ours(graph, theirs):
    base, _ = add(graph.driver, tar(member("base", b"base", uid=9), member("d/hidden")))
    os.setxattr(theirs / "d", "user.fuseoverlayfs.opaque", b"y")
    before = state(theirs)
    lower = borrow(graph.driver, theirs, base, MAPPED)
    top, _ = add(graph.driver, tar(member(".wh.gone"), hard_link("new", "d/g")), lower)
    with graph.mounted(top) as root:
        assert listing(root) == ["base", "d/", "d/f", "d/g", "d/sub/", "deep/", "deep/linked", "new"]
        assert [owner(root / path) for path in ("base", "d", "d/f", "new")] == [(9, 0), *[(0, 0)] * 3]
        assert stat.S_IMODE((root / "d/sub").stat().st_mode) == 0o1750
        assert (root / "d/f").samefile(root / "deep/linked")
        assert (root / "new").read_bytes() == b"more"
        assert os.listxattr(root / "d") == []
        server = mounter.find(root, graph.place.runroot).pid
        assert graph.elsewhere(f"driver.get({top!r}) and driver.mounted({top!r})") == "2"
        graph.driver.put(top)
        assert mounter.find(root, graph.place.runroot).pid == server  # for the specs are equal
    assert state(theirs) == before


def test_changes_on_top_of_theirs_are_written_in_our_own_format(graph, theirs):
    before = state(theirs)
    layer = graph.made(borrow(graph.driver, theirs, origin=MAPPED))
    with graph.mounted(layer) as root:
        with open(root / "deep/linked", "ab") as file:
            file.write(b" and ours")
        (root / "d/sub").rmdir()
        (root / "gone").unlink()
        (root / "d/g").chmod(0o4711)
        (root / "d").rename(root / "moved")
        assert (root / "moved/f").read_bytes() == b"data and ours"
    upper = graph.driver.path / layer / "diff"
    kept = {"moved": "0:0:0755:dir", "moved/f": "0:0:0644:file", "moved/g": "0:0:4711:file"}
    assert {path: os.getxattr(upper / path, OVERRIDE_STAT).decode() for path in kept} == kept
    assert graph.changes(layer, graph.driver.chain(layer)[1]) == [
        "D d", "C deep", "C deep/linked", "D gone", "A moved", "A moved/f", "A moved/g",
    ]  # fmt: skip
    copy, _ = add(graph.driver, b"".join(graph.driver.diff(layer, None)))
    assert naive.facts(naive.shown(graph.driver, copy)) == naive.facts(naive.shown(graph.driver, layer))
    assert os.getxattr(upper / "moved/f", "user.k") == b"v"
    child, _ = add(graph.driver, tar(member("moved/new")), layer)
    with graph.mounted(child) as root:
        assert listing(root) == ["deep/", "deep/linked", "moved/", "moved/f", "moved/g", "moved/new"]
    assert state(theirs) == before


def test_what_is_closed_to_us_is_refused_and_all_else_works(graph, theirs):
    """Permission denied, for the one who asks for it."""
    base, _ = add(graph.driver, tar(member("closed/ours"), member("d/ours")))
    (theirs / "closed").mkdir()
    (theirs / "closed/f").touch()
    for path in ("closed", "d/g"):
        (theirs / path).chmod(0)
    before = state(theirs)
    layer = graph.made(borrow(graph.driver, theirs, base, MAPPED))
    with graph.mounted(layer) as root:
        assert sorted(os.listdir(root)) == ["closed", "d", "deep", "gone"]
        assert sorted(os.listdir(root / "d")) == ["f", "g", "ours", "sub"]
        assert stat.S_IMODE((root / "closed").stat().st_mode) == 0
        refused = [
            (os.listdir, root / "closed"),
            (os.lstat, root / "closed/f"),
            (os.lstat, root / "closed/ours"),
            (os.lstat, root / "closed/none"),
            ((root / "closed/new").touch,),
            ((root / "d/g").read_bytes,),
            (open, root / "d/g", "ab"),
            (os.truncate, root / "d/g", 1),
            (shutil.copyfile, root / "d/g", root / "copy"),
        ]
        for call, *arguments in refused:
            assert refusal(call, *arguments) == "EACCES", (call, arguments)
        (root / "d/f").write_bytes(b"changed")
        os.truncate(root / "d/g", 0)  # for which nothing of theirs is needed
        (root / "d/g").write_bytes(b"replaced")
        (root / "closed").chmod(0o755)
        assert (root / "d/f").read_bytes() + (root / "d/g").read_bytes() == b"changedreplaced"
        assert is_running(mounter.find(root, graph.place.runroot).pid)
    assert os.listdir(graph.driver.path / layer / "work") == []
    assert state(theirs) == before


def test_a_mount_keeps_a_borrowed_layer(graph, theirs):
    layer = borrow(graph.driver, theirs, origin=MAPPED)
    with graph.mounted(layer), pytest.raises(LayerInUse):
        graph.driver.remove(layer)
    graph.driver.remove(layer)
    assert (theirs / "d/f").read_bytes() == b"data"


def is_held(lock: Path) -> bool:
    """True when somebody has a lock that excludes an exclusive one."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_layers_of_a_store_that_we_may_only_read_are_mounted_and_locked(graph, tmp_path):
    """Two chains in one mount, neither borrowed; the third has no locks at all."""
    lender = FuseDriver(tmp_path / "other", tmp_path / "other-run")
    chain = lender.chain(stack(lender, tar(folder("d", uid=7), member("d/f", b"f")), tar(member("g"))))
    specs = [
        LayerSpec(spec.path, spec.links, spec.lock, Origin(lender.ownership, lender.spelling))
        for spec in lender.layer_specs(chain)
    ]
    foreign = made(tmp_path / "foreign", {"d/theirs": b"", "h": b""})
    specs.append(LayerSpec(str(foreign), origin=TOLD_BY_ITSELF))
    closed = [path for path in sorted(lender.path.rglob("*"), reverse=True) if not path.is_symlink()]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in closed}
    for path in closed:
        path.chmod(modes[path] & 0o555)
    before = state(lender.path)
    mountpoint, runroot = tmp_path / "mnt", graph.place.runroot
    mountpoint.mkdir()
    runroot.mkdir(mode=0o700)
    spec = MountSpec(tuple(specs), str(graph.driver.path), Ownership.REAL, Spelling.DEVICE, "two stores")
    locks = [Path(spec.lock) for spec in specs if spec.lock]
    try:
        mounter.mount(spec, mountpoint, runroot)
        assert listing(mountpoint) == ["d/", "d/f", "d/theirs", "g", "h"]
        assert owner(mountpoint / "d") == (7, 0)
        assert [is_held(lock) for lock in locks] == [True, True]
        mounter.mount(spec, mountpoint, runroot)  # the same again, no other
        mounter.unmount(mountpoint, runroot)
        assert [is_held(lock) for lock in locks] == [False, False]
        assert state(lender.path) == before
    finally:
        for path in reversed(closed):
            path.chmod(modes[path])


@pytest.mark.parametrize("place", ["d/sub", "", ".."])
def test_nothing_is_mounted_where_the_server_would_have_to_look_through_it(graph, theirs, place):
    layer = borrow(graph.driver, theirs, origin=MAPPED)
    graph.place.runroot.mkdir(mode=0o700)
    with pytest.raises(InvalidMountpoint):
        mounter.mount(graph.driver.spec(layer, "inside"), (theirs / place).resolve(), graph.place.runroot)


def test_when_their_store_is_gone_a_mount_is_refused_and_a_live_one_ends_well(graph, theirs):
    layer = borrow(graph.driver, theirs, add(graph.driver, tar(member("base", b"base")))[0])
    top = graph.made(layer)
    with graph.mounted(top) as root:
        assert (root / "d/f").read_bytes() == b"data"
        shutil.rmtree(theirs)
        assert refusal((root / "d/g").read_bytes) == "ENOENT"
        assert (root / "base").read_bytes() == b"base"
        (root / "new").write_bytes(b"new")
    for use in (graph.driver.get, graph.driver.metadata, lambda one: graph.driver.changes(one, layer)):
        with pytest.raises(CorruptStore, match=f"^{theirs}: "):
            use(top)
    assert graph.driver.mounted(top) == 0
    for doomed in (top, layer):
        graph.driver.remove(doomed)
    assert not graph.driver.exists(layer)
