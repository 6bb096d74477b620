"""The process behind a fusestore-overlay mount: it lets go of its parent, serves, and ends with its mount.

Podman reads the program's stderr until nobody holds it any more, unmounts with fusermount3 or
umount2(MNT_DETACH), and never looks at the process again: 898 orphans were found on one machine
(containers/storage#1654).

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py).
"""

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from support_real.commands import (
    DEADLINE,
    detach,
    eventually,
    is_running,
    mounted_below,
    unmount_by_hand,
)
from support_real.overlays import PROGRAM, is_dead, overlay, populate, tree


@pytest.fixture
def over(tmp_path):
    """One lower with the file ``f``, not mounted yet."""
    with overlay(tmp_path) as made:
        (made.lower / "f").write_text("lower")
        yield made


def works(over):
    """Reading and writing."""
    (over.merged / "new").write_text("upper")
    return (over.merged / "f").read_text() == "lower" and (over.upper / "new").read_text() == "upper"


# -- letting go ----------------------------------------------------------------------------------------


def test_the_server_keeps_nothing_of_the_caller_open(over):
    """That `mount` comes back shows that stdout and stderr, pipes read to their end, are closed."""
    marker = over.base / "the caller's file"
    with open(marker, "w") as file:
        over.mount(pass_fds=[file.fileno()])
    fds = Path(f"/proc/{over.server()}/fd")
    opened = {int(fd.name): os.readlink(fd) for fd in fds.iterdir()}
    assert (opened[0], opened[1]) == ("/dev/null", "/dev/null")
    assert str(marker) not in opened.values()
    assert not [target for target in opened.values() if target.startswith("pipe:[") and opened[2] == target]


def test_the_server_keeps_no_directory_of_the_caller_busy(over):
    (over.base / "elsewhere").mkdir()
    over.mount(cwd=over.base / "elsewhere")
    assert not os.readlink(f"/proc/{over.server()}/cwd").startswith(str(over.base / "elsewhere"))


def test_the_caller_may_have_closed_its_standard_streams(over):
    result = over.run("-o", over.options(), over.merged, before=["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh"])
    assert result.returncode == 0
    assert works(over)


def test_the_umask_of_the_caller_is_not_the_mounts(over):
    over.mount(before=["sh", "-c", 'umask 077; exec "$@"', "sh"])
    script = "umask 0; : >file; mkdir -m 0777 made; mkdir plain; mkfifo pipe; umask 077; : >private"
    subprocess.run(["sh", "-ec", script], cwd=over.merged, check=True)
    modes = {entry.name: oct(entry.stat().st_mode & 0o7777) for entry in os.scandir(over.merged)}
    assert modes == {
        "f": oct((over.lower / "f").stat().st_mode & 0o7777),
        "file": "0o666",
        "made": "0o777",
        "plain": "0o777",
        "pipe": "0o666",
        "private": "0o600",
    }


def test_the_mount_outlives_the_terminal_it_was_made_in(over):
    pid, terminal = pty.fork()
    if pid == 0:
        command = [*PROGRAM, "-o", over.options(), str(over.merged)]
        os.execvpe(command[0], command, over.environment)
    assert os.waitpid(pid, 0)[1] == 0
    server = over.server()
    os.close(terminal)  # SIGHUP for whoever still belongs to it
    assert works(over)
    assert os.getsid(server) not in (os.getsid(0), pid)
    os.kill(server, signal.SIGHUP)
    assert works(over)


def test_a_module_in_the_working_directory_is_not_imported(over):
    """Podman's working directory is a place that images are unpacked into."""
    for name in ("pyfuse3", "json", "fusestore"):
        (over.base / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    script = Path(PROGRAM[0]).with_name("fusestore-overlay")
    over.mount(program=[script])
    assert works(over)


# -- in the foreground ---------------------------------------------------------------------------------


def unmounted(process, over):
    unmount_by_hand(over.merged)


def terminated(process, over):
    process.terminate()


def interrupted(process, over):
    process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("ended", [unmounted, terminated, interrupted])
def test_in_the_foreground_the_program_serves_until_it_is_unmounted_or_told_to(over, ended):
    with over.foreground("-f") as (process, _):
        assert works(over)
        assert process.poll() is None
        ended(process, over)
        assert over.exit_code(process) == 0
        assert not mounted_below(over.base)
    over.wait_until_gone()


def test_debugging_stays_in_the_foreground_and_tells_of_every_request(over):
    with over.foreground("-d") as (process, log):
        assert works(over)
        unmount_by_hand(over.merged)
        assert over.exit_code(process) == 0
    assert b"lookup" in log.read_bytes().lower()


# -- ending --------------------------------------------------------------------------------------------


def test_the_server_ends_when_it_is_unmounted_and_leaves_the_files(over):
    over.mount()
    assert works(over)
    over.unmount()
    assert tree(over.upper) == {"new": "upper"}
    assert tree(over.merged) == {}


def test_a_busy_mount_cannot_be_unmounted(over):
    over.mount()
    with open(over.merged / "f"), pytest.raises(subprocess.CalledProcessError):
        unmount_by_hand(over.merged)
    assert works(over)


def test_a_mount_that_is_taken_away_serves_who_has_files_open(over):
    """Containers/storage falls back to umount2(MNT_DETACH)."""
    over.mount()
    with open(over.merged / "f", "r+") as file:
        detach(over.merged)
        assert not mounted_below(over.base)
        assert file.read() == "lower"
        file.write(" and more")
        file.flush()
        os.fsync(file.fileno())
        assert is_running(over.server())
    over.wait_until_gone()
    assert (over.upper / "f").read_text() == "lower and more"


def test_a_signal_unmounts_and_what_was_written_is_there(over):
    over.mount()
    with open(over.merged / "f", "r+") as file:
        file.write("written")
        file.flush()
        os.kill(over.server(), signal.SIGTERM)
        eventually(lambda: not mounted_below(over.base), "the end of the mount")
    over.wait_until_gone()
    assert (over.upper / "f").read_text() == "written"


def test_the_next_mount_may_follow_an_unmount_at_once(over):
    """Podman restarts containers, and builds unmount and mount the same layer for every step; T20."""
    for number in range(8):
        result = over.start()
        assert result.returncode == 0, result.stderr
        (over.merged / str(number)).touch()
        over.unmount_and_go()
    over.wait_until_gone()
    assert len(tree(over.upper)) == 8


# -- dying ---------------------------------------------------------------------------------------------


@pytest.fixture
def dead(over):
    """A mount whose server was killed."""
    over.mount()
    assert works(over)
    over.kill()
    eventually(lambda: is_dead(over.merged), "the end of the connection")
    return over


def test_a_new_start_on_a_dead_mount_replaces_it(dead):
    dead.mount()
    assert works(dead)
    assert len(mounted_below(dead.base)) == 1


def test_a_dead_mount_can_be_unmounted_by_hand(dead):
    unmount_by_hand(dead.merged)
    dead.mount()
    assert works(dead)


# -- more than one -------------------------------------------------------------------------------------


def same_directories(over):
    return over.options()


def same_upper(over):
    (over.base / "work2").mkdir(exist_ok=True)
    return over.options().replace("/work", "/work2")


def same_work(over):
    (over.base / "upper2").mkdir(exist_ok=True)
    return over.options().replace("/upper", "/upper2")


@pytest.mark.parametrize("shared", [same_directories, same_upper, same_work])
def test_an_upper_or_work_directory_that_is_in_use_is_refused(over, shared):
    over.mount()
    (over.base / "other").mkdir()
    result = over.run("-o", shared(over), "other")
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"in use" in result.stderr or b"busy" in result.stderr.lower()
    assert mounted_below(over.base) == [str(over.merged)]
    assert works(over)
    over.unmount()
    assert over.run("-o", shared(over), "other").returncode == 0


def test_of_two_that_start_at_the_same_time_one_gets_the_upper_directory(over):
    places = [over.base / name for name in ("one", "two", "three")]
    commands = []
    for place in places:
        place.mkdir()
        command = [*PROGRAM, "-o", over.options(), place]
        commands.append(subprocess.Popen(command, env=over.environment, stderr=subprocess.PIPE))
    said = [command.communicate(timeout=DEADLINE)[1] for command in commands]
    assert sorted(command.returncode for command in commands) == [0, 1, 1], said
    assert len(mounted_below(over.base)) == 1


def test_the_locks_of_a_server_that_was_killed_are_gone(dead):
    (dead.base / "other").mkdir()
    assert dead.run("-o", dead.options(), "other").stderr == b""


def test_lower_directories_may_be_shared(over):
    over.mount()
    others = [over.base / name for name in ("upper2", "work2", "merged2")]
    for directory in others:
        directory.mkdir()
    options = f"lowerdir={over.lower},upperdir={others[0]},workdir={others[1]}"
    assert over.run("-o", options, others[2]).returncode == 0
    (others[2] / "f").write_text("mine")
    assert works(over)


def test_a_mount_can_be_the_lower_of_another(over, tmp_path):
    """#275: chained mounts."""
    over.mount()
    populate(over.merged, {"first": "1", "d": {"x": "1"}})
    with overlay(tmp_path / "second") as second:
        second.lowers = [over.merged]
        second.mount()
        (second.merged / "d/x").unlink()
        (second.merged / "first").write_text("2")
        assert tree(second.merged) == {"d": {}, "f": "lower", "first": "2"}
    assert tree(over.merged) == {"d": {"x": "1"}, "f": "lower", "first": "1"}


# -- the work directory --------------------------------------------------------------------------------


def test_the_work_directory_is_emptied_at_the_start(over):
    """The kernel's overlayfs leaves directories there that are closed to everybody."""
    populate(over.work, {"work": {"left": "half of a copy", "d": {"x": {"y": ""}}, "closed": {"z": ""}}})
    for name in ("work/closed", "work"):
        (over.work / name).chmod(0)
    over.mount()
    assert [path for path in over.work.rglob("*") if path.name != "work"] == []
    assert works(over)


def test_nothing_is_left_in_the_work_directory(over):
    populate(over.lower, {"big": "x" * 100_000, "d": {"x": "", "y": {"z": ""}}, "e": {"x": ""}})
    over.mount()
    with open(over.merged / "big", "a") as file:
        file.write("more")
    for name in ("f", "d/x"):
        (over.merged / name).unlink()
    subprocess.run(["rm", "-r", over.merged / "e"], check=True)
    (over.merged / "e").mkdir()
    (over.merged / "d/y").rename(over.merged / "moved")
    over.unmount()
    assert [path for path in over.work.rglob("*") if not path.is_dir()] == []
