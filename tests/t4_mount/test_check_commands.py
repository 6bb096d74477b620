"""``fusestore check``, ``df`` and ``prune`` as a user runs them, each step a process of its own; and mounts.

What there is to find and to delete is tested with the library (t2_store/test_check.py, test_repair.py,
test_prune.py); here it is what the commands say, and what only mounts can leave behind.
"""

import json
import os

import pytest
from support.fsck import problems
from support.images import sha256
from support.town import BASE, IMAGE, LAYER, LONE, RW, Copy
from support_real.commands import (
    Place,
    is_a_mountpoint,
    is_dead,
    kill,
    unmount_by_hand,
)

TOP = f"layer {LAYER}: +/datafile3, layer content modified"


@pytest.fixture
def copy(tmp_path_factory, tmp_path):
    return Copy(tmp_path_factory.getbasetemp(), tmp_path / "copy")


@pytest.fixture
def town(copy):
    """The store of `support.town`, in which all is well and nothing is mounted at the end."""
    place = Place(copy.root, copy.runroot)
    yield place
    place.unmount_all()
    left = problems(place.root)
    place.destroy()
    assert left == []


def told(place, *arguments, code=1):
    """What a check says, line by line."""
    result = place.run("check", "--quick", *arguments)
    assert result.returncode == code, result.stderr
    assert result.stderr == b""
    return result.stdout.decode().splitlines()


# -- check --------------------------------------------------------------------------------------------


def test_a_check_says_nothing_when_all_is_well(town):
    result = town.run("check")
    assert (result.returncode, result.stdout) == (0, b"")
    assert [line.split()[0] for line in result.stderr.splitlines()] == [b"Checking"] * 5
    report = town.listed("check", "--quick")
    assert set(report) >= {"Layers", "ROLayers", "Images", "ROImages", "Containers"}
    assert not any(report.values())


def test_what_is_damaged_is_told_and_repaired(town, copy):
    (copy.directory(LAYER) / "diff/datafile3").touch()
    result = town.run("check")
    assert (result.returncode, result.stdout.decode().splitlines()) == (1, [TOP, f"image {IMAGE}: {TOP}"])
    result = town.run("check", "--repair", "--format", "json")
    assert result.returncode == 0
    report = json.loads(result.stdout)
    assert report["Layers"] == {LAYER: ["+/datafile3, layer content modified"]}
    assert report["Images"] == {IMAGE: [TOP]}
    assert report["Repaired"] == [f"deleted image {IMAGE}", f"deleted layer {LAYER}"]
    assert not any(report["Left"].values())
    assert town.run("check", "--quick").returncode == 0


def test_containers_are_repaired_with_force_only(town, copy):
    copy.blob("container", "c", "k").unlink()
    what = "container c: container data item 'k' is missing"
    assert told(town, "--repair") == [what, f"left: {what} (it is deleted only with --force)"]
    assert told(town, "--repair", "--force", code=0) == [what, "repaired: deleted container c"]


def test_layers_that_nothing_needs_are_told_by_their_age(town, copy):
    copy.sql("UPDATE layers SET created = created - 7200")
    what = f"layer {sha256(LONE)}: layer not referenced by any images or containers"
    assert told(town, "--max", "24h", code=0) == []
    assert told(town, "-m", "1h30m", "-r", code=0) == [what, f"repaired: deleted layer {sha256(LONE)}"]


@pytest.mark.parametrize("arguments", [["check", "--force"], ["check", "--max", "long"], ["prune"]])
def test_wrong_usage(town, arguments):
    result = town.run(*arguments)
    assert (result.returncode, result.stdout) == (2, b"")


# -- mounts -------------------------------------------------------------------------------------------


def test_what_is_mounted_is_well(town):
    town.mount(IMAGE)
    (town.mount("c") / "new").write_text("new")
    assert town.run("check").returncode == 0


def test_mounts_without_servers(town, tmp_path):
    (tmp_path / "here").mkdir()
    places = [town.mount(IMAGE), town.mount("made", tmp_path / "here")]
    servers = [town.server(place) for place in places]
    for server in servers:
        kill(server)
    expected = {f"mount {p}: its server ({s}) has died" for p, s in zip(places, servers, strict=True)}
    assert set(told(town)) == expected
    assert {line for line in told(town, "--repair", code=0) if line.startswith("repaired")} == {
        f"repaired: cleared mount {place}" for place in places
    }
    assert not any(is_a_mountpoint(place) or is_dead(place) for place in places)
    assert (places[0].exists(), places[1].exists()) == (False, True)


def test_mountpoints_and_counts_without_mounts(town, copy):
    top = town.mount("c")
    cache_id = copy.directory("c-layer").name
    unmount_by_hand(top)
    (copy.runroot / "mnt/left").mkdir()
    expected = {
        f"mount {copy.runroot}/mnt/left: nothing is mounted on it",
        f"mount {cache_id}: somebody has it, by the count, but it is not mounted",
    }
    lines = told(town, "--repair", code=0)
    assert {line for line in lines if "mnt/" + cache_id not in line and "repaired" not in line} == expected
    assert f"repaired: cleared mount {copy.runroot}/mnt/left" in lines


def test_a_damaged_image_that_is_mounted_stays(town, copy):
    copy.blob("image", IMAGE, "manifest").unlink()
    top = town.mount(IMAGE)
    lines = told(town, "--repair")
    assert lines[1].startswith("left: image ")
    assert str(top) in lines[1]
    town.ok("unmount", top)
    told(town, "--repair", code=0)


# -- df -----------------------------------------------------------------------------------------------


def test_df(town):
    lines = [line.split("  ") for line in town.ok("df").splitlines()]
    table = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert table[0] == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
    assert [row[:3] for row in table[1:]] == [
        ["Images", "2", "1"],
        ["Containers", "1", "0"],
        ["Layers", "3", "2"],
        ["Mounts", "0", "0"],
    ]
    rows = {row["Type"]: row for row in town.listed("df")}
    assert list(rows) == ["Images", "Containers", "Layers", "Mounts"]
    assert rows["Containers"] == {
        "Type": "Containers",
        "Total": 1,
        "Active": 0,
        "RawSize": 14,
        "RawReclaimable": 14,
        "TotalCount": 1,
        "Size": "14 B",
        "Reclaimable": "14 B (100%)",
    }
    assert rows["Layers"]["Reclaimable"] == "36 B (33%)"


def test_df_of_each_thing(town):
    text = town.ok("df", "-v")
    assert [line for line in text.splitlines() if line.endswith("usage:")] == [
        "Images space usage:",
        "Containers space usage:",
        "Layers space usage:",
    ]
    assert "SHARED SIZE  UNIQUE SIZE  CONTAINERS" in text
    details = town.listed("df", "-v")
    (image,) = (row for row in details["Images"] if row["ImageID"] == IMAGE)
    assert image["Size"] == image["SharedSize"] + image["UniqueSize"] > 601 + 650
    assert {row["LayerID"]: row["Size"] for row in details["Layers"]}[sha256(BASE)] == 601


def test_what_is_mounted_is_active(town):
    town.mount(IMAGE)
    (town.mount("c") / "new").write_bytes(b"x" * 1000)
    rows = {row["Type"]: row for row in town.listed("df")}
    assert (rows["Containers"]["Active"], rows["Containers"]["RawReclaimable"]) == (1, 0)
    assert (rows["Mounts"]["Total"], rows["Mounts"]["Active"]) == (2, 2)
    assert rows["Images"]["RawReclaimable"] == 0
    assert town.ok("prune", "--all", "--containers", "--force").splitlines() == [
        "Deleted Layers",
        sha256(LONE),
        "Total reclaimed space: 36 B",
    ]


# -- prune --------------------------------------------------------------------------------------------


def test_prune_deletes_what_has_no_name(town, copy):
    assert town.ok("prune", "-f").splitlines() == [
        "Deleted Layers",
        sha256(LONE),
        "Total reclaimed space: 36 B",
    ]
    assert copy.items() >= {"IMAGE", "made", "c", "rw"}


def test_prune_deletes_all_that_nothing_needs(town, copy):
    gone = town.listed("prune", "--all", "--containers", "--force")
    assert [{row["Id"] for row in gone[kind]} for kind in ("Containers", "Images")] == [
        {"c"},
        {IMAGE, "made"},
    ]
    assert {row["Id"] for row in gone["Layers"]} == {LAYER, sha256(BASE), sha256(LONE), "other"}
    assert gone["ReclaimedSpace"] > 1300
    assert {"rw", sha256(RW)} <= copy.items()
    assert "made" not in copy.items()


def test_prune_of_what_filters_let_through(town, copy):
    gone = town.listed("prune", "--all", "--force", "--filter", "until=24h", "--filter", "label!=x")
    assert [row["Id"] for row in gone["Images"]] == [IMAGE]
    assert sha256(LONE) in copy.items()


@pytest.mark.parametrize(("answer", "stays"), [(b"\n", True), (b"y\n", False)])
def test_prune_asks_on_a_terminal(town, copy, answer, stays):
    ours, theirs = os.openpty()
    os.write(ours, answer)
    try:
        result = town.run("prune", "--all", stdin=theirs)
        assert result.returncode == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"WARNING! This command removes all images" in result.stderr
    assert ("IMAGE" in copy.items()) == stays
    assert (b"reclaimed" in result.stdout) != stays
