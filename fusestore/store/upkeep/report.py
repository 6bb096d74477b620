"""What a check has found, as data: problems, what each is about, and what a repair may do.

The words for what upstream knows are upstream's (containers/storage: ``CheckReport``, ``ErrLayer...``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

INCORRECT_DIGEST = "layer content incorrect digest"
WRONG_DIGEST = "could not verify layer data"  # how the error of whoever reads the tar begins
MODIFIED = "layer content modified"
UNACCOUNTED = "layer in lower level storage driver not accounted for"
UNREFERENCED = "layer not referenced by any images or containers"


class Kind(Enum):
    """What a problem is about; the values are the words for one of it."""

    DATABASE = "database"
    LAYER = "layer"
    RO_LAYER = "read-only layer"
    DRIVER_LAYER = "driver layer"
    RW_LAYER = "RW layer"
    GRAPH_IMAGE = "graph image"
    IMAGE = "image"
    RO_IMAGE = "read-only image"
    CONTAINER = "container"
    FILE = "file"
    MOUNT = "mount"


#: The keys under which problems are listed in JSON; those that upstream has are upstream's.
_KEYS = {
    Kind.DATABASE: "Database",
    Kind.LAYER: "Layers",
    Kind.DRIVER_LAYER: "Layers",
    Kind.RO_LAYER: "ROLayers",
    Kind.RW_LAYER: "RWLayers",
    Kind.GRAPH_IMAGE: "GraphImages",
    Kind.IMAGE: "Images",
    Kind.RO_IMAGE: "ROImages",
    Kind.CONTAINER: "Containers",
    Kind.FILE: "Files",
    Kind.MOUNT: "Mounts",
}


class Remedy(Enum):
    """What `fusestore.store.upkeep.repair` does about a problem."""

    NONE = "nothing can be done here"
    COLLECT = "what no row names is deleted"
    UNNAME = "rows of what does not exist are deleted"
    RESTORE = "what the rows say of the driver's files is written again"
    RESIZE = "sizes and digests of what is verified are written down again"
    UNMOUNT = "a mount without a server, or a count without a mount, is taken away"
    DELETE = "what is damaged is deleted"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.  `cache_id` is the driver's layer that it was found in."""

    kind: Kind
    item: str
    what: str
    remedy: Remedy = Remedy.NONE
    cache_id: str = ""

    @property
    def is_damage(self) -> bool:
        """True when the item, and what is on it, is not what it should be."""
        return self.remedy in (Remedy.NONE, Remedy.DELETE)

    def __str__(self) -> str:
        return f"{self.kind.value} {self.item}: {self.what}"


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found."""

    problems: tuple[Problem, ...] = ()

    @property
    def is_clean(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems

    def of(self, *kinds: Kind, remedy: Remedy | None = None) -> list[Problem]:
        """The problems of some kinds, or of all; those with one remedy, if it is given."""
        return [p for p in self.problems if p.kind in (kinds or Kind) and remedy in (None, p.remedy)]

    def to_json(self) -> dict[str, dict[str, list[str]]]:
        """By kind and item, as upstream's report is; every kind is there."""
        return listed(self.problems)


def listed(problems: Iterable[Problem]) -> dict[str, dict[str, list[str]]]:
    """Problems by the key of their kind, and by item."""
    found: dict[str, dict[str, list[str]]] = {key: {} for key in _KEYS.values()}
    for problem in problems:
        found[_KEYS[problem.kind]].setdefault(problem.item, []).append(problem.what)
    return found
