"""What a union shows to a library, as `trees.described` shows what is on disk or mounted.

Also a program, for root of a user namespace, from whom no mode hides anything: ``python unions.py GRAPHROOT``
prints what is in a store of containers/storage as JSON, the trees of images and the digests of layers' tars.
"""

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

from support_real.trees import _TYPES

from fusestore.driver import below
from fusestore.driver.union.tree import Union
from fusestore.store.graphroot import GraphRoot
from fusestore.store.tarsplit import assemble


def described(union: Union) -> tuple[dict[str, dict], set[str]]:
    """Path -> attributes, as of a directory tree; and the paths of what must not be read."""
    found, inodes, closed = {}, {}, set()
    todo = [(b"", union.node(1))]
    while todo:
        path, node = todo.pop()
        name, attr = os.fsdecode(path), union.attr(node)
        seen = found[name] = _attributes(attr)
        try:
            seen |= _content(union, node)
            if stat.S_ISDIR(attr.mode):
                todo += _children(union, path, node)
        except PermissionError:
            closed.add(name)
        if not stat.S_ISDIR(attr.mode):
            seen["links"] = inodes.setdefault(node.ino, [])
            seen["links"].append(name)
    for group in inodes.values():
        group.sort()
    return found, closed


def _children(union, path, node):
    handle = union.opendir(node.ino)
    for name, child, _ in list(union.readdir(handle, 2)):
        if isinstance(child, OSError):
            raise child
        union.count(child)
        yield path + b"/" + name if path else name, child
    union.releasedir(handle)


def _attributes(attr):
    kind = _TYPES[stat.S_IFMT(attr.mode)]
    seen = {"type": kind, "mode": f"{stat.S_IMODE(attr.mode):04o}", "uid": attr.uid, "gid": attr.gid}
    seen["mtime"] = attr.mtime_ns
    if kind != "directory":
        seen["nlink"] = attr.nlink
    if kind in ("file", "symlink"):
        seen["size"] = attr.size
    if kind in ("char", "block"):
        seen["device"] = [os.major(attr.rdev), os.minor(attr.rdev)]
    return seen


def _content(union, node):
    seen = {}
    if stat.S_ISLNK(node.attr.mode):
        seen["target"] = os.fsdecode(union.readlink(node.ino))
    if stat.S_ISREG(node.attr.mode):
        with os.fdopen(union.open(node.ino, os.O_RDONLY), "rb") as data:
            seen["content"] = hashlib.file_digest(data, "sha256").hexdigest()
    names = sorted(union.listxattr(node.ino))
    seen["xattrs"] = {os.fsdecode(name): union.getxattr(node.ino, name).hex() for name in names}
    return seen


def tree(root: GraphRoot, layer: str) -> tuple[dict[str, dict], set[str]]:
    """What a layer of a graphroot shows, and what of it must not be read."""
    with below.opened(root.specs(layer), None, None) as union:
        return described(union)


def tar(root: GraphRoot, layer: str) -> bytes:
    """The tar of a layer, from its record and its files."""
    files = root.files(layer)
    with root.record(layer) as record:
        try:
            return b"".join(assemble(record, files, layer))
        finally:
            files.close()


def _everything(root):
    images = {image.id: tree(root, image.top_layer)[0] for image in root.images()}
    known = [layer.id for layer in root.layers() if layer.uncompressed_digest]
    layers = {layer: "sha256:" + hashlib.sha256(tar(root, layer)).hexdigest() for layer in known}
    return {"images": images, "layers": layers}


if __name__ == "__main__":
    json.dump(_everything(GraphRoot(Path(sys.argv[1]))), sys.stdout)
