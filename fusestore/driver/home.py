"""Names, and crash-safe creation and removal, of a driver's home: the contract that all drivers keep alike.

::

    <root>/<driver>/home.json              ownership and whiteout spelling, chosen when the home was made
    <root>/<driver>/<cache-id>/diff/       the layer's own files; a symlink to those of a borrowed one
                              /work/       of an RW layer only: its union works there
                              /committed   of an RW layer that has got children: it takes no more changes
                              /lower       its parents, topmost first: l/AAA:l/BBB, as in overlay2
                              /links       groups of names that are one file (JSON lines)
                              /origin.json of a borrowed layer: what its files are like
                              /lock        flocked: shared by holders and mounts, exclusive to remove
                              /...         what the store keeps with the layer (`Home.notes`)
    <root>/<driver>/l/<26 letters>         -> ../<cache-id>/diff, so that mount options stay short
    <root>/tmp/<anything>                  half-made or half-removed, each with a lock of its own

Counts of `get` are in the runroot (`fusestore.driver.counter`).

A layer is made under ``tmp/`` with its lock held, so that nobody sees half of it, and appears by one rename
after its content is on disk.  It goes the same way back: renamed into ``tmp/``, then deleted.  Whatever
lies in ``tmp/`` unlocked belongs to a process that died, and `sweep` deletes it.

A *borrowed* layer has its files in another store, where somebody else may change or delete them; nothing here
ever writes or deletes through its symlink.  It is a parent as any other.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from fusestore.digest import CacheID, parse_cache_id
from fusestore.driver import diff, whiteout
from fusestore.driver.api import Change, Usage
from fusestore.driver.counter import Counter
from fusestore.driver.getter import DiffGetter
from fusestore.driver.layout import LayerSpec, Origin, read_borrowed, record_links, write_borrowed
from fusestore.driver.ownership import OVERRIDE_STAT, Ownership
from fusestore.driver.stack import open_layer
from fusestore.driver.union.tree import Union
from fusestore.driver.whiteout import Spelling
from fusestore.errors import CorruptStore, LayerInUse, NotSupported
from fusestore.files import (
    Hold,
    fsync_directory,
    lock,
    make_locked,
    opened,
    remove_tree,
    sweep,
    sweeping,
    tree_usage,
    write_durably,
)
from fusestore.syscalls import owns_every_id, syncfs

_SHORT = 26  # letters of a link's name, as in overlay2


class Home(ABC):
    """A driver's directory, and the part of the driver contract that is the same for all who keep one.

    Opening one makes it, or reads how it was made.  A driver is a subclass with a `name`, also its
    directory's; `stacked` says whether a layer needs its parents to be shown.  See
    `fusestore.driver.api.Driver` for what the methods have to hold.
    """

    name: str
    stacked: bool

    def __init__(self, root: Path, runroot: Path) -> None:
        root = root.absolute()
        self._counter = Counter(runroot.absolute())
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

    def stage(
        self,
        cache_id: CacheID,
        parent: CacheID | None,
        *,
        read_write: bool = False,
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Stage a new empty layer on top of `parent`: under ``tmp/``, its lock held; an RW one is durable.

        Raises FileNotFoundError when the parent is gone, NotSupported and ValueError as `create_read_write`.
        """
        verify_options(storage_opt or {})
        with self._staging(cache_id, parent) as directory:
            (directory / "diff").mkdir(mode=0o755)
            self._furnish(directory, parent, read_write)
            if read_write:
                self.sync(cache_id)

    @contextmanager
    def _staging(self, cache_id: CacheID, parent: CacheID | None) -> Iterator[Path]:
        """The directory of a new layer under ``tmp/``, locked; gone again when the context ends badly."""
        directory = self.tmp / parse_cache_id(cache_id)
        if parent is not None:
            self.freeze(parent)
        self._staged[cache_id] = make_locked(directory, self.tmp), parent
        try:
            if parent is not None and self.stacked:
                lower = [f"l/{short_name(parent)}", *self._lower(parent)]
                (directory / "lower").write_text(":".join(lower))
            yield directory
        except BaseException:
            self.discard(cache_id)
            raise

    def borrow(self, cache_id: CacheID, parent: CacheID | None, spec: LayerSpec) -> Hold:
        """Make a layer on top of `parent` of files that another store keeps, and publish it; it stays held.

        The layer has a lock of its own; its mounts hold `spec.lock` too.  Raises NotSupported where layers do
        not stack, ValueError for a relative path, FileNotFoundError when the files or the parent are gone.
        """
        if not self.stacked:
            raise NotSupported(
                f"{self.name} keeps a full copy of every layer and cannot borrow one; use the fuse driver"
            )
        if not os.path.isabs(spec.path):
            raise ValueError(f"{spec.path}: not an absolute path")
        origin = spec.origin or Origin(self.ownership, self.spelling)
        with open_layer(spec, None, None), self._staging(cache_id, parent) as directory:
            write_borrowed(directory, spec, origin)
            _sync_files(directory)
            return self.publish(cache_id)

    def borrowed(self, cache_id: CacheID) -> LayerSpec | None:
        """Where the files of a borrowed layer are, or were; None for one that has its own.

        Raises CorruptStore.
        """
        return read_borrowed(self.path / cache_id)

    @abstractmethod
    def _furnish(self, directory: Path, parent: CacheID | None, read_write: bool) -> None:
        """What else a driver puts into a new layer."""

    def freeze(self, cache_id: CacheID) -> None:
        """Make an RW layer one that others can be put on; from its next mount on it takes no changes."""
        with self.hold(cache_id), opened(self.path / cache_id) as fd:
            if self.is_read_write(cache_id):
                self._complete(cache_id)
                record_links(self.path / cache_id / "diff", self.path / cache_id / "links")
                (self.path / cache_id / "committed").touch(mode=0o600)
                syncfs(fd)

    @abstractmethod
    def _complete(self, cache_id: CacheID) -> None:
        """Make an RW layer one that others can be put on."""

    def create(
        self,
        cache_id: CacheID,
        parent: CacheID | None = None,
        *,
        mount_label: str = "",
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Make an empty layer on top of `parent`.  It takes changes until it has a child (graphdriver)."""
        if "size" in (storage_opt or {}):
            raise NotSupported("--storage-opt size is only supported for ReadWrite Layers")
        self.create_read_write(cache_id, parent, mount_label=mount_label, storage_opt=storage_opt)

    def create_read_write(
        self,
        cache_id: CacheID,
        parent: CacheID | None = None,
        *,
        mount_label: str = "",
        storage_opt: Mapping[str, str] | None = None,
    ) -> None:
        """Make an empty layer on top of `parent` that takes changes, and publish it.

        `mount_label` is for drivers that can label what they mount; ours run without privileges and cannot.
        Raises NotSupported for ``size`` in `storage_opt`, ValueError for what is no option at all.
        """
        self.stage(cache_id, parent, read_write=True, storage_opt=storage_opt)
        try:
            self.publish(cache_id).close()
        except BaseException:
            self.discard(cache_id)
            raise

    def create_from_template(
        self, cache_id: CacheID, template: CacheID, *, storage_opt: Mapping[str, str] | None = None
    ) -> None:
        """Make a layer with the content of `template` that takes changes (containers/storage)."""
        self.create_read_write(cache_id, template, storage_opt=storage_opt)

    def is_read_write(self, cache_id: CacheID) -> bool:
        """True for a published layer that takes changes."""
        directory = self.path / cache_id
        return (directory / "work").is_dir() and not (directory / "committed").exists()

    def notes(self, cache_id: CacheID) -> Path:
        """The directory of a layer, staged or published, where the store may keep files of its own."""
        return (self.tmp if cache_id in self._staged else self.path) / cache_id

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
            published.rename(staged)
            with suppress(OSError):  # what failed may be just that; `cleanup` finds it
                self._unlink(cache_id)
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
            self._counter.forget(cache_id)
        finally:
            os.close(held)

    def remove(self, cache_id: CacheID) -> None:
        """Delete a layer that no store names; one that is not there is no error.

        Raises LayerInUse while it is mounted or held, ValueError for what is no cache ID.
        """
        with self.removing(parse_cache_id(cache_id)):
            pass

    def cleanup(self) -> None:
        """Delete what dead processes left: half-made layers, links and counts of layers that are gone."""
        sweep(self.tmp)
        for entry in list(os.scandir(self.links)):
            with suppress(FileNotFoundError):  # others clean up too
                if not os.path.lexists(os.path.join(self.links, os.readlink(entry.path))):
                    os.unlink(entry.path)
        counted = self._counter.all()  # before the layers: what is counted has been published before
        for cache_id in set(counted) - set(self.list_layers()):
            self._counter.forget(CacheID(cache_id))

    def hold(self, cache_id: CacheID) -> Hold:
        """Keep a published layer from being removed.  Raises FileNotFoundError when it is gone."""
        directory = self.path / cache_id
        hold = Hold(lock(directory / "lock", fcntl.LOCK_SH))
        if not directory.exists():  # removed while we waited for the lock
            hold.close()
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return hold

    # -- reading --------------------------------------------------------------------------------------

    def diff_getter(self, cache_id: CacheID) -> DiffGetter:
        """The layer's own files by the names its tar gave them; close it.  Raises FileNotFoundError."""
        held = self.hold(cache_id)
        try:
            (spec,) = self.layer_specs([cache_id])
            with open_layer(spec, self.ownership, self.spelling) as layer:
                return DiffGetter(os.fsencode(spec.path), layer.ownership, held)
        except BaseException:
            held.close()
            raise

    @abstractmethod
    def _pair(
        self, cache_id: CacheID, parent: CacheID | None
    ) -> AbstractContextManager[tuple[Union, Union | None]]:
        """The merged views of a layer and of `parent`, to compare."""

    def changes(self, cache_id: CacheID, parent: CacheID | None) -> list[Change]:
        """What makes the layer out of `parent`."""
        with self._pair(cache_id, parent) as pair:
            return diff.changes(*pair)

    def diff(self, cache_id: CacheID, parent: CacheID | None) -> Iterator[bytes]:
        """The same as a tar; the time of whiteouts is SOURCE_DATE_EPOCH, else 0."""
        with self._pair(cache_id, parent) as pair:
            yield from diff.diff(*pair, diff.whiteout_time())

    def diff_size(self, cache_id: CacheID, parent: CacheID | None) -> int:
        """Bytes of the files in that tar."""
        with self._pair(cache_id, parent) as pair:
            return diff.diff_size(*pair)

    def usage(self, cache_id: CacheID) -> Usage:
        """What the layer's own files take, in another store if it is borrowed (``ReadWriteDiskUsage``).

        Raises PermissionError where it has directories that we must not read.
        """
        (spec,) = self.layer_specs([cache_id])
        with self.hold(cache_id), opened(Path(spec.path)) as fd:
            return Usage(*tree_usage(fd))

    def mounted(self, cache_id: CacheID) -> int:
        """How many `get` of all processes have not been given back."""
        with self._counter.users(cache_id) as users:
            return users[0]

    def counted(self) -> list[CacheID]:
        """The layers that somebody has got, or had."""
        return [CacheID(name) for name in self._counter.all()]

    def exists(self, cache_id: CacheID) -> bool:
        """True for a published layer, also for a borrowed one of which the files are gone."""
        return os.path.lexists(self.path / cache_id / "diff")

    def list_layers(self) -> list[CacheID]:
        """Every published layer, in order of name."""
        found = []
        for entry in list(os.scandir(self.path)):
            try:
                found.append(parse_cache_id(entry.name))
            except ValueError:
                continue
        return sorted(found)

    def chain(self, cache_id: CacheID) -> list[CacheID]:
        """The published layer and its parents, topmost first.  Raises CorruptStore."""
        lower = self._lower(cache_id)
        if not all(os.path.islink(self.path / link) for link in lower):
            self._link_again()
        chain = [cache_id]
        for link in lower:
            try:
                target = os.readlink(self.path / link)
                chain.append(parse_cache_id(target.split("/")[1]))
            except (FileNotFoundError, NotADirectoryError, ValueError, IndexError) as exc:
                raise CorruptStore(str(self.path / link), str(exc)) from None
        return chain

    def _link_again(self) -> None:
        """Make links that were lost; their names follow from those of the layers (``recreateSymlinks``)."""
        for cache_id in self.list_layers():
            with suppress(OSError):  # whoever wants one that cannot be made has an error of his own
                self.links.mkdir(mode=0o700, exist_ok=True)
                (self.links / short_name(cache_id)).symlink_to(f"../{cache_id}/diff")

    def _lower(self, cache_id: CacheID) -> list[str]:
        try:
            return (self.path / cache_id / "lower").read_text().split(":")
        except FileNotFoundError:
            return []

    def layer_specs(self, chain: Sequence[CacheID]) -> tuple[LayerSpec, ...]:
        """Where the layers of `chain` are.  Raises CorruptStore when the files of a borrowed one are gone."""
        return tuple(map(self._layer_spec, chain))

    def _layer_spec(self, cache_id: CacheID) -> LayerSpec:
        borrowed = self.borrowed(cache_id)
        if borrowed is None:
            directory = self.path / cache_id
            return LayerSpec(f"{directory}/diff", f"{directory}/links", f"{directory}/lock")
        try:
            os.stat(borrowed.path)
        except (FileNotFoundError, NotADirectoryError):
            reason = f"these files, which another store lent to layer {cache_id[:12]}, are gone"
            raise CorruptStore(borrowed.path, reason) from None
        return borrowed


def verify_options(options: Mapping[str, str]) -> None:
    """Refuse storage options.  Raises NotSupported, ValueError."""
    for key in options:
        if key not in ("size", "inodes"):
            raise ValueError(f"unknown option {key}")
        raise NotSupported(
            f"--storage-opt {key}: a limit needs project quotas, which only root can set; make the layer "
            "without one"
        )


def _sync_files(directory: Path) -> None:
    """Make the files in `directory`, and their names, durable.  Raises OSError."""
    for entry in list(os.scandir(directory)):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                os.fsync(file.fileno())
    fsync_directory(os.fsencode(directory))


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
