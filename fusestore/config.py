"""Where a store and its run-time state are: flags, then environment, then the XDG directories.

========  ==========================  ==================================================================
place     environment                 default
========  ==========================  ==================================================================
root      ``FUSESTORE_ROOT``          ``$XDG_DATA_HOME/fusestore`` (``~/.local/share/fusestore``)
runroot   ``FUSESTORE_RUNROOT``       ``$XDG_RUNTIME_DIR/fusestore``, else ``/tmp/fusestore-UID``
========  ==========================  ==================================================================

Both are made 0700 and must belong to the caller: a stranger's directory in ``/tmp`` is refused.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fusestore.errors import NotSupported


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """The places of a store, absolute."""

    root: Path
    runroot: Path


def options(root: str | None = None, runroot: str | None = None) -> StoreOptions:
    """The options in force; the arguments are command-line flags, None where not given."""
    environ = os.environ
    data = Path(environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"))
    # Real paths, because the kernel's mount table, which we compare with, has no symlinks.
    return StoreOptions(
        Path(os.path.realpath(root or environ.get("FUSESTORE_ROOT") or data / "fusestore")),
        Path(os.path.realpath(runroot or environ.get("FUSESTORE_RUNROOT") or _default_runroot())),
    )


def _default_runroot() -> Path:
    """Absent under su, cron and in most containers, XDG_RUNTIME_DIR must not be required."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return Path(runtime) / "fusestore"
    return Path(f"/tmp/fusestore-{os.getuid()}")


def private(directory: Path) -> Path:
    """Make `directory`, 0700, or verify that it is ours.  Raises NotSupported, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = os.lstat(directory)
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid():
        raise NotSupported(f"{directory}: not a directory of yours; choose another with --root or --runroot")
    if st.st_mode & 0o077:
        os.chmod(directory, 0o700)
    return directory
