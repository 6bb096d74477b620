"""``fusestore doctor`` and ``version``: what this machine offers."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import click

from fusestore import __version__, config, podman
from fusestore.cli import Globals
from fusestore.cli.output import FORMAT, as_json
from fusestore.driver import preflight
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.preflight import Check
from fusestore.errors import FusestoreError

_SIGNS = {True: "ok  ", False: "FAIL", None: "note"}


def _python() -> Check:
    libraries = ("pyfuse3", "trio", "xattr")
    try:
        found = ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
    except metadata.PackageNotFoundError as exc:
        return Check(False, f"{exc.name} is not installed", f"run: pip install {exc.name}")
    return Check(True, f"Python {platform.python_version()}, {found}")


def _loadable() -> Check:
    """pyfuse3 is compiled against a libfuse that may not be there."""
    try:
        import pyfuse3
    except ImportError as exc:
        return Check(False, f"pyfuse3 cannot be loaded: {exc}", "run: sudo apt install libfuse3-3")
    return Check(True, f"{pyfuse3.__name__} can be loaded")


def _store(root: Path) -> Check:
    remedy = "choose another place with --root or FUSESTORE_ROOT"
    existing = next(p for p in (root, *root.parents) if os.path.exists(p))
    if existing != root:
        if os.access(existing, os.W_OK | os.X_OK):
            return Check(True, f"store {root} (not made yet)")
        return Check(False, f"store {root} cannot be made: {existing} is not yours to write", remedy)
    try:
        FuseDriver(config.private(root), root)
    except (FusestoreError, OSError) as exc:
        return Check(False, f"store {root}: {exc}", remedy)
    return Check(True, f"store {root}")


def _podman() -> list[Check]:
    remedy = "--additional-store podman shows its images here"
    try:
        return [Check(None, f"podman's store is at {store}", remedy) for store in podman.graphroots()]
    except (FusestoreError, OSError) as exc:
        return [Check(None, f"podman's store cannot be found: {exc}")]


@click.command()
@FORMAT
@click.pass_context
def doctor(ctx: click.Context, form: str) -> None:
    """Check what this machine offers, and say what to do about what is missing.

    Exits 1 if mounting cannot work here.
    """
    options = (ctx.find_object(Globals) or Globals()).store_options()
    checks = [_python(), _loadable(), *preflight.required(options.run_root / "mnt")]
    checks += [_store(options.graph_root), preflight.namespaces(), preflight.allow_other(), *_podman()]
    if form == "json":
        as_json([{"Ok": check.ok, "Finding": check.finding, "Remedy": check.remedy} for check in checks])
    else:
        for check in checks:
            click.echo(f"{_SIGNS[check.ok]}  {check.finding}")
            if check.ok is not True and check.remedy:
                click.echo(f"      -> {check.remedy}")
    if any(check.ok is False for check in checks):
        sys.exit(1)


@click.command()
@FORMAT
def version(form: str) -> None:
    """Print the versions of fusestore and of what it stands on."""
    found = {"fusestore": __version__, "python": platform.python_version()}
    for name in ("pyfuse3", "trio"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    if form == "json":
        as_json(found)
    else:
        for name, number in found.items():
            click.echo(f"{name} {number}")
