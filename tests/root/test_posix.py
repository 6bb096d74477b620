"""Our mount keeps every promise of POSIX that the kernel's overlayfs keeps, for root and for all other users.

Root mounts both on one lower layer, and thousands of checks (support_real/posix) run on each: on objects
of the upper, of the lower, and copied up before, by root and by other users.  The kernel is given the options
with which it does best: with them it renames lower directories and keeps hard links together.
"""

import sys

import pytest
from support_real import posix

MOUNTS = {
    "kernel": [
        "mount",
        "-t",
        "overlay",
        "-o",
        "{options},volatile,index=on,redirect_dir=on",
        "o",
        "{merged}",
    ],
    "ours": [sys.executable, "-m", "fusestore.driver.program", "-o", "{options},volatile", "{merged}"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return posix.results(tmp_path_factory.mktemp("posix") / "ground", MOUNTS)


def test_what_holds_on_the_kernels_overlayfs_holds_here(results):
    worse = posix.worse(results["ours"], results["kernel"])
    assert not worse, worse


def test_the_kernels_overlayfs_passes_nearly_all_checks(results):
    """Were it otherwise, the checks would be wrong."""
    assert posix.passed(results["kernel"]) > 0.97
    assert posix.passed(results["kernel"], "upper") > 0.99


def test_all_checks_have_run(results):
    assert results["ours"]["checks"] == results["kernel"]["checks"]
    assert len(results["ours"]["checks"]) > 3500
