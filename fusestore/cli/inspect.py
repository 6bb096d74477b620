"""``fusestore inspect``: all that is known of images and containers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from fusestore.cli.images import listed, run_configuration
from fusestore.cli.output import as_json, lookup, open_store
from fusestore.errors import BigDataNotFound
from fusestore.store.items import Container, Image
from fusestore.store.storage import Store


@click.command()
@click.argument("names", metavar="IMAGE|CONTAINER...", nargs=-1, required=True)
@click.option(
    "--format", "form", type=click.Choice(["json"]), default="json", show_default=True, help="Output as"
)
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...], form: str) -> None:
    """Print all that is known of images and containers, as a JSON array with podman's keys.

    \b
    fusestore inspect debian:12 | jq '.[0].Config.Env'
    """
    store = open_store(ctx)
    as_json([_inspected(store, name) for name in names])


def _inspected(store: Store, name: str) -> dict[str, Any]:
    item = lookup(store, name, Container, Image)
    return _container(store, item) if isinstance(item, Container) else _image(store, store.image(item.id))


def _document(read: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """A document of an image; nothing where the image was made by hand, without it."""
    try:
        return read()
    except BigDataNotFound:
        return {}


def _container(store: Store, container: Container) -> dict[str, Any]:
    mounted = store.mounted(container.layer)
    return {
        "Id": container.id,
        "Names": list(container.names),
        "Image": container.image,
        "Created": container.created,
        "LayerID": container.layer,
        "Metadata": container.metadata,
        "Flags": dict(container.flags),
        "BigData": {key: blob.size for key, blob in container.big_data.items()},
        "GraphDriver": {
            "Name": store.graph_driver_name,
            "Data": store.graph_driver.metadata(store.layer_items.record(container.layer).cache_id),
        },
        "Mounted": mounted,
        "Mountpoint": str(store.mountpoint(container.layer)) if mounted else "",
        "SizeRw": store.diff_size("", container.layer),
    }


def _image(store: Store, image: Image) -> dict[str, Any]:
    configuration = _document(lambda: store.configuration(image))
    manifest = _document(lambda: store.manifest(image))
    run = run_configuration(store, image)
    chain = store.chain(image)
    known = listed(image)
    return {
        **{key: known[key] for key in ("Id", "Digest", "RepoTags", "RepoDigests")},
        "Parent": "",
        "Comment": configuration.get("comment", ""),
        "Created": configuration.get("created"),
        "Config": run,
        "Version": configuration.get("docker_version", ""),
        "Author": configuration.get("author", ""),
        "Architecture": configuration.get("architecture", ""),
        "Os": configuration.get("os", ""),
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": store.driver_data(image),
        "RootFS": {"Type": "layers", "Layers": [layer.uncompressed_digest for layer in reversed(chain)]},
        "Labels": run.get("Labels"),
        "Annotations": manifest.get("annotations") or {},
        "ManifestType": manifest.get("mediaType", "application/vnd.oci.image.manifest.v1+json"),
        "User": run.get("User", ""),
        "History": configuration.get("history") or [],
        "NamesHistory": list(image.names_history or image.names),
        "ReadOnly": image.read_only,
        "ForeignOwners": [str(owner) for owner in store.unreadable(image)],
    }
