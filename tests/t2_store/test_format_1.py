"""A store of format 1, before there were RW layers and records of tars, is brought up to date when opened.

Such a store is made here from one of today: the same layers, in a database with the tables of then
(fusestore/store/database.py of commit 7b469a8), and no tar-split records.
"""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from support.fsck import problems
from support.images import oci, sha256
from support.layers import paths
from support.rw_layers import seen, unmount_all
from support.tars import Stream, folder, member, tar

from fusestore.errors import NotReproducible
from fusestore.store.database import Database
from fusestore.store.storage import Store
from fusestore.store.tarsplit import RECORD
from fusestore.transport import pipeline

FORMAT_1 = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE layers (
    chain_id     TEXT PRIMARY KEY,
    diff_id      TEXT NOT NULL,
    parent       TEXT REFERENCES layers(chain_id),
    cache_id     TEXT NOT NULL UNIQUE,
    size         INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    created      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_parent ON layers(parent);
CREATE TABLE images (
    id        TEXT PRIMARY KEY,
    top_layer TEXT REFERENCES layers(chain_id),
    digest    TEXT NOT NULL,
    size      INTEGER NOT NULL,
    created   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX images_top_layer ON images(top_layer);
CREATE TABLE names (
    name  TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX names_image ON names(image);
CREATE TABLE big_data (
    item   TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    key    TEXT NOT NULL,
    size   INTEGER NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (item, key)
) STRICT, WITHOUT ROWID;
PRAGMA application_id = 0x46555345;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
"""
TABLES = {
    "settings": "key, value",
    "layers": "chain_id, diff_id, parent, cache_id, size, reproducible, created",
    "images": "id, top_layer, digest, size, created",
    "names": "name, image",
    "big_data": "item, key, size, digest",
}
A, B = tar(folder("d"), member("d/a", b"1" * 10)), tar(member("b", b"2" * 20))


@pytest.fixture
def image(store_root, runroot, tmp_path):
    """An image of two layers in a store of format 1."""
    with Store(str(store_root), str(runroot)) as store:
        (image,) = pipeline.load(store, str(oci(tmp_path / "oci", A, B, name="old")))
        for record in store.layer_store.map().values():
            (store.layer_store.driver.notes(record.cache_id) / RECORD).unlink()
    with (
        closing(sqlite3.connect(tmp_path / "old.db", isolation_level=None)) as old,
        closing(sqlite3.connect(store_root / "store.db")) as new,
    ):
        old.executescript(FORMAT_1)
        old.execute("BEGIN")
        old.execute("PRAGMA defer_foreign_keys = ON")
        for table, columns in TABLES.items():
            for row in new.execute(f"SELECT {columns} FROM {table}").fetchall():
                old.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
        old.execute("COMMIT")
    for name in ("store.db-wal", "store.db-shm"):
        (store_root / name).unlink(missing_ok=True)
    os.rename(tmp_path / "old.db", store_root / "store.db")
    yield image
    unmount_all(runroot)
    assert problems(store_root) == []


def schema(path):
    """Every table and index, with its columns, however it was written."""
    with closing(sqlite3.connect(path)) as database:
        version = database.execute("PRAGMA user_version").fetchone()
        names = database.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        found = [(kind, name) for kind, name in names.fetchall()]
        pragmas = [
            f"PRAGMA {pragma}({name})"
            for _, name in sorted(found)
            for pragma in ("table_info", "foreign_key_list", "index_xinfo")
        ]
        return version, sorted(found), [database.execute(pragma).fetchall() for pragma in pragmas]


def test_what_was_there_is_there_still(image, store_root, runroot):
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == [image]
        assert store.image("old") == image
        with store.union(image) as union:
            assert paths(union) == [b"b", b"d", b"d/a"]
        records = store.layer_store.map()
        assert {record.diff_id: record.size for record in records.values()} == {sha256(A): 10, sha256(B): 20}
        assert {record.reproducible for record in records.values()} == {False}
        assert all(not record.descriptor for record in records.values())


def test_the_tables_are_those_of_a_new_store(image, store_root, runroot, tmp_path):
    Database(store_root / "store.db").close()
    Database(tmp_path / "new.db").close()
    assert schema(store_root / "store.db") == schema(tmp_path / "new.db")


def test_layers_of_then_are_not_exported_but_can_be_worked_on(image, store_root, runroot):
    """There is no record of their tars; a diff can be made, and RW layers and layers be put on them."""
    with Store(str(store_root), str(runroot)) as store:
        layers = store.layers
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
        database.execute("CREATE TABLE rw_layers (x)")
        database.commit()
    before = schema(path)
    with pytest.raises(sqlite3.OperationalError, match="rw_layers"):
        Store(str(store_root), str(runroot))
    assert schema(path) == before
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE rw_layers")
        database.commit()
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == [image]
