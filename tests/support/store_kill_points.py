"""Let an operation of a `Store` fail, or its process die, at every call by which it changes something.

    LD_PRELOAD=shim.so python -m support.store_kill_points PLACE [--driver vfs] [--scene create_image]
                                                           [--fault kill] [--points 20]

does all points, or `--points` of each scene, evenly spread.  For each a child opens a copy of the same store
and does the operation, with the shim (support/shim.py) between itself and libc; after an error it does it
again at once.  Another process then looks at what is left: nothing is broken, all is as before or as it
should be, what was acknowledged is there; after a collection nothing is left over; and the operation
succeeds when it is done again.  What support/kill_points.py does for the layer store is not done again here.

Prints a line for each scene and each failure, and the number of points.
"""

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import shim
from support.fsck import broken, problems
from support.scenes import is_clean
from support.store_items import ARCHIVES
from support.store_operations import described, opened
from support.tars import Stream

from fusestore.errors import DuplicateID, DuplicateName, ItemNotFound
from fusestore.store.storage import Store

_PATIENCE = 60  # seconds for one child
#: What a call says of what it has done already.
_DONE = DuplicateID, DuplicateName, ItemNotFound


@dataclass(frozen=True)
class Scene:
    """`before` makes what has to be there.  `loose`: what, by field, may be half-done after a crash.

    With `borrows` there is an additional store, which is made by it.
    """

    act: Callable[[Store], object]
    before: Callable[[Store], object] = lambda store: None
    loose: tuple[str, ...] = ()
    borrows: Callable[[Store], object] | None = None


def _layer(store: Store) -> None:
    store.put_layer("base", names=["b"], diff=Stream(ARCHIVES[0]))


def _image(store: Store) -> None:
    _layer(store)
    store.put_layer("top", "base", diff=Stream(ARCHIVES[1]))
    store.create_image("i", ["one", "two"], "top", "text", big_data={"manifest": b"m", "k": b"k" * 9999})
    store.create_image("j", ["three"])


def _container(store: Store) -> None:
    _image(store)
    store.create_container("c", ["cn"], "i", "cl", "text")
    store.set_container_big_data("c", "k", b"data")
    store.set_container_directory_file("c", "d/f", b"data")
    store.set_container_run_directory_file("c", "f", b"data")


def _writable(store: Store) -> None:
    _layer(store)
    store.put_layer("rw", "base", writeable=True, diff=Stream(ARCHIVES[1]))


def _put(store: Store) -> None:
    store.put_layer("new", "base", ["n"], diff=Stream(ARCHIVES[1]))


def _create_image(store: Store) -> None:
    store.create_image("new", ["n", "m"], "top", "text", big_data={"manifest": b"n", "k": b"n"})


SCENES = {
    "create_layer": Scene(lambda s: s.create_layer("new", "rw", ["n"]), _writable, ("writable",)),
    "put_layer": Scene(_put, _layer),
    "create_image": Scene(_create_image, _image),
    "create_container": Scene(lambda s: s.create_container("new", ["n"], "i", "newl", "text"), _container),
    "big data, first": Scene(lambda s: s.set_image_big_data("i", "new", b"n" * 9000), _image),
    "big data, again": Scene(lambda s: s.set_image_big_data("i", "k", b"n" * 9000), _image),
    "set_names": Scene(lambda s: s.set_names("i", ["three", "new", "one"]), _image),
    "directory file": Scene(lambda s: s.set_container_directory_file("c", "d/f", b"new" * 999), _container),
    "apply_diff": Scene(
        lambda s: s.apply_diff("rw", Stream(ARCHIVES[2])), _writable, ("files", "exact", "tar")
    ),
    "delete_layer": Scene(lambda s: s.delete_layer("rw"), _writable),
    "delete_image": Scene(lambda s: s.delete_image("i"), _image),
    "delete_container": Scene(lambda s: s.delete_container("c"), _container),
    "wipe": Scene(lambda s: s.wipe(), _container),
    "borrow": Scene(lambda s: s.create_layer("new", "top", ["n"]), borrows=_image),
    "give back": Scene(
        lambda s: s.delete_layer("new"), lambda s: s.create_layer("new", "top"), borrows=_image
    ),
    "pull up": Scene(lambda s: s.set_names("i", ["new"]), borrows=_image),
}


def _forked(function: Callable[[], object], log: Path) -> tuple[int, Any]:
    """Run `function` in a process of its own: its status (256: it hung), and what it returned."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 2)
            answer = json.dumps(function()).encode()
            shim.disarm()
            os.write(writer, answer)
            status = 0
        except BaseException:
            shim.disarm()
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    fd = os.pidfd_open(pid)
    hung = not select.select([fd], [], [], _PATIENCE)[0]
    os.close(fd)
    if hung:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with open(reader, "rb") as file:
        said = file.read()
    return 256 if hung else status, json.loads(said or b"null")


@dataclass
class Campaign:
    """One scene with one driver, in a directory of its own."""

    place: Path
    driver: str
    name: str
    failures: list[str] = field(default_factory=list)
    points: int = 0

    def __post_init__(self) -> None:
        self.scene = SCENES[self.name]
        self.here, self.template, self.log = self.place / "here", self.place / "template", self.place / "log"
        self.here.mkdir(parents=True)
        if self.scene.borrows is not None:
            with opened(self.here / "other", self.driver) as other:
                self.scene.borrows(other)
        with self._opened() as store:
            self.scene.before(store)
            self.before = described(store, "")
        self.here.rename(self.template)
        self._restore()
        with self._opened() as store:  # here, so that all modules are imported
            self.scene.act(store)
            self.after = described(store, "")
            self._repeat(store)

    def _opened(self) -> Store:
        additional = [self.here / "other" / "store"] * (self.scene.borrows is not None)
        return opened(self.here, self.driver, *additional)

    def _restore(self) -> None:
        shutil.rmtree(self.here, ignore_errors=True)
        subprocess.run(["cp", "-a", self.template, self.here], check=True)

    def _certain(self, state: dict[str, dict[str, Any]]) -> dict[str, Any]:
        loose = self.scene.loose
        return {name: {f: v for f, v in facts.items() if f not in loose} for name, facts in state.items()}

    def calls(self, fault: str) -> dict[int, str]:
        """The points at which `fault` can happen."""

        def count() -> object:
            with self._opened() as store:
                shim.arm(fault, 0)
                self.scene.act(store)
                return list(shim.calls(fault, shim.disarm()).items())

        status, found = _forked(count, self.log)
        assert status == 0, self.log.read_text()
        return dict(found)

    def _attempt(self, fault: str, number: int) -> str:
        """Do it with a fault; how that ended."""
        with self._opened() as store:
            shim.arm(fault, number)
            try:
                self.scene.act(store)
                return "done"
            except Exception as exc:
                shim.disarm()
                if not is_clean(exc, fault):
                    raise
            finally:
                shim.disarm()
            assert broken(self.here / "store") == [], "while it is open"
            self._repeat(store)
            return "refused"

    def _repeat(self, store: Store) -> None:
        """Do it again; who says that it is done must be right."""
        try:
            self.scene.act(store)
        except _DONE:
            if described(store, "") != self.after:
                raise

    def _verify(self, said: str | None) -> None:
        """In a process of its own, after the fault."""
        root = self.here / "store"
        assert broken(root) == [], "at once"
        with self._opened() as store:
            state = described(store, "")
            known = self._certain(self.before), self._certain(self.after)
            # All is wiped one by one.
            assert self.name == "wipe" or self._certain(state) in known, f"neither before nor after: {state}"
            if said:
                assert state == self.after, f"acknowledged and lost: {state}"
            store.collect(deep=True)
            assert problems(root) == [], "after collection"
            self._repeat(store)
            state = described(store, "")
            assert state == self.after, f"after it was repeated: {state}"
        assert problems(root) == [], "after all"

    def point(self, fault: str, number: int, call: str) -> str:
        """One point: the fault, and everything that must hold then."""
        self._restore()
        self.points += 1
        where = f"{self.driver}, {self.name}: {fault} at {call}#{number}"
        status, said = _forked(lambda: self._attempt(fault, number), self.log)
        if status != (-signal.SIGKILL if fault in ("kill", "torn") else 0):
            self._fail(f"{where}: status {status}")
            return "failed"
        status, _ = _forked(lambda: self._verify(said), self.log)
        if status:
            self._fail(f"{where} ({said})")
        return said or "killed"

    def _fail(self, where: str) -> None:
        said = " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-2:])[-700:]
        self.failures.append(f"{where}: {said}")
        print("FAIL", self.failures[-1], flush=True)

    def run(self, faults: list[str], share: int) -> None:
        """All points of some faults, or a `share` of them."""
        every = []
        for fault in faults:
            self._restore()
            every += [(fault, *call) for call in self.calls(fault).items()]
        step = max(len(every) // share, 1) if share else 1
        ends = Counter(self.point(*point) for point in every[step // 2 :: step])
        print(f"{self.driver}, {self.name}: {self.points} points, {dict(ends)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("--driver", choices=("vfs", "fuse"), action="append")
    parser.add_argument("--scene", choices=SCENES, action="append")
    parser.add_argument("--fault", choices=shim.FAULTS, action="append")
    parser.add_argument("--points", type=int, default=0)
    arguments = parser.parse_args()
    faults = arguments.fault or [fault for fault in shim.FAULTS if fault != "short"]
    tempfile.tempdir = str(arguments.place)
    total = failed = 0
    for name in arguments.scene or SCENES:
        for driver in arguments.driver or ("vfs", "fuse"):
            if SCENES[name].borrows is not None and driver == "vfs":  # which cannot
                continue
            campaign = Campaign(arguments.place / f"{driver}-{name}".replace(" ", "-"), driver, name)
            campaign.run(faults, arguments.points)
            total += campaign.points
            failed += len(campaign.failures)
            shutil.rmtree(campaign.place)
    print(f"{total} points, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
