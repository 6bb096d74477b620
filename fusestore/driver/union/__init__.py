"""The union filesystem as a library: no FUSE, no threads, no async.

::

    layerdir   one directory tree on disk, read through its root fd
    resolve    what a name means across a stack of them: the precedence rule, once
    nodes      the live inodes: numbers, lookup counts, what is remembered of each
    tree       `Union`: the filesystem operations on a stack that does not change

    upper      the layer on top that does: every write to disk, each complete by one rename
    copyup     one object from a lower layer to the upper: plan, run, commit
    merged     `MergedUnion`: what a name means with an upper on top
    raising    `RaisingUnion`: copy-up, as the nodes see it
    files      `FilesUnion`: content, attributes, xattrs
    writable   `WritableUnion`: create, link, unlink, rename; the whole filesystem

Each class is the one before and more: `Union`, `MergedUnion`, `RaisingUnion`, `FilesUnion`, `WritableUnion`.

A mount drives it through `fusestore.driver.operations` and its neighbours; ``fusestore ls`` and the tests
call it directly. Everything here raises ``OSError`` with an errno and nothing else.
"""
