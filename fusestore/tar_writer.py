"""Write a layer tar: one header at a time, the same bytes for the same facts.

ustar where it can say all there is to say, else a PAX extended header before it (POSIX.1-2001, pax): long
names, large numbers, times before 1970 or with fractions, xattrs (``SCHILY.xattr.NAME``, as GNU tar and Go
write them). No user names, no times but mtime.  A name that is not UTF-8 is written as it is, as GNU tar
does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping

BLOCK = 512
#: What ends an archive.
END = bytes(2 * BLOCK)

_NAME, _PREFIX = 100, 155
_TYPES = {
    stat.S_IFREG: b"0",
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}
_HARD_LINK, _PAX = b"1", b"x"


def header(
    path: bytes,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = 0,
    rdev: int = 0,
    *,
    size: int = 0,
    link: bytes = b"",
    hard: bool = False,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of a member: of the object that `mode` says, or (`hard`) a hard link to `link`.

    `path` is without the slash of a directory; `link` is a symlink's target.  Raises ValueError for a socket,
    which a tar cannot hold.
    """
    kind = _HARD_LINK if hard else _TYPES.get(stat.S_IFMT(mode))
    if kind is None:
        raise ValueError("a tar cannot hold a socket")
    name = path + b"/" if stat.S_ISDIR(mode) else path
    seconds, fraction = divmod(mtime_ns, 1_000_000_000)
    records: dict[bytes, bytes] = {}
    prefix, short = _split(name)
    if short is None:
        records[b"path"], short = name, name[-_NAME:]
    if len(link) > _NAME:
        records[b"linkpath"] = link
    if seconds < 0 or fraction or seconds >= 1 << 33:
        records[b"mtime"] = _time(mtime_ns)
    numbers = {b"uid": (uid, 8), b"gid": (gid, 8), b"size": (size, 12)}
    records |= {key: b"%d" % number for key, (number, width) in numbers.items() if number >= 8 ** (width - 1)}
    records |= {b"SCHILY.xattr." + key: value for key, value in (xattrs or {}).items()}
    fields = [
        short.ljust(_NAME, b"\0"),
        _octal(mode & 0o7777, 8),
        _octal(uid, 8),
        _octal(gid, 8),
        _octal(size, 12),
        _octal(max(seconds, 0), 12),
        b" " * 8,
        kind,
        link[:_NAME].ljust(_NAME, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(os.major(rdev), 8),
        _octal(os.minor(rdev), 8),
        prefix.ljust(_PREFIX, b"\0"),
        bytes(12),
    ]
    return (_extended(path, records) if records else b"") + _checked(b"".join(fields))


def padding(size: int) -> bytes:
    """What follows `size` bytes of data."""
    return bytes(-size % BLOCK)


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """`name` as ustar's prefix and name; None where it does not fit."""
    if len(name) <= _NAME:
        return b"", name
    cut = name.find(b"/", len(name) - _NAME - 1, len(name) - 1)
    if cut <= 0 or cut > _PREFIX:
        return b"", None
    return name[:cut], name[cut + 1 :]


def _octal(number: int, width: int) -> bytes:
    """A number field; one that is too large is in a record, and 0 here."""
    digits = b"%0*o" % (width - 1, number)
    return (digits if len(digits) < width else b"0" * (width - 1)) + b"\0"


def _time(ns: int) -> bytes:
    """Seconds with as many decimals as needed (pax: a sign applies to the whole number)."""
    sign, ns = (b"-", -ns) if ns < 0 else (b"", ns)
    seconds, fraction = divmod(ns, 1_000_000_000)
    decimals = (b"%09d" % fraction).rstrip(b"0")
    return sign + b"%d" % seconds + (b"." + decimals if decimals else b"")


def _extended(path: bytes, records: Mapping[bytes, bytes]) -> bytes:
    body = b"".join(_record(key, records[key]) for key in sorted(records))
    name = b"PaxHeaders.0/" + os.path.basename(path)
    fields = [
        name[:_NAME].ljust(_NAME, b"\0"),
        _octal(0o644, 8),
        _octal(0, 8),
        _octal(0, 8),
        _octal(len(body), 12),
        _octal(0, 12),
        b" " * 8,
        _PAX,
        bytes(_NAME),
        b"ustar\x0000",
        bytes(64 + 8 + 8 + _PREFIX + 12),
    ]
    return _checked(b"".join(fields)) + body + padding(len(body))


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where LENGTH counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)


def _checked(block: bytes) -> bytes:
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
