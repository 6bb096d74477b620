"""One call of `Store` in a process of its own, as containers/storage's bats tests run command after command.

Starting Python and importing everything takes ten times as long as most calls.  So a process that has only
imported the library, and opened nothing, forks for each step: what runs the step shares nothing with the step
before but the store on disk.

``python -m support_real.storage_steps METHOD [POSITIONAL, ...] {KEYWORD: ...}`` is one step by itself.
The store is the one that the environment names.  Bytes and streams are written as they are, all else as JSON.
The argument "@stdin" is what comes in there.  Errors go to stderr as ``Class: message``, and the exit code is
125; any other exception ends the step with a traceback, which no test takes for an error.
"""

import atexit
import dataclasses
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from support_real.commands import Place

from fusestore.driver.api import Change
from fusestore.errors import FusestoreError
from fusestore.store.storage import Store

STDIN = "@stdin"
_DEADLINE = 60  # seconds for one step
_COMMAND = (sys.executable, "-bb", "-m", "support_real.storage_steps")
_TESTS = str(Path(__file__).parents[1])


class Failed(Exception):
    """A step that failed as it should: the error's class and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind, self.message = kind, message


@dataclass(frozen=True)
class Steps:
    """Calls on the store at `place`, each in a process of its own; `more` is added to the environment."""

    place: Place
    more: dict[str, str] = field(default_factory=dict)

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [_TESTS, os.environ.get("PYTHONPATH")]))
        return {**self.place.environment(), **self.more, "PYTHONPATH": path}

    def start(self, method: str, *arguments, **keywords) -> subprocess.Popen[bytes]:
        """Start a step that is to be killed, or to run beside others."""
        return subprocess.Popen(
            [*_COMMAND, method, json.dumps(arguments), json.dumps(keywords)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(),
        )

    def raw(self, method: str, *arguments, data: bytes = b"", **keywords) -> bytes:
        """What a call writes; `data` is on its stdin.  Raises Failed."""
        request = json.dumps([self._environment(), method, arguments, keywords], default=str).encode()
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(data)
            given.seek(0)
            socket.send_fds(_server(), [request], [given.fileno(), out.fileno(), err.fileno()])
            code = int(_server().recv(16))
            for file in (out, err):
                file.seek(0)
            said = err.read().decode(errors="replace")
            if code == 125 and said.count("\n") == 1:
                raise Failed(*said.rstrip("\n").split(": ", 1))
            assert (code, said) == (0, ""), said
            return out.read()

    def __call__(self, method: str, *arguments, **keywords):
        """What a call returns."""
        return json.loads(self.raw(method, *arguments, **keywords))

    def mount(self, name: str) -> Path:
        return Path(self("mount", name))

    def ids(self, what: str) -> list[str]:
        return [item["id"] for item in self(what)]


@functools.cache
def _server() -> socket.socket:
    """The channel to the process that forks; it ends with us."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_TESTS, os.environ.get("PYTHONPATH", "")])}
    with its:
        process = subprocess.Popen([*_COMMAND, str(its.fileno())], pass_fds=[its.fileno()], env=environment)
    ours.settimeout(_DEADLINE)
    atexit.register(process.wait)
    atexit.register(ours.close)  # the first to run
    return ours


# -- in the other processes ---------------------------------------------------------------------------


def _serve(channel: socket.socket) -> None:
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 18, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            channel.close()
            for number, fd in enumerate(fds):
                os.dup2(fd, number)
                os.close(fd)
            environment, method, arguments, keywords = json.loads(message)
            os.environ.clear()
            os.environ.update(environment)
            os._exit(_step(method, arguments, keywords))
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(pid, 0)
        channel.send(b"%d" % os.waitstatus_to_exitcode(status))


def _step(method: str, arguments: list, keywords: dict) -> int:
    arguments = [sys.stdin.buffer if argument == STDIN else argument for argument in arguments]
    keywords = {key: sys.stdin.buffer if value == STDIN else value for key, value in keywords.items()}
    if method.startswith("set_") and method.endswith(("_big_data", "_file")):
        arguments[2] = arguments[2].encode()
    try:
        with Store() as store:
            _write(getattr(store, method)(*arguments, **keywords))
            sys.stdout.flush()
    except (FusestoreError, OSError) as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
        return 125
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def _write(result) -> None:
    if isinstance(result, bytes):
        sys.stdout.buffer.write(result)
    elif hasattr(result, "read"):
        with result:
            shutil.copyfileobj(result, sys.stdout.buffer)
    else:
        if isinstance(result, list) and result and isinstance(result[0], Change):
            result = [f"{change.kind.value} {os.fsdecode(change.path)}" for change in result]
        print(json.dumps(result, default=_plain))


def _plain(value):
    if dataclasses.is_dataclass(value):
        found = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return found | ({"digests": value.digests} if hasattr(value, "digests") else {})
    return os.fspath(value) if isinstance(value, os.PathLike) else dict(value)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        with socket.socket(fileno=int(sys.argv[1])) as channel:
            _serve(channel)
    else:
        sys.exit(_step(sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])))
