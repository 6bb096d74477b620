"""Manifests, indexes and configurations: JSON from strangers, parsed once and with suspicion.

Sizes are capped before parsing, keys may not repeat, and a document that could be read as two kinds is
refused (CVE-2021-41190).  Field names are those of the OCI image-spec (manifest.md, image-index.md,
config.md) and of Docker's schema 2, which differ in media types only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusestore import digest
from fusestore.architecture import architecture
from fusestore.digest import DiffID, Digest
from fusestore.errors import InvalidImage

SIZE_LIMIT = 4 << 20  # as registries do

INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

_INDEXES = (INDEX, DOCKER_LIST)
_MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    platform: Mapping[str, Any]
    annotations: Mapping[str, Any]


def parse(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object.  Raises InvalidImage."""
    if len(data) > SIZE_LIMIT:
        raise InvalidImage(where, f"a document of {len(data)} bytes is over the limit of {SIZE_LIMIT}")
    try:
        document = json.loads(data, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise InvalidImage(where, f"not valid JSON: {exc}") from None
    if not isinstance(document, dict):
        raise InvalidImage(where, "not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def descriptor(value: object, where: str) -> Descriptor:
    """One descriptor.  Raises InvalidImage."""
    if not isinstance(value, dict):
        raise InvalidImage(where, "a descriptor is not an object")
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 53:
        raise InvalidImage(where, f"a descriptor's size is {size!r}")
    try:
        name = digest.parse(value.get("digest"))
    except ValueError as exc:
        raise InvalidImage(where, str(exc)) from None
    media_type = value.get("mediaType", "")
    return Descriptor(
        str(media_type), name, size, _mapping(value, "platform"), _mapping(value, "annotations")
    )


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = document.get(key)
    return value if isinstance(value, dict) else {}


def is_index(document: Mapping[str, Any], where: str) -> bool:
    """True for an index (manifest list), False for a manifest.  Raises InvalidImage for neither or both."""
    media_type = document.get("mediaType", "")
    if document.get("schemaVersion") != 2:
        raise InvalidImage(where, "neither an OCI nor a Docker schema 2 manifest")
    if ("layers" in document or "config" in document) == ("manifests" in document):
        raise InvalidImage(where, "neither clearly a manifest nor clearly an index")
    index = "manifests" in document
    if media_type and media_type not in (_INDEXES if index else _MANIFESTS):
        raise InvalidImage(where, f"media type {media_type!r} does not fit its content")
    return index


def manifests(index: Mapping[str, Any], where: str) -> list[Descriptor]:
    """The entries of an index.  Raises InvalidImage."""
    entries = index["manifests"]
    if not isinstance(entries, list):
        raise InvalidImage(where, "an index without a list of manifests")
    return [descriptor(entry, where) for entry in entries]


def for_this_platform(entries: list[Descriptor], where: str) -> Descriptor:
    """The entry for this machine, or the only one if it names no platform.  Raises InvalidImage."""
    if len(entries) == 1 and not entries[0].platform:
        return entries[0]
    machine, variant = architecture()
    fitting = [
        e for e in entries if e.platform.get("os") == "linux" and e.platform.get("architecture") == machine
    ]
    exact = [e for e in fitting if e.platform.get("variant", "") in ("", variant)]
    if exact or fitting:
        return (exact or fitting)[0]
    offered = sorted({_platform(e) for e in entries})
    raise InvalidImage(where, f"no image for linux/{machine}; it has {', '.join(offered) or 'none'}")


def _platform(entry: Descriptor) -> str:
    parts = (entry.platform.get(key) for key in ("os", "architecture", "variant"))
    return "/".join(str(part) for part in parts if part) or "one without a platform"


def layers(manifest: Mapping[str, Any], where: str) -> tuple[Descriptor, list[Descriptor]]:
    """A manifest's configuration and layers.  Raises InvalidImage."""
    entries = manifest.get("layers")
    if not isinstance(entries, list):
        raise InvalidImage(where, "a manifest without a list of layers")
    return descriptor(manifest.get("config"), where), [descriptor(entry, where) for entry in entries]


def diff_ids(configuration: Mapping[str, Any], where: str) -> list[DiffID]:
    """The diff IDs that an image's configuration claims, from the base up.  Raises InvalidImage."""
    rootfs = configuration.get("rootfs")
    listed = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(listed, list):
        raise InvalidImage(where, "not a container image: its configuration has no rootfs.diff_ids")
    try:
        return [DiffID(digest.parse(entry)) for entry in listed]
    except ValueError as exc:
        raise InvalidImage(where, str(exc)) from None
