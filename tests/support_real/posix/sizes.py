"""truncate, ftruncate, posix_fallocate: how long a file is, and what is where nothing was."""

import errno
import os

from support_real.posix.case import (
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
    read,
    refused,
)

BEFORE = bytes(range(1, 251)) * 40  # 10,000 bytes, none of them zero
SIZES = (0, 1, 4096, 9999, 10_001, 1_000_003)
USERS = {"root": ROOT, "owner": OWNER}
SETTERS = {
    "truncate": lambda size: os.truncate("it", size),
    "truncate through a link": lambda size: os.truncate("link", size),
    "ftruncate": lambda size: os.ftruncate(hold("it", os.O_RDWR), size),
    "ftruncate without reading": lambda size: os.ftruncate(hold("it", os.O_WRONLY), size),
}


@each(SETTERS, SIZES)
def set_size(setter, size):
    """What is cut off is gone, what is added is zeros."""
    make("file", "it", content=BEFORE)
    make("symlink", "link", content="it")
    yield
    before = attributes("it", "size", "mtime", "ctime")
    with marks({"it": "mc", "link": "", ".": ""}), acting(OWNER):
        setter(size)
    equal(attributes("it", "size", "mtime", "ctime"), before)
    equal(at("it").st_size, size)
    assert read("it") == (BEFORE + bytes(1_000_003))[:size], "the content is wrong"


@each(SETTERS)
def shorter_and_longer_again(setter):
    """What was cut off does not come back."""
    make("file", "it", content=BEFORE)
    make("symlink", "link", content="it")
    yield
    setter(5)
    setter(9000)
    assert read("it") == BEFORE[:5] + bytes(8995), "the content is wrong"
    setter(0)
    setter(3)
    equal(read("it"), bytes(3))


@each(SETTERS)
def far_longer(setter):
    """A hole takes no room."""
    make("file", "it")
    make("symlink", "link", content="it")
    yield
    setter(1 << 40)
    st = at("it")
    equal(st.st_size, 1 << 40)
    assert st.st_blocks < 100, f"{st.st_blocks} blocks"
    os.pwrite(hold("it", os.O_WRONLY), b"end", (1 << 40) - 3)
    equal(os.pread(hold("it", os.O_RDONLY), 10, (1 << 40) - 5), b"\0\0end")


@each(SETTERS)
def the_same_size(setter):
    make("file", "it", content=BEFORE)
    make("symlink", "link", content="it")
    yield
    setter(len(BEFORE))
    equal(read("it"), BEFORE)


@each(["truncate", "ftruncate"])
def seen_by_all_who_have_it_open(how):
    make("file", "it", content=BEFORE)
    os.link("it", "too")
    yield
    reader, appender = hold("too", os.O_RDONLY), hold("it", os.O_WRONLY | os.O_APPEND)
    equal(os.pread(reader, 3, 9000), BEFORE[9000:9003])
    if how == "truncate":
        os.truncate("it", 10)
    else:
        os.ftruncate(hold("it", os.O_RDWR), 10)
    equal((os.fstat(reader).st_size, os.pread(reader, 100, 0)), (10, BEFORE[:10]))
    os.write(appender, b"end")
    equal(os.pread(reader, 100, 0), BEFORE[:10] + b"end")
    equal(at("too").st_size, 13)


@each([kind for kind in NOT_LINKS if kind != "file"])
def truncating_what_is_no_file(kind):
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    for name in ("it", "link"):
        fails(errno.EISDIR if kind == "dir" else errno.EINVAL, os.truncate, name, 0)


@each({"unwritable": 0o444, "closed": 0o000, "to others": 0o422})
def truncating_what_one_may_not_write(closed):
    make("file", "it", closed)
    yield
    fails(errno.EACCES, os.truncate, "it", 0, by=OWNER)
    os.truncate("it", 1)


@each({"inside": 3, "outside": 20}, root=True)
def truncating_is_for_who_may_write(size):
    make("file", "it", 0o646)
    yield
    with acting(OTHER):
        os.truncate("it", size)
    fails(errno.EACCES, os.truncate, "it", 0, by=OTHER._replace(groups=(OWNER.gid,)))


@each(["truncate", "ftruncate"], {"-1": -1, "smallest": -(2**63)}, situations=("upper", "lower"))
def a_negative_size(how, size):
    make("file", "it")
    yield
    fails(errno.EINVAL, getattr(os, how), "it" if how == "truncate" else hold("it", os.O_RDWR), size)


@each(["file", "dir", "fifo"])
def ftruncate_of_what_is_not_open_for_writing(kind):
    make(kind, "it")
    yield
    fails(errno.EINVAL, os.ftruncate, hold("it", os.O_RDONLY | os.O_NONBLOCK), 0)
    fails(errno.EBADF, os.ftruncate, hold("it"), 0)


@each()
def ftruncate_of_what_is_no_file():
    make("fifo", "it")
    yield
    fails(errno.EINVAL, os.ftruncate, hold("it", os.O_RDWR), 0)


# Of 10,000 bytes: where, how many, how long the file then is.
ROOM = {
    "inside": (10, 20, 10_000),
    "all": (0, 10_000, 10_000),
    "over the end": (9000, 5000, 14_000),
    "from the end": (10_000, 1, 10_001),
    "behind the end": (100_000, 50, 100_050),
    "much": (0, 1_000_003, 1_000_003),
}


@each(ROOM, {"root": (os.O_RDWR, ROOT), "owner": (os.O_WRONLY, OWNER)})
def room(start, length, size, flags, user):
    """There is room on the disk, the content stays, and what is added is zeros."""
    make("file", "it", content=BEFORE)
    yield
    with marks({"it": "mc", ".": ""} if size > len(BEFORE) else {".": ""}), acting(user):
        os.posix_fallocate(hold("it", flags), start, length)
    equal(at("it").st_size, size)
    assert read("it") == (BEFORE + bytes(size))[:size], "the content is wrong"
    assert at("it").st_blocks * 512 >= min(length, size), f"{at('it').st_blocks} blocks"


@each({"small": 4096, "large": 1 << 20})
def room_in_a_hole(length):
    make("file", "it", content=b"")
    yield
    os.truncate("it", 1 << 30)
    os.pwrite(hold("it", os.O_WRONLY), b"middle", 100)
    os.posix_fallocate(hold("it", os.O_RDWR), 0, length)
    st = at("it")
    equal(st.st_size, 1 << 30)
    assert length <= st.st_blocks * 512 <= length + (1 << 20), f"{st.st_blocks} blocks"
    equal(os.pread(hold("it", os.O_RDONLY), 200, 0), b"middle".rjust(106, b"\0").ljust(200, b"\0"))


NO_ROOM = {
    "nothing": (0, 0, errno.EINVAL),
    "less than nothing": (0, -1, errno.EINVAL),
    "before the start": (-1, 10, errno.EINVAL),
    "larger than any file": (1 << 60, 10, errno.EFBIG),
    "over the largest": (2**63 - 1, 1, errno.EFBIG),
}


@each(NO_ROOM, USERS, situations=("upper", "lower"))
def no_room(start, length, number, user):
    """Whether the times are updated is not said."""
    make("file", "it")
    yield
    with acting(user):
        refused(number, os.posix_fallocate, hold("it", os.O_RDWR), start, length)
    equal(read("it"), b"content")


@each(USERS)
def no_room_where_one_does_not_write(user):
    make("file", "it", 0o666)
    make("fifo", "fifo", 0o666)
    yield
    fails(errno.EBADF, os.posix_fallocate, hold("it", os.O_RDONLY), 0, 100, by=user)
    fails(errno.EBADF, os.posix_fallocate, hold("."), 0, 100, by=user)
    fails(errno.ESPIPE, os.posix_fallocate, hold("fifo", os.O_RDWR), 0, 100, by=user)
