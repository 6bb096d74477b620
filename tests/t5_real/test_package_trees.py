"""Trees of real packages, packed by real tar programs in every dialect they have, and mounted as layers."""

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
from support_real import layouts, tars, trees

PYTHON = Path(sysconfig.get_path("stdlib")) / "email"
TREES = {
    "python": PYTHON,
    "perl": Path("/usr/share/perl5"),
    "another of python": Path(sysconfig.get_path("stdlib")) / "unittest",
    "npm": Path("/usr/lib/node_modules/npm/node_modules"),
}
PRESENT = {name: path for name, path in TREES.items() if path.is_dir()}
GNU = ["tar", "--create", "--sort=name", "--one-file-system"]
TARFILE = "import sys, tarfile; tarfile.open(fileobj=sys.stdout.buffer, mode='w|').add(sys.argv[-1])"
PACKERS = {
    "GNU tar": [*GNU, "--format=gnu"],
    "old GNU tar": [*GNU, "--format=oldgnu"],
    "pax": [*GNU, "--format=posix", "--xattrs"],
    "ustar": [*GNU, "--format=ustar"],
    "v7": [*GNU, "--format=v7"],
    "busybox tar": ["busybox", "tar", "-c"],
    "Python's tarfile": ["/usr/bin/python3", "-c", TARFILE],
}
SECOND = 10**9


def packed(command, top):
    return subprocess.run([*command, "."], cwd=top, capture_output=True, check=True).stdout


def mounted(place, tmp_path, tar, pack=layouts.gzipped):
    place.ok("load", "--quiet", f"oci:{layouts.oci(tmp_path / 'oci', [tar], 'tree', pack)}")
    return place.mount("tree")


def in_whole_seconds(tree):
    for attributes in tree.values():
        attributes["mtime"] = attributes["mtime"] // SECOND * SECOND
    return tree


def without_root(tree):
    """The root's own entry is not in every archive."""
    return {path: attributes for path, attributes in tree.items() if path}


def test_there_is_something_to_test():
    assert len(PRESENT) >= 2


@pytest.mark.parametrize("name", PRESENT)
def test_a_package_tree_comes_out_as_it_went_in(place, tmp_path, name):
    """pax keeps nanoseconds and all attributes, so nothing has to be forgiven."""
    top = mounted(place, tmp_path, packed(PACKERS["pax"], PRESENT[name]))
    assert trees.differences(trees.described(top), trees.described(PRESENT[name])) == []


@pytest.mark.parametrize("packer", PACKERS)
def test_every_tar_program_is_understood(place, tmp_path, packer):
    top = mounted(place, tmp_path, packed(PACKERS[packer], PYTHON))
    expected = in_whole_seconds(trees.described(PYTHON))
    assert trees.differences(*map(without_root, (in_whole_seconds(trees.described(top)), expected))) == []


@pytest.mark.parametrize(
    "program", ["gzip -9", "gzip --rsyncable", "zstd -q -19 --long=27", "zstd -q --fast", "cat"]
)
def test_every_compressor_is_understood(place, tmp_path, program):
    def pack(tar):
        return subprocess.run(program.split(), input=tar, capture_output=True, check=True).stdout

    top = mounted(place, tmp_path, packed(PACKERS["pax"], PYTHON), pack)
    assert trees.differences(trees.described(top), trees.described(PYTHON)) == []


def test_several_gzip_members_and_zstd_frames_are_one_layer(place, tmp_path):
    def in_pieces(tar):
        pieces = [tar[at : at + 100_000] for at in range(0, len(tar), 100_000)]
        return b"".join(layouts.gzipped(piece) for piece in pieces)

    top = mounted(place, tmp_path, packed(PACKERS["pax"], PYTHON), in_pieces)
    assert trees.differences(trees.described(top), trees.described(PYTHON)) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")),
    ],
)
def test_sparse_files_of_gnu_tar_come_out_whole(place, tmp_path, options):
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "many holes", "wb") as file:
        for number in range(200):
            file.seek(number * 100_000)
            file.write(b"%d data" % number * 100)
    os.truncate(tree / "many holes", 30_000_000)
    with open(tree / "only a hole", "wb") as file:
        file.truncate(5_000_000)
    (tree / ("long name " * 20)).write_bytes(b"x" + bytes(1_000_000))
    top = mounted(place, tmp_path, packed([*GNU, "--sparse", *options], tree))
    assert trees.differences(*map(in_whole_seconds, map(unowned, (top, tree)))) == []


def unowned(top):
    tree = trees.described(top)
    for attributes in tree.values():
        attributes |= {"uid": 0, "gid": 0}
    return tree


def test_an_npm_package_without_directories_and_with_times_of_its_own(place, tmp_path):
    """npm packs files only, all of 1985-10-26, which no unpacker takes from anything but the header."""
    names = ["package.json", "index.js", "lib/deep/er/x.js", "lib/deep/y.js", ".npmignore"]
    made = [tars.file(f"package/{name}".encode(), name.encode(), mtime=499162500 * SECOND) for name in names]
    top = mounted(place, tmp_path, tars.tar(made))
    assert sorted(str(p.relative_to(top / "package")) for p in top.rglob("*") if p.is_file()) == sorted(names)
    assert {os.stat(p).st_mtime for p in top.rglob("*") if p.is_file()} == {499162500.0}
    assert {f"{os.stat(p).st_mode & 0o7777:o}" for p in top.rglob("*") if p.is_dir()} == {"755"}


def test_our_listing_is_tars(place, tmp_path):
    """Member for member: mode, owner, size, time and name as ``tar --list --verbose`` has them."""
    archive = packed([*PACKERS["pax"], "--owner=games:5", "--group=60:60"], PYTHON)
    mounted(place, tmp_path, archive)
    command = ["tar", "--list", "--verbose", "--numeric-owner", "--full-time", "--utc"]
    lines = subprocess.run(
        command, input=archive, capture_output=True, check=True, env={"TZ": "UTC", "PATH": "/bin"}
    )
    theirs = {}
    for line in lines.stdout.decode().splitlines():
        mode, owner, size, day, time, name = re.split(" +", line, maxsplit=5)
        theirs[name.rstrip("/")] = (mode, owner, None if mode[0] == "d" else int(size), f"{day} {time}"[:19])
    ours = dict(listed(place, "."))
    assert ours == theirs


def listed(place, path):
    (itself,) = place.listed("ls", "-d", f"tree:/{path}")
    yield path, line(itself)
    if itself["Mode"].startswith("d"):
        for row in place.listed("ls", "-a", f"tree:/{path}"):
            below = f"{path}/{row['Name']}"
            yield from listed(place, below) if row["Mode"].startswith("d") else [(below, line(row))]


def line(row):
    size = None if row["Mode"].startswith("d") else row["Size"]
    stamp = subprocess.check_output(
        ["date", "-u", "-d", f"@{row['ModifiedNs'] // SECOND}", "+%F %T"], text=True
    )
    return row["Mode"], f"{row['Uid']}/{row['Gid']}", size, stamp.strip()
