"""The requests on the data of open files that pyfuse3 does not pass on, and WRITE: they act on handles only.

FALLOCATE: without it posix_fallocate(3) writes into every block by itself, and cannot where a file is
write-only. COPY_FILE_RANGE: the data stay where they are, or share blocks.  WRITE: of up to 1 MiB, which
pyfuse3 copies twice.

SEEK_HOLE and SEEK_DATA stay unanswered on purpose: the kernel does not write dirty pages back before it
asks, so that we would call a hole what has data.

Structures are those of include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import struct

from fusestore.driver.loop import Handler
from fusestore.driver.union.writable import WritableUnion

WRITE, FALLOCATE, COPY_FILE_RANGE = 16, 43, 47

_WRITE_IN = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
_WRITE_OUT = struct.Struct("<II")  # size, padding
_FALLOCATE_IN = struct.Struct("<QQQII")  # fh, offset, length, mode, padding
_COPY_IN = struct.Struct("<QQQQQQQ")  # fh, offset; nodeid, fh, offset of the target; length, flags

# A longer copy is answered with a short count, so that nobody else waits for long; the caller asks again.
_COPY_LIMIT = 16 << 20


def handlers(union: WritableUnion) -> dict[int, Handler]:
    """What `Loop.intercept` needs."""

    def write(request: memoryview) -> bytes:
        handle, offset, size, *_ = _WRITE_IN.unpack_from(request)
        data = request[_WRITE_IN.size : _WRITE_IN.size + size]
        return _WRITE_OUT.pack(union.write(handle, offset, data), 0)

    def fallocate(request: memoryview) -> bytes:
        handle, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(request)
        union.fallocate(handle, mode, offset, length)
        return b""

    def copy_file_range(request: memoryview) -> bytes:
        source, start, _, target, offset, length, _ = _COPY_IN.unpack_from(request)
        return _WRITE_OUT.pack(union.copy_range(source, start, target, offset, min(length, _COPY_LIMIT)), 0)

    return {WRITE: write, FALLOCATE: fallocate, COPY_FILE_RANGE: copy_file_range}
