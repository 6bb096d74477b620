"""How many `get` calls of all processes have not been given back yet, layer by layer.

The count of a layer is the content of ``<runroot>/mounts/<cache-id>.count``, changed under a lock; the
runroot is gone after a reboot, and with it the counts (containers/storage: ``mountpoints.json``).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fusestore.digest import CacheID
from fusestore.files import lock

_SUFFIX = ".count"


class Counter:
    """The counts kept below `runroot`."""

    def __init__(self, runroot: Path) -> None:
        self._directory = runroot / "mounts"

    @contextmanager
    def users(self, cache_id: CacheID) -> Iterator[list[int]]:
        """The count of a layer's users, as a list of one to change, under a lock.  Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = lock(self._directory / (cache_id + _SUFFIX), fcntl.LOCK_EX, os.O_CREAT)
        try:
            users = [int(os.pread(fd, 20, 0) or b"0")]
            yield users
            os.pwrite(fd, b"%-20d" % users[0], 0)  # always one write of one size: never half a number
        finally:
            os.close(fd)

    def forget(self, cache_id: CacheID) -> None:
        """The layer is gone."""
        (self._directory / (cache_id + _SUFFIX)).unlink(missing_ok=True)

    def all(self) -> list[str]:
        """The cache IDs of all layers that have a count."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return []
        return [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
