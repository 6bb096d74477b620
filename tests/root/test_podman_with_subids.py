"""podman of a user with subordinate ids on mounts by fusestore-overlay: owners, their rights, maps of ids.

What does not depend on ids is in t5_real/test_podman_on_overlay.py.  The user is made here and stays.  As the
home with the virtual environment may be closed to that user, the program is a copy of it: the modules that it
imports, with the Python that the environment was made from.
"""

import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support_real import steps, tars
from support_real.engine import IMAGE, Engine

USER = "fusestore-subids"
FUSE_OVERLAYFS = "/usr/bin/fuse-overlayfs"

IMPORTED = """
import sys
import fusestore.driver.program, fusestore.driver.server
for name, module in sys.modules.items():
    file = getattr(module, "__file__", None) or ""
    if "." not in name and (name == "fusestore" or "/site-packages/" in file):
        print(*getattr(module, "__path__", [file]))
"""
PROGRAM = """#!/bin/sh
PYTHONPATH={modules} exec {python} -bb -m fusestore.driver.program "$@"
"""


@pytest.fixture(scope="session")
def account():
    """The user with subordinate ids."""
    try:
        pwd.getpwnam(USER)
    except KeyError:
        counts = ("-K", "SUB_UID_COUNT=65536", "-K", "SUB_GID_COUNT=65536")
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", *counts, USER], check=True)
    for table in ("/etc/subuid", "/etc/subgid"):
        assert f"\n{USER}:" in f"\n{Path(table).read_text()}"
    return pwd.getpwnam(USER)


@pytest.fixture(scope="session")
def program(account):
    """The program where that user can run it; or another one, FUSESTORE_OVERLAY_PROGRAM."""
    if other := os.environ.get("FUSESTORE_OVERLAY_PROGRAM"):
        yield other
        return
    directory = Path(tempfile.mkdtemp(prefix="fusestore-program-"))
    modules = directory / "modules"
    modules.mkdir()
    imported = subprocess.check_output([sys.executable, "-c", IMPORTED], text=True).splitlines()
    subprocess.run(["cp", "-a", *imported, modules], check=True)
    program = directory / "fusestore-overlay"
    program.write_text(PROGRAM.format(modules=modules, python=os.path.realpath(sys.executable)))
    program.chmod(0o755)
    subprocess.run(["chown", "-R", f"{account.pw_uid}:{account.pw_gid}", directory], check=True)
    yield str(program)
    shutil.rmtree(directory)


@contextlib.contextmanager
def started(account, program, options=""):
    """podman without an image; at the end nothing of it may be left."""
    ids = (account.pw_uid, account.pw_gid)
    engine = Engine(program, options, before=("runuser", "-u", USER, "--"), owner=ids)
    try:
        engine.start()
        yield engine
        engine.remove_everything()
    finally:
        engine.destroy()


@pytest.fixture(scope="module")
def whole(account, program):
    """podman with the image, for all tests."""
    with started(account, program) as engine:
        engine.load_steps(owners=True)
        yield engine


@pytest.fixture
def engine(whole, program):
    """The same; the test leaves no container, no process and no mount."""
    yield whole
    whole.use(program)
    whole.clean()


def test_owners_are_what_the_steps_have_made(engine):
    assert steps.wrong(engine.tree(IMAGE), owners=True) == ""


# What podman is told, and what it does to the tree by itself: without one range for all ids it makes a
# chowned copy of the top layer, for which it deletes second links and makes them again.
MAPS = {
    "none": ((), ""),
    "keep-id": (("--userns=keep-id",), ""),
    "auto": (("--userns=auto:size=2000",), ""),
    "nomap": (("--userns=nomap",), ""),
    "pieces": (
        ("--uidmap=0:1:1000", "--uidmap=1000:5000:1000", "--gidmap=0:3:2000"),
        "- lower/pair dir 0750 0:0 old\n+ lower/pair dir 0750 0:0 new",
    ),
}
LOOK = "busybox tar -c -C / lower made"
WRITE = """
cd /made
echo new >fresh; mkdir -p dir; ln -sf fresh symbolic
chown 7:8 dir; chown -h 9:10 symbolic; chmod 4755 /lower/closed/secret; chown 1999:1999 /lower/keep
stat -c "%n %a %u:%g" fresh dir symbolic /lower/closed/secret /lower/keep
"""
WRITTEN = """
fresh 644 0:0
dir 755 7:8
symbolic 777 9:10
/lower/closed/secret 4755 16:0
/lower/keep 640 1999:1999
"""


@pytest.mark.parametrize(("options", "podmans"), MAPS.values(), ids=MAPS)
def test_a_map_of_ids_changes_nothing_for_the_container(engine, options, podmans):
    options = ("--user=0:0", *options)
    seen = engine.ok("podman", "run", "--rm", *options, IMAGE, "sh", "-c", LOOK)
    assert steps.wrong(seen, owners=True) == podmans
    assert engine.shell(IMAGE, WRITE, *options) == WRITTEN.strip()


def test_a_container_with_one_id_owns_everything(engine):
    """podman then asks for `squash_to_uid` and `squash_to_gid`."""
    script = "stat -c %u:%g /lower/closed /made/second /lower/trunk; echo 1 >/made/1; stat -c %u:%g /made/1"
    said = engine.shell(IMAGE, script, "--uidmap=0:1000:1", "--gidmap=0:1001:1")
    assert said.split() == ["0:0"] * 4


# What these commands leave, in the words of support_real/steps.py
COMMITTED = {
    "lower/closed/secret file 4755 16:0 old secret",
    "lower/keep file 0640 1999:1999 old keep",
    "made/dir dir 0755 7:8 new",
    "made/fresh file 0644 0:0 new new",
    "made/symbolic symlink 0777 9:10 new fresh",
}


@pytest.mark.parametrize("option", ["--userns=host", "--userns=auto:size=2000"])
def test_what_a_container_has_written_is_committed_with_its_owners(engine, option):
    engine.podman("run", "--name=written", option, IMAGE, "sh", "-euc", WRITE)
    assert engine.podman("start", "--attach", "written") == WRITTEN.strip()
    engine.podman("commit", "--quiet", "written", "localhost/committed")
    assert set(steps.listed(engine.tree("localhost/committed"))) >= COMMITTED
    engine.podman("rmi", "localhost/committed")


RIGHTS = """
printf 'root::0:0::/:/bin/sh\\nuser::1000:1000::/:/bin/sh\\n' >/etc/passwd
printf 'root:x:0:\\nuser:x:1000:\\nmore:x:50:user\\n' >/etc/group
cp /bin/busybox /bin/su; chmod 4755 /bin/su
echo of root >/made/sticky/file
echo for all >/made/run; chmod 6777 /made/run
cat >/made/script <<'end'
exec 2>/dev/null
say() { "$@" && echo "may $1" || echo "may not $1"; }
cd /lower
echo $(id -u) $(/bin/su -c "id -u")
say cat keep
say cat closed/secret
say cat touched
say rm plain
say chmod 0777 plain
say chown 1000 plain
say mkdir new
say rm /made/sticky/file
say mkdir /made/sticky/dir
say mkdir setgid/dir
stat -c "%a %u:%g" setgid/dir
echo more >>touched
echo more >>/made/run
stat -c "%a %u:%g" touched /made/run
end
/bin/su user -c "sh /made/script"
"""
HELD = """
1000 0
may not cat
may not cat
some
more
may cat
may not rm
may not chmod
may not chown
may not mkdir
may not rm
may mkdir
may mkdir
2755 1000:50
604 1000:1000
777 0:0
"""


def test_owners_and_modes_hold(engine):
    """A user may do what the modes say and is made root by a setuid program; a write clears such a bit."""
    assert engine.shell(IMAGE, RIGHTS) == HELD.strip()


def test_a_file_capability_gets_into_the_image(engine):
    engine.podman("create", "--name=capable", IMAGE)
    program = "bin/busybox"
    engine.inside(f"cd $(podman mount capable); setcap cap_net_raw=ep {program}; podman unmount capable")
    engine.podman("commit", "--quiet", "capable", "localhost/capable")
    said = engine.inside(
        f"cd $(podman image mount localhost/capable); getcap {program}; cd /; podman image unmount -a"
    )
    assert said.splitlines()[0] == f"{program} cap_net_raw=ep"
    engine.podman("rmi", "localhost/capable")


def test_owners_survive_a_change_to_fuse_overlayfs_and_back(engine, program):
    for name, first, second in (("one", program, FUSE_OVERLAYFS), ("two", FUSE_OVERLAYFS, program)):
        engine.use(first)
        engine.podman("run", f"--name={name}", IMAGE, "sh", "-euc", WRITE)
        before = steps.listed(engine.exported(name))
        assert set(before) >= COMMITTED
        engine.use(second)
        assert steps.differences(before, steps.listed(engine.exported(name))) == ""
        assert engine.podman("start", "--attach", name) == WRITTEN.strip()


def test_containers_of_users_leave_nothing_behind(engine):
    stored = sorted(engine.stored())
    for uid in range(5):
        assert engine.shell(IMAGE, "id -u >/tmp/id; cat /tmp/id", f"--user={uid}") == str(uid)
    engine.wait_until_idle()
    assert sorted(engine.stored()) == stored


MASKED = """
FROM localhost/base
RUN mkdir -p /made/sticky /lower/setgid; chgrp 50 /lower/setgid; echo more >>/lower/touched
"""
MODES = "chmod 1777 /made/sticky; chmod 2775 /lower/setgid"


def test_owners_and_modes_may_be_in_xattrs(account, program):
    """With `force_mask` podman lets every file belong to its user.

    It then cannot unpack a FIFO, and loses owners of symlinks and setuid, setgid and sticky bits.
    """
    with started(account, program, 'force_mask = "shared"') as engine:
        engine.build([entry for entry in steps.base() if entry.kind != tars.FIFO], MASKED)
        engine.podman("run", "--name=written", IMAGE, "sh", "-euc", WRITE)
        assert engine.podman("start", "--attach", "written") == WRITTEN.strip()
        assert set(steps.listed(engine.exported("written"))) >= COMMITTED
        assert engine.shell(IMAGE, MODES + RIGHTS) == HELD.strip()
        on_disk = [path.lstat() for path in (engine.graph / "overlay").glob("*/diff/**/*")]
        assert {(st.st_uid, st.st_mode & 0o6000) for st in on_disk} == {(account.pw_uid, 0)}
