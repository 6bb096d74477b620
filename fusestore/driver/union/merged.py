"""An upper layer on top of a stack: what a name means then.  Nothing is changed here.

A name is asked of the upper first (`step`); where it has nothing to say, the lower layers answer as in
`fusestore.driver.union.tree`.  A directory of the upper goes on in the lowers unless it is opaque, under
its own name or where its redirect says.

Nodes know their name and parent, and the path in the upper follows from that (`place`).  It is remembered
until some directory is renamed, so that a rename costs nothing for what is below.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from fusestore.driver import whiteout
from fusestore.driver.union.layerdir import (
    METACOPY,
    ORIGIN,
    REDIRECT,
    WHITEOUT,
    Attr,
    LayerDir,
    Place,
)
from fusestore.driver.union.nodes import ROOT, Listed, Live, Node
from fusestore.driver.union.resolve import Entry, join, resolve
from fusestore.driver.union.tree import Opened, Union

PATH_LIMIT = 3072  # bytes; a directory with a longer path is reached through an fd of its own


class MergedUnion(Union):
    """The directory `tree` on top of `layers`, topmost first; read-only, but may be changed by another
    union."""

    def __init__(self, tree: LayerDir, layers: Sequence[LayerDir]) -> None:
        tree.mutable = True  # it may have metacopies
        self.tree = tree
        self._lowers = tuple(layers)
        self._epoch = 1
        top = tree.look(b"")
        assert top is not None
        below = resolve(layers, b"") if layers else None
        if below is not None and tree.is_opaque(b""):
            below = None
        if below is not None:
            top.nlink = 1
        root = Node(ROOT, None, b"", below.layers if below else (), b"", top, upper=True)
        self._start(root, [tree, *layers])

    # -- what a name means ----------------------------------------------------------------------------

    def step(self, directory: Entry | Node, place: bytes, name: bytes) -> Entry | None:
        if name.startswith(whiteout.PREFIX):
            return None
        below = join(directory.path, name)
        if not directory.upper:
            return resolve(directory.layers, below)
        path = join(place, name)
        top = self.tree.look(path)
        if top is None:
            return resolve(directory.layers, below) if directory.layers else None
        if top is WHITEOUT:
            return None
        return self._merged(directory, below, path, top)

    def _merged(self, directory: Entry | Node, below: bytes, path: bytes, top: Attr) -> Entry:
        """What the upper has at `path`, together with what it says is below it."""
        marks = self.tree.marks(path)
        redirect = marks.get(REDIRECT)
        if stat.S_ISDIR(top.mode):
            if (directory.layers or redirect) and not self.tree.is_opaque(path, marks):
                lower = self._lower(directory, below, redirect)
                if lower is not None and stat.S_ISDIR(lower.attr.mode):
                    top.nlink = 1
                    return Entry(top, lower.layers, lower.path, upper=True, origin=lower.attr)
        elif METACOPY in marks:
            lower = self._lower(directory, below, redirect)
            if lower is None or not stat.S_ISREG(lower.attr.mode):
                raise OSError(errno.EIO, "the data of a metacopy are gone", path)
            top.blocks = lower.attr.blocks
            return Entry(top, lower.layers, lower.path, upper=True, origin=lower.attr)
        return Entry(top, (), b"", upper=True, origin=self._origin(marks, top))

    def _lower(self, directory: Entry | Node, below: bytes, redirect: bytes | None) -> Entry | None:
        """The lower object of a merged one: at path `below`, or where its redirect says."""
        if redirect is None or not redirect.startswith(b"/"):
            if redirect is not None:
                below = join(below.rpartition(b"/")[0], redirect)
            return resolve(directory.layers, below) if directory.layers else None
        entry = self.bottom()
        for name in redirect.strip(b"/").split(b"/"):
            if entry is None or not stat.S_ISDIR(entry.attr.mode):
                return None
            entry = resolve(entry.layers, join(entry.path, name))
        return entry

    def bottom(self) -> Entry | None:
        """The root without the top layer."""
        return resolve(self._lowers, b"") if self._lowers else None

    def lower(self) -> Union | None:
        """What is there without the top layer, if anything is.  Shares our layers."""
        return Union(self._lowers) if self._lowers else None

    def entry_at(self, path: bytes, entry: Entry) -> Place:
        return (self.tree, path) if entry.upper else super().entry_at(path, entry)

    def entry_data_at(self, path: bytes, entry: Entry) -> Place:
        if entry.layers and stat.S_ISREG(entry.attr.mode):
            return entry.layers[0], entry.path
        return self.entry_at(path, entry)

    def entry_places(self, path: bytes, entry: Entry) -> list[Place]:
        lowers = super().entry_places(path, entry)
        return [(self.tree, path), *lowers] if entry.upper else lowers

    def links(self, path: bytes, entry: Entry) -> list[bytes]:
        if not entry.upper:
            return super().links(path, entry)
        found = ((name, self.resolve(name)) for name in self.tree.find_links(path))
        return [name for name, other in found if other and other.upper and other.attr.ino == entry.attr.ino]

    def _origin(self, marks: dict[bytes, bytes], top: Attr) -> Attr | None:
        """The lower object that an upper one was copied from, if that can be seen to be true."""
        index, colon, path = marks.get(ORIGIN, b"").partition(b":")
        if not colon or not index.isdigit() or int(index) >= len(self._lowers):
            return None
        origin = self._lowers[-1 - int(index)].look(path)
        if origin is None or origin is WHITEOUT or stat.S_IFMT(origin.mode) != stat.S_IFMT(top.mode):
            return None
        return origin

    def place(self, node: Node) -> bytes:
        """The path of `node` in the upper (of a directory: where it will be)."""
        if node.epoch == self._epoch or node.ino == ROOT:
            return node.place
        above = []
        while node.epoch != self._epoch and node.ino != ROOT:
            if node.live is not None and node.live.unnamed:
                raise stale()
            above.append(node)
            node = node.parent
        for below in reversed(above):
            below.place, below.epoch = self._shortened(below, join(node.place, below.name)), self._epoch
            node = below
        return node.place

    def _shortened(self, node: Node, path: bytes) -> bytes:
        """`path`, or a way to the directory `node` through an fd where that is too long for a system call."""
        if len(path) < PATH_LIMIT or not stat.S_ISDIR(node.attr.mode) or not node.upper:
            return path
        live = self._live(node)
        if live.anchor < 0:
            live.anchor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.tree.fd)
        return b"/proc/self/fd/%d/." % live.anchor

    def at(self, node: Node) -> Place:
        if not node.upper:
            return node.layers[0], node.path
        return self.tree, self.place(node)

    def data_at(self, node: Node) -> Place:
        if node.layers and stat.S_ISREG(node.attr.mode):
            return node.layers[0], node.path
        return self.at(node)

    def _live(self, node: Node) -> Live:
        if node.live is None:
            node.live = Live()
        return node.live

    def attr(self, node: Node) -> Attr:
        if node.stale:
            self._refresh(node)
        return node.attr

    def _refresh(self, node: Node) -> None:
        live = node.live
        if not node.upper or (live is not None and live.gone):
            node.stale = False
            if live is not None and live.anchor >= 0 and stat.S_ISREG(node.attr.mode):
                st = os.fstat(live.anchor)
                node.attr.size, node.attr.blocks = st.st_size, st.st_blocks
            return
        layer, path = self.at(node)
        attr = layer.look(path)
        if attr is None or attr is WHITEOUT:
            raise stale()
        if stat.S_ISDIR(attr.mode):
            attr.nlink = 1 if node.layers else attr.nlink
        elif node.layers:
            attr.blocks = node.attr.blocks
        if node.live is not None:
            attr.nlink -= node.live.hidden is not None
            attr.mtime_ns = node.attr.mtime_ns if node.live.written else attr.mtime_ns
        node.attr, node.stale = attr, False

    def _places(self, node: Node) -> list[Place]:
        lowers = super()._places(node)
        return [(self.tree, self.place(node)), *lowers] if node.upper else lowers

    def _listed_node(self, opened: Opened, listed: Listed) -> Node | None:
        directory = opened.node
        if not directory.upper and opened.layers is directory.layers:
            return super()._listed_node(opened, listed)
        if directory.live is not None and directory.live.unnamed:
            return None
        node = self._nodes.by_ino.get(listed.ino)
        is_here = node is not None and node.parent is directory and node.name == listed.name
        if node is not None and is_here and (node.live is None or not node.live.unnamed):
            return node
        entry = self.step(directory, self.place(directory), listed.name)
        if entry is None:
            return None
        node = self._node(directory, listed.name, entry)
        listed.ino = node.ino
        return node


def stale() -> OSError:
    """What the kernel gets for a node that has no name any more: it looks the name up again.

    ENOENT it would believe, though a name that was renamed over exists at every instant.
    """
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
