"""A tar by ``docker save`` or ``podman save``, whose ``manifest.json`` lists images.

An image is a configuration and layers.
The format names no compressed blobs, only diff IDs in the configuration.  So the manifest we keep is one that
says so: the layers as uncompressed tars, as podman does.  Archives from before Docker 1.10 (``repositories``
only) have no content addresses at all and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import Any

from fusestore import digest, reference
from fusestore.digest import DiffID, Readable
from fusestore.errors import DigestMismatch, InvalidImage, InvalidReference
from fusestore.transport import document
from fusestore.transport.archive import Archive
from fusestore.transport.document import DOCKER_CONFIG, DOCKER_LAYER, DOCKER_MANIFEST, SIZE_LIMIT
from fusestore.transport.source import ImageSource, LayerSource


def is_docker(archive: Archive) -> bool:
    """True for a tar that holds such images."""
    return "manifest.json" in archive or "repositories" in archive


def images(archive: Archive, ref: str | None) -> list[ImageSource]:
    """All images, or the one that `ref` names.  Raises InvalidImage, DigestMismatch."""
    if "manifest.json" not in archive:
        raise InvalidImage(archive.name, "written by a Docker before 1.10; load and save it with a newer one")
    entries = _entries(archive)
    found = [_image(archive, entry) for entry in entries]
    if ref is None:
        return found
    wanted = reference.parse(ref).full()
    chosen = [image for image in found if wanted in image.names]
    if not chosen:
        offered = ", ".join(name for image in found for name in image.names) or "none"
        raise InvalidImage(f"{archive.name}:{ref}", f"no such image; it has {offered}")
    return chosen


def _entries(archive: Archive) -> list[dict[str, Any]]:
    data = _small(archive, "manifest.json")
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InvalidImage(archive.name, f"manifest.json is not valid JSON: {exc}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise InvalidImage(archive.name, "manifest.json does not list any image")
    return entries


def _image(archive: Archive, entry: dict[str, Any]) -> ImageSource:
    name, layers = entry.get("Config"), entry.get("Layers") or []
    if (
        not isinstance(name, str)
        or not isinstance(layers, list)
        or not all(isinstance(x, str) for x in layers)
    ):
        raise InvalidImage(archive.name, "manifest.json without Config and Layers")
    configuration = _small(archive, name)
    image_id = digest.of_bytes(configuration)
    claimed = PurePosixPath(name).name.removesuffix(".json")
    if len(claimed) == 64 and claimed != digest.encoded(image_id):
        raise DigestMismatch(f"{archive.name}: {name}", f"sha256:{claimed}", image_id)
    diff_ids = document.diff_ids(document.parse(configuration, name), archive.name)
    if len(diff_ids) != len(layers):
        raise InvalidImage(archive.name, f"{len(layers)} layers but {len(diff_ids)} diff IDs")
    sources = [_layer(archive, path, diff_id) for path, diff_id in zip(layers, diff_ids, strict=True)]
    return ImageSource(_names(entry, archive.name), _manifest(configuration, sources), configuration, sources)


def _layer(archive: Archive, path: str, diff_id: DiffID) -> LayerSource:
    @contextmanager
    def opened() -> Iterator[Readable]:
        yield archive.open(path)

    return LayerSource(diff_id, None, archive.open(path).size, opened)


def _names(entry: dict[str, Any], where: str) -> list[str]:
    tags = entry.get("RepoTags") or []
    if not isinstance(tags, list):
        raise InvalidImage(where, "manifest.json has RepoTags that are no list")
    names = []
    for tag in tags:
        with suppress(InvalidReference):
            names.append(reference.parse(str(tag)).full())
    return names


def _manifest(configuration: bytes, layers: list[LayerSource]) -> bytes:
    """The schema 2 manifest of an image whose layers are uncompressed."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": DOCKER_CONFIG,
                "size": len(configuration),
                "digest": digest.of_bytes(configuration),
            },
            "layers": [{"mediaType": DOCKER_LAYER, "size": x.size, "digest": x.diff_id} for x in layers],
        },
        separators=(",", ":"),
    ).encode()


def _small(archive: Archive, name: str) -> bytes:
    piece = archive.open(name)
    if piece.size > SIZE_LIMIT:
        raise InvalidImage(archive.name, f"{name} is over the limit of {SIZE_LIMIT} bytes")
    return piece.read(SIZE_LIMIT)
