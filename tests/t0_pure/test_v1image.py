"""The JSON of v1 images is image.go's: its keys, in its order, and nothing that its omitempty leaves out."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import InvalidImage
from fusestore.store.v1image import V1Image, validate_id

ID, PARENT = "ab" * 32, "cd" * 32
FULL = (
    f'{{"id":"{ID}","parent":"{PARENT}","comment":"c","created":"2014-10-01T20:46:08.914288461Z",'
    '"container":"x","container_config":{"Cmd":["sh"]},"docker_version":"1.7.0","author":"a",'
    '"config":{"Env":null},"architecture":"amd64","os":"linux","Size":7}\n'
)
EMPTY = f'{{"id":"{ID}","created":"0001-01-01T00:00:00Z","container_config":{{}},"Size":-1}}\n'


@pytest.mark.parametrize("text", [FULL, EMPTY], ids=["all fields", "no fields"])
def test_json_comes_back_as_it_was(text):
    assert V1Image.from_json(text).to_json() == text
    assert V1Image.from_json(text.encode()).to_json() == text


def test_fields():
    image = V1Image.from_json(FULL)
    assert (image.id, image.parent, image.size, image.os) == (ID, PARENT, 7, "linux")
    assert (image.config, image.container_config) == ({"Env": None}, {"Cmd": ["sh"]})
    assert image.created.endswith(".914288461Z")
    empty = V1Image.from_json(EMPTY)
    assert (empty.parent, empty.config, empty.container_config, empty.size) == ("", None, {}, -1)


def test_an_empty_configuration_is_one():
    assert '"config":{}' in V1Image(id=ID, config={}).to_json()
    assert "config" not in json.loads(EMPTY)


def test_null_is_absent_and_unknown_keys_are_lost():
    text = f'{{"id":"{ID}","parent":null,"config":null,"Size":null,"checksum":"x","throwaway":true}}'
    assert V1Image.from_json(text) == V1Image(id=ID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"id": null}',
        '{"id": 5}',
        '{"id": "x", "Size": 1.5}',
        '{"id": "x", "Size": true}',
        '{"id": "x", "config": []}',
        '{"id": "x", "config": {"x": NaN}}',
        '{"id": "x", "created": "yesterday"}',
        b"\xff\xfe{",
        '{"id": "x", "config": ' + "[" * 100_000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_what_is_no_image_is_refused(text):
    with pytest.raises(InvalidImage) as caught:
        V1Image.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("id_", "good"),
    [
        (ID, True),
        (ID[:63], False),
        (ID + "a", False),
        (ID.upper(), False),
        ("g" * 64, False),
        ("", False),
        (ID + "\n", False),
        ("../" + ID[3:], False),
    ],
)
def test_validate_id(id_, good):
    if good:
        validate_id(id_)
    else:
        with pytest.raises(ValueError, match="is invalid"):
            validate_id(id_)


TEXT = st.text(max_size=9)
VALUE = st.none() | st.booleans() | st.integers() | TEXT
CONFIG = st.dictionaries(TEXT, VALUE | st.lists(VALUE, max_size=2), max_size=2)


@given(TEXT, TEXT, CONFIG, st.none() | CONFIG, st.integers(-1, 2**63 - 1))
def test_any_image_survives_its_json(parent, comment, container_config, config, size):
    image = V1Image(
        id=ID, parent=parent, comment=comment, container_config=container_config, config=config, size=size
    )
    text = image.to_json()
    assert V1Image.from_json(text) == image
    assert text.isascii()
    assert text.count("\n") == 1
