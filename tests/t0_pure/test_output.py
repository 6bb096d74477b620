"""Sizes and ages as people read them."""

import time

import pytest

from fusestore.cli import output

MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1049, "1.05 kB"),
        (11_300, "11.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (123_456_789, "123 MB"),
        (1_230_000_000, "1.23 GB"),
        (5 * 10**12, "5 TB"),
    ],
)
def test_size(count, text):
    assert output.size(count) == text


@pytest.mark.parametrize("count", [10**15, 10**18, 2**63])
def test_size_has_no_exponent(count):
    assert "e" not in output.size(count)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 seconds ago"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (MINUTE, "1 minute ago"),
        (2 * MINUTE, "2 minutes ago"),
        (HOUR - 1, "59 minutes ago"),
        (HOUR, "1 hour ago"),
        (47 * HOUR, "47 hours ago"),
        (2 * DAY, "2 days ago"),
        (13 * DAY, "13 days ago"),
        (14 * DAY, "2 weeks ago"),
        (59 * DAY, "8 weeks ago"),
        (60 * DAY, "2 months ago"),
        (729 * DAY, "24 months ago"),
        (730 * DAY, "2 years ago"),
        (-HOUR, "0 seconds ago"),
    ],
)
def test_age(seconds, text, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 2_000_000_000.5)
    assert output.age(2_000_000_000 - seconds) == text


@pytest.mark.parametrize("moment", [0, -1, -62135596800])
def test_no_date_is_no_age(moment):
    assert output.age(moment) == "unknown"
