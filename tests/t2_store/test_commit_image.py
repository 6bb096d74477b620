"""Committing a container makes an image that others can read: documents, layers and names fit together."""

import json
import os

import pytest
from support.fsck import problems
from support.images import oci, sha256
from support.layers import paths
from support.tars import Stream, member, tar

from fusestore.digest import chain_id
from fusestore.store.commit import InvalidChange, commit
from fusestore.store.storage import Store
from fusestore.transport import pipeline

A, B = tar(member("etc/motd", b"hello\n"), member("gone", b"x")), tar(member("b", b"bb"))
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


@pytest.fixture
def base(store, tmp_path):
    """An image of two layers."""
    (image,) = pipeline.load(store, str(oci(tmp_path / "oci", A, B)))
    return image


@pytest.fixture
def container(store, base):
    """A container of it in which a file was made and one deleted, without any mount."""
    made = store.create_container("c", ["box"], base.id)
    store.apply_diff(made.layer, Stream(tar(member("new", b"new"), member(".wh.gone"))))
    return made


def test_the_documents_of_a_commit_fit_its_layers(store, base, container):
    image = commit(store, container, ["localhost/x:1"], author="me", message="why", created=7)
    configuration, manifest = store.configuration(image), store.manifest(image)
    before, top = store.configuration(base), store.layer(image.top_layer)
    assert configuration["rootfs"]["diff_ids"] == [sha256(A), sha256(B), top.uncompressed_digest]
    assert top.id == chain_id(base.top_layer, top.uncompressed_digest)
    assert (configuration["created"], configuration["author"]) == ("1970-01-01T00:00:07Z", "me")
    line = {
        "created": "1970-01-01T00:00:07Z",
        "created_by": "fusestore commit",
        "comment": "why",
        "author": "me",
    }
    assert configuration["history"] == [*before.get("history", []), line]
    assert configuration["config"] == before["config"]
    assert image.id == sha256(store.image_big_data(image.id, f"sha256:{image.id}"))[7:]
    assert image.digest == sha256(store.image_big_data(image.id, "manifest"))
    below = store.manifest(base)["layers"]
    last = {"mediaType": OCI_LAYER, "digest": top.uncompressed_digest, "size": top.uncompressed_size}
    assert manifest["layers"] == [*below, last]
    assert (image.names, image.created) == (("localhost/x:1",), 7)
    with store.union(image) as union:
        assert paths(union) == [b"b", b"etc", b"etc/motd", b"new"]


def test_the_container_stays_as_it_is(store, container):
    before = store.changes("", container.layer)
    commit(store, container)
    assert store.changes("", container.layer) == before
    assert store.container("box") == container


def test_the_exact_tar_of_the_changes_comes_back(store, container):
    image = commit(store, container)
    with store.diff("", container.layer, "") as changes, store.tar_stream(image.top_layer) as exact:
        assert exact.read() == changes.read()


def test_the_same_commit_is_the_same_image(store, container):
    assert commit(store, container, created=7) == commit(store, container, created=7)
    assert len(store.images()) == 2


def test_the_time_is_the_environments(store, container, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "9")
    assert commit(store, container).created == 9


def test_changes_to_the_configuration(store, base, container):
    image = commit(store, container, changes=['CMD ["/x"]', "ENV A=1"])
    run = store.configuration(image)["config"]
    assert run == store.configuration(base)["config"] | {"Cmd": ["/x"], "Env": ["A=1"]}


def test_squashed_there_is_one_layer_on_nothing(store, container):
    image = commit(store, container, squash=True)
    (layer,) = store.chain(image)
    assert layer.parent == ""
    assert store.configuration(image)["rootfs"]["diff_ids"] == [layer.uncompressed_digest]
    assert len(store.configuration(image)["history"]) == 1
    with store.union(image) as union:
        assert paths(union) == [b"b", b"etc", b"etc/motd", b"new"]


def test_a_container_of_nothing(store):
    made = store.create_container(names=["box"])
    store.apply_diff(made.layer, Stream(B))
    image = commit(store, made)
    assert store.configuration(image)["os"] == "linux"
    with store.union(image) as union:
        assert paths(union) == [b"b"]


def test_an_image_made_by_hand_has_no_documents_to_go_on_from(store):
    """Its layers have no chain IDs, so neither has what is put on them."""
    store.put_layer("base", diff=Stream(A))
    store.create_image("img", layer="base")
    made = store.create_container(image="img")
    store.apply_diff(made.layer, Stream(B))
    image = commit(store, made)
    top = store.layer(image.top_layer)
    assert top.parent == "base"
    diff_ids = [sha256(A), top.uncompressed_digest]
    assert store.configuration(image)["rootfs"]["diff_ids"] == diff_ids
    assert [layer["digest"] for layer in store.manifest(image)["layers"]] == diff_ids


@pytest.mark.parametrize("by_hand", [False, True])
def test_what_cannot_be_committed_leaves_nothing(store, store_root, base, by_hand, monkeypatch):
    if by_hand:
        store.put_layer("base", diff=Stream(A))
        store.create_image("img", layer="base")
    made = store.create_container(image="img" if by_hand else base.id)
    before = os.listdir(store_root / "fuse"), len(store.layers()), len(store.images())
    with pytest.raises(InvalidChange):
        commit(store, made, changes=["NOPE"])
    with pytest.raises(ValueError, match="UTF-8"):
        commit(store, made, ["localhost/\udcff:1"])
    assert sorted(before[0]) == sorted(os.listdir(store_root / "fuse"))
    assert before[1:] == (len(store.layers()), len(store.images()))
    assert problems(store_root) == []


def test_on_an_image_of_an_additional_store(store_root, runroot, tmp_path, monkeypatch):
    """Its layers are described as there; what is new is ours, and stays when the container goes."""
    with Store(str(tmp_path / "theirs"), str(runroot)) as theirs:
        (image,) = pipeline.load(theirs, str(oci(tmp_path / "oci", A, B)))
    monkeypatch.setenv("FUSESTORE_ADDITIONAL_STORES", str(tmp_path / "theirs"))
    with Store(str(store_root), str(runroot)) as store:
        made = store.create_container(image=image.id)
        store.apply_diff(made.layer, Stream(tar(member("new", b"new"))))
        ours = commit(store, made, ["localhost/ours:1"])
        store.delete_container(made.id)
        assert store.configuration(ours)["rootfs"]["diff_ids"][:2] == [sha256(A), sha256(B)]
        assert len(json.loads(store.image_big_data("ours:1", "manifest"))["layers"]) == 3
        with store.union(ours) as union:
            assert paths(union) == [b"b", b"etc", b"etc/motd", b"gone", b"new"]
        assert len(store.delete_image(ours.id)) == 1
        assert store.layer_items.all() == []
    assert problems(store_root) == []
