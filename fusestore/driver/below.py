"""What `fusestore.driver.apply` may ask about the layers under the one it makes, answered by a `Union`."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from fusestore.driver.apply import Below, LowerFile
from fusestore.driver.layout import LayerSpec
from fusestore.driver.ownership import Metadata, Ownership
from fusestore.driver.stack import open_layer
from fusestore.driver.union.resolve import Entry
from fusestore.driver.union.tree import Union
from fusestore.driver.whiteout import Spelling


class Nothing:
    """Below a base layer."""

    def exists(self, path: bytes) -> bool:
        """Nothing does."""
        return False

    def directory(self, path: bytes) -> Metadata | None:
        """There is none."""
        return None

    def file(self, path: bytes) -> LowerFile | None:
        """There is none."""
        return None


class Layers:
    """The merged view of some layers.  Directories found are remembered: each name costs one step, not its
    depth."""

    def __init__(self, union: Union) -> None:
        self._union = union
        self._directories: dict[bytes, Entry | None] = {b"": union.resolve(b"")}

    def _find(self, path: bytes) -> Entry | None:
        if path in self._directories:
            return self._directories[path]
        missing = []
        while path not in self._directories:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        entry = self._directories[path]
        for path in reversed(missing):
            directory, _, name = path.rpartition(b"/")
            entry = self._union.step(entry, directory, name) if entry and _is_directory(entry) else None
            if entry is None or _is_directory(entry):
                self._directories[path] = entry
        return entry

    def exists(self, path: bytes) -> bool:
        """True when anything has this path."""
        return self._find(path) is not None

    def directory(self, path: bytes) -> Metadata | None:
        """The attributes of the directory at `path`; None when there is none."""
        entry = self._find(path)
        return self._metadata(path, entry) if entry and _is_directory(entry) else None

    def file(self, path: bytes) -> LowerFile | None:
        """The file at `path`, of any type but directory; None when there is none."""
        entry = self._find(path)
        if entry is None or _is_directory(entry):
            return None
        layer, at = self._union.entry_data_at(path, entry)
        metadata, names = self._metadata(path, entry), self._union.links(path, entry)
        target = layer.readlink(at) if stat.S_ISLNK(entry.attr.mode) else b""
        fd = layer.open(at) if stat.S_ISREG(entry.attr.mode) else -1
        return LowerFile(fd, metadata, entry.attr.size, target, names)

    def _metadata(self, path: bytes, entry: Entry) -> Metadata:
        attr, (layer, at) = entry.attr, self._union.entry_at(path, entry)
        xattrs = {name: layer.getxattr(at, name) or b"" for name in layer.listxattr(at)}
        return Metadata(attr.mode, attr.uid, attr.gid, attr.mtime_ns, rdev=attr.rdev, xattrs=xattrs)


def _is_directory(entry: Entry) -> bool:
    return stat.S_ISDIR(entry.attr.mode)


@contextmanager
def under(union: AbstractContextManager[Union] | None) -> Iterator[Below]:
    """What lies under a layer: the view of its parent, or nothing."""
    if union is None:
        yield Nothing()
        return
    with union as view:
        yield Layers(view)


@contextmanager
def opened(
    specs: Sequence[LayerSpec], ownership: Ownership | None, spelling: Spelling | None
) -> Iterator[Union]:
    """A `Union` of layers, for as long as the context lasts.  Raises OSError."""
    with ExitStack() as stack:
        yield Union([stack.enter_context(open_layer(spec, ownership, spelling)) for spec in specs])
