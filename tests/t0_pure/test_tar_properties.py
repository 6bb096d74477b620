"""Properties of the tar reader: no input surprises it, and on sound archives it agrees with tarfile."""

import io
import tarfile

from hypothesis import example, given
from hypothesis import strategies as st
from support.tars import GNU, folder, hard_link, header, long, member, padded, pax, read, symlink, tar

from fusestore.errors import InvalidLayer
from fusestore.tar import CHAR, DIRECTORY, FIFO, HARD_LINK, REGULAR, SYMLINK


def old_sparse():
    table = b"%011o\0%011o\0" % (512, 3)
    tail = bytes(41) + table.ljust(96, b"\0") + b"\0" + b"%011o\0" % 4096
    return header(b"old", kind=b"S", magic=GNU, size=3, tail=tail) + padded(b"abc")


SOUND = tar(
    folder("d", 0o1777, mtime=-5),
    member("d/file", b"some data " * 60, uid=5, extra={"mtime": "1.5", "SCHILY.xattr.user.a": "b\0c"}),
    long(b"L", b"n" * 130) + symlink("short", "target"),
    hard_link("link", "d/file"),
    old_sparse(),
    pax([("GNU.sparse.size", "100"), ("GNU.sparse.map", "0,2,50,1")]) + member("sparse", b"abc"),
    pax([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")])
    + member("sparse1", padded(b"1\n5\n2\n") + b"xy"),
    member("null", kind=b"3", major=1, minor=3),
)

CHANGE = st.tuples(
    st.integers(0, len(SOUND) - 1),
    st.one_of(
        st.binary(min_size=1, max_size=12),
        st.sampled_from(
            [b"\0" * 12, b" " * 8, b"\xff" * 12, b"\x80" + b"\xff" * 11, b"7" * 12, b"-1\0", b"\n", b"="]
        ),
    ),
)


def checksummed(data):
    """Every block that looks like a header gets a right checksum, so that changes reach what is behind it."""
    blocks = bytearray(data)
    for start in range(0, len(blocks) - 511, 512):
        if blocks[start + 257 : start + 262] == b"ustar":
            blocks[start + 148 : start + 156] = b" " * 8
            blocks[start + 148 : start + 156] = b"%06o\0 " % sum(blocks[start : start + 512])
    return bytes(blocks)


@given(
    st.lists(CHANGE, min_size=1, max_size=4),
    st.booleans(),
    st.integers(0, len(SOUND)),
    st.integers(0, len(SOUND)),
)
@example([(0, b"d")], False, 0, 0)
def test_mutations_give_members_or_invalid_layer(changes, sum_again, cut_from, cut_to):
    archive = bytearray(SOUND)
    for position, replacement in changes:
        archive[position : position + len(replacement)] = replacement
    if cut_from < cut_to and len(changes) == 1:
        del archive[cut_from:cut_to]
    data = checksummed(archive) if sum_again else bytes(archive)
    try:
        found = read(data)
    except InvalidLayer:
        return
    for entry, content in found:
        assert entry.sparse is not None or len(content) == entry.size
        assert 0 <= entry.uid < 2**32 - 1
        assert 0 <= entry.mode <= 0o7777


@given(st.binary(max_size=2000))
def test_random_bytes(data):
    try:
        assert read(data) == [] or len(data) >= 512
    except InvalidLayer:
        pass


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_random_pax_records(lines):
    data = b"\n".join(lines)
    archive = tar(header(b"x", kind=b"x", size=len(data)) + padded(data), member("f"))
    try:
        assert len(read(archive)) == 1
    except InvalidLayer:
        pass


# -- agreement with tarfile ----------------------------------------------------------------------------------

TEXT = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=60
)
NAMES = st.lists(TEXT, min_size=1, max_size=4).map("/".join)
KINDS = {
    tarfile.REGTYPE: REGULAR,
    tarfile.DIRTYPE: DIRECTORY,
    tarfile.SYMTYPE: SYMLINK,
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.CHRTYPE: CHAR,
    tarfile.FIFOTYPE: FIFO,
}


@st.composite
def infos(draw):
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(st.sampled_from(sorted(KINDS)))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 2**21 - 1))
    info.gid = draw(st.integers(0, 2**21 - 1))
    info.mtime = draw(st.integers(0, 2**33 - 1))
    if info.type in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        info.linkname = draw(NAMES)
    if info.type == tarfile.CHRTYPE:
        info.devmajor, info.devminor = draw(st.tuples(st.integers(0, 4095), st.integers(0, 0o7777777)))
    content = draw(st.binary(max_size=1500)) if info.type == tarfile.REGTYPE else b""
    info.size = len(content)
    return info, content


@given(
    st.lists(infos(), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 3000),
)
def test_sound_archives_are_read_as_tarfile_reads_them(entries, form, step):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    found = read(buffer.getvalue(), step)
    with tarfile.open(fileobj=io.BytesIO(buffer.getvalue()), encoding="utf-8") as archive:
        expected = archive.getmembers()
        assert len(found) == len(expected) == len(entries)
        for (entry, content), info in zip(found, expected, strict=True):
            assert entry.name.decode().rstrip("/") == info.name.rstrip("/")
            assert entry.link.decode() == info.linkname
            assert entry.kind == KINDS[info.type]
            assert (entry.mode, entry.uid, entry.gid) == (info.mode, info.uid, info.gid)
            assert entry.mtime_ns == int(info.mtime) * 1_000_000_000
            assert content == (archive.extractfile(info).read() if info.isreg() else b"")
            if info.type == tarfile.CHRTYPE:
                assert (entry.major, entry.minor) == (info.devmajor, info.devminor)
