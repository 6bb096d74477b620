"""Drivers on a directory of the test's own."""

import json

import pytest

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver


@pytest.fixture
def driver(tmp_path):
    return FuseDriver(tmp_path / "root", tmp_path / "run")


@pytest.fixture
def vfs(tmp_path):
    return VfsDriver(tmp_path / "root", tmp_path / "run")


@pytest.fixture(params=["device", "name"])
def any_spelling(request, tmp_path):
    """A driver that writes whiteouts as devices, and one that writes them as ``.wh.`` files."""
    home = tmp_path / "root" / "fuse"
    home.mkdir(parents=True)
    (home / "home.json").write_text(json.dumps({"ownership": "override", "whiteouts": request.param}))
    return FuseDriver(tmp_path / "root", tmp_path / "run")
