"""A tar that is made while it is read, as a file to read from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Generator, Iterator
from typing import Any

from fusestore.digest import DiffID, Digest
from fusestore.errors import CorruptStore


class _Stream(io.RawIOBase):
    def __init__(
        self, pieces: Iterator[bytes], expected: Digest | DiffID | None, close: Callable[[], None]
    ) -> None:
        self._pieces, self._expected, self._close = pieces, expected, close
        self._hash = hashlib.sha256() if expected is not None else None
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                self._verify()
                return 0
            if self._hash is not None:
                self._hash.update(piece)
            self._rest = memoryview(piece)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _verify(self) -> None:
        if self._hash is None or self._expected is None:
            return
        actual = f"sha256:{self._hash.hexdigest()}"
        if actual != self._expected:
            raise CorruptStore(
                self._expected,
                f"could not verify layer data, its tar is now {actual}. This may be because internal files in"
                " the layer store were modified. Deleting the image and loading it again may resolve the"
                " issue",
            )

    def close(self) -> None:
        if not self.closed:
            super().close()
            if isinstance(self._pieces, Generator):
                self._pieces.close()
            self._close()


def tar_stream(
    pieces: Iterator[bytes], expected: Digest | DiffID | None = None, close: Callable[[], None] = lambda: None
) -> io.BufferedReader:
    """The concatenated `pieces` as a binary file; `close` is called when it is closed.

    The read that meets the end raises CorruptStore when the digest of all is not `expected` (moby:
    ``verifiedReadCloser``).
    """
    return io.BufferedReader(_Stream(pieces, expected, close), 1 << 20)


def compressed_stream(stream: io.BufferedReader, form: str) -> io.BufferedReader:
    """`stream` in one of `fusestore.compression.FORMATS`, as it is for ""; closing it closes `stream`.

    Raises ValueError for any other.
    """
    if not form:
        return stream
    from fusestore.compression import FORMATS, compressed  # 4 ms that most commands need not spend

    if form not in FORMATS:
        stream.close()
        raise ValueError(f"{form}: not a form of compression; there are {', '.join(FORMATS)}")
    return tar_stream(compressed(iter(lambda: stream.read(1 << 20), b""), form), None, stream.close)
