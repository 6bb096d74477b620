"""Which layer answers for a name.

Walk the stack from the top.  The first layer with an opinion wins: a whiteout says no, a non-directory says
"me alone", a directory says "me, and whoever below me is a directory too" - until one of us is opaque.  A
layer of which the parent is not part of the merged directory is not asked at all: the stack given is the
parent's.

Lookup, readdir, Changes and Diff all call here, so that there is one answer.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence

from fusestore.driver.union.layerdir import REDIRECT, WHITEOUT, Attr, LayerDir, Place


class Entry:
    """An object of the union: its attributes, the lower layers it is made of, topmost first, where they
    have it.

    `upper` says that the upper layer has it too, and then `origin` are the attributes of the lower object
    that gives it its inode number, if any does.
    """

    __slots__ = ("attr", "layers", "origin", "path", "upper")

    def __init__(
        self,
        attr: Attr,
        layers: tuple[LayerDir, ...],
        path: bytes,
        *,
        upper: bool = False,
        origin: Attr | None = None,
    ) -> None:
        self.attr = attr
        self.layers = layers
        self.path = path
        self.upper = upper
        self.origin = origin


def join(directory: bytes, name: bytes) -> bytes:
    """The path of `name` in `directory`; that of the root is empty."""
    return directory + b"/" + name if directory else name


def resolve(layers: Sequence[LayerDir], path: bytes) -> Entry | None:
    """What `path` is, where `layers` are the layers of its parent directory; None when it is not.

    Raises OSError.
    """
    top = None
    found: list[LayerDir] = []
    last = layers[-1]
    for layer in layers:
        attr = layer.look(path)
        if attr is None:
            continue
        if attr is WHITEOUT:
            break
        if top is None:
            if not stat.S_ISDIR(attr.mode):
                return Entry(attr, (layer,), path)
            top = attr
        elif not stat.S_ISDIR(attr.mode):
            break
        found.append(layer)
        if layer is not last and _ends_here(layer, path):
            break
    if top is None:
        return None
    if len(found) > 1:
        top.nlink = 1  # "unknown" to find(1) and fts(3), and what the kernel's overlayfs says
    return Entry(top, tuple(found), path)


def _ends_here(layer: LayerDir, path: bytes) -> bool:
    """True when the directory at `path` hides those below."""
    marks = layer.marks(path)
    if REDIRECT in marks:
        raise OSError(errno.EIO, "a renamed directory in a lower layer, which fusestore does not read", path)
    return layer.is_opaque(path, marks)


def children(places: Sequence[Place]) -> list[tuple[bytes, int]]:
    """The names in a merged directory, of which `places` are the parts, topmost first.

    Each comes with the index of the topmost layer that has it.  Raises OSError.
    """
    if len(places) == 1:
        layer, path = places[0]
        return [(name, 0) for name, deleted in layer.scan(path) if not deleted]
    opinions: dict[bytes, int] = {}
    for index, (layer, path) in enumerate(places):
        for name, deleted in layer.scan(path):
            if name not in opinions:
                opinions[name] = -1 if deleted else index
    return [(name, index) for name, index in opinions.items() if index >= 0]
