"""A record or a content that is not what it was gives an error or, if that changed nothing, the same archive.

Small records are damaged in every way there is: each truncation, each flipped bit, each content with a byte
changed; then their lines, packed again so that gzip has nothing to find.  What a line says may be a lie that
nothing but the digest of the archive can show, so they are read as a layer is, with the digest at the end.

The last tests watch the memory of records and contents of 300 MiB.
"""

import gzip
import io
import json
import os
import re
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.archives import old_sparse
from support.tars import END, folder, header, member, tar
from support.tarsplits import Contents, assembled, recorded

from fusestore.digest import of_bytes
from fusestore.errors import CorruptStore
from fusestore.store.tarsplit import Writer, assemble
from fusestore.tar import TarReader
from fusestore.tar_stream import tar_stream

ARCHIVE = tar(folder("d"), member("d/f", b"abc"), member(b"\xff", b"defg"), member("empty")) + b"behind"
RECORD, CONTENTS = recorded(ARCHIVE)
LINES = gzip.decompress(RECORD).splitlines(keepends=True)


def read(record, contents=CONTENTS, archive=ARCHIVE):
    """The archive, read as `Layer.tar_stream` reads it."""
    pieces = assemble(io.BytesIO(record), Contents(contents), "a layer")
    with tar_stream(pieces, of_bytes(archive)) as stream:
        return stream.read()


def refused_or_right(record):
    """False when the record was refused; what is accepted is right."""
    try:
        assert read(record) == ARCHIVE
    except CorruptStore:
        return False
    return True


def test_every_truncation_of_a_record_is_found():
    assert [size for size in range(len(RECORD)) if refused_or_right(RECORD[:size])] == []
    assert refused_or_right(RECORD)


def test_a_flipped_bit_of_a_record_is_found():
    """Unless gzip itself finds the same text: in a header's time, in the length of a run of zeros."""
    found = 0
    for bit in range(8 * len(RECORD)):
        damaged = bytearray(RECORD)
        damaged[bit // 8] ^= 1 << bit % 8
        if refused_or_right(bytes(damaged)):
            assert gzip.decompress(damaged) == b"".join(LINES)
        else:
            found += 1
    assert found > 7 * len(RECORD)


def test_what_follows_a_record_is_no_part_of_it():
    assert refused_or_right(RECORD + RECORD) is False
    assert refused_or_right(gzip.compress(b"".join(LINES[:3])) + gzip.compress(b"".join(LINES[3:])))


def test_records_in_the_spelling_of_others():
    """Upstream's readers take any spacing of the objects, and old ones wrote an empty segment at the end."""
    spaced = [json.dumps(json.loads(line), indent=None).encode() + b"\n" for line in LINES]
    assert read(gzip.compress(b"".join(spaced))) == ARCHIVE
    assert read(gzip.compress(b"".join([*LINES, b'{"type":2,"payload":"","position":10}\n']))) == ARCHIVE


WRONG = st.one_of(
    st.none(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(),
    st.text(max_size=5),
    st.just("x" * 300),
    st.just("\ud800"),
    st.just("d"),
    st.just("a\0b"),
    st.lists(st.none(), max_size=1),
    st.dictionaries(st.sampled_from(["name", "type"]), st.none(), max_size=1),
)
FIELD = st.sampled_from(["type", "name", "name_raw", "size", "payload", "position"])
LINE = st.integers(0, len(LINES) - 1)


@given(LINE, FIELD, WRONG)
@settings(max_examples=6 * settings().max_examples)
def test_lines_with_a_wrong_value_give_an_error_or_the_same(number, field, value):
    fields = json.loads(LINES[number]) | {field: value}
    changed = [*LINES[:number], json.dumps(fields).encode() + b"\n", *LINES[number + 1 :]]
    refused_or_right(gzip.compress(b"".join(changed), 1))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null\n",
        b"7\n",
        b"[]\n",
        b"{}\n",
        b'"payload"\n',
        b"{\n",
        b"\xff\n",
        b'{"type":1}\n',
        b'{"type":2,"payload":"?"}\n',
        b'{"type":2,"payload":"YQ"}\n',
        b'{"type":1,"name":"gone","size":1,"payload":"AAAAAAAAAAA=","position":2}\n',
        b'{"type":1,"name":"d","size":1,"payload":"AAAAAAAAAAA=","position":2}\n',
        b"[" * 100_000 + b"\n",
        b"1" * 10_000 + b"\n",
        LINES[3] * 2,
    ],
)
def test_lines_that_are_none_are_refused(line):
    assert refused_or_right(gzip.compress(b"".join([*LINES[:2], line, *LINES[3:]]))) is False


def test_tar_stream_mangled_getter_putter():
    """Upstream's test of that name: a content that is not the recorded one fails its checksum."""
    for name in (b"d/f", b"\xff"):
        for changed in (b"", b"abd", b"abc\0", CONTENTS[name][:-1], CONTENTS[name] * 2):
            with pytest.raises(CorruptStore, match="file integrity checksum failed"):
                assembled(RECORD, CONTENTS | {name: changed})


def test_a_missing_content_is_named():
    with pytest.raises(CorruptStore, match=re.escape(r"a layer: the store is damaged: \xff is missing")):
        assembled(RECORD, {b"d/f": b"abc"})


def test_a_record_of_another_archive_fails_at_the_last_read():
    other = ARCHIVE.replace(b"0000755", b"0000700")
    assert other != ARCHIVE
    pieces = assemble(io.BytesIO(RECORD), Contents(CONTENTS), "a layer")
    with tar_stream(pieces, of_bytes(other)) as stream:
        assert stream.read(len(ARCHIVE)) == ARCHIVE
        with pytest.raises(CorruptStore, match="could not verify layer data"):
            stream.read(1)


# -- memory --------------------------------------------------------------------------------------------------

MANY = 300 << 20


class Zeros:
    """A head, many zeros, a tail."""

    def __init__(self, head, tail):
        self._pieces, self._left = [head], MANY
        self._tail = tail

    def read(self, size, /):
        if self._pieces:
            return self._pieces.pop()
        if self._left:
            step = min(size, self._left)
            self._left -= step
            return bytes(step)
        tail, self._tail = self._tail, b""
        return tail


class Hole:
    """Every content is a file of zeros."""

    def __init__(self, path):
        self._path = path

    def get(self, name):
        return os.open(self._path, os.O_RDONLY)


def peak():
    """The most memory that this process had since the last `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def forget_peak():
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


LARGE = {
    "data": (header(b"f", size=MANY), END),
    "sparse": (old_sparse(b"s", [(0, MANY)], MANY, b""), END),
    "trailing": (END, b"rubbish"),
}


@pytest.mark.parametrize("name", LARGE)
def test_memory_does_not_grow_with_what_is_recorded(name, tmp_path):
    with open(tmp_path / "zeros", "wb") as file:
        file.truncate(MANY)
    forget_peak()
    base = peak()
    with open(tmp_path / "record", "w+b") as record:
        writer = Writer(record)
        reader = TarReader(Zeros(*LARGE[name]), writer)
        for _ in reader:
            deque(reader.chunks(), 0)
        reader.drain()
        record.seek(0)
        size = sum(map(len, assemble(record, Hole(tmp_path / "zeros"), "a layer")))
    assert size == MANY + sum(map(len, LARGE[name]))
    assert peak() - base < 64 << 20
