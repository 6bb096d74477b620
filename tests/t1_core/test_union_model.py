"""Random stacks of layers: the fuse driver's union, the vfs driver's copy and a dictionary are one tree."""

import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import model
from support.layers import ROOT, names, paths, stack, tree, union_of
from support.model import Op, Thing

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver

# Few names, so that layers speak about the same ones.
PATHS = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/b/c", "a/b/d", "b/a/c"])
XATTRS = st.sampled_from([{}, {}, {b"user.k": b"v\0"}, {b"security.capability": b"\1"}, {b"trusted.t": b""}])
ATTRIBUTES = {
    "uid": st.sampled_from([0, 0, 1000, 2**32 - 2]),
    "gid": st.sampled_from([0, 0, 42]),
    "mtime": st.integers(-5, 5),
    "xattrs": XATTRS,
}
MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0o400, 0])

FILES = st.builds(Thing, st.just(stat.S_IFREG), MODES, content=st.binary(max_size=5), **ATTRIBUTES)
DIRECTORIES = st.builds(Thing, st.just(stat.S_IFDIR), MODES, **ATTRIBUTES)
SYMLINKS = st.builds(
    Thing,
    st.just(stat.S_IFLNK),
    st.just(0o777),
    content=st.sampled_from([b"a", b"../b", b"/c/a"]),
    **ATTRIBUTES,
)
FIFOS = st.builds(Thing, st.just(stat.S_IFIFO), MODES, **ATTRIBUTES)
DEVICES = st.builds(
    Thing, st.just(stat.S_IFCHR), MODES, rdev=st.sampled_from([0, os.makedev(1, 3)]), **ATTRIBUTES
)

OPS = st.one_of(
    st.builds(Op, st.just("make"), PATHS, FILES),
    st.builds(Op, st.just("make"), PATHS, st.one_of(DIRECTORIES, SYMLINKS, FIFOS, DEVICES)),
    st.builds(Op, st.just("make"), st.sampled_from(["a", "b", ""]), DIRECTORIES),
    st.builds(Op, st.just("link"), PATHS, st.none(), PATHS),
    st.builds(Op, st.just("link"), PATHS, st.none(), st.sampled_from(["a", "b", "a/a"])),
    st.builds(Op, st.just("delete"), PATHS),
    st.builds(Op, st.just("opaque"), st.one_of(st.just(""), PATHS)),
)
STACKS = st.lists(st.lists(OPS, max_size=8), min_size=1, max_size=4)


def shown(driver, archives):
    with driver.union(stack(driver, *archives)) as union:
        return model.shown_facts(tree(union))


def home(root, spelling):
    (root / "fuse").mkdir(parents=True)
    (root / "fuse" / "home.json").write_text(json.dumps({"ownership": "override", "whiteouts": spelling}))
    return FuseDriver(root, root / "run")


@pytest.mark.parametrize("driver", ["device", "name", "vfs"])
@settings(max_examples=4 * settings().max_examples)
@given(STACKS)
def test_the_union_shows_what_the_layers_say(driver, layers):
    """fuse with each spelling of whiteouts, and vfs."""
    expected, archives = model.stacked(layers)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "root")
        made = VfsDriver(root, root) if driver == "vfs" else home(root, driver)
        assert shown(made, archives) == model.facts(expected)


@given(STACKS)
def test_a_stack_is_read_the_same_when_nothing_is_known_of_it(layers):
    """As fuse-overlayfs finds its layers: from the directories alone, of whichever spelling."""
    expected, archives = model.stacked(layers)
    with tempfile.TemporaryDirectory() as place:
        driver = home(Path(place, "root"), "name" if len(archives) % 2 else "device")
        top = stack(driver, *archives)
        facts = driver.metadata(top)
        directories = [facts["UpperDir"], *filter(None, facts.get("LowerDir", "").split(":"))]
        with union_of(*map(Path, directories)) as union:
            assert paths(union) == sorted(path.encode() for path in expected if path)
            found = model.shown_facts(tree(union))
    known = model.facts(expected)
    assert {path: fact[:8] for path, fact in found.items()} == {
        path: fact[:8] for path, fact in known.items()
    }


@given(STACKS, st.integers(0, 12))
def test_listings_can_be_read_from_any_offset(layers, start):
    _, archives = model.stacked(layers)
    with tempfile.TemporaryDirectory() as place:
        driver = home(Path(place, "root"), "device")
        with driver.union(stack(driver, *archives)) as union:
            handle = union.opendir(ROOT)
            whole = [name for name, _, _ in union.readdir(handle, 0)]
            assert [name for name, _, _ in union.readdir(handle, start)] == whole[start:]
            assert sorted(names(union)) == sorted(set(whole) - {b".", b".."})
