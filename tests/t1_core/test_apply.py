"""What a layer tar says is what the union shows: every attribute, unpacked by a user without root."""

import errno
import os
import stat
import unicodedata

import pytest
from support.layers import (
    ROOT,
    Shown,
    add,
    dangers,
    data,
    find,
    names,
    paths,
    shown,
    stack,
    tree,
    union_of,
    unpacked,
)
from support.tars import (
    CHAR,
    DEVICE,
    FIFO,
    base256,
    folder,
    hard_link,
    header,
    member,
    padded,
    pax,
    symlink,
    tar,
)

from fusestore.driver.api import Limits
from fusestore.driver.confine import PATH_LIMIT
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership
from fusestore.errors import InvalidLayer

BILLION = 1_000_000_000
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
TOP_ID = 2**32 - 2


def plain(content=b"", kind=stat.S_IFREG, mode=0o644, **attributes):
    """A `Shown` with the attributes of `member`'s defaults."""
    size = len(content) if content is not None else 0
    values = {"uid": 0, "gid": 0, "mtime_ns": 0, "rdev": 0, "size": size, "content": content}
    values |= {"xattrs": {}, "nlink": 1, "ino": 0}
    return Shown(kind, mode, **(values | attributes))


@pytest.mark.parametrize(
    ("archive", "expected"),
    [
        (member("x", b"data"), plain(b"data")),
        (member("x", mode=0o4755, uid=1, gid=2), plain(mode=0o4755, uid=1, gid=2)),
        (member("x", b"1", mode=0), plain(b"1", mode=0)),
        (member("x", b"1", mode=0o7777), plain(b"1", mode=0o7777)),
        (member("x", b"1", mode=0o222), plain(b"1", mode=0o222)),
        (member("x", uid=TOP_ID, gid=TOP_ID), plain(uid=TOP_ID, gid=TOP_ID)),
        (member("x", uid=65536, gid=2**31), plain(uid=65536, gid=2**31)),
        (member("x", mtime=1234), plain(mtime_ns=1234 * BILLION)),
        (member("x", extra={"mtime": "1.123456789"}), plain(mtime_ns=1_123_456_789)),
        (member("x", extra={"mtime": "-1.5"}), plain(mtime_ns=-1_500_000_000)),
        (member("x", mtime=base256(-(2**30), 12)), plain(mtime_ns=-(2**30) * BILLION)),
        (member("x", mtime=2**33), plain(mtime_ns=2**33 * BILLION)),
        (
            folder("x", 0o1777, uid=3, mtime=9),
            plain(None, stat.S_IFDIR, 0o1777, uid=3, mtime_ns=9 * BILLION, nlink=0),
        ),
        (folder("x", 0), plain(None, stat.S_IFDIR, 0, nlink=0)),
        (folder("x", 0o2555), plain(None, stat.S_IFDIR, 0o2555, nlink=0)),
        (symlink("x", "/to/it"), plain(b"/to/it", stat.S_IFLNK, 0o777)),
        (symlink("x", "t", uid=5, gid=6), plain(b"t", stat.S_IFLNK, 0o777, uid=5, gid=6)),
        (symlink("x", "t", extra={"mtime": "7.5"}), plain(b"t", stat.S_IFLNK, 0o777, mtime_ns=7_500_000_000)),
        (symlink("x", "t" * 4095), plain(b"t" * 4095, stat.S_IFLNK, 0o777)),
        (symlink("x", "t" * 4095, uid=5), plain(b"t" * 4095, stat.S_IFLNK, 0o777, uid=5)),
        (symlink("x", b"\xff\n../../.."), plain(b"\xff\n../../..", stat.S_IFLNK, 0o777)),
        (member("x", kind=FIFO, mode=0o600), plain(None, stat.S_IFIFO, 0o600)),
        (
            member("x", kind=CHAR, mode=0o666, major=1, minor=3),
            plain(None, stat.S_IFCHR, 0o666, rdev=os.makedev(1, 3)),
        ),
        (
            member("x", kind=DEVICE, mode=0o660, gid=6, major=4095, minor=2**20 - 1),
            plain(None, stat.S_IFBLK, 0o660, gid=6, rdev=os.makedev(4095, 2**20 - 1)),
        ),
        (
            member(
                "x",
                b"1",
                extra={"SCHILY.xattr.user.a": b"\0\n=", "SCHILY.xattr.security.capability": CAPABILITY},
            ),
            plain(b"1", xattrs={b"user.a": b"\0\n=", b"security.capability": CAPABILITY}),
        ),
        (
            symlink("x", "t", extra={"SCHILY.xattr.trusted.a": b"", "SCHILY.xattr.security.b": b"2"}),
            plain(b"t", stat.S_IFLNK, 0o777, xattrs={b"trusted.a": b"", b"security.b": b"2"}),
        ),
        (
            member("x", kind=FIFO, extra={"SCHILY.xattr.user.a": b"1"}),
            plain(None, stat.S_IFIFO, xattrs={b"user.a": b"1"}),
        ),
    ],
)
def test_attributes_are_exact(driver, archive, expected):
    top, applied = add(driver, tar(archive))
    with driver.union(top) as union:
        found = tree(union)[b"x"]
        assert found._replace(ino=0, nlink=expected.nlink) == expected
        assert stat.S_ISDIR(expected.kind) or found.nlink == 1
    assert dangers(driver.diff_directory(top)) == []
    assert applied.reproducible


def test_an_entry_in_a_directory_that_may_not_be_written(driver):
    archive = tar(folder("d", 0), member("d/f", b"1"), folder("d/e", 0o111), member("d/e/g", b"2"))
    found = shown(driver, archive)
    assert (found[b"d"].mode, found[b"d/e"].mode) == (0, 0o111)
    assert found[b"d/e/g"].content == b"2"


def test_times_of_directories_are_those_of_the_tar_whatever_comes_after(driver):
    archive = tar(
        folder("d", mtime=5), member("d/f"), folder("d/e", mtime=6), member("d/e/g"), hard_link("d/h", "d/f")
    )
    found = shown(driver, archive)
    assert (found[b"d"].mtime_ns, found[b"d/e"].mtime_ns) == (5 * BILLION, 6 * BILLION)


def test_symlink_modes_are_0777(driver):
    assert shown(driver, tar(member("x", kind=b"2", link="t", mode=0o600, uid=1)))[b"x"].mode == 0o777


# -- the root --


@pytest.mark.parametrize("name", ["./", ".", "/", "./.", "//", "x/.."])
def test_the_roots_own_entry(driver, name):
    archive = tar(
        folder(name, 0o1700, uid=7, gid=8, mtime=9, extra={"SCHILY.xattr.user.a": b"1"}), member("f")
    )
    found = shown(driver, archive)
    root = found[b""]
    assert (root.mode, root.uid, root.gid, root.mtime_ns, root.xattrs) == (
        0o1700,
        7,
        8,
        9 * BILLION,
        {b"user.a": b"1"},
    )
    assert list(found) == [b"", b"f"]


def test_a_root_without_an_entry(driver):
    root = shown(driver, tar(member("f", mtime=5)))[b""]
    assert (root.kind, root.mode, root.uid, root.gid, root.mtime_ns) == (stat.S_IFDIR, 0o755, 0, 0, 0)


def test_a_root_without_an_entry_keeps_the_lower_layers_attributes(driver):
    root = shown(driver, tar(folder("./", 0o711, uid=3, mtime=4)), tar(member("f")))[b""]
    assert (root.mode, root.uid, root.mtime_ns) == (0o711, 3, 4 * BILLION)


def test_fuse_overlayfs_is_told_how_owners_are_kept(driver):
    top, _ = add(driver, tar(folder("./", 0o711, uid=3)))
    assert os.getxattr(driver.diff_directory(top), OVERRIDE_STAT) == b"3:0:0711:dir"


@pytest.mark.parametrize("kind", [b"0", b"1", b"2", b"3", b"6"])
def test_the_root_must_be_a_directory(driver, kind):
    """CVE-2021-29136: a symlink in the root's place."""
    for name in ("./", "/", ".") if kind != b"0" else (".", "", "x/.."):
        with pytest.raises(InvalidLayer):
            add(driver, tar(header(name.encode(), kind=kind, link=b"/etc", magic=b"ustar\x0000")))


# -- directories that are only implied --


def test_implied_directories_of_a_base_layer(driver):
    found = shown(driver, tar(member("a/b/f", mtime=5, uid=9)))
    for path in (b"a", b"a/b"):
        directory = found[path]
        assert (directory.kind, directory.mode, directory.uid, directory.gid) == (stat.S_IFDIR, 0o755, 0, 0)
        assert (directory.mtime_ns, directory.xattrs) == (0, {})


def test_implied_directories_keep_the_lower_layers_attributes(driver):
    lower = folder("a", 0o2750, uid=5, gid=6, mtime=7, extra={"SCHILY.xattr.user.k": b"v"})
    found = shown(driver, tar(lower, member("a/old")), tar(member("a/new")))
    directory = found[b"a"]
    assert (directory.mode, directory.uid, directory.gid) == (0o2750, 5, 6)
    assert (directory.mtime_ns, directory.xattrs) == (7 * BILLION, {b"user.k": b"v"})
    assert {b"a/old", b"a/new"} <= set(found)


def test_implied_directories_in_place_of_something_else_are_new(driver):
    for below in (member("a", uid=5), symlink("a", "b", uid=5)):
        directory = shown(driver, tar(below), tar(member("a/f")))[b"a"]
        assert (directory.kind, directory.mode, directory.uid) == (stat.S_IFDIR, 0o755, 0)


def test_an_implied_directory_that_gets_its_entry_later(driver):
    found = shown(driver, tar(member("a/f"), folder("a", 0o700, uid=5, mtime=6)))
    assert (found[b"a"].mode, found[b"a"].uid, found[b"a"].mtime_ns) == (0o700, 5, 6 * BILLION)
    assert b"a/f" in found


# -- names --


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/abs", b"abs"),
        ("///abs", b"abs"),
        ("./a//b/./c", b"a/b/c"),
        ("a/../b", b"b"),
        ("a/b/../../c", b"c"),
        ("...", b"..."),
        ("..a", b"..a"),
        (" ", b" "),
        ("-rf", b"-rf"),
        (b"\xff\xfe", b"\xff\xfe"),
        (b"a\nb\tc\\d\"'*?", b"a\nb\tc\\d\"'*?"),
        ("\u202etxt.exe", "\u202etxt.exe".encode()),
    ],
)
def test_names(driver, name, path):
    assert shown(driver, tar(member(name, b"1")))[path].content == b"1"


def test_names_that_others_fold_are_all_distinct(driver):
    wanted = [
        text.encode()
        for text in ("A", "a", unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))
    ]
    found = shown(driver, tar(*(member(name, name) for name in wanted)))
    assert {path: entry.content for path, entry in found.items() if path} == {name: name for name in wanted}


@pytest.mark.parametrize("make", [member, folder, lambda n: symlink(n, "t"), lambda n: member(n, kind=FIFO)])
def test_longest_name(driver, make):
    name = b"\xf0\x9f\x98\x80" * 63 + b"abc"
    assert len(name) == 255
    assert list(shown(driver, tar(make(name)))) == [b"", name]
    with pytest.raises(InvalidLayer, match="256"):
        add(driver, tar(make(name + b"x")))


def test_longest_name_can_be_deleted(any_spelling):
    if dict(any_spelling.status())["Whiteouts"] == "device":
        name = b"n" * 255
    else:
        name = b"n" * 251  # .wh. goes before it
    assert paths_of(any_spelling, tar(member(name), member("x")), tar(member(b".wh." + name))) == [b"x"]


def paths_of(driver, *archives):
    with driver.union(stack(driver, *archives)) as union:
        return paths(union)


def long_path(length):
    """A path of exactly so many bytes."""
    return ((b"d" * 99 + b"/") * 50)[: length - 1] + b"e"


@pytest.mark.parametrize("length", [900, 2000, PATH_LIMIT - 1, PATH_LIMIT])
@pytest.mark.parametrize("make", [lambda n: member(n, b"x", uid=5), folder, lambda n: symlink(n, "t", uid=5)])
def test_long_paths_are_applied_read_and_removed(driver, length, make):
    """Whatever is accepted can be read, listed and deleted again, also at the limit."""
    path = long_path(length)
    top, _ = add(driver, tar(make(path)))
    with driver.union(top) as union:
        ino = find(union, path)
        assert union.resolve(path) is not None
        assert union.listxattr(ino) == []
        assert names(union, find(union, path.rpartition(b"/")[0])) == [path.rpartition(b"/")[2]]
        if stat.S_ISREG(union.node(ino).attr.mode):
            assert data(union, ino) == b"x"
            assert union.node(ino).attr.uid == 5
        elif stat.S_ISDIR(union.node(ino).attr.mode):
            assert names(union, ino) == []
    with driver.removing(top):
        pass
    assert driver.list_layers() == []


def test_a_path_over_the_limit_is_refused(driver):
    assert PATH_LIMIT > 3900  # not much less than the kernel's
    for make in (member, folder):
        with pytest.raises(InvalidLayer, match=f"limit of {PATH_LIMIT} "):
            add(driver, tar(make(long_path(PATH_LIMIT + 1))))
    with pytest.raises(InvalidLayer):
        add(
            driver,
            tar(symlink("s", long_path(3000)), folder(long_path(3000)), member(b"s/" + long_path(2000))),
        )


@pytest.mark.timeout(30)
def test_deep_trees_are_applied_walked_and_removed(driver):
    path = b"/".join([b"d"] * 1500)
    top, _ = add(driver, tar(folder("./"), folder(path, 0o700), member(path + b"/f", b"deep")))
    above, _ = add(driver, tar(member(path + b"/g", b"deeper")), top)
    with driver.union(above) as union:
        found = tree(union)
    assert len(found) == 1503
    assert (found[path].mode, found[path + b"/f"].content) == (0o700, b"deep")
    for layer in (above, top):
        with driver.removing(layer):
            pass
    assert driver.list_layers() == []


def test_a_deep_tree_that_is_replaced(driver):
    path = b"/".join([b"d"] * 1500)
    _, applied = add(driver, tar(member(path), member("d", b"a file now")))
    assert not applied.reproducible
    assert applied.size == 10


# -- one name twice --

FIRST = {
    "file": member("x", b"old", uid=1),
    "directory": folder("x", 0o700, uid=1, mtime=1) + member("x/child", b"old") + folder("x/sub"),
    "implied": member("x/child", b"old"),
    "symlink": symlink("x", "target", uid=1),
    "plain symlink": symlink("x", "target"),
    "fifo": member("x", kind=FIFO),
    "hard link": hard_link("x", "target"),
}
SECOND = {
    "file": (member("x", b"new"), plain(b"new")),
    "symlink": (symlink("x", "n"), plain(b"n", stat.S_IFLNK, 0o777)),
    "owned symlink": (symlink("x", "n", uid=2), plain(b"n", stat.S_IFLNK, 0o777, uid=2)),
    "device": (member("x", kind=CHAR, major=1, minor=2), plain(None, stat.S_IFCHR, rdev=os.makedev(1, 2))),
    "hard link": (hard_link("x", "target"), plain(b"target", nlink=2)),
}


@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("first", FIRST)
def test_the_last_entry_of_a_name_wins(driver, first, second):
    entry, expected = SECOND[second]
    top, applied = add(driver, tar(member("target", b"target"), FIRST[first], entry, member("behind")))
    with driver.union(top) as union:
        found = tree(union)
    assert found[b"x"]._replace(ino=0) == expected
    assert list(found) == [b"", *sorted([b"behind", b"target", b"x"])] or set(found) == {
        b"",
        b"behind",
        b"target",
        b"x",
    }
    assert found[b"target"].nlink == (2 if second == "hard link" else 1)
    assert not applied.reproducible
    assert applied.size == sum(
        e.size for p, e in found.items() if p and not (p == b"x" and second == "hard link")
    )


@pytest.mark.parametrize("first", ["file", "symlink", "plain symlink", "fifo", "hard link"])
def test_a_directory_replaces_what_is_no_directory(driver, first):
    archive = tar(member("target", b"target"), FIRST[first], folder("x", 0o711), member("x/new"))
    top, applied = add(driver, archive)
    with driver.union(top) as union:
        found = tree(union)
    assert (found[b"x"].kind, found[b"x"].mode) == (stat.S_IFDIR, 0o711)
    assert b"x/new" in found
    assert found[b"target"].nlink == 1
    assert not applied.reproducible


def test_a_directory_twice_is_merged(driver):
    top, applied = add(
        driver, tar(folder("x", 0o700, uid=1), member("x/a"), folder("x", 0o711, uid=2), member("x/b"))
    )
    with driver.union(top) as union:
        found = tree(union)
    assert (found[b"x"].mode, found[b"x"].uid) == (0o711, 2)
    assert {b"x/a", b"x/b"} <= set(found)
    assert applied.reproducible  # directories have no data that could be lost


def test_a_replaced_name_does_not_change_its_hard_links(driver):
    found = shown(
        driver, tar(member("a", b"old"), hard_link("b", "a"), member("a", b"new"), hard_link("c", "b"))
    )
    assert {path: (found[path].content, found[path].nlink) for path in (b"a", b"b", b"c")} == {
        b"a": (b"new", 1),
        b"b": (b"old", 2),
        b"c": (b"old", 2),
    }


def test_a_name_spelled_in_two_ways_is_one_name(driver):
    _, applied = add(
        driver, tar(member("a/b", b"1"), member("./a//b", b"22"), symlink("l", "a"), member("l/b", b"333"))
    )
    assert applied.size == 3 + 1
    assert not applied.reproducible


def test_what_is_said_once_is_reproducible(driver):
    archive = tar(
        folder("./"),
        folder("d"),
        member("d/f"),
        hard_link("g", "d/f"),
        member(".wh.h"),
        member("d/.wh..wh..opq"),
    )
    assert add(driver, archive)[1].reproducible


# -- hard links --


def test_hard_links_in_one_layer(driver):
    archive = tar(
        member("a", b"1", uid=5, mode=0o4755), hard_link("b", "a"), hard_link("d/c", "/./b", mode=0, uid=77)
    )
    found = shown(driver, archive)
    assert found[b"a"] == found[b"b"] == found[b"d/c"]
    assert (found[b"a"].nlink, found[b"a"].mode, found[b"a"].uid) == (3, 0o4755, 5)


@pytest.mark.parametrize(
    "entry",
    [
        symlink("a", "t"),
        symlink("a", "t", uid=5),
        member("a", kind=CHAR, major=1, minor=2),
        member("a", kind=FIFO),
    ],
)
def test_hard_links_to_what_is_no_file(driver, entry):
    found = shown(driver, tar(entry, hard_link("b", "a")))
    assert found[b"a"] == found[b"b"]
    assert found[b"a"].nlink == 2


def test_a_hard_link_to_a_symlink_is_not_one_to_its_target(driver):
    found = shown(driver, tar(member("f", b"1"), symlink("s", "f"), hard_link("h", "s")))
    assert (found[b"h"].kind, found[b"h"].content, found[b"f"].nlink) == (stat.S_IFLNK, b"f", 1)


LOWER = tar(
    folder("d", 0o711, uid=3),
    member(
        "d/a", b"content", uid=5, mode=0o4711, mtime=6, extra={"SCHILY.xattr.security.capability": CAPABILITY}
    ),
    hard_link("b", "d/a"),
    hard_link("d/c", "d/a"),
)


def test_a_hard_link_to_a_lower_file_is_copied_up_with_all_its_names(driver):
    found = shown(driver, LOWER, tar(hard_link("new", "d/a")))
    assert found[b"new"] == found[b"d/a"] == found[b"b"] == found[b"d/c"]
    file = found[b"new"]
    assert (file.nlink, file.content, file.uid, file.mode) == (4, b"content", 5, 0o4711)
    assert (file.mtime_ns, file.xattrs) == (6 * BILLION, {b"security.capability": CAPABILITY})
    assert (found[b"d"].mode, found[b"d"].uid) == (0o711, 3)


def test_two_links_to_one_lower_file(driver):
    found = shown(driver, LOWER, tar(hard_link("x", "d/a"), hard_link("y", "b"), hard_link("z", "x")))
    assert len({found[path].ino for path in (b"x", b"y", b"z", b"b", b"d/a", b"d/c")}) == 1
    assert found[b"x"].nlink == 6


@pytest.mark.parametrize(
    ("entries", "listing"),
    [
        ([member(".wh.b")], "d d/a d/c new"),
        ([member("d/.wh.a")], "b d d/c new"),
        ([member(".wh.d")], "b new"),
        ([member(".wh..wh..opq")], "new"),
        ([member("d/.wh..wh..opq")], "b d new"),
        ([member(".wh.d"), folder("d")], "b d new"),
        ([member("b", b"other")], "b d d/a d/c new"),
        ([member("d", b"a file now")], "b d new"),
        ([symlink("d", "elsewhere")], "b d new"),
        ([symlink("d", "elsewhere", uid=1)], "b d new"),
        ([symlink("d", "."), folder("e")], "b d e new"),
    ],
)
@pytest.mark.parametrize("link_first", [True, False])
def test_a_lower_name_that_the_layer_takes_away_is_no_link(any_spelling, entries, listing, link_first):
    """Whatever the order: the link leads to the file below, and the names that go do not come back."""
    link = hard_link("new", "d/a" if "d/a" in listing else "b")
    found = shown(any_spelling, LOWER, tar(link, *entries) if link_first else tar(*entries, link))
    assert " ".join(sorted(path.decode() for path in found if path)) == listing
    group = {path for path, entry in found.items() if entry.content == b"content"}
    assert b"new" in group
    assert {(found[path].nlink, found[path].ino) for path in group} == {(len(group), found[b"new"].ino)}


def test_a_link_to_a_lower_file_and_one_to_what_replaces_it(driver):
    upper = tar(hard_link("old", "f"), member("f", b"new"), hard_link("other", "f"))
    found = shown(driver, tar(member("f", b"lower")), upper)
    assert (found[b"old"].content, found[b"old"].nlink) == (b"lower", 1)
    assert (found[b"other"].content, found[b"other"].nlink) == (b"new", 2)
    assert found[b"other"].ino == found[b"f"].ino


def test_a_file_copied_up_whose_first_name_is_replaced(driver):
    upper = tar(hard_link("first", "f"), hard_link("second", "first"), member("first", b"new"))
    found = shown(driver, tar(member("f", b"lower")), upper)
    assert (found[b"first"].content, found[b"first"].nlink) == (b"new", 1)
    assert (found[b"second"].content, found[b"second"].nlink) == (b"lower", 2)
    assert found[b"second"].ino == found[b"f"].ino


def test_a_link_through_a_symlink_to_a_directory_of_the_lower_layer(driver):
    """`x/y/..` is x, although this layer has neither."""
    lower = tar(member("x/f", b"1"), folder("x/y"))
    found = shown(driver, lower, tar(symlink("s", "x/y/.."), hard_link("new", "s/f")))
    assert found[b"new"].content == b"1"
    assert found[b"new"].ino == found[b"x/f"].ino


def test_a_link_in_place_of_the_directory_that_its_target_lies_in(driver):
    lower = tar(member("d/f", b"1"))
    for archives in (
        [tar(member("d/f"), hard_link("d", "d/f"))],
        [lower, tar(hard_link("d", "d/f"))],
        [lower, tar(folder("d"), hard_link("d", "d/f"))],
    ):
        with pytest.raises(InvalidLayer):
            stack(driver, *archives)


# -- sizes, limits, sparse files --


def test_size_counts_each_inode_once_and_no_directories(driver):
    archive = tar(
        folder("d"), member("d/a", b"12345"), hard_link("b", "d/a"), symlink("s", "123"), member("c", b"1")
    )
    assert add(driver, archive)[1].size == 5 + 3 + 1
    assert add(driver, archive)[1].entries == 5


@pytest.mark.parametrize(("limit", "fits"), [(2999, False), (3000, True), (3001, True)])
def test_limit_of_content(tmp_path, limit, fits):
    archive = tar(member("a", b"x" * 1000), member("b", b"x" * 2000))
    if fits:
        assert unpacked(archive, tmp_path / "d", limits=Limits(size=limit)).size == 3000
        return
    with pytest.raises(InvalidLayer, match="2999"):
        unpacked(archive, tmp_path / "d", limits=Limits(size=limit))


@pytest.mark.parametrize(("limit", "fits"), [(2, False), (3, True), (4, True)])
def test_limit_of_entries(tmp_path, limit, fits):
    archive = tar(member("a"), folder("b"), member(".wh.c"))
    if fits:
        assert unpacked(archive, tmp_path / "d", limits=Limits(entries=limit)).entries == 3
        return
    with pytest.raises(InvalidLayer, match="2 entries"):
        unpacked(archive, tmp_path / "d", limits=Limits(entries=limit))


def test_holes_do_not_count_and_take_no_space(tmp_path):
    described = pax([("GNU.sparse.size", str(1 << 30)), ("GNU.sparse.map", "1048576,4")])
    archive = tar(described, header(b"s", size=4), padded(b"data"))
    unpacked(archive, tmp_path / "d", limits=Limits(size=4))
    st = os.stat(tmp_path / "d" / "s")
    assert st.st_size == 1 << 30
    assert st.st_blocks * 512 < 1 << 20
    with open(tmp_path / "d" / "s", "rb") as file:
        assert file.read(1048580).strip(b"\0") == b"data"


def test_a_large_file_is_whole(driver):
    content = os.urandom(5_000_001)
    assert shown(driver, tar(member("f", content), member("g", b"1")))[b"f"].content == content


# -- xattrs --


@pytest.mark.parametrize(
    "name",
    [
        "user.a",
        "user." + "n" * 250,
        "security.capability",
        "security.x",
        "trusted.x",
        "system.posix_acl_access",
        "user.containers.x",
    ],
)
def test_xattrs_that_are_kept(driver, name):
    found = shown(driver, tar(member("f", extra={f"SCHILY.xattr.{name}": b"\0v"})))
    assert found[b"f"].xattrs == {name.encode(): b"\0v"}


@pytest.mark.parametrize(
    "name",
    [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "trusted.overlay.metacopy",
        "trusted.overlay.origin",
        "user.overlay.opaque",
        "user.overlay.whiteout",
        "user.fuseoverlayfs.opaque",
        "user.containers.override_stat",
        "user.containers.override_security.capability",
        "user.containers.override_user.overlay.opaque",
        "security.fuseoverlayfs.x",
        "security.selinux",
        "user.rootlesscontainers",
        "user.fusestore.x",
        "nonamespace",
        "",
        "user.",
        "other.namespace",
    ],
)
def test_xattrs_that_are_dropped(driver, name):
    extra = {f"SCHILY.xattr.{name}": b"y", "SCHILY.xattr.user.kept": b"1"}
    lower = tar(folder("d"), member("d/old"))
    found = shown(driver, lower, tar(folder("d", extra=extra), member("f", b"", extra=extra)))
    assert found[b"d"].xattrs == found[b"f"].xattrs == {b"user.kept": b"1"}
    assert b"d/old" in found
    assert (found[b"f"].kind, found[b"f"].uid) == (stat.S_IFREG, 0)


@pytest.mark.parametrize(
    "extra",
    [
        {"SCHILY.xattr.user.a": b"x" * 65537},
        {"SCHILY.xattr.user." + "n" * 251: b"1"},
        {"SCHILY.xattr.security." + "n" * 300: b"1"},
    ],
)
def test_xattrs_larger_than_linux_allows(driver, extra):
    with pytest.raises(InvalidLayer, match="xattr"):
        add(driver, tar(member("f", extra=extra)))


def test_more_xattrs_than_the_filesystem_has_room_for(driver):
    """ext4 says "no space left on device" then; that would send people looking for a full disk."""
    extra = {f"SCHILY.xattr.user.{i}": b"v" * 20 for i in range(2000)}
    try:
        found = shown(driver, tar(member("f", extra=extra)))
    except (InvalidLayer, OSError) as exc:
        if isinstance(exc, OSError):
            assert exc.errno == errno.E2BIG  # noqa: PT017
        return
    assert len(found[b"f"].xattrs) == 2000


# -- where the caller owns every id: shown with the caller's own, which anybody may set --


def test_real_ownership_is_in_the_inode(tmp_path):
    mine = {"uid": os.getuid(), "gid": os.getgid()}
    archive = tar(
        folder("./", **mine),
        folder("d", 0o1777, mtime=3, **mine),
        member("d/f", b"1", mode=0o4755, extra={"SCHILY.xattr.user.a": b"1", "mtime": "1.5"}, **mine),
        symlink("s", "t", mtime=4, **mine),
        member("p", kind=FIFO, mode=0o640, mtime=5, **mine),
        hard_link("h", "d/f", **mine),
    )
    unpacked(archive, tmp_path / "layer", ownership=Ownership.REAL)
    st = os.lstat(tmp_path / "layer" / "d" / "f")
    assert (stat.S_IMODE(st.st_mode), st.st_mtime_ns, st.st_nlink) == (0o4755, 1_500_000_000, 2)
    assert os.listxattr(tmp_path / "layer" / "d" / "f") == ["user.a"]
    with union_of(tmp_path / "layer", ownership=Ownership.REAL) as union:
        found = tree(union)
    assert {entry.uid for entry in found.values()} == {os.getuid()}
    assert (found[b"d"].mode, found[b"d"].mtime_ns) == (0o1777, 3 * BILLION)
    assert (found[b"s"].kind, found[b"s"].mtime_ns) == (stat.S_IFLNK, 4 * BILLION)
    assert (found[b"p"].kind, found[b"p"].mode, found[b"p"].mtime_ns) == (stat.S_IFIFO, 0o640, 5 * BILLION)


@pytest.mark.parametrize("ownership", Ownership)
def test_a_0_0_device_in_a_tar_is_no_whiteout(tmp_path, ownership):
    mine = {"uid": os.getuid(), "gid": os.getgid()}
    unpacked(
        tar(folder("./", **mine), member("x", b"lower", **mine)), tmp_path / "lower", ownership=ownership
    )
    device = member("x", kind=CHAR, major=0, minor=0, **mine)
    try:
        unpacked(tar(folder("./", **mine), device), tmp_path / "upper", ownership=ownership)
    except InvalidLayer:
        return
    with union_of(tmp_path / "upper", tmp_path / "lower", ownership=ownership) as union:
        node = union.lookup(ROOT, b"x")
        assert node is not None, "the device became a whiteout"
        assert (stat.S_IFMT(node.attr.mode), node.attr.rdev) == (stat.S_IFCHR, 0)


@pytest.mark.parametrize(
    ("major", "minor"), [(4096, 0), (0, 2**20), (-1, 0), (0, -1), (2**31, 0), (2**32, 2**32), (2**55, 1)]
)
def test_device_numbers_that_linux_does_not_have(driver, major, minor):
    with pytest.raises(InvalidLayer):
        add(driver, tar(member("x", kind=CHAR, major=base256(major, 8), minor=base256(minor, 8))))


def test_zeros_take_no_room(driver):
    """What comes out of a sparse file, such as lastlog, goes into one again."""
    content = b"first" + bytes(8 << 20) + b"last"
    top, applied = add(driver, tar(member("var/log/lastlog", content), member("small", bytes(100))))
    assert applied.size == len(content) + 100
    layer = driver.path / top / "diff"
    assert (layer / "var/log/lastlog").read_bytes() == content
    assert (layer / "var/log/lastlog").stat().st_blocks * 512 < 4 << 20
    assert (layer / "small").stat().st_blocks > 0
