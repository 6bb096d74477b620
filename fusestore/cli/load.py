"""``fusestore load``."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import click

from fusestore import reference
from fusestore.cli.output import open_store, progress
from fusestore.transport import pipeline


@click.command()
@click.argument("source", required=False)
@click.option("-i", "--input", "file", metavar="FILE", help="The same as SOURCE, as podman spells it")
@click.option(
    "-t", "--tag", "tags", metavar="NAME", multiple=True, help="Give the image this name too; repeatable"
)
@click.option("-q", "--quiet", is_flag=True, help="No progress")
@click.pass_context
def load(
    ctx: click.Context, source: str | None, file: str | None, tags: tuple[str, ...], quiet: bool
) -> None:
    """Put images into the store; print the name or id of each.

    SOURCE is oci:DIR[:REF], oci-archive:FILE[:REF], docker-archive:FILE[:REF], or a file or directory whose
    kind is found out; without one, or with -, an archive is read from stdin.

    \b
    fusestore load oci:./build:latest
    docker save debian:12 | fusestore load
    """
    if source and file:
        raise click.UsageError("give SOURCE or --input, not both")
    place = source or file or "-"
    if place == "-" and sys.stdin.isatty():
        raise click.UsageError("stdin is a terminal; name a SOURCE or pipe an archive in")
    names = [reference.parse(tag).full(reference.LOCAL_DOMAIN) for tag in tags]
    store = open_store(ctx)
    with ExitStack() as stack:
        said = progress(stack, "Loading layer", quiet=quiet)
        for image in pipeline.load(store, place, names=names, progress=said):
            click.echo(image.names[0] if image.names else image.id)
