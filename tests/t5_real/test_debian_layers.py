"""Every layer of an image of Debian comes out of the store as the tar it was, whatever happened in between.

The image is made of what this machine's own packages have installed: each layer is packed by another program
or dialect and compressed another way; the topmost deletes and changes.  Each command is a process of its own.
"""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.images import image, layout, named, sha256
from support_real import tars
from support_real.commands import FUSESTORE, eventually

from fusestore.digest import create_chain_id
from fusestore.store.storage import Store

GNU = ["tar", "--create", "--no-recursion", "--verbatim-files-from", "--files-from=-"]
TARFILE = (
    "import sys, tarfile; archive = tarfile.open(fileobj=sys.stdout.buffer, mode='w|')\n"
    "for name in sys.stdin: archive.add(name[:-1], recursive=False)\n"
    "archive.close()"
)
LAYERS = [
    (["base-files", "netbase"], [*GNU, "--format=gnu"], ["gzip", "-1"]),
    (["bash", "dash"], [*GNU, "--format=posix", "--sparse"], ["zstd", "-q", "-1"]),
    (["debianutils"], [*GNU, "--format=ustar"], ["cat"]),
    (["gzip", "hostname"], [*GNU, "--format=oldgnu", "--sparse"], ["gzip", "-1"]),
    (["mawk", "ncurses-bin"], [*GNU, "--format=posix", "--sparse-version=0.1"], ["zstd", "-q", "-1"]),
    (["libc-bin"], [*GNU, "--format=v7"], ["cat"]),
    (["sysvinit-utils", "bsdutils"], ["/usr/bin/python3", "-c", TARFILE], ["gzip", "-1"]),
]
CHANGES = [
    tars.whiteout(b"usr/bin/mawk"),
    tars.opaque(b"etc/default"),
    tars.directory(b"etc/default"),
    tars.file(b"etc/debian_version", b"none\n", 0o4711, uid=4711, gid=4712),
    tars.hard_link(b"etc/version", b"etc/debian_version"),
    tars.hard_link(b"usr/bin/sh", b"usr/bin/dash"),
    tars.file(b"usr/share/doc/\xe4", b"x" * 1000, xattrs={b"user.note": b"\0", b"trusted.note": b"1"}),
    tars.device(b"dev/null", tars.CHAR, 1, 3),
]


def contents(packages):
    """What packages have installed that we may read, each path once and not through symlinks."""
    said = subprocess.run(["dpkg", "--listfiles", *packages], check=True, capture_output=True, text=True)
    places = {Path(os.path.realpath(Path(line).parent), Path(line).name) for line in said.stdout.splitlines()}
    return sorted(str(p)[1:] for p in places if p.name and (p.is_symlink() or os.access(p, os.R_OK)))


def packed(packages, command):
    names = "".join(f"{name}\n" for name in contents(packages)).encode()
    return subprocess.run(command, cwd="/", input=names, check=True, stdout=subprocess.PIPE).stdout


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    """A layout with the image, its tars from the base up, and their chain IDs."""
    place = tmp_path_factory.mktemp("debian")
    archives = [packed(packages, command) for packages, command, _ in LAYERS] + [tars.tar(CHANGES)]
    programs = iter([program for *_, program in LAYERS] + [["cat"]])

    def compress(archive):
        return subprocess.run(next(programs), input=archive, check=True, stdout=subprocess.PIPE).stdout

    layout(place / "oci", [named(image(place / "oci", archives, compress=compress), "debian")])
    diff_ids = [sha256(archive) for archive in archives]
    chains = [create_chain_id(diff_ids[: n + 1]) for n in range(len(diff_ids))]
    return place / "oci", archives, chains


def exported(place, chains):
    """The tars of layers, read in this process, which has not made them."""
    with Store(str(place.root), str(place.runroot)) as store:
        for chain in chains:
            layer = store.layer_store.get(chain)
            with layer.tar_stream() as stream:
                yield stream.read()
            layer.drop()


def test_every_layer_of_debian_comes_back(place, debian, tmp_path):
    oci, archives, chains = debian
    place.ok("load", "--quiet", f"oci:{oci}")
    listed = {layer["ChainID"]: layer for layer in place.listed("layers")}
    assert listed.keys() == set(chains)
    for archive, chain, below in zip(archives, chains, [None, *chains], strict=False):
        assert (listed[chain]["DiffID"], listed[chain]["Parent"] or None) == (sha256(archive), below)
        place.ok("layer", "export", "--quiet", "-o", tmp_path / "layer.tar", chain)
        assert (tmp_path / "layer.tar").read_bytes() == archive
    assert list(exported(place, chains)) == archives


def test_layers_come_back_after_deleting_and_registering_one_by_one(place, debian):
    oci, archives, chains = debian
    place.ok("rmi", place.ok("load", "--quiet", f"oci:{oci}"))
    assert place.is_empty()
    for archive, chain, below in zip(archives, chains, [None, *chains], strict=False):
        parent = ["--parent", below] if below else []
        assert place.ok("layer", "register", "--quiet", "-", *parent, input=archive) == chain
    assert list(exported(place, chains)) == archives


def test_layers_come_back_after_a_load_was_killed(place, debian):
    oci, archives, chains = debian
    command = [*FUSESTORE, "load", "--quiet", f"oci:{oci}"]
    with subprocess.Popen(command, env=place.environment()) as slow:
        eventually(lambda: len(list(place.root.glob("fuse/*/diff"))) >= 4, "half of the layers")
        slow.send_signal(signal.SIGKILL)
    assert slow.returncode == -signal.SIGKILL
    place.ok("load", "--quiet", f"oci:{oci}")
    assert list(exported(place, chains)) == archives
