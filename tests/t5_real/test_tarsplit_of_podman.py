"""podman's records and ours are the same, and each program makes tars of what the other has written.

Debian's podman loads an image with a layer in each dialect of tar, buildah commits one more, all without root
and without subordinate ids, into a store of the vfs driver and one of overlay with fuse-overlayfs.  The
record that they keep of a layer (``<driver>-layers/<id>.tar-split.gz``) has one empty segment at its end that
later versions of theirs, and ours, leave out.
"""

import functools
import gzip
import io
import json
import os
import subprocess
import tarfile

import pytest
from support import archives
from support.tarsplits import json_of
from support_real import layouts
from support_real.commands import IN_NAMESPACE, remove_all

from fusestore.store.storage import Store
from fusestore.store.tarsplit import assemble

pytestmark = pytest.mark.xdist_group("podman")  # they share what takes seconds to load

# What podman takes, but cannot give back with its own record.
ONE_WAY = {name for name in archives.LAYERS if "pax sparse" in name} | {"whiteouts with content"}
# What podman refuses: paths that are the same (to it), types and maps that its tar does not know; or loses.
REFUSED = {"two global headers", "contiguous", "a file before its whiteout"}
REFUSED |= {name for name in archives.LAYERS if "old sparse" in name or "twice" in name or "thrice" in name}
# The reads of its source decide where podman cuts what follows an archive.
CUT_ELSEWHERE = {"rubbish behind"}

PREPARE = """
set -eu
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
cd "$1"
export HOME=$PWD TMPDIR=$PWD XDG_RUNTIME_DIR=$PWD
where="--root $PWD/graph --runroot /run/graph --storage-driver $2 --storage-opt $2.ignore_chown_errors=true"
[ "$2" = vfs ] || where="$where --storage-opt overlay.mount_program=/usr/bin/fuse-overlayfs"
"""
LOAD = """
podman $where load -q -i image >/dev/null
container=$(buildah $where from localhost/image)
top=$(buildah $where mount "$container")
mkdir -p "$top/made/deep"
cp /bin/busybox "$top/made/busybox"
ln "$top/made/busybox" "$top/made/sh"
ln -s busybox "$top/made/link"
truncate -s 3M "$top/made/hole"
setfattr -n user.note -v "by buildah" "$top/made/deep"
printf x >"$top/made/$(printf '\\344 name')"
rm -rf "$top/d"
buildah $where commit -q "$container" localhost/made >/dev/null
buildah $where umount --all >/dev/null
"""
SAVE = """
podman $where save -q --format docker-archive -o saved localhost/image
"""


class Directory:
    """A `fusestore.driver.api.FileGetter` over the directory that a layer was unpacked into."""

    def __init__(self, top):
        self._top = os.fsencode(top)

    def get(self, name):
        return os.open(self._top + b"/" + name, os.O_RDONLY)

    def close(self):
        pass


class Podman:
    """A store of podman's below a directory of its own, with an image."""

    def __init__(self, top, driver):
        self.top, self.driver, self.records = top, driver, top / f"graph/{driver}-layers"
        self.tars = {layouts.sha256(tar): tar for name, tar in archives.LAYERS.items() if name not in REFUSED}
        top.mkdir()
        (top / "image").write_bytes(
            layouts.docker_archive(list(self.tars.values()), "localhost/image:latest")
        )
        self.run(LOAD)
        listed = json.loads((self.records / "layers.json").read_bytes())
        self.layers = {one["diff-digest"]: one["id"] for one in listed if "diff-digest" in one}

    def run(self, script):
        command = [*IN_NAMESPACE, "sh", "-c", PREPARE + script, "sh", self.top, self.driver]
        result = subprocess.run(command, stderr=subprocess.PIPE, check=False, timeout=60)
        assert result.returncode == 0, result.stderr.decode(errors="replace")

    def record(self, digest):
        return self.records / f"{self.layers[digest]}.tar-split.gz"

    def json(self, digest):
        """The lines of podman's record, without the empty one."""
        *lines, last = gzip.decompress(self.record(digest).read_bytes()).splitlines(keepends=True)
        assert last == b'{"type":2,"payload":"","position":%d}\n' % len(lines)
        return b"".join(lines)

    def files(self, digest):
        home = {"vfs": "graph/vfs/dir/{}", "overlay": "graph/overlay/{}/diff"}[self.driver]
        return Directory(self.top / home.format(self.layers[digest]))

    def assembled(self, digest):
        """The tar of a layer by our `assemble`."""
        with self.record(digest).open("rb") as record:
            return b"".join(assemble(record, self.files(digest), digest))


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


def named(name):
    return layouts.sha256(archives.LAYERS[name])


def test_every_layer_of_podman_reassembles(podman):
    assert podman.tars.keys() < podman.layers.keys()
    for digest in podman.layers.keys() - {named(name) for name in ONE_WAY}:
        assert layouts.sha256(podman.assembled(digest)) == digest, podman.tars.get(digest, "buildah's")[:100]


def test_our_records_are_podmans(podman):
    for name in archives.LAYERS.keys() - ONE_WAY - REFUSED - CUT_ELSEWHERE:
        assert json_of(archives.LAYERS[name]) == podman.json(named(name)), name
    (digest,) = podman.layers.keys() - podman.tars.keys()
    assert json_of(podman.assembled(digest)) == podman.json(digest)


def test_podman_exports_by_our_records_also_what_it_cannot_by_its_own(podman, place):
    kept = {digest: podman.record(digest).read_bytes() for digest in podman.tars}
    try:
        with Store(str(place.root), str(place.runroot)) as store:
            for digest, tar in podman.tars.items():
                layer = store.layer_store.register(io.BytesIO(tar))
                record = store.graph_driver.notes(layer.record.cache_id) / "tar-split.json.gz"
                podman.record(digest).write_bytes(record.read_bytes())
                layer.drop()
        podman.run(SAVE)
    finally:
        for digest, record in kept.items():
            podman.record(digest).write_bytes(record)
    with tarfile.open(podman.top / "saved") as saved:
        (manifest,) = json.load(saved.extractfile("manifest.json"))
        found = [saved.extractfile(name).read() for name in manifest["Layers"]]
    assert found == list(podman.tars.values())


def test_our_store_exports_by_a_record_of_podmans(podman, place, tmp_path):
    (digest,) = podman.layers.keys() - podman.tars.keys()
    tar = podman.assembled(digest)
    (tmp_path / "layer.tar").write_bytes(tar)
    assert place.ok("layer", "register", "-q", tmp_path / "layer.tar") == digest
    (ours,) = place.root.glob("fuse/*/tar-split.json.gz")
    assert gzip.decompress(ours.read_bytes()) == podman.json(digest)
    ours.write_bytes(podman.record(digest).read_bytes())
    assert place.run("layer", "export", "-q", digest).stdout == tar
