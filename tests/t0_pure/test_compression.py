"""Compressed streams: told by content, whole or refused, read ahead without losing an error or a byte."""

import bz2
import gzip
import lzma
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tars import Stream

from fusestore.compression import ahead, decompressed, is_compressed
from fusestore.errors import DigestMismatch, InvalidLayer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLAIN = bytes(range(256)) * 3000
FORMATS = {"gzip": gzip.compress, "zstd": zstd.compress, "bzip2": bz2.compress, "xz": lzma.compress}
EVERY_FORMAT = pytest.mark.parametrize("compress", FORMATS.values(), ids=FORMATS)


def whole(data, step=1 << 30, size=1 << 16):
    reader = decompressed(Stream(data, step))
    found = b""
    while chunk := reader.read(size):
        assert len(chunk) <= size
        found += chunk
    return found


def drained(reader):
    while reader.read(100):
        pass


@EVERY_FORMAT
@pytest.mark.parametrize("step", [1000, 1 << 30])
def test_formats_are_told_by_content(compress, step):
    data = compress(PLAIN)
    assert is_compressed(data)
    assert whole(data, step) == PLAIN


@pytest.mark.parametrize("plain", [b"", b"x", b"\x1f", b"BZ", b"plain" * 1000])
def test_what_is_not_compressed_passes_unchanged(plain):
    assert not is_compressed(plain)
    assert whole(plain) == plain


@EVERY_FORMAT
def test_empty_content(compress):
    assert whole(compress(b"")) == b""


@EVERY_FORMAT
def test_several_members(compress):
    """pigz, pzstd, estargz and zstd:chunked write one stream as many."""
    assert (
        whole(compress(b"one ") + compress(b"") + compress(b"two ") + compress(PLAIN)) == b"one two " + PLAIN
    )


def test_skippable_zstd_frames():
    frame = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"toc!"
    assert whole(zstd.compress(b"a") + frame + zstd.compress(b"b") + frame) == b"ab"


@EVERY_FORMAT
def test_cut_streams_are_refused(compress):
    data = compress(b"some content " * 50)
    for length in range(6, len(data)):
        with pytest.raises(InvalidLayer):
            whole(data[:length])


@EVERY_FORMAT
def test_a_second_member_that_is_cut_is_refused(compress):
    first, second = compress(b"one"), compress(b"some content " * 50)
    for length in range(6, len(second), 3):
        with pytest.raises(InvalidLayer):
            whole(first + second[:length])


@EVERY_FORMAT
@pytest.mark.parametrize("rubbish", [b"rubbish behind it", b"r" * 5000, b"\1"], ids=["some", "much", "one"])
def test_rubbish_behind_is_refused(compress, rubbish):
    with pytest.raises(InvalidLayer):
        whole(compress(PLAIN) + rubbish)


CHECKED = {
    **FORMATS,
    "zstd": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}


@pytest.mark.parametrize("compress", CHECKED.values(), ids=CHECKED)
def test_changed_bytes_are_refused(compress):
    """A change that is not found has changed no content; behind the magic number nothing else passes."""
    plain = b"some content " * 50
    data = bytearray(compress(plain))
    for position in range(6, len(data)):
        data[position] ^= 0x41
        try:
            assert whole(bytes(data)) == plain
        except InvalidLayer:
            pass
        data[position] ^= 0x41
    assert whole(bytes(data)) == plain


def test_zstd_windows_are_limited_to_128_mib():
    def with_window(log):
        options = {zstd.CompressionParameter.window_log: log, zstd.CompressionParameter.content_size_flag: 0}
        compressor = zstd.ZstdCompressor(options=options)
        return compressor.compress(b"x" * 100) + compressor.flush()

    assert whole(with_window(27)) == b"x" * 100
    with pytest.raises(InvalidLayer):
        whole(with_window(28))


@given(st.binary(max_size=300), st.sampled_from([b"", *(compress(b"")[:6] for compress in FORMATS.values())]))
def test_random_bytes_are_data_or_damage(data, start):
    try:
        assert whole(start + data) == data or is_compressed(start + data)
    except InvalidLayer:
        pass


def test_everything_is_read_to_the_end_of_the_source():
    """Whoever hashes the source must have seen every byte when the content ends."""
    for data in (gzip.compress(PLAIN), zstd.compress(PLAIN), PLAIN):
        stream = Stream(data)
        drained(decompressed(stream))
        assert stream.position == len(data)


@pytest.mark.parametrize("error", [OSError(5, "I/O"), DigestMismatch("blob", "a", "b"), InvalidLayer("x")])
def test_errors_of_the_source_pass_through(error):
    class Source(Stream):
        def read(self, size, /):
            if not self.position:
                return super().read(100)
            raise error

    reader = decompressed(Source(gzip.compress(PLAIN)))
    with pytest.raises(type(error)) as caught:
        drained(reader)
    assert caught.value is error


# -- ahead ---------------------------------------------------------------------------------------------------


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name == "decompress"]


@pytest.mark.parametrize("size", [1, 1000, 1 << 20, 1 << 22])
def test_ahead_gives_the_same_bytes(size):
    data = PLAIN * (10 if size > 1 else 1)
    data = data if size > 1 else data[:5000]
    with ahead(Stream(data, 12345)) as stream:
        assert b"".join(iter(lambda: stream.read(size), b"")) == data
        assert stream.read(size) == b""
    assert threads() == []


@pytest.mark.timeout(5)
@pytest.mark.parametrize("error", [InvalidLayer("x"), OSError(5, "I/O"), MemoryError(), ValueError("a bug")])
def test_ahead_passes_every_error_on(error):
    class Source(Stream):
        def read(self, size, /):
            if self.position < 5000:
                return super().read(1000)
            raise error

    with pytest.raises(type(error)) as caught, ahead(Source(PLAIN)) as stream:
        drained(stream)
    assert caught.value is error
    assert threads() == []


@pytest.mark.timeout(5)
def test_ahead_stops_when_nobody_reads_any_more():
    stream = Stream(bytes(1 << 28), 1 << 20)
    with ahead(stream) as chunks:
        assert chunks.read(10) == bytes(10)
    assert threads() == []
    assert stream.position <= 16 << 20
