"""Borrowing: a layer whose files another store keeps is a parent of ours as any other, and never written to.

Theory: a chain in which some layers are borrowed answers every question as the same chain made wholly of our
own.  Whatever we do, even deleting, leaves every inode of the other store as it was, change times included;
and when that store is gone, this is said, and we go on without.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive, shim
from support.foreign import MAPPED, borrow, made, state
from support.layers import add, stack
from support.random_layers import layers as random_layers
from support.tars import folder, hard_link, member, read, tar

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import LayerSpec, Origin
from fusestore.driver.ownership import OVERRIDE_STAT
from fusestore.errors import CorruptStore, InvalidLayer, LayerInUse, NotSupported


@pytest.fixture
def lender(tmp_path):
    """Another fusestore's driver."""
    return FuseDriver(tmp_path / "other" / "root", tmp_path / "other" / "run")


BASE = tar(
    *(folder("d", 0o700, uid=7), member("d/f", b"base", mode=0o4711, uid=7, gid=8), member("gone")),
    *(member("d/linked", b"linked", uid=3), hard_link("name", "d/linked")),
)
TOP = tar(member("d/g", b"top"), member(".wh.gone"), hard_link("d/hard", "d/f"), hard_link("third", "name"))


def lent(lender, *archives):
    """Layers of another store, bottom first, as it names them."""
    chain = lender.chain(stack(lender, *archives))[::-1]
    return [spec for layer in chain for spec in lender.layer_specs([layer])]


def facts(driver, layer):
    """All that a layer shows but for inode numbers."""
    return {path: entry._replace(ino=0) for path, entry in naive.shown(driver, layer).items()}


def answers(driver, layer, parent):
    """What a driver says of the difference between two layers."""
    archive = b"".join(driver.diff(layer, parent))
    return driver.changes(layer, parent), driver.diff_size(layer, parent), archive


def test_a_borrowed_layer_is_a_layer(driver, lender):
    (spec,) = lent(lender, BASE)
    before, layer = state(lender.path), new_cache_id()
    with driver.borrow(layer, None, spec), pytest.raises(LayerInUse):
        driver.remove(layer)
    assert driver.exists(layer)
    assert driver.list_layers() == [layer]
    assert not driver.is_read_write(layer)
    assert driver.metadata(layer) == {"UpperDir": spec.path}
    assert driver.usage(layer) == lender.usage(lender.list_layers()[0])
    assert driver.notes(layer).is_dir()
    own = str(driver.path / layer / "lock")
    assert driver.borrowed(layer) == LayerSpec(
        spec.path, spec.links, own, Origin(driver.ownership, driver.spelling), spec.lock
    )
    getter = driver.diff_getter(layer)
    with open(getter.get(b"d/./f"), "rb") as file:
        assert file.read() == b"base"
    getter.close()
    assert before == state(lender.path)


def test_what_is_put_on_a_borrowed_layer_knows_what_is_below(driver, lender):
    """A deletion, and hard links to files of theirs, which are copied with their owners."""
    (spec,) = lent(lender, BASE)
    before = state(lender.path)
    layer, applied = add(driver, TOP, borrow(driver, spec.path, origin=None, links=spec.links))
    assert applied.reproducible
    found = naive.shown(driver, layer)
    assert b"gone" not in found
    linked = {b"d/hard": (7, 2), b"d/f": (7, 2), b"third": (3, 3), b"name": (3, 3)}
    assert {path: (found[path].uid, found[path].nlink) for path in linked} == linked
    stored = os.getxattr(driver.path / layer / "diff/d/hard", OVERRIDE_STAT)
    assert stored == b"7:8:4711:file"
    assert driver.usage(layer).size == len(b"base" + b"linked" + b"top")
    assert before == state(lender.path)


def test_what_is_shown_of_a_mapped_layer_is_what_is_copied(driver, tmp_path):
    """Files of theirs, which are ours on disk and 0:0 in their image, become 0:0 in our format."""
    theirs = made(tmp_path / "theirs", {"d/f": b"data", "d/sub/": b""})
    (theirs / "d/sub").chmod(0o1750)
    before = state(theirs)
    lower = borrow(driver, theirs, origin=MAPPED)
    top, _ = add(driver, tar(hard_link("new", "d/f"), member("d/sub/new")), lower)
    for path, expected in {"new": b"0:0:0644:file", "d": b"0:0:0755:dir", "d/sub": b"0:0:1750:dir"}.items():
        assert os.getxattr(driver.path / top / "diff" / path, OVERRIDE_STAT) == expected
    read_write = new_cache_id()
    driver.create_read_write(read_write, lower)
    assert os.getxattr(driver.path / read_write / "diff", OVERRIDE_STAT) == b"0:0:0755:dir"
    members = [found for found, _ in read(b"".join(driver.diff(lower, None)))]
    assert {(found.uid, found.gid) for found in members} == {(0, 0)}
    assert state(theirs) == before


def test_deleting_a_borrowed_layer_touches_nothing_of_theirs(driver, tmp_path):
    theirs = made(tmp_path / "theirs", {"canary": b"alive", "d/canary": b"alive"})
    before = state(theirs)
    layer = borrow(driver, theirs)
    on_top, _ = add(driver, tar(member("f")), layer)
    for doomed in (on_top, layer):
        driver.remove(doomed)
    (driver.tmp / "half-made").mkdir()  # what a killed process leaves
    (driver.tmp / "half-made/diff").symlink_to(theirs)
    driver.cleanup()
    assert state(theirs) == before
    assert [os.listdir(place) for place in (driver.tmp, driver.links)] == [[], []]
    assert driver.list_layers() == []


def test_when_their_store_is_gone_every_use_says_where_it_was(driver, tmp_path):
    theirs = made(tmp_path / "theirs", {"f": b"x"})
    layer = borrow(driver, theirs, add(driver, tar(member("base")))[0])
    top, _ = add(driver, tar(member("top")), layer)
    theirs.rename(tmp_path / "moved")
    uses = {
        "union": lambda: driver.union(top).__enter__(),
        "changes": lambda: driver.changes(layer, None),
        "diff": lambda: list(driver.diff(top, layer)),
        "diff_getter": lambda: driver.diff_getter(layer),
        "usage": lambda: driver.usage(layer),
        "metadata": lambda: driver.metadata(top),
        "spec": lambda: driver.spec(top, "label"),
        "get": lambda: driver.get(top),
        "create_read_write": lambda: driver.create_read_write(new_cache_id(), top),
    }
    for use, call in uses.items():
        with pytest.raises(
            CorruptStore, match=f"^{theirs}: .*another store lent to layer {layer[:12]}, are gone"
        ):
            call()
        assert os.listdir(driver.tmp) == [], use
    driver.cleanup()
    assert driver.exists(layer)
    assert layer in driver.list_layers()
    assert driver.borrowed(layer).path == str(theirs)
    (tmp_path / "moved").rename(theirs)
    assert sorted(naive.shown(driver, top))[1:] == [b"base", b"f", b"top"]
    theirs.rename(tmp_path / "moved")
    for doomed in (top, layer):
        driver.remove(doomed)
    assert not driver.exists(layer)


def test_a_damaged_record_of_where_a_layer_is_from_is_told(driver, tmp_path):
    layer = borrow(driver, made(tmp_path / "theirs", {}))
    record = driver.path / layer / "origin.json"
    for damage in (
        b"",
        b"[]",
        b'{"links": null}',
        record.read_bytes().replace(b'"uids": []', b'"uids": [[1]]'),
    ):
        record.write_bytes(damage)
        with pytest.raises(CorruptStore, match=rf"{layer}/origin\.json"):
            driver.layer_specs([layer])
    driver.remove(layer)


def test_what_cannot_be_borrowed_leaves_nothing(driver, vfs, tmp_path):
    theirs = made(tmp_path / "theirs", {"f": b""})
    (tmp_path / "closed/f").mkdir(parents=True)
    taken = new_cache_id()
    cases = [
        (vfs, LayerSpec(str(theirs)), None, NotSupported, "vfs keeps a full copy of every layer"),
        (driver, LayerSpec("theirs"), None, ValueError, "not an absolute path"),
        (driver, LayerSpec(str(tmp_path / "none")), None, FileNotFoundError, "none"),
        (driver, LayerSpec(str(theirs / "f")), None, NotADirectoryError, "theirs/f"),
        (driver, LayerSpec(str(tmp_path / "closed/f")), None, PermissionError, "closed"),
        (driver, LayerSpec(str(theirs)), new_cache_id(), FileNotFoundError, "No such file"),
    ]
    (tmp_path / "closed").chmod(0)
    try:
        for borrower, spec, parent, error, words in cases:
            with pytest.raises(error, match=words):
                borrower.borrow(taken, parent, spec)
            assert os.listdir(borrower.tmp) == []
            assert borrower.list_layers() == []
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_borrowed_layer_that_cannot_be_published_leaves_nothing(driver, tmp_path):
    theirs, layer = made(tmp_path / "theirs", {"f": b""}), new_cache_id()
    driver.links.chmod(0o500)
    with pytest.raises(PermissionError):
        driver.borrow(layer, None, LayerSpec(str(theirs)))
    driver.links.chmod(0o700)
    assert [driver.list_layers(), os.listdir(driver.tmp)] == [[], []]
    driver.borrow(layer, None, LayerSpec(str(theirs))).close()
    assert driver.list_layers() == [layer]
    assert (theirs / "f").exists()


def test_whatever_fails_or_dies_on_the_way_a_layer_is_borrowed_or_not(tmp_path):
    """kill -9, ENOSPC, EMFILE at every call by which something is changed or opened."""
    library = shim.compiled(tmp_path)
    command = [sys.executable, "-bb", "-m", "support.borrow_faults", tmp_path / "place"]
    environment = shim.environment(library) | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)
    }
    (tmp_path / "place").mkdir()
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (said.returncode, said.stderr) == (0, ""), said.stderr
    points = {fault: int(count) for fault, count in map(str.split, said.stdout.splitlines())}
    assert set(points) == {"kill", "torn", "ENOSPC", "EMFILE"}
    assert min(points.values()) > 0
    assert points["kill"] > 8


@settings(max_examples=15)
@given(st.lists(random_layers(), min_size=2, max_size=4), st.integers(0, 15))
def test_a_mixed_chain_is_the_same_as_our_own(tmp_path_factory, archives, which):
    """Every layer whose bit is set in `which` is borrowed; all layers are compared with all below."""
    with tempfile.TemporaryDirectory() as place:
        lender, ours = (FuseDriver(Path(place, name), Path(place, "run")) for name in ("lender", "ours"))
        own, mixed = [None], [None]
        for number, archive in enumerate(archives):
            try:
                own.append(add(lender, archive, own[-1])[0])
            except InvalidLayer:
                continue
            if which >> number & 1:
                mixed.append(new_cache_id())
                ours.borrow(mixed[-1], mixed[-2], lender.layer_specs([own[-1]])[0]).close()
            else:
                mixed.append(add(ours, archive, mixed[-1])[0])
        for top in range(1, len(own)):
            assert facts(ours, mixed[top]) == facts(lender, own[top])
            for under in range(top):
                pairs = ((lender, own[top], own[under]), (ours, mixed[top], mixed[under]))
                assert answers(*pairs[0]) == answers(*pairs[1])
