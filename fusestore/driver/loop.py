"""How trio serves /dev/fuse: what pyfuse3's own loop leaves out, added from outside.

*Poll for a bounded moment before sleeping.*  A process that walks a tree sends its next request within
microseconds of the last reply.  pyfuse3's loop goes to sleep in between: a lock, an epoll registration and
a trip through trio's scheduler, 15-20 us a request.  Here the loop waits in select(2) for `_POLL` seconds
first, which gives up the CPU but not the task, and only then lets trio sleep.  One round trip, this
machine, p50: stock 39 us, with this 16-21 us (a C server that sleeps each time: 18 us).  An idle mount
sleeps in epoll and costs nothing.  As long as requests keep coming the loop would never yield, and signals
and timers of trio would starve; so at least every `_YIELD` requests it does.

The means is the one that pyfuse3 itself uses to run under asyncio: its module global ``trio`` may be
replaced.  We replace three names of it: the lock, ``wait_readable`` and ``open_nursery``.

*One task serves; another takes over when it has to wait.*  pyfuse3 keeps a second task ready for the case
that a handler awaits something, and pays a switch of tasks for every request.  Ours await only what takes
long, the copying of data and fsync, and only through `Loop.aside`: it starts the next serving task, lets a
thread do the work, and answers; back in pyfuse3's loop the first task finds somebody reading and ends
(``min_tasks=0``). pyfuse3 itself is kept from starting any (`_NEVER`).

*Replies that pyfuse3 cannot make.*  A handler may have the reply that libfuse is about to write take a
detour: a pipe is put in the place of libfuse's fd, libfuse writes into it, and before the next request is
read the reply goes on to the device, changed.  That holds because such a handler does not await: nothing
else can be written in between.  It costs 4 us.

* `Loop.cache_listing`, for OPENDIR: FOPEN_CACHE_DIR, without which the kernel asks for the names again on
every
  listing (two of four requests a directory, and all the work); a second walk of a tree became 2-3 times as
  fast.
* `Loop.negotiate`, for INIT: flags that libfuse or pyfuse3 does not offer.

*Requests that pyfuse3 does not know.*  For a writable mount, `Loop.intercept` has the loop read the device
itself.  Requests with a handler of ours (`fusestore.driver.raw_requests`) are answered at once.  All
others go to libfuse as if nothing had happened: into a pipe, which stands in the place of its fd while it
reads, and no longer when pyfuse3 asks for the handler (`Intercepted`) and replies.  What pyfuse3 has no
handler for is answered ENOSYS, as libfuse would.  This costs 2.5 us a request, and saves pyfuse3's two
copies of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import select
import struct
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

import pyfuse3
import trio

_log = logging.getLogger(__name__)

_F_SETPIPE_SZ, _F_GETPIPE_SZ = 1031, 1032

_POLL = 200e-6
_YIELD = 256
_NEVER = -(1 << 30)  # pyfuse3 starts another task while it has fewer than this

# linux/fuse.h: fuse_out_header (len, error, unique), then fuse_open_out (fh, open_flags, padding), or
# fuse_init_out, whose flags are the fourth word.
_OPEN_REPLY = struct.Struct("<IiQQIi")
_KEEP_CACHE, _CACHE_DIR = 1 << 1, 1 << 3  # FOPEN_*
_INIT_FLAGS = struct.Struct("<I")
_INIT_FLAGS_AT = 16 + 12
_REPLY_LIMIT = 4096

# FUSE_*: what INIT may ask for.
PARALLEL_DIROPS = 1 << 18  # lookups in one directory at a time
CACHE_SYMLINKS = 1 << 23  # targets stay in the page cache
DONT_MASK = 1 << 6  # we apply the umask, unless a default ACL says otherwise
HANDLE_KILLPRIV_V2 = 1 << 28  # we drop setuid; without it every write(2) asks for security.capability first

# fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding.
IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_REQUEST_LIMIT = (1 << 20) + 4096  # libfuse's
_PIPE_SIZE = 1 << 17  # the largest request that is passed on is a SETXATTR of 64 KiB

# Requests for which pyfuse3 has a handler, or libfuse does all there is to do; none of INTERRUPT, BMAP,
# IOCTL, ...
_PASSED_ON = {1, *range(3, 7), *range(8, 19), *range(20, 28), 29, 30, 34, 35, 44, 45}
_UNANSWERED = {36}  # INTERRUPT: what takes long can not be interrupted

T = TypeVar("T")
Handler = Callable[[memoryview, int], bytes | None]


class _NoLock:
    """In the place of the lock that keeps two tasks from reading the device at once: one task serves."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass


class _Nursery:
    """pyfuse3's nursery, which tells us how a serving task is started."""

    def __init__(self) -> None:
        self._manager: Any = None
        self._nursery: trio.Nursery | None = None
        self._serve: tuple[Any, tuple[Any, ...]] | None = None

    async def __aenter__(self) -> _Nursery:
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        handled: bool | None = await self._manager.__aexit__(kind, exc, trace)
        return handled

    def start_soon(self, serve: Any, *args: Any, name: object = None) -> None:  # noqa: ANN401
        assert self._nursery is not None
        self._serve = serve, args
        self._nursery.start_soon(serve, *args, name=name)

    def start_another(self) -> None:
        """Let one more task serve."""
        assert self._serve is not None
        self.start_soon(self._serve[0], *self._serve[1])


class Intercepted:
    """What pyfuse3 is given in the place of the `Operations`: by asking for a handler it gets its fd back."""

    def __init__(self, operations: object, give_back: Callable[[], None]) -> None:
        self._operations = operations
        self._give_back = give_back

    def __getattr__(self, name: str) -> object:
        self._give_back()
        return getattr(self._operations, name)


class Loop:
    """The request loop of this process's one pyfuse3 session; `fd` is the /dev/fuse fd given to libfuse.

    To be made before pyfuse3.init().
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._device = os.dup(fd)
        self._detour, self._entrance = os.pipe()
        self._change: Callable[[bytes], bytes] | None = None
        self._since_yield = 0
        self._handlers: dict[int, Handler] | None = None
        self._request = memoryview(bytearray(_REQUEST_LIMIT))
        self._outlet, self._inlet = os.pipe()
        self._is_pipe, self._room = False, 0
        self._nursery = _Nursery()
        lowlevel = SimpleNamespace(
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=trio.lowlevel.notify_closing,
            wait_readable=self._wait_readable,
        )
        pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
            Lock=_NoLock,
            ClosedResourceError=trio.ClosedResourceError,
            open_nursery=lambda: self._nursery,
            from_thread=trio.from_thread,
            lowlevel=lowlevel,
        )

    async def serve(self) -> None:
        """Answer requests until the filesystem is unmounted."""
        await pyfuse3.main(min_tasks=0, max_tasks=_NEVER)

    async def aside(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread; other requests are answered meanwhile.  For handlers."""
        self._nursery.start_another()
        return await trio.to_thread.run_sync(work)

    async def step_aside(self, event: trio.Event) -> None:
        """Wait for `event`; other requests are answered meanwhile.  For handlers."""
        self._nursery.start_another()
        await event.wait()

    async def _wait_readable(self, fd: int) -> None:
        if self._change is not None:
            self._deliver()
        while True:
            self._since_yield += 1
            if self._since_yield >= _YIELD or not select.select((fd,), (), (), _POLL)[0]:
                self._since_yield = 0
                await trio.lowlevel.wait_readable(fd)
            if self._handlers is None or not self._answered():
                return

    # -- interception ---------------------------------------------------------------------------------

    def intercept(self, operations: object, handlers: dict[int, Handler]) -> Intercepted:
        """Answer the requests with the opcodes `handlers` here; what to give to pyfuse3.init().

        A handler gets what follows the request's header, and the inode number in that.  It returns what
        follows the reply's header, or None where there is no reply, or raises OSError.
        """
        self._handlers = handlers
        with contextlib.suppress(PermissionError):  # the user has very many pipes; 4 KiB stay
            fcntl.fcntl(self._inlet, _F_SETPIPE_SZ, _PIPE_SIZE)
        self._room = fcntl.fcntl(self._inlet, _F_GETPIPE_SZ)
        return Intercepted(operations, self._give_back)

    def _answered(self) -> bool:
        """Take a request from the device; False if it is libfuse's to read."""
        self._give_back()
        try:
            size = os.readv(self._device, (self._request,))
        except OSError as exc:
            # ENODEV: unmounted, which libfuse is to see.  Else the request was taken back.
            return exc.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN)
        _, opcode, unique, ino, *_ = IN_HEADER.unpack_from(self._request)
        assert self._handlers is not None
        handler = self._handlers.get(opcode)
        if handler is None and opcode in _PASSED_ON and size <= self._room:
            os.write(self._inlet, self._request[:size])
            os.dup2(self._outlet, self._fd, inheritable=False)
            self._is_pipe = True
            return False
        if opcode not in _UNANSWERED:
            self._reply(handler, self._request[IN_HEADER.size : size], ino, unique)
        return True

    def _reply(self, handler: Handler | None, request: memoryview, ino: int, unique: int) -> None:
        number, reply = errno.ENOSYS, None
        if handler is not None:
            try:
                number, reply = 0, handler(request, ino)
                if reply is None:
                    return
            except OSError as exc:
                number = exc.errno or errno.EIO
            except Exception:
                _log.exception("a handler failed")
                number = errno.EIO
        body = reply or b""
        with contextlib.suppress(FileNotFoundError):  # nobody waits for it any more
            os.write(self._device, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), -number, unique) + body)

    def _give_back(self) -> None:
        """Let libfuse's fd be the device again."""
        if self._is_pipe:
            self._is_pipe = False
            os.dup2(self._device, self._fd, inheritable=False)

    # -- the detour -----------------------------------------------------------------------------------

    def cache_listing(self) -> None:
        """Let the kernel cache the directory that is being opened; the last act of the handler."""
        self._divert(_cached_listing)

    def negotiate(self, flags: int) -> None:
        """Ask the kernel for `flags` too; to be called by the handler of INIT.

        One that a kernel does not know it ignores.
        """

        def change(reply: bytes) -> bytes:
            asked = _INIT_FLAGS.unpack_from(reply, _INIT_FLAGS_AT)[0] | flags
            return reply[:_INIT_FLAGS_AT] + _INIT_FLAGS.pack(asked) + reply[_INIT_FLAGS_AT + 4 :]

        self._divert(change)

    def _divert(self, change: Callable[[bytes], bytes]) -> None:
        os.dup2(self._entrance, self._fd, inheritable=False)
        self._change = change

    def _deliver(self) -> None:
        assert self._change is not None
        change, self._change = self._change, None
        os.dup2(self._device, self._fd, inheritable=False)
        try:
            os.write(self._device, change(os.read(self._detour, _REPLY_LIMIT)))
        except OSError as exc:
            if exc.errno != errno.ENOENT:  # nobody waits for the reply any more
                raise


def _cached_listing(reply: bytes) -> bytes:
    length, error, unique, fh, flags, padding = _OPEN_REPLY.unpack(reply)
    return _OPEN_REPLY.pack(length, error, unique, fh, flags | _KEEP_CACHE | _CACHE_DIR, padding)
