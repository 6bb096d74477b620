"""A graph in a store that is damaged, or shared, or where processes died; and its temporary files.

Seeds D13 to D15: an image that lost its layer or its JSON is told of and can be mended, what nobody names or
works with any more goes when a graph is opened, and temporary archives leave nothing.
"""

import io
import os
from pathlib import Path

import pytest
from support.fsck import garbage, problems
from support.graphs import DRIVERS, chain, graphs, image, names, sql
from support.old_formats import downgrade
from support.tars import Stream, folder, member, tar

from fusestore.digest import new_cache_id
from fusestore.errors import ImageNotFound, LayerInUse
from fusestore.files import scratch
from fusestore.store.graph import Graph
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata
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


# -- what is damaged, and what dead processes left ---------------------------------------------------------


def lose(graph: Graph, root: Path, name: str) -> None:
    graph.driver.remove(graph.cache_id(name))


def garble(graph: Graph, root: Path, name: str) -> None:
    sql(root, "UPDATE graph_images SET json = 'rubbish' WHERE id = ?", name)


def exchange(graph: Graph, root: Path, name: str) -> None:
    sql(root, "UPDATE graph_images SET json = ? WHERE id = ?", image().to_json(), name)


@pytest.mark.parametrize("damage", [lose, garble, exchange])
@pytest.mark.parametrize("mend", ["register", "delete", "register as another process"])
def test_an_image_that_is_damaged(graph, reopened, store_root, damage, mend):
    """D14, D15: it is told, the others are there, and it can be registered anew or deleted."""
    (good,), (bad,) = chain(graph, A), chain(graph, B)
    damage(graph, store_root, bad.id)
    graph.restore()
    assert graph.unreadable == [bad.id]
    assert graph.map() == {good.id: good}
    with pytest.raises(ImageNotFound):
        graph.get(bad.id)
    if mend == "delete":
        graph.delete(bad.id)
    else:
        mender = graph if mend == "register" else reopened()
        mender.register(V1Image(id=bad.id), Stream(B))
        assert names(graph, bad.id) == [b"d", b"d/b"]
    assert graph.unreadable == []
    assert problems(store_root) == []
    assert graph.exists(bad.id) == (mend != "delete")


def test_what_somebody_else_has_mended_is_not_touched(graph, reopened, store_root):
    (bad,), other = chain(graph, B), reopened()
    garble(graph, store_root, bad.id)
    graph.restore()
    graph._refresh = lambda: None
    other.register(V1Image(id=bad.id), Stream(A))
    with pytest.raises(ValueError, match="already exists"):
        graph.register(V1Image(id=bad.id), Stream(B))
    assert names(other, bad.id) == [b"a"]
    assert problems(store_root) == []


def test_a_damaged_parent(graph, reopened):
    base, top = chain(graph, A, B)
    garble(graph, graph._tmp.parent, base.id)
    assert (graph.map(), graph.unreadable) == ({top.id: top}, [base.id])
    with pytest.raises(ImageNotFound):
        graph.history(top.id)
    for call in (lambda: graph.delete(base.id), lambda: graph.register(V1Image(id=base.id))):
        with pytest.raises(LayerInUse, match="parent of"):
            call()
    with pytest.raises(ImageNotFound):
        graph.register(image(parent=base.id))
    assert graph.by_parent() == {}
    graph.delete(top.id)


def test_opening_takes_away_what_dead_processes_left(graph, reopened, store_root):
    """D13, D14: directories under tmp/, and layers that no row names; but nothing of anybody alive."""
    (store_root / "tmp" / "left").mkdir()
    graph.driver.create(new_cache_id())
    with graph.mktemp() as mine, graph.temp_layer_archive(chain(graph, A)[0].id) as archive:
        assert len(garbage(store_root)) > 2
        other = reopened()
        assert mine.is_dir()
        assert len(archive.read()) == archive.size
        assert len(other.driver.list_layers()) == 1
    assert problems(store_root) == []


def test_a_graph_and_a_layer_store_side_by_side(graph, store_root):
    layers = LayerStore(LayerMetadata(graph._database), graph.driver)
    (made,), layer = chain(graph, A), layers.register(Stream(B))
    layers.cleanup()
    Graph(graph._database, graph.driver, store_root)
    assert names(graph, made.id) == [b"a"]
    assert layers.get(layer.chain_id).record == layer.record
    layer.drop()
    for handle in list(layers._handles):
        handle.drop()
        layers._handles.discard(handle)
    layers.delete_unneeded(layer.chain_id)


def test_a_store_of_format_1_gets_the_table(graph, reopened, store_root):
    graph._database.close()
    downgrade(store_root, 1)
    graph = reopened()
    (made,) = chain(graph, A)
    assert names(graph, made.id) == [b"a"]


# -- temporary archives ------------------------------------------------------------------------------------


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_temporary_archive(graph, store_root):
    """It is the layer's tar, reports how far it is, and is gone when it was read."""
    _, top = chain(graph, A, tar(member("big", os.urandom(3 << 20))))
    told: list[tuple[int, int]] = []
    before = fds()
    archive = graph.temp_layer_archive(top.id[:9], lambda done, total: told.append((done, total)))
    with graph.tar_layer(top.id) as stream:
        expected = stream.read()
    assert archive.size == len(expected) > 3 << 20
    assert told[-1] == (archive.size, archive.size)
    assert [total for _, total in told[:-1]] == [0] * (len(told) - 1)
    assert len(told) > 3
    assert told == sorted(told)
    found = io.BytesIO()
    while data := archive.read(100_000):
        assert fds() >= before
        found.write(data)
    assert found.getvalue() == expected
    assert fds() == before
    assert archive.read(5) == b""
    archive.close()
    archive.close()


def test_a_temporary_archive_that_is_closed_early(graph):
    """graph's TestTempArchiveCloseMultipleTimes."""
    (made,) = chain(graph, A)
    before = fds()
    archive = graph.temp_layer_archive(made.id)
    assert len(archive.read(100)) == 100
    archive.close()
    archive.close()
    assert fds() == before
    with pytest.raises(ValueError):
        archive.read(100)


def test_a_temporary_archive_that_fails_leaves_nothing(graph, store_root):
    (made,) = chain(graph, A)
    before = fds()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        graph.temp_layer_archive(made.id, stop)
    assert fds() == before
    assert problems(store_root) == []


def test_a_temporary_directory(graph, store_root):
    with graph.mktemp() as one, graph.mktemp() as two:
        assert one != two
        assert one.parent == two.parent == store_root / "tmp"
        (one / "file").write_bytes(b"x")
        with scratch(store_root / "tmp"):
            Graph(graph._database, graph.driver, store_root)
        assert (one / "file").exists()
    assert os.listdir(store_root / "tmp") == []
