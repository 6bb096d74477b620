"""The ``fusestore`` command: arguments in, public API, exit code out.

stdout carries data only; progress and messages go to stderr.  Exit codes: 0 ok, 1 a negative answer, 2 wrong
usage, 125 fusestore failed (podman's).  Errors are one line; ``--debug`` adds the traceback.

Every command lives in a module that is imported when it is used: ``fusestore images`` must not pay for FUSE.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from fusestore import __version__
from fusestore.errors import FusestoreError, printable

FAILED = 125

#: command -> module, and the function in it
_COMMANDS = {
    "cat": ("browse", "cat"),
    "completion": ("completion", "completion"),
    "doctor": ("doctor", "doctor"),
    "images": ("images", "images"),
    "inspect": ("images", "inspect"),
    "layer": ("layer", "layer"),
    "layers": ("images", "layers"),
    "load": ("load", "load"),
    "ls": ("browse", "ls"),
    "mount": ("mounts", "mount"),
    "rmi": ("images", "rmi"),
    "umount": ("mounts", "unmount"),
    "unmount": ("mounts", "unmount"),
    "version": ("doctor", "version"),
}
_HIDDEN = ("umount",)


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command."""

    root: str | None
    runroot: str | None
    debug: bool


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in sorted(_COMMANDS) if name not in _HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        try:
            module, function = _COMMANDS[cmd_name]
        except KeyError:
            return None
        command: click.Command = getattr(importlib.import_module(f"fusestore.cli.{module}"), function)
        return command


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--root", metavar="DIR", help="The store  [default: $FUSESTORE_ROOT or ~/.local/share/fusestore]"
)
@click.option(
    "--runroot",
    metavar="DIR",
    help="Mounts and their records  [default: $FUSESTORE_RUNROOT or $XDG_RUNTIME_DIR/fusestore]",
)
@click.option("--debug", is_flag=True, help="Show a traceback when something fails")
@click.version_option(__version__, "-v", "--version", prog_name="fusestore")
@click.pass_context
def cli(ctx: click.Context, root: str | None, runroot: str | None, debug: bool) -> None:
    """Look into container images without root: mount them, list them, read them.

    \b
    fusestore load oci:DIR:debian         put an image into the store
    cd "$(fusestore mount debian)"        look at it with any tool
    fusestore ls -l debian:/etc           look at it without mounting
    fusestore doctor                      what this machine lacks, and the remedy
    """
    ctx.obj = Globals(root, runroot, debug)


def main(arguments: list[str] | None = None) -> Any:  # noqa: ANN401
    """Run the command line and exit."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as every other tool in a pipe
    debug = "--debug" in (sys.argv if arguments is None else arguments)
    try:
        code = cli.main(arguments, "fusestore", standalone_mode=False)
        _flush()
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except (FusestoreError, OSError) as exc:
        if debug:
            traceback.print_exc()
        click.echo(f"fusestore: {describe(exc)}", err=True)
        code = FAILED
        with suppress(OSError):
            _flush()
    sys.exit(code if isinstance(code, int) else 0)


def _flush() -> None:
    """Write out what is left, while an error can still be reported."""
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try again, and complain, at exit
        raise


def describe(exc: Exception) -> str:
    """An exception as one line."""
    if isinstance(exc, OSError) and not isinstance(exc, FusestoreError) and exc.strerror:
        names = [os.fsdecode(n) for n in (exc.filename, exc.filename2) if isinstance(n, (str, bytes))]
        return printable(f"{' -> '.join(names)}: {exc.strerror}" if names else exc.strerror)
    return printable(str(exc).replace("\n", " "))
