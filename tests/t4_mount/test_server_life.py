"""The process behind a mount: it lets go of its parent, and ends when its mount ends, in whatever way.

Runs through fusermount3, and again inside ``unshare -Urm`` (see test_user_namespace.py).
"""

import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support_real import exit_status
from support_real.commands import (
    DEADLINE,
    FUSESTORE,
    eventually,
    is_a_mountpoint,
    is_dead,
    is_running,
    kill,
    unmount_by_hand,
)

CONTENT = b"kept"


def works(top):
    return (top / "etc/kept").read_bytes() == CONTENT


def leaves_nothing(place, mountpoint):
    """True when neither a mount, a record, a log nor a default mountpoint is left."""
    records = list((place.runroot / "mounts").iterdir())
    return not is_a_mountpoint(mountpoint) and not records and not mountpoint.exists()


# -- starting -----------------------------------------------------------------------------------------


def test_mount_prints_the_path_and_nothing_else(loaded):
    result = loaded.run("mount", "zoo")
    assert (result.stdout, result.stderr) == (f"{loaded.runroot}/mnt/zoo-latest\n".encode(), b"")


def test_mounting_again_changes_nothing(loaded):
    top = loaded.mount("zoo")
    pid = loaded.server(top)
    assert loaded.mount("zoo") == top
    assert [m["Pid"] for m in loaded.mounts()] == [pid]


def test_processes_that_mount_at_the_same_time_share_one_server(loaded):
    commands = [
        subprocess.Popen([*FUSESTORE, "mount", "zoo"], env=loaded.environment(), stdout=subprocess.PIPE)
        for _ in range(6)
    ]
    said = {command.communicate(timeout=DEADLINE)[0] for command in commands}
    assert [command.returncode for command in commands] == [0] * 6
    assert said == {f"{loaded.runroot}/mnt/zoo-latest\n".encode()}
    assert len(loaded.mounts()) == 1
    assert servers_of(loaded) == [loaded.server(loaded.runroot / "mnt/zoo-latest")]


def servers_of(place):
    """The pids of all servers that log into `place`, asked of the kernel."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"fusestore.driver.server" in (entry / "cmdline").read_bytes():
                found += [int(entry.name)] if str(place.runroot) in os.readlink(entry / "fd/2") else []
        except OSError:
            continue
    return found


# -- letting go ---------------------------------------------------------------------------------------


def test_the_mount_outlives_the_terminal_it_was_made_in(loaded):
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(FUSESTORE[0], [*FUSESTORE, "mount", "zoo"], loaded.environment())
    said = b""
    while not said.endswith(b"\n"):
        said += os.read(terminal, 1024)
    top = Path(os.fsdecode(said.strip()))
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)  # SIGHUP for whoever still belongs to it
    assert works(top)
    assert os.getsid(loaded.server(top)) not in (os.getsid(0), pid)


def test_the_server_keeps_nothing_of_the_caller_open(loaded, tmp_path):
    """That the call comes back shows that it lets go of the pipes in place of stdout and stderr."""
    marker = tmp_path / "the caller's file"
    with open(marker, "w") as file:
        top = loaded.mount("zoo", pass_fds=[file.fileno()])
    fds = Path(f"/proc/{loaded.server(top)}/fd")
    opened = {int(fd.name): os.readlink(fd) for fd in fds.iterdir()}
    assert opened[0] == opened[1] == "/dev/null"
    assert opened[2] == str(next((loaded.runroot / "mounts").glob("*.log")))
    assert str(marker) not in opened.values()


def test_the_server_keeps_no_directory_of_the_caller_busy(loaded, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    top = loaded.mount("zoo", cwd=tmp_path / "elsewhere")
    assert os.readlink(f"/proc/{loaded.server(top)}/cwd") == str(loaded.root / "fuse")


def test_a_module_in_the_working_directory_is_not_imported(loaded, tmp_path):
    (tmp_path / "pyfuse3.py").write_text("raise SystemExit('imported from the working directory')")
    assert works(loaded.mount("zoo", before=["env", "-C", tmp_path]))


def test_secrets_of_the_spec_are_not_on_the_command_line(loaded):
    top = loaded.mount("zoo")
    assert str(loaded.root).encode() not in Path(f"/proc/{loaded.server(top)}/cmdline").read_bytes()


def test_an_idle_server_uses_no_processor_time(loaded):
    top = loaded.mount("zoo")
    assert works(top)
    pid = loaded.server(top)
    before = processor_ticks(pid)
    select.select([], [], [], 0.1)  # the end of what the reads above had started
    settled = processor_ticks(pid)
    select.select([], [], [], 1)
    assert processor_ticks(pid) == settled
    assert settled - before <= 1


def processor_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


# -- ending -------------------------------------------------------------------------------------------


def test_unmount_prints_where_and_waits_for_the_server(loaded):
    top = loaded.mount("zoo")
    pid = loaded.server(top)
    assert loaded.ok("unmount", "zoo") == str(top)
    assert not is_running(pid)
    assert leaves_nothing(loaded, top)


@pytest.mark.parametrize("spelling", ["unmount", "umount"])
def test_unmount_takes_a_directory_in_any_spelling(loaded, tmp_path, spelling):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    loaded.mount("zoo", "here", cwd=tmp_path)
    assert loaded.ok(spelling, "./link/", cwd=tmp_path) == str(tmp_path / "here")
    assert (tmp_path / "here").is_dir()
    assert loaded.mounts() == []


def test_unmount_all_takes_every_mount(loaded, tmp_path):
    (tmp_path / "other").mkdir()
    places = {str(loaded.mount("zoo")), str(loaded.mount("zoo", tmp_path / "other"))}
    assert set(loaded.ok("unmount", "--all").splitlines()) == places
    assert loaded.mounts() == []


def test_unmounting_what_is_not_mounted_fails(loaded):
    assert "not mounted" in loaded.fails("unmount", "zoo")
    assert loaded.ok("unmount", "--all") == ""


def test_a_server_ends_itself_when_unmounted_by_hand(loaded):
    top = loaded.mount("zoo")
    pid = loaded.server(top)
    unmount_by_hand(top)
    eventually(lambda: not is_running(pid), "the end of the server")
    eventually(lambda: leaves_nothing(loaded, top), "a clean runroot")


def test_a_busy_mount_is_kept_and_unmounted_by_force(loaded):
    top = loaded.mount("zoo")
    with open(top / "etc/kept", "rb") as file:
        assert "open" in loaded.fails("unmount", "zoo")
        assert works(top)
        loaded.ok("unmount", "--force", "zoo")
        assert not is_a_mountpoint(top)
        assert file.read() == CONTENT
    eventually(lambda: leaves_nothing(loaded, top), "a clean runroot")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_and_the_server_exits_with_0(loaded, number):
    command = [sys.executable, exit_status.__file__, "zoo", str(int(number))]
    environment = loaded.environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.check_output(command, env=environment, timeout=DEADLINE) == b"0\n"
    assert leaves_nothing(loaded, loaded.runroot / "mnt/zoo-latest")


def test_sighup_is_ignored(loaded):
    top = loaded.mount("zoo")
    os.kill(loaded.server(top), signal.SIGHUP)
    assert works(top)
    assert is_running(loaded.server(top))


# -- dying --------------------------------------------------------------------------------------------


@pytest.fixture
def dead(loaded):
    """The mountpoint of an image whose server was killed."""
    top = loaded.mount("zoo")
    kill(loaded.server(top))
    assert is_dead(top)
    return top


def test_a_dead_mount_is_listed_as_dead(loaded, dead):
    assert [(m["Mountpoint"], m["State"]) for m in loaded.mounts()] == [(str(dead), "dead")]
    assert "died" in loaded.ok("mount")


def test_the_next_mount_replaces_a_dead_one(loaded, dead):
    assert loaded.mount("zoo") == dead
    assert works(dead)
    assert [m["State"] for m in loaded.mounts()] == ["alive"]


@pytest.mark.parametrize("arguments", [["zoo"], ["--all"], ["--force", "zoo"]])
def test_unmount_cleans_a_dead_mount(loaded, dead, arguments):
    assert loaded.ok("unmount", *arguments) == str(dead)
    assert leaves_nothing(loaded, dead)


def test_a_dead_mount_on_a_directory_of_the_user_is_replaced_and_cleaned(loaded, tmp_path):
    (tmp_path / "mine").mkdir()
    top = loaded.mount("zoo", tmp_path / "mine")
    kill(loaded.server(top))
    loaded.mount("zoo", top)
    assert works(top)
    kill(loaded.server(top))
    loaded.ok("unmount", top)
    assert list(top.iterdir()) == []


def test_the_layers_of_a_dead_mount_can_be_removed(owned):
    kill(owned.server(owned.mount("zoo")))
    owned.ok("rmi", "--force", "zoo")
    assert owned.is_empty()


def test_a_mount_whose_runroot_was_lost_still_serves_and_can_be_unmounted_by_hand(loaded, tmp_path):
    (tmp_path / "mine").mkdir()
    top = loaded.mount("zoo", tmp_path / "mine")
    pid = loaded.server(top)
    for record in (loaded.runroot / "mounts").iterdir():
        record.unlink()
    assert works(top)
    unmount_by_hand(top)
    eventually(lambda: not is_running(pid), "the end of the server")


# -- holding its layers -------------------------------------------------------------------------------


def test_a_mounted_image_cannot_be_removed_and_rmi_says_where_it_is(owned):
    top = owned.mount("zoo")
    assert str(top) in owned.fails("rmi", "zoo")
    assert works(top)
    assert [image["Names"] for image in owned.listed("images")] == [["localhost/zoo:latest"]]


@pytest.mark.parametrize("option", [[], ["--force"]])
def test_an_image_can_be_removed_as_soon_as_it_is_unmounted(owned, option):
    owned.mount("zoo")
    owned.ok("unmount", *option, "zoo")
    owned.ok("rmi", "zoo")
    assert owned.is_empty()


def test_rmi_force_unmounts_first(owned):
    top = owned.mount("zoo")
    owned.ok("rmi", "--force", "zoo")
    assert not is_a_mountpoint(top)
    assert owned.is_empty()


def test_an_image_mounted_by_another_runroot_cannot_be_removed(owned, tmp_path):
    elsewhere = type(owned)(owned.root, tmp_path / "other-run")
    top = elsewhere.mount("zoo")
    try:
        assert "in use" in owned.fails("rmi", "zoo")
        assert works(top)
    finally:
        elsewhere.ok("unmount", "zoo")
