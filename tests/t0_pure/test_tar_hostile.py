"""What is not a sound tar raises InvalidLayer: no other exception, no endless reading, nothing believed."""

import tracemalloc

import pytest
from support.tars import (
    BLOCK,
    END,
    GNU,
    Stream,
    base256,
    folder,
    header,
    long,
    member,
    padded,
    pax,
    read,
    records,
    tar,
)

from fusestore.errors import InvalidLayer
from fusestore.tar import HEADER_LIMIT, TarReader


def refused(archive):
    with pytest.raises(InvalidLayer) as caught:
        read(archive)
    return str(caught.value)


# -- cut -----------------------------------------------------------------------------------------------------

WHOLE = [
    folder("d"),
    member("d/f", b"x" * 600, extra={"mtime": "1.5"}),
    long(b"L", b"n" * 120) + member("n", b"y"),
]
PADDING = [0, 0, 1024 - 600, 512 - 1]  # bytes of it behind the first, second and third member


def test_truncation_at_every_byte():
    """Cut between members it is an archive without an end mark, as Go accepts too; else it is damaged.

    The padding behind a file's data may be missing as well: umoci insert ends its tars there.
    """
    archive = b"".join(WHOLE)
    ends = {
        sum(map(len, WHOLE[:count])) - missing: count
        for count, padding in enumerate(PADDING)
        for missing in range(padding + 1)
    }
    for length in range(len(archive) + 1):
        if length in ends:
            assert len(read(archive[:length])) == ends[length]
        else:
            refused(archive[:length])


@pytest.mark.parametrize("left", [1, 511, 513, 1023])
def test_truncation_in_the_end_mark(left):
    refused(member("f") + bytes(left))


# -- headers -------------------------------------------------------------------------------------------------


def corrupted(position):
    block = bytearray(header(b"f"))
    block[position] ^= 1
    return bytes(block) + END


@pytest.mark.parametrize("position", [0, 100, 124, 148, 156, 257, 345, 511])
def test_one_wrong_bit_in_a_header(position):
    assert "checksum" in refused(corrupted(position))


@pytest.mark.parametrize(
    "checksum", [bytes(8), b" " * 8, b"00000\0\0\0", b"garbage!", b"9999999\0", b"\xff" * 8]
)
def test_wrong_checksums(checksum):
    refused(header(b"f", checksum=checksum) + END)


def test_checksum_of_signed_bytes_is_accepted():
    """Old Sun tars summed chars, which are signed there."""
    block = header(b"\xff", checksum=b" " * 8)
    total = sum(byte - 256 if byte > 127 else byte for byte in block)
    entries = read(header(b"\xff", checksum=b"%06o\0 " % total) + END)
    assert [entry.name for entry, _ in entries] == [b"\xff"]


NUMBERS = ["mode", "uid", "gid", "size", "mtime"]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("text", [b"8", b"0x1f", b"-1", b"+1", b"1_0", b"1 1", b"1.5", b"1\xd9\xa1"])
def test_numbers_that_are_not_octal(field, text):
    refused(tar(header(b"f", **{field: text})))


@pytest.mark.parametrize("field", NUMBERS)
def test_a_number_behind_a_nul_is_not_nothing(field):
    """GNU tar and Go skip leading NULs: who reads 0 there finds the next header elsewhere than they."""
    inner = member("smuggled")
    text = b"\0%06o" % len(inner)
    try:
        found = read(tar(header(b"f", **{field: text}) + inner))
    except InvalidLayer:
        return
    expected = [b"f"] if field == "size" else [b"f", b"smuggled"]
    assert [entry.name for entry, _ in found] == expected
    assert getattr(found[0][0], {"mtime": "mtime_ns"}.get(field, field)) != 0


@pytest.mark.parametrize("size", [-1, -512, -(1 << 60), (1 << 53) + 1, 1 << 62, 1 << 63, (1 << 88) - 1])
@pytest.mark.parametrize("kind", [b"0", b"7", b"S", b"x", b"g", b"L", b"K"])
def test_impossible_sizes(kind, size):
    """Refused at the header: what follows is not read first (CVE-2025-8194)."""
    head = header(b"f", kind=kind, magic=GNU, size=base256(size, 12))
    for step in (1 << 20, BLOCK):
        stream = Stream(head + padded(b"x" * (1 << 21)) + END, step)
        with pytest.raises(InvalidLayer):
            list(TarReader(stream))
        assert stream.position <= 1 << 20


@pytest.mark.parametrize("size", ["-1", "1e3", "0x10", " 5", "", "9007199254740993", "9" * 21, "9" * 5000])
def test_impossible_sizes_in_pax(size):
    if not size:  # takes the record back, and the field counts
        assert len(read(tar(member("f", b"abc", extra={"size": size})))) == 1
        return
    refused(tar(member("f", b"abc", extra={"size": size})))


@pytest.mark.parametrize("value", [-1, (1 << 32) - 1, 1 << 32, 1 << 55])
@pytest.mark.parametrize("field", ["uid", "gid"])
def test_impossible_ids(field, value):
    """2**32 - 1 means "leave it" to chown(2)."""
    refused(tar(member("f", **{field: base256(value, 8)})))
    refused(tar(member("f", extra={field: str(value)})))


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "inf",
        "-inf",
        "1e309",
        "1e9",
        "",
        "-",
        ".5",
        "1,5",
        "1.5x",
        "--1",
        "9" * 21,
        "-9e18",
        " 1",
        "1\n",
    ],
)
def test_impossible_times(text):
    if not text:
        assert read(tar(member("f", mtime=7, extra={"mtime": text})))[0][0].mtime_ns == 7_000_000_000
        return
    refused(tar(member("f", extra={"mtime": text})))


@pytest.mark.parametrize("seconds", [(1 << 53) + 1, -(1 << 53) - 1, 1 << 62, -(1 << 87)])
def test_times_out_of_range(seconds):
    refused(tar(member("f", mtime=base256(seconds, 12))))
    refused(tar(member("f", extra={"mtime": str(seconds)})))


@pytest.mark.parametrize("kind", [bytes([i]) for i in range(1, 256) if bytes([i]) not in b"01234567xgLKS"])
def test_unknown_types(kind):
    assert "unhandled tar header type" in refused(tar(member("f", kind=kind)))


@pytest.mark.parametrize("kind", [b"\0", b"0", b"7"])
def test_a_directory_in_disguise_hides_no_data(kind):
    """A file whose name ends in "/" is a directory, but GNU tar skips its data: no member may come of it."""
    inner = member("smuggled")
    try:
        found = read(tar(header(b"d/", kind=kind, size=len(inner)) + inner, member("next")))
    except InvalidLayer:
        return
    assert [entry.name for entry, _ in found] == [b"d/", b"next"]


def test_zero_block_in_the_middle():
    refused(member("a") + bytes(BLOCK) + tar(member("b")))


def test_extended_header_that_describes_nothing():
    for extension in (pax([("uid", "1")]), long(b"L", b"name"), long(b"K", b"target")):
        refused(tar(member("a"), extension))
        refused(member("a") + extension)


# -- extended headers ----------------------------------------------------------------------------------------


def extended(data):
    return tar(header(b"x", kind=b"x", size=len(data)) + padded(data), member("f"))


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"\n",
        b" a=b\n",
        b"0 a=b\n",
        b"5 a=b\n",
        b"7 a=b\n",
        b"6 a=b",
        b"99 a=b\n",
        b"-6 a=b\n",
        b"+6 a=b\n",
        b"6\ta=b\n",
        b"6 a=b\nrest",
        b"6 a=b\n\0\0\0",
        b"4 a\n",
        b"5 ab\n",
        b"5 =b\n",
        b"7 a\0=b\n",
        b"00000000000000000000006 a=b\n",
        b"99999999999999999999 a=b\n",
        b"6 a=b\n6 c=d",
        b"3 \n",
        b"12 path=a\0b\n",
        b"2 ",
        b"6",
    ],
)
def test_malformed_pax_records(data):
    """CVE-2019-20907: a record of length 0 made tarfile loop."""
    refused(extended(data))


@pytest.mark.parametrize("key", ["path", "linkpath", "GNU.sparse.name", "uname", "gname"])
def test_nul_in_a_pax_name(key):
    """GNU tar cuts there: `etc/shadow\\0.txt` becomes `etc/shadow`."""
    refused(tar(member("f", extra={key: "etc/shadow\0.txt"})))


def test_differing_gnu_and_pax_names():
    refused(tar(long(b"L", b"a"), pax([("path", "b")]), member("c")))
    refused(tar(long(b"K", b"a"), pax([("linkpath", "b")]), member("c", kind=b"2")))


def test_equal_gnu_and_pax_names():
    ((entry, _),) = read(tar(long(b"L", b"a"), pax([("path", "a")]), member("c")))
    assert entry.name == b"a"


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_header_limit(kind):
    """At the limit it is read, one byte over it is refused before it is."""

    def of_size(size):
        body = records([("comment", "c" * (size - 17))]) if kind in b"xg" else b"n" * size
        assert len(body) == size
        return tar(
            header(b"x", kind=kind, size=size, magic=GNU) + padded(body), member("f", kind=b"2", link="l")
        )

    assert len(read(of_size(HEADER_LIMIT))) == 1
    assert len(read(of_size(HEADER_LIMIT - 1))) == 1
    refused(of_size(HEADER_LIMIT + 1))


def test_many_extended_headers_before_one_member_do_not_pile_up():
    """Each is under the limit; together they must not fill the memory either."""
    block = [
        pax([(f"VENDOR.{i}.{'k' * 900}", "v" * 100) for i in range(n, n + 900)]) for n in range(0, 36000, 900)
    ]
    archive = tar(*block, member("f"))
    tracemalloc.start()
    try:
        list(TarReader(Stream(archive)))
    except InvalidLayer:
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(archive) > 32 << 20
    assert peak < 16 << 20


def test_a_negative_long_name_is_not_collected():
    """The whole rest of the archive would be its data."""
    stream = Stream(header(b"x", kind=b"L", magic=GNU, size=base256(-1, 12)) + bytes(32 << 20), BLOCK)
    with pytest.raises(InvalidLayer):
        list(TarReader(stream))
    assert stream.position <= 1 << 20


# -- sparse files --------------------------------------------------------------------------------------------


def sparse_0_1(text, size="100", stored=b"abcd"):
    pairs = [("GNU.sparse.size", size), ("GNU.sparse.map", text)]
    return tar(pax(pairs), member("s", stored))


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "0,4,9",
        "a,b",
        "0,-4",
        "-1,4",
        "0,4,2,0",
        "50,2,0,2",
        "0,5",
        "0,3",
        "98,4",
        "101,0,0,4",
        "0,4,,",
        ",0,4",
        "0,,4",
        "0;4",
        "0 ,4",
        "0,4.0",
        f"0,4,{1 << 62},0",
        f"0,{1 << 62}",
    ],
)
def test_malformed_sparse_maps(text):
    refused(sparse_0_1(text))


@pytest.mark.parametrize("size", ["-1", "3", "x", str(1 << 62), str((1 << 53) + 1)])
def test_impossible_real_sizes(size):
    refused(sparse_0_1("0,4", size))


def test_sparse_file_without_a_real_size():
    refused(tar(pax([("GNU.sparse.map", "0,4")]), member("s", b"abcd")))


def test_sparse_0_0_pairs_out_of_order():
    pairs = [("GNU.sparse.size", "100")]
    pairs += [("GNU.sparse.offset", "0"), ("GNU.sparse.offset", "2"), ("GNU.sparse.numbytes", "2")] * 2
    refused(tar(pax(pairs), member("s", b"abcd")))
    swapped = [("GNU.sparse.numbytes", "0"), ("GNU.sparse.offset", "4")]
    refused(tar(pax([("GNU.sparse.size", "100"), *swapped]), member("s", b"abcd")))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x\n",
        b"1\n0\n",
        b"1\n0\n4",
        b"-1\n",
        b"1\n0\n-4\n",
        b"99999999999\n0\n4\n",
        b"9" * 600,
        b"\n\n\n",
        b"1\n4\n0\n",
    ],
)
def test_malformed_sparse_1_0_maps(data):
    pairs = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")]
    refused(tar(pax(pairs), member("s", padded(data) + b"abcd")))


def test_sparse_1_0_map_over_the_limit():
    pairs = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "100")]
    data = b"900000\n" + b"0\n" * 1_800_000
    refused(tar(pax(pairs), member("s", padded(data))))


def old_sparse(table, real=b"%011o\0" % 100, more=0, size=4):
    tail = bytes(41) + table.ljust(96, b"\0") + bytes([more]) + real
    return header(b"s", kind=b"S", magic=GNU, size=size, tail=tail) + padded(b"abcd")


@pytest.mark.parametrize(
    "archive",
    [
        old_sparse(b"%011o\0%011o\0" % (0, 5)),
        old_sparse(b"%011o\0%011o\0" % (97, 4)),
        old_sparse(b"%011o\0%011o\0" % (50, 2) + b"%011o\0%011o\0" % (0, 2)),
        old_sparse(base256(-4, 12) + b"%011o\0" % 4),
        old_sparse(b"%011o\0" % 0 + base256(-4, 12)),
        old_sparse(b"garbage!!!!!%011o\0" % 4),
        old_sparse(b"%011o\0%011o\0" % (0, 4), real=base256(-1, 12)),
        old_sparse(b"%011o\0%011o\0" % (0, 4), real=base256(1 << 62, 12)),
        old_sparse(b"%011o\0%011o\0" % (0, 4), real=b"%011o\0" % 3),
        old_sparse(b"", size=4),
        old_sparse(b"%011o\0%011o\0" % (0, 4), more=1)[:BLOCK],
    ],
)
def test_malformed_old_sparse_maps(archive):
    refused(archive)


def test_old_sparse_map_without_end():
    head = old_sparse(b"%011o\0%011o\0" % (0, 4), more=1)[:BLOCK]
    block = bytes(504) + b"\1" + bytes(7)
    stream = Stream(head + block * 10000)
    with pytest.raises(InvalidLayer, match="limit"):
        list(TarReader(stream))
    assert stream.position <= HEADER_LIMIT + (2 << 20)


def test_a_hole_of_2_to_the_62_is_refused_at_once():
    refused(sparse_0_1("0,4", str(1 << 62)))
    pairs = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(1 << 62))]
    refused(tar(pax(pairs), member("s", padded(b"1\n0\n4\n") + b"abcd")))


# -- what lies behind ----------------------------------------------------------------------------------------


def test_errors_of_the_source_pass_through():
    class Broken:
        def read(self, size, /):
            raise OSError(5, "broken")

    with pytest.raises(OSError, match="broken") as caught:
        list(TarReader(Broken()))
    assert caught.value.errno == 5
