"""The tables of ``store.db``, and how older formats become this one.  The canonical reference of both.

Statements are separated by a semicolon at the end of a line.
"""

from __future__ import annotations

FORMAT = 3

#: Format 3.
SCHEMA = """
-- driver: the graphdriver that keeps the layers.
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- A layer, read-only but for those that were made empty.  id: of a registered one its chain ID (sha256:...), of
-- others what their maker chose.  size: bytes of its own files, each inode once.  reproducible: its exact tar
-- can be put together again.  created: seconds since 1970.  diff_id, diff_size: digest and bytes of the tar
-- that it was unpacked from.  descriptor: JSON of the blob that this came in (mediaType, digest, size), if
-- known.  owners: JSON [uids, gids] of its entries, if known.  label: the SELinux label for its mounts.
-- flags: JSON.  origin: the additional store that it is borrowed from, if it is.
CREATE TABLE layers (
    id           TEXT PRIMARY KEY,
    parent       TEXT REFERENCES layers(id),
    cache_id     TEXT NOT NULL UNIQUE,
    size         INTEGER NOT NULL,
    reproducible INTEGER NOT NULL,
    created      INTEGER NOT NULL,
    diff_id      TEXT,
    diff_size    INTEGER,
    descriptor   TEXT,
    owners       TEXT,
    label        TEXT NOT NULL DEFAULT '',
    metadata     TEXT NOT NULL DEFAULT '',
    flags        TEXT NOT NULL DEFAULT '{}',
    origin       TEXT
) STRICT;
CREATE INDEX layers_parent ON layers(parent);
CREATE INDEX layers_diff_id ON layers(diff_id);
CREATE INDEX layers_blob ON layers(json_extract(descriptor, '$.digest'));

-- A layer that takes changes, on top of a registered one.  init_id: the driver's layer between the two.
-- label: the SELinux label for its mounts.  options: storage options, JSON.
CREATE TABLE rw_layers (
    name     TEXT PRIMARY KEY,
    mount_id TEXT NOT NULL UNIQUE,
    init_id  TEXT UNIQUE,
    parent   TEXT REFERENCES layers(id),
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

-- An image.  id: hex digest of its configuration, or what its maker chose.  digest: of its manifest, if it has
-- one.  size: bytes of all its layers.  history: every name it was given, newest first, JSON.
CREATE TABLE images (
    id        TEXT PRIMARY KEY,
    top_layer TEXT REFERENCES layers(id),
    digest    TEXT,
    size      INTEGER NOT NULL,
    created   INTEGER NOT NULL,
    metadata  TEXT NOT NULL DEFAULT '',
    flags     TEXT NOT NULL DEFAULT '{}',
    history   TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX images_top_layer ON images(top_layer);
CREATE INDEX images_digest ON images(digest);

-- A container: a layer of its own on top of an image's.  image: '' for none; it may be an additional store's.
CREATE TABLE containers (
    id       TEXT PRIMARY KEY,
    image    TEXT NOT NULL,
    layer    TEXT NOT NULL UNIQUE REFERENCES layers(id),
    created  INTEGER NOT NULL,
    metadata TEXT NOT NULL DEFAULT '',
    flags    TEXT NOT NULL DEFAULT '{}'
) STRICT;
CREATE INDEX containers_image ON containers(image);

-- A name points at one item of its kind: layer, image or container.  An item's names have an order.
CREATE TABLE names (
    kind     TEXT NOT NULL,
    name     TEXT NOT NULL,
    item     TEXT NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX names_item ON names(kind, item, position);

-- Named blobs of an item, such as an image's manifest and configuration.  file: its path below big/.
CREATE TABLE big_data (
    kind   TEXT NOT NULL,
    item   TEXT NOT NULL,
    key    TEXT NOT NULL,
    size   INTEGER NOT NULL,
    digest TEXT NOT NULL,
    file   TEXT NOT NULL,
    PRIMARY KEY (kind, item, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX big_data_digest ON big_data(digest);

CREATE TRIGGER layers_gone AFTER DELETE ON layers BEGIN
    DELETE FROM names WHERE kind = 'layer' AND item = old.id; DELETE FROM big_data WHERE kind = 'layer' AND item = old.id; END;
CREATE TRIGGER images_gone AFTER DELETE ON images BEGIN
    DELETE FROM names WHERE kind = 'image' AND item = old.id; DELETE FROM big_data WHERE kind = 'image' AND item = old.id; END;
CREATE TRIGGER containers_gone AFTER DELETE ON containers BEGIN
    DELETE FROM names WHERE kind = 'container' AND item = old.id; DELETE FROM big_data WHERE kind = 'container' AND item = old.id; END;
"""  # noqa: E501 - a trigger is one statement, and statements end with a line


def _tables(first: str, behind: str) -> str:
    """The part of `SCHEMA` from one comment or statement on to another."""
    return SCHEMA[SCHEMA.index(first) : SCHEMA.index(behind)]


#: What makes a database of format N - 1 one of format N.  Layers of format 1 have no tar-split record; the
#: key of a layer was called chain_id before format 3, names and blobs were images' only.
MIGRATIONS = {
    2: """
ALTER TABLE layers ADD COLUMN descriptor TEXT;
UPDATE layers SET reproducible = 0;
"""
    + _tables("CREATE TABLE rw_layers", "-- An image.  id").replace("layers(id)", "layers(chain_id)"),
    3: """
ALTER TABLE layers RENAME COLUMN chain_id TO id;
PRAGMA legacy_alter_table = ON;
ALTER TABLE layers RENAME TO old_layers;
ALTER TABLE images RENAME TO old_images;
ALTER TABLE names RENAME TO old_names;
ALTER TABLE big_data RENAME TO old_big_data;
DROP INDEX layers_parent;
DROP INDEX images_top_layer;
DROP INDEX names_image;
"""
    + _tables("CREATE TABLE layers", "-- A layer that takes")
    + _tables("CREATE TABLE images", "CREATE TRIGGER")
    + """
INSERT INTO layers (id, parent, cache_id, size, reproducible, created, diff_id, descriptor)
    SELECT id, parent, cache_id, size, reproducible, created, diff_id, descriptor FROM old_layers
    ORDER BY created;
INSERT INTO images (id, top_layer, digest, size, created, history)
    SELECT *, (SELECT json_group_array(name) FROM old_names WHERE image = old_images.id) FROM old_images;
INSERT INTO names (kind, name, item) SELECT 'image', name, image FROM old_names;
INSERT INTO big_data
    SELECT 'image', item, key, size, digest, item || '/' || big_data_name(key) FROM old_big_data;
DROP TABLE old_names;
DROP TABLE old_big_data;
DROP TABLE old_images;
DROP TABLE old_layers;
PRAGMA legacy_alter_table = OFF;
"""
    + SCHEMA[SCHEMA.index("CREATE TRIGGER") :],
}
