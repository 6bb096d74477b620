"""Containers on the command line: make, mount, change, compare, commit, delete; each step a process."""

import json
import os
import re
import subprocess

import pytest
from support.images import oci
from support.tars import member, tar
from support_real.commands import is_a_mountpoint

BASE = tar(member("etc/motd", b"hello\n"), member("etc/hostname", b"host\n"), member("big", b"x" * 100_000))
ID = re.compile("[0-9a-f]{64}")


@pytest.fixture
def box(place, tmp_path):
    """A store with an image called base."""
    place.ok("load", f"oci:{oci(tmp_path / 'oci', BASE)}", "--tag", "base")
    place.ok("untag", "base", "image:1")
    return place


def change(top):
    """Change a file, delete one, make one."""
    (top / "etc/motd").write_text("hello, world\n")
    (top / "etc/hostname").unlink()
    (top / "new").mkdir()


CHANGES = ["C /etc", "D /etc/hostname", "C /etc/motd", "A /new"]


def test_from_an_image_to_an_image(box):
    """create, mount, diff, commit: the way of ``podman create`` ... ``podman commit``."""
    container = box.ok("create", "--name", "work", "base")
    assert ID.fullmatch(container)
    top = box.mount("work")
    change(top)
    assert box.ok("diff", "work").splitlines() == CHANGES
    image = box.ok("commit", "-q", "work", "my/base:patched", "-m", "why", "-a", "me", "-c", "ENV=A=1")
    (inspected,) = box.listed("inspect", "my/base:patched")
    assert inspected["Id"] == image
    assert (inspected["Author"], inspected["Config"]["Env"]) == ("me", ["A=1"])
    assert inspected["History"][-1]["comment"] == "why"
    (base,) = box.listed("inspect", "base")
    assert inspected["RootFS"]["Layers"][:1] == base["RootFS"]["Layers"]
    assert box.ok("cat", "my/base:patched:/etc/motd") == "hello, world"
    assert box.ok("ls", "work:/etc") == "motd"
    assert box.ok("diff", "my/base:patched", "base").splitlines() == CHANGES
    assert box.ok("diff", "my/base:patched").splitlines() == CHANGES
    assert box.ok("unmount", "work") == str(top)
    assert box.ok("rm", "work") == container
    assert os.listdir(box.mount("my/base:patched") / "new") == []


def test_the_short_form(box):
    top = box.mount("--rw", "--name", "work", "base")
    (top / "new").touch()
    (row,) = box.listed("containers")
    assert (row["Names"], row["Image"], row["Mounted"], row["Mountpoint"]) == (
        ["work"], "localhost/base:latest", 1, str(top),
    )  # fmt: skip
    assert [m["Image"] for m in box.mounts()] == ["work"]
    assert "the container name is in use by" in box.fails("mount", "--rw", "--name", "work", "base")
    assert "it is mounted; unmount it" in box.fails("rm", "work")
    assert box.ok("rm", "--force", "work") == row["Id"]
    assert not is_a_mountpoint(top)
    assert box.listed("containers") == box.mounts() == []


def test_two_mounts_want_two_unmounts(box):
    """containers/storage: mount-layer.bats."""
    box.ok("create", "--name", "work", "base")
    top = box.mount("work")
    assert box.mount("work") == top
    assert box.ok("unmount", "work") == ""
    assert is_a_mountpoint(top)
    assert box.ok("unmount", "work") == str(top)
    assert not is_a_mountpoint(top)
    assert box.fails("unmount", "work") == "fusestore: work: not mounted"
    box.mount("work")
    box.mount("work")
    assert box.ok("unmount", "--force", top) == str(top)
    assert not is_a_mountpoint(top)


def test_what_was_changed_stays_between_mounts(box):
    box.ok("create", "--name", "work", "base")
    (box.mount("work") / "kept").write_text("text")
    box.ok("unmount", "work")
    assert (box.mount("work") / "kept").read_text() == "text"


def test_a_container_of_nothing(box):
    box.ok("create", "--name", "empty", "scratch")
    (box.mount("empty") / "file").write_text("text")
    box.ok("commit", "empty", "made")
    assert box.ok("ls", "made") == "file"
    assert box.ok("diff", "made") == "A /file"


def test_the_same_changes_make_the_same_image(box):
    """With a fixed time; also as squashed, where there is but one layer."""
    made = []
    for name in ("one", "two"):
        top = box.mount("--rw", "--name", name, "base")
        (top / "new").write_text("text")
        for path in ("new", ""):
            os.utime(top / path, (5, 5))
        made.append(box.ok("commit", "-q", "--timestamp", "7", name))
    assert made[0] == made[1]
    squashed = box.ok("commit", "-q", "--squash", "one", "flat")
    (inspected,) = box.listed("inspect", squashed)
    assert len(inspected["RootFS"]["Layers"]) == len(inspected["History"]) == 1
    assert box.ok("ls", "flat").splitlines() == ["big", "etc", "new"]


@pytest.mark.parametrize("bad", ["NOPE=1", "CMD [1]", "ENV", "CMD [", "LABEL 'a"])
def test_a_change_that_is_none(box, bad):
    box.ok("create", "--name", "work", "base")
    assert box.fails("commit", "-c", bad, "work", "x").startswith(f"fusestore: {bad}: ")
    assert len(box.listed("images")) == 1


def test_an_image_stays_while_a_container_is_of_it(box):
    container = box.ok("create", "base")
    assert f'image is in use by the container "{container}"' in box.fails("rmi", "base")
    assert box.ok("rmi", "--force", "base").splitlines()[0] == "Untagged: localhost/base:latest"
    assert box.listed("containers") == box.listed("images") == box.listed("layers") == []


def test_names(box):
    box.ok("tag", "base", "other", "my/base:2")
    assert box.listed("images")[0]["Names"] == [
        "localhost/other:latest", "localhost/my/base:2", "localhost/base:latest",
    ]  # fmt: skip
    box.ok("untag", "base", "other")
    assert box.run("exists", "--image", "other").returncode == 1
    assert box.run("exists", "--image", "my/base:2").returncode == 0
    assert "not a name of" in box.fails("untag", "base", "other")
    box.ok("untag", "base")
    assert box.run("exists", "base").returncode == 1


def test_what_is_kept_with_a_container(box, tmp_path):
    box.ok("create", "--name", "work", "--metadata", "first", "base")
    assert box.ok("metadata", "work") == "first"
    box.ok("metadata", "work", "--set", "second")
    assert box.ok("metadata", "work") == "second"
    assert box.run("metadata", "work", "--file", "-", input=b"third").returncode == 0
    assert box.ok("metadata", "work") == "third"
    (tmp_path / "notes").write_bytes(b"\x00\xff")
    box.ok("big-data", "set", "work", "notes", tmp_path / "notes")
    assert box.run("big-data", "get", "work", "notes").stdout == b"\x00\xff"
    assert [(row["Key"], row["Size"]) for row in box.listed("big-data", "ls", "work")] == [("notes", 2)]
    assert "big data nope does not exist" in box.fails("big-data", "get", "work", "nope")
    assert "not a key" in box.fails("big-data", "set", "work", "..", tmp_path / "notes")
    manifest = json.loads(box.ok("big-data", "get", "base", "manifest"))
    assert manifest["schemaVersion"] == 2


def test_the_store_as_a_whole(box):
    top = box.mount("--rw", "base")
    facts = box.listed("info")
    assert (facts["GraphRoot"], facts["Images"], facts["Containers"], facts["Mounts"]) == (
        str(box.root), 1, 1, 1,
    )  # fmt: skip
    assert str(top) in box.fails("shutdown")
    assert "was mounted, and is not any more" in box.fails("shutdown", "--force")
    assert not is_a_mountpoint(top)
    box.ok("shutdown", "--force")
    assert box.run("wipe").returncode == 2
    assert len(box.listed("images")) == 1
    box.ok("wipe", "--force")
    assert box.is_empty()


def test_what_is_not_known_is_told_in_one_line(box):
    assert "did you mean localhost/base:latest?" in box.fails("mount", "bas")
    assert "did you mean localhost/base:latest?" in box.fails("diff", "bas")
    assert "container not known" in box.fails("rm", "base")
    assert "container not known" in box.fails("commit", "base")
    assert box.ok("rm", "--ignore", "nope") == ""


@pytest.mark.parametrize(
    "words", [("mount", "--name", "x", "base"), ("mount", "--rw"), ("rm",), ("rm", "-a", "x"), ("commit",)]
)
def test_wrong_usage_is_told(box, words):
    result = box.run(*words)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.startswith(b"Usage: ")


def test_programs_work_in_a_container(box):
    top = box.mount("--rw", "base")
    script = "cp big copy && mv etc/motd motd && ln copy link && chmod 600 copy && chown 5:6 copy"
    subprocess.run(["sh", "-euc", script], cwd=top, check=True)
    (row,) = box.listed("ls", f"{box.listed('containers')[0]['Id']}:/copy")
    assert (row["Uid"], row["Gid"], row["Permissions"], row["Links"]) == (5, 6, "0600", 2)
