"""The database file: refused and untouched when it is not ours, seen by everyone when it is."""

import os
import sqlite3
import stat
import subprocess
import sys

import pytest
from support.images import oci
from support.layers import paths
from support.tars import member, tar

from fusestore.errors import CorruptStore, NotSupported, StoreIsReadOnly
from fusestore.store.database import Database
from fusestore.store.storage import Store
from fusestore.transport import pipeline


def sql(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def garbage(path):
    path.write_bytes(b"this is no database at all " * 400)


def cut(path):
    Database(path).close()
    path.write_bytes(path.read_bytes()[:5000])


def zeroed(path):
    Database(path).close()
    data = bytearray(path.read_bytes())
    data[100:] = bytes(len(data) - 100)
    path.write_bytes(data)


BAD = {
    "garbage": (garbage, CorruptStore),
    "cut": (cut, CorruptStore),
    "zeroed": (zeroed, CorruptStore),
    "foreign": (lambda path: sql(path, "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)"), CorruptStore),
    "foreign id": (lambda path: sql(path, "PRAGMA application_id = 77"), CorruptStore),
    "newer": (lambda path: (Database(path).close(), sql(path, "PRAGMA user_version = 99")), NotSupported),
    "directory": (lambda path: path.mkdir(), OSError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_database_that_is_not_ours_is_refused_and_unchanged(name, store_root, runroot):
    make, error = BAD[name]
    store_root.mkdir()
    path = store_root / "store.db"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(error) as caught:
        Store(str(store_root), str(runroot))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if before is not None:
        assert path.read_bytes() == before


def test_a_store_with_a_damaged_page_says_so(store_root, runroot, tmp_path):
    """The header is sound, so it opens; what is read from the damage must not pass for an empty store."""
    with Store(str(store_root), str(runroot)) as store:
        pipeline.load(store, str(oci(tmp_path / "oci", tar(member("f")))))
    path = store_root / "store.db"
    sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(CorruptStore) as caught, Store(str(store_root), str(runroot)) as store:
        store.images()
    assert str(path) in str(caught.value)


def test_an_empty_file_becomes_a_store(store_root, runroot):
    store_root.mkdir()
    (store_root / "store.db").touch()
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == []


def test_the_store_is_for_its_owner_only(store, store_root, runroot):
    for path in (store_root, runroot, store_root / "fuse", store_root / "tmp", store_root / "big"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((store_root / "store.db").stat().st_mode) == 0o600


def test_transactions_take_effect_whole_or_not_at_all(tmp_path):
    database, other = Database(tmp_path / "db"), Database(tmp_path / "db")
    query = "SELECT key FROM settings"
    with pytest.raises(sqlite3.IntegrityError), database.transaction() as execute:
        assert [execute("INSERT INTO settings VALUES ('a', '1')") for _ in range(2)]
    assert database.select(query) == []
    with database.transaction() as execute:
        execute("INSERT INTO settings VALUES ('a', '1')")
        with database.transaction() as inner:
            inner("INSERT INTO settings VALUES ('b', '2')")
        assert other.select(query) == []
    assert [row["key"] for row in other.select(query)] == ["a", "b"]
    database.close()
    other.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO layers (id, parent, cache_id, size, reproducible, created)"
        " VALUES ('a', 'no such layer', 'c', 0, 1, 0)",
        "INSERT INTO images (id, top_layer, size, created) VALUES ('a', 'no such layer', 0, 0)",
        "INSERT INTO rw_layers VALUES ('a', 'm', NULL, 'no such layer', '', '{}', 0)",
        "INSERT INTO graph_images VALUES ('a', 'no such image', 'c', 0, '{}', 0)",
        "INSERT INTO containers (id, image, layer, created) VALUES ('a', '', 'no such layer', 0)",
    ],
)
def test_rows_need_the_rows_they_name(store, statement):
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"), store._database.transaction() as execute:
        execute(statement)


@pytest.mark.parametrize("kind", ["layer", "image", "container"])
def test_names_and_blobs_go_with_the_item_that_has_them(store, kind):
    """And only with that one: items of other kinds, and others of this kind, keep theirs."""
    select = store._database.select
    for one in ("x", "y"):
        select("INSERT INTO layers (id, cache_id, size, reproducible, created) VALUES (?1, ?1, 0, 0, 0)", one)
        select("INSERT INTO images (id, size, created) VALUES (?, 0, 0)", one)
        select("INSERT INTO containers (id, image, layer, created) VALUES (?1, '', ?1, 0)", one)
    every = [(of, one) for of in ("container", "image", "layer") for one in ("x", "y")]
    for of, one in every:
        select("INSERT INTO names VALUES (?1, ?2, ?2, 0)", of, one)
        select("INSERT INTO big_data VALUES (?1, ?2, 'key', 0, 'sha256:0', ?1 || ?2)", of, one)
    if kind == "layer":
        select("DELETE FROM containers WHERE id = 'x'")
        every.remove(("container", "x"))
    select(f"DELETE FROM {kind}s WHERE id = 'x'")
    every.remove((kind, "x"))
    for table in ("names", "big_data"):
        assert [tuple(row) for row in select(f"SELECT kind, item FROM {table} ORDER BY 1, 2")] == every
    for table in ("containers", "images", "layers"):
        select(f"DELETE FROM {table}")


def test_a_store_that_cannot_be_written_can_be_read(store_root, runroot, tmp_path):
    with Store(str(store_root), str(runroot)) as store:
        (image,) = pipeline.load(store, str(oci(tmp_path / "oci", tar(member("f")))))
    store_root.chmod(0o500)
    try:
        with Store(str(store_root), str(runroot)) as store:
            assert (store.read_only, store.images()) == (True, [image])
            with store.union(image) as union:
                assert paths(union) == [b"f"]
            with pytest.raises(StoreIsReadOnly, match=f"{store_root}: read-only"):
                pipeline.load(store, str(oci(tmp_path / "other", tar(member("g")))))
            with pytest.raises(StoreIsReadOnly):
                store.delete_image(image.id)
            assert store.images() == [image]
    finally:
        store_root.chmod(0o700)


def test_two_processes_make_one_store(store_root, runroot):
    code = "import sys; from fusestore.store.storage import Store; Store(*sys.argv[1:]).close(); print('ok')"
    command = [sys.executable, "-c", code, str(store_root), str(runroot)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    assert [child.communicate(timeout=60)[0] for child in children] == ["ok\n"] * 6
    with Store(str(store_root), str(runroot)) as store:
        assert store.images() == []
    assert os.listdir(store_root / "tmp") == []
