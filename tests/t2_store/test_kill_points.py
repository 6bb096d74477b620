"""Killed, or refused something by the machine, at the calls by which a layer store changes things.

The operations are those of support/scenes.py, on both drivers; the faults those of support/shim.py: kill -9
before a call and in the middle of a write, a short write, ENOSPC, EDQUOT, EIO and EMFILE.  What must hold:

- the store is sound at once, and clean after the next open and cleanup;
- it is as before or as it should be; what was acknowledged is there;
- an error says what the machine said;
- the same again succeeds, in the same process after an error, in the next one after a death;
- no file descriptor, process, mount or temporary file is left.

Here a sample of them is tried; FUSESTORE_ALL_POINTS=1 tries every one (some 15,000: half an hour).  Such
a campaign is worth what its list of points is worth: it is compared with strace's.
"""

import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support import shim
from support.faults import CHANGING
from support.fsck import garbage, problems
from support.scenes import DRIVERS, SCENES

from fusestore.store.storage import Store

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(TESTS), str(TESTS.parent)])
ALL = os.environ.get("FUSESTORE_ALL_POINTS") == "1"
MOUNTING = "mount", "create with init"  # a mount takes its time
DEADLINE = 3600 if ALL else 100
#: The system calls by which libc makes a call.
MADE_BY = {
    "open64": "openat",
    "open": "openat",
    "openat64": "openat",
    "ftruncate64": "ftruncate",
    "futimens": "utimensat",
}


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    """The shim."""
    return shim.compiled(tmp_path_factory.mktemp("shim"))


def run(place, driver, scene, *arguments, under=(), environment=os.environ):
    """support/kill_points.py in a process of its own; what it says."""
    module = [sys.executable, "-bb", "-m", "support.kill_points", place, "--driver", driver, "--scene", scene]
    environment = {**environment, "PYTHONPATH": PATHS}
    command = [*under, *module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.timeout(DEADLINE + 20)
def test_a_store_survives_faults(library, tmp_path, driver, scene):
    share = [] if ALL else ["--points", "4" if scene in MOUNTING and driver == "fuse" else "10"]
    answer = run(tmp_path, driver, scene, *share, environment=shim.environment(library))
    print(answer.stdout)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "FAIL" not in answer.stdout
    assert int(re.search(r"^(\d+) points, 0 failed$", answer.stdout, re.MULTILINE)[1]) >= 3


@pytest.mark.parametrize(
    ("driver", "scene"), [("fuse", "commit"), ("vfs", "release rw"), ("fuse", "create with init")]
)
def test_the_shim_sees_every_call_that_changes_something(library, tmp_path, driver, scene):
    """As many of each kind as strace sees in the same operation."""
    counted = run(tmp_path / "shim", driver, scene, "--trace", environment=shim.environment(library))
    assert counted.stderr == ""
    calls = Counter(MADE_BY.get(name, name) for name in counted.stdout.splitlines()[0].split())
    log = tmp_path / "log"
    kinds = "?" + CHANGING.replace(",", ",?")
    strace = ["strace", "-qq", "-o", log, "-e", "signal=none", "-e", f"trace={kinds},stat,newfstatat,ioctl"]
    traced = run(tmp_path / "strace", driver, scene, "--trace", under=strace)
    assert traced.stderr == ""
    _, between, _ = re.split(r'.*"/MARK".*\n', log.read_text(errors="replace"))
    lines = re.findall(r"^(\w+)\((.*)", between, re.MULTILINE)
    seen = Counter(name for name, rest in lines if changes(name, rest))
    assert calls == seen
    assert sum(seen.values()) > 80


def changes(name, rest):
    """True for calls that change something, of those that were traced."""
    if name == "openat":
        return re.search("O_(WRONLY|RDWR|CREAT)", rest)
    return name not in ("stat", "newfstatat") and (name != "ioctl" or "FICLONE" in rest)


BUILD = """
import os, sys
from pathlib import Path
from support.scenes import BASE, Session
from support.tars import Stream, member, tar
from fusestore.digest import new_cache_id
session = Session(Path(sys.argv[1]), "fuse")
for i in range(1000):
    session.store.register(Stream(tar(member("f", b"%d" % i)))).drop()
driver = session.store.driver
for _ in range(25):
    published, staged = new_cache_id(), new_cache_id()
    driver.create(published)
    driver.apply_diff(published, Stream(BASE))
    driver.stage(staged, None)
    driver.apply_diff(staged, Stream(BASE))
os._exit(0)
"""


def test_a_store_of_1000_layers_and_50_leftovers_opens_soon(library, tmp_path):
    """reliability.md, figure 28, asks for 1 s."""
    environment = shim.environment(library) | {"PYTHONPATH": PATHS}
    subprocess.run([sys.executable, "-c", BUILD, tmp_path], env=environment, check=True, timeout=DEADLINE)
    root, runroot = tmp_path / "store", tmp_path / "run"
    assert len(garbage(root)) == 25 + 25 + 25  # what is published has a link, too
    start = time.monotonic()
    with Store(str(root), str(runroot)) as store:
        store.collect()
        seconds = time.monotonic() - start
        assert len(store.layer_store.map()) == 1000
    print(f"{seconds:.2f} s")
    assert problems(root) == []
    assert seconds < 10
