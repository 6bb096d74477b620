"""Images in the store: ids, names that move, how a word finds one, what goes when one is deleted."""

import json
import os
import subprocess
import sys

import pytest
from support.fsck import problems
from support.images import configuration, dumped, sha256
from support.layers import paths
from support.tars import Stream, member, tar

from fusestore.digest import chain_id
from fusestore.errors import (
    AmbiguousName,
    CorruptStore,
    ImageNotFound,
    LayerInUse,
    LayerNotFound,
    NotSupported,
)
from fusestore.store.storage import NewImage, Store

A, B, C = (tar(member(name, name * 10)) for name in (b"a", b"b", b"c"))
AB = chain_id(sha256(A), sha256(B))


def add(store, names, layer, settings, manifest=b"{}"):
    (image,) = store.create_images([NewImage(names, layer, settings, manifest)])
    return image


def make(store, *archives, names=("localhost/x:latest",), salt=""):
    """An image of layers; `salt` makes it another image with the same layers."""
    handles, parent = [], None
    for archive in archives:
        handles.append(store.layer_store.register(Stream(archive), parent))
        parent = handles[-1].chain_id
    settings = dumped(configuration(list(archives)) | {"author": salt})
    image = add(store, names, parent, settings, b'{"manifest of": "' + salt.encode() + b'"}')
    for handle in handles:
        store.layer_store.release(handle)
    return image


def with_id(store, start):
    """An image whose id begins so."""
    for i in range(100_000):
        if sha256(dumped(configuration([A]) | {"author": str(i)}))[7:].startswith(start):
            return make(store, A, names=(), salt=str(i))
    raise AssertionError(start)


def test_an_image(store):
    image = make(store, A, B, names=("localhost/x:1", "docker.io/library/y:2"))
    assert image.id == sha256(dumped(configuration([A, B]) | {"author": ""}))[7:]
    assert image.names == ("localhost/x:1", "docker.io/library/y:2")
    assert image.digest == sha256(b'{"manifest of": ""}')
    assert (image.size, image.created) == (20, 1714979289)
    assert [layer.uncompressed_digest for layer in store.chain(image)] == [sha256(B), sha256(A)]
    assert store.images() == [image]
    assert store.manifest(image) == {"manifest of": ""}
    assert store.configuration(image)["config"] == {"Cmd": ["/bin/sh"]}
    with store.union(image) as union:
        assert paths(union) == [b"a", b"b"]


def test_the_same_image_twice_is_one_image_with_all_names(store):
    make(store, A, names=("localhost/x:1",))
    image = make(store, A, names=("localhost/x:2",))
    assert image.names == ("localhost/x:2", "localhost/x:1")
    assert len(store.images()) == len(store.layer_store.map()) == 1


def test_names_move(store):
    first = make(store, A, names=("localhost/x:1", "localhost/x:2"))
    second = make(store, B, names=("localhost/x:1",))
    assert store.image("localhost/x:1") == second
    assert store.image(first.id).names == ("localhost/x:2",)
    store.untag(["localhost/x:2", "localhost/never:1"])
    assert store.image(first.id).names == ()
    assert store.image("x:1") == second


def test_newest_images_first(store):
    ages = {}
    for day in (3, 9, 5):
        layer = store.layer_store.register(Stream(A))
        settings = dumped(configuration([A]) | {"created": f"2024-01-0{day}T00:00:00Z"})
        ages[day] = add(store, [], layer.chain_id, settings).id
        store.layer_store.release(layer)
    assert [image.id for image in store.images()] == [ages[9], ages[5], ages[3]]


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ("2024-05-06T07:08:09Z", 1714979289),
        ("2024-05-06T07:08:09.123456789Z", 1714979289),
        ("2024-05-06T09:08:09+02:00", 1714979289),
        ("1970-01-01T00:00:00Z", 0),
        ("0001-01-01T00:00:00Z", -62135596800),
        ("yesterday", 0),
        ("", 0),
        (None, 0),
        (7, 0),
        (["x"], 0),
        ({"a": 1}, 0),
    ],
)
def test_creation_dates(store, created, seconds):
    layer = store.layer_store.register(Stream(A))
    settings = dumped(configuration([A]) | {"created": created})
    assert add(store, [], layer.chain_id, settings).created == seconds


# -- lookup --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("localhost/x:latest", "x"),
        ("localhost/x:latest", "x:latest"),
        ("localhost/x:latest", "localhost/x"),
        ("docker.io/library/x:latest", "x"),
        ("docker.io/library/x:latest", "docker.io/x"),
        ("docker.io/library/x:latest", "library/x"),
        ("docker.io/user/x:1", "user/x:1"),
        ("quay.io:443/a/b:1", "quay.io:443/a/b:1"),
        ("localhost/cafe:latest", "cafe"),
    ],
)
def test_lookup_by_name(store, name, word):
    image = make(store, A, names=(name,))
    assert store.image(word) == image


@pytest.mark.parametrize(
    "word", ["x:2", "y", "library/x", "quay.io/x", "X", "x y", "", "@", "x@sha256:" + "a" * 64, "/"]
)
def test_lookup_of_what_is_not_there(store, word):
    make(store, A, names=("localhost/x:latest",))
    with pytest.raises(ImageNotFound, match="image not known"):
        store.image(word)


def test_local_names_come_first(store):
    local = make(store, A, names=("localhost/x:latest",))
    make(store, B, names=("docker.io/library/x:latest",))
    assert store.image("x") == local


def test_lookup_by_id(store):
    image = make(store, A)
    for word in (image.id, image.id[:12], image.id[:1], f"sha256:{image.id}", f"sha256:{image.id[:5]}"):
        assert store.image(word) == image
    for word in (image.id[1:], image.id[:-1] + "x", image.id.upper(), "g" * 12, image.id + "0"):
        with pytest.raises(ImageNotFound):
            store.image(word)


def test_lookup_by_digest(store):
    image = make(store, A, names=("localhost/x:1",))
    assert store.image(f"x@{image.digest}") == image
    assert store.image(f"localhost/x:1@{image.digest}") == image
    with pytest.raises(ImageNotFound):
        store.image(f"y@{image.digest}")


def test_ambiguous_prefixes(store):
    first, second = with_id(store, "a1"), with_id(store, "a2")
    with pytest.raises(AmbiguousName, match="more than one"):
        store.image("a")
    assert store.image("a1") == first
    assert store.image("a2") == second
    assert store.image(first.id) == first


def test_a_name_wins_over_a_prefix_and_an_id_over_a_name(store):
    """CVE-2014-5278: an image may not pass for another by its name."""
    victim = with_id(store, "abc")
    other = make(store, B, names=("localhost/abc:latest", f"localhost/{victim.id}:latest"))
    assert store.image("abc") == other
    assert store.image(victim.id) == victim
    assert store.image(f"sha256:{victim.id}") == victim


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("debain", "docker.io/library/debian:12"),
        ("debian", "docker.io/library/debian:12"),
        ("debian:13", "docker.io/library/debian:12"),
        ("docker.io/library/debian:11", "docker.io/library/debian:12"),
    ],
)
def test_near_names_are_suggested(store, word, near):
    make(store, A, names=("docker.io/library/debian:12",))
    make(store, B, names=("quay.io/else/thing:1",))
    with pytest.raises(ImageNotFound) as caught:
        store.image(word)
    assert caught.value.near == (near,)
    assert near in str(caught.value)


def test_nothing_is_suggested_for_what_is_like_nothing(store):
    make(store, A, names=("docker.io/library/debian:12",))
    with pytest.raises(ImageNotFound, match="fusestore images"):
        store.image("zzzzzzzz")


# -- deletion ------------------------------------------------------------------------------------------------


def test_delete_image(store, store_root):
    image = make(store, A, B)
    assert store.delete_image(image.id) == [AB, sha256(A)]
    assert store.images() == []
    assert store.layer_store.map() == {}
    assert os.listdir(store_root / "big") == os.listdir(store_root / "tmp") == []
    with pytest.raises(ImageNotFound):
        store.image(image.id)


def test_layers_that_another_image_needs_stay(store):
    """c/storage's TestStoreDelete."""
    small, large, sibling = make(store, A, salt="s"), make(store, A, B), make(store, A, B, salt="t")
    assert store.delete_image(large.id) == []
    assert store.delete_image(sibling.id) == [AB]
    with store.union(small) as union:
        assert paths(union) == [b"a"]
    assert store.delete_image(small.id) == [sha256(A)]


def test_an_image_whose_layer_is_held_stays(store, store_root, runroot):
    image = make(store, A, B)
    with Store(str(store_root), str(runroot)) as other:
        handle = other.layer_store.get(image.top_layer)
        with pytest.raises(LayerInUse, match="another process"):
            store.delete_image(image.id)
        assert store.images() == [image]
        assert store.configuration(image)
        other.layer_store.release(handle)
    assert len(store.delete_image(image.id)) == 2


def test_a_lower_layer_that_is_held_stays_alone(store):
    image = make(store, A, B)
    base = store.layer_store.get(store.chain(image)[1].id)
    assert store.delete_image(image.id) == [AB]
    assert list(store.layer_store.map()) == [base.chain_id]
    assert [released.diff_id for released in store.layer_store.release(base)] == [sha256(A)]


def test_a_deleted_image_comes_back(store):
    for _ in range(2):
        image = make(store, A)
        assert store.image("x") == image
        store.delete_image(image.id)


def test_what_is_deleted_cannot_be_deleted_again(store):
    image = make(store, A)
    store.delete_image(image.id)
    with pytest.raises(ImageNotFound):
        store.delete_image(image.id)


def test_releasing_a_layer_of_an_image_keeps_it(store):
    image = make(store, A, B)
    assert store.layer_store.release(store.layer_store.get(image.top_layer)) == []
    with store.union(image) as union:
        assert paths(union) == [b"a", b"b"]


# -- what is wrong -------------------------------------------------------------------------------------------


def test_an_image_on_a_layer_that_is_not_there(store, store_root):
    with pytest.raises(LayerNotFound):
        add(store, ["localhost/x:1"], sha256(b"nothing"), dumped(configuration([A])))
    layer = store.layer_store.register(Stream(A))
    store.layer_store.release(layer)
    with pytest.raises(LayerNotFound):
        add(store, ["localhost/x:1"], layer.chain_id, dumped(configuration([A])))
    assert store.images() == []
    assert problems(store_root) == []


def test_an_image_without_layers(store):
    image = add(store, ["localhost/x:1"], None, dumped(configuration([])))
    assert (image.top_layer, image.size, store.chain(image)) == (None, 0, [])
    with pytest.raises(NotSupported, match="without layers"), store.union(image):
        pass
    assert store.delete_image(image.id) == []


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"{}"), lambda p: p.write_bytes(b"")]
)
def test_damaged_blobs_are_found(store, store_root, damage):
    image = make(store, A)
    path = store_root / "big" / image.id / "manifest"
    good = path.read_bytes()
    damage(path)
    with pytest.raises(CorruptStore) as caught:
        store.manifest(image)
    assert str(path) in str(caught.value)
    path.write_bytes(good)
    assert store.manifest(image) == json.loads(good)


def test_blobs_without_an_image_are_collected(store, store_root):
    (store_root / "big" / ("f" * 64)).mkdir()
    (store_root / "big" / ("f" * 64) / "manifest").write_bytes(b"{}")
    image = make(store, A)
    store.collect()
    assert os.listdir(store_root / "big") == [image.id]


def test_deleting_an_image_whose_layers_are_gone_from_disk(store, store_root):
    """A damaged store can still be cleaned."""
    image = make(store, A)
    cache_id = store.layer_store.map()[image.top_layer].cache_id
    (store_root / "fuse" / cache_id).rename(store_root / "elsewhere")
    assert len(store.delete_image(image.id)) == 1
    assert store.images() == []


@pytest.mark.parametrize("created", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "\ud800"])
def test_strange_dates_can_be_listed(store, store_root, runroot, created):
    """One image must not break the listing of all."""
    layer = store.layer_store.register(Stream(A))
    add(store, [], layer.chain_id, dumped(configuration([A]) | {"created": created}))
    command = [sys.executable, "-m", "fusestore", "--root", store_root, "--runroot", runroot, "images"]
    for options in ([], ["--format", "json"]):
        answer = subprocess.run([*command, *options], capture_output=True, text=True, timeout=30)
        assert (answer.returncode, answer.stderr) == (0, "")
