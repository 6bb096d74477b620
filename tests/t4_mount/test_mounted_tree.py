"""A mounted image is the image: every attribute of every object, and every tool that looks at files.

Runs through fusermount3, and again inside ``unshare -Urm`` (see test_user_namespace.py).
"""

import errno
import mmap
import os
import subprocess

import pytest
from support_real import layouts, tars, trees, zoo
from support_real.commands import inode, may_call_mount


@pytest.fixture(scope="module")
def seen(mounted):
    return trees.described(mounted)


@pytest.fixture(scope="module")
def expected(seen):
    """The zoo as this user sees it.  Nobody can say the time of a directory that no layer has."""
    tree = trees.without_trusted(zoo.EXPECTED)
    for path in zoo.IMPLIED & seen.keys():
        tree[path]["mtime"] = seen[path]["mtime"]
    if may_call_mount():
        for attributes in tree.values():
            attributes |= {key: _squashed(attributes[key]) for key in ("uid", "gid")}
    return tree


def _squashed(number):
    """In a user namespace of one id, every other id is shown as nobody."""
    return 0 if number == 0 else 65534


def test_every_attribute_of_every_object_is_the_images(seen, expected):
    assert trees.differences(seen, expected) == []


def test_capabilities_can_be_read_by_getfattr(mounted):
    command = ["getfattr", "-n", "security.capability", "-e", "hex", "--only-values", mounted / "caps"]
    assert subprocess.check_output(command) == zoo.CAPABILITY
    assert os.getxattr(mounted / "caps", "security.capability") == zoo.CAPABILITY


def test_getcap_names_the_capability(mounted):
    assert b"cap_net_raw=ep" in subprocess.check_output(["getcap", mounted / "caps"])


def test_every_listed_xattr_can_be_read(mounted):
    """The kernel gives ``trusted.*`` to nobody but root, so nobody else must be told of it."""
    assert os.listxattr(mounted / "xattr-dir") == ["user.dir"]
    assert sorted(os.listxattr(mounted / "xattrs")) == ["user.comment", "user.empty"]


def test_an_absent_xattr_is_no_data(mounted):
    with pytest.raises(OSError) as caught:
        os.getxattr(mounted / "caps", "user.absent")
    assert caught.value.errno == errno.ENODATA


def test_ls_shows_dot_and_dot_dot_first(mounted):
    lines = subprocess.check_output(["ls", "-laU", mounted / "bin"], text=True).splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == [".", ".."]
    assert len(lines) == 3 + len(os.listdir(mounted / "bin"))


def test_dot_dot_is_the_directory_above(mounted):
    assert inode(mounted / "home/user/..") == inode(mounted / "home")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("no-such-name", errno.ENOENT),
        ("etc/gone", errno.ENOENT),
        ("bin/.wh.ls", errno.ENOENT),
        ("opaque/.wh..wh..opq", errno.ENOENT),
        ("x" * 255, errno.ENOENT),
        ("x" * 256, errno.ENAMETOOLONG),
        ("empty/child", errno.ENOTDIR),
        ("loop", errno.ELOOP),
    ],
)
def test_names_that_are_not_there(mounted, name, number):
    for _ in range(2):  # the second time the kernel answers out of its cache
        with pytest.raises(OSError) as caught:
            os.stat(mounted / name)
        assert caught.value.errno == number


@pytest.mark.parametrize(
    "change",
    [
        lambda top: open(top / "etc/kept", "w"),  # noqa: SIM115
        lambda top: os.truncate(top / "etc/kept", 0),
        lambda top: os.mkdir(top / "new"),
        lambda top: os.mkfifo(top / "new"),
        lambda top: os.symlink("x", top / "new"),
        lambda top: os.link(top / "etc/kept", top / "new"),
        lambda top: os.rename(top / "etc/kept", top / "new"),
        lambda top: os.unlink(top / "etc/kept"),
        lambda top: os.rmdir(top / "turns"),
        lambda top: os.chmod(top / "etc/kept", 0o600),
        lambda top: os.chown(top / "etc/kept", os.getuid(), os.getgid()),
        lambda top: os.utime(top / "etc/kept"),
        lambda top: os.setxattr(top / "etc/kept", "user.x", b"x"),
        lambda top: os.removexattr(top / "xattrs", "user.comment"),
    ],
)
def test_every_change_is_refused_as_read_only(mounted, change):
    with pytest.raises(OSError) as caught:
        change(mounted)
    assert caught.value.errno == errno.EROFS


def test_a_program_of_the_image_runs(menagerie, mounted, tmp_path):
    script = tars.file(b"run", b"#!/bin/sh\necho it ran\n", mode=0o755)
    layout = layouts.oci(tmp_path / "oci", [tars.tar([script])], "script")
    menagerie.ok("load", f"oci:{layout}")
    assert subprocess.check_output([menagerie.mount("script") / "run"]) == b"it ran\n"
    menagerie.ok("unmount", "script")


def test_cp_copies_what_its_user_may_make(mounted, tmp_path):
    subprocess.run(["cp", "-a", mounted / "turns", mounted / "names", tmp_path], check=True)
    for name in ("turns", "names"):
        copy, original = (trees.described(top / name) for top in (tmp_path, mounted))
        for tree in (copy, original):
            for attributes in tree.values():
                attributes |= {"uid": 0, "gid": 0}
        assert trees.differences(copy, original) == []


def test_tar_sees_the_same_members(mounted, seen):
    archive = subprocess.run(["tar", "-c", "-C", mounted, "."], capture_output=True, check=True).stdout
    listing = subprocess.run(
        ["tar", "-t", "--quoting-style=literal", "--null"], input=archive, capture_output=True
    )
    names = {os.fsdecode(line).removeprefix("./").rstrip("/") for line in listing.stdout.split(b"\n")}
    odd = {path for path in seen if "\n" in path}
    assert {path for path in seen if path not in odd} <= names


def test_find_by_inode_number_gives_all_names_of_a_file(mounted):
    number = str(inode(mounted / "bin/sh"))
    found = subprocess.check_output(["find", ".", "-inum", number], cwd=mounted, text=True).split()
    assert sorted(found) == ["./bin/ash", "./bin/busybox", "./bin/sh", "./home/user/sh"]


def test_find_reaches_everything(mounted, seen):
    """On some filesystems find trusts the link counts of directories, and misses what they do not count."""
    found = subprocess.check_output(["find", ".", "-print0"], cwd=mounted).split(b"\0")[:-1]
    assert {os.fsdecode(path)[2:] for path in found} == set(seen)
    assert len(found) == len(seen)


def test_du_counts_hard_links_once(mounted):
    assert subprocess.check_output(["du", "-s", "--apparent-size", "-B1", mounted / "nlink"]).split()[0]
    command = ["du", "-c", "--apparent-size", "-b", mounted / "bin/sh", mounted / "bin/busybox"]
    assert subprocess.check_output(command, text=True).splitlines()[-1].split()[0] == "3500"


def test_inode_numbers_are_unique_to_a_file(seen, mounted):
    numbers = {}
    for path, attributes in seen.items():
        numbers.setdefault(inode(mounted / path), set()).add(tuple(attributes.get("links", [path])))
    assert all(len(files) == 1 for files in numbers.values())


def test_a_mapped_file_has_its_content(mounted):
    with open(mounted / "blocks", "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        assert data[:] == bytes(range(256)) * 4096
        assert data[777_000:777_010] == (bytes(range(256)) * 4096)[777_000:777_010]


def test_parts_of_a_file_are_read_where_asked(mounted):
    content = bytes(range(256)) * 4096
    fd = os.open(mounted / "blocks", os.O_RDONLY)
    try:
        for offset, size in ((0, 1), (4095, 2), (1_048_570, 100), (1_048_576, 10), (9_999_999, 1)):
            assert os.pread(fd, size, offset) == content[offset : offset + size]
    finally:
        os.close(fd)


def test_statfs_is_that_of_the_store(mounted, menagerie):
    here, there = os.statvfs(mounted), os.statvfs(menagerie.root)
    assert (here.f_blocks, here.f_bsize, here.f_namemax) == (there.f_blocks, there.f_bsize, there.f_namemax)
    assert here.f_flag & os.ST_RDONLY
    assert here.f_flag & os.ST_NOSUID
    assert here.f_flag & os.ST_NODEV


def test_inode_numbers_are_the_same_on_the_next_mount(loaded):
    numbers = []
    for _ in range(2):
        top = loaded.mount("zoo")
        numbers.append({path: inode(top / path) for path in zoo.EXPECTED})
        loaded.ok("unmount", "zoo")
    assert numbers[0] == numbers[1]


def test_the_shell_commands_of_the_readme_work_in_one_line(loaded):
    """``ls "$(fusestore mount zoo)"``: usable at the very moment when the command returns."""
    result = loaded.ok(
        "version", before=["sh", "-c", 'ls -A "$("$1" -m fusestore mount zoo)" >&2 && exec "$@"', "sh"]
    )
    assert "fusestore" in result


def test_ls_without_a_mount_agrees_with_ls_of_the_mount(menagerie, mounted):
    if may_call_mount():
        owners = []  # shown as nobody through the mount
    else:
        owners = ["Uid", "Gid"]
    for where in ("", "bin", "dev", "home/user", "times", "opaque", "names"):
        listed = {row["Name"]: row for row in menagerie.listed("ls", "-a", f"zoo:/{where}")}
        for name in os.listdir(mounted / where):
            if not name.isprintable():
                continue
            st, row = os.lstat(mounted / where / name), listed.pop(name)
            assert row["Permissions"] == f"{st.st_mode & 0o7777:04o}"
            assert row["ModifiedNs"] == st.st_mtime_ns
            assert row["Links"] == st.st_nlink or is_dir(row)
            assert row["Size"] == st.st_size
            for key in owners:
                assert row[key] == getattr(st, f"st_{key.lower()}")
        assert all("\\" in name for name in listed)


def is_dir(row):
    return row["Mode"].startswith("d")
