"""The files of one layer by the names its tar gives them, to put that tar together again (tar-split).

A name may lead through symlinks that the layer itself has; they are followed as when it was unpacked
(`fusestore.driver.confine`), so nothing outside the layer is ever opened.
"""

from __future__ import annotations

import errno
import os
import stat

from fusestore.driver.api import Held
from fusestore.driver.confine import Confined, split
from fusestore.driver.ownership import Ownership
from fusestore.errors import InvalidLayer


class DiffGetter:
    """The files below `directory`, while `held` keeps them there; `close` it (moby: ``FileGetCloser``)."""

    def __init__(self, directory: bytes, ownership: Ownership, held: Held) -> None:
        self._held = held
        self._root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._tree = Confined(self._root, ownership, lambda path: None)

    def get(self, name: bytes) -> int:
        """The file that the tar calls `name`, as an fd for the caller to close.  Raises FileNotFoundError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(self._tree.locate(split(name)), flags, dir_fd=self._root)
        except InvalidLayer as exc:
            raise FileNotFoundError(errno.ENOENT, exc.reason, name) from None
        except OSError as exc:
            if exc.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            raise FileNotFoundError(errno.ENOENT, "not a file any more", name) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "not a file any more", name)
        return fd

    def close(self) -> None:
        """Done.  May be called twice."""
        if self._root >= 0:
            self._tree.close()
            os.close(self._root)
            self._root = -1
            self._held.close()
