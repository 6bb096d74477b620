"""What upstream's archive package tests of Changes, Diff and Apply, on layers of both drivers.

Theory: upstream compares directories; here they are layers - the same trees packed as tars - and each is
compared where it is a child and where it is no relation.  Names are those of pkg/archive's tests.
"""

import io
import itertools
import os
import shutil
import tarfile
import time

import pytest
from support import naive
from support.layers import add, stack
from support.tars import CHAR, FIFO, LINK, SYMLINK, Stream, folder, hard_link, member, read, tar

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver

LONG_AGO = 1_000_000_000  # s since 1970


@pytest.fixture(params=[FuseDriver, VfsDriver], ids=["fuse", "vfs"])
def driver(request, tmp_path):
    """Overrides that of the directory: each driver in turn."""
    return request.param(tmp_path / "root", tmp_path / "run")


def changes(driver, layer, parent):
    return [f"{letter} {os.fsdecode(path)}" for letter, path in naive.letters(driver, layer, parent)]


def packed(directory):
    """A directory as a layer tar."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as made:
        made.add(directory, "./")
    return archive.getvalue()


def diff(driver, layer, parent):
    return b"".join(driver.diff(layer, parent))


def paths(driver, layer):
    return sorted(os.fsdecode(path) for path in naive.shown(driver, layer) if path)


# -- two directories -----------------------------------------------------------------------------------------

SAMPLE = {
    "file1": 0o600, "file2": 0o666, "file3": 0o404, "file4": 0o600, "file5": 0o600, "file6": 0o600,
    "file7": 0o600, "dir1/": 0o740, "dir1/file1-1": 0o1444, "dir1/file1-2": 0o666, "dir2/": 0o700,
    "dir2/file2-1": 0o666, "dir2/file2-2": 0o666, "dir3/": 0o700, "dir3/file3-1": 0o666,
    "dir3/file3-2": 0o666, "dir4/": 0o700, "dir4/file3-1": 0o666, "dir4/file3-2": 0o666,
}  # fmt: skip
LINKS = {"symlink1": "target1", "symlink2": "target2", "symlink3": "/file1", "dirSymlink": "/dir1"}


def sample(top):
    """createSampleDir, long ago."""
    top.mkdir()
    for name, mode in SAMPLE.items():
        (top / name).mkdir() if name.endswith("/") else (top / name).write_text(f"{name}\n")
        (top / name).chmod(mode)
    for name, target in LINKS.items():
        (top / name).symlink_to(target)
    for place, directories, files in os.walk(top, topdown=False):
        for name in (*directories, *files):
            os.utime(os.path.join(place, name), (LONG_AGO, LONG_AGO), follow_symlinks=False)
    return top


def mutated(top):
    """mutateSampleDir."""
    for name in ("file1", "file3", "file5", "symlink1", "symlink2"):
        (top / name).unlink()
    for name in ("dir1", "dir2"):
        shutil.rmtree(top / name)
    (top / "file2").write_text("fileNN\n")
    (top / "file3").write_text("fileMM\n")
    (top / "file3").chmod(0o404)
    os.utime(top / "file4", (LONG_AGO + 1, LONG_AGO + 1))
    (top / "file5").mkdir(0o666)
    (top / "filenew").write_text("filenew\n")
    (top / "dirnew").mkdir(0o766)
    (top / "symlinknew").symlink_to("targetnew")
    (top / "symlink2").symlink_to("target2change")
    os.utime(top / "symlink2", (LONG_AGO, LONG_AGO), follow_symlinks=False)
    (top / "dir2").write_text("dir2\n")
    os.utime(top / "dir3", (LONG_AGO + 1, LONG_AGO + 1))
    return top


MUTATED = [
    "D dir1", "C dir2", "C dir3", "A dirnew", "D file1", "C file2", "C file3", "C file4", "C file5",
    "A filenew", "D symlink1", "C symlink2", "A symlinknew",
]  # fmt: skip


@pytest.fixture
def pair(driver, tmp_path):
    """The sample, and what it is after the mutation, as two layers that know nothing of each other."""
    top = sample(tmp_path / "sample")
    original = add(driver, packed(top))[0]
    return original, add(driver, packed(mutated(top)))[0]


def test_changes_dirs_mutated(driver, pair):
    """TestChangesDirsMutated: 13 changes, each of another kind."""
    original, other = pair
    assert changes(driver, other, original) == MUTATED
    child, _ = add(driver, diff(driver, other, original), original)
    assert changes(driver, child, original) == MUTATED
    letters = {"A": "D", "D": "A", "C": "C"}
    backwards = {f"{letters[line[0]]}{line[1:]}" for line in MUTATED}
    appear = {f"A {name}" for name in SAMPLE if name.startswith(("dir1/", "dir2/")) and name[-1] != "/"}
    assert set(changes(driver, original, child)) == backwards | appear


def test_apply_layer(driver, pair):
    """TestApplyLayer: the exported changes, applied to the original, leave no differences."""
    original, other = pair
    archive = diff(driver, other, original)
    child, _ = add(driver, archive, original)
    in_place = new_cache_id()
    driver.create_read_write(in_place, original)
    driver.apply_diff(in_place, Stream(archive))
    for layer in (child, in_place):
        assert changes(driver, layer, other) == changes(driver, other, layer) == []
        assert naive.facts(naive.shown(driver, layer)) == naive.facts(naive.shown(driver, other))


def test_changes_dirs_empty(driver, tmp_path):
    """TestChangesDirsEmpty: a copy has no changes; of nothing, everything is new."""
    archive = packed(sample(tmp_path / "sample"))
    original, copy = add(driver, archive)[0], add(driver, archive)[0]
    again = add(driver, archive, original)[0]
    for layer, parent in ((copy, original), (again, original), (again, copy), (original, original)):
        assert changes(driver, layer, parent) == []
        assert list(read(diff(driver, layer, parent))) == []
    assert changes(driver, copy, None) == sorted(f"A {name.rstrip('/')}" for name in (*SAMPLE, *LINKS))


SAME = {"mode": 0o640, "uid": 7, "gid": 8, "mtime": 5, "extra": {"SCHILY.xattr.user.a": "1"}}
OTHERWISE = {
    "nothing": ({}, ""),
    "content": ({"data": b"b"}, "C"),
    "size": ({"data": b"ab"}, "C"),
    "mode": ({"mode": 0o600}, "C"),
    "setuid": ({"mode": 0o4640}, "C"),
    "owner": ({"uid": 0}, "C"),
    "group": ({"gid": 0}, "C"),
    "time": ({"mtime": 6}, "C"),
    "a nanosecond": ({"extra": {**SAME["extra"], "mtime": "5.000000001"}}, "C"),
    "an xattr more": ({"extra": {**SAME["extra"], "SCHILY.xattr.user.b": ""}}, "C"),
    "an xattr less": ({"extra": {}}, "C"),
    "an xattr": ({"extra": {"SCHILY.xattr.user.a": "2"}}, "C"),
    "type": ({"kind": FIFO, "data": b""}, "C"),
    "where a symlink leads": ({"kind": SYMLINK, "link": "b", "data": b""}, "C"),
    "device number": ({"kind": CHAR, "major": 1, "minor": 5, "data": b""}, "C"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_counts_as_a_change(driver, what):
    """statDifferent of containers/storage with exact times; ``fuse`` looks at contents, too."""
    other, letter = OTHERWISE[what]
    first = {"data": b"a", **SAME}
    if other.get("kind") in (SYMLINK, CHAR):
        first |= {**other, "link": "a", "minor": 3}
    one, _ = add(driver, tar(member("x", **first)))
    child, _ = add(driver, tar(member("x", **{**first, **other})), one)
    stranger, _ = add(driver, tar(member("x", **{**first, **other})))
    unseen = what == "content" and not driver.stacked  # upstream's rule: of one size and time, one content
    expected = [f"{letter} x"] if letter and not unseen else []
    for layer in (child, stranger):
        assert changes(driver, layer, one) == changes(driver, one, layer) == expected


# -- several layers ------------------------------------------------------------------------------------------


def test_apply_layer_whiteouts(driver):
    """TestApplyLayerWhiteouts as it is: four layers, one after the other into one directory."""
    layers = [
        (".c d/ d/e d/f/ c g/ g/.h g/.i/ g/.i/a g/j/ g/j/k g/j/l g/m gd",) * 2,
        (".n .wh.c g/ g/.o g/.wh..wh..opq g/j/ g/j/l", ".c .n d/ d/e d/f/ g/ g/.o g/j/ g/j/l gd"),
        (".n .wh..c .wh.gd g/ g/.h g/.wh.j d/", ".n d/ d/e d/f/ g/ g/.h g/.o"),
        (".h .wh..wh..opq gd", ".h gd"),
    ]
    in_place, stacked = new_cache_id(), None
    driver.create_read_write(in_place)
    for text, expected in layers:
        archive = tar(*(folder(n) if n[-1] == "/" else member(n) for n in text.split()))
        driver.apply_diff(in_place, Stream(archive))
        stacked = add(driver, archive, stacked)[0]
        listing = sorted(name.rstrip("/") for name in expected.split())
        assert paths(driver, in_place) == paths(driver, stacked) == listing


def test_changes_with_changes(driver):
    """TestChangesWithChanges: deleted, changed and new in one layer, and what only looks changed."""
    base = tar(
        folder("dir1", mtime=5), member("dir1/file1-1"), member("dir1/file1-2"), folder("gone"),
        folder("dir1/subfolder", mtime=6), member("dir1/subfolder/same", b"x", mtime=7), member("gone/file"),
    )  # fmt: skip
    layer = tar(
        folder("dir1", mtime=5), member("dir1/.wh.file1-1"), member("dir1/file1-2", b"12345"),
        folder("dir1/subfolder", mtime=6), member("dir1/subfolder/same", b"x", mtime=7), member(".wh.gone"),
        member("dir1/file1-3"),
    )  # fmt: skip
    parent, _ = add(driver, base)
    child, _ = add(driver, layer, parent)
    expected = ["C dir1", "D dir1/file1-1", "C dir1/file1-2", "A dir1/file1-3", "D gone"]
    assert changes(driver, child, parent) == expected


def test_changes_with_changes_gh13590(driver):
    """TestChangesWithChangesGH13590: a directory with something changed in it is always listed.

    Upstream's own walk of AUFS leaves the directories out where only a file has changed; its comparison of
    two trees, which is the one for drivers like ours, does not.
    """
    directories = ["dir1", "dir1/dir2", "dir1/dir2/dir3"]
    same = [folder(name, mtime=9) for name in directories]
    base, _ = add(driver, tar(*same, member("dir1/dir2/dir3/file1.txt", b"hello")))
    for name, letter in (("file.txt", "A"), ("file1.txt", "C")):
        path = f"dir1/dir2/dir3/{name}"
        expected = [*(f"C {directory}" for directory in directories), f"{letter} {path}"]
        for members in ([*same, member(path, b"changed")], [member(path, b"changed")]):
            assert changes(driver, add(driver, tar(*members), base)[0], base) == expected


@pytest.mark.parametrize(
    ("members", "size"),
    [
        ((member("file1", b"1" * 6), folder("dir"), member("dir/file2", b"2" * 7)), 13),
        ((member("file1", b"1" * 6), hard_link("file2", "file1"), hard_link("file3", "file1")), 6),
        ((member(".wh.old"), member("d/.wh..wh..opq")), 0),
        ((hard_link("old2", "old"),), 5),
    ],
    ids=["TestChangesSize", "WithHardlinks", "WithOnlyDeleteChanges", "a link to a file of the parent"],
)
def test_changes_size(driver, members, size):
    """TestChangesSize…: what DiffSize, Apply and the tar itself say."""
    parent, _ = add(driver, tar(member("old", b"x" * 5), member("d/x", b"1" * 100)))
    child, applied = add(driver, tar(*members), parent)
    assert driver.diff_size(child, parent) == applied.size == size
    assert sum(entry.size for entry, _ in read(diff(driver, child, parent))) == size


def test_hard_link_order(driver):
    """TestHardLinkOrder: whichever name a layer gave first, the tar has the data at the first in order."""
    made = set()
    for order in itertools.permutations(["file1", "sub/file2", "sub/file3"]):
        links = [hard_link(name, order[0], mtime=3) for name in order[1:]]
        layer, _ = add(driver, tar(folder("sub", mtime=4), member(order[0], b"data", mtime=3), *links))
        made.add(diff(driver, layer, None))
    (archive,) = made
    found = {entry.name: (entry.kind == LINK and entry.link, data) for entry, data in read(archive)}
    assert found[b"file1"] == (False, b"data")
    assert found[b"sub/file2"] == found[b"sub/file3"] == (b"file1", b"")


# -- what layers hide ----------------------------------------------------------------------------------------


def test_overlay_tar_aufs_untar(driver):
    """TestOverlayTarAUFSUntar: whiteouts come out as empty ``.wh.`` files of mode 0."""
    lower, _ = add(
        driver, tar(folder("d1", 0o700), member("d1/f1", b"x"), folder("d2", 0o750), member("d2/f1"))
    )
    upper, _ = add(
        driver,
        tar(folder("d1", 0o701), member("d1/.wh..wh..opq"), member("d1/f2", b"y"), member("d2/.wh.f1")),
        lower,
    )
    archive = diff(driver, upper, lower)
    found = {entry.name.rstrip(b"/"): (entry, data) for entry, data in read(archive)}
    assert sorted(found) == [b".", b"d1", b"d1/.wh.f1", b"d1/f2", b"d2", b"d2/.wh.f1"]
    for name in (b"d1/.wh.f1", b"d2/.wh.f1"):
        entry, data = found[name]
        assert (entry.mode, entry.uid, entry.mtime_ns, entry.xattrs, data) == (0, 0, 0, {}, b"")
    assert [found[name][0].mode for name in (b"d1", b"d2")] == [0o701, 0o750]
    assert all(not entry.xattrs for entry, _ in found.values())
    again, _ = add(driver, archive, lower)
    assert naive.facts(naive.shown(driver, again)) == naive.facts(naive.shown(driver, upper))
    assert {entry.name.rstrip(b"/") for entry, _ in read(diff(driver, upper, None))} >= {
        b"d1",
        b"d1/f2",
        b"d2",
    }


def test_nested_overlay_whiteouts(driver):
    """TestNestedOverlayWhiteouts: a deletion in what is deleted."""
    lower, _ = add(driver, tar(folder("foo"), member("foo/bar"), member("foo/baz")))
    for members in ((member(".wh.foo"), member("foo/.wh.bar")), (member("foo/.wh.bar"), member(".wh.foo"))):
        upper, _ = add(driver, tar(*members), lower)
        assert "foo/bar" not in paths(driver, upper)
        again, _ = add(driver, diff(driver, upper, lower), lower)
        assert paths(driver, again) == paths(driver, upper)


# -- populate ------------------------------------------------------------------------------------------------


def of(text):
    """Members by name; those with a final slash are directories."""
    return tar(*(folder(n) if n[-1] == "/" else member(n, n.encode()) for n in text.split()))


POPULATED = [
    of(
        "layer1file1 layer1file2 layer1file3 layerdir1/ layerdir2/ layerdir3/ layerdir4/ "
        "layerdir4/layer1subdir/ layerdir5/ layerdir5/layer1subdir/ layerdir6/ layerdir6/layer1subdir/ "
        "layerdir7/ layerdir7/layer1file4 layerdir8/ layerdir8/layer1file5 layerdir9/ layerdir9/layer1file6"
    ),
    of(
        ".wh.layer1file1 .wh.layer1file2 .wh.layerdir1 .wh.layerdir2 .wh.layerdir4 .wh.layerdir5 "
        ".wh.layerdir7 .wh.layerdir8 layer2file1 layerdir10/ layerdir11/ layerdir11/layer2subdir/ "
        "layerdir12/ layerdir12/layer2file2"
    ),
    of(
        "layerfile1 layerdir1/ layerdir4/ layerdir4/layer1subdir/ layerdir7/ layerdir7/layer1file4 "
        "layerdir3/ layerdir3/layer3subdir/ layerdir3/layer3subdir/layer3subsubdir/"
    ),
]


def test_populate(driver):
    """changes.bats, diff.bats, applydiff.bats: three layers that delete and make again, told and copied."""
    archives = POPULATED
    for _ in range(2):
        layers = [None]
        for archive in archives:
            layers.append(add(driver, archive, layers[-1])[0])
        told = [changes(driver, layer, parent) for parent, layer in itertools.pairwise(layers)]
        archives = [diff(driver, layer, parent) for parent, layer in itertools.pairwise(layers)]
        assert [len(lines) for lines in told] == [18, 14, 9]
        assert {line[0] for line in told[0]} == {"A"}
        assert [line for line in told[1] if line[0] != "A"] == [
            "D layer1file1", "D layer1file2", "D layerdir1", "D layerdir2", "D layerdir4", "D layerdir5",
            "D layerdir7", "D layerdir8",
        ]  # fmt: skip
        assert [line for line in told[2] if line[0] != "A"] == ["C layerdir3"]
        members = [[entry.name for entry, _ in read(archive)] for archive in archives]
        names = [[name for name in found if name != b"./"] for found in members]
        assert [len(found) for found in names] == [18, 14, 9]
        assert not any(b".wh..wh..opq" in name for found in names for name in found)


# -- the same bytes ------------------------------------------------------------------------------------------


def test_diff_does_not_depend_on_when_and_where(driver, tmp_path, monkeypatch):
    """Only SOURCE_DATE_EPOCH does: it is the time of whiteouts."""
    lower, middle = stack(driver, POPULATED[0]), stack(driver, *POPULATED[:2])
    archive = diff(driver, middle, lower)
    elsewhere = type(driver)(tmp_path / "root2", tmp_path / "run2")
    copies = stack(elsewhere, POPULATED[0]), stack(elsewhere, *POPULATED[:2])
    assert diff(elsewhere, copies[1], copies[0]) == diff(driver, middle, lower) == archive
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert diff(driver, middle, lower) == archive
    finally:
        monkeypatch.undo()
        time.tzset()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1234567890")
    later = {entry.name: entry.mtime_ns for entry, _ in read(diff(driver, middle, lower))}
    whiteouts = {name for name in later if b".wh." in name}
    assert len(whiteouts) == 8
    assert {later[name] for name in whiteouts} == {1234567890 * 10**9}
    assert {later[name] for name in later.keys() - whiteouts} == {0}
