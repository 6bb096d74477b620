"""The server of a writable mount is killed, at any instant: what it acknowledged is there, nothing half-done.

A writer changes the mount by random steps and keeps a model of it.  When the server dies, the step under
way has happened or not, data that was being written may be there in part, and all else is as the model has
it; the next mount shows that, with an empty work directory.  Rounds continue where the one before was cut
off.
"""

import contextlib
import errno
import os
import random
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from support_real import writable
from support_real.commands import eventually, is_running, mounted_below
from support_real.overlays import is_kept_elsewhere, populate

MIB = 1 << 20
NAMES = "abcdefgh"
GONE = (errno.ENOTCONN, errno.ECONNABORTED)  # what is said of a server that has died
# Each of these calls of the server is in turn its last, the first time or a later one.
CALLS = [
    *["openat", "mkdirat", "mknodat", "symlinkat", "linkat", "renameat2", "unlinkat", "pwrite64", "write"],
    *["copy_file_range", "ftruncate", "fsetxattr", "lsetxattr", "fchmod", "fchown", "utimensat", "fsync"],
]


# -- the model -----------------------------------------------------------------------------------------
# Path -> content: bytes of a file, a str is a symlink's target, None a directory.


def seen(top, at=""):
    """The tree, read in full."""
    found = {}
    for entry in os.scandir(os.path.join(top, at)):
        path = os.path.join(at, entry.name)
        if entry.is_symlink():
            found[path] = os.readlink(os.path.join(top, path))
        elif entry.is_dir():
            found[path] = None
            found |= seen(top, path)
        else:
            found[path] = Path(top, path).read_bytes()
    return found


@dataclass
class Step:
    """A change to make, the model after it, and for data the file that may be between the two."""

    call: object
    after: dict
    path: str = ""
    may_be: object = None

    def explains(self, before, tree):
        """True if `tree` is what an interruption may leave."""
        if self.may_be is None:
            return tree in (before, self.after)
        rest = [{p: c for p, c in one.items() if p != self.path} for one in (before, tree)]
        return rest[0] == rest[1] and self.may_be(tree.get(self.path))


def write(top, path, flags, data, at=0):
    """Open, write, fsync."""
    fd = os.open(os.path.join(top, path), os.O_WRONLY | flags, 0o644)
    try:
        os.pwrite(fd, data, at) if at else os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)


class Writer:
    """Random steps in the directory `top`, whose content is `model`."""

    def __init__(self, top, model, numbers):
        self.top, self.model, self.numbers = top, model, numbers

    def run(self, most):
        """Steps until the server is gone, or `most`; the one that failed."""
        for _ in range(most):
            step = self.step()
            try:
                step.call()
            except OSError as exc:
                if exc.errno not in GONE:
                    raise
                return step
            self.model = step.after
        return None

    def step(self):
        while (step := self.numbers.choice(self.KINDS)(self)) is None:
            pass
        return step

    def at(self, path):
        return os.path.join(self.top, path)

    def pick(self, wanted):
        paths = [path for path, content in self.model.items() if wanted(content)]
        return self.numbers.choice(sorted(paths)) if paths else None

    def pick_file(self):
        return self.pick(lambda content: isinstance(content, bytes))

    def pick_directory(self):
        return self.pick(lambda content: content is None) if self.numbers.random() < 0.7 else ""

    def fresh(self):
        """A name that is free."""
        directory = self.pick_directory() or ""
        path = os.path.join(directory, self.numbers.choice(NAMES))
        return path if path not in self.model and path.count("/") < 4 else None

    def without(self, *paths):
        return {p: c for p, c in self.model.items() if p not in paths}

    def create(self):
        path, data = self.fresh(), self.numbers.randbytes(self.numbers.randrange(20_000))
        return path and Step(
            lambda: write(self.top, path, os.O_CREAT | os.O_EXCL, data),
            self.model | {path: data},
            path,
            lambda content: content is None or data.startswith(content),
        )

    def append(self):
        path, data = self.pick_file(), self.numbers.randbytes(self.numbers.randrange(1, 9000))
        if path is None or len(self.model[path]) > 10 * MIB:
            return None
        old, new = self.model[path], self.model[path] + data
        return Step(
            lambda: write(self.top, path, os.O_APPEND, data),
            self.model | {path: new},
            path,
            lambda content: content is not None and len(content) >= len(old) and new.startswith(content),
        )

    def overwrite(self):
        path, data = self.pick_file(), self.numbers.randbytes(self.numbers.randrange(1, 9000))
        if path is None or len(self.model[path]) <= len(data):
            return None
        old, at = self.model[path], self.numbers.randrange(1, len(self.model[path]) - len(data) + 1)
        end = at + len(data)
        return Step(
            lambda: write(self.top, path, 0, data, at),
            self.model | {path: old[:at] + data + old[end:]},
            path,
            lambda content: (
                content is not None
                and len(content) == len(old)
                and (content[:at], content[end:]) == (old[:at], old[end:])
            ),
        )

    def rewrite(self):
        path, data = self.pick_file(), self.numbers.randbytes(self.numbers.randrange(9000))
        if path is None or self.numbers.random() < 0.5:
            return None
        old = self.model[path]
        return Step(
            lambda: write(self.top, path, os.O_TRUNC, data),
            self.model | {path: data},
            path,
            lambda content: content is not None and (content == old or data.startswith(content)),
        )

    def chmod(self):
        path = self.pick_file()
        mode = self.numbers.choice([0o600, 0o644, 0o755])
        return path and Step(lambda: os.chmod(self.at(path), mode), self.model)

    def unlink(self):
        path = self.pick(lambda content: content is not None)
        return path and Step(lambda: os.unlink(self.at(path)), self.without(path))

    def mkdir(self):
        path = self.fresh()
        return path and Step(lambda: os.mkdir(self.at(path)), self.model | {path: None})

    def rmdir(self):
        path = self.pick_directory()
        if not path or any(other.startswith(path + "/") for other in self.model):
            return None
        return Step(lambda: os.rmdir(self.at(path)), self.without(path))

    def symlink(self):
        path = self.fresh()
        return path and Step(lambda: os.symlink("target", self.at(path)), self.model | {path: "target"})

    def rename(self):
        old, new = self.pick(lambda content: content is not None), self.fresh() or self.pick_file()
        if not old or not new or old == new:
            return None
        after = self.without(old) | {new: self.model[old]}
        return Step(lambda: os.rename(self.at(old), self.at(new)), after)

    def rename_directory(self):
        old, new = self.pick_directory(), self.fresh()
        if not old or not new or new.startswith(old + "/"):
            return None
        moved = {p: c for p, c in self.model.items() if p == old or p.startswith(old + "/")}
        after = self.without(*moved) | {new + path[len(old) :]: content for path, content in moved.items()}
        return Step(lambda: os.rename(self.at(old), self.at(new)), after)

    KINDS = (
        *(create, append, overwrite, rewrite, chmod, unlink, unlink, mkdir, rmdir, symlink),
        *(rename, rename, rename_directory, create),
    )


# -- killing -------------------------------------------------------------------------------------------


@pytest.fixture(params=writable.KINDS)
def mount(request, tmp_path):
    """A writable mount, by the graphdriver or by the program, and the model of it."""
    lower, numbers = tmp_path / "lower", random.Random(0)
    lower.mkdir()
    small = {name: numbers.randbytes(3000) for name in NAMES[:6]}
    tree = {**small, "big": numbers.randbytes(6 * MIB), "bigger": numbers.randbytes(9 * MIB)}
    populate(lower, tree | {name: {**small, "sub": {**small, "deep": small}} for name in ("g", "h", "lower")})
    made = writable.Writable(request.param, tmp_path / "made", lower)
    made.model = seen(lower)
    try:
        made.mount()
        yield made
        made.unmount()
        while os.path.ismount(made.top):  # the driver counts its users
            made.unmount()
    finally:
        made.destroy()


def kill(pid, number=signal.SIGKILL):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    eventually(lambda: not is_running(pid), "the end of the server")


def cut_off(mount, numbers, most, end):
    """Work until `end`, given the server's pid, has ended the server; mount again and look."""
    top, pid = os.open(mount.top, os.O_RDONLY), mount.server()
    writer = Writer(f"/proc/self/fd/{top}", mount.model, numbers)
    try:
        with end(pid):
            step = writer.run(most)
    finally:
        os.close(top)
    kill(pid)
    mount.mount()
    tree = seen(mount.top)
    explained = tree == writer.model or (step is not None and step.explains(writer.model, tree))
    assert explained, difference(writer.model, tree, step)
    assert writable.left_in(mount.upper.parent / "work") == []
    mount.model = tree
    return step is not None


def difference(model, tree, step):
    paths = sorted(p for p in model.keys() | tree.keys() if model.get(p, b"-") != tree.get(p, b"-"))
    both = [
        [len(c) if isinstance(c := one.get(p, "missing"), bytes) else c for one in (model, tree)]
        for p in paths
    ]
    return f"{step and step.call.__qualname__}: {dict(zip(paths, both, strict=True))}"


@contextlib.contextmanager
def killed_after(seconds, pid):
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGKILL))
    timer.start()
    yield
    timer.join()


@contextlib.contextmanager
def killed_by(call, nth, pid):
    """By strace, when a thread of the server makes `call` for the `nth` time; perhaps never."""
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={nth}", "-e", "signal=none"]
    with subprocess.Popen(
        ["strace", "-f", "-o", os.devnull, *inject, "-p", str(pid)], stderr=subprocess.PIPE
    ) as strace:
        try:
            assert b"attached" in strace.stderr.readline()
            yield
        finally:
            strace.kill()  # told to end, it may wait for ever for threads that it has killed


@contextlib.contextmanager
def terminated_after(seconds, pid):
    timer = threading.Timer(seconds, os.kill, (pid, signal.SIGTERM))
    timer.start()
    yield
    timer.join()


def test_a_server_killed_at_any_moment_loses_nothing_that_it_acknowledged(mount):
    numbers = random.Random(1)
    for _ in range(8):
        seconds = numbers.uniform(0, 0.25)
        assert cut_off(mount, numbers, 100_000, lambda pid, s=seconds: killed_after(s, pid))


def test_a_server_killed_in_any_of_its_calls_loses_nothing_that_it_acknowledged(mount, record_property):
    numbers, missed = random.Random(2), []
    for call in CALLS:
        nth = numbers.choice([1, 2, 3, 5])
        if not cut_off(mount, numbers, 80, lambda pid, c=call, n=nth: killed_by(c, n, pid)):
            missed.append(call)
    record_property("calls that were never made", missed)
    assert len(missed) < len(CALLS) / 2, missed


def test_a_server_told_to_end_under_load_writes_everything_first(mount, tmp_path):
    """It unmounts at once, and goes on to serve who has something open; nothing is lost that was closed."""
    numbers = random.Random(3)
    for _ in range(3):
        top, pid = os.open(mount.top, os.O_RDONLY), mount.server()
        writer = Writer(f"/proc/self/fd/{top}", mount.model, numbers)
        with terminated_after(numbers.uniform(0, 0.2), pid):
            step = writer.run(150)
        os.close(top)
        eventually(lambda: not mounted_below(tmp_path), "the end of the mount")
        eventually(
            lambda pid=pid: not is_running(pid) or is_kept_elsewhere(tmp_path), "the end of the server"
        )
        kill(pid)
        mount.mount()
        mount.model = seen(mount.top)
        explained = mount.model == writer.model or (step and step.explains(writer.model, mount.model))
        assert explained, difference(writer.model, mount.model, step)
        assert writable.left_in(mount.upper.parent / "work") == []


@pytest.mark.parametrize("mount", ["driver"], indirect=True)
def test_a_file_without_data_of_its_own_that_is_cut_off_is_never_zeros(mount):
    """A metacopy is a hole, as long as the lower file; it must not lose its mark before it is shortened."""
    kills = [
        ("openat", 1),
        ("openat", 2),
        ("openat", 3),
        ("lremovexattr", 1),
        ("lremovexattr", 2),
        ("ftruncate", 1),
    ]
    for (call, nth), name in zip(kills, NAMES, strict=False):
        path, old, pid = mount.top / name, (mount.top / name).read_bytes(), mount.server()
        path.chmod(0o600)
        with killed_by(call, nth, pid), contextlib.suppress(OSError):
            os.truncate(path, 100) if call == "ftruncate" else os.close(
                os.open(path, os.O_WRONLY | os.O_TRUNC)
            )
        kill(pid)
        mount.mount()
        assert (mount.top / name).read_bytes() in (old, old[:100] if call == "ftruncate" else b""), (
            call,
            nth,
        )
