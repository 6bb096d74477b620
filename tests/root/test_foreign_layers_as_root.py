"""An unprivileged user borrows layers of which the files belong to many ids, as podman with subordinate ids
and root's own stores leave them.

Theory: root unpacks the zoo, then gives each inode to the id that it would have in a user namespace of the
user's.  The user's mount must show the image (`zoo.EXPECTED`) wherever the kernel lets the user look, with
the owners and xattrs that it has, and say EACCES exactly where the files themselves say so.
"""

import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support import naive
from support.foreign import borrow, made, state
from support.layers import add
from support.tars import hard_link, member, tar
from support_real import layouts, tars, trees, zoo
from support_real.borrower import comparable
from support_real.commands import Place

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import Origin
from fusestore.driver.ownership import Ownership

FIRST, COUNT = 100_000, 65_536  # subordinate ids
CAPABILITY = "security.capability"
REFUSED = "EACCES"


def inodes(top):
    """One path of each inode at and below `top`."""
    found = {os.lstat(top).st_ino: str(top)}
    for place, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = os.path.join(place, name)
            found.setdefault(os.lstat(path).st_ino, path)
    return list(found.values())


def give_away(path, user):
    """Make an inode what it would be if a namespace of `user` had unpacked it."""
    st = os.lstat(path)
    uid, gid = (
        own if number == 0 else FIRST + number - 1 if number <= COUNT else number
        for number, own in ((st.st_uid, user.pw_uid), (st.st_gid, user.pw_gid))
    )
    held = os.getxattr(path, CAPABILITY) if CAPABILITY in os.listxattr(path, follow_symlinks=False) else None
    os.lchown(path, uid, gid)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(path, stat.S_IMODE(st.st_mode))  # chown has taken setuid away
    if held is not None:  # of revision 3, for the namespace of one root
        (magic,) = struct.unpack_from("<I", held)
        os.setxattr(path, CAPABILITY, struct.pack("<I16sI", magic + (1 << 24), held[4:], user.pw_uid))


@pytest.fixture(scope="module")
def lent(ground, user, tmp_path_factory):
    """The zoo's layers, bottom first, in a place that everybody may enter."""
    ground.chmod(0o755)
    place = Place(ground / "theirs", ground / "run-of-root")
    layout = layouts.oci(
        tmp_path_factory.mktemp("zoo") / "oci", [tars.tar(layer) for layer in zoo.LAYERS], "zoo"
    )
    place.ok("load", f"oci:{layout}:zoo")
    (image,) = place.listed("inspect", "zoo")
    data = image["GraphDriver"]["Data"]
    layers = [data["UpperDir"], *data["LowerDir"].split(":")][::-1]
    for layer in layers:
        for path in inodes(layer):
            give_away(path, user)
        os.chown(layer, user.pw_uid, user.pw_gid)  # else nobody could list the root
        for above in list(Path(layer).parents)[: len(Path(layer).parts) - len(ground.parts) - 1]:
            above.chmod(0o755)
    yield layers
    place.destroy()


def run_borrower(ground, as_user, specs, *append):
    """What `support_real.borrower` says, run by the user."""
    order = {"specs": specs, "append": append}
    directory = ground / f"borrower-{len(os.listdir(ground))}"
    place = Place(directory / "store", directory / "run")
    command = [sys.executable, "-bb", "-m", "support_real.borrower", place.root, place.runroot]
    environment = f"PYTHONPATH={os.pathsep.join(path for path in sys.path if path)}"
    try:
        said = subprocess.run(
            [*as_user, environment, *map(str, command)],
            input=json.dumps(order).encode(), stdout=subprocess.PIPE, check=True, timeout=60,
        )  # fmt: skip
        return json.loads(said.stdout)
    finally:
        place.unmount_all()
        place.destroy()


CLOSED_FILES = ("bin/closed", "back")
CLOSED_DIRECTORIES = ("locked", "home/user")


def visible():
    """What the user is to see of the zoo."""
    tree = comparable(trees.without_trusted(zoo.EXPECTED))
    for name in CLOSED_DIRECTORIES:
        tree = {path: seen for path, seen in tree.items() if not path.startswith(name + "/")}
        tree[name]["listing"] = REFUSED
    for name in CLOSED_FILES:
        tree[name]["content"] = REFUSED
    tree[""] |= {"uid": 0, "gid": 0}
    tree["home/large-ids"] |= {"uid": 65534, "gid": 65534}
    return tree


def test_the_users_mount_shows_the_image_wherever_the_user_may_look(lent, ground, as_user, user):
    before = [state(layer) for layer in lent]
    origin = Origin(
        None, None, ((user.pw_uid, 0, 1), (FIRST, 1, COUNT)), ((user.pw_gid, 0, 1), (FIRST, 1, COUNT))
    )
    names = ("etc/kept", "bin/wall", "caps", "home/large-ids", "bin/all", "bin/closed")
    said = run_borrower(
        ground, as_user, [{"path": layer, "origin": origin.to_json()} for layer in lent], *names
    )
    seen, expected = said["tree"], visible()
    for path in zoo.IMPLIED & seen.keys():
        expected[path]["mtime"] = seen[path]["mtime"]
    assert trees.differences(seen, expected) == []
    assert said["refused"] == ["bin/closed"]
    assert said["kept"] == {
        "etc/kept": ["0:0:0644:file", "kept and ours"],
        "bin/wall": ["0:5:0755:file", "wall and ours"],
        "caps": ["0:0:0755:file", "ping and ours"],
        "home/large-ids": ["65534:65534:0644:file", " and ours"],
        "bin/all": ["1:1:1777:file", "all bits and ours"],
    }
    assert [state(layer) for layer in lent] == before


def test_root_copies_theirs_with_real_owners_and_reads_all_marks(tmp_path):
    """`trusted.` ones too, which nobody else may see."""
    theirs = made(tmp_path / "theirs", {"d/f": b"data", "opaque/new": b"", "g": b"", "gone": b""})
    for path, number in {"d": FIRST, "d/f": FIRST + 6, "g": 5}.items():
        os.chown(theirs / path, number, number)
    os.setxattr(theirs / "opaque", "trusted.overlay.opaque", b"y")
    (theirs / "gone").unlink()
    os.mknod(theirs / "gone", stat.S_IFCHR)
    driver = FuseDriver(tmp_path / "root", tmp_path / "run")
    base, _ = add(driver, tar(member("opaque/old"), member("gone"), member("kept", uid=3)))
    origin = Origin(Ownership.REAL, None, ((FIRST, 0, COUNT),), ((FIRST, 0, COUNT),))
    top, _ = add(driver, tar(hard_link("d/linked", "d/f")), borrow(driver, theirs, base, origin))
    shown = {path.decode(): (seen.uid, seen.gid) for path, seen in naive.shown(driver, top).items() if path}
    nobody = 65534, 65534
    assert shown == {
        "d": (0, 0), "d/f": (6, 6), "d/linked": (6, 6), "g": nobody, "kept": (3, 0), "opaque": nobody,
        "opaque/new": nobody,
    }  # fmt: skip
    st = (driver.path / top / "diff/d/linked").stat()
    assert (st.st_uid, st.st_gid, st.st_size) == (6, 6, 4)
