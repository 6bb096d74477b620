"""A tar file as a set of named blobs that can be read in any order.

Archives put their manifest last, so the tar is read once for its table of contents, by skipping over the
data, and each blob is then read where it lies.  What cannot seek (a pipe) or is compressed as a whole is
first written to a file in the store's ``tmp/``, which has no name and so cannot be left behind.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fusestore.compression import decompressed, is_compressed
from fusestore.digest import Readable
from fusestore.errors import InvalidImage, InvalidLayer
from fusestore.tar import BLOCK, HARD_LINK, REGULAR, SYMLINK, Member, TarReader

_CHUNK = 1 << 20
_MAX_LINKS = 8


class Piece:
    """A part of a file as a stream of its own."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd, self._offset, self._left = fd, offset, size
        self.size = size

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; ``b""`` at the end."""
        data = os.pread(self._fd, min(size, self._left), self._offset)
        self._offset += len(data)
        self._left -= len(data)
        return data

    def close(self) -> None:
        """The file is its archive's: nothing to do."""


class _Seeking:
    """A file read block by block, so that `position` is always where the tar reader is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.position = 0

    def read(self, size: int, /) -> bytes:
        data = os.pread(self._fd, min(size, BLOCK), self.position)
        self.position += len(data)
        return data

    def skip(self, size: int) -> None:
        """Leave data unread."""
        self.position += size


class Archive:
    """An open tar; `close` it.  Names are normalised: no leading ``./``."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._places: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        try:
            self._index()
        except InvalidLayer as exc:
            raise InvalidImage(name, f"not an image archive: {exc.reason}") from None

    def _index(self) -> None:
        source = _Seeking(self._file.fileno())
        for member in TarReader(source):
            self._note(member, source.position)
            if source.position + member.stored > self._size:
                raise InvalidLayer("the archive ends in the middle of a file (truncated)", member.name)

    def _note(self, member: Member, position: int) -> None:
        name = _normal(os.fsdecode(member.name))
        if member.kind is REGULAR and member.sparse is None:
            self._places[name] = (position, member.size)
        elif member.kind is SYMLINK:  # docker save writes a layer that stands twice as a link to the first
            self._links[name] = os.path.normpath(
                os.path.join(os.path.dirname(name), os.fsdecode(member.link))
            )
        elif member.kind is HARD_LINK:
            self._links[name] = _normal(os.fsdecode(member.link))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return self._resolve(name) in self._places

    def open(self, name: str) -> Piece:
        """The blob `name`.  Raises InvalidImage when there is none."""
        place = self._places.get(self._resolve(name))
        if place is None:
            raise InvalidImage(self.name, f"the archive has no {name}")
        return Piece(self._file.fileno(), *place)

    def _resolve(self, name: str) -> str:
        name = _normal(name)
        for _ in range(_MAX_LINKS):
            if name not in self._links:
                break
            name = self._links[name]
        return name


def _normal(name: str) -> str:
    return os.path.normpath(name).lstrip("/")


@contextmanager
def opened(source: Path | IO[bytes], tmp: Path) -> Iterator[Archive]:
    """The archive in a file, or coming down a stream.  Raises InvalidImage, OSError."""
    name = str(source) if isinstance(source, Path) else "stdin"
    file = _open_regular(source) if isinstance(source, Path) else source
    with file:
        if _is_plain_file(file):
            yield Archive(file, name)
            return
        with _spooled(file, tmp, name) as spool:
            yield Archive(spool, name)


def _open_regular(path: Path) -> IO[bytes]:
    """O_NONBLOCK, because opening a fifo that nobody writes to would wait for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidImage(str(path), "not a regular file; use - to read from stdin")
    return open(fd, "rb", buffering=0)


def _is_plain_file(file: IO[bytes]) -> bool:
    """True for an uncompressed file that can be read where one likes."""
    fd = file.fileno()
    return stat.S_ISREG(os.fstat(fd).st_mode) and not is_compressed(os.pread(fd, 8, 0))


@contextmanager
def _spooled(source: Readable, tmp: Path, name: str) -> Iterator[IO[bytes]]:
    reader = decompressed(source)
    with tempfile.TemporaryFile(dir=tmp) as spool:
        try:
            while data := reader.read(_CHUNK):
                spool.write(data)
        except InvalidLayer as exc:
            raise InvalidImage(name, exc.reason) from None
        spool.flush()
        yield spool
