"""How an object of a writable union gets into its upper, and what a node is to hold on to when it does.

The steps are described in `fusestore.driver.union.copyup`.  Whoever does not want to wait for the data of a
large file calls `plan` and `commit` and in between runs the job where it likes; all changing methods do
what is left by themselves.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from fusestore.driver.union import copyup
from fusestore.driver.union.copyup import CopyUp
from fusestore.driver.union.layerdir import METACOPY, ORIGIN, REDIRECT, WHITEOUT, Attr, LayerDir, Place
from fusestore.driver.union.merged import PATH_LIMIT, MergedUnion, stale
from fusestore.driver.union.nodes import ROOT, Live, Node
from fusestore.driver.union.resolve import Entry, join
from fusestore.driver.union.upper import Upper


class RaisingUnion(MergedUnion):
    """A `MergedUnion` that can write to its upper."""

    def __init__(self, upper: Upper, layers: Sequence[LayerDir]) -> None:
        self.upper = upper
        self._index = {id(layer): index for index, layer in enumerate(reversed(layers))}
        super().__init__(upper.tree, layers)

    def at(self, node: Node) -> Place:
        live = node.live
        if live is not None and live.hidden is not None:
            return self.upper.work, live.hidden
        if live is not None and live.gone and live.anchor >= 0 and stat.S_ISDIR(node.attr.mode):
            return self.tree, b"/proc/self/fd/%d/." % live.anchor
        return super().at(node)

    def _node(self, directory: Node, name: bytes, entry: Entry) -> Node:
        directory = self._nodes.same(directory)
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
        live.aliases.add((self._nodes.hold(directory), name))
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

    def _bury(self, live: Live) -> None:
        if live.anchor >= 0:
            os.close(live.anchor)
            live.anchor = -1
        if live.hidden is not None:
            self.upper.discard(live.hidden)
            live.hidden, live.gone = None, True

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
            raise stale()
        if stat.S_ISDIR(node.attr.mode):
            self._raise_directory(node)
        elif stat.S_ISREG(node.attr.mode):
            job = self._plan(node, data=data, limit=limit)
            if job is not None:
                self._finish(job)
        elif not node.upper:
            if not self._live(node).unnamed:
                self._raise_directory(node.parent)
            staged = copyup.stage_other(node, self.upper, self._marks(node))
            self._install(node, staged, ())
            layer, path = self.at(node)
            st = os.stat(path, dir_fd=layer.fd, follow_symlinks=False)
            self._nodes.kept[st.st_dev, st.st_ino] = node.ino

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
            if self.tree.look(self.place(node)) not in (None, WHITEOUT):
                node.upper, node.listing = True, None  # by another node of this directory (`_directory`)
                continue
            staged = copyup.stage_other(node, self.upper, self._marks(node))
            self._place(node, staged)
            node.upper, node.listing = True, None
            if len(self.place(node)) >= PATH_LIMIT:  # from now on it is reached in another way
                self._epoch += 1

    def _place(self, node: Node, staged: bytes) -> None:
        """Move a copy to where `node` is; the directory above has not changed by that."""
        above = self.attr(node.parent)
        try:
            is_directory = stat.S_ISDIR(node.attr.mode)
            self.upper.place(staged, self.place(node), covered=False, directory=is_directory)
        except BaseException:
            self.upper.discard(staged)
            raise
        self._restore_times(node.parent, above)

    def _restore_times(self, directory: Node, attr: Attr) -> None:
        self.upper.set_times(self.at(directory), attr.atime_ns, attr.mtime_ns)

    def _install(self, node: Node, staged: bytes, layers: tuple[LayerDir, ...]) -> None:
        """`staged` is the copy of `node`, in the place of all of its names."""
        live = self._live(node)
        others = self._other_names(node)
        for directory, _ in others:
            self._raise_directory(directory)
        paths = [join(self.place(directory), name) for directory, name in others]
        note = None
        if live.unnamed:
            live.hidden = staged
        else:
            self._raise_directory(node.parent)
            note = self.upper.intend([self.place(node), *paths]) if paths else None
            self._place(node, staged)
        self._arrived(node, layers)
        for (directory, _), path in zip(others, paths, strict=True):
            above = self.attr(directory)
            self.upper.link(self.at(node), path, covered=False)
            self._restore_times(directory, above)
        if note is not None:
            self.upper.discard(note)

    def _other_names(self, node: Node) -> list[tuple[Node, bytes]]:
        """Where else the lower file `node` is to be seen."""
        if node.attr.nlink < (1 if self._live(node).unnamed else 2):
            return []
        found = []
        for path in node.layers[0].find_links(node.path):
            directory, name = self._directory(path.rpartition(b"/")[0]), path.rpartition(b"/")[2]
            if directory is None or (directory.ino == node.parent.ino and name == node.name):
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
