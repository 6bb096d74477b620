"""The register of defects in the stores that we follow (seeds.md 9, D1-D40): ours does not have them.

One test for each that concerns layers, RW layers, tars or commits, its number in its name; it fails with the
defect.  Faults are real: directories without write permission, a limit on the size of files, damaged
directories.  The others:

===========================  =============================================================================
D7 (also D2, D3, D6)         a crash at each step: test_kill_points; here: an error
D11 D12                      test_graph
D13 D14 D15                  test_graph_leftovers
D16-D21, D29, D32-D36        of the Store of containers/storage: test_store_defects
D22                          test_database: a damaged database is refused and never written to
D31                          no lock files here: test_database, transactions
D37                          no such index here
D39 D40                      every spelling of whiteouts: t1_core/test_apply_whiteouts
===========================  =============================================================================
"""

import os
import resource
import select
import shutil
import subprocess
from contextlib import contextmanager

import pytest
from support.fsck import broken, problems
from support.images import sha256
from support.layers import paths
from support.rw_layers import put_file, tidied, unmount_all
from support.tars import Stream, folder, member, read, symlink, tar

from fusestore.compression import decompressed
from fusestore.driver import mounter
from fusestore.driver.fuse import FuseDriver
from fusestore.errors import (
    CorruptStore,
    FusestoreError,
    InvalidLayer,
    LayerInUse,
    LayerNotFound,
    NotMounted,
    RWLayerNotFound,
)
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata

A, B, C = (tar(member(name, name * 10)) for name in (b"a", b"b", b"c"))
ON_FUSE = pytest.mark.parametrize("reopened", [FuseDriver], ids=["fuse"], indirect=True)


@pytest.fixture
def reopened(reopened, runroot):
    yield from tidied(reopened, runroot)


@pytest.fixture
def base(layers):
    """A handle on a layer."""
    return layers.register(Stream(A))


def names(store, layer):
    with store.driver.union(layer.record.cache_id) as union:
        return paths(union)


@contextmanager
def unwritable(place):
    """Nothing can be made in or taken from a directory."""
    place.chmod(0o500)
    try:
        yield
    finally:
        place.chmod(0o700)


class Full:
    """The disk is full for what needs more than 2,000 bytes in one file: the database, but no small layer."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, self._before[1]))

    def __exit__(self, *exc):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_d1_a_damaged_layer_does_not_keep_the_store_from_opening(reopened, base, layers):
    child, other = layers.register(Stream(B), base.chain_id), layers.register(Stream(C))
    home = layers.driver.path
    os.rename(home / base.record.cache_id, home / "elsewhere")
    try:
        again = reopened()
        assert set(again.map()) == {base.chain_id, child.chain_id, other.chain_id}
        assert names(again, again.get(other.chain_id)) == [b"c"]
        with pytest.raises((LayerNotFound, CorruptStore)):
            again.get(base.chain_id)
        with pytest.raises((LayerNotFound, CorruptStore, OSError)):
            again.register(Stream(C), base.chain_id)
    finally:
        os.rename(home / "elsewhere", home / base.record.cache_id)
    assert names(again, again.get(child.chain_id)) == [b"a", b"b"]


def test_d2_d24_a_layer_that_cannot_be_named_is_nowhere(layers, reopened, base, store_root):
    """Not in the driver, not in memory; the parent is not kept; then it can be registered."""
    before, fds = layers.driver.list_layers(), len(os.listdir("/proc/self/fd"))
    for parent in (None, base.chain_id):
        with pytest.raises(OSError, match=r"store\.db"), Full():
            layers.register(Stream(B), parent)
    layers.cleanup()  # files go only after a commit that succeeded
    assert layers.driver.list_layers() == before
    assert len(os.listdir("/proc/self/fd")) <= fds  # others may go with their tests
    assert problems(store_root) == []
    assert set(layers.map()) == set(reopened().map()) == {base.chain_id}
    child = layers.register(Stream(B), base.chain_id)
    assert layers.release(base) == []
    assert len(layers.release(child)) == 2


@pytest.mark.parametrize("where", ["tmp", "home"])
def test_d3_a_layer_whose_files_cannot_be_deleted_is_no_zombie(layers, base, store_root, where):
    """It is gone from the store, or as it was; the files are garbage that `cleanup` takes away."""
    place = store_root / "tmp" if where == "tmp" else layers.driver.path
    with unwritable(place), pytest.raises(PermissionError):
        layers.release(base)
    assert broken(store_root) == []
    layers.release(base)
    assert layers.map() == {}
    layers.cleanup()
    assert problems(store_root) == []
    again = layers.register(Stream(A))
    assert names(layers, again) == [b"a"]


def test_d3_a_layer_whose_row_cannot_be_deleted_is_still_held(layers, reopened, base):
    """The handle is good: it keeps the layer, and can be given back."""
    other = reopened()
    with pytest.raises(OSError, match=r"store\.db"), Full():
        layers.release(base)
    assert other.release(other.get(base.chain_id)) == []
    assert names(layers, base) == [b"a"]
    assert [gone.chain_id for gone in layers.release(base)] == [base.chain_id]


def test_d4_d27_counts_do_not_go_below_nothing(layers, base):
    rw = layers.create_rw_layer("c1", base.chain_id)
    for _ in range(2):
        with pytest.raises(NotMounted, match="not mounted"):
            rw.unmount()
        with pytest.raises(NotMounted):
            layers.unmount("c1")
        layers.driver.put(rw.record.mount_id)
        assert layers.driver.mounted(rw.record.mount_id) == 0
    path = rw.mount()
    assert layers.driver.mounted(rw.record.mount_id) == 1
    assert path == rw.path
    rw.unmount()
    with pytest.raises(NotMounted):
        rw.path  # noqa: B018


@pytest.mark.parametrize("by_name", [False, True])
def test_d5_an_rw_layer_that_cannot_be_deleted_is_not_lost(layers, reopened, base, store_root, by_name):
    """Whatever stands in the way, the call can be repeated."""
    rw = layers.create_rw_layer("c1", base.chain_id)

    def delete():
        return layers.delete_mount("c1") if by_name else layers.release_rw_layer(rw)

    with pytest.raises(OSError, match=r"store\.db"), Full():
        delete()
    assert [record.name for record in layers.rw_layers()] == ["c1"]
    if by_name:
        theirs = reopened()
        handle = theirs.get_rw_layer("c1")
        with pytest.raises(LayerInUse):
            delete()
        assert theirs.release_rw_layer(handle) == []  # ours keeps it
        assert [record.name for record in layers.rw_layers()] == ["c1"]
    with unwritable(store_root / "tmp"), pytest.raises(PermissionError):
        delete()
    assert broken(store_root) == []
    if layers.rw_layers():
        delete()
    layers.cleanup()
    assert problems(store_root) == []
    assert layers.release_rw_layer(rw) == []
    assert layers.create_rw_layer("c1", base.chain_id).changes() == []


@pytest.mark.parametrize("when", ["before", "in the init function"])
def test_d6_d7_an_rw_layer_that_cannot_be_named_is_nowhere(layers, reopened, base, store_root, when):
    """Neither the layer nor its init layer, nor a part of its record."""
    full, fds = Full(), len(os.listdir("/proc/self/fd"))
    try:
        if when == "before":
            full.__enter__()
        with pytest.raises(OSError):
            layers.create_rw_layer(
                "c1", base.chain_id, init_func=lambda path: when == "before" or full.__enter__()
            )
    finally:
        full.__exit__()
    layers.cleanup()
    assert len(os.listdir("/proc/self/fd")) <= fds  # others may go with their tests
    assert problems(store_root) == []
    assert layers.driver.list_layers() == [base.record.cache_id]
    assert layers.rw_layers() == reopened().rw_layers() == []
    assert layers.create_rw_layer("c1", base.chain_id).name == "c1"


@pytest.mark.parametrize("gone", ["mount_id", "init_id"])
def test_d8_an_rw_layer_whose_files_are_gone(reopened, base, layers, store_root, gone):
    """Its name stays taken, using it is a clear error, releasing it is none."""
    made = layers.create_rw_layer("c1", base.chain_id, init_func=os.listdir)
    shutil.rmtree(layers.driver.path / getattr(made.record, gone))
    store = reopened()
    rw = store.get_rw_layer("c1")
    uses = {
        "mount": rw.mount,
        "mount by name": lambda: store.mount("c1"),
        "changes": rw.changes,
        "changes by name": lambda: store.changes("c1"),
        "size": rw.size,
        "tar_stream": lambda: rw.tar_stream().read(),
        "apply_diff": lambda: rw.apply_diff(Stream(B)),
        "commit": lambda: store.commit(rw),
    }
    for use in uses.values():
        with pytest.raises(CorruptStore, match=r"^c1: .* are gone"):
            use()
    with pytest.raises(NotMounted):
        rw.unmount()
    assert rw.name == "c1"
    with pytest.raises(FusestoreError, match="already exists"):
        store.create_rw_layer("c1")
    made.drop()
    assert store.release_rw_layer(rw) == []
    store.cleanup()
    assert problems(store_root) == []
    assert store.driver.list_layers() == [base.record.cache_id]


def test_d9_no_tar_is_registered_with_half_a_record(layers, base):
    """Cut anywhere, it is refused, or comes back as it was."""
    whole = tar(folder("d"), member("d/f", b"x" * 700), symlink("s", "d/f"), member("é", b"", mtime=77))
    registered = 0
    for size in range(0, len(whole) + 1, 256):
        try:
            layer = layers.register(Stream(whole[:size], 100), base.chain_id)
        except InvalidLayer:
            continue
        registered += 1
        with layer.tar_stream() as stream:
            assert stream.read() == whole[:size]
        layers.release(layer)
    assert 2 <= registered < len(whole) // 256
    assert set(layers.map()) == {base.chain_id}


def test_d10_nothing_below_is_none(layers, base):
    assert base.parent is None
    assert layers.get(base.chain_id).parent is None
    assert layers.map()[base.chain_id].parent is None
    assert layers.create_rw_layer("c1").parent is None


def test_d23_everything_that_was_left_is_taken_away_at_once(layers, base, store_root):
    for number in range(5):
        orphan = layers.register(Stream(tar(member(f"{number}"))), base.chain_id)
        layers._metadata.remove(orphan.chain_id)
        orphan.drop()
    assert len(problems(store_root)) == 10  # layers and links
    layers.cleanup()
    assert problems(store_root) == []


def test_d25_what_is_deleted_leaves_no_name(layers, base):
    """The next of its name is another."""
    child, rw = layers.register(Stream(B), base.chain_id), layers.create_rw_layer("c1", base.chain_id)
    layers.release(child)
    layers.release_rw_layer(rw)
    for call in (lambda: layers.get(child.chain_id), lambda: layers.get_rw_layer("c1")):
        with pytest.raises((LayerNotFound, RWLayerNotFound)):
            call()
    again, rw_again = layers.register(Stream(B), base.chain_id), layers.create_rw_layer("c1")
    assert again.record.cache_id != child.record.cache_id
    assert rw_again.record.mount_id != rw.record.mount_id
    assert layers.release_rw_layer(rw) == []
    assert [record.name for record in layers.rw_layers()] == ["c1"]


def test_d26_a_name_that_is_anothers_id(layers, base):
    """What is mounted, and what is deleted, is what has the name."""
    one = layers.create_rw_layer("one", base.chain_id)
    two = layers.create_rw_layer(one.record.mount_id, base.chain_id)
    one.apply_diff(Stream(B))
    two.apply_diff(Stream(C))
    assert layers.get_mount_id(two.name) == two.record.mount_id
    assert [change.path for change in layers.changes(two.name)] == [b"c"]
    path = layers.mount(two.name).path
    assert sorted(os.listdir(path)) == ["a", "c"]
    layers.unmount(two.name)
    layers.delete_mount(two.name)
    assert layers.driver.exists(one.record.mount_id)
    assert [record.name for record in layers.rw_layers()] == ["one"]


def unmount_by_hand(path, runroot):
    """With fusermount3, and wait for the server to end."""
    (mounted,) = mounter.mounted(runroot)
    server = os.pidfd_open(mounted.pid)
    subprocess.run(["fusermount3", "-u", path], check=True)
    select.select([server], [], [], 20)
    os.close(server)


@ON_FUSE
def test_d28_a_mount_that_is_gone_counts_no_more(layers, base, runroot):
    """Somebody unmounted it by hand; the next user gets a mount that the next unmount takes away."""
    rw = layers.create_rw_layer("c1", base.chain_id)
    for _ in range(2):
        path = rw.mount()
        put_file(path / "kept", b"kept", 0o600)
    unmount_by_hand(path, runroot)
    assert layers.driver.mounted(rw.record.mount_id) == 0
    with pytest.raises(NotMounted):
        rw.unmount()
    assert (rw.mount() / "kept").read_bytes() == b"kept"
    assert layers.driver.mounted(rw.record.mount_id) == 1
    rw.unmount()
    assert not os.path.ismount(path)
    rw.mount()
    unmount_by_hand(path, runroot)
    assert layers.release_rw_layer(rw) == []
    assert layers.rw_layers() == []


def test_d28_counts_end_with_the_runroot(layers, base, store_root, runroot, tmp_path):
    """The machine has been started anew: nothing is mounted, and everything is there."""
    rw = layers.create_rw_layer("c1", base.chain_id)
    put_file(rw.mount() / "kept", b"kept", 0o600)
    rw.mount()
    unmount_all(runroot)
    rw.drop()
    os.rename(runroot, tmp_path / "before")
    database = Database(store_root / "store.db")
    store = LayerStore(LayerMetadata(database), type(layers.driver)(store_root, tmp_path / "after"))
    again = store.get_rw_layer("c1")
    with pytest.raises(NotMounted):
        again.unmount()
    assert (again.mount() / "kept").read_bytes() == b"kept"
    again.unmount()
    assert store.release_rw_layer(again) == []
    os.rename(tmp_path / "before", runroot)
    database.close()


def test_d30_a_stream_that_gives_a_byte_at_a_time(layers, gzipped):
    """The kind of compression is told from as many bytes as it takes."""
    layer = layers.register(decompressed(Stream(gzipped, 1)))
    assert layer.diff_id == sha256(A)
    with layer.tar_stream() as stream:
        assert stream.read() == A


@pytest.fixture(params=["gzip", "zstd"])
def gzipped(request):
    """A layer as it is downloaded."""
    return subprocess.run([request.param, "-c"], input=A, capture_output=True, check=True).stdout


@pytest.mark.parametrize("epoch", [None, 1_234_567_890])
def test_d38_a_diff_has_the_same_bytes_each_time(layers, base, monkeypatch, epoch):
    """Whiteouts too: their time is SOURCE_DATE_EPOCH, or the epoch."""
    if epoch:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(epoch))
    rw = layers.create_rw_layer("c1", base.chain_id)
    rw.apply_diff(Stream(tar(member(".wh.a", mtime=5), member("new", b"1", mtime=6))))
    tars = [stream.read() for stream in (rw.tar_stream(), layers.get_rw_layer("c1").tar_stream())]
    assert tars[0] == tars[1]
    times = {found.name: found.mtime_ns // 10**9 for found, _ in read(tars[0])}
    assert (times[b".wh.a"], times[b"new"]) == (epoch or 0, 6)


@pytest.mark.parametrize("order", [1, -1], ids=["whiteout first", "whiteout last"])
@pytest.mark.parametrize("commit", [False, True], ids=["register", "commit"])
def test_d39_d40_a_whiteout_beside_what_it_names(layers, base, order, commit):
    """The entry is new, and what is hidden is the one below; in either order."""
    changes = tar(*[member(".wh.a"), member("a", b"new")][::order])
    if commit:
        rw = layers.create_rw_layer("c1", base.chain_id)
        rw.apply_diff(Stream(changes))
        layer = layers.commit(rw)
    else:
        layer = layers.register(Stream(changes), base.chain_id)
    assert names(layers, layer) == [b"a"]
    assert layer.diff_size == 3
