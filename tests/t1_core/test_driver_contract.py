"""The parts of the driver contract that need no mount, on both drivers.

Theory: what a driver says about a layer - sizes, usage, files, places - must agree with what is in it, and an
RW layer that tars are applied to one after the other must show what as many layers of those tars would.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from support import model, naive
from support.layers import add, stack
from support.stacks import stacks
from support.tars import Stream, folder, hard_link, member, symlink, tar

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.ownership import Ownership
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import InvalidLayer, LayerInUse

DRIVERS = {"fuse": FuseDriver, "vfs": VfsDriver}


@pytest.fixture(params=DRIVERS)
def driver(request, tmp_path):
    """Overrides that of the directory: each driver in turn."""
    made = DRIVERS[request.param](tmp_path / "root", tmp_path / "run")
    yield made
    assert os.listdir(made.tmp) == []


def read_write(driver, parent=None):
    layer = new_cache_id()
    driver.create_read_write(layer, parent)
    return layer


def apply(driver, layer, *members):
    return driver.apply_diff(layer, Stream(tar(*members)))


def contents(driver, layer):
    """Files with their content, directories with None, by path."""
    return {path.decode(): entry.content for path, entry in naive.shown(driver, layer).items() if path}


# -- tars on an RW layer -------------------------------------------------------------------------------------

LOWER = tar(
    folder("d", 0o700, mtime=9), member("d/old", b"lower"), folder("d/sub"), member("d/sub/old", b"lower"),
    member("f", b"lower"), member("g", b"lower"), symlink("s", "d"), folder("t"), member("t/old"),
)  # fmt: skip
OWN = (
    folder("e"),
    member("e/own", b"own"),
    member("d/own", b"own"),
    member("h", b"own"),
    member("t", b"own"),
)
GIVEN = {
    "d": None, "d/old": b"lower", "d/own": b"own", "d/sub": None, "d/sub/old": b"lower", "e": None,
    "e/own": b"own", "f": b"lower", "g": b"lower", "h": b"own", "s": b"d", "t": b"own",
}  # fmt: skip
IN_D = ("d/old", "d/own", "d/sub", "d/sub/old")
ON_TOP = {
    "nothing": ((), {}, ()),
    "a file over its own": ((member("h", b"new"),), {"h": b"new"}, ()),
    "a file over one of the parent": ((member("d/old", b"new"),), {"d/old": b"new"}, ()),
    "a deletion of its own": ((member(".wh.h"),), {}, ("h",)),
    "a deletion in the parent": ((member("d/.wh.old"),), {}, ("d/old",)),
    "a deletion of a directory of both": ((member(".wh.d"),), {}, ("d", *IN_D)),
    "a deletion of nothing": ((member(".wh.nothing"),), {}, ()),
    "an opaque directory": (
        (folder("d"), member("d/.wh..wh..opq"), member("d/new", b"new")),
        {"d/new": b"new"},
        IN_D,
    ),
    "an opaque root": ((member(".wh..wh..opq"), member("only", b"new")), {"only": b"new"}, tuple(GIVEN)),
    "a directory over a file of the parent": ((member("f/new", b"new"),), {"f": None, "f/new": b"new"}, ()),
    "a directory over its own file": (
        (folder("h"), member("h/new", b"new")),
        {"h": None, "h/new": b"new"},
        (),
    ),
    "a directory over its own file, which hides one": ((folder("t", 0o711),), {"t": None}, ()),
    "a directory over a symlink": ((folder("s"),), {"s": None}, ()),
    "a file over a directory": ((member("d", b"new"),), {"d": b"new"}, IN_D),
    "a file over its own directory": ((member("e", b"new"),), {"e": b"new"}, ("e/own",)),
    "a hard link to one of the parent": ((hard_link("i", "f"),), {"i": b"lower"}, ()),
    "a hard link to its own": ((hard_link("i", "d/own"),), {"i": b"own"}, ()),
    "a hard link over a file": ((hard_link("g", "h"),), {"g": b"own"}, ()),
    "a directory with another mode": ((folder("d", 0o711, mtime=3),), {}, ()),
    "a deletion and the same anew": (
        (member(".wh.d"), folder("d"), member("d/old", b"new")),
        {"d/old": b"new"},
        ("d/own", "d/sub", "d/sub/old"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_TOP)
def test_apply_diff_on_an_rw_layer(driver, case):
    """It shows what a layer of the tar on top of it would, and its diff is enough to make the same."""
    members, made, gone = ON_TOP[case]
    parent, _ = add(driver, LOWER)
    layer = read_write(driver, parent)
    apply(driver, layer, *OWN)
    as_layers = stack(driver, LOWER, tar(*OWN), tar(*members))
    applied = apply(driver, layer, *members)
    assert contents(driver, layer) == {path: data for path, data in GIVEN.items() if path not in gone} | made
    tree = naive.facts(naive.shown(driver, layer))
    assert tree == naive.facts(naive.shown(driver, as_layers))
    assert applied.size == add(driver, tar(*members), stack(driver, LOWER, tar(*OWN)))[1].size
    again = read_write(driver, parent)
    driver.apply_diff(again, Stream(b"".join(driver.diff(layer, parent))))
    assert naive.facts(naive.shown(driver, again)) == tree
    child = read_write(driver, layer)
    assert naive.facts(naive.shown(driver, child)) == tree


@pytest.mark.parametrize("kind", DRIVERS)
@given(stacks(Ownership.OVERRIDE))
@settings(max_examples=settings().max_examples // 2)
def test_random_tars_on_an_rw_layer(kind, layers):
    """All but the first in one RW layer: the model of as many layers."""
    tree, archives = model.stacked(layers)
    with tempfile.TemporaryDirectory() as place:
        driver = DRIVERS[kind](Path(place), Path(place, "run"))
        layer = read_write(driver, add(driver, (archives or [tar()])[0])[0])
        for archive in archives[1:]:
            driver.apply_diff(layer, Stream(archive))
        assert naive.facts(naive.shown(driver, layer)) == model.facts(tree)


def test_a_tar_that_fails_changes_nothing_in_an_rw_layer(driver):
    layer = read_write(driver, add(driver, LOWER)[0])
    apply(driver, layer, *OWN)
    before = naive.shown(driver, layer)
    for archive in (tar(member("h", b"new"), member("../x")), member("h", b"x" * 2000)[:1000], b"junk" * 500):
        with pytest.raises(InvalidLayer):
            driver.apply_diff(layer, Stream(archive))
    assert naive.shown(driver, layer) == before


def test_the_links_of_a_layer_that_got_a_child_are_known(driver):
    """How many of them a child has left, and that they are one file when it changes one."""
    layer = read_write(driver)
    apply(driver, layer, member("a", b"1"), hard_link("b", "a"), hard_link("c", "a"))
    child, _ = add(driver, tar(member(".wh.c"), hard_link("d/e", "a")), layer)
    assert [naive.shown(driver, child)[name].nlink for name in (b"a", b"b", b"d/e")] == [3, 3, 3]
    child, _ = add(driver, tar(member(".wh.c")), layer)
    assert [naive.shown(driver, child)[name].nlink for name in (b"a", b"b")] == [2, 2]


# -- sizes and files -----------------------------------------------------------------------------------------


def test_sizes_agree(driver):
    """What Apply, DiffSize and usage count: each file once, directories and links not at all."""
    members = (
        folder("d"), member("d/f", b"1" * 1000), hard_link("d/l", "d/f"), symlink("s", "target"),
        member("e"), member("g", b"2" * 10),
    )  # fmt: skip
    base, applied = add(driver, tar(*members))
    size = 1000 + len("target") + 10
    assert applied.size == driver.diff_size(base, None) == driver.usage(base).size == size
    child, applied = add(driver, tar(member(".wh.e"), member("g", b"3" * 70), hard_link("i", "d/l")), base)
    assert applied.size == driver.diff_size(child, base) == 1070
    assert driver.diff_size(child, None) == 1000 + len("target") + 70
    assert driver.usage(child).size == (1070 if driver.stacked else 1000 + len("target") + 70)
    only_deletes, applied = add(driver, tar(member(".wh.d"), member(".wh.g")), child)
    assert applied.size == driver.diff_size(only_deletes, child) == 0  # TestChangesSizeWithOnlyDelete


def test_usage_counts_inodes(driver):
    base, _ = add(driver, tar(folder("d"), member("d/f", b"x" * 10), hard_link("d/l", "d/f")))
    assert driver.usage(base) == (10, 3)
    empty = read_write(driver)
    assert driver.usage(empty) == (0, 1)


def test_diff_getter(driver):
    """DiffGetter: the layer's own files by any name that its tar could have for them."""
    parent, _ = add(driver, tar(folder("d"), member("d/f", b"below"), member("low", b"below")))
    layer, _ = add(
        driver,
        tar(folder("d"), symlink("s", "d"), member("d/f", b"own"), hard_link("l", "d/f"), member(".wh.low")),
        parent,
    )
    getter = driver.diff_getter(layer)
    for name in (b"d/f", b"./d//f", b"/d/f", b"s/f", b"d/../d/f", b"l"):
        with open(getter.get(name), "rb") as file:
            assert file.read() == b"own"
    for name in (b"d", b"s", b"low", b"nothing", b"d/f/x", b".", b"../lock"):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            getter.get(name)
    with pytest.raises(LayerInUse):
        driver.remove(layer)
    getter.close()
    getter.close()
    driver.remove(layer)


# -- layers that are there, and those that are not -----------------------------------------------------------


def test_what_needs_a_layer_says_when_it_is_not_there(driver):
    """And leaves nothing."""
    present, _ = add(driver, tar(member("f")))
    missing = new_cache_id()
    for call in (
        lambda: driver.get(missing),
        lambda: driver.metadata(missing),
        lambda: driver.usage(missing),
        lambda: driver.changes(missing, None),
        lambda: driver.changes(present, missing),
        lambda: list(driver.diff(missing, None)),
        lambda: list(driver.diff(present, missing)),
        lambda: driver.diff_size(missing, present),
        lambda: driver.diff_getter(missing),
        lambda: driver.freeze(missing),
        lambda: driver.hold(missing),
        lambda: driver.union(missing).__enter__(),
        lambda: driver.stage(new_cache_id(), missing),
    ):
        with pytest.raises(FileNotFoundError):
            call()
    assert (driver.exists(missing), driver.is_read_write(missing), driver.mounted(missing)) == (
        False,
        False,
        0,
    )
    assert driver.list_layers() == [present]
    with pytest.raises(ValueError):
        apply(driver, missing, member("f"))


def test_metadata_and_status(driver, tmp_path):
    """GetMetadata has overlay2's and vfs's keys; Status is rows of words."""
    base, _ = add(driver, tar(member("f", b"own")))
    layer = read_write(driver, base)
    home = tmp_path / "root" / driver.name
    expected = {
        "fuse": [
            {"UpperDir": f"{home}/{base}/diff"},
            {
                "UpperDir": f"{home}/{layer}/diff",
                "LowerDir": f"{home}/{base}/diff",
                "WorkDir": f"{home}/{layer}/work",
                "MergedDir": f"{tmp_path}/run/mnt/{layer}",
            },
        ],
        "vfs": [{"SourceDir": f"{home}/{name}/diff"} for name in (base, layer)],
    }
    assert [driver.metadata(base), driver.metadata(layer)] == expected[driver.name]
    rows = dict(driver.status())
    assert rows["Backing Filesystem"] in Path("/proc/filesystems").read_text().split()
    assert all(
        isinstance(row, tuple) and all(isinstance(word, str) for word in row) for row in driver.status()
    )
    assert rows["Ownership"] == driver.ownership.value
    assert driver.name in ("fuse", "vfs")


def test_cleanup_takes_away_what_dead_processes_left(driver, tmp_path):
    """A half-made layer, a half-removed one and a link to nothing; not what somebody is making."""
    kept, _ = add(driver, tar(member("f")))
    dead, living = new_cache_id(), new_cache_id()
    script = (
        "import os, sys; from pathlib import Path\n"
        "from fusestore.driver.fuse import FuseDriver; from fusestore.driver.vfs import VfsDriver\n"
        "kind = {'fuse': FuseDriver, 'vfs': VfsDriver}[sys.argv[1]]\n"
        "kind(Path(sys.argv[2]), Path(sys.argv[3])).stage(sys.argv[4], None); os._exit(0)"
    )
    place = [str(tmp_path / "root"), str(tmp_path / "run")]
    subprocess.run([sys.executable, "-c", script, driver.name, *place, dead], check=True, timeout=60)
    driver.stage(living, kept)
    (driver.links / "A").symlink_to(f"../{dead}/diff")
    assert os.listdir(driver.tmp) != [living]
    driver.cleanup()
    assert (os.listdir(driver.tmp), driver.list_layers()) == ([living], [kept])
    assert len(os.listdir(driver.links)) == 1
    driver.discard(living)


def test_a_label_for_the_mount_is_taken(driver):
    layer = new_cache_id()
    driver.create(layer, mount_label="system_u:object_r:container_file_t:s0")
    assert driver.exists(layer)


def test_the_same_id_twice_is_refused(driver):
    layer = read_write(driver)
    apply(driver, layer, member("f", b"own"))
    with pytest.raises(OSError):
        driver.create(layer)
    assert contents(driver, layer) == {"f": b"own"}
