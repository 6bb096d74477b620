"""Names, and crash-safe creation and removal, of a driver's home; what a mount is made of.

::

    <root>/<driver>/home.json              ownership and whiteout spelling, chosen when the home was made
    <root>/<driver>/<cache-id>/diff/       the layer's own files
                              /work/       of an RW layer only: its union works there
                              /lower       its parents, topmost first: l/AAA:l/BBB, as in overlay2
                              /links       groups of names that are one file (JSON lines)
                              /lock        flocked: shared by holders and mounts, exclusive to remove
    <root>/<driver>/l/<26 letters>         -> ../<cache-id>/diff, so that mount options stay short
    <root>/tmp/<anything>                  half-made or half-removed, each with a lock of its own

A layer is made under ``tmp/`` with its lock held, so that nobody sees half of it, and appears by one rename
after its content is on disk.  It goes the same way back: renamed into ``tmp/``, then deleted.  Whatever
lies in ``tmp/`` unlocked belongs to a process that died, and `sweep` deletes it.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fusestore.digest import CacheID, parse_cache_id
from fusestore.driver import whiteout
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import CorruptStore, LayerInUse, NotSupported
from fusestore.files import fsync_directory, lock, opened, remove_tree, sweeping, write_durably
from fusestore.syscalls import owns_every_id, syncfs

_SHORT = 26  # letters of a link's name, as in overlay2


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Where one layer of a mount is, the groups of its hard links, and the file to lock while it is used."""

    path: str
    links: str | None = None
    lock: str | None = None


@dataclass(frozen=True, slots=True)
class UpperSpec:
    """The layer that takes the changes of a writable mount; see `fusestore.driver.union.upper.Upper`."""

    path: str
    work: str
    lock: str | None = None
    spelling: Spelling | None = None
    metacopy: bool = True
    redirect: bool = True
    plain_symlinks: bool = False
    sync: bool = True

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UpperSpec:
        """The inverse of ``asdict``, whose enums JSON has by value."""
        return cls(**{**data, "spelling": Spelling(data["spelling"]) if data["spelling"] else None})


@dataclass(frozen=True, slots=True)
class View:
    """How a mount shows its tree; the options of ``fusestore-overlay`` that are no mount flags.

    `as_root`: whoever may enter acts as root; with `root_is_me` they are shown as the owner of root's
    files, because the kernel refuses others some calls before we are asked (ACLs, links to setuid files).
    `uids` and `gids` are triples (stored, shown, count); `squash_uid` and `squash_gid` are shown instead of
    any.  `timeout` is in seconds.
    """

    as_root: bool = True
    root_is_me: bool = False
    uids: tuple[tuple[int, int, int], ...] = ()
    gids: tuple[tuple[int, int, int], ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    static_nlink: bool = False
    xattrs: bool = True
    acls: bool = False
    timeout: float = 1e9
    writeback: bool = True
    fsync: bool = True


@dataclass(frozen=True, slots=True)
class MountSpec:
    """All that the server behind a mount needs to know.  `layers` are the lower ones, topmost first.

    `ownership` and `spelling` None mean: each layer tells by itself.  `options` are those of mount(8).
    """

    layers: tuple[LayerSpec, ...]
    home: str
    ownership: Ownership | None
    spelling: Spelling | None
    label: str
    allow_other: bool = False
    allow_root: bool = False
    options: tuple[str, ...] = ("nosuid", "nodev")
    upper: UpperSpec | None = None
    view: View = View()

    def to_json(self) -> dict[str, object]:
        """As plain data."""

        def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: value.value if isinstance(value, Enum) else value for key, value in items}

        return asdict(self, dict_factory=plain)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MountSpec:
        """The inverse of `to_json`."""
        maps = {key: _triples(data["view"][key]) for key in ("uids", "gids")}
        special = {
            "layers": tuple(LayerSpec(**layer) for layer in data["layers"]),
            "ownership": Ownership(data["ownership"]) if data["ownership"] else None,
            "spelling": Spelling(data["spelling"]) if data["spelling"] else None,
            "upper": UpperSpec.from_json(data["upper"]) if data["upper"] else None,
            "view": View(**{**data["view"], **maps}),
        }
        return cls(**{**data, **special})


def _triples(values: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    return tuple((stored, shown, count) for stored, shown, count in values)


class Hold:
    """A shared lock on a layer; also a context manager."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Let go.  May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Home:
    """A driver's directory, and the part of the driver contract that is the same for all who keep one.

    Opening one makes it, or reads how it was made.  A driver is a subclass with a `name`, also its
    directory's; `stacked` says whether a layer needs its parents to be shown.  See
    `fusestore.driver.api.Driver` for what the methods have to hold.
    """

    name: str
    stacked: bool

    def __init__(self, root: Path) -> None:
        root = root.absolute()
        self.path = root / self.name
        self.tmp = root / "tmp"
        self.links = self.path / "l"
        for directory in (self.path, self.links, self.tmp):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.ownership, self.spelling = self._how_made()
        self._staged: dict[CacheID, tuple[int, CacheID | None]] = {}  # lock and parent

    def _how_made(self) -> tuple[Ownership, Spelling]:
        record = self.path / "home.json"
        try:
            data = json.loads(record.read_bytes())
            return Ownership(data["ownership"]), Spelling(data["whiteouts"])
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as exc:
            raise CorruptStore(str(record), str(exc)) from None
        ownership = Ownership.REAL if owns_every_id() else Ownership.OVERRIDE
        with sweeping(self.tmp), opened(self.tmp) as fd:
            spelling = whiteout.probe(fd)
            if ownership is Ownership.OVERRIDE:
                _probe_xattrs(self.tmp)
        chosen = {"ownership": ownership.value, "whiteouts": spelling.value}
        write_durably(record, json.dumps(chosen).encode(), self.tmp)
        return ownership, spelling

    # -- making a layer -------------------------------------------------------------------------------

    def create(self, cache_id: CacheID, parent: CacheID | None) -> None:
        """Stage a new empty layer on top of `parent`: under ``tmp/``, its lock held."""
        directory = self.tmp / cache_id
        with sweeping(self.tmp):
            directory.mkdir(mode=0o700)
            try:
                self._staged[cache_id] = lock(directory / "lock", fcntl.LOCK_EX, os.O_CREAT), parent
            except OSError:
                remove_tree(directory)
                raise
        (directory / "diff").mkdir(mode=0o755)
        if parent is not None and self.stacked:
            lower = [f"l/{short_name(parent)}", *self._lower(parent)]
            (directory / "lower").write_text(":".join(lower))

    def is_read_write(self, cache_id: CacheID) -> bool:
        """True for a published layer that takes changes."""
        return (self.path / cache_id / "work").is_dir()

    def staged(self, cache_id: CacheID) -> tuple[Path, CacheID | None]:
        """The directory and the parent of a layer that this process has staged."""
        if cache_id not in self._staged:
            raise ValueError(f"{cache_id} is not staged")
        return self.tmp / cache_id, self._staged[cache_id][1]

    def sync(self, cache_id: CacheID) -> None:
        """Make a staged layer's content durable."""
        with opened(self.staged(cache_id)[0]) as fd:
            syncfs(fd)

    def publish(self, cache_id: CacheID) -> Hold:
        """Make a staged and synced layer visible; it stays held.

        To be called inside the transaction that names the layer: removers lock only inside one of theirs, so
        nobody can come between the exclusive lock of the maker and the shared one of the holder.
        """
        (staged, _), published = self.staged(cache_id), self.path / cache_id
        staged.rename(published)
        try:
            (self.links / short_name(cache_id)).symlink_to(f"../{cache_id}/diff")
            fsync_directory(os.fsencode(self.links))
            fsync_directory(os.fsencode(self.path))
        except BaseException:
            self._unlink(cache_id)
            published.rename(staged)
            raise
        fd, _ = self._staged.pop(cache_id)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return Hold(fd)

    def _unlink(self, cache_id: CacheID) -> None:
        (self.links / short_name(cache_id)).unlink(missing_ok=True)

    def discard(self, cache_id: CacheID) -> None:
        """Delete a layer that this process has staged; one that it has not is no error."""
        if cache_id in self._staged:
            fd, _ = self._staged.pop(cache_id)
            try:
                remove_tree(self.tmp / cache_id)
            finally:
                os.close(fd)

    @contextmanager
    def removing(self, cache_id: CacheID) -> Iterator[None]:
        """Lock a published layer exclusively; when the context ends well, delete it.

        Raises LayerInUse.  A layer that is not there is no error.
        """
        published, doomed = self.path / cache_id, self.tmp / f"{cache_id}-removing"
        try:
            held = lock(published / "lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            yield
            self._unlink(cache_id)
            return
        except BlockingIOError:
            raise LayerInUse(cache_id, "it is mounted, or another process works with it") from None
        try:
            yield
            self._unlink(cache_id)
            published.rename(doomed)
            fsync_directory(os.fsencode(self.path))
            remove_tree(doomed)
        finally:
            os.close(held)

    def hold(self, cache_id: CacheID) -> Hold:
        """Keep a published layer from being removed.  Raises FileNotFoundError when it is gone."""
        directory = self.path / cache_id
        hold = Hold(lock(directory / "lock", fcntl.LOCK_SH))
        if not directory.exists():  # removed while we waited for the lock
            hold.close()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return hold

    # -- reading --------------------------------------------------------------------------------------

    def exists(self, cache_id: CacheID) -> bool:
        """True for a published layer."""
        return (self.path / cache_id / "diff").is_dir()

    def list_layers(self) -> list[CacheID]:
        """Every published layer, in order of name."""
        found = []
        for entry in os.scandir(self.path):
            try:
                found.append(parse_cache_id(entry.name))
            except ValueError:
                continue
        return sorted(found)

    def chain(self, cache_id: CacheID) -> list[CacheID]:
        """The published layer and its parents, topmost first.  Raises CorruptStore."""
        chain = [cache_id]
        for link in self._lower(cache_id):
            try:
                target = os.readlink(self.path / link)
                chain.append(parse_cache_id(target.split("/")[1]))
            except (OSError, ValueError, IndexError) as exc:
                raise CorruptStore(str(self.path / link), str(exc)) from None
        return chain

    def _lower(self, cache_id: CacheID) -> list[str]:
        try:
            return (self.path / cache_id / "lower").read_text().split(":")
        except FileNotFoundError:
            return []

    def layer_specs(self, chain: Sequence[CacheID]) -> tuple[LayerSpec, ...]:
        """Where the layers of `chain` are."""
        directories = [self.path / cache_id for cache_id in chain]
        return tuple(LayerSpec(*(str(d / name) for name in ("diff", "links", "lock"))) for d in directories)


def short_name(cache_id: CacheID) -> str:
    """The name of a layer's link: 26 letters of base32 out of its cache ID."""
    return base64.b32encode(bytes.fromhex(cache_id)).decode()[:_SHORT]


def _probe_xattrs(directory: Path) -> None:
    import xattr  # 20 ms that only the making of a store has to spend

    probe = directory / f".xattr-probe-{os.getpid()}"
    probe.touch(mode=0o600)
    try:
        xattr.setxattr(str(probe), os.fsdecode(OVERRIDE_STAT), b"0:0:0644:file")
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.EPERM):
            raise
        raise NotSupported(
            f"{directory}: this filesystem has no user xattrs, which keep the owners of files; "
            "choose another place with --root"
        ) from None
    finally:
        probe.unlink()
