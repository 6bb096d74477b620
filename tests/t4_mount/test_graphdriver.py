"""graphtest: what moby and containers/storage ask of every graphdriver, on both of ours, on real mounts.

Theory: a driver is what its users see through Get.  Each test makes layers as a container engine would,
through the mounted view, and looks at them the same way.  Docstrings have upstream's names.
"""

import contextlib
import os
import stat

import pytest
from support import naive
from support.layers import add
from support.tars import Stream, member, tar
from support_real.graphs import graph, listing

from fusestore.digest import new_cache_id
from fusestore.errors import LayerInUse, NotSupported

__all__ = ["graph"]  # the fixture

OLD = 1_000_000_000  # s since 1970: when the files of base layers were written


def seen(path):
    """Type and mode, owner, content: what verifyFile looks at."""
    st = path.lstat()
    return st.st_mode, (st.st_uid, st.st_gid), path.read_bytes() if stat.S_ISREG(st.st_mode) else None


def writing(files):
    """Work: write `files`, long ago."""

    def work(top):
        for name, text in files.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            os.utime(path, (OLD, OLD))

    return work


MODES = {"a subdir": stat.S_IFDIR | stat.S_ISVTX | 0o705, "a file": stat.S_IFREG | stat.S_ISUID | 0o222}


class Base:
    """createBase and verifyBase: two entries with unusual modes and, where a driver can give them, owners."""

    def __init__(self, graph):
        self._graph = graph
        self._can_chown = graph.kind == "fuse" or os.geteuid() == 0

    def make(self, top):
        (top / "a subdir").mkdir()
        (top / "a file").write_text("Some data")
        for name, mode in MODES.items():
            if self._can_chown:
                os.chown(top / name, 1, 2)
            (top / name).chmod(stat.S_IMODE(mode))

    def verify(self, layer):
        """In the driver's own view, and in the mounted one; vfs has no mount that could show it."""
        shown = naive.shown(self._graph.driver, layer)
        owner = (1, 2) if self._can_chown else (0, 0)
        for name, mode in MODES.items():
            entry = shown[name.encode()]
            assert (f"{entry.kind | entry.mode:o}", entry.uid, entry.gid) == (f"{mode:o}", *owner)
        with self._graph.mounted(layer) as top:
            assert sorted(os.listdir(top)) == ["a file", "a subdir"]
            assert os.listdir(top / "a subdir") == []
            assert (top / "a file").stat().st_size == len("Some data")
            if self._graph.kind == "fuse":
                found = {name: (top / name).stat() for name in MODES}
                assert {name: st.st_mode for name, st in found.items()} == MODES
                assert {(st.st_uid, st.st_gid) for st in found.values()} == {owner}


def test_create_empty(graph):
    """CreateEmpty."""
    layer = new_cache_id()
    graph.driver.create(layer)
    assert graph.driver.exists(layer)
    with graph.mounted(layer) as top:
        assert seen(top) == (stat.S_IFDIR | 0o755, (os.geteuid(), os.getegid()), None)
        assert listing(top) == []
    graph.driver.remove(layer)
    assert not graph.driver.exists(layer)


def test_create_base_and_snap(graph):
    """CreateBase, CreateSnap; a grandchild has the root directory of a child (containers/storage)."""
    base = Base(graph)
    below = graph.made(None, base.make)
    child = graph.made(below, lambda top: top.chmod(0o711))
    grandchild = graph.made(child)
    for layer, mode in ((below, 0o755), (child, 0o711), (grandchild, 0o711)):
        base.verify(layer)
        with graph.mounted(layer) as top:
            assert f"{top.stat().st_mode:o}" == f"{stat.S_IFDIR | mode:o}"


def test_create_from_template(graph):
    """CreateFromTemplate: no changes against the template, all of its changes against the base."""
    base = Base(graph)
    below = graph.made(None, base.make)
    template = graph.made(below, lambda top: (top / "testfile.txt").write_text("hello"))
    copy = new_cache_id()
    graph.driver.create_from_template(copy, template)
    assert graph.changes(copy, template) == []
    assert graph.changes(copy, below) == graph.changes(template, below) == ["A testfile.txt"]
    with graph.mounted(copy) as top:
        assert (top / "testfile.txt").read_text() == "hello"
        (top / "testfile.txt").write_text("changed")
    assert graph.changes(copy, template) == ["C testfile.txt"]


def test_deep_layer_read(graph):
    """DeepLayerRead 128: the topmost of many layers on a base shows what every one of them has."""
    layer = graph.made(None, lambda top: (top / "testfile.txt").write_text("test data"))
    count = 128 if graph.driver.stacked else 25  # vfs copies all that is below each time
    layers = [layer]
    for number in range(1, count + 1):
        files = {"top-id": f"{number}", f"layer-{number}/layer-id": f"{number}"}
        files[f"layer-{number}/parent-id"] = layers[-1]
        archive = tar(*(member(name, text.encode()) for name, text in files.items()))
        layers.append(add(graph.driver, archive, layers[-1])[0])
    with graph.mounted(layers[-1]) as top:
        assert (top / "top-id").read_text() == f"{count}"
        assert (top / "testfile.txt").read_text() == "test data"
        assert len(os.listdir(top)) == count + 2
        for number in range(1, count + 1):
            assert (top / f"layer-{number}/layer-id").read_text() == f"{number}"
            assert (top / f"layer-{number}/parent-id").read_text() == layers[number - 1]


def test_diff_apply(graph):
    """DiffApply 10: what makes a layer out of its parent makes it again out of the same parent."""
    names = [f"file-{number}" for number in range(10)]
    removed = ["file-remove.txt", "var/lib/remove.txt"]
    base = graph.made(None, writing({name: f"base {name}" for name in (*names, *removed)}))

    def change(top):
        for name in names:
            (top / name).write_text(f"upper {name}")
        for name in removed:
            (top / name).unlink()
        (top / "var/lib").rmdir()

    upper, other = graph.made(base, change), new_cache_id()
    archive = b"".join(graph.driver.diff(upper, base))
    graph.driver.create_read_write(other, base)
    applied = graph.driver.apply_diff(other, Stream(archive))
    assert applied.size == graph.driver.diff_size(upper, None) == graph.driver.diff_size(upper, base)
    with graph.mounted(other) as top:
        assert listing(top) == sorted([*names, "var/"])
        assert [(top / name).read_text() for name in names] == [f"upper {name}" for name in names]
    assert graph.changes(other, base) == graph.changes(upper, base)
    assert graph.changes(other, upper) == []


def test_changes(graph):
    """Changes: of 20 files a third each is changed, deleted and added."""
    base = graph.made(None, writing({f"directory-0/file-{n}": "old" for n in range(20) if n % 3 < 2}))

    def change(top):
        for number in range(20):
            path = top / "directory-0" / f"file-{number}"
            path.unlink() if number % 3 == 1 else path.write_text("new text")

    letters = {number: "CDA"[number % 3] for number in range(20)}
    expected = [f"{letters[number]} directory-0/file-{number}" for number in sorted(letters, key=str)]
    assert graph.changes(graph.made(base, change), base) == ["C directory-0", *expected]


def test_echo(graph):
    """Echo: what a second layer removes, a third makes again; all are mounted meanwhile."""
    directories = ["/".join(f"subdir{n}" for n in range(1, depth + 1)) for depth in range(1, 10)]
    paths = sorted(["file", *directories, *(f"{directory}/file" for directory in directories)])

    def make(top, names):
        for name in names:
            (top / name).write_text("contents") if name.endswith("file") else (top / name).mkdir()

    def remove(top, names):
        for name in reversed(names):
            (top / name).unlink() if name.endswith("file") else (top / name).rmdir()

    with contextlib.ExitStack() as stack:

        def layer(parent, work, names):
            made = graph.made(parent)
            work(stack.enter_context(graph.mounted(made)), names)
            return made

        base = layer(None, make, paths)
        assert graph.changes(base, None) == [f"A {path}" for path in paths]
        for depth in range(10):
            victim = directories[depth - 1] if depth else "file"
            gone = [path for path in paths if path == victim or path.startswith(f"{victim}/")]
            above = [f"C {directory}" for directory in directories[: max(depth - 1, 0)]]
            second = layer(base, remove, gone)
            third = layer(second, make, gone)
            assert graph.changes(second, base) == [*above, f"D {victim}"]
            assert graph.changes(third, second) == [*above, *(f"A {path}" for path in gone)]


def test_list_layers(graph):
    """ListLayers."""
    assert graph.driver.list_layers() == []
    made = [graph.made(), graph.made(), graph.made()]
    made.append(graph.made(made[0]))
    assert sorted(graph.driver.list_layers()) == sorted(made)
    graph.driver.remove(made.pop())
    assert sorted(graph.reopened().list_layers()) == sorted(made)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"size": "50M"}, NotSupported, "size"),
        ({"inodes": "100"}, NotSupported, "inodes"),
        ({"sise": "50M"}, ValueError, "unknown option sise"),
    ],
)
def test_set_quota(graph, options, error, said):
    """SetQuota: nobody but root could enforce one, so that it is refused, and nothing is left."""
    base = graph.made()
    for create in (
        lambda layer: graph.driver.create_read_write(layer, base, storage_opt=options),
        lambda layer: graph.driver.create(layer, base, storage_opt=options),
        lambda layer: graph.driver.create_from_template(layer, base, storage_opt=options),
        lambda layer: graph.driver.stage(layer, base, storage_opt=options),
    ):
        with pytest.raises(error, match=said):
            create(new_cache_id())
    assert graph.driver.list_layers() == [base]
    with pytest.raises(NotSupported, match="size is only supported for ReadWrite Layers"):
        graph.driver.create(new_cache_id(), storage_opt={"size": "50M"})


def test_create_on_a_parent_that_is_not_there(graph):
    for create in (graph.driver.create, graph.driver.create_read_write, graph.driver.create_from_template):
        with pytest.raises(FileNotFoundError):
            create(new_cache_id(), new_cache_id())
    with pytest.raises(FileNotFoundError):
        graph.driver.get(new_cache_id())
    assert graph.driver.list_layers() == []


def test_remove(graph):
    """Remove: idempotent; refuses what is no id, and a layer that somebody has mounted."""
    layer, other = graph.made(), graph.made()
    for wrong in ("", "l", "..", "../x", layer[:12], layer.upper() + "x", f"{layer}/diff"):
        with pytest.raises(ValueError):
            graph.driver.remove(wrong)
    with graph.mounted(layer) as top:
        with pytest.raises(LayerInUse):
            graph.driver.remove(layer)
        with pytest.raises(LayerInUse):
            graph.reopened().remove(layer)
        assert listing(top) == []
    graph.driver.remove(layer)
    graph.driver.remove(layer)
    graph.driver.remove(new_cache_id())
    assert graph.driver.list_layers() == [other]


def test_layers_are_isolated_from_each_other(graph):
    """create-layer.bats: two containers on one image do not see what the other writes."""
    base = graph.made(None, writing({"file": "base", "dir/file": "base"}))
    left = graph.made(base, lambda top: (top / "file").write_text("left"))
    right = graph.made(base, lambda top: (top / "dir/file").unlink())
    for layer, expected in (
        (base, ["dir/", "dir/file", "file"]),
        (left, ["dir/", "dir/file", "file"]),
        (right, ["dir/", "file"]),
    ):
        with graph.mounted(layer) as top:
            assert listing(top) == expected
            assert (top / "file").read_text() == ("left" if layer == left else "base")


def test_a_layer_takes_changes_until_it_has_a_child(graph):
    """moby's ``committed``: the next mount of a parent is read-only (of vfs it is only not to be written)."""
    layer = graph.made(None, writing({"file": "1"}))
    assert graph.driver.is_read_write(layer)
    child = graph.made(layer)
    assert (graph.driver.is_read_write(layer), graph.driver.is_read_write(child)) == (False, True)
    if graph.kind == "fuse":
        with graph.mounted(layer) as top, pytest.raises(OSError, match="Read-only"):
            (top / "file").write_text("2")
    with pytest.raises((OSError, ValueError)):
        graph.driver.apply_diff(layer, Stream(tar(member("file", b"3"))))
    with graph.mounted(child) as top:
        assert (top / "file").read_text() == "1"
