"""The requests that pyfuse3 does not pass on, and those that are better not passed on to it.

FALLOCATE: without it posix_fallocate(3) writes into every block by itself, and cannot where a file is
write-only. COPY_FILE_RANGE: the data stay where they are, or share blocks.  WRITE: of up to 1 MiB, which
pyfuse3 copies twice.

SEEK_HOLE and SEEK_DATA stay unanswered on purpose: the kernel does not write dirty pages back before it
asks, so that we would call a hole what has data.

Structures are those of include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from fusestore.driver.loop import Handler
from fusestore.driver.union.writable import WritableUnion

FORGET, WRITE, BATCH_FORGET, FALLOCATE, COPY_FILE_RANGE = 2, 16, 42, 43, 47

_FORGET_IN = struct.Struct("<Q")  # nlookup
_BATCH_FORGET_IN = struct.Struct("<II")  # count, dummy; then so many of
_FORGET_ONE = struct.Struct("<QQ")  # nodeid, nlookup
_WRITE_IN = struct.Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
_WRITE_OUT = struct.Struct("<II")  # size, padding
_FALLOCATE_IN = struct.Struct("<QQQII")  # fh, offset, length, mode, padding
_COPY_IN = struct.Struct("<QQQQQQQ")  # fh, offset; nodeid, fh, offset of the target; length, flags

# A longer copy is answered with a short count, so that nobody else waits for long; the caller asks again.
_COPY_LIMIT = 16 << 20


def handlers(union: WritableUnion, forget: Callable[[int, int], None]) -> dict[int, Handler]:
    """What `Loop.intercept` needs; `forget` is told of an inode and how many references it has lost."""

    def forget_one(request: memoryview, ino: int) -> None:
        forget(ino, *_FORGET_IN.unpack_from(request))

    def forget_many(request: memoryview, _: int) -> None:
        count = _BATCH_FORGET_IN.unpack_from(request)[0]
        start = _BATCH_FORGET_IN.size
        for ino, lost in _FORGET_ONE.iter_unpack(request[start : start + count * _FORGET_ONE.size]):
            forget(ino, lost)

    def write(request: memoryview, _: int) -> bytes:
        handle, offset, size, *_rest = _WRITE_IN.unpack_from(request)
        data = request[_WRITE_IN.size : _WRITE_IN.size + size]
        return _WRITE_OUT.pack(union.write(handle, offset, data), 0)

    def fallocate(request: memoryview, _: int) -> bytes:
        handle, offset, length, mode, *_rest = _FALLOCATE_IN.unpack_from(request)
        union.fallocate(handle, mode, offset, length)
        return b""

    def copy_file_range(request: memoryview, _: int) -> bytes:
        source, start, _, target, offset, length, *_rest = _COPY_IN.unpack_from(request)
        return _WRITE_OUT.pack(union.copy_range(source, start, target, offset, min(length, _COPY_LIMIT)), 0)

    return {
        FORGET: forget_one,
        BATCH_FORGET: forget_many,
        WRITE: write,
        FALLOCATE: fallocate,
        COPY_FILE_RANGE: copy_file_range,
    }
