"""Graphroots of containers/storage written by hand, byte by byte as podman writes them."""

import hashlib
import json
import os

from fusestore.driver.stack import open_layer
from fusestore.driver.union.tree import Union
from fusestore.store.bigdata import big_data_name
from fusestore.store.graphroot import GraphRoot

CREATED = "2025-08-29T10:00:00.123456789Z"


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Written:
    """A graphroot below `path`; `open` reads it."""

    def __init__(self, path, driver="overlay"):
        self.path, self.driver = path, driver
        self.layers, self.images = [], []
        for kind in ("layers", "images"):
            (path / f"{driver}-{kind}").mkdir(parents=True, exist_ok=True)

    def file(self, kind, name=None):
        """The JSON file of layers or images."""
        return self.path / f"{self.driver}-{kind}" / (name or f"{kind}.json")

    def put(self, kind, content, name=None):
        """Replace a JSON file, by a rename as podman does; `content` is bytes or what they say."""
        data = content if isinstance(content, bytes) else json.dumps(content, separators=(",", ":")).encode()
        file = self.file(kind, name)
        staged = file.with_name(".tmp-" + file.name)
        staged.write_bytes(data)
        staged.rename(file)

    def layer(self, layer_id, parent="", files=(), **fields):
        """One more layer: its directory with `files` (name -> content; None: whiteout), and its record."""
        home = self.path / ("overlay" if self.driver == "overlay" else "vfs/dir") / layer_id
        diff = home / "diff" if self.driver == "overlay" else home
        diff.mkdir(parents=True)
        for name, content in dict(files).items():
            (diff / name).parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                os.mknod(diff / name, 0o20000)
            else:
                (diff / name).write_bytes(content)
        above = {"parent": parent} if parent else {}
        self.layers.append({"id": layer_id, **above, "created": CREATED, **fields})
        self.put("layers", self.layers)
        return diff

    def image(self, image_id, layer="", big_data=(), **fields):
        """One more image: the files of its big data, and its record."""
        big_data = dict(big_data)
        directory = self.path / f"{self.driver}-images" / image_id
        directory.mkdir(exist_ok=True)
        for key, data in big_data.items():
            (directory / big_data_name(key)).write_bytes(data)
        noted = {
            "big-data-names": list(big_data),
            "big-data-sizes": {key: len(data) for key, data in big_data.items()},
            "big-data-digests": {key: sha256(data) for key, data in big_data.items()},
        }
        self.images.append({"id": image_id, "layer": layer, **noted, "created": CREATED, **fields})
        self.put("images", self.images)

    def open(self, **options):
        return GraphRoot(self.path, **options)


def tree(specs):
    """Path -> content of every file of a union, None for directories."""
    layers = [open_layer(spec, None, None) for spec in specs]
    try:
        return dict(_tree(Union(layers)))
    finally:
        for layer in layers:
            layer.close()


def _tree(union):
    todo = [(b"", union.node(1))]
    while todo:
        path, node = todo.pop()
        handle = union.opendir(node.ino)
        for name, child, _ in list(union.readdir(handle, 2)):
            below = path + b"/" + name if path else name
            if child.attr.mode & 0o170000 == 0o040000:
                union.count(child)
                todo.append((below, child))
                yield below.decode(), None
            else:
                union.count(child)
                fd = union.open(child.ino, os.O_RDONLY)
                with os.fdopen(fd, "rb") as file:
                    yield below.decode(), file.read()
