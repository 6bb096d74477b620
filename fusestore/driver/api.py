"""The contract between stores and graphdrivers.

Method names and meanings are moby's (``daemon/graphdriver/driver.go``) and containers/storage's; what differs
is said here.  A new layer is *staged*: `create` makes it under the store's ``tmp/``, locked, and nothing can
mount or name it before `apply_diff` has made its content durable and `publish` moved it into place with one
rename.  A
process that dies in between leaves only a directory under ``tmp/`` that the next one removes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fusestore.digest import CacheID, Readable

if TYPE_CHECKING:
    from fusestore.driver.union.tree import Union


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a layer may unpack to before it is refused as hostile (reliability.md S7-S9).

    `size`: bytes of file content, holes not counted.  `entries`: members of the tar.
    """

    size: int = 1 << 40
    entries: int = 20_000_000


@dataclass(frozen=True, slots=True)
class Applied:
    """What `Driver.apply_diff` found out.

    `size` counts the bytes of files in the layer, each inode once, directories not at all.  `reproducible`
    is False when the tar held something twice or replaced its own entries, so that it cannot be put together
    again from the tree.
    """

    size: int
    reproducible: bool
    entries: int


class ChangeKind(Enum):
    """What happened to a path; the values are the letters of ``podman diff``."""

    MODIFY = "C"
    ADD = "A"
    DELETE = "D"


class Change(NamedTuple):
    """A path of a layer, relative to the root, and what the layer does to it."""

    kind: ChangeKind
    path: bytes


class Held(Protocol):
    """Something kept until it is closed."""

    def close(self) -> None:
        """Let go.  May be called twice."""


class Driver(Protocol):
    """What a store asks of a graphdriver.  Every id is a `CacheID`; all methods may raise OSError."""

    @property
    def name(self) -> str:
        """The driver's name, also the name of its directory: ``fuse`` or ``vfs``."""

    def create(self, cache_id: CacheID, parent: CacheID | None) -> None:
        """Stage a new empty layer on top of `parent`."""

    def apply_diff(self, cache_id: CacheID, stream: Readable, limits: Limits) -> Applied:
        """Unpack an uncompressed tar into the staged layer and make it durable.  Raises InvalidLayer."""

    def publish(self, cache_id: CacheID) -> Held:
        """Make the staged layer visible and keep it held.  Inside the transaction that names it."""

    def discard(self, cache_id: CacheID) -> None:
        """Throw a staged layer away; one that is not staged is no error."""

    def removing(self, cache_id: CacheID) -> AbstractContextManager[None]:
        """Lock a layer and, when the context ends without an exception, delete it.

        To be entered inside the transaction that unnames it, and left after.  Raises LayerInUse while anybody
        holds or mounts it; a layer that is not there is no error.
        """

    def hold(self, cache_id: CacheID) -> Held:
        """Keep the layer from being removed, by this or any other process.

        Raises FileNotFoundError when it is gone.
        """

    def exists(self, cache_id: CacheID) -> bool:
        """True for a published layer."""

    def list_layers(self) -> list[CacheID]:
        """Every published layer."""

    def union(self, cache_id: CacheID) -> AbstractContextManager[Union]:
        """The merged view as a library object, without any mount; the layer is held meanwhile.

        Raises FileNotFoundError when it is gone.
        """

    def get(self, cache_id: CacheID) -> bytes:
        """Make the merged view of the layer and its parents available; its path.  Counted."""

    def put(self, cache_id: CacheID) -> None:
        """Give back one `get`; the last one takes the view away."""

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """Directories of the layer under overlay2's names: ``UpperDir``, ``LowerDir``."""

    def status(self) -> list[tuple[str, str]]:
        """Facts about the driver and its filesystem, as rows of name and value."""
