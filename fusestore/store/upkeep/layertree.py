"""Is a layer's directory what its tar says?  Told without a second copy of what its files hold.

The tar, put together again from its record and the layer's files, is read once.  On the way its digest is
verified, and all data of its files are made zeros; that is unpacked again, by the code that unpacks every
layer, to sparse files below ``tmp/``.  What comes out has every name, type, owner, mode, time, link and xattr
that the layer must have, what the tar leaves unsaid included, and the two are walked side by side.

A driver that keeps full copies has the layer merged into one of its parent; then the parent's tree is what
all other names must come from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from typing import IO

from fusestore.digest import CacheID
from fusestore.driver.api import Limits
from fusestore.driver.apply import unpack
from fusestore.driver.below import under
from fusestore.driver.stack import open_layer
from fusestore.driver.union.layerdir import WHITEOUT, Attr, LayerDir
from fusestore.errors import printable
from fusestore.files import scratch
from fusestore.store.catalog import Driver
from fusestore.store.layer import exact_tar
from fusestore.store.metadata import LayerRecord
from fusestore.tar import TarReader
from fusestore.tar_stream import tar_stream

_SHOWN = 10  # differences that are told of a layer
_CHUNK = 1 << 20


def differences(driver: Driver, record: LayerRecord, parent: CacheID | None) -> list[str]:
    """How a layer of which the tar is known differs from it: ``+/path``, ``-/path``, ``*/path (what)``.

    The caller holds it.  Raises CorruptStore where its tar cannot be put together or has another digest,
    InvalidLayer where that is no tar any more, OSError.
    """
    with ExitStack() as stack:
        tar = stack.enter_context(closing(exact_tar(driver, record)))
        place = stack.enter_context(scratch(driver.tmp)) / "diff"
        place.mkdir()
        below = stack.enter_context(under(driver.union(parent) if parent else None))
        blank = stack.enter_context(tar_stream(_blanked(tar)))
        unpack(blank, os.fsencode(place), below, driver.ownership, driver.spelling, Limits())
        wanted = [LayerDir(str(place), driver.ownership, driver.spelling)]
        if parent and not driver.stacked:
            wanted.append(_opened(driver, parent))
        present = _opened(driver, record.cache_id)
        for layer in (*wanted, present):
            stack.callback(layer.close)
        return _told(_Comparison(wanted, present, stacked=driver.stacked).run())


def verify(driver: Driver, record: LayerRecord) -> None:
    """Put the tar of a layer together and look at its digest only.  Raises CorruptStore, OSError."""
    with closing(exact_tar(driver, record)) as tar:
        _drain(tar)


def _opened(driver: Driver, cache_id: CacheID) -> LayerDir:
    (spec,) = driver.layer_specs([cache_id])
    return open_layer(spec, driver.ownership, driver.spelling)


def _told(found: Iterator[str]) -> list[str]:
    told: list[str] = []
    for difference in found:
        if len(told) == _SHOWN:
            return [*told, "..."]
        told.append(difference)
    return told


# -- the tar without its content ----------------------------------------------------------------------


class _Blank(list[bytes]):
    """A `fusestore.tar.Record` that has zeros for what files hold."""

    def raw(self, data: bytes) -> None:
        self.append(data)

    def content(self, data: memoryview) -> None:
        self.append(bytes(len(data)))

    def member(self, name: bytes) -> None:
        """Only its bytes count."""

    def file(self, name: bytes, size: int) -> None:
        """Only its bytes count."""

    def behind(self) -> None:
        """Only the bytes count."""

    def end(self) -> None:
        """Only the bytes count."""


def _blanked(tar: IO[bytes]) -> Iterator[bytes]:
    """The tar with zeros in the place of its files' data; `tar` is read to its end, what follows included."""
    pieces = _Blank()
    reader = TarReader(tar, pieces)
    for _ in reader:
        yield from pieces
        pieces.clear()
        for _ in reader.chunks():
            yield from pieces
            pieces.clear()
    yield from pieces
    _drain(tar)


def _drain(tar: IO[bytes]) -> None:
    while tar.read(_CHUNK):
        pass


# -- two trees side by side ---------------------------------------------------------------------------

_Stack = Sequence[LayerDir]  # of what makes a directory, topmost first


class _Comparison:
    """Of `present` with what `wanted` make; `stacked` says whether marks for what is deleted stay."""

    def __init__(self, wanted: _Stack, present: LayerDir, *, stacked: bool) -> None:
        self._wanted, self._present, self._stacked = wanted, present, stacked
        self._first: dict[tuple[int, int, int], bytes] = {}  # a file's first name in its tree

    def run(self) -> Iterator[str]:
        """The differences, directory by directory."""
        root = self._wanted[0].look(b""), self._present.look(b"")
        if change := self._change(self._wanted[0], b"", *root):
            yield f"*/ ({change})"
        todo = [(b"", self._wanted)]
        while todo:
            directory, layers = todo.pop()
            names, present = self._names(layers, directory), dict(self._present.scan(directory))
            for name in sorted(names.keys() | present.keys()):
                path = os.path.join(directory, name)
                if name not in present:
                    yield f"-/{printable(path)}"
                    continue
                if name not in names:
                    yield f"+/{printable(path)}"
                    continue
                try:
                    wanted, there = names[name][0].look(path), self._present.look(path)
                except OSError as exc:
                    if exc.errno != errno.EIO:
                        raise
                    yield f"*/{printable(path)} ({exc.strerror})"
                    continue
                if change := self._change(names[name][0], path, wanted, there):
                    yield f"*/{printable(path)} ({change})"
                elif there is not None and stat.S_ISDIR(there.mode):
                    todo.append((path, _continued(names[name], path)))

    def _names(self, layers: _Stack, directory: bytes) -> dict[bytes, _Stack]:
        """The names in a directory that `layers` make, each with those from the one on that has it."""
        found: dict[bytes, _Stack] = {}
        deleted: set[bytes] = set()
        for position, layer in enumerate(layers):
            for name, is_deleted in layer.scan(directory):
                if name not in found:
                    found[name] = layers[position:]
                    deleted |= {name} if is_deleted and not self._stacked else set()
        return {name: made for name, made in found.items() if name not in deleted}

    def _change(self, wanted: LayerDir, path: bytes, a: Attr | None, b: Attr | None) -> str:
        """In what an object, which is `a` in `wanted` and `b` here, differs; empty for nothing."""
        if a is WHITEOUT or b is WHITEOUT or a is None or b is None:
            return "" if a is b else "deleted" if b is WHITEOUT else "not deleted"
        if stat.S_IFMT(a.mode) != stat.S_IFMT(b.mode):
            return "another type"
        facts = (
            ("mode", a.mode, b.mode),
            ("owner", (a.uid, a.gid), (b.uid, b.gid)),
            ("size", *((0, 0) if stat.S_ISDIR(a.mode) else (a.size, b.size))),
            # The root of a layer that took changes at first is as old as that.
            ("time", *((a.mtime_ns, b.mtime_ns) if path else (0, 0))),
            ("device", a.rdev, b.rdev),
            ("links", self._first_name(wanted, a, path), self._first_name(self._present, b, path)),
        )
        changes = [what for what, then, now in facts if then != now]
        return ", ".join([*changes, *self._deeper(wanted, a.mode, path)])

    def _deeper(self, wanted: LayerDir, mode: int, path: bytes) -> Iterator[str]:
        """What stat(2) does not tell."""
        present = self._present
        if stat.S_ISLNK(mode) and wanted.readlink(path) != present.readlink(path):
            yield "target"
        if self._stacked and stat.S_ISDIR(mode) and wanted.is_opaque(path) != present.is_opaque(path):
            yield "opaque mark"
        for name in sorted({*wanted.listxattr(path), *present.listxattr(path)}):
            if wanted.getxattr(path, name) != present.getxattr(path, name):
                yield f"xattr {printable(name)}"

    def _first_name(self, layer: LayerDir, attr: Attr, path: bytes) -> bytes:
        if stat.S_ISDIR(attr.mode) or attr.nlink == 1:
            return path
        return self._first.setdefault((id(layer), attr.dev, attr.ino), path)


def _continued(layers: _Stack, path: bytes) -> _Stack:
    """Those of `layers` that make the directory `path`, of which the first has it."""
    found = []
    for layer in layers:
        if not _is_directory(layer, path):
            break
        found.append(layer)
        if layer.is_opaque(path):
            break
    return found


def _is_directory(layer: LayerDir, path: bytes) -> bool:
    attr = layer.look(path)
    return attr is not None and stat.S_ISDIR(attr.mode)
