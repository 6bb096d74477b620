"""Owners as a mount shows them and as its layers have them (fuse-overlayfs: uidmapping, gidmapping, squash).

A range maps `count` ids from `stored` on to `shown` on.  An id in no range is shown as the kernel's
overflow id, and cannot be stored.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

Range = tuple[int, int, int]  # stored, shown, count


class IdMap:
    """A map of user ids or of group ids."""

    def __init__(self, ranges: Sequence[Range], squash: int | None, root: int | None, overflow: Path) -> None:
        """`squash` is shown for every id, `root` for 0; `overflow` is the file with the overflow id.

        Raises OSError.
        """
        self._ranges = ranges
        self._root = root
        self._squash = squash
        self._overflow = int(overflow.read_text())

    def shown(self, number: int) -> int:
        """The id that a stored one is shown as."""
        if self._squash is not None:
            return self._squash
        if not number and self._root is not None:
            return self._root
        for stored, shown, count in self._ranges:
            if stored <= number < stored + count:
                return shown + number - stored
        return self._overflow if self._ranges else number

    def stored(self, number: int) -> int:
        """The id to store for one that is shown.  Raises OSError (EINVAL, as chown(2) for an unmapped id)."""
        found = self._stored(number)
        if found is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return found

    def stored_of_caller(self, number: int) -> int:
        """The same for whoever makes a file, and may be anybody: without a range it is the overflow id's."""
        found = self._stored(number)
        return self._overflow if found is None else found

    def _stored(self, number: int) -> int | None:
        if number == self._root:
            return 0
        for stored, shown, count in self._ranges:
            if shown <= number < shown + count:
                return stored + number - shown
        return None if self._ranges else number

    @property
    def squashes(self) -> bool:
        """True when every id is shown as the same one, so that a change of it means nothing."""
        return self._squash is not None


def user_map(ranges: Sequence[Range], squash: int | None, root: int | None = None) -> IdMap:
    """An `IdMap` of user ids."""
    return IdMap(ranges, squash, root, Path("/proc/sys/kernel/overflowuid"))


def group_map(ranges: Sequence[Range], squash: int | None, root: int | None = None) -> IdMap:
    """An `IdMap` of group ids."""
    return IdMap(ranges, squash, root, Path("/proc/sys/kernel/overflowgid"))
