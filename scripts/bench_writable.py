"""The writable union beside its peers: the same lower layer, a fresh upper for every client.

All sides mount and work inside ``unshare -Urm``, as podman has it, so that only the filesystem differs.  Each
workload is a client process (`bench_client`) on a fresh mount.  Before any work, and after that of the first
round, all sides must show the same tree.  Between clients big files are deleted and the rest is synced, so
that nobody works while the disk writes what another one left.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, BinaryIO

from bench_client import (
    Entry,
    Job,
    Samples,
    differing,
    filesystem,
    inventory,
    memory,
    run,
    run_client,
    say,
    servers,
    timed,
    version,
)

from fusestore.digest import CacheID, new_cache_id
from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.ownership import OVERRIDE_STAT

KIB, MIB = 1 << 10, 1 << 20
PAGE = 4 * KIB
DIRECTORIES = 20  # of the lower, with its small files
SYNC = 100  # random writes to one fsync
SMALL = random.Random(0).randbytes(KIB)
KERNEL = ["mount", "-t", "overlay", "overlay"]


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `scaled` makes less or more of it."""

    files: int = 2_000  # created, renamed, ...; also small ones in the lower
    crowd: int = 20_000  # created in one directory
    writes: int = 20_000  # of 4 KiB
    random: int = 4_000  # reads and writes at random places
    database: int = 16 * MIB  # where they go
    large: int = 256 * MIB  # the file that is written in sequence; also a file in the lower
    entries: int = 1_500  # of the source tree

    def scaled(self, factor: float) -> Sizes:
        """`factor` times as much, but enough to work with."""
        least = {"database": 64 * PAGE, "large": MIB}
        values = {name: max(int(value * factor), least.get(name, 40)) for name, value in asdict(self).items()}
        return Sizes(
            **values | {"database": values["database"] // PAGE * PAGE, "large": values["large"] // MIB * MIB}
        )


def ms(function: Callable[..., object], *arguments: object) -> float:
    """Milliseconds."""
    return timed(function, *arguments) * 1e3


# -- the work ---------------------------------------------------------------------------------------------
# Each gets the mountpoint, the sizes, and the directory with the source tree's tar; label -> value.

Values = dict[str, float]


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """The file, closed after; with a writeback cache that is when its data goes to the server."""
    fd = os.open(path, flags, 0o666)
    try:
        yield fd
    finally:
        os.close(fd)


def create(paths: Sequence[str]) -> None:
    """Write new files."""
    for path in paths:
        with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
            os.write(fd, SMALL)


def each(function: Callable[..., object], *columns: Sequence[str]) -> None:
    """Call `function` with each row."""
    for row in zip(*columns, strict=True):
        function(*row)


def names(top: str, sizes: Sizes, place: str) -> Values:
    """What changes directories."""
    n = sizes.files
    os.mkdir(f"{top}/new")
    old, new, link, directory = ([f"{top}/new/{kind}{i:05}" for i in range(n)] for kind in "abld")
    return {
        f"create {n} files of 1 KiB": ms(create, old),
        f"rename {n} files": ms(each, os.rename, old, new),
        f"link {n} files": ms(each, os.link, new, link),
        f"unlink {2 * n} names": ms(each, os.unlink, new + link),
        f"mkdir {n}": ms(each, os.mkdir, directory),
        f"rmdir {n}": ms(each, os.rmdir, directory),
    }


def crowd(top: str, sizes: Sizes, place: str) -> Values:
    """Whether a file costs more in a directory that has many already."""
    os.mkdir(f"{top}/new")
    paths = [f"{top}/new/{i:06}" for i in range(sizes.crowd)]
    part = len(paths) // 10
    tenths = [ms(create, paths[at : at + part]) for at in range(0, part * 10, part)]
    label = f"create {part * 10} files in one directory"
    return {label: sum(tenths), f"- the first {part}": tenths[0], f"- the last {part}": tenths[-1]}


def _write(path: str, block: bytes, count: int) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        for _ in range(count):
            os.write(fd, block)


def write(top: str, sizes: Sizes, place: str) -> Values:
    """Data, in small and in big calls."""
    small, big = sizes.writes, sizes.large // MIB
    return {
        f"{small} writes of 4 KiB": ms(_write, f"{top}/small-writes", bytes(PAGE), small),
        f"{big} writes of 1 MiB": ms(_write, f"{top}/big-writes", bytes(MIB), big),
    }


def requests(top: str, sizes: Sizes, place: str) -> Values:
    """How often the kernel asks the server."""
    os.mkdir(f"{top}/new")
    new, old = [f"{top}/new/{i:05}" for i in range(sizes.files // 10)], _lower(top)[::10]
    asked = partial(_asked, f"{place}/strace")
    counts = {
        "write of 4 KiB": asked(_write, f"{top}/traced", bytes(PAGE), sizes.writes // 10)
        / (sizes.writes // 10),
        "file created": asked(create, new) / len(new),
        "lower file appended to": asked(each, _append, old) / len(old),
    }
    return {f"requests per {what} [number]": count for what, count in counts.items() if count}


def _asked(log: str, function: Callable[..., object], *arguments: object) -> int:
    """The reads from /dev/fuse that strace sees in the server, while `function` runs; 0 without a server."""
    pids = servers()
    if not pids:
        function(*arguments)
        return 0
    options = ["-f", "-qq", "-P", "/dev/fuse", "-e", "trace=read,readv,splice", "-o", log]
    strace = subprocess.Popen(["strace", *options, *(f"--attach={pid}" for pid in pids)])
    try:
        _await_tracer(pids, strace)
        function(*arguments)
    finally:
        strace.send_signal(signal.SIGINT)  # it detaches
        strace.wait()
    return len(re.findall(r" = [1-9]\d*$", Path(log).read_text(), re.MULTILINE))


def _await_tracer(pids: Sequence[str], strace: subprocess.Popen[bytes]) -> None:
    deadline = monotonic() + 10
    while not all(
        re.search(r"^TracerPid:\s+[1-9]", status.read_text(), re.MULTILINE)
        for pid in pids
        for status in Path(f"/proc/{pid}/task").glob("*/status")
    ):
        if strace.poll() is not None or monotonic() > deadline:
            raise RuntimeError("strace cannot attach to the server")
        sleep(0.01)


def database(top: str, sizes: Sizes, place: str) -> Values:
    """What a database does to its file: pages here and there, read and written, and often synced."""
    path = f"{top}/database"
    _write(path, random.Random(0).randbytes(PAGE), sizes.database // PAGE)
    dice = random.Random(0)
    pages = [dice.randrange(sizes.database // PAGE) * PAGE for _ in range(sizes.random)]
    label = f"{len(pages)} random reads and writes of 4 KiB"
    return {label: ms(_pwrite, path, pages), "- the same by mmap": ms(_mmap, path, pages)}


def _pwrite(path: str, pages: Sequence[int]) -> None:
    with opened(path, os.O_RDWR) as fd:
        for count, page in enumerate(pages):
            data = os.pread(fd, PAGE, page)
            os.pwrite(fd, data[::-1], page)
            if count % SYNC == 0:
                os.fsync(fd)


def _mmap(path: str, pages: Sequence[int]) -> None:
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        for count, page in enumerate(pages):
            mapped[page : page + PAGE] = mapped[page : page + PAGE][::-1]
            if count % SYNC == 0:
                mapped.flush()


def _lower(top: str) -> list[str]:
    """The small files of the lower."""
    directories = sorted(entry.path for entry in os.scandir(f"{top}/small"))
    return [f"{directory}/{name}" for directory in directories for name in sorted(os.listdir(directory))]


def append(top: str, sizes: Sizes, place: str) -> Values:
    """Copy-up of small files."""
    paths = _lower(top)[::2]
    return {f"append to {len(paths)} lower files": ms(each, _append, paths)}


def _append(path: str) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b"more\n")


def checkout(top: str, sizes: Sizes, place: str) -> Values:
    """Replace files as ``git checkout`` does."""
    paths = _lower(top)
    return {f"replace {len(paths)} lower files, as git": ms(each, _replace, paths)}


def _replace(path: str) -> None:
    os.lstat(path)
    os.unlink(path)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        os.write(fd, SMALL)
        os.fstat(fd)


def chmod(top: str, sizes: Sizes, place: str) -> Values:
    """Copy-up that needs no data."""
    return {f"chmod a lower file of {sizes.large // MIB} MiB": ms(os.chmod, f"{top}/large", 0o600)}


def truncate(top: str, sizes: Sizes, place: str) -> Values:
    """The other one."""
    return {f"O_TRUNC of a lower file of {sizes.large // MIB} MiB": ms(_truncate, f"{top}/large")}


def _truncate(path: str) -> None:
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass


def latency(top: str, sizes: Sizes, place: str) -> Values:
    """How long ls of another directory and stat of a new name take while a large file is copied up."""
    directories = [entry.path for entry in os.scandir(f"{top}/small")]
    took: list[float] = []
    copier = threading.Thread(target=lambda: took.append(ms(_append, f"{top}/large")))
    waits: list[float] = []
    copier.start()
    while copier.is_alive():
        waits.append(ms(_look, directories[len(waits) % len(directories)], len(waits)))
    copier.join()
    return {
        f"copy up a lower file of {sizes.large // MIB} MiB": took[0],
        "- ls and stat elsewhere meanwhile, median": statistics.median(waits),
        "- the same, p99": sorted(waits)[len(waits) * 99 // 100],
        "- the same, worst": max(waits),
    }


def _look(directory: str, number: int) -> None:
    os.listdir(directory)
    os.path.exists(f"{directory}/absent-{number}")


def move(top: str, sizes: Sizes, place: str) -> Values:
    """Rename a lower directory; where rename(2) says EXDEV, mv copies and deletes."""
    return {f"mv a lower directory, {sizes.files} files": ms(run, ["mv", f"{top}/small", f"{top}/moved"])}


def remove(top: str, sizes: Sizes, place: str) -> Values:
    """Delete a lower directory."""
    return {f"rm -r a lower directory, {sizes.files} files": ms(run, ["rm", "-r", f"{top}/small"])}


def untar(top: str, sizes: Sizes, place: str) -> Values:
    """Unpack a source tree, and delete it."""
    os.mkdir(f"{top}/tree")
    unpacked = ms(run, ["tar", "-x", "-f", f"{place}/tree.tar", "-C", f"{top}/tree"])
    used = memory() / MIB
    return {
        f"untar {sizes.entries} entries": unpacked,
        f"rm -r {sizes.entries} entries": ms(run, ["rm", "-r", f"{top}/tree"]),
    } | ({"server after the untar [MiB]": used} if used else {})


_ALL = (
    names,
    crowd,
    write,
    requests,
    database,
    append,
    checkout,
    chmod,
    truncate,
    latency,
    move,
    remove,
    untar,
)
WORK = {function.__name__: function for function in _ALL}


def perform(job: Job) -> dict[str, Any]:
    """One of the above, or nothing; and then what the tree looks like, if that is asked for."""
    sizes = Sizes(**job["sizes"])
    result: dict[str, Any] = {}
    if job["work"]:
        result["values"] = WORK[job["work"]](job["top"], sizes, job["place"])
    if job["inventory"]:
        result["inventory"] = inventory(job["top"], times=False)
    return result


# -- the sides --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mount:
    """What a client needs: where it mounts, how, how it unmounts, and where the changes are."""

    top: str
    mount: list[str]
    unmount: list[str]
    upper: Path


@dataclass(frozen=True)
class Side:
    """One way to put a fresh upper on the lower."""

    how: str
    mount: Callable[[], Mount]


class Workshop:
    """A lower layer, and the sides that put fresh uppers on it."""

    def __init__(self, work: Path, sizes: Sizes) -> None:
        self.work, self.sizes, self.top = work, sizes, work / "top"
        self.top.mkdir()
        say("writing a lower layer and a tar of a source tree")
        self._runroot = work / "runroot"
        self._runroot.mkdir()
        self._driver = FuseDriver(work / "driver", self._runroot)
        self._cache_id = self._apply_lower()
        self._lower = self._driver.diff_directory(self._cache_id)
        # Marked it would make all but the kernel look for owners in xattrs; podman's stores are not marked.
        os.removexattr(self._lower, os.fsdecode(OVERRIDE_STAT))
        write_tree(work / "tree.tar", sizes.entries)
        ours = [sys.executable, "-m", "fusestore.driver.program"]
        self.sides = {
            "fusestore-overlay": Side("its defaults", partial(self._overlay, ours)),
            "store RW": Side(
                "a layer of FuseDriver: metacopy, redirects, owners in xattrs", self._read_write
            ),
            "fuse-overlayfs": Side("its defaults", partial(self._overlay, ["fuse-overlayfs"])),
            "kernel": Side("overlayfs with userxattr", partial(self._overlay, KERNEL, "userxattr,")),
        }

    def _apply_lower(self) -> CacheID:
        cache_id = new_cache_id()
        self._driver.stage(cache_id, None)
        with open(self.work / "lower.tar", "w+b") as tar:
            write_lower(tar, self.sizes)
            tar.seek(0)
            self._driver.apply_diff(cache_id, tar, Limits())
        self._driver.publish(cache_id).close()
        return cache_id

    def _overlay(self, command: list[str], options: str = "") -> Mount:
        place = Path(tempfile.mkdtemp(dir=self.work))
        upper, workdir = place / "upper", place / "work"
        upper.mkdir()
        workdir.mkdir()
        options += f"lowerdir={self._lower},upperdir={upper},workdir={workdir}"
        return Mount(
            str(self.top), [*command, "-o", options, str(self.top)], ["umount", str(self.top)], upper
        )

    def _read_write(self) -> Mount:
        cache_id = new_cache_id()
        self._driver.create_read_write(cache_id, self._cache_id)
        top = str(self._runroot / "mnt" / cache_id)
        get, put = (self._call_driver(method, cache_id) for method in ("get", "put"))
        return Mount(top, get, put, self._driver.diff_directory(cache_id))

    def _call_driver(self, method: str, cache_id: CacheID) -> list[str]:
        code = f"""
from pathlib import Path
from fusestore.driver.fuse import FuseDriver
FuseDriver(Path({str(self.work / "driver")!r}), Path({str(self._runroot)!r})).{method}({cache_id!r})
"""
        return [sys.executable, "-c", code]

    def client(self, side: str, work: str, *, look: bool = False) -> dict[str, Any]:
        """What one client reports."""
        mount = self.sides[side].mount()
        job = {
            "top": mount.top,
            "mount": mount.mount,
            "unmount": mount.unmount,
            "work": work,
            "sizes": asdict(self.sizes),
            "place": str(self.work),
            "inventory": look,
        }
        command = ["unshare", "-Urm", "--", sys.executable, __file__]
        result: dict[str, Any] = json.loads(run(command, json.dumps(job)))
        for directory, _, files in os.walk(mount.upper):
            for path in (Path(directory, file) for file in files):
                if path.lstat().st_size > MIB:
                    path.unlink()
        run(["sync", "-f", str(mount.upper)])
        return result

    def agree(self) -> None:
        """See that all sides show the lower alike; one that cannot mount drops out.  Raises RuntimeError."""
        say("comparing what the writable sides show")
        trees = {}
        for side in list(self.sides):
            try:
                trees[side] = self.client(side, "", look=True)["inventory"]
            except RuntimeError as exc:
                say(f"without {side}: {str(exc).splitlines()[-1]}")
                del self.sides[side]
        _compare(trees, "the lower")

    def measure(self, wanted: Sequence[str], repeat: int) -> Samples:
        """All samples of the writable rows.  Raises RuntimeError."""
        samples: Samples = {}
        order = list(self.sides)
        for round_ in range(repeat):
            turn = round_ % len(order)
            say(f"writable mounts, round {round_ + 1} of {repeat}")
            for work in wanted:
                trees = {}
                for side in [*order[turn:], *order[:turn]]:
                    try:
                        report = self.client(side, work, look=round_ == 0)
                    except RuntimeError as exc:
                        say(f"without {side} in {work}: {str(exc).splitlines()[-1]}")
                        continue
                    values = report["values"] | {"mount writable, ready": report["mount"] * 1e3}
                    for label, value in values.items():
                        samples.setdefault(label, {}).setdefault(side, []).append(value)
                    trees[side] = report.get("inventory", [])
                _compare(trees, work)
        return samples

    def about(self) -> dict[str, Any]:
        """What was measured, on what."""
        sides = {name: side.how for name, side in self.sides.items()}
        for name in {"fuse-overlayfs", "kernel"} & sides.keys():
            sides[name] = f"{version(name)}, {sides[name]}"
        return {"sizes": asdict(self.sizes), "filesystem": filesystem(self.work), "sides": sides}


def _compare(trees: dict[str, list[Entry]], what: str) -> None:
    (first, ours), *others = trees.items()
    for side, theirs in others:
        if theirs != ours:
            raise RuntimeError(f"{what}: {side} and {first} differ: {differing(ours, theirs)}")


def write_lower(file: BinaryIO, sizes: Sizes) -> None:
    """A layer of small files in some directories, and a large one; root's, so that no xattr is needed."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("small", *(f"small/{number:02}" for number in range(DIRECTORIES))):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(directory)
        for number in range(sizes.files):
            name = f"small/{number % DIRECTORIES:02}/{number:05}"
            _add(tar, name, random.Random(number).randbytes(KIB))
        _add(tar, "large", random.Random(0).randbytes(MIB) * (sizes.large // MIB))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tree(path: Path, entries: int) -> None:
    """The first entries of Python's standard library, owned by root."""
    top = Path(sysconfig.get_path("stdlib"))
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for found, _ in zip(sorted(top.rglob("*")), range(entries), strict=False):
            member = tar.gettarinfo(found, str(found.relative_to(top)))
            member.uid = member.gid = 0
            if member.isreg():
                with open(found, "rb") as file:
                    tar.addfile(member, file)
            else:
                tar.addfile(member)


if __name__ == "__main__":
    run_client(perform)
