"""The store: layers and images by name, on a graphdriver.

::

    database     the one SQLite file: its schema, transactions, how to refuse a bad one
    metadata     rows of layers and RW layers
    tarsplit     what a layer's tar holds besides files, and the exact tar again
    layer        the handles a caller holds: `Layer`, `RWLayer`
    registered   `RegisteredLayers`: register, get, map, release
    layerstore   `LayerStore`: that and RW layers by name, changes, commit
    migration    layers that a driver has already
    graph        `Graph`: docker 1.7's images by random id; v1image, initlayer, truncindex are its parts
    images       image rows, names, manifests and configurations
    storage      `Store`: all of it in one place, with the rules that span them

Invariants, true at every instant, also after kill -9 and power loss (DESIGN section 4): a row names only
files that exist durably, a layer row only an existing parent, an image row only an existing layer; files
that no row names are never served and get collected; a digest in a row was computed from the bytes.  From
them follows the order of every write: content, sync, row; and of every deletion: row, then content.
"""
