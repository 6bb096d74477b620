"""Tar archives made by hand, block by block, so that every field may be wrong."""

import os
import struct
from collections.abc import Iterable

from fusestore.tar import Member, TarReader

BLOCK = 512
END = bytes(2 * BLOCK)
V7, USTAR, GNU = bytes(8), b"ustar\x0000", b"ustar  \0"
FILE, LINK, SYMLINK, CHAR, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s167s")


def octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's spelling of numbers that are negative or have too many digits."""
    if value < 0:
        return b"\xff" + value.to_bytes(width - 1, "big", signed=True)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _number(value: int | bytes, width: int) -> bytes:
    if isinstance(value, bytes):
        return value
    return octal(value, width) if 0 <= value < 8 ** (width - 1) else base256(value, width)


def header(
    name: bytes,
    *,
    kind: bytes = FILE,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    size: int | bytes = 0,
    mtime: int | bytes = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    major: int | bytes = 0,
    minor: int | bytes = 0,
    tail: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block.  Numbers given as bytes go in as they are; `tail` is what starts with the prefix."""
    fields = [_number(value, 8) for value in (mode, uid, gid)] + [_number(size, 12), _number(mtime, 12)]
    devices = [_number(value, 8) for value in (major, minor)]

    def pack(checksum: bytes) -> bytes:
        return _HEADER.pack(name, *fields, checksum, kind, link, magic, b"", b"", *devices, tail)

    return pack(checksum if checksum is not None else b"%06o\0 " % sum(pack(b" " * 8)))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def records(pairs: Iterable[tuple[str | bytes, str | bytes]]) -> bytes:
    """PAX records: each begins with its own length."""
    found = []
    for key, value in pairs:
        body = b" " + os.fsencode(key) + b"=" + os.fsencode(value) + b"\n"
        length = len(body) + 1
        while len(b"%d" % length) + len(body) != length:
            length += 1
        found.append(b"%d" % length + body)
    return b"".join(found)


def pax(pairs: Iterable[tuple[str | bytes, str | bytes]], kind: bytes = b"x") -> bytes:
    """An extended header (``g``: a global one)."""
    data = records(pairs)
    return header(b"PaxHeaders/x", kind=kind, size=len(data)) + padded(data)


def long(kind: bytes, text: bytes) -> bytes:
    """GNU's long name (``L``) or long link target (``K``)."""
    return header(b"././@LongLink", kind=kind, size=len(text) + 1, magic=GNU) + padded(text + b"\0")


def member(name: str | bytes, data: bytes = b"", *, extra: dict | None = None, **fields) -> bytes:
    """A member with its data; `extra` are PAX records.  What is too long for a field goes there by itself."""
    name, link = os.fsencode(name), os.fsencode(fields.pop("link", b""))
    pairs = dict(extra or {})
    if len(name) > 100:
        pairs.setdefault("path", name)
    if len(link) > 100:
        pairs.setdefault("linkpath", link)
    fields.setdefault("size", len(data))
    described = pax(pairs.items()) if pairs else b""
    return described + header(name[:100], link=link[:100], **fields) + padded(data)


def folder(name: str | bytes, mode: int = 0o755, **fields) -> bytes:
    return member(name, kind=DIRECTORY, mode=mode, **fields)


def symlink(name: str | bytes, target: str | bytes, **fields) -> bytes:
    return member(name, kind=SYMLINK, link=target, mode=0o777, **fields)


def hard_link(name: str | bytes, target: str | bytes, **fields) -> bytes:
    return member(name, kind=LINK, link=target, **fields)


def tar(*members: bytes) -> bytes:
    """A whole archive."""
    return b"".join(members) + END


class Stream:
    """Bytes as a stream that gives at most `step` at a time, and counts."""

    def __init__(self, data: bytes, step: int = 1 << 30) -> None:
        self._data, self._step = data, step
        self.position = 0

    def read(self, size: int, /) -> bytes:
        data = self._data[self.position : self.position + min(size, self._step)]
        self.position += len(data)
        return data


def read(archive: bytes, step: int = 1 << 30) -> list[tuple[Member, bytes]]:
    """Every member of an archive with its content, holes filled with zeros."""
    reader = TarReader(Stream(archive, step))
    found = []
    for entry in reader:
        content = bytearray(entry.size if entry.sparse is not None and entry.size < 1 << 24 else 0)
        for offset, chunk in reader.chunks():
            content[offset : offset + len(chunk)] = chunk
        found.append((entry, bytes(content)))
    return found
