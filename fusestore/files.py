"""Operations on whole files and trees that survive crashes, races and hostile names.

``tmp/`` of a store is where everything half-made lives, each thing flocked by whoever makes it.  What lies
there unlocked belongs to a process that died; `sweep` deletes it.  `sweeping` keeps a sweep away during the
moment between making a name and locking it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 60  # seconds that anything waits for other processes


def fsync_directory(path: bytes) -> None:
    """Make the names in directory `path` durable.  Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def opened(directory: Path | bytes) -> Iterator[int]:
    """A directory as an fd."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, tmp: Path) -> None:
    """Replace `path` by `data` so that a crash leaves the old or the new, whole.  Raises OSError.

    `tmp` is the store's ``tmp/``, on the same filesystem.
    """
    with sweeping(tmp):
        staged = tmp / f"{path.name}.{os.getpid()}"
        fd = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            staged.rename(path)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
    fsync_directory(os.fsencode(path.parent))


def lock(path: Path, operation: int, flags: int = 0) -> int:
    """Open `path` and flock it; the fd, whose close unlocks.

    Sharing a lock takes no more than being allowed to read the file.  Raises BlockingIOError for LOCK_NB,
    TimeoutError, OSError.
    """
    access = os.O_RDONLY if operation & fcntl.LOCK_SH else os.O_RDWR
    fd = os.open(path, access | os.O_CLOEXEC | flags, 0o600)
    try:
        _flock(fd, operation, path)
    except OSError:
        os.close(fd)
        raise
    return fd


def _flock(fd: int, operation: int, path: Path) -> None:
    """flock(2) that does not wait for ever; whoever has the lock may have been stopped."""
    if operation & fcntl.LOCK_NB:
        fcntl.flock(fd, operation)
        return
    deadline, pause = time.monotonic() + PATIENCE, 0.0005
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                reason = f"another process has been working with it for {PATIENCE} s; try again"
                raise TimeoutError(errno.ETIMEDOUT, reason, str(path)) from None
        else:
            return
        time.sleep(pause)
        pause = min(2 * pause, 0.05)


class Hold:
    """A lock as something to close; also a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()

    def close(self) -> None:
        """Let go.  May be called twice.

        A child that was forked meanwhile has a copy of the fd, and the lock would stay with that.
        """
        if self._fd >= 0:
            if os.getpid() == self._pid:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@contextmanager
def scratch(tmp: Path) -> Iterator[Path]:
    """An empty directory under the store's ``tmp/``, locked; deleted when the context ends.

    Raises OSError.
    """
    directory = tmp / secrets.token_hex(16)
    held = make_locked(directory, tmp)
    try:
        yield directory
    finally:
        try:
            remove_tree(directory)
        finally:
            os.close(held)


def make_locked(directory: Path, tmp: Path) -> int:
    """Make `directory`, which is under `tmp`, and in it a file ``lock``; that as an fd, held exclusively.

    Raises OSError; nothing is left then.
    """
    with sweeping(tmp):
        directory.mkdir(mode=0o700)
        try:
            return lock(directory / "lock", fcntl.LOCK_EX, os.O_CREAT)
        except OSError:
            remove_tree(directory)
            raise


@contextmanager
def sweeping(tmp: Path) -> Iterator[None]:
    """Exclude `sweep` while something is made under `tmp` and not yet locked."""
    with opened(tmp) as fd:
        _flock(fd, fcntl.LOCK_SH, tmp)
        yield


def sweep(tmp: Path) -> None:
    """Delete what processes that died left under `tmp`: everything nobody has locked."""
    with opened(tmp) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # somebody is busy making something; the next one will sweep
        for entry in list(os.scandir(tmp)):
            if not _is_locked(entry):
                remove_tree(Path(entry.path))


def _is_locked(entry: os.DirEntry[str]) -> bool:
    """True while somebody works on what `entry` is: a file, or a directory with a file ``lock``."""
    path = os.path.join(entry.path, "lock") if entry.is_dir(follow_symlinks=False) else entry.path
    if not os.path.isfile(path) or os.path.islink(path):  # a device, say: nobody can lock it
        return False
    try:
        os.close(lock(Path(path), fcntl.LOCK_EX | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def remove_tree(path: Path) -> None:
    """Delete `path` and all below it; iterative, by directory fds, never through a symlink.

    Raises OSError.  Names are relative to `path`, so that trees as deep as PATH_MAX go too.  Two processes
    may delete one tree at a time: a name that is gone already is no error.
    """
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        path.unlink(missing_ok=True)
        return
    try:
        empty_directory(top)
    finally:
        os.close(top)
    with suppress(FileNotFoundError):
        path.rmdir()


def empty_directory(top: int) -> list[bytes]:
    """Delete everything below the directory behind fd `top`; the paths that are gone.  Raises OSError."""
    gone: list[bytes] = []

    def leave(above: int, name: str, path: bytes) -> None:
        gone.append(path)
        with suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=above)

    for path, fd, entries in walk(top, leave):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                gone.append(os.path.join(path, os.fsencode(entry.name)))
                with suppress(FileNotFoundError):
                    os.unlink(entry.name, dir_fd=fd)
    return gone


def tree_usage(top: int) -> tuple[int, int]:
    """Bytes of files and number of inodes below the directory behind fd `top`, itself included.

    Each inode counts once, directories have no bytes.  Raises OSError.
    """
    seen: set[int] = set()
    size = inodes = 0
    for _, _, entries in walk(top):
        inodes += 1
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False) and entry.inode() not in seen:
                seen.add(entry.inode())
                size += entry.stat(follow_symlinks=False).st_size
    return size, inodes + len(seen)


def walk(
    top: int, leave: Callable[[int, str, bytes], None] | None = None
) -> Iterator[tuple[bytes, int, list[os.DirEntry[str]]]]:
    """Every directory at and below the fd `top` as (path, fd, entries), parents first.

    The fd is good until the next one is asked for.  When all below a directory is done, `leave` gets the fd
    of its parent, its name and its path.  Raises OSError, but not for directories that are gone meanwhile.
    Goes down and up by single steps, so a directory costs the same however deep it is.
    """
    here, path = os.dup(top), b""
    todo: list[list[str]] = []
    try:
        while True:
            entries = list(os.scandir(here))
            todo.append([entry.name for entry in entries if entry.is_dir(follow_symlinks=False)])
            yield path, here, entries
            below = None
            while below is None:
                while not todo[-1]:
                    todo.pop()
                    if not todo:
                        return
                    left, path = path, path.rpartition(b"/")[0]
                    here = _up(top, here, path)
                    if leave is not None:
                        leave(here, os.fsdecode(left.rpartition(b"/")[2]), left)
                name = todo[-1].pop()
                below = _down(here, name)
            os.close(here)
            here, path = below, os.path.join(path, os.fsencode(name))
    finally:
        os.close(here)


_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def _down(here: int, name: str) -> int | None:
    try:
        return os.open(name, _DIRECTORY, dir_fd=here)
    except FileNotFoundError:
        return None


def _up(top: int, here: int, parent: bytes) -> int:
    """The directory `parent`, in which the one behind `here` is, which is closed."""
    try:
        above = os.open("..", _DIRECTORY, dir_fd=here)
    except FileNotFoundError:  # `here` is gone: somebody else deletes the same tree
        try:
            above = os.open(parent or b".", _DIRECTORY, dir_fd=top)
        except FileNotFoundError:
            return here  # in which no name is found any more, as in its parent
    os.close(here)
    return above


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that `path` is on, as in /proc/mounts."""
    best, kind = "", ""
    resolved = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            place = fields.split(" ")[4]
            if len(place) >= len(best) and (resolved + "/").startswith(place.rstrip("/") + "/"):
                best, kind = place, rest.split(" ", 1)[0]
    return kind
