"""Measure fusestore beside fuse-overlayfs and the kernel's overlayfs, on the same layers, in the same run.

An image is made of the files below one directory and loaded into a throw-away store.  All sides then mount
the very same ``diff`` directories of that store, and must show the same tree before anything is measured.

*Cold* is the first pass over a fresh mount: what the kernel had cached of the mount before is gone, while the
layers' own files stay in the page cache, for all sides alike.  *Warm* is the second pass.  Each sample is a
new client process, the same one for all sides, which mounts, measures itself, and unmounts; for a side that
needs a user namespace all of that happens inside.  Sides take turns, so that a busy machine is busy for all.

Nothing is deleted before the end: ext4 without a journal searches long for inodes that were not freed within
the last minutes, and makes the next import four times as slow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import bench_layers
import bench_store
import bench_writable
from bench_client import (
    Entry,
    Job,
    Samples,
    differing,
    inventory,
    memory,
    run,
    run_client,
    say,
    timed,
    version,
)
from bench_image import LAYERS, Layout, find

from fusestore.driver.ownership import OVERRIDE_STAT
from fusestore.store.storage import Store

ENTRIES = 21_000  # of the tree, before deletions
BIG = "big-file"
BIG_SIZE = 512 << 20
SMALL = 64 << 10
SAMPLE = 2_000  # files that are read, names that are missing
OURS = (
    "fusestore",
    "fusestore-overlay",
    "store RW",
    *bench_layers.OURS,
    *bench_store.OURS,
)  # among the sides


# -- the work ---------------------------------------------------------------------------------------------


def walk(top: str, paths: Sequence[str]) -> None:
    """What ``find -ls`` asks for: every directory, every lstat, every link's target."""
    for entry in os.scandir(top):
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            walk(entry.path, ())
        elif stat.S_ISLNK(mode):
            os.readlink(entry.path)


def read(top: str, paths: Sequence[str]) -> None:
    """Open, read and close each of some small files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.read(fd, SMALL)
        os.close(fd)


def miss(top: str, paths: Sequence[str]) -> None:
    """Ask for names that do not exist."""
    for path in paths:
        try:
            os.stat(path)
        except FileNotFoundError:
            continue
        raise FileExistsError(path)


def xattr(top: str, paths: Sequence[str]) -> None:
    """Ask for an xattr that does not exist; FUSE never caches xattrs, so this is one request each time."""
    for path in paths:
        try:
            os.getxattr(path, "user.absent")
        except OSError:
            continue
        raise FileExistsError(path)


def stream(top: str, paths: Sequence[str]) -> None:
    """Read files from beginning to end, as cat does."""
    buffer = bytearray(128 << 10)
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        while os.readv(fd, [buffer]):
            pass
        os.close(fd)


def nothing(top: str, paths: Sequence[str]) -> None:
    """Mount and unmount only."""


WORK = {f.__name__: f for f in (walk, read, miss, xattr, stream, nothing)}


def perform(job: Job) -> dict[str, Any]:
    """The same work twice, or a look at the tree."""
    top = job["top"]
    if job["work"] == "inventory":
        return {"inventory": inventory(top)}
    paths = [os.path.join(top, name) for name in job["names"]]
    work = WORK[job["work"]]
    cold, warm = (timed(work, top, paths) for _ in range(2))
    return {"cold": cold, "warm": warm, "memory": memory()}


# -- the image --------------------------------------------------------------------------------------------


def write_big_layer(tar: Path) -> None:
    """A layer with one big file."""
    member = tarfile.TarInfo(BIG)
    member.size = BIG_SIZE
    chunk = random.Random(0).randbytes(1 << 20)
    with open(tar, "wb") as file:
        file.write(member.tobuf())
        file.writelines(chunk for _ in range(BIG_SIZE >> 20))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


def build(layout: Path, tree: Path) -> None:
    """Make an OCI directory with two images, ``tree`` and ``big``, which has one layer more."""
    images = Layout(layout)
    layers = images.add_tree(tree, islice(find(tree), ENTRIES))
    images.add_image("tree", layers)
    images.add_image("big", [*layers, images.add_layer(write_big_layer)])


# -- the sides --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One way to mount an image.  `prefix` is where its clients run."""

    name: str
    how: str
    mount: Callable[[str], list[str]]
    unmount: list[str]
    prefix: Sequence[str] = ()


class Laboratory:
    """The directories of a run, its image, and the sides that mount it."""

    def __init__(self, work: Path, tree: Path) -> None:
        self.work, self.layout, self.top = work, work / "oci", work / "mnt"
        self.top.mkdir()
        say(f"building an image of {tree}")
        build(self.layout, tree)
        # Also the commands that we start find their store there.
        os.environ |= {"FUSESTORE_ROOT": str(work / "store"), "FUSESTORE_RUNROOT": str(work / "run")}
        say("loading it")
        for name in ("tree", "big"):
            run(["fusestore", "load", "-q", f"oci:{self.layout}:{name}", "-t", name])
            for directory in self._layers(name):
                _unmark(directory)
        self.sides = self._sides()

    def _sides(self) -> list[Side]:
        top = str(self.top)
        return [
            Side(
                "fusestore",
                "fusermount3, the user's own namespaces",
                lambda image: ["fusestore", "mount", image, top],
                ["fusestore", "unmount", top],
            ),
            Side(
                "fuse-overlayfs",
                "fusermount3, the user's own namespaces",
                lambda image: ["fuse-overlayfs", "-o", f"lowerdir={self._lower(image)}", top],
                ["fusermount3", "-u", top],
            ),
            Side(
                "kernel",
                "overlayfs with userxattr, mount and client inside unshare -Urm",
                lambda image: [
                    *("mount", "-t", "overlay", "overlay", "-o"),
                    *(f"ro,userxattr,lowerdir={self._lower(image)}", top),
                ],
                ["umount", top],
                ("unshare", "-Urm"),
            ),
        ]

    def _lower(self, image: str) -> str:
        return ":".join(map(str, self._layers(image)))

    def _layers(self, image: str) -> list[Path]:
        with Store() as store:
            records = (store.layer_store.lookup(layer.id) for layer in store.chain(store.image(image)))
            return [store.graph_driver.diff_directory(record.cache_id) for record in records]

    def client(self, side: Side, image: str, work: str, names: Sequence[str] = ()) -> dict[str, Any]:
        """What one client reports."""
        job = {
            "top": str(self.top),
            "mount": side.mount(image),
            "unmount": side.unmount,
            "work": work,
            "names": list(names),
        }
        client = [*side.prefix, sys.executable, __file__, "--client"]
        result: dict[str, Any] = json.loads(run(client, json.dumps(job)))
        return result

    def agree(self) -> list[Entry]:
        """What the bigger image holds, after all sides have shown the same; one that cannot mount drops out.

        Raises RuntimeError.
        """
        say("comparing what the sides show")
        ours, *others = self.sides
        tree: list[Entry] = self.client(ours, "big", "inventory")["inventory"]
        for side in others:
            try:
                theirs = self.client(side, "big", "inventory")["inventory"]
            except RuntimeError as exc:
                say(f"without {side.name}: {str(exc).splitlines()[-1]}")
                self.sides.remove(side)
                continue
            if theirs != tree:
                raise RuntimeError(f"{side.name} does not show the same tree: {differing(tree, theirs)}")
        return tree

    def about(self, tree: Sequence[Entry]) -> dict[str, Any]:
        """What is measured, on what, with what."""
        return {
            "entries": len(tree),
            "sha256": hashlib.sha256(json.dumps(tree).encode()).hexdigest(),
            "layers": LAYERS,
            "sides": {side.name: f"{version(side.name)}, {side.how}" for side in self.sides},
        }


def _unmark(directory: Path) -> None:
    """Give a layer's root the form it has in podman's own stores.

    Marked with ``override_stat`` it would make fuse-overlayfs look for an owner in the xattrs of every file,
    which takes it twice as long.  Our server does that all the same, because its spec says so.
    """
    mark = os.fsdecode(OVERRIDE_STAT)
    if mark in os.listxattr(directory):
        os.removexattr(directory, mark)


def clean(work: Path) -> None:
    """Unmount what a failure may have left, and delete everything."""
    subprocess.run(["fusermount3", "-u", "-q", "-z", work / "mnt"], capture_output=True, check=False)
    # A layer may hold directories that even their owner cannot write to.
    run(["chmod", "-R", "u+rwX", str(work)])
    shutil.rmtree(work)


# -- the rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One kind of client, and the rows of the table that its reports fill: label -> (what, factor)."""

    work: str
    reports: dict[str, tuple[str, float]]
    image: str = "tree"


def _both(label: str) -> dict[str, tuple[str, float]]:
    return {f"{label}, cold": ("cold", 1e3), f"{label}, warm": ("warm", 1e3)}


ROWS = {
    "walk": Row("walk", _both("walk") | {"server after it [MiB]": ("memory", 1 / (1 << 20))}),
    "read": Row("read", _both(f"read {SAMPLE} small files")),
    "missing": Row("miss", _both(f"stat {SAMPLE} missing names")),
    "xattr": Row("xattr", _both(f"getxattr of {SAMPLE} files")),
    "sequential": Row("stream", _both(f"read {BIG_SIZE >> 20} MiB file"), "big"),
    "mount": Row("nothing", {"mount, ready": ("mount", 1e3), "unmount, gone": ("unmount", 1e3)}),
}


def choose(tree: Sequence[Entry]) -> dict[str, list[str]]:
    """The names that each row's clients work with, the same in every run on the same tree."""
    directories = [path for path, mode, *_ in tree if stat.S_ISDIR(mode)]
    files = [facts for facts in tree if stat.S_ISREG(facts[1])]
    small = [path for path, _, size, *_ in files if 0 < size <= SMALL]
    dice = random.Random(0)
    sample = dice.sample(small, min(SAMPLE, len(small)))
    absent = [os.path.join(dice.choice(directories), f"absent-{n}") for n in range(SAMPLE)]
    return {"read": sample, "missing": absent, "xattr": sample, "sequential": [BIG]}


def measure(laboratory: Laboratory, names: dict[str, list[str]], wanted: list[str], repeat: int) -> Samples:
    """All samples of the mount rows."""
    rows = {key: ROWS[key] for key in wanted if key in ROWS}
    samples: Samples = {label: {} for row in rows.values() for label in row.reports}
    for round_ in range(repeat if rows else 0):
        say(f"mounts, round {round_ + 1} of {repeat}")
        for key, row in rows.items():
            for side in laboratory.sides:
                report = laboratory.client(side, row.image, row.work, names.get(key, ()))
                for label, (what, factor) in row.reports.items():
                    if report[what]:  # the kernel has no server whose memory could be told
                        samples[label].setdefault(side.name, []).append(report[what] * factor)
    return samples


# -- the report -------------------------------------------------------------------------------------------


def summary(samples: Samples) -> list[dict[str, Any]]:
    """Each row with every side's samples, median, least and most, and our medians over the others'."""
    rows = []
    for label, sides in samples.items():
        medians = {name: statistics.median(values) for name, values in sides.items()}
        numbers = {
            name: {"median": medians[name], "min": min(values), "max": max(values), "samples": values}
            for name, values in sides.items()
        }
        ratios = {f"{our} / {peer}": medians[our] / medians[peer] for our, peer in _pairs(sides)}
        unit = label.partition("[")[2].rstrip("]") or "ms"
        rows.append({"row": label, "unit": unit, "sides": numbers, "ratios": ratios})
    return rows


def _pairs(sides: Iterable[str]) -> list[tuple[str, str]]:
    """Which of `sides` are compared: each of ours with each of the others."""
    ours = [name for name in sides if name in OURS]
    return [(our, peer) for our in ours for peer in sides if peer not in OURS]


def print_table(samples: Samples) -> None:
    """Columns for all sides that occur, then for the ratios; the first of ours is not named there."""
    names = list(dict.fromkeys(name for sides in samples.values() for name in sides))
    ratios = [f"{our} / {peer}" for our, peer in _pairs(names)]
    lines = [["[ms]", *names, *(ratio.removeprefix(f"{names[0]} ") for ratio in ratios)]]
    for row in summary(samples):
        cells = [_cell(row["sides"][name]) if name in row["sides"] else "-" for name in names]
        cells += [f"{row['ratios'][ratio]:.2f}" if ratio in row["ratios"] else "-" for ratio in ratios]
        lines.append([row["row"], *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def _cell(numbers: dict[str, float]) -> str:
    digits = sum(numbers["median"] < limit for limit in (100, 1, 0.1))
    median, least, most = (f"{numbers[key]:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({least}..{most})"


def print_about(facts: dict[str, Any]) -> None:
    """`facts` in words."""
    print("{cpus} CPUs, load {load:.1f}, client: Python {python}".format_map(facts))
    print("median (min..max) of {repetitions}, sides taking turns".format_map(facts))
    print("/ NAME: the median of the first column over that of NAME; below 1 we are ahead")


def print_reading(facts: dict[str, Any]) -> None:
    """The read-only part of `facts` in words."""
    print("{entries} entries in {layers} layers, shown alike by all (sha256 {sha256:.16})".format_map(facts))
    print(
        "cold: first pass over a fresh mount; warm: the second; the layers' own files are in the page cache"
    )
    print_sides(facts)


def print_writing(facts: dict[str, Any]) -> None:
    """The writable part of `facts` in words."""
    print("lower, upper and workdir on {filesystem}; all sides inside unshare -Urm".format_map(facts))
    print_sides(facts)


def print_layers(facts: dict[str, Any]) -> None:
    """The part of `facts` on the layer store in words."""
    print("stores on {filesystem}; podman's are loaded and used inside unshare -Urm".format_map(facts))
    print_sides(facts)


def print_list(samples: Samples) -> None:
    """Each row with a line for every side, where a table would be too wide."""
    for row in summary(samples):
        print(f"{row['row']} [{row['unit']}]")
        width = max(map(len, row["sides"]))
        for side, numbers in row["sides"].items():
            ratios = {our: row["ratios"].get(f"{our} / {side}") for our in OURS}
            told = ", ".join(f"{our} / it {ratio:.2f}" for our, ratio in ratios.items() if ratio is not None)
            print(f"  {side:{width}}  {_cell(numbers):26}  {told}".rstrip())


def print_store(facts: dict[str, Any]) -> None:
    """The part of `facts` on large stores in words."""
    print("all stores on {filesystem}".format_map(facts))
    print_sides(facts)


def print_groups(samples: Samples) -> None:
    """A table for each group of rows that have the same sides."""
    groups: dict[tuple[str, ...], Samples] = {}
    for label, sides in samples.items():
        groups.setdefault(tuple(sorted(sides)), {})[label] = sides
    for group in groups.values():
        print_table(group)
        print()


def print_sides(facts: dict[str, Any]) -> None:
    """What is compared."""
    for name, how in facts["sides"].items():
        print(f"{name}: {how}")


def _listed(group: tuple[str, list[str]]) -> str:
    return f"{group[0]} ({', '.join(group[1])})"


def parse() -> argparse.Namespace:
    """The command line."""
    groups = {
        "reading": [*ROWS],
        "writing": [*bench_writable.WORK],
        "layers": [*bench_layers.ROWS],
        "store": [*bench_store.ROWS],
    }
    parser = argparse.ArgumentParser(prog="bench", description="Measure fusestore beside its peers.")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="samples of each value [5]")
    parser.add_argument(
        "--rows",
        default=",".join(groups),
        metavar="A,B",
        help=f"groups or rows: {'; '.join(map(_listed, groups.items()))} [all groups]",
    )
    parser.add_argument(
        "--tree", type=Path, default="/usr", metavar="DIR", help="what to image, to read [/usr]"
    )
    parser.add_argument(
        "--scale",
        type=float,
        default=1,
        metavar="F",
        help="times the counts and sizes of what is written, and of layers [1]",
    )
    parser.add_argument("--place", type=Path, metavar="DIR", help="where to work [the user's cache]")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args()
    rows = [row for name in options.rows.split(",") for row in groups.get(name, [name])]
    if unknown := set(rows).difference(*groups.values()):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    for name, group in groups.items():
        setattr(options, name, [row for row in rows if row in group])
    for directory in filter(None, (options.tree, options.place)):
        if not directory.is_dir():
            parser.error(f"no such directory: {directory}")
    if options.repeat < 1:
        parser.error("--repeat must be at least 1")
    if options.scale <= 0:
        parser.error("--scale must be more than 0")
    return options


def read_only(work: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """What was measured of read-only mounts, and how it came out."""
    laboratory = Laboratory(work, options.tree)
    tree = laboratory.agree()
    facts = laboratory.about(tree)
    return facts, measure(laboratory, choose(tree), options.reading, options.repeat)


def writable(work: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """What was measured of writable mounts, and how it came out."""
    workshop = bench_writable.Workshop(work, bench_writable.Sizes().scaled(options.scale))
    workshop.agree()
    facts = workshop.about()
    return facts, workshop.measure(options.writing, options.repeat)


def layers(work: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """What was measured of the layer store, and how it came out."""
    sizes = bench_layers.Sizes().scaled(options.scale)
    return bench_layers.measure(work, options.tree, sizes, options.layers, options.repeat)


def store(work: Path, options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """What was measured of large and small stores, and how it came out."""
    sizes = bench_store.Sizes().scaled(options.scale)
    return bench_store.measure(work, sizes, options.store, options.repeat)


def _cache() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fusestore"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def main() -> None:
    """Build, compare, measure, print."""
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it is cleaned up
    work = Path(tempfile.mkdtemp(prefix="bench.", dir=options.place or _cache()))
    facts: dict[str, Any] = {
        "repetitions": options.repeat,
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    tables: dict[str, Samples] = {}
    parts = {
        "reading": (read_only, print_reading, print_table),
        "writing": (writable, print_writing, print_table),
        "layers": (layers, print_layers, print_list),
        "store": (store, print_store, print_groups),
    }
    try:
        for part, (function, *_) in parts.items():
            if getattr(options, part):
                facts[part], tables[part] = function(work, options)
    except (RuntimeError, subprocess.TimeoutExpired) as exc:
        sys.exit(f"bench: {exc}")
    finally:
        clean(work)
    if options.format == "json":
        rows = [row for samples in tables.values() for row in summary(samples)]
        json.dump(facts | {"rows": rows}, sys.stdout, indent=2)
        print()
        return
    print_about(facts)
    for part, samples in tables.items():
        _, describe, show = parts[part]
        print()
        describe(facts[part])
        print()
        show(samples)


if __name__ == "__main__":
    if sys.argv[1:] == ["--client"]:
        run_client(perform)
    else:
        main()
