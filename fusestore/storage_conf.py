"""Files of storage.conf's form: reading them, merging them, and what their keys may hold.

The form is that of containers-storage.conf(5): TOML with ``[storage]``, ``[storage.options]`` and a table
``[storage.options.DRIVER]`` for each driver.  Our own file has it, and podman's, which we look into.  Both
become `Settings`: dotted key -> value, and the file that it stands in, so that every complaint names it.

Files are merged key by key, and the later one wins.  A list replaces the one before it, unless it, or the one
before it, has ``{append = true}`` (container-libs: configfile.Slice).  An empty string is no value.

A file that is not TOML is an error, which names the line.  containers/storage used to print a message and go
on with its defaults, that is, with another store than the user's.  A key that nobody knows is only warned of,
as there; it may be younger than we.  What means something to podman and nothing here is accepted; why it is
ignored goes to the log (level INFO), and stands in the tables `DRIVER_OPTIONS` and `_IGNORED`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from fusestore.errors import InvalidOption, printable

T = TypeVar("T")

#: How ids inside a container are numbered outside: container ID, host ID, size (idtools: IDMap).
IDRange = tuple[int, int, int]

_log = logging.getLogger(__name__)
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_TRUE = {"1", "t", "T", "TRUE", "true", "True"}  # Go's strconv.ParseBool
_FALSE = {"0", "f", "F", "FALSE", "false", "False"}
_SIZE = re.compile(r"\d+(\.\d+)? ?([kmgtp]i?)?b?", re.ASCII | re.IGNORECASE)  # go-units: RAMInBytes
_RANGE = re.compile(r"(\d+):(\d+):(\d+)", re.ASCII)
_MASKS = {"shared": 0o755, "private": 0o700}
_ID_LIMIT = 1 << 32


class Setting(NamedTuple):
    """A value as TOML has it, and the file that it stands in."""

    value: object
    source: str


class Settings(dict[str, Setting]):
    """The settings of one or more files, by dotted key."""

    def read(self, key: str, convert: Callable[[object], T]) -> T | None:
        """What `convert` makes of the value of `key`; None where there is none.  Raises InvalidOption."""
        value, source = self.get(key, ("", ""))
        return None if value == "" else checked(source, key, value, convert)


def checked(source: str, name: str, value: object, convert: Callable[[object], T]) -> T:
    """What `convert` makes of a value.  Raises InvalidOption where `convert` raises ValueError."""
    try:
        return convert(value)
    except ValueError as exc:
        raise InvalidOption(source, f"{name} {exc}") from None


def user_id() -> int:
    """The user as podman counts: in a user namespace of podman's, the user outside of it is meant."""
    outside = os.environ.get("_CONTAINERS_ROOTLESS_UID", "")
    return int(outside) if outside.isdecimal() else os.getuid()


# -- files --------------------------------------------------------------------------------------------


def ending(suffix: str, directory: Path) -> list[Path]:
    """What is in a directory whose name has this end, sorted; nothing where we cannot look."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [directory / name for name in sorted(names) if name.endswith(suffix)]


def read(path: Path) -> Settings:
    """The settings of one file.  Raises InvalidOption, OSError."""
    import tomllib  # 9 ms, and most users have no such file

    data = path.read_bytes()
    try:
        table = tomllib.loads(data.decode())
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise InvalidOption(str(path), f"not TOML: not UTF-8 (at line {line})") from None
    except tomllib.TOMLDecodeError as exc:
        end = f"at line {len(data.splitlines())}, the end"
        reason = str(exc).replace("at end of document", end)
        raise InvalidOption(str(path), f"not TOML: {reason}") from None
    return Settings((key, Setting(value, str(path))) for key, value in _flat(table))


def _flat(table: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def merge(low: Settings, high: Settings) -> Settings:
    """The settings of both; where both have one, that of `high`."""
    result = Settings({**low, **high})
    for key in low.keys() & high.keys():
        below, above = low[key].value, high[key].value
        if isinstance(below, list) and isinstance(above, list):
            result[key] = Setting(_merged_lists(below, above), high[key].source)
    return result


def _merged_lists(low: list[object], high: list[object]) -> list[object]:
    attributes = [item for item in (*low, *high) if isinstance(item, dict)]
    appended = bool(attributes) and attributes[-1].get("append") is True
    return [*low, *high] if appended else high


def complain(settings: Settings) -> None:
    """Log what of a file means nothing here: a warning for what means nothing to anybody."""
    unknown: dict[str, list[str]] = {}
    for key, setting in settings.items():
        if reason := _why_ignored(key):
            _log.info("%s: %s is ignored: %s", setting.source, key, reason)
        elif key not in _KNOWN:
            unknown.setdefault(setting.source, []).append(printable(key))
    for source, keys in unknown.items():
        _log.warning("%s: unknown keys: %s", source, ", ".join(keys))


def _why_ignored(key: str) -> str:
    return _IGNORED.get(key) or _IGNORED.get(key.rpartition(".")[0] + ".*", "")


# -- values -------------------------------------------------------------------------------------------
# Each takes what TOML gives and raises ValueError, whose text goes on where the key ends.


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def texts(value: object) -> list[str]:
    """A list of strings, without the attributes of the list."""
    if not isinstance(value, list):
        raise ValueError("must be a list of strings")
    return [text(item) for item in value if not isinstance(item, dict)]


def place(value: object) -> Path:
    """An absolute path, variables in it replaced and symlinks resolved (containers/storage: expandEnvPath).

    A variable that is not set is an error: nothing in its place would be a path that nobody meant.
    """
    path = _VARIABLE.sub(_variable, text(value))
    if not os.path.isabs(path):
        raise ValueError(f"must be an absolute path, not {path}")
    return Path(os.path.realpath(path))


def places(value: object) -> list[Path]:
    """A list of absolute paths."""
    return [place(item) for item in texts(value)]


def _variable(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    if name == "UID":  # a variable of the shell's; not in the environment
        return str(user_id())
    try:
        return os.environ[name]
    except KeyError:
        raise ValueError(f"has {match[0]}, which is not set") from None


def id_map(value: object) -> tuple[IDRange, ...]:
    """``CONTAINER:HOST:SIZE,...`` (idtools: ParseIDMap)."""
    ranges = [_RANGE.fullmatch(part.strip()) for part in text(value).split(",")]
    found = tuple((int(m[1]), int(m[2]), int(m[3])) for m in ranges if m)
    if len(found) < len(ranges) or max(map(max, found)) >= _ID_LIMIT:
        raise ValueError("must be CONTAINER:HOST:SIZE, as in 0:100000:65536")
    return found


def _flag(value: object) -> str:
    word = str(value) if isinstance(value, bool) else text(value)
    if word not in _TRUE | _FALSE:
        raise ValueError(f"must be true or false, not {word}")
    return "true" if word in _TRUE else "false"


def _size(value: object) -> str:
    if not _SIZE.fullmatch(text(value)):
        raise ValueError(f"must be a size, as in 10G, not {value}")
    return text(value)


def _count(value: object) -> str:
    if not (text(value).isascii() and text(value).isdecimal()):
        raise ValueError(f"must be a number, not {value}")
    return text(value)


def _mask(value: object) -> str:
    """Four octal digits, from a name, digits or (in ``[storage.options]``) a number."""
    try:
        mask = value if type(value) is int else _MASKS.get(text(value)) or int(text(value), 8)
    except ValueError:
        mask = -1
    if not 0 <= mask <= 0o7777:
        raise ValueError(f"must be shared, private or an octal mode, not {value}")
    return f"{mask:04o}"


# -- what there is ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DriverOption:
    """How the value of a driver's option is read, and why it is ignored, if it is."""

    convert: Callable[[object], str]
    ignored: str = ""


#: Options of drivers, in files and in STORAGE_OPTS (overlay: parseOptions).
DRIVER_OPTIONS = {
    "size": DriverOption(_size),
    "inodes": DriverOption(_count),
    "additionallayerstore": DriverOption(text, "layers come from images only"),
    "force_mask": DriverOption(_mask, "the mode of the store's directory says who may read it"),
    "ignore_chown_errors": DriverOption(_flag, "without root, owners are kept beside the files"),
    "mount_program": DriverOption(text, "fusestore mounts by itself"),
    "mountopt": DriverOption(text, "mounts of the store are always nodev and nosuid"),
    "override_kernel_check": DriverOption(text, "no kernel's overlayfs is used"),
    "skip_mount_home": DriverOption(_flag, "the store is never bind-mounted on itself"),
    "sync": DriverOption(text, "what is committed is always on the disk"),
    "use_composefs": DriverOption(_flag, "layers are plain directories"),
}

#: driver -> whose tables and prefixes are its own
DRIVER_NAMES = {"fuse": ("fuse", "fuse-overlayfs", "overlay", "overlay2"), "vfs": ("vfs",)}

_ONE_PLACE = "images are kept in graphroot; name other stores as additionalimagestores"
_NO_NAMESPACES = "fusestore makes no user namespaces"
_NO_DRIVER = "fusestore has no such driver"
_IGNORED = {
    "storage.imagestore": _ONE_PLACE,
    "storage.rootless_storage_path": "graphroot is for root and for others",
    "storage.transient_store": "containers are kept until they are removed",
    "storage.options.additionallayerstores": DRIVER_OPTIONS["additionallayerstore"].ignored,
    "storage.options.aufs.*": _NO_DRIVER,
    "storage.options.auto-userns-max-size": _NO_NAMESPACES,
    "storage.options.auto-userns-min-size": _NO_NAMESPACES,
    "storage.options.btrfs.*": _NO_DRIVER,
    "storage.options.disable-volatile": "no container is volatile",
    "storage.options.imagestore": _ONE_PLACE,
    "storage.options.ostree_repo": "there is no OSTree here",
    "storage.options.pull_options.*": "fusestore always takes whole layers",
    "storage.options.remap-group": "write the ranges as remap-gids",
    "storage.options.remap-user": "write the ranges as remap-uids",
    "storage.options.root-auto-userns-user": _NO_NAMESPACES,
    "storage.options.strip_suid_sgid": "no file of the store is setuid; mounts show images as they are",
    "storage.options.thinpool.*": _NO_DRIVER,
    "storage.options.zfs.*": _NO_DRIVER,
}
_KNOWN = {
    "storage.driver",
    "storage.driver_priority",
    "storage.graphroot",
    "storage.runroot",
    "storage.options.additionalimagestores",
    "storage.options.remap-gids",
    "storage.options.remap-uids",
    *(f"storage.options.{option}" for option in DRIVER_OPTIONS),
    *(
        f"storage.options.{name}.{option}"
        for names in DRIVER_NAMES.values()
        for name in names
        for option in DRIVER_OPTIONS
    ),
}
