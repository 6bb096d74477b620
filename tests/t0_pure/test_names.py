"""Names of things: digests, chain IDs, references, whiteout markers, and what of a name may be printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tars import Stream

from fusestore import digest, reference
from fusestore.driver.whiteout import Marker, tar_marker
from fusestore.errors import InvalidReference, printable

# seeds.md 1.2: the digests of "a" and "b", and the chain ID of the two.
A = "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
B = "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
CHAIN_AB = "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676"


def test_chain_id():
    assert digest.of_bytes(b"a") == A
    assert digest.chain_id(None, digest.DiffID(A)) == A
    assert digest.chain_id(digest.ChainID(A), digest.DiffID(B)) == CHAIN_AB


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        A[:-1],
        A + "0",
        A.upper(),
        A.removeprefix("sha256:"),
        A.replace("sha256", "sha512"),
        A + "\n",
        " " + A,
        "sha256:../../" + "a" * 58,
        "sha256:" + "g" * 64,
        "sha256:" + "\u0661" * 64,
        A.encode(),
        None,
        7,
        ["sha256"],
    ],
)
def test_what_is_no_digest(text):
    with pytest.raises(ValueError, match="digest"):
        digest.parse(text)


def test_digest():
    assert digest.parse(A) == A
    assert digest.encoded(A) == A[7:]


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "a" * 64 + "\n", "../" + "a" * 61, "g" * 64]
)
def test_what_is_no_cache_id(text):
    with pytest.raises(ValueError, match="cache ID"):
        digest.parse_cache_id(text)


def test_cache_ids_are_random():
    first, second = digest.new_cache_id(), digest.new_cache_id()
    assert digest.parse_cache_id(first) != digest.parse_cache_id(second)


def test_hashing_reader_hashes_what_passes():
    reader = digest.HashingReader(Stream(b"abc" * 1000, step=7))
    assert reader.read(4) == b"abca"
    assert reader.digest() == digest.of_bytes(b"abca")
    reader.drain()
    assert (reader.size, reader.digest()) == (3000, digest.of_bytes(b"abc" * 1000))


# -- references ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/debian", "docker.io/user/debian:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/debian", "docker.io/library/debian:latest"),
        ("localhost/debian", "localhost/debian:latest"),
        ("localhost:5000/debian:x", "localhost:5000/debian:x"),
        ("quay.io/a/b/c:v1.2-3_4", "quay.io/a/b/c:v1.2-3_4"),
        ("Example/x", "Example/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("a__b-c--d/f_g.h", "docker.io/a__b-c--d/f_g.h:latest"),
        (f"debian@{A}", f"docker.io/library/debian@{A}"),
        (f"debian:12@{A}", f"docker.io/library/debian:12@{A}"),
        ("x:" + "t" * 128, "docker.io/library/x:" + "t" * 128),
        ("x:_", "docker.io/library/x:_"),
        ("0", "docker.io/library/0:latest"),
    ],
)
def test_references(text, full):
    assert reference.parse(text).full() == full


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Debian",
        "debian:",
        "debian:.x",
        "debian:-x",
        "debian:" + "t" * 129,
        "debian:a b",
        "debian:å",
        "debian@",
        "debian@sha256:abc",
        "debian@" + A.upper(),
        "debian\n",
        "-debian",
        "debian-",
        "a..b",
        "a___b",
        "a._b",
        "a//b",
        "/a",
        "a/",
        "a/../b",
        "./a",
        "ex ample.org/x",
        "exa_mple.org/x",
        "-x.org/x",
        "x.org:port/x",
        "x.org/",
        "x.org/X",
        "https://x.org/y",
        "é",
        "\u0661",
        "a" * 256,
        # distribution/reference: it would look like an image id (CVE-2014-5278)
        "a" * 64,
    ],
)
def test_what_is_no_reference(text):
    with pytest.raises(InvalidReference) as caught:
        reference.parse(text)
    assert str(caught.value).isprintable()


def test_longest_reference():
    assert reference.parse("x.org/" + "a" * 249).path == "a" * 249
    with pytest.raises(InvalidReference):
        reference.parse("x.org/" + "a" * 251)


@pytest.mark.parametrize(
    ("text", "tried"),
    [
        ("debian", ["localhost/debian:latest", "docker.io/library/debian:latest"]),
        ("a/b:c", ["localhost/a/b:c", "docker.io/a/b:c"]),
        ("quay.io/b", ["quay.io/b:latest"]),
        ("localhost/b", ["localhost/b:latest"]),
    ],
)
def test_candidates_are_local_first(text, tried):
    assert reference.candidates(text) == tried


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("docker.io/library/debian:12", ("docker.io/library/debian", "12")),
        ("localhost:5000/x:1", ("localhost:5000/x", "1")),
        ("localhost:5000/x", ("localhost:5000/x", "<none>")),
        (f"docker.io/library/debian@{A}", ("docker.io/library/debian", "<none>")),
    ],
)
def test_repository_and_tag(name, columns):
    assert reference.repository_and_tag(name) == columns


@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_is_refused(text):
    try:
        full = reference.parse(text).full()
    except InvalidReference:
        return
    assert reference.parse(full).full() == full


# -- whiteout markers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "marker", "target"),
    [
        (b"foo", Marker.NONE, b"foo"),
        (b".w", Marker.NONE, b".w"),
        (b".wh", Marker.NONE, b".wh"),
        (b"x.wh.foo", Marker.NONE, b"x.wh.foo"),
        (b".WH.foo", Marker.NONE, b".WH.foo"),
        (b".wh.foo", Marker.WHITEOUT, b"foo"),
        (b".wh..foo", Marker.WHITEOUT, b".foo"),
        (b".wh....", Marker.WHITEOUT, b"..."),
        (b".wh.\xff", Marker.WHITEOUT, b"\xff"),
        (b".wh.wh.foo", Marker.WHITEOUT, b"wh.foo"),
        (b".wh..wh", Marker.WHITEOUT, b".wh"),
        (b".wh..wh..opq", Marker.OPAQUE, b""),
        (b".wh..wh.plnk", Marker.AUFS, b""),
        (b".wh..wh.aufs", Marker.AUFS, b""),
        (b".wh..wh.", Marker.AUFS, b""),
        (b".wh.", Marker.INVALID, b""),
        (b".wh..", Marker.INVALID, b"."),
        (b".wh...", Marker.INVALID, b".."),
    ],
)
def test_tar_markers(name, marker, target):
    assert tar_marker(name) == (marker, target)


# -- names in messages ---------------------------------------------------------------------------------------


@given(st.one_of(st.binary(max_size=60), st.text(max_size=60)))
def test_printable_names_cannot_steer_a_terminal(name):
    text = printable(name)
    assert text.isprintable()
    text.encode()


def test_printable_leaves_letters_alone():
    assert printable("größe 尺寸".encode()) == "größe 尺寸"
    assert printable(b"a\x1b[31m\n\xff") == "a\\x1b[31m\\n\\xff"
