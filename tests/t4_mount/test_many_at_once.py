"""Many callers of one mount, and callers that are killed in the middle of a request.

Runs through fusermount3, and again inside ``unshare -Urm`` (see test_user_namespace.py).
"""

import contextlib
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import threading

import pytest
from support_real import layouts, tars
from support_real.commands import DEADLINE

WALK = 'cd "$1" && find . -printf "%p %i %m %s\\n" | sort && find . -type f -print0 | sort -z | xargs -0 cat'


def members():
    random_ = random.Random(1)
    for directory in range(40):
        yield tars.directory(b"d%d" % directory)
        for number in range(25):
            size = random_.choice([0, 1, 4096, 5000, 131_072, 131_073, 200_000])
            yield tars.file(b"d%d/f%d" % (directory, number), random_.randbytes(size))


@pytest.fixture(scope="module")
def busy(menagerie, tmp_path_factory):
    """Where an image of a thousand files is mounted."""
    layout = layouts.oci(tmp_path_factory.mktemp("busy") / "oci", [tars.tar(members())], "busy")
    menagerie.ok("load", f"oci:{layout}")
    yield menagerie.mount("busy")
    menagerie.ok("unmount", "busy")


def walks(top, count):
    """What `count` processes find that walk and read everything at the same time, as digests."""
    command = ["sh", "-c", WALK, "sh", str(top)]
    walkers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    digests = []
    for walker in walkers:
        with walker:
            digests.append(hashlib.file_digest(walker.stdout, "sha256").hexdigest())
        assert walker.returncode == 0
    return digests


def test_all_callers_see_the_same(busy, menagerie):
    (alone,) = walks(busy, 1)
    menagerie.ok("unmount", "busy")  # away with what the kernel keeps
    menagerie.mount("busy")
    assert walks(busy, 8) == [alone] * 8


def test_what_is_read_is_what_was_written(busy):
    for member in members():
        if member.kind == tars.FILE:
            with open(os.fsencode(busy) + b"/" + member.name, "rb") as file:
                assert file.read() == member.content


def kill_group(pid):
    with contextlib.suppress(ProcessLookupError):  # it was faster
        os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("seed", range(3))
def test_callers_that_are_killed_do_not_stop_the_server(busy, menagerie, seed):
    menagerie.ok("unmount", "busy")
    menagerie.mount("busy")
    random_ = random.Random(seed)
    for _ in range(40):
        walker = subprocess.Popen(
            ["sh", "-c", WALK, "sh", str(busy)], stdout=subprocess.DEVNULL, start_new_session=True
        )
        timer = threading.Timer(random_.random() / 30, kill_group, (walker.pid,))
        timer.start()
        walker.wait(DEADLINE)
        timer.cancel()
        timer.join()
    assert len(os.listdir(busy)) == 40
    assert menagerie.log(busy) == ""


def test_files_can_be_locked(busy):
    """By the kernel alone; nothing of that reaches the server."""
    with open(busy / "d0/f0", "rb") as one, open(busy / "d0/f0", "rb") as other:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.lockf(other, fcntl.LOCK_SH)
