"""How a path is resolved, the same for every call that takes one: each wrong path has its error number."""

import ctypes
import errno
import os
import stat

from support_real.posix.case import (
    KINDS,
    NOT_DIRS,
    OWNER,
    each,
    equal,
    fails,
    gone,
    hold,
    kind_of,
    libc,
    make,
    mode,
    read,
    remove,
    write,
)

# Each as a call on one path; "it" is a file that is there.
LOOKING = {
    "stat": os.stat,
    "lstat": os.lstat,
    "chdir": os.chdir,
    "listdir": os.listdir,
    "readlink": os.readlink,
    "getxattr": lambda path: os.getxattr(path, "user.name"),
    "open to read": lambda path: os.open(path, os.O_RDONLY),
    "open a directory": lambda path: os.open(path, os.O_DIRECTORY),
    "open as a path": lambda path: os.open(path, os.O_PATH | os.O_NOFOLLOW),
}
CHANGING = {
    "chmod": lambda path: os.chmod(path, 0o600),
    "chown": lambda path: os.chown(path, *OWNER[:2]),
    "lchown": lambda path: os.lchown(path, *OWNER[:2]),
    "truncate": lambda path: os.truncate(path, 3),
    "utimensat": lambda path: os.utime(path, (1, 2)),
    "utimensat of a link": lambda path: os.utime(path, (1, 2), follow_symlinks=False),
    "setxattr": lambda path: os.setxattr(path, "user.name", b"value"),
    "open to write": lambda path: os.open(path, os.O_WRONLY),
    "open and truncate": lambda path: os.open(path, os.O_WRONLY | os.O_TRUNC),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "link from": lambda path: os.link(path, "new", follow_symlinks=False),
    "rename from": lambda path: os.rename(path, "new"),
}
MAKING = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod of a file": os.mknod,
    "mknod of a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "symlink": lambda path: os.symlink("target", path),
    "open and create": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT),
    "open exclusively": lambda path: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "link to": lambda path: os.link("it", path),
    "rename to": lambda path: os.rename("it", path),
}
CALLS = LOOKING | CHANGING | MAKING


def _chain(length):
    make("file", "end")
    for number in range(length):
        make("symlink", f"link{number}", content=f"link{number - 1}" if number else "end")


def _links(**targets):
    for name, target in targets.items():
        make("symlink", name, content=target)


# By what is wrong: the paths, and the error number of each.
UNRESOLVABLE = {
    "nothing is there": {
        "": errno.ENOENT,
        "absent/it": errno.ENOENT,
        "empty/absent/it": errno.ENOENT,
    },
    "too long": {
        "n" * 256: errno.ENAMETOOLONG,
        "n" * 256 + "/it": errno.ENAMETOOLONG,
        "empty/" + "n" * 256: errno.ENAMETOOLONG,
        "./" * 2047 + "it": errno.ENAMETOOLONG,
        "./" * 4999 + "it": errno.ENAMETOOLONG,
    },
    "no directory": {
        "it/../it": errno.ENOTDIR,
        "to-file/it": errno.ENOTDIR,
        **{f"{kind}/it": errno.ENOTDIR for kind in NOT_DIRS if kind != "symlink"},
    },
    "links": {
        "dangling/it": errno.ENOENT,
        "loop/it": errno.ELOOP,
        "loop-of/it": errno.ELOOP,
        "link40/it": errno.ELOOP,
    },
}


@each(CALLS, UNRESOLVABLE.keys(), situations=("lower",))
def unresolvable(call, wrong):
    make("file", "it")
    make("dir", "empty")
    if wrong == "no directory":
        _links(**{"to-file": "it"})
        for kind in NOT_DIRS:
            make(kind, kind)
    if wrong == "links":
        _links(**{"dangling": "absent", "loop": "loop", "loop-of": "two", "two": "loop-of"})
        _chain(41)
    yield
    for path, number in UNRESOLVABLE[wrong].items():
        fails(number, call, path)


@each(situations=("lower",))
def absent():
    yield
    for call in (LOOKING | CHANGING).values():
        fails(errno.ENOENT, call, "absent")


@each(CALLS, situations=("lower",))
def in_a_closed_directory(call):
    make("file", "it")
    for name, closed in (("unsearchable", 0o666), ("closed", 0o000)):
        make("dir", name)
        make("file", f"{name}/it")
        os.chmod(name, closed)
    yield
    for name in ("unsearchable", "closed"):
        for path in ("it", "absent", "../it", "../absent"):
            fails(errno.EACCES, call, f"{name}/{path}", by=OWNER)


# What these calls do with a symlink they do to itself; all others follow it.
OF_LINKS = {
    "lstat": 0,
    "readlink": 0,
    "open as a path": 0,
    "lchown": 0,
    "utimensat of a link": 0,
    "unlink": 0,
    "rmdir": errno.ENOTDIR,
    "link from": 0,
    "rename from": 0,
    "rename to": 0,
    **{name: errno.EEXIST for name in MAKING if name not in ("open and create", "rename to")},
}


@each({name: (call, OF_LINKS.get(name, errno.ELOOP)) for name, call in CALLS.items()}, situations=("lower",))
def a_link_to_itself(call, number):
    make("file", "it")
    _links(link="link")
    yield
    if number:
        fails(number, call, "link")
    else:
        call("link")


@each(["it", "./it", "dir/../it", "link", "link0/it", "dir/up/it", ".//.//it"], situations=("lower",))
def resolvable(path):
    make("file", "it")
    make("dir", "dir")
    _links(link="it", link0="link1", link1=".")
    os.symlink("..", "dir/up")
    yield
    equal(read(path), b"content")
    write(path, b"CON")
    equal(read("it"), b"CONtent")


@each()
def forty_links():
    _chain(40)
    yield
    equal(read("link39"), b"content")
    os.chmod("link39", 0o600)
    equal(mode("end"), 0o600)


@each()
def a_path_of_4095():
    make("file", "it")
    yield
    path = "./" * 2046 + "/it"
    equal(len(path), 4095)
    equal(read(path), b"content")
    os.mkdir("d")
    os.rename(path, "./" * 2045 + "//d/i")
    equal(os.listdir("d"), ["i"])


@each(["...", "." * 255, "n" * 255, "-", " ", "a\nb", "wh.", ".w", "\\", "\udcff\udc80", "é" * 127])
def strange_names(name):
    """All that is not "." or ".." and has no slash; 255 bytes are allowed."""
    for kind in KINDS:
        make("dir", kind)
        make(kind, f"{kind}/{name}")
    yield
    for kind in KINDS:
        equal(kind_of(f"{kind}/{name}"), kind)
        equal(os.listdir(kind), [name])
        if kind != "dir":
            os.rename(f"{kind}/{name}", f"{kind}/x")
            gone(f"{kind}/{name}")
            os.rename(f"{kind}/x", f"{kind}/{name}")
            equal(os.listdir(kind), [name])
        remove(kind, f"{kind}/{name}")
        gone(f"{kind}/{name}")


# What "it" is, the call, what comes of it; 0 is success.
SLASHED = {
    **{
        f"{name} of a file": ("file", lambda call=call: call("it/"), errno.ENOTDIR)
        for name, call in (LOOKING | CHANGING).items()
    },
    "unlink of a directory": ("dir", lambda: os.unlink("it/"), errno.EISDIR),
    "unlink of a link": ("link", lambda: os.unlink("it/"), errno.ENOTDIR),
    "rmdir of a directory": ("dir", lambda: os.rmdir("it/"), 0),
    "rmdir of a link": ("link", lambda: os.rmdir("it/"), errno.ENOTDIR),
    "rename of a directory": ("dir", lambda: os.rename("it/", "new/"), 0),
    "rename of a link": ("link", lambda: os.rename("it/", "new"), errno.ENOTDIR),
    "rename of a file to": ("file", lambda: os.rename("it", "new/"), errno.ENOTDIR),
    "mkdir": ("dir", lambda: os.mkdir("new/"), 0),
    "mkdir over a directory": ("dir", lambda: os.mkdir("it/"), errno.EEXIST),
    "mkdir over a file": ("file", lambda: os.mkdir("it/"), errno.EEXIST),
    "mkdir over a link": ("link", lambda: os.mkdir("it/"), errno.EEXIST),
    "mkfifo": ("dir", lambda: os.mkfifo("new/"), errno.ENOENT),
    "mknod": ("dir", lambda: os.mknod("new/"), errno.ENOENT),
    "symlink": ("dir", lambda: os.symlink("target", "new/"), errno.ENOENT),
    "link": ("file", lambda: os.link("it", "new/"), errno.ENOENT),
    "open and create": ("file", lambda: os.open("new/", os.O_CREAT | os.O_WRONLY), errno.EISDIR),
    "stat of a link": ("link", lambda: os.stat("it/"), 0),
    "lstat of a link": ("link", lambda: os.lstat("it/"), 0),
}


@each(SLASHED, situations=("lower",))
def slash_at_the_end(kind, call, number):
    if kind == "link":
        make("dir", "dir")
        make("symlink", "it", content="dir")
    else:
        make(kind, "it")
    yield
    if number:
        fails(number, call)
    else:
        call()


DOTS = {
    "rmdir .": (lambda: os.rmdir("."), errno.EINVAL),
    "rmdir d/.": (lambda: os.rmdir("dir/."), errno.EINVAL),
    "rmdir d/..": (lambda: os.rmdir("dir/.."), errno.ENOTEMPTY),
    "unlink .": (lambda: os.unlink("."), errno.EISDIR),
    "unlink d/..": (lambda: os.unlink("dir/.."), errno.EISDIR),
    "rename .": (lambda: os.rename(".", "new"), errno.EBUSY),
    "rename d/..": (lambda: os.rename("dir/..", "new"), errno.EBUSY),
    "rename to .": (lambda: os.rename("dir", "."), errno.EBUSY),
    "rename to d/..": (lambda: os.rename("it", "dir/.."), errno.EBUSY),
    "open and create .": (lambda: os.open(".", os.O_CREAT | os.O_WRONLY), errno.EISDIR),
    **{
        f"{name} {path}": (lambda call=call, path=path: call(path), errno.EEXIST)
        for name, call in MAKING.items()
        if not name.startswith(("open", "rename"))
        for path in (".", "dir/.", "dir/..")
    },
}


@each(DOTS, situations=("lower",))
def dots_at_the_end(call, number):
    make("file", "it")
    make("dir", "dir")
    yield
    fails(number, call)


# In "closed", which may not be written, are "it" and the directory "full"; the first of two errors is told.
TWO_ERRORS = {
    "EEXIST, EACCES of mkdir": (lambda: os.mkdir("closed/it"), errno.EEXIST),
    "EEXIST, EACCES of open": (lambda: os.open("closed/it", os.O_CREAT | os.O_EXCL), errno.EEXIST),
    "EEXIST, EPERM of mknod": (lambda: os.mknod("it", stat.S_IFCHR, os.makedev(1, 3)), errno.EEXIST),
    "EEXIST, EPERM of link": (lambda: os.link("dir", "it"), errno.EEXIST),
    "ENOENT, EEXIST of link": (lambda: os.link("absent", "it"), errno.ENOENT),
    "ENOENT, EEXIST of symlink": (lambda: os.symlink("", "it"), errno.ENOENT),
    "ENOENT, EISDIR of rename": (lambda: os.rename("absent", "dir"), errno.ENOENT),
    "ENOENT, EACCES of unlink": (lambda: os.unlink("closed/absent"), errno.ENOENT),
    "ENOENT, EACCES of rmdir": (lambda: os.rmdir("closed/absent"), errno.ENOENT),
    "ENOENT, ENAMETOOLONG": (lambda: os.mkdir("absent/" + "n" * 256), errno.ENOENT),
    "ENOTDIR, ENAMETOOLONG": (lambda: os.mkdir("it/" + "n" * 256), errno.ENOTDIR),
    "EACCES, EISDIR of unlink": (lambda: os.unlink("closed/full"), errno.EACCES),
    "EACCES, ENOTDIR of rmdir": (lambda: os.rmdir("closed/it"), errno.EACCES),
    "EACCES, ENOTEMPTY of rmdir": (lambda: os.rmdir("closed/full"), errno.EACCES),
    "EACCES, EISDIR of rename": (lambda: os.rename("it", "closed/full"), errno.EACCES),
    "EACCES, ENOTEMPTY of rename": (lambda: os.rename("dir", "closed/full"), errno.EACCES),
    "EISDIR, EACCES of open": (lambda: os.open("closed", os.O_WRONLY), errno.EISDIR),
    "EISDIR, EACCES of truncate": (lambda: os.truncate("closed", 0), errno.EISDIR),
    "EINVAL, ENOENT of truncate": (lambda: os.truncate("absent", -1), errno.EINVAL),
    "EINVAL, EACCES of rename": (lambda: os.rename("closed", "closed/new"), errno.EINVAL),
}


@each(TWO_ERRORS, situations=("lower",))
def two_errors(call, first):
    make("file", "it")
    make("dir", "dir")
    make("dir", "closed")
    make("file", "closed/it")
    make("dir", "closed/full")
    make("file", "closed/full/it")
    os.chmod("closed", 0o555)
    yield
    fails(first, call, by=OWNER)


BAD = ctypes.c_void_p(1)
BAD_ADDRESSES = {
    "chmod": ("chmod", BAD, 0o600),
    "chown": ("chown", BAD, 0, 0),
    "lchown": ("lchown", BAD, 0, 0),
    "truncate": ("truncate", BAD, 1),
    "mkdir": ("mkdir", BAD, 0o700),
    "mkfifo": ("mkfifo", BAD, 0o600),
    "mknod": ("mknod", BAD, 0o600, 0),
    "open": ("open", BAD, os.O_RDONLY),
    "creat": ("creat", BAD, 0o600),
    "unlink": ("unlink", BAD),
    "rmdir": ("rmdir", BAD),
    "link from": ("link", BAD, b"new"),
    "link to": ("link", b"it", BAD),
    "rename from": ("rename", BAD, b"new"),
    "rename to": ("rename", b"it", BAD),
    "symlink to": ("symlink", b"target", BAD),
    "symlink from": ("symlink", BAD, b"new"),
    "utimensat": ("utimensat", -100, BAD, None, 0),
    "utimensat at": ("utimensat", -100, b"it", BAD, 0),
    "readlink": ("readlink", b"link", BAD, 10),
}


@each(BAD_ADDRESSES, situations=("lower",))
def a_bad_address(*call):
    make("file", "it")
    _links(link="it")
    yield
    fails(errno.EFAULT, libc, *call)


STEP = "d" * 250
DEPTH = 20  # steps: together longer than a path may be


def _descend(make_them=False):
    for _ in range(DEPTH):
        if make_them:
            make("dir", STEP)
        os.chdir(STEP)


DEEP = {
    "read": lambda: equal(read("it"), b"content"),
    "list": lambda: equal(sorted(os.listdir()), ["dir", "it"]),
    "write": lambda: (write("it", b"CON"), equal(read("it"), b"CONtent")),
    "create": lambda: (make("file", "new"), equal(read("new"), b"content"), os.unlink("new"), gone("new")),
    "mkdir": lambda: (os.mkdir("new"), make("file", "new/it"), equal(os.listdir("new"), ["it"])),
    "chmod": lambda: (os.chmod("it", 0o600), equal(mode("it"), 0o600)),
    "chmod of the directory": lambda: (os.chmod(".", 0o700), equal(mode("."), 0o700)),
    "unlink": lambda: (os.unlink("it"), gone("it")),
    "rmdir": lambda: (os.unlink("dir/below"), os.rmdir("dir"), gone("dir")),
    "rename": lambda: (os.rename("it", "new"), gone("it"), equal(read("new"), b"content")),
    "rename of a directory": lambda: (os.rename("dir", "new"), equal(read("new/below"), b"content")),
    "link": lambda: (os.link("it", "new"), write("new", b"CON"), equal(read("it"), b"CONtent")),
    "symlink": lambda: (os.symlink("it", "new"), equal(read("new"), b"content")),
    "truncate": lambda: (os.truncate("it", 3), equal(read("it"), b"con")),
    "name too long": lambda: fails(errno.ENAMETOOLONG, os.mkdir, "n" * 256),
}


@each(DEEP)
def deep_down(change):
    """The paths from here are longer than any call takes."""
    _descend(make_them=True)
    make("file", "it")
    make("dir", "dir")
    make("file", "dir/below")
    yield
    _descend()
    change()


@each()
def renamed_above_what_is_deep_down():
    make("dir", "top")
    os.chdir("top")
    _descend(make_them=True)
    make("file", "it")
    yield
    os.rename("top", "other")
    gone("top")
    os.chdir("other")
    _descend()
    equal(read("it"), b"content")
    write("it", b"CON")
    equal(read("it"), b"CONtent")


def _listed(there, *names):
    equal(sorted(os.listdir(there)), sorted(names))


# On a file descriptor of a directory with "it" in it.
RELATIVE = {
    "stat": lambda there: equal(os.stat("it", dir_fd=there).st_size, 7),
    "open": lambda there: equal(os.read(os.open("it", os.O_RDONLY, dir_fd=there), 10), b"content"),
    "chmod": lambda there: os.chmod("it", 0o600, dir_fd=there),
    "unlink": lambda there: (os.unlink("it", dir_fd=there), _listed(there)),
    "mkdir": lambda there: (os.mkdir("new", dir_fd=there), _listed(there, "it", "new")),
    "mkfifo": lambda there: (os.mkfifo("new", dir_fd=there), _listed(there, "it", "new")),
    "symlink": lambda there: (os.symlink("it", "new", dir_fd=there), _listed(there, "it", "new")),
    "link": lambda there: (os.link("it", "x", src_dir_fd=there, dst_dir_fd=there), _listed(there, "it", "x")),
    "rename": lambda there: (os.rename("it", "x", src_dir_fd=there, dst_dir_fd=there), _listed(there, "x")),
}


@each(RELATIVE, situations=("lower",))
def relative_to_a_directory(call):
    """openat and its relatives."""
    make("dir", "dir")
    make("file", "dir/it")
    yield
    there = hold("dir", os.O_RDONLY)
    os.chdir("/")
    call(there)


@each(RELATIVE, situations=("lower",))
def relative_to_a_directory_with_a_new_name(call):
    make("dir", "dir")
    make("file", "dir/it")
    yield
    there = hold("dir", os.O_RDONLY)
    os.rename("dir", "elsewhere")
    call(there)


@each(situations=("lower",))
def relative_to_a_file():
    make("file", "it")
    yield
    it = hold("it")
    fails(errno.ENOTDIR, lambda: os.open("x", os.O_RDONLY, dir_fd=it))
    fails(errno.ENOTDIR, lambda: os.mkdir("x", dir_fd=it))
