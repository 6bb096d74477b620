"""An upper layer on top of a stack: what a name means then, and how an object gets into the upper.

A name is asked of the upper first (`step`); where it has nothing to say, the lower layers answer as in
`fusestore.driver.union.tree`.  A directory of the upper goes on in the lowers unless it is opaque, under
its own name or where its redirect says.

Nodes know their name and parent, and the path in the upper follows from that (`place`).  It is remembered
until some directory is renamed, so that a rename costs nothing for what is below.

Copy-up is described in `fusestore.driver.union.copyup`.  Whoever does not want to wait for the data of a
large file calls `plan` and `commit` and in between runs the job where it likes; all changing methods do
what is left by themselves.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from fusestore.driver import whiteout
from fusestore.driver.union import copyup
from fusestore.driver.union.copyup import CopyUp
from fusestore.driver.union.layerdir import WHITEOUT, Attr, LayerDir
from fusestore.driver.union.nodes import ROOT, Listed, Live, Node
from fusestore.driver.union.resolve import Entry, join, resolve
from fusestore.driver.union.tree import Opened, Union
from fusestore.driver.union.upper import METACOPY, ORIGIN, REDIRECT, Place, Upper

_PATH_LIMIT = 3072  # bytes; a directory with a longer path is reached through an fd of its own


class MergedUnion(Union):
    """`upper` on top of `layers`, topmost first."""

    def __init__(self, upper: Upper, layers: Sequence[LayerDir]) -> None:
        self.upper = upper
        self._index = {id(layer): index for index, layer in enumerate(reversed(layers))}
        self._lowers = tuple(layers)
        self._epoch = 1
        top = upper.tree.look(b"")
        assert top is not None
        below = resolve(layers, b"") if layers else None
        if below is not None and upper.tree.is_opaque(b""):
            below = None
        if below is not None:
            top.nlink = 1
        root = Node(ROOT, None, b"", below.layers if below else (), b"", top, upper=True)
        self._start(root, [upper.tree, *layers])

    # -- what a name means ----------------------------------------------------------------------------

    def step(self, directory: Entry | Node, place: bytes, name: bytes) -> Entry | None:
        if name.startswith(whiteout.PREFIX):
            return None
        below = join(directory.path, name)
        if not directory.upper:
            return resolve(directory.layers, below)
        path = join(place, name)
        top = self.upper.tree.look(path)
        if top is None:
            return resolve(directory.layers, below) if directory.layers else None
        if top is WHITEOUT:
            return None
        return self._merged(directory, below, path, top)

    def _merged(self, directory: Entry | Node, below: bytes, path: bytes, top: Attr) -> Entry:
        """What the upper has at `path`, together with what it says is below it."""
        marks = self.upper.tree.marks(path)
        redirect = marks.get(REDIRECT)
        if stat.S_ISDIR(top.mode):
            if (directory.layers or redirect) and not self.upper.tree.is_opaque(path, marks):
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
        entry = resolve(self._lowers, b"") if self._lowers else None
        for name in redirect.strip(b"/").split(b"/"):
            if entry is None or not stat.S_ISDIR(entry.attr.mode):
                return None
            entry = resolve(entry.layers, join(entry.path, name))
        return entry

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
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            above.append(node)
            node = node.parent
        for below in reversed(above):
            below.place, below.epoch = self._shortened(below, join(node.place, below.name)), self._epoch
            node = below
        return node.place

    def _shortened(self, node: Node, path: bytes) -> bytes:
        """`path`, or a way to the directory `node` through an fd where that is too long for a system call."""
        if len(path) < _PATH_LIMIT or not stat.S_ISDIR(node.attr.mode) or not node.upper:
            return path
        live = self._live(node)
        if live.anchor < 0:
            live.anchor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.upper.tree.fd)
        return b"/proc/self/fd/%d/." % live.anchor

    def at(self, node: Node) -> Place:
        if not node.upper:
            return node.layers[0], node.path
        if node.live is not None and node.live.hidden is not None:
            return self.upper.work, node.live.hidden
        return self.upper.tree, self.place(node)

    def _node(self, directory: Node, name: bytes, entry: Entry) -> Node:
        node = super()._node(directory, name, entry)
        if node.live is not None and node.live.gone:
            return Node(node.ino, directory, name, entry.layers, entry.path, entry.attr, upper=entry.upper)
        if (node.parent is directory and node.name == name) or stat.S_ISDIR(node.attr.mode):
            return node
        self._alias(node, directory, name, entry)
        return node

    def _alias(self, node: Node, directory: Node, name: bytes, entry: Entry) -> None:
        """The file `node` was met under one more name."""
        live = self._live(node)
        if (directory, name) in live.aliases:
            return
        if live.unnamed:
            self._name(node, directory, name)
            return
        if node.upper and not entry.upper:  # the rest of a group of links whose copy-up was interrupted
            self._raise_directory(directory)
            self.upper.link(self.at(node), join(self.place(directory), name), covered=False)
        live.aliases.add((directory, name))
        directory.children += 1
        if entry.upper and not node.upper:
            self._arrived(node, entry.layers)
            node.epoch = 0

    def _name(self, node: Node, directory: Node, name: bytes) -> None:
        """A file that had no known name has one."""
        live = self._live(node)
        self._nodes.rename(node, directory, name)
        node.epoch = 0
        live.unnamed = False
        if live.hidden is not None:
            self.upper.discard(live.hidden)
            live.hidden = None
        changed(node)

    def _live(self, node: Node) -> Live:
        if node.live is None:
            node.live = Live()
        return node.live

    def _bury(self, live: Live) -> None:
        if live.anchor >= 0:
            os.close(live.anchor)
            live.anchor = -1
        if live.hidden is not None:
            self.upper.discard(live.hidden)
            live.hidden, live.gone = None, True

    def attr(self, node: Node) -> Attr:
        if node.stale or node.writers:
            self._refresh(node)
        return node.attr

    def _refresh(self, node: Node) -> None:
        if not node.upper or (node.live is not None and node.live.gone):
            node.stale = False
            return
        layer, path = self.at(node)
        attr = layer.look(path)
        if attr is None or attr is WHITEOUT:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if stat.S_ISDIR(attr.mode):
            attr.nlink = 1 if node.layers else attr.nlink
        elif node.layers:
            attr.blocks = node.attr.blocks
        if node.live is not None and node.live.hidden is not None:
            attr.nlink -= 1
        node.attr, node.stale = attr, False

    def _places(self, node: Node) -> list[Place]:
        lowers = super()._places(node)
        return [(self.upper.tree, self.place(node)), *lowers] if node.upper else lowers

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

    # -- copy-up --------------------------------------------------------------------------------------

    def plan(self, ino: int, *, data: bool = True, limit: int | None = None) -> CopyUp | None:
        """What has to be run before the file `ino` can change: its data (the first `limit` bytes) or, without
        `data`, its attributes; None when nothing has, or a job that is under way already.

        Whoever gets a new one runs it and then calls `commit`, or `abandon` if it failed.
        """
        return self._plan(self.node(ino), data=data, limit=limit)

    def _plan(self, node: Node, *, data: bool, limit: int | None) -> CopyUp | None:
        if not node.layers or not stat.S_ISREG(node.attr.mode):
            return None
        live = self._live(node)
        if live.job is None and not (node.upper and not data):
            if node.upper:
                live.job = copyup.complete(node, self.upper, self.at(node), limit=limit)
            else:
                if not live.unnamed:
                    self._raise_directory(node.parent)
                data = data or not self.upper.metacopy
                live.job = copyup.plan(node, self.upper, self._marks(node), data=data, limit=limit)
        return live.job

    def commit(self, job: CopyUp) -> None:
        """What `job` copied is now the file."""
        node = job.node
        live = self._live(node)
        live.job = None
        if job.staged is None:
            self.upper.unmark(self.at(node), (METACOPY, REDIRECT))
            self.upper.set_times(self.at(node), node.attr.atime_ns, node.attr.mtime_ns)
            self._arrived(node, ())
        else:
            self._install(node, job.staged, layers=node.layers if job.is_metacopy else ())

    def abandon(self, job: CopyUp) -> None:
        """`job` failed: everything stays as it was."""
        self._live(job.node).job = None
        if job.staged is not None:
            self.upper.discard(job.staged)

    def _raise(self, node: Node, *, data: bool = True, limit: int | None = None) -> None:
        """See to it that the upper has `node`, with its data if `data`."""
        if node.live is not None and node.live.gone:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if stat.S_ISDIR(node.attr.mode):
            self._raise_directory(node)
        elif stat.S_ISREG(node.attr.mode):
            job = self._plan(node, data=data, limit=limit)
            if job is not None:
                self._finish(job)
        elif not node.upper:
            if not self._live(node).unnamed:
                self._raise_directory(node.parent)
            self._install(node, copyup.stage_other(node, self.upper, self._marks(node)), ())

    def _finish(self, job: CopyUp) -> None:
        if job.waiting is not None:  # whoever lets others run meanwhile has to wait for them first
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        try:
            job.run()
        except BaseException:
            self.abandon(job)
            raise
        self.commit(job)

    def _raise_directory(self, node: Node) -> None:
        """See to it that the upper has the directory `node` and those above."""
        below = []
        while not node.upper:
            below.append(node)
            node = node.parent
        for node in reversed(below):
            staged = copyup.stage_other(node, self.upper, self._marks(node))
            self._place(node, staged)
            node.upper, node.epoch, node.listing = True, 0, None

    def _place(self, node: Node, staged: bytes) -> None:
        """Move a copy to where `node` is; the directory above has not changed by that."""
        try:
            self.upper.place(staged, self.place(node), covered=False)
        except BaseException:
            self.upper.discard(staged)
            raise
        self._restore_times(node.parent)

    def _restore_times(self, directory: Node) -> None:
        attr = directory.attr if not directory.stale else None
        if attr is None:
            return
        self.upper.set_times(self.at(directory), attr.atime_ns, attr.mtime_ns)

    def _install(self, node: Node, staged: bytes, layers: tuple[LayerDir, ...]) -> None:
        """`staged` is the copy of `node`, in the place of all of its names."""
        live = self._live(node)
        others = self._other_names(node)
        if live.unnamed:
            live.hidden = staged
        else:
            self._raise_directory(node.parent)
            self._place(node, staged)
        self._arrived(node, layers)
        for directory, name in others:
            self._raise_directory(directory)
            self.upper.link(self.at(node), join(self.place(directory), name), covered=False)
            self._restore_times(directory)

    def _other_names(self, node: Node) -> list[tuple[Node, bytes]]:
        """Where else the lower file `node` is to be seen."""
        if node.attr.nlink < 2 and not self._live(node).unnamed:
            return []
        found = []
        for path in node.layers[0].find_links(node.path):
            directory, name = self._directory(path.rpartition(b"/")[0]), path.rpartition(b"/")[2]
            if directory is None or (directory is node.parent and name == node.name):
                continue
            entry = self.step(directory, self.place(directory), name)
            if entry and not entry.upper and entry.layers[0] is node.layers[0] and entry.path == path:
                found.append((directory, name))
        return found

    def _directory(self, path: bytes) -> Node | None:
        """The node of the directory `path`, a new one if the kernel does not know it."""
        node = self.node(ROOT)
        for name in path.split(b"/") if path else ():
            entry = self.step(node, self.place(node), name)
            if entry is None or not stat.S_ISDIR(entry.attr.mode):
                return None
            node = self._node(node, name, entry)
        return node

    def _arrived(self, node: Node, layers: tuple[LayerDir, ...]) -> None:
        """`node` is in the upper now: let the handles of its readers see what is there."""
        node.upper, node.layers = True, layers
        live = self._live(node)
        if not layers:
            for handle in live.handles:
                fd = self.upper.open(self.at(node), os.O_RDONLY)
                os.dup2(fd, handle, inheritable=False)
                os.close(fd)
            live.handles.clear()
        node.parent.listing = None
        changed(node)

    def _marks(self, node: Node) -> dict[bytes, bytes]:
        return {ORIGIN: b"%d:%s" % (self._index[id(node.layers[0])], node.path)}


def changed(node: Node) -> None:
    """What is known of the attributes of `node` is no longer true."""
    node.stale = True
    node.reply = None
