"""Changes and Diff of random histories: the same as a naive comparison, and enough to make the layer again.

Theory: an RW layer gets random operations as from the kernel (`support.driver_machine`); chains of random
tars are made on both drivers.  Then, against every layer below, nothing at all and a layer of another chain:
Changes is what `support.naive` finds, Diff is the same bytes each time and from both drivers, and unpacking
it on that other layer, or in place, shows the same tree as before.
"""

import itertools
import tempfile
from pathlib import Path

from hypothesis import given, settings
from support import model, naive
from support.driver_machine import ELSEWHERE, DriverMachine, check, told_apart
from support.layers import add, stack
from support.stacks import stacks

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.ownership import Ownership
from fusestore.driver.vfs import VfsDriver


@given(stacks(Ownership.OVERRIDE).map(told_apart))
@settings(max_examples=settings().max_examples // 3)
def test_layers_of_random_tars(layers):
    _, archives = model.stacked(layers)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for kind in (FuseDriver, VfsDriver):
            driver = kind(Path(place), Path(place, "run"))
            chain = [None]
            for archive in archives:
                chain.append(add(driver, archive, chain[-1])[0])
            everything = [*chain, stack(driver, *ELSEWHERE)]
            trees = [naive.shown(driver, layer) for layer in everything]
            for new, old in itertools.product(range(1, len(everything)), range(len(everything))):
                changed = naive.letters(driver, everything[new], everything[old])
                assert changed == naive.changes(trees[new], trees[old], contents=driver.stacked)
            found.append(check(driver, chain[-1] or everything[-1], everything).values())
    assert [*found[0]] == [*found[1]], "the drivers disagree"


TestDriver = DriverMachine.TestCase
TestDriver.settings = settings(max_examples=settings().max_examples // 3, stateful_step_count=40)
