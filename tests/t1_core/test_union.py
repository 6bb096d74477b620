"""The union of directories on disk: every spelling of deleted and opaque, names, links, numbers, order."""

import errno
import os
import stat

import pytest
from support.layers import ROOT, add, data, find, names, paths, show, stack, tree, union_of
from support.tars import folder, hard_link, member, symlink, tar

from fusestore.driver.ownership import Ownership

OPAQUE = ["user.overlay.opaque", "user.fuseoverlayfs.opaque"]


@pytest.fixture
def layers(tmp_path):
    """Makes layer directories out of dictionaries: path -> content, with a final slash an empty directory."""

    def make(*trees):
        made = []
        for i, content_of in enumerate(trees):
            root = tmp_path / f"layer{i}"
            root.mkdir()
            for path, content in content_of.items():
                place = root / path
                place.parent.mkdir(parents=True, exist_ok=True)
                if path.endswith("/"):
                    place.mkdir(exist_ok=True)
                elif content is None:
                    os.mknod(place, stat.S_IFCHR, os.makedev(0, 0))
                else:
                    place.write_bytes(content)
            made.append(root)
        return made

    return make


def test_the_topmost_layer_wins(layers):
    stack = layers({"a": b"3"}, {"a": b"2", "b": b"2"}, {"a": b"1", "b": b"1", "c": b"1"})
    with union_of(*stack) as union:
        assert {name: data(union, find(union, name)) for name in (b"a", b"b", b"c")} == {
            b"a": b"3",
            b"b": b"2",
            b"c": b"1",
        }
        assert sorted(names(union)) == [b"a", b"b", b"c"]
        assert union.lookup(ROOT, b"d") is None


def test_directories_merge_and_everything_else_replaces(layers):
    stack = layers(
        {"d/top": b"", "f/": None, "g": b"file"},
        {"d/middle": b"", "f": b"file", "g/below": b""},
        {"d/bottom": b"", "f/below": b"", "g/deeper": b""},
    )
    with union_of(*stack) as union:
        # what a file covers stays covered, also for a directory above the file
        assert paths(union) == [b"d", b"d/bottom", b"d/middle", b"d/top", b"f", b"g"]


# -- whiteouts and opaque directories ------------------------------------------------------------------------

LOWER = {"d/x": b"", "d/y": b"", "e/z": b"", "f": b""}


def test_device_whiteouts(layers):
    with union_of(*layers({"f": None, "d/x": None, "e": None}, LOWER)) as union:
        assert paths(union) == [b"d", b"d/y"]
        assert union.lookup(ROOT, b"f") is None


def test_named_whiteouts(layers):
    with union_of(*layers({".wh.f": b"", "d/.wh.x": b"", ".wh.e": b""}, LOWER)) as union:
        assert paths(union) == [b"d", b"d/y"]
        assert union.lookup(ROOT, b".wh.f") is None


def test_named_whiteouts_do_not_hide_what_is_beside_them(layers):
    """D39."""
    with union_of(*layers({".wh.f": b"", "f": b"new", ".wh.d": b"", "d/n": b""}, LOWER)) as union:
        assert paths(union) == [b"d", b"d/n", b"e", b"e/z", b"f"]
        assert data(union, find(union, b"f")) == b"new"


def test_named_opaque_directories(layers):
    with union_of(*layers({"d/.wh..wh..opq": b"", "d/n": b"", "e/n": b""}, LOWER)) as union:
        assert paths(union) == [b"d", b"d/n", b"e", b"e/n", b"e/z", b"f"]


def test_aufs_names_are_invisible(layers):
    with union_of(
        *layers({".wh..wh.plnk/1": b"", ".wh..wh.aufs": b"", "d/.wh..wh.orph/": None}, LOWER)
    ) as union:
        assert paths(union) == [b"d", b"d/x", b"d/y", b"e", b"e/z", b"f"]
        assert union.lookup(ROOT, b".wh..wh.aufs") is None


@pytest.mark.parametrize("xattr", OPAQUE)
def test_opaque_xattrs(layers, xattr):
    upper, lower = layers({"d/n": b"", "e/n": b""}, LOWER)
    os.setxattr(upper / "d", xattr, b"y")
    os.setxattr(upper / "e", xattr, b"n")
    with union_of(upper, lower) as union:
        assert paths(union) == [b"d", b"d/n", b"e", b"e/n", b"e/z", b"f"]


@pytest.mark.parametrize("how", [*OPAQUE, "named"])
def test_an_opaque_root(layers, how):
    upper, lower = layers({"n": b""}, LOWER)
    if how == "named":
        (upper / ".wh..wh..opq").touch()
    else:
        os.setxattr(upper, how, b"y")
    with union_of(upper, lower) as union:
        assert paths(union) == [b"n"]


@pytest.mark.parametrize("content", [b"", b"not empty"])
@pytest.mark.parametrize("value", [b"y", b"", b"n"])
def test_xattr_whiteouts(layers, value, content):
    """Linux 6.7: an empty file with the xattr, of any value, in a directory whose opaque xattr is ``x``."""
    upper, lower = layers({"d/x": content, "d/n": b"", "e/z": b""}, LOWER)
    os.setxattr(upper / "d", "user.overlay.opaque", b"x")
    os.setxattr(upper / "d" / "x", "user.overlay.whiteout", value)
    os.setxattr(upper / "e" / "z", "user.overlay.whiteout", value)  # its directory says nothing of whiteouts
    with union_of(upper, lower) as union:
        shown = [b"d/n", b"d/y"] if not content else [b"d/n", b"d/x", b"d/y"]
        assert paths(union) == [b"d", *shown, b"e", b"e/z", b"f"]


def test_an_xattr_whiteout_in_the_root(layers):
    upper, lower = layers({"f": b""}, LOWER)
    os.setxattr(upper, "user.overlay.opaque", b"x")
    os.setxattr(upper / "f", "user.overlay.whiteout", b"")
    with union_of(upper, lower) as union:
        assert b"f" not in paths(union)


def test_a_whiteout_ends_at_the_layer_below(layers):
    with union_of(*layers({"d/new": b""}, {"d": None, "f": None}, LOWER)) as union:
        assert paths(union) == [b"d", b"d/new", b"e", b"e/z"]


def test_opaque_hides_everything_below_and_nothing_above(layers):
    top, opaque, bottom = layers({"d/top": b""}, {"d/middle": b""}, {"d/bottom": b""})
    os.setxattr(opaque / "d", "user.overlay.opaque", b"y")
    with union_of(top, opaque, bottom) as union:
        assert paths(union) == [b"d", b"d/middle", b"d/top"]


def test_an_opaque_directory_over_a_file(layers):
    with union_of(*layers({"f/n": b"", "f/.wh..wh..opq": b""}, {"f": b"file"}, {"f/deep": b""})) as union:
        assert paths(union) == [b"f", b"f/n"]


def test_whiteouts_of_the_bottom_layer_are_invisible(layers):
    with union_of(*layers({"f": None, ".wh.g": b"", "d/.wh..wh..opq": b"", "d/x": b""})) as union:
        assert paths(union) == [b"d", b"d/x"]


# -- attributes that a foreign layer says --------------------------------------------------------------------


def test_override_stat_of_a_foreign_layer(layers):
    """As podman writes it; told by the root's own override_stat."""
    (layer,) = layers({"f": b"data", "l": b"target", "p": b"", "n": b"", "d/x": b"", "s": b""})
    said = {"": "0:0:0555:dir", "f": "1:2:4755:file", "l": "3:4:0777:symlink", "p": "0:0:0600:pipe"}
    said |= {"n": "0:6:0660:block-8-1", "d": "5:5:1777", "s": "0:0:0600:socket"}
    for path, value in said.items():
        os.setxattr(layer / path, "user.containers.override_stat", value.encode())
    os.setxattr(layer / "f", "user.containers.override_security.capability", b"cap")
    os.setxattr(layer / "f", "user.plain", b"1")
    with union_of(layer) as union:
        found = tree(union)
    assert (found[b""].mode, found[b""].uid) == (0o555, 0)
    assert (found[b"f"].uid, found[b"f"].gid, found[b"f"].mode) == (1, 2, 0o4755)
    assert found[b"f"].xattrs == {b"user.plain": b"1", b"security.capability": b"cap"}
    assert (found[b"l"].kind, found[b"l"].content, found[b"l"].uid) == (stat.S_IFLNK, b"target", 3)
    assert (found[b"p"].kind, found[b"p"].size) == (stat.S_IFIFO, 0)
    assert (found[b"n"].kind, found[b"n"].rdev) == (stat.S_IFBLK, os.makedev(8, 1))
    assert (found[b"d"].kind, found[b"d"].mode, found[b"d"].uid) == (stat.S_IFDIR, 0o1777, 5)
    assert found[b"s"].kind == stat.S_IFSOCK
    assert (found[b"d/x"].uid, found[b"d/x"].gid) == (0, 0)


def test_a_layer_without_override_stat_is_taken_as_it_is(layers):
    (layer,) = layers({"f": b""})
    os.setxattr(layer / "f", "user.containers.override_stat", b"7:7:0777:file")
    with union_of(layer) as union:
        assert union.node(find(union, b"f")).attr.uid == os.getuid()


def test_damaged_override_stat_is_an_error_and_not_a_guess(layers):
    (layer,) = layers({"bad": b"", "good": b""})
    os.setxattr(layer / "bad", "user.containers.override_stat", b"nonsense")
    os.setxattr(layer, "user.containers.override_stat", b"0:0:0755:dir")
    with union_of(layer) as union:
        with pytest.raises(OSError) as caught:
            union.lookup(ROOT, b"bad")
        assert caught.value.errno == errno.EIO
        assert sorted(names(union)) == [b"bad", b"good"]
        assert find(union, b"good")


def test_internal_xattrs_are_invisible(layers):
    (layer,) = layers({"f": b"", "d/": None})
    os.setxattr(layer, "user.containers.override_stat", b"0:0:0755:dir")
    hidden = [
        "user.overlay.origin",
        "user.fuseoverlayfs.origin",
        "user.fusestore.x",
        "user.rootlesscontainers",
    ]
    hidden += ["user.containers.override_stat", "user.containers.override_trusted.overlay.opaque"]
    for path in ("f", "d"):
        os.setxattr(layer / path, "user.shown", b"1")
        for name in hidden:
            os.setxattr(layer / path, name, b"0:0:0700:dir" if path == "d" else b"0:0:0600:file")
        with union_of(layer) as union:
            ino = find(union, path.encode())
            assert union.listxattr(ino) == [b"user.shown"]
            for name in [*hidden, "trusted.overlay.opaque", "user.absent", "security.selinux"]:
                with pytest.raises(OSError) as caught:
                    union.getxattr(ino, name.encode())
                assert caught.value.errno == errno.ENODATA


# -- reading -------------------------------------------------------------------------------------------------


def test_files_open_for_reading_only(layers):
    with union_of(*layers({"f": b"data"})) as union:
        ino = find(union, b"f")
        assert data(union, ino) == b"data"
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(OSError) as caught:
                union.open(ino, flags)
            assert caught.value.errno == errno.EROFS


@pytest.mark.timeout(10)
def test_a_special_file_in_a_layer_blocks_nobody(layers):
    """A fifo that nobody writes to, where the union expects a file."""
    (layer,) = layers({"f": b""})
    with union_of(layer) as union:
        ino = find(union, b"f")
        (layer / "f").unlink()
        os.mkfifo(layer / "f")
        os.close(union.open(ino, os.O_RDONLY))


def test_a_symlink_in_place_of_a_file_is_not_followed(layers, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (layer,) = layers({"f": b""})
    with union_of(layer) as union:
        ino = find(union, b"f")
        (layer / "f").unlink()
        (layer / "f").symlink_to(tmp_path / "secret")
        with pytest.raises(OSError) as caught:
            union.open(ino, os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize(("length", "number"), [(255, None), (256, errno.ENAMETOOLONG)])
def test_lookup_of_long_names(layers, length, number):
    with union_of(*layers({"a": b""})) as union:
        if number is None:
            assert union.lookup(ROOT, b"n" * length) is None
            return
        with pytest.raises(OSError) as caught:
            union.lookup(ROOT, b"n" * length)
        assert caught.value.errno == number


def test_statvfs_is_the_filesystems(layers):
    (layer,) = layers({"a": b""})
    with union_of(layer) as union:
        assert union.statvfs().f_namemax == os.statvfs(layer).f_namemax


def test_500_lowers(layers):
    stack = layers(*({f"f{i}": b"%d" % i, "all": b"%d" % i, f"d/{i}": b""} for i in range(500)))
    with union_of(*stack) as union:
        assert data(union, find(union, b"all")) == b"0"
        assert data(union, find(union, b"f499")) == b"499"
        assert len(names(union)) == 502
        assert len(names(union, find(union, b"d"))) == 500


# -- listings ------------------------------------------------------------------------------------------------


def test_readdir_from_any_offset(layers):
    stack = layers({f"t{i}": b"" for i in range(5)} | {"b3": None}, {f"b{i}": b"" for i in range(5)})
    with union_of(*stack) as union:
        handle = union.opendir(ROOT)
        whole = [(name, offset) for name, _, offset in union.readdir(handle, 0)]
        assert [name for name, _ in whole[:2]] == [b".", b".."]
        assert len(whole) == 2 + 9
        assert len({offset for _, offset in whole}) == len(whole)
        for i, (_, offset) in enumerate(whole):
            assert [(name, at) for name, _, at in union.readdir(handle, offset)] == whole[i + 1 :]
        assert list(union.readdir(handle, whole[-1][1] + 1000)) == []
        union.releasedir(handle)


def test_dot_and_dotdot(layers):
    with union_of(*layers({"d/e/f": b""})) as union:
        inner = find(union, b"d/e")
        handle = union.opendir(inner)
        dots = {name: node.ino for name, node, _ in union.readdir(handle, 0)}
        assert (dots[b"."], dots[b".."]) == (inner, find(union, b"d"))
        handle = union.opendir(ROOT)
        dots = {name: node.ino for name, node, _ in union.readdir(handle, 0)}
        assert (dots[b"."], dots[b".."]) == (ROOT, ROOT)


def test_two_listings_of_one_directory_do_not_disturb_each_other(layers):
    with union_of(*layers({f"f{i}": b"" for i in range(10)})) as union:
        first, second = union.opendir(ROOT), union.opendir(ROOT)
        slow = union.readdir(first, 0)
        head = [next(slow)[0] for _ in range(4)]
        whole = [name for name, _, _ in union.readdir(second, 0)]
        union.releasedir(second)
        assert head + [name for name, _, _ in slow] == whole


def test_a_directory_of_100_000_entries(tmp_path, driver):
    top, _ = add(driver, tar(folder("d"), *(member(f"d/{i:06}") for i in range(100_000))))
    above, _ = add(driver, tar(member("d/.wh.000007"), member("d/new")), top)
    with driver.union(above) as union:
        ino = find(union, b"d")
        handle = union.opendir(ino)
        seen, offset = [], 0
        while True:  # as the kernel reads: a page at a time
            page = []
            for name, _, following in union.readdir(handle, offset):
                page.append(name)
                offset = following
                if len(page) == 1000:
                    break
            if not page:
                break
            seen += page
    assert len(seen) == len(set(seen)) == 100_000 - 1 + 1 + 2
    assert b"000007" not in seen
    assert b"new" in seen


# -- inode numbers and links ---------------------------------------------------------------------------------


def numbers(union):
    return {path: entry.ino for path, entry in tree(union).items()}


def test_inode_numbers_are_unique_and_the_same_next_time(layers):
    stack = layers(
        {f"a{i}": b"" for i in range(50)} | {"d/x": b""}, {f"b{i}": b"" for i in range(50)} | {"d/y": b""}
    )
    with union_of(*stack) as union:
        first = numbers(union)
    assert len(set(first.values())) == len(first) == 104
    with union_of(*stack) as union:
        for name in (b"d/y", b"b49", b"a0"):  # in another order
            assert find(union, name) == first[name]
        assert numbers(union) == first


def test_a_layer_on_top_does_not_change_the_numbers_below(layers):
    stack = layers({"new": b""}, {"d/a": b"", "f": b""}, {"d/b": b"", "g": b""})
    with union_of(*stack[1:]) as union:
        before = numbers(union)
    with union_of(*stack) as union:
        after = numbers(union)
    assert {path: ino for path, ino in after.items() if path != b"new"} == before


def test_numbers_from_two_filesystems_do_not_collide(layers, tmp_path_factory):
    """One layer on /dev/shm: its inode numbers begin where those of any filesystem do."""
    (here,) = layers({f"a{i}": b"" for i in range(20)})
    there = tmp_path_factory.mktemp("x")
    shm = os.path.join("/dev/shm", f"fusestore-test-{os.getpid()}")
    os.mkdir(shm)
    try:
        for i in range(20):
            open(os.path.join(shm, f"b{i}"), "w").close()
        assert os.stat(shm).st_dev != os.stat(here).st_dev
        with union_of(here, type(there)(shm)) as union:
            found = numbers(union)
        assert len(set(found.values())) == len(found) == 41
        with union_of(here, type(there)(shm)) as union:
            assert numbers(union) == found
    finally:
        for name in os.listdir(shm):
            os.unlink(os.path.join(shm, name))
        os.rmdir(shm)


def test_hard_links_are_one_inode_with_the_true_count(driver):
    lower = tar(
        member("a", b"1"), hard_link("b", "a"), hard_link("d/c", "a"), hard_link("d/e", "a"), member("x")
    )
    top = stack(driver, lower)
    with driver.union(top) as union:
        found = tree(union)
    assert {found[path].ino for path in (b"a", b"b", b"d/c", b"d/e")} == {found[b"a"].ino}
    assert found[b"a"].nlink == 4
    assert found[b"x"].nlink == 1


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        (member(".wh.a"), 3),
        (member("b", b"other"), 3),
        (member("d/.wh..wh..opq"), 2),
        (member(".wh.d"), 2),
        (member("d", b"a file"), 2),
        (member(".wh..wh..opq") + member("y"), 0),
        (symlink("b", "a") + member("d/.wh.c"), 2),
        (member("y"), 4),
    ],
)
@pytest.mark.parametrize("deeper", [0, 1])
def test_hidden_names_do_not_count(driver, upper, left, deeper):
    """The lower layer has four names; how many are left is not in any inode on disk."""
    lower = tar(member("a", b"1"), hard_link("b", "a"), hard_link("d/c", "a"), hard_link("d/e", "a"))
    with driver.union(stack(driver, lower, tar(upper), *[tar(member("z"))] * deeper)) as union:
        found = [entry for entry in tree(union).values() if entry.content == b"1"]
    assert len(found) == left
    assert {entry.nlink for entry in found} <= {left}


def test_nodes_are_forgotten(layers):
    with union_of(*layers({f"f{i}": b"" for i in range(10)})) as union:
        node = union.lookup(ROOT, b"f1")
        assert union.lookup(ROOT, b"f1") is node
        union.forget(node.ino, 1)
        assert union.node(node.ino) is node
        union.forget(node.ino, 1)
        with pytest.raises(KeyError):
            union.node(node.ino)
        union.forget(ROOT, 1)
        assert union.node(ROOT).ino == ROOT
        union.forget(987654321, 1)


# -- paths, as a process inside the image sees them ----------------------------------------------------------

WALKED = tar(
    folder("usr/bin", 0o711),
    member("usr/bin/tool", b"tool"),
    symlink("bin", "usr/bin"),
    symlink("sbin", "/usr/bin", uid=9),
    symlink("usr/up", ".."),
    symlink("out", "../../../../../../etc/passwd"),
    symlink("abs", "/etc/passwd"),
    symlink("dir", "/usr/"),
    symlink("loop", "loop2"),
    symlink("loop2", "loop"),
    symlink("dangling", "nowhere"),
    symlink("self", "."),
    member("etc/passwd", b"image's"),
    member("file", b"f"),
)


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"", b""),
        (b"/", b""),
        (b"..", b""),
        (b"../..", b""),
        (b"usr/bin/tool", b"usr/bin/tool"),
        (b"/usr//bin/./tool", b"usr/bin/tool"),
        (b"bin/tool", b"usr/bin/tool"),
        (b"sbin/tool", b"usr/bin/tool"),
        (b"usr/../bin/../bin/tool", b"usr/bin/tool"),
        (b"bin", b"usr/bin"),
        (b"bin/", b"usr/bin"),
        (b"bin/..", b"usr"),
        (b"usr/up", b""),
        (b"usr/up/usr/up/etc/passwd", b"etc/passwd"),
        (b"out", b"etc/passwd"),
        (b"abs", b"etc/passwd"),
        (b"../../../../etc/passwd", b"etc/passwd"),
        (b"dir/bin", b"usr/bin"),
        (b"self/self/self/file", b"file"),
        (b"self/../../file", b"file"),
    ],
)
def test_walk(driver, path, canonical):
    with driver.union(stack(driver, WALKED)) as union:
        found, entry = union.walk(path)
        assert found == canonical
        assert entry.attr.ino == union.resolve(canonical).attr.ino


@pytest.mark.parametrize(
    ("path", "number"),
    [
        (b"loop", errno.ELOOP),
        (b"loop/x", errno.ELOOP),
        (b"self/" * 41 + b"file", errno.ELOOP),
        (b"nowhere", errno.ENOENT),
        (b"nowhere/..", errno.ENOENT),
        (b"dangling", errno.ENOENT),
        (b"dangling/x", errno.ENOENT),
        (b"file/x", errno.ENOTDIR),
        (b"file/..", errno.ENOTDIR),
        (b"file/.", errno.ENOTDIR),
        (b"file/", errno.ENOTDIR),
        (b"abs/", errno.ENOTDIR),
        (b"n" * 256, errno.ENAMETOOLONG),
    ],
)
def test_walks_that_fail(driver, path, number):
    with driver.union(stack(driver, WALKED)) as union:
        with pytest.raises(OSError) as caught:
            union.walk(path)
        assert caught.value.errno == number


@pytest.mark.parametrize(
    ("path", "canonical"),
    [
        (b"bin", b"bin"),
        (b"loop", b"loop"),
        (b"usr/up", b"usr/up"),
        (b"usr/up/bin", b"bin"),
        (b"bin/.", b"usr/bin"),
        (b"bin/", b"usr/bin"),
        (b"file", b"file"),
    ],
)
def test_walk_without_following_the_last_symlink(driver, path, canonical):
    with driver.union(stack(driver, WALKED)) as union:
        assert union.walk(path, follow=False)[0] == canonical


def test_40_symlinks_are_followed(driver):
    with driver.union(stack(driver, WALKED)) as union:
        assert union.walk(b"self/" * 40 + b"file")[0] == b"file"


def test_a_symlink_of_the_host_is_not_followed_by_a_walk(layers, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").touch()
    (layer,) = layers({"f": b""})
    (layer / "link").symlink_to(tmp_path / "outside")
    (layer / "up").symlink_to("../outside")
    with union_of(layer, ownership=Ownership.REAL) as union:
        for path in (b"link/x", b"up/x", b"f/../../outside/x"):
            with pytest.raises(OSError) as caught:
                union.walk(path)
            assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)


@pytest.mark.parametrize("path", [b"..", b".", b"d/..", b"d/../../layer0", b"d//x", b"/etc"])
def test_resolve_takes_canonical_paths_only(layers, path):
    """Whatever it is given, nothing outside the layers is looked at."""
    with union_of(*layers({"d/x": b""})) as union:
        try:
            entry = union.resolve(path)
        except (OSError, ValueError):
            return
        assert entry is None


def test_directories_have_a_link_count_that_find_can_trust(driver):
    """1, which says nothing, or 2 and the subdirectories: find skips directories when it is too low."""
    lower, upper = tar(folder("d/a"), folder("d/b")), tar(folder("d/c"), folder("d/e"), member("d/.wh.a"))
    with driver.union(stack(driver, lower, upper)) as union:
        assert show(union, find(union, b"d")).nlink in (1, 2 + 3)
        assert show(union, ROOT).nlink in (1, 2 + 1)
