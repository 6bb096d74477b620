"""Commit: the changes of a container as a layer, and an image with it on top (podman: ``commit``).

The new configuration is the old image's with one more diff ID and one more line of history, and with the
changes that the caller asks for in the words of a Containerfile.  The manifest is always OCI's; its older
layers stay described as the blobs that they came as.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from fusestore import digest
from fusestore.architecture import architecture
from fusestore.compression import FORMATS
from fusestore.digest import ChainID
from fusestore.errors import BigDataNotFound, FusestoreError, ImageNotFound
from fusestore.store.items import Container, Image, LayerItem
from fusestore.store.layeritems import LAYER, media_type
from fusestore.store.storage import NewImage, Store

_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Configuration = dict[str, Any]


def _set(key: str) -> Callable[[Configuration, str], None]:
    def change(config: Configuration, value: str) -> None:
        config[key] = value

    return change


def _command(key: str) -> Callable[[Configuration, str], None]:
    def change(config: Configuration, value: str) -> None:
        parsed = json.loads(value) if value.startswith("[") else ["/bin/sh", "-c", value]
        if not isinstance(parsed, list) or not all(isinstance(word, str) for word in parsed):
            raise ValueError("not a list of words")
        config[key] = parsed

    return change


def _member(key: str) -> Callable[[Configuration, str], None]:
    def change(config: Configuration, value: str) -> None:
        words = json.loads(value) if value.startswith("[") else value.split()
        config[key] = {**(config.get(key) or {}), **{word: {} for word in words}}

    return change


def _pairs(value: str) -> dict[str, str]:
    """``A=1 B="2 3"``, or the old form ``A some words``."""
    words = shlex.split(value)
    if words and "=" not in words[0]:
        name, _, rest = value.partition(" ")
        return {name: rest.strip()}
    return dict(word.split("=", 1) for word in words)


def _environment(config: Configuration, value: str) -> None:
    present = dict(entry.partition("=")[::2] for entry in config.get("Env") or ())
    config["Env"] = [f"{name}={text}" for name, text in {**present, **_pairs(value)}.items()]


def _labels(config: Configuration, value: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **_pairs(value)}


def _port(config: Configuration, value: str) -> None:
    ports = [port if "/" in port else f"{port}/tcp" for port in value.split()]
    _member("ExposedPorts")(config, json.dumps(ports))


def _later(config: Configuration, value: str) -> None:
    config["OnBuild"] = [*(config.get("OnBuild") or ()), value]


#: Instructions of a Containerfile that change a configuration (podman commit --change).
INSTRUCTIONS: dict[str, Callable[[Configuration, str], None]] = {
    "CMD": _command("Cmd"),
    "ENTRYPOINT": _command("Entrypoint"),
    "ENV": _environment,
    "EXPOSE": _port,
    "LABEL": _labels,
    "ONBUILD": _later,
    "STOPSIGNAL": _set("StopSignal"),
    "USER": _set("User"),
    "VOLUME": _member("Volumes"),
    "WORKDIR": _set("WorkingDir"),
}


class InvalidChange(FusestoreError, ValueError):
    """A change to a configuration that is none of the instructions, or makes no sense."""


def change(config: Configuration, instruction: str) -> None:
    """Carry out one instruction, as in ``ENV A=1`` or ``CMD=["/bin/sh"]``.  Raises InvalidChange."""
    found = re.fullmatch(r"\s*([A-Za-z]+)[\s=]+(.*?)\s*", instruction, re.DOTALL)
    if found is None or found[1].upper() not in INSTRUCTIONS:
        words = ", ".join(INSTRUCTIONS)
        raise InvalidChange(f"{instruction}: not a change; it begins with one of {words}, and has a value")
    try:
        INSTRUCTIONS[found[1].upper()](config, found[2])
    except ValueError as exc:
        raise InvalidChange(f"{instruction}: {exc}") from None


def commit(
    store: Store,
    container: Container,
    names: Sequence[str] = (),
    *,
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    created: int | None = None,
    squash: bool = False,
) -> Image:
    """Make an image of a container, with these full names; the container stays as it is.

    `created` is in s since 1970: SOURCE_DATE_EPOCH, else now.  With `squash` the image has one layer with
    everything.  Raises InvalidChange, NotSupported, OSError.
    """
    base = _base(store, container)
    configuration = _configuration(store, base)
    run: Configuration = configuration.setdefault("config", {})
    for instruction in changes:
        change(run, instruction)
    parent = None if squash else store.layer(container.layer).parent or None
    below = [] if squash or base is None else store.chain(base)[::-1]
    layer, release = _layer(store, container, parent)
    try:
        moment = _moment(created)
        configuration["created"] = moment
        if author:
            configuration["author"] = author
        diff_ids = [*(item.uncompressed_digest for item in below), layer.uncompressed_digest]
        configuration["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
        line = {"created": moment, "created_by": "fusestore commit", "comment": message, "author": author}
        history = [] if squash else configuration.get("history") or []
        configuration["history"] = [*history, {key: value for key, value in line.items() if value}]
        document = _encoded(configuration)
        manifest = _manifest(document, [*_described(store, base, below), _plain(layer)])
        return store.create_images([NewImage(names, ChainID(layer.id), document, manifest)])[0]
    finally:
        release()


def _base(store: Store, container: Container) -> Image | None:
    """The image that a container was made from; it may be gone from its additional store."""
    try:
        return store.image(container.image) if container.image else None
    except ImageNotFound:
        raise ImageNotFound(container.image) from None


def _configuration(store: Store, base: Image | None) -> Configuration:
    plain = {"architecture": architecture()[0], "os": "linux"}
    if base is None:
        return plain
    try:
        return dict(store.configuration(base))
    except BigDataNotFound:  # an image made by hand
        return plain


def _layer(store: Store, container: Container, parent: str | None) -> tuple[LayerItem, Callable[[], object]]:
    """The changes as a layer on top of `parent`, and what to do when an image is on it, or is not to be."""
    with store.layer_items.diff(parent, container.layer, "") as changes:
        if parent is None or parent.startswith("sha256:"):
            handle = store.layer_store.register(changes, ChainID(parent) if parent else None)
            return store.layer(handle.chain_id), lambda: store.layer_store.release(handle)
        layer = store.put_layer(parent=parent, diff=changes)

    def release() -> None:
        if not store.images_by_top_layer(layer.id):
            store.delete_layer(layer.id)

    return layer, release


def _moment(created: int | None) -> str:
    if created is None:
        created = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(layer: LayerItem) -> dict[str, object]:
    """The descriptor of a layer as its uncompressed tar."""
    return {"mediaType": LAYER, "digest": layer.uncompressed_digest, "size": layer.uncompressed_size or 0}


def _described(store: Store, base: Image | None, below: Sequence[LayerItem]) -> list[Mapping[str, object]]:
    """The descriptors of the base's layers: as its manifest has them, else as their tars."""
    try:
        told = store.manifest(base).get("layers") if base and below else None
    except BigDataNotFound:
        told = None
    if not isinstance(told, list) or len(told) != len(below):
        return [_plain(layer) for layer in below]
    return [{**descriptor, "mediaType": _oci_type(str(descriptor.get("mediaType")))} for descriptor in told]


def _oci_type(told: str) -> str:
    """A layer's media type in OCI's words; Docker's names are ``...tar.gzip``."""
    return media_type(next((form for form in FORMATS if told.endswith(form)), ""))


def _manifest(configuration: bytes, layers: Sequence[Mapping[str, object]]) -> bytes:
    described = {
        "mediaType": _CONFIG,
        "digest": digest.of_bytes(configuration),
        "size": len(configuration),
    }
    return _encoded({"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": list(layers)})


def _encoded(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
