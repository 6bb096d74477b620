"""Hostile tars where inodes hold the truth: root may make anything, so the kernel refuses other things.

The same rules as in tests/t1_core/test_fuzz.py: success or InvalidLayer, and nothing else touched.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import wild
from support.arena import Arena
from support.tars import CHAR, DEVICE, FIFO, folder, hard_link, member, symlink, tar

from fusestore.driver.ownership import Ownership

CORPUS = Path(__file__).parents[1] / "corpus"


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    arena = Arena(tmp_path_factory.mktemp("arena"), Ownership.REAL)
    yield arena
    arena.close()


@settings(max_examples=200)
@given(st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_wild_archives(arena, random, change, on_lower):
    archive = wild.archive(random)
    arena.ingest(wild.mutated(random, archive) if change else archive, on_lower=on_lower)


def test_the_corpus(arena):
    for path in CORPUS.glob("*.tar"):
        for on_lower in (False, True):
            arena.ingest(path.read_bytes(), on_lower=on_lower)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", [FIFO, CHAR, DEVICE], ids=["fifo", "char", "block"])
def test_a_special_file_is_never_opened(arena, kind):
    """D2: a fifo blocks who opens it, a device may act."""
    special = member("x", kind=kind, major=1, minor=9)
    for after in (
        member("x", b"file"),
        folder("x"),
        symlink("x", "y"),
        hard_link("y", "x", mode=0o4777),
        special,
        symlink("y", "x") + member("y", b"file"),
    ):
        assert arena.ingest(tar(special, after), on_lower=False) is not None
    for through in (member("x/y"), hard_link("y", "x/y"), symlink("y", "x") + member("y/z")):
        assert arena.ingest(tar(special, through), on_lower=False) is None


def with_xattr(name):
    return {"extra": {f"SCHILY.xattr.{name}": b"garbage"}}


@pytest.mark.parametrize(
    "entry",
    [
        symlink("x", "y", **with_xattr("user.a")),
        member("x", kind=FIFO, **with_xattr("user.a")),
        member("x", kind=CHAR, major=1, minor=3, **with_xattr("user.a")),
        member("x", **with_xattr("system.unknown")),
        member("x", **with_xattr("system.posix_acl_access")),
        member("x", **with_xattr("security.capability")),
        folder("x", **with_xattr("system.posix_acl_default")),
    ],
)
def test_xattrs_that_the_kernel_does_not_take(arena, entry):
    assert arena.ingest(tar(entry), on_lower=False) is None
