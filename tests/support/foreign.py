"""Trees that another program keeps, and layers borrowed of them."""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fusestore.digest import CacheID, new_cache_id
from fusestore.driver.api import Driver
from fusestore.driver.layout import LayerSpec, Origin
from fusestore.driver.ownership import Ownership

ME, MY_GROUP = os.getuid(), os.getgid()
TOLD_BY_ITSELF = Origin()
MAPPED = Origin(Ownership.REAL, None, ((ME, 0, 1), (100_000, 1, 65_536)), ((MY_GROUP, 0, 1),))


def made(root: Path, content: dict[str, bytes | None]) -> Path:
    """A tree: path -> content, None a 0:0 device, with a final slash an empty directory."""
    root.mkdir()
    for path, value in content.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        elif value is None:
            os.mknod(root / path, stat.S_IFCHR, os.makedev(0, 0))
        else:
            (root / path).write_bytes(value)
    return root


def state(top: Path) -> dict[str, tuple]:
    """Every inode below `top` with its change time, which no chmod there and back leaves as it was."""
    found = {}
    for place, _, files in os.walk(top):
        for path in (place, *(os.path.join(place, name) for name in files)):
            with suppress(PermissionError):
                st = os.lstat(path)
                found[path] = st.st_ino, st.st_mode, st.st_nlink, st.st_size, st.st_ctime_ns
    return found


def borrow(
    driver: Driver,
    path: Path | str,
    parent: CacheID | None = None,
    origin: Origin | None = TOLD_BY_ITSELF,
    links: str | None = None,
) -> CacheID:
    """`path` as a published layer on `parent`."""
    cache_id = new_cache_id()
    driver.borrow(cache_id, parent, LayerSpec(str(path), links, origin=origin)).close()
    return cache_id


def refusal(call: Callable[..., Any], *arguments: object) -> str:
    """The errno's name that a call fails with; "" when it does not."""
    try:
        call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return ""
