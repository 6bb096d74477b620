"""Images as OCI layouts and docker archives, made by hand so that every part may be wrong."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.tars import member, tar

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
REF_NAME = "org.opencontainers.image.ref.name"

Edit = Callable[[Any], None]


def unchanged(value: Any) -> None:
    """The edit that does nothing."""


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dumped(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def configuration(archives: list[bytes]) -> dict[str, Any]:
    """A configuration for layers of uncompressed tars."""
    return {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [sha256(archive) for archive in archives]},
    }


def blob(place: Path, data: bytes, media_type: str) -> dict[str, Any]:
    """Put a blob into a layout; its descriptor."""
    directory = place / "blobs" / "sha256"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / sha256(data)[7:]).write_bytes(data)
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data)}


def path_of(place: Path, descriptor: dict[str, Any]) -> Path:
    """Where a layout keeps a blob."""
    return place / "blobs" / "sha256" / descriptor["digest"][7:]


def image(
    place: Path,
    archives: list[bytes],
    *,
    compress: Callable[[bytes], bytes] = bytes,
    config: Edit = unchanged,
    manifest: Edit = unchanged,
) -> dict[str, Any]:
    """Put an image into a layout; its manifest's descriptor.  `config`, `manifest` edit what is written."""
    settings = configuration(archives)
    config(settings)
    described = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(place, dumped(settings), CONFIG),
        "layers": [blob(place, compress(archive), LAYER) for archive in archives],
    }
    manifest(described)
    return blob(place, dumped(described), MANIFEST)


def layout(place: Path, entries: list[dict[str, Any]], *, index: Edit = unchanged) -> Path:
    """Make a layout of what is there of these manifests."""
    listed = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    index(listed)
    place.mkdir(parents=True, exist_ok=True)
    (place / "index.json").write_bytes(dumped(listed))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return place


def named(descriptor: dict[str, Any], name: str) -> dict[str, Any]:
    """The entry of an index for a manifest that has a name."""
    return descriptor | {"annotations": {REF_NAME: name}}


def oci(
    place: Path, *archives: bytes, name: str | None = "image:1", index: Edit = unchanged, **edits: Any
) -> Path:
    """A layout with one image."""
    described = image(place, list(archives), **edits)
    return layout(place, [named(described, name) if name else described], index=index)


def packed(place: Path) -> bytes:
    """A directory as a tar; the manifest comes late, as in archives by others."""
    files = sorted((path for path in place.rglob("*") if path.is_file()), reverse=True)
    return tar(*(member(str(path.relative_to(place)), path.read_bytes()) for path in files))


def docker(
    *archives: bytes,
    tags: list[str] | None = None,
    config: Edit = unchanged,
    entry: Edit = unchanged,
) -> list[bytes]:
    """The members of a ``docker save`` with one image, ``manifest.json`` last."""
    settings = configuration(list(archives))
    config(settings)
    written = dumped(settings)
    name = f"{sha256(written)[7:]}.json"
    layers = [f"{sha256(archive)[7:]}/layer.tar" for archive in archives]
    described = {"Config": name, "RepoTags": tags, "Layers": layers}
    entry(described)
    members = [member(layer, archive) for layer, archive in zip(layers, archives, strict=True)]
    return [*members, member(name, written), member("manifest.json", dumped([described]))]
