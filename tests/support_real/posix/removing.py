"""unlink, rmdir: the name goes, the object stays while it is open; whose names one may delete."""

import errno
import os
import subprocess

from support_real.posix.case import (
    KINDS,
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
    gone,
    hold,
    kind_of,
    make,
    marks,
    remove,
)

USERS = {"root": ROOT, "owner": OWNER}


@each(KINDS, USERS)
def removes(kind, user):
    make(kind, "it")
    make("file", "other")
    yield
    with marks({".": "mc", "other": ""}), acting(user):
        remove(kind, "it")
    gone("it")
    equal(os.listdir(), ["other"])
    fails(errno.ENOENT, remove, kind, "it")


@each(KINDS, ["removed", "replaced"])
def no_name_is_left(kind, how):
    """Who has it open sees that there are no links, and when the last one went."""
    make(kind, "it")
    make(kind, "other")
    yield
    it = hold("it")
    with marks({it: "c"}):
        if how == "removed":
            remove(kind, "it")
        else:
            os.rename("other", "it")
    equal(at(it).st_nlink, 0)


@each(NOT_DIRS)
def one_of_two_names(kind):
    make(kind, "it")
    os.link("it", "too", follow_symlinks=False)
    yield
    with marks({"too": "c", ".": "mc"}):
        os.unlink("it")
    gone("it")
    equal((kind_of("too"), at("too").st_nlink), (kind, 1))


@each(USERS)
def unlink_of_a_directory(user):
    make("dir", "it")
    make("dir", "full")
    make("file", "full/it")
    yield
    fails(errno.EISDIR, os.unlink, "it", by=user)
    fails(errno.EISDIR, os.unlink, "full", by=user)


@each(NOT_DIRS, USERS, situations=("lower",))
def rmdir_of_what_is_no_directory(kind, user):
    make(kind, "it")
    yield
    fails(errno.ENOTDIR, os.rmdir, "it", by=user)


@each(["file", "dir"])
def symlinks_are_not_followed(kind):
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    fails(errno.ENOTDIR, os.rmdir, "link")
    with marks({"it": "", ".": "mc"}):
        os.unlink("link")
    equal(os.listdir(), ["it"])


@each(KINDS, ["from the start", "later", "both"])
def a_directory_with_something_in_it(kind, when):
    make("dir", "dir")
    if when != "later":
        make(kind, "dir/it")
    yield
    names = ["it"] if when == "from the start" else ["new"] if when == "later" else ["it", "new"]
    if when != "from the start":
        make(kind, "dir/new")
    for name in names:
        fails(errno.ENOTEMPTY, os.rmdir, "dir")
        remove(kind, f"dir/{name}")
    equal(os.listdir("dir"), [])
    with marks({".": "mc"}):
        os.rmdir("dir")
    gone("dir")


@each(USERS)
def a_whole_tree(user):
    for path in ("dir", "dir/dir", "dir/dir/dir"):
        make("dir", path)
        for kind in NOT_DIRS:
            make(kind, f"{path}/{kind}")
    yield
    with acting(user):
        for directory, names, files in os.walk("dir", topdown=False):
            for name in files:
                os.unlink(os.path.join(directory, name))
            for name in names:
                path = os.path.join(directory, name)
                (os.unlink if os.path.islink(path) else os.rmdir)(path)
        os.rmdir("dir")
    gone("dir")
    os.mkdir("dir")
    equal(os.listdir("dir"), [])


@each({"unwritable": 0o555, "unsearchable": 0o666, "both": 0o444, "nothing": 0o000})
def in_a_closed_directory(closed):
    make("dir", "dir")
    for kind in KINDS:
        make(kind, f"dir/{kind}", 0o777)
    os.chmod("dir", closed)
    yield
    for kind in KINDS:
        fails(errno.EACCES, remove, kind, f"dir/{kind}", by=OWNER)
    for kind in KINDS:
        remove(kind, f"dir/{kind}")
    equal(os.listdir("dir"), [])


@each(KINDS)
def what_one_may_not_even_read(kind):
    """The object's own mode does not matter, only its directory's."""
    make(kind, "it", 0o000)
    yield
    with acting(OWNER):
        remove(kind, "it")
    gone("it")


# Whose the directory is, whose the object, who acts, whether the sticky bit allows it.
STICKY = {
    "root's, owner's, by root": (ROOT, OWNER, ROOT, True),
    "root's, owner's, by owner": (ROOT, OWNER, OWNER, True),
    "root's, owner's, by other": (ROOT, OWNER, OTHER, False),
    "root's, owner's, by member": (ROOT, OWNER, MEMBER, False),
    "root's, root's, by owner": (ROOT, ROOT, OWNER, False),
    "owner's, other's, by owner": (OWNER, OTHER, OWNER, True),
    "owner's, other's, by other": (OWNER, OTHER, OTHER, True),
    "owner's, other's, by member": (OWNER, OTHER, MEMBER, False),
    "owner's, root's, by owner": (OWNER, ROOT, OWNER, True),
    "owner's, owner's, by other": (OWNER, OWNER, OTHER, False),
}


WAYS = {
    "removed": remove,
    "renamed": lambda kind, path: os.rename(path, "dir/new"),
    "replaced": lambda kind, path: os.rename("mine", path),
}


@each(WAYS, ["file", "dir"], STICKY, root=True, situations=("lower", "copied"))
def in_a_sticky_directory(way, kind, above, whose, user, allowed):
    """Only the owner of the object, of the directory and root take something away."""
    make("dir", "dir", 0o1777, above)
    make(kind, "dir/it", 0o777, whose)
    os.chmod(".", 0o777)
    make(kind, "mine", 0o777, user)
    yield
    if allowed:
        with acting(user):
            way(kind, "dir/it")
        equal(os.path.lexists("dir/it"), way is WAYS["replaced"])
    else:
        fails(errno.EPERM, way, kind, "dir/it", by=user)


@each(["file", "dir"], WAYS, {"other": OTHER, "member": MEMBER}, root=True, situations=("lower",))
def in_an_open_directory(kind, way, user):
    """Without the sticky bit it is for everybody who may write the directory."""
    make("dir", "dir", 0o777, ROOT)
    make(kind, "dir/it", 0o700)
    os.chmod(".", 0o777)
    make(kind, "mine", 0o700, user)
    yield
    with acting(user):
        way(kind, "dir/it")
    equal(os.path.lexists("dir/it"), way is WAYS["replaced"])


BUSY = {
    "rmdir": (os.rmdir, errno.ENOTDIR, errno.EBUSY),
    "unlink": (os.unlink, errno.EBUSY, errno.EISDIR),
    "rename": (lambda path: os.rename(path, "new"), errno.EBUSY, errno.EBUSY),
    "rename to": (lambda path: os.rename("other", path), errno.EBUSY, errno.EBUSY),
}


@each(BUSY, ["file", "dir"])
def a_mountpoint(call, of_file, of_dir, kind):
    make(kind, "it")
    make(kind, "other")
    yield
    subprocess.run(["mount", "--bind", "other", "it"], check=True)
    try:
        fails(of_dir if kind == "dir" else of_file, call, "it")
    finally:
        subprocess.run(["umount", "it"], check=True)
    remove(kind, "it")
    gone("it")


@each(["stat", "list", "create", "open", "chmod", "twice"])
def the_current_directory(what):
    make("dir", "dir")
    yield
    os.chdir("dir")
    here = hold(".")
    os.rmdir("../dir")
    match what:
        case "stat":
            equal((at(".").st_nlink, at(here).st_nlink), (0, 0))
        case "list":
            equal(os.listdir(), [])
        case "create":
            fails(errno.ENOENT, os.mkdir, "new")
            fails(errno.ENOENT, os.open, "new", os.O_CREAT | os.O_WRONLY)
        case "open":
            equal(os.listdir(hold(".", os.O_RDONLY)), [])
        case "chmod":
            os.chmod(".", 0o700)
            equal(at(here).st_mode & 0o777, 0o700)
        case "twice":
            fails(errno.ENOENT, os.rmdir, "../dir")
            os.mkdir("../dir")
            equal(os.listdir("../dir"), [])
            equal(os.listdir("."), [])


@each()
def while_its_directory_is_read():
    """What is deleted meanwhile may or may not be listed; all that stays is, once."""
    for number in range(60):
        make("file", f"name{number}")
    yield
    seen = []
    with os.scandir(".") as entries:
        for entry in entries:
            seen.append(entry.name)
            number = int(entry.name[4:])
            if number % 2:
                os.unlink(entry.name)
    stay = [f"name{number}" for number in range(0, 60, 2)]
    equal(sorted(name for name in seen if name in stay), sorted(stay))
    equal(sorted(os.listdir()), sorted(stay))
