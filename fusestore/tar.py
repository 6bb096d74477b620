"""Tar archives as a stream of members: every dialect that images use, nothing believed.

An archive is 512-byte blocks: a header, its data rounded up to a block, and so on until two zero blocks.
Four generations of headers are read, told apart by their magic: v7, ustar, GNU and (ustar with) PAX.  Some
"members" only describe the next one: PAX records (``x``), GNU long names (``L``, ``K``).  PAX beats the
fields, a PAX ``size`` also moves the next header (CVE-2025-62518), and global PAX headers (``g``) are
ignored as Go's reader does.  Sparse files come as old GNU ``S`` members and as PAX versions 0.0, 0.1 and
1.0.

The standard library's reader forgives bad checksums, cut headers and cut data, and keeps no raw blocks.
This one refuses what Go's, GNU's or libarchive's refuses (but not missing padding at the very end), raises
`InvalidLayer` and nothing else (besides what its source raises), holds one buffer, and never allocates by
what a header says (`HEADER_LIMIT`).  A `Record` hears of every byte, so that the archive can be written
again.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from typing import Protocol

from fusestore.digest import Readable
from fusestore.errors import InvalidLayer

BLOCK = 512
# Go's archive/tar caps PAX records, long names and sparse maps alike (CVE-2025-58183).
HEADER_LIMIT = 1 << 20
SIZE_LIMIT = 1 << 53
ID_LIMIT = (1 << 32) - 1  # chown(2) takes this id for "leave it"
_SECONDS_LIMIT = 1 << 53
_BUFFER = 1 << 20

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

#: The type flags a member can have, and what we call them.  ``7`` was "contiguous", ``\0`` is v7's file.
_KINDS = {k: k for k in (REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO)}
_KINDS |= {b"\0": REGULAR, b"7": REGULAR, b"S": REGULAR}
#: Kinds whose size field means nothing and that no data follows, whatever they say (as Go).
_HEADER_ONLY = frozenset((HARD_LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO))

_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
assert _HEADER.size == BLOCK
_GNU_MAGIC = b"ustar  \0"
_ZERO = bytes(BLOCK)
_DECIMAL_TIME = re.compile(rb"(-?)(\d{1,20})(?:\.(\d{0,64}))?")
_DECIMAL = re.compile(rb"0*\d{1,20}")

Extent = tuple[int, int]  # offset and length of a piece of data in a sparse file


class Member:
    """One member, all extensions applied.

    `name` and `link` are as stored.  `size` is the file's length in bytes, holes included; `stored` is what
    the archive holds of it.  `sparse` lists the extents of a sparse file.  Ids are 0 .. 2**32-2.
    """

    __slots__ = (
        "gid", "kind", "link", "major", "minor", "mode", "mtime_ns", "name", "size", "sparse", "stored",
        "uid", "xattrs",
    )  # fmt: skip

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    stored: int
    mtime_ns: int
    link: bytes
    major: int
    minor: int
    xattrs: dict[bytes, bytes]
    sparse: list[Extent] | None


class _Extensions:
    """What the headers before a member said about it."""

    __slots__ = ("long_link", "long_name", "records", "size", "sparse_pairs")

    def __init__(self) -> None:
        self.records: dict[bytes, bytes] = {}
        self.long_name: bytes | None = None
        self.long_link: bytes | None = None
        self.sparse_pairs: list[tuple[bytes, bytes]] = []  # PAX sparse 0.0 repeats its keys
        self.size = 0  # bytes of all those headers


class Record(Protocol):
    """Who wants to be told of every byte of an archive, in order."""

    def raw(self, data: bytes) -> None:
        """Headers, padding, and the data of what `member` announced."""

    def member(self, name: bytes) -> None:
        """A member whose data, if it has any, come through `raw`: no file will hold them as they are here."""

    def content(self, data: memoryview) -> None:
        """Data of the file that `file` will name."""

    def file(self, name: bytes, size: int) -> None:
        """A file of which somebody took all data (`TarReader.chunks`)."""

    def behind(self) -> None:
        """The archive is over; what comes now follows it (`TarReader.drain`)."""

    def end(self) -> None:
        """There is no more."""


class TarReader:
    """Reads members one after the other from anything with ``read(size)``.

    If it also has ``skip(size)``, data that nobody takes is not read, unless there is a `record`.
    """

    def __init__(self, source: Readable, record: Record | None = None) -> None:
        self._read = source.read
        self._record = record
        self._skip = getattr(source, "skip", None) if record is None else None
        self._buffer = b""
        self._position = 0
        self._data = 0  # bytes of the current member's data not yet consumed
        self._padding = 0
        self._member: Member | None = None
        self._unrecorded = False  # the record has not heard of the member yet
        self._globals: set[bytes] = set()  # digests of the names of global headers

    def __iter__(self) -> Iterator[Member]:
        """All members; the data of one must be taken (`chunks`) before the next is asked for."""
        while (member := self._next()) is not None:
            yield member

    def chunks(self) -> Iterator[tuple[int, memoryview]]:
        """The current member's data as (offset in the file, bytes).  Holes are left out."""
        member, record = self._member, self._record
        assert member is not None
        whole = member.sparse is None
        if record is not None and not whole:
            self._announce(record)
        for offset, length in member.sparse or [(0, member.size if whole else 0)]:
            end = offset + length
            while offset < end:
                chunk = self._take(end - offset)
                if record is not None and whole:
                    record.content(chunk)
                elif record is not None:
                    record.raw(bytes(chunk))
                yield offset, chunk
                offset += len(chunk)
        if record is not None and whole and self._unrecorded:
            self._unrecorded = False
            record.file(member.name, member.size)

    def unname(self) -> None:
        """The member has a name that the archive has had before; the record is not to have it twice."""
        self._unrecorded = False

    def drain(self) -> None:
        """Read on to the end of the source, whatever follows the archive."""
        if self._record is not None:
            self._record.behind()
        self._pass_buffer(len(self._buffer) - self._position)
        while data := self._read(_BUFFER):
            if self._record is not None:
                self._record.raw(data)
        if self._record is not None:
            self._record.end()

    # -- bytes ----------------------------------------------------------------------------------------

    def _take(self, size: int) -> memoryview:
        """At least one and at most `size` bytes of the current data."""
        if self._position == len(self._buffer):
            self._fill()
        chunk = memoryview(self._buffer)[self._position : self._position + size]
        if not chunk:
            raise InvalidLayer("the tar ends in the middle of a file's data (truncated)", self._name())
        self._position += len(chunk)
        self._data -= len(chunk)
        return chunk

    def _fill(self) -> None:
        self._buffer = self._read(_BUFFER)
        self._position = 0

    def _name(self) -> bytes | None:
        return self._member.name if self._member is not None else None

    def _block(self) -> bytes | None:
        """The next 512 bytes; None at the end of the source."""
        start = self._position
        block = self._buffer[start : start + BLOCK]
        if len(block) == BLOCK:
            self._position = start + BLOCK
            if self._record is not None:
                self._record.raw(block)
            return block
        while len(block) < BLOCK:
            self._fill()
            if not self._buffer:
                break
            self._position = BLOCK - len(block)
            block += self._buffer[: self._position]
            self._position = min(self._position, len(self._buffer))
        if not block:
            return None
        if len(block) < BLOCK:
            raise InvalidLayer("the tar ends in the middle of a header (truncated)", self._name())
        if self._record is not None:
            self._record.raw(block)
        return block

    def _skip_data(self) -> None:
        if self._record is not None:
            self._announce(self._record)
        left, padding = self._data + self._padding, self._padding
        self._data = self._padding = 0
        while left:
            step = min(left, len(self._buffer) - self._position)
            self._pass_buffer(step)
            left -= step
            if left and self._skip:
                self._skip(left)
                return
            if left:
                self._fill()
                if not self._buffer:
                    if left <= padding:  # umoci insert ends its tars here; no data is missing
                        return
                    raise InvalidLayer(
                        "the tar ends in the middle of a file's data (truncated)", self._name()
                    )

    def _announce(self, record: Record) -> None:
        if self._unrecorded and self._member is not None:
            self._unrecorded = False
            record.member(self._member.name)

    def _pass_buffer(self, size: int) -> None:
        """Go on by `size` bytes that are in the buffer."""
        start, self._position = self._position, self._position + size
        if size and self._record is not None:
            self._record.raw(self._buffer[start : self._position])

    def _small(self, size: int) -> bytes:
        """The data of a header that describes the next member; `_pad` is to follow."""
        pieces = []
        self._data = size
        while self._data:
            piece = bytes(self._take(self._data))
            pieces.append(piece)
            if self._record is not None:
                self._record.raw(piece)
        return b"".join(pieces)

    def _pad(self, size: int) -> None:
        self._padding = -size % BLOCK
        self._skip_data()

    # -- headers --------------------------------------------------------------------------------------

    def _next(self) -> Member | None:
        self._skip_data()
        extensions = _Extensions()
        extended = False
        while True:
            block = self._block()
            if block is None or block == _ZERO:
                self._end(block, extended)
                return None
            fields = _HEADER.unpack(block)
            _verify_checksum(block, fields[6])
            flag = fields[7]
            if flag not in b"xgLK":
                break
            extended = extended or flag != b"g"
            self._extension(flag, fields, extensions)
            if flag == b"g":  # a member of its own, as for Go: what came before it was about it
                size, extensions = extensions.size, _Extensions()
                extensions.size = size
        member = self._finish(block, fields, extensions)
        self._member = member
        self._unrecorded = True
        return member

    def _end(self, block: bytes | None, extended: bool) -> None:
        """The archive's end: two zero blocks, or one, or none; what follows the second is not ours."""
        if extended:
            raise InvalidLayer("the tar ends after an extended header that describes nothing")
        if block is not None and self._block() not in (None, _ZERO):
            raise InvalidLayer("a zero block stands in the middle of the tar")

    def _extension(self, flag: bytes, fields: tuple[bytes, ...], extensions: _Extensions) -> None:
        size = _number(fields[4], "size")
        extensions.size += size
        if extensions.size > HEADER_LIMIT:
            raise InvalidLayer(f"extended headers of more than {HEADER_LIMIT} bytes")
        data = self._small(size)
        if flag == b"g":
            self._global(fields, data)
        elif flag == b"x":
            extensions.records, extensions.sparse_pairs = {}, []  # the last one counts, as for Go
            _parse_pax(data, extensions)
        elif flag == b"L":
            extensions.long_name = data.partition(b"\0")[0]
        else:
            extensions.long_link = data.partition(b"\0")[0]
        self._pad(size)

    def _global(self, fields: tuple[bytes, ...], data: bytes) -> None:
        """A global header says nothing of the next member, but a record names it; tar-split no name twice."""
        extensions = _Extensions()
        _parse_pax(data, extensions)
        name, _ = _names(fields, extensions)
        known = hashlib.blake2b(name, digest_size=16).digest()  # the name may have 1 MiB
        if self._record is not None and known not in self._globals:
            self._globals.add(known)
            self._record.member(name)

    def _finish(self, block: bytes, fields: tuple[bytes, ...], extensions: _Extensions) -> Member:
        records = extensions.records
        member = Member()
        member.name, member.link = _names(fields, extensions)
        flag = fields[7]
        try:
            member.kind = _KINDS[flag]
        except KeyError:
            raise InvalidLayer(f"unhandled tar header type {flag!r}", member.name) from None
        if member.kind is REGULAR and flag != b"S" and member.name.endswith(b"/"):
            member.kind = DIRECTORY  # how v7, which had no type for it, spells a directory
            if _number(fields[4], "size") or records.get(b"size", b"0") != b"0":
                raise InvalidLayer("a directory with data", member.name)
        mode = _number(fields[1], "mode")
        if not 0 <= mode < 1 << 32:
            raise InvalidLayer(f"mode {mode} is out of range", member.name)
        member.mode = mode & 0o7777
        member.uid = _id(records.get(b"uid"), fields[2], "uid", member.name)
        member.gid = _id(records.get(b"gid"), fields[3], "gid", member.name)
        member.mtime_ns = _time(records.get(b"mtime"), fields[5], member.name)
        member.major, member.minor = 0, 0
        if member.kind in (CHAR, BLOCK_DEVICE):
            member.major, member.minor = _number(fields[12], "device"), _number(fields[13], "device")
        member.xattrs = {k[13:]: v for k, v in records.items() if k.startswith(b"SCHILY.xattr.")}
        size = _decimal(records[b"size"], "size") if b"size" in records else _number(fields[4], "size")
        self._start_data(member, 0 if member.kind in _HEADER_ONLY else size)
        if flag == b"S":
            self._old_sparse(block, member)
        elif member.kind is REGULAR and any(k.startswith(b"GNU.sparse.") for k in records):
            self._pax_sparse(member, extensions)
        if member.sparse is not None:
            _verify_sparse(member)
        return member

    def _start_data(self, member: Member, size: int) -> None:
        if not 0 <= size <= SIZE_LIMIT:
            raise InvalidLayer(f"size {size} is out of range", member.name)
        member.size = member.stored = size
        member.sparse = None
        self._data, self._padding = size, -size % BLOCK

    # -- sparse files ---------------------------------------------------------------------------------

    def _old_sparse(self, block: bytes, member: Member) -> None:
        """GNU ``S``: four extents in the header, 21 in each block after it while a flag says so."""
        stored, padding = self._data, self._padding
        extents = _extents(block[386:482], member.name)
        more, blocks = block[482], 0
        while more:
            extension = self._block()
            blocks += 1
            if extension is None or blocks * BLOCK > HEADER_LIMIT:
                raise InvalidLayer("sparse map is cut or over the limit", member.name)
            extents += _extents(extension[:504], member.name)
            more = extension[504]
        member.size = _number(block[483:495], "real size")
        member.sparse = extents
        self._data, self._padding = stored, padding

    def _pax_sparse(self, member: Member, extensions: _Extensions) -> None:
        records = extensions.records
        member.name = records.get(b"GNU.sparse.name", member.name)
        real = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size"))
        if real is None:
            raise InvalidLayer("a sparse file without its real size", member.name)
        if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            numbers = self._sparse_map(member.name)
        elif b"GNU.sparse.map" in records:
            numbers = [_decimal(n, "sparse map") for n in records[b"GNU.sparse.map"].split(b",")]
        else:
            numbers = _repeated_map(extensions.sparse_pairs, member.name)
        if len(numbers) % 2:
            raise InvalidLayer("sparse map with half an entry", member.name)
        member.size = _decimal(real, "real size")
        member.stored = self._data
        member.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))

    def _sparse_map(self, name: bytes) -> list[int]:
        """PAX 1.0: the map is decimal lines at the start of the data, filled up to a block."""
        blocks: list[bytes] = []
        lines, wanted = 0, 1
        while lines < wanted:
            if len(blocks) * BLOCK >= HEADER_LIMIT or self._data < BLOCK:
                raise InvalidLayer("sparse map is cut or over the limit", name)
            block = self._block()
            if block is None:
                raise InvalidLayer("the tar ends in a sparse map (truncated)", name)
            self._data -= BLOCK
            blocks.append(block)
            lines += block.count(b"\n")
            if wanted == 1 and lines:
                wanted = 1 + 2 * _decimal(b"".join(blocks).partition(b"\n")[0], "sparse map")
        return [_decimal(line, "sparse map") for line in b"".join(blocks).split(b"\n", wanted)[1:wanted]]


# -- fields -----------------------------------------------------------------------------------------------


def _verify_checksum(block: bytes, field: bytes) -> None:
    """The sum of all bytes with the field itself as spaces; some old tars summed them as signed."""
    claimed = _number(field, "checksum")
    unsigned = sum(block) - sum(field) + 8 * 0x20
    if claimed == unsigned:
        return
    signed = sum(struct.unpack("512b", block)) - sum(struct.unpack("8b", field)) + 8 * 0x20
    if claimed != signed:
        raise InvalidLayer("invalid tar header (checksum)")


def _number(field: bytes, what: str) -> int:
    """Octal digits among spaces and NULs (also before them, as GNU and Go read it), or GNU's base-256."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field)
        value &= (1 << (bits - 1)) - 1
        return value - (1 << (bits - 1)) if field[0] & 0x40 else value
    text = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not text:
        return 0
    try:
        if text.isdigit():
            return int(text, 8)
    except ValueError:
        pass
    raise InvalidLayer(f"invalid tar header ({what} field {text!r})")


def _decimal(text: bytes, what: str) -> int:
    if not _DECIMAL.fullmatch(text):
        raise InvalidLayer(f"invalid tar header ({what} {text[:40]!r})")
    return int(text)


def _id(record: bytes | None, field: bytes, what: str, name: bytes) -> int:
    value = _decimal(record, what) if record is not None else _number(field, what)
    if not 0 <= value < ID_LIMIT:
        raise InvalidLayer(f"{what} {value} is out of range", name)
    return value


def _time(record: bytes | None, field: bytes, name: bytes) -> int:
    """A time in ns; PAX gives decimal seconds of any precision, which must not pass through a float."""
    if record is None:
        seconds, nanoseconds = _number(field, "mtime"), 0
    else:
        match = _DECIMAL_TIME.fullmatch(record)
        if match is None:
            raise InvalidLayer(f"invalid time {record[:40]!r}", name)
        sign = -1 if match[1] else 1
        seconds = sign * int(match[2])
        nanoseconds = sign * int((match[3] or b"")[:9].ljust(9, b"0"))
    if abs(seconds) > _SECONDS_LIMIT:
        raise InvalidLayer(f"time {seconds} is out of range", name)
    return seconds * 1_000_000_000 + nanoseconds


def _names(fields: tuple[bytes, ...], extensions: _Extensions) -> tuple[bytes, bytes]:
    """The member's name and link target: PAX, else GNU long name, else the fields."""
    name = fields[0].partition(b"\0")[0]
    link = fields[8].partition(b"\0")[0]
    magic = fields[9]
    prefix = fields[14].partition(b"\0")[0]
    if prefix and (magic.startswith(b"ustar\0") or _has_go_prefix(magic, fields[14])):
        name = prefix + b"/" + name
    records = extensions.records
    for long, key in ((extensions.long_name, b"path"), (extensions.long_link, b"linkpath")):
        if long and key in records and records[key] != long:
            raise InvalidLayer("a GNU long name and a PAX path that differ", long)
    name, link = extensions.long_name or name, extensions.long_link or link
    return records.get(b"path", name), records.get(b"linkpath", link)


def _has_go_prefix(magic: bytes, field: bytes) -> bool:
    """Go before 1.9 wrote ustar's prefix under GNU's magic, where GNU tar has its atime and ctime."""
    if not magic.startswith(_GNU_MAGIC[:6]) or not field.partition(b"\0")[0].isascii():
        return False
    try:
        _number(field[:12], "atime")
        _number(field[12:24], "ctime")
    except InvalidLayer:
        return True
    return False


def _parse_pax(data: bytes, extensions: _Extensions) -> None:
    """``"LENGTH KEY=VALUE\\n"`` records; LENGTH counts itself.  A later header of the same member wins."""
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        end = position + _decimal(data[position:space], "PAX record") if space > 0 else 0
        if end <= space or end > len(data) or data[end - 1 : end] != b"\n":
            raise InvalidLayer("invalid PAX record")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals or not key or b"\0" in key:
            raise InvalidLayer("invalid PAX record")
        if b"\0" in value and key in (b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"):
            raise InvalidLayer(f"NUL in PAX {key.decode()}", value)
        position = end
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            extensions.sparse_pairs.append((key, value))
        if value or key.startswith(b"SCHILY.xattr."):
            extensions.records[key] = value
        else:
            extensions.records.pop(key, None)  # an empty value takes back an earlier one (POSIX pax)


def _extents(table: bytes, name: bytes) -> list[Extent]:
    """Old GNU's 24-byte entries; an empty one ends the list."""
    found = []
    for start in range(0, len(table) - 23, 24):
        if not table[start]:
            break
        offset = _number(table[start : start + 12], "sparse map")
        length = _number(table[start + 12 : start + 24], "sparse map")
        if offset < 0 or length < 0:
            raise InvalidLayer("negative number in a sparse map", name)
        found.append((offset, length))
    return found


def _repeated_map(pairs: list[tuple[bytes, bytes]], name: bytes) -> list[int]:
    """PAX 0.0: offset and numbytes in turn."""
    for index, (key, _) in enumerate(pairs):
        if key != (b"GNU.sparse.offset", b"GNU.sparse.numbytes")[index % 2]:
            raise InvalidLayer("sparse map out of order", name)
    return [_decimal(value, "sparse map") for _, value in pairs]


def _verify_sparse(member: Member) -> None:
    """Extents must ascend, end inside the file and account for exactly the stored bytes."""
    assert member.sparse is not None
    if not 0 <= member.size <= SIZE_LIMIT:
        raise InvalidLayer(f"size {member.size} is out of range", member.name)
    position = total = 0
    for offset, length in member.sparse:
        if offset < position or offset + length > member.size:
            raise InvalidLayer("sparse map out of order", member.name)
        position = offset + length
        total += length
    if total != member.stored:
        raise InvalidLayer(f"sparse map of {total} bytes for {member.stored} stored ones", member.name)
