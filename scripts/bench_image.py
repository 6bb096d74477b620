"""Images to measure with: the files below a directory, dealt out to layers as images have them.

The same directory makes the same image, whoever runs it: what is left out is left out by rule, and everything
belongs to root, so that no side needs an override for an owner.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from bench_client import run

from fusestore.transport.document import INDEX, OCI_MANIFEST

LARGEST = 256 << 10  # of the files
LAYERS = 6
CONFIGURATION = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"

Descriptor = dict[str, object]
Found = tuple[str, bool, bool]  # a name, whether it is a directory, and one without directories in it


@dataclass
class Layer:
    """What one layer says: names that it has, directories and files; names that it deletes; opaque ones."""

    names: list[str] = field(default_factory=list)
    markers: list[str] = field(default_factory=list)


def find(tree: Path) -> Iterator[Found]:
    """Names below `tree` in a fixed order."""
    for directory, subdirectories, files in os.walk(tree):
        subdirectories.sort()
        parent = os.path.relpath(directory, tree)
        if parent != ".":
            yield parent, True, not subdirectories
        for file in sorted(files):
            path = os.path.join(directory, file)
            if _is_wanted(path):
                yield os.path.normpath(os.path.join(parent, file)), False, False


def _is_wanted(path: str) -> bool:
    st = os.lstat(path)
    if stat.S_ISLNK(st.st_mode):
        return True
    return stat.S_ISREG(st.st_mode) and st.st_size <= LARGEST and os.access(path, os.R_OK)


def spread(found: Iterable[Found], *, opaque: bool = True) -> list[Layer]:
    """Deal names out to layers as images do, always in the same way.

    Half of the directories come with the base, the others each with one of the layers above, a tenth of all
    files with any layer.  One in 25 files is deleted by the next layer; of the leaf directories one in 40 is
    deleted, and another one in 40 made opaque if `opaque`, by the topmost.
    """
    layers = [Layer() for _ in range(LAYERS)]
    for name, is_directory, is_leaf in found:
        directory, base = os.path.split(name)
        own, home = _lot(name), _lot(name if is_directory else directory)
        at = own % LAYERS if own % 10 == 0 else (1 + home % (LAYERS - 1)) * (home // 7 % 2)
        layers[at].names.append(name)
        if is_leaf and own % 40 == 1:
            layers[-1].markers.append(os.path.join(directory, f".wh.{base}"))
        elif is_leaf and own % 40 == 2 and opaque:
            layers[-1].markers.append(os.path.join(name, ".wh..wh..opq"))
        elif not is_directory and own % 25 == 1 and at + 1 < LAYERS:
            layers[at + 1].markers.append(os.path.join(directory, f".wh.{base}"))
    return layers


def _lot(name: str) -> int:
    return zlib.crc32(os.fsencode(name)) >> 3


def write_layer(tree: Path, layer: Layer, tar: Path) -> None:
    """A layer's tar: everything owned by root, so that nothing needs an override; parents before children."""
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        written = {""}
        for name in layer.names:
            _add(archive, tree, name, written)
        for marker in layer.markers:
            _add(archive, tree, os.path.dirname(marker), written)
            archive.addfile(tarfile.TarInfo(marker))


def _add(archive: tarfile.TarFile, tree: Path, name: str, written: set[str]) -> None:
    if name in written:
        return
    _add(archive, tree, os.path.dirname(name), written)
    written.add(name)
    member = archive.gettarinfo(tree / name, name)
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = member.mode & 0o777 | (0o700 if member.isdir() else 0o600)
    if member.isreg():
        with open(tree / name, "rb") as file:
            archive.addfile(member, file)
    else:
        archive.addfile(member)


# -- the OCI directory ------------------------------------------------------------------------------------


class Blob(NamedTuple):
    """A layer as an image names it."""

    descriptor: Descriptor
    diff_id: str
    size: int  # of the tar


class Layout:
    """An OCI directory that is being made."""

    def __init__(self, path: Path) -> None:
        self._path, self._blobs = path, path / "blobs" / "sha256"
        self._blobs.mkdir(parents=True)
        self._manifests: list[Descriptor] = []
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def add_tree(self, tree: Path, found: Iterable[Found], *, opaque: bool = True) -> list[Blob]:
        """Layers of the names `found` below `tree`, compressed; see `spread`."""
        return [
            self.add_layer(partial(write_layer, tree, layer), compressed=True)
            for layer in spread(found, opaque=opaque)
        ]

    def add_layer(self, write: Callable[[Path], None], *, compressed: bool = False) -> Blob:
        """The layer whose tar `write` writes to the path it gets."""
        tar = self._blobs / "tar"
        write(tar)
        diff_id, size = digest(tar), tar.stat().st_size
        if not compressed:
            return Blob(_adopt(tar, TAR), diff_id, size)
        run(["gzip", "-1", "-n", str(tar)])
        return Blob(_adopt(self._blobs / "tar.gz", f"{TAR}+gzip"), diff_id, size)

    def add_image(self, name: str, layers: Sequence[Blob]) -> None:
        """An image of `layers`, the lowest first."""
        machine = os.uname().machine
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
        rootfs = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
        configuration = {"architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs}
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._document(configuration, CONFIGURATION),
            "layers": [layer.descriptor for layer in layers],
        }
        named = {"org.opencontainers.image.ref.name": name}
        self._manifests.append(self._document(manifest, OCI_MANIFEST) | {"annotations": named})
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": self._manifests}
        (self._path / "index.json").write_text(json.dumps(index))

    def _document(self, document: Mapping[str, object], media_type: str) -> Descriptor:
        path = self._blobs / "document"
        path.write_text(json.dumps(document))
        return _adopt(path, media_type)


def _adopt(path: Path, media_type: str) -> Descriptor:
    """Give a blob its name; its descriptor."""
    name, size = digest(path), path.stat().st_size
    path.rename(path.with_name(name.removeprefix("sha256:")))
    return {"mediaType": media_type, "digest": name, "size": size}


def digest(path: Path) -> str:
    """Of a file."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
