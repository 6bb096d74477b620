"""Mount, and start, await, stop and reap the servers behind the mounts.

We get the /dev/fuse fd ourselves - by mount(2) where we have the capability, else from the setuid program
``fusermount3``, which passes it over a socket - so that the real reason of a failure is known.  The fd goes
to a server process (`fusestore.driver.server`) that outlives us.  `mount` returns when the filesystem
answers.

``<runroot>/mounts/<id>.json`` records each mount: its server's pid, its spec.  The kernel's mount table is
the truth; a record only adds what the table does not say.  ``<runroot>/lock`` is held while one is mounted
or forgotten, so that two callers who want the same mount get one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusestore.driver import preflight
from fusestore.driver.layout import MountSpec
from fusestore.errors import FuseUnavailable, InvalidMountpoint, LayerInUse, MountFailed, MountNotFound
from fusestore.files import lock
from fusestore.syscalls import MNT_DETACH, MOUNT_FLAGS, may_mount
from fusestore.syscalls import mount as mount_call
from fusestore.syscalls import umount as umount_call

FSTYPE = "fuse.fusestore"
_DEADLINE = 30  # seconds for a server to come up; 0.2 is usual
_GLANCE = 0.3  # seconds that a mount may be busy before it is called so
_EXIT_DEADLINE = 10  # seconds for it to leave after its filesystem is gone
_FORCED_EXIT_DEADLINE = 1  # the same where somebody may still have files open, which keeps it
_ESCAPED = re.compile(r"\\([0-7]{3})")
# What fusermount3 knows; on others it fails.
_HELPER_OPTIONS = {"ro", "nosuid", "nodev", "noexec", "noatime", "sync", "dirsync"}
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True, slots=True)
class Mounted:
    """A live mount of ours.  `alive` is False when its server has died and only the mount is left."""

    mountpoint: str
    label: str
    pid: int
    record: Path
    alive: bool
    spec: MountSpec


# -- mounting ---------------------------------------------------------------------------------------------


def mount(spec: MountSpec, mountpoint: Path, runroot: Path) -> None:
    """Mount `spec` on the directory `mountpoint`; back when it can be used.  Already mounted so: no change.

    Raises InvalidMountpoint, FuseUnavailable, MountFailed, OSError.
    """
    with _locked(runroot):
        present = find(mountpoint, runroot)
        if present is not None and present.alive:
            if (present.spec.layers, present.spec.upper) == (spec.layers, spec.upper):
                return
            raise InvalidMountpoint(str(mountpoint), f"{present.label} is mounted there; unmount it first")
        if present is not None or is_dead(mountpoint):
            detach(str(mountpoint))
        try:
            _verify(mountpoint, spec, runroot)
            _mount(spec, mountpoint, runroot)
        except BaseException:
            _remove_own(mountpoint, runroot)
            raise


def _mount(spec: MountSpec, mountpoint: Path, runroot: Path) -> None:
    fd = open_fuse(spec, mountpoint)
    try:
        _start(spec, mountpoint, fd, runroot)
    except BaseException:
        with contextlib.suppress(OSError):
            detach(str(mountpoint))
        raise
    finally:
        os.close(fd)


def _verify(mountpoint: Path, spec: MountSpec, runroot: Path) -> None:
    """Refuse what would fail later with a worse message, or hide the store under its own image."""
    own = mountpoint.parent == runroot / "mnt"
    if own:
        mountpoint.mkdir(mode=0o700, exist_ok=True)
    path = str(mountpoint)
    try:
        st = os.lstat(mountpoint)
    except FileNotFoundError:
        raise InvalidMountpoint(path, "no such directory; create it first") from None
    except OSError as exc:
        raise InvalidMountpoint(path, exc.strerror or str(exc)) from None
    if not stat.S_ISDIR(st.st_mode):
        raise InvalidMountpoint(path, "not a directory")
    if not may_mount() and (st.st_uid != os.getuid() or not os.access(mountpoint, os.W_OK)):
        raise InvalidMountpoint(path, "not a directory of yours; choose one that you own")
    places = [spec.home, *(layer.path for layer in spec.layers)]
    if Path(spec.home).is_relative_to(mountpoint) or any(map(mountpoint.is_relative_to, places)):
        raise InvalidMountpoint(path, "the store itself is there")
    if _mount_table().get(path) is not None:
        raise InvalidMountpoint(path, "something is mounted there already")
    try:
        if os.listdir(mountpoint):
            raise InvalidMountpoint(path, "the directory is not empty")
    except PermissionError as exc:
        raise InvalidMountpoint(path, exc.strerror or str(exc)) from None


def source_name(spec: MountSpec) -> str:
    """What df and findmnt show as the device: the image's name, safe as a mount option."""
    return re.sub(r"[^A-Za-z0-9.:/@_-]", "_", spec.label) or "fusestore"


def _options(spec: MountSpec) -> list[str]:
    """What mount(8) is told."""
    return [*spec.options, *(["ro"] if spec.upper is None else [])]


def _access(spec: MountSpec) -> list[str]:
    """What FUSE is told: who may enter, and who checks what they may do there."""
    checks = [] if spec.view.as_root else ["default_permissions"]
    return [*checks, *(["allow_other"] if spec.allow_other or spec.allow_root else [])]


def open_fuse(spec: MountSpec, mountpoint: Path) -> int:
    """Mount `spec` and get the /dev/fuse fd, for whoever serves it.  Raises FuseUnavailable."""
    return _mount_directly(spec, mountpoint) if may_mount() else _mount_by_helper(spec, mountpoint)


def _mount_directly(spec: MountSpec, mountpoint: Path) -> int:
    try:
        fd = os.open(preflight.DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        raise _unavailable(mountpoint, f"{preflight.DEVICE} cannot be opened") from None
    data = ",".join([f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}", *_access(spec)])
    try:
        mount_call(
            source_name(spec).encode(),
            os.fsencode(mountpoint),
            FSTYPE.encode(),
            sum(MOUNT_FLAGS.get(option, 0) for option in _options(spec)),
            data.encode(),
        )
    except OSError as exc:
        os.close(fd)
        raise _unavailable(mountpoint, f"mount(2) failed: {exc.strerror}") from None
    return fd


def _mount_by_helper(spec: MountSpec, mountpoint: Path) -> int:
    """Let fusermount3 mount; it sends the fd over a socket whose number it finds in its environment."""
    program = preflight.fusermount()
    if program is None:
        raise _unavailable(mountpoint, "fusermount3 is not installed")
    known = [name for name in _options(spec) if name in _HELPER_OPTIONS]
    options = ",".join([*known, f"fsname={source_name(spec)}", "subtype=fusestore", *_access(spec)])
    import socket  # 2 ms that whoever mounts nothing need not spend

    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            result = subprocess.run(
                [program, "-o", options, "--", str(mountpoint)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=_DEADLINE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise _unavailable(mountpoint, str(exc)) from None
        theirs.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
    if result.returncode or not fds:
        raise _unavailable(mountpoint, result.stderr.decode(errors="replace").strip() or "fusermount3 failed")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _unavailable(mountpoint: Path, said: str) -> FuseUnavailable:
    """The reason that can be seen, else what the program said."""
    check = preflight.why_not(mountpoint.parent)
    if check is not None:
        return FuseUnavailable(check.finding, preflight.advice(check))
    if "user_allow_other" in said:
        return FuseUnavailable(said, preflight.allow_other().remedy)
    return FuseUnavailable(said, "`fusestore doctor` checks this machine")


# -- the server -------------------------------------------------------------------------------------------


def _start(spec: MountSpec, mountpoint: Path, fd: int, runroot: Path) -> None:
    record = _record(mountpoint, runroot)
    log = record.with_suffix(".log")
    order = {"spec": spec.to_json(), "mountpoint": str(mountpoint), "record": str(record), "fd": fd}
    # -P: python must not look for modules in the caller's working directory.
    try:
        with open(log, "wb") as stderr:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "fusestore.driver.server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=[fd],
                start_new_session=True,
            )
    except OSError:
        log.unlink(missing_ok=True)
        raise
    assert server.stdin is not None
    assert server.stdout is not None
    with server.stdin, server.stdout:
        with contextlib.suppress(BrokenPipeError):
            server.stdin.write(json.dumps(order).encode())
            server.stdin.close()
        ready = select.select([server.stdout], [], [], _DEADLINE)[0] and server.stdout.read(5) == b"ready"
    if not ready:
        server.kill()
        server.wait()
        lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        log.unlink()
        raise MountFailed(str(mountpoint), lines[-1])
    _children[server.pid] = server


def write_record(order: dict[str, object], pid: int) -> None:
    """The server behind a mount makes itself known."""
    record = Path(str(order["record"]))
    staged = record.with_suffix(".new")
    staged.write_text(json.dumps({**order, "pid": pid}))
    staged.rename(record)


def forget(order: dict[str, object], pid: int) -> None:
    """The server leaves: remove its record, its log if it is empty, and a mountpoint that we made."""
    record, mountpoint = Path(str(order["record"])), Path(str(order["mountpoint"]))
    with _locked(record.parent.parent):
        known = _read(record)
        if known is None or known["pid"] != pid:
            return  # somebody has mounted there again
        record.unlink()
        _remove_traces(record, mountpoint)


def _remove_traces(record: Path, mountpoint: Path) -> None:
    log = record.with_suffix(".log")
    if log.exists() and not log.stat().st_size:
        log.unlink()
    _remove_own(mountpoint, record.parent.parent)


def _remove_own(mountpoint: Path, runroot: Path) -> None:
    """Remove a mountpoint that we made, unless something is mounted there."""
    if mountpoint.parent == runroot / "mnt":
        with contextlib.suppress(OSError):
            mountpoint.rmdir()


# -- unmounting -------------------------------------------------------------------------------------------


def unmount(mountpoint: Path, runroot: Path, *, force: bool = False) -> None:
    """Unmount and wait for the server to be gone.  `force` takes it away from under its users.

    Raises MountNotFound, LayerInUse when it is busy, OSError.
    """
    present = find(mountpoint, runroot)
    if present is None:
        raise MountNotFound(str(mountpoint))
    try:
        if force or not present.alive:
            detach(str(mountpoint))
        else:
            _unmount(str(mountpoint))
    except OSError:
        if find(mountpoint, runroot) is not None:
            raise  # else somebody else has unmounted it at the same time
    _await_exit(present.pid, _FORCED_EXIT_DEADLINE if force else _EXIT_DEADLINE)
    if not _runs(present.pid):
        with contextlib.suppress(FileNotFoundError):
            present.record.unlink()
        _remove_traces(present.record, mountpoint)


def _unmount(mountpoint: str) -> None:
    """Unmount, also if somebody looks in just now, as `sweep` of another process does."""
    end = time.monotonic() + _GLANCE
    while True:
        try:
            _umount(mountpoint, lazily=False)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            if time.monotonic() > end:
                reason = "some process works in it or has a file of it open; leave it, or use --force"
                raise LayerInUse(mountpoint, reason) from None
            time.sleep(0.02)
        else:
            return


def detach(mountpoint: str) -> None:
    """Unmount even if it is busy or dead; whoever has files open keeps them.  Raises OSError."""
    _umount(mountpoint, lazily=True)


def _umount(mountpoint: str, *, lazily: bool) -> None:
    if may_mount():
        umount_call(os.fsencode(mountpoint), MNT_DETACH if lazily else 0)
        return
    program = preflight.fusermount() or "fusermount3"
    command = [program, "-u", *(["-z"] if lazily else []), "--", mountpoint]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if result.returncode:
        said = result.stderr.decode(errors="replace").strip()
        raise OSError(errno.EBUSY if "busy" in said else errno.EPERM, said, mountpoint)


def _await_exit(pid: int, deadline: int) -> None:
    child = _children.get(pid)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(deadline)
            del _children[pid]
        return
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        select.select([fd], [], [], deadline)
        os.close(fd)


# -- what is mounted --------------------------------------------------------------------------------------


def mounted(runroot: Path) -> list[Mounted]:
    """Every mount that the records in `runroot` and the kernel's table agree on, by mountpoint.

    Records of servers that are gone, mount and all, are removed on the way.
    """
    table = _mount_table()
    found, dead = [], []
    for record in sorted((runroot / "mounts").glob("*.json")):
        known = _read(record)
        if known is None:
            continue
        mountpoint, pid = str(known["mountpoint"]), int(str(known["pid"]))
        alive = _runs(pid)
        if table.get(mountpoint) == FSTYPE:
            spec = MountSpec.from_json(known["spec"])  # type: ignore[arg-type]
            found.append(Mounted(mountpoint, spec.label, pid, record, alive, spec))
        elif not alive:
            dead.append(record)
    if dead:
        _bury(dead, runroot)
    return sorted(found, key=lambda m: m.mountpoint)


def _bury(records: Sequence[Path], runroot: Path) -> None:
    """Remove what servers that are gone left; not now if somebody is mounting, perhaps at the same place."""
    with contextlib.suppress(BlockingIOError), _locked(runroot, wait=False):
        for record in records:
            known = _read(record)
            if known is not None and not _runs(int(str(known["pid"]))):
                record.unlink(missing_ok=True)
                _remove_traces(record, Path(str(known["mountpoint"])))


def sweep(runroot: Path) -> None:
    """Remove what is left of mounts of our own: those without a server, their directories, logs.

    Raises OSError.
    """
    directory = runroot / "mnt"
    if not directory.is_dir():
        return
    with _locked(runroot):
        for mountpoint in list(directory.iterdir()):
            if is_dead(mountpoint):
                detach(str(mountpoint))
            _remove_own(mountpoint, runroot)
        for log in list((runroot / "mounts").glob("*.log")):
            if not log.with_suffix(".json").exists():
                log.unlink(missing_ok=True)


def find(mountpoint: Path, runroot: Path) -> Mounted | None:
    """The mount on `mountpoint`, if it is ours."""
    return next((m for m in mounted(runroot) if m.mountpoint == str(mountpoint)), None)


def _record(mountpoint: Path, runroot: Path) -> Path:
    directory = runroot / "mounts"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]}.json"


def _read(record: Path) -> dict[str, object] | None:
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def _runs(pid: int) -> bool:
    """True while `pid` is one of our servers; numbers are reused, so its command line is asked."""
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        return False
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"fusestore.driver.server" in file.read()
    except OSError:
        return False


def _mount_table() -> dict[str, str]:
    """Mountpoint -> filesystem type, the topmost mount of each place."""
    return {place: fstype for place, fstype, _ in _mounts()}


def is_elsewhere(spec: MountSpec, mountpoint: str) -> bool:
    """True when `spec` is mounted on another place than `mountpoint`, as far as can be told by its device
    name."""
    wanted = FSTYPE, source_name(spec)
    return any((fstype, device) == wanted and place != mountpoint for place, fstype, device in _mounts())


def _mounts() -> Iterator[tuple[str, str, str]]:
    """Mountpoint, type and device of every mount, in the order in which they were made."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            place, (fstype, source, *_) = fields.split(" ")[4], rest.split(" ")
            yield _unescaped(place), fstype, _unescaped(source)


def _unescaped(field: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m[1], 8)), field)


def is_dead(mountpoint: Path) -> bool:
    """True for a mount whose server is gone: every call on it fails with ENOTCONN."""
    try:
        os.statvfs(mountpoint)  # stat(2) may come from the kernel's cache
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


@contextlib.contextmanager
def _locked(runroot: Path, *, wait: bool = True) -> Iterator[None]:
    fd = lock(runroot / "lock", fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_CREAT)
    try:
        yield
    finally:
        os.close(fd)
