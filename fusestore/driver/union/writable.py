"""`WritableUnion`: the verbs that change names - create, link, unlink, rename.

A name that some lower layer has is taken away by a whiteout, and what is made in the place of a whiteout
hides what is below: a directory by being opaque.  `fusestore.driver.union.upper` does both in one rename.

A file that is unlinked while it is open, or of which another name may exist that nobody has asked for yet,
moves to the work directory; an unlinked file of a lower layer simply stays there.

A directory with something below it in the lowers is renamed by telling it where that is (redirect); in an
upper that has to stay readable for others, by first copying up everything in it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import NamedTuple

from fusestore.driver import acl, whiteout
from fusestore.driver.ownership import Metadata
from fusestore.driver.union import copyup
from fusestore.driver.union.files import FilesUnion, Writer
from fusestore.driver.union.layerdir import OPAQUE, REDIRECT, WHITEOUT, Attr
from fusestore.driver.union.nodes import Node
from fusestore.driver.union.raising import changed
from fusestore.driver.union.resolve import children, join, resolve
from fusestore.driver.whiteout import Spelling
from fusestore.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE

_NAME_MAX = 255


class Owner(NamedTuple):
    """Who makes an object: ids as they are to be shown, and the umask."""

    uid: int
    gid: int
    umask: int = 0


class WritableUnion(FilesUnion):
    """`upper` on top of `layers`, topmost first, as one tree.  Raises OSError and nothing else."""

    # -- making ---------------------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, owner: Owner, writer: Writer = None
    ) -> tuple[Node, int]:
        """A new regular file and a handle of it.  Nodes of new objects are counted."""
        directory, path, covered = self._vacancy(parent, name)
        meta = self._described(directory, stat.S_IFREG | mode, owner)
        fd = self.upper.make_file(path, meta, covered=covered)
        node = self._born(directory, name, meta, os.fstat(fd))
        self._register(fd, node, writer, writable=flags & os.O_ACCMODE != os.O_RDONLY)
        return node, fd

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Node:
        """A new directory."""
        directory, path, covered = self._vacancy(parent, name)
        meta = self._described(directory, stat.S_IFDIR | mode, owner)
        self.upper.make_directory(path, meta, covered=covered)
        return self._born(directory, name, meta)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Node:
        """A new device, fifo, socket or regular file."""
        if stat.S_ISREG(mode):
            node, handle = self.create(parent, name, mode, os.O_RDONLY, owner)
            self.release(handle)
            return node
        if stat.S_ISCHR(mode) and not rdev:
            raise _error(errno.EPERM)  # that is what a whiteout is
        directory, path, covered = self._vacancy(parent, name)
        meta = self._described(directory, mode, owner, rdev)
        self.upper.make_other(path, meta, b"", covered=covered)
        return self._born(directory, name, meta)

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Node:
        """A new symlink."""
        directory, path, covered = self._vacancy(parent, name)
        meta = self._described(directory, stat.S_IFLNK | 0o777, owner._replace(umask=0))
        self.upper.make_other(path, meta, target, covered=covered)
        return self._born(directory, name, meta)

    def link(self, ino: int, parent: int, name: bytes) -> Node:
        """One more name for a file."""
        node = self.node(ino)
        directory, path, covered = self._vacancy(parent, name)
        self._raise(node, data=False)
        self.upper.link(self.at(node), path, covered=covered)
        live = self._live(node)
        if live.unnamed:
            self._name(node, directory, name)
        else:
            live.aliases.add((directory, name))
            directory.children += 1
        self._renamed_in(directory)
        changed(node)
        self.count(node)
        return node

    def _vacancy(self, parent: int, name: bytes) -> tuple[Node, bytes, bool]:
        """The directory `parent`, now in the upper; where `name` would be; whether a whiteout is there."""
        directory = self.node(parent)
        self._check_name(directory, name)
        self._raise_directory(directory)
        path = join(self.place(directory), name)
        top = self.tree.look(path)
        if top is WHITEOUT:
            return directory, path, True
        if top is not None or self._is_below(directory, name):
            raise _error(errno.EEXIST)
        return directory, path, False

    def _check_name(self, directory: Node, name: bytes) -> None:
        if name.startswith(whiteout.PREFIX):
            raise _error(errno.EINVAL)
        if self.upper.spelling is Spelling.NAME and len(name) + len(whiteout.PREFIX) > _NAME_MAX:
            raise _error(errno.ENAMETOOLONG)
        if directory.live is not None and directory.live.unnamed:
            raise _error(errno.ENOENT)

    def name_max(self, backing: os.statvfs_result) -> int:
        return backing.f_namemax - (len(whiteout.PREFIX) if self.upper.spelling is Spelling.NAME else 0)

    def _is_below(self, directory: Node, name: bytes) -> bool:
        """True when the lowers of `directory` have `name`, visible or not."""
        return bool(directory.layers) and resolve(directory.layers, join(directory.path, name)) is not None

    def _described(self, directory: Node, mode: int, owner: Owner, rdev: int = 0) -> Metadata:
        """What a new object in `directory` is: setgid and default ACLs are inherited, else the umask
        counts."""
        above = self.attr(directory)
        gid = owner.gid
        if above.mode & stat.S_ISGID:
            gid = above.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        meta = Metadata(mode & ~owner.umask, owner.uid, gid, time.time_ns(), rdev=rdev)
        layer, path = self.at(directory)
        default = layer.getxattr(path, acl.DEFAULT) if not stat.S_ISLNK(mode) else None
        if default is not None:
            access, meta.mode = acl.inherited(default, mode)
            if access is not None:
                meta.xattrs[acl.ACCESS] = access
            if stat.S_ISDIR(mode):
                meta.xattrs[acl.DEFAULT] = default
        return meta

    def _born(self, directory: Node, name: bytes, meta: Metadata, st: os.stat_result | None = None) -> Node:
        """The node of what was just made, counted."""
        if st is None:
            st = os.stat(join(self.place(directory), name), dir_fd=self.tree.fd, follow_symlinks=False)
        attr = Attr(st)
        attr.mode, attr.uid, attr.gid, attr.rdev = meta.mode, meta.uid, meta.gid, meta.rdev
        if stat.S_IFMT(meta.mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            attr.size = attr.blocks = 0
        node = Node(self._nodes.number(attr), directory, name, (), b"", attr, upper=True)
        self.count(node)
        self._renamed_in(directory)
        return node

    def _renamed_in(self, directory: Node) -> None:
        """Names of `directory` have changed."""
        directory.listing = None
        changed(directory)

    # -- taking away ----------------------------------------------------------------------------------

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name of a file."""
        directory, node = self._existing(parent, name)
        if stat.S_ISDIR(node.attr.mode):
            raise _error(errno.EISDIR)
        self._raise_directory(directory)
        self._keep_links(node)
        path = join(self.place(directory), name)
        cover = self._is_below(directory, name)
        if not node.upper:
            self.upper.cover(path)
        elif self._must_stay(node, directory, name):
            self._live(node).hidden = self.upper.hide(path, cover=cover)
        else:
            self._anchor(node, path)
            self.upper.remove(path, cover=cover)
        self._forget_name(node, directory, name)
        self._renamed_in(directory)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        directory, node = self._existing(parent, name)
        if not stat.S_ISDIR(node.attr.mode):
            raise _error(errno.ENOTDIR)
        if children(self._places(node)):
            raise _error(errno.ENOTEMPTY)
        self._raise_directory(directory)
        path = join(self.place(directory), name)
        if node.upper:
            self._anchor(node, path)
            self.upper.remove_directory(path, cover=self._is_below(directory, name))
        else:
            self.upper.cover(path)
        self._directory_gone(node)
        self._renamed_in(directory)

    def _existing(self, parent: int, name: bytes) -> tuple[Node, Node]:
        directory = self.node(parent)
        node = self._find(directory, name)
        if node is None:
            raise _error(errno.ENOENT)
        return directory, node

    def _find(self, directory: Node, name: bytes) -> Node | None:
        """The node that `name` in `directory` is, uncounted if the kernel does not know it."""
        if directory.live is not None and directory.live.unnamed:
            return None
        entry = self.step(directory, self.place(directory), name)
        return None if entry is None else self._node(directory, name, entry)

    def _keep_links(self, node: Node) -> None:
        """Before a name of a lower file goes: what other names it has have to know that they are fewer."""
        if not node.upper and node.attr.nlink > 1 and self._other_names(node):
            self._raise(node, data=False)

    def _must_stay(self, node: Node, directory: Node, name: bytes) -> bool:
        """True when an upper file is needed after it has lost the name `name`, and no other is known."""
        if node.nlookup <= 0 or self._has_other_name(node, directory, name):
            return False
        live = node.live
        return (live is not None and live.open > 0) or self.attr(node).nlink > 1

    def _has_other_name(self, node: Node, directory: Node, name: bytes) -> bool:
        if node.live is None or not node.live.aliases:
            return False
        return bool(node.live.aliases - {(directory, name)}) or (node.parent, node.name) != (directory, name)

    def _forget_name(self, node: Node, directory: Node, name: bytes) -> None:
        """`node` is no longer called `name` in `directory`."""
        live = self._live(node)
        if (directory, name) in live.aliases:
            live.aliases.remove((directory, name))
            self._nodes.release(directory)
        elif live.aliases:
            node.parent, node.name = live.aliases.pop()
            self._nodes.release(directory)
        else:
            live.unnamed = True
        node.epoch, node.reply = 0, None
        node.attr.ctime_ns = time.time_ns()
        if not node.upper:
            node.attr.nlink = max(node.attr.nlink - 1, 0)
            self._visible_links.clear()
        elif live.unnamed and live.hidden is None:
            live.gone, node.attr.nlink, node.stale = True, 0, False
        else:
            node.stale = True

    def _anchor(self, node: Node, path: bytes) -> None:
        """Keep the inode number of an object that goes from being given to another while it is in use."""
        if self.attr(node).nlink > 1 and not stat.S_ISDIR(node.attr.mode):
            return
        if self._nodes.kept:
            st = os.stat(path, dir_fd=self.tree.fd, follow_symlinks=False)
            self._nodes.kept.pop((st.st_dev, st.st_ino), None)
        live = self._live(node)
        if live.anchor < 0 and node.nlookup > 0:
            with contextlib.suppress(OSError):  # too many open files: then the kernel will be told (`Nodes`)
                live.anchor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.tree.fd)

    def _directory_gone(self, node: Node) -> None:
        live = self._live(node)
        live.unnamed = live.gone = True
        node.attr.nlink, node.attr.ctime_ns = 0, time.time_ns()
        node.stale, node.reply, node.epoch, node.listing = False, None, 0, []

    # -- renaming -------------------------------------------------------------------------------------

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """renameat2(2); RENAME_WHITEOUT is refused (EINVAL)."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise _error(errno.EINVAL)
        old, node = self._existing(parent, name)
        new = self.node(new_parent)
        self._check_name(new, new_name)
        target = self._find(new, new_name)
        if flags == RENAME_EXCHANGE:
            self._exchange((old, name, node), (new, new_name, target))
            return
        if target is not None:
            if flags == RENAME_NOREPLACE:
                raise _error(errno.EEXIST)
            if target is node or target.ino == node.ino:
                return
            self._check_replaceable(node, target)
            self._keep_links(target)
        self._prepare(node, new, new_name)
        path, new_path = join(self.place(old), name), join(self.place(new), new_name)
        covered = target is None and self.tree.look(new_path) is WHITEOUT
        if target is not None:
            self._make_way(target, new, new_name, new_path)
        cover = self._is_below(old, name)
        self.upper.move(path, new_path, cover=cover, covered=covered, directory=stat.S_ISDIR(node.attr.mode))
        if target is not None:
            self._replaced(target, new, new_name)
        self._moved(node, (old, name), (new, new_name))

    def _check_replaceable(self, node: Node, target: Node) -> None:
        if not stat.S_ISDIR(target.attr.mode):
            if stat.S_ISDIR(node.attr.mode):
                raise _error(errno.ENOTDIR)
        elif not stat.S_ISDIR(node.attr.mode):
            raise _error(errno.EISDIR)
        elif children(self._places(target)):
            raise _error(errno.ENOTEMPTY)

    def _prepare(self, node: Node, new: Node, new_name: bytes) -> None:
        """Get `node` ready to be moved to `new_name` in `new`: in the upper, hiding what is below there."""
        self._raise(node, data=False)
        self._raise_directory(node.parent)
        self._raise_directory(new)
        if not stat.S_ISDIR(node.attr.mode):
            return
        path = self.place(node)
        if node.layers and not self._redirect(node, path):
            self._raise_tree(node)
        if not node.layers and self._is_below(new, new_name):
            self.upper.mark(path, OPAQUE, b"y")

    def _redirect(self, node: Node, path: bytes) -> bool:
        """Tell a merged directory where it goes on below; False where that is not allowed or has no room."""
        if not self.upper.redirect:
            return False
        self._raise_links(node)
        try:
            self.upper.mark(path, REDIRECT, b"/" + node.path)
        except OSError as exc:
            if exc.errno not in (errno.E2BIG, errno.ENOSPC):
                raise
            return False
        return True

    def _raise_links(self, top: Node) -> None:
        """Copy up what has several names below `top`: they are found by their paths in the lower."""
        for layer in top.layers:
            for path in layer.links_below(top.path):
                node: Node | None = top
                for name in path[len(top.path) + 1 :].split(b"/"):
                    is_directory = node is not None and stat.S_ISDIR(node.attr.mode)
                    node = self._find(node, name) if node is not None and is_directory else None
                if node is None or node.upper or node.layers[0] is not layer:
                    continue
                if node.path in layer.find_links(path):  # a node has the path of the name it was found by
                    self._raise(node, data=False)

    def _raise_tree(self, top: Node) -> None:
        """Copy a directory up with all that is in it, so that it needs nothing from below."""
        directories = [top]
        for directory in directories:  # grows while we walk
            self._raise_directory(directory)
            for name, _ in children(self._places(directory)):
                node = self._find(directory, name)
                if node is not None and stat.S_ISDIR(node.attr.mode):
                    directories.append(node)
                elif node is not None:
                    self._raise(node)
        self.upper.mark(self.place(top), OPAQUE, b"y")
        for directory in directories:
            directory.layers, directory.listing = (), None
            changed(directory)

    def large_files(self, ino: int, least: int) -> list[Node]:
        """The files below a directory of which `rename` would have to copy `least` bytes or more; each
        counted."""
        node = self.node(ino)
        if self.upper.redirect or not stat.S_ISDIR(node.attr.mode) or not node.layers:
            return []
        found, directories = [], [node]
        for directory in directories:  # grows while we walk
            for name, _ in children(self._places(directory)):
                child = self._find(directory, name)
                if child is not None and stat.S_ISDIR(child.attr.mode):
                    directories.append(child)
                elif child is not None and child.layers and child.attr.size >= least:
                    self.count(child)
                    found.append(child)
        return found

    def _make_way(self, target: Node, new: Node, new_name: bytes, path: bytes) -> None:
        """Before `target` is replaced: keep a file that somebody has open, drop a directory's whiteouts."""
        if not target.upper:
            return
        if stat.S_ISDIR(target.attr.mode):
            self._anchor(target, path)
            layer, _ = self.at(target)
            if os.listdir(layer.named(path)):
                meta = copyup.metadata(layer, path, self.attr(target))
                self.upper.clear(path, meta, opaque=bool(target.layers))
            return
        if self._must_stay(target, new, new_name):
            self._live(target).hidden = self.upper.keep(path)
        else:
            self._anchor(target, path)

    def _replaced(self, target: Node, new: Node, new_name: bytes) -> None:
        if stat.S_ISDIR(target.attr.mode):
            self._directory_gone(target)
        else:
            self._forget_name(target, new, new_name)

    def _moved(self, node: Node, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """`node`, which was `old`, is now `new`."""
        live = node.live
        if live is not None and old in live.aliases:
            live.aliases.remove(old)
            live.aliases.add(new)
            new[0].children += 1
            self._nodes.release(old[0])
        else:
            self._nodes.rename(node, *new)
        node.epoch = 0
        if stat.S_ISDIR(node.attr.mode):
            self._epoch += 1
        self._renamed_in(old[0])
        self._renamed_in(new[0])
        changed(node)

    def _exchange(self, first: tuple[Node, bytes, Node], second: tuple[Node, bytes, Node | None]) -> None:
        """RENAME_EXCHANGE."""
        old, name, node = first
        new, new_name, other = second
        if other is None:
            raise _error(errno.ENOENT)
        if other.ino == node.ino:
            return
        self._prepare(node, new, new_name)
        self._prepare(other, old, name)
        self.upper.exchange(join(self.place(old), name), join(self.place(new), new_name))
        self._moved(node, (old, name), (new, new_name))
        self._moved(other, (new, new_name), (old, name))


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
