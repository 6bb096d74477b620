"""RW layers that programs work in: layers made by them, what is in a directory, and nothing left mounted."""

import os
import stat
from pathlib import Path

from fusestore.driver import mounter


def unmount_all(runroot: Path) -> None:
    """Take away every mount of a store, whoever has it."""
    for mounted in mounter.mounted(runroot):
        mounter.unmount(Path(mounted.mountpoint), runroot, force=True)


def tidied(reopened, runroot: Path):
    """For a fixture: opens stores like `reopened`; in the end nothing is mounted, and no handle has an fd."""
    stores = []

    def again():
        stores.append(reopened())
        return stores[-1]

    yield again
    unmount_all(runroot)
    for store in stores:
        store.close()


def create_layer(store, parent, change, name="a layer in the making"):
    """Register what `change` does in an RW layer on `parent` (moby's createLayer, layer_test.go)."""
    rw = store.create_rw_layer(name, parent)
    change(rw.mount())
    with rw.tar_stream() as stream:
        layer = store.register(stream, parent)
    rw.unmount()
    assert store.release_rw_layer(rw) == []
    return layer


def put_file(path: Path, content: bytes, mode: int) -> None:
    """Write a file and set its mode (go-continuity's fstest.CreateFile)."""
    path.write_bytes(content)
    path.chmod(mode)


def seen(directory: Path) -> dict[str, tuple]:
    """Everything below `directory` as a program there sees it, by path; the root is ``.``."""
    found = {".": _facts(directory)}
    for place, directories, files in os.walk(directory):
        for name in (*directories, *files):
            path = Path(place, name)
            found[str(path.relative_to(directory))] = _facts(path)
    return found


def _facts(path: Path) -> tuple:
    st = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(st.st_mode) else None
    if stat.S_ISLNK(st.st_mode):
        content = os.readlink(path)
    links = 0 if stat.S_ISDIR(st.st_mode) else st.st_nlink
    return st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, links, content
