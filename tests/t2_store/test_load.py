"""Loading images from every place they come from, and that a second look finds what was put in."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
import threading

import pytest
from support import images
from support.images import docker, dumped, image, layout, named, oci, packed, path_of, sha256
from support.layers import data, find, paths
from support.tars import folder, hard_link, long, member, symlink, tar

from fusestore.errors import InvalidImage, InvalidReference
from fusestore.transport.pipeline import load

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BASE = tar(folder("etc"), member("etc/name", b"base"), member("old", b"1"))
TOP = tar(member("etc/name", b"top"), member(".wh.old"), member("new", b"2"))
SHOWN = [b"etc", b"etc/name", b"new"]
COMPRESSIONS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
EVERY_COMPRESSION = pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)


def diff_ids(store, image):
    return [layer.uncompressed_digest for layer in store.chain(image)]


def check(store, loaded, *names):
    """One image was loaded, it is in the store under `names`, and its files are those of BASE and TOP."""
    (found,) = loaded
    assert sorted(found.names) == sorted(names)
    assert store.image(found.id) == found
    assert diff_ids(store, found) == [sha256(TOP), sha256(BASE)]
    with store.union(found) as union:
        assert paths(union) == SHOWN
        assert data(union, find(union, b"etc/name")) == b"top"
    return found


# -- oci: and oci-archive: -----------------------------------------------------------------------------------


@EVERY_COMPRESSION
def test_oci_directory(store, tmp_path, compress):
    place = oci(tmp_path / "oci", BASE, TOP, compress=compress)
    found = check(store, load(store, f"oci:{place}"), "docker.io/library/image:1")
    manifest = json.loads((place / "index.json").read_bytes())["manifests"][0]
    assert found.digest == manifest["digest"]
    assert dumped(store.manifest(found)) == path_of(place, manifest).read_bytes()


def test_oci_directory_by_content(store, tmp_path):
    check(store, load(store, str(oci(tmp_path / "oci", BASE, TOP))), "docker.io/library/image:1")


@EVERY_COMPRESSION
@pytest.mark.parametrize("transport", ["oci-archive:", ""])
def test_oci_archive(store, tmp_path, compress, transport):
    archive = tmp_path / "image.tar"
    archive.write_bytes(compress(packed(oci(tmp_path / "oci", BASE, TOP, compress=gzip.compress))))
    check(store, load(store, f"{transport}{archive}"), "docker.io/library/image:1")


@pytest.mark.parametrize("prefix", ["./", "/", ""])
def test_names_in_archives_are_normalised(store, tmp_path, prefix):
    place = oci(tmp_path / "oci", BASE, TOP)
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    members = [member(f"{prefix}{path.relative_to(place)}", path.read_bytes()) for path in files]
    (tmp_path / "a.tar").write_bytes(tar(folder(f"{prefix}blobs"), *members))
    check(store, load(store, str(tmp_path / "a.tar")), "docker.io/library/image:1")


@pytest.mark.parametrize(
    ("annotation", "name"),
    [
        ("debian:12", "docker.io/library/debian:12"),
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("localhost/x", "localhost/x:latest"),
        ("12", "localhost/12:latest"),
        ("latest", "localhost/latest:latest"),
        ("Not A Name", "localhost/place:latest"),
        (None, "localhost/place:latest"),
    ],
)
def test_names_of_oci_images(store, tmp_path, annotation, name):
    check(store, load(store, str(oci(tmp_path / "place", BASE, TOP, name=annotation))), name)


def test_the_full_name_by_containerd_counts_first(store, tmp_path):
    def index(value):
        value["manifests"][0]["annotations"]["io.containerd.image.name"] = "docker.io/library/full:7"

    check(
        store,
        load(store, str(oci(tmp_path / "oci", BASE, TOP, name="7", index=index))),
        "docker.io/library/full:7",
    )


def test_one_of_several_images(store, tmp_path):
    place = tmp_path / "oci"
    entries = [named(image(place, [BASE, TOP]), "one"), named(image(place, [BASE]), "two")]
    layout(place, entries)
    with pytest.raises(InvalidImage, match="one, two"):
        load(store, f"oci:{place}")
    with pytest.raises(InvalidImage, match="it has one, two"):
        load(store, f"oci:{place}:three")
    check(store, load(store, f"oci:{place}:one"), "localhost/one:latest")
    assert len(load(store, f"oci:{place}:two")) == 1
    assert len(store.images()) == 2


def test_a_reference_with_a_colon_and_a_path_with_one(store, tmp_path):
    place = oci(tmp_path / "a:b", BASE, TOP, name="x:1")
    check(store, load(store, f"oci:{place}:x:1"), "docker.io/library/x:1")


@pytest.mark.parametrize("nested", [1, 2, 3])
def test_an_index_chooses_this_platform(store, tmp_path, nested):
    place = tmp_path / "oci"
    mine = image(place, [BASE, TOP]) | {"platform": {"os": "linux", "architecture": images.ARCHITECTURE}}
    other = image(place, [BASE]) | {"platform": {"os": "linux", "architecture": "s390x"}}
    windows = image(place, [BASE], config=lambda c: c.update(os="windows"))
    windows |= {"platform": {"os": "windows", "architecture": images.ARCHITECTURE}}
    entries = [other, windows, mine]
    for _ in range(nested):
        listed = {"schemaVersion": 2, "mediaType": images.INDEX, "manifests": entries}
        entries = [images.blob(place, dumped(listed), images.INDEX)]
    check(store, load(store, str(layout(place, [named(entries[0], "multi:1")]))), "docker.io/library/multi:1")


def test_an_index_without_this_platform(store, tmp_path):
    place = tmp_path / "oci"
    entry = image(place, [BASE]) | {"platform": {"os": "plan9", "architecture": "vax"}}
    listed = images.blob(place, dumped({"schemaVersion": 2, "manifests": [entry]}), images.INDEX)
    with pytest.raises(InvalidImage, match="plan9/vax"):
        load(store, str(layout(place, [named(listed, "x")])))


def test_an_image_without_layers(store, tmp_path):
    (found,) = load(store, str(oci(tmp_path / "oci")))
    assert (found.top_layer, found.size) == (None, 0)


def test_the_same_layer_twice_in_one_image(store, tmp_path):
    (found,) = load(store, str(oci(tmp_path / "oci", BASE, TOP, TOP)))
    assert diff_ids(store, found) == [sha256(TOP), sha256(TOP), sha256(BASE)]


# -- docker-archive: -----------------------------------------------------------------------------------------


@EVERY_COMPRESSION
@pytest.mark.parametrize("transport", ["docker-archive:", ""])
def test_docker_archive(store, tmp_path, compress, transport):
    archive = tmp_path / "image.tar"
    archive.write_bytes(compress(tar(*docker(BASE, TOP, tags=["debian:12"]))))
    found = check(store, load(store, f"{transport}{archive}"), "docker.io/library/debian:12")
    layers = store.manifest(found)["layers"]
    assert [layer["digest"] for layer in layers] == [sha256(BASE), sha256(TOP)]


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        (None, ()),
        ([], ()),
        (["a:1", "quay.io/b:2"], ("docker.io/library/a:1", "quay.io/b:2")),
        (["Bad Name", "a:1"], ("docker.io/library/a:1",)),
    ],
)
def test_names_of_docker_images(store, tmp_path, tags, names):
    (tmp_path / "a.tar").write_bytes(tar(*docker(BASE, TOP, tags=tags)))
    check(store, load(store, str(tmp_path / "a.tar")), *names)


def test_docker_archive_with_several_images(store, tmp_path):
    first, second = docker(BASE, TOP, tags=["a:1"]), docker(BASE, tags=["b:1"])
    listed = []
    for members in (first, second):
        listed += json.loads(members.pop()[512:].rstrip(b"\0"))
    (tmp_path / "a.tar").write_bytes(tar(*first, *second, member("manifest.json", dumped(listed))))
    loaded = load(store, str(tmp_path / "a.tar"))
    assert [found.names for found in loaded] == [("docker.io/library/a:1",), ("docker.io/library/b:1",)]
    check(store, load(store, f"docker-archive:{tmp_path / 'a.tar'}:a:1"), "docker.io/library/a:1")
    with pytest.raises(InvalidImage, match=r"docker.io/library/a:1, docker.io/library/b:1"):
        load(store, f"docker-archive:{tmp_path / 'a.tar'}:c:1")


@pytest.mark.parametrize("make", [symlink, hard_link])
def test_a_layer_that_is_a_link_to_another(store, tmp_path, make):
    """docker save writes a layer that stands twice that way."""
    members = docker(BASE, TOP, TOP)
    twice = f"{sha256(TOP)[7:]}/layer.tar"
    link = {symlink: f"../{twice}", hard_link: twice}[make]
    entries = json.loads(members[-1][512:].rstrip(b"\0"))
    entries[0]["Layers"][2] = "copy/layer.tar"
    members[2] = make("copy/layer.tar", link)
    (tmp_path / "a.tar").write_bytes(tar(*members[:-1], member("manifest.json", dumped(entries))))
    (found,) = load(store, str(tmp_path / "a.tar"))
    assert diff_ids(store, found) == [sha256(TOP), sha256(TOP), sha256(BASE)]


def test_compressed_layers_in_a_docker_archive(store, tmp_path):
    """Some tools compress them; the diff IDs are those of the tars."""
    members = docker(BASE, TOP, tags=["a:1"])
    for i, archive in enumerate((BASE, TOP)):
        members[i] = member(f"{sha256(archive)[7:]}/layer.tar", gzip.compress(archive))
    (tmp_path / "a.tar").write_bytes(tar(*members))
    check(store, load(store, str(tmp_path / "a.tar")), "docker.io/library/a:1")


def test_an_archive_of_both_kinds(store, tmp_path):
    """Docker since 25; its manifest.json has the full names."""
    place = oci(tmp_path / "oci", BASE, TOP, name="1")
    for line in docker(BASE, TOP, tags=["debian:1"]):
        name = line[:100].rstrip(b"\0").decode()
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(line[512 : 512 + int(line[124:135], 8)])
    (tmp_path / "a.tar").write_bytes(packed(place))
    check(store, load(store, str(tmp_path / "a.tar")), "docker.io/library/debian:1")
    check(
        store,
        load(store, f"oci-archive:{tmp_path / 'a.tar'}"),
        "docker.io/library/debian:1",
        "localhost/1:latest",
    )


# -- streams -------------------------------------------------------------------------------------------------


@EVERY_COMPRESSION
@pytest.mark.timeout(20)
def test_stdin_from_a_pipe(store, compress):
    archive = compress(tar(*docker(BASE, TOP, tags=["a:1"])))
    reader, writer = os.pipe()

    def feed():
        with open(writer, "wb") as pipe:
            pipe.write(archive)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reader, "rb", buffering=0) as stdin:
        loaded = load(store, "-", stdin=stdin)
    thread.join()
    check(store, loaded, "docker.io/library/a:1")


@EVERY_COMPRESSION
def test_stdin_from_a_file(store, tmp_path, compress):
    (tmp_path / "a.tar").write_bytes(compress(packed(oci(tmp_path / "oci", BASE, TOP))))
    with open(tmp_path / "a.tar", "rb") as stdin:
        check(store, load(store, "-", stdin=stdin), "docker.io/library/image:1")


def test_what_was_loaded_is_named_first(store, tmp_path):
    """The same image under another name: the answer begins with the name it came by."""
    for number, tag in enumerate(("z:1", "a:1")):
        (tmp_path / "a.tar").write_bytes(tar(*docker(BASE, TOP, tags=[tag])))
        (loaded,) = load(store, str(tmp_path / "a.tar"))
        assert loaded.names[0] == f"docker.io/library/{tag}"
        assert len(loaded.names) == number + 1


def test_names_given_by_the_caller(store, tmp_path):
    loaded = load(
        store, str(oci(tmp_path / "oci", BASE, TOP)), names=["localhost/mine:1", "localhost/mine:2"]
    )
    check(store, loaded, "docker.io/library/image:1", "localhost/mine:1", "localhost/mine:2")


def test_loading_twice_unpacks_once(store, tmp_path):
    class Log:
        def __init__(self):
            self.outcomes, self.bytes = [], 0

        def start(self, what, size):
            self.size = size

        def advance(self, count):
            self.bytes += count

        def finish(self, outcome):
            self.outcomes.append(outcome)

    place = str(oci(tmp_path / "oci", BASE, TOP, compress=gzip.compress))
    first, second = Log(), Log()
    (one,) = load(store, place, progress=first)
    (two,) = load(store, place, progress=second)
    assert one == two
    assert (first.outcomes, second.outcomes) == (["done", "done"], ["already exists", "already exists"])
    assert first.bytes == second.bytes == len(gzip.compress(BASE)) + len(gzip.compress(TOP))
    assert len(store.layer_store.map()) == 2


def test_images_share_layers(store, tmp_path):
    load(store, str(oci(tmp_path / "a", BASE, TOP, name="a:1")))
    load(store, str(oci(tmp_path / "b", BASE, name="b:1", compress=gzip.compress)))
    assert len(store.layer_store.map()) == 2
    store.delete_image(store.image("a:1").id)
    assert len(store.layer_store.map()) == 1


def test_layer_tars_in_gnu_format(store, tmp_path):
    archive = tar(long(b"L", b"n" * 200), member("x", b"1"))
    (found,) = load(store, str(oci(tmp_path / "oci", archive)))
    with store.union(found) as union:
        assert paths(union) == [b"n" * 200]


# -- by others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci", "dir"])
def test_images_by_skopeo(store, tmp_path, transport):
    source = oci(tmp_path / "source", BASE, TOP, name="v1", compress=gzip.compress)
    target = {"docker-archive": f"{tmp_path}/out:repo/name:v2", "oci-archive": f"{tmp_path}/out:v2"}
    place = target.get(transport, f"{tmp_path}/out" + ":v2" * (transport == "oci"))
    command = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{source}:v1", f"{transport}:{place}"]
    subprocess.run(
        command, check=True, capture_output=True, timeout=60, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    if transport == "dir":
        with pytest.raises(InvalidImage):
            load(store, str(tmp_path / "out"))
        return
    name = {"docker-archive": "docker.io/repo/name:v2"}.get(transport, "localhost/v2:latest")
    check(store, load(store, str(tmp_path / "out")), name)


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_unknown_reference_is_no_name_at_all(store, tmp_path, transport):
    (tmp_path / "a.tar").write_bytes(tar(*docker(BASE, TOP, tags=["a:1"])))
    with pytest.raises((InvalidImage, InvalidReference)):
        load(store, f"{transport}:{tmp_path / 'a.tar'}:NOT A NAME")
    assert store.images() == []
