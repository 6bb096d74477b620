"""Keeping a store healthy: what is wrong in it, what takes how much, and what can go.

::

    report       `Problem` and `Report`: what a check has found, and the remedy
    check        `check`: all of it; its parts are
      rows         the database: one snapshot of the tables, and what does not fit in them
      layertree    a layer's directory against its tar
      leftovers    files that no row names, mounts without servers, counts without mounts
      additions    additional read-only stores
    repair       `repair`: what can be proved to be right is made so, the rest is said
    sizes        whose bytes are whose: shared, unique, reclaimable
    usage        `usage`: what images, containers and layers take (podman system df)
    prune        `plan`, `prune`: what nobody needs, and its deletion

A store is only looked at here through its rows, its driver and its files; nothing in ``store/`` needs these.
"""
