"""A store on a FUSE filesystem, which may be a network's: no shared memory, so no write-ahead log.

fuse-overlayfs is what there is to stand for one.  It keeps whiteouts for itself, so no layer here has any.
"""

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fusestore.store.database import Database, is_on_network

TESTS = Path(__file__).parents[1]


@pytest.fixture
def mountpoint(tmp_path):
    """A directory on fuse-overlayfs."""
    names = ("lower", "upper", "work", "merged")
    lower, upper, work, merged = (tmp_path / name for name in names)
    for name in names:
        (tmp_path / name).mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["fuse-overlayfs", "-o", options, merged], check=True, stderr=subprocess.DEVNULL)
    yield merged
    subprocess.run(["umount", "-l", merged], check=True)


def test_its_database_has_no_log(mountpoint):
    path = mountpoint / "store.db"
    assert is_on_network(path)
    assert not is_on_network(mountpoint.parent)
    with closing(Database(path)) as database, database.transaction() as execute:
        assert execute("PRAGMA journal_mode").fetchone()[0] == "delete"
        execute("INSERT INTO settings VALUES ('key', 'value')")
        assert set(os.listdir(mountpoint)) == {"store.db", "store.db-journal"}
        with closing(Database(path, read_only=True)) as other:
            assert other.select("SELECT * FROM settings") == []
    with closing(Database(path, read_only=True)) as other:
        assert [tuple(row) for row in other.select("SELECT * FROM settings")] == [("key", "value")]


@pytest.mark.parametrize("driver", ["vfs", "fuse"])
def test_many_processes_of_which_two_are_killed(mountpoint, driver):
    """See tests/t2_store/test_store_many_processes.py."""
    program = [sys.executable, "-bb", "-m", "support.store_machine", "8", "30", "--no-whiteouts"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [*program, "--driver", driver, "--place", mountpoint]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    print(answer.stdout)
    assert (answer.returncode, answer.stderr) == (0, "")
