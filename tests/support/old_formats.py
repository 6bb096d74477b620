"""Stores of older formats, made of one of today: the same rows in the tables of then.

The tables are those of fusestore/store/database.py of commit 7b469a8 (format 1) and fd2ec79 (format 2).
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

_TABLES = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE layers (
    chain_id     TEXT PRIMARY KEY,
    diff_id      TEXT NOT NULL,
    parent       TEXT REFERENCES layers(chain_id),
    cache_id     TEXT NOT NULL UNIQUE,
    size         INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    created      INTEGER NOT NULL{descriptor}
) STRICT, WITHOUT ROWID;
CREATE INDEX layers_parent ON layers(parent);{new}
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
PRAGMA journal_mode = WAL;
"""
_NEW_IN_2 = """
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
CREATE TABLE graph_images (
    id       TEXT PRIMARY KEY,
    parent   TEXT REFERENCES graph_images(id),
    cache_id TEXT NOT NULL UNIQUE,
    size     INTEGER NOT NULL,
    json     TEXT NOT NULL,
    created  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX graph_images_parent ON graph_images(parent);
"""
_FORMATS = {
    1: _TABLES.format(descriptor="", new=""),
    2: _TABLES.format(descriptor=",\n    descriptor   TEXT", new=_NEW_IN_2),
}

#: Each table of then, out of one of today.
_ROWS = {
    "settings": "SELECT key, value FROM settings",
    "layers": "SELECT id, diff_id, parent, cache_id, size, reproducible, created, descriptor FROM layers",
    "rw_layers": "SELECT name, mount_id, init_id, parent, label, options, created FROM rw_layers",
    "graph_images": "SELECT id, parent, cache_id, size, json, created FROM graph_images",
    "images": "SELECT id, top_layer, digest, size, created FROM images",
    "names": "SELECT name, item FROM names WHERE kind = 'image'",
    "big_data": "SELECT item, key, size, digest FROM big_data WHERE kind = 'image'",
}


def downgrade(store_root: Path, version: int) -> None:
    """Make a closed store one of format 1 or 2, which has what that format can hold."""
    path, made = store_root / "store.db", store_root / "old.db"
    with (
        closing(sqlite3.connect(made, isolation_level=None)) as old,
        closing(sqlite3.connect(path)) as new,
    ):
        old.executescript(f"{_FORMATS[version]} PRAGMA user_version = {version}")
        old.execute("BEGIN")
        old.execute("PRAGMA defer_foreign_keys = ON")
        for table, query in _ROWS.items():
            width = len(old.execute(f"PRAGMA table_info({table})").fetchall())
            for row in new.execute(query) if width else ():
                old.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", row[:width])
        old.execute("COMMIT")
    for name in ("store.db-wal", "store.db-shm"):
        (store_root / name).unlink(missing_ok=True)
    os.rename(made, path)
    if version == 1:  # which had no records of tars
        for record in store_root.glob("*/*/tar-split.json.gz"):
            record.unlink()
