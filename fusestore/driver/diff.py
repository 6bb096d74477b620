"""What a layer changes, and those changes as a layer tar.

The answer is that of comparing two merged trees, with the layer and without (moby's and
containers/storage's NaiveDiff; `_is_same` has their rules, and more), but found by walking the layer's own
directory: what is not in it has not changed.  Only where a directory does not go on in the
lowers at its own path - it is new, opaque or renamed - all of it is compared.  Any other two trees, such as
a layer and its grandparent, are compared in full, except below directories that both take from the same
layers.

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
from fusestore.driver.union.layerdir import Attr, Place
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.resolve import Entry, children, join
from fusestore.driver.union.tree import Union

_CHUNK = 1 << 20


class _Changed(NamedTuple):
    kind: ChangeKind
    entry: Entry | None  # None: deleted


def changes(new: Union, old: Union | None) -> list[Change]:
    """What has to be done to `old` (None: nothing at all) to get `new`, sorted by path.  Raises OSError.

    The root is never listed (moby, pkg/archive/changes.go).
    """
    return [Change(found.kind, path) for path, found in sorted(_compared(new, old).items()) if path]


def diff_size(new: Union, old: Union | None) -> int:
    """Bytes of the files in the tar that `diff` would make, each inode once.  Raises OSError."""
    attrs = (entry.attr for _, entry in _compared(new, old).values() if entry is not None)
    sizes = {(a.dev, a.ino): a.size for a in attrs if stat.S_ISREG(a.mode) or stat.S_ISLNK(a.mode)}
    return sum(sizes.values())


def whiteout_time() -> int:
    """The time of whiteouts in a tar, in s since 1970: SOURCE_DATE_EPOCH, else 0."""
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def diff(new: Union, old: Union | None, whiteout_time: int = 0) -> Iterator[bytes]:
    """The changes as a tar.  `whiteout_time` (s since 1970) is the mtime of whiteouts.  Raises OSError."""
    found = _compared(new, old)
    _add_links(new, found)
    first: dict[tuple[int, int], bytes] = {}  # by inode of the backing file: the path that has its data
    for path, (kind, entry) in sorted(found.items()):
        if entry is not None and not stat.S_ISSOCK(entry.attr.mode):
            yield from _member(new, path, entry, first)
        elif kind is not ChangeKind.ADD:  # a tar cannot hold a socket; at least it hides what it hides
            directory, slash, name = path.rpartition(b"/")
            marker = directory + slash + whiteout.PREFIX + name
            yield tar_writer.header(marker, stat.S_IFREG, mtime_ns=whiteout_time * 1_000_000_000)
    yield tar_writer.END


# -- comparing --------------------------------------------------------------------------------------------


def _compared(new: Union, old: Union | None) -> dict[bytes, _Changed]:
    root, below = new.resolve(b""), old.resolve(b"") if old is not None else None
    assert root is not None
    found: dict[bytes, _Changed] = {}
    directories: list[tuple[bytes, Entry, Entry | None]] = [(b"", root, below)]
    above = {b"": root}
    if below is None or not _is_same(b"", (new, root), (old, below)):
        found[b""] = _Changed(ChangeKind.MODIFY if below else ChangeKind.ADD, root)
    while directories:
        place, top, under = directories.pop()
        for name in _names(place, (new, top), (old, under)):
            path = join(place, name)
            entry = new.step(top, place, name)
            was = old.step(under, place, name) if old is not None and under is not None else None
            kind = _kind(path, (new, entry), (old, was))
            if kind is not None:
                found[path] = _Changed(kind, entry)
            if entry is not None and stat.S_ISDIR(entry.attr.mode) and not _is_one(entry, was):
                above[path] = entry
                directories.append((path, entry, was if was and stat.S_ISDIR(was.attr.mode) else None))
    _add_parents(found, above)
    return found


_Seen = tuple[Union, Entry]
_Maybe = tuple[Union | None, Entry | None]


def _names(place: bytes, new: _Seen, old: _Maybe) -> list[bytes]:
    """The names to compare in a directory: the layer's own, where it goes on below at the same path."""
    (union, top), (lower, was) = new, old
    if isinstance(union, MergedUnion) and top.upper and was is not None and _is_below(top, was):
        return [name for name, _ in union.tree.scan(place)]
    names = {name for name, _ in children(union.entry_places(place, top))}
    if lower is not None and was is not None:
        names |= {name for name, _ in children(lower.entry_places(place, was))}
    return list(names)


def _kind(path: bytes, new: _Maybe, old: _Maybe) -> ChangeKind | None:
    (union, entry), (lower, was) = new, old
    if entry is None or union is None:
        return ChangeKind.DELETE if was is not None else None
    if was is None or lower is None:
        return ChangeKind.ADD
    return None if _is_same(path, (union, entry), (lower, was)) else ChangeKind.MODIFY


def _is_below(new: Entry, was: Entry) -> bool:
    """True when what `new` has from lower layers is what `was` is."""
    return (
        not was.upper
        and new.path == was.path
        and [layer.path for layer in new.layers] == [layer.path for layer in was.layers]
    )


def _is_one(new: Entry, was: Entry | None) -> bool:
    """True when both are the very same object of the lowers."""
    return was is not None and not new.upper and _is_below(new, was)


def _is_same(path: bytes, new: _Seen, old: tuple[Union | None, Entry]) -> bool:
    """True when nothing that a tar can say differs.

    A build that sets all times to one value may change a version number, and neither size nor time tells:
    in a stack, where few files are there twice, contents are compared when all else is the same.
    """
    (union, entry), (lower, was) = new, old
    assert lower is not None
    if _is_one(entry, was):
        return True
    if _facts(entry.attr) != _facts(was.attr):
        return False
    here, there = union.entry_at(path, entry), lower.entry_at(path, was)
    if stat.S_ISLNK(entry.attr.mode) and here[0].readlink(here[1]) != there[0].readlink(there[1]):
        return False
    if _xattrs(here) != _xattrs(there):
        return False
    if not stat.S_ISREG(entry.attr.mode) or not isinstance(union, MergedUnion):
        return True
    return _same_content(union.entry_data_at(path, entry), lower.entry_data_at(path, was))


def _same_content(here: Place, there: Place) -> bool:
    if (here[0].path, here[1]) == (there[0].path, there[1]):
        return True
    with open(here[0].open(here[1]), "rb") as one, open(there[0].open(there[1]), "rb") as other:
        while chunk := one.read(_CHUNK):
            if chunk != other.read(_CHUNK):
                return False
    return True


def _facts(attr: Attr) -> tuple[int, ...]:
    size = 0 if stat.S_ISDIR(attr.mode) else attr.size
    return attr.mode, attr.uid, attr.gid, attr.rdev, attr.mtime_ns, size


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


def _is_linked(attr: Attr) -> bool:
    return attr.nlink > 1 and not stat.S_ISDIR(attr.mode)


def _add_links(union: Union, found: dict[bytes, _Changed]) -> None:
    """The other names of files that are in the tar, so that they stay one file."""
    for path, (_, entry) in list(found.items()):
        if entry is None or not _is_linked(entry.attr):
            continue
        for name in union.links(path, entry):
            other = union.resolve(name) if name not in found else None
            if other is not None:
                found[name] = _Changed(ChangeKind.MODIFY, other)


def _member(union: Union, path: bytes, entry: Entry, first: dict[tuple[int, int], bytes]) -> Iterator[bytes]:
    attr, (layer, at) = entry.attr, union.entry_at(path, entry)
    is_file, name = stat.S_ISREG(attr.mode), path or b"."
    facts = attr.mode, attr.uid, attr.gid, attr.mtime_ns, attr.rdev
    known = first.setdefault((attr.dev, attr.ino), path) if _is_linked(attr) else path
    if known != path:
        yield tar_writer.header(name, *facts, link=known, hard=True)
        return
    target = layer.readlink(at) if stat.S_ISLNK(attr.mode) else b""
    size = attr.size if is_file else 0
    yield tar_writer.header(name, *facts, size=size, link=target, xattrs=_xattrs((layer, at)))
    if is_file:
        yield from _content(union.entry_data_at(path, entry), size)


def _content(place: Place, size: int) -> Iterator[bytes]:
    """The data of a file, `size` bytes even if it changes meanwhile, and what fills up the last block."""
    layer, path = place
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
