"""What a layer changes, and those changes as a layer tar.

The answer is that of comparing two merged trees, with the layer and without (moby's and
containers/storage's NaiveDiff; `SAME` below are containers/storage's rules), but found by walking the
layer's own directory: what is not in it has not changed.  Only where a directory does not go on in the
lowers at its own path - it is new, opaque or renamed - all of it is compared.

The tar (`diff`) is sorted by path, and the same for the same layer: times are the files', whiteouts have a
fixed one.  A directory that holds a change is listed as modified, and is in the tar with its metadata.  All
names of a file are in the tar if one of them is, as hard links of the first.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from fusestore import tar_writer
from fusestore.driver import whiteout
from fusestore.driver.api import Change, ChangeKind
from fusestore.driver.union.layerdir import Attr, LayerDir, Place
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.nodes import ROOT
from fusestore.driver.union.resolve import Entry, children, join, resolve

_CHUNK = 1 << 20


class _Changed(NamedTuple):
    kind: ChangeKind
    entry: Entry | None  # None: deleted


def changes(union: MergedUnion) -> list[Change]:
    """What the top of `union` changes in the layers below, sorted by path.  Raises OSError.

    The root is never listed (moby, pkg/archive/changes.go).
    """
    return [Change(found.kind, path) for path, found in sorted(_compared(union).items()) if path]


def diff(union: MergedUnion, whiteout_time: int = 0) -> Iterator[bytes]:
    """The changes as a tar.  `whiteout_time` (s since 1970) is the mtime of whiteouts.  Raises OSError."""
    found = _compared(union)
    _add_links(union, found)
    first: dict[int, bytes] = {}  # by inode number of the layer's file: the path that has its data
    for path, (kind, entry) in sorted(found.items()):
        if entry is not None and not stat.S_ISSOCK(entry.attr.mode):
            yield from _member(union, path, entry, first)
        elif kind is not ChangeKind.ADD:  # a tar cannot hold a socket; at least it hides what it hides
            directory, slash, name = path.rpartition(b"/")
            marker = directory + slash + whiteout.PREFIX + name
            yield tar_writer.header(marker, stat.S_IFREG, mtime_ns=whiteout_time * 1_000_000_000)
    yield tar_writer.END


# -- comparing --------------------------------------------------------------------------------------------


def _compared(union: MergedUnion) -> dict[bytes, _Changed]:
    node = union.node(ROOT)
    root = Entry(node.attr, node.layers, node.path, upper=True)
    below = union.bottom()
    found: dict[bytes, _Changed] = {}
    directories: list[tuple[bytes, Entry, Entry | None]] = [(b"", root, below)]
    above = {b"": root}
    if below is None or not _is_same(union, b"", root, below):
        found[b""] = _Changed(ChangeKind.MODIFY if below else ChangeKind.ADD, root)
    while directories:
        place, top, old = directories.pop()
        for name in _names(union, place, top, old):
            path = join(place, name)
            new = union.step(top, place, name)
            was = resolve(old.layers, join(old.path, name)) if old is not None else None
            kind = _kind(union, path, new, was)
            if kind is not None:
                found[path] = _Changed(kind, new)
            if new is not None and stat.S_ISDIR(new.attr.mode) and not _is_one(new, was):
                above[path] = new
                directories.append((path, new, was if was and stat.S_ISDIR(was.attr.mode) else None))
    _add_parents(found, above)
    return found


def _names(union: MergedUnion, place: bytes, top: Entry, old: Entry | None) -> list[bytes]:
    """The names to compare in a directory: the layer's own, where it goes on below at the same path."""
    places: list[Place] = [(union.tree, place)] if top.upper else []
    if top.upper and old is not None and (top.layers, top.path) == (old.layers, old.path):
        return [name for name, _ in union.tree.scan(place)]
    names = {name for name, _ in children([*places, *((layer, top.path) for layer in top.layers)])}
    if old is not None:
        names |= {name for name, _ in children([(layer, old.path) for layer in old.layers])}
    return list(names)


def _kind(union: MergedUnion, path: bytes, new: Entry | None, was: Entry | None) -> ChangeKind | None:
    if new is None:
        return ChangeKind.DELETE if was is not None else None
    if was is None:
        return ChangeKind.ADD
    return None if _is_same(union, path, new, was) else ChangeKind.MODIFY


def _is_one(new: Entry, was: Entry | None) -> bool:
    """True when both are the very same object of the lowers."""
    return was is not None and not new.upper and (new.layers, new.path) == (was.layers, was.path)


def _is_same(union: MergedUnion, path: bytes, new: Entry, was: Entry) -> bool:
    """True when nothing that a tar can say differs.  Content is taken to be the same when size and mtime
    are."""
    if _is_one(new, was):
        return True
    if _facts(new.attr) != _facts(was.attr):
        return False
    here, there = _at(union, path, new), (was.layers[0], was.path)
    if stat.S_ISLNK(new.attr.mode) and here[0].readlink(here[1]) != there[0].readlink(there[1]):
        return False
    return _xattrs(here) == _xattrs(there)


def _facts(attr: Attr) -> tuple[int, ...]:
    size = 0 if stat.S_ISDIR(attr.mode) else attr.size
    return attr.mode, attr.uid, attr.gid, attr.rdev, attr.mtime_ns, size


def _at(union: MergedUnion, path: bytes, entry: Entry) -> Place:
    """The layer that says what `entry`, found at `path`, is."""
    return (union.tree, path) if entry.upper else (entry.layers[0], entry.path)


def _xattrs(place: Place) -> dict[bytes, bytes]:
    layer, path = place
    return {name: layer.getxattr(path, name) or b"" for name in layer.listxattr(path)}


def _add_parents(found: dict[bytes, _Changed], above: dict[bytes, Entry]) -> None:
    """Every directory above a change has changed too."""
    for path in list(found):
        while path:
            path = path.rpartition(b"/")[0]
            if path in found:
                break
            found[path] = _Changed(ChangeKind.MODIFY, above[path])


# -- the tar ----------------------------------------------------------------------------------------------


def _add_links(union: MergedUnion, found: dict[bytes, _Changed]) -> None:
    """The other names in the layer of files that are in the tar, so that they stay one file."""
    linked = {
        entry.attr.ino
        for _, entry in found.values()
        if entry is not None and entry.upper and entry.attr.nlink > 1 and not stat.S_ISDIR(entry.attr.mode)
    }
    if not linked:
        return
    directories = [b""]
    for place in directories:  # grows while we walk
        for name, deleted in union.tree.scan(place):
            path = join(place, name)
            attr = None if deleted else union.tree.look(path)
            entry = union.resolve(path) if attr is not None else None
            if attr is None or entry is None or not entry.upper:
                continue
            if stat.S_ISDIR(attr.mode):
                directories.append(path)
            elif attr.ino in linked and path not in found:
                found[path] = _Changed(ChangeKind.MODIFY, entry)


def _member(union: MergedUnion, path: bytes, entry: Entry, first: dict[int, bytes]) -> Iterator[bytes]:
    attr, place = entry.attr, _at(union, path, entry)
    is_file, name = stat.S_ISREG(attr.mode), path or b"."
    facts = attr.mode, attr.uid, attr.gid, attr.mtime_ns, attr.rdev
    is_link = entry.upper and attr.nlink > 1 and not stat.S_ISDIR(attr.mode)
    known = first.setdefault(attr.ino, path) if is_link else path
    if known != path:
        yield tar_writer.header(name, *facts, link=known, hard=True)
        return
    target = place[0].readlink(place[1]) if stat.S_ISLNK(attr.mode) else b""
    size = attr.size if is_file else 0
    yield tar_writer.header(name, *facts, size=size, link=target, xattrs=_xattrs(place))
    if is_file:
        data = (entry.layers[0], entry.path) if entry.layers else place
        yield from _content(*data, size)


def _content(layer: LayerDir, path: bytes, size: int) -> Iterator[bytes]:
    """The data of a file, `size` bytes even if it changes meanwhile, and what fills up the last block."""
    fd = layer.open(path)
    try:
        position = 0
        while position < size:
            chunk = os.pread(fd, min(_CHUNK, size - position), position)
            chunk = chunk or bytes(min(_CHUNK, size - position))
            position += len(chunk)
            yield chunk
    finally:
        os.close(fd)
    yield tar_writer.padding(size)
