"""Carry out on a tree what a layer says.

``vfs`` makes each of its layers so: a copy of the parent, and then the layer's own changes.  An RW layer that
a tar is applied to goes the same way, whatever the driver; one of a stack stays a layer then, and keeps what
it says about the layers below.  Directories are gone over parents first, by relative paths; both trees are
ours alone.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from fusestore.driver import whiteout
from fusestore.driver.ownership import PRIVATE
from fusestore.driver.whiteout import Spelling
from fusestore.files import empty_directory, opened, remove_tree
from fusestore.syscalls import RENAME_EXCHANGE, rename

_CWD = -100  # AT_FDCWD; all paths here are absolute


def merge(changes: bytes, tree: bytes, spelling: Spelling, *, stacked: bool) -> None:
    """Move what is in the layer directory `changes` over to `tree`.  Raises OSError.

    `stacked`: `tree` is a layer itself and needs marks for what it hides.  May be repeated after a crash.
    """
    spare = changes + b".spare"
    directories = [b""]
    times = {}  # moving files out of a directory changes them
    for path in directories:  # grows while we walk
        times[path] = os.lstat(changes + path)
        if _is_opaque(changes + path):
            _make_opaque(tree + path, stacked)
        for entry in list(os.scandir(changes + path)):
            target = tree + path + b"/" + entry.name
            deleted = _deleted_name(entry, spelling)
            if deleted is not None:
                _remove(tree + path + b"/" + deleted)
                if stacked:
                    os.rename(entry.path, target)
            elif entry.is_dir(follow_symlinks=False):
                _make_directory(target, spare if stacked else None)
                directories.append(path + b"/" + entry.name)
            else:
                _remove(target)
                os.rename(entry.path, target)
    for path in reversed(directories):
        _replace_attributes(changes + path, tree + path, times[path], stacked)


def _is_opaque(directory: bytes) -> bool:
    return whiteout.OPAQUE_XATTR in map(os.fsencode, os.listxattr(directory))


def _make_opaque(directory: bytes, stacked: bool) -> None:
    with opened(directory) as fd:
        empty_directory(fd)
        if stacked:
            for name in map(os.fsencode, os.listxattr(fd)):
                if name.startswith(PRIVATE):  # where it went on below
                    os.removexattr(fd, name)
            os.setxattr(fd, whiteout.OPAQUE_XATTR, b"y")


def _make_directory(target: bytes, spare: bytes | None) -> None:
    """Make `target` a directory.

    In a stack, what it takes the place of has hidden what is below, and so must it from its first moment: it
    is made opaque at `spare`, and changes places.
    """
    if os.path.isdir(target) and not os.path.islink(target):
        return
    if spare is None or not os.path.lexists(target):
        _remove(target)
        os.mkdir(target, 0o700)
        return
    _remove(spare)
    os.mkdir(spare, 0o700)
    os.setxattr(spare, whiteout.OPAQUE_XATTR, b"y")
    rename(_CWD, spare, _CWD, target, RENAME_EXCHANGE)
    _remove(spare)


def _remove(path: bytes) -> None:
    remove_tree(Path(os.fsdecode(path)))


def _deleted_name(entry: os.DirEntry[bytes], spelling: Spelling) -> bytes | None:
    if spelling is Spelling.NAME:
        return entry.name.removeprefix(whiteout.PREFIX) if entry.name.startswith(whiteout.PREFIX) else None
    return entry.name if whiteout.is_device(entry.stat(follow_symlinks=False)) else None


def _replace_attributes(source: bytes, target: bytes, times: os.stat_result, stacked: bool) -> None:
    copy_attributes(source, target)
    for name in set(os.listxattr(target)) - set(os.listxattr(source)):
        if not (stacked and os.fsencode(name).startswith(PRIVATE)):
            os.removexattr(target, name)
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def copy_attributes(source: bytes, target: bytes) -> None:
    """Give `target` the owner, mode, times and xattrs of `source`, but not its opaque mark.

    Raises OSError.
    """
    st, there = os.lstat(source), os.lstat(target)
    if (st.st_uid, st.st_gid) != (there.st_uid, there.st_gid):
        os.chown(target, st.st_uid, st.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if os.fsencode(name) not in whiteout.OPAQUE_XATTRS:
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(target, stat.S_IMODE(st.st_mode))
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)
