"""Inside ``unshare -Urm`` our mount keeps every promise of POSIX that the kernel's overlayfs keeps there.

The checks of tests/root/test_posix.py, without those that take several users or devices: an unprivileged user
is root of a namespace with one id, and the owner who is not root is that root without capabilities.
"""

import sys

import pytest
from support_real import posix
from support_real.commands import IN_NAMESPACE

pytestmark = pytest.mark.xdist_group("posix")  # one run of the checks is for all tests here

MOUNTS = {
    "kernel": ["mount", "-t", "overlay", "-o", "{options},volatile,userxattr", "o", "{merged}"],
    "ours": [sys.executable, "-m", "fusestore.driver.program", "-o", "{options},volatile", "{merged}"],
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return posix.results(tmp_path_factory.mktemp("posix") / "ground", MOUNTS, before=IN_NAMESPACE)


def test_what_holds_on_the_kernels_overlayfs_holds_here(results):
    worse = posix.worse(results["ours"], results["kernel"])
    assert not worse, worse


def test_the_kernels_overlayfs_passes_nearly_all_checks_on_new_objects(results):
    """From a lower it can neither rename directories without privileges nor keep hard links; we can."""
    assert posix.passed(results["kernel"], "upper") > 0.99
    assert posix.passed(results["ours"]) > 0.99


def test_all_checks_have_run(results):
    assert results["ours"]["checks"] == results["kernel"]["checks"]
    assert len(results["ours"]["checks"]) > 1500
