"""What a repair does about each damage of `support.damage`: no more than it takes, and as often as one likes.

After a repair, and after one that was killed at any moment and another one, the store is in order, by our
check and by the tests' own, and has all that was not damaged.
"""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from support.damage import CONTENT, GARBAGE, LAYERS, RECORDS
from support.fsck import problems
from support.images import sha256
from support.stores import opened
from support.tars import Stream
from support.town import GRAPH, IMAGE, LAYER, LONE, RW, Copy, lines

from fusestore.store.upkeep.check import check
from fusestore.store.upkeep.repair import repair
from fusestore.store.upkeep.report import Kind, Problem, Remedy, Report

DAMAGES = {**CONTENT, **LAYERS, **RECORDS}
WHOLE = {"LAYER", "BASE", "IMAGE", "other", "made", "c", "c-layer", "rw", sha256(RW), sha256(LONE), GRAPH}


@pytest.fixture
def copy(tmp_path_factory, tmp_path):
    return Copy(tmp_path_factory.getbasetemp(), tmp_path / "copy")


def until_clean(store, *, force):
    """Repair until nothing more can be done, as the command does; what is left."""
    left = ()
    for _ in range(3):
        report = check(store)
        left = repair(store, report, force=force).left if report.problems else ()
        if check(store).is_clean:
            return ()
    return left


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_goes_and_nothing_else(copy, name):
    damage = DAMAGES[name]
    damage.act(copy)
    with copy.open() as store:
        if damage.force:
            left = until_clean(store, force=False)
            assert any("only with --force" in line for line in lines(left)), lines(left)
            assert {"c", "rw"} <= copy.items()
        assert until_clean(store, force=damage.force) == ()
        assert copy.items() == WHOLE - damage.gone
        assert repair(store, check(store)).done == []
        for image in store.images():
            with store.union(image) as union:
                assert union.resolve(b"") is not None
    assert problems(copy.root) == []


def test_garbage_goes_and_what_is_half_made_stays(copy):
    with copy.open() as store:
        for name in GARBAGE:
            path = copy.root / name
            path.parent.mkdir(exist_ok=True)
            path.mkdir() if name.endswith("/") else path.touch()
        (copy.root / "fuse" / ("0" * 64) / "diff").mkdir(parents=True)  # not even a lock
        store.graph_driver.stage("1" * 64, None)
        done = repair(store, check(store))
        assert done.left == []
        assert sorted(done.done) == sorted(
            [f"deleted file {name.removesuffix('/')}" for name in GARBAGE]
            + [f"deleted driver layer {'0' * 64}"]
        )
        assert check(store).is_clean
        store.graph_driver.publish("1" * 64).close()
        store.graph_driver.remove("1" * 64)
    assert copy.items() == WHOLE
    assert problems(copy.root) == []


def test_layers_that_nothing_needs_go_when_that_is_asked_for(copy):
    with copy.open() as store:
        held = store.layer_store.register(Stream(LONE), sha256(RW))
        report = check(store, max_age=-10)
        assert {problem.item for problem in report.problems} == {sha256(LONE), held.chain_id}
        (left,) = repair(store, report).left
        assert (left.item, "another process works with it" in left.what) == (held.chain_id, True)
        store.layer_store.close()
        assert repair(store, check(store, max_age=-10)).left == []
        assert copy.items() == WHOLE - {sha256(LONE)}


def test_a_layer_that_was_made_anew_stays(copy):
    with copy.open() as store:
        (copy.directory(sha256(LONE)) / "diff/new").touch()
        report = check(store)
        store.layer_store.delete(sha256(LONE))
        store.layer_store.register(Stream(LONE))
        repair(store, report)
        assert copy.items() == WHOLE
        assert check(store).is_clean


def test_an_image_that_is_whole_again_stays(copy):
    manifest = copy.blob("image", IMAGE, "manifest")
    data = manifest.read_bytes()
    manifest.unlink()
    with copy.open() as store:
        report = check(store)
        store.set_image_big_data(IMAGE, "manifest", data)
        assert repair(store, report).done == []
        assert copy.items() == WHOLE
        assert check(store).is_clean


def test_what_is_not_damaged_any_more_is_not_touched(copy):
    """A report may be old, or wrong."""
    with copy.open() as store:
        told = [
            Problem(Kind.FILE, "big/made/k", "no row names it", Remedy.COLLECT),
            Problem(Kind.DRIVER_LAYER, copy.directory("other").name, "", Remedy.COLLECT),
            Problem(Kind.DATABASE, "names", "", Remedy.UNNAME),
            Problem(Kind.LAYER, LAYER, "", Remedy.RESTORE, copy.directory(LAYER).name),
            Problem(Kind.LAYER, LAYER, "an image is on it", Remedy.DELETE, copy.directory(LAYER).name),
            Problem(Kind.LAYER, sha256(LONE), "another one", Remedy.DELETE, "0" * 64),
            Problem(Kind.MOUNT, "/", "", Remedy.UNMOUNT),
            Problem(Kind.RO_LAYER, "x", "not ours"),
        ]
        left = repair(store, Report(tuple(told)), force=True).left
        assert {problem.item for problem in left} >= {"big/made/k", LAYER, "x"}
        assert copy.items() == WHOLE
        assert check(store).is_clean


def test_an_image_that_is_read_stays_until_it_is_not(copy):
    copy.blob("image", IMAGE, "manifest").unlink()
    with copy.open() as store, copy.open() as reader:
        with reader.union(reader.image(IMAGE)):
            (left,) = repair(store, check(store)).left
            assert (left.kind, left.item) == (Kind.IMAGE, IMAGE)
        assert repair(store, check(store)).left == []


def test_nothing_is_repaired_in_other_stores(copy, tmp_path):
    (copy.directory(LAYER) / "diff/b").unlink()
    with opened(tmp_path / "mine", tmp_path / "run", "fuse", copy.root) as store:
        report = check(store)
        assert repair(store, report, force=True).left == list(report.problems)
        assert check(store) == report
    assert copy.items() == WHOLE


def test_a_store_that_is_not_ours_to_write_is_not_repaired(copy):
    (copy.directory(LAYER) / "diff/b").unlink()
    copy.root.chmod(0o500)
    try:
        with copy.open() as store:
            report = check(store)
            repaired = repair(store, report)
    finally:
        copy.root.chmod(0o700)
    assert repaired.done == ()
    assert repaired.left == [replace(p, what=f"{p.what} (the store is read-only)") for p in report.problems]


_REPAIR = """
import os, signal, sys
from pathlib import Path
from support.stores import opened
from fusestore.store.upkeep.check import check
from fusestore.store.upkeep.repair import repair

def trace(frame, event, argument):
    global left
    if event == "call" and frame.f_code.co_filename.startswith(sys.argv[4]):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

with opened(Path(sys.argv[1]), Path(sys.argv[2]), "fuse") as store:
    report = check(store)
    left = int(sys.argv[3])
    sys.setprofile(trace)
    repair(store, report, force=True)
"""


@pytest.mark.parametrize("at", [1, 200, 800, 1400])
def test_a_repair_that_is_killed_can_be_repeated(copy, at):
    for name in (
        "a file gone",
        "a link",
        "a layer's data",
        "an RW layer",
        "a layer's size",
        "rows of nothing",
    ):
        DAMAGES[name].act(copy)
    source = os.path.dirname(sys.modules["fusestore"].__file__)
    command = [sys.executable, "-bb", "-c", _REPAIR, copy.root, copy.runroot, str(at), source]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    with copy.open() as store:
        assert until_clean(store, force=True) == ()
    assert copy.items() == {sha256(LONE), GRAPH}
    assert problems(copy.root) == []
