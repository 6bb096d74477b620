"""Large images: many files, many names in one directory, large files, many layers."""

import hashlib
import os
import random
import subprocess

import pytest
from support_real import dents, layouts, room, tars, trees
from support_real.commands import Place, detach

from fusestore.driver import mounter
from fusestore.driver.layout import LayerSpec, MountSpec
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling

FILES = 200_000
IN_ONE_DIRECTORY = 100_000


def many_files():
    yield tars.directory(b"flat")
    for number in range(IN_ONE_DIRECTORY):
        yield tars.file(b"flat/%06d" % number, b"%d" % number)
    for number in range(FILES - IN_ONE_DIRECTORY):
        yield tars.file(b"deep/%02d/%03d/%d" % (number // 10_000, number // 100 % 100, number))


@pytest.fixture
def large(tmp_path):
    """A store for the image of 200,000 files."""
    with room.for_many(FILES, tmp_path) as top:
        place = Place(top / "store", top / "run")
        yield place
        place.destroy()


def test_a_layer_of_200_000_files_is_loaded_mounted_and_listed_completely(large):
    layer = b"".join(tars.blocks(many_files()))
    large.ok("load", input=layouts.docker_archive([layer], "localhost/large:1"))
    top = large.mount("large:1")
    assert int(subprocess.check_output(["sh", "-c", f"find {top} -type f | wc -l"])) == FILES
    assert [(top / f"flat/{number:06d}").read_text() for number in (0, 77, 99_999)] == ["0", "77", "99999"]
    assert not (top / "flat/100000").exists()
    for size in (1 << 10, 1 << 15):
        large.ok("unmount", "large:1")  # the kernel keeps listings
        large.mount("large:1")
        is_complete_and_in_one_order(top / "flat", size)
    assert large.ok("ls", "large:1:/flat").count("\n") == IN_ONE_DIRECTORY - 1


def is_complete_and_in_one_order(directory, size):
    """Read with buffers of `size`, again with large ones, and once more from the middle."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        first = list(dents.entries(fd, size))
        os.lseek(fd, 0, os.SEEK_SET)
        assert list(dents.entries(fd, 1 << 16)) == first
        os.lseek(fd, first[77_777][1], os.SEEK_SET)
        assert list(dents.entries(fd, 1 << 16)) == first[77_778:]
    finally:
        os.close(fd)
    names = [name for name, _ in first]
    assert names[:2] == [b".", b".."]
    assert sorted(names[2:]) == [b"%06d" % number for number in range(IN_ONE_DIRECTORY)]
    assert len({offset for _, offset in first}) == len(first)


# -- one large file -----------------------------------------------------------------------------------


def test_a_file_of_64_mib_reads_the_same_by_every_way(place, tmp_path):
    content = random.Random(64).randbytes(64 << 20)
    layout = layouts.oci(tmp_path / "oci", [tars.tar([tars.file(b"big", content)])], "big")
    place.ok("load", f"oci:{layout}")
    top = place.mount("big")
    with open(top / "big", "rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(content).digest()
    subprocess.run(["cmp", top / "big", "-"], input=content, check=True)
    places = [0, 1, 4095, 4096, 131_072 - 1, len(content) - 3]
    fd = os.open(top / "big", os.O_RDONLY)
    try:
        assert all(os.pread(fd, 70_000, at) == content[at : at + 70_000] for at in places)
    finally:
        os.close(fd)


# -- many layers --------------------------------------------------------------------------------------


def layer(number):
    """Adds a file, changes the one file that all have, deletes the file that the layer below added."""
    entries = [tars.file(b"all", b"%d" % number), tars.file(b"d/%d" % number, b"%d" % number)]
    return tars.tar([*entries, tars.whiteout(b"d/%d" % (number - 1))] if number % 2 else entries)


def test_125_layers_load_and_mount_as_one_tree(place, tmp_path):
    tarballs = [layer(number) for number in range(125)]
    place.ok("load", f"oci:{layouts.oci(tmp_path / 'oci', tarballs, 'high')}")
    top = place.mount("high", before=("prlimit", "--nofile=64:4096"))  # it raises its own limit
    assert (top / "all").read_text() == "124"
    assert sorted(int(name) for name in os.listdir(top / "d")) == [n for n in range(125) if n % 2 or n == 124]
    assert len(place.listed("layers")) == 125


def test_126_layers_are_refused_and_leave_nothing(place, tmp_path):
    tarballs = [layer(number) for number in range(126)]
    said = place.fails("load", "--quiet", f"oci:{layouts.oci(tmp_path / 'oci', tarballs, 'higher')}")
    assert "max depth exceeded" in said
    assert "125" in said
    assert place.is_empty()


def test_500_lowers_are_one_tree(tmp_path):
    """More than a chain may have: additional stores stack on top of it."""
    home, runroot = tmp_path / "home", tmp_path / "run"
    (runroot / "mnt").mkdir(parents=True, mode=0o700)
    for number in range(500):
        diff = home / f"{number:03d}/diff"
        (diff / "d").mkdir(parents=True)
        (diff / f"d/{number}").write_text(str(number))
        (diff / "all").write_text(str(number))
        diff.with_name("lock").touch()
    layers = tuple(LayerSpec(str(home / f"{number:03d}/diff")) for number in reversed(range(500)))
    spec = MountSpec(layers, str(home), Ownership.OVERRIDE, Spelling.DEVICE, "many")
    top = runroot / "mnt/many"
    mounter.mount(spec, top, runroot)
    try:
        assert (top / "all").read_text() == "499"
        assert sorted(map(int, os.listdir(top / "d"))) == list(range(500))
        assert all((top / f"d/{number}").read_text() == str(number) for number in range(500))
        assert len(trees.described(top)) == 500 + 3
        mounter.unmount(top, runroot)
        assert mounter.mounted(runroot) == []
    finally:
        detach(top)
