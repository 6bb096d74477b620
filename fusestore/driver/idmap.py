"""Owners as a mount shows them and as its layers have them (fuse-overlayfs: uidmapping, gidmapping, squash).

A range maps `count` ids from `stored` on to `shown` on.  An id in no range is shown as the kernel's
overflow id, and cannot be stored.

Two kinds of xattr hold ids too: ACLs, and file capabilities of revision 3, which hold in the user namespace
of one root only.  The kernel turns those of revision 2 into these when a file is written inside a namespace
(capabilities(7), "Namespaced file capabilities"), so the image had them without.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from pathlib import Path

Range = tuple[int, int, int]  # stored, shown, count

_ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")
_ACL_HEAD, _ACL_ENTRY = 4, struct.Struct("<HHI")  # then entries of tag, permissions, id
_ACL_USER, _ACL_GROUP = 2, 8  # the tags whose entries name an id

_CAPABILITY = b"security.capability"
_CAPABILITY_3 = struct.Struct("<I16sI")  # revision and flags, sets, uid of the namespace's root
_REVISION_2, _REVISION_3, _REVISION = 0x02000000, 0x03000000, 0xFF000000


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


class Owners:
    """The ids in a tree that another program keeps, as its image has them.  Raises OSError."""

    def __init__(self, uids: Sequence[Range], gids: Sequence[Range]) -> None:
        uid_map, gid_map = user_map(uids, None), group_map(gids, None)
        self.uid, self.gid = uid_map.shown, gid_map.shown

    def xattr(self, name: bytes, value: bytes) -> bytes:
        """The value of an xattr, with the ids in it as the image has them."""
        if name in _ACLS:
            return self._acl(value)
        if name == _CAPABILITY and len(value) == _CAPABILITY_3.size:
            return self._capability(value)
        return value

    def _acl(self, value: bytes) -> bytes:
        if (len(value) - _ACL_HEAD) % _ACL_ENTRY.size:
            return value  # no ACL
        of_tag = {_ACL_USER: self.uid, _ACL_GROUP: self.gid}
        entries = _ACL_ENTRY.iter_unpack(value[_ACL_HEAD:])
        shown = (_ACL_ENTRY.pack(tag, bits, of_tag.get(tag, int)(number)) for tag, bits, number in entries)
        return value[:_ACL_HEAD] + b"".join(shown)

    def _capability(self, value: bytes) -> bytes:
        magic, sets, root = _CAPABILITY_3.unpack(value)
        if magic & _REVISION != _REVISION_3:
            return value
        shown = self.uid(root)
        if shown:
            return _CAPABILITY_3.pack(magic, sets, shown)
        return struct.pack("<I16s", magic & ~_REVISION | _REVISION_2, sets)
