"""Where podman keeps the images that its user already has.

Two generations of podman read different files (containers/storage: loadStoreOptions; container-libs:
configfile.Read), and each may have left a store:

==========  ==============================================================================================
up to 5     one file: that of CONTAINERS_STORAGE_CONF, else the user's, else that of /etc, else of /usr/share;
            a graphroot in the latter two is root's, other users have their rootless_storage_path
from 6 on   one of these files, then those in ``storage.conf.d``, and in ``storage.rootful.conf.d`` or
            ``storage.rootless.conf.d`` and there in a directory for the user ID; a graphroot is everybody's;
            last the file of CONTAINERS_STORAGE_CONF_OVERRIDE
==========  ==============================================================================================

The default is the same for both.  If one store of these exists, that is the one.  Only if there are more, or
none, podman itself is asked: it knows what its database says, but it takes 0.15 s or more (a listing of ours
has 0.08 s), makes a store where there is none, and leaves a process behind, which holds its user namespace.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fusestore.errors import InvalidOption
from fusestore.storage_conf import Settings, ending, merge, place, places, read, user_id

_CONF = "CONTAINERS_STORAGE_CONF"
_VENDOR, _ADMINISTRATOR = Path("/usr/share/containers"), Path("/etc/containers")
_ADDED = ("storage.imagestore", "storage.options.imagestore")
_DEADLINE = 10  # seconds for podman to answer

_log = logging.getLogger(__name__)


def is_graphroot(directory: Path) -> bool:
    """True where containers/storage has a store, be it empty."""
    if os.path.exists(directory / "storage.lock"):
        return True
    records = [
        images / name for images in ending("-images", directory) for name in ("images.json", "images.lock")
    ]
    return any(map(os.path.exists, records))


def graphroots() -> list[Path]:
    """The user's own stores that exist, as files say; podman is not asked.  Raises InvalidOption, OSError."""
    return _existing(_graphroot(settings) for settings in (_from_6_on(), _up_to_5(), Settings()))


def stores() -> list[Path]:
    """The user's own store; behind it, the read-only ones that podman adds to it and that exist.

    All own stores where there are more and podman cannot say which.  Raises InvalidOption where there is none
    or a file of podman's is wrong, OSError.
    """
    own = graphroots()
    if len(own) != 1 and (answer := _ask()):
        own = _existing([answer]) or own
    if not own:
        reason = f"it has no store at {_default()}; name the directory of one, or let podman pull an image"
        raise InvalidOption("podman", reason)
    return _existing([*own, *_added(_from_6_on()), *_added(_up_to_5())])


def _existing(directories: Iterable[Path]) -> list[Path]:
    return [directory for directory in dict.fromkeys(directories) if is_graphroot(directory)]


def _graphroot(settings: Settings) -> Path:
    found = settings.read("storage.graphroot", place)
    if found is None and user_id():
        found = settings.read("storage.rootless_storage_path", place)
    return found or _default()


def _default() -> Path:
    if not user_id():
        return Path("/var/lib/containers/storage")
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(os.path.realpath(data)) / "containers/storage"


def _added(settings: Settings) -> Iterator[Path]:
    yield from filter(None, (settings.read(key, place) for key in _ADDED))
    yield from settings.read("storage.options.additionalimagestores", places) or ()


# -- files --------------------------------------------------------------------------------------------


def named_settings() -> Settings:
    """Those of the file that CONTAINERS_STORAGE_CONF names, and of that which overrides it.

    Raises InvalidOption, OSError.
    """
    named = Settings()
    for variable in (_CONF, f"{_CONF}_OVERRIDE"):
        if path := os.environ.get(variable):
            named = merge(named, read(Path(path)))
    return named


def _up_to_5() -> Settings:
    system = _first(directory / "storage.conf" for directory in (_ADMINISTRATOR, _VENDOR))
    user = Settings()
    if path := os.environ.get(_CONF):
        user = read(Path(path))
    elif user_id() or os.environ.get("XDG_CONFIG_HOME"):
        user = _first([_user_directory() / "storage.conf"])
    if not user_id():
        return user or system
    path = "storage.rootless_storage_path"
    return merge(Settings({path: system[path]} if path in system else {}), user)


def _from_6_on() -> Settings:
    if os.environ.get(_CONF):
        return named_settings()
    user = _user_directory()
    settings = _first(directory / "storage.conf" for directory in (user, _ADMINISTRATOR, _VENDOR))
    directories = [system / kind for system in (_VENDOR, _ADMINISTRATOR) for kind in _drop_ins()]
    directories.append(user / "storage.conf.d")
    # Of files that have the same name, the last one hides the others.
    paths = {path.name: path for directory in directories for path in ending(".conf", directory)}
    for _, path in sorted(paths.items()):
        settings = merge(settings, read(path))
    return merge(settings, named_settings())


def _drop_ins() -> list[str]:
    uid = user_id()
    if not uid:
        return ["storage.conf.d", "storage.rootful.conf.d"]
    return ["storage.conf.d", "storage.rootless.conf.d", f"storage.rootless.conf.d/{uid}"]


def _user_directory() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "containers"


def _first(paths: Iterable[Path]) -> Settings:
    """The settings of the first file that exists."""
    return next((read(path) for path in paths if os.path.exists(path)), Settings())


# -- podman -------------------------------------------------------------------------------------------


def _ask() -> Path | None:
    """Where podman says that its store is; None when it is not installed, fails or does not answer."""
    import json
    import subprocess

    # A file, not a pipe, which a process that podman leaves behind could keep open.
    with os.fdopen(os.memfd_create("podman-info"), "w+b") as answer:
        try:
            subprocess.run(
                ["podman", "--remote=false", "info", "--format", "json"],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                timeout=_DEADLINE,
                check=True,
            )
            answer.seek(0)
            return Path(json.load(answer)["store"]["graphRoot"])
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, TypeError) as exc:
            _log.info("podman does not say where its store is: %s", exc)
            return None
