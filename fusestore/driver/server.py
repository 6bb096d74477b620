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

import fcntl
import json
import logging
import os
import signal
import sys
from pathlib import Path

import pyfuse3
import trio

from fusestore.driver import mounter
from fusestore.driver.layout import MountSpec
from fusestore.driver.loop import Loop
from fusestore.driver.operations import Operations
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.tree import Union
from fusestore.files import lock
from fusestore.syscalls import raise_fd_limit

_log = logging.getLogger("fusestore.server")


def _open_layers(spec: MountSpec) -> list[LayerDir]:
    """Every layer, locked.  We work in the driver's home, so that layers have short names."""
    os.chdir(spec.home)
    layers = []
    for layer in spec.layers:
        prefix = os.fsencode(os.path.relpath(layer.path, spec.home)) + b"/"
        lock(Path(layer.path).with_name("lock"), fcntl.LOCK_SH)
        layers.append(LayerDir(layer.path, spec.ownership, spec.spelling, layer.links, prefix))
    return layers


def _detach() -> None:
    """Let go of whoever waits for us; stderr is the mount's log already."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(null, stream)
    os.close(null)


async def _unmount_on_signal(mountpoint: str) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            await trio.to_thread.run_sync(mounter.detach, mountpoint)


async def _run(loop: Loop, mountpoint: str) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_unmount_on_signal, mountpoint)
        await loop.serve()
        nursery.cancel_scope.cancel()


def _serve(order: dict[str, object]) -> None:
    spec = MountSpec.from_json(order["spec"])  # type: ignore[arg-type]
    raise_fd_limit()
    union = Union(_open_layers(spec))

    def started() -> None:
        mounter.write_record(order, os.getpid())
        os.write(1, b"ready\n")
        _detach()

    fd = int(str(order["fd"]))
    loop = Loop(fd)
    options = {f"fsname={mounter.source_name(spec)}", "subtype=fusestore"}
    pyfuse3.init(Operations(union, started, loop.cache_listing), f"/dev/fd/{fd}", options)
    try:
        trio.run(_run, loop, str(order["mountpoint"]))
    finally:
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
