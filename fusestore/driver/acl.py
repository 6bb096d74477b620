"""POSIX access control lists as xattrs, for backing files that cannot hold them themselves.

What the kernel does for a filesystem with ACLs (acl(5); posix_acl_chmod, posix_acl_create and
posix_acl_update_mode in fs/posix_acl.c): the permission bits of a file and its access ACL say the same thing
twice, so a change of one is a change of the other; and what is made in a directory with a default ACL gets
its ACLs and bits from there instead of from the umask.

An ACL is a 32-bit version 2, then entries of (tag, permissions, id), little-endian.
"""

from __future__ import annotations

import errno
import os
import struct

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

_VERSION = struct.pack("<I", 2)
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_REQUIRED = {_USER_OBJ, _GROUP_OBJ, _OTHER}

Entry = tuple[int, int, int]


def _parse(value: bytes) -> list[Entry]:
    entries = value[4:]
    if value[:4] != _VERSION or len(entries) % _ENTRY.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    parsed = list(_ENTRY.iter_unpack(entries))
    tags = [tag for tag, _, _ in parsed]
    named = _USER in tags or _GROUP in tags
    unique = [tag for tag in tags if tag not in (_USER, _GROUP)]
    if not set(tags) >= _REQUIRED or len(unique) != len(set(unique)) or (named and _MASK not in tags):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return parsed


def _format(entries: list[Entry]) -> bytes:
    return _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)


def is_empty(value: bytes) -> bool:
    """True for an ACL without entries; setting one removes the ACL."""
    return len(value) <= len(_VERSION)


def mode(value: bytes) -> tuple[int, bool]:
    """The nine permission bits that an access ACL amounts to, and whether they say all of it.

    Raises OSError (EINVAL) for what is no ACL.
    """
    entries = _parse(value)
    bits = {tag: permissions & 7 for tag, permissions, _ in entries}
    group = bits.get(_MASK, bits[_GROUP_OBJ])
    return bits[_USER_OBJ] << 6 | group << 3 | bits[_OTHER], len(entries) == len(_REQUIRED)


def changed_mode(value: bytes, permissions: int) -> bytes:
    """An access ACL after chmod(2): the group's bits go to the mask if there is one."""
    entries = _parse(value)
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    new = {_USER_OBJ: permissions >> 6 & 7, group: permissions >> 3 & 7, _OTHER: permissions & 7}
    return _format([(tag, new.get(tag, old), number) for tag, old, number in entries])


def inherited(default: bytes, permissions: int) -> tuple[bytes | None, int]:
    """The access ACL (None: none needed) and permission bits of what is made with bits `permissions` in a
    directory with the default ACL `default`."""
    entries = _parse(default)
    group = _MASK if any(tag == _MASK for tag, _, _ in entries) else _GROUP_OBJ
    limit = {_USER_OBJ: permissions >> 6 & 7, group: permissions >> 3 & 7, _OTHER: permissions & 7}
    acl = _format([(tag, old & limit.get(tag, 7), number) for tag, old, number in entries])
    bits, minimal = mode(acl)
    return (None if minimal else acl), permissions & ~0o777 | bits
