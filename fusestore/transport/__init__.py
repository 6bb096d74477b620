"""Images in: where they come from, and how their layers get into a store.

::

    source        the interface: what every place gives, and which place a user means
    document      manifests, indexes and configurations: parsed with suspicion, platform chosen
    oci           an OCI image layout, in a directory or in a tar
    docker        a tar by ``docker save``
    archive       a tar as a set of named blobs that can be read in any order
    compression   told by content, not by media type
    pipeline      blob -> verified -> decompressed -> registered; then the image is named
"""
