"""``fusestore tag``, ``untag``, ``exists``, ``metadata``, ``big-data``: what is known of items."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fusestore import reference
from fusestore.cli.output import FORMAT, as_json, lookup, open_store, size, table, written
from fusestore.errors import ItemNotFound
from fusestore.store.items import Container, Image, Item, LayerItem

_KINDS: dict[str, type[Item]] = {"image": Image, "container": Container, "layer": LayerItem}
_ORDER = tuple(_KINDS.values())


def _full(name: str) -> str:
    return reference.parse(name).full(reference.LOCAL_DOMAIN)


@click.command()
@click.argument("image")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_context
def tag(ctx: click.Context, image: str, names: tuple[str, ...]) -> None:
    """Give IMAGE more names; from another image they are taken away.

    \b
    fusestore tag debian:12 base my/base:1
    """
    store = open_store(ctx)
    store.add_names(store.image(image).id, [_full(name) for name in names])


@click.command()
@click.argument("image")
@click.argument("names", metavar="[NAME...]", nargs=-1)
@click.pass_context
def untag(ctx: click.Context, image: str, names: tuple[str, ...]) -> None:
    """Take names away from IMAGE, by default all; the image stays.

    \b
    fusestore untag debian:12 my/base:1
    """
    store = open_store(ctx)
    present = store.image(image)
    doomed = []
    for name in names:
        candidates = [n for n in reference.candidates(name) if n in present.names]
        if not candidates:
            raise ItemNotFound(name, f"not a name of {present.id[:12]}, which has {', '.join(present.names)}")
        doomed.append(candidates[0])
    store.remove_names(present.id, doomed or present.names)


@click.command()
@click.argument("name")
@click.option("-i", "--image", "kind", flag_value="image", help="An image")
@click.option("-c", "--container", "kind", flag_value="container", help="A container")
@click.option("-l", "--layer", "kind", flag_value="layer", help="A layer")
@click.pass_context
def exists(ctx: click.Context, name: str, kind: str | None) -> None:
    """Exit 0 if NAME is an image, a container or a layer, 1 if not.

    \b
    fusestore exists --image debian:12 || fusestore load debian.tar
    """
    try:
        open_store(ctx).any(name, (_KINDS[kind],) if kind else _ORDER)
    except ItemNotFound:
        sys.exit(1)


@click.command()
@click.argument("name")
@click.option("--set", "text", metavar="TEXT", help="Replace it")
@click.option("-f", "--file", metavar="FILE", help="Replace it by what FILE (- is stdin) has")
@click.pass_context
def metadata(ctx: click.Context, name: str, text: str | None, file: str | None) -> None:
    """Print the text that is kept with an image, a container or a layer, or replace it.

    \b
    fusestore metadata work --set '{"owner": "me"}'
    fusestore metadata work | jq .owner
    """
    if text is not None and file is not None:
        raise click.UsageError("give --set or --file, not both")
    store = open_store(ctx)
    item = lookup(store, name, *_ORDER)
    if file is not None:
        text = _read(file).decode()
    if text is None:
        click.echo(item.metadata)
    else:
        store.set_metadata(item.id, text)


def _read(file: str) -> bytes:
    return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()


@click.group(name="big-data")
def big_data() -> None:
    """Blobs that are kept with images, containers and layers, such as an image's manifest."""


@big_data.command(name="ls")
@click.argument("name")
@FORMAT
@click.pass_context
def list_(ctx: click.Context, name: str, form: str) -> None:
    """List the blobs of an image, a container or a layer.

    \b
    fusestore big-data ls debian:12
    """
    item = lookup(open_store(ctx), name, *_ORDER)
    if form == "json":
        as_json([{"Key": k, "Size": b.size, "Digest": b.digest} for k, b in sorted(item.big_data.items())])
        return
    table(
        [(key, size(blob.size), blob.digest or "") for key, blob in sorted(item.big_data.items())],
        ("KEY", "SIZE", "DIGEST"),
    )


@big_data.command()
@click.argument("name")
@click.argument("key")
@click.option("-o", "--output", "file", metavar="FILE", help="Write there  [default: stdout]")
@click.pass_context
def get(ctx: click.Context, name: str, key: str, file: str | None) -> None:
    """Write a blob, as it is.

    \b
    fusestore big-data get debian:12 manifest | jq .
    """
    store = open_store(ctx)
    data = store.big_data(lookup(store, name, *_ORDER), key)
    with written(file) as output:
        output.write(data)


@big_data.command(name="set")
@click.argument("name")
@click.argument("key")
@click.argument("file")
@click.pass_context
def set_(ctx: click.Context, name: str, key: str, file: str) -> None:
    """Keep what FILE (- is stdin) has as a blob, in the place of what there is under KEY.

    \b
    fusestore big-data set work notes notes.txt
    """
    store = open_store(ctx)
    store.set_big_data(lookup(store, name, *_ORDER), key, _read(file))
