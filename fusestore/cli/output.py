"""What commands print: tables, sizes and ages in podman's words, JSON, progress."""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from fusestore.cli import Globals
from fusestore.errors import ItemNotFound
from fusestore.store.items import Image, Item
from fusestore.store.storage import Store

if TYPE_CHECKING:
    from fusestore.transport.source import Progress

FORMAT = click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="Output as",
)


def open_store(ctx: click.Context) -> Store:
    """The store that the global options name, closed when the command ends."""
    options: Globals = ctx.find_object(Globals) or Globals()
    return ctx.with_resource(Store(options=options.store_options()))


def lookup(store: Store, name: str, *kinds: type[Item]) -> Item:
    """What `name` means, of the first of these kinds that has it.

    Raises ItemNotFound; where it may be an image, with the names that may have been meant.
    """
    try:
        return store.any(name, kinds)
    except ItemNotFound:
        if Image in kinds:
            store.image(name)
        raise


def note_unreadable(store: Store, item: Item) -> None:
    """Tell whose files in an additional store may be closed to us, on stderr."""
    if owners := store.unreadable(item):
        who = ", ".join(map(str, owners))
        click.echo(f"fusestore: files of {who} may not be readable: another user owns them", err=True)


def table(rows: Sequence[Sequence[str]], heading: Sequence[str] = ()) -> None:
    """Left-aligned columns, two blanks apart."""
    lines = [list(heading), *rows] if heading else list(rows)
    if not lines:
        return
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    click.echo("\n".join("  ".join(cells).rstrip() for cells in padded))


def as_json(value: Any) -> None:  # noqa: ANN401
    """Indented JSON, as podman prints it."""
    click.echo(json.dumps(value, indent=4, ensure_ascii=False, default=str))


def size(count: int) -> str:
    """Bytes in decimal units and three digits: 11.3 kB."""
    value = float(count)
    units = iter(("B", "kB", "MB", "GB", "TB", "PB", "EB"))
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def age(moment: int) -> str:
    """How long ago, in s since 1970: 5 weeks ago."""
    if moment <= 0:
        return "unknown"
    seconds = max(int(time.time()) - moment, 0)
    for unit, length in (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}s ago"
    unit, length = next(((u, n) for u, n in (("hour", 3600), ("minute", 60)) if seconds >= n), ("second", 1))
    count = seconds // length
    return f"{count} {unit}{'' if count == 1 else 's'} ago"


class Lines:
    """Progress as lines on stderr, for logs and pipes."""

    def __init__(self, doing: str) -> None:
        self._doing = doing

    def start(self, what: str, size: int) -> None:
        """A blob begins."""
        self._what, self._done = what, 0

    def advance(self, count: int) -> None:
        """Not worth a line."""
        self._done += count

    def finish(self, outcome: str) -> None:
        """A blob is done."""
        click.echo(f"{self._doing} {self._what}  {size(self._done)}  {outcome}", err=True)


class Bars:
    """Progress as a bar for each blob, for people."""

    def __init__(self, doing: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(doing + " {task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[outcome]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._progress.start()

    def start(self, what: str, size: int) -> None:
        """A blob begins."""
        self._task = self._progress.add_task(what, total=size, outcome="")

    def advance(self, count: int) -> None:
        """Some of it is done."""
        self._progress.advance(self._task, count)

    def finish(self, outcome: str) -> None:
        """All of it is."""
        self._progress.update(self._task, outcome=outcome)

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._progress.stop()


def progress(stack: ExitStack, doing: str, *, quiet: bool) -> Progress:
    """Who is told of progress: nobody, a log, or a person; `doing` is what is done, as in "Loading layer".

    Whatever it puts on the terminal goes when `stack` is left.
    """
    if quiet:
        from fusestore.transport.source import Quiet

        return Quiet()
    if not sys.stderr.isatty():
        return Lines(doing)
    bars = Bars(doing)
    stack.callback(bars.close)
    return bars


@contextmanager
def written(file: str | None) -> Iterator[IO[bytes]]:
    """`file`, which appears when all is written; stdout for None; devices and pipes as they are."""
    if file in (None, "-"):
        yield sys.stdout.buffer
        return
    path = Path(str(file))
    if path.exists() and not path.is_file():
        with path.open("wb") as output:
            yield output
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such directory", str(path.parent))
    try:
        with partial.open("xb") as output:
            yield output
        partial.rename(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
