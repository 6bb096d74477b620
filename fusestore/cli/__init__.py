"""The ``fusestore`` command: arguments in, public API, exit code out.

stdout carries data only; progress and messages go to stderr.  Exit codes: 0 ok, 1 a negative answer, 2 wrong
usage, 125 fusestore failed (podman's).  Errors are one line; ``--debug`` adds the traceback.

Every command lives in a module that is imported when it is used: ``fusestore images`` must not pay for FUSE.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import click

from fusestore import __version__, config
from fusestore.config import StoreOptions
from fusestore.errors import FusestoreError, printable

FAILED = 125

#: command -> module, and the function in it
_COMMANDS = {
    "big-data": ("names", "big_data"),
    "cat": ("browse", "cat"),
    "check": ("check", "check"),
    "commit": ("containers", "commit"),
    "completion": ("completion", "completion"),
    "containers": ("containers", "containers"),
    "create": ("containers", "create"),
    "df": ("check", "df"),
    "diff": ("diff", "diff"),
    "doctor": ("doctor", "doctor"),
    "exists": ("names", "exists"),
    "images": ("images", "images"),
    "info": ("store", "info"),
    "inspect": ("inspect", "inspect"),
    "layer": ("layer", "layer"),
    "layers": ("images", "layers"),
    "load": ("load", "load"),
    "ls": ("browse", "ls"),
    "metadata": ("names", "metadata"),
    "mount": ("mounts", "mount"),
    "prune": ("check", "prune"),
    "ps": ("containers", "containers"),
    "rm": ("containers", "rm"),
    "rmi": ("images", "rmi"),
    "shutdown": ("store", "shutdown"),
    "tag": ("names", "tag"),
    "umount": ("mounts", "unmount"),
    "unmount": ("mounts", "unmount"),
    "untag": ("names", "untag"),
    "version": ("doctor", "version"),
    "wipe": ("store", "wipe"),
}
_HIDDEN = ("ps", "umount")  # other spellings


@dataclass(frozen=True, slots=True)
class Globals:
    """The options before the command."""

    root: str | None = None
    runroot: str | None = None
    driver: str | None = None
    storage_opts: tuple[str, ...] = ()
    additional_stores: tuple[str, ...] = ()

    def store_options(self) -> StoreOptions:
        """With what the environment and configuration files say where they say nothing."""
        return config.options(self.root, self.runroot, self.driver, self.storage_opts, self.additional_stores)


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
@click.option(
    "--storage-driver",
    metavar="NAME",
    help="Who keeps the layers: fuse or vfs  [default: $FUSESTORE_DRIVER, $STORAGE_DRIVER or fuse]",
)
@click.option(
    "--storage-opt", "storage_opts", metavar="KEY=VALUE", multiple=True, help="For the driver; repeatable"
)
@click.option(
    "--additional-store",
    "additional_stores",
    metavar="DIR|podman",
    multiple=True,
    help="Another store to look into, of fusestore or of podman; repeatable",
)
@click.option("--debug", is_flag=True, help="Show a traceback when something fails")
@click.version_option(__version__, "-v", "--version", prog_name="fusestore")
@click.pass_context
def cli(
    ctx: click.Context,
    root: str | None,
    runroot: str | None,
    storage_driver: str | None,
    storage_opts: tuple[str, ...],
    additional_stores: tuple[str, ...],
    debug: bool,
) -> None:
    """Look into container images without root: mount them, list them, read them.

    \b
    fusestore load oci:DIR:debian         put an image into the store
    cd "$(fusestore mount debian)"        look at it with any tool
    fusestore ls -l debian:/etc           look at it without mounting
    fusestore mount --rw --name work debian   change it, then commit
    fusestore doctor                      what this machine lacks, and the remedy
    """
    ctx.obj = Globals(root, runroot, storage_driver, storage_opts, additional_stores)


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
    gc.freeze()  # nothing is collected at exit: 12 of the 100 ms of `fusestore images`
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
