"""``fusestore check``, ``df``, ``prune``: is all well, what takes how much, what can go."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import click

from fusestore import reference
from fusestore.cli.filters import all_of, duration, labels
from fusestore.cli.output import FORMAT, age, as_json, open_store, progress, size, table
from fusestore.store.storage import Store
from fusestore.store.upkeep.check import Progress
from fusestore.store.upkeep.check import check as check_store
from fusestore.store.upkeep.prune import Plan, Pruned, plan
from fusestore.store.upkeep.prune import prune as prune_store
from fusestore.store.upkeep.repair import Repaired
from fusestore.store.upkeep.repair import repair as repair_store
from fusestore.store.upkeep.report import Report, listed
from fusestore.store.upkeep.sizes import Sizes
from fusestore.store.upkeep.usage import Summary, Usage, usage

_SHORT_ID = 12
_ROUNDS = 3  # a layer that could not even be looked at is looked at after the first repair


# -- check --------------------------------------------------------------------------------------------


@click.command()
@click.option("-q", "--quick", is_flag=True, help="Do not read what is in layers")
@click.option("-r", "--repair", is_flag=True, help="Delete what is damaged, mend what can be mended")
@click.option("-f", "--force", is_flag=True, help="With --repair, delete damaged containers too")
@click.option(
    "-m",
    "--max",
    "max_age",
    metavar="AGE",
    callback=duration,
    help="Count layers that nothing needs and that are older, as in 24h",
)
@FORMAT
@click.pass_context
def check(
    ctx: click.Context, quick: bool, repair: bool, force: bool, max_age: float | None, form: str
) -> None:
    """Look for damage: changed layers, missing files, leftovers; a line for each problem.

    Others may use the store meanwhile.  Exits 1 when there are problems, with --repair when some are left.
    What other stores have is checked too, and never repaired.

    \b
    fusestore check
    fusestore check --repair
    """
    if force and not repair:
        raise click.UsageError("--force goes with --repair")
    store = open_store(ctx)

    def look() -> Report:
        with _told(quiet=quick) as told:
            return check_store(store, quick=quick, max_age=max_age, progress=told)

    report = look()
    repaired = None
    if repair and not report.is_clean:
        repaired = _repaired(store, report, look, force=force)
    _print_check(report, repaired, form)
    if repaired.left if repaired else report.problems:
        ctx.exit(1)


def _repaired(store: Store, report: Report, look: Any, *, force: bool) -> Repaired:  # noqa: ANN401
    """Repair until all is well or nothing more can be done."""
    done: list[str] = []
    for _ in range(_ROUNDS):
        found = repair_store(store, report, force=force)
        done += found.done
        report = look() if found.done else report
        if report.is_clean or not found.done:
            break
    return Repaired(done, [] if report.is_clean else found.left or report.problems)


@contextmanager
def _told(*, quiet: bool) -> Iterator[Progress]:
    """Progress on stderr: each layer that is read."""
    with ExitStack() as stack:
        said = progress(stack, "Checking", quiet=quiet)
        begun: list[int] = []

        def told(layer: str, count: int) -> None:
            end()
            said.start(layer.removeprefix("sha256:")[:_SHORT_ID], count)
            begun.append(count)

        def end() -> None:
            if begun:
                said.advance(begun.pop())
                said.finish("done")

        stack.callback(end)
        yield told


def _print_check(report: Report, repaired: Repaired | None, form: str) -> None:
    if form == "json":
        more = {} if repaired is None else {"Repaired": list(repaired.done), "Left": listed(repaired.left)}
        as_json({**report.to_json(), **more})
        return
    for problem in report.problems:
        click.echo(str(problem))
    if repaired is not None:
        for line in repaired.done:
            click.echo(f"repaired: {line}")
        for problem in repaired.left:
            click.echo(f"left: {problem}")


# -- df -----------------------------------------------------------------------------------------------


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Every image, container and layer")
@FORMAT
@click.pass_context
def df(ctx: click.Context, verbose: bool, form: str) -> None:
    """Show what images, containers and layers take, and what pruning everything would free.

    Sizes are of content, as podman's are; on disk it may be more or less.

    \b
    fusestore df -v
    """
    store = open_store(ctx)
    found = usage(store)
    if form == "json":
        rows = [_summary(row) for row in found.summaries]
        as_json({"Summary": rows, **_details(found)} if verbose else rows)
    elif verbose:
        _print_details(store, found)
    else:
        heading = ("TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE")
        table(
            [(r.kind, str(r.total), str(r.active), size(r.size), _reclaimable(r)) for r in found.summaries],
            heading,
        )


def _reclaimable(row: Summary) -> str:
    return f"{size(row.reclaimable)} ({100 * row.reclaimable // row.size if row.size else 0}%)"


def _summary(row: Summary) -> dict[str, Any]:
    """Podman's keys."""
    return {
        "Type": row.kind,
        "Total": row.total,
        "Active": row.active,
        "RawSize": row.size,
        "RawReclaimable": row.reclaimable,
        "TotalCount": row.total,
        "Size": size(row.size),
        "Reclaimable": _reclaimable(row),
    }


def _details(found: Usage) -> dict[str, Any]:
    return {
        "Images": [
            {
                "ImageID": row.image.id,
                "Names": list(row.image.names),
                "Created": row.image.created,
                "Size": row.shared + row.unique,
                "SharedSize": row.shared,
                "UniqueSize": row.unique,
                "Containers": row.containers,
            }
            for row in found.images
        ],
        "Containers": [
            {
                "ContainerID": container.id,
                "Image": container.image,
                "Names": list(container.names),
                "Created": container.created,
                "Size": count,
            }
            for container, count in found.containers
        ],
        "Layers": [
            {"LayerID": layer.id, "Names": list(layer.names), "Created": layer.created, "Size": count}
            for layer, count in found.layers
        ],
    }


def _print_details(store: Store, found: Usage) -> None:
    images = []
    for row in found.images:
        repository, tag = reference.repository_and_tag((*row.image.names, "<none>:<none>")[0])
        sizes = (size(row.shared + row.unique), size(row.shared), size(row.unique))
        images.append(
            (repository, tag, _short(row.image.id), age(row.image.created), *sizes, str(row.containers))
        )
    _section("Images", images, "REPOSITORY,TAG,IMAGE ID,CREATED,SIZE,SHARED SIZE,UNIQUE SIZE,CONTAINERS")
    containers = [
        (_short(c.id), _short(c.image), size(count), age(c.created), ",".join(c.names))
        for c, count in found.containers
    ]
    _section("Containers", containers, "CONTAINER ID,IMAGE,SIZE,CREATED,NAMES")
    layers = [
        (_short(layer.id), _short(layer.parent), size(count), age(layer.created), ",".join(layer.names))
        for layer, count in found.layers
    ]
    _section("Layers", layers, "LAYER ID,PARENT,SIZE,CREATED,NAMES")


def _section(what: str, rows: Sequence[Sequence[str]], heading: str) -> None:
    click.echo(f"{what} space usage:\n")
    table(rows, heading.split(","))
    click.echo()


def _short(item: str) -> str:
    return item.removeprefix("sha256:")[:_SHORT_ID]


# -- prune --------------------------------------------------------------------------------------------


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Images with names too, if they are not in use")
@click.option("--containers", is_flag=True, help="Containers that are not mounted too")
@click.option("-f", "--force", is_flag=True, help="Do not ask")
@click.option(
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="until=TIME, label=NAME, label!=NAME=VALUE",
)
@FORMAT
@click.pass_context
def prune(
    ctx: click.Context, everything: bool, containers: bool, force: bool, filters: tuple[str, ...], form: str
) -> None:
    """Delete images and layers that have no name and that nothing needs; with --all, whatever nothing needs.

    What is mounted stays.

    \b
    fusestore prune --all --filter until=240h
    """
    store = open_store(ctx)
    wanted = all_of(filters, partial(labels, store))
    store.collect(deep=True)
    sizes = Sizes(store)
    planned = plan(store, sizes, everything=everything, containers=containers, wanted=wanted)
    if not force and not _is_sure(planned, containers=containers):
        return
    _print_pruned(prune_store(store, planned, sizes), form)


def _is_sure(planned: Plan, *, containers: bool) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("this deletes images; use --force where nobody can be asked")
    kind = (
        "all images and layers that no container needs"
        if planned.everything
        else "all dangling images and layers"
    )
    warning = f"WARNING! This command removes {kind}" + (", and all containers." if containers else ".")
    counts = (
        f"{len(planned.containers)} containers, {len(planned.images)} images, {len(planned.layers)} layers"
    )
    click.echo(f"{warning}\nNow these are {counts}; {size(planned.size)}.", err=True)
    return click.confirm("Are you sure you want to continue?", err=True)


def _print_pruned(pruned: Pruned, form: str) -> None:
    gone = {"Containers": pruned.containers, "Images": pruned.images, "Layers": pruned.layers}
    if form == "json":
        lists = {kind: [{"Id": i, "Size": n} for i, n in items.items()] for kind, items in gone.items()}
        as_json({**lists, "ReclaimedSpace": pruned.size})
        return
    for kind, items in gone.items():
        if items:
            click.echo("\n".join([f"Deleted {kind}", *items]))
    click.echo(f"Total reclaimed space: {size(pruned.size)}")
