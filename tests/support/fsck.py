"""Is a store on disk what its invariants say?  Looked at from outside, with none of the store's own code."""

import hashlib
import os
import re
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def problems(root: Path) -> list[str]:
    """Every broken invariant of the store at `root`, and all garbage.  Nobody may be working with it."""
    return broken(root) + garbage(root)


def broken(root: Path) -> list[str]:
    """What must never be, not even at the instant of a crash: rows that name what is not there."""
    with _rows(root) as database:
        if database is None:
            return []
        verdict = [row[0] for row in database.execute("PRAGMA integrity_check")]
        found = [] if verdict == ["ok"] else [f"database: {line}" for line in verdict]
        found += [f"database: {tuple(row)}" for row in database.execute("PRAGMA foreign_key_check")]
        layers = {row["id"]: row for row in database.execute("SELECT * FROM layers")}
        home = root / _driver(database)
        found += _layers(home, layers) + _rw_layers(home, database)
        return found + _images(root / "big", database, layers)


def garbage(root: Path) -> list[str]:
    """What a crash may leave behind, and the next process takes away: files that no row names."""
    found = [f"left behind: tmp/{name}" for name in _names(root / "tmp")]
    with _rows(root) as database:
        if database is None:
            return found
        named = """SELECT cache_id FROM layers UNION SELECT mount_id FROM rw_layers
                   UNION SELECT init_id FROM rw_layers UNION SELECT cache_id FROM graph_images"""
        cache_ids = {row[0] for row in database.execute(named)}
        blobs = {row[0] for row in database.execute("SELECT file FROM big_data")}
        containers = {row[0] for row in database.execute("SELECT id FROM containers")}
        home = root / _driver(database)
    present = {name for name in _names(home) if re.fullmatch("[0-9a-f]{64}", name)}
    links = {name: os.readlink(home / "l" / name).split("/")[1] for name in _names(home / "l")}
    found += [f"driver layer {name}: no row names it" for name in present - cache_ids]
    found += [f"link {name}: leads to no layer" for name, layer in links.items() if layer not in cache_ids]
    files = {
        f"{name}/{file}" for name in _names(root / "big") for file in _names(root / "big" / name) or [""]
    }
    found += [f"blob {file}: no row names it" for file in files - blobs]
    directories = {name for name in _names(root / "containers") if re.fullmatch("[0-9a-z]+", name)}
    return found + [
        f"directory of the container {name}: no row names it" for name in directories - containers
    ]


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []


@contextmanager
def _rows(root: Path) -> Iterator[sqlite3.Connection | None]:
    """A copy of the database, so that not even a journal is changed; None before it has tables."""
    with tempfile.TemporaryDirectory() as place:
        for path in (root / "store.db", root / "store.db-wal", root / "store.db-journal"):
            if path.exists():
                # Not in this process: its locks on the file would go (see fusestore.store.database).
                subprocess.run(["cp", path, place], check=True)
        database = sqlite3.connect(Path(place, "store.db"))
        try:
            database.row_factory = sqlite3.Row
            made = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'layers'").fetchone()
            yield database if made else None
        finally:
            database.close()


def _driver(database: sqlite3.Connection) -> str:
    rows = database.execute("SELECT value FROM settings WHERE key = 'driver'").fetchall()
    return rows[0][0] if rows else "fuse"


def _layers(home: Path, layers: dict[str, sqlite3.Row]) -> list[str]:
    found = []
    for name, row in layers.items():
        if not (home / row["cache_id"] / "diff").is_dir():
            found.append(f"layer {name}: its directory {row['cache_id']} is missing")
        if row["reproducible"] and not (home / row["cache_id"] / "tar-split.json.gz").is_file():
            found.append(f"layer {name}: its tar-split record is missing")
        if not name.startswith("sha256:"):
            continue
        if row["parent"] is None:
            expected = row["diff_id"]
        else:
            expected = _digest(f"{row['parent']} {row['diff_id']}".encode())
        if name != expected:
            found.append(f"layer {name}: that is not the chain ID of its parent and diff ID")
    return found


def _rw_layers(home: Path, database: sqlite3.Connection) -> list[str]:
    wanted = database.execute(
        """SELECT name, mount_id FROM rw_layers
           UNION SELECT name, init_id FROM rw_layers WHERE init_id IS NOT NULL
           UNION SELECT id, cache_id FROM graph_images"""
    )
    return [
        f"RW layer {name}: {mount} is missing"
        for name, mount in wanted
        if not (home / mount / "diff").is_dir()
    ]


def _images(big: Path, database: sqlite3.Connection, layers: dict[str, sqlite3.Row]) -> list[str]:
    rows = database.execute("SELECT * FROM images WHERE top_layer IS NOT NULL").fetchall()
    found = [f"image {row['id']}: its top layer is missing" for row in rows if row["top_layer"] not in layers]
    for row in database.execute("SELECT * FROM big_data"):
        path = big / row["file"]
        if not path.exists() or _digest(path.read_bytes()) != row["digest"]:
            found.append(f"{row['kind']} {row['item']}: {row['key']} is missing or changed")
    for table in ("names", "big_data"):
        for kind in ("layer", "image", "container"):
            nobodys = (
                f"SELECT item FROM {table} WHERE kind = '{kind}' AND item NOT IN (SELECT id FROM {kind}s)"
            )
            found += [f"{table}: {kind} {row['item']} does not exist" for row in database.execute(nobodys)]
    return found


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
