"""Let an operation of a layer store fail, or its process die, at every call by which it changes something.

A process with the shim (support/shim.py) forks one child for each point.  The child opens a copy of the same
store and does the operation; another one then looks at what is left, recovers, and does it again.  What must
hold afterwards is in `Campaign.verify`; the operations are in support/scenes.py.

    LD_PRELOAD=shim.so python -m support.kill_points PLACE [--driver fuse] [--scene commit] [--fault kill]
                                                     [--points 20]

does all points, or `--points` of each scene and driver, evenly spread; and at every tenth kill it kills the
recovery too, at ten of its points (with `--points`: at three).  Prints a line for each fault and each
failure. `--trace` only does the operation, between two looks for a file /MARK, and prints what the shim has
counted.
"""

import argparse
import gc
import json
import mmap
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from support import shim
from support.fsck import garbage, problems
from support.scenes import DRIVERS, RECOVER, SCENES, Scene, Session, is_clean, unmount_all

_ID = re.compile("[0-9a-f]{20,}")
_PATIENCE = 60  # seconds for one child
_KEPT = mmap.mmap(-1, 1 << 20)  # where a child leaves word without a system call


def _say(word: object) -> None:
    """Leave word for the parent; survives our death."""
    data = json.dumps(word).encode()
    _KEPT[: len(data) + 1] = data + b"\n"


def _child(function: Callable[[], None], log: Path) -> tuple[int, object]:
    """Run `function` in a process of its own: its status (256: it hung), and its last word."""
    _KEPT[:5] = b"null\n"
    gc.freeze()  # what is ours need not be looked through by each child
    pid = os.fork()
    if not pid:
        status = 1
        try:
            fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 2)
            os.close(fd)
            function()
            status = 0
        except BaseException:
            shim.disarm()
            traceback.print_exc()
        finally:
            os._exit(status)
    fd = os.pidfd_open(pid)
    hung = not select.select([fd], [], [], _PATIENCE)[0]
    os.close(fd)
    if hung:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return 256 if hung else status, json.loads(_KEPT[: _KEPT.find(b"\n")])


def _open_files() -> list[str]:
    """What this process has open.  SQLite may keep fds of its database for later, lest it lose its locks."""
    gc.collect()
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    found = [os.readlink(link) for link in links if os.path.lexists(link)]
    return sorted(name for name in found if "store.db" not in name)


def _plain(value: object) -> object:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value, default=repr))


@dataclass
class Campaign:
    """One scene with one driver, in a directory of its own."""

    place: Path
    driver: str
    name: str
    failures: list[str] = field(default_factory=list)
    points: int = 0
    dirty: int = 0  # errors after which something was left for cleanup
    unseen: int = 0  # faults that made no difference to the caller

    def __post_init__(self) -> None:
        self.scene: Scene = SCENES[self.name]
        self.here, self.template, self.log = self.place / "here", self.place / "template", self.place / "log"
        self.temporary = self.place / "tmp"
        self.temporary.mkdir(parents=True)
        tempfile.tempdir = str(self.temporary)
        os.environ["TMPDIR"] = str(self.temporary)
        self.here.mkdir()
        self._run(lambda: self.scene.before(self._session()))
        if self.name == "open":
            shutil.rmtree(self.here)
            self.here.mkdir()
        self.here.rename(self.template)
        self._restore()
        self.before = self._run(lambda: _say(self._session().state()))
        self._restore()
        self._run(lambda: rehearse(self.here, self.driver, self.name))
        self.files = self._files()
        self.result, self.after = self._run(self._answer)  # type: ignore[misc]

    def _session(self) -> Session:
        return Session(self.here, self.driver)

    def _restore(self) -> None:
        if self.here.exists():
            shutil.rmtree(self.here)
        subprocess.run(["cp", "-a", self.template, self.here], check=True)

    def _run(self, function: Callable[[], None]) -> object:
        status, word = _child(function, self.log)
        if status:
            raise RuntimeError(f"{self.driver}, {self.name}: {self.log.read_text()}")
        return word

    def _answer(self) -> None:
        """What the operation says on what it has done already, and what is there then."""
        session = self._session()
        answer = self.scene.act(session, self.scene.grip(session))
        _say([_plain(answer), session.state()])

    # -- faults ---------------------------------------------------------------------------------------

    def calls(self, fault: str, scene: Scene) -> dict[int, str]:
        """The points of `scene` at which `fault` can happen."""

        def count() -> None:
            session = self._session()
            grip = scene.grip(session)
            shim.arm(fault, 0)
            scene.act(session, grip)
            session.close()
            _say([[number, name] for number, name in shim.calls(fault, shim.disarm()).items()])

        return dict(self._run(count))  # type: ignore[call-overload, no-any-return]

    def attempt(self, fault: str, number: int, scene: Scene) -> tuple[int, object]:
        """Do it with a fault; the status, and what the operation said: null where it did not get so far."""

        def act() -> None:
            session = self._session()
            grip = scene.grip(session)
            before = _open_files()
            shim.arm(fault, number)
            try:
                answer = scene.act(session, grip)
                _say({"answer": _plain(answer)})
            except Exception as exc:
                shim.disarm()
                self._refused(session, exc, fault, before)
                if scene is not RECOVER:
                    again = _plain(scene.act(session, grip))
                    assert again == self.result, f"repeated at once: {again}"
            session.close()
            shim.disarm()

        return _child(act, self.log)

    def _refused(self, session: Session, exc: Exception, fault: str, before: list[str]) -> None:
        """An error is one of the machine's, and leaves nothing behind in this process."""
        told = f"{type(exc).__name__}: {exc}"
        if not is_clean(exc, fault):
            raise exc
        traceback.clear_frames(exc.__traceback__)
        exc.__traceback__ = None
        assert session.broken() == [], told
        _say({"error": told, "dirty": self.name != "migrate" and bool(garbage(session.root))})
        # What of its pipes is open already when the next one fails, Popen leaves open itself.
        left = [name for name in _open_files() if name not in before and not name.startswith("pipe:")]
        assert not left, f"{told}: left open: {left}"

    # -- afterwards -----------------------------------------------------------------------------------

    def _files(self) -> dict[str, object]:
        """Everything on disk but for the database."""
        found = {}
        for directory, _, names in os.walk(self.here / "store"):
            for name in [".", *names]:
                path = Path(directory, name)
                st = path.lstat()
                if not name.startswith("store.db"):
                    content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
                    found[str(path)] = st.st_mode, st.st_mtime_ns, st.st_nlink, content
        found.pop(str(self.here / "store" / "."), None)
        return found

    def verify(self, said: object) -> None:
        """In a process of its own: the store is sound at once, recovers, does what it should have done."""
        session = self._session()
        assert session.broken() == [], "at once"
        state = _plain(session.state())
        if not self.scene.loose:
            assert state in (self.before, self.after), (
                f"neither before nor after: {_difference(state, self.before)}"
            )
            if isinstance(said, dict) and "answer" in said:
                assert state == self.after, f"acknowledged and lost: {_difference(state, self.after)}"
        elif isinstance(state, dict):
            assert set(state) == set(self.after), "a name has gone"  # type: ignore[call-overload]
        session.store.cleanup()
        unmount_all(session)
        assert problems(session.root) == [], "after cleanup"
        answer = _plain(self.scene.act(session, self.scene.grip(session)))
        assert answer == self.result, f"repeated: {answer}"
        state = _plain(session.state())
        assert state == self.after, f"repeated: {_difference(state, self.after)}"
        session.close()
        assert problems(session.root) == [], "after all"
        known = {path.name for path in session.root.glob("*/*")}
        left = {
            path.name: path.read_text() for path in session.runroot.glob("mounts/*") if path.stem not in known
        }
        left = {name: text for name, text in left.items() if "fuse_release()" not in text}  # it came too late
        assert not left, f"left in the runroot: {left}"
        assert list(session.runroot.glob("mnt/*")) == [], "a mountpoint is left"

    def _left(self) -> list[str]:
        """Processes, mounts and temporary files that nobody should have left."""
        found = [f"temporary file {name}" for name in os.listdir(self.temporary)]
        mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
        for place in [line.split(" ")[4] for line in mounts if f" {self.here}/" in line]:
            found.append(f"mounted: {place}")
            subprocess.run(["fusermount3", "-uz", place], check=False)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # what was orphaned is our child; who ends, ends soon
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
            except ChildProcessError:
                return found
        return [*found, "a process is left"]

    def run(self, faults: Iterable[str], share: int) -> None:
        """All points of some faults, or a `share` of them."""
        every = []
        for fault in faults:
            self._restore()
            every += [(fault, *call) for call in self.calls(fault, self.scene).items()]
        step = max(len(every) // share, 1) if share else 1
        for fault, points in groupby(every[step // 2 :: step], itemgetter(0)):
            start, before, failures = time.monotonic(), self.points, len(self.failures)
            self.dirty = self.unseen = 0
            for index, (_, number, call) in enumerate(points):
                self.point(fault, number, call)
                if fault == "kill" and index % 10 == 0:
                    self._kill_recovery(fault, number, call, 3 if share else 10)
            print(
                f"{self.driver}, {self.name}: {fault}: {self.points - before} points, "
                f"{len(self.failures) - failures} failed, {self.dirty} left something to clean up, "
                f"{self.unseen} went unseen, {time.monotonic() - start:.0f} s",
                flush=True,
            )

    def point(self, fault: str, number: int, call: str) -> None:
        """One point: the fault, and everything that must hold then."""
        self._restore()
        self.points += 1
        where = f"{self.driver}, {self.name}: {fault} at {call}#{number}"
        status, said = self.attempt(fault, number, self.scene)
        told = said if isinstance(said, dict) else {}
        died = fault in ("kill", "torn")
        self.dirty += bool(told.get("dirty"))
        self.unseen += not died and "answer" in told
        if status != (-9 if died else 0):
            self._fail(f"{where}: status {status}, {told}: {self._tail()}")
        elif fault == "short" and "answer" not in told:
            self._fail(f"{where}: a short write is no error, but {told}")
        elif self.scene.reads and self._files() != self.files:
            self._fail(f"{where}: reading has changed something")
        self._look(where, said)

    def _look(self, where: str, said: object) -> None:
        status, _ = _child(lambda: self.verify(said), self.log)
        left = self._left()
        if status or left:
            self._fail(f"{where} ({said}): {self._tail() if status else ''}{'; '.join(left)}")

    def _kill_recovery(self, fault: str, number: int, call: str, share: int) -> None:
        """After a first fault recover, and die on the way, at a `share` of its points."""
        self._restore()
        _, said = self.attempt(fault, number, self.scene)
        self._left()  # no mount can be copied
        spoiled, template = self.place / "spoiled", self.template
        shutil.rmtree(spoiled, ignore_errors=True)
        subprocess.run(["cp", "-a", self.here, spoiled], check=True)
        try:
            self.template = spoiled
            self._restore()
            every = list(self.calls("kill", RECOVER).items())
            for second, recovering in every[:: max(len(every) // share, 1)]:
                self._restore()
                self.points += 1
                self.attempt("kill", second, RECOVER)
                where = f"kill at {call}#{number}, then of recovery at {recovering}#{second}"
                self._look(f"{self.driver}, {self.name}: {where}", said)
        finally:
            self.template = template

    def _tail(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-2:])[-600:]

    def _fail(self, complaint: str) -> None:
        complaint = _ID.sub("...", complaint.replace(str(self.place), ""))
        self.failures.append(complaint)
        print("FAIL", complaint, flush=True)


def _difference(found: object, wanted: object) -> str:
    assert isinstance(found, dict)
    assert isinstance(wanted, dict)
    names = [name for name in {*found, *wanted} if found.get(name) != wanted.get(name)]
    return "; ".join(f"{name[:20]}: {found.get(name)}, not {wanted.get(name)}" for name in sorted(names))


def rehearse(place: Path, driver: str, name: str, mark: Callable[[], object] = lambda: None) -> None:
    """One scene without faults; `mark` is called before and after what a campaign counts."""
    scene, session = SCENES[name], Session(place, driver)
    grip = scene.grip(session)
    mark()
    scene.act(session, grip)
    session.close()
    mark()


def trace(campaign: Campaign) -> None:
    """Do the operation here; print the calls that the shim counts, if there is one."""
    marks = 0

    def mark() -> None:
        nonlocal marks
        marks += 1
        if not shim.present:
            os.path.exists("/MARK")
        elif marks == 1:
            shim.arm("kill", 0)
        else:
            print(*shim.calls("kill", shim.disarm()).values())

    campaign._restore()
    rehearse(campaign.here, campaign.driver, campaign.name, mark)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("place", type=Path)
    parser.add_argument("--driver", choices=DRIVERS, action="append")
    parser.add_argument("--scene", choices=SCENES, action="append")
    parser.add_argument("--fault", choices=shim.FAULTS, action="append")
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--trace", action="store_true")
    arguments = parser.parse_args()
    shim.adopt_orphans()
    total = failed = 0
    for scene in arguments.scene or SCENES:
        for driver in arguments.driver or DRIVERS:
            campaign = Campaign(arguments.place / f"{driver}-{scene}".replace(" ", "-"), driver, scene)
            if arguments.trace:
                trace(campaign)
                continue
            campaign.run(arguments.fault or shim.FAULTS, arguments.points)
            total += campaign.points
            failed += len(campaign.failures)
            shutil.rmtree(campaign.place)
    print(f"{total} points, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
