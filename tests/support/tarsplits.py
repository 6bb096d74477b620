"""Records of archives in memory, as an ingest makes them, and the archives put together from those."""

import gzip
import io
import os

from support.tars import Stream

from fusestore.store.tarsplit import Writer, assemble
from fusestore.tar import REGULAR, TarReader


def recorded(archive: bytes, step: int = 1 << 30) -> tuple[bytes, dict[bytes, bytes]]:
    """The record of an archive, and the contents that a driver would keep of it, by name.

    As in `fusestore.driver.apply`: the content of a file is taken, that of a whiteout passed over.
    """
    out, contents = io.BytesIO(), {}
    writer = Writer(out)
    reader = TarReader(Stream(archive, step), writer)
    for member in reader:
        if member.kind is REGULAR and b".wh." not in member.name:
            data = b"".join(bytes(chunk) for _, chunk in reader.chunks())
            if member.sparse is None:
                contents[member.name] = data
    reader.drain()
    return out.getvalue(), contents


def json_of(archive: bytes) -> bytes:
    """The JSON lines of an archive's record."""
    return gzip.decompress(recorded(archive)[0])


class Contents:
    """A `fusestore.driver.api.FileGetter` over what `recorded` kept."""

    def __init__(self, contents: dict[bytes, bytes]) -> None:
        self._contents = contents

    def get(self, name: bytes) -> int:
        if name not in self._contents:
            raise FileNotFoundError(name)
        fd = os.memfd_create("content")
        try:
            os.pwrite(fd, self._contents[name], 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        pass


def assembled(record: bytes, contents: dict[bytes, bytes]) -> bytes:
    """The archive that a record and contents make."""
    return b"".join(assemble(io.BytesIO(record), Contents(contents), "a layer"))
