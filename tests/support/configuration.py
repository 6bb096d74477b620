"""A home with an environment and configuration files of its own."""

import os
from pathlib import Path

import pytest

_OURS = ("FUSESTORE_", "STORAGE_", "CONTAINERS_", "_CONTAINERS_", "XDG_", "CONTAINER_")


class Home:
    """A home directory; ``~`` stands for it in paths and values."""

    MAIN = ".config/fusestore/config.toml"
    DROP_INS = f"{MAIN}.d"

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory.resolve()
        self._monkeypatch = monkeypatch
        for name in list(os.environ):
            if name.startswith(_OURS):
                monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(self.directory))

    def path(self, text: str | None) -> str | None:
        """A path or value with ``~`` replaced."""
        return text and text.replace("~", str(self.directory))

    def environment(self, variables: dict[str, str]) -> None:
        """Set variables."""
        for name, value in variables.items():
            self._monkeypatch.setenv(name, self.path(value))

    def write(self, *lines: str, name: str = MAIN) -> Path:
        """Write a file, by default our own configuration."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        return path

    def graphroot(self, name: str, driver: str = "overlay") -> Path:
        """A directory in which containers/storage has begun a store."""
        path = self.directory / name
        (path / f"{driver}-images").mkdir(parents=True)
        (path / f"{driver}-images/images.lock").touch()
        return path
