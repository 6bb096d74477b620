"""moby's own tests of its layer store (layer/*_test.go), by their names, on both drivers.

What they assert is theirs, `daemon/internal/layer` at HEAD and `layer` of docker 1.10, but where the store
is another: handles on parents are chain IDs, a transaction is the database's, and an orphan is a layer of the
driver that no row names.  moby's tests of Changes, tar-split and graphdrivers are elsewhere (test_tarsplit,
the drivers' conformance).
"""

import os

import pytest
from support.rw_layers import create_layer, put_file, tidied
from support.tars import END, Stream, folder, member, tar

from fusestore.driver.api import ChangeKind
from fusestore.errors import CorruptStore, LayerInUse, LayerNotRetained, MountNameConflict, RWLayerNotFound
from fusestore.store.layerstore import release_and_log
from fusestore.store.registered import Released
from fusestore.store.tarsplit import RECORD


@pytest.fixture
def reopened(reopened, runroot):
    yield from tidied(reopened, runroot)


def chain_of(store, *archives, parent=None):
    """Layers one on top of the other; a handle on each."""
    handles = []
    for archive in archives:
        handles.append(store.register(Stream(archive), parent))
        parent = handles[-1].chain_id
    return handles


def files_of(layer):
    """Where the driver has a layer's own files."""
    found = layer.metadata()
    return found.get("UpperDir") or found["SourceDir"]


# -- layer_test.go -----------------------------------------------------------------------------------------


def test_mount_and_register(layers):
    """A file of a registered layer is read through a new RW layer on it."""
    made = create_layer(layers, None, lambda path: put_file(path / "testfile.txt", b"some test data", 0o644))
    assert made.size == len(b"some test data")
    rw = layers.create_rw_layer("new-test-mount", made.chain_id)
    assert (rw.mount() / "testfile.txt").read_bytes() == b"some test data"
    rw.unmount()
    assert layers.release_rw_layer(rw) == []
    assert [gone.chain_id for gone in layers.release(made)] == [made.chain_id]


def test_layer_release(layers):
    """L1 <- L2 <- {L3a, L3b}; the handles of L1 and L2 go first.  Child first, sizes of the chain and own."""
    one, two, left = chain_of(layers, *(tar(member(f"layer{size}", b"x" * size)) for size in (1, 20, 300)))
    (right,) = chain_of(layers, tar(member("layer3b.txt", b"b" * 5)), parent=two.chain_id)
    assert layers.release(one) == layers.release(two) == []
    assert set(layers.map()) == {layer.chain_id for layer in (one, two, left, right)}
    assert layers.release(right) == [Released(right.chain_id, right.diff_id, 26, 5)]
    assert set(layers.map()) == {layer.chain_id for layer in (one, two, left)}
    assert layers.release(left) == [
        Released(left.chain_id, left.diff_id, 321, 300),
        Released(two.chain_id, two.diff_id, 21, 20),
        Released(one.chain_id, one.diff_id, 1, 1),
    ]
    assert layers.map() == {}
    assert layers.driver.list_layers() == []


def known(store, chain_id):
    """All that can be asked of a layer and of those below it (moby: assertLayerEqual)."""
    found = []
    while chain_id is not None:
        layer = store.get(chain_id)
        found.append((layer.chain_id, layer.diff_id, layer.size, layer.diff_size, layer.metadata()))
        chain_id = layer.parent
        assert store.release(layer) == []
    return found


RESTORED = [tar(member(f"layer{number}.txt", b"%d" % number * number)) for number in (1, 2, 3)]


def test_store_restore(reopened):
    """A new store over the same root knows the layers, and the RW layer with what is in it."""
    first = reopened()
    handles = chain_of(first, *RESTORED)
    top = handles[-1].chain_id
    rw = first.create_rw_layer("some-mount_name", top)
    path = rw.mount()
    put_file(path / "testfile.txt", b"nothing here", 0o644)
    rw.unmount()
    before = known(first, top)

    second = reopened()
    mine = second.get(top)
    assert known(second, top) == before
    assert [size for _, _, size, _, _ in before] == [6, 3, 1]
    with pytest.raises(MountNameConflict, match="mount already exists with name"):
        second.create_rw_layer("some-mount_name", top)
    again = second.get_rw_layer("some-mount_name")
    for handle in (*handles, rw):
        handle.drop()  # as when their process ends
    assert again.mount() == again.mount() == again.path == path
    assert (path / "testfile.txt").read_bytes() == b"nothing here"
    again.unmount()
    assert (path / "testfile.txt").read_bytes() == b"nothing here"
    again.unmount()
    assert second.release_rw_layer(again) == []
    assert second.release_rw_layer(again) == []
    with pytest.raises(RWLayerNotFound):
        second.get_rw_layer("some-mount_name")
    assert [gone.chain_id for gone in second.release(mine)] == [chain_id for chain_id, *_ in before]


def test_store_restore_by_name(reopened):
    """The same in docker 1.10: Mount of a known name mounts again, whatever else it says."""
    first = reopened()
    handles = chain_of(first, *RESTORED)
    rw = first.mount("some-mount_name", handles[-1].chain_id)
    path = rw.path
    put_file(path / "testfile.txt", b"nothing here", 0o644)
    first.unmount("some-mount_name")

    second = reopened()
    mine = second.get(handles[-1].chain_id)
    for handle in (*handles, rw):
        handle.drop()
    assert second.mount("some-mount_name").path == path
    assert second.mount("some-mount_name", "sha256:" + "0" * 64, "label", os.rmdir).path == path
    assert (path / "testfile.txt").read_bytes() == b"nothing here"
    assert [change.path for change in second.changes("some-mount_name")] == [b"testfile.txt"]
    assert second.metadata("some-mount_name")["ID"] == "some-mount_name"
    for _ in range(2):
        assert path == second.mount("some-mount_name").path
        second.unmount("some-mount_name")
        second.unmount("some-mount_name")
        second.mount("some-mount_name")
    second.unmount("some-mount_name")
    second.unmount("some-mount_name")
    assert second.delete_mount("some-mount_name") == []
    for call in (second.unmount, second.delete_mount, second.changes, second.metadata):
        with pytest.raises(RWLayerNotFound, match="mount does not exist"):
            call("some-mount_name")
    assert len(second.release(mine)) == 3


def exact(layer):
    with layer.tar_stream() as stream:
        return stream.read()


def test_tar_stream_stability(layers):
    """What somebody adds to a layer's directory changes nothing; nor does who holds the layer meanwhile."""
    first = tar(folder("etc"), member("etc/hosts", b"mydomain 10.0.0.1"), member("etc/profile", b"PATH=/usr"))
    second = tar(folder("root"), member("root/.bashrc", b"PATH=/usr/sbin:/usr/bin", mode=0o600))
    (below,) = chain_of(layers, first)
    with open(f"{files_of(below)}/extra-file", "w") as file:
        file.write("why did the chicken cross the road?")
    (above,) = chain_of(layers, second, parent=below.chain_id)
    assert layers.release(below) == []
    assert exact(above) == second
    again = layers.get(below.chain_id)
    assert exact(again) == first
    assert layers.release(again) == []
    assert exact(above) == second


def test_register_existing_layer(layers):
    """Two handles on one layer, and those two only are good."""
    base, above = chain_of(layers, RESTORED[0], tar(member("profile", b"# Base configuration")))
    (same,) = chain_of(layers, tar(member("profile", b"# Base configuration")), parent=base.chain_id)
    assert same is not above
    assert same.record == above.record
    assert len(layers.driver.list_layers()) == len(layers.map()) == 2
    assert layers.release(above) == []
    with pytest.raises(LayerNotRetained, match="layer not retained"):
        layers.release(above)
    assert [gone.chain_id for gone in layers.release(same)] == [same.chain_id]


def test_tar_stream_verification(layers):
    """Records of two tars that differ in a mode only, one in the place of the other."""
    handles = [
        layers.register(Stream(tar(folder("etc"), member("foo", b"abc", mode=mode))))
        for mode in (0o644, 0o600)
    ]
    one, two = (layers.driver.notes(layer.record.cache_id) / RECORD for layer in handles)
    changed = one.read_bytes(), two.read_bytes()
    two.write_bytes(changed[0])
    one.write_bytes(changed[1])
    for layer in handles:
        with pytest.raises(CorruptStore, match="could not verify layer data") as caught:
            exact(layer)
        assert layer.diff_id in str(caught.value)
    one.write_bytes(changed[0])
    assert len(exact(handles[0])) == 512 * 3 + len(END)


def test_release_and_log(layers, caplog):
    """Every layer that went is told, child first; an error is told and not raised."""
    below, above = chain_of(layers, *RESTORED[:2])
    layers.release(below)
    with caplog.at_level("INFO", "fusestore"):
        release_and_log(layers, above)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    for layer, record in zip((above, below), caplog.records, strict=True):
        assert layer.chain_id in record.getMessage()
        assert layer.diff_id in record.getMessage()
    assert layers.map() == {}
    caplog.clear()
    release_and_log(layers, above)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "layer not retained" in record.getMessage()


# -- mount_test.go -----------------------------------------------------------------------------------------


def test_layer_size(layers):
    """The driver's DiffSize and the layer's sizes are the lengths of the contents."""
    base, above = chain_of(
        layers,
        tar(member("file1", b"Base contents")),
        tar(member("file2", b"Added contents")),
    )
    assert layers.driver.diff_size(base.record.cache_id, None) == base.size == base.diff_size == 13
    assert layers.driver.diff_size(above.record.cache_id, base.record.cache_id) == above.diff_size == 14
    assert above.size == 27


@pytest.fixture
def base(layers):
    """The chain ID of three files."""
    (layer,) = chain_of(
        layers, tar(*(member(name, b"base contents of %s" % name) for name in (b"file1", b"file2", b"file3")))
    )
    return layer.chain_id


def test_mount_init(layers, base):
    """The RW layer has what the init function has done to a file of the parent."""
    content = b"init data!"
    rw = layers.create_rw_layer(
        "fun-mount", base, init_func=lambda path: put_file(path / "file1", content, 0o777)
    )
    path = rw.mount()
    assert (path / "file1").read_bytes() == content
    assert (path / "file1").stat().st_mode & 0o777 == 0o777
    rw.unmount()
    assert layers.driver.mounted(rw.record.init_id) == 0


def test_mount_size(layers, base):
    """Only what is written after the init function counts."""
    rw = layers.create_rw_layer(
        "mount-size", base, init_func=lambda path: put_file(path / "file-init", b"init" * 100, 0o777)
    )
    assert rw.size() == 0
    put_file(rw.mount() / "file2", b"some new data", 0o777)
    rw.unmount()
    assert rw.size() == len(b"some new data")


def test_mount_changes(layers, base):
    """Four changes, sorted, and neither the root nor the init function's work."""

    def init(path):
        put_file(path / "file1", b"init data!", 0o777)
        put_file(path / "file-init", b"init", 0o644)

    rw = layers.create_rw_layer("mount-changes", base, init_func=init)
    path = rw.mount()
    put_file(path / "file1", b"new data!", 0o777)
    (path / "file2").unlink()
    (path / "file3").chmod(0o755)
    put_file(path / "file4", b"mount data!", 0o777)
    expected = [
        (ChangeKind.MODIFY, b"file1"),
        (ChangeKind.DELETE, b"file2"),
        (ChangeKind.MODIFY, b"file3"),
        (ChangeKind.ADD, b"file4"),
    ]
    assert rw.changes() == expected
    rw.unmount()
    assert rw.changes() == layers.changes("mount-changes") == expected


def test_mount_apply(layers, base):
    """A file of another layer's tar is seen in the RW layer."""
    (other,) = chain_of(layers, tar(member("new-file", b"some new data")))
    rw = layers.create_rw_layer("fun-mount", base)
    with other.tar_stream() as stream:
        assert rw.apply_diff(stream) == len(b"some new data")
    path = rw.mount()
    assert (path / "new-file").read_bytes() == b"some new data"
    assert (path / "file1").exists()
    rw.unmount()
    assert rw.size() == len(b"some new data")
    rw.mount()
    with other.tar_stream() as stream, pytest.raises(LayerInUse, match="mounted"):
        rw.apply_diff(stream)
    rw.unmount()
