"""Layers of anything in any order, that unpack and come back: a strategy of hypothesis."""

import base64
import zlib

from hypothesis import strategies as st
from support.archives import NOISE, ODD, old_sparse, pax_sparse
from support.tars import END, GNU, USTAR, V7, folder, long, member, padded, pax, symlink

PLACES = st.sampled_from([b"", b"d/", b"./d//e/", b"through/", b"/through/new/"])
NAMES = st.sampled_from([b"", *ODD, b"n" * 120, "ä".encode() * 90, b".wh"])
DATA = st.sampled_from([0, 0, 1, 6, 512, 1000, 1536]).map(lambda size: NOISE[:size])
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.b", "trusted.c", "security.capability"]).map("SCHILY.xattr.{}".format),
    st.binary(max_size=30),
    max_size=2,
)
BEFORE = st.sampled_from([b""] * 12 + [pax([("mtime", "1.5")]), pax([("comment", "x")], b"g")])
ENDS = {0: b"", 1: bytes(512), 2: END, 3: END, 4: END + bytes(7000), 5: END + b"\n", 6: END + NOISE[:3000]}
FIELDS = st.fixed_dictionaries(
    {
        "magic": st.sampled_from([USTAR, GNU, V7]),
        "mtime": st.sampled_from([0, -5, 1 << 33, 1 << 40]),
        "uid": st.sampled_from([0, 7, 1 << 24]),
        "mode": st.sampled_from([0o644, 0, 0o6755, 0o1777]),
    }
)


class Layer(bytes):
    """An archive that prints in few words."""

    def __repr__(self) -> str:
        return f"zlib.decompress(base64.b64decode({base64.b64encode(zlib.compress(self, 9))!r}))"


@st.composite
def layers(draw) -> Layer:
    """An archive of a directory, a symlink to it and up to eight more members."""
    made, files = [folder("d/"), symlink("through", "d")], []
    for number in range(draw(st.integers(0, 8))):
        name = draw(PLACES) + b"%d" % number + draw(NAMES)
        made.append(draw(BEFORE) + draw(_members(name, files)))
    return Layer(b"".join(made) + ENDS[draw(st.sampled_from(sorted(ENDS)))])


@st.composite
def _members(draw, name: bytes, files: list[bytes]) -> bytes:
    fields = draw(FIELDS)
    match draw(st.sampled_from(["file"] * 6 + ["link", "special", "whiteout", "sparse", "long"])):
        case "link" if files:
            return member(name, kind=b"1", link=draw(st.sampled_from(files)), **fields)
        case "special":
            kind = draw(st.sampled_from([b"2", b"3", b"4", b"5", b"6"]))
            return member(name, kind=kind, link=b"target/" * 30 if kind == b"2" else b"", **fields)
        case "whiteout":
            above, slash, last = name.rpartition(b"/")
            return member(above + slash + b".wh." + last, draw(DATA))
        case "sparse" if len(name) <= 100:
            return old_sparse(name, [(0, 2), (600, 3)], 1000, b"abcde")
        case "sparse":
            pairs = [("major", "1"), ("minor", "0"), ("realsize", "1000")]
            return pax_sparse(name, pairs, padded(b"1\n5\n2\n") + b"xy")
        case "long":
            files.append(name)
            return long(b"L", name) + member("short", draw(DATA), **fields)
    files.append(name)
    return member(name, draw(DATA), extra=draw(XATTRS), **fields)
