"""What a tar can do to a layer store, row by row of the threat list, through `LayerStore.register`.

Each row is registered on a lower layer, by both drivers, with a canary beside the store that it tries to
reach.  It is refused with InvalidLayer, or the tree is the right one; and whatever happens, in little time
and memory, nothing outside the store is touched, the lower layer stays as it was, no fd is left open, what
lies on disk can hurt nobody, and once the layer is released the store is as empty as before.

Rows with an id are those of the reliability notes that concern tars (P names, L symlinks, H hard links, W
whiteouts, X xattrs, D devices and modes, S the format); those called "odd" are legal images that other stores
get wrong.  The same rows below the store, with more spellings each:

=============  ==========================================================================================
P1 P3 P4 L6    test_apply_hostile: REFUSED ("dotdot", "out and back", "nul", "for the root")
P2 L1-L4       test_apply_hostile: INSIDE; test_apply: test_names
P5-P8          test_apply: longest_name, long_paths, deep_trees, names, names_that_others_fold
P9             test_apply: the_roots_own_entry, the_root_must_be_a_directory
P10            test_load_hostile: digests in manifests; below: a parent that is no chain ID
L5 H9          test_apply_hostile: a_symlink_of_a_lower_layer_redirects_nothing, lower_layers_do_not_change
L7 L8          test_apply_hostile: REFUSED ("loop", "41 symlinks"), realpath_overflow
H1-H8          test_apply_hostile: REFUSED ("hard link ..."), moby's; test_apply_whiteouts: invalid_whiteouts
W1-W8          test_apply_whiteouts; W6 also test_apply: a_0_0_device_in_a_tar_is_no_whiteout
X1-X5          test_apply: xattrs_that_are_kept, _dropped, _larger_than_linux_allows
D1-D8          test_apply: attributes_are_exact, implied_directories; test_apply_hostile: INSIDE
S1-S8          test_tar_hostile, test_tar_dialects; S8 also test_apply_hostile: memory_stays_bounded
S9             test_apply_hostile: bombs; test_load_hostile: a_compression_bomb
=============  ==========================================================================================
"""

import os
from itertools import chain, repeat

import pytest
from support.arena import Canary, Pieces, bounded, harmful, state
from support.fsck import problems
from support.hostile_rows import GONE, LIMITS, LOWER, REFUSED, ROWS
from support.images import sha256
from support.layers import tree
from support.tars import Stream, member, tar

from fusestore.digest import ChainID, DiffID
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import DigestMismatch, InvalidLayer, LayerNotFound
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata

WANTED = {
    f"{letter}{i}"
    for letter, last in zip("PLHWXDS", (9, 8, 8, 8, 5, 8, 9), strict=True)
    for i in range(1, last + 1)
}


class Place:
    """A layer store with one layer, and all that must be as it was after each row."""

    def __init__(self, driver, place):
        self.canary, self.root = Canary(place), place / "store"
        (place / "store").mkdir()
        self.database = Database(self.root / "store.db")
        self.driver = driver(self.root, place / "run")
        self.store = LayerStore(LayerMetadata(self.database), self.driver, LIMITS)
        self.lower = self.store.register(Stream(LOWER))
        self._before = self._state()

    def _state(self):
        return (
            state(self.driver.path / self.lower.record.cache_id),
            self.store.map(),
            len(os.listdir("/proc/self/fd")),
        )

    def verify(self):
        assert self._state() == self._before
        assert problems(self.root) == []
        self.canary.verify()


@pytest.fixture(scope="module", params=[FuseDriver, VfsDriver], ids=["fuse", "vfs"])
def place(request, tmp_path_factory):
    place = Place(request.param, tmp_path_factory.mktemp("rows"))
    yield place
    place.store.release(place.lower)
    assert problems(place.root) == []
    place.database.close()


@pytest.fixture
def intact(place, monkeypatch):
    """The place, in which nothing may be changed in the end; in little time, and 64 MB."""
    monkeypatch.chdir(place.canary.path)
    with bounded():
        yield place
    place.verify()


@pytest.mark.parametrize("row", ROWS)
def test_row(intact, row):
    members, expected = ROWS[row]
    try:
        layer = intact.store.register(
            Pieces(members() if callable(members) else members), intact.lower.chain_id
        )
    except InvalidLayer as exc:
        refusal = exc
    else:
        refusal = None
        with intact.driver.union(layer.record.cache_id) as union:
            found = tree(union)
        harm = harmful(intact.driver.path)
        intact.store.release(layer)
    if expected == REFUSED:
        assert refusal is not None
        assert str(refusal).isprintable()
        return
    assert refusal is None
    assert harm == []
    for path, attributes in expected.items():
        shown = found.get(os.fsencode(path).strip(b"/"))
        if attributes is GONE:
            assert shown is None
        else:
            assert {name: getattr(shown, name) for name in attributes} == attributes


def test_every_row_is_there():
    assert {row.split()[0] for row in ROWS if not row.startswith("odd")} == WANTED


@pytest.mark.parametrize(
    "parent", ["sha256:../../x", "../../etc", "", "sha256:" + "0" * 64, "sha256:" + "A" * 64]
)
def test_p10_a_parent_that_is_no_layer(intact, parent):
    with pytest.raises(LayerNotFound):
        intact.store.register(Stream(LOWER), ChainID(parent))


def test_odd_a_wrong_diff_id(intact):
    with pytest.raises(DigestMismatch):
        intact.store.register(Stream(tar(member("x"))), intact.lower.chain_id, DiffID(sha256(b"y")))


def test_s2_what_follows_the_end_is_hashed_in_little_memory(intact):
    """100 MB, of which nothing may be kept in memory."""
    archive = tar(member("x"))
    pieces = chain([archive], repeat(os.urandom(1 << 20), 100))
    layer = intact.store.register(Pieces(pieces), intact.lower.chain_id)
    assert layer.diff_size == 0
    intact.store.release(layer)


def test_nothing_is_visible_before_the_last_byte(intact):
    """Neither a row nor a published layer, at any moment that the source is asked for more."""
    before = intact.store.map(), intact.driver.list_layers()

    class Looking(Pieces):
        def read(self, size, /):
            assert (intact.store.map(), intact.driver.list_layers()) == before
            return super().read(size)

    pieces = [member("x", bytes(1 << 21)), bytes(1024), bytes(3 << 20)]
    layer = intact.store.register(Looking(pieces), intact.lower.chain_id)
    assert intact.store.map() != before[0]
    assert intact.driver.list_layers() != before[1]
    intact.store.release(layer)
