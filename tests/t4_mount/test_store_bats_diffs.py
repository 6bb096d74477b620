"""containers/storage's changes.bats, diff.bats, applydiff.bats, import-layer.bats and apply-junk.bats.

Three layers are filled through mounts, each call of the store in a process of its own; what is told of them
must be the same while they are mounted, afterwards, and of layers made again from the diffs.
"""

import bz2
import gzip
import lzma
import os

import pytest
from support.stores import DRIVERS
from support.tars import member, tar
from support_real import populated
from support_real.populated import CHANGES, LOWER, MEMBERS, MIDDLE, UPPER
from support_real.storage_steps import STDIN, Failed, Steps


@pytest.fixture
def steps(place):
    return Steps(place)


def test_changes_and_diffs_are_the_same_while_mounted_and_afterwards(steps):
    populated.populate(steps, leave_mounted=True)
    mounted = populated.changes(steps), populated.members(populated.diffs(steps))
    for layer in CHANGES:
        assert steps("unmount", layer) is False
    assert mounted == (CHANGES, MEMBERS)
    assert (populated.changes(steps), populated.members(populated.diffs(steps))) == (CHANGES, MEMBERS)


@pytest.mark.parametrize("driver", DRIVERS)
def test_layers_made_of_diffs_have_the_same_changes_and_diffs(place, driver):
    """applydiff.bats makes empty layers and fills them, import-layer.bats makes them full."""
    steps = Steps(place, {"FUSESTORE_DRIVER": driver})
    populated.populate(steps)
    assert populated.changes(steps) == CHANGES
    assert all(steps("diff_size", "", layer) > 0 for layer in CHANGES)
    archives = populated.diffs(steps)
    assert populated.members(archives) == MEMBERS
    for layer in (UPPER, MIDDLE, LOWER):
        steps("delete_layer", layer)
    parent = ""
    for layer, archive in archives.items():
        if layer == MIDDLE:
            made = steps("put_layer", layer, parent, diff=STDIN, data=archive)
            assert made["compression"] == "gzip"
        else:
            steps("create_layer", layer, parent)
            assert steps("apply_diff", layer, STDIN, data=archive) == len(archive)
        parent = layer
    assert populated.changes(steps) == CHANGES
    again = populated.diffs(steps)
    assert populated.members(again) == MEMBERS
    assert [again[layer] for layer in (LOWER, UPPER)] == [archives[layer] for layer in (LOWER, UPPER)]
    assert gzip.decompress(again[MIDDLE]) == gzip.decompress(archives[MIDDLE])


JUNK = b"this is not a tar archive, by any means. " * 50


def test_junk_is_refused_however_it_is_compressed(steps):
    pack = {"cat": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
    steps("create_layer", "l")
    for name, compress in pack.items():
        with pytest.raises(Failed) as caught:
            steps("apply_diff", "l", STDIN, data=compress(JUNK))
        assert caught.value.kind == "InvalidLayer", name
    for cut in (gzip.compress(os.urandom(5000))[:3000], tar(member("f", b"x" * 5000))[:4000]):
        with pytest.raises(Failed, match=r"cut|early|ends"):
            steps("put_layer", "new", diff=STDIN, data=cut)
    assert steps.ids("layers") == ["l"]
    assert steps("changes", "", "l") == []
