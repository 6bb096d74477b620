"""Random operations on a `WritableUnion`, each compared with `support.filesystem_model`.

The machine stands where the kernel stands: it looks names up one by one, remembers what it was told, counts
that and forgets, keeps files and directories open, lets a copy-up wait while it does something else, mounts
again and pulls the plug.
"""

import errno
import os
import stat
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support import model
from support.filesystem_model import ANY, CAPABILITY, NOW, Filesystem, Inode, Writer, expected_changes
from support.layers import Shown, tree
from support.stacks import stacks
from support.union_on_disk import Directories, fingerprint, open_below

from fusestore.driver.ownership import Metadata, Ownership
from fusestore.driver.union.copyup import CopyUp
from fusestore.driver.union.nodes import ROOT, Node
from fusestore.driver.union.writable import Owner
from fusestore.driver.whiteout import Spelling
from fusestore.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT

HAS_HANDLES = precondition(lambda self: self.handles)
HAS_WRITERS = precondition(lambda self: any(handle.writable for handle in self.handles))
HAS_LISTINGS = precondition(lambda self: self.listings)
HAS_JOBS = precondition(lambda self: self.jobs)

PICK = st.integers(0, 40)  # an index into whatever there is
NAME = st.sampled_from([b"a", b"b", b"c", b"d", b"a", b"b", b"c", b"d", b".wh.a"])
MODE = st.sampled_from([0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o400, 0])
UID = st.sampled_from([0, 0, 0, 1000])
OWNER = st.builds(Owner, UID, UID, st.sampled_from([0, 0o022, 0o077]))
DATA = st.sampled_from([b"x", b"some bytes", b"\0", b"many" * 2000])
SIZE = st.sampled_from([0, 0, 1, 3, 9, 5000])
OPEN = st.sampled_from([os.O_RDONLY, os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
WRITER = st.sampled_from([None, lambda gid: True, lambda gid: gid == 42])
TIME = st.sampled_from([7_000_000_000, -7_000_000_000, 1_000_000_000_123_456_789])
XATTR = st.sampled_from([b"user.k", b"user.k", b"user.n", b"trusted.t", CAPABILITY])
SOME_CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
FLAGS = st.sampled_from([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE, RENAME_WHITEOUT])
SPECIAL = st.sampled_from(
    [
        (stat.S_IFIFO, 0),
        (stat.S_IFSOCK, 0),
        (stat.S_IFCHR, os.makedev(1, 3)),
        (stat.S_IFBLK, os.makedev(7, 0)),
    ]
)
CLOCK_TICK = 1_000_000_000  # ns that the clock of files may be behind


@dataclass(eq=False)
class Handle:
    """An open file."""

    fd: int
    inode: Inode
    writable: bool
    writer: Writer


@dataclass(eq=False)
class Listing:
    """An open directory, read up to `offset`: what has been there all the time, and what was listed."""

    handle: int
    inode: Inode
    lasting: set[bytes]
    listed: set[bytes] = field(default_factory=set)
    offset: int = 0


class UnionMachine(RuleBasedStateMachine):
    """`ownership` is that of all layers."""

    ownership = Ownership.OVERRIDE

    # -- a mount --------------------------------------------------------------------------------------

    @initialize(data=st.data())
    def mount_first(self, data):
        spelling = data.draw(st.sampled_from(Spelling))
        options = {
            key: data.draw(st.booleans()) for key in ("metacopy", "redirect", "told", "plain_symlinks")
        }
        self.watched = data.draw(st.sampled_from(["at the end", "always", "on disk"]))
        self.plain_symlinks = options["plain_symlinks"] and self.ownership is Ownership.OVERRIDE
        layers = data.draw(stacks(self.ownership))
        tree, archives = model.stacked(layers)
        self.scratch = Path(tempfile.mkdtemp(prefix="union-model-"))
        self.disk = Directories(self.scratch, archives, self.ownership, spelling, **options)
        self.fs = Filesystem(tree)
        self.first = self.fs.facts()
        root = self.fs.root
        self.disk.make_upper(Metadata(root.mode, root.uid, root.gid, root.mtime_ns, xattrs=root.xattrs))
        self.fs.root.ino = ROOT
        self.lowers = fingerprint(self.disk.lowers)
        self.hidden_links = () if options["told"] else {seen.ino for seen in self.lowers if seen.nlink > 1}
        self._mount()

    def _mount(self):
        self.union = self.disk.mount()
        self.dentries: dict[tuple[Inode, bytes], Inode] = {}
        self.counts: Counter[Inode] = Counter()
        self.handles: list[Handle] = []
        self.listings: list[Listing] = []
        self.jobs: dict[Inode, CopyUp] = {}
        self.orphans: list[Inode] = []  # without a name, but not forgotten

    def _unmount(self):
        for inode in list(self.jobs):
            self._settle(inode)
        for handle in self.handles:
            self.union.release(handle.fd)
        for listing in self.listings:
            self.union.releasedir(listing.handle)
        self.handles, self.listings = [], []
        self._drop_caches()
        assert os.listdir(self.disk.work) == [], "left in the work directory"
        assert list(self.union._nodes.by_ino) == [ROOT], "nodes that nobody needs"
        self.disk.unmount()
        assert open_below(self.scratch) == []

    def teardown(self):
        if not hasattr(self, "union"):
            return
        try:
            self._check_everything()
            self._unmount()
            self._mount()
            self._check_everything()
            self._unmount()
            assert fingerprint(self.disk.lowers) == self.lowers, "a lower layer has changed"
            self._check_diff()
        finally:
            self.disk.pull_the_plug()
            self.disk.remove()

    def _check_diff(self) -> None:
        """The upper as a layer: what it says it changes, and that it shows the same tree."""
        changed, shown = self.disk.differences()
        expected = expected_changes(self.first, self.fs.facts())
        assert sorted((change.kind.value, change.path) for change in changed) == expected
        for path, inode in self.fs.walk().items():
            if stat.S_ISSOCK(inode.mode):  # no tar has sockets
                parent, _, name = path.rpartition(b"/")
                del self.fs.find(parent).children[name]
        self.hidden_links = ()
        self._compare(shown, live=False)

    @rule(crash=st.booleans())
    def mount_again(self, crash):
        note(f"-- {'crash' if crash else 'remount'}")
        if crash:
            self.disk.pull_the_plug()
        else:
            self._unmount()
        self._mount()
        assert os.listdir(self.disk.work) == []
        self._check_everything()

    # -- what the kernel remembers --------------------------------------------------------------------

    def _met(self, parent: Inode, name: bytes, node: Node, *, counted: bool = True) -> Inode:
        """The union has told of `node`, which must be what the model has there."""
        inode = parent.children[name]
        self._number(inode, node.ino)
        if counted:
            self.counts[inode] += 1
        self.dentries[parent, name] = inode
        return inode

    def _number(self, inode: Inode, ino: int) -> None:
        if inode.ino is None:
            for orphan in list(self.orphans):
                if orphan.ino == ino:
                    assert not self._is_open(orphan), f"number {ino} is that of an open file"
                    self._forget(orphan)
            inode.ino = ino
        assert ino == inode.ino, f"inode number {ino}, was {inode.ino}"

    def _walk(self, path: bytes) -> Inode | None:
        """Look `path` up as far as it is not known yet."""
        inode = self.fs.root
        for name in path.split(b"/") if path else ():
            inode = self._look_up(inode, name)
            if inode is None:
                return None
        return inode

    def _look_up(self, parent: Inode, name: bytes) -> Inode | None:
        inode = parent.children.get(name)
        if (parent, name) not in self.dentries:
            node = self.union.lookup(parent.ino, name)
            assert (node is None) == (inode is None), f"lookup of {name!r}"
            if node is not None:
                self._met(parent, name, node)
        return inode

    def _is_open(self, inode: Inode) -> bool:
        return any(one.inode is inode for one in [*self.handles, *self.listings])

    def _forget(self, inode: Inode) -> bool:
        """Let the kernel forget `inode`, if it can."""
        if self._is_open(inode) or inode in self.jobs or any(parent is inode for parent, _ in self.dentries):
            return False
        for key in [key for key, child in self.dentries.items() if child is inode]:
            del self.dentries[key]
        if inode in self.counts:
            self.union.forget(inode.ino, self.counts.pop(inode))
        with suppress(ValueError):
            self.orphans.remove(inode)
        return True

    def _drop_caches(self) -> None:
        known = -1
        while known != len(self.counts):  # a directory goes after what is in it
            known = len(self.counts)
            for inode in list(self.counts):
                self._forget(inode)

    def _name_gone(self, inode: Inode, *, evict: bool) -> None:
        if inode.removed and inode in self.counts:
            self.orphans.append(inode)
            if evict:
                self._forget(inode)

    # -- comparing ------------------------------------------------------------------------------------

    def _agree(self, expected, actual):
        """Do the same on both; what the union says."""
        wanted = got = None
        self.began = time.time_ns()
        try:
            expected()
        except OSError as exc:
            wanted = errno.errorcode[exc.errno]
        try:
            answer = actual()
        except OSError as exc:
            got, answer = errno.errorcode[exc.errno], None
            if got != wanted:
                raise
        assert got == wanted, f"{got}, expected {wanted}"
        return answer

    def _check(self, inode: Inode) -> None:
        """Everything about one inode that the kernel knows."""
        attr = self.union.attr(self.union.node(inode.ino))
        assert f"{attr.mode:o}" == f"{inode.mode:o}"
        assert (attr.uid, attr.gid, attr.rdev) == (inode.uid, inode.gid, inode.rdev)
        if inode.mtime_ns == NOW:
            assert attr.mtime_ns > self.began - CLOCK_TICK, "the modification time is old"
        if inode.mtime_ns in (NOW, ANY):
            inode.mtime_ns = attr.mtime_ns
        assert attr.mtime_ns == inode.mtime_ns
        if not inode.is_directory:
            self._check_links(inode, attr.nlink)
            assert attr.size == len(inode.content)
        elif inode.removed:
            assert attr.nlink == 0
        if inode.removed and not self._is_open(inode):
            return
        if inode.is_file:
            fd = self.union.open(inode.ino, os.O_RDONLY)
            try:
                assert os.pread(fd, len(inode.content) + 1, 0) == inode.content
            finally:
                self.union.release(fd)
        elif stat.S_ISLNK(inode.mode):
            assert self.union.readlink(inode.ino) == inode.content
        if not inode.removed or not inode.is_directory:
            names = self.union.listxattr(inode.ino)
            assert {name: self.union.getxattr(inode.ino, name) for name in names} == inode.xattrs

    def _check_links(self, inode: Inode, nlink: int) -> None:
        if inode.ino in self.hidden_links:  # what the lower says is believed, whatever of it is hidden
            assert nlink >= inode.links
        else:
            assert nlink == inode.links

    def _check_everything(self) -> None:
        self.began = getattr(self, "began", time.time_ns())
        for path, inode in self.fs.walk().items():
            assert self._walk(path) is inode
            self._check(inode)
            if inode.is_directory:
                self._list(inode)
        for orphan in self.orphans:
            self._check(orphan)
        for handle in self.handles:
            assert os.pread(handle.fd, len(handle.inode.content) + 1, 0) == handle.inode.content
        alive = {id(inode): inode.ino for inode in [*self.fs.walk().values(), *self.orphans]}
        assert len(set(alive.values())) == len(alive), "two objects have one inode number"

    def _list(self, inode: Inode) -> None:
        handle = self.union.opendir(inode.ino)
        names = []
        for name, node, _ in self.union.readdir(handle, 0):
            assert not isinstance(node, OSError), node
            names.append(name)
            if name not in (b".", b".."):
                assert name in inode.children, f"{name!r} is listed"
                self.union.count(node)
                self._met(inode, name, node)
        self.union.releasedir(handle)
        assert sorted(names) == sorted([b".", b"..", *inode.children])

    @invariant()
    def the_trees_are_the_same(self):
        if self.watched == "always":
            self._check_everything()
        elif self.watched == "on disk":
            self._check_disk()

    def _check_disk(self) -> None:
        """What a reader sees who knows only the directories; and so after a crash."""
        with self.disk.view() as union:
            self._compare(tree(union), live=True)

    def _compare(self, shown: dict[bytes, Shown], *, live: bool) -> None:
        """`live`: numbers are the same, but a file may have one more name, in the work directory."""
        expected = self.fs.walk()
        assert sorted(shown) == sorted(expected)
        for path, inode in expected.items():
            seen = shown[path]
            assert f"{seen.kind | seen.mode:o}" == f"{inode.mode:o}", path
            assert (seen.uid, seen.gid, seen.rdev) == (inode.uid, inode.gid, inode.rdev), path
            assert inode.mtime_ns in (seen.mtime_ns, NOW, ANY), path
            assert seen.xattrs == inode.xattrs, path
            assert (seen.content or b"") == inode.content, path
            if not inode.is_directory and not live:
                self._check_links(inode, seen.nlink)
            assert not live or inode.ino in (None, seen.ino), path
        groups = {
            inode: {shown[path].ino for path in expected if expected[path] is inode}
            for inode in expected.values()
        }
        assert all(len(group) == 1 for group in groups.values()), "names of one file are several files"
        assert len(set.union(*groups.values())) == len(groups), "two objects have one inode number"

    @rule()
    def look_at_everything(self):
        self._check_everything()

    # -- picking --------------------------------------------------------------------------------------

    def _pick(self, pick: int, wanted=lambda inode: True) -> tuple[bytes, Inode] | None:
        """A path, looked up by the kernel, of an object that is `wanted`."""
        found = [(path, inode) for path, inode in sorted(self.fs.walk().items()) if wanted(inode)]
        if not found:
            return None
        path, inode = found[pick % len(found)]
        assert self._walk(path) is inode
        return path, inode

    def _directory(self, pick: int) -> tuple[bytes, Inode]:
        return self._pick(pick, lambda inode: inode.is_directory)

    def _name(self, pick: int) -> tuple[Inode, bytes] | None:
        """An existing name and where it is."""
        found = self._pick(pick, lambda inode: inode is not self.fs.root)
        if found is None:
            return None
        directory, _, name = found[0].rpartition(b"/")
        return self.fs.find(directory), name

    def _some_inode(self, pick: int, wanted=lambda inode: True, *, removed: bool = False) -> Inode | None:
        """One that has a name, or one that is open; if `removed`, perhaps one of which nothing is left."""
        unusual = [handle.inode for handle in self.handles] + (self.orphans if removed else [])
        found = [inode for inode in unusual if wanted(inode)]
        if found and pick % 3 == 0:
            return found[pick % len(found)]
        named = self._pick(pick, wanted)
        return named and named[1]

    # -- names ----------------------------------------------------------------------------------------

    def _make(self, at: int, name: bytes, inode: Inode, owner: Owner, call):
        path, parent = self._directory(at)
        inode.uid, inode.gid, inode.mtime_ns = owner.uid, owner.gid, NOW
        note(f"make {path!r}/{name!r} {inode.mode:o} {owner}")
        answer = self._agree(lambda: self.fs.make(parent, name, inode, owner.umask), lambda: call(parent.ino))
        if answer is not None:
            self._met(parent, name, answer[0] if isinstance(answer, tuple) else answer)
            self._check(inode)
            self._check(parent)
        return answer

    @rule(at=PICK, name=NAME, mode=MODE, owner=OWNER, keep=st.booleans(), flags=OPEN, writer=WRITER)
    def create(self, at, name, mode, owner, keep, flags, writer):
        inode = Inode(stat.S_IFREG | mode)
        call = lambda ino: self.union.create(ino, name, mode, flags, owner, writer)  # noqa: E731
        made = self._make(at, name, inode, owner, call)
        if made is not None:
            self.handles.append(Handle(made[1], inode, flags != os.O_RDONLY, writer))
            if not keep:
                self.union.release(self.handles.pop().fd)

    @rule(at=PICK, name=NAME, mode=MODE, owner=OWNER)
    def mkdir(self, at, name, mode, owner):
        inode = Inode(stat.S_IFDIR | mode, children={})
        self._make(at, name, inode, owner, lambda ino: self.union.mkdir(ino, name, mode, owner))

    @rule(at=PICK, name=NAME, special=SPECIAL, mode=MODE, owner=OWNER)
    def mknod(self, at, name, special, mode, owner):
        kind, rdev = special
        call = lambda ino: self.union.mknod(ino, name, kind | mode, rdev, owner)  # noqa: E731
        self._make(at, name, Inode(kind | mode, rdev=rdev), owner, call)

    @rule(at=PICK, name=NAME, text=st.sampled_from([b"a", b"../b", b"long/" * 50]), owner=OWNER)
    def symlink(self, at, name, text, owner):
        inode = Inode(stat.S_IFLNK | 0o777, content=text)
        self._make(at, name, inode, owner, lambda ino: self.union.symlink(ino, name, text, owner))

    @rule(pick=PICK, at=PICK, name=NAME)
    def link(self, pick, at, name):
        found = self._pick(pick, lambda inode: not inode.is_directory)
        if found is None:
            return
        (path, inode), (above, parent) = found, self._directory(at)
        note(f"link {path!r} to {above!r}/{name!r}")
        self._settle(inode)
        node = self._agree(
            lambda: self.fs.link(inode, parent, name), lambda: self.union.link(inode.ino, parent.ino, name)
        )
        if node is not None:
            self._met(parent, name, node)
            self._check(inode)
            self._check(parent)

    @rule(pick=PICK, evict=st.booleans(), wrong=st.integers(0, 5))
    def remove(self, pick, evict, wrong):
        """unlink or rmdir, now and then the wrong one."""
        if found := self._name(pick):
            parent, name = found
            verbs = ["rmdir", "unlink"] if parent.children[name].is_directory else ["unlink", "rmdir"]
            self._remove(parent, name, verbs[wrong == 5], evict=evict)

    def _remove(self, parent: Inode, name: bytes, verb: str, *, evict: bool) -> None:
        inode = self._look_up(parent, name)
        note(f"{verb} {name!r} in {parent.ino}")
        self._agree(
            lambda: getattr(self.fs, verb)(parent, name),
            lambda: getattr(self.union, verb)(parent.ino, name),
        )
        if name not in parent.children:
            self.dentries.pop((parent, name), None)
        if inode is not None:
            self._name_gone(inode, evict=evict)
        self._check(parent)
        if inode in self.counts:
            self._check(inode)

    @rule(at=PICK)
    def remove_all(self, at):
        self._empty(self._directory(at)[0])

    def _empty(self, path: bytes) -> None:
        """Remove everything in a directory."""
        top = self._walk(path)
        below = self.fs.walk(top)
        del below[b""]
        for inside, inode in sorted(below.items(), reverse=True):
            parent = self._walk(b"/".join(filter(None, [path, inside.rpartition(b"/")[0]])))
            verb = "rmdir" if inode.is_directory else "unlink"
            self._remove(parent, inside.rpartition(b"/")[2], verb, evict=True)

    @rule(at=PICK, name=NAME, directory=st.booleans())
    def remove_nothing(self, at, name, directory):
        parent = self._directory(at)[1]
        if name in parent.children:
            return
        self._remove(parent, name, "rmdir" if directory else "unlink", evict=False)

    @rule(pick=PICK, at=PICK, name=NAME, flags=FLAGS, evict=st.booleans())
    def rename(self, pick, at, name, flags, evict):
        if found := self._name(pick):
            self._rename(*found, self._directory(at)[1], name, flags, evict=evict)

    @rule(pick=PICK, at=PICK, flags=FLAGS, evict=st.booleans())
    def rename_over(self, pick, at, flags, evict):
        if found := self._name(pick):
            self._rename(*found, *self._name(at), flags, evict=evict)

    @rule(pick=PICK, at=PICK, evict=st.booleans())
    def rename_over_an_empty_directory(self, pick, at, evict):
        """One that perhaps still hides what lies below it."""
        directories = [p for p, inode in sorted(self.fs.walk().items()) if inode.is_directory and p]
        if not directories:
            return
        old, new = (directories[index % len(directories)] for index in (pick, at))
        if not (old + b"/").startswith(new + b"/"):
            self._empty(new)
            ends = [(self._walk(path.rpartition(b"/")[0]), path.rpartition(b"/")[2]) for path in (old, new)]
            self._rename(*ends[0], *ends[1], 0, evict=evict)

    def _rename(self, old: Inode, old_name: bytes, new: Inode, new_name: bytes, flags: int, *, evict: bool):
        inode, other = self._look_up(old, old_name), self._look_up(new, new_name)
        inside = [below for below in self.fs.walk(inode).values() if below.is_directory]
        outside = self.fs.walk(other).values() if other is not None and other.is_directory else []
        if new in inside or (flags & RENAME_EXCHANGE and old in outside):
            return  # EINVAL, says the kernel before anybody is asked
        note(f"rename {old_name!r} {inode.ino} to {new_name!r} in {new.ino} {flags}")
        for one in (inode, other if flags & RENAME_EXCHANGE else None):
            for below in self.fs.walk(one).values() if one else ():
                self._settle(below)
        done = []
        self._agree(
            lambda: done.append(self.fs.rename(old, old_name, new, new_name, flags)),
            lambda: self.union.rename(old.ino, old_name, new.ino, new_name, flags),
        )
        if done and other is not inode:
            first, second = self.dentries.pop((old, old_name)), self.dentries.pop((new, new_name), None)
            self.dentries[new, new_name] = first
            if flags & RENAME_EXCHANGE:
                self.dentries[old, old_name] = second
            elif other is not None:
                self._name_gone(other, evict=evict)
        for one in (old, new, inode, other):
            if one is self.fs.root or one in self.counts:
                self._check(one)

    @rule(at=PICK, name=st.sampled_from([b"a", b"b", b"e", b".wh.a", b".wh..wh..opq", b"n" * 300]))
    def look_up(self, at, name):
        path, parent = self._directory(at)
        if len(name) < 256:
            self._walk(path + b"/" + name if path else name)
        else:
            self._agree(self._name_is_too_long, lambda: self.union.lookup(parent.ino, name))

    @staticmethod
    def _name_is_too_long():
        raise OSError(errno.ENAMETOOLONG, "")

    # -- files ----------------------------------------------------------------------------------------

    @rule(pick=PICK, flags=OPEN, cut=st.integers(0, 4), writer=WRITER)
    def open(self, pick, flags, cut, writer):
        inode = self._some_inode(pick, lambda inode: inode.is_file)
        if inode is None or len(self.handles) > 4:
            return
        writable = flags != os.O_RDONLY
        cut = cut == 4 and writable
        note(f"open {inode.ino} {flags} {'truncate' if cut else ''}")
        if writable:
            self._settle(inode)
        self.began = time.time_ns()
        fd = self.union.open(inode.ino, flags | (os.O_TRUNC if cut else 0), writer)
        self.handles.append(Handle(fd, inode, writable, writer))
        if cut:
            self.fs.truncate(inode, 0, writer)
            inode.mtime_ns = NOW
        self._check(inode)

    def _handle(self, pick: int, *, writable: bool = False) -> Handle:
        found = [handle for handle in self.handles if handle.writable or not writable]
        return found[pick % len(found)]

    @HAS_HANDLES
    @rule(pick=PICK, offset=SIZE)
    def read(self, pick, offset):
        handle = self._handle(pick)
        assert os.pread(handle.fd, 10_000, offset) == handle.inode.content[offset:][:10_000]

    @HAS_WRITERS
    @rule(pick=PICK, offset=SIZE, data=DATA)
    def write(self, pick, offset, data):
        handle = self._handle(pick, writable=True)
        note(f"write {handle.inode.ino}")
        self.began = time.time_ns()
        assert self.union.write(handle.fd, offset, data) == len(data)
        self.fs.write(handle.inode, offset, data, handle.writer)
        self._check(handle.inode)

    @HAS_HANDLES
    @rule(pick=PICK, data_only=st.booleans())
    def fsync(self, pick, data_only):
        self.union.fsync(self._handle(pick).fd, data_only=data_only)

    @HAS_HANDLES
    @rule(pick=PICK)
    def release(self, pick):
        handle = self._handle(pick)
        note(f"release {handle.inode.ino}")
        self.handles.remove(handle)
        self.union.release(handle.fd)
        self._check(handle.inode)

    # -- attributes -----------------------------------------------------------------------------------

    @HAS_WRITERS
    @rule(pick=PICK, size=SIZE)
    def truncate_open_file(self, pick, size):
        handle = self._handle(pick, writable=True)
        self._truncate(handle.inode, size, handle.writer, handle.fd)

    @rule(pick=PICK, size=SIZE, writer=WRITER)
    def truncate(self, pick, size, writer):
        if inode := self._some_inode(pick, lambda inode: inode.is_file):
            self._truncate(inode, size, writer)

    def _truncate(self, inode: Inode, size: int, writer: Writer, handle: int | None = None) -> None:
        note(f"truncate {inode.ino} to {size}")
        self._settle(inode)
        self.began = time.time_ns()
        self.union.setattr(inode.ino, size=size, handle=handle, writer=writer)
        self.fs.truncate(inode, size, writer)
        self._check(inode)

    @rule(pick=PICK, mode=MODE)
    def chmod(self, pick, mode):
        inode = self._some_inode(pick, lambda inode: not stat.S_ISLNK(inode.mode), removed=True)
        note(f"chmod {inode.ino} {mode:o}")
        self._settle(inode)
        self.union.setattr(inode.ino, mode=mode)
        self.fs.chmod(inode, mode)
        self._check(inode)

    @rule(pick=PICK, uid=st.sampled_from([None, 0, 7, 2**32 - 2]), gid=st.sampled_from([None, 0, 8]))
    def chown(self, pick, uid, gid):
        inode = self._some_inode(pick, removed=True)
        if (uid is None and gid is None) or (self.plain_symlinks and stat.S_ISLNK(inode.mode)):
            return  # a plain symlink becomes a file when it gets an owner, with another number
        note(f"chown {inode.ino} {uid} {gid}")
        self._settle(inode)
        self.union.setattr(inode.ino, uid=uid, gid=gid)
        self.fs.chown(inode, uid, gid)
        self._check(inode)

    @rule(pick=PICK, atime=st.one_of(st.none(), TIME), mtime=st.one_of(st.none(), TIME))
    def utime(self, pick, atime, mtime):
        inode = self._some_inode(pick, removed=True)
        if atime is None and mtime is None:
            return
        note(f"utime {inode.ino} {atime} {mtime}")
        self._settle(inode)
        node = self.union.setattr(inode.ino, atime_ns=atime, mtime_ns=mtime)
        assert atime is None or self.union.attr(node).atime_ns == atime
        inode.mtime_ns = inode.mtime_ns if mtime is None else mtime
        self._check(inode)

    @rule(pick=PICK, name=XATTR, value=st.sampled_from([b"", b"v\0", b"long" * 20]))
    def setxattr(self, pick, name, value):
        inode = self._some_inode(pick, lambda inode: inode.is_file or inode.is_directory)
        if name == CAPABILITY:
            if not inode.is_file:
                return
            value = SOME_CAPABILITY
        note(f"setxattr {inode.ino} {name!r}")
        self._settle(inode)
        self.union.setxattr(inode.ino, name, value)
        inode.xattrs[name] = value
        self._check(inode)

    @rule(pick=PICK, name=XATTR)
    def removexattr(self, pick, name):
        inode = self._some_inode(pick, lambda inode: inode.is_file or inode.is_directory)
        note(f"removexattr {inode.ino} {name!r}")
        self._settle(inode)
        self._agree(lambda: self.fs.removexattr(inode, name), lambda: self.union.removexattr(inode.ino, name))
        self._check(inode)

    # -- copy-up in the background --------------------------------------------------------------------

    @rule(pick=PICK, data=st.booleans())
    def begin_copy_up(self, pick, data):
        inode = self._some_inode(pick, lambda inode: inode.is_file and inode not in self.jobs)
        if inode is None:
            return
        job = self.union.plan(inode.ino, data=data)
        if job is not None:
            note(f"begin to copy {inode.ino} up {'' if data else 'without data'}")
            job.waiting = self
            self.jobs[inode] = job

    @HAS_JOBS
    @rule(pick=PICK, fails=st.integers(0, 4))
    def end_copy_up(self, pick, fails):
        inode = list(self.jobs)[pick % len(self.jobs)]
        if fails == 4:
            note(f"the copy-up of {inode.ino} fails")
            job = self.jobs.pop(inode)
            job.close()
            job.waiting = None
            self.union.abandon(job)
        else:
            self._settle(inode)
        self._check(inode)

    def _settle(self, inode: Inode) -> None:
        """Whoever needs a file that is on its way up waits for it."""
        if inode in self.jobs:
            note(f"the copy-up of {inode.ino} ends")
            job = self.jobs.pop(inode)
            job.run()
            job.waiting = None
            if inode.removed and not self._is_open(inode):  # then it need not be there any more
                with suppress(OSError):
                    self.union.commit(job)
            else:
                self.union.commit(job)

    # -- directories ----------------------------------------------------------------------------------

    @rule(pick=PICK)
    def opendir(self, pick):
        path, inode = self._directory(pick)
        if len(self.listings) < 3:
            note(f"opendir {path!r}")
            self.listings.append(Listing(self.union.opendir(inode.ino), inode, set(inode.children)))

    @HAS_LISTINGS
    @rule(pick=PICK, count=st.integers(1, 4), rewind=st.booleans())
    def readdir(self, pick, count, rewind):
        found = [listing for listing in self.listings if not listing.inode.removed]
        if not found:
            return
        listing = found[pick % len(found)]
        inode = listing.inode
        if rewind:
            listing.offset, listing.lasting, listing.listed = 0, set(inode.children), set()
        note(f"readdir {inode.ino} from {listing.offset}")
        for name, node, offset in self.union.readdir(listing.handle, listing.offset):
            assert not isinstance(node, OSError), node
            listing.offset = offset
            if name in (b".", b".."):
                continue
            assert name not in listing.listed, f"{name!r} is listed twice"
            assert name in inode.children, f"{name!r} is listed, which is not there"
            listing.listed.add(name)
            self.union.count(node)
            self._met(inode, name, node)
            count -= 1
            if not count:
                return
        assert listing.lasting <= listing.listed, "not all names are listed"

    @invariant()
    def names_that_go_need_not_be_listed(self):
        for listing in getattr(self, "listings", ()):
            listing.lasting &= set(listing.inode.children)

    @HAS_LISTINGS
    @rule(pick=PICK)
    def releasedir(self, pick):
        self.union.releasedir(self.listings.pop(pick % len(self.listings)).handle)

    # -- forgetting -----------------------------------------------------------------------------------

    @rule(pick=PICK)
    def forget(self, pick):
        known = [inode for inode in self.counts if inode is not self.fs.root]
        if known:
            inode = known[pick % len(known)]
            note(f"forget {inode.ino}")
            self._forget(inode)

    @rule()
    def drop_caches(self):
        note("drop caches")
        self._drop_caches()
