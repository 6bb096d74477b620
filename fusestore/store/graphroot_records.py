"""``layers.json`` and ``images.json`` of containers/storage, read as our own records.

Each file is one JSON array of objects; ``id`` and ``created`` are always there, of the others those that are
not empty (containers/storage: structs Layer and Image).  A file that is not there, or is empty, means none.
We are as strict as Go's decoder, and about what names files stricter, because the store may be somebody
else's: one wrong value and the whole file is damaged.  It is never taken for an empty one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from fusestore import digest
from fusestore.digest import DiffID, Digest
from fusestore.errors import CorruptStore, printable
from fusestore.store.bigdata import BigData
from fusestore.store.items import Image, Item, LayerItem

#: The diff ID of a layer without entries, so also without owners (docker: DigestSHA256EmptyTar).
_NO_ENTRIES = digest.of_bytes(bytes(1024))

#: pkg/archive: type Compression.
_COMPRESSIONS = ("", "bzip2", "gzip", "xz", "zstd")

_DIGEST = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")  # go-digest: DigestRegexp
_INT64 = range(-(1 << 63), 1 << 63)
_UINT32 = range(1 << 32)
_NOT_FILES = ("", ".", "..")
_EPOCH = datetime.fromtimestamp(0, UTC)

#: Ids inside of a user namespace and where it is made: (container_id, host_id, size).
IdRange = tuple[int, int, int]

#: The bytes of an item's big data on disk, by its id and key.
SizeOnDisk = Callable[[str, str], int]


class StoredLayer(NamedTuple):
    """A layer, and how its ids on disk were mapped when it was made; empty where they were not."""

    item: LayerItem
    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]


# -- values -------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    if value.isascii():
        return value
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # as Go reads lone surrogates


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not an array")
    return value


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    return value


def _within(numbers: range) -> Callable[[object], int]:
    def number(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value not in numbers:
            raise TypeError(f"{value!r} is not a number from {numbers[0]} to {numbers[-1]}")
        return value

    return number


_size, _id = _within(_INT64), _within(_UINT32)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _ids(value: object) -> tuple[int, ...]:
    return tuple(map(_id, _list(value)))


def _digest(value: object) -> Digest | None:
    """A digest; None for none, and for algorithms other than ours."""
    text = _text(value)
    if not text:
        return None
    if text.startswith("sha256:") or not _DIGEST.fullmatch(text):
        return digest.parse(text)
    return None


def _moment(value: object) -> int:
    """RFC 3339 as s since 1970; 0 for Go's zero time."""
    moment = datetime.fromisoformat(_text(value))
    if moment.year == 1:
        return 0
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(seconds=1)


def _compression(value: object) -> str:
    number = _size(value)
    return _COMPRESSIONS[number] if number in range(len(_COMPRESSIONS)) else "unknown"


def _maps(value: object) -> tuple[IdRange, ...]:
    maps = map(_object, _list(value))
    return tuple((_id(m["container_id"]), _id(m["host_id"]), _id(m["size"])) for m in maps)


def _sizes(value: object) -> dict[str, int]:
    return {_text(key): _size(size) for key, size in _object(value).items()}


def _digests(value: object) -> dict[str, Digest | None]:
    return {_text(key): _digest(text) for key, text in _object(value).items()}


def _file_name(value: object) -> str:
    name = _text(value)
    if name in _NOT_FILES or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} cannot be an id")
    return name


#: By key: how its value is read, and what it is where there is none.
_FIELDS: dict[str, tuple[Callable[[object], Any], Any]] = {
    "names": (_texts, ()),
    "names-history": (_texts, ()),
    "parent": (_text, ""),
    "layer": (_text, ""),
    "metadata": (_text, ""),
    "mountlabel": (_text, ""),
    "created": (_moment, 0),
    "digest": (_digest, None),
    "compressed-diff-digest": (_digest, None),
    "compressed-size": (_size, 0),
    "diff-digest": (_digest, None),
    "diff-size": (_size, 0),
    "compression": (_compression, ""),
    "uidset": (_ids, None),
    "gidset": (_ids, None),
    "uidmap": (_maps, ()),
    "gidmap": (_maps, ()),
    "flags": (_object, {}),
    "big-data-names": (_texts, ()),
    "big-data-sizes": (_sizes, {}),
    "big-data-digests": (_digests, {}),
}


def _fields(element: object) -> dict[str, Any]:
    """The values of a record; Go takes null for the zero value."""
    found = {key: default for key, (_, default) in _FIELDS.items()}
    present = _object(element)
    found["id"] = _file_name(present.get("id"))
    for key, value in present.items():
        if value is not None and key in _FIELDS:
            try:
                found[key] = _FIELDS[key][0](value)
            except (ValueError, TypeError, KeyError, OverflowError) as exc:
                raise ValueError(f"{key} of {found['id']!r}: {exc}") from None
    return found


# -- records ------------------------------------------------------------------------------------------


def _item(fields: Mapping[str, Any], size_on_disk: SizeOnDisk) -> dict[str, Any]:
    """What layers and images have in common."""
    item, sizes, digests = fields["id"], fields["big-data-sizes"], fields["big-data-digests"]
    keys = fields["big-data-names"]
    big_data = {k: BigData(sizes[k] if k in sizes else size_on_disk(item, k), digests.get(k)) for k in keys}
    same = {key: fields[key] for key in ("id", "names", "metadata", "created", "flags")}
    return {**same, "big_data": big_data, "read_only": True}


def _layer(fields: Mapping[str, Any], size_on_disk: SizeOnDisk) -> StoredLayer:
    """A size counts only beside its digest, and is -1 where a layer came in parts."""
    diff_digest, compressed_digest = fields["diff-digest"], fields["compressed-diff-digest"]
    is_known = diff_digest is not None and fields["diff-size"] >= 0
    nobody = () if diff_digest == _NO_ENTRIES else None
    item = LayerItem(
        **_item(fields, size_on_disk),
        parent=fields["parent"],
        mount_label=fields["mountlabel"],
        size=fields["diff-size"] if is_known else 0,
        uncompressed_digest=diff_digest and DiffID(diff_digest),
        uncompressed_size=fields["diff-size"] if is_known else None,
        compressed_digest=compressed_digest,
        compressed_size=fields["compressed-size"] if compressed_digest is not None else None,
        compression=fields["compression"],
        uids=fields["uidset"] or nobody,
        gids=fields["gidset"] or nobody,
    )
    return StoredLayer(item, fields["uidmap"], fields["gidmap"])


def _image(fields: Mapping[str, Any], size_on_disk: SizeOnDisk) -> Image:
    """`size` is that of the big data so far; a manifest's digest stands in for the image's own."""
    item = _item(fields, size_on_disk)
    image = Image(
        **item,
        top_layer=fields["layer"] or None,
        digest=fields["digest"],
        size=sum(blob.size for blob in item["big_data"].values() if blob.size > 0),
        names_history=fields["names-history"],
    )
    return replace(image, digest=next(iter(image.digests), None))


# -- files --------------------------------------------------------------------------------------------


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _elements(path: Path, data: bytes) -> list[dict[str, Any]]:
    if not data:
        return []
    try:
        elements = json.loads(data.decode("utf-8", "replace"), parse_constant=_refuse)
        return [] if elements is None else list(map(_fields, _list(elements)))
    except (ValueError, TypeError, RecursionError) as exc:
        raise CorruptStore(str(path), printable(str(exc))) from None


def _take_in(known: dict[str, str], item: Item, path: Path) -> None:
    """Note who has a name (containers/storage: ErrDuplicateLayerNames, ErrDuplicateImageNames)."""
    for name in item.names:
        if known.setdefault(name, item.id) != item.id:
            others = f"{known[name]} and {item.id}"
            raise CorruptStore(str(path), printable(f"{others} have the same name {name}"))


def read_layers(files: Iterable[tuple[Path, bytes]], size_on_disk: SizeOnDisk) -> dict[str, StoredLayer]:
    """The layers by id, of files in the order of their rank: the first to know a layer is believed.

    A layer that is being made or deleted is left out.  Raises CorruptStore.
    """
    found: dict[str, StoredLayer] = {}
    names: dict[str, str] = {}
    for path, data in files:
        for fields in _elements(path, data):
            if fields["flags"].get("incomplete") is not True and fields["id"] not in found:
                found[fields["id"]] = layer = _layer(fields, size_on_disk)
                _take_in(names, layer.item, path)
    return found


def read_images(files: Iterable[tuple[Path, bytes]], size_on_disk: SizeOnDisk) -> dict[str, Image]:
    """The images by id; what `read_layers` does, but that none is left out."""
    found: dict[str, Image] = {}
    names: dict[str, str] = {}
    for path, data in files:
        for fields in _elements(path, data):
            if fields["id"] not in found:
                found[fields["id"]] = image = _image(fields, size_on_disk)
                _take_in(names, image, path)
    return found
