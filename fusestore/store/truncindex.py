"""`TruncIndex`: find an id by any prefix of it that no other id begins with (containers/storage: truncindex).

Upstream keeps a trie.  Ids that begin alike stand side by side in a sorted list, so the place where a prefix
would be inserted is where they begin, and the two ids from there on tell whether it fits none, one or more.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from fusestore.errors import AmbiguousName, ImageNotFound, printable


class TruncIndex:
    """A set of ids, none empty and none with a space; `ids` that are not such are left out."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self._ids = sorted({id_ for id_ in ids if _is_valid(id_)})

    def add(self, id_: str) -> None:
        """Add an id.  Raises ValueError for one that is not valid, or there already."""
        if not _is_valid(id_):
            raise ValueError(f"{printable(id_)!r} is no id: it is empty or has a space")
        if self._holds(id_):
            raise ValueError(f"id already exists: {printable(id_)!r}")
        insort(self._ids, id_)

    def delete(self, id_: str) -> None:
        """Take out an id, given in full.  Raises ImageNotFound."""
        if not self._holds(id_):
            raise ImageNotFound(id_)
        del self._ids[bisect_left(self._ids, id_)]

    def get(self, prefix: str) -> str:
        """The one id that begins with `prefix`.

        Raises ImageNotFound where there is none, AmbiguousName where there are more, ValueError for "".  An
        id that is the beginning of another one is ambiguous, as upstream.
        """
        if not prefix:
            raise ValueError("prefix can't be empty")
        start = bisect_left(self._ids, prefix)
        found = [id_ for id_ in self._ids[start : start + 2] if id_.startswith(prefix)]
        if not found:
            raise ImageNotFound(prefix)
        if len(found) > 1:
            raise AmbiguousName(prefix)
        return found[0]

    def __iter__(self) -> Iterator[str]:
        """Every id that there is now, sorted; changes made meanwhile do not count (upstream: Iterate)."""
        return iter(self._ids[:])

    def _holds(self, id_: str) -> bool:
        place = bisect_left(self._ids, id_)
        return self._ids[place : place + 1] == [id_]


def _is_valid(id_: str) -> bool:
    return bool(id_) and " " not in id_
