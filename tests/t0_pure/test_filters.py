"""The words of ``--filter`` and ``--max``: which lengths of time, times and labels mean what."""

import time

import click
import pytest

from fusestore.cli.filters import all_of, seconds
from fusestore.store.items import Image, LayerItem


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("0", 0),
        ("0s", 0),
        ("90s", 90),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("2d", 172_800),
        ("1w", 604_800),
        ("", None),
        ("1", None),
        ("h", None),
        ("-1h", None),
        ("1h 30m", None),
        ("1y", None),
        ("1h30", None),
    ],
)
def test_lengths_of_time(text, length):
    assert seconds(text) == length


@pytest.mark.parametrize(
    ("word", "created", "is_older"),
    [
        ("until=1h", -7200, True),
        ("until=1h", -60, False),
        ("until=0", -7200, False),
        ("until=4102444800", 0, True),
        ("until=2100-01-01", 0, True),
        ("until=2000-01-01T00:00:00Z", 0, False),
        ("until=2000-01-01T00:00:00", 0, False),
    ],
)
def test_until(word, created, is_older):
    item = LayerItem(id="x", created=int(time.time()) + created)
    assert all_of([word], lambda item: None)(item) == is_older


@pytest.mark.parametrize(
    ("words", "labels", "fits"),
    [
        ([], {}, True),
        (["label=a"], {"a": "1"}, True),
        (["label=a=1"], {"a": "1"}, True),
        (["label=a=2"], {"a": "1"}, False),
        (["label=a=1=2"], {"a": "1=2"}, True),
        (["label=b"], {"a": "1"}, False),
        (["label=a"], {}, False),
        (["label!=a"], {"a": "1"}, False),
        (["label!=a=2"], {"a": "1"}, True),
        (["label!=a"], {}, True),
        (["label=a"], None, False),  # what is no image
        (["label!=a"], None, False),
        (["label=a", "label=b"], {"a": "1"}, False),
        (["label=a", "label!=b"], {"a": "1"}, True),
    ],
)
def test_labels(words, labels, fits):
    assert all_of(words, lambda item: labels)(Image(id="x")) == fits


@pytest.mark.parametrize(
    "word", ["", "until", "until=", "until=soon", "colour=red", "label", "label=", "label!="]
)
def test_what_is_no_filter(word):
    with pytest.raises(click.UsageError):
        all_of([word], lambda item: None)
