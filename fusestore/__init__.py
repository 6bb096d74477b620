"""fusestore: container images for people without root.

The library begins at `fusestore.store.storage.Store`; `fusestore.transport.pipeline.load` fills it.
Nothing here needs FUSE but mounting (`Store.mount`, `Store.mount_image`).
"""

__version__ = "0.1.0"
