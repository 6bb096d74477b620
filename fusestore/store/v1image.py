"""`V1Image`: what docker before 1.10 knew of an image, and its JSON (docker 1.7: ``image/image.go``).

An image of that time is one layer with a random id, the id of the image below it, and how to run it.  Nothing
in it is a digest.  Configurations are kept as they come: no rule here looks into them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from fusestore.errors import InvalidImage, printable

_ID = re.compile(r"[0-9a-f]{64}")

#: Go's omitempty leaves out no structs and no times; `size` has no tag at all, hence its capital letter.
_ALWAYS = ("created", "container_config", "size")
_KEYS = {"size": "Size"}
_KINDS = {"container_config": dict, "config": dict, "size": int}

_NEVER = "0001-01-01T00:00:00Z"  # Go's zero time


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Image:
    """An image.  The fields are those of image.go, in their order; "" stands for what is not there.

    `created` is in RFC 3339 with up to 9 digits of a second, kept as text so that none is lost.  `size`
    counts the bytes of files in its own layer; -1 while not known, 0 is a size.
    """

    id: str
    parent: str = ""
    comment: str = ""
    created: str = _NEVER
    container: str = ""
    container_config: Mapping[str, Any] = field(default_factory=dict)
    docker_version: str = ""
    author: str = ""
    config: Mapping[str, Any] | None = None
    architecture: str = ""
    os: str = ""
    size: int = -1

    def to_json(self) -> str:
        """As Go's encoder would write it but for the escapes: one line with its newline."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        kept = {
            _KEYS.get(name, name): value
            for name, value in values.items()
            if name in _ALWAYS or value not in ("", None)
        }
        return json.dumps(kept, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> V1Image:
        """The image that a JSON object describes; keys that image.go does not have are lost (NewImgJSON).

        Raises InvalidImage.
        """
        try:
            document = json.loads(text, parse_constant=_no_constant)
            if not isinstance(document, dict):
                raise ValueError("not an object")
            found = {f.name: _value(document, f.name) for f in fields(cls)}
            datetime.fromisoformat(found["created"] or _NEVER)
        except (ValueError, RecursionError) as exc:
            raise InvalidImage("image JSON", str(exc)) from None
        return cls(**{name: value for name, value in found.items() if value is not None})


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _value(document: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """The value of a field, None where it is not there.  Raises ValueError for one of another type."""
    key, kind = _KEYS.get(name, name), _KINDS.get(name, str)
    value = document.get(key)
    if value is None and name == "id":
        raise ValueError("it has no id")
    if value is not None and type(value) is not kind:
        raise ValueError(f"{key} is {value!r:.40}, not of type {kind.__name__}")
    return value


def validate_id(id_: str) -> None:
    """Raises ValueError unless `id_` is 64 lower-case hex digits (docker 1.7: ``image.ValidateID``)."""
    if not _ID.fullmatch(id_):
        raise ValueError(f"image ID '{printable(id_)}' is invalid")
