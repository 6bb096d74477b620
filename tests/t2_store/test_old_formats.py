"""A store of an older format is brought up to date when opened.

Format 1 is from before there were RW layers and records of tars, format 2 from before there were containers,
names of layers, and layers that are not registered.  Such stores are made here from one of today: the same
layers, in a database with the tables of then (`support.old_formats`).
"""

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import pytest
from support.fsck import problems
from support.graphs import image as v1_image
from support.graphs import names
from support.images import oci, sha256
from support.layers import paths
from support.old_formats import downgrade
from support.rw_layers import seen, unmount_all
from support.tars import Stream, folder, member, tar

from fusestore.errors import NotReproducible, NotSupported
from fusestore.store.database import Database
from fusestore.store.graph import Graph
from fusestore.store.storage import Store
from fusestore.transport import pipeline

A, B, C = tar(folder("d"), member("d/a", b"1" * 10)), tar(member("b", b"2" * 20)), tar(member("c", b"3" * 30))
BLOB = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(C), "size": len(C)}


@pytest.fixture(params=[1, 2])
def version(request):
    return request.param


@pytest.fixture
def image(version, store_root, runroot, tmp_path):
    """An image of two layers and three names in a store of an older format."""
    with Store(str(store_root), str(runroot)) as store:
        others = ["localhost/other:1", "docker.io/library/z:1"]
        (image,) = pipeline.load(store, str(oci(tmp_path / "oci", A, B, name="old")), names=others)
    downgrade(store_root, version)
    names = tuple(sorted(image.names))
    yield replace(image, names=names, names_history=names)
    unmount_all(runroot)
    assert problems(store_root) == []


@pytest.fixture
def worked(store_root, runroot):
    """A store of format 2: a layer with a descriptor, an RW layer on it, and an image of docker 1.7."""
    with Store(str(store_root), str(runroot)) as store:
        layer = store.layer_store.register_with_descriptor(Stream(C), None, BLOB)
        rw = store.layer_store.create_rw_layer("work", layer.chain_id)
        (rw.mount() / "new").write_bytes(b"new")
        rw.unmount()
        graph = Graph(store._database, store.graph_driver, store_root)
        v1 = graph.register(v1_image(), Stream(B))
    downgrade(store_root, 2)
    yield layer.record, rw.record, v1
    unmount_all(runroot)
    assert problems(store_root) == []


def schema(path):
    """Every table, index and trigger, with its columns, however it was written."""
    with closing(sqlite3.connect(path)) as database:
        version = database.execute("PRAGMA user_version").fetchone()
        names = database.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        found = [(kind, name) for kind, name in names.fetchall()]
        pragmas = [
            f"PRAGMA {pragma}({name})"
            for _, name in sorted(found)
            for pragma in ("table_list", "table_info", "foreign_key_list", "index_xinfo")
        ]
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY 1")
        columns = [database.execute(pragma).fetchall() for pragma in pragmas]
        return version, sorted(found), triggers.fetchall(), columns


def test_what_was_there_is_there_still(image, version, store_root, runroot):
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == [image]
        assert store.image("old") == store.image("other:1") == image
        assert sorted(image.big_data) == ["manifest", f"sha256:{image.id}"]
        assert store.manifest(image)["layers"][0]["digest"] == sha256(A)
        assert store.configuration(image)["os"] == "linux"
        with store.union(image) as union:
            assert paths(union) == [b"b", b"d", b"d/a"]
        assert [layer.uncompressed_digest for layer in store.chain(image)] == [sha256(B), sha256(A)]
        assert [(layer.size, layer.names, layer.parent) for layer in store.layers()] == [
            (10, (), ""),
            (20, (), sha256(A)),
        ]
        records = store.layer_store.map()
        assert {record.reproducible for record in records.values()} == {version > 1}
        blobs = {sha256(A), sha256(B)} if version > 1 else {None}
        assert {record.descriptor.get("digest") for record in records.values()} == blobs


def test_the_tables_are_those_of_a_new_store(image, store_root, runroot, tmp_path):
    Database(store_root / "store.db").close()
    Database(tmp_path / "new.db").close()
    assert schema(store_root / "store.db") == schema(tmp_path / "new.db")


def test_what_is_deleted_then_takes_its_names_and_blobs_along(image, store_root, runroot):
    with Store(str(store_root), str(runroot)) as store:
        assert store.delete_image("old") == [image.top_layer, sha256(A)]
        for table in ("layers", "images", "names", "big_data"):
            assert store._database.select(f"SELECT * FROM {table}") == []
    assert list((store_root / "big").iterdir()) == []


@pytest.mark.parametrize("version", [1], indirect=True)
def test_layers_of_format_1_are_not_exported_but_can_be_worked_on(image, store_root, runroot):
    """There is no record of their tars; a diff can be made, and RW layers and layers be put on them."""
    with Store(str(store_root), str(runroot)) as store:
        layers = store.layer_store
        top = layers.get(image.top_layer)
        with pytest.raises(NotReproducible, match="before fusestore kept a record"):
            top.tar_stream()
        with top.tar_stream_from(top.parent) as stream:
            again = layers.register(stream, top.parent)
        assert again.reproducible
        rw = layers.create_rw_layer("work", top.chain_id)
        path = rw.mount()
        (path / "new").write_bytes(b"new")
        assert seen(path).keys() == {".", "b", "d", "d/a", "new"}
        rw.unmount()
        made = layers.commit(rw)
        assert (made.parent, made.size) == (top.chain_id, 33)
        with made.tar_stream() as stream:
            assert sha256(stream.read()) == made.diff_id
        known = layers.register(Stream(A))
        assert known.record == layers.map()[known.chain_id]
        for layer in (known, again, made, top):
            layers.release(layer)
        layers.release_rw_layer(rw)


def test_a_store_of_format_2_is_worked_on_as_before(worked, store_root, runroot):
    """Layers come back byte for byte, and as what they were downloaded as; RW layers keep their changes."""
    layer_record, rw_record, v1 = worked
    with Store(str(store_root), str(runroot)) as store:
        layers = store.layer_store
        layer, rw = layers.get(layer_record.chain_id), layers.get_rw_layer("work")
        assert layer.record == replace(layer_record, diff_size=None, owners=None)
        assert rw.record == rw_record
        with layer.tar_stream() as stream:
            assert stream.read() == C
        assert [layer.id for layer in store.layers_by_compressed_digest(sha256(C))] == [sha256(C)]
        assert [change.path for change in rw.changes()] == [b"new"]
        assert seen(rw.mount()).keys() == {".", "c", "new"}
        rw.unmount()
        graph = Graph(store._database, store.graph_driver, store_root)
        assert names(graph, v1.id) == [b"b"]
        graph.delete(v1.id)
        assert layers.release(layer) == []
        assert [released.chain_id for released in layers.release_rw_layer(rw)] == [sha256(C)]


def test_many_processes_bring_it_up_to_date_at_once(image, store_root, runroot):
    code = "import sys; from fusestore.store.storage import Store; Store(*sys.argv[1:]).close(); print('ok')"
    command = [sys.executable, "-c", code, str(store_root), str(runroot)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["ok\n"] * 4
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == [image]


def test_a_migration_that_fails_changes_nothing(image, store_root, runroot):
    """A foreign table of a name that the new format needs: the whole transaction is undone."""
    path = store_root / "store.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE containers (x)")
        database.commit()
    before = schema(path)
    with pytest.raises(sqlite3.OperationalError, match="containers"):
        Store(str(store_root), str(runroot))
    assert schema(path) == before
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE containers")
        database.commit()
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == [image]


def test_one_that_we_may_not_write_is_refused(image, version, store_root, runroot):
    store_root.chmod(0o500)
    try:
        with pytest.raises(NotSupported, match=rf"made by an older fusestore \(format {version}\)"):
            Store(str(store_root), str(runroot))
    finally:
        store_root.chmod(0o700)
        Database(store_root / "store.db").close()
