"""The server of a writable mount holds what the kernel holds and no more, however much has passed through it.

Only root can make the kernel forget.  FUSESTORE_MANY_FILES and FUSESTORE_MANY_ROUNDS say how much is much.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support_real import overlays, room
from support_real.commands import eventually

FILES = int(os.environ.get("FUSESTORE_MANY_FILES", "200000"))
ROUNDS = int(os.environ.get("FUSESTORE_MANY_ROUNDS", "2000"))
IN_ONE_DIRECTORY = 1000
MIB = 1 << 20

# Everything that is made goes again, in every way; names 0 to 49 are in the lower.
COME_AND_GO = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2])):
    name = str(number % 50)
    for step in (0, 1):
        os.unlink(name)
        os.mkdir(name)
        os.rmdir(name)
        os.symlink("x", name)
        os.rename(name, "moved")
        os.unlink("moved")
        with open(name, "wb") as file:
            file.write(b"x")
            os.link(name, "linked")
            os.unlink(name)
            os.rename("linked", name)
"""


@pytest.fixture
def overlay(ground, user, tmp_path):
    """An overlay of the user's."""
    with room.for_many(FILES, ground) as directory:
        directory.chmod(0o755)
        with overlays.overlay(directory / tmp_path.name) as overlay:
            for path in (overlay.base, *overlay.base.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
            yield overlay


def resident(pid):
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def open_files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def forget():
    """Every inode that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


@pytest.mark.timeout(900)
def test_a_walk_over_very_many_files_leaves_nothing_behind(overlay, as_user):
    for number in range(FILES // IN_ONE_DIRECTORY):
        directory = overlay.lower / str(number)
        directory.mkdir()
        fd = os.open(directory, os.O_DIRECTORY)
        for name in range(IN_ONE_DIRECTORY):
            os.mknod(str(name), 0o100644, dir_fd=fd)
        os.close(fd)
    top = overlay.mount(before=as_user)
    server = overlay.server()

    def walk(directory):
        """Names, inode numbers and modes of all below."""
        command = ["find", directory, "-type", "f", "-printf", "%p %i %m\n"]
        return subprocess.check_output([*as_user, *command], cwd="/").splitlines()

    first = walk(top / "0")
    start, files = resident(server), open_files(server)
    assert len(walk(top)) == FILES
    assert resident(server) > start + FILES * 200  # it did keep them: a node is larger than that
    forget()
    eventually(lambda: resident(server) < start + 50 * MIB, f"the server's return to {start} bytes")
    assert open_files(server) == files
    assert walk(top / "0") == first
    overlay.unmount()


@pytest.mark.timeout(900)
def test_what_comes_and_goes_leaves_no_fd_and_no_memory_behind(overlay, as_user, user):
    for name in range(50):
        (overlay.lower / str(name)).write_bytes(b"lower")
        os.chown(overlay.lower / str(name), user.pw_uid, user.pw_gid)
    top = overlay.mount(before=as_user)
    server = overlay.server()

    def rounds(count):
        command = [sys.executable, "-c", COME_AND_GO, top, str(count)]
        subprocess.run([*as_user, *command], cwd="/", check=True)

    rounds(ROUNDS // 4)
    size, files = resident(server), open_files(server)
    rounds(ROUNDS)
    eventually(lambda: open_files(server) == files, f"the server's return to {files} open files")
    assert resident(server) < size + 5 * MIB  # one node a round would be more
    assert sorted(map(int, subprocess.check_output([*as_user, "ls", top], cwd="/").split())) == list(
        range(50)
    )
    overlay.unmount()
    assert [path.name for path in overlay.work.rglob("*") if path.name != "work"] == []
