"""The layers of a stack, opened from their specs: the same in a mount's server as in the library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from fusestore.driver.idmap import Owners
from fusestore.driver.layout import LayerSpec
from fusestore.driver.ownership import Ownership
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.whiteout import Spelling


def open_layer(
    spec: LayerSpec, ownership: Ownership | None, spelling: Spelling | None, prefix: bytes | None = None
) -> LayerDir:
    """One layer; close it.  `ownership` and `spelling` are those of a layer without an origin of its own.

    `prefix` is for `LayerDir`.  Raises OSError.
    """
    origin = spec.origin
    if origin is None:
        return LayerDir(spec.path, ownership, spelling, spec.links, prefix)
    return LayerDir(
        spec.path,
        origin.ownership,
        origin.spelling,
        spec.links,
        prefix,
        foreign=True,
        owners=Owners(origin.uids, origin.gids) if origin.uids or origin.gids else None,
        opaque=frozenset(map(os.fsencode, origin.opaque)),
    )


@contextmanager
def merged(
    specs: Sequence[LayerSpec], ownership: Ownership | None, spelling: Spelling | None
) -> Iterator[MergedUnion]:
    """The topmost layer on top of the others, told apart, to compare with them.  Raises OSError."""
    with ExitStack() as stack:
        top, *lowers = (stack.enter_context(open_layer(spec, ownership, spelling)) for spec in specs)
        yield MergedUnion(top, lowers)
