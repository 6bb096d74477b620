"""What a mount is made of, as plain data for a server; and two records that lie beside a layer's files.

``links`` has the groups of its hard-linked names.  A layer that is *borrowed* from another store has a
symlink in the place of ``diff``, which says where its files are, and ``origin.json``, which says what they
are like.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from fusestore.driver import whiteout
from fusestore.driver.idmap import Range
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import CorruptStore
from fusestore.files import opened, walk

_ORIGIN = "origin.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """How a layer that another program or store keeps differs from the layers around it.

    `ownership` None means: tell by the root's ``override_stat``; `spelling` None: either.  `uids` and `gids`
    map the ids on disk (stored, shown, count); one in no range is shown as the overflow id.  `opaque` are the
    directories that hide those below by marks that we may not see (``trusted.``, which are for root only);
    paths in the layer, that of its root is "".
    """

    ownership: Ownership | None = None
    spelling: Spelling | None = None
    uids: tuple[Range, ...] = ()
    gids: tuple[Range, ...] = ()
    opaque: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self, dict_factory=_plain)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Origin:
        """The inverse of `to_json`.  Raises ValueError, KeyError, TypeError for anything else."""
        return cls(
            Ownership(data["ownership"]) if data["ownership"] else None,
            Spelling(data["spelling"]) if data["spelling"] else None,
            _ranges(data["uids"]),
            _ranges(data["gids"]),
            tuple(data["opaque"]),
        )


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Where one layer of a mount is, the groups of its hard links, and the file to lock while it is used.

    `origin` None means: it is as the layers of the home are.  `lender` is what the store that has lent the
    files locks to delete them.
    """

    path: str
    links: str | None = None
    lock: str | None = None
    origin: Origin | None = None
    lender: str | None = None

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerSpec:
        """The inverse of ``asdict``, whose enums JSON has by value."""
        origin = data.get("origin")  # of a live mount that is older than origins there is none
        return cls(**{**data, "origin": Origin.from_json(origin) if origin else None})


@dataclass(frozen=True, slots=True)
class UpperSpec:
    """The layer that takes the changes of a writable mount; see `fusestore.driver.union.upper.Upper`."""

    path: str
    work: str
    lock: str | None = None
    spelling: Spelling | None = None
    metacopy: bool = True
    redirect: bool = True
    plain_symlinks: bool = False
    sync: bool = True

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> UpperSpec:
        """The inverse of ``asdict``, whose enums JSON has by value."""
        return cls(**{**data, "spelling": Spelling(data["spelling"]) if data["spelling"] else None})


@dataclass(frozen=True, slots=True)
class View:
    """How a mount shows its tree; the options of ``fusestore-overlay`` that are no mount flags.

    `as_root`: whoever may enter acts as root; with `root_is_me` they are shown as the owner of root's
    files, because the kernel refuses others some calls before we are asked (ACLs, links to setuid files).
    `uids` and `gids` are triples (stored, shown, count); `squash_uid` and `squash_gid` are shown instead of
    any.  `timeout` is in seconds.
    """

    as_root: bool = True
    root_is_me: bool = False
    uids: tuple[Range, ...] = ()
    gids: tuple[Range, ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    static_nlink: bool = False
    xattrs: bool = True
    acls: bool = False
    timeout: float = 1e9
    writeback: bool = True
    fsync: bool = True


@dataclass(frozen=True, slots=True)
class MountSpec:
    """All that the server behind a mount needs to know.  `layers` are the lower ones, topmost first.

    `ownership` and `spelling` None mean: each layer tells by itself.  `options` are those of mount(8).
    """

    layers: tuple[LayerSpec, ...]
    home: str
    ownership: Ownership | None
    spelling: Spelling | None
    label: str
    allow_other: bool = False
    allow_root: bool = False
    options: tuple[str, ...] = ("nosuid", "nodev")
    upper: UpperSpec | None = None
    view: View = View()

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self, dict_factory=_plain)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> MountSpec:
        """The inverse of `to_json`."""
        maps = {key: _ranges(data["view"][key]) for key in ("uids", "gids")}
        special = {
            "layers": tuple(map(LayerSpec.from_json, data["layers"])),
            "options": tuple(data["options"]),
            "ownership": Ownership(data["ownership"]) if data["ownership"] else None,
            "spelling": Spelling(data["spelling"]) if data["spelling"] else None,
            "upper": UpperSpec.from_json(data["upper"]) if data["upper"] else None,
            "view": View(**{**data["view"], **maps}),
        }
        return cls(**{**data, **special})


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.value if isinstance(value, Enum) else value for key, value in items}


def _ranges(values: Sequence[Sequence[int]]) -> tuple[Range, ...]:
    return tuple((stored, shown, count) for stored, shown, count in values)


def record_links(tree: Path, record: Path) -> None:
    """Write down which names of `tree` are one file, as the ``links`` of its layer.  Raises OSError."""
    groups: dict[int, list[bytes]] = {}
    with opened(tree) as top:
        for path, _, entries in walk(top):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    continue
                st = entry.stat(follow_symlinks=False)
                if st.st_nlink > 1 and not whiteout.is_device(st):
                    groups.setdefault(st.st_ino, []).append(os.path.join(path, os.fsencode(entry.name)))
    write_links(record, groups.values())


def write_links(record: Path, groups: Iterable[Sequence[bytes]]) -> None:
    """Write groups of hard-linked names as a ``links`` file, where there are any.  Raises OSError."""
    lines = [json.dumps([os.fsdecode(name) for name in sorted(group)]) + "\n" for group in groups]
    if lines:
        record.write_text("".join(lines), encoding="ascii")


def write_borrowed(directory: Path, spec: LayerSpec, origin: Origin) -> None:
    """Make `directory` one of a layer whose files are those of `spec`, which are as `origin` says.

    Raises OSError.
    """
    (directory / "diff").symlink_to(spec.path)
    record = {"links": spec.links, "lender": spec.lock, "origin": origin.to_json()}
    (directory / _ORIGIN).write_text(json.dumps(record), encoding="ascii")


def read_borrowed(directory: Path) -> LayerSpec | None:
    """Where the files of the borrowed layer in `directory` are; None for one that has its own.

    They may be gone.  Raises CorruptStore, OSError.
    """
    try:
        record = (directory / _ORIGIN).read_bytes()
    except FileNotFoundError:
        return None
    try:
        data, path = json.loads(record), os.readlink(directory / "diff")
        origin = Origin.from_json(data["origin"])
        return LayerSpec(path, data["links"], str(directory / "lock"), origin, data.get("lender"))
    except (ValueError, KeyError, TypeError, FileNotFoundError) as exc:
        raise CorruptStore(str(directory / _ORIGIN), str(exc)) from None
