"""Several processes on one graph, and processes that are killed: an image is there whole or not at all.

A process is killed before each of its calls that change names, rows or what is durable, in turn; with
HYPOTHESIS_PROFILE=deep before each call into the system.  Right then every row has its layer; when the next
process has opened the graph nothing is left behind, and the same can be done again.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings
from support.fsck import broken, problems
from support.graphs import DRIVERS, chain, graphs, image, names, sql
from support.tars import Stream, member, tar

from fusestore.store.v1image import V1Image

DEEP = settings.get_current_profile_name() == "deep"
STEPS = ("execute", "mkdir", "rename", "symlink", "unlink", "rmdir", "fsync", "write")
TESTS = Path(__file__).parents[1]
A, B = tar(member("a", b"1" * 10)), tar(member("b", b"2" * 5))


@pytest.fixture(params=DRIVERS)
def reopened(request, store_root, runroot):
    """Opens one graph as often as one likes, each time as another process would."""
    with graphs(request.param, store_root, runroot) as again:
        yield again


def is_step(function) -> bool:
    """True for builtins that touch files, locks or the database, and are worth a try."""
    owner = function.__self__
    module = owner.__name__ if isinstance(owner, ModuleType) else type(owner).__module__
    return module in ("posix", "fcntl", "sqlite3", "_io") and (DEEP or function.__name__ in STEPS)


def run(opening, action, *arguments, kill_at: int = 0) -> int:
    """Run `action` on a graph in a process that is killed before the `kill_at`-th step; how many it made."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        count = 0

        def profile(frame, event, function):
            nonlocal count
            if event == "c_call" and is_step(function):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            graph = opening()
            sys.setprofile(profile)
            action(graph, *arguments)
            sys.setprofile(None)
            os.write(writer, b"%d" % count)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answer:
        count = int(answer.read() or b"0")
    os.waitpid(child, 0)
    return count


def register(graph, id_, base):
    graph.register(V1Image(id=id_, parent=base), Stream(B))


def delete(graph, id_, base):
    graph.delete(id_)


def archive(graph, id_, base):
    with graph.temp_layer_archive(id_) as tar:
        tar.read()


@pytest.mark.parametrize(
    ("action", "before", "after"), [(register, False, True), (delete, True, False), (archive, True, True)]
)
@pytest.mark.timeout(600 if DEEP else 120)
def test_killed_at_any_step(reopened, store_root, action, before, after):
    (base,), wanted = chain(reopened(), A), image().id

    def prepare():
        graph = reopened()
        if graph.exists(wanted) != before:
            (register if before else delete)(graph, wanted, base.id)
        graph._database.close()

    prepare()
    steps = run(reopened, action, wanted, base.id)
    assert steps > (1 if action is archive else 7)
    seen = set()
    for number in range(1, steps + 1):
        prepare()
        assert run(reopened, action, wanted, base.id, kill_at=number) < number  # not one more
        assert broken(store_root) == [], number
        graph = reopened()
        assert problems(store_root) == [], number
        seen.add(graph.exists(wanted))
        assert seen <= {before, after}
        assert set(graph.map()) == {base.id} | ({wanted} if graph.exists(wanted) else set())
        if graph.exists(wanted) != after:
            action(graph, wanted, base.id)
        assert not after or names(graph, wanted) == [b"a", b"b"]
        graph._database.close()
    assert before in seen


def test_killed_while_it_unpacks(reopened, store_root):
    """And others who open the graph meanwhile leave its work alone."""
    (base,), wanted = chain(reopened(), A), image()
    data = tar(member("big", bytes(2 << 20)))
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(writer)
            with open(reader, "rb") as stream:
                reopened().register(V1Image(id=wanted.id, parent=base.id), stream)
        finally:
            os._exit(0)
    os.close(reader)
    with open(writer, "wb", buffering=0) as pipe:
        assert pipe.write(data[: 1 << 20]) == 1 << 20  # more than a pipe holds: it is being unpacked
        graph = reopened()
        assert not graph.exists(wanted.id)
        assert len(os.listdir(store_root / "tmp")) >= 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    graph = reopened()
    assert problems(store_root) == []
    assert graph.map() == {base.id: base}
    graph.register(wanted, Stream(data))
    assert names(graph, wanted.id) == [b"big"]


HEAD = """
import random, sys
from pathlib import Path
from support.graphs import DRIVERS, image
from support.tars import Stream, member, tar
from fusestore.errors import *
from fusestore.store.database import Database
from fusestore.store.graph import Graph
from fusestore.store.v1image import V1Image
root, runroot = map(Path, sys.argv[2:4])
graph = Graph(Database(root / "store.db"), DRIVERS[sys.argv[1]](root, runroot), root)
print("ready", flush=True)
sys.stdin.readline()
"""

SAME = """
mine = Stream(tar(*(member(f"f{i}", sys.argv[5].encode()) for i in range(50))))
try:
    graph.register(V1Image(id=sys.argv[4], comment=sys.argv[5]), mine)
    print("made")
except ValueError:
    print("exists")
"""

MIXED = """
random.seed(sys.argv[4])
for i in range(14):
    found = list(graph.walk_all())
    try:
        if random.random() < 0.6 or not found:
            parent = random.choice([image.id for image in found] or [""])
            print(graph.register(image(parent=parent), Stream(tar(member(f"f{i}", b"x")))).id)
        else:
            name = random.choice(found).id
            graph.delete(name)
            print("-" + name)
    except (ImageNotFound, LayerInUse):
        pass
"""


@pytest.fixture
def processes(request, store_root, runroot):
    """Runs some code in one process for each argument, all at once; what each printed."""
    driver = request.node.callspec.params["reopened"]
    children = []

    def run(code, *arguments):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        for argument in arguments:
            command = [sys.executable, "-bb", "-c", HEAD + code, driver, store_root, runroot, *argument]
            children.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        assert [child.stdout.readline() for child in children] == ["ready\n"] * len(children)
        for child in children:
            child.stdin.write("\n")
            child.stdin.flush()
        answers = [child.communicate(timeout=60) for child in children]
        assert [error for _, error in answers] == [""] * len(children)
        return [output for output, _ in answers]

    yield run
    for child in children:
        child.kill()
        child.communicate()


def test_one_id_at_once(reopened, processes, store_root):
    """One of them makes the image, and it is that one's."""
    graph, wanted = reopened(), image().id
    answers = processes(SAME, *([wanted, str(i)] for i in range(3)))
    assert sorted(answers) == ["exists\n", "exists\n", "made\n"]
    winner = graph.get(wanted).comment
    assert answers[int(winner)] == "made\n"
    with graph.driver.union(graph.cache_id(wanted)) as union:
        assert union.lookup(1, b"f49").attr.size == len(winner)
    assert problems(store_root) == []


def test_registering_and_deleting_at_once(reopened, processes, store_root):
    """Every process sees the others' images, no child loses its parent, what was told is what there is."""
    answers = processes(MIXED, ["1"], ["2"], ["3"])
    lines = " ".join(answers).split()
    made = {line for line in lines if not line.startswith("-")}
    graph = reopened()
    assert set(graph.map()) == made - {line[1:] for line in lines if line.startswith("-")}
    assert len(made) > 12
    assert sql(store_root, "PRAGMA foreign_key_check") == []
    assert all(names(graph, id_) for id_ in graph.heads())
    assert problems(store_root) == []
