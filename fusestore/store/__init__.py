"""The store: layers, images and containers by id and name, on a graphdriver.

::

    database     the one SQLite file: transactions, reading what is not ours, how to refuse a bad one
    schema       its tables, and how older formats become this one
    metadata     rows of layers and RW layers
    tarsplit     what a layer's tar holds besides files, and the exact tar again

    layer        the handles a caller of moby's layer store holds: `Layer`, `RWLayer`
    registered   `RegisteredLayers`: register, get, map, release
    layerstore   `LayerStore`: that and RW layers by name, changes, commit
    migration    layers that a driver has already
    graph        `Graph`: docker 1.7's images by random id; v1image, initlayer, truncindex are its parts

    items        what layers, images and containers have in common; their records
    bigdata      named blobs of items as files
    layeritems   layers by id, as containers/storage's calls make, mount and fill them
    images       image rows
    containers   container rows, and their directories
    catalog      `Catalog`: finding things by name, here and in additional stores; names, metadata, big data
    imagemounts  looking into images, and mounting them
    contents     mounting, comparing and filling layers; borrowing those of additional stores
    storage      `Store`: all of it in one place, with the rules that span them
    commit       a container's changes as an image

    additional   `AdditionalStore`: other people's stores; the root of another fusestore
    graphroot    podman's; graphroot_records and graphroot_owners are its parts
    upkeep       check, repair, disk usage, pruning

Invariants, true at every instant, also after kill -9 and power loss (DESIGN section 4): a row names only
files that exist durably, a layer row only an existing parent, an image row only an existing layer; files
that no row names are never served and get collected; a digest in a row was computed from the bytes.  From
them follows the order of every write: content, sync, row; and of every deletion: row, then content.
"""
