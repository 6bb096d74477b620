"""Whose the files of a containers/storage graphroot are, on disk and in images.

podman and buildah without root work in a user namespace: id 0 there is the user, and from 1 on come the
user's subordinate ids, in order of their number (containers/storage: pkg/idtools, pkg/unshare).  A user who
has none owns everything, whatever the image says.  On disk are the outer ids.  A layer that was made for
containers with maps of their own has those in between.
"""

from __future__ import annotations

import pwd
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fusestore.driver.idmap import Range
from fusestore.store.graphroot_records import IdRange

_NO_ID = ((0, 0, 0),)  # a map that shows none of the ids on disk; an empty one would show all as they are


class Owner(NamedTuple):
    """Who made a graphroot, and how ids on disk are shown in their namespace; no ranges: as they are."""

    uid: int
    uids: tuple[Range, ...]
    gids: tuple[Range, ...]


def owner_of(graphroot: Path, etc: Path = Path("/etc")) -> Owner:
    """The user that the directory `graphroot` belongs to; root works without a namespace.

    `etc` has the tables of subordinate ids.  Raises OSError.
    """
    st = graphroot.stat()
    if st.st_uid == 0:
        return Owner(0, (), ())
    try:
        account = pwd.getpwuid(st.st_uid)
        name, gid = account.pw_name, account.pw_gid
    except KeyError:
        name, gid = "", st.st_gid
    subuids, subgids = (_subordinate(etc / table, name, st.st_uid) for table in ("subuid", "subgid"))
    if not subuids or not subgids:  # podman then has one id
        subuids = subgids = []
    return Owner(st.st_uid, _ranges(st.st_uid, subuids), _ranges(gid, subgids))


def _subordinate(table: Path, name: str, uid: int) -> list[tuple[int, int]]:
    """The ranges of a user, told by name or number, as (first, count): subuid(5)."""
    try:
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        who, *numbers = line.strip().split(":")
        if who in (name or str(uid), str(uid)) and len(numbers) == 2 and all(map(str.isdecimal, numbers)):
            found.append((int(numbers[0]), int(numbers[1])))
    return sorted(found)


def _ranges(own: int, subordinate: Iterable[tuple[int, int]]) -> tuple[Range, ...]:
    ranges = [(own, 0, 1)]
    shown = 1
    for first, count in subordinate:
        ranges.append((first, shown, count))
        shown += count
    return tuple(ranges)


def shown_in(outer: Sequence[Range], inner: Sequence[IdRange]) -> tuple[Range, ...]:
    """How ids on disk are shown by a layer that was made with the map `inner` inside of `outer`."""
    if not inner:
        return tuple(outer)
    if not outer:
        return tuple((host, container, count) for container, host, count in inner)
    found = []
    for stored, shown, count in outer:
        for container, host, size in inner:
            first, end = max(shown, host), min(shown + count, host + size)
            if first < end:
                found.append((stored + first - shown, container + first - host, end - first))
    return tuple(found) or _NO_ID
