"""Compression, and decompression, told by content: media types lie, and ``docker save | gzip`` has none.

gzip (any number of members), zstd (any number of frames, window up to 128 MiB), bzip2, xz, or nothing.  All
are libraries in this process; no program is run.  A stream that ends early is an error, as is rubbish
behind it.
"""

from __future__ import annotations

import bz2
import io
import lzma
import queue
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from isal import igzip, isal_zlib

from fusestore.digest import Readable
from fusestore.errors import InvalidLayer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK = 1 << 20
_MAGIC = 6  # bytes that tell the kind
_AHEAD = 4  # chunks that the decompressing thread may be ahead
_WINDOW_LOG = 27  # 128 MiB, what zstd itself calls --long


class _Streams:
    """Streams of one kind, one after the other, until the source ends; anything between them is damage.

    `new` makes a decompressor with the interface that bz2, lzma and zstd share.
    """

    def __init__(self, source: IO[bytes], new: Callable[[], Any]) -> None:
        self._source, self._new = source, new
        self._stream = new()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._stream.eof:
                data = self._stream.unused_data or self._source.read(_CHUNK)
                if not data:
                    return b""
                self._stream = self._new()
            elif self._stream.needs_input and not (data := self._source.read(_CHUNK)):
                raise EOFError("it ends too early")
            plain: bytes = self._stream.decompress(data, size)
            if plain:
                return plain


def _gzip(source: IO[bytes]) -> Readable:
    return cast(Readable, igzip.IGzipFile(fileobj=source, mode="rb"))  # type: ignore[no-untyped-call]


def _zstd(source: IO[bytes]) -> Readable:
    options = {int(zstd.DecompressionParameter.window_log_max): _WINDOW_LOG}
    return _Streams(source, lambda: zstd.ZstdDecompressor(options=options))


def _gzip_compressor() -> Any:  # noqa: ANN401
    return zlib.compressobj(wbits=31)  # its header has no time, so the same bytes come out each time


class _Format(NamedTuple):
    """How a stream begins, who reads it, and what makes one (with the methods compress and flush)."""

    magic: bytes
    reader: Callable[[IO[bytes]], Readable]
    compressor: Callable[[], Any]


#: By the names that media types and ``podman push --compression-format`` have for them.
_FORMATS = {
    "gzip": _Format(b"\x1f\x8b", _gzip, _gzip_compressor),
    "zstd": _Format(b"\x28\xb5\x2f\xfd", _zstd, zstd.ZstdCompressor),
    "bzip2": _Format(b"BZh", lambda source: _Streams(source, bz2.BZ2Decompressor), bz2.BZ2Compressor),
    "xz": _Format(
        b"\xfd7zXZ\x00", lambda source: _Streams(source, lzma.LZMADecompressor), lzma.LZMACompressor
    ),
}
#: The names of the formats that `compressed` can make.
FORMATS = tuple(_FORMATS)
_ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]
_DAMAGE = (EOFError, zlib.error, _ISAL_ERROR, zstd.ZstdError, lzma.LZMAError, igzip.BadGzipFile)


class _Raw(io.RawIOBase):
    """Anything with ``read`` as a file object; buffered, so that its beginning can be looked at."""

    def __init__(self, source: Readable) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        data = self._source.read(len(buffer))
        while 0 < len(data) < _MAGIC and (more := self._source.read(len(buffer) - len(data))):
            data += more  # a pipe may give one byte at first, and that tells nothing
        buffer[: len(data)] = data
        return len(data)


class Decompressed:
    """The plain bytes of a stream; a damaged one raises InvalidLayer.

    `format` is what it was compressed as, "" for nothing.
    """

    def __init__(self, source: Readable) -> None:
        self._buffered = io.BufferedReader(_Raw(source), _CHUNK)
        start = self._buffered.peek(_MAGIC)[:_MAGIC]
        self.format = next((name for name, f in _FORMATS.items() if start.startswith(f.magic)), "")
        self._reader: Readable = (
            _FORMATS[self.format].reader(self._buffered) if self.format else self._buffered
        )

    def read(self, size: int, /) -> bytes:
        try:
            data = self._reader.read(size)
            return data or self._rest()
        except _DAMAGE as exc:
            raise InvalidLayer(f"its compressed data is damaged or cut: {exc}") from None
        except OSError as exc:
            if exc.errno is None:  # bz2's and gzip's own complaints
                raise InvalidLayer(f"its compressed data is damaged: {exc}") from None
            raise

    def _rest(self) -> bytes:
        """The end: what the decompressor left must still pass through whoever verifies the source."""
        while self._buffered.read(_CHUNK):
            pass
        return b""


def is_compressed(start: bytes) -> bool:
    """True if a stream that begins with `start` is in one of the formats."""
    return start.startswith(tuple(f.magic for f in _FORMATS.values()))


def decompressed(source: Readable) -> Decompressed:
    """The plain bytes of `source`.  Its reads raise InvalidLayer, and what `source` raises."""
    return Decompressed(source)


def compressed(pieces: Iterator[bytes], form: str) -> Iterator[bytes]:
    """`pieces` in one of the `FORMATS`, the same bytes each time; as they are for ""."""
    if not form:
        yield from pieces
        return
    compressor = _FORMATS[form].compressor()
    for piece in pieces:
        if data := compressor.compress(piece):
            yield data
    yield compressor.flush()


@contextmanager
def ahead(source: Readable) -> Iterator[Readable]:
    """`source` read by a thread of its own, a few chunks ahead, so that two processors can work."""
    chunks: queue.Queue[bytes | BaseException] = queue.Queue(_AHEAD)
    stop = threading.Event()

    def put(item: bytes | BaseException) -> bool:
        while not stop.is_set():
            try:
                chunks.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def run() -> None:
        try:
            while put(data := source.read(_CHUNK)) and data:
                pass
        except BaseException as exc:
            put(exc)  # for the thread that reads to raise

    thread = threading.Thread(target=run, name="decompress", daemon=True)
    thread.start()
    try:
        yield _Queued(chunks)
    finally:
        stop.set()
        thread.join()


class _Queued:
    def __init__(self, chunks: queue.Queue[bytes | BaseException]) -> None:
        self._chunks = chunks
        self._rest = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        if not self._rest and not self._ended:
            item = self._chunks.get()
            if isinstance(item, BaseException):
                raise item
            self._rest, self._ended = item, not item
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
