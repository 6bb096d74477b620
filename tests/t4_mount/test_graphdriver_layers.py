"""Changes, Diff, Apply and children of layers in which programs have worked, on both drivers.

Theory: whatever programs do to a mounted layer - rename directories, change what lies below them, leave
data in the kernel's cache - Changes is what comparing two mounted trees finds, Diff makes the same layer
elsewhere, byte for byte the same each time, and a layer on top shows the same tree.
"""

import hashlib
import itertools
import os
import stat

import pytest
from support import naive
from support.filesystem_model import expected_changes
from support.layers import add
from support.tars import Stream, folder, hard_link, member, read, tar
from support_real import trees
from support_real.graphs import graph, listing

from fusestore.digest import new_cache_id
from fusestore.errors import LayerInUse

__all__ = ["graph"]  # the fixture


def base(top):
    """What the parent has."""
    for name in ("moved/sub/deep", "kept", "gone", "was-dir"):
        (top / name).mkdir(parents=True)
    in_moved = ("moved/f", "moved/sub/f", "moved/sub/deep/f")
    for name in (*in_moved, "kept/f", "kept/linked", "gone/f", "was-dir/f", "was-file"):
        (top / name).write_text(f"base {name}")
    os.link(top / "kept/linked", top / "moved/link")
    os.symlink("moved/f", top / "symlink")
    os.mkfifo(top / "fifo")


def work(top):
    """Leaves redirects, metacopies, whiteouts and opaque directories in an upper that can have them."""
    (top / "moved").rename(top / "kept/here")
    (top / "kept/here/sub/new").write_text("new")
    (top / "kept/here/sub/deep").rename(top / "deep")
    (top / "kept/here/f").unlink()
    (top / "kept/f").chmod(0o600)  # a metacopy,
    (top / "kept/f").rename(top / "kept/f2")  # and one with another name
    (top / "was-file").unlink()
    (top / "was-file").mkdir()
    (top / "was-file/f").write_text("now a directory")
    (top / "was-dir/f").unlink()
    (top / "was-dir").rmdir()
    (top / "was-dir").write_text("now a file")
    (top / "gone/f").unlink()
    (top / "gone").rmdir()
    (top / "gone").mkdir()
    (top / "moved").mkdir()
    (top / "moved/f").write_text("of the new directory")
    os.link(top / "kept/linked", top / "linked")
    os.utime(top / "symlink", (5, 5), follow_symlinks=False)
    with open(top / "deep/f", "a") as file:
        file.write(" and more")


LISTING = [
    "deep/", "deep/f", "fifo", "gone/", "kept/", "kept/f2", "kept/here/", "kept/here/link",
    "kept/here/sub/", "kept/here/sub/f", "kept/here/sub/new", "kept/linked", "linked", "moved/", "moved/f",
    "symlink", "was-dir", "was-file/", "was-file/f",
]  # fmt: skip


def facts(graph, layer):
    return naive.facts(naive.shown(graph.driver, layer))


def digest(graph, layer, parent):
    return hashlib.sha256(b"".join(graph.driver.diff(layer, parent))).hexdigest()


def marks(graph, layer):
    """The kinds of the union's own xattrs in an upper."""
    found = set()
    for place, directories, files in os.walk(graph.driver.path / layer / "diff"):
        for name in (*directories, *files):
            names = os.listxattr(os.path.join(place, name), follow_symlinks=False)
            found |= {mark.rpartition(".")[2] for mark in names if ".overlay." in mark}
    return found


@pytest.fixture
def worked(graph):
    """A layer in which programs have worked, and its parent."""
    parent = graph.made(None, base)
    layer = graph.made(parent, work)
    if graph.kind == "fuse":
        assert marks(graph, layer) >= {"redirect", "metacopy", "opaque"}, "this shows nothing"
    return layer, parent


def compared(new, old):
    """What a naive comparison of two mounted trees finds, in the words of `Graph.changes`."""
    found = expected_changes(told(old), told(new))
    return [f"{letter} {os.fsdecode(path)}" for letter, path in sorted(found, key=lambda change: change[1])]


def told(top):
    """What the rules look at.  In a writable mount the files of root are shown as our own."""
    mine = {os.geteuid(): 0}
    return {
        os.fsencode(path): (
            stat.S_IFDIR * (seen["type"] == "directory"),
            mine.get(seen["uid"], seen["uid"]),
            {key: seen[key] for key in seen.keys() - {"links", "nlink", "content", "uid", "gid"}},
        )
        for path, seen in trees.described(top).items()
    }


def test_changes_are_those_of_two_mounted_trees(graph, worked):
    """NaiveDiffDriver on real mounts; the same while the layer is mounted and after (changes.bats)."""
    layer, parent = worked
    with graph.mounted(layer) as new, graph.mounted(parent) as old:
        assert listing(new) == LISTING
        expected = compared(new, old)
        assert graph.changes(layer, parent) == expected
        assert graph.changes(parent, layer) == compared(old, new)
    assert graph.changes(layer, parent) == expected
    assert {line[0] for line in expected} == {"A", "C", "D"}


def test_diff_makes_the_layer_again(graph, worked):
    """As an RO layer, as an RW layer, on the parent and on nothing."""
    layer, parent = worked
    tree = facts(graph, layer)
    for below in (parent, None):
        archive = b"".join(graph.driver.diff(layer, below))
        again, applied = add(graph.driver, archive, below)
        rw = graph.made(below)
        assert graph.driver.apply_diff(rw, Stream(archive)).size == applied.size
        assert applied.size == graph.driver.diff_size(layer, below)
        assert facts(graph, again) == facts(graph, rw) == tree
        assert graph.changes(again, layer) == graph.changes(layer, rw) == []
    if graph.kind == "fuse":
        with graph.mounted(layer) as one, graph.mounted(rw) as other:
            assert trees.differences(trees.described(one), trees.described(other)) == []


def test_diff_is_the_same_each_time(graph, worked):
    """Twice, while mounted, after a remount, by another process; another SOURCE_DATE_EPOCH is another tar."""
    layer, parent = worked
    first = digest(graph, layer, parent)
    assert digest(graph, layer, parent) == first
    with graph.mounted(layer) as top:
        assert listing(top) == LISTING
        assert digest(graph, layer, parent) == first
    assert digest(graph, layer, parent) == first
    expression = f"__import__('hashlib').sha256(b''.join(driver.diff({layer!r}, {parent!r}))).hexdigest()"
    assert graph.elsewhere(expression) == graph.elsewhere(expression, SOURCE_DATE_EPOCH="0") == first
    assert graph.elsewhere(expression, SOURCE_DATE_EPOCH="5") != first


def test_diff_has_what_the_kernel_has_not_written_yet(graph):
    """Right after a write, without fsync, while the file is still open."""
    parent = graph.made(None, base)
    layer = graph.made(parent)
    with graph.mounted(layer) as top, open(top / "new", "wb") as new, open(top / "kept/f", "ab", 0) as old:
        new.write(b"x" * 3_000_000)
        new.flush()
        old.write(b" and more")
        assert graph.changes(layer, parent) == ["C kept", "C kept/f", "A new"]
        found = {entry.name: data for entry, data in read(b"".join(graph.driver.diff(layer, parent)))}
        assert found[b"new"] == b"x" * 3_000_000
        assert found[b"kept/f"] == b"base kept/f and more"
        assert graph.driver.diff_size(layer, parent) == 3_000_000 + len(found[b"kept/f"])


def test_a_child_shows_what_programs_have_made(graph, worked):
    """Freezing: a lower layer can have no redirects and metacopies, and must be the same without them."""
    layer, parent = worked
    tree, told, sum_ = facts(graph, layer), graph.changes(layer, parent), digest(graph, layer, parent)
    child = graph.made(layer)
    assert graph.changes(child, layer) == []
    assert facts(graph, child) == facts(graph, layer) == tree
    assert (graph.changes(layer, parent), digest(graph, layer, parent)) == (told, sum_)
    assert not marks(graph, layer) & {"redirect", "metacopy"}
    for one in (child, layer):
        with graph.mounted(one) as top:
            assert listing(top) == LISTING
            assert (top / "deep/f").read_text() == "base moved/sub/deep/f and more"
            assert (top / "kept/f2").read_text() == "base kept/f"
            assert (top / "linked").stat().st_nlink == 3
    grandchild = graph.made(child, lambda top: (top / "kept").rename(top / "kept2"))
    with graph.mounted(graph.made(grandchild)) as top:
        assert (top / "kept2/here/sub/new").read_text() == "new"


def test_a_chain_of_renames(graph):
    """Every layer moves the directories of the one below it."""
    layer = graph.made(None, base)
    names = ["moved", "a", "b/c", "moved", "d"]
    for old, new in itertools.pairwise(names):

        def move(top, old=old, new=new):
            (top / new).parent.mkdir(exist_ok=True)
            (top / old).rename(top / new)
            (top / new / "sub" / f"from-{old.replace('/', '-')}").write_text(old)

        layer = graph.made(layer, move)
    with graph.mounted(graph.made(layer)) as top:
        assert [name for name in listing(top) if name.startswith("d/")] == [
            "d/", "d/f", "d/link", "d/sub/", "d/sub/deep/", "d/sub/deep/f", "d/sub/f", "d/sub/from-a",
            "d/sub/from-b-c", "d/sub/from-moved",
        ]  # fmt: skip
        assert (top / "d/sub/deep/f").read_text() == "base moved/sub/deep/f"


def test_a_mounted_layer_is_not_made_anew_under_its_user(graph, worked):
    """A child would have to change its upper; without redirects and metacopies there is nothing to change."""
    layer, parent = worked
    with graph.mounted(layer) as top:
        if graph.kind == "fuse":
            with pytest.raises(LayerInUse):
                graph.made(layer)
            assert graph.driver.is_read_write(layer)
        (top / "late").write_text("late")
        assert listing(top) == sorted([*LISTING, "late"])
    plain = graph.made(parent)
    with graph.mounted(plain) as top:
        (top / "early").write_text("early")
        child = graph.made(plain)
        assert (top / "early").read_text() == "early"
    for one, name in ((child, "early"), (graph.made(layer), "late")):
        with graph.mounted(one) as top:
            assert (top / name).read_text() == name


def test_apply_diff_on_a_layer_with_renames(graph, worked):
    """Into a renamed directory, over metacopies, whiteouts and opaque markers on them, links to them."""
    layer, parent = worked
    inherited = add(graph.driver, b"".join(graph.driver.diff(layer, parent)), parent)[0]
    archive = tar(
        member("kept/here/sub/.wh.f"), member("kept/here/sub/again", b"again"), member(".wh.was-file"),
        folder("deep", 0o711), member("deep/.wh..wh..opq"), member("deep/only", b"only"), folder("linked"),
        hard_link("kept/hard", "kept/f2"), member("moved/.wh.f"), member("kept/here/link/f", b"new"),
    )  # fmt: skip
    graph.driver.apply_diff(layer, Stream(archive))
    assert facts(graph, layer) == facts(graph, add(graph.driver, archive, inherited)[0])
    with graph.mounted(layer) as top:
        assert listing(top / "deep") == ["only"]
        assert (top / "kept/hard").read_text() == "base kept/f"
        assert (top / "kept/hard").samefile(top / "kept/f2")
    assert graph.changes(graph.made(layer), layer) == []


def test_apply_diff_is_refused_while_the_layer_is_mounted(graph):
    layer = graph.made(None, base)
    archive = tar(member("new", b"new"))
    with graph.mounted(layer) as top:
        with pytest.raises(LayerInUse):
            graph.driver.apply_diff(layer, Stream(archive))
        with pytest.raises(LayerInUse):
            graph.reopened().apply_diff(layer, Stream(archive))
        assert "new" not in listing(top)
    graph.driver.apply_diff(layer, Stream(archive))
    with graph.mounted(layer) as top:
        assert (top / "new").read_text() == "new"


def test_populate(graph):
    """changes.bats, diff.bats: the three layers of helpers.bash, told while mounted and after."""

    def lower(top):
        for number in range(1, 10):
            (top / f"layerdir{number}").mkdir()
        for number in (1, 2, 3):
            (top / f"layer1file{number}").write_bytes(bytes(256))
            (top / f"layerdir{number + 3}/layer1subdir").mkdir()
            (top / f"layerdir{number + 6}/layer1file{number + 3}").write_bytes(bytes(256))

    def middle(top):
        for name in ("layer1file1", "layer1file2", "layerdir7/layer1file4", "layerdir8/layer1file5"):
            (top / name).unlink()
        for name in ("1", "2", "4/layer1subdir", "4", "5/layer1subdir", "5", "7", "8"):
            (top / f"layerdir{name}").rmdir()
        for name in ("10", "11", "11/layer2subdir", "12"):
            (top / f"layerdir{name}").mkdir()
        for name in ("layer2file1", "layerdir12/layer2file2"):
            (top / name).write_bytes(bytes(256))

    def upper(top):
        for name in ("1", "4", "4/layer1subdir", "7", "3/layer3subdir", "3/layer3subdir/layer3subsubdir"):
            (top / f"layerdir{name}").mkdir()
        for name in ("layerfile1", "layerdir7/layer1file4"):
            (top / name).write_bytes(bytes(256))

    layer = None
    for fill, count, others in (
        (lower, 18, []),
        (middle, 14, [f"D layer1file{n}" for n in (1, 2)] + [f"D layerdir{n}" for n in (1, 2, 4, 5, 7, 8)]),
        (upper, 9, ["C layerdir3"]),
    ):
        parent, layer = layer, new_cache_id()
        graph.driver.create_read_write(layer, parent)
        with graph.mounted(layer) as top:
            fill(top)
            told, sum_ = graph.changes(layer, parent), digest(graph, layer, parent)
        assert (len(told), [line for line in told if line[0] != "A"]) == (count, others)
        assert (graph.changes(layer, parent), digest(graph, layer, parent)) == (told, sum_)
        archive = b"".join(graph.driver.diff(layer, parent))
        names = sorted(entry.name.rstrip(b"/").decode() for entry, _ in read(archive))
        letters = {"D": ".wh."}
        assert names[1:] == sorted(letters.get(line[0], "") + line[2:] for line in told)
        assert names[0] == "."
