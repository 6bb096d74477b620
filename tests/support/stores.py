"""A whole store on either driver, and what tests of it say again and again."""

import gzip
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from support.fsck import problems
from support.tars import Stream, folder, member, tar

from fusestore.config import StoreOptions
from fusestore.store.storage import Store

DRIVERS = ("fuse", "vfs")

A, B, C = (tar(member(name, name * 10)) for name in (b"a", b"b", b"c"))
TREE = tar(folder("etc"), member("etc/motd", b"hello\n"), member("etc/issue", b"x" * 700))
ABOVE = tar(member("etc/.wh.motd"), member("new", b"new"))
ZIPPED = gzip.compress(A, mtime=0)
JUNK = b"this is no tar " * 100


def opened(root: Path, runroot: Path, driver: str, *additional: Path) -> Store:
    """The store at `root`, as any process opens it."""
    return Store(
        options=StoreOptions(
            root, runroot, graph_driver_name=driver, additional_stores=tuple(map(Path, additional))
        )
    )


def checked(root: Path, runroot: Path, driver: str) -> Iterator[Store]:
    """For a fixture: an empty store that must be in order at the end, and have nothing mounted."""
    with opened(root, runroot, driver) as store:
        yield store
        store.unmount_all()
    assert problems(root) == []


def filled(store: Store) -> Store:
    """It, with one item of each kind, and a registered layer."""
    store.create_layer("base", names=["base-name"])
    store.create_image("img", ["image-name"], "base")
    store.create_container("ctr", ["container-name"], "img", "ctr-layer")
    store.layer_store.register(Stream(B))
    store.layer_store.close()  # the handle
    return store


def changes(store: Store, from_: str, to: str) -> list[str]:
    """`Store.changes` in the words of ``podman diff``."""
    return [f"{change.kind.value} {change.path.decode()}" for change in store.changes(from_, to)]


def contents(store: Store) -> dict[str, list]:
    """Everything that a store tells of its items."""
    return {
        "layers": store.layers(),
        "images": store.images(),
        "containers": store.containers(),
        "driver": store.graph_driver.list_layers(),
        "big": sorted(str(path) for path in (store.graph_root / "big").rglob("*")),
        "directories": sorted(str(path) for path in store.graph_root.glob("containers/*")),
        "half-made": list((store.graph_root / "tmp").iterdir()),
    }


# -- a store that is not ours to write ----------------------------------------------------------------


def _below(root: Path) -> Iterator[str]:
    for directory, _, files in os.walk(root):
        yield directory
        yield from (os.path.join(directory, file) for file in files)


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    """What a write would change, of all that lies below a directory."""
    found = {path: os.lstat(path) for path in _below(root)}
    return {path: (st.st_ino, st.st_mode, st.st_size, st.st_mtime_ns) for path, st in found.items()}


def close_to_writing(root: Path) -> dict[str, tuple[int, ...]]:
    """Take the permission to write away; what it is like then."""
    for path in _below(root):
        if not os.path.islink(path):
            os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)
    return snapshot(root)


def open_to_writing(root: Path) -> None:
    """So that it can be deleted."""
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o700)
