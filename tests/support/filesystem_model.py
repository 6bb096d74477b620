"""A filesystem as a tree of dictionaries: what POSIX and Linux say each operation does, errno included.

Times are adopted: what an operation sets to `NOW` (or perhaps does: `ANY`) is that until somebody has looked
at the real thing, and from then on may not change by itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from support.model import Tree

from fusestore.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

CAPABILITY = b"security.capability"
NOW, ANY = "now", "any"

Writer = Callable[[int], bool] | None


@dataclass(eq=False)
class Inode:
    """A file of any type.  `ino` is None while it is not known; `children` is None but for a directory.

    `links` counts the names, and `removed` says that it had some.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    content: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    mtime_ns: int | str = NOW
    links: int = 0
    children: dict[bytes, Inode] | None = field(default=None, repr=False)
    ino: int | None = None
    removed: bool = False

    @property
    def is_directory(self) -> bool:
        return self.children is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


def failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Filesystem:
    """The tree."""

    def __init__(self, tree: Tree) -> None:
        inodes: dict[int, Inode] = {}
        for path in sorted(tree, key=lambda path: path.count("/") + bool(path)):
            thing = tree[path]
            inode = inodes.get(id(thing))
            if inode is None:
                inode = inodes[id(thing)] = Inode(
                    thing.kind | thing.mode,
                    thing.uid,
                    thing.gid,
                    thing.rdev,
                    thing.content or b"",
                    dict(thing.xattrs),
                    thing.mtime * 1_000_000_000,
                    children={} if stat.S_ISDIR(thing.kind) else None,
                )
            if path:
                directory, _, name = path.rpartition("/")
                parent = self.find(directory.encode())
                assert parent is not None
                assert parent.children is not None
                parent.children[name.encode()] = inode
                inode.links += 1
            else:
                self.root = inode

    # -- looking --------------------------------------------------------------------------------------

    def find(self, path: bytes) -> Inode | None:
        """What is at `path`; no symlink is followed."""
        inode = self.root
        for name in path.split(b"/") if path else ():
            if inode.children is None or name not in inode.children:
                return None
            inode = inode.children[name]
        return inode

    def walk(self, top: Inode | None = None) -> dict[bytes, Inode]:
        """Everything below `top`, by path; itself is ``b""``."""
        found = {b"": top or self.root}
        todo = [(b"", found[b""])]
        for path, directory in todo:  # grows while we walk
            for name, inode in (directory.children or {}).items():
                below = path + b"/" + name if path else name
                found[below] = inode
                if inode.is_directory:
                    todo.append((below, inode))
        return found

    def facts(self) -> dict[bytes, tuple]:
        """What can be told of everything by its metadata, by path."""
        return {
            path: (
                inode.mode, inode.uid, inode.gid, inode.rdev, inode.mtime_ns, sorted(inode.xattrs.items()),
                len(inode.content), inode.content if stat.S_ISLNK(inode.mode) else None,
            )
            for path, inode in self.walk().items()
        }  # fmt: skip

    # -- names ----------------------------------------------------------------------------------------

    def make(self, parent: Inode, name: bytes, inode: Inode, umask: int = 0) -> Inode:
        """Let the new object `inode` be there.  The umask and a setgid directory have their say."""
        self._check_vacant(parent, name)
        if not stat.S_ISLNK(inode.mode):
            inode.mode &= ~umask
        if parent.mode & stat.S_ISGID:
            inode.gid = parent.gid
            inode.mode |= stat.S_ISGID if inode.is_directory else 0
        inode.links = 1
        parent.children[name] = inode
        parent.mtime_ns = NOW
        return inode

    def link(self, inode: Inode, parent: Inode, name: bytes) -> None:
        self._check_vacant(parent, name)
        parent.children[name] = inode
        parent.mtime_ns = NOW
        inode.links += 1

    def _check_vacant(self, parent: Inode, name: bytes) -> None:
        self._check_name(name)
        if name in parent.children:
            raise failure(errno.EEXIST)

    def _check_name(self, name: bytes) -> None:
        if name.startswith(b".wh."):  # that is how whiteouts are spelled
            raise failure(errno.EINVAL)
        if len(name) > 255:
            raise failure(errno.ENAMETOOLONG)

    def unlink(self, parent: Inode, name: bytes) -> Inode:
        inode = self._existing(parent, name)
        if inode.is_directory:
            raise failure(errno.EISDIR)
        return self._take(parent, name)

    def rmdir(self, parent: Inode, name: bytes) -> Inode:
        inode = self._existing(parent, name)
        if not inode.is_directory:
            raise failure(errno.ENOTDIR)
        if inode.children:
            raise failure(errno.ENOTEMPTY)
        return self._take(parent, name)

    def _existing(self, parent: Inode, name: bytes) -> Inode:
        if name not in parent.children:
            raise failure(errno.ENOENT)
        return parent.children[name]

    def _take(self, parent: Inode, name: bytes) -> Inode:
        inode = parent.children.pop(name)
        parent.mtime_ns = NOW
        inode.links -= 1
        inode.removed = not inode.links
        return inode

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> Inode | None:
        """The object that lost its name by being replaced, if any did."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        inode = self._existing(parent, name)
        self._check_name(new_name)
        target = new_parent.children.get(new_name)
        if flags == RENAME_EXCHANGE:
            self._existing(new_parent, new_name)
            if target is not inode:
                parent.children[name], new_parent.children[new_name] = target, inode
                parent.mtime_ns = new_parent.mtime_ns = NOW
            return None
        if target is not None:
            if flags == RENAME_NOREPLACE:
                raise failure(errno.EEXIST)
            if target is inode:
                return None
            self._check_replaceable(inode, target)
            self._take(new_parent, new_name)
        del parent.children[name]
        new_parent.children[new_name] = inode
        parent.mtime_ns = new_parent.mtime_ns = NOW
        return target

    def _check_replaceable(self, inode: Inode, target: Inode) -> None:
        if not target.is_directory:
            if inode.is_directory:
                raise failure(errno.ENOTDIR)
        elif not inode.is_directory:
            raise failure(errno.EISDIR)
        elif target.children:
            raise failure(errno.ENOTEMPTY)

    # -- one inode ------------------------------------------------------------------------------------

    # `writer` is None for somebody who has CAP_FSETID, and else tells who is in a group.

    def write(self, inode: Inode, offset: int, data: bytes, writer: Writer) -> None:
        old = inode.content.ljust(offset, b"\0")
        inode.content = old[:offset] + data + old[offset + len(data) :]
        inode.mtime_ns = NOW
        self._drop_privileges(inode, writer)

    def truncate(self, inode: Inode, size: int, writer: Writer) -> None:
        inode.mtime_ns = NOW if size != len(inode.content) else ANY
        inode.content = inode.content[:size].ljust(size, b"\0")
        self._drop_privileges(inode, writer)

    def chmod(self, inode: Inode, mode: int) -> None:
        inode.mode = stat.S_IFMT(inode.mode) | mode

    def chown(self, inode: Inode, uid: int | None, gid: int | None) -> None:
        inode.uid = inode.uid if uid is None else uid
        inode.gid = inode.gid if gid is None else gid
        if not inode.is_directory:
            self._drop_privileges(inode, lambda _: True)

    def _drop_privileges(self, inode: Inode, writer: Writer) -> None:
        inode.xattrs.pop(CAPABILITY, None)
        if writer is not None:
            with_group = inode.mode & stat.S_IXGRP or not writer(inode.gid)
            inode.mode &= ~(stat.S_ISUID | (stat.S_ISGID if with_group else 0))

    def removexattr(self, inode: Inode, name: bytes) -> None:
        if name not in inode.xattrs:
            raise failure(errno.ENODATA)
        del inode.xattrs[name]


def expected_changes(old: dict[bytes, tuple], new: dict[bytes, tuple]) -> list[tuple[str, bytes]]:
    """How moby and containers/storage tell two trees (`Filesystem.facts`) apart: sorted letters and paths.

    Of a deleted directory only itself is told, and a directory has changed if something in it has.
    """
    changed = {path for path in new if new[path] != old.get(path)}
    deleted = {path for path in old if path not in new and stat.S_ISDIR(new.get(parent(path), (0,))[0])}
    above = {directory for path in changed | deleted for directory in parents(path)}
    kinds = {path: "C" if path in old else "A" for path in changed | above} | dict.fromkeys(deleted, "D")
    return sorted((kind, path) for path, kind in kinds.items() if path)


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def parents(path: bytes) -> Iterator[bytes]:
    while path:
        path = parent(path)
        yield path
