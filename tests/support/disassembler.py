"""Upstream's tar-split once more, as plainly as it can be said: what `fusestore.store.tarsplit` must write.

The archive is sound and in memory.  Each member is a segment with all raw bytes since the last content (its
padding, extended headers, the header) and a file entry; then come a segment with the end of the archive and,
in pieces of 1 MiB, what follows it.  A global PAX header is a member too, with its data in the segment.

What upstream cannot put together again is refused: a path twice, sparse members, whiteouts with content, data
that a header announces and the type forbids.  (Version 0.11.2 and older end the stream with an empty segment,
which is left out.)
"""

import base64
import posixpath

BLOCK, CHUNK = 512, 1 << 20
_NO_DATA = b"123456"
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPES |= {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


class Unrepresentable(Exception):
    """Upstream refuses this archive, or could not give it back."""


def crc64(data: bytes) -> bytes:
    """CRC-64 of ISO 3309, bit by bit reflected, as 8 bytes big-endian."""
    crc = 0xFFFFFFFFFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return (crc ^ 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def _reduced(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0xD800000000000000 if value & 1 else 0)
    return value


_TABLE = [_reduced(byte) for byte in range(256)]


def disassembled(archive: bytes) -> bytes:
    """The JSON lines that upstream writes for `archive`.  Raises Unrepresentable."""
    lines: list[str] = []
    seen: set[bytes] = set()
    taken = at = 0  # everything before `taken` is in a line; the next header is at `at`
    extended: dict[bytes, bytes] = {}
    while (block := archive[at : at + BLOCK]).strip(b"\0"):
        kind, size = block[156:157], _number(block[124:136])
        data = at + BLOCK
        if kind in b"xLK":
            extended = _extended(extended, kind, archive[data : data + size])
            at = data + size + -size % BLOCK
            continue
        if kind == b"g":
            records, extended = _records(archive[data : data + size]), {}
            name, content, data = records.get(b"path", _name(block)), b"", data + size
        else:
            name = extended.get(b"L") or extended.get(b"path") or _name(block)
            size = int(extended.get(b"size", size))
            if kind == b"S" or any(key.startswith(b"GNU.sparse.") for key in extended):
                raise Unrepresentable("sparse")
            if size and kind in _NO_DATA:
                raise Unrepresentable("data that is not there")
            if size and b"/.wh." in b"/" + name:
                raise Unrepresentable("a whiteout with content")
            content, extended = archive[data : data + size], {}
        if (clean := posixpath.normpath(b"/" + name.lstrip(b"/") if name[:1] == b"/" else name)) in seen:
            raise Unrepresentable("duplicates of file paths not supported")
        seen.add(clean)
        _segment(lines, archive[taken:data])
        _file(lines, name, content)
        taken = data + len(content)
        at = taken + -size % BLOCK
    end = at + 2 * BLOCK
    _segment(lines, archive[taken:end])
    for start in range(end, len(archive), CHUNK):
        _segment(lines, archive[start : start + CHUNK])
    return "".join(f"{{{line}}}\n" for line in lines).encode()


def _segment(lines: list[str], data: bytes) -> None:
    if data:
        lines.append(f'"type":2,"payload":"{base64.b64encode(data).decode()}","position":{len(lines)}')


def _file(lines: list[str], name: bytes, content: bytes) -> None:
    try:
        named = f'"name":{_quoted(name.decode())},' if name else ""
    except UnicodeDecodeError:
        named = f'"name_raw":"{base64.b64encode(name).decode()}",'
    summed = f'"{base64.b64encode(crc64(content)).decode()}"' if content else "null"
    size = f'"size":{len(content)},' if content else ""
    lines.append(f'"type":1,{named}{size}"payload":{summed},"position":{len(lines)}')


def _quoted(text: str) -> str:
    """As Go's encoding/json (1.22 and later) with its default HTML escapes."""
    return '"' + "".join(_ESCAPES.get(c, f"\\u{ord(c):04x}" if c < " " else c) for c in text) + '"'


def _number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
    return int(field.strip(b" \0") or b"0", 8)


def _name(block: bytes) -> bytes:
    """With the prefix of ustar, which Go wrote in GNU headers too, in the place of two times, until 1.8."""
    name, prefix = (field.partition(b"\0")[0] for field in (block[:100], block[345:500]))
    old_go = block[257:265] == b"ustar  \0" and prefix.strip(b" 01234567") and prefix.isascii()
    return prefix + b"/" + name if prefix and (block[257:263] == b"ustar\0" or old_go) else name


def _extended(found: dict[bytes, bytes], kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """Long names add to what was there; records take the place of earlier ones."""
    if kind == b"x":
        return {key: found[key] for key in (b"L", b"K") if key in found} | _records(data)
    return found | {kind: data.partition(b"\0")[0]}


def _records(data: bytes) -> dict[bytes, bytes]:
    """PAX records; an empty value leaves the field as it is."""
    found = {}
    while data:
        size = int(data.partition(b" ")[0])
        key, _, value = data[:size].partition(b" ")[2].removesuffix(b"\n").partition(b"=")
        data = data[size:]
        if value:
            found[key] = value
    return found
