"""Layers that another program keeps, as they lie on disk: other owners, other spellings, closed doors.

Theory: what differs from our own layers is told by an `Origin` (owners, spelling) and by what the disk
refuses (EACCES).  A refusal hits whoever needs that very file, and nobody else; and nothing that is asked
changes any inode, change times included.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from support import naive
from support.foreign import MAPPED, ME, MY_GROUP, TOLD_BY_ITSELF, borrow, made, refusal, state
from support.layers import add, data, find, names, paths, tree
from support.tars import folder, member, read, tar

from fusestore.driver.idmap import Owners
from fusestore.driver.layout import LayerSpec, MountSpec, Origin
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership
from fusestore.driver.whiteout import Spelling

# -- what a layer is like --------------------------------------------------------------------------------


def test_an_origin_survives_the_way_to_a_server():
    specs = (
        LayerSpec("/a", "/l", "/k", replace(MAPPED, opaque=("d\udcff",))),
        LayerSpec("/b", origin=TOLD_BY_ITSELF),
        LayerSpec("/c"),
    )
    spec = MountSpec(specs, "/home", Ownership.OVERRIDE, Spelling.NAME, "label")
    assert MountSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    older = json.loads(json.dumps(spec.to_json()))
    for layer in older["layers"]:
        del layer["origin"]
    assert [layer.origin for layer in MountSpec.from_json(older).layers] == [None] * 3


def acl(*ids):
    entries = ((1, 7, -1), (2, 4, ids[0]), (4, 5, -1), (8, 4, ids[1]), (16, 5, -1), (32, 0, -1))
    parts = (tag.to_bytes(2, "little") + bits.to_bytes(2, "little") for tag, bits, _ in entries)
    numbers = ((number & 0xFFFFFFFF).to_bytes(4, "little") for _, _, number in entries)
    return b"\2\0\0\0" + b"".join(part + number for part, number in zip(parts, numbers, strict=True))


SETS = bytes(range(1, 17))
V2, V3 = (revision.to_bytes(4, "little") + SETS for revision in (0x02000001, 0x03000001))
ACCESS, CAPABILITY = b"system.posix_acl_access", b"security.capability"


@pytest.mark.parametrize(
    ("name", "stored", "shown"),
    [
        (ACCESS, acl(100_004, 200_007), acl(5, 8)),
        (ACCESS, acl(1000, 77), acl(0, 65534)),
        (b"system.posix_acl_default", acl(100_004, 200_000), acl(5, 1)),
        (ACCESS, b"\2\0\0\0no ACL", b"\2\0\0\0no ACL"),
        (CAPABILITY, V3 + (1000).to_bytes(4, "little"), V2),
        (CAPABILITY, V3 + (100_004).to_bytes(4, "little"), V3 + (5).to_bytes(4, "little")),
        (CAPABILITY, V2, V2),
        (CAPABILITY, V2 + bytes(4), V2 + bytes(4)),
        (b"user.any", acl(100_004, 200_007), acl(100_004, 200_007)),
    ],
)
def test_the_ids_inside_xattrs_are_mapped_too(name, stored, shown):
    owners = Owners([(1000, 0, 1), (100_000, 1, 9)], [(200_000, 1, 9)])
    assert owners.xattr(name, stored) == shown


def test_owners_of_a_mapped_layer_are_those_that_its_image_has(driver, tmp_path):
    tree_of = made(tmp_path / "theirs", {"mine": b"x", "acl": b"x", "d/": b""})
    os.setxattr(tree_of / "acl", ACCESS, acl(100_004, MY_GROUP))
    os.setxattr(tree_of / "mine", OVERRIDE_STAT, b"7:8:0600:file")  # not how this store keeps owners
    unmapped = Origin(Ownership.REAL, uids=((1, 1, 1),))
    for origin, uid, gid in ((MAPPED, 0, 0), (unmapped, 65534, MY_GROUP), (Origin(), ME, MY_GROUP)):
        with driver.union(borrow(driver, tree_of, origin=origin)) as union:
            shown = tree(union)
        assert {(entry.uid, entry.gid) for entry in shown.values()} == {(uid, gid)}
        assert shown[b"mine"].xattrs == {}
        if origin is MAPPED:
            assert shown[b"acl"].xattrs == {ACCESS: acl(5, 0)}


def test_a_tree_with_its_owners_in_xattrs_needs_no_map(driver, tmp_path):
    """As fuse-overlayfs and we leave behind; a file may also be a symlink then."""
    theirs = made(tmp_path / "theirs", {"d/f": b"data", "link": b"d", "secret": b""})
    for path, value in {"": b"7:8:0750:dir", "link": b"0:0:0777:symlink", "d/f": b"5:6:4755:file"}.items():
        os.setxattr(theirs / path, OVERRIDE_STAT, value)
    os.setxattr(theirs / "d/f", "user.containers.override_" + ACCESS.decode(), acl(100_004, MY_GROUP))
    (theirs / "secret").chmod(0)
    for ownership in (None, Ownership.OVERRIDE):
        layer = borrow(driver, theirs, origin=replace(MAPPED, ownership=ownership))
        with driver.union(layer) as union:
            found = {name: union.resolve(name).attr for name in (b"", b"d/f", b"link", b"secret")}
            assert union.getxattr(find(union, b"d/f"), ACCESS) == acl(100_004, MY_GROUP)
        owners = {name: (attr.uid, attr.gid, f"{attr.mode:o}") for name, attr in found.items()}
        assert owners[b""] == (7, 8, "40750")
        assert owners[b"d/f"] == (5, 6, "104755")
        assert owners[b"link"] == (0, 0, "120777")
        assert owners[b"secret"] == (0, 0, "100000")
        getter = driver.diff_getter(layer)
        os.close(getter.get(b"link/f"))
        getter.close()
    getter = driver.diff_getter(borrow(driver, theirs, origin=MAPPED))
    with pytest.raises(FileNotFoundError):
        getter.get(b"link/f")
    getter.close()


def test_file_capabilities_from_a_user_namespace_are_plain_ones_again(driver, tmp_path):
    tree_of = made(tmp_path / "theirs", {"ping": b"x"})
    sets = (0x02000001).to_bytes(4, "little") + (1 << 13).to_bytes(4, "little") + bytes(12)
    script = f"import os; os.setxattr({str(tree_of / 'ping')!r}, 'security.capability', {sets!r})"
    subprocess.run(["unshare", "-Ur", sys.executable, "-c", script], check=True, timeout=20)
    assert len(os.getxattr(tree_of / "ping", CAPABILITY)) == 24  # what the kernel made of it
    lower = borrow(driver, tree_of, origin=MAPPED)
    with driver.union(lower) as union:
        assert tree(union)[b"ping"].xattrs == {CAPABILITY: sets}
    (_, root), (ping, _) = read(b"".join(driver.diff(lower, None)))
    assert root == b""
    assert (ping.uid, ping.gid, ping.xattrs) == (0, 0, {CAPABILITY: sets})


OPAQUE = ["user.overlay.opaque", "user.fuseoverlayfs.opaque"]


@pytest.mark.parametrize("told", [None, Spelling.NAME])
def test_their_whiteouts_hide_ours_however_they_are_spelled(driver, tmp_path, told):
    """Also in a home with another spelling, and under layers of ours."""
    base, _ = add(driver, tar(*(member(f"{place}/f") for place in "abcdeg"), member("kept")))
    theirs = {"a/f": None, "b/.wh.f": b"", "c/.wh..wh..opq": b"", "d/": b"", "e/": b"", "g/f": b""}
    tree_of = made(tmp_path / "theirs", theirs)
    for place, mark in zip("de", OPAQUE, strict=True):
        os.setxattr(tree_of / place, mark, b"y")
    os.setxattr(tree_of / "g/f", "user.overlay.whiteout", b"")
    os.setxattr(tree_of / "g", "user.overlay.opaque", b"x")
    top, _ = add(driver, tar(member("new")), borrow(driver, tree_of, base, Origin(None, told)))
    with driver.union(top) as union:
        assert paths(union) == [*(place.encode() for place in "abcdeg"), b"kept", b"new"]


@pytest.mark.parametrize(("opaque", "left"), [(("d", "e/\udcff"), [b"e/f", b"f"]), (("",), [])])
def test_directories_may_be_opaque_by_marks_that_only_root_sees(driver, tmp_path, opaque, left):
    """`trusted.overlay.opaque`; the tar-split knows (containers/storage: overlayWhiteoutConverter)."""
    base, _ = add(driver, tar(*(member(name) for name in (b"f", b"d/f", b"e/f", b"e/\xff/f"))))
    theirs = made(tmp_path / "theirs", {"d/new": b"", "e/\udcff/new": b""})
    lower = borrow(driver, theirs, base, Origin(opaque=opaque))
    with driver.union(lower) as union:
        assert [path for path in paths(union) if path.endswith(b"f")] == left
    deleted = [path for letter, path in naive.letters(driver, lower, base) if letter == "D"]
    assert deleted == sorted({b"d/f", b"e/\xff/f", b"e/f", b"f"} - set(left))


def test_what_only_an_upper_may_have_is_an_error_for_that_name_alone(driver, tmp_path):
    tree_of = made(tmp_path / "theirs", {"moved/": b"", "f": b""})
    os.setxattr(tree_of / "moved", "user.overlay.redirect", b"/elsewhere")
    os.truncate(tree_of / "f", 4096)
    os.setxattr(tree_of / "f", "user.overlay.metacopy", b"")
    lower = borrow(driver, tree_of, add(driver, tar(member("kept"), folder("moved")))[0])
    with driver.union(lower) as union:
        assert sorted(names(union)) == [b"f", b"kept", b"moved"]
        assert [refusal(union.lookup, 1, name) for name in (b"f", b"moved", b"kept")] == ["EIO", "EIO", ""]
    assert refusal(driver.changes, lower, None) == "EIO"


# -- what we must not read -------------------------------------------------------------------------------


CLOSED, LISTED, ENTERED = 0, 0o444, 0o111


@pytest.fixture
def guarded(tmp_path):
    """A tree in which directories and a file may not be read, as when they are somebody else's."""
    files = ("open/f", "closed/f", "listed/f", "entered/f", "sealed/f", "secret", "plain")
    root = made(tmp_path / "theirs", dict.fromkeys(files, b"data"))
    for name in ("open/linked", "closed/linked"):
        os.link(root / "plain", root / name)
    os.setxattr(root / "secret", "user.k", b"v")
    os.setxattr(root / "sealed", "user.overlay.opaque", b"y")
    modes = {"closed": CLOSED, "listed": LISTED, "entered": ENTERED, "sealed": 0o311, "secret": 0}
    for name, mode in modes.items():
        (root / name).chmod(mode)
    yield root
    for directory in root.iterdir():
        directory.chmod(0o700)


def below_and_above(driver, guarded):
    """A layer of ours, theirs on top, and two more of ours."""
    places = ("open", "closed", "listed", "entered", "sealed")
    base, _ = add(driver, tar(*(member(f"{place}/ours") for place in places), member("ours")))
    lower = borrow(driver, guarded, base)
    return lower, add(driver, tar(folder("closed", 0o700), folder("open"), member("open/new")), lower)[0]


ROOTS = [b"closed", b"entered", b"listed", b"open", b"ours", b"plain", b"sealed", b"secret"]
REFUSALS = {
    "": ("", ROOTS), "open": ("", [b"f", b"linked", b"new", b"ours"]), "closed": ("EACCES", []),
    "listed": ("", [b"f"]), "entered": ("EACCES", []), "sealed": ("EACCES", []),
}  # fmt: skip
FOUND = {
    "open/f": "", "open/ours": "", "open/none": None, "closed/f": "EACCES", "closed/ours": "EACCES",
    "closed/none": "EACCES", "listed/f": "EACCES", "listed/ours": "EACCES", "entered/f": "",
    "entered/ours": "", "entered/none": None, "sealed/f": "", "sealed/ours": None, "secret": "",
}  # fmt: skip


def test_what_may_not_be_read_is_refused_and_nothing_else_is(driver, guarded):
    """The opaque mark of `sealed` is to be seen, but not its value."""
    before = state(guarded)
    _, top = below_and_above(driver, guarded)
    with driver.union(top) as union:
        for directory, (error, listed) in REFUSALS.items():
            ino = find(union, directory.encode())
            assert refusal(names, union, ino) == error, directory
            assert listed == (sorted(names(union, ino)) if not error else [])
        for path, error in FOUND.items():
            directory, _, name = path.rpartition("/")
            ino = find(union, directory.encode())
            assert refusal(union.lookup, ino, name.encode()) == (error or ""), path
            if not error:
                assert (union.lookup(ino, name.encode()) is None) == (error is None), path
        secret = find(union, b"secret")
        assert union.listxattr(secret) == [b"user.k"]
        assert refusal(union.open, secret, os.O_RDONLY) == "EACCES"
        assert refusal(union.getxattr, secret, b"user.k") == "EACCES"
        assert data(union, find(union, b"entered/f")) == b"data"
        assert sorted(union.links(b"plain", union.resolve(b"plain"))) == [b"open/linked", b"plain"]
    assert state(guarded) == before


@pytest.mark.parametrize(
    ("mode", "found"), [(0o311, {"f": "", "none": ""}), (0, {"f": "EACCES", "none": "EACCES"})]
)
def test_a_layer_whose_root_is_closed_is_one_all_the_same(driver, guarded, mode, found):
    """The root of an image of which the owner is not root, say."""
    lower = borrow(driver, guarded, add(driver, tar(member("ours")))[0])
    guarded.chmod(mode)
    try:
        with driver.union(add(driver, tar(member("top"), folder("open")), lower)[0]) as union:
            assert refusal(names, union) == "EACCES"
            assert refusal(union.lookup, 1, b"top") == ""
            wanted = {"plain": found["f"], "ours": found["none"], "none": found["none"]}
            assert {name: refusal(union.lookup, 1, name.encode()) for name in wanted} == wanted
    finally:
        guarded.chmod(0o700)


def test_a_layer_of_ours_settles_what_theirs_would_be_asked_for(driver, guarded):
    lower, _ = below_and_above(driver, guarded)
    archive = tar(folder("closed"), member("closed/.wh..wh..opq"), member("closed/new"), member(".wh.sealed"))
    top, _ = add(driver, archive, lower)
    with driver.union(top) as union:
        assert names(union, find(union, b"closed")) == [b"new"]
        assert refusal(union.lookup, find(union, b"closed"), b"f") == ""
        assert b"sealed" not in names(union)


def test_a_diff_says_what_it_could_not_read(driver, guarded):
    """Of what is on top nothing of theirs is needed."""
    lower, top = below_and_above(driver, guarded)
    for call in (driver.changes, driver.diff_size, lambda *pair: list(driver.diff(*pair))):
        with pytest.raises(PermissionError, match=r"closed|listed|entered|sealed|secret"):
            call(lower, None)
    assert naive.letters(driver, top, lower) == [("C", b"closed"), ("C", b"open"), ("A", b"open/new")]
    assert refusal(driver.usage, lower) == "EACCES"
    getter = driver.diff_getter(lower)
    try:
        assert [refusal(getter.get, name) for name in (b"secret", b"closed/f")] == ["EACCES", "EACCES"]
        os.close(getter.get(b"open/f"))
    finally:
        getter.close()


@pytest.mark.parametrize("ownership", [None, *Ownership])
def test_not_even_the_mode_of_a_file_is_touched_to_read_what_is_beside_it(driver, guarded, ownership):
    """As is done in an upper of ours, whose owner the reader is."""
    for path in set(guarded.iterdir()) - {guarded / "secret", guarded / "plain"}:
        path.chmod(0o700)
        shutil.rmtree(path)
    before = state(guarded)
    layer = borrow(driver, guarded, origin=Origin(ownership))
    with pytest.raises(PermissionError, match="secret"):
        list(driver.diff(layer, None))
    assert state(guarded) == before
