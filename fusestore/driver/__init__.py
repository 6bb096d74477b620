"""Graphdrivers: what stores layers on disk and shows them as one tree.

A driver keeps each layer as a plain directory under its *home* and mounts a chain of them.  Two exist:
`fuse`, the product, where a layer holds only what it changed and a union filesystem merges the chain; and
`vfs`, where every layer is a full copy: slow, obvious, and the oracle that `fuse` is tested against.
Stores see `api` and nothing else of this package.

====================  =============================================================================
layers on disk        `layout` (names, locks, what drivers share), `ownership`, `whiteout`
ingest                `apply` (tar -> directory), `confine` (never leaves it), `below` (what lies under it)
the union, no FUSE    `union.layerdir`, `union.resolve`, `union.nodes`, `union.tree`
the union, mounted    `operations` (pyfuse3 adapter), `loop`, `server` (process), `mounter` (starts it)
the machine           `preflight` (what is missing, and the remedy)
====================  =============================================================================
"""
