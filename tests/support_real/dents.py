"""Directories read by getdents64(2) itself, with a buffer of any size; readdir(3) has only its own."""

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t
_HEAD = struct.Struct("=QqHB")


def entries(fd: int, size: int):
    """(name, offset of the next entry) of all that is left in the open directory `fd`."""
    buffer = ctypes.create_string_buffer(size)
    while (count := _libc.getdents64(fd, buffer, size)) > 0:
        data, place = buffer.raw[:count], 0
        while place < count:
            _, following, length, _ = _HEAD.unpack_from(data, place)
            yield data[place + _HEAD.size : place + length].split(b"\0", 1)[0], following
            place += length
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
