"""What a layer changes, found in the most obvious way: walk two whole trees and compare everything.

Nothing is left out; layers, inode numbers and directories that both have in common mean nothing here.  The
rules are containers/storage's (`support.filesystem_model.expected_changes`), times to the nanosecond;
``fuse`` looks at contents, too.
"""

import stat

from support.filesystem_model import expected_changes
from support.layers import Shown, tree
from support.model import Facts, shown_facts

from fusestore.digest import CacheID
from fusestore.driver.api import Driver


def shown(driver: Driver, cache_id: CacheID | None) -> dict[bytes, Shown]:
    """All of a layer's merged view; of None: nothing."""
    if cache_id is None:
        return {}
    with driver.union(cache_id) as union:
        return tree(union)


def changes(new: dict[bytes, Shown], old: dict[bytes, Shown], *, contents: bool) -> list[tuple[str, bytes]]:
    """Letters and paths of what makes `new` out of `old`, sorted by path; `contents` count, or not."""
    found = expected_changes(*(_told(tree, contents) for tree in (old, new)))
    return sorted(found, key=lambda change: change[1])


def _told(tree: dict[bytes, Shown], contents: bool) -> dict[bytes, tuple]:
    return {
        path: (
            entry.kind | entry.mode, entry.uid, entry.gid, entry.rdev, entry.mtime_ns, entry.size,
            entry.content if contents or stat.S_ISLNK(entry.kind) else None, sorted(entry.xattrs.items()),
        )
        for path, entry in tree.items()
    }  # fmt: skip


def letters(driver: Driver, cache_id: CacheID, parent: CacheID | None) -> list[tuple[str, bytes]]:
    """What the driver says, in the same words."""
    return [(change.kind.value, change.path) for change in driver.changes(cache_id, parent)]


def facts(shown: dict[bytes, Shown]) -> dict[bytes, Facts]:
    """All that a tar can say of a tree, which is everything but sockets."""
    return shown_facts({path: entry for path, entry in shown.items() if not stat.S_ISSOCK(entry.kind)})
