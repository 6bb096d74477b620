"""System calls that Python's ``os`` module lacks.  The only ctypes in the project.

Each wrapper raises ``OSError`` with the kernel's errno and takes file descriptors or bytes paths.
Numbers are the generic ones of Linux (``include/uapi``), the same on every architecture we run on.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource

#: The options of mount(8) that are flags of mount(2).
MOUNT_FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "sync": 16,
    "dirsync": 128,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "strictatime": 1 << 24,
    "lazytime": 1 << 25,
}
MNT_DETACH = 2
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
_FICLONE = 0x40049409
_NS_GET_USERNS = 0xB701
_CAP_SYS_ADMIN = 21

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.syncfs.argtypes = [ctypes.c_int]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def _check(result: int, path: bytes | None = None) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes) -> None:
    """mount(2).  Raises OSError."""
    _check(_libc.mount(source, target, fstype, flags, data), target)


def umount(target: bytes, flags: int = 0) -> None:
    """umount2(2).  Raises OSError."""
    _check(_libc.umount2(target, flags), target)


def rename(directory: int, path: bytes, new_directory: int, new_path: bytes, flags: int = 0) -> None:
    """renameat2(2), paths from directory fds.  Raises OSError."""
    _check(_libc.renameat2(directory, path, new_directory, new_path, flags), path)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2).  Raises OSError."""
    _check(_libc.fallocate(fd, mode, offset, length))


def syncfs(fd: int) -> None:
    """Write everything of the filesystem under `fd` to disk (syncfs(2)).  Raises OSError."""
    _check(_libc.syncfs(fd))


def clone_file(source: int, target: int) -> bool:
    """Let `target` share the blocks of `source` (ioctl FICLONE); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as exc:
        if exc.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.ENOTTY, errno.ENOSYS):
            return False
        raise
    return True


def copy_data(source: int, target: int, size: int) -> None:
    """Copy `size` bytes from the start of `source` to `target`, keeping holes.  Raises OSError.

    FICLONE where the filesystem shares blocks, else copy_file_range(2) over each extent of data.
    """
    if clone_file(source, target):
        return
    position = 0
    while position < size:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                break
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        position = _copy_extent(source, target, start, end)
    os.ftruncate(target, size)


def _copy_extent(source: int, target: int, start: int, end: int) -> int:
    while start < end:
        try:
            count = os.copy_file_range(source, target, end - start, start, start)
        except OSError as exc:
            if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise
            count = os.pwrite(target, os.pread(source, min(1 << 20, end - start), start), start)
        if not count:  # the file shrank under us
            break
        start += count
    return end


def is_admin() -> bool:
    """True when CAP_SYS_ADMIN is effective in our user namespace."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def owns_mount_namespace() -> bool:
    """True when our mount namespace was made in our user namespace (``unshare -Urm``, not ``unshare
    -Ur``)."""
    fd = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    except PermissionError:  # it belongs to a namespace above ours
        return False
    finally:
        os.close(fd)
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)


def may_mount() -> bool:
    """True where mount(2) may succeed."""
    return is_admin() and owns_mount_namespace()


def owns_every_id() -> bool:
    """True for root of the initial user namespace (or one with the same full map)."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map", encoding="ascii") as uid_map:
        return uid_map.read().split() == ["0", "0", "4294967295"]


def raise_fd_limit() -> None:
    """Let this process open as many files as it is allowed to: a stack of 500 layers is 1,000 fds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
