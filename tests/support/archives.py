"""Archives in every dialect, each with what one way of writing or ending a tar has of its own.

`LAYERS` can be registered and come back byte for byte; `TOO_LONG` have names that no directory can hold;
`TWICE` hold a path two times.
"""

import hashlib
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from support.tars import (
    CHAR,
    DEVICE,
    END,
    FIFO,
    GNU,
    V7,
    base256,
    folder,
    hard_link,
    header,
    long,
    member,
    padded,
    pax,
    symlink,
    tar,
)

NOISE = b"".join(hashlib.sha256(b"%d" % i).digest() for i in range(1 << 15))  # 1 MiB that nothing compresses
SIZES = (0, 1, 511, 512, 513, 5000)
ODD = (
    b"\xff\xfe",
    b'quote"',
    b"back\\slash",
    b"line\nfeed",
    b"\x01\x1f\x7f",
    b"<&>",
    "\u2028\u2029é".encode(),
)
LONG = b"/".join([b"d" * 200] * 19)  # 3818 bytes
RECORDS = {f"VENDOR.{i}": NOISE[i * 9000 : i * 9000 + 9000] for i in range(2)}


def old_sparse(name: bytes, extents: list[tuple[int, int]], real: int, data: bytes) -> bytes:
    """A GNU ``S`` member: four extents in the header, 21 in each block behind it, then data."""
    entries = [b"%011o\0%011o\0" % extent for extent in extents]
    blocks = [b"".join(entries[i : i + 21]).ljust(504, b"\0") for i in range(4, len(entries), 21)]
    flags = [b"\1"] * (len(blocks) - 1) + [b"\0"] if blocks else []
    more = b"".join((b + f).ljust(512, b"\0") for b, f in zip(blocks, flags, strict=True))
    first = b"".join(entries[:4]).ljust(96, b"\0") + (b"\1" if blocks else b"\0")
    tail = bytes(41) + first + b"%011o\0" % real
    size = sum(length for _, length in extents)
    return header(name, kind=b"S", magic=GNU, size=size, tail=tail) + more + padded(data)


def pax_sparse(name: bytes, pairs: Iterable[tuple[str, str]], data: bytes) -> bytes:
    """A member whose map is in records ``GNU.sparse.*``, or at the start of its data."""
    return pax([(f"GNU.sparse.{key}", value) for key, value in pairs]) + member(name, data)


_PAIRS = [("size", "2000"), ("numblocks", "2")]
_ONE = [("major", "1"), ("minor", "0"), ("name", "sparse"), ("realsize", "2000")]
_MANY = [(i * 5000, 3) for i in range(60)]
_MAP = b"60\n" + b"".join(b"%d\n%d\n" % extent for extent in _MANY)

LAYERS = {
    "nothing": b"",
    "one zero block": bytes(512),
    "two zero blocks": END,
    "no end": member("f", b"x" * 700),
    "end of one block": member("f", b"x" * 700) + bytes(512),
    "no padding and no end": member("f", b"abc")[:-509],
    "records of 10 KiB": tar(member("f", b"abc")).ljust(10240, b"\0"),
    "rubbish behind": tar(member("f", b"abc")) + NOISE * 3 + b"rubbish",
    "rubbish behind nothing": END + b"rubbish",
    "v7": tar(member("d/", mode=0o755, magic=V7, kind=b"\0"), member("d/f", b"abc", magic=V7, kind=b"\0")),
    "ustar with a prefix": tar(header(b"name", tail=b"some/prefix", size=3) + padded(b"abc")),
    "gnu": tar(folder("d", magic=GNU), member("d/f", b"abc", magic=GNU)),
    "gnu with a prefix by old Go": tar(
        header(b"name", magic=GNU, tail=b"some/prefix", size=3) + padded(b"abc")
    ),
    "an empty long name": tar(header(b"././@LongLink", kind=b"L", magic=GNU), member("f", b"abc")),
    "two pax headers": tar(pax([("path", "lost")]), pax([("mtime", "1")]), member("f", b"abc")),
    "pax before a global header": tar(pax([("path", "lost")]), pax([("a", "b")], b"g"), member("f", b"abc")),
    "contiguous": tar(member("f", b"abc", kind=b"7")),
    "sizes": tar(*(member(f"{size}", NOISE[:size]) for size in SIZES)),
    "more than a buffer": tar(member("big", NOISE * 2 + b"!"), member("after", b"x")),
    "base-256": tar(
        header(b"f", uid=base256(70000, 8), size=base256(3, 12), mtime=base256(-5, 12)) + padded(b"abc")
    ),
    "pax": tar(member("f", b"abc", extra={"path": "p/å", "mtime": "1.000000001", "uid": "4294967294"})),
    "pax size": tar(pax([("size", "3")]) + header(b"f") + padded(b"abc")),
    "more than 10 KiB of pax": tar(member("f", b"abc", extra=RECORDS | {"comment": "c" * 30000})),
    "global header": tar(pax([("comment", "x")], b"g"), member("f", b"abc")),
    "two global headers": tar(pax([("comment", "x")], b"g") * 2, member("f", b"abc")),
    "global header with a path": tar(pax([("path", "elsewhere")], b"g"), member("f", b"abc")),
    "long name": tar(long(b"L", LONG + b"/f") + member("short", b"abc")),
    "long pax name": tar(member(LONG + b"/f", b"abc")),
    "long links": tar(long(b"K", b"t" * 4000) + symlink("l", "short"), symlink("m", "u" * 4000)),
    "all kinds": tar(
        folder("d", 0o1777),
        member("d/f", b"abc", mode=0o6755, uid=5, gid=6),
        symlink("s", "d/f"),
        hard_link("h", "d/f"),
        member("null", kind=CHAR, major=1, minor=3),
        member("sda", kind=DEVICE, major=8),
        member("pipe", kind=FIFO),
    ),
    "odd names": tar(
        *(member(name, b"x" + name) for name in ODD), folder(b"\xe4"), member(b"\xe4/f", b"abc")
    ),
    "unclean names": tar(folder("./"), member("./a", b"a"), member("/b", b"b"), member("d//./c", b"c")),
    "a directory twice": tar(folder("d"), member("d/f", b"abc"), folder("./d", 0o700)),
    "the root thrice": tar(folder("./"), member("./f", b"abc"), folder("."), folder("/")),
    "a whiteout twice": tar(member(".wh.foo"), member("./.wh.foo", b"junk"), member("f", b"abc")),
    "through a symlink": tar(
        folder("usr/lib"), symlink("lib", "usr/lib"), member("lib/f", b"abc"), hard_link("lib/g", "lib/f")
    ),
    "a file before its whiteout": tar(member("foo", b"foo"), member(".wh.foo")),
    "whiteouts with content": tar(
        member(".wh.foo", b"gone" * 200),
        member("foo", b"foo"),
        member("d/.wh..wh..opq", b"opaque"),
        member("d/f", b"abc"),
        member(".wh..wh.plnk/1.2", b"aufs"),
    ),
    "whiteouts": tar(member("d/.wh..wh..opq"), member(".wh.foo"), member("foo", b"foo")),
    "old sparse": tar(old_sparse(b"s", [(0, 2), (512, 2)], 2000, b"abcd"), member("f", b"abc")),
    "old sparse with more blocks": tar(old_sparse(b"s", _MANY, 400000, NOISE[:180]), member("f", b"abc")),
    "old sparse of one hole": tar(old_sparse(b"s", [], 2000, b""), member("f", b"abc")),
    "pax sparse 0.0": tar(
        pax_sparse(
            b"s", [*_PAIRS, ("offset", "0"), ("numbytes", "2"), ("offset", "512"), ("numbytes", "2")], b"abcd"
        )
    ),
    "pax sparse 0.1": tar(pax_sparse(b"s", [*_PAIRS, ("map", "0,2,512,2"), ("name", "true")], b"abcd")),
    "pax sparse 1.0": tar(
        pax_sparse(b"s", _ONE, padded(b"2\n0\n2\n512\n2\n") + b"abcd"), member("f", b"abc")
    ),
    "pax sparse 1.0, a long map": tar(
        pax_sparse(b"s", [*_ONE[:3], ("realsize", "400000")], padded(_MAP) + NOISE[:180])
    ),
}

#: What upstream refuses or, of other bytes than its own, could not give back.
NOT_UPSTREAM = {name for name in LAYERS if "sparse" in name or "twice" in name or "thrice" in name}
NOT_UPSTREAM |= {"two global headers", "whiteouts with content"}

TOO_LONG = {
    "a GNU name of 12 KB": tar(long(b"L", b"n" * 12000) + member("short", b"abc")),
    "a PAX name of 12 KB": tar(member("n" * 12000, b"abc")),
    "a GNU link of 12 KB": tar(long(b"K", b"t" * 12000) + symlink("l", "short")),
    "a PAX link of 12 KB": tar(symlink("l", "t" * 12000)),
}

TWICE = {
    "hurr.txt": tar(member("hurr.txt", b"abcde"), member("./hurr.txt", b"abcde")),
    "another content": tar(member("f", b"abc"), member("f", b"defg")),
    "a file, then a symlink": tar(member("f", b"abc"), symlink("f", "elsewhere")),
}


def by_gnu_tar(*options: str) -> bytes:
    """A tree with everything that `tar` can store without privileges, as that stores it."""
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        (top / "d").mkdir()
        (top / "d/file").write_bytes(NOISE[:3000])
        (top / "link").hardlink_to(top / "d/file")
        (top / "symlink").symlink_to("d/file")
        with open(top / "d/sparse", "wb") as file:
            for i in range(40):
                file.seek(i << 16)
                file.write(b"%07d\n" % i)
            file.truncate(1 << 22)
        command = [
            "tar",
            "-c",
            "--sort=name",
            "--mtime=@1.5",
            "--owner=:7",
            "--group=:8",
            *options,
            "-C",
            top,
        ]
        return subprocess.run([*command, "."], check=True, capture_output=True).stdout


#: Options of GNU tar, one for each dialect that it writes.
BY_GNU_TAR = [
    ["--format=v7"],
    ["--format=ustar"],
    ["--format=oldgnu", "--sparse"],
    ["--format=gnu", "--sparse"],
    ["--format=posix", "--sparse", "--sparse-version=0.0"],
    ["--format=posix", "--sparse", "--sparse-version=0.1"],
    ["--format=posix", "--sparse", "--sparse-version=1.0"],
]
