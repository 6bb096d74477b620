"""A store against a model of it: one process that does anything, and many that do it at once."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule
from support.fsck import problems
from support.store_model import Model
from support.store_operations import OPERATIONS, described, drawn, expected, foreseen, opened, perform


class OneProcess(RuleBasedStateMachine):
    """Every call, with words that mean something and words that do not, says what the model says."""

    driver = "vfs"

    def __init__(self):
        super().__init__()
        self.place = TemporaryDirectory()
        self.store = opened(Path(self.place.name), self.driver)
        self.model = Model()

    def do(self, operation, data):
        arguments = drawn(operation, lambda choices: data.draw(st.sampled_from(choices)), "")
        wanted = foreseen(self.model, operation, arguments)
        assert perform(self.store, operation, arguments) == wanted, (operation, arguments)

    def teardown(self):
        try:
            assert described(self.store, "") == expected(self.model)
            self.store.collect()
            self.store.close()
            assert problems(Path(self.place.name) / "store") == []
        finally:
            self.place.cleanup()


def _rule(operation):
    def call(self, data):
        self.do(operation, data)

    return rule(data=st.data())(call)


for _name in OPERATIONS:
    setattr(OneProcess, _name, _rule(_name))

TestOneProcess = OneProcess.TestCase
TestOneProcess.settings = settings(settings.get_profile(settings.get_current_profile_name()), max_examples=30, stateful_step_count=40)
