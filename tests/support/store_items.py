"""What the model of a store (support.store_model) is made of: the tars of its layers, and its items."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from support.tars import member, tar

#: What is in the tars that make layers: files by name, None for a whiteout.
TARS: list[dict[str, bytes | None]] = [
    {"a": b"a" * 10, "b": b"b" * 700},
    {"a": b"A" * 11, "c": b"c" * 12},
    {"b": None, "d": b"d" * 5000},
    {"zz": None, "a": None, "e": b""},
]
ARCHIVES = [
    tar(*(member(f".wh.{name}" if data is None else name, data or b"") for name, data in files.items()))
    for files in TARS
]
DIGESTS = ["sha256:" + hashlib.sha256(archive).hexdigest() for archive in ARCHIVES]
BAD_KEYS = ("", ".", "/")
LONG = "x" * 300

Files = dict[str, tuple[int, bytes]]  # stamp and content, by name


class Refusal(Exception):
    """The name of the class of the error that the Store should raise."""


@dataclass
class Item:
    """What all kinds have."""

    names: list[str] = field(default_factory=list)
    metadata: str = ""
    flags: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Layer(Item):
    """`exact`: the number of the tar that can be given back; `tar`: of the last one that was applied."""

    parent: str = ""
    files: Files = field(default_factory=dict)
    exact: int | None = None
    tar: int | None = None
    writable: bool = True
    mounted: int = 0


@dataclass
class Image(Item):
    """An image."""

    layer: str = ""
    history: list[str] = field(default_factory=list)


@dataclass
class Container(Item):
    """A container; `directory` has its files."""

    image: str = ""
    layer: str = ""
    directory: dict[str, bytes] = field(default_factory=dict)
