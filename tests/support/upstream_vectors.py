"""The archives that upstream tests with (vbatts/tar-split, tar/asm/testdata), built anew to the same bytes.

Of the seventh, ``1c51fc...``, only the size is known, and why it is there: its archive is not ended as it
should be.  Here it ends after one zero block.
"""

from support.tars import DIRECTORY, END, FILE, GNU, folder, padded

#: By name, each one's SHA-1 and size as upstream's test says them.
SUMS = {
    "t": ("1eb237ff69bca6e22789ecb05b45d35ca307adbd", 10240),
    "longlink": ("d9f6babe107b7247953dff6b5b5ae31a3a880add", 20480),
    "fatlonglink": ("8537f03f89aeef537382f8b0bb065d93e03b0be8", 26234880),
    "iso-8859": ("ddafa51cb03c74ec117ab366ee2240d13bba1ec3", 10240),
    "extranils": ("e187b4b3e739deaccc257342f4940f34403dc588", 10648),
    "notenoughnils": ("72f93f41efd95290baa5c174c234f5d4c22ce601", 512),
    "1c51fc": (None, 1024),
}
_LONG = b"axcdf" + b"asdf" * 9


def vector(name: str) -> bytes:
    """The uncompressed archive."""
    return _MAKE[name]()


def _header(name, kind, mode, size, mtime, uid=1000, gid=1001, user=b"vbatts", group=b"vbatts") -> bytes:
    """As GNU tar writes it, with the names of owners and no device numbers."""
    fields = [name[:100].ljust(100, b"\0"), *(b"%07o\0" % n for n in (mode, uid, gid))]
    fields += [b"%011o\0" % size, b"%011o\0" % mtime, b" " * 8, kind, bytes(100), GNU]
    block = bytearray(b"".join(fields) + user.ljust(32, b"\0") + group.ljust(32, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return padded(bytes(block))


_ROOT = {"uid": 0, "gid": 0, "user": b"root", "group": b"root"}


def _long_name(name: bytes) -> bytes:
    return _header(b"././@LongLink", b"L", 0, len(name) + 1, 0, **_ROOT) + padded(name + b"\0")


def _deep(top: bytes, times: tuple[int, int], files: list[tuple[bytes, int, int]]) -> bytes:
    """17 directories in each other, the last with a time of its own, and in that files of zeros."""
    made, path = [], top
    for number in range(17):
        path += (b"asfd" if number in (0, 3) else b"asdf") + b"/"
        made.append(_header(path, DIRECTORY, 0o775, 0, times[number == 16]))
    for name, size, mtime in files:
        made += [_long_name(path + name), _header(path + name, FILE, 0o664, size, mtime), bytes(size)]
    return _filled(b"".join(made))


def _filled(members: bytes) -> bytes:
    """With an end, and up to the size of GNU tar's records."""
    archive = members + END
    return archive + bytes(-len(archive) % 10240)


def _t() -> bytes:
    return _filled(
        _header(b"./hurr.txt", FILE, 0o664, 19, 0o12475416420)
        + padded(b"imma hurr til derp\n")
        + _header(b"./ermahgerd.txt", FILE, 0o664, 27, 0o12475416400)
        + padded("café con leche, por favor\n".encode())
    )


def _longlink() -> bytes:
    return _deep(b"./", (0o12557727442, 0o12557727452), [(_LONG, 0, 0o12557727452)])


def _fatlonglink() -> bytes:
    ends = (
        (2, 0o12563351212),
        (3, 0o12563351213),
        (5, 0o12563351215),
        (4, 0o12563351214),
        (1, 0o12563351211),
    )
    files = [(_LONG + b".%d" % number, 5242880, mtime) for number, mtime in ends]
    return _deep(b"", (0o12563351162, 0o12563351215), files)


def _iso_8859() -> bytes:
    return _filled(
        _header(b"data/", DIRECTORY, 0o755, 0, 0o12600530643, **_ROOT)
        + _header(b"data/file-with-german-umlaut-ae-\xe4", FILE, 0o664, 15, 0o12600530633, **_ROOT)
        + padded(b"arbitrary data\n")
    )


def _not_enough() -> bytes:
    return _header(b"file", FILE, 0o644, 0, 0o12772263216, gid=100, group=b"users")


_MAKE = {
    "t": _t,
    "longlink": _longlink,
    "fatlonglink": _fatlonglink,
    "iso-8859": _iso_8859,
    "extranils": lambda: _not_enough() + bytes(10136),
    "notenoughnils": _not_enough,
    "1c51fc": lambda: folder("d") + bytes(512),
}
