"""A server keeps what the kernel keeps, and forgets with it: only root can make the kernel forget."""

import os
import subprocess
from pathlib import Path

import pytest
from support_real import layouts, room, tars
from support_real.commands import Place

PARTS, FILES = 10, 3000


def members():
    for part in range(PARTS):
        for number in range(FILES):
            yield tars.file(b"%d/%d/%d" % (part, number % 30, number), b"%d" % number)


@pytest.fixture(scope="module")
def place(ground, as_user, user):
    with room.for_many(PARTS * FILES, ground) as directory:
        os.chown(directory, user.pw_uid, user.pw_gid)
        place = Place(directory / "store", directory / "run")
        archive = layouts.docker_archive([tars.tar(members())], "localhost/many")
        place.ok("load", input=archive, before=as_user)
        yield place
        place.destroy()


@pytest.fixture
def top(place, as_user):
    yield place.mount("many", before=as_user)
    place.ok("unmount", "many", before=as_user)


def walk(top, as_user):
    """A digest of everything in the tree."""
    script = 'cd "$1" && find . -printf "%p %i %n %s %T@\\n" | sort && find . -type f -print0 | xargs -0 cat'
    return subprocess.check_output([*as_user, "sh", "-c", script, "sh", str(top)])


def forget():
    """Every inode that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def resident_kib(pid):
    (line,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:")]
    return int(line.split()[1])


def test_the_server_forgets_with_the_kernel(place, top, as_user):
    pid = place.server(top)
    first = walk(top / "0", as_user)
    size = resident_kib(pid)
    for part in range(1, PARTS):
        forget()
        walk(top / str(part), as_user)
    forget()
    assert walk(top / "0", as_user) == first
    assert resident_kib(pid) < size + 6_000  # all 30,000 nodes would take three times that


def test_what_is_in_use_is_not_forgotten(place, top, as_user):
    """A shell with its working directory inside and a file open goes on reading."""
    script = 'cd "$1/7" && exec 3<7/7 && echo ready && read -r _ && cat - 8/8 <&3 && pwd && stat -c %i . ../7'
    command = [*as_user, "sh", "-c", script, "sh", str(top)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdout.readline() == b"ready\n"
        forget()
        shell.stdin.write(b"\n")
        shell.stdin.close()
        said = shell.stdout.read().decode()
    assert said.startswith(f"78{top}/7\n")
    assert len(set(said.split("\n")[1:3])) == 1
