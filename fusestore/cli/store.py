"""``fusestore info``, ``shutdown``, ``wipe``: the store as a whole."""

from __future__ import annotations

import sys

import click

from fusestore.cli.output import FORMAT, as_json, open_store


@click.command()
@FORMAT
@click.pass_context
def info(ctx: click.Context, form: str) -> None:
    """Print where the store is, what keeps it, and how much is in it.

    \b
    fusestore info --format json | jq -r .GraphRoot
    """
    store = open_store(ctx)
    facts: dict[str, object] = {
        "GraphRoot": str(store.graph_root),
        "RunRoot": str(store.run_root),
        "GraphDriverName": store.graph_driver_name,
        "GraphOptions": list(store.graph_options),
        "GraphStatus": dict(store.status()),
        "ReadOnly": store.read_only,
        "Images": len(store.images()),
        "Containers": len(store.containers()),
        "Layers": len(store.layers()),
        "Mounts": len(store.mounts()),
        "AdditionalStores": [
            {"Path": str(other.path), "Driver": other.driver_name, "Images": len(other.images())}
            for other in store.additional_stores
        ],
        **dict(store.version()),
    }
    if form == "json":
        as_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            click.echo(f"{name}:")
            for key, text in value.items():
                click.echo(f"  {key}: {text}")
        elif isinstance(value, list):
            click.echo(f"{name}: {', '.join(_line(entry) for entry in value) or 'none'}")
        else:
            click.echo(f"{name}: {value}")


def _line(entry: object) -> str:
    return f"{entry['Path']} ({entry['Driver']})" if isinstance(entry, dict) else str(entry)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Unmount what is mounted")
@click.pass_context
def shutdown(ctx: click.Context, force: bool) -> None:
    """Release what the store holds of the machine, unless something is mounted.

    With --force what is mounted is unmounted, which still counts as a failure; the second time is clean.

    \b
    fusestore shutdown --force || fusestore shutdown
    """
    open_store(ctx).shutdown(force=force)


@click.command()
@click.option("-f", "--force", is_flag=True, help="Do not ask")
@click.pass_context
def wipe(ctx: click.Context, force: bool) -> None:
    """Delete every container, image and layer of the store.

    \b
    fusestore wipe --force
    """
    store = open_store(ctx)
    if not force:
        if not sys.stdin.isatty():
            raise click.UsageError("this deletes everything; use --force where nobody can be asked")
        count = f"{len(store.containers())} containers and {len(store.images())} images"
        click.confirm(f"Delete {count} of {store.graph_root}?", abort=True, err=True)
    store.wipe()
