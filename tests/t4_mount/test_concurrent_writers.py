"""Sixteen processes change one writable mount at the same time; then nothing is lost and nothing is left.

Each process has a model of its own area and checks it all the time; what they do together is judged here from
what was acknowledged to each (see support_real/writers.py).  FUSESTORE_SOAK_SECONDS says for how long.
"""

import collections
import json
import os
import subprocess
import sys

import pytest
from support_real import trees, writable, writers

PROCESSES = 16
SECONDS = float(os.environ.get("FUSESTORE_SOAK_SECONDS", "15")) / len(writable.KINDS)


@pytest.fixture
def lower(tmp_path):
    """What is there before: files in every own area, and the shared ones."""
    top = tmp_path / "lower"
    for number in range(PROCESSES):
        (top / f"own/{number}/sub").mkdir(parents=True)
        for at in range(writers.LOWER_FILES):
            path = top / f"own/{number}/{'sub/' * (at % 2)}{at}"
            path.write_bytes(writers.content_of(f"{number} {at}"))
    for name in ("pool", "drop", "race", "common"):
        (top / "shared" / name).mkdir(parents=True)
    for name in range(writers.POOL):
        (top / f"shared/pool/{name}").write_bytes(writers.content_of(f"pool {name}"))
    for name, content in (("log", ""), ("lock", ""), ("counter", "0"), ("latest", "00000000")):
        (top / "shared" / name).write_text(content)
    return top


def all_at_once(top):
    """What every process reports."""
    command = [sys.executable, writers.__file__, top]
    processes = [
        subprocess.Popen(
            [*command, str(number), str(SECONDS)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(PROCESSES)
    ]
    results = [(*process.communicate(), process.returncode) for process in processes]
    assert [(errors, code) for _, errors, code in results if code or errors] == []
    return [json.loads(output) for output, _, _ in results]


def only_once(lists):
    """All that several lists hold, sorted; no two may hold the same."""
    items = sorted(item for several in lists for item in several)
    assert items == sorted(set(items))
    return items


def verdict(top, reports):
    """Compares the tree with what was acknowledged."""
    tree, expected = trees.described(top), {}
    for report in reports:
        expected |= report["tree"]
    found = {
        path: {name: seen[name] for name in expected.get(path, seen)}
        for path, seen in tree.items()
        if path.startswith("own/")
    }
    writable.must_be_equal(expected, found)
    below = collections.defaultdict(set)
    for path in tree:
        if path.startswith("shared/"):
            above, _, name = path.rpartition("/")
            below[above].add(name)
    claimed = only_once(report["claimed"] for report in reports)
    assert below["shared/pool"] == {str(n) for n in range(writers.POOL)} - {str(n) for n in claimed}
    dropped, taken = (only_once(report[what] for report in reports) for what in ("dropped", "taken"))
    assert below["shared/drop"] == set(dropped) - set(taken)
    assert all(
        (top / f"shared/drop/{name}").read_bytes() == writers.content_of(name)
        for name in below["shared/drop"]
    )
    assert below["shared/race"] == set(only_once(report["won"] for report in reports))
    for number, report in enumerate(reports):
        assert all((top / f"shared/race/{name}").read_text() == str(number) for name in report["won"])
    lines = [tuple(map(int, line.split())) for line in (top / "shared/log").read_text().splitlines()]
    for number, report in enumerate(reports):
        assert [at for who, at in lines if who == number] == list(range(report["lines"]))
    assert len(lines) == sum(report["lines"] for report in reports)
    assert int((top / "shared/counter").read_text()) == sum(report["counted"] for report in reports)
    assert below["shared/common"] == set()
    assert below["shared"] == {"pool", "drop", "race", "common", "log", "lock", "counter", "latest"}


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize("kind", writable.KINDS)
def test_nothing_is_lost_by_sixteen_writers(kind, tmp_path, lower):
    with writable.mounted(kind, tmp_path / "mount", lower) as tree:
        reports = all_at_once(tree.top)
        assert min(report["done"] for report in reports) > 2 * SECONDS
        verdict(tree.top, reports)
        tree.remount()
        verdict(tree.top, reports)
    print(sum(report["done"] for report in reports), "operations")
