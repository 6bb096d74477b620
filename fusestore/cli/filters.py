"""``--filter``: which images, containers and layers are meant, in podman's words."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

from fusestore.errors import FusestoreError
from fusestore.store.items import Image, Item
from fusestore.store.storage import Store

Filter = Callable[[Item], bool]
Labels = Callable[[Item], Mapping[str, Any] | None]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(?:\d+(?:\.\d*)?(?:ms|[smhdw]))+|0")
_PART = re.compile(r"(\d+(?:\.\d*)?)(ms|[smhdw])")


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """An option's value as a length of time, in s.  Raises click.BadParameter."""
    found = seconds(value) if value is not None else None
    if value is not None and found is None:
        raise click.BadParameter(f"{value!r} is no length of time, such as 24h or 7d", ctx, param)
    return found


def seconds(text: str) -> float | None:
    """A length of time as Go writes it, with days and weeks: ``1h30m``, ``7d``, ``0``; None for none."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))


def all_of(words: Sequence[str], labels_of: Labels) -> Filter:
    """What every filter of `words` (KEY=VALUE) lets through; see `labels`.  Raises click.UsageError."""
    filters = [_filter(word, labels_of) for word in words]
    return lambda item: all(fits(item) for fits in filters)


def _filter(word: str, labels_of: Labels) -> Filter:
    key, equals, value = word.partition("=")
    if key == "until" and equals:
        moment = _moment(value)
        return lambda item: item.created < moment
    if key in ("label", "label!") and value:
        name, has_value, wanted = value.partition("=")

        def fits(item: Item) -> bool:
            found = labels_of(item)
            if found is None:
                return False
            return (name in found and (not has_value or found[name] == wanted)) == (key == "label")

        return fits
    raise click.UsageError(f"--filter {word}: choose until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE]")


def _moment(text: str) -> float:
    """Seconds since 1970: a time, such a number, or how long ago."""
    ago = seconds(text)
    if ago is not None and text != "0":
        return time.time() - ago
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"--filter until={text}: neither a time nor a length of time") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def labels(store: Store, item: Item) -> Mapping[str, Any] | None:
    """The labels of an image; None for what is no image and cannot have some."""
    if not isinstance(item, Image):
        return None
    try:
        run = store.configuration(item).get("config")
    except (FusestoreError, ValueError):
        return {}
    found = run.get("Labels") if isinstance(run, Mapping) else None
    return found if isinstance(found, Mapping) else {}
