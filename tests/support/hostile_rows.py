"""Tars that carry the threats of the reliability notes, row by row, and what must come of each.

P are names, L symlinks, H hard links, W whiteouts, X xattrs, D devices and modes, S the format; "odd" are
legal tars that other stores get wrong.  They are for a layer on top of `LOWER`, registered with `LIMITS` and
with the canary as the working directory, to which ``/proc/self/cwd`` leads whoever follows it on the host.
"""

import os
import stat
from itertools import chain, repeat

from support.tars import (
    CHAR,
    DEVICE,
    FIFO,
    GNU,
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

from fusestore.driver.api import Limits

LIMITS = Limits(size=8 << 20, entries=500)
MIB = 1 << 20
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
GONE, REFUSED = None, "refused"
X = "SCHILY.xattr."
CANARY = "/proc/self/cwd"

LOWER = tar(
    folder("./", 0o711, uid=3),
    folder("d", 0o700, uid=5, mtime=7),
    member("d/old", b"old"),
    member("d/sub/old", b"old"),
    member("f", b"lower", mode=0o4755, uid=6, extra={f"{X}security.capability": CAPABILITY}),
    symlink("out", CANARY),
    symlink("up", "../" * 40 + CANARY, uid=9),
)


def sparse(*pairs):
    return pax([(f"GNU.sparse.{key}", value) for key, value in pairs])


def old_sparse(real, extents, data):
    table = b"".join(b"%011o\0%011o\0" % extent for extent in extents).ljust(96, b"\0")
    tail = bytes(41) + table + b"\0" + base256(real, 12)
    return header(b"s", kind=b"S", magic=GNU, size=len(data), tail=tail) + padded(data)


def content(text):
    return {"content": text}


def kind(bits, **others):
    return {"kind": bits} | others


#: By id: members, or what gives them; and what the tree shows, by path the attributes that count, or GONE.
ROWS = {
    "P1 dotdot": ([member("../canary/hello", b"x")], REFUSED),
    "P1 dotdot inside": ([member("d/../new", b"x")], {"new": content(b"x")}),
    "P2 absolute": ([member(CANARY + "/hello", b"x")], {"proc/self/cwd/hello": content(b"x")}),
    "P3 out and back": ([folder("../canary/made/../../x")], REFUSED),
    "P4 nul": ([member("x", extra={"path": "etc/shadow\0.txt"})], REFUSED),
    "P5 component of 255": ([member("n" * 255, b"x")], {"n" * 255: content(b"x")}),
    "P5 component of 256": ([member("n" * 256)], REFUSED),
    "P6 3000 levels": ([member("d/" * 3000 + "f")], REFUSED),
    "P6 200 levels": ([member("e/" * 200 + "f", b"x")], {"e/" * 200 + "f": content(b"x")}),
    "P7 bytes": ([member(b"\xff\n\\\x1b[2J", b"x")], {b"\xff\n\\\x1b[2J": content(b"x")}),
    "P7 bytes refused": ([member(b"\xff\n\x1b[2J/../..")], REFUSED),
    "P8 case": ([member("A", b"1"), member("a", b"2")], {"A": content(b"1"), "a": content(b"2")}),
    "P8 NFC": ([member("é", b"1"), member("e\u0301", b"2")], {"é": content(b"1"), "e\u0301": content(b"2")}),
    "P9 root": ([folder("/", 0o700, uid=8)], {"": {"mode": 0o700, "uid": 8}}),
    "P9 root as symlink": ([symlink("./", CANARY), member("hello", b"x")], REFUSED),
    "P9 no name": ([member("")], REFUSED),
    "L1 absolute symlink": (
        [symlink("s", CANARY), member("s/hello", b"x")],
        {"s": kind(stat.S_IFLNK), "proc/self/cwd/hello": content(b"x")},
    ),
    "L1 absolute symlink in a directory": (
        [symlink("d/s", "/e"), member("d/s/x", b"x")],
        {"e/x": content(b"x"), "d/e": GONE},
    ),
    "L2 relative symlink": (
        [symlink("s", "../../../../canary"), member("s/hello", b"x")],
        {"canary/hello": content(b"x")},
    ),
    "L3 symlinks that escape together": (
        [symlink("a", "."), symlink("b", "a/.."), symlink("c", "b/../canary"), member("c/hello", b"x")],
        {"canary/hello": content(b"x")},
    ),
    "L4 file over symlink": ([symlink("s", CANARY + "/hello"), member("s", b"x")], {"s": content(b"x")}),
    "L4 directory over symlink": (
        [symlink("s", CANARY), folder("s", 0o777), member("s/hello", b"x")],
        {"s": kind(stat.S_IFDIR, mode=0o777), "s/hello": content(b"x")},
    ),
    "L5 lower symlink": (
        [member("out/hello", b"x"), member("up/.wh.hello"), folder("up/sub", 0o777)],
        {"out": kind(stat.S_IFDIR), "out/hello": content(b"x"), "up/sub": kind(stat.S_IFDIR, mode=0o777)},
    ),
    "L6 root replaced": ([symlink("/", CANARY), member("/hello", b"x")], REFUSED),
    "L7 loop": ([symlink("a", "b"), symlink("b", "a"), member("a/x")], REFUSED),
    "L7 300 links": (
        [symlink("l0", "d"), *(symlink(f"l{i}", f"l{i - 1}") for i in range(1, 300)), member("l299/x")],
        REFUSED,
    ),
    "L8 realpath overflow": (
        [
            *(symlink("d" * 200 + "/" + "e" * i, "d" * 200) for i in range(1, 60)),
            symlink("esc", "/".join("e" * i for i in range(1, 60)) + "/.." * 70 + "/canary"),
            hard_link("flag", "esc/hello"),
        ],
        REFUSED,
    ),
    "H1 dotdot": ([hard_link("h", "../canary/hello")], REFUSED),
    "H1 absolute": ([hard_link("h", CANARY + "/hello")], REFUSED),
    "H1 absolute is the image's": ([hard_link("h", "/f")], {"h": content(b"lower")}),
    "H2 through symlink": ([symlink("s", CANARY), hard_link("h", "s/hello")], REFUSED),
    "H2 through lower symlink": ([hard_link("h", "up/hello"), hard_link("i", "out/hello")], REFUSED),
    "H3 working directory": ([hard_link("h", "hello")], REFUSED),
    "H4 prefix": ([hard_link("h", "../canary-evil/hello")], REFUSED),
    "H5 to a symlink": (
        [symlink("s", CANARY + "/hello"), hard_link("h", "s", mode=0o4777, mtime=9)],
        {"h": kind(stat.S_IFLNK, nlink=2)},
    ),
    "H6 other filesystem": ([hard_link("h", "/proc/self/status"), hard_link("i", "/dev/null")], REFUSED),
    "H7 forward": ([hard_link("h", "later"), member("later")], REFUSED),
    "H7 self": ([hard_link("h", "h")], REFUSED),
    "H7 directory": ([hard_link("h", "d")], REFUSED),
    "H8 named as a whiteout": ([hard_link(".wh.x", "f")], REFUSED),
    "H8 to a whiteout": ([member(".wh.f"), hard_link("x", ".wh.f")], REFUSED),
    "W1 empty": ([member(".wh.")], REFUSED),
    "W1 dot": ([member("d/.wh..")], REFUSED),
    "W1 dotdot": ([member("d/.wh...")], REFUSED),
    "W2 below a symlink": (
        [symlink("s", CANARY), member("s/.wh.hello"), symlink("t", "d"), member("t/.wh.old")],
        {"d/old": GONE, "d/sub/old": content(b"old")},
    ),
    "W2 below a lower symlink": (
        [member("out/.wh.hello"), member("up/.wh..wh..opq")],
        {"f": content(b"lower")},
    ),
    "W3 directory": ([folder(".wh.d")], REFUSED),
    "W3 with children": ([member("d/.wh.sub/file")], REFUSED),
    "W3 through a symlink": ([symlink("s", ".wh.d"), member("s/file")], REFUSED),
    "W3 opaque through a symlink": ([symlink("s", ".wh..wh..opq"), member("s/file")], REFUSED),
    "W4 before": ([member(".wh.f"), member("f", b"new")], {"f": content(b"new"), ".wh.f": GONE}),
    "W4 after": ([member("f", b"new"), member(".wh.f")], {"f": content(b"new")}),
    "W5 opaque last": (
        [member("d/new", b"x"), member("d/.wh..wh..opq")],
        {"d/new": content(b"x"), "d/old": GONE, "d/sub": GONE},
    ),
    "W6 device 0:0": (
        [member("f", kind=CHAR), member("d/old", kind=CHAR)],
        {"f": kind(stat.S_IFCHR, rdev=0), "d/old": kind(stat.S_IFCHR, rdev=0)},
    ),
    "W7 odd markers": (
        [
            symlink("d/.wh..wh..opq", CANARY),
            folder(".wh..wh.plnk"),
            member(".wh..wh.aufs"),
            member(".wh..wh.orph/x"),
        ],
        {"d/old": content(b"old"), ".wh..wh.plnk": GONE, ".wh..wh.aufs": GONE, ".wh..wh.orph": GONE},
    ),
    "W8 root": (
        [member(".wh..wh..opq"), member("new")],
        {"new": content(b""), "f": GONE, "d": GONE, "out": GONE},
    ),
    "X1 overlay": (
        [
            folder("d", extra={f"{X}{p}.overlay.opaque": "y" for p in ("user", "trusted")}),
            member(
                "f", b"", extra={f"{X}user.overlay.{n}": "/d" for n in ("redirect", "metacopy", "whiteout")}
            ),
        ],
        {"d": {"xattrs": {}}, "d/old": content(b"old"), "f": {"xattrs": {}, "content": b""}},
    ),
    "X2 fuse-overlayfs, containers": (
        [
            folder("d", extra={f"{X}user.fuseoverlayfs.opaque": "y", f"{X}user.rootlesscontainers": "x"}),
            member("x", uid=4, extra={f"{X}user.containers.override_stat": "0:0:06755:char-1-1"}),
        ],
        {"d": {"xattrs": {}}, "d/old": {}, "x": kind(stat.S_IFREG, mode=0o644, uid=4, xattrs={})},
    ),
    "X3 our own": ([member("x", extra={f"{X}user.fusestore.origin": "x"})], {"x": {"xattrs": {}}}),
    "X4 capability": (
        [member("x", extra={f"{X}security.capability": CAPABILITY, f"{X}security.selinux": "host"})],
        {"x": {"xattrs": {b"security.capability": CAPABILITY}}},
    ),
    "X5 70 kB": ([member("x", extra={f"{X}user.a": "v" * 70000})], REFUSED),
    "X5 name of 300": ([member("x", extra={f"{X}user." + "n" * 300: "v"})], REFUSED),
    "X5 nul": ([member("x", extra={f"{X}user.a\0b": "v"})], REFUSED),
    "X5 no namespace": ([member("x", extra={f"{X}a": "v"})], {"x": {"xattrs": {}}}),
    "D1 nodes": (
        [member("null", kind=CHAR, major=1, minor=3), member("sda", kind=DEVICE, major=8, mode=0o6666)],
        {"null": kind(stat.S_IFCHR, rdev=os.makedev(1, 3)), "sda": kind(stat.S_IFBLK, mode=0o6666)},
    ),
    "D2 fifo, then a file": ([member("x", kind=FIFO), member("x", b"x")], {"x": content(b"x")}),
    "D2 device, then through it": ([member("x", kind=CHAR, major=1, minor=3), member("x/y", b"x")], REFUSED),
    "D3 setuid": ([member("x", b"#!", mode=0o6755)], {"x": {"mode": 0o6755}}),
    "D4 uid 2^32-1": ([member("x", extra={"uid": str(2**32 - 1)})], REFUSED),
    "D4 uid -1": ([member("x", uid=base256(-1, 8))], REFUSED),
    "D4 uid 2^31": ([member("x", uid=2**31)], {"x": {"uid": 2**31}}),
    "D5 nan": ([member("x", extra={"mtime": "nan"})], REFUSED),
    "D5 1e309": ([member("x", extra={"mtime": "1e309"})], REFUSED),
    "D5 -9e18": ([member("x", extra={"mtime": str(-9 * 10**18)})], REFUSED),
    "D5 2^62": ([member("x", mtime=base256(2**62, 12))], REFUSED),
    "D5 2^53": (
        [member("x", mtime=base256(2**53, 12)), folder("y", extra={"mtime": str(-(2**53))})],
        {"x": {}, "y": {}},
    ),
    "D6 type bits": ([member("x", b"x", mode=0o40755)], {"x": kind(stat.S_IFREG, mode=0o755)}),
    "D7 closed directories": (
        [folder("x", 0), folder("x/y", 0o555), member("x/y/z", b"x")],
        {"x": {"mode": 0}, "x/y": {"mode": 0o555}, "x/y/z": content(b"x")},
    ),
    "D8 implied": (
        [member("d/new"), member("e/new")],
        {
            "": {"mode": 0o711, "uid": 3},
            "d": {"mode": 0o700, "uid": 5, "mtime_ns": 7 * 10**9},
            "e": {"mode": 0o755},
        },
    ),
    "S1 cut data": ([member("x", b"x" * 2000)[:1500]], REFUSED),
    "S1 cut header": ([member("x"), member("y")[:300]], REFUSED),
    "S1 cut extension": ([pax([("path", "x" * 600)])[:900]], REFUSED),
    "S2 behind the end": (
        [member("x", b"x"), bytes(1024), member("y"), b"rest"],
        {"x": content(b"x"), "y": GONE},
    ),
    "S3 pax size": (
        [pax([("size", "1024")]), header(b"x"), member("smuggled"), bytes(512), member("next")],
        {"smuggled": GONE, "next": content(b"")},
    ),
    "S4 malformed pax": (
        [header(b"p", kind=b"x", size=512), b"0 a=b\n".ljust(512, b"\0"), member("x")],
        REFUSED,
    ),
    "S5 L and path": ([long(b"L", b"a"), pax([("path", "b")]), member("c")], REFUSED),
    "S5 type after the name": ([long(b"L", b"x/"), member("x", b"", kind=b"\0")], {"x": kind(stat.S_IFDIR)}),
    "S6 global": ([pax([("path", "../canary/hello"), ("uid", "9")], b"g"), member("x")], {"x": {"uid": 0}}),
    "S7 negative": ([header(b"x", size=base256(-512, 12))], REFUSED),
    "S7 2^60": ([header(b"x", size=base256(2**60, 12))], REFUSED),
    "S7 over the limit": (lambda: repeat(member("x", bytes(MIB)), 40), REFUSED),
    "S8 long name": (
        lambda: repeat(header(b"n", kind=b"L", magic=GNU, size=MIB - 1) + b"n" * MIB, 100),
        REFUSED,
    ),
    "S8 global names": (
        lambda: (pax([("path", f"{i}" + "n" * (MIB - 50))], b"g") + member("d/.wh.none") for i in range(150)),
        {"f": content(b"lower")},
    ),
    "S8 pax": (lambda: chain([header(b"n", kind=b"x", size=64 * MIB)], repeat(bytes(MIB), 64)), REFUSED),
    "S8 sparse map": (
        lambda: chain(
            [sparse(("major", "1"), ("minor", "0"), ("realsize", "9"))],
            [header(b"x", size=64 * MIB), b"9000000\n".ljust(512, b"0")],
            repeat(b"0\n" * 256, 20000),
        ),
        REFUSED,
    ),
    "S9 bomb": (lambda: chain([header(b"x", size=2**40)], repeat(bytes(MIB), 2000)), REFUSED),
    "S9 hole of 1 TiB": (
        [sparse(("size", str(2**40)), ("map", "0,4")), member("x", b"data"), member("y", b"y")],
        {"x": {"size": 2**40}, "y": content(b"y")},
    ),
    "S9 entries": (lambda: (member(f"x{i}") for i in range(100_000)), REFUSED),
    "S9 implied entries": (lambda: (member(f"{i}/" + "d/" * 100 + "f") for i in range(100)), REFUSED),
    "odd: a path twice": ([member("x", b"1"), member("x", b"2")], {"x": content(b"2")}),
    "odd: a link to a lower file": (
        [hard_link("h", "f")],
        {"h": {"nlink": 2, "uid": 6, "mode": 0o4755}, "f": {"nlink": 2}},
    ),
    "odd: large ids": (
        [member("x", uid=200_000, gid=4_000_000_000)],
        {"x": {"uid": 200_000, "gid": 4_000_000_000}},
    ),
    "odd: capabilities": ([hard_link("h", "f")], {"h": {"xattrs": {b"security.capability": CAPABILITY}}}),
    "odd: GNU sparse": (
        [old_sparse(5000, [(4096, 4)], b"data")],
        {"s": content(bytes(4096) + b"data" + bytes(900))},
    ),
    "odd: PAX 1.0 sparse": (
        [
            sparse(("major", "1"), ("minor", "0"), ("realsize", "5000"), ("name", "s")),
            member("GNUSparseFile.0/s", padded(b"1\n4096\n4\n") + b"data"),
        ],
        {"s": content(bytes(4096) + b"data" + bytes(900))},
    ),
    "odd: before 1970": (
        [member("x", mtime=-5), folder("y", extra={"mtime": "-0.5"})],
        {"x": {"mtime_ns": -5 * 10**9}, "y": {"mtime_ns": -500_000_000}},
    ),
    "odd: hole of 2^62": ([sparse(("size", str(2**62)), ("map", "0,0")), member("x")], REFUSED),
}
