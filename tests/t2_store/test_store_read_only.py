"""A store that may not be written: all questions are answered, all changes refused, nothing is touched."""

import pytest
from support import stores
from support.images import oci
from support.stores import TREE, A, changes, contents, opened
from support.tars import Stream

from fusestore.errors import NotMounted, StoreIsReadOnly
from fusestore.transport.pipeline import load

CHANGES = [
    lambda s: s.create_layer(),
    lambda s: s.put_layer("new", diff=Stream(A)),
    lambda s: s.register(Stream(A)),
    lambda s: s.create_image(big_data={"key": b"data"}),
    lambda s: s.create_container(),
    lambda s: s.delete_layer("tar"),
    lambda s: s.delete_image("image-name"),
    lambda s: s.delete_image("image-name", commit=False),
    lambda s: s.delete_container("ctr"),
    lambda s: s.delete("tar"),
    lambda s: s.wipe(),
    lambda s: s.collect(deep=True),
    lambda s: s.set_names("image-name", ["x"]),
    lambda s: s.add_names("tar", ["x"]),
    lambda s: s.remove_names("ctr", ["container-name"]),
    lambda s: s.set_metadata("image-name", "x"),
    lambda s: s.set_flag("ctr", "x", 1),
    lambda s: s.clear_flag("ctr", "x"),
    lambda s: s.set_image_big_data("image-name", "x", b""),
    lambda s: s.set_layer_big_data("tar", "x", b""),
    lambda s: s.set_container_big_data("ctr", "x", b""),
    lambda s: s.set_container_directory_file("ctr", "file", b"other"),
    lambda s: s.apply_diff("ctr-layer", Stream(A)),
    lambda s: s.mount("ctr"),
    lambda s: s.untag(["image-name"]),
    lambda s: s.layer_store.register(Stream(A)),
    lambda s: s.layer_store.create_rw_layer("new", None),
]


@pytest.fixture(params=stores.DRIVERS)
def closed(request, store_root, runroot):
    """Opens a store that is closed to writing, and looks whether it was left as it is."""
    with opened(store_root, runroot, request.param) as store:
        stores.filled(store)
        store.put_layer("tar", "base", ["tar-name"], diff=Stream(TREE))
        store.create_image("full", ["full-name"], "tar", big_data={"key": b"value"})
        store.set_container_directory_file("ctr", "file", b"data")
        before = contents(store)
    closed = stores.close_to_writing(store_root)
    with opened(store_root, runroot, request.param) as store:
        assert store.read_only
        yield store
        assert contents(store) == before
    assert stores.snapshot(store_root) == closed
    stores.open_to_writing(store_root)


def test_every_change_is_refused(closed):
    for number, call in enumerate(CHANGES):
        with pytest.raises(StoreIsReadOnly, match="read-only"):
            pytest.fail(f"change {number}: {call(closed)}")
    closed.shutdown(force=True)


def test_loading_is_refused(closed, tmp_path):
    with pytest.raises(StoreIsReadOnly):
        load(closed, str(oci(tmp_path / "oci", A)))


def test_every_question_is_answered(closed):
    assert changes(closed, "", "tar-name") == ["A etc", "A etc/issue", "A etc/motd"]
    assert changes(closed, "", "ctr-layer") == []
    with closed.diff("", "tar") as stream:
        assert stream.read() == TREE
    assert (closed.image_size("full-name"), closed.container_size("ctr")) == (len(TREE) + 5, 4)
    assert closed.image_big_data("full", "key") == b"value"
    assert closed.from_container_directory("ctr", "file") == b"data"
    assert list(closed.container_run_directory("ctr").iterdir()) == []
    assert closed.mounted("tar") == 0
    with pytest.raises(NotMounted):
        closed.unmount("tar")
    with closed.union(closed.image("full-name")) as union:
        assert union.walk(b"etc/motd")[1].attr.size == 6
