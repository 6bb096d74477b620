"""The live inodes: numbers, lookup counts, what is remembered of each.

A node lives from the first time the kernel hears of it until the kernel forgets it; nothing else is kept, so
memory follows the kernel's own cache.  Inode numbers are those of the backing files: unique, and the same on
the next mount, because a backing file belongs to one object.  Where layers lie on several filesystems, the
number of the filesystem (counted from the bottom layer, so that a new layer on top changes nothing) goes into
the high byte.  Numbers that do not fit, and number 1, which is the root's, are given out from 2**63.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusestore.driver.union.layerdir import Attr, LayerDir

ROOT = 1
_SHIFT = 56
_FALLBACK = 1 << 63


class Node:
    """An inode.  `layers` are those that make it up, topmost first; `path` is one of its names.

    `parent` is the number of the directory it was found in (the root's is the root).
    `reply` belongs to whoever serves the node (a cached answer); the core only clears it.  `listing` is a
    directory's names once somebody listed it.
    """

    __slots__ = ("attr", "ino", "layers", "listing", "nlookup", "parent", "path", "reply")

    def __init__(self, ino: int, parent: int, path: bytes, layers: tuple[LayerDir, ...], attr: Attr) -> None:
        self.ino = ino
        self.parent = parent
        self.path = path
        self.layers = layers
        self.attr = attr
        self.nlookup = 0
        self.reply: Any = None
        self.listing: list[Listed] | None = None


class Listed:
    """A name in a directory: the index of its topmost layer, and its inode number once known."""

    __slots__ = ("index", "ino", "name")

    def __init__(self, name: bytes, index: int) -> None:
        self.name = name
        self.index = index
        self.ino = 0


class Nodes:
    """The table of live inodes."""

    def __init__(self, root: Node, layers: Sequence[LayerDir]) -> None:
        self.by_ino = {ROOT: root}
        self._high: dict[int, int] = {}
        for layer in reversed(layers):
            device = _device(layer)
            self._high.setdefault(device, len(self._high) << _SHIFT)
        self._odd: dict[tuple[int, int], int] = {}

    def number(self, attr: Attr) -> int:
        """The inode number of the object whose topmost backing file has `attr`."""
        high = self._high.get(attr.dev)
        if high is not None and 1 < attr.ino < 1 << _SHIFT:
            return high | attr.ino
        return self._odd.setdefault((attr.dev, attr.ino), _FALLBACK + len(self._odd))

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` of its references to `ino` (FUSE_FORGET)."""
        node = self.by_ino.get(ino)
        if node is None:
            return
        node.nlookup -= count
        if node.nlookup <= 0 and ino != ROOT:
            del self.by_ino[ino]


def _device(layer: LayerDir) -> int:
    attr = layer.look(b"")
    assert attr is not None
    return attr.dev
