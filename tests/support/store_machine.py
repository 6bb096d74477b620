"""Processes that do everything at random with one store at once, two of which are killed, and a judge.

    python -m support.store_machine PROCESSES OPERATIONS [--driver vfs] [--seed 1] [--place DIRECTORY]
                                    [--no-log] [--no-whiteouts]

`--no-log`: with the journal that SQLite needs on network filesystems.  `--no-whiteouts`: on a filesystem that
keeps those for itself.

Each process has ids and names of its own, for which it is the only one, so that a model (support.store_model)
knows what every call has to say, and what has to be there at the end.  And all of them work on what they
share: ids that come and go, of which only what may be refused is known; and two images to which each adds
names, flags and blobs that nobody else adds, of which none may be lost.  They write down each call before
they make it and what it said, so that of a killed process all is known but its last call, which may have
taken effect or not.

Prints figures, and what was wrong; the exit status says whether anything was.
"""

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from support.fsck import broken, problems
from support.store_items import TARS
from support.store_model import Model
from support.store_operations import (
    OPERATIONS,
    described,
    differences,
    drawn,
    expected,
    foreseen,
    opened,
    perform,
    prelude,
)

from fusestore.errors import FusestoreError
from fusestore.store import database
from fusestore.store.storage import Store

_DEADLINE = 500  # seconds for all of it
_KILLED = 2
_KEPT = ("zzkeep0", "zzkeep1")

#: How often a process does what with its own; others 2.  What is about all ids is left out.
_WEIGHTS = {
    "create_layer": 5,
    "put_layer": 8,
    "create_image": 6,
    "create_container": 6,
    "mount": 4,
    "write": 5,
    "apply_diff": 5,
    "changes": 4,
    "diff": 4,
    "delete": 0.5,
    "set_names": 1,
    "wipe": 0,
    "layers_by_uncompressed_digest": 0,
}
_MOUNTING = ("mount", "unmount", "write")  # which take their time with FUSE

#: What somebody else may have brought about, call by call, with how often it is made.
_SHARED: dict[str, tuple[int, set[str]]] = {
    "create_layer": (3, {"DuplicateID", "LayerNotFound"}),
    "put_layer": (3, {"DuplicateID", "LayerNotFound"}),
    "create_image": (4, {"DuplicateID", "DuplicateName", "LayerNotFound"}),
    "create_container": (4, {"DuplicateID", "DuplicateName", "ImageNotFound", "LayerNotFound"}),
    "delete_layer": (
        2,
        {"LayerNotFound", "LayerHasChildren", "LayerUsedByImage", "LayerUsedByContainer", "LayerInUse"},
    ),
    "delete_image": (3, {"ImageNotFound", "ImageUsedByContainer", "LayerInUse"}),
    "delete_container": (4, {"ContainerNotFound", "LayerInUse"}),
    "mount": (1, {"LayerNotFound"}),
    "unmount": (2, {"LayerNotFound", "NotMounted", "LayerInUse"}),
    "diff": (2, {"LayerNotFound"}),
    "changes": (2, {"LayerNotFound"}),
    "set_container_directory_file": (2, {"ContainerNotFound"}),
    "set_image_big_data": (2, {"ImageNotFound"}),
    "image_big_data": (2, {"ImageNotFound"}),
    "add_names": (4, set()),
    "set_flag": (4, set()),
    "keep": (4, set()),  # set_image_big_data of an image that stays
    "move": (1, set()),  # add_names, of names that all use
    "look": (3, set()),
    "collect": (1, set()),
    "reopen": (1, set()),
}


class Worker:
    """One of the processes."""

    def __init__(self, place: Path, driver: str, number: int, seed: int, tars: int) -> None:
        self._place, self._driver, self._number, self._tars = place, driver, number, tars
        self._random = random.Random(seed * 1000 + number)
        self._store = opened(place, driver)
        self._log = os.open(log_of(place, number), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def run(self, operations: int, half: int) -> None:
        """Do things; write to the pipe `half` when half of them are done.  Who is to be killed goes on."""
        weights = _WEIGHTS | (dict.fromkeys(_MOUNTING, 0.3) if self._driver == "fuse" else {})
        own = list(OPERATIONS), [weights.get(operation, 2) for operation in OPERATIONS]
        shared = list(_SHARED), [often for often, _ in _SHARED.values()]
        for operation, arguments in prelude(space_of(self._number)):
            self._one("own", operation, arguments)
        for count in range(operations if self._number >= _KILLED else 1 << 20):
            if count == operations // 2:
                os.write(half, b"h")
            alone = self._random.random() < 0.6
            (operation,) = self._random.choices(*(own if alone else shared))
            if alone:
                arguments = drawn(operation, self._random.choice, space_of(self._number))
                self._one("own", operation, arguments)
            elif operation not in _MOUNTING or self._driver == "vfs" or self._random.random() < 0.1:
                self._one("shared", operation, self._arguments(operation, count))
        self._store.close()

    def _one(self, whose: str, operation: str, arguments: list[Any]) -> None:
        if operation in ("put_layer", "apply_diff"):
            arguments = [a % self._tars if type(a) is int and a < len(TARS) else a for a in arguments]
        start = time.monotonic()
        self._note([whose, operation, arguments])
        try:
            said = self._do(operation, arguments) if whose == "shared" else None
            said = perform(self._store, operation, arguments) if said is None else said
        except Exception as exc:
            said = f"?{exc!r} {traceback.format_exc(limit=-4)}"
        self._note([said, time.monotonic() - start])

    def _note(self, line: object) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def _arguments(self, operation: str, count: int) -> list[Any]:
        """Of calls on what all share."""
        number = self._random.randrange(4)
        layer, image = f"zzl{self._random.randrange(4)}", f"zzi{number}"
        kept, own = self._random.choice(_KEPT), f"{space_of(self._number)}{count}"
        table: dict[str, list[Any]] = {
            "create_layer": [f"zzl{number}", self._random.choice([layer, ""]), []],
            "put_layer": [f"zzl{number}", self._random.choice([layer, ""]), [], number % len(TARS), False],
            "create_image": [image, [f"zzn{number}"], self._random.choice([layer, ""]), image, ["manifest"]],
            "create_container": [f"zzc{number}", [f"zzm{number}"], f"zzn{number}", f"zzk{number}"],
            "delete_layer": [layer],
            "delete_image": [image, True],
            "delete_container": [f"zzc{number}"],
            "mount": [layer],
            "unmount": [layer, False],
            "diff": ["", layer],
            "changes": ["", layer],
            "set_container_directory_file": [f"zzc{number}", "f", "data"],
            "set_image_big_data": [image, "manifest", "m" * (1 + count % 9)],
            "image_big_data": [image, "manifest"],
            "add_names": [kept, [f"zz{own}"]],
            "set_flag": [kept, own, count],
            "keep": [kept, own, own],
            "move": [kept, ["zzmoved", "zzalso"]],
        }
        return table.get(operation, [])

    def _do(self, operation: str, arguments: list[Any]) -> Any:
        """What is no call of the Store's own, or None."""
        if operation == "look":
            return list(torn(self._store))
        if operation == "keep":
            return perform(self._store, "set_image_big_data", arguments) or ""
        if operation == "move":
            return perform(self._store, "add_names", arguments) or ""
        if operation == "collect":
            self._store.collect(deep=True)
            return ""
        if operation == "reopen":
            self._store.close()
            self._store = opened(self._place, self._driver)
            return ""
        return None


def torn(store: Store) -> Iterator[str]:
    """Shared items that are not as they were made."""
    for image in store.images():
        if image.id.startswith("zzi"):
            number = image.id.removeprefix("zzi")
            whole = (f"zzn{number}",), image.id, ["manifest"]
            seen = image.names, image.metadata, list(image.big_data)
            if seen != whole:
                yield f"{image.id}: {seen}"
    for container in store.containers():
        if container.id.startswith("zzc") and container.names != (f"zzm{container.id[3:]}",):
            yield f"{container.id}: {container.names}"


def space_of(number: int) -> str:
    """What the ids and names of a process begin with; no hexadecimal id does."""
    return "abcdefghijklmnop"[number] + "x"


def log_of(place: Path, number: int) -> Path:
    """Where a process writes down what it does."""
    return place / f"log{number}"


# -- the judge --------------------------------------------------------------------------------------------


def read_log(path: Path) -> Iterator[tuple[str, str, list[Any], Any, float]]:
    """Whose, operation, arguments, what was said (None at the end of one who was killed), seconds."""
    lines = path.read_text().splitlines()
    for line in range(0, len(lines), 2):
        whose, operation, arguments = json.loads(lines[line])
        said, seconds = json.loads(lines[line + 1]) if line + 1 < len(lines) else ("?killed", 0.0)
        yield whose, operation, arguments, said, seconds


def complaints(store: Store, place: Path, number: int, *, killed: bool) -> Iterator[str]:
    """What is wrong with what one process was told, and with what is there of it."""
    model = Model()
    before, pending = model, ""
    for whose, operation, arguments, said, _ in read_log(log_of(place, number)):
        call = f"{number}, {whose}: {operation}{arguments}"
        if said == "?killed" and killed:
            before, pending = deepcopy(model), operation
            if whose == "own":
                foreseen(model, operation, arguments)
        elif isinstance(said, str) and said.startswith("?"):
            yield f"{call}: {said}"
        elif whose == "own":
            wanted = foreseen(model, operation, arguments)
            if said != wanted:
                yield f"{call}: said {said}, not {wanted}"
        else:
            if operation == "look" and said:
                yield f"{call}: torn: {said}"
            if str(said).startswith("!") and said[1:] not in _SHARED[operation][1]:
                yield f"{call}: said {said}"
            yield from _lost(store, operation, arguments, call)
    found = described(store, space_of(number))
    if found != expected(model) and (not pending or found != expected(before)):
        loose = bool(pending) and _exact(found) in (_exact(expected(model)), _exact(expected(before)))
        yield from (
            []
            if loose
            else [
                f"{number}, after {pending or 'all'}: {line}" for line in differences(found, expected(model))
            ]
        )


def _lost(store: Store, operation: str, arguments: list[Any], call: str) -> Iterator[str]:
    """What was added to an image that stays, and is not there."""
    if operation == "add_names" and store.image(arguments[1][0]).id != arguments[0]:
        yield f"{call}: the name is lost"
    if operation == "set_flag" and store.image(arguments[0]).flags.get(arguments[1]) != arguments[2]:
        yield f"{call}: the flag is lost"
    if operation == "keep" and store.image_big_data(*arguments[:2]) != arguments[2].encode():
        yield f"{call}: the blob is lost"


def _exact(found: dict[str, Any]) -> dict[str, Any]:
    """But for what one call changes in several steps: what is in layers, and how they are mounted."""
    loose = ("files", "exact", "mounted", "writable", "tar")
    return {
        name: {field: value for field, value in facts.items() if field not in loose}
        for name, facts in found.items()
    }


# -- all of them ------------------------------------------------------------------------------------------


def _child(worker: Callable[[], Worker], gate: int, half: int, operations: int) -> None:
    """In a process of its own."""
    status = 1
    try:
        made = worker()
        os.read(gate, 1)  # until all are there
        made.run(operations, half)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _start(worker: Callable[[int], Worker], processes: int, operations: int) -> dict[int, tuple[int, int]]:
    """The processes by number: pid, and what can be read from when it has done half."""
    gate, opener = os.pipe()
    children: dict[int, tuple[int, int]] = {}
    for number in range(processes):
        told, half = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(opener)
            _child(partial(worker, number), gate, half, operations)
        os.close(half)
        children[number] = pid, told
    os.close(gate)
    os.close(opener)
    return children


def run(
    place: Path, driver: str, processes: int, operations: int, seed: int, tars: int = len(TARS)
) -> tuple[list[str], str]:
    """Let them, kill two, and judge: what was wrong, and figures."""
    with opened(place, driver) as store:
        for name in _KEPT:
            store.create_image(name)
    chance, started = random.Random(seed), time.monotonic()
    children = _start(lambda n: Worker(place, driver, n, seed, tars), processes, operations)
    for number in range(_KILLED):
        pid, told = children[number]
        select.select([told], [], [], _DEADLINE)
        select.select([], [], [], chance.random() / 20)  # any moment after that
        os.kill(pid, signal.SIGKILL)
    found = []
    for number, (pid, told) in children.items():
        fd = os.pidfd_open(pid)
        if not select.select([fd], [], [], max(started + _DEADLINE - time.monotonic(), 0))[0]:
            found.append(f"{number}: does not end")
            os.kill(pid, signal.SIGKILL)
        os.close(fd)
        os.close(told)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != (-signal.SIGKILL if number < _KILLED else 0):
            found.append(f"{number}: ended with {status}")
    seconds = time.monotonic() - started
    found += judged(place, driver, processes)
    return found, _figures(place, processes, seconds)


def judged(place: Path, driver: str, processes: int) -> list[str]:
    """What is wrong now that all have ended."""
    found = [f"at once: {line}" for line in broken(place / "store")]
    with opened(place, driver) as store:
        for number in range(processes):
            found += complaints(store, place, number, killed=number < _KILLED)
        store.unmount_all()
        store.collect(deep=True)
    found += [f"after gc: {line}" for line in problems(place / "store")]
    with opened(place, driver) as store:
        try:
            store.wipe()
        except FusestoreError as exc:
            found.append(f"wipe: {exc}")
    return found + [f"after wipe: {line}" for line in problems(place / "store")]


def _figures(place: Path, processes: int, seconds: float) -> str:
    calls = [call for number in range(processes) for call in read_log(log_of(place, number))]
    refused: Counter[str] = Counter(
        str(said)[1:] for *_, said, _ in calls if isinstance(said, str) and said.startswith("!")
    )
    slowest = max(calls, key=lambda call: call[-1])
    return (
        f"{len(calls)} calls of {processes} processes in {seconds:.1f} s, {refused.total()} refused"
        f" ({len(refused)} kinds); slowest {slowest[1]} {slowest[-1]:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("processes", type=int)
    parser.add_argument("operations", type=int)
    parser.add_argument("--driver", default="vfs", choices=["vfs", "fuse"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--place", type=Path)
    parser.add_argument("--no-log", action="store_true")
    parser.add_argument("--no-whiteouts", action="store_true")
    arguments = parser.parse_args()
    if arguments.no_log:
        database.is_on_network = lambda path: True
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.place or Path(temporary)
        tars = 2 if arguments.no_whiteouts else len(TARS)  # the first two have none
        size = arguments.processes, arguments.operations
        found, figures = run(place, arguments.driver, *size, arguments.seed, tars)
    print(figures)
    print(*found[:40], sep="\n", end="\n" if found else "")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
