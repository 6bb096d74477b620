"""Run every check on some filesystems: ``python -m support_real.posix DIRECTORY COMMANDS``

COMMANDS is JSON, {name: command that mounts}; {options} and {merged} in a command stand for the overlay's
options and its mountpoint.  The checks' objects are prepared once, in DIRECTORY/lower, which is the lower
layer of all; then a process of its own mounts each filesystem and does the checks on it.  What comes out is
JSON: for each filesystem the names of the checks, and of each failed one the reason.  A filesystem that hangs
is cut off after DEADLINE seconds, and then has no result.  DIRECTORY is deleted in any case.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

from support_real.posix import (
    case,
    chmod,
    chown,
    links,
    making,
    opening,
    paths,
    removing,
    rename,
    sizes,
    times,
    unlinked,
)

MODULES = (paths, making, chmod, chown, opening, sizes, links, removing, rename, times, unlinked)
DEADLINE = 80


class Case:
    """One check in one situation, in a directory of its own."""

    def __init__(self, name, steps, situation, number):
        self.name, self.steps, self.situation, self.place = name, steps, situation, str(number)
        self.failure = None

    def begin(self, top):
        """The check's first step, in a new directory."""
        self._do(top, lambda: case.make("dir", self.place))
        self.go_on(top)

    def go_on(self, top):
        self._do(os.path.join(top, self.place), lambda: next(self.steps, None))

    def copy_up(self, top):
        self._do(os.path.join(top, self.place), _copy_up)

    def _do(self, where, step):
        """Leave no trace of the step in this process but its failure."""
        case.SITUATION = self.situation
        try:
            if self.failure is None:
                os.chdir(where)
                step()
        except Exception as exc:
            frames = [f for f in traceback.extract_tb(exc.__traceback__) if "support_real" in f.filename]
            self.failure = f"{type(exc).__name__}: {exc} in: {' > '.join(frame.line for frame in frames[2:])}"
        finally:
            os.chdir("/")
            os.umask(0o022)
            os.closerange(3, 256)


def all_cases():
    rows = (
        (f"{module.__name__.rpartition('.')[2]}.{name}({label}) {situation}", check(*row), situation)
        for module in MODULES
        for name, check in vars(module).items()
        for label, row in getattr(check, "rows", {}).items()
        for situation in check.situations
    )
    return [Case(*row, number) for number, row in enumerate(rows)]


def prepare(lowerdir, cases):
    """Put the objects of those checks that want them there into the lower layer."""
    for one in cases:
        if one.situation != "upper":
            one.begin(lowerdir)


def run(merged, cases):
    """Go through all checks; first everything is prepared, so that it is older than what the checks do."""
    for one in cases:
        if one.situation == "upper":
            one.begin(merged)
        elif one.situation == "copied":
            one.copy_up(merged)
    for one in cases:
        one.go_on(merged)
    failures = {one.name: one.failure for one in cases if one.failure is not None}
    return {"checks": [one.name for one in cases], "failures": failures}


def _copy_up():
    for _, names, files, directory in os.fwalk(".", topdown=False):
        for name in names + files:
            _touch(name, directory)
    _touch(".")


def _touch(path, directory=None):
    """Set an object's times to what they are."""
    st = os.stat(path, dir_fd=directory, follow_symlinks=False)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=directory, follow_symlinks=False)


def mount_and_run(directory, command, lowerdir, cases):
    for name in ("upper", "work", "merged"):
        (directory / name).mkdir(parents=True)
    options = f"lowerdir={lowerdir},upperdir={directory / 'upper'},workdir={directory / 'work'}"
    names = {"options": options, "merged": directory / "merged"}
    subprocess.run([word.format(**names) for word in command], check=True, stdin=subprocess.DEVNULL)
    (directory / "result").write_text(json.dumps(run(directory / "merged", cases)))


def _forked(function, *arguments):
    """The pid of a process that does this and no more."""
    if (child := os.fork()) == 0:
        try:
            function(*arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    return child


def main(directory, commands):
    os.umask(0o022)
    cases = all_cases()
    results = {}
    (directory / "lower").mkdir(parents=True)
    try:
        prepare(directory / "lower", cases)
        end = time.monotonic() + DEADLINE
        running = {
            name: _forked(mount_and_run, directory / name, command, directory / "lower", cases)
            for name, command in commands.items()
        }
        for name, child in running.items():
            if not select.select([os.pidfd_open(child)], [], [], end - time.monotonic())[0]:
                os.kill(child, signal.SIGKILL)
            if (result := directory / name / "result").exists():
                results[name] = json.loads(result.read_text())
    finally:
        for name in commands:
            subprocess.run(["umount", "-lf", directory / name / "merged"], check=False)
        subprocess.run(["rm", "-rf", "--one-file-system", "--", directory], check=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
