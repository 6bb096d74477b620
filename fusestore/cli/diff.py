"""``fusestore diff``: what was changed in a container, an image or a layer."""

from __future__ import annotations

import sys

import click

from fusestore.cli.output import as_json, lookup, open_store
from fusestore.errors import printable
from fusestore.store.imagemounts import files_of
from fusestore.store.items import Container, Image, LayerItem

_ORDER = Container, Image, LayerItem
_WORDS = {"C": "changed", "A": "added", "D": "deleted"}


@click.command()
@click.argument("name")
@click.argument("other", required=False)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="Output as")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; exit 1 if something was changed")
@click.pass_context
def diff(ctx: click.Context, name: str, other: str | None, form: str, quiet: bool) -> None:
    """Print what makes a container, an image or a layer out of what it is on, or out of OTHER.

    A path a line: A added, C changed, D deleted.

    \b
    fusestore diff work
    fusestore diff debian:13 debian:12
    """
    store = open_store(ctx)
    layer = files_of(lookup(store, name, *_ORDER))
    below = "" if other is None else files_of(lookup(store, other, *_ORDER))
    changes = store.changes(below, layer)
    if quiet:
        sys.exit(1 if changes else 0)
    if form == "json":
        paths: dict[str, list[str]] = {word: [] for word in _WORDS.values()}
        for change in changes:
            paths[_WORDS[change.kind.value]].append("/" + printable(change.path))
        as_json({word: those for word, those in paths.items() if those})
        return
    for change in changes:
        path = printable(change.path).encode() if sys.stdout.isatty() else change.path
        sys.stdout.buffer.write(b"%s /%s\n" % (change.kind.value.encode(), path))
