"""Small tars that cost much: what an entry may take of time, memory and disk, whatever is in it.

Each was a way to keep a processor busy for minutes with a few kilobytes of gzip, or to fill the memory; the
limits of `Limits` do not help where one entry is dear.  What is unpacked is removed again within the bounds.
"""

import os
import time
from contextlib import nullcontext, suppress
from itertools import chain, count

import pytest
from support.arena import Pieces, bounded
from support.hostile_rows import LIMITS, REFUSED, ROWS
from support.layers import stack, unpacked
from support.tars import Stream, folder, hard_link, member, padded, pax, symlink, tar

from fusestore.digest import new_cache_id
from fusestore.driver.api import Limits
from fusestore.driver.apply import unpack
from fusestore.driver.below import Nothing
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import InvalidLayer
from fusestore.files import remove_tree

DEEP = b"d/" * 1900
SLOW = "./" * 2000  # a symlink's target that is long to walk
NAMES = 10_000


def of_symlinks(*then):
    yield folder("d") + symlink("l0", SLOW + "d") + member("d/f")
    for i in range(1, 40):
        yield symlink(f"l{i}", f"{SLOW}l{i - 1}")
    yield from then


def sparse_map(count):
    described = pax([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "80000")])
    return described + member("s", padded(b"%d\n" % count + b"".join(b"%d\n0\n" % i for i in range(count))))


CASES = {
    "whiteouts far down": lambda: (member(DEEP + b".wh.%d" % i) for i in range(500)),
    "opaque directories far down": lambda: (member(b"%d/" % i + DEEP + b".wh..wh..opq") for i in range(500)),
    "directories far down": lambda: (folder(b"%d/" % i + DEEP) for i in range(2)),
    "long names of directories": lambda: (folder((b"%06d" % i + b"d" * 240 + b"/") * 16) for i in range(400)),
    "xattrs of directories": lambda: (
        folder(f"d{i}", extra={f"SCHILY.xattr.user.{j}": b"v" * 65000 for j in range(14)}) for i in range(100)
    ),
    "files below 40 long symlinks": lambda: of_symlinks(*(member(f"l39/{i}/f") for i in range(5000))),
    "links through 40 long symlinks": lambda: of_symlinks(
        *(hard_link(f"h{i}", "l39/f") for i in range(5000))
    ),
    "sparse maps": lambda: (sparse_map(80_000) for _ in range(8)),
    "hard links to one file": lambda: (
        member("f") if i == 0 else hard_link(f"h{i}", "f") for i in range(66_000)
    ),
}
#: Sixty times as many entries as others: ext4 takes 65,000 names of a file.
MANY = {"hard links to one file"}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.timeout(60)
def test_an_entry_costs_little(tmp_path, name):
    directory = tmp_path / "layer"
    directory.mkdir()
    stream, place = Pieces(CASES[name]()), os.fsencode(directory)
    with bounded(seconds=20 if name in MANY else 10), suppress(InvalidLayer):
        unpack(stream, place, Nothing(), Ownership.OVERRIDE, Spelling.DEVICE, Limits())
    with bounded(seconds=5):
        remove_tree(directory)


#: Without end: what has to be remembered until the end of the tar.
KEPT = {
    "directories": lambda i: folder(b"%d" % i),
    "long names of directories": lambda i: folder((b"%d-" % i + b"d" * 240 + b"/") * 8),
    "whiteouts": lambda i: member(b".wh.%d" % i),
    "long names of whiteouts": lambda i: member(b"d/" * 400 + b".wh.%d" % i),
    "opaque directories": lambda i: member(b"%d/.wh..wh..opq" % i),
    "hard links": lambda i: hard_link(b"h%d" % i, "f"),
}


@pytest.mark.parametrize("kind", KEPT)
def test_what_is_kept_in_memory_is_limited(tmp_path, kind):
    directory = tmp_path / "layer"
    directory.mkdir()
    stream, place = Pieces(chain([member("f")], map(KEPT[kind], count()))), os.fsencode(directory)
    with bounded(seconds=20, size=16 << 20), pytest.raises(InvalidLayer):
        unpack(stream, place, Nothing(), Ownership.OVERRIDE, Spelling.DEVICE, Limits(memory=1 << 20))


@pytest.mark.parametrize("row", [row for row, (_, expected) in ROWS.items() if expected == REFUSED])
def test_what_is_refused_is_refused_at_once(tmp_path, row):
    """Within a moment of the block that is wrong, and a bomb within a buffer of its limit."""
    (tmp_path / "layer").mkdir()
    members, _ = ROWS[row]
    stream = Pieces(members() if callable(members) else members)
    place = os.fsencode(tmp_path / "layer")
    with pytest.raises(InvalidLayer):
        unpack(stream, place, Nothing(), Ownership.OVERRIDE, Spelling.DEVICE, LIMITS)
    assert time.process_time() - stream.last < 0.5
    assert stream.given <= LIMITS.size + (2 << 20)


@pytest.mark.parametrize(("limit", "fits"), [(2, False), (3, True), (4, True)])
def test_implied_directories_count_as_entries(tmp_path, limit, fits):
    with nullcontext() if fits else pytest.raises(InvalidLayer, match="2 entries"):
        unpacked(tar(member("a/b/f")), tmp_path / "d", limits=Limits(entries=limit))


@pytest.mark.parametrize(("limit", "fits"), [(14, False), (15, True), (16, True)])
def test_xattrs_count_as_content(tmp_path, limit, fits):
    archive = tar(member("f", b"12345", extra={"SCHILY.xattr.user.a": b"1234567890"}))
    with nullcontext() if fits else pytest.raises(InvalidLayer, match="14 bytes"):
        unpacked(archive, tmp_path / "d", limits=Limits(size=limit))


def test_a_file_with_many_names_below(driver):
    """Each hard link to it takes along all its names, and may be replaced by the next entry."""
    below = stack(driver, tar(member("f", b"x"), *(hard_link(f"l{i}", "f") for i in range(NAMES))))
    archive = tar(*(hard_link("h", "f") + member("h") for _ in range(50)))
    layer = new_cache_id()
    driver.stage(layer, below)
    with bounded(), suppress(InvalidLayer):
        driver.apply_diff(layer, Stream(archive), Limits(entries=4 * NAMES))
    driver.discard(layer)


def test_copies_of_a_lower_file_count(driver):
    """Three kilobytes of tar that write 30 MB."""
    below = stack(driver, tar(member("f", os.urandom(1 << 20))))
    archive = tar(*(hard_link("h", "f") + member("h") for _ in range(30)))
    layer = new_cache_id()
    driver.stage(layer, below)
    with pytest.raises(InvalidLayer, match="unpacks to more than"):
        driver.apply_diff(layer, Stream(archive), Limits(size=10 << 20))
    driver.discard(layer)


def test_holes_do_not_count(driver):
    """Neither those of this layer nor those of a lower file that is copied."""
    hole = pax([("GNU.sparse.size", str(1 << 40)), ("GNU.sparse.map", "0,4")]) + member("s", b"data")
    for archives in (
        [tar(hole, member("f", b"x"))],
        [tar(hole), tar(hard_link("h", "s"), member("f", b"x"))],
    ):
        layer, below = new_cache_id(), stack(driver, *archives[:-1]) if archives[1:] else None
        driver.stage(layer, below)
        assert driver.apply_diff(layer, Stream(archives[-1]), Limits(size=1 << 20)).entries == 2
        driver.discard(layer)
