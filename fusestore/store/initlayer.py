"""The mount points that every container needs, as an init layer (docker 1.7: ``graph.SetupInitLayer``).

An image may hold anything where they belong, symlinks that lead out of it above all.  So a name is only ever
looked up in a directory that is open already and was no symlink, and whatever stands where a directory is
needed goes first.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fusestore.files import opened

_DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys")
_FILES = (".dockerinit", ".dockerenv", "etc/resolv.conf", "etc/hosts", "etc/hostname", "dev/console")
_SYMLINKS = (("etc/mtab", "/proc/mounts"),)


def setup_init_layer(path: Path) -> None:
    """Make the mount points in the tree at `path`; an init function for `LayerStore.create_rw_layer`.

    Files that are there come out empty, and symlinks as ours; directories stay as they are, also where a file
    is wanted.  Raises OSError.
    """
    with opened(path) as root:
        for name in _DIRECTORIES:
            with _entered(root, name.split("/")):
                pass
        for name in _FILES:
            with _cleared(root, name) as (directory, base):
                _make_file(directory, base)
        for name, target in _SYMLINKS:
            with _cleared(root, name) as (directory, base), suppress(FileExistsError):
                os.symlink(target, base, dir_fd=directory)


@contextmanager
def _cleared(root: int, name: str) -> Iterator[tuple[int, str]]:
    """The directory of `name` and its last component, at which there is nothing or a directory."""
    *parents, base = name.split("/")
    with _entered(root, parents) as directory:
        _unlink(directory, base)
        yield directory, base


@contextmanager
def _entered(root: int, parts: Sequence[str]) -> Iterator[int]:
    """The directory of `parts` below `root`; missing ones are made, and what is in their way goes."""
    with ExitStack() as stack:
        directory = root
        for part in parts:
            _unlink(directory, part)
            directory = _open_directory(directory, part)
            stack.callback(os.close, directory)
        yield directory


def _open_directory(directory: int, name: str) -> int:
    """Open or make a directory; a symlink that somebody has put there meanwhile is an error."""
    made = False
    with suppress(FileExistsError):
        os.mkdir(name, 0o755, dir_fd=directory)
        made = True
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    if made:
        os.fchmod(fd, 0o755)  # whatever the umask
    return fd


def _make_file(directory: int, name: str) -> None:
    with suppress(FileExistsError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(name, flags, 0o755, dir_fd=directory)
        os.fchmod(fd, 0o755)
        os.close(fd)


def _unlink(directory: int, name: str) -> None:
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=directory)
