"""``fusestore images``, ``layers``, ``rmi``: what the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from fusestore import reference
from fusestore.cli.output import FORMAT, age, as_json, open_store, size, table
from fusestore.errors import BigDataNotFound, InvalidReference, LayerInUse
from fusestore.store.items import Image, LayerItem
from fusestore.store.storage import Store

_SHORT_ID = 12


@click.command()
@click.argument("name", required=False)
@FORMAT
@click.option("-q", "--quiet", is_flag=True, help="Print ids only")
@click.option("--no-trunc", is_flag=True, help="Print whole ids")
@click.option("-n", "--noheading", is_flag=True, help="No heading")
@click.pass_context
def images(
    ctx: click.Context, name: str | None, form: str, quiet: bool, no_trunc: bool, noheading: bool
) -> None:
    """List the images in the store, or those that NAME is a name of.

    \b
    fusestore images
    fusestore images --format json | jq '.[].Names'
    """
    store = open_store(ctx)
    found = [image for image in store.images() if name is None or _fits(image, name)]
    if form == "json":
        as_json(
            [listed(image) | {"Labels": run_configuration(store, image).get("Labels")} for image in found]
        )
        return
    length = None if no_trunc else _SHORT_ID
    if quiet:
        for image in found:
            click.echo(image.id[:length])
        return
    rows = []
    for image in found:
        digits = f"sha256:{image.id}" if no_trunc else image.id[:_SHORT_ID]
        for full in image.names or ("<none>:<none>",):
            repository, tag = reference.repository_and_tag(full)
            rows.append((repository, tag, digits, age(image.created), size(image.size), image.read_only))
    _print(rows, heading=not noheading)


def _print(rows: list[tuple[str, str, str, str, str, bool]], *, heading: bool) -> None:
    """Podman's columns; the last one only where there is something to say."""
    words = ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]
    shown = [list(row[:5]) for row in rows]
    if any(row[5] for row in rows):
        words.append("R/O")
        shown = [[*cells, str(row[5]).lower()] for cells, row in zip(shown, rows, strict=True)]
    table(shown, words if heading else ())


def _fits(image: Image, name: str) -> bool:
    try:
        wanted = reference.candidates(name)
    except InvalidReference:
        return False
    if ":" in name.rpartition("/")[2]:
        return any(n in wanted for n in image.names)
    repositories = [reference.repository_and_tag(n)[0] for n in wanted]
    return any(reference.repository_and_tag(n)[0] in repositories for n in image.names)


def run_configuration(store: Store, image: Image) -> Mapping[str, Any]:
    """What an image says about how to run it; nothing if it was made by hand, without a configuration."""
    try:
        run = store.configuration(image).get("config")
    except BigDataNotFound:
        return {}
    return run if isinstance(run, Mapping) else {}


def listed(image: Image) -> dict[str, Any]:
    """Podman's keys for a list of images."""
    repositories = {reference.repository_and_tag(name)[0] for name in image.names}
    return {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": list(image.names) or None,
        "RepoDigests": [f"{repository}@{image.digest}" for repository in sorted(repositories)],
        "Size": image.size,
        "VirtualSize": image.size,
        "Names": list(image.names),
        "Digest": image.digest,
        "Created": image.created,
        "CreatedAt": datetime.fromtimestamp(image.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "TopLayer": image.top_layer,
        "ReadOnly": image.read_only,
    }


@click.command()
@FORMAT
@click.option("--no-trunc", is_flag=True, help="Print whole ids")
@click.pass_context
def layers(ctx: click.Context, form: str, no_trunc: bool) -> None:
    """List the layers in the store.

    \b
    fusestore layers
    fusestore layers --format json
    """
    store = open_store(ctx)
    found = store.layers()
    if form == "json":
        as_json([_layer(store, layer) for layer in found])
        return

    def short(name: str | None) -> str:
        digits = (name or "").removeprefix("sha256:")
        return digits if no_trunc else digits[:_SHORT_ID]

    rows = [
        (short(i.id), short(i.uncompressed_digest), short(i.parent), age(i.created), size(i.size))
        for i in found
    ]
    table(rows, ("LAYER ID", "DIFF ID", "PARENT", "CREATED", "SIZE"))


def _layer(store: Store, layer: LayerItem) -> dict[str, Any]:
    """What is known of a layer.  ``ChainID`` is empty for one that was not registered."""
    own = store.layer_items.record(layer.id) if store.layer_items.exists(layer.id) else None
    return {
        "Id": layer.id,
        "Names": list(layer.names),
        "ChainID": layer.id if layer.id.startswith("sha256:") else "",
        "DiffID": layer.uncompressed_digest or "",
        "Parent": layer.parent,
        "Size": layer.size,
        "DiffSize": layer.uncompressed_size,
        "CompressedDigest": layer.compressed_digest or "",
        "CompressedSize": layer.compressed_size,
        "Created": layer.created,
        "CacheID": own.cache_id if own else "",
        "Reproducible": bool(own and own.reproducible),
        "ReadOnly": layer.read_only,
    }


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All images")
@click.option(
    "-f",
    "--force",
    is_flag=True,
    help="Unmount it, delete its containers, and it with all its names",
)
@click.pass_context
def rmi(ctx: click.Context, names: tuple[str, ...], everything: bool, force: bool) -> None:
    """Delete images and the layers that only they need.

    Of an image with several names, the one that is given is taken away; the image goes with the last.

    \b
    fusestore rmi debian:12
    fusestore rmi --all --force
    """
    if bool(names) == everything:
        raise click.UsageError("name images, or use --all")
    store = open_store(ctx)
    store.collect()
    for name in [image.id for image in store.images()] if everything else names:
        _remove(store, name, force=force or (everything and _is_free(store, name)))


def _is_free(store: Store, name: str) -> bool:
    return not store.mounts_of(store.image(name))


def _remove(store: Store, name: str, *, force: bool) -> None:
    image = store.image(name)
    by_id = image.id.startswith(name.removeprefix("sha256:"))
    if len(image.names) > 1 and not by_id:
        gone = [n for n in reference.candidates(name) if n in image.names]
        store.untag(gone)
        click.echo(f"Untagged: {gone[0]}")
        return
    if len(image.names) > 1 and not force:
        raise LayerInUse(
            image.id[:_SHORT_ID], f"it has several names ({', '.join(image.names)}); use --force"
        )
    if force:
        for container in store.container_store.of_image(image.id):
            store.delete_container(container.id)
        for mountpoint in store.mounts_of(image):
            store.unmount_image(mountpoint)
    store.delete_image(image.id)
    for full in image.names:
        click.echo(f"Untagged: {full}")
    click.echo(f"Deleted: {image.id}")
