"""The store: layers and images by name, on a graphdriver.

::

    database     the one SQLite file: its schema, transactions, how to refuse a bad one
    metadata     layer rows
    layer        the handle a caller holds
    layerstore   `LayerStore`: register, get, map, release
    images       image rows, names, manifests and configurations
    storage      `Store`: all of it in one place, with the rules that span them

Invariants, true at every instant, also after kill -9 and power loss (DESIGN section 4): a row names only
files that exist durably, a layer row only an existing parent, an image row only an existing layer; files
that no row names are never served and get collected; a digest in a row was computed from the bytes.  From
them follows the order of every write: content, sync, row; and of every deletion: row, then content.
"""
