"""``fusestore images``, ``layers``, ``inspect``, ``rmi``: what the store holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from fusestore import reference
from fusestore.cli.output import FORMAT, age, as_json, open_store, size, table
from fusestore.errors import InvalidReference, LayerInUse
from fusestore.store.items import Image
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
            [_listed(image) | {"Labels": _run_configuration(store, image).get("Labels")} for image in found]
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
            rows.append((repository, tag, digits, age(image.created), size(image.size)))
    table(rows, () if noheading else ("REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"))


def _fits(image: Image, name: str) -> bool:
    try:
        wanted = reference.candidates(name)
    except InvalidReference:
        return False
    if ":" in name.rpartition("/")[2]:
        return any(n in wanted for n in image.names)
    repositories = [reference.repository_and_tag(n)[0] for n in wanted]
    return any(reference.repository_and_tag(n)[0] in repositories for n in image.names)


def _listed(image: Image) -> dict[str, Any]:
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
    records = open_store(ctx).layer_store.map().values()
    if form == "json":
        as_json(
            [
                {
                    "ChainID": record.chain_id,
                    "DiffID": record.diff_id,
                    "Parent": record.parent or "",
                    "Size": record.size,
                    "Created": record.created,
                    "CacheID": record.cache_id,
                    "Reproducible": record.reproducible,
                }
                for record in records
            ]
        )
        return

    def short(name: str | None) -> str:
        digits = (name or "").removeprefix("sha256:")
        return digits if no_trunc else digits[:_SHORT_ID]

    rows = [
        (short(r.chain_id), short(r.diff_id), short(r.parent), age(r.created), size(r.size)) for r in records
    ]
    table(rows, ("CHAIN ID", "DIFF ID", "PARENT", "CREATED", "SIZE"))


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "--format", "form", type=click.Choice(["json"]), default="json", show_default=True, help="Output as"
)
@click.pass_context
def inspect(ctx: click.Context, names: tuple[str, ...], form: str) -> None:
    """Print all that is known of images, as a JSON array with podman's keys.

    \b
    fusestore inspect debian:12 | jq '.[0].Config.Env'
    """
    store = open_store(ctx)
    as_json([_inspected(store, store.image(name)) for name in names])


def _run_configuration(store: Store, image: Image) -> Mapping[str, Any]:
    run = store.configuration(image).get("config")
    return run if isinstance(run, Mapping) else {}


def _inspected(store: Store, image: Image) -> dict[str, Any]:
    configuration, manifest = store.configuration(image), store.manifest(image)
    run = _run_configuration(store, image)
    chain = store.chain(image)
    listed = _listed(image)
    return {
        **{key: listed[key] for key in ("Id", "Digest", "RepoTags", "RepoDigests")},
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
        "NamesHistory": list(image.names),
    }


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All images")
@click.option("-f", "--force", is_flag=True, help="Unmount first, and delete an image with several names")
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
        for mountpoint in store.mounts_of(image):
            store.unmount_image(mountpoint)
    store.delete_image(image.id)
    for full in image.names:
        click.echo(f"Untagged: {full}")
    click.echo(f"Deleted: {image.id}")
