"""``fusestore ls`` and ``cat``: look into an image or a container without mounting it, and without FUSE."""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from contextlib import AbstractContextManager

import click

from fusestore.cli.output import FORMAT, as_json, lookup, open_store
from fusestore.driver.union.resolve import Entry, children
from fusestore.driver.union.tree import Union
from fusestore.errors import printable
from fusestore.store.items import Container, Image

_HALF_A_YEAR = 15_778_476  # seconds; older times are shown with the year, as ls does
_CHUNK = 1 << 20


def _opened(ctx: click.Context, where: str) -> tuple[AbstractContextManager[Union], bytes]:
    """NAME[:PATH]; a reference never has ``:/`` in it, so that is where the path begins."""
    name, _, path = where.partition(":/")
    store = open_store(ctx)
    return store.union(lookup(store, name, Container, Image)), os.fsencode(path)


@click.command()
@click.argument("where", metavar="NAME[:PATH]")
@click.option("-l", "long", is_flag=True, help="Mode, links, uid, gid, size, time, link target")
@click.option("-a", "--all", "hidden", is_flag=True, help="Names that begin with a dot too")
@click.option("-d", "--directory", "itself", is_flag=True, help="The directory itself, not what is in it")
@FORMAT
@click.pass_context
def ls(ctx: click.Context, where: str, long: bool, hidden: bool, itself: bool, form: str) -> None:
    """List a directory of an image or a container, without mounting anything.

    \b
    fusestore ls -l debian:12:/etc
    fusestore ls -l localhost:5000/app:1:/srv
    """
    opened, path = _opened(ctx, where)
    with opened as union:
        place, entry = union.walk(path, follow=not (long and itself))
        if stat.S_ISDIR(entry.attr.mode) and not itself:
            found = _children(union, place, entry)
        else:
            found = [(os.path.basename(path) or b".", place, entry)]
        shown = [row for row in found if hidden or itself or not row[0].startswith(b".")]
        if form == "json":
            as_json([_described(union, *row) for row in shown])
        else:
            _print(union, shown, long=long)


def _children(union: Union, place: bytes, entry: Entry) -> list[tuple[bytes, bytes, Entry]]:
    found = []
    for name, _ in sorted(children(union.entry_places(place, entry))):
        path = place + b"/" + name if place else name
        child = union.step(entry, place, name)
        if child is not None:
            child.attr.nlink = union.visible_links(path, child)
            found.append((name, path, child))
    return found


def _print(union: Union, rows: list[tuple[bytes, bytes, Entry]], *, long: bool) -> None:
    lines = [_long(union, *row) for row in rows] if long else [[_shown(name)] for name, _, _ in rows]
    widths = [max((len(line[c]) for line in lines), default=0) for c in range(5)] if long else []
    for line in lines:
        numbers = [cell.rjust(width) for cell, width in zip(line, widths, strict=False)]
        sys.stdout.buffer.write(b" ".join([*numbers, *line[len(numbers) :]]) + b"\n")


def _long(union: Union, name: bytes, path: bytes, entry: Entry) -> list[bytes]:
    attr = entry.attr
    length = f"{os.major(attr.rdev)}, {os.minor(attr.rdev)}" if _is_device(attr.mode) else str(attr.size)
    target = b""
    if stat.S_ISLNK(attr.mode):
        target = b" -> " + _shown(_target(union, path, entry))
    fields = (stat.filemode(attr.mode), attr.nlink, attr.uid, attr.gid, length, _date(attr.mtime_ns))
    return [*(str(field).encode() for field in fields), _shown(name) + target]


def _target(union: Union, path: bytes, entry: Entry) -> bytes:
    layer, at = union.entry_at(path, entry)
    return layer.readlink(at)


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def _date(moment_ns: int) -> str:
    seconds = moment_ns // 1_000_000_000
    recent = 0 <= time.time() - seconds < _HALF_A_YEAR
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", time.localtime(seconds))


def _shown(name: bytes) -> bytes:
    """As it is for programs; for a terminal, with nothing in it that could steer one."""
    return printable(name).encode() if sys.stdout.isatty() else name


def _described(union: Union, name: bytes, path: bytes, entry: Entry) -> dict[str, object]:
    attr = entry.attr
    found: dict[str, object] = {
        "Name": printable(name),
        "Mode": stat.filemode(attr.mode),
        "Permissions": f"{attr.mode & 0o7777:04o}",
        "Links": attr.nlink,
        "Uid": attr.uid,
        "Gid": attr.gid,
        "Size": attr.size,
        "ModifiedNs": attr.mtime_ns,
    }
    if stat.S_ISLNK(attr.mode):
        found["Target"] = printable(_target(union, path, entry))
    if _is_device(attr.mode):
        found["Device"] = f"{os.major(attr.rdev)}:{os.minor(attr.rdev)}"
    return found


@click.command()
@click.argument("places", metavar="NAME:PATH...", nargs=-1, required=True)
@click.pass_context
def cat(ctx: click.Context, places: tuple[str, ...]) -> None:
    """Write files of an image or a container to stdout, without mounting anything.

    Symlinks are followed inside the image.

    \b
    fusestore cat debian:12:/etc/os-release
    """
    for where in places:
        opened, path = _opened(ctx, where)
        with opened as union:
            place, entry = union.walk(path)
            if not stat.S_ISREG(entry.attr.mode):
                number = errno.EISDIR if stat.S_ISDIR(entry.attr.mode) else errno.EINVAL
                raise OSError(number, "not a regular file", where)
            layer, at = union.entry_data_at(place, entry)
            fd = layer.open(at)
            try:
                while data := os.read(fd, _CHUNK):
                    sys.stdout.buffer.write(data)
            finally:
                os.close(fd)
