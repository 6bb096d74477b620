"""Graphdriver ``vfs``: every layer is a full copy of its parent with its own changes carried out on it.

Slow and obvious.  It needs no FUSE and no union, and is what the ``fuse`` driver is compared with: unpack a
layer by itself, copy the parent's tree, and do to the copy what the layer says, one directory at a time.
`get` gives the tree as it lies on disk; owners that the disk cannot hold are in xattrs (`ownership`).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusestore.digest import CacheID, Readable
from fusestore.driver import below, whiteout
from fusestore.driver.api import Applied, Limits
from fusestore.driver.apply import unpack
from fusestore.driver.layout import Home, LayerSpec
from fusestore.driver.union.tree import Union
from fusestore.driver.whiteout import Spelling
from fusestore.files import empty_directory, opened, remove_tree
from fusestore.syscalls import copy_data


class VfsDriver(Home):
    """See `fusestore.driver.api.Driver`."""

    name = "vfs"
    stacked = False

    def __init__(self, root: Path, runroot: Path) -> None:
        del runroot  # nothing is ever mounted
        super().__init__(root)

    def apply_diff(self, cache_id: CacheID, stream: Readable, limits: Limits) -> Applied:
        """Unpack the tar beside the copy of the parent, then merge it in.  Raises InvalidLayer, OSError."""
        directory, parent = self.staged(cache_id)
        tree, changes = directory / "diff", directory / "changes"
        changes.mkdir()
        if parent is not None:
            _copy_tree(os.fsencode(self.path / parent / "diff"), os.fsencode(tree))
        with below.under(self.union(parent) if parent else None) as lower:
            unpacked = unpack(stream, os.fsencode(changes), lower, self.ownership, self.spelling, limits)
        _merge(os.fsencode(changes), os.fsencode(tree), self.spelling)
        remove_tree(changes)
        _record_links(os.fsencode(tree), directory / "links")
        self.sync(cache_id)
        return Applied(unpacked.size, unpacked.reproducible, unpacked.entries)

    @contextmanager
    def union(self, cache_id: CacheID) -> Iterator[Union]:
        """The tree, with true owners, as a library object.  Holds the layer."""
        directory = self.path / cache_id
        specs = [LayerSpec(str(directory / "diff"), str(directory / "links"))]
        with self.hold(cache_id), below.opened(specs, self.ownership, self.spelling) as union:
            yield union

    def get(self, cache_id: CacheID) -> bytes:
        """The tree on disk."""
        if not self.exists(cache_id):
            raise FileNotFoundError(f"{cache_id}: no such layer")
        return os.fsencode(self.path / cache_id / "diff")

    def put(self, cache_id: CacheID) -> None:
        """Nothing is mounted, so nothing is unmounted."""

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """``SourceDir``, as moby's vfs calls it."""
        return {"SourceDir": str(self.path / cache_id / "diff")}

    def status(self) -> list[tuple[str, str]]:
        """How this home keeps owners."""
        return [("Ownership", self.ownership.value)]


# Both walks below go over relative paths, parents before children; ``tree`` is ours alone.


def _copy_tree(source: bytes, target: bytes) -> None:
    """Copy the tree `source` into the empty directory `target`: data, links, attributes."""
    first_name: dict[int, bytes] = {}
    directories = [b""]
    for path in directories:  # grows while we walk
        for entry in os.scandir(source + path):
            name = path + b"/" + entry.name
            st = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                os.mkdir(target + name, 0o700)
                directories.append(name)
            elif st.st_ino in first_name:
                os.link(target + first_name[st.st_ino], target + name, follow_symlinks=False)
            else:
                first_name[st.st_ino] = name
                _copy_object(source + name, target + name, st)
    for path in reversed(directories):
        _copy_attributes(source + path, target + path)


def _copy_object(source: bytes, target: bytes, st: os.stat_result) -> None:
    if stat.S_ISLNK(st.st_mode):
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(st.st_mode):
        with open(source, "rb") as reader, open(target, "xb") as writer:
            copy_data(reader.fileno(), writer.fileno(), st.st_size)
    else:
        os.mknod(target, st.st_mode, st.st_rdev)
    _copy_attributes(source, target)


def _copy_attributes(source: bytes, target: bytes) -> None:
    st = os.lstat(source)
    if (st.st_uid, st.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(target, st.st_uid, st.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if os.fsencode(name) not in whiteout.OPAQUE_XATTRS:
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
    if not stat.S_ISLNK(st.st_mode):
        os.chmod(target, stat.S_IMODE(st.st_mode))
    os.utime(target, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def _merge(changes: bytes, tree: bytes, spelling: Spelling) -> None:
    """Carry out on `tree` what the layer in `changes` says, moving its files over."""
    directories = [b""]
    times = {}  # moving files out of a directory changes them
    for path in directories:  # grows while we walk
        times[path] = os.lstat(changes + path)
        if whiteout.OPAQUE_XATTR in map(os.fsencode, os.listxattr(changes + path)):
            with opened(tree + path) as fd:
                empty_directory(fd)
        for entry in os.scandir(changes + path):
            target = tree + path + b"/" + entry.name
            deleted = _deleted_name(entry, spelling)
            if deleted is not None:
                remove_tree(Path(os.fsdecode(tree + path + b"/" + deleted)))
            elif not entry.is_dir(follow_symlinks=False):
                remove_tree(Path(os.fsdecode(target)))
                os.rename(entry.path, target)
            else:
                if not os.path.isdir(target) or os.path.islink(target):
                    remove_tree(Path(os.fsdecode(target)))
                    os.mkdir(target, 0o700)
                directories.append(path + b"/" + entry.name)
    for path in reversed(directories):
        for name in os.listxattr(tree + path):
            os.removexattr(tree + path, name)
        _copy_attributes(changes + path, tree + path)
        os.utime(tree + path, ns=(times[path].st_atime_ns, times[path].st_mtime_ns))


def _deleted_name(entry: os.DirEntry[bytes], spelling: Spelling) -> bytes | None:
    if spelling is Spelling.NAME:
        return entry.name.removeprefix(whiteout.PREFIX) if entry.name.startswith(whiteout.PREFIX) else None
    return entry.name if whiteout.is_device(entry.stat(follow_symlinks=False)) else None


def _record_links(tree: bytes, record: Path) -> None:
    """Write down which names of the tree are one file, as `layout` says."""
    groups: dict[int, list[str]] = {}
    directories = [b""]
    for path in directories:  # grows while we walk
        for entry in os.scandir(tree + path):
            if entry.is_dir(follow_symlinks=False):
                directories.append(path + b"/" + entry.name)
            elif entry.stat(follow_symlinks=False).st_nlink > 1:
                groups.setdefault(entry.inode(), []).append(os.fsdecode(path + b"/" + entry.name)[1:])
    record.write_text("".join(json.dumps(sorted(g)) + "\n" for g in groups.values()), encoding="ascii")
