"""The live inodes: numbers, lookup counts, what is remembered of each.

A node lives from the first time the kernel hears of it until the kernel forgets it and every node below it;
nothing else is kept, so memory follows the kernel's own cache.  Inode numbers are those of the backing
files: unique, and the same on the next mount, because a backing file belongs to one object.  What was
copied up keeps the number of the lower file it came from (see `fusestore.driver.union.upper`, "origin").
Where layers lie on several filesystems, the number of the filesystem (counted from the bottom layer, so
that a new layer on top changes nothing) goes into the high byte.  Numbers that do not fit, and number 1,
which is the root's, are given out from 2**63.

A backing file that is deleted frees its number for the next one, perhaps before the kernel has forgotten the
old node.  Both then have the number, told apart by `generation`; what the kernel forgets of either counts for
the number as a whole.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fusestore.driver.union.layerdir import Attr, LayerDir

if TYPE_CHECKING:
    from fusestore.driver.union.copyup import CopyUp

ROOT = 1
_SHIFT = 56
_FALLBACK = 1 << 63
_MANY = 10_000


class Node:
    """An inode.

    `layers`, topmost first, are the lower layers that make it up, and `path` is where they have it.
    `upper` says that the upper layer has it too, and then `parent` and `name` (one of its names) say where.
    `reply` belongs to whoever serves the node (a cached answer); the core only clears it.  `listing` is a
    directory's names once somebody listed it.  `stale` means that `attr` has to be read again; `writers`,
    that it changes without our knowing.  `live` is what only few nodes have.
    """

    __slots__ = (
        "attr", "children", "epoch", "generation", "ino", "layers", "listing", "live", "name", "nlookup",
        "parent", "path", "place", "reply", "stale", "upper",
    )  # fmt: skip

    def __init__(
        self,
        ino: int,
        parent: Node | None,
        name: bytes,
        layers: tuple[LayerDir, ...],
        path: bytes,
        attr: Attr,
        *,
        upper: bool = False,
    ) -> None:
        self.ino = ino
        self.parent = parent or self
        self.name = name
        self.layers = layers
        self.path = path
        self.attr = attr
        self.upper = upper
        self.place, self.epoch = b"", 0
        self.nlookup = self.children = self.generation = 0
        self.stale = False
        self.reply: Any = None
        self.listing: list[Listed] | None = None
        self.live: Live | None = None


class Live:
    """What is special about a node that is open, has several names or none, or is on its way up.

    `handles` are the fds of readers of a lower file, to be re-pointed when it is copied up; `open` counts
    all. `aliases` are further names; `unnamed` means that no name is known, `hidden` is then what it is
    called in the work directory, and `gone` means that nothing is left of it but its attributes.  `anchor`
    is an fd of a directory.  `job` is the copy-up that is under way.  `written`: its mtime is the kernel's
    to say.
    """

    __slots__ = ("aliases", "anchor", "gone", "handles", "hidden", "job", "open", "unnamed", "written")

    def __init__(self) -> None:
        self.handles: list[int] = []
        self.open = 0
        self.aliases: set[tuple[Node, bytes]] = set()
        self.hidden: bytes | None = None
        self.unnamed = self.gone = self.written = False
        self.anchor = -1
        self.job: CopyUp | None = None

    def is_nothing(self) -> bool:
        """True when there is nothing special any more."""
        busy = self.open or self.aliases or self.job is not None or self.anchor >= 0
        return not (busy or self.unnamed or self.gone or self.hidden is not None)


class Listed:
    """A name in a directory: the index of its topmost layer, and its inode number once known."""

    __slots__ = ("index", "ino", "name")

    def __init__(self, name: bytes, index: int) -> None:
        self.name = name
        self.index = index
        self.ino = 0


class Nodes:
    """The table of live inodes."""

    def __init__(
        self, root: Node, layers: Sequence[LayerDir], bury: Callable[[Live], None] = lambda _: None
    ) -> None:
        """`layers` are all there are, topmost first; `bury` is told what was special about a forgotten
        node."""
        self.by_ino = {ROOT: root}
        self._bury = bury
        self._high: dict[int, int] = {}
        for layer in reversed(layers):
            device = _device(layer)
            self._high.setdefault(device, len(self._high) << _SHIFT)
        self._odd: dict[tuple[int, int], int] = {}
        self._most = 0
        #: Numbers of objects that have been copied up and cannot say from where.
        self.kept: dict[tuple[int, int], int] = {}

    def number(self, attr: Attr) -> int:
        """The inode number of the object whose backing file has `attr`."""
        if self.kept and (attr.dev, attr.ino) in self.kept:
            return self.kept[attr.dev, attr.ino]
        high = self._high.get(attr.dev)
        if high is not None and 1 < attr.ino < 1 << _SHIFT:
            return high | attr.ino
        return self._odd.setdefault((attr.dev, attr.ino), _FALLBACK + len(self._odd))

    def count(self, node: Node) -> None:
        """The kernel has heard of `node` once more."""
        node.nlookup += 1
        known = self.by_ino.get(node.ino)
        if known is not node:
            self.by_ino[node.ino] = node
            self._most = max(self._most, len(self.by_ino))
            node.parent = self.hold(node.parent)
            if known is not None:
                node.nlookup += known.nlookup
                node.generation = known.generation + 1
                self._bury_and_release(known)

    def forget(self, ino: int, count: int) -> None:
        """The kernel drops `count` of its references to `ino` (FUSE_FORGET)."""
        node = self.by_ino.get(ino)
        if node is not None:
            node.nlookup -= count
            if node.nlookup <= 0:
                self._drop(node)

    def _drop(self, node: Node) -> None:
        """Take a node that nobody needs out of the table, and then perhaps the one above."""
        if node.nlookup <= 0 and not node.children and node.ino != ROOT and self.by_ino.get(node.ino) is node:
            del self.by_ino[node.ino]
            self._bury_and_release(node)
            if self._most > _MANY and len(self.by_ino) < self._most // 8:
                self._shrink()

    def _shrink(self) -> None:
        """Give memory back: a dict keeps its size, and Python's free lists keep whole arenas from being
        freed.

        Of 95 MB that were left when 200,000 nodes were forgotten, 38 MB stayed.
        """
        self.by_ino = dict(self.by_ino)
        self._most = len(self.by_ino)
        gc.collect()

    def _bury_and_release(self, node: Node) -> None:
        if node.live is not None:
            self._bury(node.live)
            for directory, _ in node.live.aliases:
                self.release(directory)
        self.release(node.parent)

    def same(self, directory: Node) -> Node:
        """The node in the table that stands for `directory`, if there is one, else itself."""
        known = self.by_ino.get(directory.ino, directory)
        return directory if known.live is not None and known.live.gone else known

    def hold(self, directory: Node) -> Node:
        """A name more needs `directory`; the node that stands for it, in the table from now on.

        One that the kernel has not heard of would have a twin as soon as it does.
        """
        directory = self.same(directory)
        if directory.ino not in self.by_ino:
            directory.parent = self.hold(directory.parent)
            self.by_ino[directory.ino] = directory
        directory.children += 1
        return directory

    def release(self, directory: Node) -> None:
        """A name less needs `directory`."""
        directory.children -= 1
        self._drop(directory)

    def rename(self, node: Node, parent: Node, name: bytes) -> None:
        """`node` is now called `name` in `parent`."""
        known = self.by_ino.get(node.ino) is node
        parent = self.hold(parent) if known else parent
        old, node.parent, node.name = node.parent, parent, name
        if known:
            self.release(old)


def _device(layer: LayerDir) -> int:
    attr = layer.look(b"")
    assert attr is not None
    return attr.dev
