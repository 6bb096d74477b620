"""The union filesystem as a library: no FUSE, no threads, no async.

::

    layerdir   one directory tree on disk, read through its root fd
    resolve    what a name means across a stack of them: the precedence rule, once
    nodes      the live inodes: numbers, lookup counts, what is remembered of each
    tree       `Union`: the filesystem operations, on inode numbers and bytes

A mount drives it through `fusestore.driver.operations`; ``fusestore ls`` and the tests call it directly.
Everything here raises ``OSError`` with an errno and nothing else.
"""
