"""What a check says of a damaged store, and that it says nothing of one that others work with.

Every damage of `support.damage` is done to a copy of one store, and the whole report compared; whatever the
tests' own checker finds, which shares no code with ours, ours must find.  The cases of containers/storage's
check.bats are among them.
"""

import os
import subprocess
import sys

import pytest
from support.damage import CONTENT, GARBAGE, LAYERS, RECORDS
from support.fsck import problems
from support.graphroots import Written
from support.images import sha256
from support.stores import DRIVERS, opened
from support.tars import Stream, member, tar
from support.town import GRAPH, LAYER, LONE, Copy, lines, told

from fusestore.files import make_locked
from fusestore.store.upkeep.check import check
from fusestore.store.upkeep.report import Kind, Remedy

ALL = [(driver, name) for driver in DRIVERS for name in CONTENT]
ALL += [("fuse", name) for name in (*LAYERS, *RECORDS)]


@pytest.fixture
def copy(tmp_path_factory, tmp_path):
    return lambda driver="fuse": Copy(tmp_path_factory.getbasetemp(), tmp_path / "copy", driver)


def found(copy, **options):
    with copy.open() as store:
        return check(store, **options).problems


def state(root):
    """Every file below a store's root with what tells a change; the database's own log does not count."""
    paths = [p for p in root.rglob("*") if not p.name.startswith("store.db") and p.name != "tmp"]
    return {p: (os.lstat(p).st_ino, os.lstat(p).st_mtime_ns, os.lstat(p).st_size) for p in paths}


@pytest.mark.parametrize("driver", DRIVERS)
def test_all_is_well_and_nothing_is_changed(copy, driver):
    copy = copy(driver)
    before = state(copy.root)
    assert found(copy) == found(copy, quick=True) == ()
    assert state(copy.root) == before
    assert problems(copy.root) == []


@pytest.mark.parametrize(("driver", "name"), ALL)
def test_damage_is_told(copy, driver, name):
    copy, damage = copy(driver), {**CONTENT, **LAYERS, **RECORDS}[name]
    damage.act(copy)
    report = found(copy)
    assert told(report, damage.lines), lines(report)
    assert bool(found(copy, quick=True)) == damage.quick
    assert damage.quick or problems(copy.root) == []


def test_a_v1_image_without_its_files(copy):
    copy = copy()
    (copy.directory(GRAPH) / "diff").rename(copy.root / "gone")
    (problem,) = found(copy)
    assert (problem.kind, problem.item) == (Kind.GRAPH_IMAGE, GRAPH)


def test_every_difference_of_a_layer_is_told_up_to_ten(copy):
    copy = copy()
    for i in range(12):
        (copy.directory(LAYER) / f"diff/{i:02}").touch()
    (layer, _) = found(copy)
    assert layer.what.split(", ") == [f"+/{i:02}" for i in range(10)] + ["...", "layer content modified"]


def test_a_damaged_page_of_the_database(copy):
    copy = copy()
    ((page,),) = copy.sql("SELECT rootpage FROM sqlite_master WHERE name = 'images_digest'")
    ((size,),) = copy.sql("PRAGMA page_size")
    with open(copy.root / "store.db", "r+b") as file:
        file.seek((page - 1) * size)
        file.write(bytes(size))
    report = found(copy)
    assert report
    assert {(problem.kind, problem.item) for problem in report} == {(Kind.DATABASE, "store.db")}


# -- leftovers ----------------------------------------------------------------------------------------


def garbage(copy):
    """Have every kind of it; the lines that tell of it."""
    for name in GARBAGE:
        path = copy.root / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    layer = copy.root / copy.driver / ("0" * 64)
    (layer / "diff").mkdir(parents=True)
    (layer / "lock").touch()
    (layer.parent / "l/STRAY").symlink_to("../x/diff")
    return (
        f"driver layer {layer.name}: layer in lower level storage driver not accounted for",
        f"file {copy.driver}/l/STRAY: it leads to no layer",
        *(f"file {name.removesuffix('/')}: {what}" for name, what in GARBAGE.items()),
    )


def test_what_no_row_names_is_told(copy):
    copy = copy()
    with copy.open() as store:  # who opens a store empties its tmp/
        expected = garbage(copy)
        assert told(check(store).problems, expected), lines(check(store).problems)
        assert len(problems(copy.root)) == len(expected)


def test_what_somebody_works_with_is_not_left_over(copy):
    copy = copy()
    with copy.open() as store:
        fd = make_locked(copy.root / "tmp/busy", copy.root / "tmp")
        store.graph_driver.stage("1" * 64, None)
        held = store.graph_driver.publish("1" * 64)  # and no row yet
        assert check(store).is_clean
        os.close(fd)
        held.close()
        assert len(check(store).problems) == 2
        store.graph_driver.remove("1" * 64)


@pytest.mark.parametrize(("max_age", "names"), [(0, [LONE, "x"]), (None, []), (3600, [])])
def test_layers_that_nothing_needs_are_told_when_that_is_asked_for(copy, max_age, names):
    copy = copy()
    copy.sql("UPDATE layers SET created = created - 60")
    with copy.open() as store:
        store.put_layer("x", sha256(LONE), diff=Stream(LONE))
    copy.sql("UPDATE layers SET created = created - 60")
    report = found(copy, max_age=max_age)
    assert {problem.item for problem in report} == {sha256(LONE) if n is LONE else n for n in names}
    assert {problem.what for problem in report} <= {"layer not referenced by any images or containers"}


# -- additional stores --------------------------------------------------------------------------------


@pytest.fixture
def lender(copy):
    """A store, and another one that has it as an additional store."""
    return copy()


def damaged(copy, tmp_path):
    with opened(tmp_path / "mine", tmp_path / "run", "fuse", copy.root) as store:
        return [
            problem for problem in check(store).problems if problem.kind in (Kind.RO_LAYER, Kind.RO_IMAGE)
        ]


def test_what_additional_stores_have_is_checked_too(lender, tmp_path):
    assert damaged(lender, tmp_path) == []
    (lender.directory(LAYER) / "diff/b").write_bytes(b"c" * 50)
    what = "read-only layer LAYER: file integrity checksum failed for b"
    assert told(damaged(lender, tmp_path), (what, f"read-only image IMAGE: {what}"))
    lender.blob("image", "made", "k").unlink()
    (lender.directory("other") / "diff/other").unlink()
    last = "read-only layer other: other is missing"
    inherited = f"read-only layer c-layer: {last}", f"read-only image made: {last}"
    data = "read-only image made: image data item 'k': *is missing*"
    assert told(damaged(lender, tmp_path), (what, f"read-only image IMAGE: {what}", last, *inherited, data))


def test_leftovers_in_additional_stores_are_their_owners(lender, tmp_path):
    garbage(lender)
    assert damaged(lender, tmp_path) == []


def test_a_graphroot_is_checked(tmp_path):
    written = Written(tmp_path / "storage")
    written.layer("base", files={"a": b"1"})
    written.image("i" * 64, "base", {"manifest": b"{}"})
    with opened(tmp_path / "mine", tmp_path / "run", "fuse", written.path) as store:
        assert check(store).is_clean
        (written.path / "overlay/base/diff").rename(tmp_path / "gone")
        assert {problem.kind for problem in check(store).problems} == {Kind.RO_LAYER, Kind.RO_IMAGE}


def test_borrowed_layers_whose_files_are_gone(lender, tmp_path):
    with opened(tmp_path / "mine", tmp_path / "run", "fuse", lender.root) as store:
        store.create_container("mine", image="made")
        assert check(store).is_clean
        lender.root.rename(tmp_path / "elsewhere")
    with opened(tmp_path / "mine", tmp_path / "run", "fuse") as store:
        report = check(store)
        assert [p.kind for p in report.problems] == [Kind.CONTAINER, Kind.LAYER, Kind.LAYER, Kind.CONTAINER]
        assert "in another store, are gone" in report.problems[1].what


def test_a_store_that_is_not_ours_to_write_is_checked(lender, tmp_path):
    places = [lender.root / "tmp", lender.root]
    (lender.directory(LAYER) / "diff/b").write_bytes(b"c" * 50)
    garbage(lender)
    for place in places:
        place.chmod(0o500)
    try:
        report = found(lender)
    finally:
        for place in reversed(places):
            place.chmod(0o700)
    what = "layer LAYER: file integrity checksum failed for b"
    assert told(report, (what, f"image IMAGE: {what}"))


def test_what_cannot_be_read_is_told_and_not_deleted(copy):
    copy = copy()
    (copy.directory(LAYER) / "diff/b").chmod(0)
    report = found(copy)
    what = "layer LAYER: it cannot be read: Permission denied"
    assert told(report, (what, f"image IMAGE: {what}"))
    assert {problem.remedy for problem in report} == {Remedy.NONE}


# -- others work meanwhile ----------------------------------------------------------------------------


def test_four_writers_cause_no_alarm_and_collecting_disturbs_none(tmp_path):
    root, runroot = tmp_path / "store", tmp_path / "run"
    with opened(root, runroot, "fuse") as store:
        store.layer_store.register(Stream(tar(member("base", b"base" * 100))))
        command = [sys.executable, "-bb", "-m", "support.busy", root, runroot]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        writers = [subprocess.Popen([*command, str(i), "3"], env=environment) for i in range(4)]
        reports = []
        while any(writer.poll() is None for writer in writers):
            reports.append(check(store))
            store.collect(deep=True)
        assert [writer.returncode for writer in writers] == [0] * 4
        assert lines(problem for report in reports for problem in report.problems) == []
        assert len(reports) > 5
        assert check(store).is_clean
    assert problems(root) == []
