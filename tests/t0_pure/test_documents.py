"""Manifests, indexes and configurations from strangers: what is accepted, and all else refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.architecture import architecture
from fusestore.errors import InvalidImage
from fusestore.transport import document
from fusestore.transport.document import DOCKER_LIST, DOCKER_MANIFEST, INDEX, OCI_MANIFEST, SIZE_LIMIT

A = "sha256:" + "a" * 64
MINE = architecture()


def parsed(data):
    return document.parse(data, "here")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"nonsense",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{} {}",
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "b": 2, "a": 3}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b"{'a': 1}",
        b'{"a": 1,}',
        b"\xff\xfe{}",
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a": ' + b"9" * 100_000 + b"}",
    ],
    ids=range(19),
)
def test_what_is_no_document(data):
    with pytest.raises(InvalidImage, match=r"^here: ") as caught:
        parsed(data)
    assert str(caught.value).isprintable()


def test_documents_are_limited_before_they_are_parsed():
    def of_size(size):
        return b'{"a": "' + b"x" * (size - 9) + b'"}'

    assert len(of_size(SIZE_LIMIT)) == SIZE_LIMIT
    assert parsed(of_size(SIZE_LIMIT))
    with pytest.raises(InvalidImage, match="limit"):
        parsed(of_size(SIZE_LIMIT + 1))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_refused(data):
    try:
        assert isinstance(parsed(data), dict)
    except InvalidImage:
        pass


# -- descriptors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, (1 << 53) - 1])
def test_descriptors(size):
    found = document.descriptor(
        {"digest": A, "size": size, "mediaType": "x/y", "annotations": {"k": "v"}}, "here"
    )
    assert (found.digest, found.size, found.media_type, found.annotations) == (A, size, "x/y", {"k": "v"})


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "text",
        {},
        {"digest": A},
        {"size": 1},
        {"digest": A, "size": -1},
        {"digest": A, "size": 1.0},
        {"digest": A, "size": True},
        {"digest": A, "size": "1"},
        {"digest": A, "size": None},
        {"digest": A, "size": 1 << 53},
        {"digest": None, "size": 1},
        {"digest": [A], "size": 1},
        {"digest": A[:-1], "size": 1},
        {"digest": "sha256:../../../etc/passwd", "size": 1},
        {"digest": "sha512:" + "a" * 128, "size": 1},
        {"digest": A.upper(), "size": 1},
    ],
)
def test_what_is_no_descriptor(value):
    with pytest.raises(InvalidImage):
        document.descriptor(value, "here")


# -- manifest or index ---------------------------------------------------------------------------------------

MANIFEST = {"schemaVersion": 2, "config": {}, "layers": []}
LIST = {"schemaVersion": 2, "manifests": []}


@pytest.mark.parametrize(
    ("value", "index"),
    [
        (MANIFEST, False),
        (LIST, True),
        (MANIFEST | {"mediaType": OCI_MANIFEST}, False),
        (MANIFEST | {"mediaType": DOCKER_MANIFEST}, False),
        (LIST | {"mediaType": INDEX}, True),
        (LIST | {"mediaType": DOCKER_LIST}, True),
    ],
)
def test_manifest_or_index(value, index):
    assert document.is_index(value, "here") is index


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"schemaVersion": 2},
        {"schemaVersion": 1, "fsLayers": []},
        {"schemaVersion": "2", "config": {}, "layers": []},
        {"config": {}, "layers": []},
        # CVE-2021-41190: a document that is both, or says to be the other
        MANIFEST | LIST,
        LIST | {"config": {}},
        LIST | {"layers": []},
        MANIFEST | {"mediaType": INDEX},
        LIST | {"mediaType": OCI_MANIFEST},
        LIST | {"mediaType": "application/json"},
        MANIFEST | {"mediaType": 7},
        MANIFEST | {"mediaType": [OCI_MANIFEST]},
    ],
)
def test_manifest_confusion(value):
    with pytest.raises(InvalidImage):
        document.is_index(value, "here")


@pytest.mark.parametrize(
    "value",
    [{}, {"layers": None}, {"layers": {}}, {"layers": [1]}, {"layers": []}, {"layers": [], "config": []}],
)
def test_manifests_without_layers_or_configuration(value):
    with pytest.raises(InvalidImage):
        document.layers(value, "here")


@pytest.mark.parametrize(
    "value", [{"manifests": None}, {"manifests": {}}, {"manifests": ["x"]}, {"manifests": [{}]}]
)
def test_indexes_without_manifests(value):
    with pytest.raises(InvalidImage):
        document.manifests(value, "here")


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"rootfs": None},
        {"rootfs": []},
        {"rootfs": {}},
        {"rootfs": {"diff_ids": None}},
        {"rootfs": {"diff_ids": {}}},
        {"rootfs": {"diff_ids": [1]}},
        {"rootfs": {"diff_ids": ["sha256:abc"]}},
        {"rootfs": {"diff_ids": [A, None]}},
    ],
)
def test_configurations_without_diff_ids(value):
    with pytest.raises(InvalidImage):
        document.diff_ids(value, "here")


def test_diff_ids():
    assert document.diff_ids({"rootfs": {"type": "layers", "diff_ids": [A, A]}}, "here") == [A, A]


# -- platforms -----------------------------------------------------------------------------------------------


def entries(*platforms):
    """One entry for each; its size says which it is."""
    listed = [{"digest": A, "size": i} | ({"platform": p} if p else {}) for i, p in enumerate(platforms)]
    return document.manifests({"manifests": listed}, "here")


def linux(architecture=MINE[0], **more):
    return {"os": "linux", "architecture": architecture, **more}


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        ([None], 0),
        ([linux()], 0),
        ([linux("other"), linux()], 1),
        ([linux() | {"os": "windows"}, linux()], 1),
        ([linux(variant="v99"), linux()], 1),
        ([linux(variant="v99"), linux("other")], 0),
        ([linux(), linux()], 0),
        ([None, linux()], 1),
        ([linux(variant=MINE[1]), linux(variant="v99")], 0),
    ],
)
def test_the_entry_for_this_platform(platforms, chosen):
    assert document.for_this_platform(entries(*platforms), "here").size == chosen


@pytest.mark.parametrize(
    "platforms",
    [
        [],
        [linux("other")],
        [None, None],
        [{"os": "windows", "architecture": MINE[0]}, linux("other")],
        [{"os": 1, "architecture": [2]}],
    ],
)
def test_no_entry_for_this_platform(platforms):
    with pytest.raises(InvalidImage, match="no image for linux"):
        document.for_this_platform(entries(*platforms), "here")


def test_what_is_offered_is_said():
    listed = [linux("armistice", variant="v2"), {"os": "windows", "architecture": "other"}]
    with pytest.raises(InvalidImage, match="linux/armistice/v2, windows/other"):
        document.for_this_platform(entries(*listed), "here")


def test_a_document_survives_a_round_trip():
    value = {"schemaVersion": 2, "x": [1, 2.5, None, "\u20ac"], "y": {"z": True}}
    assert parsed(json.dumps(value).encode()) == value
