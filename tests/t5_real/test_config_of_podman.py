"""Podman's own word on where its store is, and ours; and the files of the system, which only root can write.

Podman runs with the test's home and environment, in this very process's: what we find is to be what it says,
whatever generation it is of.  The files of the system are those of a mount namespace.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.configuration import Home
from support_real.commands import eventually, namespace
from support_real.engine import members

from fusestore import config, podman
from fusestore.errors import InvalidOption

DEFAULT = ".local/share/containers/storage"
USERS = ".config/containers/storage.conf"


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = Home(tmp_path, monkeypatch)
    home.environment({"XDG_RUNTIME_DIR": "~/run"})
    (home.directory / "run").mkdir(mode=0o700)
    yield home
    end_podman(home)


def end_podman(home: Home) -> None:
    """End the process that keeps podman's namespace."""
    with contextlib.suppress(FileNotFoundError):
        pid = int((home.directory / "run/libpod/tmp/pause.pid").read_text())
        kept = os.readlink(f"/proc/{pid}/ns/user")
        assert kept != os.readlink("/proc/self/ns/user")
        for member in members(kept):
            os.kill(member, 9)
        eventually(lambda: not members(kept), "the end of podman's namespace")


def said() -> dict:
    """What podman says of its store."""
    command = ["podman", "info", "--format", "json"]
    answer = subprocess.run(command, capture_output=True, check=True, timeout=60)
    return json.loads(answer.stdout)["store"]


def test_the_default_store_is_podmans(home: Home):
    store = said()
    assert podman.graphroots() == podman.stores() == [Path(store["graphRoot"])]
    assert podman.stores() == [home.directory / DEFAULT]


def test_a_store_in_the_users_file_is_podmans(home: Home):
    home.write("[storage]", "driver = 'vfs'", "graphroot = '$HOME/$UID/store'", name=USERS)
    store = said()
    assert store["graphRoot"] == f"{home.directory}/{os.getuid()}/store"
    assert podman.graphroots() == podman.stores() == [Path(store["graphRoot"])]


def test_of_two_stores_podman_says_which_is_its_own(home: Home):
    lines = ("[storage]", "driver = 'vfs'", f"runroot = '{home.directory}/run/r'")
    home.write(*lines, f"graphroot = '{home.directory}/named'", name="named.conf")
    said()  # it makes the default one
    home.environment({"CONTAINERS_STORAGE_CONF": "~/named.conf"})
    home.graphroot("named", "vfs")
    assert podman.graphroots() == [home.directory / "named", home.directory / DEFAULT]
    # Podman 4 takes the default one without root all the same, podman 5 the one that the file names.
    assert podman.stores() == [Path(said()["graphRoot"])]


def test_podman_without_a_store_makes_one_when_it_is_asked(home: Home):
    assert podman.graphroots() == []
    assert config.options(additional_stores=["podman"]).additional_stores == (home.directory / DEFAULT,)
    assert podman.graphroots() == [home.directory / DEFAULT]


def test_without_podman_and_a_store_one_line_says_what_to_do(home: Home):
    home.environment({"PATH": "~/empty"})
    with pytest.raises(InvalidOption) as caught:
        config.options(additional_stores=["podman"])
    assert str(caught.value) == (
        f"podman: it has no store at {home.directory}/{DEFAULT}; "
        "name the directory of one, or let podman pull an image"
    )


def test_podmans_own_store_is_refused_as_ours(home: Home):
    own = said()["graphRoot"]
    result = subprocess.run(
        [sys.executable, "-m", "fusestore", "--root", own, "images"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (125, b"")
    assert result.stderr.decode().count("\n") == 1
    assert f"--additional-store {own}" in result.stderr.decode()
    assert not (Path(own) / "store.db").exists()


# -- files of the system ------------------------------------------------------------------------------

VENDOR, ADMINISTRATOR, USER = "usr/share/containers", "etc/containers", ".config/containers"
_FINDER = """
import json, os, sys
from fusestore import podman
for line in sys.stdin:
    os.environ.update(json.loads(line))
    print(json.dumps([str(path) for path in podman.graphroots()]), flush=True)
"""


class System:
    """A process to which directories of ours are those of the system; it looks for stores."""

    def __init__(self, top: Path, finder: subprocess.Popen) -> None:
        self._top, self._finder = top, finder

    def graphroots(self, files: dict[str, str], uid: str) -> list[str]:
        """What is found with these files, for the user with this id; all is below one directory."""
        for directory in (VENDOR, ADMINISTRATOR, USER):
            for child in (self._top / directory).iterdir():
                shutil.rmtree(child) if child.is_dir() else child.unlink()
        for name, text in files.items():
            path = self._top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"[storage]\n{text}\n")
        self._finder.stdin.write(json.dumps({"HOME": str(self._top), "_CONTAINERS_ROOTLESS_UID": uid}) + "\n")
        self._finder.stdin.flush()
        return [os.path.relpath(path, self._top) for path in json.loads(self._finder.stdout.readline())]


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    top = tmp_path_factory.mktemp("system")
    for name in (VENDOR, ADMINISTRATOR, USER):
        (top / name).mkdir(parents=True)
    for name in ("a", "b", DEFAULT):
        (top / name).mkdir(parents=True)
        (top / name / "storage.lock").touch()
    mounts = [f"mount --bind '{top}/{name}' /{name}" for name in (VENDOR, ADMINISTRATOR)]
    # Root's own default store is not a matter of this test.
    with namespace("\n".join([*mounts, "mount -t tmpfs none /var/lib"])) as inside:
        finder = subprocess.Popen(
            [
                *inside,
                "env",
                "-i",
                f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}",
                sys.executable,
                "-c",
                _FINDER,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with finder:
            yield System(top, finder)
            finder.stdin.close()


A, B = "graphroot = '$HOME/a'", "graphroot = '$HOME/b'"
PATH_A, PATH_B = "rootless_storage_path = '$HOME/a'", "rootless_storage_path = '$HOME/b'"


@pytest.mark.parametrize(
    ("files", "uid", "found"),
    [
        # Up to 5, a graphroot of the system's is root's alone; a path for those without root is theirs.
        ({f"{VENDOR}/storage.conf": A}, "7", ["a", DEFAULT]),
        ({f"{VENDOR}/storage.conf": A}, "0", ["a"]),
        ({f"{VENDOR}/storage.conf": PATH_A}, "7", ["a", DEFAULT]),
        ({f"{VENDOR}/storage.conf": PATH_A}, "0", []),
        # One file counts: the user's, else the administrator's, else the vendor's.
        ({f"{VENDOR}/storage.conf": A, f"{ADMINISTRATOR}/storage.conf": B}, "0", ["b"]),
        ({f"{VENDOR}/storage.conf": PATH_A, f"{ADMINISTRATOR}/storage.conf": PATH_B}, "7", ["b", DEFAULT]),
        ({f"{ADMINISTRATOR}/storage.conf": PATH_A, f"{USER}/storage.conf": B}, "7", ["b", DEFAULT]),
        ({f"{ADMINISTRATOR}/storage.conf": A, f"{USER}/storage.conf": B}, "0", ["b", "a"]),
        # But up to 5, a user's file without a place leaves the path in the system's.
        (
            {f"{ADMINISTRATOR}/storage.conf": PATH_A, f"{USER}/storage.conf": "driver = 'vfs'"},
            "7",
            [DEFAULT, "a"],
        ),
        # Files dropped in are for all, for root, for others or for one of them.
        ({f"{VENDOR}/storage.conf.d/1.conf": A}, "7", ["a", DEFAULT]),
        ({f"{VENDOR}/storage.conf.d/1.conf": A}, "0", ["a"]),
        ({f"{VENDOR}/storage.rootful.conf.d/1.conf": A}, "7", [DEFAULT]),
        ({f"{VENDOR}/storage.rootful.conf.d/1.conf": A}, "0", ["a"]),
        ({f"{VENDOR}/storage.rootless.conf.d/1.conf": A}, "7", ["a", DEFAULT]),
        ({f"{VENDOR}/storage.rootless.conf.d/1.conf": A}, "0", []),
        ({f"{ADMINISTRATOR}/storage.rootless.conf.d/7/1.conf": A}, "7", ["a", DEFAULT]),
        ({f"{ADMINISTRATOR}/storage.rootless.conf.d/8/1.conf": A}, "7", [DEFAULT]),
        # They are read by name, wherever they are; of one name, the administrator's hides the vendor's.
        ({f"{VENDOR}/storage.conf.d/2.conf": A, f"{ADMINISTRATOR}/storage.conf.d/1.conf": B}, "0", ["a"]),
        ({f"{VENDOR}/storage.conf.d/1.conf": A, f"{ADMINISTRATOR}/storage.conf.d/1.conf": B}, "0", ["b"]),
    ],
)
def test_files_of_the_system_are_read_as_both_generations_do(system, files, uid, found):
    assert system.graphroots(files, uid) == found
