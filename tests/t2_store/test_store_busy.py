"""A process that is stopped while it writes: others read on, wait for their turn, and are told if none comes.

The patience of SQLite is 60 s; here it is less.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from fusestore import files
from fusestore.store import database
from fusestore.store.storage import Store

PATIENCE = 0.5  # seconds
WRITER = """
import sys
from fusestore.store.storage import Store
with Store(*sys.argv[1:]) as store, store._database.transaction() as execute:
    execute("UPDATE images SET metadata = 'written'")
    print("writing", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(store, store_root, runroot):
    """A process that is stopped in the middle of a transaction."""
    store.create_image("i", ["one"], metadata="before")
    command = [sys.executable, "-c", WRITER, str(store_root), str(runroot)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)

        try:
            yield child
        finally:
            child.kill()


def go_on(child):
    """Have it commit and end."""
    child.send_signal(signal.SIGCONT)
    child.communicate("\n")
    assert child.returncode == 0


@pytest.fixture
def impatient(store, writer, store_root, runroot, monkeypatch):
    """The store as one has it who does not wait as long."""
    monkeypatch.setattr(database, "PATIENCE", PATIENCE)
    with Store(str(store_root), str(runroot)) as other:
        yield other


def test_who_waits_too_long_is_told_so(impatient, writer):
    start = time.monotonic()
    with pytest.raises(OSError) as caught:
        impatient.set_names("i", ["two"])
    assert PATIENCE <= time.monotonic() - start < 20
    assert str(caught.value).endswith(
        f"store.db: another process has been writing for {PATIENCE} s; try again"
    )
    assert impatient.names("i") == ("one",)
    go_on(writer)
    impatient.set_names("i", ["two"])
    assert (impatient.names("i"), impatient.metadata("i")) == (("two",), "written")


def test_readers_do_not_wait(impatient):
    """They see what was before."""
    start = time.monotonic()
    assert [(image.names, image.metadata) for image in impatient.images()] == [(("one",), "before")]
    assert time.monotonic() - start < PATIENCE


def test_who_is_patient_has_its_turn(store, writer):
    waiting = threading.Thread(target=go_on, args=[writer])
    waiting.start()
    store.set_names("i", ["two"])  # has to wait for the other's commit, or comes right after it
    waiting.join()
    assert (store.names("i"), store.metadata("i")) == (("two",), "written")


def test_a_writer_that_is_killed_blocks_nobody(store, writer):
    """What it had written is not there."""
    writer.kill()
    store.set_names("i", ["two"])
    assert (store.names("i"), store.metadata("i")) == (("two",), "before")


#: What is locked while somebody works on it, and what has to wait for that.
LOCKS = {
    "tmp": (lambda store, _: store.graph_root / "tmp", lambda store: store.create_layer("new")),
    "lock": (
        lambda store, name: store.graph_driver.path / name / "lock",
        lambda store: store.changes("", "l"),
    ),
    "count": (lambda store, name: store.run_root / f"mounts/{name}.count", lambda store: store.mount("l")),
}


@pytest.mark.parametrize("what", LOCKS)
def test_a_lock_that_is_never_given_back(store, monkeypatch, what):
    where, call = LOCKS[what]
    store.create_layer("l")
    assert store.mounted("l") == 0  # which makes the file with the count
    fd = os.open(where(store, store.layer_items.record("l").cache_id), os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    monkeypatch.setattr(files, "PATIENCE", PATIENCE)
    start = time.monotonic()
    with pytest.raises(
        TimeoutError, match=f"another process has been working with it for {PATIENCE} s; try again"
    ):
        call(store)
    assert PATIENCE <= time.monotonic() - start < 20
    os.close(fd)
    call(store)
    store.unmount_all()
