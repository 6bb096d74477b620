"""The stores of Debian's podman and buildah, read without them: records, trees and tars are theirs.

Both work without root and without subordinate ids, as the only user of a namespace, with the driver vfs and
with overlay on fuse-overlayfs.  podman loads the zoo, buildah puts changes on top of it and makes an image
from nothing.  What podman lists, and what it shows in mounts of its own, is written down in there and
compared out here, where no privilege helps: all belongs to the user, but some modes close files to anybody.
"""

import functools
import gzip
import hashlib
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support_real import layouts, tars, trees, unions, zoo
from support_real.commands import IN_NAMESPACE, remove_all

from fusestore import config
from fusestore.store.graphroot import GraphRoot
from fusestore.store.storage import Store

pytestmark = pytest.mark.xdist_group("podman")  # they share what takes seconds to make

PREPARE = """
set -eu
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
cd "$1"
export HOME=$PWD TMPDIR=$PWD XDG_RUNTIME_DIR=$PWD
where="--root $PWD/graph --runroot /run/graph --storage-driver $2 --storage-opt $2.ignore_chown_errors=true"
[ "$2" = vfs ] || where="$where --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs"
"""
MAKE = r"""
podman $where tag "$(podman $where pull -q oci:layout:zoo)" localhost/zoo
container=$(buildah $where from localhost/zoo)
top=$(buildah $where mount "$container")
cp /bin/busybox "$top/bin/busybox"
rm -r "$top/opaque" "$top/names/-rf *" "$top/pair-1"
mkdir -p "$top/opaque/new" "$top/made/deep"
ln "$top/bin/busybox" "$top/made/sh"
ln -s ../bin/busybox "$top/made/link"
mkfifo -m 0620 "$top/made/pipe"
truncate -s 3M "$top/made/hole"
setfattr -n user.note -v "by buildah" "$top/made/deep"
chmod 1777 "$top/made/deep"; chmod 6711 "$top/bin/wall"
printf secret >"$top/made/secret"; chmod 0 "$top/made/secret"
printf x >"$top/made/$(printf '\344 name')"
buildah $where config --label who=buildah "$container"
buildah $where commit -q "$container" localhost/made
touch "$top/made/later"
buildah $where commit -q "$container" localhost/made
buildah $where tag localhost/made localhost/other:v1 localhost/other:v2
empty=$(buildah $where from scratch)
buildah $where commit -q "$empty" localhost/empty
buildah $where umount --all
"""
WRITE_DOWN = """
podman $where images --all --format json >images.json
for image in $(podman $where images --all --quiet --no-trunc | sort -u); do
    image=${image#sha256:}
    podman $where image inspect "$image" >"inspect-$image.json"
    /usr/bin/python3 "$3" "$(podman $where image mount "$image")" >"tree-$image.json"
done
podman $where image unmount --all
"""


def loadable(layer):
    """A layer without what overlay cannot do: a link to a file of a layer below; and without whiteouts beside
    what they name, which fuse-overlayfs hides and we do not (OCI image-spec, layer.md)."""
    names = {entry.name for entry in layer}
    found = []
    for entry in layer:
        above, is_whiteout, name = entry.name.partition(b".wh.")
        is_link = entry.kind == tars.HARD_LINK
        if not (is_link and entry.link not in names) and not (is_whiteout and above + name in names):
            found.append(entry)
    return found


class Podman:
    """A store below a directory of its own, and what podman says of it."""

    def __init__(self, top, driver):
        self.top, self.driver = top, driver
        top.mkdir()
        layouts.oci(top / "layout", [tars.tar(loadable(layer)) for layer in zoo.LAYERS], "zoo")
        self.run(MAKE)
        self.write_down()
        self.root = GraphRoot(top / "graph")

    def run(self, script):
        arguments = [self.top, self.driver, trees.__file__]
        command = [*IN_NAMESPACE, "sh", "-c", PREPARE + script, "sh", *arguments]
        result = subprocess.run(command, capture_output=True, check=False, timeout=60)
        assert result.returncode == 0, result.stderr.decode(errors="replace")

    def write_down(self):
        self.run(WRITE_DOWN)
        told = json.loads((self.top / "images.json").read_bytes())
        self.images = {image["Id"]: image for image in told}

    def told(self, kind, image):
        return json.loads((self.top / f"{kind}-{image}.json").read_bytes())


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """podman's stores by driver, made when first asked for."""
    top = tmp_path_factory.mktemp("podman")
    try:
        yield functools.cache(lambda driver: Podman(top / driver, driver))
    finally:
        remove_all(top)


@pytest.fixture(params=["vfs", "overlay"])
def podman(stores, request):
    return stores(request.param)


def listed(root, image):
    """An image as `podman images` lists it."""
    configuration = json.loads(root.big_data("image", image.id, f"sha256:{image.id}"))
    return {
        "Id": image.id,
        "Names": list(image.names) or None,
        "Digest": image.digest,
        "RepoDigests": sorted({f"{name.rpartition(':')[0]}@{image.digest}" for name in image.names}),
        "History": list(image.names_history) or None,
        "Created": image.created,
        "Size": image.size,
        "Labels": configuration["config"].get("Labels"),
    }


def test_images_are_those_that_podman_lists(podman):
    found = {image.id: listed(podman.root, image) for image in podman.root.images()}
    assert len(found) == 4
    assert sorted(len(image["Names"] or ()) for image in found.values()) == [0, 1, 2, 3]
    for image in found.values():
        told = podman.images[image["Id"]]
        told |= {"RepoDigests": sorted(set(told["RepoDigests"] or ()))}
        assert image == {key: told.get(key) for key in image}


def chain(root, layer_id):
    while layer_id:
        layer = root.layer(layer_id)
        yield layer
        layer_id = layer.parent


def test_layers_are_those_that_podman_inspects(podman):
    for image in podman.root.images():
        (told,) = podman.told("inspect", image.id)
        layers = list(chain(podman.root, image.top_layer))
        assert [layer.uncompressed_digest for layer in layers[::-1]] == told["RootFS"]["Layers"]
        assert podman.driver == told["GraphDriver"]["Name"] == podman.root.driver_name
        if podman.driver == "overlay":
            data = told["GraphDriver"]["Data"]
            directories = [data["UpperDir"], *filter(None, data.get("LowerDir", "").split(":"))]
            assert [spec.path for spec in podman.root.specs(image.top_layer)] == directories
    of_the_zoo = [layer for layer in podman.root.layers() if layer.compression == "gzip"]
    blobs = [hashlib.sha256(blob.read_bytes()) for blob in layouts.layer_blobs(podman.top / "layout")]
    assert [layer.compressed_digest for layer in of_the_zoo] == [f"sha256:{b.hexdigest()}" for b in blobs]
    assert all(layer.compressed_size and 4711 in layer.uids for layer in of_the_zoo[:2])
    assert all(above.created >= below.created for below, above in pairwise(podman.root.layers()))


def without(tree, *keys):
    return {path: {k: v for k, v in seen.items() if k not in keys} for path, seen in tree.items()}


def without_links(tree):
    """fuse-overlayfs counts the links that it has met so far; which names are one file is compared."""
    return without(tree, "nlink")


def is_closed(attributes):
    """True where the owner may not read, or look into a directory."""
    needed = {"file": 0o400, "directory": 0o500}.get(attributes["type"], 0)
    return int(attributes["mode"], 8) & needed != needed


def test_trees_are_what_podman_mounts(podman):
    """But for what the modes close to their owner: that is named, and its attributes are right."""
    for image in podman.root.images():
        found, closed = unions.tree(podman.root, image.top_layer)
        told = podman.told("tree", image.id)
        assert closed == {path for path, seen in found.items() if is_closed(seen)}
        told = {p: seen for p, seen in told.items() if not any(p.startswith(f"{above}/") for above in closed)}
        for path in closed:
            told[path] = {key: value for key, value in told[path].items() if key in found[path]}
        if podman.driver == "overlay":
            found, told = without_links(found), without_links(told)
        assert trees.differences(found, told) == []
        assert podman.root.unreadable(image.top_layer) == (), "all belongs to the user"


def test_every_record_gives_the_layers_tar_or_names_the_file_that_must_not_be_read(podman):
    given, refused = 0, set()
    for layer in podman.root.layers():
        if layer.uncompressed_digest is None:  # a container's
            assert podman.root.record(layer.id) is None
            continue
        try:
            tar = unions.tar(podman.root, layer.id)
        except PermissionError as exc:
            refused.add(exc.filename)
        else:
            assert layouts.sha256(tar) == layer.uncompressed_digest
            assert len(tar) == layer.uncompressed_size
            given += 1
    assert refused == {b"bin/closed", b"made/secret"}
    assert given > 2


def test_root_of_a_user_namespace_reads_all(podman):
    """Where the store's owner is root, and no map of ids counts."""
    command = [*IN_NAMESPACE, sys.executable, "-bb", unions.__file__, podman.top / "graph"]
    path = f"{Path(unions.__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr.decode()
    found = json.loads(result.stdout)
    for image, tree in found["images"].items():
        assert trees.differences(*map(without_links, (tree, podman.told("tree", image)))) == []
    digests = {layer.id: layer.uncompressed_digest for layer in podman.root.layers()}
    assert found["layers"] == {layer: digest for layer, digest in digests.items() if digest}
    assert len(found["images"]) == 4


@pytest.fixture
def beside(podman, place):
    """A store of ours that looks into podman's, too."""
    stores = [str(podman.root.path)]
    options = config.options(str(place.root), str(place.runroot), additional_stores=stores)
    with Store(options=options) as store:
        yield store
        store.wipe()


def test_our_store_lists_mounts_and_exports_what_podman_has(podman, place, beside):
    environment = place.environment() | {"FUSESTORE_ADDITIONAL_STORES": str(podman.root.path)}
    for image in place.listed("images", env=environment):
        told = podman.images[image["Id"]] | {"RepoTags": image["Names"]}
        told["RepoDigests"] = sorted(set(told["RepoDigests"] or ()))
        same = image.keys() & told.keys() - {"ParentId"}
        assert {key: image[key] or None for key in same} == {key: told[key] or None for key in same}
        assert same >= {"Id", "Digest", "RepoDigests", "Created", "CreatedAt", "Size", "Labels"}
    image = beside.image("other:v1")
    told = podman.told("tree", image.id)
    top = place.mount("other:v1", env=environment)
    for part in ("names", "opaque", "times", "turns", "made/deep"):
        expected = {
            path[len(part) + 1 :]: seen for path, seen in told.items() if f"{path}/".startswith(f"{part}/")
        }
        found = trees.described(top / part)
        assert trees.differences(*(without(tree, "nlink", "links") for tree in (found, expected))) == []
    place.ok("unmount", top, env=environment)
    below = beside.layer(beside.layer(image.top_layer).parent)
    with beside.diff("", below.id) as stream:  # compressed as it came
        assert layouts.sha256(gzip.decompress(stream.read())) == below.uncompressed_digest


def test_our_layers_and_containers_stand_on_podmans(podman, beside):
    image = beside.image("other:v1")
    container = beside.create_container("", ["ours"], image.id)
    assert [layer.id for layer in beside.layers()].count(image.top_layer) == 1
    path = beside.mount(container.id)
    assert (path / "made/later").exists()
    (path / "made/later").unlink()
    (path / "made/mine").write_text("mine")
    beside.unmount(container.id)
    changes = {change.path: change.kind.value for change in beside.changes("", container.layer)}
    assert {b"made/later": "D", b"made/mine": "A"}.items() <= changes.items()


def test_what_podman_does_meanwhile_is_seen(podman):
    """Last: it takes an image away."""
    (image,) = (image for image in podman.root.images() if "localhost/other:v2" in image.names)
    podman.run("podman $where untag localhost/other:v1")
    assert "localhost/other:v1" not in podman.root.image(image.id).names
    podman.run(f"buildah $where rm --all; podman $where rmi --force {image.id}")
    assert podman.root.image(image.id) is None
    assert podman.root.layer(image.top_layer) is None
