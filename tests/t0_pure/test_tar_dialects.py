"""Every way to write a tar member that images use is read as what it means."""

import io
import subprocess
import tarfile

import pytest
from support.tars import GNU, USTAR, V7, Stream, base256, header, long, member, padded, pax, read, tar

from fusestore.tar import CHAR, DIRECTORY, HARD_LINK, REGULAR, SYMLINK, TarReader

BILLION = 1_000_000_000


def only(archive, step=1 << 30):
    ((entry, content),) = read(archive, step)
    return entry, content


@pytest.mark.parametrize("magic", [V7, USTAR, GNU], ids=["v7", "ustar", "gnu"])
def test_plain_header(magic):
    archive = tar(member("dir/f", b"hello", mode=0o4751, uid=12, gid=34, mtime=56, magic=magic))
    entry, content = only(archive)
    assert (entry.name, entry.kind, content) == (b"dir/f", REGULAR, b"hello")
    assert (entry.mode, entry.uid, entry.gid, entry.mtime_ns) == (0o4751, 12, 34, 56 * BILLION)
    assert (entry.size, entry.stored, entry.sparse, entry.xattrs) == (5, 5, None, {})


@pytest.mark.parametrize(
    ("flag", "name", "kind"),
    [
        (b"0", b"f", REGULAR),
        (b"\0", b"f", REGULAR),
        (b"7", b"f", REGULAR),
        (b"1", b"f", HARD_LINK),
        (b"2", b"f", SYMLINK),
        (b"3", b"f", CHAR),
        (b"4", b"f", b"4"),
        (b"5", b"f", DIRECTORY),
        (b"6", b"f", b"6"),
        (b"\0", b"d/", DIRECTORY),
    ],
)
def test_type_flags(flag, name, kind):
    assert only(tar(header(name, kind=flag)))[0].kind == kind


def test_ustar_prefix_stands_before_the_name():
    assert only(tar(header(b"name", tail=b"some/prefix")))[0].name == b"some/prefix/name"


def test_full_name_and_link_fields_need_no_nul():
    entry, _ = only(tar(header(b"n" * 100, kind=b"2", link=b"l" * 100, tail=b"p" * 155)))
    assert entry.name == b"p" * 155 + b"/" + b"n" * 100
    assert entry.link == b"l" * 100


@pytest.mark.parametrize("magic", [V7, GNU], ids=["v7", "gnu"])
def test_only_ustar_has_a_prefix(magic):
    assert only(tar(header(b"name", magic=magic, tail=b"000123")))[0].name == b"name"


def test_gnu_long_names():
    name, target = b"d/" + b"n" * 900, b"t" * 700
    entry, _ = only(tar(long(b"K", target), long(b"L", name), header(name[:100], kind=b"2", link=b"short")))
    assert (entry.name, entry.link) == (name, target)


def test_long_names_concern_one_member_only():
    archive = tar(long(b"L", b"x" * 200), member("a"), pax([("uid", "7")]), member("b"), member("c"))
    assert [(entry.name, entry.uid) for entry, _ in read(archive)] == [(b"x" * 200, 0), (b"b", 7), (b"c", 0)]


def test_pax_overrides_the_fields():
    extra = {"path": "p/å", "linkpath": "l", "uid": "4294967294", "gid": "70000", "mtime": "1.5"}
    entry, _ = only(tar(member("short", kind=b"2", link="x", uid=1, gid=2, mtime=3, extra=extra)))
    assert (entry.name, entry.link) == ("p/å".encode(), b"l")
    assert (entry.uid, entry.gid, entry.mtime_ns) == (4294967294, 70000, 1_500_000_000)


def test_pax_overrides_fields_that_nobody_could_read():
    archive = tar(member("f", uid=b"garbage!", mtime=b"not octal", extra={"uid": "5", "mtime": "6"}))
    entry, _ = only(archive)
    assert (entry.uid, entry.mtime_ns) == (5, 6 * BILLION)


def test_names_are_bytes():
    name = b"\xff\xfe\n\\ \xe2\x80\xae"
    assert only(tar(member(name)))[0].name == name
    assert only(tar(member("x", extra={"path": name})))[0].name == name


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1.1", 1_100_000_000),
        ("1.", 1_000_000_000),
        ("1.9999999999", 1_999_999_999),
        ("0.000000001", 1),
        ("-1", -1_000_000_000),
        ("-0.5", -500_000_000),
        ("-1.25", -1_250_000_000),
        ("4294967296", 4294967296 * BILLION),
        ("9007199254740992", 9007199254740992 * BILLION),
    ],
)
def test_pax_times_keep_every_nanosecond(text, nanoseconds):
    assert only(tar(member("f", extra={"mtime": text})))[0].mtime_ns == nanoseconds


@pytest.mark.parametrize("seconds", [-1, -(1 << 40), 1 << 31, 1 << 33, 1 << 40])
def test_times_before_1970_and_after_2038_in_the_field(seconds):
    entry, _ = only(tar(member("f", mtime=base256(seconds, 12))))
    assert entry.mtime_ns == seconds * BILLION


@pytest.mark.parametrize("value", [0, 1, 0o7777777, 0o10000000, (1 << 32) - 2])
def test_base256_ids(value):
    entry, _ = only(tar(member("f", uid=base256(value, 8), gid=base256(value, 8))))
    assert (entry.uid, entry.gid) == (value, value)


def test_base256_size():
    assert only(tar(member("f", b"abc", size=base256(3, 12))))[1] == b"abc"


@pytest.mark.parametrize(
    "field", [b"   1750 ", b"1750\0", b"0001750\0", b"1750 \0", b"  1750\0 ", b"00001750"]
)
def test_octal_fields_between_spaces_and_nuls(field):
    assert only(tar(member("f", uid=field)))[0].uid == 0o1750


def test_empty_number_fields_are_zero():
    archive = tar(header(b"f", mode=bytes(8), uid=b" " * 8, gid=bytes(8), size=bytes(12), mtime=b" " * 12))
    entry, _ = only(archive)
    assert (entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns) == (0, 0, 0, 0, 0)


def test_mode_has_permission_bits_only():
    assert only(tar(member("f", mode=0o106755)))[0].mode == 0o6755


def test_device_numbers():
    entry, _ = only(tar(member("d", kind=b"3", major=10, minor=229)))
    assert (entry.major, entry.minor) == (10, 229)


def test_device_numbers_of_other_types_mean_nothing():
    entry, _ = only(tar(member("f", major=10, minor=229)))
    assert (entry.major, entry.minor) == (0, 0)


def test_xattrs_with_nuls_newlines_and_empty_values():
    extra = {
        "SCHILY.xattr.security.capability": b"\x01\0\0\x02\0\x20\0\0",
        "SCHILY.xattr.user.a": b"x\n7 b=c\n",
        "SCHILY.xattr.user.empty": b"",
        "SCHILY.xattr.user.with=equals": b"1",
    }
    entry, _ = only(tar(member("f", extra=extra)))
    assert entry.xattrs == {
        b"security.capability": b"\x01\0\0\x02\0\x20\0\0",
        b"user.a": b"x\n7 b=c\n",
        b"user.empty": b"",
        b"user.with": b"equals=1",
    }


def test_empty_pax_value_takes_an_earlier_one_back():
    archive = tar(pax([("uid", "5"), ("path", "no"), ("uid", ""), ("path", "")]), member("f", uid=3))
    entry, _ = only(archive)
    assert (entry.name, entry.uid) == (b"f", 3)


def test_later_pax_header_of_a_member_wins():
    assert only(tar(pax([("path", "a"), ("uid", "1")]), pax([("path", "b")]), member("f")))[0].name == b"b"


def test_unknown_pax_keys_do_nothing():
    assert only(tar(member("f", extra={"VENDOR.x": "1", "comment": "", "atime": "junk"})))[0].name == b"f"


@pytest.mark.parametrize("pairs", [[("path", "../../evil"), ("uid", "9"), ("size", "9999")], []])
def test_global_headers_are_ignored(pairs):
    archive = tar(pax(pairs, b"g"), member("f", b"abc"))
    entry, content = only(archive)
    assert (entry.name, entry.uid, content) == (b"f", 0, b"abc")


def test_global_header_alone_is_an_empty_archive():
    assert read(tar(pax([("comment", "x")], b"g"))) == []


def test_pax_size_moves_the_next_header():
    """TARmageddon (CVE-2025-62518): what the size field would call a header is data."""
    inner = tar(member("smuggled"))
    archive = tar(pax([("size", str(len(inner)))]), header(b"outer", size=0) + inner, member("next"))
    assert [(entry.name, content) for entry, content in read(archive)] == [(b"outer", inner), (b"next", b"")]


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_size_of_what_has_no_content_means_nothing(flag):
    archive = tar(header(b"x", kind=flag, link=b"y", size=1024), member("next"))
    assert [(entry.name, entry.size) for entry, _ in read(archive)] == [(b"x", 0), (b"next", 0)]


@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024), bytes(10240), bytes(1024) + b"rubbish"])
def test_ends(end):
    assert [entry.name for entry, _ in read(member("a", b"1") + end)] == [b"a"]


def test_empty_archive():
    assert read(b"") == read(bytes(1024)) == []


@pytest.mark.parametrize("step", [1, 7, 511, 512, 513, 1 << 20])
def test_reads_of_any_size_give_the_same(step):
    archive = tar(member("a", b"x" * 700), member("b" * 300, b"y" * 513, extra={"uid": "5"}), member("c"))
    found = [(entry.name, entry.uid, content) for entry, content in read(archive, step)]
    assert found == [(b"a", 0, b"x" * 700), (b"b" * 300, 5, b"y" * 513), (b"c", 0, b"")]


def test_data_that_nobody_takes_is_skipped():
    reader = TarReader(Stream(tar(member("a", b"x" * 5000), member("b"))))
    assert [entry.name for entry in reader] == [b"a", b"b"]


def test_data_that_is_half_taken_is_skipped():
    reader = TarReader(Stream(tar(member("a", b"x" * 5000), member("b")), step=600))
    seen = []
    for entry in reader:
        next(reader.chunks(), None)
        seen.append(entry.name)
    assert seen == [b"a", b"b"]


# -- sparse files: "ab", a hole of 510 bytes, "cd", a hole to 2000 -------------------------------------------

EXTENTS = [(0, 2), (512, 2)]
CONTENT = b"ab" + bytes(510) + b"cd" + bytes(1486)


def old_sparse(extents, real, data, more=0):
    """The tail of an old GNU header, from byte 345 on."""
    table = b"".join(b"%011o\0%011o\0" % extent for extent in extents[:4])
    tail = bytes(41) + table.ljust(96, b"\0") + bytes([more]) + b"%011o\0" % real
    return header(b"s", kind=b"S", magic=GNU, size=len(data), tail=tail)


def test_old_gnu_sparse():
    entry, content = only(tar(old_sparse(EXTENTS, 2000, b"abcd") + padded(b"abcd")))
    assert (entry.kind, entry.size, entry.stored, entry.sparse) == (REGULAR, 2000, 4, EXTENTS)
    assert content == CONTENT


def test_old_gnu_sparse_with_extension_blocks():
    extents = [(i * 1000, 1) for i in range(4 + 21 + 3)]
    data = bytes(range(1, 29))
    blocks = b""
    for start, more in ((4, 1), (25, 0)):
        table = b"".join(b"%011o\0%011o\0" % extent for extent in extents[start : start + 21])
        blocks += (table.ljust(504, b"\0") + bytes([more])).ljust(512, b"\0")
    archive = tar(old_sparse(extents, 40000, data, more=1) + blocks + padded(data), member("next"))
    (entry, content), (following, _) = read(archive)
    assert (entry.sparse, entry.size, following.name) == (extents, 40000, b"next")
    assert [content[i * 1000] for i in range(28)] == list(data)
    assert sum(content) == sum(data)


def sparse_pairs(*extra):
    return pax([("GNU.sparse.size", "2000"), ("GNU.sparse.numblocks", "2"), *extra])


def test_pax_sparse_0_0():
    pairs = [
        (f"GNU.sparse.{k}", str(v)) for e in EXTENTS for k, v in zip(("offset", "numbytes"), e, strict=True)
    ]
    entry, content = only(tar(sparse_pairs(*pairs), header(b"s", size=4), padded(b"abcd")))
    assert (entry.name, entry.sparse, content) == (b"s", EXTENTS, CONTENT)


def test_pax_sparse_0_1():
    described = sparse_pairs(("GNU.sparse.map", "0,2,512,2"), ("GNU.sparse.name", "true/name"))
    entry, content = only(tar(described, header(b"GNUSparseFile.0/s", size=4), padded(b"abcd")))
    assert (entry.name, entry.sparse, content) == (b"true/name", EXTENTS, CONTENT)


def test_pax_sparse_1_0():
    keys = ("major", "1"), ("minor", "0"), ("name", "true/name"), ("realsize", "2000")
    data = padded(b"2\n0\n2\n512\n2\n") + b"abcd"
    described = pax([(f"GNU.sparse.{key}", value) for key, value in keys])
    archive = tar(described, member("GNUSparseFile.0/s", data), member("next"))
    (entry, content), (following, _) = read(archive)
    assert (entry.name, entry.size, entry.stored, entry.sparse) == (b"true/name", 2000, 4, EXTENTS)
    assert (content, following.name) == (CONTENT, b"next")


def test_pax_sparse_1_0_with_a_map_of_many_blocks():
    extents = [(i * 4096, 1) for i in range(500)]
    text = b"500\n" + b"".join(b"%d\n%d\n" % extent for extent in extents)
    keys = ("major", "1"), ("minor", "0"), ("name", "s"), ("realsize", "2048000")
    described = pax([(f"GNU.sparse.{key}", value) for key, value in keys])
    entry, content = only(tar(described, member("x", padded(text) + b"z" * 500)), step=100)
    assert entry.sparse == extents
    assert content.count(b"z") == 500


def test_sparse_file_of_one_hole():
    entry, content = only(tar(old_sparse([], 2000, b"")))
    assert (entry.size, entry.stored, entry.sparse, content) == (2000, 0, [], bytes(2000))


# -- by other programs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_archives_by_gnu_tar(form, tmp_path):
    place = tmp_path / "tree"
    (place / "d").mkdir(parents=True)
    (place / "d" / "file").write_bytes(b"content\n" * 1000)
    (place / "link").hardlink_to(place / "d" / "file")
    (place / "symlink").symlink_to("d/file")
    if form not in ("v7", "ustar"):
        (place / ("n" * 150)).symlink_to("t" * 150)
    command = [
        "tar",
        f"--format={form}",
        "--sort=name",
        "--mtime=@1.5",
        "--owner=:7",
        "--group=:8",
        "-C",
        place,
    ]
    archive = subprocess.run([*command, "-c", "."], check=True, capture_output=True).stdout
    found = {entry.name: (entry, content) for entry, content in read(archive)}
    file, content = found[b"./d/file"]
    assert (content, file.uid, file.gid) == (b"content\n" * 1000, 7, 8)
    assert file.mtime_ns == (1_500_000_000 if form == "posix" else BILLION)
    assert found[b"./"][0].kind == found[b"./d/"][0].kind == DIRECTORY
    assert (found[b"./link"][0].kind, found[b"./link"][0].link) == (HARD_LINK, b"./d/file")
    assert (found[b"./symlink"][0].kind, found[b"./symlink"][0].link) == (SYMLINK, b"d/file")
    if form not in ("v7", "ustar"):
        assert found[b"./" + b"n" * 150][0].link == b"t" * 150


@pytest.mark.parametrize(
    "options", [["gnu"], ["posix", "0.0"], ["posix", "0.1"], ["posix", "1.0"]], ids="-".join
)
def test_sparse_archives_by_gnu_tar(options, tmp_path):
    sparse = tmp_path / "sparse"
    with open(sparse, "wb") as file:
        for i in range(30):
            file.seek(i * 65536)
            file.write(b"%07d\n" % i)
        file.truncate(1 << 21)
    version = [f"--sparse-version={v}" for v in options[1:]]
    command = ["tar", "--sparse", f"--format={options[0]}", *version, "-C", tmp_path, "-c", "sparse"]
    entry, content = only(subprocess.run(command, check=True, capture_output=True).stdout)
    assert content == sparse.read_bytes()
    assert entry.name == b"sparse"
    assert entry.stored < entry.size == 1 << 21


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_by_python(form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo("some/directory/" * 8 + "f")
        info.size, info.uid, info.mtime = 3, 99, 1234
        archive.addfile(info, io.BytesIO(b"abc"))
    entry, content = only(buffer.getvalue())
    assert (entry.name, entry.uid, entry.mtime_ns) == (info.name.encode(), 99, 1234 * BILLION)
    assert content == b"abc"
