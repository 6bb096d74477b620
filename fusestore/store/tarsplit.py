"""tar-split: what a layer tar holds besides the contents of files, and the tar put together again from both.

The stream is that of vbatts/tar-split (tar/storage), which moby and containers/storage keep for each layer:
gzip'd JSON objects, one a line.  A *segment* (type 2) holds raw bytes - padding and headers - in base64, a
*file* (type 1) the name of a member, and if it has content its size and CRC-64/GO-ISO::

    {"type":2,"payload":"ZC8AAAA...","position":0}
    {"type":1,"name":"d/","payload":null,"position":1}
    {"type":2,"payload":"ZC9hAAA...","position":2}
    {"type":1,"name":"d/a","size":6,"payload":"YUw+7uLYEAA=","position":3}

Where upstream gives up we do not: the data of a sparse member, or of a member that leaves no file of its
name (a whiteout with content), become segments behind a file of size 0.  Any reader of the format puts
those together exactly.
"""

from __future__ import annotations

import binascii
import json
import os
import re
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

from fastcrc import crc64
from isal import igzip, isal_zlib

from fusestore.driver.api import FileGetter
from fusestore.errors import CorruptStore, printable

#: The stream's name in a layer's directory, as in moby's layerdb.
RECORD = "tar-split.json.gz"

_SEGMENT = 2
_SEGMENT_LIMIT = 1 << 20  # bytes; upstream's for what follows the archive
_BUFFER = 1 << 16
_CHUNK = 1 << 20
_LEVEL = 1  # 2.9 % of the JSON stay, as with 2; zlib's 1 is ten times slower and leaves 3.6 %

_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_DAMAGE = (EOFError, zlib.error, _ISAL_ERROR, igzip.BadGzipFile)

_PLAIN = re.compile(rb"[ !#-%'-;=?-\[\]-~]+")  # printable ASCII but " & < > and backslash

#: What Go's encoding/json escapes besides what JSON demands; ``\\u007f`` and the like stay raw in both.
_GO_ESCAPES = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


class Writer:
    """A `fusestore.tar.Record` that writes the stream to `file`, which stays open."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._gzip: Any = isal_zlib.compressobj(_LEVEL, wbits=zlib.MAX_WBITS | 16)
        self._lines: list[bytes] = []
        self._pending = 0  # bytes in _lines
        self._raw: list[bytes] = []
        self._raw_size = 0
        self._position = 0
        self._crc = 0

    def raw(self, data: bytes) -> None:
        """Bytes that no file holds."""
        self._raw.append(data)
        self._raw_size += len(data)
        while self._raw_size >= _SEGMENT_LIMIT:
            rest = b"".join(self._raw)
            self._raw[:] = [rest[:_SEGMENT_LIMIT]]
            self._segment()
            self._raw.append(rest[_SEGMENT_LIMIT:])
            self._raw_size = len(self._raw[0])

    def member(self, name: bytes) -> None:
        """A member without content in a file."""
        self._segment()
        self._line(b'{"type":1,%s"payload":null,"position":%d}\n' % (_named(name), self._position))

    def content(self, data: memoryview) -> None:
        """A piece of the content of the file that comes next."""
        self._crc = crc64.go_iso(data, self._crc)

    def file(self, name: bytes, size: int) -> None:
        """A member whose content `content` has had."""
        if not size:
            self.member(name)
            return
        self._segment()
        payload = binascii.b2a_base64(self._crc.to_bytes(8, "big"), newline=False)
        fields = _named(name), size, payload, self._position
        self._line(b'{"type":1,%s"size":%d,"payload":"%s","position":%d}\n' % fields)
        self._crc = 0

    def behind(self) -> None:
        """What follows the archive has segments of its own."""
        self._segment()

    def _segment(self) -> None:
        if not self._raw_size:
            return
        payload = binascii.b2a_base64(b"".join(self._raw), newline=False)
        self._raw.clear()
        self._raw_size = 0
        self._line(b'{"type":2,"payload":"%s","position":%d}\n' % (payload, self._position))

    def _line(self, line: bytes) -> None:
        self._position += 1
        self._lines.append(line)
        self._pending += len(line)
        if self._pending >= _BUFFER:
            self._flush()

    def _flush(self) -> None:
        self._file.write(self._gzip.compress(b"".join(self._lines)))
        self._lines.clear()
        self._pending = 0

    def end(self) -> None:
        """Write what is left.  Raises OSError."""
        self._segment()
        self._flush()
        self._file.write(self._gzip.flush())
        self._file.flush()


def _named(name: bytes) -> bytes:
    """The name as JSON fields, in Go's spelling; ``name_raw`` where it is not UTF-8."""
    if _PLAIN.fullmatch(name):  # nearly always; 0.3 us instead of 3
        return b'"name":"%s",' % name
    if not name:
        return b""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return b'"name_raw":"%s",' % binascii.b2a_base64(name, newline=False)
    return b'"name":%s,' % json.dumps(text, ensure_ascii=False).translate(_GO_ESCAPES).encode()


# -- putting together -------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    kind: int
    name: bytes
    size: int
    payload: bytes


def assemble(record: IO[bytes], files: FileGetter, what: str) -> Iterator[bytes]:
    """The tar of which `record` is the gzip'd stream and `files` the contents, piece by piece.

    `what` names the layer in errors.  Raises CorruptStore when one of both is damaged, OSError.
    """
    for entry in _entries(record, what):
        if entry.kind == _SEGMENT:
            yield entry.payload
        elif entry.size:
            yield from _content(entry, files, what)


def _lines(record: IO[bytes]) -> IO[bytes]:
    return cast(IO[bytes], igzip.IGzipFile(fileobj=record, mode="rb"))  # type: ignore[no-untyped-call]


def _entries(record: IO[bytes], what: str) -> Iterator[_Entry]:
    try:
        for line in _lines(record):
            fields = json.loads(line.decode())
            raw = fields.get("name_raw")
            name = binascii.a2b_base64(raw) if raw else fields.get("name", "").encode()
            payload = binascii.a2b_base64(fields["payload"] or "")
            yield _Entry(fields["type"], name, fields.get("size", 0), payload)
    except (*_DAMAGE, RecursionError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CorruptStore(what, f"its tar-split record cannot be read: {exc}") from None


def _content(entry: _Entry, files: FileGetter, what: str) -> Iterator[bytes]:
    try:
        fd = files.get(entry.name)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptStore(what, f"{printable(entry.name)} is missing") from None
    crc = 0
    try:
        while chunk := os.read(fd, _CHUNK):
            crc = crc64.go_iso(chunk, crc)
            yield chunk
    finally:
        os.close(fd)
    if crc.to_bytes(8, "big") != entry.payload:
        raise CorruptStore(what, f"file integrity checksum failed for {printable(entry.name)}")
