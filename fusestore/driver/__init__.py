"""Graphdrivers: what stores layers on disk and shows them as one tree.

A driver keeps each layer as a plain directory under its *home* and mounts a chain of them.  Two exist:
`fuse`, the product, where a layer holds only what it changed and a union filesystem merges the chain; and
`vfs`, where every layer is a full copy: slow, obvious, and the oracle that `fuse` is tested against.
Stores see `api` and nothing else of this package.

====================  =============================================================================
layers on disk        `home` (names, locks, what drivers share), `layout`, `ownership`, `whiteout`, `acl`,
                      `counter` (who has got a layer), `stack` (layers opened from what a mount is made
                      of), `idmap` (ids on disk and as shown)
ingest                `apply` (tar -> directory), `confine` (never leaves it), `below` (what lies under it),
                      `merge` (that into a tree that is there)
back out              `diff` (what a layer changes, as a list and as a tar), `flush` (out of a mount, first),
                      `getter` (a layer's files by the names of its tar)
the union, no FUSE    `union.*`: see there
the union, mounted    `operations`, `writable_operations`, `raw_requests` (pyfuse3 and what it leaves out),
                      `loop`, `server` (the process), `mounter` (starts it)
for others            `program` (``fusestore-overlay``, for podman and buildah)
the machine           `preflight` (what is missing, and the remedy)
====================  =============================================================================
"""
