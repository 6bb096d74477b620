"""Layers made from tars in directories of their own, and what a union of them shows."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.tars import Stream

from fusestore.digest import CacheID, new_cache_id
from fusestore.driver.api import Applied, Driver, Limits
from fusestore.driver.apply import Below, Unpacked, unpack
from fusestore.driver.below import Nothing
from fusestore.driver.ownership import Ownership
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.tree import Union
from fusestore.driver.whiteout import Spelling

ROOT = 1


class Shown(NamedTuple):
    """An object as the union shows it.  `content` is a file's data or a symlink's target."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    size: int
    content: bytes | None
    xattrs: dict[bytes, bytes]
    nlink: int
    ino: int


def unpacked(
    archive: bytes,
    directory: Path,
    *,
    below: Below | None = None,
    limits: Limits | None = None,
    ownership: Ownership = Ownership.OVERRIDE,
    spelling: Spelling = Spelling.DEVICE,
) -> Unpacked:
    """Unpack `archive` into `directory`, which is made."""
    directory.mkdir()
    stream = Stream(archive)
    return unpack(stream, os.fsencode(directory), below or Nothing(), ownership, spelling, limits or Limits())


def add(driver: Driver, archive: bytes, parent: CacheID | None = None) -> tuple[CacheID, Applied]:
    """Apply `archive` as a new published layer on `parent`."""
    cache_id = new_cache_id()
    try:
        driver.stage(cache_id, parent)
        applied = driver.apply_diff(cache_id, Stream(archive), Limits())
    except BaseException:
        driver.discard(cache_id)
        raise
    driver.publish(cache_id).close()
    return cache_id, applied


def stack(driver: Driver, *archives: bytes) -> CacheID:
    """Apply archives one on top of the other; the topmost layer."""
    parent = None
    for archive in archives:
        parent, _ = add(driver, archive, parent)
    assert parent is not None
    return parent


def shown(driver: Driver, *archives: bytes) -> dict[bytes, Shown]:
    """What a stack of layers made of `archives` looks like."""
    with driver.union(stack(driver, *archives)) as union:
        return tree(union)


@contextmanager
def union_of(
    *directories: Path, ownership: Ownership | None = None, spelling: Spelling | None = None
) -> Iterator[Union]:
    """A union of directories as they lie on disk, topmost first."""
    layers = [LayerDir(str(directory), ownership, spelling) for directory in directories]
    try:
        yield Union(layers)
    finally:
        for layer in layers:
            layer.close()


def find(union: Union, path: bytes) -> int:
    """The inode number of `path`, looked up name by name as the kernel does.  Raises KeyError."""
    ino = ROOT
    for name in path.split(b"/") if path else ():
        node = union.lookup(ino, name)
        if node is None:
            raise KeyError(path)
        ino = node.ino
    return ino


def names(union: Union, ino: int = ROOT, start: int = 0) -> list[bytes]:
    """The names that a directory lists from offset `start` on, without ``.`` and ``..``."""
    handle = union.opendir(ino)
    try:
        return [name for name, _, _ in union.readdir(handle, start) if name not in (b".", b"..")]
    finally:
        union.releasedir(handle)


def paths(union: Union) -> list[bytes]:
    """Every path below the root, sorted."""
    return sorted(path for path in tree(union) if path)


def tree(union: Union) -> dict[bytes, Shown]:
    """Everything a union shows, by path; the root is ``b""``."""
    found = {b"": show(union, ROOT)}
    directories: Sequence[bytes] = [b""]
    while directories:
        below = []
        for directory in directories:
            ino = found[directory].ino
            for name in names(union, ino):
                path = directory + b"/" + name if directory else name
                node = union.lookup(ino, name)
                assert node is not None, f"{path!r} is listed but not found"
                assert path not in found, f"{path!r} is listed twice"
                found[path] = show(union, node.ino)
                if stat.S_ISDIR(node.attr.mode):
                    below.append(path)
        directories = below
    return found


def show(union: Union, ino: int) -> Shown:
    """One object with all that can be read of it."""
    attr = union.node(ino).attr
    content = None
    if stat.S_ISREG(attr.mode):
        content = data(union, ino) if attr.size < 1 << 24 else None
    elif stat.S_ISLNK(attr.mode):
        content = union.readlink(ino)
    return Shown(
        stat.S_IFMT(attr.mode),
        stat.S_IMODE(attr.mode),
        attr.uid,
        attr.gid,
        attr.mtime_ns,
        attr.rdev,
        0 if stat.S_ISDIR(attr.mode) else attr.size,
        content,
        {name: union.getxattr(ino, name) for name in union.listxattr(ino)},
        attr.nlink,
        ino,
    )


def data(union: Union, ino: int) -> bytes:
    """A file's content."""
    with open(union.open(ino, os.O_RDONLY), "rb") as file:
        return file.read()


def dangers(directory: Path) -> list[str]:
    """What in a layer directory on disk could hurt the host, or would not open for its owner."""
    found = []
    for place, _, files, fd in os.fwalk(os.fsencode(directory)):
        for name in [b".", *files]:
            path, st = os.path.join(place, name), os.stat(name, dir_fd=fd, follow_symlinks=False)
            is_whiteout = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
            if stat.S_IFMT(st.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) and not is_whiteout:
                found.append(f"{path!r} is a special file")
            if st.st_mode & 0o7000:
                found.append(f"{path!r} has mode {st.st_mode:o}")
            if st.st_uid != os.getuid():
                found.append(f"{path!r} belongs to {st.st_uid}")
            if not st.st_mode & 0o400:
                found.append(f"{path!r} cannot be read")
    return found
