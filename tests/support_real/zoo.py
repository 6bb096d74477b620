"""An image with one of everything that images contain, and by hand the tree that it means.

`LAYERS` are the members of its three layers, `EXPECTED` the merged tree as `trees.described` shows it.
"""

import hashlib
import os

from support_real import tars
from support_real.tars import (
    BLOCK,
    CHAR,
    NOON,
    Entry,
    device,
    directory,
    fifo,
    file,
    hard_link,
    opaque,
    symlink,
    whiteout,
)

SECOND = 10**9
# Version 2, permitted: CAP_NET_RAW, effective.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
LONG_NAME = b"n" * 255
DEEP = b"/".join([b"deep"] + [b"%02d" % n + b"d" * 110 for n in range(7)] + [b"e" * 104])
assert len(DEEP) == 900

BASE = [
    directory(b"", mode=0o751, uid=3, gid=4, mtime=NOON + 123_456_789),
    # owners, modes and special bits
    directory(b"bin"),
    file(b"bin/su", b"su" * 1000, mode=0o4755),
    file(b"bin/wall", b"wall", mode=0o2755, gid=5),
    file(b"bin/closed", b"nobody may", mode=0),
    file(b"bin/all", b"all bits", mode=0o7777, uid=1, gid=1),
    directory(b"tmp", mode=0o1777),
    directory(b"locked", mode=0),
    file(b"locked/inside", b"in a directory that nobody may enter", mode=0o400),
    directory(b"home/user", mode=0o700, uid=4711, gid=4712),
    file(b"home/user/notes", b"private", mode=0o600, uid=4711, gid=4712),
    file(b"home/large-ids", uid=2**31 + 5, gid=2**32 - 2),
    # kinds
    directory(b"dev"),
    device(b"dev/null", CHAR, 1, 3, mode=0o666),
    device(b"dev/sda", BLOCK, 8, 0, mode=0o660, gid=6),
    device(b"dev/high", CHAR, 4095, 1_048_575),
    fifo(b"dev/pipe", mode=0o622, uid=7),
    symlink(b"dev/fd", b"/proc/self/fd"),
    symlink(b"bin/sh-link", b"sh", uid=1000, gid=1000),
    symlink(b"dangling", b"no/such/place"),
    symlink(b"long-link", b"t" * 1500),
    symlink(b"loop", b"loop"),
    file(b"empty"),
    file(b"blocks", bytes(range(256)) * 4096),
    # hard links
    file(b"bin/busybox", b"busybox" * 500, mode=0o755),
    hard_link(b"bin/sh", b"bin/busybox"),
    hard_link(b"bin/ls", b"bin/busybox"),
    symlink(b"twin-link", b"bin", uid=8),
    hard_link(b"twin-link-2", b"twin-link"),
    hard_link(b"dev/pipe-2", b"dev/pipe"),
    file(b"pair-1", b"of a pair"),
    hard_link(b"pair-2", b"pair-1"),
    # extended attributes
    file(b"caps", b"ping", mode=0o755, xattrs={b"security.capability": CAPABILITY}),
    file(
        b"xattrs", b"x", xattrs={b"user.comment": b"caf\xc3\xa9\0\n=", b"trusted.t": b"1", b"user.empty": b""}
    ),
    directory(b"xattr-dir", xattrs={b"user.dir": b"d", b"trusted.dir": b"t"}),
    # times
    file(b"times/1969", mtime=-SECOND // 2),
    file(b"times/1935", mtime=-1_100_000_000 * SECOND + 1),
    file(b"times/epoch", mtime=0),
    file(b"times/2100", mtime=4_102_444_800 * SECOND + 999_999_999),
    symlink(b"times/link", b"2100", mtime=1_700_000_000 * SECOND + 1),
    directory(b"times/dir", mtime=2_147_483_648 * SECOND + 2),
    # names
    file(b"names/\xff\xfe caf\xe9"),
    file("names/Zürich ☃".encode()),
    file(b"names/ two  lines\n\ttab\\040 "),
    file(b"names/-rf *"),
    file(b"names/" + LONG_NAME),
    file(b"names/.hidden", b"dot"),
    file(b"names/wh..wh.like", b"no marker"),
    file(DEEP, b"deep down"),
    file(b"implied/by/this", b"only a parent"),
    # for the layers above
    directory(b"etc", mode=0o750, gid=9, mtime=NOON + 77),
    file(b"etc/gone"),
    file(b"etc/kept", b"kept"),
    file(b"etc/replaced", b"old", mode=0o600, uid=1, xattrs={b"user.old": b"1"}),
    directory(b"opaque", mode=0o700),
    file(b"opaque/old", b"hidden"),
    directory(b"opaque/sub"),
    file(b"opaque/sub/old", b"hidden"),
    directory(b"opaque/again"),
    file(b"opaque/again/old", b"hidden"),
    directory(b"turns/into-file"),
    file(b"turns/into-file/child"),
    file(b"turns/into-dir", b"a file"),
    file(b"turns/into-link", b"a file"),
    symlink(b"turns/link-into-dir", b"into-dir"),
    device(b"turns/dev-into-file", CHAR, 5, 5),
    directory(b"rm-rf/a/b"),
    file(b"rm-rf/a/b/c"),
    directory(b"renewed", mode=0o777, uid=5),
    file(b"renewed/old"),
    file(b"back", b"first life"),
    file(b"same-layer", b"lower"),
    file(b"nlink/1", b"three names"),
    hard_link(b"nlink/2", b"nlink/1"),
    hard_link(b"nlink/3", b"nlink/1"),
]

MIDDLE = [
    whiteout(b"etc/gone"),
    whiteout(b"bin/ls"),  # one of three names
    hard_link(b"bin/ash", b"bin/busybox"),  # a file that only the layer below has
    file(b"etc/replaced", b"new, longer", mode=0o644),
    file(b"etc/added", b"etc itself is not in this layer"),
    directory(b"home/user", mode=0o750, uid=4711, gid=100, mtime=NOON + 5),
    opaque(b"opaque"),
    directory(b"opaque", mode=0o755, mtime=NOON + 6),
    file(b"opaque/new", b"seen"),
    directory(b"opaque/again"),
    file(b"opaque/again/new", b"seen"),
    file(b"turns/into-file", b"now a file"),
    directory(b"turns/into-dir", mode=0o711, mtime=NOON + 8),
    file(b"turns/into-dir/child", b"in what was a file"),
    symlink(b"turns/into-link", b"into-file"),
    directory(b"turns/link-into-dir", mtime=NOON + 9),
    file(b"turns/dev-into-file", b"regular"),
    whiteout(b"rm-rf"),
    whiteout(b"renewed"),
    directory(b"renewed", mode=0o700, mtime=NOON + 10),
    file(b"renewed/new", b"alone"),
    whiteout(b"back"),
    whiteout(b"same-layer"),
    file(b"same-layer", b"upper"),
    file(b"nlink/2", b"a file of its own"),
    file(b"dev/null", b"not a device any more", mode=0o640),
]

TOP = [
    file(b"back", b"second life", mode=0o4711, uid=2),
    directory(b"rm-rf", mode=0o755),
    file(b"rm-rf/only", b"this"),
    whiteout(b"opaque/new"),
    whiteout(b"pair-2"),
    whiteout(b"no-such-file"),
    hard_link(b"home/user/sh", b"bin/ash"),  # of a link of a link, two layers down
    file(b"times/epoch", b"touched", mtime=1),
    symlink(b"dangling", b"etc", uid=5),
]

LAYERS = [BASE, MIDDLE, TOP]

_DEFAULT = directory(b"", mtime=-1)  # an implied directory; when it was made nobody can say


def _merged() -> dict[bytes, Entry]:
    """Path -> the member that made what is there, by hand."""
    tree = _named(BASE)
    for name in (
        b"etc/gone",
        b"bin/ls",
        b"opaque/old",
        b"opaque/sub",
        b"opaque/sub/old",
        b"opaque/again/old",
        b"turns/into-file/child",
        b"rm-rf/a/b",
        b"rm-rf/a/b/c",
        b"renewed/old",
        b"pair-2",
    ):
        del tree[name]
    tree |= _named(e for e in MIDDLE if b".wh." not in e.name)
    del tree[b"opaque/new"]
    tree |= _named(e for e in TOP if b".wh." not in e.name)
    for path in list(tree):
        while path := path.rpartition(b"/")[0]:
            tree.setdefault(path, _DEFAULT)
    return tree


def _named(entries) -> dict[bytes, Entry]:
    return {e.name: e for e in entries}


_GROUPS = [
    [b"bin/ash", b"bin/busybox", b"bin/sh", b"home/user/sh"],
    [b"twin-link", b"twin-link-2"],
    [b"dev/pipe", b"dev/pipe-2"],
    [b"nlink/1", b"nlink/3"],
]
_TYPES = {
    tars.FILE: "file",
    tars.SYMLINK: "symlink",
    CHAR: "char",
    BLOCK: "block",
    tars.DIRECTORY: "directory",
    tars.FIFO: "fifo",
}


def _seen(path: bytes, entry: Entry) -> dict:
    kind = _TYPES[entry.kind]
    seen = {
        "type": kind,
        "mode": f"{entry.mode:04o}",
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime,
        "xattrs": {name.decode(): value.hex() for name, value in sorted(entry.xattrs.items())},
    }
    if kind != "directory":
        group = next((group for group in _GROUPS if path in group), [path])
        seen |= {"nlink": len(group), "links": [os.fsdecode(name) for name in group]}
    if kind in ("file", "symlink"):
        seen["size"] = len(entry.content or entry.link)
    if kind in ("char", "block"):
        seen["device"] = list(entry.device)
    if kind == "symlink":
        seen["target"] = os.fsdecode(entry.link)
    if kind == "file":
        seen["content"] = hashlib.sha256(entry.content).hexdigest()
    return seen


def _expected() -> dict[str, dict]:
    tree = _merged()
    found = {}
    for path, entry in tree.items():
        target = tree[next(g for g in _GROUPS if path in g)[0]] if entry.kind == tars.HARD_LINK else entry
        while target.kind == tars.HARD_LINK:
            target = _named(BASE)[target.link]
        found[os.fsdecode(path)] = _seen(path, target)
    return found


EXPECTED = _expected()
#: Directories that no layer has an entry for: 0755 root:root, and any time.
IMPLIED = {os.fsdecode(path) for path, entry in _merged().items() if entry is _DEFAULT}
