"""The layer store beside podman's: import, export, changes and commit of RW layers; what tar-split costs.

An image (`bench_image`) is loaded into a store of ours and into stores of podman's: overlay by the kernel,
overlay by fuse-overlayfs, and vfs, each in a user namespace of its own where one id is mapped.  Sides take
turns, and what one has written is synced before the next one starts.  All must come to the same: an export
has the diff IDs of the image, and after the same changes all list the same.  A second image, a tenth of the
size, shows what of our cost goes with the image, and what with the changes only.

What *library* does is measured inside a process.  Everything else is whole processes; what it takes to start
one is a row of its own.
"""

from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import random
import shlex
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from subprocess import PIPE
from typing import Any, TypeVar

from bench_client import Samples, filesystem, in_memory, run, say, timed, version
from bench_image import LAYERS, Blob, Layout, digest, find

from fusestore.digest import HashingReader, new_cache_id
from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver
from fusestore.store.layer import Layer
from fusestore.store.storage import Store
from fusestore.store.tarsplit import RECORD, Writer

ROWS = ("import", "export", "change", "record")
OURS = ("library", "with tar-split")  # among the sides, besides fusestore
LIMIT = "tar, sha256sum"
NAIVE = "find in two mounts"
IMAGES = ("image", "small")
EVERY = 3  # third name of the tree is in the image
SMALLER = 10
KIB, MIB = 1 << 10, 1 << 20

T = TypeVar("T")
Report = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """How much of everything; `scaled` makes less or more of it."""

    entries: int = 7_000  # of the image, before deletions
    new: int = 500  # files of 1 KiB in an RW layer
    rewritten: int = 300
    deleted: int = 200
    recorded: int = 20_000  # files of 1 KiB in the layer whose tar-split is recorded

    def scaled(self, factor: float) -> Sizes:
        """`factor` times as much, but enough to work with."""
        least = {"entries": 700}
        return Sizes(
            **{name: max(int(value * factor), least.get(name, 10)) for name, value in asdict(self).items()}
        )

    @property
    def changed(self) -> int:
        """Files that differ."""
        return self.new + self.rewritten + self.deleted


# -- what a client process does ---------------------------------------------------------------------------
# What these return is printed as JSON.


def clocked(function: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and milliseconds."""
    result: list[T] = []
    seconds = timed(lambda: result.append(function()))
    return result[0], seconds * 1e3


def list_files(image: str) -> list[str]:
    """The files of an image that have one name only, in a mount."""
    with Store() as store:
        top = str(store.mount_image(store.image(image)))
        try:
            found = [os.path.join(place, name) for place, _, names in os.walk(top) for name in names]
            states = ((path, os.lstat(path)) for path in sorted(found))
            return [
                os.path.relpath(path, top)
                for path, st in states
                if stat.S_ISREG(st.st_mode) and st.st_nlink == 1
            ]
        finally:
            store.unmount_image(top)


def alter(top: str, written: Sequence[str], deleted: Sequence[str], seed: int) -> None:
    """Write files, new ones and over old ones, and delete some."""
    dice = random.Random(seed)
    for name in deleted:
        os.unlink(f"{top}/{name}")
    for name in written:
        os.makedirs(os.path.dirname(f"{top}/{name}"), exist_ok=True)
        with open(f"{top}/{name}", "wb") as file:
            file.write(dice.randbytes(KIB))


def make_rw_layer(image: str, name: str, changes: Report) -> None:
    """An RW layer on top of an image, with changes made in its mount."""
    with Store() as store:
        layer = store.layer_store.create_rw_layer(name, store.image(image).top_layer)
        top = layer.mount()
        try:
            alter(str(top), **changes)
        finally:
            layer.unmount()


def examine_rw_layer(name: str) -> Report:
    """How long changes, diff and commit take, and the changes.  A commit must have the digest of the diff."""
    with Store() as store:
        layer = store.layer_store.get_rw_layer(name)
        changes, listing = clocked(layer.changes)
        with layer.tar_stream() as stream:
            tar, diffing = clocked(stream.read)
        commit, committing = clocked(lambda: store.layer_store.commit(layer))
        if commit.diff_id != f"sha256:{hashlib.sha256(tar).hexdigest()}":
            raise RuntimeError(f"{commit} is not what the diff of {name} was")
        return {
            "changes": [f"{kind.value} /{os.fsdecode(path)}" for kind, path in changes],
            "upper": layer.metadata()["UpperDir"],
            "values": {"changes": listing, "diff": diffing, "commit": committing},
        }


_LIST = r"(cd {} && find . -type d -printf '%P\t%m %T@\n' -o -printf '%P\t%m %T@ %s %l\n' | sort)"


def compare_mounts(image: str, name: str) -> Report:
    """The naive way to find changes: list all that an image and an RW layer on it show, and compare."""
    with Store() as store:
        base = store.layer_store.lookup(store.image(image).top_layer).cache_id
        layer = store.layer_store.get_rw_layer(name)
        tops = [os.fsdecode(store.graph_driver.get(base)), str(layer.mount())]
        try:
            lists = " ".join(f"<{_LIST.format(shlex.quote(top))}" for top in tops)
            script = f"diff {lists} | sed -n 's/^[<>] //p'"
            said, took = clocked(lambda: run(["bash", "-c", script]))
        finally:
            layer.unmount()
            store.graph_driver.put(base)
        return {"value": took, "names": sorted({line.partition("\t")[0] for line in said.splitlines()})}


def export_layers(image: str, place: str) -> float:
    """Milliseconds for all layers of an image, as the tars they were."""
    with Store() as store:
        layers = [store.layer_store.get(layer.id) for layer in store.chain(store.image(image))]
        return clocked(partial(_write, layers, place))[1]


def _write(layers: Sequence[Layer], place: str) -> None:
    for layer in layers:
        with layer.tar_stream() as stream, open(f"{place}/{layer.diff_id}", "wb") as file:
            shutil.copyfileobj(stream, file, MIB)


def unpack(tar: str, place: str, recorded: bool) -> float:
    """Milliseconds for a layer's `apply_diff`, as `register` calls it or without a tar-split record."""
    driver, cache_id = FuseDriver(Path(place, "root"), Path(place, "run")), new_cache_id()
    driver.stage(cache_id, None)
    with open(tar, "rb") as file, open(driver.notes(cache_id) / RECORD, "xb") as record:
        writer = Writer(record) if recorded else None
        _, took = clocked(lambda: driver.apply_diff(cache_id, HashingReader(file), Limits(), writer))
        if bool(os.fstat(record.fileno()).st_size) != recorded:
            raise RuntimeError("a tar-split record that is not wanted, or none")
    driver.discard(cache_id)
    return took


def perform() -> None:
    """Call what the job on stdin names; the result goes to stdout."""
    job = json.load(sys.stdin)
    clients = (list_files, alter, make_rw_layer, examine_rw_layer, compare_mounts, export_layers, unpack)
    function: Callable[..., Any] = {function.__name__: function for function in clients}[job["function"]]
    gc.disable()
    json.dump(function(**job["values"]), sys.stdout)


def client(function: Callable[..., Any], prefix: Sequence[str] = (), **values: object) -> Any:  # noqa: ANN401
    """What `function` returns in a process of its own; `prefix` goes before the command."""
    job = {"function": function.__name__, "values": values}
    return json.loads(run([*prefix, sys.executable, __file__], json.dumps(job)))


# -- podman -----------------------------------------------------------------------------------------------

_NAMESPACE = """
mount -t tmpfs none /run
echo ready
read -r _
"""
CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
log_driver = "none"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
"""
_STORAGE_CONF = """
[storage]
driver = "{driver}"
graphroot = "{top}/graph"
runroot = "/run/graph"
[storage.options.{driver}]
{options}
"""
_IGNORE = {"ignore_chown_errors": "true"}  # there is one id only
_BY_FUSE = {"mount_program": "/usr/bin/fuse-overlayfs"}
PODMANS = {
    "podman overlay": ("overlay", _IGNORE, "overlay mounted by the kernel"),
    "podman fuse-overlayfs": ("overlay", _IGNORE | _BY_FUSE, "overlay with that mount program"),
    "podman vfs": ("vfs", _IGNORE, "every layer a full copy"),
}


class Podman:
    """A store of podman's, in a user namespace that is there until `close`."""

    def __init__(self, top: Path, driver: str, options: dict[str, str]) -> None:
        self._top, self._driver, self._options = top, driver, options
        top.mkdir()
        lines = "\n".join(f'{name} = "{value}"' for name, value in options.items())
        (top / "storage.conf").write_text(_STORAGE_CONF.format(driver=driver, top=top, options=lines))
        (top / "containers.conf").write_text(CONTAINERS_CONF)
        enter = ["unshare", "-Urm", "--propagation=slave", "--", "sh", "-euc", _NAMESPACE]
        self._holder = subprocess.Popen(enter, stdin=PIPE, stdout=PIPE)
        environment = {
            "HOME": top,
            "TMPDIR": top,
            "XDG_RUNTIME_DIR": top,
            "CONTAINERS_CONF": top / "containers.conf",
            "CONTAINERS_STORAGE_CONF": top / "storage.conf",
        }
        self._prefix = [
            *("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(self._holder.pid), "--", "env"),
            *(f"{name}={value}" for name, value in environment.items()),
        ]
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            self.close()
            raise RuntimeError("no user namespace with mounts of its own")

    def close(self) -> None:
        """Let the namespace end, with what a failure may have left mounted."""
        with self._holder:  # closes its stdin, and awaits it
            if self._holder.poll() is None:
                with suppress(RuntimeError):
                    self.run("umount", "--all", "--force")

    def run(self, *arguments: str) -> str:
        """What podman prints, without the last newline."""
        return run([*self._prefix, "podman", *arguments]).removesuffix("\n")

    def load(self, source: str, name: str, graph: Path | None = None) -> None:
        """Copy an image into the store, or into a new one at `graph`."""
        options = ",".join(f"{self._driver}.{name}={value}" for name, value in self._options.items())
        run_root = f"/run/{graph.name if graph else 'graph'}"
        where = f"[{self._driver}@{graph or self._top / 'graph'}+{run_root}:{options}]localhost/{name}"
        copy = ["skopeo", "--insecure-policy", "copy", "-q", f"oci:{source}", f"containers-storage:{where}"]
        run([*self._prefix, *copy])

    def save(self, name: str, place: Path) -> None:
        """Write the layers of an image as plain tars, and its documents."""
        self.run("save", "-q", "--format=docker-dir", f"--output={place}/saved", f"localhost/{name}")

    def list_images(self, place: Path) -> None:
        """Have podman start, open its store, and end."""
        self.run("images")

    def make_container(self, image: str, name: str, changes: Report) -> None:
        """A container of an image, with changes made in its mount."""
        self.run("create", "--pull=never", f"--name={name}", f"localhost/{image}", "sh")
        top = self.run("mount", name)
        try:
            client(alter, self._prefix, top=top, **changes)
        finally:
            self.run("umount", name)


# -- the rows ---------------------------------------------------------------------------------------------

Side = Callable[[Path], object]  # works in an empty directory; a float are milliseconds that it has measured


class Depot:
    """Two images, the stores that hold them, and what was measured with those."""

    def __init__(self, work: Path, tree: Path, sizes: Sizes, stack: ExitStack) -> None:
        self._work, self._sizes = work / "layers", sizes
        self._samples: Samples = {}
        self._podmans: dict[str, Podman] = {}
        self._dropped: set[str] = set()
        self._work.mkdir()
        say(f"building images of every third name below {tree}")
        self._blobs = self._build(tree)
        # Also the processes that we start find their store there.
        os.environ |= {"FUSESTORE_ROOT": f"{self._work}/store", "FUSESTORE_RUNROOT": f"{self._work}/run"}
        say("loading them")
        for image in IMAGES:
            run(["fusestore", "load", "-q", f"oci:{self._source(image)}", "-t", image])
        self._files: dict[str, list[str]] = {image: client(list_files, image=image) for image in IMAGES}
        for name, (driver, options, _) in PODMANS.items():
            with self._dropping(name):
                podman = Podman(self._work / name.replace(" ", "-"), driver, options)
                stack.callback(podman.close)
                podman.load(self._source("image"), "image")
                podman.run("images")
                self._podmans[name] = podman

    def _build(self, tree: Path) -> list[Blob]:
        images = Layout(self._work / "oci")
        names = list(islice(find(tree), 0, self._sizes.entries * EVERY, EVERY))
        # An opaque directory is what podman 4.3 cannot load where the kernel is to mount it: without root it
        # looks for its capabilities in a chroot that has no /proc.
        big, small = (images.add_tree(tree, names[::step], opaque=False) for step in (1, SMALLER))
        for name, layers in zip(IMAGES, (big, small), strict=True):
            images.add_image(name, layers)
        return big

    def _source(self, image: str) -> str:
        return f"{self._work}/oci:{image}"

    @contextmanager
    def _dropping(self, side: str) -> Iterator[None]:
        """Go on without a side of others that cannot do it."""
        try:
            yield
        except (RuntimeError, FileNotFoundError) as exc:
            if side in ("fusestore", *OURS):
                raise
            say(f"without {side}: {str(exc).splitlines()[-1]}")
            self._dropped.add(side)

    def _add(self, label: str, side: str, value: float) -> None:
        self._samples.setdefault(label, {}).setdefault(side, []).append(value)

    def _rotated(self, sides: Iterable[str], round_: int) -> list[str]:
        return [name for name in rotated(sides, round_) if name not in self._dropped]

    def _turn(self, round_: int, label: str, sides: dict[str, Side]) -> dict[str, Path]:
        """Have each side do its work; where they have written."""
        places = {}
        for name in self._rotated(sides, round_):
            place = Path(tempfile.mkdtemp(dir=self._work))
            with self._dropping(name):
                inside, took = clocked(partial(sides[name], place))
                self._add(label, name, inside if isinstance(inside, float) else took)
                places[name] = place
            run(["sync", "-f", str(place)])
        return places

    def measure(self, wanted: Sequence[str], repeat: int) -> Samples:
        """All samples of the rows that need images.  Raises RuntimeError."""
        rows = {"import": self._import, "export": self._export, "change": self._change}
        for round_ in range(repeat):
            say(f"layers, round {round_ + 1} of {repeat}")
            for row in wanted:
                if row in rows:
                    rows[row](round_)
        return self._samples

    def _import(self, round_: int) -> None:
        source = self._source("image")
        load = ["load", "-q", f"oci:{source}"]
        unpack = ["umoci", "unpack", "--rootless", f"--image={source}"]
        sides: dict[str, Side] = {
            "fusestore": lambda place: run(["fusestore", f"--root={place}/store", *load]),
            "umoci": lambda place: run([*unpack, f"{place}/bundle"]),
        }
        for name, podman in self._podmans.items():
            if name != "podman fuse-overlayfs":  # which unpacks like the other overlay
                sides[name] = partial(podman.load, source, "image")
        self._turn(round_, f"import of {self._sizes.entries} entries in {LAYERS} layers", sides)

    def _export(self, round_: int) -> None:
        with Store() as store:
            chain = [store.layer_store.lookup(layer.id) for layer in store.chain(store.image("image"))]
            trees = [store.graph_driver.diff_directory(record.cache_id) for record in chain]

        def export(place: Path) -> None:
            for record in chain:
                output = f"--output={place}/{record.diff_id}"
                run(["fusestore", "layer", "export", "-q", record.chain_id, output])

        def tar(place: Path) -> None:
            for number, tree in enumerate(trees):
                script = f"set -o pipefail; tar -c -C '{tree}' . | tee '{place}/{number}' | sha256sum"
                run(["bash", "-c", script])

        sides: dict[str, Side] = {
            "fusestore": export,
            "library": lambda place: client(export_layers, image="image", place=str(place)),
            LIMIT: tar,
        }
        lists: dict[str, Side] = {"fusestore": lambda place: run(["fusestore", "layers"])}
        for name, podman in self._podmans.items():
            sides[name] = partial(podman.save, "image")
            lists[name] = podman.list_images
        size = sum(blob.size for blob in self._blobs) // MIB
        places = self._turn(round_, f"export of {LAYERS} layers, {size} MiB", sides)
        self._turn(round_, "- a process that only lists", lists)
        for side in places.keys() - {LIMIT} if round_ == 0 else ():
            found = {digest(path) for path in places[side].rglob("*") if path.is_file()}
            if missing := {blob.diff_id for blob in self._blobs} - found:
                raise RuntimeError(f"{side} has not exported {', '.join(missing)}")

    def _change(self, round_: int) -> None:
        for image, divisor in zip(IMAGES, (1, SMALLER), strict=True):
            changes = self._choose(image, round_)
            label = f"of {self._sizes.changed} files on {self._sizes.entries // divisor} entries"
            sides: dict[str, Callable[..., list[str]]] = {"library": self._change_rw_layer}
            if image == "image":
                sides |= {name: partial(self._change_container, name) for name in self._podmans}
            lists: dict[str, list[str]] = {}
            for side in self._rotated(sides, round_):
                with self._dropping(side):
                    lists[side] = sides[side](image, f"{image}-{round_}", changes, label)
            for side, changed in lists.items():
                rule = _without_parents if side == "podman overlay" else set
                if different := rule(changed) ^ rule(lists["library"]):
                    raise RuntimeError(f"{side} lists other changes: {', '.join(sorted(different)[:4])}")

    def _choose(self, image: str, seed: int) -> Report:
        """What is changed: files with one name, and new ones in old and in new directories."""
        sizes, files = self._sizes, self._files[image]
        dice = random.Random(seed)
        if len(files) < sizes.rewritten + sizes.deleted:
            raise RuntimeError(f"an image of {len(files)} files is too small; try another --tree")
        chosen = dice.sample(files, sizes.rewritten + sizes.deleted)
        parents = [os.path.dirname(name) for name in chosen[: sizes.new // 2]]
        parents += [f"new-{seed}/{number % 20:02}" for number in range(sizes.new - len(parents))]
        new = [os.path.join(parent, f"new-{seed}-{number}") for number, parent in enumerate(parents)]
        return {"written": new + chosen[sizes.deleted :], "deleted": chosen[: sizes.deleted], "seed": seed}

    def _change_rw_layer(self, image: str, name: str, changes: Report, label: str) -> list[str]:
        client(make_rw_layer, image=image, name=name, changes=changes)
        run(["sync", "-f", str(self._work)])
        report = client(examine_rw_layer, name=name)
        for what, value in report["values"].items():
            self._add(f"{what} {label}", "library", value)
        tar = ["bash", "-c", f"set -o pipefail; tar -c -C '{report['upper']}' . | sha256sum"]
        self._add(f"diff {label}", LIMIT, clocked(lambda: run(tar))[1])
        naive = client(compare_mounts, image=image, name=name)
        if missing := {*changes["written"], *changes["deleted"]} - {*naive["names"]}:
            raise RuntimeError(f"{NAIVE} has missed {', '.join(sorted(missing)[:4])}")
        self._add(f"changes {label}", NAIVE, naive["value"])
        changed: list[str] = report["changes"]
        return changed

    def _change_container(self, side: str, image: str, name: str, changes: Report, label: str) -> list[str]:
        podman = self._podmans[side]
        podman.make_container(image, name, changes)
        run(["sync", "-f", str(self._work)])
        said, took = clocked(lambda: podman.run("diff", name))
        self._add(f"changes {label}", side, took)
        _, took = clocked(lambda: podman.run("commit", "-q", name, f"localhost/{name}"))
        self._add(f"commit {label}", side, took)
        run(["sync", "-f", str(self._work)])
        return said.splitlines()


def _without_parents(changes: Iterable[str]) -> set[str]:
    """Changes but those of directories above others, of which podman's overlay leaves some out."""
    above = {f"C {parent}" for change in changes for parent in Path(change[2:]).parents}
    return {*changes} - above


def rotated(names: Iterable[str], round_: int) -> list[str]:
    """Another one first each round."""
    order = list(names)
    first = round_ % len(order)
    return [*order[first:], *order[:first]]


def measure_record(work: Path, files: int, repeat: int) -> Samples:
    """What it costs `apply_diff` to write a tar-split record, in memory where that can hold a store."""
    place = Path(tempfile.mkdtemp(prefix="fusestore-bench.", dir=in_memory() or work))
    try:
        write_tar(place / "tar", files)
        sides = {"with tar-split": True, "without": False}
        samples: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(repeat):
            say(f"tar-split, round {round_ + 1} of {repeat}")
            for name in rotated(sides, round_):
                where = tempfile.mkdtemp(dir=place)
                took = client(unpack, tar=str(place / "tar"), place=where, recorded=sides[name])
                samples[name].append(took)
                shutil.rmtree(where)
    finally:
        shutil.rmtree(place)
    return {f"apply_diff of {files} files": samples}


def write_tar(path: Path, files: int) -> None:
    """A layer of files of 1 KiB, a hundred in a directory; root's, so that no xattr is needed."""
    data = random.Random(0).randbytes(KIB)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(files):
            if number % 100 == 0:
                directory = tarfile.TarInfo(f"{number // 100:04}")
                directory.type, directory.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(directory)
            member = tarfile.TarInfo(f"{number // 100:04}/{number:06}")
            member.size = KIB
            tar.addfile(member, io.BytesIO(data))


def measure(
    work: Path, tree: Path, sizes: Sizes, wanted: Sequence[str], repeat: int
) -> tuple[dict[str, Any], Samples]:
    """What was measured, and all its samples.  Raises RuntimeError."""
    samples: Samples = {}
    with ExitStack() as stack:
        if {*wanted} - {"record"}:
            samples |= Depot(work, tree, sizes, stack).measure(wanted, repeat)
    if "record" in wanted:
        samples |= measure_record(work, sizes.recorded, repeat)
    return {"sizes": asdict(sizes), "filesystem": filesystem(work), "sides": _about(samples)}, samples


def _about(samples: Samples) -> dict[str, str]:
    """What the sides are that have taken part."""
    about = {
        "fusestore": f"{version('fusestore')}, its command line",
        "library": "the same inside one process",
        **{name: how for name, (_, _, how) in PODMANS.items()},
        LIMIT: "of the layers' directories, which is all that has to be read",
        NAIVE: "lists of all files of the image and of the RW layer on it, compared",
    }
    present = {name for sides in samples.values() for name in sides}
    for name in present & PODMANS.keys():
        about[name] = f"{version('podman')}, loaded by {version('skopeo')}: {about[name]}"
    if "umoci" in present:
        about["umoci"] = f"{version('umoci')}, rootless"
    return {name: how for name, how in about.items() if name in present}


if __name__ == "__main__":
    perform()
