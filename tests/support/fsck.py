"""Is a store on disk what its invariants say?  Looked at from outside, with none of the store's own code."""

import base64
import hashlib
import re
import sqlite3
from pathlib import Path


def problems(root: Path) -> list[str]:
    """Every broken invariant of the store at `root`, in words.  Nobody may be working with it."""
    found = [f"left behind: tmp/{entry.name}" for entry in (root / "tmp").iterdir()]
    if not (root / "store.db").exists():
        return found
    database = sqlite3.connect(f"file:{root / 'store.db'}?mode=ro", uri=True)
    try:
        database.row_factory = sqlite3.Row
        found += [
            f"database: {row[0]}" for row in database.execute("PRAGMA integrity_check") if row[0] != "ok"
        ]
        found += [f"database: {tuple(row)}" for row in database.execute("PRAGMA foreign_key_check")]
        layers = {row["chain_id"]: row for row in database.execute("SELECT * FROM layers")}
        found += _layers(root / _driver(database), layers)
        found += _images(root / "big", database, layers)
    finally:
        database.close()
    return found


def _driver(database: sqlite3.Connection) -> str:
    rows = database.execute("SELECT value FROM settings WHERE key = 'driver'").fetchall()
    return rows[0][0] if rows else "fuse"


def _layers(home: Path, layers: dict[str, sqlite3.Row]) -> list[str]:
    found = []
    named = {row["cache_id"] for row in layers.values()}
    for name, row in layers.items():
        if not (home / row["cache_id"] / "diff").is_dir():
            found.append(f"layer {name}: its directory {row['cache_id']} is missing")
        if row["parent"] is not None and row["parent"] not in layers:
            found.append(f"layer {name}: its parent is missing")
        expected = (
            row["diff_id"] if row["parent"] is None else _digest(f"{row['parent']} {row['diff_id']}".encode())
        )
        if name != expected:
            found.append(f"layer {name}: that is not the chain ID of its parent and diff ID")
    if not home.exists():
        return found
    present = {entry.name for entry in home.iterdir() if re.fullmatch("[0-9a-f]{64}", entry.name)}
    found += [f"driver layer {name}: no row names it" for name in present - named]
    links = [link for link in (home / "l").iterdir() if link.resolve().parent.name not in named]
    return found + [f"link {link.name}: leads to no layer" for link in links]


def _images(big: Path, database: sqlite3.Connection, layers: dict[str, sqlite3.Row]) -> list[str]:
    found = []
    ids = set()
    for row in database.execute("SELECT * FROM images"):
        ids.add(row["id"])
        if row["top_layer"] is not None and row["top_layer"] not in layers:
            found.append(f"image {row['id']}: its top layer is missing")
    for row in database.execute("SELECT * FROM big_data"):
        name = row["key"]
        if not re.fullmatch("[a-z0-9]+", name):
            name = "=" + base64.b64encode(name.encode(), b"+_").decode()
        path = big / row["item"] / name
        if not path.exists() or _digest(path.read_bytes()) != row["digest"]:
            found.append(f"image {row['item']}: {row['key']} is missing or changed")
    found += (
        [f"blobs of {e.name}: no row names them" for e in big.iterdir() if e.name not in ids]
        if big.exists()
        else []
    )
    return found


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
