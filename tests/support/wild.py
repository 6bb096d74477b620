"""Archives that no program would write, made by rules from a `random.Random`.

`archive` builds members from a small pool of names, so that they meet each other, and gives some of them
fields, PAX records, sparse maps and long names that are wrong; `mutated` changes what is there, byte by byte
and block by block.  The same rules serve hypothesis (``st.randoms``), which shrinks what they make, and the
mutator of the coverage-guided fuzzer.
"""

from __future__ import annotations

from random import Random

from support.tars import BLOCK, GNU, USTAR, V7, base256, header, long, padded, pax

# `low` and what is in it are in the layer below (`support.arena`).
NAMES = (
    b"a b d d/ d/f d/e/g s s/f s/d/f low low/file low/link low/sub/x low/sub lows lows/file new/low/file "
    b".wh.a .wh.low low/.wh.file low/.wh..wh..opq .wh..wh..opq s/.wh.file lows/.wh..wh..opq"
    b" d/.wh.f ./ / /abs/x ./d//f d/../b d/s"
).split()
ODD_NAMES = [
    *b".. ../canary/hello d/../../canary/hello .wh. .wh.. .wh... .wh.d/f .wh..wh.plnk/1 .wh.a/".split(),
    *(b"\xff\xfe", b"a\nb", b"a\0b", b"", b"n" * 255, b"n" * 256, b".wh." + b"n" * 255, b"w" * 300 + b"/x"),
    *(b"d/" * 60 + b"f", b"e/" * 2500, b"n" * 200 + b"/" + b"m" * 200, b"/proc/self/cwd/hello"),
]
TARGETS = [*b"d a s low low/file .. / . d/../low /low/sub".split(), b"t" * 120]
ODD_TARGETS = [
    b"",
    b"a\0b",
    b"../../canary",
    b"../canary/hello",
    b"s/s/s",
    b"x" * 300,
    b"t" * 4095,
    b"t" * 4096,
]
KINDS = [*b"0 0 0 1 1 2 2 5 5 3 4 6 7 S x g".split(), b"\0"]
#: Offset and length of what a header has.
FIELDS = [
    *((0, 100), (100, 8), (108, 8), (116, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (329, 8)),
    *((337, 8), (345, 155), (386, 12), (398, 12), (482, 1), (483, 12)),
]
VALUES = [
    *b"0 1 2 5 7 8 -1 512 0001000 777777777777 / .. K L x g S .wh. = , 99999999999999999999 1e9".split(),
    *(b" ", b"\0", b"\n", b"\xff" * 12, b"\x80" + b"\xff" * 11, bytes([128]) + bytes(9) + b"\2\0"),
    *(b"\xc0" + bytes(11), USTAR, GNU),
]
KEYS = (
    b"path linkpath size uid gid mtime GNU.sparse.size GNU.sparse.realsize GNU.sparse.map GNU.sparse.name "
    b"GNU.sparse.major GNU.sparse.minor GNU.sparse.offset GNU.sparse.numbytes GNU.sparse.numblocks "
    b"SCHILY.xattr.user.a SCHILY.xattr.security.capability SCHILY.xattr.user.overlay.opaque SCHILY.xattr. "
    b"SCHILY.xattr.trusted.overlay.redirect SCHILY.xattr.user.containers.override_stat uname hdrcharset"
).split()
TEXTS = [
    *b"0 1 4 512 1024 -1 1.5 -0.5 nan 1e309 9007199254740993 0,1 0,4,512,0 1,0 4294967295 70000 y".split(),
    *(b"", b"a\0b", b"0:0:0755:dir", b"\n", b"v" * 70000),
]
# Records that nothing is wrong with.
RECORDS = [
    *((b"mtime", b"1.5"), (b"mtime", b"-0.5"), (b"uid", b"70000"), (b"gid", b"4294967294"), (b"V.x", b"y")),
    *((b"SCHILY.xattr.user.a", b"\0\n="), (b"SCHILY.xattr.user.overlay.opaque", b"y")),
    (b"SCHILY.xattr.security.capability", b"\1\0\0\2" + bytes(16)),
    (b"SCHILY.xattr.trusted.overlay.metacopy", b""),
    (b"SCHILY.xattr.user.containers.override_stat", b"0:0:0755:dir"),
    (b"SCHILY.xattr.user.big", b"v" * 65536),
]
ENDS = [bytes(2 * BLOCK), b"", bytes(BLOCK), bytes(3 * BLOCK) + b"rest"]


def archive(random: Random) -> bytes:
    """A whole archive of a few members; in two of three, some of them are wrong."""
    odd = random.choice([0, 3, 20])
    members = [member(random, odd) for _ in range(random.randint(1, 8))]
    return b"".join(members) + random.choice(ENDS)


def member(random: Random, odd: int) -> bytes:
    """One member, with what describes it before it; each part of it is wrong in `odd` of 100."""

    def wrong() -> bool:
        return random.randint(0, 99) < odd

    kind = random.choice(KINDS)
    if kind in b"xg" and wrong():
        return pax([(random.choice(KEYS), _text(random)) for _ in range(random.randint(0, 3))], kind)
    name = random.choice(ODD_NAMES if wrong() else NAMES)
    kind = kind if wrong() else _fitting(name, kind)
    link = random.choice(NAMES if kind == b"1" else TARGETS) if kind in b"12" else b""
    if kind in b"12" and wrong():
        link = random.choice(ODD_TARGETS)
    before = _described(random, name, link, wrong())
    if kind == b"S" or (kind == b"7" and random.randint(0, 1)):
        return before + _sparse(random, name, kind, wrong())
    data = b""
    if kind in b"07\0" and not name.endswith((b"/", b".wh..wh..opq")):
        data = random.choice([b"", b"x", b"data" * 100, bytes(512), b"y" * 600])
    fields = {"size": len(data), "mode": random.choice([0o644, 0, 0o4755, 0o7777, 0o40755])}
    fields |= {"uid": random.choice([0, 0, 5, 1 << 31]), "mtime": random.choice([0, 1, -5, 1 << 40])}
    if wrong():
        fields[random.choice(["mode", "uid", "gid", "size", "mtime", "major", "minor"])] = _number(random)
    magic = random.choice([USTAR, USTAR, GNU, V7])
    return before + header(name[:100], kind=kind, link=link[:100], magic=magic, **fields) + padded(data)


def _fitting(name: bytes, kind: bytes) -> bytes:
    """A type that a member of this name may have."""
    if not name.strip(b"/."):
        return b"5"
    return b"0" if b".wh." in name or kind in b"xg" else kind


def _described(random: Random, name: bytes, link: bytes, wrong: bool) -> bytes:
    """PAX records and long names for what is too long, and sometimes others."""
    found = []
    gnu = random.randint(0, 1)
    for text, key, kind in ((name, b"path", b"L"), (link, b"linkpath", b"K")):
        if len(text) > 100:
            found.append(long(kind, text) if gnu else pax([(key, text)]))
    if wrong:
        found.append(pax([(random.choice(KEYS), _text(random)) for _ in range(random.randint(1, 4))]))
    elif not random.randint(0, 5):
        found.append(pax(random.sample(RECORDS, random.randint(1, 3))))
    return b"".join(found)


def _sparse(random: Random, name: bytes, kind: bytes, wrong: bool) -> bytes:
    """A sparse file of one of the four formats; a wrong one's map does not fit its data."""
    data = b"s" * random.choice([1, 4, 600])
    first = random.choice([0, 512, 3, 1 << 20])
    extents = random.choice([[(first, len(data))], [(0, 1), (first + 1, len(data) - 1)]])
    real = first + len(data) + random.choice([0, 1, 1 << 20])
    if wrong:
        real = random.choice([real, real, -1, 0, 1 << 50, 1 << 60])
        extents.append(random.choice([(0, 0), (1 << 50, 4), (-1, 1), (1 << 20, 0)]))
    if kind == b"S":
        pairs = [_field(n, 12) for extent in extents for n in extent]
        more = bytes([int(wrong and not random.randint(0, 3))])
        tail = bytes(41) + b"".join(pairs).ljust(96, b"\0") + more + _field(real, 12)
        return header(name[:100], kind=kind, magic=GNU, size=len(data), tail=tail) + padded(data)
    numbers = [b"%d" % n for extent in extents for n in extent]
    form = random.randint(0, 2)
    records = [(b"GNU.sparse.size", b"%d" % real), (b"GNU.sparse.name", name)]
    records.append((b"GNU.sparse.numblocks", b"%d" % len(extents)))
    if form == 0:
        records += zip([b"GNU.sparse.offset", b"GNU.sparse.numbytes"] * len(extents), numbers, strict=True)
    elif form == 1:
        records.append((b"GNU.sparse.map", b",".join(numbers)))
    else:
        records += [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]
        data = padded(b"\n".join([b"%d" % len(extents), *numbers, b""])) + data
    return pax(records) + header(b"GNUSparseFile.0/x", size=len(data)) + padded(data)


def _field(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number) if 0 <= number < 8 ** (width - 1) else base256(number, width)


def _number(random: Random) -> int | bytes:
    return random.choice([-1, 1 << 20, (1 << 32) - 1, 1 << 54, b"garbage", b"\0\0", b"0777777", b"\xff" * 8])


def _text(random: Random) -> bytes:
    return random.choice([random.choice(TEXTS), random.choice(NAMES), random.choice(ODD_NAMES)])


# -- changes -------------------------------------------------------------------------------------------------


def mutated(random: Random, data: bytes) -> bytes:
    """`data` with a few changes; most of the time the headers' checksums are right again."""
    changed = bytearray(data)
    for _ in range(random.randint(1, 4)):
        random.choice([_bytes, _fields, _fields, _cut, _copied, _inserted, _inserted])(random, changed)
    return sealed(bytes(changed)) if random.randint(0, 15) else bytes(changed)


def _bytes(random: Random, data: bytearray) -> None:
    if data:
        position, value = random.randrange(len(data)), random.choice(VALUES)
        data[position : position + len(value)] = value


def _fields(random: Random, data: bytearray) -> None:
    """One field of something that may be a header."""
    starts = [s for s in range(0, len(data) - BLOCK + 1, BLOCK) if data[s + 257 : s + 262] == b"ustar"]
    if starts:
        offset, width = random.choice(FIELDS)
        value = random.choice(random.choice([VALUES, VALUES, NAMES, ODD_NAMES, TARGETS]))[:width]
        position = random.choice(starts) + offset
        data[position : position + width] = value.ljust(width, b"\0")


def _cut(random: Random, data: bytearray) -> None:
    start = random.randint(0, len(data) // BLOCK) * BLOCK + random.choice([0, 0, 0, 1, 200])
    del data[start : start + BLOCK * random.randint(1, 3)]


def _copied(random: Random, data: bytearray) -> None:
    source, target = (random.randint(0, len(data) // BLOCK) * BLOCK for _ in range(2))
    data[target:target] = data[source : source + BLOCK * random.randint(1, 3)]


def _inserted(random: Random, data: bytearray) -> None:
    target = random.randint(0, len(data) // BLOCK) * BLOCK
    data[target:target] = member(random, 20)


def sealed(data: bytes) -> bytes:
    """Every block that looks like a header gets a right checksum, so that changes reach what is behind it."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - BLOCK + 1, BLOCK):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + BLOCK])
    return bytes(blocks)
