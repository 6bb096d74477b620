"""Where a store and its run-time state are, and how it works: flags, environment, files, defaults.

=================  =====================================================================================
`StoreOptions`     flag, then environment, then key of a file; default
=================  =====================================================================================
graph_root         ``--root``, ``FUSESTORE_ROOT``, ``graphroot``; ``$XDG_DATA_HOME/fusestore``
run_root           ``--runroot``, ``FUSESTORE_RUNROOT``, ``runroot``; ``$XDG_RUNTIME_DIR/fusestore``, else
                   ``/tmp/fusestore-UID``
graph_driver_name  ``--storage-driver``, ``FUSESTORE_DRIVER``, ``STORAGE_DRIVER``, ``driver``,
                   the one that the store has, ``driver_priority``; ``fuse``
graph_options      ``--storage-opt``, ``STORAGE_OPTS``, ``[storage.options.fuse]``, ``[storage.options]``
additional_stores  ``--additional-store``, ``FUSESTORE_ADDITIONAL_STORES`` (colons between them),
                   ``additionalimagestores``
uid_map, gid_map   ``remap-uids``, ``remap-gids``
=================  =====================================================================================

The first that is given counts, but additional stores add up.  ``--storage-opt`` and ``STORAGE_OPTS``, even if
empty, replace all that files say of options, ``additionalimagestores`` too: it is ``imagestore=DIR`` in their
words (containers/storage: ReloadConfigurationFile).

The keys are those of storage.conf (`fusestore.storage_conf`).  They stand in our own file,
``$XDG_CONFIG_HOME/fusestore/config.toml`` with ``config.toml.d/*.toml`` beside it, or the one that
``FUSESTORE_CONFIG`` names; and above it in the file that ``CONTAINERS_STORAGE_CONF`` names, all but two: its
``graphroot`` and ``runroot`` are podman's.  Other files of podman's (``/etc/containers/storage.conf``) are
not read for options: they are tuned for podman, with drivers and quotas that we do not have.  Whoever wants
podman's images here names ``podman`` as an additional store (`fusestore.podman`).

Our store is never in a place of containers/storage, whose locks and records are its own.  The places that we
make are 0700 and must belong to the caller: a stranger's directory in ``/tmp`` is refused.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fusestore import podman, storage_conf
from fusestore.errors import InvalidOption, NotSupported, printable
from fusestore.storage_conf import (
    DRIVER_NAMES,
    DRIVER_OPTIONS,
    IDRange,
    Settings,
    checked,
    id_map,
    merge,
    place,
    text,
    texts,
)

_log = logging.getLogger(__name__)
_DRIVERS = {name: driver for driver, names in DRIVER_NAMES.items() for name in names}
_OUR_WAYS = ("--storage-driver", "FUSESTORE_DRIVER")  # to name a driver; other ways are podman's, too
_STORES = ("imagestore", "additionalimagestore", "additionalimagestores")  # options that name other stores
_PODMAN = "podman"  # as the name of another store
_Given = tuple[str, str, str]  # source, key without the driver's name, value of a driver's option
_STORES_KEY = "storage.options.additionalimagestores"


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What a store is opened with (containers/storage: StoreOptions).

    Paths are absolute and without symlinks, as in the kernel's mount table, which we compare them with.
    `graph_driver_name` is ``fuse`` or ``vfs``; `graph_options` are ``DRIVER.KEY=VALUE``, only what means
    something to our drivers; `additional_stores` exist, are not `graph_root`, and are searched in this order.
    """

    graph_root: Path
    run_root: Path
    graph_driver_name: str = "fuse"
    graph_options: tuple[str, ...] = ()
    additional_stores: tuple[Path, ...] = ()
    uid_map: tuple[IDRange, ...] = ()
    gid_map: tuple[IDRange, ...] = ()


def options(
    root: str | None = None,
    runroot: str | None = None,
    driver: str | None = None,
    storage_opts: Sequence[str] = (),
    additional_stores: Sequence[str] = (),
) -> StoreOptions:
    """The options in force; the arguments are command-line flags, None or empty where not given.

    Raises InvalidOption, NotSupported (a driver that we do not have, a place that is containers/storage's),
    OSError (a file that cannot be read).
    """
    settings = merge(_own_settings(), _named_settings())
    graph_root = _place(root, "FUSESTORE_ROOT", settings, "storage.graphroot") or _default_root()
    if podman.is_graphroot(graph_root):
        raise NotSupported(
            f"{graph_root}: a store of containers/storage (podman, buildah), which fusestore only reads: "
            f"choose another --root, and give --additional-store {graph_root}"
        )
    name = _driver(driver, settings, graph_root)
    given = list(_given_options(storage_opts, settings, name))
    stores = dict.fromkeys(_other_stores(additional_stores, given))
    return StoreOptions(
        graph_root,
        _place(runroot, "FUSESTORE_RUNROOT", settings, "storage.runroot") or _default_runroot(),
        name,
        _meaningful(given, name),
        tuple(path for path in stores if path != graph_root),
        settings.read("storage.options.remap-uids", id_map) or (),
        settings.read("storage.options.remap-gids", id_map) or (),
    )


# -- files --------------------------------------------------------------------------------------------


def _own_settings() -> Settings:
    settings = Settings()
    for path in _own_files():
        found = storage_conf.read(path)
        storage_conf.complain(found)
        settings = merge(settings, found)
    return settings


def _own_files() -> list[Path]:
    if named := os.environ.get("FUSESTORE_CONFIG"):
        return [Path(named)]
    main = _xdg("XDG_CONFIG_HOME", "~/.config") / "fusestore/config.toml"
    return [*([main] if os.path.exists(main) else []), *storage_conf.ending(".toml", Path(f"{main}.d"))]


def _named_settings() -> Settings:
    """What containers/storage's files say to us when a variable names them.

    A driver that we do not have is passed over, as upstream does for users without root; the variable is
    podman's, after all (containers/storage: getRootlessStorageOpts).
    """
    settings = podman.named_settings()
    storage_conf.complain(settings)
    for key in ("storage.graphroot", "storage.runroot"):
        settings.pop(key, None)
    name = settings.read("storage.driver", text)
    if name and name not in _DRIVERS:
        source = settings.pop("storage.driver").source
        _log.info("%s: storage.driver %s is ignored: fusestore has none", source, name)
    return settings


# -- places -------------------------------------------------------------------------------------------


def _place(flag: str | None, variable: str, settings: Settings, key: str) -> Path | None:
    given = flag or os.environ.get(variable)
    return Path(os.path.realpath(given)) if given else settings.read(key, place)


def _xdg(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or os.path.expanduser(default))


def _default_root() -> Path:
    return Path(os.path.realpath(_xdg("XDG_DATA_HOME", "~/.local/share") / "fusestore"))


def _default_runroot() -> Path:
    """Absent under su, cron and in most containers, XDG_RUNTIME_DIR must not be required."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isdir(runtime) and os.access(runtime, os.W_OK):
        return Path(os.path.realpath(runtime)) / "fusestore"
    # The last part is left as it is: `private` refuses a link that a stranger put there.
    return Path(os.path.realpath("/tmp")) / f"fusestore-{os.getuid()}"


def private(directory: Path) -> Path:
    """Make `directory`, or verify that it is ours; nobody else may enter.  Raises NotSupported, OSError."""
    owned(directory)
    if os.stat(directory).st_mode & 0o077:
        os.chmod(directory, 0o700)
    return directory


def owned(directory: Path) -> Path:
    """Make `directory`, 0700, or verify that it is ours; its mode is then its owner's choice.

    Raises NotSupported, OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    st = os.lstat(directory)
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid():
        raise NotSupported(f"{directory}: not a directory of yours; choose another with --root or --runroot")
    return directory


# -- drivers and their options ------------------------------------------------------------------------


def _driver(flag: str | None, settings: Settings, graph_root: Path) -> str:
    """The driver asked for; the one that the store has; the first of ``driver_priority`` that there is.

    What podman is told too gives way to what the store has, or a STORAGE_DRIVER that is set for podman would
    close it (podman: "overwritten by graph driver from database").
    """
    present = [driver for driver in DRIVER_NAMES if os.path.isdir(graph_root / driver)]
    source, asked = _asked_driver(flag, settings)
    if present and asked and asked not in present and source not in _OUR_WAYS:
        _log.warning("%s: the driver %s gives way to %s, which the store has", source, asked, present[0])
        asked = present[0]
    priority = settings.read("storage.driver_priority", texts) or ()
    usable = [_DRIVERS[name] for name in priority if name in _DRIVERS]
    return asked or [*present, *usable, "fuse"][0]


def _asked_driver(flag: str | None, settings: Settings) -> tuple[str, str]:
    """Where a driver is asked for, and which one; empty when nowhere."""
    given = [("--storage-driver", flag)]
    given += [(variable, os.environ.get(variable)) for variable in ("FUSESTORE_DRIVER", "STORAGE_DRIVER")]
    if name := settings.read("storage.driver", text):
        given.append((settings["storage.driver"].source, name))
    return next(((source, _known_driver(source, name)) for source, name in given if name), ("", ""))


def _known_driver(source: str, name: str) -> str:
    if name not in _DRIVERS:
        raise NotSupported(
            f"{source}: there is no driver {printable(name)} here: use fuse (overlay means the same) or vfs"
        )
    if name == "overlay2":
        _log.warning("%s: overlay2 is an old name of overlay: using the driver fuse", source)
    return _DRIVERS[name]


def _given_options(flags: Sequence[str], settings: Settings, driver: str) -> Iterator[_Given]:
    if flags:
        return _parsed("--storage-opt", flags, driver)
    if "STORAGE_OPTS" in os.environ:
        return _parsed("STORAGE_OPTS", os.environ["STORAGE_OPTS"].split(","), driver)
    return _in_files(settings, driver)


def _parsed(source: str, given: Sequence[str], driver: str) -> Iterator[_Given]:
    """Options as ``[DRIVER.]KEY=VALUE``; a single empty one is none."""
    for option in given if list(given) != [""] else ():
        name, equals, value = (part.strip() for part in option.partition("="))
        prefix, _, key = name.lower().rpartition(".")
        if not equals:
            raise InvalidOption(source, f"{option or 'an empty option'} is not of the form KEY=VALUE")
        if key not in {*DRIVER_OPTIONS, *_STORES} or prefix not in {"", *DRIVER_NAMES[driver]}:
            raise InvalidOption(source, f"unknown option {name} of the driver {driver}")
        if key in DRIVER_OPTIONS:
            value = checked(source, name, value, DRIVER_OPTIONS[key].convert)
        yield source, key, value


def _meaningful(given: Sequence[_Given], driver: str) -> tuple[str, ...]:
    """What a driver is told: of two values of a key the last one, and nothing that is ignored."""
    last = {key: (source, value) for source, key, value in given if key in DRIVER_OPTIONS}
    for key, (source, _) in last.items():
        if reason := DRIVER_OPTIONS[key].ignored:
            _log.info("%s: %s is ignored: %s", source, key, reason)
    kept = {key: value for key, (_, value) in last.items() if not DRIVER_OPTIONS[key].ignored}
    return tuple(f"{driver}.{key}={value}" for key, value in kept.items())


def _in_files(settings: Settings, driver: str) -> Iterator[_Given]:
    """What files say; a driver's own table goes before ``[storage.options]`` (GetGraphDriverOptions)."""
    for key, option in DRIVER_OPTIONS.items():
        for name in (*(f"{driver}.{key}" for driver in DRIVER_NAMES[driver]), key):
            if value := settings.read(f"storage.options.{name}", option.convert):
                yield settings[f"storage.options.{name}"].source, key, value
                break
    for store in settings.read(_STORES_KEY, texts) or ():
        yield settings[_STORES_KEY].source, "additionalimagestores", store


# -- other stores -------------------------------------------------------------------------------------


def _other_stores(flags: Sequence[str], given: Sequence[_Given]) -> Iterator[Path]:
    """The directories of flags and the environment, which may be relative, and of options."""
    variable = "FUSESTORE_ADDITIONAL_STORES"
    named = [("--additional-store", flag) for flag in flags]
    named += [(variable, name) for name in os.environ.get(variable, "").split(":")]
    named = [(source, _unless_podman(name, os.path.realpath)) for source, name in named]
    for source, key, value in given:
        if key in _STORES:
            convert = partial(checked, source, key, convert=place)
            named += [(source, _unless_podman(name, convert)) for name in value.split(",")]
    for source, name in named:
        if name == _PODMAN:
            yield from podman.stores()
        elif os.path.isdir(name):
            yield Path(name)
        elif name:
            raise InvalidOption(source, f"{name}: there is no such directory to take images from")


def _unless_podman(name: str, convert: Callable[[str], str | Path]) -> str:
    return name if name in ("", _PODMAN) else str(convert(name))
