"""Whatever is done to a writable union, it stays what an in-memory filesystem is after the same operations.

Random lower layers, random operations, as the kernel would send them; see `support.union_machine`.
"""

from hypothesis import settings
from support.union_machine import UnionMachine

TestWritableUnion = UnionMachine.TestCase
TestWritableUnion.settings = settings(max_examples=2 * settings().max_examples, stateful_step_count=40)
