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

from fusestore.files import opened, walk

_FLAGS = re.compile(rb"^flags:\s*([0-7]+)$", re.MULTILINE)


def flush(server: int, upper: bytes, mountpoint: bytes) -> None:
    """Write out all files that are open for writing through the mount of the process `server`.

    Their paths are the same in `upper` and below `mountpoint`.  Raises OSError.
    """
    for path in _written(server, upper):
        with suppress(FileNotFoundError):  # it was unlinked or renamed just now
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(os.path.join(mountpoint, path), flags)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _written(server: int, upper: bytes) -> Iterator[bytes]:
    """The paths in `upper` of the files that the server has open for writing."""
    # Inode numbers of files that have lost the name they were opened by, and may have others.
    nameless = set()
    for target, ino in _open_for_writing(server, os.path.dirname(upper)):
        if target.startswith(upper + b"/") and os.path.lexists(target):
            yield target[len(upper) + 1 :]
        else:
            nameless.add(ino)
    if not nameless:
        return
    with opened(upper) as top:
        for path, _, entries in walk(top):
            for entry in entries:
                if entry.inode() in nameless and entry.is_file(follow_symlinks=False):
                    yield os.path.join(path, os.fsencode(entry.name))


def _open_for_writing(server: int, below: bytes) -> Iterator[tuple[bytes, int]]:
    """Paths and inode numbers of files below a directory, as /proc has them."""
    table = b"/proc/%d/fd" % server
    for number in os.listdir(table):
        with suppress(FileNotFoundError):  # closed meanwhile
            link = os.path.join(table, number)
            target = os.readlink(link)
            if not target.startswith(below + b"/"):
                continue
            with open(b"/proc/%d/fdinfo/%s" % (server, number), "rb") as info:
                flags = _FLAGS.search(info.read())
            if flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY:
                yield target, os.stat(link).st_ino
