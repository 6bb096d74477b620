"""Rootless podman and buildah with a home of their own, whose mounts a program makes for them.

What they need on a machine without systemd: no cgroups, no network, events in a file.  crun looks at
/sys/fs/cgroup all the same and refuses some of what it may find there (cgroups v1 and v2 side by side); in
our mount namespaces that directory is empty.

All that podman starts lives in its user namespace, which its "pause" process keeps, or in one below:
whatever else is in there was left behind.  The kernel is asked, not podman.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from support_real import steps, tars
from support_real.commands import eventually, is_running, remove_all

_CONTAINERS_CONF = """
[containers]
cgroups = "disabled"
log_driver = "none"
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
"""
_STORAGE_CONF = """
[storage]
driver = "overlay"
graphroot = "{graph}"
runroot = "{run}/containers"
[storage.options.overlay]
mount_program = "{program}"
{options}
"""
HIDE_CGROUPS = "mount -t tmpfs none /sys/fs/cgroup"
IMAGE = "localhost/image"
NEVER_PULL = "--pull=never"
_NS_GET_PARENT = 0xB702  # linux/nsfs.h


def members(namespace: str) -> list[int]:
    """All processes that run in a user namespace, or in one below it."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if namespace in _namespaces(pid) and is_running(pid)]


def _namespaces(pid: int) -> list[str]:
    """The user namespace of a process and those above it, as far as they are ours to see."""
    found = []
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
        while True:
            try:
                found.append(os.readlink(f"/proc/self/fd/{fd}"))
                above = fcntl.ioctl(fd, _NS_GET_PARENT)
            finally:
                os.close(fd)
            fd = above
    return found


class Engine:
    """podman of one user; `before` is put before commands to become that user, if that is another one.

    `options` are lines for storage.conf.
    """

    def __init__(self, program: str, options: str = "", *, before=(), owner=(-1, -1)) -> None:
        # Below this lie sockets, and their paths end at 107 bytes.
        self.top = Path(tempfile.mkdtemp(prefix="fusestore-"))
        self._before, self._namespace = before, ""
        self._options = options
        self._environment = {
            name: os.environ[name] for name in ("LANG", "PATH", "PYTHONPATH") if name in os.environ
        } | {
            "HOME": f"{self.top}/home",
            "TMPDIR": f"{self.top}/tmp",
            "XDG_RUNTIME_DIR": f"{self.top}/run",
            "CONTAINERS_CONF": f"{self.top}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{self.top}/storage.conf",
        }
        self.use(program)
        (self.top / "containers.conf").write_text(_CONTAINERS_CONF)
        for directory in (self.top, *(self.top / name for name in ("home", "run", "tmp", "work"))):
            directory.mkdir(mode=0o700, exist_ok=True)
            os.chown(directory, *owner)

    @property
    def graph(self) -> Path:
        """Where podman without root has its store, whatever storage.conf says."""
        return self.top / "home/.local/share/containers/storage"

    @property
    def work(self) -> Path:
        """Where commands run."""
        return self.top / "work"

    def use(self, program: str) -> None:
        """From now on `program` makes the mounts."""
        settings = {
            "graph": self.graph,
            "run": self.top / "run",
            "program": program,
            "options": self._options,
        }
        (self.top / "storage.conf").write_text(_STORAGE_CONF.format(**settings))

    def start(self) -> None:
        """Let podman make its namespaces."""
        self.inside(HIDE_CGROUPS)
        self._namespace = os.readlink(f"/proc/{self._pause()}/ns/user")
        assert self._namespace != os.readlink("/proc/self/ns/user")  # `destroy` kills all that is in there

    def run(self, *command, **more) -> subprocess.CompletedProcess[bytes]:
        environment = [f"{name}={value}" for name, value in self._environment.items()]
        return subprocess.run(
            [*self._before, "env", "-i", *environment, *map(str, command)],
            **({"cwd": self.work, "stdin": subprocess.DEVNULL} | more),
            capture_output=True,
            timeout=60,
            check=False,
        )

    def ok(self, *command, **more) -> bytes:
        """Run a command, which must succeed; its output."""
        result = self.run(*command, **more)
        assert result.returncode == 0, (command, result.stdout, result.stderr.decode(errors="replace"))
        return result.stdout

    def podman(self, *arguments, **more) -> str:
        """Run podman; its output without the last newline."""
        return self.ok("podman", *arguments, **more).decode().removesuffix("\n")

    def inside(self, script: str) -> str:
        """Run a script of the shell in podman's namespaces."""
        return self.podman("unshare", "sh", "-euc", script)

    def shell(self, image: str, script: str, *options) -> str:
        """What a container of an image, deleted at its end, says to `script`."""
        return self.podman("run", "--rm", NEVER_PULL, *options, image, "sh", "-euc", script)

    def exported(self, container: str) -> bytes:
        """The tar of a container."""
        self.podman("export", "--output=exported.tar", container)
        return (self.work / "exported.tar").read_bytes()

    def tree(self, image: str) -> bytes:
        """The tar of a new container of an image."""
        container = self.podman("create", NEVER_PULL, image)
        archive = self.exported(container)
        self.podman("rm", container)
        return archive

    def _pause(self) -> int:
        return int((self.top / "run/libpod/tmp/pause.pid").read_text())

    def _members(self) -> list[int]:
        """Everything that podman has running."""
        return members(self._namespace)

    def processes(self) -> list[str]:
        """The command lines of all that podman has left running."""
        pause, found = self._pause(), []
        for pid in self._members():
            with contextlib.suppress(OSError):
                if pid != pause:
                    found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        return found

    def servers(self) -> list[int]:
        """The processes behind mounts: what lives where podman mounts, but podman's pause and conmon."""
        pause = self._pause()
        where = os.readlink(f"/proc/{pause}/ns/mnt")
        found = []
        for pid in self._members():
            with contextlib.suppress(OSError):
                beside = os.readlink(f"/proc/{pid}/ns/mnt") == where
                if beside and pid != pause and Path(f"/proc/{pid}/comm").read_text() != "conmon\n":
                    found.append(pid)
        return found

    def mounts(self) -> list[str]:
        """What is mounted below our directory in podman's mount namespace.

        Not podman's bind mount of its store on itself, which stays when two podmans end at the same time.
        """
        table = Path(f"/proc/{self._pause()}/mountinfo").read_text().splitlines()
        found = [place for line in table if (place := line.split(" ")[4]).startswith(f"{self.top}/")]
        return [place for place in found if place != f"{self.graph}/overlay"]

    def load_steps(self, owners: bool) -> None:
        """Build `IMAGE` and what it is made from."""
        self.build(steps.base(), steps.CONTAINERFILE, f"--change=ENV OWNERS={'yes' if owners else ''}")

    def build(self, base: Iterable[tars.Entry], containerfile: str, *options: str) -> None:
        """Build `IMAGE` from a first layer, localhost/base, and a recipe."""
        (self.work / "base.tar").write_bytes(tars.tar(base))
        (self.work / "Containerfile").write_text(containerfile)
        self.podman("import", *options, "base.tar", "localhost/base")
        self.podman("build", NEVER_PULL, f"--tag={IMAGE}", ".")

    def wait_until_idle(self) -> None:
        """No process and no mount is left; a server may need a moment after its unmount."""
        eventually(lambda: not self.processes(), f"the end of {self.processes()}")
        assert self.mounts() == []

    def stored(self) -> list[str]:
        """The layers, images and containers that podman's files name, and the directories of layers."""
        found = [path.name for path in (self.graph / "overlay").iterdir() if len(path.name) == 64]
        found += [path.name for path in (self.graph / "overlay/l").iterdir()]
        for kind in ("layers", "images", "containers"):
            index = self.graph / f"overlay-{kind}/{kind}.json"
            found += [item["id"] for item in json.loads(index.read_bytes())] if index.exists() else []
        return found

    def clean(self) -> None:
        """Delete all containers; then no process and no mount may be left."""
        self.podman("rm", "--all", "--force", "--time=0")
        self.wait_until_idle()

    def remove_everything(self) -> None:
        """Let podman delete all it has; then nothing of it may be left."""
        self.clean()
        self.podman("rmi", "--all", "--force")
        self.wait_until_idle()
        assert self.stored() == []

    def destroy(self) -> None:
        """End every process of podman's the hard way, which takes the mounts along; delete the directory."""
        eventually(self._killed, "the end of podman's namespace")
        remove_all(self.top)

    def _killed(self) -> bool:
        running = self._members()
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not running
