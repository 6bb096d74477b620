"""For every tier: no skips where forbidden, a store that is checked after each test, hypothesis profiles."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.fsck import problems

from fusestore.store.storage import Store

_NO_SKIP = os.environ.get("FUSESTORE_NO_SKIP") == "1"

# The same examples every time in a run of the suite; HYPOTHESIS_PROFILE=deep looks for new ones.
_COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("default", max_examples=50, derandomize=True, **_COMMON)
settings.register_profile("deep", max_examples=1000, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def _forbid(report):
    if _NO_SKIP and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, which FUSESTORE_NO_SKIP=1 forbids: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return _forbid((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return _forbid((yield))


@pytest.fixture
def store_root(tmp_path: Path) -> Path:
    """Where a store of this test's own is or will be."""
    return tmp_path / "store"


@pytest.fixture
def runroot(tmp_path: Path) -> Path:
    """Where its mounts are recorded."""
    return tmp_path / "run"


@pytest.fixture
def store(store_root: Path, runroot: Path):
    """An open, empty store. After the test nothing of it is mounted, half-made, unnamed or missing."""
    with Store(str(store_root), str(runroot)) as store:
        yield store
        for mounted in store.mounts():
            store.unmount_image(mounted.mountpoint, force=True)
    assert problems(store_root) == []
