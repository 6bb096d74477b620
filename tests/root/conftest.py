"""Root builds, an unprivileged user (FUSESTORE_TEST_USER in the environment) runs fusestore."""

import os
import pwd
import shutil
import tempfile
from pathlib import Path

import pytest
from support.fsck import problems
from support_real.commands import Place

assert os.geteuid() == 0, "tests/root is for root; scripts/test runs it"


@pytest.fixture(scope="session")
def user():
    """The account of the unprivileged user."""
    return pwd.getpwnam(os.environ["FUSESTORE_TEST_USER"])


@pytest.fixture(scope="session")
def as_user(user):
    """What to put before a command to run it as the user, in the user's environment."""
    return ("runuser", "-u", user.pw_name, "--", "env", f"HOME={user.pw_dir}", f"USER={user.pw_name}")


@pytest.fixture(scope="session")
def ground(user):
    """A directory of the user's that root may put things into."""
    directory = Path(tempfile.mkdtemp(prefix="fusestore-root-"))
    os.chown(directory, user.pw_uid, user.pw_gid)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place(ground, as_user, tmp_path):
    """A store that the user makes; pass ``before=as_user``."""
    yield from _place(ground / tmp_path.name, as_user)


@pytest.fixture(scope="module")
def shared(ground, as_user, request):
    """The same for all tests of a module."""
    yield from _place(ground / request.module.__name__, as_user)


def _place(directory, as_user):
    place = Place(directory / "store", directory / "run")
    yield place
    place.run("unmount", "--all", before=as_user)
    place.unmount_all()
    left = problems(place.root) if (place.root / "tmp").exists() else []
    place.destroy()
    shutil.rmtree(directory, ignore_errors=True)
    assert left == []
