"""mkdir, mkfifo, mknod, symlink, open with O_CREAT: what a new object is like, where there can be none."""

import errno
import os
import socket
import stat
import time

from support_real.posix.case import (
    ALONE,
    CLOCK_OF_FILES,
    DEVICES,
    KINDS,
    MEMBER,
    OTHER,
    OWNER,
    ROOT,
    TYPES,
    acting,
    at,
    each,
    equal,
    fails,
    gone,
    kind_of,
    libc,
    make,
    marks,
    mode,
    octal,
    owner,
    read,
    remove,
)


def _create(path, mode=0o644):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _node(kind):
    return lambda path, mode=0o644: os.mknod(path, TYPES[kind] | mode, DEVICES.get(kind, 0))


# The kind of object, and the call on a path and a mode.
WITH_MODE = {
    "mkdir": ("dir", os.mkdir),
    "mkfifo": ("fifo", os.mkfifo),
    "open": ("file", _create),
    **{f"mknod {kind}": (kind, _node(kind)) for kind in KINDS if kind not in ("dir", "symlink")},
}
ALL = WITH_MODE | {"symlink": ("symlink", lambda path: os.symlink("target", path))}


@each(ALL, situations=("upper", "lower"))
def something_new(kind, create):
    yield
    start = time.clock_gettime_ns(CLOCK_OF_FILES)
    with marks({".": "mc"}):
        create("new")
    st = at("new")
    equal(kind_of("new"), kind)
    equal(st.st_rdev, DEVICES.get(kind, 0))
    equal(st.st_nlink, 2 if kind == "dir" else 1)
    equal(st.st_size, {"file": 0, "fifo": 0, "socket": 0, "symlink": 6}.get(kind, st.st_size))
    equal(os.listdir(), ["new"])
    for when in (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns):
        assert start <= when <= time.time_ns(), f"{when} is not now"


@each(WITH_MODE, situations=("upper", "lower"))
def mode_and_umask(kind, create):
    yield
    for mask in (0o000, 0o022, 0o027, 0o077, 0o137, 0o777):
        os.umask(mask)
        for wanted in (0o000, 0o600, 0o644, 0o755, 0o777, 0o1777, 0o2755, 0o4711, 0o7777):
            new = f"{mask:o}-{wanted:o}"
            create(new, wanted)
            equal(mode(new), wanted & ~mask & (0o1777 if kind == "dir" else 0o7777))


@each(octal(0o000, 0o022, 0o077, 0o777), situations=("lower",))
def symlinks_have_no_umask(mask):
    yield
    os.umask(mask)
    os.symlink("target", "new")
    equal(mode("new"), 0o777)


@each(octal(0o022, 0o077, 0o777), situations=("lower",))
def sockets_have_a_umask(mask):
    yield
    os.umask(mask)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("new")
        equal((kind_of("new"), mode("new")), ("socket", 0o777 & ~mask))
        one.listen()
        os.umask(0)
        os.chmod("new", 0o666)
        with socket.socket(socket.AF_UNIX) as other:
            other.connect("new")


@each()
def an_umask_of_each_process():
    """What one process sets is nothing to another."""
    yield
    os.umask(0o077)
    if (child := os.fork()) == 0:
        os.umask(0)
        os.mkdir("child", 0o777)
        os._exit(0)
    os.waitpid(child, 0)
    os.mkdir("parent", 0o777)
    equal((mode("child"), mode("parent")), (0o777, 0o700))


PRIVILEGED = ("mknod block", "mknod char")


@each(ALL, {"": 0o777, "setgid": 0o2777, "sticky": 0o1777}, root=True, situations=("upper", "lower"))
def owner_and_group(kind, create, above):
    """A directory with the setgid bit gives its group to what is new, and the bit to directories."""
    make("dir", "dir", above, OWNER)
    yield
    for user in (ROOT, OWNER, OTHER, MEMBER):
        new = f"dir/new{user.uid}"
        if kind in DEVICES and user != ROOT:
            fails(errno.EPERM, create, new, by=user)
            continue
        with acting(user):
            create(new)
        equal(owner(new), (user.uid, OWNER.gid if above == 0o2777 else user.gid))
        if kind == "dir":
            equal(mode(new), 0o2755 if above == 0o2777 else 0o755)


@each(
    {"owner": (OWNER, True), "member": (MEMBER, True), "other": (OTHER, False), "root": (ROOT, True)},
    ["open", "mknod file"],
    root=True,
    situations=("upper", "lower"),
)
def setgid_of_a_group_one_is_not_in(user, belongs, how):
    """Nobody makes a program that runs with a group they are not in; what no group executes is no program."""
    make("dir", "dir", 0o2777, OWNER)
    yield
    for wanted in (0o2755, 0o2644, 0o6711):
        with acting(user):
            WITH_MODE[how][1](f"dir/{wanted:o}", wanted)
        stays = belongs or not wanted & stat.S_IXGRP
        equal(mode(f"dir/{wanted:o}"), wanted if stays else wanted & ~stat.S_ISGID)


@each(KINDS, situations=("upper", "lower"))
def something_is_there(there):
    make(there, "it")
    make("symlink", "link", content="it")
    yield
    for _, create in ALL.values():
        fails(errno.EEXIST, create, "it")
        fails(errno.EEXIST, create, "link")


@each({"not written": 0o555, "not searched": 0o666, "neither": 0o444}, situations=("upper", "lower"))
def a_directory_that_may_not_be(closed):
    make("dir", "dir", closed)
    yield
    for _, create in ALL.values():
        fails(errno.EACCES, create, "dir/new", by=OWNER)


@each(
    {"group": (0o575, MEMBER, OTHER), "others": (0o557, OTHER, MEMBER)},
    root=True,
    situations=("upper", "lower"),
)
def a_directory_that_others_may_write(open_to, user, stranger):
    make("dir", "dir", open_to)
    yield
    for name, (_, create) in ALL.items():
        if name in PRIVILEGED:
            continue
        with acting(user):
            create(f"dir/{name}")
        equal(owner(f"dir/{name}"), user[:2])
        fails(errno.EACCES, create, "dir/new", by=stranger)
        fails(errno.EACCES, create, "dir/new", by=OWNER)


@each(KINDS, ALL, situations=("lower", "copied"))
def in_place_of_what_was_deleted(was, kind, create):
    """Nothing of what had the name before shines through."""
    make(was, "it", 0o751)
    if was == "dir":
        make("file", "it/below")
    yield
    if was == "dir":
        os.unlink("it/below")
    remove(was, "it")
    gone("it")
    create("it")
    equal((kind_of("it"), owner("it"), at("it").st_nlink), (kind, (0, 0), 2 if kind == "dir" else 1))
    if kind == "dir":
        equal((mode("it"), os.listdir("it")), (0o755, []))
        make("file", "it/below", content=b"new")
        equal(read("it/below"), b"new")
        os.unlink("it/below")
    if kind == "file":
        equal(read("it"), b"")
    remove(kind, "it")
    gone("it")


@each(KINDS)
def deleted_and_made_again_and_again(kind):
    make(kind, "it")
    yield
    for _ in range(3):
        remove(kind, "it")
        gone("it")
        make(kind, "it", content=b"more")
        equal(os.listdir(), ["it"])
    if kind == "file":
        equal(read("it"), b"more")


@each(
    ["block", "char"],
    ["0:1", "1:0", "255:255", "256:256", f"4095:{2**20 - 1}"],
    root=True,
    situations=("upper", "lower"),
)
def device_numbers(kind, numbers):
    device = os.makedev(*map(int, numbers.split(":")))
    os.mknod("old", TYPES[kind] | 0o600, device)
    yield
    os.mknod("new", TYPES[kind] | 0o600, device)
    equal((at("old").st_rdev, at("new").st_rdev), (device, device))


@each(root=True)
def no_device_of_the_overlays_own():
    """A character device 0:0 says in an upper that something was deleted, so nobody else makes one."""
    yield
    fails(errno.EPERM, lambda: os.mknod("new", TYPES["char"] | 0o600, os.makedev(0, 0)))


@each(["block", "char"], situations=("lower",))
def devices_are_for_root(kind):
    yield
    fails(errno.EPERM, lambda: os.mknod("new", TYPES[kind] | 0o600, os.makedev(1, 3)), by=OWNER)
    if ALONE:
        fails(errno.EPERM, lambda: os.mknod("new", TYPES[kind] | 0o600, os.makedev(1, 3)))


@each(
    {
        "dir": (stat.S_IFDIR, errno.EPERM),
        "symlink": (stat.S_IFLNK, errno.EINVAL),
        "all": (0o170000, errno.EINVAL),
    },
    situations=("upper", "lower"),
)
def mknod_makes_no(kind, number):
    yield
    fails(number, os.mknod, "new", kind | 0o600)


@each()
def mknod_without_a_type_makes_a_file():
    yield
    libc("mknod", b"new", 0o640, 0)
    equal((kind_of("new"), mode("new")), ("file", 0o640))


@each(
    {str(size): b"t" * size for size in (1, 59, 60, 61, 255, 256, 1000, 4094, 4095)}
    | {"bytes": b"\xff\n\t /..//x\x01"},
    situations=("upper", "lower"),
)
def targets_of_symlinks(target):
    make("symlink", "old", content=target)
    yield
    os.symlink(target, b"new")
    for name in (b"old", b"new"):
        equal(os.readlink(name), target)
        equal(os.lstat(name).st_size, len(target))


@each(
    {"empty": (b"", errno.ENOENT), "4096": (b"t" * 4096, errno.ENAMETOOLONG)}, situations=("upper", "lower")
)
def no_target_of_a_symlink(target, number):
    yield
    fails(number, os.symlink, target, b"new")


@each(["file", "fifo", "socket", "dir"], situations=("upper", "lower"))
def many_in_one_directory(kind):
    for number in range(40):
        make(kind, f"old{number}")
    yield
    for number in range(20):
        remove(kind, f"old{number}")
        make(kind, f"new{number}")
    names = [f"old{number}" for number in range(20, 40)] + [f"new{number}" for number in range(20)]
    equal(sorted(os.listdir()), sorted(names))
    equal({kind_of(name) for name in names}, {kind})


@each(situations=("upper",))
def links_of_a_directory():
    """One for its name, one for its ".", and one for the ".." of each directory in it."""
    yield
    equal(at(".").st_nlink, 2)
    for number in range(3):
        make("dir", f"dir{number}")
        make("file", f"file{number}")
        equal(at(".").st_nlink, 3 + number)
    os.rmdir("dir0")
    equal(at(".").st_nlink, 4)
    os.rename("dir1", "dir2/below")
    equal((at(".").st_nlink, at("dir2").st_nlink), (3, 3))
    os.rename("dir2", "other")
    equal(at(".").st_nlink, 3)


@each({name: row for name, row in ALL.items() if name not in PRIVILEGED}, situations=("upper", "lower"))
def in_a_directory_that_was_deleted(_, create):
    make("dir", "dir")
    make("file", "dir/it")
    yield
    os.chdir("dir")
    os.unlink("it")
    os.rmdir("../dir")
    fails(errno.ENOENT, create, "new")
    equal(os.listdir(), [])
