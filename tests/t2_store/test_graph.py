"""Images of docker before 1.10: registered whole or not at all, found by any unique beginning of their id.

On both drivers.  The tests of docker 1.7's ``graph_test.go`` are here by name, and what its graph did wrong
(seeds D11, D12; the rest is in test_graph_leftovers).  After each test all images are deleted, and the store
must be as empty as a new one.
"""

import os
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.fsck import problems
from support.graphs import DRIVERS, chain, graphs, image, names
from support.tars import Stream, folder, member, read, tar

from fusestore.errors import AmbiguousName, ImageNotFound, InvalidLayer, LayerInUse, MaxDepthExceeded
from fusestore.store.graph import is_not_exist
from fusestore.store.v1image import V1Image

A, B = tar(member("a", b"1" * 10)), tar(folder("d"), member("d/b", b"2" * 5))


@pytest.fixture(params=DRIVERS)
def reopened(request, store_root, runroot):
    """Opens one graph as often as one likes, each time as another process would."""
    with graphs(request.param, store_root, runroot) as again:
        yield again


@pytest.fixture
def graph(reopened):
    """An empty graph."""
    return reopened()


def test_init(graph, store_root):
    assert (store_root / "tmp").is_dir()
    assert (graph.map(), graph.heads(), graph.by_parent(), graph.unreadable) == ({}, {}, {}, [])
    assert not graph.exists("a")


def test_mount(graph):
    """The driver shows what was in the tar."""
    made = graph.create(Stream(A), comment="Testing")
    place = Path(os.fsdecode(graph.driver.get(graph.cache_id(made.id))))
    assert (place / "a").read_bytes() == b"1" * 10
    with pytest.raises(LayerInUse, match="mounted"):
        graph.delete(made.id)
    assert graph.get(made.id) == made
    graph.driver.put(graph.cache_id(made.id))


# -- register ----------------------------------------------------------------------------------------------


class Broken(Stream):
    """Breaks off with `error` where the bytes end."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(data)
        self.error = error

    def read(self, size: int, /) -> bytes:
        data = super().read(size)
        if not data:
            raise self.error
        return data


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (Broken(b"", OSError("But I'm not a tarball!")), OSError),
        (Broken(member("a", b"x" * 3000), OSError(5, "Input/output error")), OSError),
        (Broken(A, KeyboardInterrupt()), KeyboardInterrupt),
        (Stream(b"this is no tar archive" * 100), InvalidLayer),
        (Stream(tar(member("a"), member("../../b"))), InvalidLayer),
    ],
    ids=["at once", "in a file", "interrupt", "no tar", "escape"],
)
def test_interrupted_register(graph, store_root, stream, error):
    (base,) = chain(graph, A)
    wanted = image(parent=base.id)
    stream.position = 0
    with pytest.raises(error):
        graph.register(wanted, stream)
    assert not graph.exists(wanted.id)
    assert graph.map() == {base.id: base}
    assert problems(store_root) == []
    assert graph.register(wanted, Stream(B)).size == 5
    assert names(graph, wanted.id) == [b"a", b"d", b"d/b"]


def test_graph_create(graph):
    made = graph.create(Stream(A), comment="Testing", author="me", config={"Cmd": ["sh"]})
    assert graph.map() == {made.id: made}
    assert (made.comment, made.author, made.config, made.os) == ("Testing", "me", {"Cmd": ["sh"]}, "linux")
    assert (made.docker_version.split()[0], made.size) == ("fusestore", 10)
    assert made.architecture in ("amd64", "arm64") or made.architecture == os.uname().machine
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(made.created) < timedelta(minutes=1)


@pytest.mark.parametrize("container", ["", "c0ffee"])
def test_what_was_made_in_a_container_has_its_image_as_parent(graph, container):
    (base,) = chain(graph, A)
    made = graph.create(
        Stream(B), container_id=container, container_image=base.id, container_config={"Tty": True}
    )
    assert made.container == container
    assert (made.parent, made.container_config) == ((base.id, {"Tty": True}) if container else ("", {}))
    assert names(graph, made.id) == [b"a", b"d", b"d/b"][0 if container else 1 :]


def test_register(graph, reopened):
    wanted = image()
    made = graph.register(wanted, Stream(A))
    assert made.size == 10
    assert wanted.size == -1
    assert graph.get(wanted.id) == made
    assert V1Image.from_json(graph.raw_json(made.id)) == made
    assert graph.image_root(made.id).is_dir()
    other = reopened()
    assert other.map() == {made.id: made}
    assert other.raw_json(made.id) == graph.raw_json(made.id)


@pytest.mark.parametrize("data", [None, Stream(b""), Stream(tar(folder("d")))])
def test_nothing_is_a_size(graph, reopened, data):
    made = graph.register(image(), data)
    assert (made.size, reopened().get(made.id).size) == (0, 0)


class Unread:
    def read(self, size: int, /) -> bytes:
        raise AssertionError("read, though it is refused")


def test_an_id_is_registered_once(graph, reopened, store_root):
    """D11: docker 1.7 destroyed the image that was there."""
    (made,) = chain(graph, A)
    before = graph.driver.list_layers()
    for other in (graph, reopened()):
        with pytest.raises(ValueError, match="already exists"):
            other.register(V1Image(id=made.id), Unread())
    assert graph.driver.list_layers() == before
    assert graph.map() == {made.id: made}
    assert names(graph, made.id) == [b"a"]


def test_what_is_no_id_is_refused(graph):
    """D11: docker 1.7 removed the driver's whole directory for an id of nothing."""
    (made,) = chain(graph, A)
    for wrong in ("", "ab" * 31, "AB" * 32, "../" + "a" * 61, "ab" * 32 + "\n"):
        with pytest.raises(ValueError, match="is invalid"):
            graph.register(V1Image(id=wrong), Unread())
    assert graph.map() == {made.id: made}
    assert names(graph, made.id) == [b"a"]


def test_a_parent_that_is_not_there(graph, store_root):
    missing = image(parent="ab" * 32)
    with pytest.raises(ImageNotFound) as caught:
        graph.register(missing, Unread())
    assert is_not_exist(caught.value, missing.parent)
    myself = image()
    with pytest.raises(ImageNotFound):
        graph.register(V1Image(id=myself.id, parent=myself.id), Unread())
    assert problems(store_root) == []


class Meanwhile(Stream):
    """Does something when it is read first."""

    def __init__(self, data: bytes, action: Callable[[], object]) -> None:
        super().__init__(data)
        self.action: Callable[[], object] | None = action

    def read(self, size: int, /) -> bytes:
        action, self.action = self.action, None
        if action:
            action()
        return super().read(size)


def test_a_parent_stays_while_a_child_is_registered(graph, reopened):
    other, (base,) = reopened(), chain(graph, A)

    def delete():
        with pytest.raises(LayerInUse, match="another process"):
            other.delete(base.id)

    made = graph.register(image(parent=base.id), Meanwhile(B, delete))
    assert [found.id for found in graph.history(made.id)] == [made.id, base.id]
    assert other.map() == graph.map()


def test_a_parent_that_went_since_we_looked(graph, reopened, store_root):
    (base,), other = chain(graph, A), reopened()
    graph._refresh = lambda: None
    other.delete(base.id)
    with pytest.raises(ImageNotFound) as caught:
        graph.register(image(parent=base.id), Stream(B))
    assert caught.value.name == base.id
    assert problems(store_root) == []


def test_a_row_that_goes_while_a_child_is_registered(graph, reopened, store_root):
    other, (base,) = reopened(), chain(graph, A)
    rows = other._database.select("SELECT * FROM graph_images")
    wanted = image(parent=base.id)
    with pytest.raises(ImageNotFound) as caught:
        graph.register(wanted, Meanwhile(B, lambda: other._database.select("DELETE FROM graph_images")))
    assert caught.value.name == base.id
    other._database.select("INSERT INTO graph_images VALUES (?, ?, ?, ?, ?, ?)", *rows[0])
    assert graph.map() == {base.id: base}
    assert problems(store_root) == []


def test_whoever_comes_first_has_the_id(graph, reopened, store_root):
    other, wanted = reopened(), image()
    with pytest.raises(ValueError, match="already exists"):
        graph.register(wanted, Meanwhile(B, lambda: other.register(wanted, Stream(A))))
    assert problems(store_root) == []
    assert graph.map() == other.map() != {}
    assert names(graph, wanted.id) == [b"a"]


def test_a_commit_that_fails(graph, reopened, store_root):
    """The layer is there already then, and goes again."""
    wanted, publish = image(), graph.driver.publish

    def spoil(cache_id):
        graph._database.select("PRAGMA defer_foreign_keys = ON")
        graph._database.select("UPDATE graph_images SET parent = 'nobody' WHERE cache_id = ?", cache_id)
        return publish(cache_id)

    graph.driver.publish = spoil
    with pytest.raises(sqlite3.IntegrityError):
        graph.register(wanted, Stream(A))
    assert not graph.exists(wanted.id)
    assert problems(store_root) == []
    graph.driver.publish = publish
    graph.register(wanted, Stream(A))
    assert reopened().exists(wanted.id)


# -- finding them ------------------------------------------------------------------------------------------


def test_get_by_any_beginning_that_is_unique(graph):
    one, two = image("abc1"), image("abc2")
    graph.register(one)
    assert graph.get("a").id == graph.get(one.id).id == one.id
    graph.register(two)
    assert graph.get("abc1").id == one.id
    assert (graph.exists("abc"), graph.exists("abc2"), graph.exists("abd"), graph.exists("")) == (
        False,
        True,
        False,
        False,
    )
    with pytest.raises(AmbiguousName):
        graph.get("abc")
    for wrong in ("abd", one.id[1:], one.id.upper(), one.id + "0", "%", "abc1_"):
        with pytest.raises(ImageNotFound):
            graph.get(wrong)
    with pytest.raises(ValueError, match="empty"):
        graph.get("")
    graph.delete("abc1")
    assert graph.get("abc").id == two.id


def test_by_parent(graph):
    """Only parents that are there, and have children."""
    (base,) = chain(graph, A)
    one, two = graph.register(image(parent=base.id)), graph.register(image(parent=base.id))
    (alone,) = chain(graph, B)
    assert graph.by_parent() == {base.id: [one, two]}
    assert graph.heads() == {one.id: one, two.id: two, alone.id: alone}
    assert list(graph.walk_all()) == [base, one, two, alone]


def test_images_below_an_image(graph):
    base, middle, top = chain(graph, A, B, tar(member(".wh.a"), member("c", b"3")))
    assert graph.history(top.id[:20]) == [top, middle, base]
    assert list(graph.walk_history(base.id)) == [base]
    assert (graph.get_parent(top.id), graph.get_parent(base.id)) == (middle, None)
    assert [graph.get_parents_size(i.id) for i in (base, middle, top)] == [0, 10, 15]
    assert [graph.depth(i.id) for i in (base, middle, top)] == [1, 2, 3]
    with graph.tar_layer(top.id) as stream:
        assert {entry.name for entry, _ in read(stream.read())} >= {b".wh.a", b"c"}
    for call in (graph.history, graph.get_parent, graph.depth, graph.tar_layer, graph.cache_id):
        with pytest.raises(ImageNotFound):
            call("nobody")


def test_a_container_needs_two_more_layers(graph):
    """docker 1.7: MaxImageDepth; 124 images may have a container on top, 125 may not."""
    graph._database.select(
        """WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 125)
           INSERT INTO graph_images SELECT printf('%064x', i), CASE i WHEN 1 THEN NULL ELSE
           printf('%064x', i - 1) END, i, 0, json_object('id', printf('%064x', i), 'parent',
           CASE i WHEN 1 THEN '' ELSE printf('%064x', i - 1) END), i FROM n"""
    )
    graph.driver.exists = lambda cache_id: True  # the depth is a matter of rows
    graph.restore()
    graph.check_depth(f"{124:064x}")
    with pytest.raises(MaxDepthExceeded) as caught:
        graph.check_depth(f"{125:064x}")
    assert (caught.value.depth, caught.value.limit) == (127, 126)
    graph._database.select("DELETE FROM graph_images")
    graph.restore()


@pytest.mark.parametrize(
    ("error", "id_", "expected"),
    [
        (ImageNotFound("ab12"), "ab12", True),
        (ImageNotFound("ab12"), "cd34", False),
        (FileNotFoundError(2, "No such file or directory", "/graph/ab12/json"), "ab12", True),
        (FileNotFoundError(2, "No such file or directory", "/graph/cd34/json"), "ab12", False),
        (PermissionError(13, "Permission denied", "/graph/ab12"), "ab12", False),
        (AmbiguousName("ab12"), "ab12", False),
    ],
)
def test_is_not_exist(error, id_, expected):
    assert is_not_exist(error, id_) is expected


# -- delete ------------------------------------------------------------------------------------------------


def test_delete_prefix(graph):
    (made,) = chain(graph, A)
    graph.delete(made.id[:12])
    assert graph.map() == {}
    assert graph.driver.list_layers() == []


def test_delete(graph, reopened):
    (kept, gone), other = (*chain(graph, A), *chain(graph, B)), reopened()
    for name in ("ab" * 32, "nobody"):
        with pytest.raises(ImageNotFound):
            graph.delete(name)
    with pytest.raises(ValueError, match="empty"):
        graph.delete("")
    graph.delete(gone.id)
    for one in (graph, other):
        with pytest.raises(ImageNotFound):
            one.delete(gone.id)
        assert one.map() == {kept.id: kept}
    again = graph.register(V1Image(id=gone.id), Stream(A))
    assert names(other, again.id) == [b"a"]


def test_an_image_that_is_needed_is_not_deleted(graph, store_root):
    """D12: and it is still found then."""
    base, top = chain(graph, A, B)
    with pytest.raises(LayerInUse, match=f"{base.id[:12]}: in use: it is the parent of {top.id[:12]}"):
        graph.delete(base.id)
    held = graph.driver.hold(graph.cache_id(top.id))
    with pytest.raises(LayerInUse, match=top.id[:12]):
        graph.delete(top.id)
    assert graph.map() == {base.id: base, top.id: top}
    assert graph.get(top.id[:30]) == top
    assert problems(store_root) == []
    held.close()
    graph.delete(top.id)
    graph.delete(base.id)


def test_another_image_of_the_same_id_is_not_deleted(graph, reopened):
    """Deleted and registered anew by somebody else between our look and our transaction."""
    (old,), other = chain(graph, A), reopened()
    graph._refresh = lambda: None
    other.delete(old.id)
    other.register(V1Image(id=old.id), Stream(B))
    with pytest.raises(ImageNotFound):
        graph.delete(old.id)
    assert names(other, old.id) == [b"d", b"d/b"]


def test_files_that_cannot_be_deleted(graph, reopened, store_root):
    """D12: the image is gone all the same, and its files go when a graph is opened the next time."""
    (made,) = chain(graph, A)
    (store_root / "tmp").chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            graph.delete(made.id)
    finally:
        (store_root / "tmp").chmod(0o700)
    assert not graph.exists(made.id)
    assert graph.driver.list_layers()
    reopened()
    assert problems(store_root) == []
