"""Layer tars byte by byte: ustar headers, with PAX records for whatever those cannot say.

Not with `tarfile`, which stores no raw bytes in names and is too slow for 200,000 members.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

FILE, HARD_LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
NOON = 1_000_000_000 * 10**9  # 2001-09-09, in ns

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_SEVEN, _ELEVEN = 0o7777777, 0o77777777777


@dataclass(frozen=True)
class Entry:
    """One member; times in ns."""

    name: bytes
    kind: bytes = FILE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = NOON
    content: bytes = b""
    link: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


def file(name, content=b"", mode=0o644, **more):
    return Entry(name, FILE, mode, content=content, **more)


def directory(name, mode=0o755, **more):
    return Entry(name, DIRECTORY, mode, **more)


def symlink(name, target, **more):
    return Entry(name, SYMLINK, 0o777, link=target, **more)


def hard_link(name, target):
    return Entry(name, HARD_LINK, link=target)


def fifo(name, mode=0o600, **more):
    return Entry(name, FIFO, mode, **more)


def device(name, kind, major, minor, mode=0o600, **more):
    return Entry(name, kind, mode, device=(major, minor), **more)


def whiteout(name):
    """The marker that deletes `name`."""
    above, slash, last = name.rpartition(b"/")
    return Entry(above + slash + b".wh." + last)


def opaque(name):
    """The marker that hides what lower layers have in the directory `name`."""
    return Entry(name + b"/.wh..wh..opq")


def tar(entries: Iterable[Entry]) -> bytes:
    return b"".join(blocks(entries))


def blocks(entries: Iterable[Entry]) -> Iterator[bytes]:
    """The archive in pieces, so that a large one need not be in memory."""
    for entry in entries:
        yield member(entry)
    yield bytes(1024)


def member(entry: Entry) -> bytes:
    records = _records(entry)
    extended = b"".join(_record(key, value) for key, value in records.items())
    head = _block(Entry(b"pax", content=extended), b"x") + _padded(extended) if extended else b""
    return head + _block(entry, entry.kind) + _padded(entry.content)


def _records(entry: Entry) -> dict[bytes, bytes]:
    found = {}
    if len(entry.name) > 100:
        found[b"path"] = entry.name
    if len(entry.link) > 100:
        found[b"linkpath"] = entry.link
    for key, number in ((b"uid", entry.uid), (b"gid", entry.gid)):
        if number > _SEVEN:
            found[key] = b"%d" % number
    seconds, ns = divmod(entry.mtime, 10**9)
    if ns or not 0 <= seconds <= _ELEVEN:
        found[b"mtime"] = _decimal(entry.mtime)
    return found | {b"SCHILY.xattr." + name: value for name, value in entry.xattrs.items()}


def _decimal(ns: int) -> bytes:
    whole, part = divmod(abs(ns), 10**9)
    return b"%s%d.%09d" % (b"-" if ns < 0 else b"", whole, part)


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %s=%s\n" % (key, value)
    size = len(rest)
    while len(b"%d" % size) + len(rest) != size:
        size = len(b"%d" % size) + len(rest)
    return b"%d" % size + rest


def _block(entry: Entry, kind: bytes) -> bytes:
    seconds = entry.mtime // 10**9
    fields = [
        entry.name[:100],
        b"%07o" % entry.mode,
        b"%07o" % (entry.uid if entry.uid <= _SEVEN else 0),
        b"%07o" % (entry.gid if entry.gid <= _SEVEN else 0),
        b"%011o" % len(entry.content),
        b"%011o" % (seconds if 0 <= seconds <= _ELEVEN else 0),
        b" " * 8,
        kind,
        entry.link[:100],
        b"ustar\0" + b"00",
        b"",
        b"",
        b"%07o" % entry.device[0],
        b"%07o" % entry.device[1],
        b"",
    ]
    fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
    return _HEADER.pack(*fields)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)
