"""`Union`: the filesystem operations over a stack of layers, synchronous, on inode numbers and bytes.

Read-only: every layer is a lower, and lowers never change while they are part of a union.  So whatever was
found out about an object stays true, and may be cached by anyone for as long as they like.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.nodes import ROOT, Listed, Node, Nodes
from fusestore.driver.union.resolve import Entry, children, resolve

_DOTS = 2  # offsets taken by . and ..
_NOT_NAMES = (b"", b".", b"..")
_MAX_LINKS = 40  # symlinks on the way to a path, as the kernel


class Union:
    """A stack of layers, topmost first, as one tree.  Raises OSError and nothing else."""

    def __init__(self, layers: Sequence[LayerDir]) -> None:
        root = resolve(layers, b"")
        if root is None:
            raise NotADirectoryError(errno.ENOTDIR, "no layer has a root directory")
        node = Node(ROOT, ROOT, b"", root.layers, root.attr)
        node.nlookup = 1
        self._nodes = Nodes(node, layers)
        self._listings: dict[int, Node] = {}
        self._next_handle = 1
        self._visible_links: dict[int, int] = {}  # by identity of a layer's group of names

    # -- names ----------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The child `name` of the directory `parent`, counted; None when there is none."""
        directory = self._nodes.by_ino[parent]
        path = directory.path + b"/" + name if directory.path else name
        entry = resolve(directory.layers, path)
        if entry is None:
            return None
        node = self._node(parent, path, entry)
        self.count(node)
        return node

    def count(self, node: Node) -> None:
        """The kernel has heard of `node` once more."""
        node.nlookup += 1
        self._nodes.by_ino[node.ino] = node

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` of its references to `ino`."""
        self._nodes.forget(ino, count)

    def _node(self, parent: int, path: bytes, entry: Entry) -> Node:
        """The live node of `entry`, or a new one that is not counted yet."""
        ino = self._nodes.number(entry.attr)
        node = self._nodes.by_ino.get(ino)
        if node is None:
            node = Node(ino, parent, path, entry.layers, entry.attr)
            if entry.attr.nlink > 1 and not stat.S_ISDIR(entry.attr.mode):
                entry.attr.nlink = self.visible_links(path, entry)
        return node

    def visible_links(self, path: bytes, entry: Entry) -> int:
        """How many names of a hard-linked file are visible: a layer above may hide some.

        A layer that does not record its links is believed.
        """
        group = entry.layers[0].linked(path) if not stat.S_ISDIR(entry.attr.mode) else None
        if group is None:
            return entry.attr.nlink
        known = self._visible_links.get(id(group))
        if known is None:
            known = self._visible_links[id(group)] = len(self.links(path, entry))
        return known

    def links(self, path: bytes, entry: Entry) -> list[bytes]:
        """All visible names of the file `entry` at `path`."""
        layer = entry.layers[0]
        names = layer.linked(path) or [path]
        found = [(name, self.resolve(name)) for name in names]
        return [name for name, other in found if other is not None and other.layers[0] is layer]

    def resolve(self, path: bytes) -> Entry | None:
        """What the canonical `path` is, from the root on; no symlink is followed.  Counts nothing."""
        layers = self.node(ROOT).layers
        entry = Entry(self.node(ROOT).attr, layers)
        position = 0
        while position < len(path):
            end = path.find(b"/", position)
            end = len(path) if end < 0 else end
            named = path[position:end] not in _NOT_NAMES
            found = resolve(entry.layers, path[:end]) if named and stat.S_ISDIR(entry.attr.mode) else None
            if found is None:
                return None
            entry, position = found, end + 1
        return entry

    def walk(self, path: bytes, *, follow: bool = True) -> tuple[bytes, Entry]:
        """What a process whose root is the image finds at `path`: its canonical path and entry.

        Symlinks on the way are followed inside the image, the last one only if `follow`.
        """
        done, todo, links = b"", path.split(b"/")[::-1], 0
        entry = self.resolve(b"")
        while todo:
            part = todo.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                done = done.rpartition(b"/")[0]
                continue
            here = done + b"/" + part if done else part
            entry = self.resolve(here)
            if entry is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            more = any(todo) or path.endswith(b"/")
            if stat.S_ISLNK(entry.attr.mode) and (follow or more):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = entry.layers[0].readlink(here)
                done = b"" if target.startswith(b"/") else done
                todo += target.split(b"/")[::-1]
                continue
            if more and not stat.S_ISDIR(entry.attr.mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            done = here
        entry = self.resolve(done)
        assert entry is not None
        return done, entry

    # -- inodes ---------------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """The live node `ino`."""
        return self._nodes.by_ino[ino]

    def readlink(self, ino: int) -> bytes:
        """The target of a symlink."""
        node = self.node(ino)
        return node.layers[0].readlink(node.path)

    def open(self, ino: int, flags: int) -> int:
        """A file of the union as an fd, the caller's to close."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        node = self.node(ino)
        return node.layers[0].open(node.path)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an xattr.  ENODATA when there is none."""
        node = self.node(ino)
        value = node.layers[0].getxattr(node.path, name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all xattrs."""
        node = self.node(ino)
        return node.layers[0].listxattr(node.path)

    def statvfs(self) -> os.statvfs_result:
        """The filesystem of the topmost layer."""
        return self.node(ROOT).layers[0].statvfs()

    # -- directories ----------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        """A handle for `readdir`.  The names are taken here, once: offsets stay good while it is open."""
        node = self.node(ino)
        if node.listing is None:
            node.listing = [Listed(name, index) for name, index in children(node.layers, node.path)]
        handle = self._next_handle
        self._next_handle += 1
        self._listings[handle] = node
        return handle

    def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Node | OSError, int]]:
        """Entries from offset `start` on as (name, node, offset of the next), ``.`` and ``..`` first.

        Those handed on to the kernel have to be counted, but for the first two.  An entry that cannot be read
        comes with its error and hides no other.
        """
        directory = self._listings[handle]
        assert directory.listing is not None
        if start < 1:
            yield b".", directory, 1
        if start < _DOTS:
            # The kernel knows a directory only as long as it knows the one above.
            yield b"..", self._nodes.by_ino.get(directory.parent, directory), _DOTS
        first = max(start - _DOTS, 0)
        for offset, listed in enumerate(directory.listing[first:], first + _DOTS + 1):
            try:
                node = self._nodes.by_ino.get(listed.ino) or self._listed_node(directory, listed)
            except OSError as exc:
                yield listed.name, exc, offset
                continue
            if node is not None:
                yield listed.name, node, offset

    def _listed_node(self, directory: Node, listed: Listed) -> Node | None:
        path = directory.path + b"/" + listed.name if directory.path else listed.name
        entry = resolve(directory.layers[listed.index :], path)
        if entry is None:
            return None
        node = self._node(directory.ino, path, entry)
        listed.ino = node.ino
        return node

    def releasedir(self, handle: int) -> None:
        """The handle is done with."""
        del self._listings[handle]
