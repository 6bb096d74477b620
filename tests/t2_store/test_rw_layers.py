"""RW layers and handles of a layer store, in one process: the rules of moby's API that its tests do not show.

What a call gives, what keeps what, what is refused and leaves nothing behind; on both drivers.
"""

import os
import stat

import pytest
from support.fsck import problems
from support.images import sha256
from support.layers import tree
from support.rw_layers import put_file, seen, tidied
from support.tars import Stream, folder, hard_link, member, symlink, tar

from fusestore.digest import parse_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.errors import (
    ActiveMount,
    FusestoreError,
    LayerNotFound,
    LayerNotRetained,
    MaxDepthExceeded,
    MountNameConflict,
    NotAParent,
    NotMounted,
    NotSupported,
    RWLayerNotFound,
)

BASE = tar(member("a", b"12345"), folder("d"), member("d/b", b"123"))


@pytest.fixture
def reopened(reopened, runroot):
    yield from tidied(reopened, runroot)


@pytest.fixture
def base(layers):
    """A handle on a layer of 8 bytes."""
    return layers.register(Stream(BASE))


def ids(released):
    return [layer.chain_id for layer in released]


# -- handles -----------------------------------------------------------------------------------------------


def test_the_last_handle_deletes(layers, base):
    made = layers.create_rw_layer("c1", base.chain_id)
    handles = [layers.get_rw_layer("c1") for _ in range(3)]
    assert len({made, *handles}) == 4
    assert all(handle.record == made.record for handle in handles)
    for handle in (made, *handles[:2]):
        assert layers.release_rw_layer(handle) == []
        with pytest.raises(LayerNotRetained, match="layer not retained"):
            layers.release_rw_layer(handle)
    assert [record.name for record in layers.rw_layers()] == ["c1"]
    assert layers.release_rw_layer(handles[2]) == []  # `base` is held
    assert layers.rw_layers() == []
    assert layers.driver.list_layers() == [base.record.cache_id]
    for handle in (made, *handles):
        assert layers.release_rw_layer(handle) == []


@pytest.mark.parametrize("held", ["top", "base", None])
def test_layers_go_with_the_last_rw_layer_on_them(layers, base, held):
    """The worked example of seeds.md 10.2."""
    top = layers.register(Stream(tar(member("c", b"1"))), base.chain_id)
    rw = layers.create_rw_layer("c1", top.chain_id, init_func=os.listdir)
    gone = {"top": [], "base": [top.chain_id], None: [top.chain_id, base.chain_id]}[held]
    for name, layer in (("top", top), ("base", base)):
        if name != held:
            assert layers.release(layer) == []
    released = layers.release_rw_layer(rw)
    assert ids(released) == gone
    assert [(layer.size, layer.diff_size) for layer in released] == [(9, 1), (8, 8)][: len(gone)]


def test_two_rw_layers_keep_one_parent(layers, base):
    one, two = (layers.create_rw_layer(name, base.chain_id) for name in ("one", "two"))
    assert layers.release(base) == layers.release_rw_layer(one) == []
    assert ids(layers.release_rw_layer(two)) == [base.chain_id]


def test_a_handle_of_another_store_is_refused(reopened):
    first, second = reopened(), reopened()
    rw = first.create_rw_layer("c1")
    with pytest.raises(LayerNotRetained):
        second.release_rw_layer(rw)
    assert len(second.rw_layers()) == 1


def test_snapshots_take_no_handles(layers, base):
    rw = layers.create_rw_layer("c1", base.chain_id)
    for snapshot in (layers.map(), layers.rw_layers()):
        assert len(snapshot) == 1
        snapshot.clear()
    assert len(layers.map()) == len(layers.rw_layers()) == 1
    assert layers.release(base) == []
    assert ids(layers.release_rw_layer(rw)) == [base.chain_id]


def test_a_mounted_layer_is_not_released(layers, base):
    """The handle stays good: the caller unmounts, and does it again."""
    rw = layers.create_rw_layer("c1", base.chain_id)
    rw.mount()
    for call in (lambda: layers.release_rw_layer(rw), lambda: layers.delete_mount("c1")):
        with pytest.raises(ActiveMount, match="mount still active"):
            call()
    assert (rw.path / "a").read_bytes() == b"12345"
    rw.unmount()
    assert layers.release_rw_layer(rw) == []
    assert layers.rw_layers() == []


def test_a_handle_that_is_not_the_last_is_released_while_another_has_it_mounted(layers, base):
    """moby: other references remain, so nothing is removed."""
    rw, other = layers.create_rw_layer("c1", base.chain_id), layers.get_rw_layer("c1")
    path = rw.mount()
    assert layers.release_rw_layer(other) == []
    assert (path / "a").exists()
    rw.unmount()
    layers.release_rw_layer(rw)
    assert layers.rw_layers() == []


def test_calls_by_name_cost_no_fd(layers, base):
    """docker 1.10 has no handles to give back: Unmount is all there is."""
    layers.mount("c1", base.chain_id)
    layers.unmount("c1")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        layers.mount("c1")
        layers.unmount("c1")
        layers.changes("c1")
        layers.metadata("c1")
    assert len(os.listdir("/proc/self/fd")) == before
    assert layers.delete_mount("c1") == []


# -- making one --------------------------------------------------------------------------------------------


def test_what_is_known_of_an_rw_layer(reopened, base, layers):
    rw = layers.create_rw_layer("some/name:1", base.chain_id, mount_label="system_u:object_r:container_t:s0")
    for store in (layers, reopened()):
        handle = store.get_rw_layer("some/name:1")
        assert (handle.name, handle.parent) == ("some/name:1", base.chain_id)
        assert handle.record.label == "system_u:object_r:container_t:s0"
        assert store.rw_layers() == [handle.record] == [rw.record]
        assert store.get_mount_id("some/name:1") == parse_cache_id(rw.record.mount_id)
        metadata = handle.metadata()
        assert metadata["ID"] == "some/name:1"
        assert all(
            rw.record.mount_id in metadata[key] for key in ("UpperDir", "SourceDir") if key in metadata
        )
        with pytest.raises(NotMounted, match="not mounted"):
            handle.path  # noqa: B018
    assert layers.driver_name() in ("fuse", "vfs")
    assert dict(layers.driver_status())["Backing Filesystem"]


def test_a_name_is_taken_once(layers, base, store_root):
    rw = layers.create_rw_layer("c1")
    called = []
    for parent in (None, base.chain_id):
        with pytest.raises(MountNameConflict, match="mount already exists with name"):
            layers.create_rw_layer("c1", parent, init_func=called.append)
    assert called == []
    assert problems(store_root) == []
    assert rw.parent is None
    layers.release_rw_layer(rw)
    assert layers.create_rw_layer("c1", base.chain_id).parent == base.chain_id


def test_names_that_are_not_there(layers, base):
    for call in (layers.get_rw_layer, layers.get_mount_id, layers.unmount, layers.delete_mount):
        with pytest.raises(RWLayerNotFound, match="mount does not exist"):
            call("c1")
    with pytest.raises(LayerNotFound, match="layer does not exist"):
        layers.create_rw_layer("c1", sha256(b"no layer"))


class Refusal(Exception):
    pass


def refuses(exception):
    def init(path):
        (path / "half").mkdir()
        (path / "half" / "made").write_bytes(b"1")
        raise exception

    return init


REFUSED = {
    "a size": ({"storage_opt": {"size": "10G"}}, NotSupported),
    "inodes": ({"storage_opt": {"inodes": "1000"}}, NotSupported),
    "an option that is none": ({"storage_opt": {"sise": "10G"}}, ValueError),
    "a size, after an init function": ({"storage_opt": {"size": "1"}, "init_func": os.listdir}, NotSupported),
    "an init function that fails": ({"init_func": refuses(Refusal())}, Refusal),
    "an init function that is interrupted": ({"init_func": refuses(KeyboardInterrupt())}, KeyboardInterrupt),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_nothing(layers, base, store_root, runroot, case):
    """Neither a name, nor a layer of the driver, nor a mount, nor a hold on the parent."""
    arguments, error = REFUSED[case]
    with pytest.raises(error):
        layers.create_rw_layer("c1", base.chain_id, **arguments)
    assert problems(store_root) == []
    assert layers.rw_layers() == []
    assert layers.driver.list_layers() == [base.record.cache_id]
    assert [count for count in (runroot / "mounts").glob("*") if count.read_bytes().strip() != b"0"] == []
    assert ids(layers.release(base)) == [base.chain_id]
    assert layers.create_rw_layer("c1").changes() == []


def test_an_rw_layer_on_nothing(layers):
    rw = layers.create_rw_layer("c1")
    path = rw.mount()
    assert seen(path).keys() == {"."}
    put_file(path / "file", b"content", 0o640)
    rw.unmount()
    layer = layers.commit(rw)
    assert (layer.parent, layer.chain_id, layer.size) == (None, layer.diff_id, 7)


def test_an_init_function_is_called_once_on_what_the_parent_shows(layers, base):
    called = []

    def init(path):
        called.append({name: facts[-1] for name, facts in seen(path).items()})
        (path / "made").write_bytes(b"by init")
        (path / "a").unlink()

    rw = layers.create_rw_layer("c1", base.chain_id, init_func=init)
    assert called == [{".": None, "a": b"12345", "d": None, "d/b": b"123"}]
    assert rw.changes() == []
    assert rw.size() == 0
    path = rw.mount()
    assert seen(path).keys() == {".", "made", "d", "d/b"}
    (path / "made").write_bytes(b"changed")
    rw.unmount()
    assert [change.path for change in rw.changes()] == [b"made"]


# -- 125 layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reopened", [FuseDriver], ids=["fuse"], indirect=True)  # vfs stacks nothing
def test_an_rw_layer_with_an_init_layer_on_125_layers(layers, store_root):
    """moby: 125 and the two for an RW layer are what a graphdriver has to show; 126 are refused."""
    chain = [layers.register(Stream(tar(member(f"f{i % 3}", b"%d" % i))), None) for i in range(1)]
    for i in range(1, 125):
        chain.append(layers.register(Stream(tar(member(f"f{i % 3}", b"%d" % i))), chain[-1].chain_id))
    top = chain[-1].chain_id
    rw = layers.create_rw_layer("c1", top, init_func=lambda path: put_file(path / "init", b"init", 0o644))
    path = rw.mount()
    assert {name: facts[-1] for name, facts in seen(path).items() if name != "."} == {
        "f0": b"123",
        "f1": b"124",
        "f2": b"122",
        "init": b"init",
    }
    (path / "f0").write_bytes(b"changed")
    for call in (lambda: layers.register(Stream(BASE), top), lambda: layers.commit(rw)):
        with pytest.raises(MaxDepthExceeded, match="max depth exceeded"):
            call()
    rw.unmount()
    assert problems(store_root) == []
    assert rw.size() == 7
    for layer in chain:
        layers.release(layer)
    assert ids(layers.release_rw_layer(rw)) == [layer.chain_id for layer in reversed(chain)]


# -- registered layers -------------------------------------------------------------------------------------


DESCRIPTOR = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
    "digest": sha256(b"compressed"),
    "size": 1234,
    "urls": ["https://example.org/layer"],
    "annotations": {"né": "<&>"},
    "platform": {"os": "linux"},
}


@pytest.mark.parametrize(
    ("given", "kept"),
    [(DESCRIPTOR, DESCRIPTOR), ({**DESCRIPTOR, "digest": ""}, {}), ({"size": 5}, {}), ({}, {})],
    ids=["whole", "empty digest", "no digest", "nothing"],
)
def test_a_descriptor_is_kept_with_a_digest(layers, reopened, given, kept):
    layer = layers.register_with_descriptor(Stream(BASE), None, given)
    assert layer.descriptor == layers.get(layer.chain_id).descriptor == kept
    assert reopened().map()[layer.chain_id].descriptor == kept
    again = layers.register_with_descriptor(Stream(BASE), None, {**DESCRIPTOR, "size": 1})
    assert again.descriptor == kept  # the layer that is there, as it is
    assert layers.register(Stream(BASE), layer.chain_id).descriptor == {}


CHAIN = [
    tar(member("a", b"old"), folder("d"), member("d/b", b"b"), member("gone"), symlink("s", "a")),
    tar(member("a", b"new", mode=0o600), member("d/.wh.b"), folder("d/e", mode=0o700), hard_link("h", "a")),
    tar(member(".wh.gone"), member("d/e/f", b"f" * 1000), folder("o"), member("o/.wh..wh..opq")),
]


def shown(store, layer):
    """The merged view of a layer, without what changes from one look to the next."""
    with store.driver.union(layer.record.cache_id) as union:
        found = tree(union).items()
    return {path: it._replace(ino=0, nlink=it.nlink if it.kind == stat.S_IFREG else 0) for path, it in found}


def test_a_tar_stream_from_any_ancestor(layers):
    """What it gives, registered on that ancestor, is what the layer shows; the same bytes each time."""
    chain = [layers.register(Stream(CHAIN[0]))]
    for archive in CHAIN[1:]:
        chain.append(layers.register(Stream(archive), chain[-1].chain_id))
    top = chain[-1]
    for below in (None, *chain[:-1]):
        parent = below.chain_id if below else None
        with top.tar_stream_from(parent) as stream, top.tar_stream_from(parent) as other:
            content = stream.read()
            assert content == other.read()
        again = layers.register(Stream(content), parent)
        assert shown(layers, again) == shown(layers, top)
    stranger = layers.register(Stream(BASE))
    for layer, parent in ((top, top), (top, stranger), (chain[0], top), (chain[1], chain[1])):
        with pytest.raises(NotAParent, match="cannot provide diff to non-parent") as caught:
            layer.tar_stream_from(parent.chain_id)
        assert f"layer ID '{parent.chain_id}' is not a parent of the specified layer" in str(caught.value)
    with pytest.raises(FusestoreError):
        top.tar_stream_from("sha256:" + "0" * 64)


def test_a_handle_on_what_is_deleted_says_so(layers, base):
    """It is the caller's fault, no damage of the store."""
    rw = layers.create_rw_layer("c1", base.chain_id, init_func=os.listdir)
    layers.release_rw_layer(rw)
    layers.create_rw_layer("c1").drop()  # of the same name, and another
    for use in (rw.mount, rw.changes, rw.size, rw.metadata, rw.tar_stream, lambda: layers.commit(rw)):
        with pytest.raises(RWLayerNotFound, match="mount does not exist"):
            use()
    layers.release(base)
    for use in (base.tar_stream, base.metadata, lambda: base.tar_stream_from(None).read()):
        with pytest.raises(LayerNotFound, match="layer does not exist"):
            use()


def test_a_stream_outlives_its_handle(layers, base):
    """It keeps the layer itself, until it is closed."""
    stream = base.tar_stream()
    layers.release(base)
    assert stream.read() == BASE
    stream.close()
    if layers.map():
        assert ids(layers.release(layers.get(base.chain_id))) == [base.chain_id]
    assert layers.driver.list_layers() == []


def test_modes_of_directories_come_from_the_layer_below(layers):
    """An RW layer's root is its parent's, whatever the umask."""
    layer = layers.register(Stream(tar(folder(".", mode=0o711), member("a"))))
    before = os.umask(0o077)
    try:
        rw = layers.create_rw_layer("c1", layer.chain_id)
    finally:
        os.umask(before)
    assert stat.S_IMODE(rw.mount().stat().st_mode) == 0o711
    rw.unmount()
    assert rw.changes() == []
