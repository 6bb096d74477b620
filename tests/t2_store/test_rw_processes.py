"""Several processes with RW layers on one store (seeds.md 12, but for the kill points: test_kill_points).

A name is made once, handles and counts are known to all, and what dies is not missed: neither a process with
mounts, nor one in the middle of an init function, nor a mount's server.
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.fsck import problems
from support.rw_layers import put_file, seen, tidied
from support.tars import Stream, folder, member, tar

from fusestore.driver import mounter
from fusestore.driver.fuse import FuseDriver
from fusestore.errors import ActiveMount, LayerInUse, MountNameConflict, NotMounted

TESTS = Path(__file__).parents[1]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
ON_FUSE = pytest.mark.parametrize("reopened", [FuseDriver], ids=["fuse"], indirect=True)

HEAD = """
import os, sys
from pathlib import Path
from support.tars import Stream, member, tar
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import ActiveMount, LayerInUse, MountNameConflict, RWLayerNotFound
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata
root, runroot, driver = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
arguments = sys.argv[4:]
driver = {"fuse": FuseDriver, "vfs": VfsDriver}[driver](root, runroot)
store = LayerStore(LayerMetadata(Database(root / "store.db")), driver)
def ready(path=None):
    print("ready", flush=True)
    sys.stdin.readline()
def init(path):
    (path / "by").write_text(str(os.getpid()))
    ready()
"""


@pytest.fixture
def reopened(reopened, runroot):
    yield from tidied(reopened, runroot)


@pytest.fixture
def base(layers):
    """A handle on a layer."""
    return layers.register(Stream(tar(folder("d"), member("d/a", b"a" * 10))))


@pytest.fixture
def processes(layers, store_root, runroot):
    """Starts processes that run some code with a `store`; each is back when it says that it is ready."""
    started = []

    def start(code, *arguments):
        place = [str(store_root), str(runroot), layers.driver.name]
        command = [sys.executable, "-c", HEAD + code, *place, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        child = subprocess.Popen(command, env=environment, text=True, **PIPES)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def await_ready(*children):
    for child in children:
        assert child.stdout.readline() == "ready\n", child.communicate()[1]


def go(*children):
    """Let them all run on to their end; what each printed."""
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=60) for child in children]
    assert [error for _, error in answers] == [""] * len(children)
    assert [child.returncode for child in children] == [0] * len(children)
    return [output.strip() for output, _ in answers]


def kill(child):
    child.kill()
    child.wait()


# -- names -------------------------------------------------------------------------------------------------


CREATE = """
try:
    rw = store.create_rw_layer("c1", arguments[0], init_func=init)
    print(os.getpid())
    assert [change.path for change in rw.changes()] == []
except MountNameConflict:
    print("conflict")
"""


def test_a_name_is_made_once(processes, layers, base, store_root):
    """All are in their init functions when the first of them gets the name."""
    children = [processes(CREATE, base.chain_id) for _ in range(3)]
    await_ready(*children)
    answers = go(*children)
    assert sorted(answers)[1:] == ["conflict"] * 2
    assert problems(store_root) == []
    rw = layers.get_rw_layer("c1")
    assert (rw.mount() / "by").read_text() == min(answers)
    rw.unmount()


MOUNT_BY_NAME = """
layer = store.mount("c1", arguments[0], "", init)
print(layer.path)
"""


def test_a_name_that_all_mount_at_once(processes, layers, base, store_root):
    """docker 1.10: one of them makes it, all have it; and the last to unmount takes the mount away."""
    children = [processes(MOUNT_BY_NAME, base.chain_id) for _ in range(3)]
    await_ready(*children)
    (path,) = set(go(*children))
    assert layers.driver.mounted(layers.get_mount_id("c1")) == 3
    for _ in range(3):
        assert seen(Path(path)).keys() == {".", "d", "d/a", "by"}
        with pytest.raises(ActiveMount):
            layers.delete_mount("c1")
        layers.unmount("c1")
    with pytest.raises(NotMounted):
        layers.unmount("c1")
    assert layers.delete_mount("c1") == []
    assert problems(store_root) == []


USE = """
ready()
made = 0
for number in range(int(arguments[1])):
    try:
        rw = store.get_rw_layer("c1")
    except RWLayerNotFound:
        try:
            rw = store.create_rw_layer("c1", arguments[0])
        except MountNameConflict:
            continue
        made += 1
    path = rw.mount()
    (path / f"{os.getpid()}").write_text(f"{number}")
    assert (path / "d/a").exists()
    assert f"{os.getpid()}" in [os.fsdecode(change.path) for change in rw.changes()]
    rw.unmount()
    store.release_rw_layer(rw)
print(made)
"""


USE_BY_NAME = """
ready()
deleted = 0
for number in range(int(arguments[1])):
    path = store.mount("c1", arguments[0]).path
    (path / f"{os.getpid()}").write_text(f"{number}")
    assert (path / "d/a").exists()
    assert f"{os.getpid()}" in [os.fsdecode(change.path) for change in store.changes("c1")]
    store.unmount("c1")
    try:
        store.delete_mount("c1")
        deleted += 1
    except (ActiveMount, LayerInUse, RWLayerNotFound):
        pass
print(deleted)
"""


@pytest.mark.parametrize("code", [USE, USE_BY_NAME], ids=["by handle", "by name"])
def test_one_name_used_by_many(processes, layers, base, store_root, code):
    """Get or make, mount, write, unmount, delete: nobody meets half of it or loses what he has mounted."""
    rounds = {"fuse": 4, "vfs": 60}[layers.driver.name]
    children = [processes(code, base.chain_id, rounds) for _ in range(3)]
    await_ready(*children)
    assert sum(map(int, go(*children))) >= 1
    assert layers.rw_layers() == []
    assert problems(store_root) == []
    assert len(layers.release(base)) == 1


# -- handles and counts ------------------------------------------------------------------------------------


HOLD = """
rw = store.get_rw_layer("c1")
ready()
store.release_rw_layer(rw)
"""


@pytest.mark.parametrize("end", [go, kill])
def test_a_handle_of_another_process_keeps_an_rw_layer(processes, layers, base, end):
    rw = layers.create_rw_layer("c1", base.chain_id)
    child = processes(HOLD)
    await_ready(child)
    with pytest.raises(LayerInUse, match="another process"):
        layers.delete_mount("c1")
    assert layers.release_rw_layer(rw) == []
    assert [record.name for record in layers.rw_layers()] == ["c1"]
    with pytest.raises(MountNameConflict):
        layers.create_rw_layer("c1")
    end(child)
    if end is kill:
        assert layers.release_rw_layer(layers.get_rw_layer("c1")) == []
    assert layers.rw_layers() == []
    assert layers.driver.list_layers() == [base.record.cache_id]


MOUNT = """
rw = store.get_rw_layer("c1")
path = rw.mount()
(path / "theirs").write_text("theirs")
print(path, flush=True)
ready()
"""


@pytest.mark.parametrize("end", [go, kill])
def test_counts_are_of_all_processes_and_outlive_them(processes, layers, base, end):
    """Two mounts are one; whoever unmounts last takes it away, for a process that died too."""
    rw = layers.create_rw_layer("c1", base.chain_id)
    child = processes(MOUNT)
    path = Path(child.stdout.readline().strip())
    await_ready(child)
    assert rw.path == rw.mount() == path
    put_file(path / "ours", b"ours", 0o600)
    for _ in range(2):  # while it lives, and then
        assert layers.driver.mounted(rw.record.mount_id) == 2
        end(child) if child.returncode is None else None
    rw.unmount()
    assert (path / "theirs").read_bytes() == b"theirs"
    assert (path / "ours").read_bytes() == b"ours"
    with pytest.raises(ActiveMount):
        layers.release_rw_layer(rw)
    layers.unmount("c1")
    assert not os.path.ismount(path)
    assert [change.path for change in rw.changes()] == [b"ours", b"theirs"]
    assert layers.release_rw_layer(rw) == []


COMMIT = """
rw = store.get_rw_layer("c1")
ready()
print(store.commit(rw).chain_id)
"""


def test_commits_of_one_rw_layer_at_once(processes, layers, base, store_root):
    rw = layers.create_rw_layer("c1", base.chain_id)
    put_file(rw.mount() / "new", b"new" * 1000, 0o640)
    children = [processes(COMMIT) for _ in range(3)]
    await_ready(*children)
    (chain_id,) = set(go(*children))
    rw.unmount()
    layer = layers.get(chain_id)
    assert (layer.parent, layer.diff_size) == (base.chain_id, 3000)
    assert layer.chain_id == layers.commit(rw).chain_id
    layers.release_rw_layer(rw)
    assert problems(store_root) == []


FORK = """
layer = store.register(Stream(tar(member("forked"))))
rw = store.create_rw_layer("forked", layer.chain_id)
there, here = os.pipe(), os.pipe()
for drops in (True, False):
    if not os.fork():
        if drops:
            for handle in (layer, rw) * 2:
                handle.drop()
        os.close(there[1])
        os.write(here[1], b"!")
        os.read(there[0], 1)
        os._exit(0)
    os.read(here[0], 1)
ready()
assert store.release_rw_layer(rw) == []
assert len(store.release(layer)) == 1
assert store.rw_layers() == []
print(len(store.map()))
"""


def test_a_forked_child_neither_frees_nor_keeps_anything(processes, layers, base):
    """It shares its parent's locks, whether it closes them or lives on."""
    child = processes(FORK)
    await_ready(child)
    (forked,) = set(layers.map()) - {base.chain_id}
    assert layers.release(layers.get(forked)) == []
    assert layers.release_rw_layer(layers.get_rw_layer("forked")) == []
    assert go(child) == ["1"]
    assert set(layers.map()) == {base.chain_id}


# -- making one --------------------------------------------------------------------------------------------


def test_cleanup_leaves_alone_what_an_init_function_works_on(processes, layers, reopened, base):
    """No row names the init layer yet; it is held."""
    child = processes(CREATE, base.chain_id)
    await_ready(child)
    for store in (layers, reopened()):
        store.cleanup()
        store.release_rw_layer(store.create_rw_layer("other", base.chain_id))
    (pid,) = go(child)
    rw = layers.get_rw_layer("c1")
    assert (rw.mount() / "by").read_text() == pid
    rw.unmount()


def test_an_init_function_that_is_killed_leaves_nothing(processes, reopened, layers, base, store_root):
    """Neither its layer nor the mount that it worked in; not even when its server is alive."""
    child = processes(CREATE, base.chain_id)
    await_ready(child)
    kill(child)
    store = reopened()
    store.cleanup()
    assert problems(store_root) == []
    assert store.create_rw_layer("c1", base.chain_id).changes() == []


# -- servers -----------------------------------------------------------------------------------------------


@ON_FUSE
def test_a_server_that_is_killed_is_replaced(layers, base, runroot):
    """What was written and closed is there; all who have the mount give it back as before."""
    rw = layers.create_rw_layer("c1", base.chain_id)
    path = rw.mount()
    put_file(path / "kept", b"kept", 0o640)
    (mounted,) = mounter.mounted(runroot)
    server = os.pidfd_open(mounted.pid)
    os.kill(mounted.pid, signal.SIGKILL)
    assert select.select([server], [], [], 20)[0]
    os.close(server)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(path)
    assert [change.path for change in rw.changes()] == [b"kept"]
    assert layers.commit(rw).diff_size == 4
    assert rw.mount() == path
    assert (path / "kept").read_bytes() == b"kept"
    rw.unmount()
    assert (path / "kept").read_bytes() == b"kept"
    rw.unmount()
    assert not os.path.ismount(path)
    assert layers.release_rw_layer(rw) == []
