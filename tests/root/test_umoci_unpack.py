"""The comparison: an unprivileged user sees in a mount what umoci unpacks as root, in every attribute.

The image is built here, by root, from files of this machine, with everything that packages and build steps
do.  umoci 0.4.7 is the oracle for all of it but three things, which zoo.py says by hand: the time of a
directory that no layer has an entry for (now), the time of a directory in which it had to make such a one,
here the root (now, where GNU tar keeps the entry's), and xattrs without a value (lost, as in every Go
program).
"""

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from support_real import tars, trees, zoo

SECOND = 10**9
NAME = "built"
FAR_TIMES = [-1_100_000_000 * SECOND + 1, -1, 0, 2**31 * SECOND + 5, 4_102_444_800 * SECOND + 999_999_999]


def umoci(*arguments):
    subprocess.run(["umoci", *map(str, arguments)], check=True, capture_output=True)


class Builder:
    """An OCI layout and the bundle that its next layer is made from."""

    def __init__(self, directory: Path) -> None:
        self.layout, self.bundle = directory / "layout", directory / "bundle"
        self.image = f"{self.layout}:{NAME}"
        self.root = self.bundle / "rootfs"
        umoci("init", "--layout", self.layout)
        umoci("new", "--image", self.image)
        umoci("unpack", "--image", self.image, self.bundle)

    def repack(self):
        umoci("repack", "--refresh-bundle", "--image", self.image, self.bundle)

    def add(self, data, directory):
        """A layer made by hand."""
        (directory / "layer.tar").write_bytes(data)
        umoci("raw", "add-layer", "--image", self.image, directory / "layer.tar")


def base(root):
    """Files of this machine as packages have them, and what only root can make."""
    for name in ("bin", "etc", "usr/share", "usr/sbin", "var/lib", "dev", "run", "tmp", "home", "opt"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "ls", "cat", "cp", "mount"):
        os.link(root / "bin/busybox", root / "bin" / name)
    for name in (
        "etc/pam.d",
        "etc/alternatives",
        "etc/passwd",
        "etc/shadow",
        "etc/dpkg",
        "usr/share/debconf",
    ):
        copy(f"/{name}", root / name)
    for name in ("encodings", "email", "unittest"):
        copy(os.path.join(sysconfig.get_path("stdlib"), name), root / "usr/lib" / name)
    for name in ("passwd", "fusermount3"):
        copy(f"/usr/bin/{name}", root / "usr/sbin" / name)
    os.chmod(root / "tmp", 0o1777)
    os.chmod(root / "usr/sbin/passwd", 0o6711)
    subprocess.run(["setcap", "cap_net_raw,cap_net_bind_service=+ep", root / "bin/cp"], check=True)
    subprocess.run(["setcap", "cap_dac_override=+eip", root / "usr/sbin/fusermount3"], check=True)
    special(root)
    owners(root)
    names(root)


def copy(source, target):
    target.parent.mkdir(exist_ok=True)
    subprocess.run(["cp", "-a", source, target], check=True)


def special(root):
    for name, kind, number, mode in (
        ("null", 0o20000, (1, 3), 0o666),
        ("sda1", 0o60000, (8, 1), 0o660),
        ("high", 0o20000, (511, 1_048_575), 0o600),
        ("fifo", 0o10000, (0, 0), 0o622),
    ):
        os.mknod(root / "dev" / name, kind, os.makedev(*number))
        os.chmod(root / "dev" / name, mode)
        os.utime(root / "dev" / name, ns=(0, zoo.NOON + 3))
    os.link(root / "dev/null", root / "dev/null-too")
    os.chown(root / "dev/sda1", 0, 6)


def owners(root):
    home = root / "home/user"
    home.mkdir(mode=0o700)
    for number, stamp in enumerate(FAR_TIMES):
        path = home / f"file {number}"
        path.write_bytes(b"x" * 5000 * number)
        os.chown(path, 4711 + number, 2**31 + 5)
        os.chmod(path, 0o7777 >> number)
        os.utime(path, ns=(0, stamp))
    os.setxattr(home / "file 1", "user.note", b"a\0b\xff")
    os.setxattr(home / "file 1", "trusted.secret", b"1")
    os.setxattr(home, "user.dir", b"yes")
    os.symlink("file 1", home / "link")
    os.chown(home / "link", 4294967294, 1, follow_symlinks=False)
    os.utime(home / "link", ns=(0, zoo.NOON + 1), follow_symlinks=False)
    os.chown(home, 4711, 4712)
    (root / "opt/closed").mkdir()
    (root / "opt/closed/file").write_text("in a directory that nobody may enter")
    os.chmod(root / "opt/closed/file", 0)
    os.chmod(root / "opt/closed", 0)


def names(root):
    top = os.fsencode(root / "opt/names")
    os.mkdir(top)
    for name in (
        b"\xff\xfe",
        "ünï ☃".encode(),
        b"two\nlines",
        b" ",
        b"-rf",
        b"n" * 255,
        b"back\\slash",
        b"%s",
    ):
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
    deep = b"/".join([top] + [b"d" * 120] * 7)
    os.makedirs(deep)
    with open(deep + b"/f", "wb") as file:
        file.write(b"deep")


def changes(root):
    """What a Dockerfile's RUN lines do."""
    shutil.rmtree(root / "usr/lib/email")
    (root / "etc/shadow").unlink()
    (root / "bin/ls").unlink()  # one of several links
    shutil.rmtree(root / "etc/pam.d")
    (root / "etc/pam.d").write_text("a file where a directory was")
    (root / "usr/lib/encodings/utf_8.py").unlink()
    (root / "usr/lib/encodings/utf_8.py").mkdir()
    (root / "usr/lib/encodings/utf_8.py/in").write_text("a directory where a file was")
    (root / "dev/fifo").unlink()
    os.symlink("null", root / "dev/fifo")
    shutil.rmtree(root / "opt/closed")
    (root / "opt/closed").mkdir(mode=0o750)
    (root / "opt/closed/new").write_text("made anew")
    (root / "home/user/file 3").rename(root / "home/user/renamed")
    os.link(root / "home/user/file 2", root / "home/user/file 2 too")
    os.chmod(root / "home/user", 0o755)
    with open(root / "etc/passwd", "a") as file:
        file.write("more\n")
    os.removexattr(root / "home/user/file 1", "user.note")


def again(root):
    """And the layer after that takes some of it back."""
    (root / "etc/shadow").write_text("back")
    os.chmod(root / "etc/shadow", 0o640)
    os.chown(root / "etc/shadow", 0, 42)
    shutil.rmtree(root / "usr/lib/encodings/utf_8.py")
    os.link(root / "bin/busybox", root / "bin/ls")
    (root / "etc/pam.d").unlink()
    (root / "etc/pam.d").mkdir()
    subprocess.run(["setcap", "-r", root / "bin/cp"], check=True)
    for path in sorted((root / "usr/lib/encodings").glob("cp*"))[::2]:
        path.unlink()


@pytest.fixture(scope="module")
def built(ground):
    """The layout of the image, readable by the user, and the tree that umoci unpacks."""
    directory = ground / "umoci"
    directory.mkdir()
    builder = Builder(directory)
    for step in (base, changes, again):
        step(builder.root)
        builder.repack()
    inserted(builder, directory)
    for layer in zoo.LAYERS:
        builder.add(tars.tar(layer), directory)
    builder.add(sparse(directory), directory)
    umoci("unpack", "--image", builder.image, directory / "unpacked")
    subprocess.run(["chmod", "-R", "a+rX", builder.layout], check=True)
    yield builder.layout, umocis_tree(builder)
    shutil.rmtree(directory)


def inserted(builder, directory):
    """``umoci insert``: one layer each, among them an opaque directory and a whiteout."""
    source = directory / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("inserted")
    umoci("insert", "--image", builder.image, "--opaque", source, "/etc/alternatives")
    umoci("insert", "--image", builder.image, source / "sub/file", "/usr/lib/encodings/ascii.py")
    umoci("insert", "--image", builder.image, "--whiteout", "/usr/lib/unittest")


def sparse(directory):
    """A sparse file as GNU tar writes it today."""
    with open(directory / "holes", "wb") as file:
        for number in range(100):
            file.seek(number * 70_000)
            file.write(b"%d" % number)
    os.utime(directory / "holes", ns=(0, zoo.NOON))
    command = ["tar", "-c", "--sparse", "--format=posix", "--sparse-version=1.0", "-C", directory, "holes"]
    return subprocess.check_output(command)


def umocis_tree(builder):
    tree = trees.described(builder.bundle.parent / "unpacked/rootfs")
    return corrected(tree, zoo.EXPECTED)


def corrected(tree, by_hand):
    """What umoci does not keep, said by hand."""
    tree[""]["mtime"] = by_hand[""]["mtime"]
    tree["xattrs"]["xattrs"] = by_hand["xattrs"]["xattrs"]
    return tree


def without_times_of(tree, paths):
    for path in paths & tree.keys():
        del tree[path]["mtime"]
    return tree


@pytest.fixture(scope="module")
def ours(shared, as_user, built):
    """The tree that the user sees in the mount."""
    shared.ok("load", "--quiet", f"oci:{built[0]}:{NAME}", before=as_user)
    top = shared.mount(NAME, before=as_user)
    return json.loads(subprocess.check_output([*as_user, "/usr/bin/python3", trees.__file__, top]))


def test_the_mount_is_what_umoci_unpacks(built, ours):
    _, theirs = built
    assert len(theirs) > 300
    implied = zoo.IMPLIED - {"home"}  # which the base layer of this image has
    trees_ = without_times_of(ours, implied), without_times_of(trees.without_trusted(theirs), implied)
    assert trees.differences(*trees_) == []


def test_the_image_has_what_it_is_meant_to_have(built):
    """That nothing of what is compared got lost on the way into the image."""
    _, tree = built
    kinds = {attributes["type"] for attributes in tree.values()}
    assert kinds == {"file", "directory", "symlink", "char", "block", "fifo"}
    assert {a["mode"][0] for a in tree.values()} >= set("012467")
    assert any("security.capability" in a["xattrs"] for a in tree.values())
    assert tree["usr/sbin/passwd"]["mode"] == "6711"
    assert tree["home/user/file 0"]["gid"] == 2**31 + 5
    stamps = {a["mtime"] // SECOND for a in tree.values()}  # umoci writes whole seconds
    assert stamps >= {stamp // SECOND for stamp in FAR_TIMES[2:]} | {-1_100_000_000}
    assert sorted(tree["bin/busybox"]["links"])[:2] == ["bin/ash", "bin/busybox"]
    assert "usr/lib/email" not in tree
    assert "usr/lib/unittest" not in tree
    assert "usr/lib/encodings/utf_8.py" not in tree
    assert tree["usr/lib/encodings/ascii.py"]["size"] == len("inserted")
    assert max(map(len, tree)) >= 900
    assert [name for name in tree if name.startswith("etc/alternatives/")] == [
        "etc/alternatives/sub",
        "etc/alternatives/sub/file",
    ]


def test_ls_without_a_mount_is_what_umoci_unpacks(shared, as_user, built, ours):
    _, theirs = built
    for where in ("", "bin", "dev", "home/user", "etc/alternatives"):
        rows = shared.listed("ls", "-a", f"{NAME}:/{where}", before=as_user)
        for row in rows:
            there = theirs[os.path.join(where, row["Name"])]
            assert (row["Permissions"], row["Uid"], row["Gid"]) == (there["mode"], there["uid"], there["gid"])
            assert row["Links"] == there.get("nlink", row["Links"])
        assert len(rows) == len({path for path in theirs if path and os.path.dirname(path) == where})
