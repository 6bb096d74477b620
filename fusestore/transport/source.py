"""What every place that images come from gives: a manifest, a configuration and layers, with names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fusestore.digest import DiffID, Digest, Readable


@dataclass(frozen=True, slots=True)
class LayerSource:
    """One layer's blob.  `digest` None: the source does not name it (docker archives name only diff IDs)."""

    diff_id: DiffID
    digest: Digest | None
    size: int
    open: Callable[[], AbstractContextManager[Readable]]


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image: full names it brings along, documents as the exact bytes, layers from the base up."""

    names: Sequence[str]
    manifest: bytes
    configuration: bytes
    layers: Sequence[LayerSource]


class Progress(Protocol):
    """Who wants to know how far an import is."""

    def start(self, what: str, size: int) -> None:
        """Work on a blob of `size` bytes begins; `what` is a short name."""

    def advance(self, count: int) -> None:
        """`count` more bytes of it are done."""

    def finish(self, outcome: str) -> None:
        """It is done: ``done``, or ``already exists``."""


class Quiet:
    """A `Progress` that says nothing."""

    def start(self, what: str, size: int) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def finish(self, outcome: str) -> None:
        """Nothing."""
