"""link: one object with several names."""

import errno
import os

from support_real.posix.case import (
    KINDS,
    MEMBER,
    NOT_DIRS,
    NOT_LINKS,
    OTHER,
    OWNER,
    ROOT,
    acting,
    at,
    attributes,
    each,
    equal,
    fails,
    gone,
    hold,
    kind_of,
    make,
    marks,
    mode,
    owner,
    read,
    write,
)

USERS = {"root": ROOT, "owner": OWNER}


def _link(old, new):
    os.link(old, new, follow_symlinks=False)


@each(NOT_DIRS, {"here": ("new", ROOT), "elsewhere": ("dir/new", OWNER)})
def another_name(kind, new, user):
    make("dir", "dir")
    make(kind, "it")
    yield
    before = attributes("it", "nlink", "ctime")
    here = new == "new"
    with marks({"it": "c", ".": "mc" if here else "", "dir": "" if here else "mc"}), acting(user):
        _link("it", new)
    for name in ("it", new):
        equal(attributes(name, "nlink", "ctime"), before)
        equal(at(name).st_nlink, 2)
    equal(os.listdir("dir"), [] if here else ["new"])


@each(NOT_DIRS)
def one_inode(kind):
    """Of all names, and it is the one that the first had before."""
    make(kind, "it")
    yield
    before = at("it").st_ino
    _link("it", "new")
    equal((at("it").st_ino, at("new").st_ino), (before, before))


@each(NOT_DIRS)
def names_come_and_go(kind):
    make(kind, "it")
    make("dir", "dir")
    yield
    it = hold("it")
    for number in range(5):
        _link("it" if number < 3 else f"dir/{number - 1}", f"dir/{number}")
        equal((at(it).st_nlink, at(f"dir/{number}").st_nlink), (number + 2, number + 2))
    os.unlink("it")
    gone("it")
    for number in range(5):
        equal((at(it).st_nlink, kind_of(f"dir/{number}")), (5 - number, kind))
        os.unlink(f"dir/{number}")
    equal(at(it).st_nlink, 0)
    equal(os.listdir("dir"), [])


@each({"first": "it", "second": "too", "third": "dir/third"}, USERS)
def what_one_does_to_one_name_is_done_to_all(name, user):
    """The names are there from the start, also in the lower layer."""
    make("dir", "dir")
    make("file", "it")
    for other in ("too", "dir/third"):
        os.link("it", other)
    yield
    names = ("it", "too", "dir/third")
    equal({(at(other).st_nlink, at(other).st_ino) for other in names}, {(3, at("it").st_ino)})
    with marks(dict.fromkeys(names, "mc")), acting(user):
        write(name, b"CON")
        os.chmod(name, 0o600)
    equal({(read(other), mode(other)) for other in names}, {(b"CONtent", 0o600)})
    os.unlink(name)
    left = [other for other in names if other != name]
    equal({(read(other), at(other).st_nlink) for other in left}, {(b"CONtent", 2)})
    write(left[0], b"con")
    equal(read(left[1]), b"content")
    os.rename(left[0], "new")
    equal((at("new").st_nlink, at("new").st_ino), (2, at(left[1]).st_ino))
    os.unlink("new")
    equal(at(left[1]).st_nlink, 1)


@each([kind for kind in NOT_DIRS if kind not in ("file", "symlink")])
def all_names_of_what_is_no_file(kind):
    make(kind, "it")
    _link("it", "too")
    yield
    equal(at("too").st_nlink, 2)
    os.chmod("it", 0o600)
    os.utime("too", (1, 2))
    equal((mode("too"), at("it").st_mtime), (0o600, 2))
    os.unlink("it")
    equal((mode("too"), at("too").st_nlink), (0o600, 1))


@each(NOT_LINKS)
def symlinks_are_not_followed(kind):
    """link makes another name of the symlink; with AT_SYMLINK_FOLLOW, of what it points to."""
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    _link("link", "new")
    equal((kind_of("new"), os.readlink("new"), at("link").st_nlink), ("symlink", "it", 2))
    here = hold(".")
    if kind == "dir":
        fails(errno.EPERM, lambda: os.link("link", "followed", src_dir_fd=here, follow_symlinks=True))
    else:
        os.link("link", "followed", src_dir_fd=here, follow_symlinks=True)
        equal((kind_of("followed"), at("it").st_nlink, at("link").st_nlink), (kind, 2, 2))


@each(USERS)
def no_directory(user):
    make("dir", "it")
    yield
    fails(errno.EPERM, _link, "it", "new", by=user)
    fails(errno.EPERM, _link, "it", "it/new", by=user)
    fails(errno.EPERM, _link, ".", "new", by=user)


@each(KINDS)
def over_what_is_there(kind):
    make(kind, "it")
    for there in KINDS:
        make(there, there)
    yield
    for there in (*KINDS, "it", "."):
        fails(errno.EEXIST, _link, "it", there)


@each(KINDS)
def over_what_was_deleted(was):
    make("file", "it")
    make(was, "there")
    yield
    (os.rmdir if was == "dir" else os.unlink)("there")
    os.link("it", "there")
    equal((kind_of("there"), at("there").st_nlink, read("there")), ("file", 2, b"content"))
    os.unlink("it")
    write("there", b"CON")
    equal(read("there"), b"CONtent")


@each({"unwritable": 0o555, "unsearchable": 0o666}, USERS)
def in_a_closed_directory(closed, user):
    make("file", "it")
    make("dir", "dir", closed)
    yield
    if user == ROOT:
        os.link("it", "dir/new")
        equal(at("dir/new").st_nlink, 2)
    else:
        fails(errno.EACCES, os.link, "it", "dir/new", by=user)


@each({"other": OTHER, "member": MEMBER}, {"": 0o644, "readable and writable": 0o666}, root=True)
def of_what_belongs_to_somebody_else(user, before):
    """What Linux's protected_hardlinks allows is a link to what one can read and write."""
    make("file", "it", before)
    make("dir", "dir", 0o777)
    yield
    with open("/proc/sys/fs/protected_hardlinks") as protected:
        allowed = before == 0o666 or protected.read() == "0\n"
    if allowed:
        with acting(user):
            os.link("it", "dir/new")
        equal((owner("dir/new"), at("it").st_nlink), (OWNER[:2], 2))
    else:
        fails(errno.EPERM, os.link, "it", "dir/new", by=user)


@each()
def to_and_from_another_filesystem():
    make("file", "it")
    yield
    fails(errno.EXDEV, os.link, "/proc/version", "new")
    fails(errno.EXDEV, os.link, "it", "/dev/new")
    fails(errno.EXDEV, os.rename, "it", "/dev/new")
    fails(errno.EXDEV, os.rename, "/proc/version", "new")


@each()
def many_names():
    make("file", "it")
    yield
    for number in range(100):
        os.link("it", f"n{number}")
    equal({at(name).st_nlink for name in os.listdir()}, {101})
    write("n50", b"CON")
    equal({read(name) for name in os.listdir()}, {b"CONtent"})
    for number in range(100):
        os.unlink(f"n{number}")
    equal((at("it").st_nlink, os.listdir()), (1, ["it"]))
