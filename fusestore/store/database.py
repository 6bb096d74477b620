"""One SQLite database per store: ``store.db``, with the tables of `fusestore.store.schema`.

Every change is one transaction, begun with BEGIN IMMEDIATE, so writers queue instead of failing half-way;
every process sees every other's commits with its next statement.  Commits are synced to disk
(synchronous=FULL). The journal is a write-ahead log, except on network filesystems, which cannot share its
memory.

``application_id`` and ``user_version`` say whose file it is and of which format.  A file that is not ours, or
newer than this program, or damaged, is refused and never written to.

A database that we may not write is opened read-only; where not even its log can be read or made, a copy of
the file is, anew whenever that has changed.

Nothing else in this process may open ``store.db``: closing any fd of a file drops all POSIX locks that the
process has on it, SQLite's too (sqlite.org/howtocorrupt.html, 2.2).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusestore.errors import CorruptStore, InvalidText, NotSupported, StoreIsReadOnly
from fusestore.files import PATIENCE, filesystem_type
from fusestore.store.bigdata import big_data_name
from fusestore.store.schema import FORMAT, MIGRATIONS, SCHEMA

_APPLICATION_ID = 0x46555345  # "FUSE"

_VERSIONS = slice(18, 20)  # where the file (sqlite.org/fileformat.html) has 1 1 for no log, 2 2 for one

# Filesystems whose locks or shared memory end at this machine.
_NETWORK = (
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse", "gpfs", "lustre", "nfs", "nfs4", "smb3", "virtiofs",
)  # fmt: skip


class Database:
    """The open database; `close` it.  Raises CorruptStore, NotSupported, OSError.

    `read_only`: never write, not even to make it; a file that is not there is FileNotFoundError.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self.read_only = read_only
        self._state: tuple[int, ...] | None = None  # of the file that we have a copy of
        with self._complaints():
            if read_only:
                os.stat(path)
                self._connect_read_only()
                return
            is_new = not path.exists()
            self._connection = _connected(path)
            if is_new:
                os.chmod(path, 0o600)
            self._open_patiently()

    def _connect_read_only(self) -> None:
        """With the log, if there is one that we may read; else a copy of the file, until that changes."""
        self._state = None
        if any(_logs(self._path)):
            self._connection = _connected(self._path, "mode=ro&readonly_shm=1")
            try:
                self._verify()
            except sqlite3.OperationalError as exc:
                self._connection.close()
                # READONLY: the log's shared memory would have to be made.
                if exc.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                    raise
            else:
                return
        data, self._state = _copied(self._path)
        self._connection = _connected(":memory:")
        self._connection.deserialize(data)
        self._verify()

    def _open_patiently(self) -> None:
        """Open it, though others may be opening it too: SQLite does not wait for who makes or recovers a
        log."""
        deadline = time.monotonic() + PATIENCE
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
        if self._verify() < FORMAT:
            self._migrate()

    def _verify(self) -> int:
        """The format, one that we can use.  Raises CorruptStore, NotSupported."""
        if self._pragma("application_id") != _APPLICATION_ID:
            raise CorruptStore(str(self._path), "this is not a fusestore database")
        version = self._pragma("user_version")
        if version > FORMAT:
            raise NotSupported(
                f"{self._path}: made by a newer fusestore (format {version}); upgrade to use it"
            )
        if version < FORMAT and self.read_only:
            raise NotSupported(
                f"{self._path}: made by an older fusestore (format {version}), and not yours to write; its"
                " owner has to open it once"
            )
        return version

    def _create(self) -> None:
        """Make the schema, unless another process just did."""
        journal = "DELETE" if is_on_network(self._path) else "WAL"
        self._connection.execute(f"PRAGMA journal_mode = {journal}")
        with self.transaction() as execute:
            if self._pragma("application_id") == 0:
                for statement in SCHEMA.split(";\n"):
                    execute(statement)
                execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                execute(f"PRAGMA user_version = {FORMAT}")

    def _migrate(self) -> None:
        """Bring an older format up to ours, unless another process just did."""
        self._connection.create_function("big_data_name", 1, big_data_name, deterministic=True)
        self._connection.execute("PRAGMA foreign_keys = OFF")  # while tables are replaced
        with self.transaction() as execute:
            for version in range(self._pragma("user_version") + 1, FORMAT + 1):
                for statement in MIGRATIONS[version].split(";\n"):
                    execute(statement)
                execute(f"PRAGMA user_version = {version}")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def close(self) -> None:
        """Close the connection.  May be called twice."""
        self._connection.close()

    def select(self, statement: str, *values: object) -> list[sqlite3.Row]:
        """All rows of a query."""
        with self._complaints():
            if self._state is not None and not self.in_transaction and self._state != _state(self._path):
                self._connection.close()
                self._connect_read_only()
            return self._connection.execute(statement, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have all queries until the context ends see the same state of the database."""
        if self.in_transaction:
            yield
            return
        self.select("SELECT 1")  # a file that has changed is opened anew
        with self._complaints():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._roll_back()

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., sqlite3.Cursor]]:
        """Run statements with the write lock held: all of them take effect, or none.

        Inside another one it is part of that.  Raises StoreIsReadOnly.
        """
        self.refuse_read_only()
        if self.in_transaction:
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

    def refuse_read_only(self) -> None:
        """Raises StoreIsReadOnly for one that is not to be written."""
        if self.read_only:
            raise StoreIsReadOnly(str(self._path.parent))

    @property
    def in_transaction(self) -> bool:
        """True inside `transaction`, and inside `snapshot`."""
        return self._connection.in_transaction

    def _roll_back(self) -> None:
        if self.in_transaction:  # SQLite may have done so by itself
            self._connection.execute("ROLLBACK")

    def settle(self) -> None:
        """Inside a transaction: have its commit write something.

        A commit that failed at its fsync has left its frames in the log, and a crash before the next write
        would bring them to life.  Files that its rows name must not go before that write is on disk.
        """
        self._connection.execute(f"PRAGMA user_version = {FORMAT}")

    def problems(self) -> list[str]:
        """What SQLite finds wrong with the file: damaged pages, rows that refer to nothing."""
        found = [str(row[0]) for row in self.select("PRAGMA integrity_check") if row[0] != "ok"]
        dangling = self.select("PRAGMA foreign_key_check")
        return found + [f"a row of {row[0]} refers to one of {row[2]} that is not there" for row in dangling]

    @contextmanager
    def _complaints(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.IntegrityError:
            raise
        except UnicodeEncodeError as exc:
            raise InvalidText(exc.object) from None
        except sqlite3.OperationalError as exc:
            raise _explained(exc, self._path) from None
        except sqlite3.DatabaseError as exc:
            raise CorruptStore(str(self._path), str(exc)) from None


def _connected(path: Path | str, parameters: str = "") -> sqlite3.Connection:
    where = f"{Path(path).absolute().as_uri()}?{parameters}" if parameters else path
    connection = sqlite3.connect(where, timeout=PATIENCE, isolation_level=None, uri=bool(parameters))
    connection.row_factory = sqlite3.Row
    return connection


def _copied(path: Path) -> tuple[bytes, tuple[int, ...]]:
    """The content of a database that nobody has open, as one that has no log; and its `_state`.

    SQLite itself would read it without any lock (``immutable``), and see a checkpoint half done.
    """
    while True:
        state, data = _state(path), bytearray(path.read_bytes())
        if state == _state(path):
            data[_VERSIONS] = b"\1\1"
            return bytes(data), state


def _state(path: Path) -> tuple[int, ...]:
    """What changes when somebody writes to the database or begins to."""
    st = os.stat(path)
    return st.st_ino, st.st_size, st.st_mtime_ns, *_logs(path)


def _logs(path: Path) -> tuple[bool, bool]:
    """Whether somebody has begun to write; SQLite would make a log that is not there, even to read."""
    return os.path.exists(f"{path}-wal"), os.path.exists(f"{path}-journal")


def _explained(exc: sqlite3.OperationalError, path: Path) -> Exception:
    code = exc.sqlite_errorcode & 0xFF
    if code == sqlite3.SQLITE_BUSY:
        return OSError(f"{path}: another process has been writing for {PATIENCE} s; try again")
    if code == sqlite3.SQLITE_FULL:
        return OSError(f"{path}: no space left on device")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM):
        return OSError(f"{path}: {exc}")
    return exc


def is_on_network(path: Path) -> bool:
    """True when `path` lies on a filesystem whose locks or shared memory end at this machine."""
    return filesystem_type(path).split(".", 1)[0] in _NETWORK
