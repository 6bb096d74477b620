"""Random operations on an RW layer of the ``fuse`` driver, which is compared with other layers at the end.

As `support.union_machine`, in a driver's home, so that redirects, metacopies, opaque directories and names
that came back occur; hard links are more and deeper, and the kernel may remember nothing.
"""

import json
import stat
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from support import model, naive
from support.filesystem_model import Filesystem, expected_changes
from support.layers import Shown, add, stack
from support.model import Op, Thing
from support.stacks import stacks
from support.tars import Stream, folder, hard_link, member, tar
from support.union_machine import UnionMachine
from support.union_on_disk import Directories, fingerprint

from fusestore.digest import CacheID, new_cache_id
from fusestore.driver.api import Driver
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.ownership import Metadata, Ownership, finish
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.nodes import ROOT
from fusestore.driver.union.tree import Union
from fusestore.driver.union.upper import Upper
from fusestore.driver.union.writable import WritableUnion
from fusestore.driver.vfs import VfsDriver
from fusestore.driver.whiteout import Spelling
from fusestore.files import opened

ELSEWHERE = [
    tar(folder("a", 0o700, mtime=3), member("a/b", b"x", mtime=99), member("b", mtime=98)),
    tar(folder("c/a"), member("e", b"y", mtime=97), hard_link("a/e", "e")),
]


def told_apart(layers: list[list[Op]]) -> list[list[Op]]:
    """No two files with the same time: what differs in nothing but content is taken to be the same."""
    things = {id(op.thing): op.thing for ops in layers for op in ops if op.verb == "make"}
    for number, thing in enumerate(things.values(), 100):
        if not stat.S_ISDIR(thing.kind):
            thing.mtime = number
    return layers


LINKED = st.lists(
    st.sampled_from(["a", "d", "b/a", "b/c/a", "b/c/b", "b/c/d/a", "b/c/d/b", "c/d/a", "c/d/b"]),
    min_size=2,
    max_size=6,
    unique=True,
)


@st.composite
def layers_with_links(draw, ownership: Ownership) -> list[list[Op]]:
    """Layers of which the lowest has hard links between directories, also deep ones."""
    first, *others = draw(LINKED)
    links = [Op("link", path, None, first) for path in others]
    made = Op("make", first, Thing(stat.S_IFREG, 0o644, content=b"linked"))
    return told_apart([[made, *links], *draw(stacks(ownership))])


def check(driver: Driver, cache_id: CacheID, others: Iterable[CacheID | None]) -> dict:
    """A layer against each of `others`; the tars that make it out of them, and what has changed."""
    tree, found = naive.shown(driver, cache_id), {}
    for other in others:
        note(f"-- compared with {other and other[:8]}")
        changed = naive.letters(driver, cache_id, other)
        assert changed == naive.changes(tree, naive.shown(driver, other), contents=driver.stacked)
        archive = b"".join(driver.diff(cache_id, other))
        found[other] = changed, archive
        again, applied = add(driver, archive, other)
        assert naive.facts(naive.shown(driver, again)) == naive.facts(tree)
        assert applied.size == driver.diff_size(cache_id, other)
        if not has_sockets(tree):
            assert (naive.letters(driver, again, other), b"".join(driver.diff(again, other))) == found[other]
        assert b"".join(driver.diff(cache_id, other)) == archive
    return found


def has_sockets(tree: dict[bytes, Shown]) -> bool:
    return any(stat.S_ISSOCK(entry.kind) for entry in tree.values())


# -- random operations ---------------------------------------------------------------------------------------


class Layered(Directories):
    """`Directories` in the home of a ``fuse`` driver: RO layers of `archives`, an RW layer on top."""

    def __init__(
        self, place: Path, archives: list[bytes], ownership: Ownership, spelling: Spelling, **options: bool
    ) -> None:
        home = place / "fuse"
        home.mkdir()
        record = {"ownership": ownership.value, "whiteouts": spelling.value}
        (home / "home.json").write_text(json.dumps(record))
        self.driver = FuseDriver(place, place / "run")
        self.archives, self.chain = archives, []
        for archive in archives:
            self.chain.insert(0, add(self.driver, archive, next(iter(self.chain), None))[0])
        self.rw = new_cache_id()
        self.driver.create_read_write(self.rw, next(iter(self.chain), None))
        self.lowers = [home / layer / "diff" for layer in self.chain]
        self.upper, self.work = home / self.rw / "diff", home / self.rw / "work"
        self._place, self._options, self._open = place, options, []

    def make_upper(self, root: Metadata) -> None:
        with opened(self.upper) as fd:
            finish(fd, root, self.driver.ownership)

    def _layer(self, path: Path, links: str | None = None) -> LayerDir:
        return LayerDir(str(path), self.driver.ownership, self.driver.spelling, links)

    def mount(self) -> WritableUnion:
        lowers = [self._layer(path, str(path.with_name("links"))) for path in self.lowers]
        upper, work = self._layer(self.upper), self._layer(self.work)
        self._open = [upper, work, *lowers]
        return WritableUnion(Upper(upper, work, self.driver.spelling, **self._options), lowers)

    def view(self) -> AbstractContextManager[Union]:
        return self.driver.union(self.rw)


class DriverMachine(UnionMachine):
    """As `UnionMachine`, and at the end the layer is compared, unpacked, put back and built upon."""

    @initialize(data=st.data())
    def mount_first(self, data):
        options = {key: data.draw(st.booleans()) for key in ("metacopy", "redirect")}
        tree, archives = model.stacked(data.draw(layers_with_links(self.ownership)))
        self.watched, self.hidden_links, self.plain_symlinks = "at the end", (), False
        self.put_back, self.forgetful = data.draw(st.booleans()), data.draw(st.booleans())
        self.scratch = Path(tempfile.mkdtemp(prefix="driver-model-"))
        spelling = data.draw(st.sampled_from(Spelling))
        self.disk = Layered(self.scratch, archives, self.ownership, spelling, **options)
        self.fs = Filesystem(tree)
        self.first = self.fs.facts()
        root = self.fs.root
        root.ino = ROOT
        self.disk.make_upper(Metadata(root.mode, root.uid, root.gid, root.mtime_ns, xattrs=root.xattrs))
        self.lowers = fingerprint(self.disk.lowers)
        self._mount()

    @invariant()
    def a_kernel_that_remembers_nothing(self):
        if getattr(self, "forgetful", False):
            self._drop_caches()

    def _remove(self, parent, name, verb, *, evict):
        self._settle_linked(parent, name)
        super()._remove(parent, name, verb, evict=evict)

    def _rename(self, old, old_name, new, new_name, flags, *, evict):
        self._settle_linked(new, new_name)
        super()._rename(old, old_name, new, new_name, flags, evict=evict)

    def _settle_linked(self, parent, name):
        """Who takes a name away from a file that has more waits for its copy-up."""
        inode = parent.children.get(name)
        if inode is not None and inode.links > 1:
            self._settle(inode)

    def _check_diff(self):
        driver, rw, chain = self.disk.driver, self.disk.rw, self.disk.chain
        expected = expected_changes(self.first, self.fs.facts())
        parent = next(iter(chain), None)
        assert sorted(naive.letters(driver, rw, parent)) == expected
        strange = stack(driver, *ELSEWHERE)
        made = check(driver, rw, [*chain, strange, None])
        tree = naive.shown(driver, rw)
        self._check_vfs(*made[parent], tree)
        if self.put_back:
            for other in (*chain, strange):
                driver.apply_diff(rw, Stream(b"".join(driver.diff(other, rw))))
                assert naive.facts(naive.shown(driver, rw)) == naive.facts(naive.shown(driver, other))
                assert naive.letters(driver, rw, other) == []
        else:
            child = new_cache_id()
            driver.create_read_write(child, rw)
            assert naive.facts(naive.shown(driver, child)) == naive.facts(tree)
            assert naive.letters(driver, child, rw) == []
            if not has_sockets(tree):
                again = naive.letters(driver, rw, parent), b"".join(driver.diff(rw, parent))
                assert again == made[parent], "it has changed by being frozen"

    def _check_vfs(self, changed, archive, tree):
        """An RW layer of the other driver becomes the same by the same tar."""
        driver, parent, rw = VfsDriver(self.scratch, self.scratch / "run"), None, new_cache_id()
        for below in self.disk.archives:
            parent, _ = add(driver, below, parent)
        driver.create_read_write(rw, parent)
        driver.apply_diff(rw, Stream(archive))
        assert naive.facts(naive.shown(driver, rw)) == naive.facts(tree)
        if not has_sockets(tree):
            assert naive.letters(driver, rw, parent) == changed
            assert b"".join(driver.diff(rw, parent)) == archive
