"""What is not what it claims to be is refused before anything is named, and nothing of it stays behind."""

import gzip
import hashlib
import json
import os
import sys
import threading

import pytest
from support.fsck import problems
from support.images import (
    INDEX,
    MANIFEST,
    blob,
    configuration,
    docker,
    dumped,
    image,
    layout,
    named,
    oci,
    packed,
    path_of,
    sha256,
)
from support.tars import base256, folder, header, member, padded, pax, symlink, tar

from fusestore.driver.api import Limits
from fusestore.errors import DigestMismatch, InvalidImage, InvalidInput, InvalidLayer, MaxDepthExceeded
from fusestore.store.storage import Store
from fusestore.transport.pipeline import load

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BASE = tar(folder("etc"), member("etc/name", b"base"))
TOP = tar(member("etc/name", b"top"))
OTHER = tar(member("other", b"not what you think"))


def refused(store, place, error=InvalidInput, **arguments):
    """The load fails with one line, and the store is as it was."""
    images, layers = store.images(), store.layer_store.map()
    with pytest.raises(error) as caught:
        load(store, str(place), **arguments)
    assert str(caught.value).isprintable()
    assert (store.images(), store.layer_store.map()) == (images, layers)
    assert problems(store.graph_root) == []
    return caught.value


def manifest_of(place):
    entry = json.loads((place / "index.json").read_bytes())["manifests"][0]
    return entry, json.loads(path_of(place, entry).read_bytes())


# -- digests and sizes ---------------------------------------------------------------------------------------


def change(data):
    return bytes([data[0] ^ 1]) + data[1:]


DAMAGES = {
    "changed": change,
    "longer": lambda data: data + b"\n",
    "shorter": lambda data: data[:-1],
    "empty": lambda _: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", ["manifest", "configuration", "first layer", "last layer"])
@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_blobs_that_are_not_what_their_digest_says(store, tmp_path, which, damage, kind):
    place = oci(tmp_path / "oci", BASE, TOP, compress=gzip.compress)
    entry, manifest = manifest_of(place)
    descriptors = {
        "manifest": entry,
        "configuration": manifest["config"],
        "first layer": manifest["layers"][0],
        "last layer": manifest["layers"][1],
    }
    path = path_of(place, descriptors[which])
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    if kind == "archive":
        (tmp_path / "a.tar").write_bytes(packed(place))
        place = tmp_path / "a.tar"
    refused(store, place, DigestMismatch)


@pytest.mark.parametrize("damage", DAMAGES)
def test_layers_that_are_there_already_are_verified_too(store, tmp_path, damage):
    place = oci(tmp_path / "oci", BASE, TOP, compress=gzip.compress)
    load(store, str(place), names=["localhost/kept:1"])
    path = path_of(place, manifest_of(place)[1]["layers"][1])
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    refused(store, place, DigestMismatch)


@pytest.mark.parametrize("which", ["manifest", "configuration", "first layer", "last layer"])
def test_missing_blobs(store, tmp_path, which):
    place = oci(tmp_path / "oci", BASE, TOP)
    entry, manifest = manifest_of(place)
    layers = manifest["layers"]
    order = {
        "manifest": entry,
        "configuration": manifest["config"],
        "first layer": layers[0],
        "last layer": layers[1],
    }
    path_of(place, order[which]).unlink()
    refused(store, place, InvalidImage)


def edit_layer(**values):
    return lambda manifest: manifest["layers"][1].update(values)


def edit_config(**values):
    return lambda manifest: manifest["config"].update(values)


EDITS = {
    "layer size too large": edit_layer(size=len(TOP) + 1),
    "layer size too small": edit_layer(size=len(TOP) - 1),
    "layer size 0": edit_layer(size=0),
    "negative layer size": edit_layer(size=-1),
    "layer size in words": edit_layer(size="many"),
    "layer size of a fraction": edit_layer(size=10240.0),
    "layer digest of another blob": edit_layer(digest=sha256(BASE)),
    "layer digest leads out": edit_layer(digest="sha256:../../../../etc/passwd"),
    "layer digest of another kind": edit_layer(digest="sha512:" + "a" * 128),
    "layer digest in capitals": edit_layer(digest=sha256(TOP).upper()),
    "layer is no object": lambda manifest: manifest["layers"].__setitem__(1, "x"),
    "layers is no list": lambda manifest: manifest.update(layers={}),
    "no layers": lambda manifest: manifest.pop("layers"),
    "no configuration": lambda manifest: manifest.pop("config"),
    "one layer less than diff IDs": lambda manifest: manifest["layers"].pop(),
    "one layer more than diff IDs": lambda manifest: manifest["layers"].append(manifest["layers"][0]),
    "layers swapped": lambda manifest: manifest["layers"].reverse(),
    "configuration size": edit_config(size=1),
    "configuration digest": edit_config(digest=sha256(b"x")),
    "configuration of 5 MB": edit_config(size=5 << 20),
    # manifest confusion, CVE-2021-41190
    "manifests beside layers": lambda manifest: manifest.update(manifests=[]),
    "media type of an index": lambda manifest: manifest.update(mediaType=INDEX),
    "schema version 1": lambda manifest: manifest.update(schemaVersion=1),
    "no schema version": lambda manifest: manifest.pop("schemaVersion"),
}


@pytest.mark.parametrize("name", EDITS)
def test_manifests(store, tmp_path, name):
    refused(store, oci(tmp_path / "oci", BASE, TOP, manifest=EDITS[name]))


def diff_ids(*digests):
    return lambda config: config["rootfs"].update(diff_ids=list(digests))


CONFIGURATIONS = {
    "wrong diff ID": diff_ids(sha256(BASE), sha256(OTHER)),
    "wrong base diff ID": diff_ids(sha256(OTHER), sha256(TOP)),
    "swapped diff IDs": diff_ids(sha256(TOP), sha256(BASE)),
    "no diff IDs": diff_ids(),
    "one diff ID": diff_ids(sha256(BASE)),
    "diff ID that leads out": diff_ids(sha256(BASE), "sha256:../x"),
    "diff ID of the compressed blob": diff_ids(
        sha256(gzip.compress(BASE, mtime=0)), sha256(gzip.compress(TOP, mtime=0))
    ),
    "diff IDs of null": lambda config: config["rootfs"].update(diff_ids=None),
    "no rootfs": lambda config: config.pop("rootfs"),
    "rootfs of null": lambda config: config.update(rootfs=None),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configurations(store, tmp_path, name):
    compress = lambda data: gzip.compress(data, mtime=0)  # noqa: E731
    refused(store, oci(tmp_path / "oci", BASE, TOP, compress=compress, config=CONFIGURATIONS[name]))


@pytest.mark.parametrize("transport", ["oci", "docker"])
def test_a_wrong_diff_id_of_a_layer_that_is_there_already(store, tmp_path, transport):
    """The claimed diff ID is one we have: the blob must still be that layer (containers/storage#1627)."""
    load(store, str(oci(tmp_path / "known", BASE, TOP, name="known:1")))
    lie = diff_ids(sha256(BASE), sha256(TOP))
    if transport == "oci":
        refused(store, oci(tmp_path / "oci", BASE, OTHER, config=lie), DigestMismatch)
        refused(store, oci(tmp_path / "zip", BASE, OTHER, config=lie, compress=gzip.compress), DigestMismatch)
        return
    (tmp_path / "a.tar").write_bytes(tar(*docker(BASE, OTHER, config=lie)))
    refused(store, tmp_path / "a.tar", DigestMismatch)


def test_a_blob_cut_where_the_tar_is_complete(store, tmp_path):
    """The unpacker needs no more, the digest does."""
    archive = TOP + bytes(20000)
    place = oci(tmp_path / "oci", archive)
    path = path_of(place, manifest_of(place)[1]["layers"][0])
    path.write_bytes(TOP + b"\1" + bytes(19999))
    refused(store, place, DigestMismatch)


# -- layouts -------------------------------------------------------------------------------------------------


def indexed(place, **values):
    return layout(place, [named(image(place, [BASE]), "x:1")], index=lambda index: index.update(values))


@pytest.mark.parametrize(
    "values",
    [
        {"manifests": []},
        {"manifests": None},
        {"manifests": [None]},
        {"manifests": [{}]},
        {"schemaVersion": 1},
        {"mediaType": MANIFEST},
        {"layers": []},
        {"config": {}},
    ],
)
def test_indexes(store, tmp_path, values):
    refused(store, indexed(tmp_path / "oci", **values), InvalidImage)


def test_an_index_that_is_a_manifest(store, tmp_path):
    place = oci(tmp_path / "oci", BASE)
    (place / "index.json").write_bytes(dumped(manifest_of(place)[1]))
    refused(store, place, InvalidImage)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"a":1,"a":2}', b"\xff", b" " * (5 << 20)], ids=range(7)
)
@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_files_of_a_layout(store, tmp_path, name, data):
    place = oci(tmp_path / "oci", BASE)
    (place / name).write_bytes(data)
    refused(store, place, InvalidImage)


@pytest.mark.parametrize("marker", ['{"imageLayoutVersion": "2.0.0"}', "{}", '{"imageLayoutVersion": null}'])
def test_layouts_of_another_version(store, tmp_path, marker):
    place = oci(tmp_path / "oci", BASE)
    (place / "oci-layout").write_text(marker)
    refused(store, place, InvalidImage)


def test_indexes_nested_for_ever(store, tmp_path):
    place = tmp_path / "oci"
    entry = image(place, [BASE])
    for _ in range(20):
        entry = blob(place, dumped({"schemaVersion": 2, "manifests": [entry]}), INDEX)
    refused(store, layout(place, [entry]), InvalidImage)


@pytest.mark.parametrize("which", [0, 1], ids=["configuration", "layer"])
@pytest.mark.timeout(20)
def test_fifos_and_symlinks_for_blobs(store, tmp_path, which):
    """A fifo makes others wait for ever, a symlink leads to a file of the host's."""
    for i, make in enumerate(
        (os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), lambda path: path.mkdir())
    ):
        place = oci(tmp_path / f"oci{i}", BASE)
        manifest = manifest_of(place)[1]
        path = path_of(place, [manifest["config"], manifest["layers"][0]][which])
        path.unlink()
        make(path)
        refused(store, place, InvalidImage)


@pytest.mark.timeout(20)
def test_a_fifo_for_an_archive(store, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for transport in ("", "oci-archive:", "docker-archive:"):
        refused(store, f"{transport}{tmp_path / 'fifo'}", InvalidImage)


@pytest.mark.parametrize("transport", ["", "oci:", "oci-archive:", "docker-archive:"])
def test_what_is_not_there(store, tmp_path, transport):
    error = refused(store, f"{transport}{tmp_path / 'nothing'}", FileNotFoundError)
    assert error.filename == str(tmp_path / "nothing")


def test_the_wrong_kind(store, tmp_path):
    place = oci(tmp_path / "oci", BASE)
    (tmp_path / "oci.tar").write_bytes(packed(place))
    (tmp_path / "docker.tar").write_bytes(tar(*docker(BASE)))
    (tmp_path / "rootfs.tar").write_bytes(BASE)
    (tmp_path / "empty").mkdir()
    for wrong in (
        f"docker-archive:{tmp_path}/oci.tar",
        f"oci-archive:{tmp_path}/docker.tar",
        f"docker-archive:{place}",
        f"oci-archive:{place}",
        f"oci:{tmp_path}/oci.tar",
        f"{tmp_path}/rootfs.tar",
        f"{tmp_path}/empty",
        f"oci:{tmp_path}/empty",
        "/dev/null",
    ):
        refused(store, wrong, InvalidImage)


# -- archives ------------------------------------------------------------------------------------------------


def test_archives_cut_anywhere(store, tmp_path):
    """Whatever is missing: never an image, never a trace."""
    for whole in (tar(*docker(BASE, TOP, tags=["a:1"])), packed(oci(tmp_path / "oci", BASE, TOP))):
        needed = len(whole) - 1024 - 511  # the end mark, and at most the last file's padding
        for length in range(0, needed, 1531):
            (tmp_path / "a.tar").write_bytes(whole[:length])
            refused(store, tmp_path / "a.tar")


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_compressed_archives_cut_anywhere(store, tmp_path, compress):
    whole = compress(tar(*docker(BASE, TOP, tags=["a:1"])))
    for length in [*range(0, len(whole) - 1, 97), len(whole) - 1]:
        (tmp_path / "a.tar").write_bytes(whole[:length])
        refused(store, tmp_path / "a.tar")


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress], ids=["gzip", "zstd"])
def test_compressed_layers_cut_with_a_digest_to_fit(store, tmp_path, compress):
    """Whoever made the image cut them: the digest is right and the stream is not whole."""
    for length in (10, 40, -9, -1):
        place = oci(tmp_path / f"oci{length}", BASE, TOP, compress=lambda data, n=length: compress(data)[:n])
        refused(store, place, InvalidLayer)


@pytest.mark.timeout(20)
def test_a_pipe_that_breaks_off(store):
    whole = gzip.compress(tar(*docker(BASE, TOP, tags=["a:1"])))
    reader, writer = os.pipe()
    thread = threading.Thread(target=lambda: (os.write(writer, whole[: len(whole) // 2]), os.close(writer)))
    thread.start()
    with open(reader, "rb", buffering=0) as stdin:
        refused(store, "-", stdin=stdin)
    thread.join()


def entries(edit):
    """A docker archive whose manifest.json is edited."""
    members = docker(BASE, TOP, tags=["a:1"])
    value = json.loads(members[-1][512:].rstrip(b"\0"))
    value = edit(value) or value
    return tar(*members[:-1], member("manifest.json", value if isinstance(value, bytes) else dumped(value)))


DOCKER = {
    "empty list": lambda value: b"[]",
    "no list": lambda value: {"x": 1},
    "null": lambda value: b"null",
    "cut": lambda value: b"[{",
    "not json": lambda value: b"nonsense",
    "deep": lambda value: b"[" * 100_000,
    "too large": lambda value: b" " * (5 << 20) + b"[]",
    "of strings": lambda value: ["x"],
    "no Config": lambda value: value[0].pop("Config") and None,
    "Config of null": lambda value: value[0].update(Config=None),
    "Config not there": lambda value: value[0].update(Config="nothing.json"),
    "Config leads out": lambda value: value[0].update(Config="../../../../etc/passwd"),
    "Config absolute": lambda value: value[0].update(Config="/etc/passwd"),
    "Layers of null": lambda value: value[0].update(Layers=None),
    "Layers of numbers": lambda value: value[0].update(Layers=[1, 2]),
    "Layers not there": lambda value: value[0].update(Layers=["x/layer.tar", "y/layer.tar"]),
    "Layers lead out": lambda value: value[0].update(Layers=["../x", "/etc/passwd"]),
    "one layer": lambda value: value[0]["Layers"].pop() and None,
    "layers swapped": lambda value: value[0]["Layers"].reverse(),
    "RepoTags of a number": lambda value: value[0].update(RepoTags=7),
    "RepoTags of letters": lambda value: value[0].update(RepoTags="ab"),
}


@pytest.mark.parametrize("name", DOCKER)
def test_docker_manifests(store, tmp_path, name):
    (tmp_path / "a.tar").write_bytes(entries(DOCKER[name]))
    refused(store, tmp_path / "a.tar")


def test_a_docker_configuration_that_is_not_what_its_name_says(store, tmp_path):
    members = docker(BASE, TOP)
    name = members[2][:100].rstrip(b"\0")
    other = dumped(configuration([BASE, TOP]) | {"author": "somebody else"})
    (tmp_path / "a.tar").write_bytes(tar(*members[:2], member(name, other), members[3]))
    refused(store, tmp_path / "a.tar", DigestMismatch)


def test_a_docker_archive_from_before_1_10(store, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar(member("repositories", b"{}"), member("abc/layer.tar", BASE)))
    assert "1.10" in str(refused(store, tmp_path / "a.tar", InvalidImage))


def test_a_good_image_before_a_bad_one_is_given_back(store, tmp_path):
    """All of an archive or nothing of it."""
    good, bad = (
        docker(BASE, TOP, tags=["good:1"]),
        docker(OTHER, tags=["bad:1"], config=diff_ids(sha256(b"lie"))),
    )
    listed = [json.loads(members.pop()[512:].rstrip(b"\0"))[0] for members in (good, bad)]
    (tmp_path / "a.tar").write_bytes(tar(*good, *bad, member("manifest.json", dumped(listed))))
    refused(store, tmp_path / "a.tar", DigestMismatch)


@pytest.mark.parametrize("target", ["manifest.json", "a/../manifest.json", "/etc/passwd", "../x", "loop"])
def test_links_in_archives_lead_nowhere_else(store, tmp_path, target):
    members = docker(BASE, TOP)
    layer = f"{sha256(BASE)[7:]}/layer.tar"
    loop = [symlink("loop", "loop2"), symlink("loop2", "loop")]
    (tmp_path / "a.tar").write_bytes(tar(*loop, symlink(layer, target), *members[1:]))
    refused(store, tmp_path / "a.tar")


@pytest.mark.parametrize(
    "bad",
    [
        header(b"x", size=base256(-512, 12)),
        header(b"x", size=base256(1 << 60, 12)),
        header(b"x", size=1 << 30),
        header(b"x", kind=b"L", size=1 << 30),
        pax([("size", str(1 << 40))]) + header(b"x"),
        member("x", kind=b"Z"),
        b"\1" * 512,
        bytes(512) + member("x"),
    ],
)
def test_malformed_archives(store, tmp_path, bad):
    members = docker(BASE, TOP)
    (tmp_path / "a.tar").write_bytes(bad + tar(*members))
    refused(store, tmp_path / "a.tar", InvalidImage)


def test_a_sparse_member_is_no_blob(store, tmp_path):
    """Its content is not what lies in the archive."""
    members = docker(BASE, TOP)
    layer = f"{sha256(BASE)[7:]}/layer.tar"
    described = pax([("GNU.sparse.size", str(len(BASE))), ("GNU.sparse.map", f"0,{len(BASE)}")])
    sparse = described + header(b"s", size=len(BASE)) + padded(BASE)
    members[0] = pax([("GNU.sparse.name", layer)]) + sparse
    (tmp_path / "a.tar").write_bytes(tar(*members))
    refused(store, tmp_path / "a.tar")


# -- layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        b"no tar at all" * 100,
        tar(member("../../../x")),
        tar(symlink("a", "a"), member("a/x")),
        member("x", b"y" * 5000)[:3000],
        tar(member("x", kind=b"Z")),
    ],
)
def test_a_bad_layer_on_a_good_one(store, tmp_path, layer):
    refused(store, oci(tmp_path / "oci", BASE, layer), InvalidLayer)
    refused(store, oci(tmp_path / "zip", BASE, layer, compress=gzip.compress), InvalidLayer)
    (tmp_path / "a.tar").write_bytes(tar(*docker(BASE, layer)))
    refused(store, tmp_path / "a.tar", InvalidLayer)


def test_126_layers(store, tmp_path):
    layers = [tar(member(f"f{i}")) for i in range(126)]
    refused(store, oci(tmp_path / "oci", *layers), MaxDepthExceeded)


def test_a_compression_bomb(store_root, runroot, tmp_path):
    """100 MB of zeros are 100 kB here; the limit counts what comes out."""
    archive = tar(member("zeros", bytes(100 << 20)))
    place = oci(tmp_path / "oci", BASE, archive, compress=gzip.compress)
    with Store(str(store_root), str(runroot), limits=Limits(size=10 << 20)) as store:
        refused(store, place, InvalidLayer)


def test_every_failure_leaves_a_store_that_works(store, tmp_path):
    refused(store, oci(tmp_path / "bad", BASE, OTHER, config=diff_ids(sha256(BASE), sha256(TOP))))
    (found,) = load(store, str(oci(tmp_path / "good", BASE, TOP)))
    assert hashlib.sha256(dumped(configuration([BASE, TOP]))).hexdigest() == found.id
