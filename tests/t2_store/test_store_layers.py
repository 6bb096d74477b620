"""Layers that callers make, fill and compare: create_layer, put_layer, apply_diff, diff, changes.

Both drivers.
An exact tar comes back byte for byte where one was applied to an empty layer; everything else is made of the
changes, the same bytes each time (containers/storage: Store.PutLayer, ApplyDiff, Diff, Changes, DiffSize).
"""

import gzip
import sqlite3
from contextlib import closing

import pytest
from support import stores
from support.images import sha256
from support.stores import ABOVE, JUNK, TREE, ZIPPED, A, B, C, changes, contents
from support.tars import Stream, folder, member, read, tar

from fusestore.compression import FORMATS, compressed, decompressed
from fusestore.errors import (
    InvalidLayer,
    LayerHasChildren,
    LayerInUse,
    LayerNotFound,
    LayerUsedByContainer,
    LayerUsedByImage,
    MaxDepthExceeded,
    ParentIsContainer,
)

FORMS = ["", *FORMATS]


@pytest.fixture(params=stores.DRIVERS)
def store(request, store_root, runroot):
    yield from stores.checked(store_root, runroot, request.param)


def packed(archive: bytes, form: str) -> bytes:
    return b"".join(compressed(iter([archive]), form))


def unpacked(stream) -> bytes:
    """All of a stream, decompressed and closed."""
    with stream:
        return decompressed(stream).read(1 << 24)


def put(store, layer, archive, parent="", **more):
    return store.put_layer(layer, parent, diff=Stream(archive), **more)


def members(archive: bytes) -> list[str]:
    """The names in a tar but for the root's, which ours has (upstream's has not) when it has changed."""
    return sorted(entry.name.decode() for entry, _ in read(archive) if entry.name != b"./")


@pytest.fixture
def two(store):
    """`base` of TREE, `above` of ABOVE on it, `empty` on that."""
    put(store, "base", TREE)
    put(store, "above", ABOVE, "base")
    store.create_layer("empty", "above")
    return store


# -- making -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_layer_of_a_tar_has_the_digests_and_sizes_of_what_came(store, form):
    blob = packed(TREE, form)
    layer = put(store, "l", blob, names=["n"], mount_label="label")
    assert (layer.uncompressed_digest, layer.uncompressed_size) == (sha256(TREE), len(TREE))
    assert (layer.compressed_digest, layer.compressed_size) == (sha256(blob), len(blob))
    assert (layer.compression, layer.size) == (form, 706)
    assert (layer.names, layer.mount_label, layer.parent, layer.read_only) == (("n",), "label", "", False)
    assert (layer.uids, layer.gids) == ((0,), (0,))
    assert store.layer_size("l") == len(TREE)
    assert store.layers_by_compressed_digest(sha256(blob)) == [layer]
    assert store.layers_by_uncompressed_digest(sha256(TREE)) == [layer]
    assert [unpacked(store.diff("", "l", f)) for f in (None, *FORMS)] == [TREE] * (len(FORMS) + 1)


def test_d30_the_kind_of_compression_is_told_from_a_stream_that_dribbles(store):
    for step in (1, 2, 5, 100):
        layer = store.put_layer(diff=Stream(ZIPPED, step))
        assert (layer.compression, layer.compressed_digest) == ("gzip", sha256(ZIPPED))
        assert layer.uncompressed_digest == sha256(A)


def test_what_follows_the_end_of_the_tar_is_in_the_digests(store):
    archive = A + bytes(20000) + b"tail"
    layer = put(store, "l", gzip.compress(archive))
    assert layer.uncompressed_digest == sha256(archive)
    assert unpacked(store.diff("", "l")) == archive
    blob = gzip.compress(A) + gzip.compress(bytes(5))  # two members
    assert put(store, "m", blob).compressed_digest == sha256(blob)


REFUSED = {
    "plain": JUNK,
    "cut plain": A[:300],
    **{form: packed(JUNK, form) for form in FORMATS},
    **{f"cut {form}": packed(A, form)[:-9] for form in FORMATS},
}


def test_junk_is_refused_and_nothing_is_left_of_it(two):
    two.create_image("i", layer="empty")
    before = contents(two)
    for archive in REFUSED.values():
        for call in (
            lambda junk=archive: put(two, "l", junk),
            lambda junk=archive: put(two, "l", junk, "above", names=["n"], writeable=True),
            lambda junk=archive: two.put_layer("", "base", diff=Stream(junk, 1000)),
        ):
            with pytest.raises(InvalidLayer):
                call()
    assert contents(two) == before
    assert put(two, "l", A, names=["n"]).names == ("n",)


def test_junk_applied_to_a_layer_leaves_it_as_it_was(two):
    put(two, "l", A, writeable=True)
    before, archive = two.layer("l"), unpacked(two.diff("", "l"))
    outside = tar(member("f", b"x"), member("../g", b"x"))
    for junk in (JUNK, packed(JUNK, "gzip"), packed(ABOVE, "gzip")[:-9], ABOVE[:800], outside):
        with pytest.raises(InvalidLayer):
            two.apply_diff("l", Stream(junk))
        assert (two.layer("l"), changes(two, "", "l")) == (before, ["A a"])
        assert unpacked(two.diff("", "l")) == archive


def test_layers_are_listed_in_the_order_in_which_they_were_made(store):
    for name in "zxy":
        store.create_layer(name)
    assert [layer.id for layer in store.layers()] == ["z", "x", "y"]


# -- parents ------------------------------------------------------------------------------------------


def test_a_parent_is_an_id_a_name_or_the_beginning_of_an_id(store):
    store.create_layer("abcdef", names=["n"])
    for word in ("abcdef", "n", "abc"):
        assert store.create_layer(parent=word).parent == "abcdef"
        assert store.put_layer(parent=word, diff=Stream(A)).parent == "abcdef"
    chain_id = store.layer_store.register(Stream(A)).chain_id
    assert store.create_layer(parent=chain_id[7:20]).parent == chain_id


def test_a_containers_layer_is_no_parent_by_whatever_name(two):
    two.create_container("c", ["cn"], layer_id="cl")
    two.add_names("cl", ["cln"])
    before = contents(two)
    for word in ("cl", "cln"):
        with pytest.raises(ParentIsContainer, match='belongs to the container "c"'):
            two.create_layer("l", word)
        with pytest.raises(ParentIsContainer):
            put(two, "l", A, word)
    for word in ("c-", "cn"):
        with pytest.raises(LayerNotFound):
            two.create_layer("l", word)
    assert contents(two) == before


def test_a_layer_that_got_a_child_takes_no_diff_any_more(store):
    store.create_layer("l")
    assert store.apply_diff("l", Stream(A)) == len(A)
    store.create_layer("child", "l")
    with pytest.raises(LayerInUse, match="takes no changes"):
        store.apply_diff("l", Stream(B))
    assert changes(store, "", "l") == ["A a"]


def test_a_chain_has_at_most_500_layers(store, store_root):
    """containers/storage (overlay: maxDepth).  Rows are enough to count; real ones would take too long."""
    store.create_layer("l1")
    rows = [(f"l{n}", f"l{n - 1}", f"{n:064}", f"sha256:{n:064}") for n in range(2, 501)]
    with closing(sqlite3.connect(store_root / "store.db")) as database, database:
        database.executemany(
            "INSERT INTO layers (id, parent, cache_id, diff_id, size, reproducible, created)"
            " VALUES (?, ?, ?, ?, 0, 0, 0)",
            rows,
        )
    store.create_image("i", layer="l500")
    for call in (
        lambda: store.create_layer("l501", "l500"),
        lambda: put(store, "l501", A, "l500"),
        lambda: store.create_container("c", image="i"),
    ):
        with pytest.raises(MaxDepthExceeded, match="layer 501 of a chain that may have 500"):
            call()
    store.delete("i")
    with closing(sqlite3.connect(store_root / "store.db")) as database, database:
        database.execute("DELETE FROM layers WHERE id <> 'l1'")
    assert [layer.id for layer in store.layers()] == ["l1"]


# -- deleting -----------------------------------------------------------------------------------------


def test_a_layer_that_something_needs_is_not_deleted(two):
    two.create_image("i", layer="empty")
    two.create_container("c", layer_id="cl")
    for layer, error in {
        "base": LayerHasChildren,
        "above": LayerHasChildren,
        "empty": LayerUsedByImage,
        "cl": LayerUsedByContainer,
    }.items():
        with pytest.raises(error):
            two.delete_layer(layer)
        with pytest.raises(error):
            two.delete(layer)
    assert two.delete_image("i") == ["empty", "above", "base"]
    two.delete_container("c")
    assert two.layers() == []


def test_a_layer_below_an_rw_layer_is_not_deleted(store):
    handle = store.layer_store.register(Stream(A))
    store.layer_store.create_rw_layer("rw", handle.chain_id)
    with pytest.raises(LayerInUse, match="the RW layer rw is on it"):
        store.delete_layer(handle.chain_id)


def test_layers_are_deleted_from_the_top(two):
    for layer in ("empty", "above", "base"):
        two.delete_layer(layer)
        assert two.exists(layer) is False
    assert contents(two)["driver"] == []


# -- changes and diffs --------------------------------------------------------------------------------


def test_changes_against_the_parent_any_ancestor_nothing_a_stranger_and_downwards(two):
    put(two, "stranger", B)
    whole = ["A etc", "A etc/issue", "A new"]
    expected = {
        ("", "base"): ["A etc", "A etc/issue", "A etc/motd"],
        ("", "above"): ["C etc", "D etc/motd", "A new"],
        ("base", "above"): ["C etc", "D etc/motd", "A new"],
        ("base", "empty"): ["C etc", "D etc/motd", "A new"],
        ("above", "empty"): [],
        ("", "empty"): [],
        ("empty", "empty"): [],
        ("stranger", "empty"): sorted([*whole, "D b"], key=lambda line: line[2:]),
        ("above", "base"): ["C etc", "A etc/motd", "D new"],
    }
    for (from_, to), lines in expected.items():
        told = changes(two, from_, to)
        without = [line for line in told if line != "C etc"]
        assert without == [line for line in lines if line != "C etc"], (from_, to)


def test_a_diff_applied_where_it_was_made_from_makes_the_same(two):
    for number, (from_, to) in enumerate((("base", "empty"), ("above", "base"), ("", "above"))):
        with two.diff(from_, to, "") as stream:
            made = two.put_layer(f"made{number}", from_ or "base", diff=stream)
        assert changes(two, to, made.id) == []


def test_diff_size_counts_the_files(two):
    assert [two.diff_size("", layer) for layer in ("base", "above", "empty")] == [706, 3, 0]
    assert (two.diff_size("base", "empty"), two.diff_size("empty", "base")) == (3, 6)


def test_the_exact_tar_is_for_the_parent_only(two):
    assert unpacked(two.diff("", "above")) == unpacked(two.diff("base", "above")) == ABOVE
    other = unpacked(two.diff("base", "empty"))
    assert [name for name in members(other) if name != "etc/"] == ["etc/.wh.motd", "new"]
    assert unpacked(two.diff("base", "empty")) == other


@pytest.mark.parametrize("form", FORMS)
def test_a_diff_is_compressed_as_asked_for_or_as_it_came(store, form):
    put(store, "l", packed(A, form))
    put(store, "other", B)
    for asked, expected in [(None, form), *((f, f) for f in FORMS)]:
        for from_ in ("", "other"):
            with store.diff(from_, "l", asked) as stream:
                found = decompressed(stream)
                assert found.format == expected, (asked, from_)
                assert members(found.read(1 << 20))[-1:] == ["a"]


def test_a_form_of_compression_that_is_none_is_the_callers_fault(two):
    with pytest.raises(ValueError, match="lz4"):
        two.diff("", "base", "lz4").close()


# -- apply_diff ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_apply_diff_remembers_the_tar_of_an_empty_layer(two, form):
    blob = packed(ABOVE, form)
    two.create_layer("l", "base")
    assert two.apply_diff("l", Stream(blob, 1000)) == len(ABOVE)
    layer = two.layer("l")
    assert (layer.uncompressed_digest, layer.uncompressed_size) == (sha256(ABOVE), len(ABOVE))
    assert (layer.compressed_digest, layer.compressed_size) == (sha256(blob), len(blob))
    assert (layer.compression, layer.size) == (form, 3)
    assert (two.layer_size("l"), unpacked(two.diff("", "l"))) == (len(ABOVE), ABOVE)
    assert two.layers_by_compressed_digest(sha256(blob))[-1].id == "l"


def test_a_second_diff_is_applied_on_top_of_the_first(store):
    store.create_layer("l")
    store.apply_diff("l", Stream(TREE))
    assert store.apply_diff("l", Stream(ABOVE)) == len(ABOVE)
    assert changes(store, "", "l") == ["A etc", "A etc/issue", "A new"]
    assert store.layers_by_uncompressed_digest(sha256(TREE)) == []
    assert store.layer("l").uncompressed_digest == sha256(ABOVE)
    assert members(unpacked(store.diff("", "l"))) == ["etc/", "etc/issue", "new"]
    assert store.diff_size("", "l") == store.layer("l").size == 703


def test_apply_diff_is_refused_by_layers_that_take_no_changes(two):
    two.layer_store.register(Stream(C))
    for layer in ("base", sha256(C)):
        with pytest.raises(LayerInUse):
            two.apply_diff(layer, Stream(B))
    assert unpacked(two.diff("", "base")) == TREE


def test_a_layer_made_of_a_tar_takes_changes_if_it_was_asked_for(store):
    put(store, "rw", TREE, writeable=True)
    put(store, "ro", TREE)
    assert unpacked(store.diff("", "rw")) == TREE
    store.apply_diff("rw", Stream(ABOVE))
    with pytest.raises(LayerInUse):
        store.apply_diff("ro", Stream(ABOVE))
    assert (store.diff_size("", "rw"), store.diff_size("", "ro")) == (703, 706)


def test_layers_of_the_same_tar_are_different_layers(store):
    one, other = put(store, "", A), put(store, "", A)
    assert one.id != other.id
    assert store.layers_by_uncompressed_digest(sha256(A)) == [one, other]
    store.delete_layer(one.id)
    assert unpacked(store.diff("", other.id)) == A


def test_a_layer_with_owners_that_are_not_ours_comes_back(store):
    archive = tar(folder("d", 0o2711, uid=7, gid=8), member("d/f", b"x", mode=0o4755, uid=0, gid=70000))
    layer = put(store, "l", archive)
    assert (layer.uids, layer.gids) == ((0, 7), (8, 70000))
    store.create_layer("child", "l")
    store.apply_diff("child", Stream(tar(member("d/g", b"y", uid=9))))
    assert unpacked(store.diff("", "l")) == archive
    (entry,) = [e for e, _ in read(unpacked(store.diff("", "child"))) if e.name == b"d/g"]
    assert entry.uid == 9
