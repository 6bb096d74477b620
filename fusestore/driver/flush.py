"""Have everything written into a mount arrive in its upper directory, while programs still have files open.

With the writeback cache, what write(2) has taken may still be in the kernel.  It gets to the server when a
file is closed, which waits; for files that are open, only fsync(2) waits (syncfs(2) on FUSE starts writing
out, but returns before).  Which files those are the server's own fds tell: it has one for each, until the
last close and munmap.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress

_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)


def flush(server: int, upper: bytes, mountpoint: bytes) -> None:
    """Write out all files that are open for writing through the mount of the process `server`.  Raises
    OSError.

    Their paths are the same in `upper` and below `mountpoint`.
    """
    for path in _written(server, upper):
        with suppress(FileNotFoundError):  # it was unlinked or renamed just now
            fd = os.open(
                os.path.join(mountpoint, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _written(server: int, upper: bytes) -> Iterator[bytes]:
    """The paths in `upper` of the files that the server has open for writing."""
    table = b"/proc/%d/fd" % server
    for number in os.listdir(table):
        with suppress(FileNotFoundError):  # closed meanwhile
            target = os.readlink(os.path.join(table, number))
            if not target.startswith(upper + b"/"):
                continue
            with open(b"/proc/%d/fdinfo/%s" % (server, number), "rb") as info:
                flags = _FLAGS.search(info.read())
            if flags and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                yield target[len(upper) + 1 :]
