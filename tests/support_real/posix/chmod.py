"""chmod, fchmod: the mode and nothing else; who may; the setgid bit of a group one is not in."""

import errno
import os

from support_real.posix.case import (
    MEMBER,
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
    hold,
    make,
    marks,
    mode,
    read,
)

MODES = (0o000, 0o111, 0o222, 0o444, 0o644, 0o777, 0o1777, 0o2755, 0o4711, 0o6555, 0o7777)
USERS = {"root": ROOT, "owner": OWNER}


@each(NOT_LINKS, USERS)
def sets_the_mode(kind, user):
    """And updates ctime, and changes nothing else."""
    make(kind, "it", 0o640)
    yield
    before = attributes("it", "mode", "ctime")
    with marks({"it": "c", ".": ""}), acting(user):
        os.chmod("it", 0o604)
    equal(mode("it"), 0o604)
    for wanted in MODES:
        with acting(user):
            os.chmod("it", wanted)
        equal(mode("it"), wanted)
    equal(attributes("it", "mode", "ctime"), before)


@each(["file", "dir"], USERS)
def sets_the_mode_of_what_is_open(kind, user):
    make(kind, "it", 0o640)
    yield
    with acting(user):
        it = hold("it", os.O_RDONLY)
        with marks({it: "c", ".": ""}):
            os.fchmod(it, 0o604)
        for wanted in MODES:
            os.fchmod(it, wanted)
            equal((mode(it), mode("it")), (wanted, wanted))


@each(NOT_LINKS, USERS)
def follows_symlinks(kind, user):
    make(kind, "it")
    make("symlink", "link", content="it")
    make("symlink", "to-link", content="link")
    yield
    with marks({"it": "c", "link": "", "to-link": "", ".": ""}), acting(user):
        os.chmod("to-link", 0o701)
    equal((mode("it"), mode("link")), (0o701, 0o777))


@each(NOT_LINKS, {"other": OTHER, "member": MEMBER}, root=True, situations=("lower",))
def is_for_the_owner(kind, user):
    make(kind, "it", 0o777)
    yield
    fails(errno.EPERM, os.chmod, "it", 0o600, by=user)
    fails(errno.EPERM, os.chmod, "it", 0o777, by=user)
    with acting(OWNER):
        os.chmod("it", 0o600)
    equal(mode("it"), 0o600)


@each(["file", "dir"], {"other": OTHER, "member": MEMBER}, root=True)
def of_what_is_open_is_for_the_owner(kind, user):
    make(kind, "it", 0o777)
    yield
    with acting(user):
        it = hold("it", os.O_RDONLY)
    fails(errno.EPERM, os.fchmod, it, 0o600, by=user)


@each(
    ["file", "dir", "fifo"],
    {
        "own group": (OWNER, OWNER.gid, True),
        "supplementary group": (OWNER._replace(groups=(65531, 65530)), 65530, True),
        "another group": (OWNER, OTHER.gid, False),
        "root": (ROOT, OTHER.gid, True),
    },
    root=True,
)
def setgid(kind, user, group, stays):
    """The bit is dropped without an error if the object's group is none of the caller's."""
    make(kind, "it", owner=OWNER._replace(gid=group))
    yield
    for wanted in (0o2755, 0o2644, 0o6777):
        with acting(user):
            os.chmod("it", wanted)
        equal(mode("it"), wanted if stays else wanted & ~0o2000)


@each([kind for kind in NOT_LINKS if kind != "dir"])
def all_names_of_one_file(kind):
    make("dir", "dir")
    make(kind, "it")
    os.link("it", "dir/too")
    yield
    with marks({"it": "c", "dir/too": "c", "dir": ""}):
        os.chmod("it", 0o604)
    equal((mode("it"), mode("dir/too")), (0o604, 0o604))
    os.chmod("dir/too", 0o640)
    equal((mode("it"), mode("dir/too")), (0o640, 0o640))
    equal(at("it").st_nlink, 2)


@each()
def content_stays():
    make("file", "it", content=b"x" * 100_000)
    yield
    os.chmod("it", 0o600)
    equal(read("it"), b"x" * 100_000)


@each(
    {
        "file": ("file", os.O_RDONLY),
        "fifo": ("fifo", os.O_RDONLY | os.O_NONBLOCK),
        "dir": ("dir", os.O_DIRECTORY),
    }
)
def takes_effect_at_once(kind, flags):
    """For the owner too, in the next call."""
    make(kind, "it", 0o000)
    yield
    for _ in range(2):
        fails(errno.EACCES, hold, "it", flags, by=OWNER)
        with acting(OWNER):
            os.chmod("it", 0o400)
            hold("it", flags)
            os.chmod("it", 0o000)


@each(["file", "dir"])
def a_path_is_not_open(kind):
    make(kind, "it")
    yield
    it = hold("it")
    fails(errno.EBADF, os.fchmod, it, 0o600)
