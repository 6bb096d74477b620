"""One upper directory, written in turn by fusestore-overlay, fuse-overlayfs and the kernel's overlayfs.

A store lives longer than the choice of who mounts it: each must see what the others have left.  The oracle
is a plain copy of the lower directory in which the same commands are run.  Everything happens inside
``unshare -Urm``, the only place where an unprivileged user has the kernel's overlayfs.
"""

import json
import subprocess
import sys

import pytest
from support_real import trees
from support_real.commands import DEADLINE, namespace
from support_real.overlays import PROGRAM, overlay, populate

LOWER = {
    "low": "low",
    "file": "file",
    "d1": {"a": "a", "b": "b", "c": "c", "sub": {"x": "x", "y": "y"}},
    "d2": {"old": "old", "sub": {"older": "older"}},
    "d3": {"x": "x", "sub": {"y": "y", "sub": {"z": "z"}}},
    "d4": {"x": "x"},
}

# Each writer runs one after the other; a later one changes what an earlier one has made.
SCRIPTS = [
    """
    echo new >new; mkdir -p made/sub; echo x >made/sub/x; ln -s target link; ln new new-link; mkfifo pipe
    rm d1/a; rm -r d2; chmod 600 d1/b; echo more >>d1/c; mv low moved; touch -d @1000 d1/sub/x
    setfattr -n user.key -v value d1/c; chmod 2750 d1/sub
    """,
    """
    rm -r made; mkdir made; echo other >made/other; mkdir -p d2/sub; echo again >d2/sub/again
    rm link; ln -s elsewhere link; mv d3 d3-moved; touch -d @2000 d1/b; rm pipe; mkdir pipe; : >file
    """,
    """
    rm -r d2; echo a file now >d2; mv moved low; mkdir -p d3/sub; ln d1/c c-link; mv d4 d1/d4
    mv made/other other; rmdir made; chmod 4755 file; setfattr -n user.key -v other d1/c; echo a >d1/a
    """,
    """
    rm d2 link c-link; mkdir d2 link; echo new >d2/old; mv d1 d5; mkdir d1; echo only this >d1/c; rm low
    mv d3-moved/sub/sub d4; echo -n >>new; chmod 000 other
    """,
    """
    rm -r d1 d2 d3; mkdir -p d1/sub d3; mv d5/sub d2; mv new d3/; echo end >low; rm -r d3-moved; rm d5/b
    """,
]


def ours(options, target):
    return [*PROGRAM, "-o", options, target]


def fuse_overlayfs(options, target):
    return ["fuse-overlayfs", "-o", options, target]


def kernel(options, target):
    return ["mount", "-t", "overlay", "overlay", "-o", f"{options},userxattr", target]


@pytest.fixture
def over(tmp_path):
    with overlay(tmp_path) as made:
        populate(made.lower, LOWER)
        subprocess.run(["cp", "-a", made.lower, made.base / "plain"], check=True)
        yield made


@pytest.fixture
def inside(over):
    """What to put before a command to be in the namespace."""
    with namespace("mount --make-rprivate /") as before:
        yield before


def run(inside, *command, **more):
    result = subprocess.run(
        [*inside, *map(str, command)], capture_output=True, text=True, timeout=DEADLINE, **more
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def seen(inside, directory):
    """The tree, without what need not be the same: directories' times and those of files made just now."""
    tree = json.loads(run(inside, sys.executable, trees.__file__, directory))
    for attributes in tree.values():
        if attributes["mtime"] > 10_000 * 10**9:
            del attributes["mtime"]
        if attributes["type"] == "directory":
            attributes.pop("mtime", None)
    return tree


def change(inside, over, mount, script):
    """Mount, run `script` in the mount and in the plain copy, unmount."""
    run(inside, *mount(over.options(), over.merged), env=over.environment)
    for directory in (over.merged, over.base / "plain"):
        run(inside, "sh", "-ec", f'cd "$1"; umask 022; {script}', "sh", directory)
    run(inside, "umount", over.merged)


def check(inside, over, mount):
    """What `mount` shows is the plain copy."""
    run(inside, *mount(over.options(), over.merged), env=over.environment)
    shown = seen(inside, over.merged)
    run(inside, "umount", over.merged)
    over.wait_until_gone()
    wanted = seen(inside, over.base / "plain")
    assert trees.differences(shown, wanted) == []


@pytest.mark.parametrize("reader", [kernel, fuse_overlayfs, ours])
def test_others_read_what_fusestore_overlay_writes(inside, over, reader):
    for script in SCRIPTS:
        change(inside, over, ours, script)
        check(inside, over, reader)


@pytest.mark.parametrize("writer", [kernel, fuse_overlayfs])
def test_fusestore_overlay_reads_what_others_write(inside, over, writer):
    for script in SCRIPTS:
        change(inside, over, writer, script)
        check(inside, over, ours)


@pytest.mark.parametrize(
    "writers",
    [
        [ours, kernel, ours, kernel, ours],
        [kernel, ours, kernel, ours, fuse_overlayfs],
        [ours, fuse_overlayfs, ours, fuse_overlayfs, ours],
        [kernel, ours, fuse_overlayfs, ours, fuse_overlayfs],
    ],
)
def test_an_upper_directory_is_written_in_turn(inside, over, writers):
    for writer, script in zip(writers, SCRIPTS, strict=True):
        change(inside, over, writer, script)
        check(inside, over, ours)
