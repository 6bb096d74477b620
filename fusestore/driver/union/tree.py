"""`Union`: the filesystem operations over a stack of layers, synchronous, on inode numbers and bytes.

Read-only: every layer is a lower, and lowers never change while they are part of a union.  So whatever was
found out about an object stays true, and may be cached by anyone for as long as they like.  The subclass
`fusestore.driver.union.writable.WritableUnion` puts one more layer on top, which changes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fusestore.driver.union.layerdir import Attr, LayerDir, Place
from fusestore.driver.union.nodes import ROOT, Listed, Live, Node, Nodes
from fusestore.driver.union.resolve import Entry, children, join, resolve

_DOTS = 2  # offsets taken by . and ..
_NOT_NAMES = (b"", b".", b"..")
_MAX_LINKS = 40  # symlinks on the way to a path, as the kernel


class Opened(NamedTuple):
    """An open directory: its names as they were, and the layers they were taken from."""

    node: Node
    names: list[Listed]
    layers: tuple[LayerDir, ...]


class Union:
    """A stack of layers, topmost first, as one tree.  Raises OSError and nothing else."""

    def __init__(self, layers: Sequence[LayerDir]) -> None:
        root = resolve(layers, b"")
        if root is None:
            raise NotADirectoryError(errno.ENOTDIR, "no layer has a root directory")
        self._start(Node(ROOT, None, b"", root.layers, b"", root.attr), layers)

    def _start(self, root: Node, layers: Sequence[LayerDir]) -> None:
        root.nlookup = 1
        self._nodes = Nodes(root, layers, self._bury)
        self._opened: dict[int, Opened] = {}
        self._next_handle = 1
        self._visible_links: dict[int, int] = {}  # by identity of a layer's group of names

    def _bury(self, live: Live) -> None:
        """A node with a life of its own was forgotten."""

    # -- names ----------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Node | None:
        """The child `name` of the directory `parent`, counted; None when there is none."""
        directory = self._nodes.by_ino[parent]
        if directory.live is not None and directory.live.unnamed:
            return None
        entry = self.step(directory, self.place(directory), name)
        if entry is None:
            return None
        node = self._node(directory, name, entry)
        self._nodes.count(node)
        return node

    def count(self, node: Node) -> None:
        """The kernel has heard of `node` once more."""
        self._nodes.count(node)

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` of its references to `ino`."""
        self._nodes.forget(ino, count)

    def step(self, directory: Entry | Node, place: bytes, name: bytes) -> Entry | None:
        """The child `name` of the directory `directory`, which is at `place`.  Counts nothing."""
        return resolve(directory.layers, join(directory.path, name))

    def place(self, node: Node) -> bytes:
        """The path of `node`, for `step`."""
        return node.path

    def _node(self, directory: Node, name: bytes, entry: Entry) -> Node:
        """The live node of `entry`, or a new one that is not counted yet."""
        ino = self._nodes.number(entry.origin or entry.attr)
        node = self._nodes.by_ino.get(ino)
        if node is None:
            node = Node(ino, directory, name, entry.layers, entry.path, entry.attr, upper=entry.upper)
            if entry.attr.nlink > 1 and not stat.S_ISDIR(entry.attr.mode):
                entry.attr.nlink = self.visible_links(entry.path, entry)
        return node

    def visible_links(self, path: bytes, entry: Entry) -> int:
        """How many names of a hard-linked file are visible: a layer above may hide some.

        A layer that does not record its links is believed.
        """
        if stat.S_ISDIR(entry.attr.mode) or entry.upper:
            return entry.attr.nlink
        group = entry.layers[0].linked(path)
        if group is None:
            return entry.attr.nlink
        known = self._visible_links.get(id(group))
        if known is None:
            known = self._visible_links[id(group)] = len(self.links(path, entry))
        return known

    def links(self, path: bytes, entry: Entry) -> list[bytes]:
        """All visible names of the file `entry` at `path`."""
        layer = entry.layers[0]
        names = layer.find_links(path)
        found = [(name, self.resolve(name)) for name in names]
        return [
            n
            for n, other in found
            if other and not other.upper and other.layers[0] is layer and other.path == n
        ]

    def resolve(self, path: bytes) -> Entry | None:
        """What the canonical `path` is, from the root on; no symlink is followed.  Counts nothing."""
        root = self.node(ROOT)
        entry = Entry(root.attr, root.layers, b"", upper=root.upper)
        position, place = 0, b""
        while position < len(path):
            end = path.find(b"/", position)
            end = len(path) if end < 0 else end
            name = path[position:end]
            found = None
            if name not in _NOT_NAMES and stat.S_ISDIR(entry.attr.mode):
                found = self.step(entry, place, name)
            if found is None:
                return None
            entry, place, position = found, path[:end], end + 1
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
                layer, at = self.entry_at(here, entry)
                target = layer.readlink(at)
                done = b"" if target.startswith(b"/") else done
                todo += target.split(b"/")[::-1]
                continue
            if more and not stat.S_ISDIR(entry.attr.mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            done = here
        entry = self.resolve(done)
        assert entry is not None
        return done, entry

    def entry_at(self, path: bytes, entry: Entry) -> Place:
        """The layer that says what `entry`, found at `path`, is, and the path where it does."""
        return entry.layers[0], entry.path

    def entry_data_at(self, path: bytes, entry: Entry) -> Place:
        """The layer that has the data of the file `entry`, found at `path`, and the path where it does."""
        return self.entry_at(path, entry)

    def entry_places(self, path: bytes, entry: Entry) -> list[Place]:
        """Where the names of the directory `entry`, found at `path`, come from, topmost first."""
        return [(layer, entry.path) for layer in entry.layers]

    # -- inodes ---------------------------------------------------------------------------------------

    def node(self, ino: int) -> Node:
        """The live node `ino`."""
        return self._nodes.by_ino[ino]

    def attr(self, node: Node) -> Attr:
        """The attributes of a node, as they are now."""
        return node.attr

    def at(self, node: Node) -> Place:
        """The layer that says what `node` is, and the path where it does."""
        return node.layers[0], node.path

    def data_at(self, node: Node) -> Place:
        """The layer that has the data of a file, and the path where it does."""
        return self.at(node)

    def readlink(self, ino: int) -> bytes:
        """The target of a symlink."""
        layer, path = self.at(self.node(ino))
        return layer.readlink(path)

    def open(self, ino: int, flags: int) -> int:
        """A file of the union as an fd, to be closed by `release`."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        layer, path = self.data_at(self.node(ino))
        return layer.open(path)

    def read(self, handle: int, size: int, offset: int) -> bytes:
        """At most `size` bytes from `offset` on."""
        return os.pread(handle, size, offset)

    def release(self, handle: int) -> None:
        """The handle of `open` is done with."""
        os.close(handle)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """The value of an xattr.  ENODATA when there is none."""
        layer, path = self.at(self.node(ino))
        value = layer.getxattr(path, name)
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return value

    def listxattr(self, ino: int) -> list[bytes]:
        """The names of all xattrs."""
        layer, path = self.at(self.node(ino))
        return layer.listxattr(path)

    def statvfs(self) -> os.statvfs_result:
        """The filesystem of the topmost layer."""
        return self.at(self.node(ROOT))[0].statvfs()

    def name_max(self, backing: os.statvfs_result) -> int:
        """The most bytes of a name, where the topmost layer's filesystem is `backing`."""
        return backing.f_namemax

    # -- directories ----------------------------------------------------------------------------------

    def opendir(self, ino: int) -> int:
        """A handle for `readdir`.  The names are taken here, once: offsets stay good while it is open."""
        handle = self._next_handle
        self._next_handle += 1
        self._opened[handle] = self._open_listing(self.node(ino))
        return handle

    def _open_listing(self, node: Node) -> Opened:
        if node.listing is None:
            node.listing = [Listed(name, index) for name, index in children(self._places(node))]
        return Opened(node, node.listing, node.layers)

    def _places(self, node: Node) -> list[Place]:
        """Where the names of a directory come from, topmost first."""
        return [(layer, node.path) for layer in node.layers]

    def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Node | OSError, int]]:
        """Entries from offset `start` on as (name, node, offset of the next), ``.`` and ``..`` first.

        Those handed on to the kernel have to be counted, but for the first two.  An entry that cannot be read
        comes with its error and hides no other.  Starting again at 0 takes the names anew (rewinddir(3)).
        """
        opened = self._opened[handle]
        directory = opened.node
        if start < 1:
            if opened.names is not directory.listing:
                opened = self._opened[handle] = self._open_listing(directory)
            yield b".", directory, 1
        if start < _DOTS:
            yield b"..", directory.parent, _DOTS
        first = max(start - _DOTS, 0)
        for offset, listed in enumerate(opened.names[first:], first + _DOTS + 1):
            try:
                node = self._nodes.by_ino.get(listed.ino) or self._listed_node(opened, listed)
            except OSError as exc:
                yield listed.name, exc, offset
                continue
            if node is not None:
                yield listed.name, node, offset

    def _listed_node(self, opened: Opened, listed: Listed) -> Node | None:
        directory = opened.node
        entry = resolve(directory.layers[listed.index :], join(directory.path, listed.name))
        if entry is None:
            return None
        node = self._node(directory, listed.name, entry)
        listed.ino = node.ino
        return node

    def releasedir(self, handle: int) -> None:
        """The handle is done with."""
        del self._opened[handle]
