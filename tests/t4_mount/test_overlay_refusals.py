"""What fusestore-overlay refuses: in one line that names what is wrong, with nothing mounted or changed.

Podman shows the line to its user.  And what must work or be refused, but never hang, because nobody waits
with a timeout: directories that lie in each other.

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py).
"""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest
from support_real.commands import DEADLINE, may_call_mount, mounted_below
from support_real.overlays import overlay, tree


@pytest.fixture
def over(tmp_path):
    """One lower with the file ``f``, not mounted yet."""
    with overlay(tmp_path) as made:
        (made.lower / "f").write_text("lower")
        yield made


# -- refusals ------------------------------------------------------------------------------------------


def no_lowerdir(over):
    return f"upperdir={over.upper},workdir={over.work}", "lowerdir"


def empty_lowerdir(over):
    return f"lowerdir=,upperdir={over.upper},workdir={over.work}", "lowerdir"


def missing_lower(over):
    over.lowers.append(over.base / "missing")
    return over.options(), str(over.base / "missing")


def a_file_as_lower(over):
    over.lowers.append(over.lower / "f")
    return over.options(), str(over.lower / "f")


def upperdir_without_workdir(over):
    return f"lowerdir={over.lower},upperdir={over.upper}", "workdir"


def missing_upper(over):
    over.upper.rmdir()
    return over.options(), str(over.upper)


def missing_work(over):
    over.work.rmdir()
    return over.options(), str(over.work)


def a_file_as_upper(over):
    over.upper = over.lower / "f"
    return over.options(), str(over.upper)


def work_is_upper(over):
    over.work = over.upper
    return over.options(), "workdir"


def work_inside_upper(over):
    over.work = over.upper / "work"
    over.work.mkdir()
    return over.options(), "workdir"


def upper_inside_work(over):
    over.upper = over.work / "upper"
    over.upper.mkdir()
    return over.options(), "workdir"


def broken_uidmapping(over):
    return over.options("uidmapping=0:1"), "uidmapping"


def broken_gidmapping(over):
    return over.options("gidmapping=a:b:c"), "gidmapping"


def broken_squash(over):
    return over.options("squash_to_uid=x"), "squash_to_uid"


def broken_timeout(over):
    return over.options("timeout=soon"), "timeout"


@pytest.mark.parametrize(
    "wrong",
    [
        *[no_lowerdir, empty_lowerdir, missing_lower, a_file_as_lower, upperdir_without_workdir],
        *[missing_upper, missing_work, a_file_as_upper, work_is_upper, work_inside_upper, upper_inside_work],
        *[broken_uidmapping, broken_gidmapping, broken_squash, broken_timeout],
    ],
)
def test_a_wrong_option_is_refused_in_one_line_that_names_it(over, wrong):
    options, named = wrong(over)
    before = tree(over.base)
    assert named in over.refused("-o", options, over.merged)
    assert tree(over.base) == before


def test_a_workdir_on_another_filesystem_is_refused(over):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        assert os.stat(elsewhere).st_dev != os.stat(over.upper).st_dev
        over.work = Path(elsewhere)
        assert "workdir" in over.refused("-o", over.options(), over.merged)
        assert os.listdir(elsewhere) == []


@pytest.mark.parametrize("target", [[], ["missing"], ["lower0/f"], ["lower0/f/x"]])
def test_a_wrong_target_is_refused_in_one_line_that_names_it(over, target):
    said = over.refused("-o", over.options(), *target)
    assert (target[0] if target else "target") in said.lower() or "mountpoint" in said.lower()


def test_a_workdir_that_may_not_be_written_is_refused(over):
    if os.geteuid() == 0:  # root of a namespace may write to its own directories whatever their mode
        return
    over.work.chmod(0o500)
    assert str(over.work) in over.refused("-o", over.options(), over.merged)


@pytest.mark.parametrize("option", ["allow_other", "allow_root"])
def test_letting_others_in_works_or_says_what_forbids_it(over, option):
    allowed = may_call_mount() or re.search(r"(?m)^user_allow_other\s*$", Path("/etc/fuse.conf").read_text())
    if allowed:
        over.mount(option)
        assert "allow_other" in mount_options(over.merged)
        assert (over.merged / "f").read_text() == "lower"
    else:
        assert "user_allow_other" in over.refused("-o", over.options(option), over.merged)


def mount_options(mountpoint):
    return subprocess.check_output(["findmnt", "-no", "VFS-OPTIONS,FS-OPTIONS", mountpoint], text=True)


# -- layers and target in each other -------------------------------------------------------------------


def upper_is_the_target(over):
    over.merged = over.upper


def a_lower_is_the_target(over):
    over.merged = over.lower


def upper_below_the_target(over):
    over.upper, over.work = over.merged / "upper", over.merged / "work"
    over.upper.mkdir()
    over.work.mkdir()


def a_lower_below_the_target(over):
    over.lowers = [over.lower.rename(over.merged / "lower")]


def the_target_below_a_lower(over):
    over.merged = over.merged.rename(over.lower / "merged")


def the_target_below_upper(over):
    over.merged = over.merged.rename(over.upper / "merged")


def a_lower_below_upper(over):
    over.lowers = [over.lower.rename(over.upper / "lower")]


def upper_below_a_lower(over):
    over.upper, over.work = over.upper.rename(over.lower / "upper"), over.work.rename(over.lower / "work")


@pytest.mark.parametrize(
    "overlap",
    [
        *[upper_is_the_target, a_lower_is_the_target, upper_below_the_target, a_lower_below_the_target],
        *[the_target_below_a_lower, the_target_below_upper, a_lower_below_upper, upper_below_a_lower],
    ],
)
def test_overlapping_directories_work_or_are_refused_but_never_hang(over, overlap):
    """#393, #364, #344, #382, NVIDIA/enroot#130: a server that looks into its own mount hangs."""
    overlap(over)
    result = over.start()
    if result.returncode:
        assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
        assert not mounted_below(over.base)
        return
    script = (
        "cat f && echo changed >f && mkdir new && ls -R >/dev/null && cat f && rm -r f new && ! test -e f"
    )
    command = ["timeout", "-s", "KILL", "15", "sh", "-ec", script]
    assert subprocess.check_output(command, cwd=over.merged, timeout=DEADLINE) == b"lowerchanged\n"
    over.unmount()
