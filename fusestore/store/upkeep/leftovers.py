"""What is left over: files that no row names, mounts without servers, counts without mounts.

Whoever writes is between its files and its rows for a moment, and so is whoever deletes.  For layers their
locks tell, and a transaction, in which layers are published.  Files of other kinds have no locks: what looks
left over is looked at again until it is gone, or a second has passed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from fusestore.digest import CacheID
from fusestore.driver import mounter
from fusestore.driver.counter import Counter
from fusestore.errors import CorruptStore
from fusestore.files import Hold, lock, opened, tree_usage
from fusestore.store.bigdata import Blobs
from fusestore.store.containers import ContainerStore
from fusestore.store.database import Database
from fusestore.store.metadata import LayerMetadata
from fusestore.store.storage import Store
from fusestore.store.upkeep.report import UNACCOUNTED, Kind, Problem, Remedy

_PATIENCE = 1.0  # seconds that a writer may take between a row and its file
_STEP = 0.02
_LOCKS = ("lock", "handles")  # of a layer, and of those who have an RW layer or make an init layer

_Found = dict[tuple[str, tuple[int, int]], Problem]  # by path and `_mark`


def leftovers(store: Store, database: Database) -> Iterator[Problem]:
    """What no row names, and mounts that are none any more.  Nothing of a store that is not ours to write."""
    if not database.read_only:
        yield from _driver_layers(store, database)
        yield from _settled(lambda: _files(store, database))
    yield from _mounts(store)


def _settled(find: Callable[[], _Found]) -> list[Problem]:
    """What is found, and still there after a while."""
    found, end = find(), time.monotonic() + _PATIENCE
    while found and time.monotonic() < end:
        time.sleep(_STEP)
        again = find()
        found = {key: problem for key, problem in found.items() if key in again}
    return list(found.values())


# -- layers of the driver -----------------------------------------------------------------------------


def _driver_layers(store: Store, database: Database) -> Iterator[Problem]:
    driver = store.graph_driver
    with database.transaction():
        owned = LayerMetadata(database).owned()
        unnamed = [name for name in set(driver.list_layers()) - owned if _is_free(driver.path / name)]
    for cache_id in sorted(unnamed):
        yield Problem(Kind.DRIVER_LAYER, cache_id, UNACCOUNTED, Remedy.COLLECT, cache_id)


def _is_free(directory: Path) -> bool:
    """True for a layer that is there, and that nobody makes, deletes or works with."""
    for name in _LOCKS:
        try:
            os.close(lock(directory / name, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except FileNotFoundError:
            continue
        except BlockingIOError:
            return False
    return directory.exists()  # and was not deleted meanwhile


# -- files --------------------------------------------------------------------------------------------


def _files(store: Store, database: Database) -> _Found:
    blobs = Blobs(database, store.graph_root)
    containers = ContainerStore(database, blobs, store.graph_root, store.run_root)
    with database.transaction():
        unnamed = [*blobs.unnamed(deep=True), *containers.unnamed()]
        owned = LayerMetadata(database).owned()
    groups = {
        "no row names it": unnamed,
        "it leads to no layer": _links(store, owned),
        "nobody works with it": _half_made(store.graph_root / "tmp"),
    }
    return {
        (str(path), _mark(path)): Problem(Kind.FILE, _shown(store, path), what, Remedy.COLLECT)
        for what, paths in groups.items()
        for path in paths
        if os.path.lexists(path)
    }


def _mark(path: Path) -> tuple[int, int]:
    """What changes when the file is another one, or somebody deletes the tree just now."""
    try:
        with opened(path) as fd:
            return os.fstat(fd).st_ino, tree_usage(fd)[1]
    except NotADirectoryError:
        return os.lstat(path).st_ino, 1
    except OSError:
        return 0, 0


def _shown(store: Store, path: Path) -> str:
    """A path below the root as one relative to that."""
    return str(path.relative_to(store.graph_root)) if store.graph_root in path.parents else str(path)


def _links(store: Store, owned: set[CacheID]) -> Iterator[Path]:
    """Links to layers that are neither there nor named."""
    driver = store.graph_driver
    for name in os.listdir(driver.links):
        try:
            layer = os.readlink(driver.links / name).split("/")[1]
        except (OSError, IndexError):
            layer = ""
        if layer not in owned and not (layer and os.path.lexists(driver.path / layer)):
            yield driver.links / name


def _half_made(tmp: Path) -> Iterator[Path]:
    """What dead processes have left; see `fusestore.files.sweep`."""
    with opened(tmp) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for name in os.listdir(fd):
            path = tmp / name
            if not _is_locked(path / "lock" if path.is_dir() and not path.is_symlink() else path):
                yield path


def _is_locked(path: Path) -> bool:
    if not path.is_file() or path.is_symlink():
        return False
    try:
        os.close(lock(path, fcntl.LOCK_SH | fcntl.LOCK_NB))
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


# -- mounts -------------------------------------------------------------------------------------------


def _mounts(store: Store) -> Iterator[Problem]:
    yield from _settled(lambda: _dead(store))
    yield from _settled(lambda: _mountpoints(store))
    for cache_id in miscounted(store):
        what = "somebody has it, by the count, but it is not mounted"
        yield Problem(Kind.MOUNT, cache_id, what, Remedy.UNMOUNT, cache_id)


def _dead(store: Store) -> _Found:
    return {
        (present.mountpoint, (present.pid, 0)): Problem(
            Kind.MOUNT, present.mountpoint, f"its server ({present.pid}) has died", Remedy.UNMOUNT
        )
        for present in store.mounts()
        if not present.alive
    }


def _mountpoints(store: Store) -> _Found:
    """Directories made to mount on, on which nothing is mounted."""
    directory = store.run_root / "mnt"
    if not directory.is_dir():
        return {}
    with closing(Hold(lock(store.run_root / "lock", fcntl.LOCK_SH, os.O_CREAT))):  # nobody is mounting
        mounted = {present.mountpoint for present in store.mounts()}
        left = [path for path in directory.iterdir() if str(path) not in mounted]
    found: _Found = {}
    for path in left:
        if mounter.is_dead(path):
            found[str(path), (0, 0)] = Problem(Kind.MOUNT, str(path), "its server has died", Remedy.UNMOUNT)
        elif path.exists():
            found[str(path), _mark(path)] = Problem(
                Kind.MOUNT, str(path), "nothing is mounted on it", Remedy.UNMOUNT
            )
    return found


def miscounted(store: Store, *, correct: bool = False) -> list[CacheID]:
    """Layers that somebody should have mounted and that are not mounted; `correct` sets their counts to 0.

    For a driver without mounts there are none.
    """
    driver, found = store.graph_driver, []
    for cache_id in driver.counted() if driver.stacked else ():
        try:
            held = driver.hold(cache_id)
        except (FileNotFoundError, CorruptStore):
            continue
        mountpoint = store.run_root / "mnt" / cache_id
        with closing(held), Counter(store.run_root).users(cache_id) as users:
            if users[0] and mounter.find(mountpoint, store.run_root) is None:
                found.append(cache_id)
                users[0] = 0 if correct else users[0]
    return found
