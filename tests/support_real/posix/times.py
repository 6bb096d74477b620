"""utimensat, futimens: any time from the distant past to the distant future, to the nanosecond; who may."""

import ctypes
import errno
import os
import time

from support_real.posix.case import (
    ALONE,
    KINDS,
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
    libc,
    make,
    marks,
    octal,
)

NOW, OMIT = (0, (1 << 30) - 1), (0, (1 << 30) - 2)
HERE, NOFOLLOW = -100, 0x100
USERS = {"root": ROOT, "owner": OWNER}
SECOND = 1_000_000_000
TIMES = {
    "1901": -(2**31) * SECOND + SECOND,
    "1969": -1,
    "1970": 0,
    "a nanosecond": 1,
    "almost a second": SECOND - 1,
    "2001": SECOND * SECOND + 123_456_789,
    "2038": 2**31 * SECOND - 1,
    "after 2038": 2**31 * SECOND,
    "2106": 2**32 * SECOND + 5,
    "2446": (2**34 - 2**31 - 2) * SECOND,
}


def utimensat(path, atime, mtime, flags=0):
    """Times are (seconds, nanoseconds); a file descriptor instead of a path is futimens."""
    times = (ctypes.c_long * 4)(*atime, *mtime) if atime else None
    if isinstance(path, int):
        libc("futimens", path, times)
    else:
        libc("utimensat", HERE, os.fsencode(path), times, flags)


def _now(path, which):
    return abs(getattr(at(path), f"st_{which}_ns") - time.time_ns()) < 60 * SECOND


@each(KINDS, USERS)
def sets_both(kind, user):
    make(kind, "it")
    yield
    before = attributes("it", "mtime", "ctime")
    for when in TIMES.values():
        for atime, mtime in ((when, when ^ 1), (when ^ 1, when)):
            with acting(user):
                os.utime("it", ns=(atime, mtime), follow_symlinks=False)
            equal((at("it").st_atime_ns, at("it").st_mtime_ns), (atime, mtime))
    equal(attributes("it", "mtime", "ctime"), before)


@each(["file", "dir"], USERS)
def sets_both_of_what_is_open(kind, user):
    make(kind, "it")
    yield
    with acting(user):
        it = hold("it", os.O_RDONLY)
        for when in TIMES.values():
            os.utime(it, ns=(when, when))
            equal((at(it).st_atime_ns, at("it").st_mtime_ns), (when, when))


@each(TIMES, situations=("lower", "copied"))
def from_the_start(when):
    """What the lower layer says is shown, and is what it was after another change."""
    for kind in KINDS:
        make(kind, kind)
        os.utime(kind, ns=(when, when), follow_symlinks=False)
    yield
    for kind in KINDS:
        equal((kind, at(kind).st_mtime_ns), (kind, when))
        os.lchown(kind, *OWNER[:2])
        equal((kind, at(kind).st_mtime_ns), (kind, when))
        if kind != "symlink":
            os.chmod(kind, 0o600)
        equal((kind, at(kind).st_mtime_ns), (kind, when))


@each(KINDS)
def ctime_is_now(kind):
    make(kind, "it")
    yield
    with marks({"it": "mc", ".": ""}):
        os.utime("it", follow_symlinks=False)
    with marks({"it": "c", ".": ""}):
        os.utime("it", ns=(1, at("it").st_mtime_ns), follow_symlinks=False)


SET_NS = SECOND * SECOND + 5
WHICH = {"set": (SECOND, 5), "now": NOW, "omit": OMIT}


@each(KINDS, WHICH.keys())
def each_on_its_own(kind, atime):
    """One may be set, made now, or left as it is without regard to the other."""
    make(kind, "it")
    os.utime("it", ns=(111, 222), follow_symlinks=False)
    yield
    for mtime in ("omit", "set", "now"):
        before = at("it")
        nothing = atime == mtime == "omit"
        with marks({"it": "" if nothing else "c" if mtime == "omit" else "mc", ".": ""}):
            utimensat("it", WHICH[atime], WHICH[mtime], NOFOLLOW)
        for which, what in (("atime", atime), ("mtime", mtime)):
            if what == "now":
                equal(_now("it", which), True)
            else:
                was = getattr(before, f"st_{which}_ns")
                equal(
                    (which, getattr(at("it"), f"st_{which}_ns")), (which, was if what == "omit" else SET_NS)
                )


@each(NOT_LINKS)
def symlinks_are_followed_or_not(kind):
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    with marks({"it": "mc", "link": ""}):
        utimensat("link", NOW, NOW)
    with marks({"it": "", "link": "mc"}):
        utimensat("link", NOW, NOW, NOFOLLOW)
    utimensat("link", (1, 2), (3, 4))
    utimensat("link", (5, 6), (7, 8), NOFOLLOW)
    equal((at("it").st_atime_ns, at("it").st_mtime_ns), (SECOND + 2, 3 * SECOND + 4))
    equal((at("link").st_atime_ns, at("link").st_mtime_ns), (5 * SECOND + 6, 7 * SECOND + 8))
    equal(os.readlink("link"), "it")


# How times are given, and whether that is for the owner alone.
ASKED = {
    "nothing": (None, None, False),
    "now": ("now", "now", False),
    "set": ("set", "set", True),
    "atime": ("set", "omit", True),
    "mtime": ("omit", "set", True),
    "atime now": ("now", "omit", True),
    "mtime now": ("omit", "now", True),
}


@each(
    ["file", "dir", "fifo"],
    octal(0o644, 0o666),
    {"other": OTHER, "member": MEMBER, "owner": OWNER},
    root=True,
    situations=("lower",),
)
def who_may(kind, before, user):
    """Who may write may say "now"; only the owner may say anything else, and needs no permission for it."""
    make(kind, "it", before if user != OWNER else 0o000)
    yield
    for atime, mtime, owners in ASKED.values():
        arguments = "it", WHICH.get(atime), WHICH.get(mtime)
        if user == OWNER or (not owners and before == 0o666):
            with acting(user):
                utimensat(*arguments)
        else:
            fails(errno.EPERM if owners else errno.EACCES, utimensat, *arguments, by=user)


@each({"other": OTHER, "member": MEMBER}, root=True)
def leaving_both_is_for_anybody(user):
    make("file", "it", 0o600)
    yield
    with marks({"it": "", ".": ""}), acting(user):
        utimensat("it", OMIT, OMIT)


@each(ASKED, {"owner": OWNER} | ({} if ALONE else {"other": OTHER}))
def by_descriptor(atime, mtime, owners, user):
    make("file", "it", 0o444)
    yield
    it = hold("it", os.O_RDONLY)
    if user == OWNER:
        with marks({".": ""}), acting(user):
            utimensat(it, WHICH.get(atime), WHICH.get(mtime))
        equal((at(it).st_atime_ns == SET_NS, at(it).st_mtime_ns == SET_NS), (atime == "set", mtime == "set"))
    else:
        number = errno.EPERM if owners else errno.EACCES
        fails(number, utimensat, it, WHICH.get(atime), WHICH.get(mtime), by=user)


@each({"a second": SECOND, "negative": -1, "largest": 2**62}, [0, 1], situations=("lower",))
def nanoseconds_that_are_none(nanoseconds, place):
    make("file", "it")
    yield
    times = [(1, 1), (1, 1)]
    times[place] = (1, nanoseconds)
    fails(errno.EINVAL, utimensat, "it", *times)
    fails(errno.EINVAL, utimensat, hold("it", os.O_RDONLY), *times)


@each()
def flags_that_are_none():
    make("file", "it")
    yield
    fails(errno.EINVAL, utimensat, "it", NOW, NOW, 0x8000)
    fails(errno.EBADF, utimensat, hold("it"), NOW, NOW)


@each(["write", "truncate", "append"])
def change_again_after_being_set(how):
    """A time that was set does not stick."""
    make("file", "it")
    os.utime("it", (1, 2**31))
    yield
    writer = hold("it", os.O_WRONLY | (os.O_APPEND if how == "append" else 0))
    os.utime("it", (1, 3))
    equal(at("it").st_mtime, 3)
    if how == "truncate":
        os.ftruncate(writer, 3)
    else:
        os.write(writer, b"x")
    equal((_now("it", "mtime"), _now(writer, "mtime")), (True, True))
    os.utime(writer, (5, 6))
    os.close(writer)
    equal((at("it").st_atime, at("it").st_mtime), (5, 6))
