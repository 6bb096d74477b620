"""Several processes on one store: nobody sees half of anything, nobody's layers go while they are held."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fsck import broken, problems
from support.images import oci, sha256
from support.layers import data, find, paths
from support.tars import Stream, folder, hard_link, member, tar

from fusestore.digest import chain_id
from fusestore.errors import LayerInUse
from fusestore.store.storage import Store
from fusestore.transport.pipeline import load

TESTS = Path(__file__).parents[1]
PIPES = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
A, B = tar(member("a", b"1" * 100)), tar(member("b", b"2"))

HEAD = """
import random, sys
from pathlib import Path
from support.images import oci
from support.tars import Stream, member, tar
from fusestore.errors import *
from fusestore.store.storage import Store
from fusestore.transport.pipeline import load
store = Store(sys.argv[1], sys.argv[2])
def ready():
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def processes(store_root, runroot):
    """Starts processes that run some code with a `store`; they begin together, at `go`."""
    started = []

    def start(code, *arguments):
        command = [sys.executable, "-c", HEAD + code, str(store_root), str(runroot), *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        child = subprocess.Popen(command, env=environment, text=True, **PIPES)
        started.append(child)
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


def go(*children):
    """Let them all run to the end; what each printed."""
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [child.communicate(timeout=100) for child in children]
    assert [error for _, error in answers] == [""] * len(children)
    assert [child.returncode for child in children] == [0] * len(children)
    return [output for output, _ in answers]


REGISTER = """
ready()
parent, handles = None, []
for i in range(5):
    archive = tar(*(member(f"{i}/{j}", b"x" * 999) for j in range(40)))
    layer = store.layer_store.register(Stream(archive), parent)
    handles.append(layer)
    parent = layer.chain_id
print(parent)
if sys.argv[3] == "release":
    for layer in handles:
        store.layer_store.release(layer)
"""


@pytest.mark.parametrize("then", ["release", "exit"])
def test_the_same_layers_at_once(processes, store_root, runroot, then):
    """Whoever comes second throws his own work away and gets a handle on the other's."""
    children = [processes(REGISTER, then) for _ in range(5)]
    answers = set(go(*children))
    assert len(answers) == 1
    with Store(str(store_root), str(runroot)) as store:
        assert len(store.layer_store.map()) == (5 if then == "exit" else 0)
        if then == "exit":
            assert len(store.layer_store.release(store.layer_store.get(answers.pop().strip()))) == 5
    assert problems(store_root) == []


MIXED = """
seed, images = int(sys.argv[3]), sys.argv[4:]
random.seed(seed)
ready()
for _ in range(12):
    name = random.choice(images)
    try:
        if random.random() < 0.6:
            (image,) = load(store, name)
            with store.union(image) as union:
                assert union.resolve(b"base") is not None
        else:
            store.delete_image(store.image(Path(name).name).id)
    except (ImageNotFound, LayerNotFound, LayerInUse):
        pass  # somebody else was faster
"""


def test_loads_and_deletions_at_once(processes, store_root, runroot, tmp_path):
    """Documented errors only, and a sound store at the end."""
    base = tar(member("base", b"b" * 1000), folder("d"))
    images = []
    for i in range(4):
        layers = [base, tar(member(f"d/{i}", b"%d" % i), hard_link("h", "base"))][: 1 + i % 3]
        images.append(oci(tmp_path / f"image{i}", *layers, tar(member("own", b"%d" % i)), name=f"image{i}"))
    go(*(processes(MIXED, seed, *images) for seed in range(4)))
    assert broken(store_root) == []
    with Store(str(store_root), str(runroot)) as store:
        assert problems(store_root) == []
        for place in images:
            (image,) = load(store, str(place))
            with store.union(image) as union:
                assert b"base" in paths(union)
        for image in store.images():
            store.delete_image(image.id)
        assert store.layer_store.map() == {}
    assert problems(store_root) == []


HOLD = """
layer = store.layer_store.get(sys.argv[3])
ready()
"""


def test_a_layer_that_another_process_holds(store, processes, tmp_path):
    (image,) = load(store, str(oci(tmp_path / "oci", A, B)))
    child = processes(HOLD, image.top_layer)
    with pytest.raises(LayerInUse, match="another process"):
        store.delete_image(image.id)
    assert store.layer_store.release(store.layer_store.get(image.top_layer)) == []
    assert store.image(image.id) == image
    go(child)
    assert store.delete_image(image.id) == [chain_id(sha256(A), sha256(B)), sha256(A)]


def test_a_process_that_is_killed_holds_nothing(store, processes, tmp_path):
    (image,) = load(store, str(oci(tmp_path / "oci", A, B)))
    child = processes(HOLD, image.top_layer)
    child.kill()
    child.wait()
    assert len(store.delete_image(image.id)) == 2


STAGE = """
class Waiting(Stream):
    def read(self, size, /):
        if not self.position:
            ready()
        return super().read(size)
store.layer_store.register(Waiting(tar(member("x"))))
"""


def test_what_another_process_is_making_is_not_swept(processes, store_root, runroot):
    child = processes(STAGE)
    assert len(os.listdir(store_root / "tmp")) == 1
    for _ in range(2):
        with Store(str(store_root), str(runroot)) as store:
            store.collect()
            assert len(os.listdir(store_root / "tmp")) == 1
    go(child)
    with Store(str(store_root), str(runroot)) as store:
        assert len(store.layer_store.map()) == 1
    assert problems(store_root) == []


def test_what_a_killed_process_was_making_is_swept(processes, store_root, runroot):
    child = processes(STAGE)
    child.kill()
    child.wait()
    assert len(os.listdir(store_root / "tmp")) == 1
    Store(str(store_root), str(runroot)).close()
    assert problems(store_root) == []


DELETE = """
ready()
try:
    store.delete_image(store.image(sys.argv[3]).id)
except LayerInUse:
    pass
"""


def test_files_that_somebody_is_reading(store, processes, tmp_path):
    """Deleting an image takes nothing away from under a union of it that is open."""
    (image,) = load(store, str(oci(tmp_path / "oci", A, B)))
    with store.union(image) as union:
        assert paths(union) == [b"a", b"b"]
        go(processes(DELETE, image.id))
        assert data(union, find(union, b"a")) == b"1" * 100
        assert paths(union) == [b"a", b"b"]


def test_register_while_the_parent_is_deleted(store, store_root, runroot):
    """The parent is held from the start; it cannot go before its child is there."""
    with Store(str(store_root), str(runroot)) as other:
        base = store.layer_store.register(Stream(A))

        class Meanwhile(Stream):
            def read(self, size, /):
                if base in store.layer_store._handles:
                    assert store.layer_store.release(base) == []
                return super().read(size)

        child = other.layer_store.register(Meanwhile(B), base.chain_id)
        assert child.parent == base.chain_id
        assert set(store.layer_store.map()) == {base.chain_id, child.chain_id}
        assert len(other.layer_store.release(child)) == 2
