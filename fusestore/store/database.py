"""One SQLite database per store: ``store.db``.  This module's `_SCHEMA` is the reference of it.

Every change is one transaction, begun with BEGIN IMMEDIATE, so writers queue instead of failing half-way;
every process sees every other's commits with its next statement.  Commits are synced to disk
(synchronous=FULL). The journal is a write-ahead log, except on network filesystems, which cannot share its
memory.

``application_id`` and ``user_version`` say whose file it is and of which format.  A file that is not ours, or
newer than this program, or damaged, is refused and never written to.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusestore.errors import CorruptStore, NotSupported
from fusestore.files import filesystem_type

_APPLICATION_ID = 0x46555345  # "FUSE"
_FORMAT = 2
_PATIENCE = 60  # seconds a statement waits for other processes' transactions

_SCHEMA = """
-- driver: the graphdriver that keeps the layers.
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- A read-only layer.  size: bytes of its own files, each inode once.  reproducible: its exact tar can be put
-- together again.  created: seconds since 1970.  descriptor: JSON of what it was downloaded as, if anything.
CREATE TABLE layers (
    chain_id     TEXT PRIMARY KEY,
    diff_id      TEXT NOT NULL,
    parent       TEXT REFERENCES layers(chain_id),
    cache_id     TEXT NOT NULL UNIQUE,
    size         INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    descriptor   TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_parent ON layers(parent);

-- A layer that takes changes, on top of a registered one.  init_id: the driver's layer between the two.
-- label: the SELinux label for its mounts.  options: storage options, JSON.
CREATE TABLE rw_layers (
    name     TEXT PRIMARY KEY,
    mount_id TEXT NOT NULL UNIQUE,
    init_id  TEXT UNIQUE,
    parent   TEXT REFERENCES layers(chain_id),
    label    TEXT NOT NULL,
    options  TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX rw_layers_parent ON rw_layers(parent);

-- An image of docker before 1.10: one layer with a random id.  size: bytes of its own files, each inode once.
-- json: what docker says of it, as one line.
CREATE TABLE graph_images (
    id       TEXT PRIMARY KEY,
    parent   TEXT REFERENCES graph_images(id),
    cache_id TEXT NOT NULL UNIQUE,
    size     INTEGER NOT NULL,
    json     TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_images_parent ON graph_images(parent);

-- An image.  id: hex digest of its configuration.  digest: of its manifest.  size: bytes of all its layers.
CREATE TABLE images (
    id        TEXT PRIMARY KEY,
    top_layer TEXT REFERENCES layers(chain_id),
    digest    TEXT NOT NULL,
    size      INTEGER NOT NULL,
    created   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX images_top_layer ON images(top_layer);

-- A name points at one image.
CREATE TABLE names (
    name  TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX names_image ON names(image);

-- Named blobs of an image (manifest, configuration), in files big/<item>/<encoded key>.
CREATE TABLE big_data (
    item   TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    key    TEXT NOT NULL,
    size   INTEGER NOT NULL,
    digest TEXT NOT NULL,
    PRIMARY KEY (item, key)
) STRICT, WITHOUT ROWID;
"""

# What makes a database of format N - 1 one of format N.  Layers of format 1 have no tar-split record.
_MIGRATIONS = {
    2: """
ALTER TABLE layers ADD COLUMN descriptor TEXT;
UPDATE layers SET reproducible = 0;
"""
    + _SCHEMA[_SCHEMA.index("CREATE TABLE rw_layers") : _SCHEMA.index("-- An image.  id")],
}

_NETWORK = (
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "9p",
    "afs",
    "fuse",
    "virtiofs",
)


class Database:
    """The open database; `close` it.  Raises CorruptStore, NotSupported, OSError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._complaints():
            self._connection = sqlite3.connect(path, timeout=_PATIENCE, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            os.chmod(path, 0o600)
            self._open_patiently()

    def _open_patiently(self) -> None:
        """Open it, though others may be opening it too: SQLite does not wait for who makes or recovers a
        log."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._open()
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def _open(self) -> None:
        execute = self._connection.execute
        execute("PRAGMA foreign_keys = ON")
        execute("PRAGMA synchronous = FULL")
        if self._pragma("application_id") == 0 and not execute("SELECT 1 FROM sqlite_master").fetchone():
            self._create()
        if self._pragma("application_id") != _APPLICATION_ID:
            raise CorruptStore(str(self._path), "this is not a fusestore database")
        version = self._pragma("user_version")
        if version > _FORMAT:
            raise NotSupported(
                f"{self._path}: made by a newer fusestore (format {version}); upgrade to use it"
            )
        if version < _FORMAT:
            self._migrate()

    def _create(self) -> None:
        """Make the schema, unless another process just did."""
        journal = "DELETE" if _on_network(self._path) else "WAL"
        self._connection.execute(f"PRAGMA journal_mode = {journal}")
        with self.transaction() as execute:
            if self._pragma("application_id") == 0:
                for statement in _SCHEMA.split(";\n"):
                    execute(statement)
                execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                execute(f"PRAGMA user_version = {_FORMAT}")

    def _migrate(self) -> None:
        """Bring an older format up to ours, unless another process just did."""
        with self.transaction() as execute:
            for version in range(self._pragma("user_version") + 1, _FORMAT + 1):
                for statement in _MIGRATIONS[version].split(";\n"):
                    execute(statement)
                execute(f"PRAGMA user_version = {version}")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """Close the connection.  May be called twice."""
        self._connection.close()

    def select(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._complaints():
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run statements with the write lock held: all of them take effect, or none.

        Inside another one it is part of that.
        """
        if self._connection.in_transaction:
            yield self._connection.execute
            return
        with self._complaints():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.execute
                self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:  # SQLite may have done so by itself
            self._connection.execute("ROLLBACK")

    def settle(self) -> None:
        """Inside a transaction: have its commit write something.

        A commit that failed at its fsync has left its frames in the log, and a crash before the next write
        would bring them to life.  Files that its rows name must not go before that write is on disk.
        """
        self._connection.execute(f"PRAGMA user_version = {_FORMAT}")

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except sqlite3.OperationalError as exc:
            raise _explained(exc, self._path) from None
        except sqlite3.DatabaseError as exc:
            raise CorruptStore(str(self._path), str(exc)) from None


def _explained(exc: sqlite3.OperationalError, path: Path) -> Exception:
    code = exc.sqlite_errorcode & 0xFF
    if code == sqlite3.SQLITE_BUSY:
        return OSError(f"{path}: another process has been writing for {_PATIENCE} s; try again")
    if code == sqlite3.SQLITE_FULL:
        return OSError(f"{path}: no space left on device")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return OSError(f"{path}: {exc}")
    return exc


def _on_network(path: Path) -> bool:
    """True when `path` lies on a filesystem whose locks or shared memory end at this machine."""
    return filesystem_type(path).split(".", 1)[0] in _NETWORK
