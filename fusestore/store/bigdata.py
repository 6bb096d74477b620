"""Big data: named blobs of items as files, and what their files are called (containers/storage: big data).

A value lies in ``big/<item>/<name>``, `<name>` being containers/storage's encoding of the key.  A row of the
database names the file; it is on disk before the row, and a new value of a key gets a file of another name,
so that row and file fit together at every instant.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fusestore import digest
from fusestore.digest import Digest
from fusestore.errors import BigDataNotFound, CorruptStore, InvalidBigDataName
from fusestore.files import fsync_directory, remove_tree, write_durably

if TYPE_CHECKING:
    from fusestore.store.database import Database

_PLAIN = re.compile(r"[.0-9a-z]*.", re.DOTALL)  # upstream's loop does not look at the last letter


def big_data_name(key: str) -> str:
    """The file name of a key (containers/storage: ``makeBigDataBaseName``).  Raises InvalidBigDataName.

    A key of small letters, digits and dots is itself, others are ``=`` and their base64, in which ``_``
    stands for the ``/`` that upstream cannot store.
    """
    if key in ("", ".", ".."):
        raise InvalidBigDataName(key)
    encoded = key.encode("utf-8", "surrogateescape")
    name = key if _PLAIN.fullmatch(key) else "=" + base64.b64encode(encoded, altchars=b"+_").decode()
    if "/" in name or "\0" in name:
        raise InvalidBigDataName(key)
    return name


def item_name(item: str) -> str:
    """An id, which may be any text, as a file name: itself where it is plain."""
    return item if re.fullmatch(r"[0-9a-z]+", item) else big_data_name("=" + item)


def directory_name(kind: str, item: str) -> str:
    """The name below ``big/`` of the directory with an item's blobs; each kind has ids of its own."""
    return item_name(item) if kind == "image" else f"{kind}.{item_name(item)}"


class BigData(NamedTuple):
    """What is known of a blob: its bytes, and its digest (None where its store has not written it down)."""

    size: int
    digest: Digest | None


class Blobs:
    """The table ``big_data`` and the directory ``big/`` of the store at `root`."""

    def __init__(self, database: Database, root: Path) -> None:
        self._database = database
        self._big = root / "big"
        self._tmp = root / "tmp"
        self._replaced: list[Path] = []
        if not database.read_only:
            self._big.mkdir(mode=0o700, exist_ok=True)

    def described(self, kind: str, items: str, values: Sequence[object]) -> dict[str, dict[str, BigData]]:
        """Sizes and digests by item and key, for the items that the query `items` selects."""
        where = f"kind = '{kind}' AND item IN ({items})"
        query = f"SELECT item, key, size, digest FROM big_data WHERE {where} ORDER BY item, key"
        found: dict[str, dict[str, BigData]] = {}
        for item, key, size, told in self._database.select(query, *values):
            found.setdefault(item, {})[key] = BigData(size, told)
        return found

    def get(self, kind: str, item: str, key: str) -> bytes:
        """A blob, verified against its digest.  Raises BigDataNotFound, CorruptStore, OSError."""
        query = "SELECT file, digest FROM big_data WHERE kind = ? AND item = ? AND key = ?"
        before = None
        while True:
            rows = self._database.select(query, kind, item, key)
            if not rows:
                raise BigDataNotFound(item, key)
            row: tuple[str, str] = tuple(rows[0])
            try:
                data: bytes | None = (self._big / row[0]).read_bytes()
            except FileNotFoundError:
                data = None
            if data is not None and digest.of_bytes(data) == row[1]:
                return data
            if row == before:
                fault = "is missing" if data is None else "was changed"
                raise CorruptStore(
                    str(self._big / row[0]),
                    f"a file of the {kind} {fault}; remove the {kind} and make it again",
                )
            before = row  # perhaps it was replaced just now

    @contextmanager
    def setting(self) -> Iterator[None]:
        """To be around the transaction that sets blobs: deletes what was replaced when that has succeeded.

        Inside a transaction it leaves that to the one around it.
        """
        if self._database.in_transaction:
            yield
            return
        try:
            yield
            for path in self._replaced:
                path.unlink(missing_ok=True)
        finally:
            self._replaced.clear()

    def set(self, kind: str, item: str, key: str, data: bytes) -> None:
        """Inside a transaction: a new value.  Raises InvalidBigDataName, OSError."""
        directory, name = directory_name(kind, item), big_data_name(key)
        query = "SELECT file FROM big_data WHERE kind = ? AND item = ? AND key = ?"
        if os.path.lexists(self._big / directory / name):  # perhaps a row names it
            name += f"~{secrets.token_hex(4)}"  # no key's name has such an end
        for (present,) in self._database.select(query, kind, item, key):
            if present != f"{directory}/{name}":  # or it was lost, and comes back
                self._replaced.append(self._big / present)
        if not (self._big / directory).is_dir():
            (self._big / directory).mkdir(mode=0o700)
            fsync_directory(os.fsencode(self._big))
        write_durably(self._big / directory / name, data, self._tmp)
        self._database.select(
            "INSERT OR REPLACE INTO big_data VALUES (?, ?, ?, ?, ?, ?)",
            kind, item, key, len(data), digest.of_bytes(data), f"{directory}/{name}",
        )  # fmt: skip

    def set_all(self, kind: str, item: str, blobs: Mapping[str, bytes]) -> None:
        """Inside a transaction: several of them."""
        for key, data in blobs.items():
            self.set(kind, item, key, data)

    def delete_unnamed(self, kind: str, item: str) -> None:
        """Delete the files of an item whose row is gone, unless another process has just made it again."""
        with self._database.transaction():
            query = "SELECT 1 FROM big_data WHERE kind = ? AND item = ?"
            if not self._database.select(query, kind, item):
                remove_tree(self._big / directory_name(kind, item))

    def unnamed(self, *, deep: bool) -> list[Path]:
        """Directories below ``big/`` of which no row names a file; with `deep`, single files too."""
        known = {file for (file,) in self._database.select("SELECT file FROM big_data")}
        directories = {file.partition("/")[0] for file in known}
        present = os.listdir(self._big)
        found = [self._big / name for name in present if name not in directories]
        if deep:
            files = (f"{d}/{name}" for d in present if d in directories for name in os.listdir(self._big / d))
            found += [self._big / file for file in files if file not in known]
        return found

    def collect(self, *, deep: bool = False) -> None:
        """Delete them.

        In a transaction, as is whoever adds one: nobody is between a file and its row.
        """
        with self._database.transaction():
            if doomed := self.unnamed(deep=deep):
                self._database.settle()
            for path in doomed:
                remove_tree(path)
