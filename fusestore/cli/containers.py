"""``fusestore create``, ``containers``, ``rm``, ``commit``: images that take changes."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from fusestore import reference
from fusestore.cli.output import FORMAT, age, as_json, note_unreadable, open_store, size, table
from fusestore.errors import ImageNotFound, LayerInUse
from fusestore.store.items import Container
from fusestore.store.storage import Store

_SHORT_ID = 12


@click.command()
@click.argument("image")
@click.option("--name", metavar="NAME", help="A name for it; none that another container has")
@click.option("--metadata", metavar="TEXT", default="", help="Text to keep with it")
@click.option("-q", "--quiet", is_flag=True, hidden=True, help="For podman's sake")
@click.pass_context
def create(ctx: click.Context, image: str, name: str | None, metadata: str, quiet: bool) -> None:
    """Make a container of IMAGE, which takes changes when it is mounted; print its id.

    IMAGE may be scratch, which is nothing.

    \b
    fusestore create --name work debian:12
    cd "$(fusestore mount work)"
    """
    click.echo(created(open_store(ctx), image, name, metadata).id)


def created(store: Store, image: str, name: str | None, metadata: str = "") -> Container:
    """A new container, as the command line makes them."""
    base = None if image == "scratch" else store.image(image)
    if base is not None:
        note_unreadable(store, base)
    return store.create_container(
        names=[name] if name else [], image=base.id if base else "", metadata=metadata
    )


@click.command()
@FORMAT
@click.option("-q", "--quiet", is_flag=True, help="Print ids only")
@click.option("--no-trunc", is_flag=True, help="Print whole ids")
@click.option("-n", "--noheading", is_flag=True, help="No heading")
@click.option("-a", "--all", "everything", is_flag=True, hidden=True, help="All are listed")
@click.option("-s", "--size", "sizes", is_flag=True, help="How much each has changed")
@click.pass_context
def containers(
    ctx: click.Context,
    form: str,
    quiet: bool,
    no_trunc: bool,
    noheading: bool,
    everything: bool,
    sizes: bool,
) -> None:
    """List containers.

    \b
    fusestore containers
    fusestore containers --format json | jq '.[].Names'
    """
    store = open_store(ctx)
    found = store.containers()
    if form == "json":
        as_json([_listed(store, container, sizes=sizes) for container in found])
        return
    length = None if no_trunc else _SHORT_ID
    if quiet:
        for container in found:
            click.echo(container.id[:length])
        return
    rows = []
    for container in found:
        mounted = store.mounted(container.layer)
        status = f"mounted ({mounted})" if mounted > 1 else "mounted" if mounted else "not mounted"
        cells = [
            container.id[:length],
            _image_name(store, container, length),
            age(container.created),
            status,
            ",".join(container.names),
        ]
        if sizes:
            cells.append(size(store.container_size(container.id)))
        rows.append(cells)
    heading = ("CONTAINER ID", "IMAGE", "CREATED", "STATUS", "NAMES", *(["SIZE"] if sizes else []))
    table(rows, () if noheading else heading)


def _image_name(store: Store, container: Container, length: int | None) -> str:
    with suppress(ImageNotFound):
        if container.image:
            image = store.image(container.image)
            return image.names[0] if image.names else image.id[:length]
    return container.image[:length] or "scratch"


def _listed(store: Store, container: Container, *, sizes: bool = False) -> dict[str, Any]:
    """Podman's keys for a list of containers, as far as there is something to say."""
    mounted = store.mounted(container.layer)
    found: dict[str, Any] = {
        "Id": container.id,
        "Names": list(container.names),
        "Image": _image_name(store, container, None),
        "ImageID": container.image,
        "Created": container.created,
        "CreatedAt": age(container.created),
        "LayerID": container.layer,
        "Mounted": mounted,
        "Mountpoint": store.mountpoint(container.layer) if mounted else "",
    }
    return found | ({"Size": store.container_size(container.id)} if sizes else {})


@click.command()
@click.argument("names", metavar="CONTAINER...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="All containers")
@click.option("-f", "--force", is_flag=True, help="Unmount first")
@click.option("-i", "--ignore", is_flag=True, help="One that is not there is no error")
@click.pass_context
def rm(ctx: click.Context, names: tuple[str, ...], everything: bool, force: bool, ignore: bool) -> None:
    """Delete containers and their changes; print their ids.

    \b
    fusestore rm work
    fusestore rm --all --force
    """
    if bool(names) == everything:
        raise click.UsageError("name containers, or use --all")
    store = open_store(ctx)
    for name in [container.id for container in store.containers()] if everything else names:
        if ignore and not store.container_store.exact(name):
            continue
        container = store.container(name)
        if store.mounted(container.layer) and not force:
            raise LayerInUse(name, "it is mounted; unmount it, or use --force")
        store.delete_container(container.id)
        click.echo(container.id)


@click.command()
@click.argument("container")
@click.argument("image", required=False)
@click.option("-a", "--author", default="", metavar="TEXT", help="Who made it")
@click.option("-m", "--message", default="", metavar="TEXT", help="What for; kept in the history")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or WORKDIR with a value;"
    " repeatable",
)
@click.option("-s", "--squash", is_flag=True, help="One layer with everything")
@click.option("--timestamp", type=int, metavar="SECONDS", help="Time of creation  [default: now]")
@click.option("--iidfile", type=click.File("w", lazy=True), metavar="FILE", help="Write the id there")
@click.option("-q", "--quiet", is_flag=True, help="No progress")
@click.pass_context
def commit(
    ctx: click.Context,
    container: str,
    image: str | None,
    author: str,
    message: str,
    changes: tuple[str, ...],
    squash: bool,
    timestamp: int | None,
    iidfile: Any,  # noqa: ANN401
    quiet: bool,
) -> None:
    """Make an image of a container, with what was changed in it as a layer; print its id.

    The same changes give the same image if the time is the same (--timestamp, SOURCE_DATE_EPOCH).

    \b
    fusestore commit work my/debian:patched -m "patched"
    fusestore commit -c 'CMD ["/bin/sh"]' -c ENV=A=1 work
    """
    from fusestore.store.commit import commit as make

    store = open_store(ctx)
    found = store.container(container)
    names = [reference.parse(image).full(reference.LOCAL_DOMAIN)] if image else []
    if not quiet and sys.stderr.isatty():
        click.echo("Committing", err=True)
    made = make(
        store,
        found,
        names,
        author=author,
        message=message,
        changes=changes,
        created=timestamp,
        squash=squash,
    )
    if iidfile is not None:
        iidfile.write(f"sha256:{made.id}")
    click.echo(made.id)
