"""An object that is open lives on without a name: everything that can be done by descriptor still can."""

import errno
import os

from support_real.posix.case import (
    ALONE,
    KINDS,
    NOT_DIRS,
    OWNER,
    ROOT,
    acting,
    at,
    each,
    equal,
    fails,
    gone,
    hold,
    make,
    marks,
    remove,
)

USERS = {"root": ROOT, "owner": OWNER}
GIVEN = (0, 0) if ALONE else (1, 2)


def _away(path):
    os.unlink(path)
    gone(path)


def _replaced(path):
    make("file", "new", content=b"another")
    os.rename("new", path)


WAYS = {"unlinked": _away, "replaced": _replaced}


def _read(it):
    equal((os.pread(it, 10, 0), os.pread(it, 10, 5), os.lseek(it, 0, os.SEEK_END)), (b"content", b"nt", 7))


def _write(it):
    os.pwrite(it, b"CON", 0)
    os.pwrite(it, b"end", 10)
    equal((os.pread(it, 20, 0), os.fstat(it).st_size), (b"CONtent\0\0\0end", 13))
    os.fsync(it)


def _ftruncate(it):
    os.ftruncate(it, 3)
    equal((os.fstat(it).st_size, os.pread(it, 10, 0)), (3, b"con"))
    os.ftruncate(it, 5)
    equal(os.pread(it, 10, 0), b"con\0\0")


def _fallocate(it):
    os.posix_fallocate(it, 0, 20)
    equal((os.fstat(it).st_size, os.pread(it, 10, 0)), (20, b"content\0\0\0"))


def _fchmod(it):
    for mode in (0o600, 0o000, 0o755):
        os.fchmod(it, mode)
        equal(os.fstat(it).st_mode & 0o7777, mode)


def _fchown(it):
    os.fchown(it, *GIVEN)
    equal((os.fstat(it).st_uid, os.fstat(it).st_gid), GIVEN)


def _futimens(it):
    os.utime(it, ns=(111, 222))
    equal((os.fstat(it).st_atime_ns, os.fstat(it).st_mtime_ns), (111, 222))


def _xattrs(it):
    os.setxattr(it, "user.name", b"value")
    equal((os.getxattr(it, "user.name"), "user.name" in os.listxattr(it)), (b"value", True))
    os.removexattr(it, "user.name")
    equal(os.listxattr(it), [])


def _fstat(it):
    st = os.fstat(it)
    equal((st.st_nlink, st.st_size, st.st_mode & 0o7777), (0, 7, 0o644))


def _reopened(it):
    again = os.open(f"/proc/self/fd/{it}", os.O_RDONLY)
    equal((os.read(again, 10), os.fstat(again).st_ino), (b"content", os.fstat(it).st_ino))


def _changed_by_proc(it):
    os.truncate(f"/proc/self/fd/{it}", 3)
    os.chmod(f"/proc/self/fd/{it}", 0o600)
    equal((os.fstat(it).st_size, os.fstat(it).st_mode & 0o7777), (3, 0o600))


READ_ONLY = {
    "read": _read,
    "fstat": _fstat,
    "fchmod": _fchmod,
    "fchown": _fchown,
    "futimens": _futimens,
    "reopened": _reopened,
    "through proc": _changed_by_proc,
}
READ_WRITE = READ_ONLY | {
    "write": _write,
    "ftruncate": _ftruncate,
    "posix_fallocate": _fallocate,
    "xattrs": _xattrs,
}


@each(READ_WRITE, {"unlinked": (_away, OWNER), "replaced": (_replaced, ROOT)})
def open_to_read_and_write(call, way, user):
    make("file", "it")
    yield
    it = os.open("it", os.O_RDWR)
    way("it")
    with acting(user if call is not _fchown else ROOT):
        call(it)
    os.close(it)
    if way is _away:
        equal(os.listdir(), [])


@each(READ_ONLY, WAYS)
def open_to_read(call, way):
    """From before any change: in the lower layer, that is."""
    make("file", "it")
    yield
    it = os.open("it", os.O_RDONLY)
    way("it")
    call(it)


@each(["append", "truncate", "create"])
def opened_with(flag):
    make("file", "it")
    yield
    flags = {"append": os.O_APPEND, "truncate": os.O_TRUNC, "create": os.O_CREAT | os.O_EXCL}[flag]
    it = os.open("it" if flag != "create" else "new", os.O_RDWR | flags, 0o600)
    os.unlink("it")
    if flag == "create":
        os.unlink("new")
    os.write(it, b"more")
    equal(os.pread(it, 20, 0), b"contentmore" if flag == "append" else b"more")
    equal((os.fstat(it).st_nlink, os.listdir()), (0, []))


@each(WAYS)
def a_second_file_of_the_name(way):
    """Has nothing to do with the first."""
    make("file", "it")
    yield
    first = os.open("it", os.O_RDWR)
    way("it")
    if way is _away:
        make("file", "it", content=b"another")
    second = os.open("it", os.O_RDWR)
    os.write(first, b"1")
    os.ftruncate(second, 3)
    os.fchmod(first, 0o600)
    equal((os.pread(first, 10, 0), os.pread(second, 10, 0)), (b"1ontent", b"ano"))
    equal((os.fstat(first).st_nlink, os.fstat(second).st_nlink), (0, 1))
    equal((os.fstat(first).st_mode & 0o777, at("it").st_mode & 0o777), (0o600, 0o644))
    os.unlink("it")
    equal((os.pread(first, 10, 0), os.pread(second, 10, 0), os.listdir()), (b"1ontent", b"ano", []))


@each(["it", "too"])
def another_name_is_left(deleted):
    make("file", "it")
    os.link("it", "too")
    yield
    left = "too" if deleted == "it" else "it"
    it = os.open(deleted, os.O_RDWR)
    with marks({it: "c", left: "c", ".": "mc"}):
        os.unlink(deleted)
    os.write(it, b"CON")
    equal((os.fstat(it).st_nlink, at(left).st_size), (1, 7))
    with open(left, "rb") as file:
        equal(file.read(), b"CONtent")
    os.unlink(left)
    equal((os.fstat(it).st_nlink, os.pread(it, 10, 0)), (0, b"CONtent"))


@each(KINDS)
def held_by_a_path(kind):
    make(kind, "it", 0o751)
    yield
    it = hold("it")
    before = at(it)
    remove(kind, "it")
    equal((at(it).st_mode, at(it).st_ino), (before.st_mode, before.st_ino))
    make(kind, "it", 0o640)
    equal((at(it).st_mode, at(it).st_ino), (before.st_mode, before.st_ino))


@each()
def a_fifo():
    make("fifo", "it")
    yield
    it = os.open("it", os.O_RDWR)
    os.unlink("it")
    os.write(it, b"through")
    equal(os.read(it, 10), b"through")
    os.fchmod(it, 0o600)
    equal(os.fstat(it).st_mode & 0o777, 0o600)


@each(["fchmod", "fchown", "futimens", "list", "make", "open", "fsync"])
def a_directory(call):
    make("dir", "it")
    make("file", "it/below")
    yield
    it = os.open("it", os.O_RDONLY | os.O_DIRECTORY)
    os.unlink("it/below")
    os.rmdir("it")
    match call:
        case "fchmod":
            _fchmod(it)
        case "fchown":
            _fchown(it)
        case "futimens":
            _futimens(it)
        case "list":
            equal(os.listdir(it), [])
        case "make":
            fails(errno.ENOENT, lambda: os.mkdir("new", dir_fd=it))
            fails(errno.ENOENT, lambda: os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=it))
            fails(errno.ENOENT, lambda: os.symlink("target", "new", dir_fd=it))
        case "open":
            fails(errno.ENOENT, lambda: os.open("below", os.O_RDONLY, dir_fd=it))
            os.open(".", os.O_RDONLY, dir_fd=it)
        case "fsync":
            os.fsync(it)


@each(NOT_DIRS)
def no_new_name(kind):
    """linkat cannot bring back what has no name left."""
    make(kind, "it")
    yield
    it = hold("it")
    os.unlink("it")
    here = hold(".")
    fails(errno.ENOENT, lambda: os.link(f"/proc/self/fd/{it}", "new", dst_dir_fd=here, follow_symlinks=True))


@each()
def many_at_once():
    names = [f"n{number}" for number in range(30)]
    for name in names:
        make("file", name)
    yield
    opened = [os.open(name, os.O_RDWR) for name in names]
    for name in names:
        os.unlink(name)
    for name, it in zip(names, opened, strict=True):
        os.pwrite(it, name.encode(), 7)
    equal([os.pread(it, 20, 0) for it in opened], [b"content" + name.encode() for name in names])
    equal(os.listdir(), [])
