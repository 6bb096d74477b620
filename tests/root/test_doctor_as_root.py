"""What a machine can lack that takes root to provoke: `doctor` names it, and `mount` gives the same reason.

Each in a mount namespace of its own; what an unprivileged user can provoke is in t4_mount/test_doctor.py.
"""

import shutil
import subprocess

import pytest
from support_real import layouts, tars
from support_real.commands import FUSESTORE, is_a_mountpoint

PRIVATE = ("unshare", "-m", "--propagation=private", "--", "sh", "-ec")
PROGRAM = "/usr/bin/fusermount3"


@pytest.fixture
def loaded(place, as_user):
    """A store of the user's with an image called test."""
    archive = layouts.docker_archive([tars.tar([tars.file(b"file", b"content")])])
    place.ok("load", input=archive, before=as_user)
    return place


def where(script, *before):
    """Before a command: run `script` in a private mount namespace, then go on with `before`."""
    return (*PRIVATE, f'{script}\nexec "$@"', "sh", *before)


@pytest.fixture
def copy(tmp_path):
    """Bind over fusermount3 a copy with this mode and owner; the script."""

    def script(mode, owner=0):
        shutil.copy(PROGRAM, tmp_path / "fusermount3")
        return (
            f"chown {owner} '{tmp_path}/fusermount3'; chmod {mode} '{tmp_path}/fusermount3'; "
            f"mount --bind '{tmp_path}/fusermount3' {PROGRAM}"
        )

    return script


def device(mode):
    node = f"mount -t tmpfs -o dev none /mnt; mknod -m {mode} /mnt/fuse c 10 229"
    return f"{node}; mount --bind /mnt/fuse /dev/fuse"


NO_SYS_ADMIN = ("setpriv", "--bounding-set", "-sys_admin", "--")


def doctor_and_mount_say(place, before, finding, remedy):
    result = place.run("doctor", before=before)
    lines = result.stdout.decode().splitlines()
    assert (result.returncode, result.stderr) == (1, b"")
    (line,) = [number for number, text in enumerate(lines) if text.startswith("FAIL") and finding in text]
    assert remedy in lines[line + 1]
    said = place.fails("mount", "test", before=before)
    assert finding in said
    assert remedy in said
    assert place.ok("cat", "test:/file", before=before) == "content"


def test_fusermount3_without_setuid(loaded, as_user, copy):
    doctor_and_mount_say(
        loaded, where(copy("0755"), *as_user), "has mode 0755", "chmod 4755 /usr/bin/fusermount3"
    )


def test_fusermount3_of_another_owner(loaded, as_user, copy, user):
    script = copy("4755", user.pw_uid)
    doctor_and_mount_say(
        loaded, where(script, *as_user), f"owner {user.pw_uid}, not 4755 and root", "sudo chown root"
    )


def test_fusermount3_that_may_not_be_executed(loaded, as_user, copy):
    doctor_and_mount_say(
        loaded, where(copy("4700"), *as_user), "may not be executed", "chmod 4755 /usr/bin/fusermount3"
    )


def test_fusermount3_on_a_filesystem_without_setuid(loaded, as_user, copy):
    script = copy("4755") + f"; mount -o remount,bind,nosuid {PROGRAM}"
    doctor_and_mount_say(loaded, where(script, *as_user), "mounted nosuid", "with suid")


def test_fusermount3_missing(loaded, as_user):
    """/usr/bin with everything in it but fusermount3."""
    script = (
        "mount -t tmpfs none /mnt; mkdir /mnt/up /mnt/work; "
        "mount -t overlay -o lowerdir=/usr/bin,upperdir=/mnt/up,workdir=/mnt/work none /usr/bin; "
        "rm -f /usr/bin/fusermount3 /bin/fusermount3"
    )
    doctor_and_mount_say(
        loaded, where(script, *as_user), "fusermount3 is not installed", "sudo apt install fuse3"
    )


def test_the_device_closed_to_the_user(loaded, as_user):
    doctor_and_mount_say(
        loaded,
        where(device("0600"), *as_user),
        "/dev/fuse cannot be opened: Permission denied",
        "chmod 0666 /dev/fuse",
    )


def test_the_device_with_another_number(loaded, as_user):
    script = device("0666").replace("10 229", "10 200")
    doctor_and_mount_say(
        loaded, where(script, *as_user), "/dev/fuse is not the FUSE device", "mknod -m 666 /dev/fuse c 10 229"
    )


def test_a_device_that_nothing_answers(loaded, as_user):
    """A filesystem mounted nodev refuses what is otherwise right."""
    script = device("0666") + "; mount -o remount,bind,nodev /dev/fuse"
    result = loaded.run("doctor", before=where(script, *as_user))
    assert result.returncode == 1
    assert b"FAIL  /dev/fuse cannot be opened" in result.stdout
    assert "/dev/fuse" in loaded.fails("mount", "test", before=where(script, *as_user))


def test_the_user_without_sys_admin_in_the_bounding_set(loaded, as_user):
    before = (*NO_SYS_ADMIN, *as_user)
    doctor_and_mount_say(loaded, before, "CAP_SYS_ADMIN is not in the bounding set", "--cap-add SYS_ADMIN")


def test_root_without_sys_admin(place):
    """As in a container that Docker started without any option."""
    place.ok("load", input=layouts.docker_archive([tars.tar([tars.file(b"file", b"content")])]))
    doctor_and_mount_say(place, NO_SYS_ADMIN, "lacks CAP_SYS_ADMIN", "--cap-add SYS_ADMIN --device /dev/fuse")


def test_a_home_that_cannot_be_entered_does_not_stop_doctor(place, as_user):
    """As after ``su`` that keeps the old HOME."""
    before = (*as_user, "env", "-u", "FUSESTORE_ROOT", "HOME=/root")
    result = place.run("doctor", before=before)
    assert result.stdout.count(b"ok    ") >= 6
    assert b"FAIL  store /root/.local/share/fusestore" in result.stdout
    assert (result.returncode, result.stderr) == (1, b"")
    assert "/root" in place.fails("images", before=before)


def test_allow_other_without_user_allow_other(loaded, as_user, tmp_path):
    (tmp_path / "fuse.conf").write_text("# user_allow_other\n")
    before = where(f"mount --bind '{tmp_path}/fuse.conf' /etc/fuse.conf", *as_user)
    assert b"note  --allow-other may not be used" in loaded.run("doctor", before=before).stdout
    assert "user_allow_other" in loaded.fails("mount", "--allow-other", "test", before=before)


OTHERS = """
mount --bind "$1/fuse.conf" /etc/fuse.conf
shift
mkdir -m 0755 /mnt/here && chown "$1" /mnt/here
shift
"$@" mount --allow-other modes /mnt/here
for file in open closed; do
    setpriv --reuid=65534 --regid=65534 --clear-groups cat "/mnt/here/$file" || echo refused
done
"$@" unmount modes
"""


def test_allow_other_lets_others_in_where_the_shown_owners_do(place, as_user, user, tmp_path):
    members = [tars.file(b"open", b"for all\n"), tars.file(b"closed", b"for root\n", mode=0o600)]
    place.ok("load", input=layouts.docker_archive([tars.tar(members)], "localhost/modes"), before=as_user)
    (tmp_path / "fuse.conf").write_text("user_allow_other\n")
    command = [
        *PRIVATE,
        f"mount -t tmpfs none /mnt\n{OTHERS}",
        "sh",
        tmp_path,
        str(user.pw_uid),
        *as_user,
        *FUSESTORE,
    ]
    result = subprocess.run(command, env=place.environment(), capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["/mnt/here", "for all", "refused", "/mnt/here"]


def test_a_mountpoint_of_root_is_refused_to_the_user(loaded, as_user):
    for directory in ("/opt", "/mnt", "/root"):
        assert f"{directory}: cannot mount here" in loaded.fails("mount", "test", directory, before=as_user)
        assert not is_a_mountpoint(directory)
