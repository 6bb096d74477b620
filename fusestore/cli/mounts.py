"""``fusestore mount`` and ``unmount``."""

from __future__ import annotations

from pathlib import Path

import click

from fusestore.cli.output import FORMAT, as_json, open_store, table


@click.command()
@click.argument("image", required=False)
@click.argument("directory", metavar="[DIR]", required=False)
@click.option(
    "--allow-other", is_flag=True, help="Let other users in; the kernel then checks the shown owners"
)
@FORMAT
@click.pass_context
def mount(ctx: click.Context, image: str | None, directory: str | None, allow_other: bool, form: str) -> None:
    """Mount IMAGE read-only on DIR, by default on a directory of its own; print where.

    Without IMAGE, list the mounts.  Mounting again what is mounted there already changes nothing.

    \b
    cd "$(fusestore mount debian:12)"
    fusestore mount debian:12 ~/debian
    fusestore mount
    """
    store = open_store(ctx)
    if image is not None:
        place = store.mount_image(
            store.image(image), Path(directory) if directory is not None else None, allow_other=allow_other
        )
        click.echo(str(place))
        return
    mounts = store.mounts()
    if form == "json":
        keys = ("Image", "Mountpoint", "Pid", "State")
        states = ("dead", "alive")
        as_json(
            [dict(zip(keys, (m.label, m.mountpoint, m.pid, states[m.alive]), strict=True)) for m in mounts]
        )
        return
    table([(m.label, m.mountpoint + ("" if m.alive else "  (its server died; unmount it)")) for m in mounts])


@click.command()
@click.argument("names", metavar="IMAGE|DIR...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All mounts")
@click.option("-f", "--force", is_flag=True, help="Even if it is in use; open files stay readable")
@click.pass_context
def unmount(ctx: click.Context, names: tuple[str, ...], everything: bool, force: bool) -> None:
    """Unmount directories, or images wherever they are mounted; print where.

    \b
    fusestore unmount debian:12
    fusestore unmount --all
    """
    if bool(names) == everything:
        raise click.UsageError("name images or directories, or use --all")
    store = open_store(ctx)
    for name in [m.mountpoint for m in store.mounts()] if everything else names:
        for mountpoint in store.unmount_image(name, force=force):
            click.echo(mountpoint)
