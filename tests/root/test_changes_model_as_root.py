"""The same as t1_core/test_changes_model.py where owners, modes and devices are those on disk."""

from hypothesis import settings
from support.driver_machine import DriverMachine

from fusestore.driver.ownership import Ownership


class Machine(DriverMachine):
    ownership = Ownership.REAL


TestDriver = Machine.TestCase
TestDriver.settings = settings(stateful_step_count=40)
