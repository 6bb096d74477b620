"""What a machine can lack, provoked: `doctor` names it and its remedy, and `mount` gives the same reason.

What takes root to provoke is in tests/root/test_doctor_as_root.py.
"""

import contextlib
import ctypes.util
from pathlib import Path

import pytest
from support_real.commands import IN_NAMESPACE, is_a_mountpoint, namespace


@contextlib.contextmanager
def no_device():
    with namespace("mount -t tmpfs none /dev") as inside:
        yield inside


@contextlib.contextmanager
def wrong_device():
    with namespace("mount --bind /dev/null /dev/fuse") as inside:
        yield inside


@contextlib.contextmanager
def regular_file_as_device():
    with namespace("mount --bind /etc/passwd /dev/fuse") as inside:
        yield inside


@contextlib.contextmanager
def no_new_privileges():
    yield ("setpriv", "--no-new-privs")


@contextlib.contextmanager
def no_mount_namespace():
    yield ("unshare", "-Ur", "--")


@contextlib.contextmanager
def no_libfuse():
    libraries = [p for p in Path("/usr/lib").rglob("libfuse3.so.*") if p.is_symlink() or p.is_file()]
    with namespace(
        "\n".join(f"mount --bind /dev/null {p}" for p in {p.resolve() for p in libraries})
    ) as inside:
        yield inside


@contextlib.contextmanager
def closed_runroot():
    yield ("env", "FUSESTORE_RUNROOT=/usr/fusestore")


IN_CONTAINER = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
LACKS = [
    (no_device, "/dev/fuse is missing", "--device /dev/fuse" if IN_CONTAINER else "sudo modprobe fuse"),
    (wrong_device, "/dev/fuse is not the FUSE device", "mknod -m 666 /dev/fuse c 10 229"),
    (regular_file_as_device, "/dev/fuse is not the FUSE device", "mknod -m 666 /dev/fuse c 10 229"),
    (no_new_privileges, "setuid programs are disabled for this process", "no_new_privs"),
    (no_mount_namespace, "mount namespace", "unshare -Urm"),
]


@pytest.mark.parametrize(("lack", "finding", "remedy"), LACKS)
def test_doctor_names_what_is_missing_and_the_remedy(loaded, lack, finding, remedy):
    with lack() as before:
        result = loaded.run("doctor", before=before)
        checks = loaded.run("doctor", "--format", "json", before=before)
    lines = result.stdout.decode().splitlines()
    assert (result.returncode, checks.returncode, result.stderr) == (1, 1, b"")
    (line,) = [number for number, text in enumerate(lines) if text.startswith("FAIL")]
    assert finding in lines[line]
    assert remedy in lines[line + 1]


@pytest.mark.parametrize(("lack", "finding", "remedy"), LACKS)
def test_mount_fails_in_one_line_with_the_same_reason(loaded, lack, finding, remedy):
    with lack() as before:
        said = loaded.fails("mount", "zoo", before=before)
    assert finding in said
    assert remedy in said
    assert loaded.mounts() == []
    assert not (loaded.runroot / "mnt/zoo-latest").exists()


@pytest.mark.parametrize(("lack", "finding", "remedy"), LACKS)
def test_ls_and_cat_still_work(loaded, lack, finding, remedy):
    with lack() as before:
        assert loaded.ok("cat", "zoo:/etc/kept", before=before) == "kept"


def test_a_pyfuse3_that_cannot_be_loaded_is_named(loaded):
    assert ctypes.util.find_library("fuse3")
    with no_libfuse() as inside:
        result = loaded.run("doctor", before=inside)
        assert b"FAIL  pyfuse3 cannot be loaded" in result.stdout
        assert b"apt install libfuse3" in result.stdout
        assert "libfuse3" in loaded.fails("mount", "zoo", before=inside)
    assert loaded.mounts() == []


def test_a_runroot_that_cannot_be_written_is_named(loaded):
    with closed_runroot() as before:
        result = loaded.run("doctor", before=before)
        assert "/usr/fusestore" in loaded.fails("mount", "zoo", before=before)
    assert result.returncode == 1
    assert b"/usr/fusestore/mnt cannot be written" in result.stdout
    assert b"--runroot" in result.stdout


def test_allow_other_without_permission_is_explained(loaded):
    if "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        loaded.ok("mount", "--allow-other", "zoo")
        return
    said = loaded.fails("mount", "--allow-other", "zoo")
    assert "user_allow_other" in said
    assert "/etc/fuse.conf" in said
    assert not is_a_mountpoint(loaded.runroot / "mnt/zoo-latest")


@pytest.mark.parametrize("before", [(), IN_NAMESPACE])
def test_doctor_finds_nothing_wrong_where_mounting_works(place, before):
    result = place.run("doctor", before=before)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"FAIL" not in result.stdout
    assert b"ok    /dev/fuse can be opened" in result.stdout
    assert not place.root.exists()
    assert not place.runroot.exists()
