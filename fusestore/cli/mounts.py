"""``fusestore mount`` and ``unmount``."""

from __future__ import annotations

from pathlib import Path

import click

from fusestore.cli.containers import created
from fusestore.cli.output import FORMAT, as_json, lookup, note_unreadable, open_store, table
from fusestore.driver.mounter import Mounted
from fusestore.errors import ItemNotFound
from fusestore.store.imagemounts import files_of
from fusestore.store.items import Container, Image, Item, LayerItem
from fusestore.store.storage import Store

_ORDER = Container, Image, LayerItem


@click.command()
@click.argument("name", metavar="[IMAGE|CONTAINER|LAYER]", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option("--rw", is_flag=True, help="Make a container of IMAGE and mount that, to take changes")
@click.option("--name", "container", metavar="NAME", help="With --rw, the container's name")
@click.option(
    "--allow-other", is_flag=True, help="Let other users in; the kernel then checks the shown owners"
)
@click.option("-a", "--all", "everything", is_flag=True, help="Mount every image")
@FORMAT
@click.pass_context
def mount(
    ctx: click.Context,
    name: str | None,
    directory: str | None,
    rw: bool,
    container: str | None,
    allow_other: bool,
    everything: bool,
    form: str,
) -> None:
    """Mount an image read-only on DIR, by default on a directory of its own; print where.

    A container is mounted for changes, on a directory of its own; every mount of it wants an unmount.
    Mounting again an image that is mounted there already changes nothing.  Without a name, list the mounts.

    \b
    cd "$(fusestore mount debian:12)"
    fusestore mount debian:12 ~/debian
    cd "$(fusestore mount --rw --name work debian:12)"
    fusestore mount
    """
    if container is not None and not rw:
        raise click.UsageError("--name is for the container that --rw makes")
    if everything and name is not None:
        raise click.UsageError("name an image, or use --all")
    store = open_store(ctx)
    if rw:
        if name is None or directory is not None or allow_other:
            raise click.UsageError("--rw takes an IMAGE, and mounts on a directory of its own")
        click.echo(str(_mounted_container(store, created(store, name, container))))
    elif everything:
        for image in store.images():
            if image.top_layer is not None:
                click.echo(str(store.mount_image(image, allow_other=allow_other)))
    elif name is not None:
        click.echo(str(_mounted(store, lookup(store, name, *_ORDER), directory, allow_other=allow_other)))
    else:
        _list(store, form)


def _mounted_container(store: Store, container: Container) -> Path:
    try:
        return store.mount(container.id)
    except BaseException:
        store.delete_container(container.id)
        raise


def _mounted(store: Store, item: Item, directory: str | None, *, allow_other: bool) -> Path:
    note_unreadable(store, item)
    if isinstance(item, Image):
        place = Path(directory) if directory is not None else None
        return store.mount_image(item, place, allow_other=allow_other)
    if directory is not None or allow_other:
        raise click.UsageError("only images can be mounted on a DIR of your choice, or with --allow-other")
    return store.mount(item.id)


def _list(store: Store, form: str) -> None:
    mounts = [(_label(store, present), present) for present in store.mounts()]
    if form == "json":
        keys = ("Image", "Mountpoint", "Pid", "State", "Writable")
        as_json(
            [
                dict(
                    zip(keys, (label, m.mountpoint, m.pid, _state(m), m.spec.upper is not None), strict=True)
                )
                for label, m in mounts
            ]
        )
        return
    dead = "  (its server died; unmount it)"
    table([(label, m.mountpoint + ("" if m.alive else dead)) for label, m in mounts])


def _state(present: Mounted) -> str:
    return "alive" if present.alive else "dead"


def _label(store: Store, present: Mounted) -> str:
    """The name of what is mounted: an image's, a container's or a layer's."""
    layer = store.layer_items.at(present.mountpoint)
    if layer is None:
        return present.label
    item = store.container_store.of_layer(layer) or store.layer_items.get(layer)
    return item.names[0] if item.names else item.id[:12]


@click.command()
@click.argument("names", metavar="NAME|DIR...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All mounts")
@click.option("-f", "--force", is_flag=True, help="Even if it is in use; open files stay readable")
@click.pass_context
def unmount(ctx: click.Context, names: tuple[str, ...], everything: bool, force: bool) -> None:
    """Unmount directories, containers, layers, or images wherever they are mounted; print where.

    A container or layer that was mounted twice stays until it is unmounted twice, or with --force.

    \b
    fusestore unmount debian:12
    fusestore unmount --all
    """
    if bool(names) == everything:
        raise click.UsageError("name what is mounted, or use --all")
    store = open_store(ctx)
    if everything:
        for mountpoint in [m.mountpoint for m in store.mounts()]:
            for gone in _unmounted(store, mountpoint, force=force, everywhere=True):
                click.echo(gone)
        return
    for name in names:
        for gone in _unmounted(store, name, force=force):
            click.echo(gone)


def _unmounted(store: Store, name: str, *, force: bool, everywhere: bool = False) -> list[str]:
    """Unmount what `name` is; where it is not mounted any more."""
    layer = store.layer_items.at(name)
    if layer is None:
        try:
            item = None if store.is_mountpoint(name) else store.any(name, _ORDER)
        except ItemNotFound:
            item = None
        if item is None or isinstance(item, Image):
            return store.unmount_image(name, force=force)
        layer = files_of(item)
    place = str(store.mountpoint(layer))
    while store.unmount(name, force=force):
        if not everywhere:
            return []
    return [place]
