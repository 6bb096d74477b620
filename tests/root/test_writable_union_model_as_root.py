"""The same as t1_core/test_writable_union_model.py where owners, modes and devices are those on disk."""

from hypothesis import settings
from support.union_machine import UnionMachine

from fusestore.driver.ownership import Ownership


class Machine(UnionMachine):
    ownership = Ownership.REAL


TestWritableUnion = Machine.TestCase
TestWritableUnion.settings = settings(max_examples=4 * settings().max_examples, stateful_step_count=40)
