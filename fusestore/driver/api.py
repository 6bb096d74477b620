"""The contract between stores and graphdrivers.

Method names and meanings are moby's (``daemon/graphdriver/driver.go``) and containers/storage's; what differs
is said here.  A layer that a store makes is *staged*: `Driver.stage` makes it under the store's ``tmp/``,
locked, and nothing can mount or name it before `Driver.apply_diff` has made its content durable and
`Driver.publish` moved it into place with one rename.  A process that dies in between leaves only a directory
under ``tmp/`` that the next one removes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fusestore.digest import CacheID, Readable

if TYPE_CHECKING:
    from fusestore.driver.layout import LayerSpec
    from fusestore.driver.union.tree import Union
    from fusestore.tar import Record


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a layer may unpack to before it is refused as hostile (reliability.md S7-S9).

    `size`: bytes of file content and xattrs, holes not counted.  `entries`: members of the tar, and
    directories that they only imply.  `memory`: bytes that may be needed to remember the paths of
    directories, whiteouts and hard links until the end; the largest image we know needs 40 MB.
    """

    size: int = 1 << 40
    entries: int = 5_000_000
    memory: int = 256 << 20


#: The uids and the gids of the entries of a tar, each sorted.
Owners = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What `Driver.apply_diff` found out.

    `size` counts the bytes of files in the layer, each inode once, directories not at all.  `reproducible`
    is False when the tar held something twice or replaced its own entries, so that it cannot be put together
    again from the tree.  `owners` is None where they are too many to be remembered.
    """

    size: int
    reproducible: bool
    entries: int
    owners: Owners | None = None


class ChangeKind(Enum):
    """What happened to a path; the values are the letters of ``podman diff``."""

    MODIFY = "C"
    ADD = "A"
    DELETE = "D"


class Change(NamedTuple):
    """A path of a layer, relative to the root, and what the layer does to it."""

    kind: ChangeKind
    path: bytes


class Usage(NamedTuple):
    """What a layer's own files take: bytes, each inode once and directories not at all; and inodes."""

    size: int
    inodes: int


class Held(Protocol):
    """Something kept until it is closed."""

    def close(self) -> None:
        """Let go.  May be called twice."""


class FileGetter(Held, Protocol):
    """The files of one layer (moby: ``FileGetCloser``)."""

    def get(self, name: bytes) -> int:
        """The file that the layer's tar calls `name`, as an fd for the caller to close.

        Raises FileNotFoundError.
        """


class Driver(Protocol):
    """What a store asks of a graphdriver.  Every id is a `CacheID`; all methods may raise OSError.

    `parent` None means: nothing below.  Methods that need a layer that is not there raise FileNotFoundError.
    """

    @property
    def name(self) -> str:
        """The driver's name, also the name of its directory: ``fuse`` or ``vfs``."""

    # -- making layers so that a crash leaves nothing -------------------------------------------------

    def stage(
        self,
        cache_id: CacheID,
        parent: CacheID | None,
        *,
        read_write: bool = False,
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Stage a new empty layer on top of `parent`; an RW one is durable then.  Freezes the parent.

        Raises as `create_read_write`.
        """

    def borrow(self, cache_id: CacheID, parent: CacheID | None, spec: LayerSpec) -> Held:
        """Make a layer of files that another store keeps, publish it and keep it held; see `publish`.

        It takes no changes, and no byte of it is ever written or deleted.  Raises NotSupported, ValueError.
        """

    def borrowed(self, cache_id: CacheID) -> LayerSpec | None:
        """Where the files of a borrowed layer are, or were; None for a layer that has its own.

        When they are gone, whatever needs them raises CorruptStore; `exists` and `removing` do not.
        """

    def freeze(self, cache_id: CacheID) -> None:
        """Make an RW layer one that others can be put on; from its next mount on it takes no changes."""

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

    def notes(self, cache_id: CacheID) -> Path:
        """A directory that is published and removed with the layer, where the store may keep files."""

    # -- the graphdriver contract (moby: ProtoDriver, DiffDriver) -------------------------------------

    def create(
        self,
        cache_id: CacheID,
        parent: CacheID | None = None,
        *,
        mount_label: str = "",
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Make an empty layer; like `create_read_write`, but with no limit on its size."""

    def create_read_write(
        self,
        cache_id: CacheID,
        parent: CacheID | None = None,
        *,
        mount_label: str = "",
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Make an empty layer that takes changes until it gets a child.

        Raises NotSupported for a limit that the filesystem cannot set, ValueError for an unknown option.
        """

    def create_from_template(
        self, cache_id: CacheID, template: CacheID, *, storage_opt: Mapping[str, str] | None = None
    ) -> None:
        """Make a layer with the content of `template` that takes changes (containers/storage)."""

    def remove(self, cache_id: CacheID) -> None:
        """Delete a layer; one that is not there is no error.  Raises LayerInUse, ValueError."""

    def exists(self, cache_id: CacheID) -> bool:
        """True for a published layer."""

    def list_layers(self) -> list[CacheID]:
        """Every published layer."""

    def is_read_write(self, cache_id: CacheID) -> bool:
        """True for a published layer that takes changes."""

    def get(self, cache_id: CacheID) -> bytes:
        """Make the merged view of the layer and its parents available; its path.  Counted."""

    def mountpoint(self, cache_id: CacheID) -> Path:
        """The path that `get` gives."""

    def put(self, cache_id: CacheID) -> None:
        """Give back one `get`; the last one takes the view away.  One too many does nothing."""

    def mounted(self, cache_id: CacheID) -> int:
        """How many `get` of all processes have not been given back."""

    def counted(self) -> list[CacheID]:
        """The layers that somebody has got, or had."""

    def abandon(self, cache_id: CacheID) -> None:
        """Take the merged view away, whoever has got it."""

    def union(self, cache_id: CacheID) -> AbstractContextManager[Union]:
        """The merged view as a library object, without any mount; the layer is held meanwhile."""

    def apply_diff(
        self,
        cache_id: CacheID,
        stream: Readable,
        limits: Limits | None = None,
        record: Record | None = None,
    ) -> Applied:
        """Unpack an uncompressed tar, read to its end, into a layer that is staged or takes changes.

        It is durable then.  Raises InvalidLayer, LayerInUse when the layer is mounted.
        """

    def changes(self, cache_id: CacheID, parent: CacheID | None) -> list[Change]:
        """What makes the layer out of `parent`, sorted by path; fast for its own parent, slow for others."""

    def diff(self, cache_id: CacheID, parent: CacheID | None) -> Iterator[bytes]:
        """The same as a tar in pieces, the same bytes each time.

        The time of whiteouts is SOURCE_DATE_EPOCH, else 0.
        """

    def diff_size(self, cache_id: CacheID, parent: CacheID | None) -> int:
        """Bytes of the files in that tar, each inode once: what `apply_diff` of it will say."""

    def diff_getter(self, cache_id: CacheID) -> FileGetter:
        """The layer's own files by the names that its tar gave them; close it."""

    def usage(self, cache_id: CacheID) -> Usage:
        """What the layer's own files take (containers/storage: ``ReadWriteDiskUsage``)."""

    def metadata(self, cache_id: CacheID) -> dict[str, str]:
        """Directories of the layer under overlay2's names: ``UpperDir``, ``LowerDir``, ``WorkDir``, ..."""

    def status(self) -> list[tuple[str, str]]:
        """Facts about the driver and its filesystem, as rows of name and value."""

    def cleanup(self) -> None:
        """Delete what dead processes left behind."""
