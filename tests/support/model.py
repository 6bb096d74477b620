"""What a stack of layers means, as a dictionary: the simplest thing that could be right.

A layer is a list of `Op`; a tree is a dictionary from path to `Thing`.  Names of one file share one `Thing`.
"""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from support.layers import Shown
from support.tars import CHAR, FIFO, folder, hard_link, member, symlink, tar


@dataclass(eq=False)
class Thing:
    """A file of any type; what a tar entry says of it."""

    kind: int
    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    rdev: int = 0
    content: bytes | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Op(NamedTuple):
    """An entry: ``make`` a thing, ``link`` a name to another, ``delete`` a name, an ``opaque`` directory."""

    verb: str
    path: str
    thing: Thing | None = None
    target: str = ""


Tree = dict[str, Thing]


def above(path: str) -> list[str]:
    """The directories above a path, the root first."""
    parts = path.split("/") if path else []
    return ["/".join(parts[:i]) for i in range(len(parts))]


def below(tree: dict, path: str) -> list[str]:
    """The names in `tree` below `path`, itself included."""
    return [name for name in tree if name == path or name.startswith(path + "/")]


def is_directory(thing: Thing | None) -> bool:
    """None is a directory that a layer only implies."""
    return thing is None or stat.S_ISDIR(thing.kind)


def new_directory() -> Thing:
    return Thing(stat.S_IFDIR, 0o755)


def layer(lower: Tree, ops: list[Op]) -> tuple[dict[str, Thing | None], list[Op]]:
    """What a layer says by itself (None: an implied directory), and those of `ops` that make sense."""
    own: dict[str, Thing | None] = {}
    sensible = []
    for op in ops:
        if op.verb in ("delete", "opaque"):
            sensible.append(op)
            continue
        if not all(is_directory(own.get(directory)) for directory in above(op.path)):
            continue
        thing = op.thing
        if op.verb == "link":
            reachable = all(is_directory(own.get(directory)) for directory in above(op.target))
            thing = own.get(op.target, lower.get(op.target)) if reachable else None
            inside = op.target.startswith(op.path + "/") or op.path.startswith(op.target + "/")
            if thing is None or is_directory(thing) or inside or op.target == op.path:
                continue
        own |= {directory: None for directory in above(op.path) if directory and directory not in own}
        if op.path in own and not (is_directory(own[op.path]) and is_directory(thing)):
            for name in below(own, op.path):
                del own[name]
        own[op.path] = thing
        sensible.append(op)
    return own, [op for op in sensible if op.verb not in ("delete", "opaque") or _is_placed(own, op)]


def _is_placed(own: dict[str, Thing | None], op: Op) -> bool:
    return all(is_directory(own.get(directory)) for directory in above(op.path))


def merge(lower: Tree, own: dict[str, Thing | None], ops: list[Op]) -> Tree:
    """The tree after a layer: what it deletes goes from `lower`, what it has is laid over the rest."""
    deleted = {op.path for op in ops if op.verb == "delete"}
    opaque = {op.path for op in ops if op.verb == "opaque"}
    gone = {path for path in lower if path in deleted or (deleted | opaque).intersection(above(path))}
    tree = {path: thing for path, thing in lower.items() if path not in gone}
    for path in sorted(own, key=lambda path: path.count("/")):
        thing, present = own[path], tree.get(path)
        if is_directory(thing) and present is not None and is_directory(present):
            tree[path] = thing or present
            continue
        for name in below(tree, path):
            del tree[name]
        tree[path] = thing or new_directory()
    return tree


def stacked(layers: list[list[Op]]) -> tuple[Tree, list[bytes]]:
    """The tree of a stack of layers, and the tars that say the same."""
    tree: Tree = {"": new_directory()}
    archives = []
    for ops in layers:
        own, ops = layer(tree, ops)
        tree = merge(tree, own, ops)
        archives.append(tar(*map(entry, ops)))
    return tree, archives


def entry(op: Op) -> bytes:
    """An `Op` as a tar member."""
    directory, slash, name = op.path.rpartition("/")
    if op.verb == "delete":
        return member(f"{directory}{slash}.wh.{name}")
    if op.verb == "opaque":
        return member(f"{op.path}/.wh..wh..opq".lstrip("/"))
    if op.verb == "link":
        return hard_link(op.path, op.target)
    thing = op.thing
    assert thing is not None
    attributes = {"mode": thing.mode, "uid": thing.uid, "gid": thing.gid, "mtime": thing.mtime}
    attributes["extra"] = {b"SCHILY.xattr." + name: value for name, value in thing.xattrs.items()}
    if stat.S_ISREG(thing.kind):
        return member(op.path, thing.content or b"", **attributes)
    if stat.S_ISDIR(thing.kind):
        return folder(op.path or "./", **attributes)
    if stat.S_ISLNK(thing.kind):
        del attributes["mode"]
        return symlink(op.path, thing.content or b"", **attributes)
    if stat.S_ISFIFO(thing.kind):
        return member(op.path, kind=FIFO, **attributes)
    return member(op.path, kind=CHAR, major=os.major(thing.rdev), minor=os.minor(thing.rdev), **attributes)


Facts = tuple[object, ...]


def facts(tree: Tree) -> dict[bytes, Facts]:
    """All that can be seen of a tree; names of one file are told by the first of them."""
    count = Counter(id(thing) for thing in tree.values())
    first: dict[int, str] = {}
    for path in sorted(tree):
        first.setdefault(id(tree[path]), path)
    return {
        path.encode(): (
            thing.kind,
            thing.mode,
            thing.uid,
            thing.gid,
            thing.mtime * 1_000_000_000,
            thing.rdev,
            thing.content,
            thing.xattrs,
            None if is_directory(thing) else count[id(thing)],
            first[id(thing)].encode() if not is_directory(thing) else None,
        )
        for path, thing in tree.items()
    }


def shown_facts(shown: dict[bytes, Shown]) -> dict[bytes, Facts]:
    """The same of a tree as a union shows it."""
    first: dict[int, bytes] = {}
    for path in sorted(shown):
        first.setdefault(shown[path].ino, path)
    return {
        path: (
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            entry.rdev,
            entry.content,
            entry.xattrs,
            None if stat.S_ISDIR(entry.kind) else entry.nlink,
            first[entry.ino] if not stat.S_ISDIR(entry.kind) else None,
        )
        for path, entry in shown.items()
    }
