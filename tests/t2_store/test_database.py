"""The database file: refused and untouched when it is not ours, seen by everyone when it is."""

import os
import sqlite3
import stat
import subprocess
import sys

import pytest
from support.images import oci
from support.tars import member, tar

from fusestore.errors import CorruptStore, NotSupported
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


def test_rows_need_the_rows_they_name(store):
    with pytest.raises(sqlite3.IntegrityError), store._database.transaction() as execute:
        execute("INSERT INTO names VALUES ('x', 'no such image')")
    with pytest.raises(sqlite3.IntegrityError), store._database.transaction() as execute:
        execute("INSERT INTO layers VALUES ('a', 'b', 'no such parent', 'c', 0, 1, 0, NULL)")


def test_a_database_that_cannot_be_written(store_root, runroot, tmp_path):
    with Store(str(store_root), str(runroot)) as store:
        pipeline.load(store, str(oci(tmp_path / "oci", tar(member("f")))))
    store_root.chmod(0o500)
    try:
        with pytest.raises(OSError) as caught, Store(str(store_root), str(runroot)) as store:
            pipeline.load(store, str(oci(tmp_path / "other", tar(member("g")))))
        assert str(caught.value)
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
