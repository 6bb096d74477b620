"""open: who may, its flags, and what reading and writing then do."""

import errno
import os
import resource
import shutil
import subprocess

from support_real.posix.case import (
    ALONE,
    MEMBER,
    NOT_DIRS,
    OTHER,
    OWNER,
    ROOT,
    acting,
    at,
    each,
    equal,
    fails,
    hold,
    kind_of,
    make,
    marks,
    mode,
    octal,
    owner,
    read,
    refused,
)

# A user of each class, and how far the bits for it are shifted.
CLASSES = {"owner": (OWNER, 6)}
if not ALONE:
    CLASSES |= {
        "group": (OTHER._replace(gid=OWNER.gid), 3),
        "supplementary group": (MEMBER, 3),
        "others": (OTHER, 0),
    }
BITS = {"none": 0, "x": 1, "w": 2, "wx": 3, "r": 4, "rx": 5, "rw": 6, "rwx": 7}
USERS = {"root": ROOT, "owner": OWNER}


def _only(bits, shift):
    """The mode that gives these bits to one class, and to the other classes all but these."""
    return sum((bits if place == shift else 7 - bits) << place for place in (0, 3, 6))


def _may(allowed, call, *arguments):
    """The call, of the user who is acting, succeeds or ends with EACCES."""
    if allowed:
        call(*arguments)
    else:
        refused(errno.EACCES, call, *arguments)


@each(CLASSES, BITS, situations=("lower",))
def bits_of_a_file(user, shift, bits):
    """The bits of the first class that fits count, and no others."""
    make("file", "it", _only(bits, shift))
    yield
    with acting(user):
        _may(bits & 4, hold, "it", os.O_RDONLY)
        _may(bits & 2, hold, "it", os.O_WRONLY)
        _may(bits & 6 == 6, hold, "it", os.O_RDWR)
        _may(bits & 2, hold, "it", os.O_WRONLY | os.O_APPEND)
        _may(bits & 2, os.truncate, "it", 3)
        _may(bits & 6 == 6, hold, "it", os.O_RDONLY | os.O_TRUNC)
        for wanted in (4, 2, 1, 6, 7):
            equal(os.access("it", wanted, effective_ids=True), bits & wanted == wanted)


@each(CLASSES, BITS, situations=("lower",))
def bits_of_a_fifo(user, shift, bits):
    make("fifo", "it", _only(bits, shift))
    yield
    with acting(user):
        _may(bits & 4, hold, "it", os.O_RDONLY | os.O_NONBLOCK)
        _may(bits & 6 == 6, hold, "it", os.O_RDWR)


@each(CLASSES, BITS, situations=("lower",))
def bits_of_a_directory(user, shift, bits):
    """Reading lists, writing and searching makes and deletes, searching finds."""
    make("dir", "dir", _only(bits, shift))
    for name in ("dir/it", "dir/other"):
        make("file", name, 0o666)
    yield
    here = hold(".")
    with acting(user):
        _may(bits & 4, os.listdir, "dir")
        _may(bits & 4, hold, "dir", os.O_DIRECTORY)
        _may(bits & 1, os.stat, "dir/it")
        _may(bits & 1, hold, "dir/it", os.O_RDWR)
        _may(bits & 1, os.chdir, "dir")
        os.chdir(here)
        _may(bits & 3 == 3, os.mkdir, "dir/new")
        _may(bits & 3 == 3, os.unlink, "dir/it")
        _may(bits & 3 == 3, os.rename, "dir/other", "dir/renamed")
        _may(bits & 3 == 3, os.symlink, "target", "dir/link")
        for wanted in (4, 2, 1, 7):
            equal(os.access("dir", wanted, effective_ids=True), bits & wanted == wanted)


@each(octal(0o000, 0o111, 0o444, 0o600))
def root_may_all_but_execute(before):
    make("file", "it", before)
    make("dir", "dir", before)
    yield
    hold("it", os.O_RDWR)
    equal(os.access("it", os.R_OK | os.W_OK, effective_ids=True), True)
    equal(os.access("it", os.X_OK, effective_ids=True), bool(before & 0o111))
    make("file", "dir/it")
    equal(os.listdir("dir"), ["it"])
    equal(os.access("dir", os.X_OK, effective_ids=True), True)


@each(octal(0o000, 0o200, 0o400), USERS)
def a_new_file_is_open_whatever_its_mode(wanted, user):
    yield
    with acting(user):
        it = os.open("new", os.O_CREAT | os.O_EXCL | os.O_RDWR, wanted)
        equal(os.write(it, b"content"), 7)
        equal(os.pread(it, 10, 0), b"content")
        os.fchmod(it, 0o600)
        os.ftruncate(it, 3)
    equal((mode("new"), at("new").st_size, owner("new")), (0o600, 3, user[:2]))


@each(octal(0o000, 0o444), ["write", "ftruncate", "read", "futimens", "append"])
def what_is_open_stays_open(closed, what):
    """Permissions are looked at when a file is opened, and not later."""
    make("file", "it", 0o644)
    yield
    with acting(OWNER):
        it = hold("it", os.O_RDWR | (os.O_APPEND if what == "append" else 0))
        os.chmod("it", closed)
        match what:
            case "write":
                equal(os.pwrite(it, b"CON", 0), 3)
            case "ftruncate":
                os.ftruncate(it, 3)
            case "futimens":
                os.utime(it)
            case "append":
                os.write(it, b"!")
        wanted = {"write": b"CONtent", "ftruncate": b"con", "append": b"content!"}.get(what, b"content")
        equal(os.pread(it, 10, 0), wanted)
    equal(read("it"), wanted)


@each(USERS)
def creating_what_is_there_only_opens(user):
    make("file", "it", 0o640)
    yield
    with marks({"it": "", ".": ""}), acting(user):
        it = os.open("it", os.O_CREAT | os.O_RDONLY, 0o777)
        equal(os.read(it, 10), b"content")
    equal((mode("it"), owner("it")), (0o640, OWNER[:2]))


@each([kind for kind in NOT_DIRS if kind != "symlink"], situations=("lower",))
def exclusively(kind):
    make(kind, "it")
    make("symlink", "link", content="it")
    make("symlink", "dangling", content="nothing")
    yield
    for name in ("it", "link", "dangling"):
        fails(errno.EEXIST, os.open, name, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        fails(errno.EEXIST, os.open, name, os.O_CREAT | os.O_EXCL | os.O_RDONLY, by=OWNER)


@each(["new", "dir/new", "../.", "absent/new"])
def creating_through_a_dangling_link(target):
    make("dir", "dir")
    make("symlink", "link", content=target)
    yield
    if target == "absent/new":
        fails(errno.ENOENT, os.open, "link", os.O_CREAT | os.O_WRONLY)
    elif target == "../.":
        fails(errno.EISDIR, os.open, "link", os.O_CREAT | os.O_WRONLY)
    else:
        os.write(os.open("link", os.O_CREAT | os.O_WRONLY), b"content")
        equal((read(target), kind_of("link")), (b"content", "symlink"))


@each(
    {"write": os.O_WRONLY, "both": os.O_RDWR, "create": os.O_CREAT, "truncate": os.O_TRUNC | os.O_RDWR},
    USERS,
    situations=("lower",),
)
def a_directory_is_not_written(flags, user):
    make("dir", "it")
    make("symlink", "link", content="it")
    yield
    for name in ("it", "link", "."):
        fails(errno.EISDIR, os.open, name, flags, by=user)
    fails(errno.EISDIR, os.read, hold("it", os.O_RDONLY), 1)


@each(NOT_DIRS, situations=("lower",))
def only_a_directory(kind):
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    number = errno.ENOENT if kind == "symlink" else errno.ENOTDIR
    for name in ("it", "link"):
        fails(number, os.open, name, os.O_DIRECTORY | os.O_NONBLOCK)
        fails(errno.ENOTDIR, os.open, name, os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW)


@each(
    ["file", "dir", "absent"], {"read": os.O_RDONLY, "write": os.O_WRONLY, "create": os.O_CREAT | os.O_WRONLY}
)
def not_through_a_link(target, flags):
    make("file", "file")
    make("dir", "dir")
    make("symlink", "link", content=target)
    make("symlink", "here", content=".")
    yield
    fails(errno.ELOOP, os.open, "link", flags | os.O_NOFOLLOW)
    hold("here/file", flags | os.O_NOFOLLOW)
    equal(os.readlink("", dir_fd=hold("link")), target)


@each(
    octal(0o644, 0o600),
    {"root": ROOT, "owner": OWNER},
    {"write": os.O_WRONLY, "both": os.O_RDWR, "read": 0, "create": os.O_RDWR | os.O_CREAT},
)
def truncating(before, user, flags):
    make("file", "it", before)
    yield
    with marks({"it": "mc", ".": ""}), acting(user):
        it = os.open("it", flags | os.O_TRUNC)
        equal(os.fstat(it).st_size, 0)
    equal((read("it"), mode("it")), (b"", before))


@each(USERS)
def truncating_what_is_empty(user):
    make("file", "it", content=b"")
    yield
    with marks({"it": "mc", ".": ""}), acting(user):
        os.open("it", os.O_WRONLY | os.O_TRUNC)


@each({"small": 7, "large": 300_000})
def truncating_while_others_have_it_open(size):
    """They see the new length and what is written then."""
    make("file", "it", content=b"x" * size)
    yield
    reader, writer = hold("it", os.O_RDONLY), hold("it", os.O_RDWR)
    equal(os.pread(reader, 3, 0), b"xxx")
    new = os.open("it", os.O_WRONLY | os.O_TRUNC)
    equal((os.pread(reader, 3, 0), os.fstat(writer).st_size), (b"", 0))
    os.write(new, b"new")
    equal((os.pread(reader, 10, 0), os.pread(writer, 10, 0)), (b"new", b"new"))
    os.pwrite(writer, b"N", 0)
    equal(os.pread(reader, 10, 0), b"New")


@each(USERS)
def appending(user):
    """Each write goes to where the end is then, wherever one has sought to."""
    make("file", "it", 0o666)
    yield
    with acting(user):
        one, two = (hold("it", os.O_RDWR | os.O_APPEND) for _ in range(2))
        third = hold("it", os.O_WRONLY)
        os.write(one, b"1")
        os.write(two, b"2")
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"3")
        equal(os.lseek(one, 0, os.SEEK_CUR), 10)
        os.write(third, b"CON")
        os.write(two, b"4")
        os.truncate("it", 5)
        os.write(one, b"5")
    equal(read("it"), b"CONte5")


@each()
def access_modes_of_descriptors():
    make("file", "it")
    yield
    fails(errno.EBADF, os.read, hold("it", os.O_WRONLY), 1)
    fails(errno.EBADF, os.write, hold("it", os.O_RDONLY), b"x")
    fails(errno.EBADF, os.read, hold("it"), 1)
    fails(errno.EBADF, os.fchown, hold("it"), 0, 0)
    fails(errno.EINVAL, os.pread, hold("it", os.O_RDONLY), 1, -1)
    fails(errno.EINVAL, os.pwrite, hold("it", os.O_WRONLY), b"x", -1)


@each(["close", "fsync", "fdatasync"])
def writing(then):
    """Updates the file and not its directory; what lies between its old end and the new content is zeros."""
    make("file", "it")
    yield
    with marks({"it": "mc", ".": ""}):
        it = hold("it", os.O_WRONLY)
        os.pwrite(it, b"end", 10)
        getattr(os, then)(it)
    equal(read("it"), b"content\0\0\0end")


@each(["start", "end"])
def reading(where):
    """At the end there is nothing, and reading changes neither mtime nor ctime."""
    make("file", "it")
    yield
    with marks({"it": "", ".": ""}):
        it = hold("it", os.O_RDONLY)
        equal(os.pread(it, 100, 0 if where == "start" else 7), b"content" if where == "start" else b"")
        equal(os.pread(it, 100, 5), b"nt")
        equal(os.pread(it, 100, 1 << 40), b"")


@each()
def writing_nothing():
    make("file", "it")
    yield
    with marks({"it": "", ".": ""}):
        it = hold("it", os.O_WRONLY)
        equal(os.write(it, b""), 0)
        equal(os.pwrite(it, b"", 100), 0)
    equal(at("it").st_size, 7)


@each(USERS)
def a_descriptor_from_before_sees_what_is_written_later(user):
    """Also when the writing copies the file up."""
    make("file", "it", 0o666)
    yield
    reader = hold("it", os.O_RDONLY)
    equal(os.pread(reader, 10, 0), b"content")
    with acting(user):
        os.pwrite(hold("it", os.O_WRONLY), b"CON", 0)
    equal((os.pread(reader, 10, 0), os.fstat(reader).st_size), (b"CONtent", 7))
    os.chmod("it", 0o600)
    equal(os.fstat(reader).st_mode & 0o777, 0o600)


@each(USERS)
def a_fifo_carries_data(user):
    make("fifo", "it")
    yield
    fails(errno.ENXIO, os.open, "it", os.O_WRONLY | os.O_NONBLOCK)
    with acting(user):
        reader = hold("it", os.O_RDONLY | os.O_NONBLOCK)
        writer = hold("it", os.O_WRONLY | os.O_NONBLOCK)
        os.write(writer, b"through")
        equal(os.read(reader, 10), b"through")
    equal(at("it").st_size, 0)


@each({"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}, situations=("lower",))
def a_socket_is_not_opened(flags):
    make("socket", "it")
    yield
    fails(errno.ENXIO, os.open, "it", flags)
    equal(kind_of(hold("it")), "socket")


@each(["open", "truncate", "open and truncate"], USERS)
def a_program_that_runs_is_not_written(call, user):
    shutil.copy("/bin/cat", "it")
    os.chown("it", *OWNER[:2])
    yield
    with subprocess.Popen(["./it"], stdin=subprocess.PIPE) as running, running.stdin:
        match call:
            case "open":
                fails(errno.ETXTBSY, os.open, "it", os.O_WRONLY, by=user)
            case "truncate":
                fails(errno.ETXTBSY, os.truncate, "it", 0, by=user)
            case _:
                fails(errno.ETXTBSY, os.open, "it", os.O_RDONLY | os.O_TRUNC, by=user)
        os.rename("it", "new")
    os.open("new", os.O_WRONLY)


@each(USERS)
def a_program_that_is_written_does_not_run(user):
    shutil.copy("/bin/true", "it")
    os.chown("it", *OWNER[:2])
    yield
    with acting(user):
        writer = os.open("it", os.O_WRONLY)
    fails(errno.ETXTBSY, lambda: subprocess.run(["./it"], check=True), by=user)
    os.close(writer)
    subprocess.run(["./it"], check=True)


@each(octal(0o000, 0o644, 0o755), USERS)
def a_program_needs_its_bit(before, user):
    shutil.copy("/bin/true", "it")
    os.chmod("it", before)
    os.chown("it", *OWNER[:2])
    yield
    if before & 0o111:
        with acting(user):
            subprocess.run(["./it"], check=True)
    else:
        fails(errno.EACCES, lambda: subprocess.run(["./it"], check=True), by=user)


@each({"other": OTHER, "member": MEMBER}, ["file", "dir"], root=True)
def no_atime_is_for_the_owner(user, kind):
    make(kind, "it", 0o777)
    yield
    fails(errno.EPERM, os.open, "it", os.O_RDONLY | os.O_NOATIME, by=user)
    for allowed in (OWNER, ROOT):
        with acting(allowed):
            os.open("it", os.O_RDONLY | os.O_NOATIME)


# On a file that is open: that it grows to `size` and ten more.
GROWING = {
    "pwrite": lambda it, size: os.pwrite(it, b"x" * 10, size),
    "truncate": lambda it, size: os.truncate("it", size + 10),
    "ftruncate": lambda it, size: os.ftruncate(it, size + 10),
}


@each(GROWING, USERS)
def larger_than_any_file(call, user):
    make("file", "it")
    yield
    fails(errno.EFBIG, call, hold("it", os.O_RDWR), 1 << 60, by=user)


@each(GROWING, USERS)
def larger_than_the_process_may(call, user):
    make("file", "it")
    yield
    it = hold("it", os.O_RDWR)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        fails(errno.EFBIG, call, it, 100, by=user)
        call(it, 90)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    equal(at("it").st_size, 100)


CHANGES = {
    "write": lambda: os.write(hold("it", os.O_WRONLY), b"x"),
    "pwrite behind the end": lambda: os.pwrite(hold("it", os.O_RDWR), b"x", 100),
    "append": lambda: os.write(hold("it", os.O_WRONLY | os.O_APPEND), b"x"),
    "truncate": lambda: os.truncate("it", 3),
    "longer": lambda: os.truncate("it", 30),
    "ftruncate": lambda: os.ftruncate(hold("it", os.O_WRONLY), 3),
    "open and truncate": lambda: os.open("it", os.O_WRONLY | os.O_TRUNC),
    "posix_fallocate": lambda: os.posix_fallocate(hold("it", os.O_RDWR), 0, 100),
}


@each(CHANGES, {"root": ROOT, "owner": OWNER} | ({} if ALONE else {"other": OTHER}))
def setuid_and_setgid_go(call, user):
    """When somebody changes the content who is not root; and a namespace's root is not root enough."""
    make("file", "it", 0o6777)
    yield
    for before in (0o6777, 0o6767, 0o4666):
        os.chmod("it", before)
        with acting(user):
            call()
        if user == ROOT and not ALONE:
            equal(mode("it"), before)
        else:
            in_group = user != OTHER and not before & 0o010
            equal(mode("it"), before & ~(0o4000 if in_group else 0o6000))


@each(CHANGES, {"root": ROOT, "owner": OWNER}, root=True)
def capabilities_go(call, user):
    """Whoever changes the content."""
    make("file", "it", 0o777)
    os.setxattr("it", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    yield
    with acting(user):
        call()
    fails(errno.ENODATA, os.getxattr, "it", "security.capability")


@each(octal(0o4777, 0o6777))
def looking_takes_nothing_away(before):
    make("file", "it", before)
    yield
    with acting(OWNER):
        it = hold("it", os.O_RDWR)
        os.read(it, 3)
        os.write(it, b"")
        os.fsync(it)
        os.utime(it)
        os.link("it", "new")
        os.rename("new", "newer")
    equal(mode("it"), before)
