"""What a layer store does, one thing at a time, each with what has to be there first: for tests of faults."""

import errno
import hashlib
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.fsck import broken
from support.layers import tree
from support.old_formats import downgrade
from support.tars import CHAR, Stream, folder, hard_link, member, symlink, tar

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.errors import CorruptStore, FuseUnavailable, MountFailed, MountNameConflict
from fusestore.store.database import Database
from fusestore.store.layer import Layer, RWLayer
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata
from fusestore.store.registered import Released

DRIVERS = {"fuse": FuseDriver, "vfs": VfsDriver}

BASE = tar(
    folder("d", mtime=5),
    member("d/a", b"1" * 700, uid=5, mode=0o4755, extra={"SCHILY.xattr.user.a": "b"}),
    hard_link("h", "d/a"),
    folder("e"),
    member("e/f", b"f"),
    folder("was"),
    member("was/low", b"low"),
    folder("gone"),
    member("gone/low", b"low"),
    symlink("s", "d"),
    member("n", kind=CHAR, major=1),
    member("x"),
    member("big", bytes(range(256)) * 300),
)
MIDDLE = tar(member("m", b"m" * 99), folder("e", 0o700))
TOP = tar(
    member(".wh.x"),
    hard_link("h", "d/a"),
    folder("d"),
    member("d/.wh..wh..opq"),
    member("d/b", b"2"),
    folder("t"),
)
#: What is done to an RW layer first, and then.
CHANGES = tar(member("was", b"a file now"), member(".wh.gone"), member("own/x", b"x"), member("m", b"new"))
MORE = tar(
    folder("was"),
    member("was/new", b"n"),
    folder("gone", 0o700),
    member("gone/new", b"n"),
    member(".wh.m"),
    member("e", b"a file now"),
    folder("own"),
    member("own/.wh..wh..opq"),
    member("own/y", b"y"),
    hard_link("own/z", "own/y"),
)


class Session:
    """The layer store below `place`, as one process has it."""

    def __init__(self, place: Path, driver: str) -> None:
        self.root, self.runroot, self._driver = place / "store", place / "run", driver
        self._stack = ExitStack()
        self._store: LayerStore | None = None

    @property
    def store(self) -> LayerStore:
        """The store, opened at first use."""
        if self._store is None:
            driver = DRIVERS[self._driver](self.root, self.runroot)
            database = Database(self.root / "store.db")
            self._stack.callback(database.close)
            self._store = LayerStore(LayerMetadata(database), driver)
        return self._store

    def register(self, *archives: bytes) -> list[Layer]:
        """A chain of layers; a handle on each."""
        handles: list[Layer] = []
        for archive in archives:
            parent = handles[-1].chain_id if handles else None
            handles.append(self.store.register(Stream(archive), parent))
        return handles

    def top(self) -> Layer:
        """A handle on the layer with the most below it."""
        layers = self.store.map()
        parents = {record.parent for record in layers.values()}
        return self.store.get(next(name for name in layers if name not in parents))

    def rw(self) -> RWLayer:
        """A handle on the RW layer."""
        return self.store.get_rw_layer("c")

    def state(self) -> dict[str, object]:
        """All that the store names, and what each of it shows."""
        found: dict[str, object] = {}
        for name, record in self.store.map().items():
            layer = self.store.get(name)
            with ExitStack() as stack:
                tar = layer.reproducible and stack.enter_context(layer.tar_stream()).read()
            told = record.diff_id, record.parent, record.size, record.reproducible, record.descriptor
            found[name] = *told, tar and hashlib.sha256(tar).hexdigest(), self.shown(record.cache_id)
            layer.drop()
        for rw in self.store.rw_layers():
            found[rw.name] = rw.parent, rw.init_id is not None, self.shown(rw.mount_id)
        return found

    def shown(self, cache_id: str) -> str:
        """A digest of the tree of one layer, but for the times of RW layers and inode numbers."""
        with self.store.driver.union(cache_id) as union:
            timeless = (self.store.driver.path / cache_id / "work").exists()
            rows = {path: row._replace(ino=0) for path, row in tree(union).items()}
            if timeless:
                rows = {path: row._replace(mtime_ns=0) for path, row in rows.items()}
            # Of a directory the filesystem below counts links in its way.
            rows = {p: row._replace(nlink=0) if stat.S_ISDIR(row.kind) else row for p, row in rows.items()}
        return hashlib.sha256(repr(sorted(rows.items())).encode()).hexdigest()

    def broken(self) -> list[str]:
        """What must never be (`fsck.broken`); of a store of format 1, which fsck does not know, a damage."""
        with tempfile.TemporaryDirectory() as place:
            for path in self.root.glob("store.db*"):
                shutil.copy(path, place)
            database = sqlite3.connect(Path(place, "store.db"))
            version = database.execute("PRAGMA user_version").fetchone()[0]
            verdict = database.execute("PRAGMA integrity_check").fetchone()[0]
            database.close()
        return broken(self.root) if version != 1 else [verdict] * (verdict != "ok")

    def close(self) -> None:
        """Close the database."""
        self._store = None
        self._stack.close()


@dataclass(frozen=True)
class Scene:
    """`before` makes what has to be there, `grip` gets what `act` works with, and `act` says what came of it.

    `act` again on what it has done already says the same.  `loose`: a crash may leave an RW layer's tree
    half-changed.  `reads`: nothing on disk may change.
    """

    act: Callable[[Session, Any], object]
    before: Callable[[Session], object] = lambda session: None
    grip: Callable[[Session], Any] = lambda session: session.store
    loose: bool = False
    reads: bool = False


def _worked(session: Session) -> RWLayer:
    """An RW layer ``c`` with every kind of change, on three layers."""
    layers = session.register(BASE, MIDDLE, TOP)
    rw = session.store.create_rw_layer("c", layers[-1].chain_id)
    rw.apply_diff(Stream(CHANGES))
    top = rw.mount()
    try:
        (top / "e").rename(top / "moved")  # in a union: a redirect
        (top / "big").chmod(0o600)  # a metacopy
        (top / "h").unlink()
        (top / "t" / "new").write_bytes(b"new")
    finally:
        rw.unmount()
    return rw


def _with_rw(session: Session) -> RWLayer:
    layers = session.register(BASE, MIDDLE, TOP)
    rw = session.store.create_rw_layer("c", layers[-1].chain_id)
    rw.apply_diff(Stream(CHANGES))
    return rw


def _base(session: Session) -> Layer:
    return next(session.store.get(name) for name, record in session.store.map().items() if not record.parent)


def _register_top(session: Session, base: Layer) -> object:
    return session.store.register(Stream(TOP), base.chain_id).chain_id


def _init(path: Path) -> None:
    (path / "e" / "hosts").write_bytes(b"127.0.0.1\n")
    (path / "was" / "low").unlink()
    (path / "m").chmod(0o600)


def _create(session: Session, top: Layer, init: Callable[[Path], None] | None = None) -> object:
    try:
        rw = session.store.create_rw_layer("c", top.chain_id, init_func=init, mount_label="l")
    except MountNameConflict:
        rw = session.rw()
    return rw.name, rw.parent, rw.record.label


def _release(session: Session, top: Layer | None) -> object:
    released: list[Released] = session.store.release(top) if top else []
    return len(session.store.map()), len(released) in (0, 3)


def _release_rw(session: Session, rw: RWLayer | None) -> object:
    released = session.store.release_rw_layer(rw) if rw else []
    return len(session.store.map()), session.store.rw_layers(), len(released) in (0, 3)


def _freeze(session: Session, rw: RWLayer) -> object:
    session.store.driver.freeze(rw.record.mount_id)
    return session.store.driver.is_read_write(rw.record.mount_id)


def _leftovers(session: Session) -> None:
    """What processes leave that die at bad moments, and more."""
    (layer,) = session.register(BASE)
    driver, tmp = session.store.driver, session.root / "tmp"
    for stacked in (None, layer.record.cache_id):
        cache_id = new_cache_id()
        driver.create(cache_id, stacked)
        driver.apply_diff(cache_id, Stream(CHANGES if stacked else BASE))
        driver.stage(new_cache_id(), stacked)
    deep = tmp / "half" / "d" / "d" / "d"
    deep.mkdir(parents=True)
    os.mkfifo(deep / "fifo")
    (tmp / "store.json.123").write_bytes(b"{}")
    (driver.path / "l" / ("A" * 26)).symlink_to(f"../{'f' * 64}/diff")
    counts = session.runroot / "mounts"
    counts.mkdir(parents=True, exist_ok=True)
    (counts / f"{'e' * 64}.count").write_bytes(b"1")


def _old(session: Session) -> None:
    """A store of format 1: no RW layers, no descriptors, no tar-split records."""
    session.register(BASE, MIDDLE)
    session.close()
    downgrade(session.root, 1)


def _read(session: Session, grip: tuple[Layer, RWLayer]) -> object:
    digests = []
    for handle in grip:
        with handle.tar_stream() as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    rw = grip[1]
    return (
        digests,
        rw.size(),
        [(change.kind.value, change.path) for change in rw.changes()],
        len(session.store.map()),
    )


def _mount(session: Session, rw: RWLayer) -> object:
    """Use it, and give back what dead processes have had of it too."""
    (rw.mount() / "touched").write_bytes(b"1")
    while session.store.driver.mounted(rw.record.mount_id):
        rw.unmount()
    return [change for change in rw.changes() if change.path == b"touched"]


def _top_or_none(session: Session) -> Layer | None:
    return session.top() if session.store.map() else None


def _rw_or_none(session: Session) -> RWLayer | None:
    return session.rw() if session.store.rw_layers() else None


SCENES = {
    "open": Scene(lambda s, _: s.store.driver_name(), grip=lambda _: None),
    "migrate": Scene(lambda s, _: len(s.store.map()), _old, lambda _: None),
    "register base": Scene(lambda s, _: s.register(BASE)[0].chain_id),
    "register child": Scene(_register_top, lambda s: s.register(BASE), _base),
    "register existing": Scene(_register_top, lambda s: s.register(BASE, TOP), _base),
    "commit": Scene(lambda s, rw: s.store.commit(rw).chain_id, _worked, Session.rw),
    "release": Scene(_release, lambda s: s.register(BASE, MIDDLE, TOP), _top_or_none),
    "create": Scene(_create, lambda s: s.register(BASE, MIDDLE, TOP), Session.top),
    "create with init": Scene(
        lambda s, top: _create(s, top, _init), lambda s: s.register(BASE, MIDDLE, TOP), Session.top
    ),
    "release rw": Scene(_release_rw, _worked, _rw_or_none),
    "apply": Scene(lambda s, rw: rw.apply_diff(Stream(MORE)), _with_rw, Session.rw, loose=True),
    "freeze": Scene(_freeze, _worked, Session.rw),
    "cleanup": Scene(lambda s, store: store.cleanup(), _leftovers),
    "read": Scene(_read, _worked, lambda s: (s.top(), s.rw()), reads=True),
    "mount": Scene(_mount, _with_rw, Session.rw, loose=True),
}
RECOVER = Scene(lambda s, _: s.store.cleanup(), grip=lambda _: None)


def is_clean(exc: BaseException, fault: str) -> bool:
    """True for an error that says what the machine has refused."""
    number = getattr(errno, fault, 0)
    if isinstance(exc, FuseUnavailable | MountFailed):
        return bool(number) and os.strerror(number) in str(exc)
    if fault == "EIO" and isinstance(exc, CorruptStore):  # SQLite calls a read that fails a damage
        return "store.db" in str(exc)
    return isinstance(exc, OSError) and (exc.errno == number or "store.db" in str(exc))


def unmount_all(session: Session) -> None:
    """Take away what a process has mounted and died, in the way that the store offers."""
    for record in session.store.rw_layers():
        with suppress(FileNotFoundError):
            while session.store.driver.mounted(record.mount_id):
                session.store.driver.put(record.mount_id)
