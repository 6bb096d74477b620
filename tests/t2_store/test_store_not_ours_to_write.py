"""A store that we may not write: its owner's commits are seen, bad databases refused, and nothing is made.

Here the directories are our own and closed for writing (0500), so that SQLite can make neither a log nor its
shared memory there.  Another user's store is in tests/root/test_store_read_only.py; all that may be called,
and all that may not, in tests/t2_store/test_store_read_only.py.  A database that is damaged or of another
format is refused and left alone, whether the store is read as our own or as an additional one.
"""

import os
import sqlite3
from pathlib import Path

import pytest
from support.layers import paths
from support.store_items import ARCHIVES
from support.store_operations import contents, opened
from support.tars import Stream

from fusestore.errors import CorruptStore, NotSupported
from fusestore.store.additional import FusestoreRoot
from fusestore.store.database import Database
from fusestore.store.storage import Store


def chmod(root: Path, mode: int) -> None:
    for directory, _, _ in os.walk(root):
        os.chmod(directory, mode)


def everything(root: Path) -> dict[str, tuple]:
    """What is there and when it was changed."""
    found = {}
    for directory, _, files in os.walk(root):
        for name in (".", *files):
            st = os.lstat(os.path.join(directory, name))
            found[os.path.join(directory, name)] = st.st_mode, st.st_size, st.st_mtime_ns, st.st_ino
    return found


@pytest.fixture(params=["vfs", "fuse"])
def closed(request, tmp_path):
    """A store, opened read-only; nothing in it has changed at the end."""
    root = tmp_path / "store"
    with opened(tmp_path, request.param) as store:
        store.put_layer("base", names=["b"], diff=Stream(ARCHIVES[0]))
        store.put_layer("top", "base", ["t"], diff=Stream(ARCHIVES[1]))
        store.create_layer("rw", "base", ["r"])
        store.create_image("i", ["one"], "top", "text", big_data={"manifest": b"{}", "k": b"data"})
        store.create_container("c", ["cn"], "i", "cl")
        store.set_container_directory_file("c", "f", b"data")
    chmod(root, 0o500)
    before = everything(root)
    try:
        with opened(tmp_path, request.param) as store:
            yield store
        assert everything(root) == before
    finally:
        chmod(root, 0o700)


def shown(store):
    with store.union(store.image("one")) as union:
        return paths(union)


def mounted(store):
    place = store.mount("top")
    try:
        return sorted(os.listdir(place)), (place / "a").read_bytes(), store.mounted("top")
    finally:
        store.unmount("top")


READS = {
    "images": (lambda s: [image.names for image in s.images()], [("one",)]),
    "layers": (lambda s: sorted(layer.id for layer in s.layers()), ["base", "cl", "rw", "top"]),
    "containers": (lambda s: [(c.id, c.image, c.layer) for c in s.containers()], [("c", "i", "cl")]),
    "lookup": (lambda s: [s.lookup(word) for word in ("one", "b", "cn", "to")], ["i", "base", "c", "top"]),
    "exists": (lambda s: [s.exists(word) for word in ("one", "nothing")], [True, False]),
    "big data": (lambda s: s.image_big_data("one", "k"), b"data"),
    "metadata": (lambda s: s.metadata("one"), "text"),
    "exact diff": (lambda s: contents(s.diff("", "top").read()), [["a", "A" * 11], ["c", "c" * 12]]),
    "changes": (lambda s: [change.path for change in s.changes("", "top")], [b"a", b"c"]),
    "diff_size": (lambda s: s.diff_size("", "top"), 23),
    "image_size": (lambda s: s.image_size("one"), len(ARCHIVES[0]) + len(ARCHIVES[1]) + 6),
    "container_size": (lambda s: s.container_size("c"), 4),
    "directory file": (lambda s: s.from_container_directory("c", "f"), b"data"),
    "union": (shown, [b"a", b"b", b"c"]),
    "mount": (mounted, (["a", "b", "c"], b"A" * 11, 1)),
    "shutdown": (lambda s: s.shutdown(force=True), None),
}


@pytest.mark.parametrize("what", READS)
def test_what_only_reads_works(closed, what):
    call, said = READS[what]
    assert closed.read_only
    assert call(closed) == said


@pytest.fixture
def changing(tmp_path):
    """The root of a store with an image of one name, and what gives it another one as its owner would."""
    root = tmp_path / "store"

    def rename(name: str) -> None:
        chmod(root, 0o700)
        with opened(tmp_path, "vfs") as store:
            store.set_names("i", [name])
        chmod(root, 0o500)

    with opened(tmp_path, "vfs") as store:
        store.create_image("i")
    rename("old")
    yield root, rename
    chmod(root, 0o700)


def test_each_commit_is_visible_to_the_next_read(changing, tmp_path):
    root, rename = changing
    other = FusestoreRoot(root)
    with opened(tmp_path, "vfs") as store:
        assert store.read_only
        for name in ("old", "new", "newer"):
            rename(name)
            assert [image.names for image in (*store.images(), *other.images())] == [(name,), (name,)]
            assert store.exists(name)
    other.close()


def test_what_is_read_at_once_is_of_one_state(changing):
    """Also when the file changes meanwhile, and is not locked."""
    root, rename = changing
    database = Database(root / "store.db", read_only=True)
    query = "SELECT name FROM names"
    with database.snapshot():
        before = [row["name"] for row in database.select(query)]
        rename("new")
        assert [row["name"] for row in database.select(query)] == before == ["old"]
    assert [row["name"] for row in database.select(query)] == ["new"]
    database.close()


# -- databases that are not what they should be -----------------------------------------------------------


def sql(path, statement):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def replaced(path, start, data):
    present = bytearray(path.read_bytes())
    present[start:] = data
    path.write_bytes(present)


BAD = {
    "garbage": (lambda path: path.write_bytes(b"no database at all " * 999), CorruptStore),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:5000]), CorruptStore),
    "zeroed": (lambda path: replaced(path, 100, bytes(9000)), CorruptStore),
    "empty": (lambda path: path.write_bytes(b""), CorruptStore),
    "foreign": (lambda path: sql(path, "PRAGMA application_id = 77"), CorruptStore),
    "newer": (lambda path: sql(path, "PRAGMA user_version = 99"), NotSupported),
    "older": (lambda path: sql(path, "PRAGMA user_version = 1"), NotSupported),
}


@pytest.fixture
def bad(request, tmp_path):
    """A store with a bad database, closed for writing; and the error that it should give."""
    make, error = BAD[request.param]
    root = tmp_path / "store"
    opened(tmp_path, "vfs").close()
    make(root / "store.db")
    chmod(root, 0o500)
    before = everything(root)
    try:
        yield root, error
        assert everything(root) == before
    finally:
        chmod(root, 0o700)


@pytest.mark.parametrize("bad", BAD, indirect=True)
def test_a_bad_database_is_refused_read_only(bad, tmp_path):
    root, error = bad
    with pytest.raises(error) as caught:
        Store(str(root), str(tmp_path / "run"))
    assert str(root / "store.db") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", BAD, indirect=True)
@pytest.mark.parametrize("mode", [0o500, 0o700])
def test_a_bad_database_is_refused_as_an_additional_store(bad, mode):
    root, error = bad
    chmod(root, mode)
    try:
        with pytest.raises(error) as caught:
            FusestoreRoot(root)
    finally:
        chmod(root, 0o500)
    assert str(root / "store.db") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_database_is_made_where_there_is_none(tmp_path):
    root = tmp_path / "store"
    root.mkdir(mode=0o500)
    with pytest.raises(OSError):
        Store(str(root), str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError):
        FusestoreRoot(root)
    assert os.listdir(root) == []
