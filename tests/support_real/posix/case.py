"""What a check is made of: tables, users, objects, and witnesses of what a call changed.

Prepared objects come from three places (SITUATIONS): made in the mount; from the lower layer; from the lower
layer and already copied up.  Beside an unprivileged user there is nobody else in a user namespace of one id
(ALONE): there OWNER is its root without capabilities, and checks marked ``root`` do not take part; nor do
objects that are already copied up, for which nothing is different there.
"""

import contextlib
import ctypes
import itertools
import os
import stat
import time
from typing import NamedTuple

with open("/proc/self/uid_map") as _map:
    ALONE = _map.read().split()[2] == "1"
SITUATIONS = ("upper", "lower", "copied")

TYPES = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "symlink": stat.S_IFLNK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
}
DEVICES = {"block": os.makedev(7, 200), "char": os.makedev(1, 3)}
CLOCK_OF_FILES = 5  # CLOCK_REALTIME_COARSE

KINDS = [kind for kind in TYPES if not (ALONE and kind in DEVICES)]
NOT_DIRS = [kind for kind in KINDS if kind != "dir"]
NOT_LINKS = [kind for kind in KINDS if kind != "symlink"]


class User(NamedTuple):
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
OWNER = User(0, 0, (0,)) if ALONE else User(65534, 65534)
OTHER = User(65533, 65533)
MEMBER = User(65532, 65532, (65534, 65531))  # a third user, who has OWNER's group besides others


def octal(*modes):
    """A table of modes."""
    return {f"{mode:04o}": mode for mode in modes}


def each(*tables, root=False, situations=SITUATIONS):
    """A check for each combination of rows and each situation.

    A table is a sequence of values, or of labels and values; a tuple is several arguments.
    """

    def decorate(check):
        columns = [table if isinstance(table, dict) else {str(row): row for row in table} for table in tables]
        check.rows = {}
        for labels in itertools.product(*columns) if not (root and ALONE) else ():
            values = [column[label] for column, label in zip(columns, labels, strict=True)]
            arguments = [v if isinstance(v, tuple) and not isinstance(v, User) else (v,) for v in values]
            check.rows[", ".join(labels)] = tuple(itertools.chain.from_iterable(arguments))
        check.situations = [situation for situation in situations if not (ALONE and situation == "copied")]
        return check

    return decorate


def make(kind, path, mode=None, owner=OWNER, content=b"content"):
    """An object; its content is a file's bytes and a symlink's target."""
    if kind == "file":
        with open(path, "xb") as file:
            file.write(content)
    elif kind == "dir":
        os.mkdir(path)
    elif kind == "symlink":
        os.symlink(content, path)
    else:
        os.mknod(path, TYPES[kind] | 0o600, DEVICES.get(kind, 0))
    os.chown(path, owner.uid, owner.gid, follow_symlinks=False)
    if kind != "symlink":
        os.chmod(path, mode if mode is not None else 0o755 if kind == "dir" else 0o644)


def remove(kind, path):
    (os.rmdir if kind == "dir" else os.unlink)(path)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, content):
    """Over what is there, without O_CREAT and O_TRUNC."""
    with open(path, "r+b") as file:
        file.write(content)


def hold(path, flags=os.O_PATH | os.O_NOFOLLOW):
    """A file descriptor; the runner closes it when the check has ended."""
    return os.open(path, flags)


def at(path):
    """The attributes of a path, not following a symlink, or of a file descriptor."""
    return os.fstat(path) if isinstance(path, int) else os.lstat(path)


def mode(path):
    return stat.S_IMODE(at(path).st_mode)


def kind_of(path):
    return next(kind for kind, number in TYPES.items() if number == stat.S_IFMT(at(path).st_mode))


def owner(path):
    return at(path).st_uid, at(path).st_gid


def attributes(path, *without):
    """What no call changes by the way, except for those named."""
    st = at(path)
    directory = stat.S_ISDIR(st.st_mode)
    found = {
        "type": stat.S_IFMT(st.st_mode),
        "mode": stat.S_IMODE(st.st_mode),
        "owner": st.st_uid,
        "group": st.st_gid,
        "device": st.st_rdev,
        "nlink": None if directory else st.st_nlink,
        "size": None if directory else st.st_size,
        "mtime": st.st_mtime_ns,
        "ctime": st.st_ctime_ns,
    }
    return {name: value for name, value in found.items() if name not in without}


def tree(path="."):
    """The attributes of everything here."""
    found = {path: attributes(path)}
    with os.scandir(path) as entries:
        for entry in entries:
            below = f"{path}/{entry.name}"
            found |= tree(below) if entry.is_dir(follow_symlinks=False) else {below: attributes(below)}
    return found


def equal(got, wanted):
    assert got == wanted, f"{got!r}, not {wanted!r}"


def gone(path):
    """The name is nowhere: not found, not listed."""
    assert not os.path.lexists(path), f"{path} is still there"
    directory, name = os.path.split(path)
    assert name not in os.listdir(directory or "."), f"{path} is still listed"


def fails(number, call, *arguments, by=ROOT):
    """The call ends with this error number, and it changes nothing here."""
    before = tree()
    with acting(by):
        refused(number, call, *arguments)
    equal(tree(), before)


def refused(number, call, *arguments):
    """The call ends with this error number."""
    try:
        call(*arguments)
    except OSError as exc:
        got = exc.errno
    else:
        got = 0
    assert got == number, f"{os.strerror(got)}, not {os.strerror(number)}"


@contextlib.contextmanager
def acting(user):
    """Be that user for a while."""
    if user == ROOT:
        yield
    elif ALONE:
        permitted = _capabilities()
        _capabilities(effective=0)
        try:
            yield
        finally:
            _capabilities(effective=permitted)
    else:
        os.setgroups(user.groups)
        os.setegid(user.gid)
        os.seteuid(user.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups([])


@contextlib.contextmanager
def marks(expected):
    """The body updates mtime ("m") and ctime ("c") of these paths and file descriptors as said, and no other.

    The first change copies an object of the lower layer up, and so gives it another ctime in any overlay.
    """
    before = {path: at(path) for path in expected}
    tick(max(max(st.st_mtime_ns, st.st_ctime_ns) for st in before.values()))
    yield
    for path, letters in expected.items():
        now, then = at(path), before[path]
        if "m" in letters:
            assert now.st_mtime_ns > then.st_mtime_ns, f"{path}: mtime was not updated"
        else:
            equal((path, "mtime", now.st_mtime_ns), (path, "mtime", then.st_mtime_ns))
        if "c" in letters:
            assert now.st_ctime_ns > then.st_ctime_ns, f"{path}: ctime was not updated"
        elif SITUATION != "lower":
            equal((path, "ctime", now.st_ctime_ns), (path, "ctime", then.st_ctime_ns))


def tick(past):
    """Wait until a file's time can be later than this; the clock of files moves every few milliseconds."""
    now = time.time_ns()
    while past < now and time.clock_gettime_ns(CLOCK_OF_FILES) <= past:
        assert time.time_ns() < now + 1_000_000_000, "the clock stands still"


SITUATION = "upper"  # of the running check; the runner sets it

_libc = ctypes.CDLL(None, use_errno=True)


def libc(name, *arguments):
    """A function of libc that returns -1 and sets errno; paths are bytes."""
    if getattr(_libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)


def _capabilities(effective=None):
    """Set this process's effective capabilities; the permitted ones."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    libc("capget", header, data)
    permitted = data[1] | data[4] << 32
    if effective is not None:
        data[0], data[3] = effective & 0xFFFFFFFF, effective >> 32
        libc("capset", header, data)
    return permitted
