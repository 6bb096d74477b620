"""What a layer deletes: whiteouts and opaque markers hide lower layers and nothing else, in every order."""

import itertools
import os

import pytest
from support.layers import add, paths, shown, stack
from support.tars import CHAR, DIRECTORY, FIFO, folder, hard_link, member, symlink, tar

from fusestore.errors import InvalidLayer


def left(driver, *archives):
    with driver.union(stack(driver, *archives)) as union:
        return paths(union)


def of_names(*names):
    """A layer as in moby's tests: names with a final slash are directories."""
    return tar(*(folder(name) if name.endswith("/") else member(name) for name in names))


def test_apply_layer_whiteouts(any_spelling):
    """moby's TestApplyLayerWhiteouts: four layers over one tree, each looked at."""
    layers = [
        of_names(
            ".c",
            "d/",
            "d/e",
            "d/f/",
            "c",
            "g/",
            "g/.h",
            "g/.i/",
            "g/.i/a",
            "g/j/",
            "g/j/k",
            "g/j/l",
            "g/m",
            "gd",
        ),
        of_names(".n", ".wh.c", "g/", "g/.o", "g/.wh..wh..opq", "g/j/", "g/j/l"),
        of_names(".n", ".wh..c", ".wh.gd", "g/", "g/.h", "g/.wh.j", "d/"),
        of_names(".h", ".wh..wh..opq", "gd"),
    ]
    expected = [
        [".c", "c", "d", "d/e", "d/f", "g", "g/.h", "g/.i", "g/.i/a", "g/j", "g/j/k", "g/j/l", "g/m", "gd"],
        [".c", ".n", "d", "d/e", "d/f", "g", "g/.o", "g/j", "g/j/l", "gd"],
        [".n", "d", "d/e", "d/f", "g", "g/.h", "g/.o"],
        [".h", "gd"],
    ]
    for count, listing in enumerate(expected, 1):
        assert left(any_spelling, *layers[:count]) == [name.encode() for name in listing]


LOWER = tar(
    folder("./"),
    member("f", b"lower"),
    folder("d", 0o700, uid=5),
    member("d/old", b"lower"),
    folder("d/sub", 0o700),
    member("d/sub/old", b"lower"),
    symlink("s", "d"),
)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_whiteout_beside_the_entry_it_names(any_spelling, order):
    """D39, D40: fuse-overlayfs and moby lose the new file when its whiteout is in the same layer."""
    entries = [member(".wh.f"), member("f", b"upper"), member("other")]
    found = shown(any_spelling, LOWER, tar(*(entries[i] for i in order)))
    assert found[b"f"].content == b"upper"
    assert b".wh.f" not in found


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_directory_that_is_deleted_and_made_again(any_spelling, order):
    entries = [member(".wh.d"), folder("d", 0o711), member("d/new", b"upper"), member("d/sub/new", b"upper")]
    found = shown(any_spelling, LOWER, tar(*(entries[i] for i in order)))
    assert {path for path in found if path.startswith(b"d")} == {b"d", b"d/new", b"d/sub", b"d/sub/new"}
    assert (found[b"d"].mode, found[b"d"].uid, found[b"d/sub"].mode) == (0o711, 0, 0o755)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_an_opaque_directory(any_spelling, order):
    entries = [member("d/.wh..wh..opq"), folder("d", 0o711), member("d/new"), member("d/sub/new")]
    found = shown(any_spelling, LOWER, tar(*(entries[i] for i in order)))
    assert {path for path in found if path.startswith(b"d")} == {b"d", b"d/new", b"d/sub", b"d/sub/new"}


def test_an_opaque_directory_without_an_entry_keeps_its_attributes(any_spelling):
    found = shown(any_spelling, LOWER, tar(member("d/.wh..wh..opq")))
    assert (found[b"d"].mode, found[b"d"].uid) == (0o700, 5)
    assert {path for path in found if path.startswith(b"d/")} == set()


@pytest.mark.parametrize("entries", [[member(".wh..wh..opq")], [member(".wh..wh..opq"), folder("./", 0o711)]])
def test_an_opaque_root(any_spelling, entries):
    assert left(any_spelling, LOWER, tar(*entries, member("new"))) == [b"new"]


@pytest.mark.parametrize(
    ("entry", "gone"),
    [
        (member(".wh.f"), {b"f"}),
        (member(".wh.s"), {b"s"}),
        (member(".wh.d"), {b"d", b"d/old", b"d/sub", b"d/sub/old"}),
        (member("d/.wh.old"), {b"d/old"}),
        (member("d/.wh.sub"), {b"d/sub", b"d/sub/old"}),
        (member("d/sub/.wh..wh..opq"), {b"d/sub/old"}),
        (member("d/sub/.wh.old"), {b"d/sub/old"}),
        (member("./d/../d//.wh.old"), {b"d/old"}),
        (member("/.wh.f", b"with content"), {b"f"}),
        (
            member(".wh.d") + member("d/.wh.old") + member("d/sub/.wh..wh..opq"),
            {b"d", b"d/old", b"d/sub", b"d/sub/old"},
        ),
        (member("d/.wh.old") + member("d/.wh..wh..opq"), {b"d/old", b"d/sub", b"d/sub/old"}),
    ],
)
def test_what_is_deleted(any_spelling, entry, gone):
    before = left(any_spelling, LOWER)
    assert left(any_spelling, LOWER, tar(entry)) == [path for path in before if path not in gone]


@pytest.mark.parametrize(
    "entry",
    [
        member(".wh.nothing"),
        member("no/where/.wh.nothing"),
        member("f/.wh.x"),
        member("s/.wh.nothing"),
        member("no/.wh..wh..opq"),
        member("f/.wh..wh..opq"),
        member(".wh..wh.plnk/1.2"),
        folder(".wh..wh.plnk"),
        member(".wh..wh.aufs"),
        member("d/.wh..wh.orph/x"),
        symlink(".wh..wh..opq", "f"),
        folder(".wh..wh..opq"),
        folder("d/.wh..wh..opq"),
        symlink("d/.wh..wh..opq", "d"),
        member("d/.wh..wh..opq/x"),
    ],
)
def test_markers_that_mark_nothing(any_spelling, entry):
    """They change no name, and no whiteout is written for what is not there."""
    lower = stack(any_spelling, LOWER)
    top, _ = add(any_spelling, tar(entry), lower)
    with any_spelling.union(lower) as before, any_spelling.union(top) as after:
        assert paths(after) == paths(before)
    assert os.listdir(any_spelling.diff_directory(top)) == []


def test_whiteouts_in_a_base_layer_leave_nothing(any_spelling):
    top, _ = add(any_spelling, tar(member(".wh.x"), member("d/.wh.y"), member(".wh..wh..opq"), member("d/f")))
    assert sorted(os.listdir(any_spelling.diff_directory(top))) == ["d"]
    assert os.listdir(any_spelling.diff_directory(top) / "d") == ["f"]


@pytest.mark.parametrize(
    "entry",
    [
        member(".wh."),
        member(".wh.."),
        member(".wh..."),
        member("d/.wh."),
        member("d/.wh.."),
        member("d/.wh..."),
        member(".wh./x"),
        member(".wh.../f"),
        member(".wh.x/y"),
        member("d/.wh.sub/file"),
        folder(".wh.d"),
        symlink(".wh.f", "d"),
        hard_link(".wh.x", "f"),
        hard_link("x", ".wh.f"),
        hard_link("x", "d/.wh..wh..opq"),
        member(".wh.f", kind=CHAR, major=0, minor=0),
        member(".wh.f", kind=FIFO),
        member(".wh.f", kind=DIRECTORY),
    ],
)
def test_invalid_whiteouts(any_spelling, entry):
    with pytest.raises(InvalidLayer):
        stack(any_spelling, LOWER, tar(entry))


def test_a_deleted_name_comes_back_in_a_higher_layer(any_spelling):
    layers = [
        LOWER,
        tar(member(".wh.d"), member(".wh.f")),
        tar(folder("d"), member("f", b"3"), member("d/new")),
    ]
    found = shown(any_spelling, *layers)
    assert {path for path in found if path.startswith(b"d")} == {b"d", b"d/new"}
    assert found[b"f"].content == b"3"


def test_a_whiteout_of_a_whiteout_hides_nothing_more(any_spelling):
    assert b"f" not in left(any_spelling, LOWER, tar(member(".wh.f")), tar(member(".wh.f")), tar(member("x")))


def test_a_whiteout_below_a_symlink_of_the_same_layer(any_spelling):
    """W2: the name it deletes is one of the image."""
    found = left(any_spelling, LOWER, tar(symlink("link", "/d"), member("link/.wh.old")))
    assert b"d/old" not in found
    assert b"d/sub/old" in found


def test_a_file_in_place_of_a_directory_and_back(any_spelling):
    layers = [LOWER, tar(member("d", b"a file")), tar(folder("d"), member("d/new"))]
    assert shown(any_spelling, *layers[:2])[b"d"].content == b"a file"
    assert {p for p in left(any_spelling, *layers) if p.startswith(b"d")} == {b"d", b"d/new"}


def test_names_of_whiteouts_are_never_shown(any_spelling):
    layers = [LOWER, tar(member(".wh.f"), member("d/.wh..wh..opq"), member("d/x"))]
    for path in left(any_spelling, *layers):
        assert b".wh." not in path
    with any_spelling.union(stack(any_spelling, *layers)) as union:
        for name in (b".wh.f", b".wh..wh..opq", b".wh.x"):
            assert union.lookup(1, name) is None
