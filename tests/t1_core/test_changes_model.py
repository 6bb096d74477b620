"""Changes and Diff of random histories: the same as a naive comparison, and enough to make the layer again.

Theory: an RW layer of the ``fuse`` driver gets random operations as from the kernel, so that redirects,
metacopies, opaque directories and names that came back occur; chains of random tars are made on both drivers.
Then, against every layer below, nothing at all and a layer of another chain: Changes is what `support.naive`
finds, Diff is the same bytes each time, and unpacking it on that other layer shows the same tree as before.
"""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from support import model, naive
from support.filesystem_model import Filesystem, expected_changes
from support.layers import add, stack
from support.stacks import stacks
from support.tars import Stream, folder, member, tar
from support.union_machine import UnionMachine
from support.union_on_disk import Directories, fingerprint

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.ownership import Ownership, finish
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.nodes import ROOT
from fusestore.driver.union.upper import Upper
from fusestore.driver.union.writable import WritableUnion
from fusestore.driver.vfs import VfsDriver
from fusestore.driver.whiteout import Spelling
from fusestore.files import opened

ELSEWHERE = tar(folder("a", 0o700), member("a/b", b"x"), member("b"), folder("c/a"), member("e", b"y"))


def check(driver, cache_id, others):
    """Everything about a layer and what it may be compared with."""
    tree = naive.shown(driver, cache_id)
    for other in (*others, None):
        note(f"-- compared with {other and other[:8]}")
        below = naive.shown(driver, other)
        assert naive.letters(driver, cache_id, other) == naive.changes(tree, below)
        archive = b"".join(driver.diff(cache_id, other))
        again, applied = add(driver, archive, other)
        assert naive.facts(naive.shown(driver, again)) == naive.facts(tree)
        assert applied.size == driver.diff_size(cache_id, other)
        assert b"".join(driver.diff(again, other)) == archive == b"".join(driver.diff(cache_id, other))
        yield archive


# -- chains of tars ------------------------------------------------------------------------------------------
