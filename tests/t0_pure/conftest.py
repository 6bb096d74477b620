"""A home with an environment and configuration files of the test's own."""

import pytest
from support.configuration import Home


@pytest.fixture
def home(tmp_path, monkeypatch) -> Home:
    return Home(tmp_path, monkeypatch)
