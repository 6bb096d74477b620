"""``fusestore layer``: single layers, in and out as the exact tar."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import click

from fusestore.cli.output import open_store, progress, written
from fusestore.compression import ahead, decompressed
from fusestore.digest import Readable
from fusestore.transport.source import Progress

_CHUNK = 1 << 20
_SHORT = 12

QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress")


@click.group()
def layer() -> None:
    """Single layers: export the exact tar, register one, delete one.

    CHAIN_ID is what `fusestore layers` lists, or enough of it to be the only one.
    """


@layer.command()
@click.argument("chain_id", metavar="CHAIN_ID")
@click.option("-o", "--output", "file", metavar="FILE", help="Write there  [default: stdout]")
@click.option("--diff", is_flag=True, help="Make a tar of the same content instead; always possible")
@QUIET
@click.pass_context
def export(ctx: click.Context, chain_id: str, file: str | None, diff: bool, quiet: bool) -> None:
    """Write the tar of one layer, byte for byte as it was registered.

    The bytes are verified; of a layer that was damaged nothing is left in FILE.

    \b
    fusestore layer export 5f70bf18a086 -o layer.tar
    fusestore layer export 5f70bf18a086 | tar -tv
    """
    if file in (None, "-") and sys.stdout.isatty():
        raise click.UsageError("stdout is a terminal; use --output FILE, or a pipe")
    store = open_store(ctx)
    with ExitStack() as stack:
        found = store.layer(chain_id)
        stream = stack.enter_context(store.changes_stream(found.id) if diff else store.tar_stream(found.id))
        said = progress(stack, "Exporting", quiet=quiet)
        said.start(found.id.removeprefix("sha256:")[:_SHORT], found.uncompressed_size or found.size)
        with written(file) as output:
            while data := stream.read(_CHUNK):
                output.write(data)
                said.advance(len(data))
        said.finish("done")


@layer.command()
@click.argument("tar", metavar="TAR")
@click.option("--parent", metavar="CHAIN_ID", help="The layer to put it on")
@QUIET
@click.pass_context
def register(ctx: click.Context, tar: str, parent: str | None, quiet: bool) -> None:
    """Make a layer of TAR (- is stdin), plain or compressed; print its chain ID.

    A layer that is there already is not made again.

    \b
    fusestore layer register base.tar
    tar -c etc | fusestore layer register - --parent 5f70bf18a086
    """
    if tar == "-" and sys.stdin.isatty():
        raise click.UsageError("stdin is a terminal; name a TAR or pipe one in")
    store = open_store(ctx)
    with ExitStack() as stack:
        below = store.layer(parent).id if parent else None
        source = sys.stdin.buffer if tar == "-" else stack.enter_context(open(tar, "rb"))
        said = progress(stack, "Registering", quiet=quiet)
        said.start(Path(tar).name, 0 if tar == "-" else os.fstat(source.fileno()).st_size)
        plain = stack.enter_context(ahead(decompressed(_Told(source, said))))
        made = store.register(plain, below)
        said.finish("done")
        click.echo(made.id)


@layer.command()
@click.argument("chain_ids", metavar="CHAIN_ID...", nargs=-1, required=True)
@click.pass_context
def rm(ctx: click.Context, chain_ids: tuple[str, ...]) -> None:
    """Delete layers that no other layer and no image is on, and that are no container's.

    \b
    fusestore layer rm 5f70bf18a086
    """
    store = open_store(ctx)
    for chain_id in chain_ids:
        layer = store.layer(chain_id).id
        store.delete_layer(layer)
        click.echo(f"Deleted: {layer}")


class _Told:
    """A source whose progress somebody is told of."""

    def __init__(self, source: Readable, said: Progress) -> None:
        self._source, self._said = source, said

    def read(self, size: int, /) -> bytes:
        data = self._source.read(size)
        self._said.advance(len(data))
        return data
