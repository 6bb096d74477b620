"""The process behind one mount: ``python -m fusestore.driver.server``.

One process per mount, because pyfuse3 keeps its session in module globals, and because a crash then costs one
mount.  It is started by `fusestore.driver.mounter`, which has mounted already and passes on the /dev/fuse fd:

* stdin: one JSON object, the `MountSpec` and a few paths (not argv, which everybody can read);
* stdout: ``ready`` and a newline once the kernel's handshake is done; if it closes without, the reason is
  the last line of stderr, which goes to the mount's log.

Then the server lets go of stdin and stdout and lives until the filesystem is unmounted.  SIGTERM
unmounts it.  Layers are held by fd and by a shared lock, so that nobody can remove one while it is mounted.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from fusestore.driver import mounter, raw_requests, whiteout
from fusestore.driver.layout import LayerSpec, MountSpec, UpperSpec
from fusestore.driver.loop import Intercepted, Loop
from fusestore.driver.operations import Operations
from fusestore.driver.stack import open_layer
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.tree import Union
from fusestore.driver.union.upper import Upper
from fusestore.driver.union.writable import WritableUnion
from fusestore.driver.writable_operations import WritableOperations
from fusestore.files import lock
from fusestore.syscalls import raise_fd_limit

#: What ends a server; whoever starts one blocks them until it can listen.
ENDING = (signal.SIGTERM, signal.SIGINT)

_CLAIMS, _CLAIM_PAUSE = 200, 0.05  # times, seconds

_log = logging.getLogger("fusestore.server")


def open_union(spec: MountSpec, mountpoint: str) -> Union:
    """The union of `spec`, every layer locked, for a mount on `mountpoint`.  Raises OSError.

    We work in the driver's home, if it has one, so that layers have short names.
    """
    raise_fd_limit()
    os.umask(0)  # what a file may is up to the caller's umask and its directory's ACL
    if spec.home:
        os.chdir(spec.home)
    layers = [_open_layer(spec, layer) for layer in spec.layers]
    for layer in layers:
        inside = os.path.relpath(mountpoint, layer.path)
        if inside != "." and not inside.startswith(".."):
            layer.go_below(os.fsencode(inside), os.open(mountpoint, os.O_PATH | os.O_CLOEXEC))
    if spec.upper is None:
        return Union(layers)
    tree = _open_layer(spec, LayerSpec(spec.upper.path, lock=spec.upper.lock))
    work = _open_layer(spec, LayerSpec(spec.upper.work))
    return WritableUnion(_claimed(spec, spec.upper, tree, work, mountpoint), layers)


def _claimed(spec: MountSpec, upper: UpperSpec, tree: LayerDir, work: LayerDir, mountpoint: str) -> Upper:
    """The upper, once its last server has let go of it.

    That one may still be writing, or be kept alive by a mount namespace with a copy of its mount.  While the
    mount is to be seen, or where only the work directory is taken, it is in use (EBUSY).
    """
    make = partial(
        Upper,
        tree,
        work,
        upper.spelling or spec.spelling or whiteout.probe(work.fd),
        metacopy=upper.metacopy,
        redirect=upper.redirect,
        plain_symlinks=upper.plain_symlinks,
        sync=upper.sync,
    )
    for _ in range(_CLAIMS):
        try:
            return make()
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            if mounter.is_elsewhere(spec, mountpoint) or exc.filename == work.path:
                raise
        select.select([], [], [], _CLAIM_PAUSE)
    _log.warning("%s is in use by a mount that cannot be seen from here", upper.path)
    return make(claim=False)


def _open_layer(spec: MountSpec, layer: LayerSpec) -> LayerDir:
    """What the home does not hold has no short name, and is only held by its fd."""
    if layer.lock is not None:
        lock(Path(layer.lock), fcntl.LOCK_SH)
    if layer.lender is not None:
        with suppress(OSError):  # gone, or closed to us: then its store has no way to know
            lock(Path(layer.lender), fcntl.LOCK_SH)
    prefix = None
    if spec.home and layer.path.startswith(spec.home + "/"):
        prefix = os.fsencode(os.path.relpath(layer.path, spec.home)) + b"/"
    return open_layer(layer, spec.ownership, spec.spelling, prefix)


def _detach() -> None:
    """Let go of whoever waits for us; stderr is the mount's log already."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    os.close(null)


async def _unmount_on_signal(signals: AsyncIterator[int], mountpoint: str) -> None:
    async for _ in signals:
        await trio.to_thread.run_sync(mounter.detach, mountpoint)


async def _run(loop: Loop, mountpoint: str) -> None:
    # Listen first: whoever sees the mount may end it.
    with trio.open_signal_receiver(*ENDING) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_unmount_on_signal, signals, mountpoint)
            await loop.serve()
            nursery.cancel_scope.cancel()


def _is_news(record: logging.LogRecord) -> bool:
    """False for a reply that came after the unmount: RELEASE is asynchronous, and nobody waits for it."""
    return "fuse_reply_* failed with No such file or directory" not in record.getMessage()


def serve(
    union: Union,
    spec: MountSpec,
    fd: int,
    mountpoint: str,
    started: Callable[[], None],
    *,
    debug: bool = False,
) -> None:
    """Answer the requests that come from the /dev/fuse fd `fd` until `mountpoint` is unmounted.

    `started` is called when it can be used; `debug` prints every request on stderr.  Raises OSError.
    """
    for name in ("pyfuse3", "pyfuse3._pyfuse3"):
        logging.getLogger(name).addFilter(_is_news)
    loop = Loop(fd)
    options = {f"fsname={mounter.source_name(spec)}", "subtype=fusestore"}
    if spec.allow_root:
        options.add("allow_root")
    if debug:
        options.add("debug")
    operations: Operations | Intercepted = Operations(union, spec.view, loop, started)
    if isinstance(union, WritableUnion):
        writable = WritableOperations(union, spec.view, loop, started)
        operations = loop.intercept(writable, raw_requests.handlers(union, writable.forget_one))
    pyfuse3.init(operations, f"/dev/fd/{fd}", options)  # type: ignore[arg-type]
    trio.run(_run, loop, mountpoint)


def _serve(order: dict[str, object]) -> None:
    known = False

    def started() -> None:
        nonlocal known
        mounter.write_record(order, os.getpid())
        known = True
        with suppress(BrokenPipeError):  # our starter was killed; the mount is there as if it had been later
            os.write(1, b"ready\n")
        _detach()

    spec = MountSpec.from_json(order["spec"])  # type: ignore[arg-type]
    try:
        mountpoint = str(order["mountpoint"])
        serve(open_union(spec, mountpoint), spec, int(str(order["fd"])), mountpoint, started)
    finally:
        if known:  # else our starter holds the lock, and waits for us
            # Nobody may wait for our answers while we wait for a lock that they may have.
            with suppress(OSError):
                os.close(int(str(order["fd"])))
            mounter.forget(order, os.getpid())


def main() -> None:
    """Read the order, serve, leave."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    order = json.load(sys.stdin)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        _serve(order)
    except Exception as exc:
        _log.exception("the server ended")
        sys.exit(f"{type(exc).__name__}: {exc}")
    # All is said and closed; whoever unmounts need not wait while Python takes down 100,000 nodes.
    os._exit(0)


if __name__ == "__main__":
    main()
