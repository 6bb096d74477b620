"""A store against a model of it (support.store_model): one process that does anything, and many at once.

In one process a hypothesis machine makes any call with words that mean something and words that do not, and
what the store says, or which error it raises, is what the model says; at the end all that is in it is.  Many
processes do the same with ids of their own, and work on what they share, while two of them are killed
(support/store_machine.py); FUSESTORE_STORE_MACHINE=8x500 has 8 processes do 500 things each.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from support.fsck import problems
from support.store_model import Model
from support.store_operations import (
    OPERATIONS,
    described,
    drawn,
    expected,
    foreseen,
    opened,
    perform,
    prelude,
)

TESTS = Path(__file__).parents[1]
LARGE = os.environ.get("FUSESTORE_STORE_MACHINE")
DEADLINE = 600 if LARGE else 100


class OneProcess(RuleBasedStateMachine):
    """Every call says what the model says."""

    def __init__(self):
        super().__init__()
        self.place = TemporaryDirectory()
        self.store, self.model = opened(Path(self.place.name), "vfs"), Model()
        for operation, arguments in prelude(""):
            self.compare(operation, arguments)

    def compare(self, operation, arguments):
        wanted = foreseen(self.model, operation, arguments)
        assert perform(self.store, operation, arguments) == wanted, (operation, arguments)

    def teardown(self):
        try:
            assert described(self.store, "") == expected(self.model)
            self.store.collect()
            self.store.close()
            assert problems(Path(self.place.name) / "store") == []
        finally:
            self.store.close()
            self.place.cleanup()


def _rule(operation):
    @rule(data=st.data())
    def call(self, data):
        self.compare(operation, drawn(operation, lambda choices: data.draw(st.sampled_from(choices)), ""))

    return call


for _name in OPERATIONS:
    setattr(OneProcess, _name, _rule(_name))

TestOneProcess = OneProcess.TestCase
if settings.get_current_profile_name() == "default":
    TestOneProcess.settings = settings(max_examples=30, stateful_step_count=40)


@pytest.mark.parametrize(
    ("options", "processes", "operations"),
    [
        (["--driver=vfs"], 8, 200),
        (["--driver=vfs", "--no-log"], 8, 100),  # as on a network filesystem
        (["--driver=fuse"], 8, 150),
    ],
)
@pytest.mark.timeout(DEADLINE + 20)
def test_many_processes_of_which_two_are_killed(tmp_path, options, processes, operations):
    if LARGE:
        processes, operations = LARGE.split("x")
    program = [sys.executable, "-bb", "-m", "support.store_machine", str(processes), str(operations)]
    options = [*options, "--place", tmp_path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    answer = subprocess.run(
        [*program, *options], env=environment, capture_output=True, text=True, timeout=DEADLINE
    )
    print(answer.stdout)
    assert (answer.returncode, answer.stderr) == (0, "")
    calls, refused = re.match(r"(\d+) calls .* (\d+) refused", answer.stdout).groups()
    assert int(calls) - int(refused) > int(operations)


STARTER = """
import os, signal, sys
from pathlib import Path
from fusestore.driver import mounter
from support.store_operations import opened

class Deadly:  # where it waits for the server that it has started
    def select(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

mounter.select = Deadly
with opened(Path(sys.argv[1]), "fuse") as store:
    store.mount("l")
"""


def test_who_is_killed_while_a_server_starts_blocks_nobody(tmp_path):
    """The server has nobody to tell that it is ready; meanwhile another process looks at its mount."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    with opened(tmp_path, "fuse") as store:
        store.create_layer("l")
        answer = subprocess.run([sys.executable, "-c", STARTER, tmp_path], env=environment, timeout=30)
        assert answer.returncode == -signal.SIGKILL
        start = time.monotonic()
        while time.monotonic() < start + 1:  # the server needs 0.2 s to come up
            store.collect(deep=True)
        assert time.monotonic() < start + 20
        place = store.mount("l")
        (place / "f").write_bytes(b"data")
        store.unmount_all()
        assert [change.path for change in store.changes("", "l")] == [b"f"]
    assert problems(tmp_path / "store") == []
