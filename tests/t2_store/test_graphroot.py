"""Graphroots of containers/storage, written by hand: every field, every driver, all that may be wrong.

What podman and buildah really write is compared in t5_real/test_graphroot_of_podman.py.  Here are the
formats' corners, of all versions since 2017, and damage.  Whatever is asked, nothing may change on disk: the
last test asks everything of a store that is closed to writing.
"""

import os

import pytest
from support.graphroots import CREATED, Written, sha256

from fusestore.errors import (
    CorruptStore,
    NotSupported,
)
from fusestore.store.bigdata import BigData
from fusestore.store.graphroot import GraphRoot
from fusestore.store.items import Image, LayerItem

ONE, TWO = sha256(b"one"), sha256(b"two")
SHA512 = "sha512:" + "0" * 128
SECONDS = 1756461600  # CREATED


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path / "storage")


# -- records ------------------------------------------------------------------------------------------

LAYER = {
    "id": "top",
    "names": ["n1", "localhost/n2:latest"],
    "parent": "base",
    "metadata": '{"a":1}',
    "mountlabel": "system_u:object_r:container_file_t:s0:c1,c2",
    "created": CREATED,
    "compressed-diff-digest": ONE,
    "compressed-size": 1234,
    "diff-digest": TWO,
    "toc-digest": ONE,
    "diff-size": 3072,
    "compression": 2,
    "uidset": [0, 70],
    "gidset": [0, 4294967295],
    "flags": {"a": True, "b": ["c"]},
    "uidmap": [{"container_id": 0, "host_id": 1, "size": 2}],
    "gidmap": [{"container_id": 0, "host_id": 1, "size": 2}],
    "big-data-names": ["key"],
    "of-a-newer-version": {"x": [1.5]},
}
ITEM = LayerItem(
    id="top",
    names=("n1", "localhost/n2:latest"),
    metadata='{"a":1}',
    created=SECONDS,
    flags={"a": True, "b": ["c"]},
    big_data={"key": BigData(4, None)},
    read_only=True,
    parent="base",
    mount_label="system_u:object_r:container_file_t:s0:c1,c2",
    size=3072,
    uncompressed_digest=TWO,
    uncompressed_size=3072,
    compressed_digest=ONE,
    compressed_size=1234,
    compression="gzip",
    uids=(0, 70),
    gids=(0, 4294967295),
)
IMAGE = {
    "id": "img",
    "digest": ONE,
    "names": ["localhost/x:latest", "localhost/x:1"],
    "names-history": ["localhost/x:1", "localhost/x:latest"],
    "layer": "top",
    "mapped-layers": ["other"],
    "metadata": "{}",
    "big-data-names": ["manifest", "sha256:ab"],
    "big-data-sizes": {"manifest": 2, "sha256:ab": 40},
    "big-data-digests": {"manifest": TWO},
    "created": CREATED,
    "flags": {"f": 1},
    "of-a-newer-version": None,
}
PICTURE = Image(
    id="img",
    names=("localhost/x:latest", "localhost/x:1"),
    metadata="{}",
    created=SECONDS,
    flags={"f": 1},
    big_data={"manifest": BigData(2, TWO), "sha256:ab": BigData(40, None)},
    read_only=True,
    top_layer="top",
    digest=ONE,
    size=42 + 3072 + 100,
    names_history=("localhost/x:1", "localhost/x:latest"),
)


def test_every_field_of_a_layer_and_an_image_arrives(written):
    written.put("layers", [{"id": "base", "diff-digest": ONE, "diff-size": 100}, LAYER])
    written.put("images", [IMAGE])
    (written.path / "overlay-layers/top").mkdir()
    (written.path / "overlay-layers/top/key").write_bytes(b"1234")
    root = written.open()
    assert root.layers()[1] == root.layer("top") == ITEM
    assert root.images() == [root.image("img")] == [PICTURE]
    assert root.image("img").digests == (ONE, TWO)
    assert root.layer("img") is root.image("top") is root.layer("to") is None


@pytest.mark.parametrize("fields", [{}, dict.fromkeys(LAYER | IMAGE)])
def test_what_is_absent_or_null_is_empty(written, fields):
    written.put("layers", [{**fields, "id": "x"}])
    written.put("images", [{**fields, "id": "x"}])
    root = written.open()
    assert root.layers() == [LayerItem(id="x", read_only=True)]
    assert root.images() == [Image(id="x", read_only=True)]


# What a field says, and what an attribute is then.
VALUES = {
    "created: UTC": ("layers", {"created": "1970-01-01T00:01:40Z"}, "created", 100),
    "created: an offset": ("layers", {"created": "1970-01-01T02:01:40.5+02:00"}, "created", 100),
    "created: before 1970": ("layers", {"created": "1969-12-31T23:59:59.5Z"}, "created", -1),
    "created: Go's zero": ("layers", {"created": "0001-01-01T00:00:00Z"}, "created", 0),
    "created: the last": ("layers", {"created": "9999-12-31T23:59:59-12:00"}, "created", 253402343999),
    "compression: bzip2": ("layers", {"compression": 1}, "compression", "bzip2"),
    "compression: xz": ("layers", {"compression": 3}, "compression", "xz"),
    "compression: zstd": ("layers", {"compression": 4}, "compression", "zstd"),
    "compression: of a newer version": ("layers", {"compression": 9}, "compression", "unknown"),
    "a size without its digest": ("layers", {"diff-size": 5}, "uncompressed_size", None),
    "a layer that came in parts": (
        "layers", {"toc-digest": ONE, "diff-digest": TWO, "diff-size": -1}, "uncompressed_size", None,
    ),
    "an empty compressed blob": (
        "layers", {"compressed-diff-digest": ONE}, "compressed_size", 0,
    ),
    "another algorithm": ("layers", {"diff-digest": SHA512, "diff-size": 7}, "uncompressed_digest", None),
    "no owners are recorded": ("layers", {"diff-digest": ONE, "uidset": []}, "uids", None),
    "nobody owns what is in an empty layer": ("layers", {"diff-digest": sha256(bytes(1024))}, "gids", ()),
    "no top layer": ("images", {"layer": ""}, "top_layer", None),
    "the digest of the first manifest": (
        "images",
        {
            "big-data-names": ["x", "manifest-1", "manifest"],
            "big-data-digests": {"x": SHA512, "manifest": ONE, "manifest-1": TWO},
        },
        "digest",
        TWO,
    ),
    "big data of unknown size": ("images", {"big-data-names": ["x"]}, "big_data", {"x": BigData(-1, None)}),
    "half a surrogate pair": ("images", {"metadata": "a\ud800"}, "metadata", "a\ufffd"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "attribute", "value"), VALUES.values(), ids=VALUES)
def test_values(written, kind, fields, attribute, value):
    written.put(kind, [{"id": "x", **fields}])
    (item,) = getattr(written.open(), kind)()
    assert getattr(item, attribute) == value


@pytest.mark.parametrize("data", [None, b"", b"[]", b"null"])
def test_no_file_and_an_empty_one_are_an_empty_store(written, data):
    if data is not None:
        written.put("layers", data)
        written.put("images", data)
    root = written.open()
    assert (root.layers(), root.images(), root.layer("x"), root.image("x")) == ([], [], None, None)


DAMAGE = {
    "half a file": b'[{"id":"x","created":"2025-08-2',
    "no JSON": b"\x00" * 100,
    "an object": b"{}",
    "a number": b"0",
    "an array of numbers": b"[1]",
    "an array in an array": b"[[]]",
    "deep": b"[" * 100_000,
    "no id": b"[{}]",
    "an empty id": b'[{"id":""}]',
    "an id that leads out": b'[{"id":"../x"}]',
    "an id that is the parent": b'[{"id":".."}]',
    "an id with a NUL": b'[{"id":"a\\u0000"}]',
    "a number for an id": b'[{"id":1}]',
    "a string for names": b'[{"id":"x","names":"n"}]',
    "a number among names": b'[{"id":"x","names":["n",1]}]',
    "no time": b'[{"id":"x","created":"yesterday"}]',
    "a digest that is none": b'[{"id":"x","digest":"abc","diff-digest":"abc"}]',
    "a digest of the wrong length": b'[{"id":"x","digest":"sha256:0","diff-digest":"sha256:0"}]',
    "a number that JSON has not": b'[{"id":"x","flags":{"f":NaN}}]',
    "flags that are none": b'[{"id":"x","flags":[]}]',
    "a size that is a string": b'[{"id":"x","big-data-sizes":{"k":"1"},"diff-size":"1"}]',
    "a size that is true": b'[{"id":"x","big-data-sizes":{"k":true},"diff-size":true}]',
    "a size over 63 bits": b'[{"id":"x","big-data-sizes":{"k":1e99},"diff-size":9223372036854775808}]',
    "one name twice": b'[{"id":"x","names":["n"]},{"id":"y","names":["m","n"]}]',
}


@pytest.mark.parametrize("kind", ["layers", "images"])
@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_never_an_empty_store(written, kind, data):
    root = written.open()
    written.put(kind, data)
    for _ in range(2):
        with pytest.raises(CorruptStore) as caught:
            getattr(root, kind)()
        assert caught.value.path == str(written.file(kind))
        assert str(caught.value).isprintable()
    written.put(kind, [{"id": "mended"}])
    assert [item.id for item in getattr(root, kind)()] == ["mended"]


ONLY_OF_LAYERS = [
    {"uidset": [-1]}, {"gidset": [1 << 32]}, {"compression": "gzip"}, {"uidmap": [{"container_id": 0}]},
    {"uidmap": [[0, 0, 1]]}, {"parent": 3},
]  # fmt: skip


@pytest.mark.parametrize("fields", ONLY_OF_LAYERS, ids=str)
def test_damaged_layers(written, fields):
    written.put("layers", [{"id": "x", **fields}])
    with pytest.raises(CorruptStore, match=next(iter(fields))):
        written.open().layers()


def test_a_fifo_in_the_place_of_a_file_is_damage(written):
    """Whoever opened it would wait for ever."""
    os.mkfifo(written.file("images"))
    with pytest.raises(CorruptStore, match="not a file"):
        written.open().images()


def test_layers_that_are_being_made_or_deleted_are_left_out(written):
    incomplete = [{"id": "x", "names": ["n"], "flags": {"incomplete": True}}]
    written.put("layers", [*incomplete, {"id": "y", "names": ["n"], "flags": {"incomplete": False}}])
    assert [layer.id for layer in written.open().layers()] == ["y"]


def test_volatile_layers_come_behind_and_the_first_file_is_believed(written):
    written.put("layers", [{"id": "a"}, {"id": "b", "metadata": "first"}])
    root = written.open()
    assert len(root.layers()) == 2
    written.put("layers", [{"id": "b", "metadata": "second"}, {"id": "c"}], "volatile-layers.json")
    assert [(layer.id, layer.metadata) for layer in root.layers()] == [("a", ""), ("b", "first"), ("c", "")]


def test_what_podman_writes_meanwhile_is_seen(written):
    root = written.open()
    for count in range(4):
        assert (len(root.layers()), len(root.images())) == (count, count)
        assert root.images() == root.images()
        written.layer(f"l{count}", **{"diff-digest": ONE, "diff-size": 10})
        written.image(f"i{count}", f"l{count}")
        assert root.image(f"i{count}").size == 10
    assert root.layer("l2") is root.layer("l2"), "records are read once"
    written.layers[2]["diff-size"] = 20
    written.put("layers", written.layers)
    assert root.image("i2").size == 20
    written.put("images", [])
    assert (root.images(), root.image("i2")) == ([], None)


def test_the_size_of_an_image_counts_each_layer_and_blob_once_and_none_that_is_gone(written):
    known = {"diff-digest": ONE, "diff-size": 1000}
    written.layer("base", **known)
    written.layer("middle", "base")
    written.layer("top", "middle", **known)
    written.layer("loose", "gone", **known)
    for layer in ("top", "loose", "gone", ""):
        written.image(f"on-{layer}", layer, {"manifest": b"12", "x": b"3"})
    assert [image.size for image in written.open().images()] == [2003, 1003, 3, 3]


# -- which store --------------------------------------------------------------------------------------


def test_the_driver_is_overlay_unless_only_vfs_is_there_or_asked_for(tmp_path):
    Written(tmp_path, "vfs").layer("v")
    assert (GraphRoot(tmp_path).driver_name, GraphRoot(tmp_path).layers()[0].id) == ("vfs", "v")
    Written(tmp_path, "overlay").layer("o")
    assert (GraphRoot(tmp_path).driver_name, GraphRoot(tmp_path).layers()[0].id) == ("overlay", "o")
    assert GraphRoot(tmp_path, "vfs").layers()[0].id == "v"
    status = dict(GraphRoot(tmp_path, "vfs").status())
    assert (status["Root"], status["Driver Name"]) == (str(tmp_path), "vfs")


def test_what_is_no_graphroot_of_ours_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError):
            GraphRoot(path)
    (tmp_path / "btrfs-layers").mkdir()
    with pytest.raises(NotSupported, match="btrfs"):
        GraphRoot(tmp_path)
    (tmp_path / "overlay-images").mkdir()
    with pytest.raises(NotSupported, match="vfs"):
        GraphRoot(tmp_path, "vfs")
    assert GraphRoot(tmp_path).layers() == []
