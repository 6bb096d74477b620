"""The store with many layers and images, beside itself with few, and its list of images beside podman's.

*small* and *large* are made by the store's own calls: for every image a base layer, every other one of them
registered, a layer with a name on that, and the image's two documents; 5,000 images take from half a minute
to two, in memory where that can hold a store.  *calls* are measured inside a process that has both open, in
turns, on another item each time; each sample is the median of many.  *commands* are whole processes.

*lists* are whole processes too: the list of the small store's images, and podman's of as many images of two
layers, which it has loaded from one archive, as vfs, without root and without subordinate ids.  As a user
types it, podman starts itself anew in its user namespace; the other side is started there by nsenter.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench_client import DEADLINE, Samples, filesystem, in_memory, run, say, timed, version
from bench_layers import CONTAINERS_CONF, Report, clocked, rotated

from fusestore.store.storage import NewImage, Store

ROWS = ("calls", "commands", "lists")
SIDES = ("large", "small")
OURS = ("large",)  # among the sides, besides fusestore
LEAST = 15  # samples of a list
MISSING = "localhost/missing:latest"


@dataclass(frozen=True)
class Sizes:
    """Images of the two stores; layers are twice as many."""

    small: int = 100
    large: int = 5_000

    def scaled(self, factor: float) -> Sizes:
        """`factor` times as many in the large one."""
        return Sizes(self.small, max(int(self.large * factor), 2 * self.small))


# -- making them ------------------------------------------------------------------------------------------


def layer(number: int) -> bytes:
    """A tar with one small file."""
    data = b"%d\n" % number
    file = tarfile.TarInfo(f"file-{number}")
    file.size = len(data)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(file, io.BytesIO(data))
    return archive.getvalue()


def configuration(number: int) -> bytes:
    """What an image says of itself."""
    digests = [_digest(layer(2 * number + below)) for below in range(2)]
    return json.dumps(
        {
            "created": "2024-01-01T00:00:00Z",
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["sh"], "Labels": {"number": str(number)}},
            "rootfs": {"type": "layers", "diff_ids": digests},
        }
    ).encode()


def name(number: int) -> str:
    """Of an image."""
    return f"localhost/image-{number}:latest"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def fill(store: Store, count: int) -> None:
    """Make `count` images."""
    for number in range(count):
        tars = [io.BytesIO(layer(2 * number + below)) for below in range(2)]
        base = store.put_layer(diff=tars[0]) if number % 2 else store.register(tars[0])
        top = store.put_layer("", base.id, [f"layer-{number}"], diff=tars[1])
        manifest = json.dumps({"schemaVersion": 2, "number": number}).encode()
        store.create_images([NewImage([name(number)], top.id, configuration(number), manifest)])


def write_archive(path: Path, count: int) -> None:
    """The same images, for ``podman load``."""

    def add(file: str, data: bytes) -> str:
        member = tarfile.TarInfo(file)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        return file

    with tarfile.open(path, "w") as archive:
        manifest = [
            {
                "Config": add(f"{number}.json", configuration(number)),
                "RepoTags": [name(number)],
                "Layers": [add(f"{n}.tar", layer(n)) for n in (2 * number, 2 * number + 1)],
            }
            for number in range(count)
        ]
        add("manifest.json", json.dumps(manifest).encode())


# -- calls: what a client process does --------------------------------------------------------------------


class Item(NamedTuple):
    """An image and its layer, as they are looked for."""

    image: str
    image_name: str
    layer: str
    layer_name: str
    diff_id: str


Step = Callable[[Store, Item], object]

#: What is called one after the other, as often as it says.
CALLS: list[tuple[int, dict[str, Step]]] = [
    (50, {"layer by id": lambda store, item: store.layer(item.layer)}),
    (50, {"layer by prefix": lambda store, item: store.layer(item.layer[:16])}),
    (50, {"layer by name": lambda store, item: store.layer(item.layer_name)}),
    (50, {"image by id": lambda store, item: store.image(item.image)}),
    (50, {"image by prefix": lambda store, item: store.image(item.image[:16])}),
    (50, {"image by name": lambda store, item: store.image(item.image_name)}),
    (50, {"exists, an image": lambda store, item: store.exists(item.image_name)}),
    (50, {"exists, nothing": lambda store, item: store.exists(MISSING)}),
    (50, {"names of an image": lambda store, item: store.names(item.image)}),
    (50, {"by uncompressed digest": lambda store, item: store.layers_by_uncompressed_digest(item.diff_id)}),
    (
        15,
        {
            "create_layer": lambda store, item: store.create_layer("new", item.layer),
            "delete_layer": lambda store, item: store.delete_layer("new"),
        },
    ),
    (
        15,
        {
            "put_layer": lambda store, item: store.put_layer("new", item.layer, diff=io.BytesIO(layer(0))),
            "create_image": lambda store, item: store.create_image("new", ["new"], "new"),
            "delete_image, its layer too": lambda store, item: store.delete_image("new"),
        },
    ),
    (
        15,
        {
            "create_container": lambda store, item: store.create_container("new", image=item.image),
            "delete_container": lambda store, item: store.delete_container("new"),
        },
    ),
    (3, {"layers(), all of them": lambda store, item: store.layers()}),
    (3, {"images(), all of them": lambda store, item: store.images()}),
]


def call(places: dict[str, Sequence[str]]) -> Report:
    """Milliseconds of every call, by label and side."""
    dice, found = random.Random(0), {}
    with ExitStack() as stack:
        stores = {side: stack.enter_context(Store(*place)) for side, place in places.items()}
        items = {side: _items(store) for side, store in stores.items()}

        def turn(steps: dict[str, Step]) -> None:
            for side, store in stores.items():
                item = dice.choice(items[side])
                for label, step in steps.items():
                    took = timed(step, store, item) * 1e3
                    found.setdefault(label, {}).setdefault(side, []).append(took)

        for times, steps in CALLS:
            turn(steps)
            for label in steps:
                found[label].clear()  # the first one does more
            for _ in range(times):
                turn(steps)
    for _ in range(LEAST):
        for side, place in places.items():
            for label, step in ALONE.items():
                found.setdefault(label, {}).setdefault(side, []).append(timed(step, place) * 1e3)
    return {
        label: {side: statistics.median(values) for side, values in sides.items()}
        for label, sides in found.items()
    }


def _items(store: Store) -> list[Item]:
    layers = {layer.id: layer for layer in store.layers()}
    return [
        Item(image.id, image.names[0], top.id, top.names[0], str(top.uncompressed_digest))
        for image in store.images()
        for top in (layers[str(image.top_layer)],)
    ]


def _open(place: Sequence[str]) -> None:
    Store(*place).close()


def _make(place: Sequence[str]) -> None:
    with Store(*place) as store:
        store.create_layer("new")
        store.delete_layer("new")


#: What begins without an open store.
ALONE = {"open, close": _open, "open, create_layer, delete_layer, close": _make}


def perform() -> None:
    """Call what is to be measured, on the stores that stdin names; the result goes to stdout."""
    gc.disable()
    json.dump(call(json.load(sys.stdin)), sys.stdout)


# -- podman -----------------------------------------------------------------------------------------------

_STORAGE_CONF = """
[storage]
driver = "vfs"
graphroot = "{top}/.local/share/containers/storage"
runroot = "{top}/run/containers"
[storage.options.vfs]
ignore_chown_errors = "true"
"""


class Podman:
    """podman without root, with a home of its own."""

    def __init__(self, top: Path) -> None:
        (top / "run").mkdir(parents=True)
        (top / "storage.conf").write_text(_STORAGE_CONF.format(top=top))
        (top / "containers.conf").write_text(CONTAINERS_CONF)
        self._pause = top / "run/libpod/tmp/pause.pid"
        self.command = [
            *("env", f"HOME={top}", f"TMPDIR={top}", f"XDG_RUNTIME_DIR={top}/run"),
            *(f"CONTAINERS_CONF={top}/containers.conf", f"CONTAINERS_STORAGE_CONF={top}/storage.conf"),
            "podman",
        ]

    def inside(self) -> list[str]:
        """`command`, in the namespaces that the first command has made."""
        enter = ["nsenter", "--preserve-credentials", "-U", "-m", "-t", self._pause.read_text(), "--"]
        return [*enter, *self.command]

    def close(self) -> None:
        """End the process that keeps the namespaces."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(self._pause.read_text()), signal.SIGKILL)


# -- the rows ---------------------------------------------------------------------------------------------


class Shelf:
    """Two stores, and what was measured with them."""

    def __init__(self, work: Path, sizes: Sizes) -> None:
        self._work, self._sizes = work, sizes
        self._samples: Samples = {}
        self._places = {side: (f"{work}/{side}", f"{work}/{side}-run") for side in SIDES}
        for side, place in self._places.items():
            count = asdict(sizes)[side]
            with Store(*place) as store:
                _, took = clocked(partial(fill, store, count))
            say(f"made a store of {2 * count} layers and {count} images in {took / 1e3:.0f} s")

    def _add(self, label: str, side: str, value: float) -> None:
        self._samples.setdefault(label, {}).setdefault(side, []).append(value)

    def measure(self, wanted: Sequence[str], repeat: int) -> Samples:
        """All samples.  Raises RuntimeError."""
        rows = {"calls": self._call, "commands": self._command}
        for round_ in range(repeat):
            say(f"store, round {round_ + 1} of {repeat}")
            for row in wanted:
                if row in rows:
                    rows[row](round_)
        if "lists" in wanted:
            self._list(max(repeat, LEAST))
        return self._samples

    def _call(self, round_: int) -> None:
        places = {side: self._places[side] for side in rotated(SIDES, round_)}
        report = json.loads(run([sys.executable, __file__], json.dumps(places)))
        for label, sides in report.items():
            for side in SIDES:
                self._add(label, side, sides[side])

    def _fusestore(self, side: str) -> list[str]:
        root, run_root = self._places[side]
        return ["fusestore", f"--root={root}", f"--runroot={run_root}"]

    def _command(self, round_: int) -> None:
        commands = [
            ["exists", "image-7"],
            ["inspect", "image-7"],
            ["images"],
            ["images", "--format=json"],
            ["layers"],
        ]
        for command in commands:
            for side in rotated(SIDES, round_):
                self._spend(f"fusestore {' '.join(command)}", side, [*self._fusestore(side), *command])

    def _spend(self, label: str, side: str, command: Sequence[str]) -> None:
        with open(os.devnull, "wb") as nothing:
            started = partial(subprocess.run, command, stdout=nothing, stderr=nothing, timeout=DEADLINE)
            process, took = clocked(partial(started, check=False))
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit status {process.returncode}")
        self._add(label, side, took)

    def _list(self, turns: int) -> None:
        count = self._sizes.small
        with _podman(self._work, count) as podman:
            sides = {
                "fusestore": self._fusestore("small"),
                "podman": podman.command,
                "podman in its namespace": podman.inside(),
            }
            for side, command in sides.items():
                told = json.loads(run([*command, "images", "--format=json"]))
                if sorted(found for image in told for found in image["Names"]) != sorted(
                    map(name, range(count))
                ):
                    raise RuntimeError(f"{side} lists other images")
            for turn in range(turns):
                for arguments in (["images"], ["images", "--format=json"]):
                    for side in rotated(sides, turn):
                        label = f"{' '.join(arguments)}, {count} of them"
                        self._spend(label, side, [*sides[side], *arguments])


@contextmanager
def _podman(work: Path, count: int) -> Iterator[Podman]:
    """One that has loaded `count` images."""
    podman = Podman(work / "podman")
    try:
        write_archive(work / "images.tar", count)
        _, took = clocked(lambda: run([*podman.command, "load", "-q", "-i", str(work / "images.tar")]))
        say(f"podman has loaded {count} images in {took / 1e3:.0f} s")
        yield podman
    finally:
        podman.close()


def measure(work: Path, sizes: Sizes, wanted: Sequence[str], repeat: int) -> tuple[Report, Samples]:
    """What was measured, and all its samples.  Raises RuntimeError."""
    place = Path(tempfile.mkdtemp(prefix="fusestore-bench.", dir=in_memory() or work))
    try:
        shelf = Shelf(place, sizes)
        samples = shelf.measure(wanted, repeat)
        return {
            "sizes": asdict(sizes),
            "filesystem": filesystem(place),
            "sides": _about(sizes, samples),
        }, samples
    finally:
        run(["chmod", "-R", "u+rwX", str(place)])
        shutil.rmtree(place)


def _about(sizes: Sizes, samples: Samples) -> dict[str, str]:
    """What the sides are that have taken part."""
    about = {
        side: f"a store of {2 * count:,} layers and {count:,} images" for side, count in asdict(sizes).items()
    }
    present = {side for sides in samples.values() for side in sides}
    if "podman" in present:
        about["fusestore"] = f"{version('fusestore')}, the small store"
        about["podman"] = f"{version('podman')}, vfs, as a user without root starts it"
        about["podman in its namespace"] = "the same, started where it goes"
    return {side: how for side, how in about.items() if side in present}


if __name__ == "__main__":
    perform()
