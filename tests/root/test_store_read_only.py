"""Another user's store, and one's own on a read-only mount: all is read, each commit seen, nothing written.

The other user's process is forked from root's and told what to do; ours are the command line and a program
that reads whenever it is asked to.  What SQLite needs to read along depends on whether the other has the
store open (a log and shared memory are there), has closed it (they are gone), or was killed (they are left).
"""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.images import oci
from support.store_operations import opened
from support.tars import folder, member, tar
from support_real.commands import Place

from fusestore.transport.pipeline import load

OTHER = 65534  # uid and gid
IMAGE = tar(folder("d"), member("d/a", b"what it says"), member("secret", b"root's", mode=0o600))
NAME = "docker.io/library/one:latest"


class Other:
    """The other user's process, which has the store below `place` open and does what it is told."""

    def __init__(self, place: Path) -> None:
        self._ours, theirs = multiprocessing.Pipe()
        self.pid = os.fork()
        if not self.pid:
            self._ours.close()
            try:
                os.setgroups([])
                os.setresgid(OTHER, OTHER, OTHER)
                os.setresuid(OTHER, OTHER, OTHER)
                self._serve(place, theirs)
            finally:
                os._exit(0)
        theirs.close()

    def _serve(self, place, commands) -> None:
        with opened(place, "fuse") as store:
            while True:
                try:
                    what, *arguments = commands.recv()
                except EOFError:
                    return
                answer = load(store, *arguments) if what == "load" else getattr(store, what)(*arguments)
                commands.send(str(answer))

    def __call__(self, *command: str) -> str:
        """Have it do something to the store; what it said."""
        self._ours.send(command)
        return self._ours.recv()

    def end(self, *, killed: bool = False) -> None:
        """Have it close the store, or kill it."""
        if killed:
            os.kill(self.pid, signal.SIGKILL)
        self._ours.close()
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def others():
    """A directory of the other user's, in which there is a store that all may read."""
    directory = Path(tempfile.mkdtemp(prefix="fusestore-other-"))
    image = oci(directory / "oci", IMAGE, name=NAME)
    with opened(directory / "first", "fuse") as store:  # so that all modules are imported
        load(store, str(image))
    subprocess.run(["chown", "-R", f"{OTHER}:{OTHER}", directory], check=True)
    directory.chmod(0o755)
    other = Other(directory)
    other("load", str(image))
    other.end()
    subprocess.run(["chmod", "-R", "go+rX", directory / "store"], check=True)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place(others, ground, tmp_path, as_user):
    """That store, with a runroot of the user's."""
    place = Place(others / "store", ground / tmp_path.name)
    yield place
    place.run("unmount", "--all", before=as_user)


@pytest.fixture(params=["closed", "open", "killed"])
def state(request, others):
    """What has become of the other's process."""
    other = Other(others)
    other("set_metadata", NAME, request.param)
    if request.param != "open":
        other.end(killed=request.param == "killed")
    log = others / "store/store.db-wal"
    assert (log.exists() and log.stat().st_size > 0) == (request.param != "closed")
    yield request.param
    if request.param == "open":
        other.end()


def everything(root: Path) -> dict[str, tuple]:
    """What is there and when it was changed, but for the memory that readers share with the writer."""
    found = {}
    for directory, _, files in os.walk(root):
        for name in (".", *files):
            st = os.lstat(os.path.join(directory, name))
            found[os.path.join(directory, name)] = st.st_mode, st.st_size, st.st_mtime_ns, st.st_uid
    return {path: facts for path, facts in found.items() if not path.endswith("-shm")}


def test_it_is_listed_inspected_mounted_and_read(place, as_user, state):
    before = everything(place.root)
    (image,) = place.listed("images", before=as_user)
    assert image["Names"] == [NAME]
    assert place.ok("metadata", "one", before=as_user) == state
    assert place.ok("cat", "one:/d/a", before=as_user) == "what it says"
    mountpoint = place.ok("mount", "one", before=as_user)
    listing = [*as_user, "sh", "-c", f"ls {mountpoint}; cat {mountpoint}/d/a"]
    assert subprocess.check_output(listing, text=True) == "d\nsecret\nwhat it says"
    place.ok("unmount", "one", before=as_user)
    assert everything(place.root) == before


WRITES = {
    "tag": ("tag", "one", "two"),
    "untag": ("untag", NAME),
    "rmi": ("rmi", "one"),
    "create": ("create", "one"),
    "wipe": ("wipe", "--force"),
    "set metadata": ("metadata", "--set", "new", "one"),
}


@pytest.mark.parametrize("what", WRITES)
def test_what_writes_is_refused_in_one_line(place, as_user, what):
    before = everything(place.root)
    assert "read-only" in place.fails(*WRITES[what], before=as_user)
    assert everything(place.root) == before


def test_loading_is_refused_in_one_line(place, others, as_user):
    assert "read-only" in place.fails("load", others / "oci", before=as_user)
    assert place.half_made() == []


READER = """
import sys
from fusestore.store.storage import Store
with Store(*sys.argv[1:]) as store:
    for line in sys.stdin:
        print(store.read_only, *(image.metadata for image in store.images()), flush=True)
"""


def test_each_commit_is_visible_to_the_next_read(place, others, as_user):
    """Whatever becomes of the writer between two reads, and whoever opened the store first."""
    command = [*as_user, sys.executable, "-bb", "-c", READER, str(place.root), str(place.runroot)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as reader:

        def read() -> str:
            reader.stdin.write("\n")
            reader.stdin.flush()
            return reader.stdout.readline().strip()

        read()
        for number in range(12):
            other = Other(others)
            if number % 2:
                read()  # what it has to read from changes while it has it open
            other("set_metadata", NAME, f"first {number}")
            assert read() == f"True first {number}"
            other("set_metadata", NAME, f"second {number}")
            if number % 3:
                other.end(killed=number % 3 == 1)
                assert read() == f"True second {number}"
            else:
                assert read() == f"True second {number}"
                other.end()
        reader.stdin.close()
    assert reader.returncode == 0


@pytest.fixture
def on_read_only_mount(ground, as_user, tmp_path):
    """A store of the user's own, on a read-only bind mount."""
    place = Place(ground / f"{tmp_path.name}-ro", ground / f"{tmp_path.name}-run")
    layout = oci(ground / f"{tmp_path.name}-oci", IMAGE, name=NAME)
    place.ok("load", layout, before=as_user)
    subprocess.run(["mount", "--bind", place.root, place.root], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", place.root], check=True)
    yield place
    place.run("unmount", "--all", before=as_user)
    subprocess.run(["umount", place.root], check=True)


def test_ones_own_store_on_a_read_only_mount(on_read_only_mount, as_user):
    place = on_read_only_mount
    assert [image["Names"] for image in place.listed("images", before=as_user)] == [[NAME]]
    assert place.ok("cat", "one:/d/a", before=as_user) == "what it says"
    mountpoint = place.ok("mount", "one", before=as_user)
    assert subprocess.check_output([*as_user, "cat", f"{mountpoint}/secret"]) == b"root's"
    assert "read-only" in place.fails("tag", "one", "two", before=as_user)
