"""A record is the one that upstream would write, byte for byte; with the contents it makes the same archive.

Three judges: the worked example and vectors that upstream's own tests have; `support.disassembler`, upstream
said again in our words; and the archive itself, which must come back whatever upstream would say of it.
"""

import base64
import contextlib
import gzip
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import archives, upstream_vectors
from support.disassembler import Unrepresentable, crc64, disassembled
from support.random_layers import layers
from support.tars import folder, member, symlink, tar
from support.tarsplits import assembled, json_of, recorded

from fusestore.errors import CorruptStore

WHOLE = archives.LAYERS | archives.TOO_LONG


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def lines_of(record):
    return gzip.decompress(record).splitlines(keepends=True)


# -- the same as upstream ------------------------------------------------------------------------------------


def test_the_worked_example():
    """seeds.md 10.1."""
    plain = {"major": b"", "minor": b""}
    archive = tar(folder("d/", **plain), member("d/a", b"hello\n", **plain), symlink("d/l", "a", **plain))
    assert sha256(archive) == "52eac22538c07a6ec3d9b13eac0f8f80e31ddba8ea7af237b0d50a40c8638d1e"
    record, contents = recorded(archive)
    lines = lines_of(record)
    assert lines[0].startswith(b'{"type":2,"payload":"ZC8AAAAA')
    assert lines[0].endswith(b'","position":0}\n')
    assert lines[1::2] == [
        b'{"type":1,"name":"d/","payload":null,"position":1}\n',
        b'{"type":1,"name":"d/a","size":6,"payload":"YUw+7uLYEAA=","position":3}\n',
        b'{"type":1,"name":"d/l","payload":null,"position":5}\n',
    ]
    stream = b"".join(lines)
    assert len(stream) == 4418
    assert sha256(stream) == "2e3de6ac94571a686a0af59164ccc218465550bb02e7397cc85ad84e23b58520"
    assert assembled(record, contents) == archive


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"123456789", 0xB90956C775A41001.to_bytes(8, "big")),
        (b"abc", bytes.fromhex("3776c42000000000")),
        (b"hello\n", bytes.fromhex("614c3eeee2d81000")),
        (b"imma hurr til I derp", bytes((2, 116, 164, 177, 171, 236, 107, 78))),
        ("café con leche, por favor".encode(), bytes((126, 72, 89, 239, 230, 252, 160, 187))),
    ],
)
@pytest.mark.parametrize("step", [1, 515, 1 << 20])
def test_checksums_are_crc_64_of_iso(data, checksum, step):
    record, _ = recorded(tar(member("f", data)), step)
    (payload,) = [json.loads(line)["payload"] for line in lines_of(record) if b'"type":1' in line]
    assert base64.b64decode(payload) == crc64(data) == checksum


@pytest.mark.parametrize(
    ("name", "field"),
    [
        (b"a b", b'"name":"a b"'),
        (b'"\\/', rb'"name":"\"\\/"'),
        (b"<a>&", rb'"name":"\u003ca\u003e\u0026"'),
        ("\u2028\u2029".encode(), rb'"name":"\u2028\u2029"'),
        (b"\b\t\n\f\r", rb'"name":"\b\t\n\f\r"'),
        (b"\x01\x0b\x1f\x7f", b'"name":"\\u0001\\u000b\\u001f\x7f"'),
        ("é\u0300\U0001f40b".encode(), '"name":"é\u0300\U0001f40b"'.encode()),
        (b"iso-\xe4", b'"name_raw":"aXNvLeQ="'),
        (b"\xed\xa0\x80", b'"name_raw":"7aCA"'),
        (b"\xc0\xaf", b'"name_raw":"wK8="'),
    ],
)
def test_names_are_spelled_as_go_spells_them(name, field):
    archive = tar(member(name))
    record, contents = recorded(archive)
    assert lines_of(record)[1] == b'{"type":1,%s,"payload":null,"position":1}\n' % field
    assert assembled(record, contents) == archive


@pytest.mark.parametrize("name", sorted(WHOLE.keys() - archives.NOT_UPSTREAM))
def test_the_record_is_upstreams(name):
    assert json_of(WHOLE[name]) == disassembled(WHOLE[name])


@pytest.mark.parametrize("name", upstream_vectors.SUMS)
def test_tar_stream(name):
    """Upstream's TestTarStream."""
    archive, (sha1, size) = upstream_vectors.vector(name), upstream_vectors.SUMS[name]
    assert len(archive) == size
    assert sha1 in (None, hashlib.sha1(archive).hexdigest())
    record, contents = recorded(archive, 32768)
    assert assembled(record, contents) == archive
    if size < 1 << 20:
        assert gzip.decompress(record) == disassembled(archive)


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_the_record_of_gnu_tars_is_upstreams(form):
    archive = archives.by_gnu_tar(f"--format={form}", "--exclude=sparse")
    assert json_of(archive) == disassembled(archive)


# -- everything comes back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [100, 1 << 30])
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_recorded_comes_back(name, step):
    record, contents = recorded(WHOLE[name], step)
    assert assembled(record, contents) == WHOLE[name]
    assert [json.loads(line)["position"] for line in lines_of(record)] == list(range(len(lines_of(record))))


@pytest.mark.parametrize("options", archives.BY_GNU_TAR, ids="-".join)
def test_archives_by_gnu_tar_come_back(options):
    archive = archives.by_gnu_tar(*options)
    record, contents = recorded(archive, 10240)
    assert assembled(record, contents) == archive
    assert (b"./d/sparse" in contents) == ("--sparse" not in options)


def test_duplicate_fail():
    """Upstream's TestDuplicateFail refuses; ours is written, and comes back where both have one content."""
    with pytest.raises(Unrepresentable):
        disassembled(archives.TWICE["hurr.txt"])
    record, contents = recorded(archives.TWICE["hurr.txt"])
    assert assembled(record, contents) == archives.TWICE["hurr.txt"]
    record, contents = recorded(archives.TWICE["another content"])
    with pytest.raises(CorruptStore, match="file integrity checksum failed for f"):
        assembled(record, contents)


@given(layers(), st.sampled_from([1 << 20, 700]))
@settings(max_examples=3 * settings().max_examples)
def test_any_sequence_of_members_comes_back_and_is_upstreams(archive, step):
    record, contents = recorded(archive, step)
    assert assembled(record, contents) == archive
    with contextlib.suppress(Unrepresentable):
        assert gzip.decompress(record) == disassembled(archive)
