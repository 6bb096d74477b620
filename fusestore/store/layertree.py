"""Is a layer's directory what its tar says?  Told without a second copy of what its files hold.

The tar, put together again from its record and the layer's files, is read once.  On the way its digest is
verified, and all data of its files are made zeros; that is unpacked again, by the code that unpacks every
layer, to sparse files below ``tmp/``.  What comes out has every name, type, owner, mode, time, link and xattr
that the layer must have, what the tar leaves unsaid included, and the two are walked side by side.

A driver that keeps full copies has the layer merged into one of its parent; then the parent's tree is what
all other names must come from.
"""

from __future__ import annotations

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
from fusestore.driver.union.layerdir import Attr, LayerDir
from fusestore.errors import printable
from fusestore.files import scratch
from fusestore.store.catalog import Driver
from fusestore.store.layer import exact_tar
from fusestore.store.metadata import LayerRecord
from fusestore.tar import TarReader
from fusestore.tar_stream import tar_stream

_SHOWN = 10  # differences that are told of a layer


def differences(driver: Driver, record: LayerRecord, parent: CacheID | None) -> list[str]:
    """How a layer of which the tar is known differs from it: ``+/path``, ``-/path``, ``*/path (...)``.

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
        return _told(_compared(wanted, present, stacked=driver.stacked))


def _opened(driver: Driver, cache_id: CacheID) -> LayerDir:
    (spec,) = driver.layer_specs([cache_id])
    return open_layer(spec, driver.ownership, driver.spelling)


def _told(found: Iterator[str]) -> list[str]:
    told = []
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
    while tar.read(1 << 20):
        pass


# -- two trees side by side ---------------------------------------------------------------------------


def _compared(wanted: Sequence[LayerDir], present: LayerDir, *, stacked: bool) -> Iterator[str]:
    """How `present` differs from `wanted`, topmost first; `stacked` says whether it keeps whiteouts."""
    links = _Links()
    todo: list[tuple[bytes, Sequence[LayerDir]]] = [(b"", wanted)]
    if change := _change(wanted[0], present, b"", links):
        yield f"*/ ({change})"
    while todo:
        directory, layers = todo.pop()
        names, there = _names(layers, directory, stacked=stacked), dict(present.scan(directory))
        for name in sorted(names.keys() | there.keys()):
            path = os.path.join(directory, name)
            shown = "/" + printable(path)
            if name not in there:
                yield "-" + shown
            elif name not in names:
                yield "+" + shown
            elif names[name][1] != there[name]:
                yield f"*{shown} ({'deleted' if there[name] else 'not deleted'})"
            elif not there[name]:
                makers = names[name][0]
                if change := _change(makers[0], present, path, links):
                    yield f"*{shown} ({change})"
                elif _is_directory(makers[0], path):
                    todo.append((path, _continued(makers, path)))


Named = dict[bytes, tuple[Sequence[LayerDir], bool]]


def _names(layers: Sequence[LayerDir], directory: bytes, *, stacked: bool) -> Named:
    """The names in a directory that `layers` make: from which layer on down, and whether it is a whiteout."""
    found: Named = {}
    for position, layer in enumerate(layers):
        for name, is_deleted in layer.scan(directory):
            found.setdefault(name, (layers[position:], is_deleted))
    return {name: made for name, made in found.items() if stacked or not made[1]}


def _continued(layers: Sequence[LayerDir], path: bytes) -> Sequence[LayerDir]:
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


class _Links:
    """Which names are one file: each tree's first name of an inode with several."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int, int], bytes] = {}

    def first(self, layer: LayerDir, attr: Attr, path: bytes) -> bytes:
        """The first name of the file that is `path`."""
        if stat.S_ISDIR(attr.mode) or attr.nlink == 1:
            return path
        return self._first.setdefault((id(layer), attr.dev, attr.ino), path)


def _change(wanted: LayerDir, present: LayerDir, path: bytes, links: _Links) -> str:
    """In what an object differs; empty for nothing."""
    a, b = wanted.look(path), present.look(path)
    if a is None or b is None:
        return "gone"
    if stat.S_IFMT(a.mode) != stat.S_IFMT(b.mode):
        return "another type"
    facts = (
        ("mode", f"{a.mode & 0o7777:04o}", f"{b.mode & 0o7777:04o}"),
        ("owner", f"{a.uid}:{a.gid}", f"{b.uid}:{b.gid}"),
        ("size", *((0, 0) if stat.S_ISDIR(a.mode) else (a.size, b.size))),
        # A layer that took changes at first has a root from its very beginning.
        ("time", *((0, 0) if not path else (a.mtime_ns, b.mtime_ns))),
        ("device", a.rdev, b.rdev),
    )
    changes = [f"{what} {now} instead of {then}" for what, then, now in facts if then != now]
    return ", ".join([*changes, *_deep_changes(wanted, present, a.mode, path)]) or _link_change(
        links.first(wanted, a, path), links.first(present, b, path)
    )


def _deep_changes(wanted: LayerDir, present: LayerDir, mode: int, path: bytes) -> Iterator[str]:
    """What stat(2) does not tell."""
    if stat.S_ISLNK(mode) and wanted.readlink(path) != present.readlink(path):
        yield f"target {printable(present.readlink(path))} instead of {printable(wanted.readlink(path))}"
    if stat.S_ISDIR(mode) and wanted.is_opaque(path) != present.is_opaque(path):
        yield "opaque" if present.is_opaque(path) else "not opaque"
    for name in sorted({*wanted.listxattr(path), *present.listxattr(path)}):
        if wanted.getxattr(path, name) != present.getxattr(path, name):
            yield f"xattr {printable(name)}"


def _link_change(then: bytes, now: bytes) -> str:
    return "" if then == now else "other links"
