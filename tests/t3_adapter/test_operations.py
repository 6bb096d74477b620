"""The pyfuse3 adapter called as pyfuse3 would call it, over a real union, with no mount and no kernel.

What needs a kernel on the other side (readdir's token, filling the page cache) is in t4.
"""

import errno
import gc
import logging
import os
import stat

import pyfuse3
import pytest
from pyfuse3 import FUSEError
from support.layers import stack
from support_real import tars, zoo

from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import View
from fusestore.driver.operations import Operations

ROOT = pyfuse3.ROOT_INODE
OPEN_FDS = "/proc/self/fd"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    return FuseDriver(directory / "root", directory / "run")


@pytest.fixture(scope="module")
def zoo_layer(driver):
    return stack(driver, *(tars.tar(layer) for layer in zoo.LAYERS))


@pytest.fixture
def events():
    """What the adapter has called back."""
    return []


@pytest.fixture
def union(driver, zoo_layer):
    with driver.union(zoo_layer) as union:
        yield union


class Calls:
    """In the place of the request loop, which needs a kernel: what it was asked for."""

    def __init__(self, events):
        self._events = events

    def cache_listing(self):
        self._events.append("cache listing")

    def negotiate(self, flags):
        assert flags


@pytest.fixture
def operations(union, events):
    return Operations(union, View(), Calls(events), lambda: events.append("started"))


async def find(operations, path):
    """The reply to the lookup of the last name of `path`."""
    reply = await operations.getattr(ROOT, None)
    for name in path.split(b"/"):
        reply = await operations.lookup(reply.st_ino, name, None)
    return reply


def number_of(caught):
    return caught.value.errno


# -- lookup and attributes ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in zoo.EXPECTED if path])
async def test_lookup_and_getattr_give_every_attribute(operations, path):
    expected = zoo.EXPECTED[path]
    found = await find(operations, os.fsencode(path))
    assert found.st_ino > ROOT
    for reply in (found, await operations.getattr(found.st_ino, None)):
        assert f"{stat.S_IMODE(reply.st_mode):04o}" == expected["mode"]
        assert (reply.st_uid, reply.st_gid) == (expected["uid"], expected["gid"])
        assert reply.st_mtime_ns == expected["mtime"] or path in zoo.IMPLIED
        assert reply.st_size == expected["size"] if "size" in expected else True
        assert reply.st_nlink == expected.get("nlink", reply.st_nlink)
        if "device" in expected:
            assert [os.major(reply.st_rdev), os.minor(reply.st_rdev)] == expected["device"]


async def test_all_names_of_a_file_are_one_inode(operations):
    numbers = {(await find(operations, name)).st_ino for name in (b"bin/sh", b"bin/ash", b"bin/busybox")}
    assert len(numbers) == 1


@pytest.mark.parametrize(
    "path", [b"absent", b"etc/gone", b"bin/.wh.ls", b"opaque/.wh..wh..opq", b"opaque/sub"]
)
async def test_an_absent_name_is_an_entry_that_the_kernel_may_keep(operations, path):
    reply = await find(operations, path)
    assert reply.st_ino == 0
    assert reply.entry_timeout > 10**6


async def test_what_is_found_may_be_kept_for_ever(operations):
    reply = await find(operations, b"etc/kept")
    assert min(reply.entry_timeout, reply.attr_timeout) > 10**6


async def test_a_name_that_is_too_long_is_refused(operations):
    with pytest.raises(FUSEError) as caught:
        await operations.lookup(ROOT, b"x" * 256, None)
    assert number_of(caught) == errno.ENAMETOOLONG


async def test_forgotten_nodes_are_dropped(operations, union):
    first = await find(operations, b"home/user/notes")
    again = await find(operations, b"home/user/notes")
    assert first.st_ino == again.st_ino
    await operations.forget([(first.st_ino, 1)])
    assert (await operations.getattr(first.st_ino, None)).st_size == 7
    await operations.forget([(first.st_ino, 1), (12345, 1)])
    with pytest.raises(KeyError):
        union.node(first.st_ino)
    assert (await find(operations, b"home/user/notes")).st_ino == first.st_ino


async def test_the_root_is_never_forgotten(operations):
    await operations.forget([(ROOT, 1000)])
    assert stat.S_ISDIR((await operations.getattr(ROOT, None)).st_mode)


# -- content ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in zoo.EXPECTED if zoo.EXPECTED[path]["type"] == "symlink"])
async def test_readlink_gives_the_target(operations, path):
    found = await find(operations, os.fsencode(path))
    assert os.fsdecode(await operations.readlink(found.st_ino, None)) == zoo.EXPECTED[path]["target"]


async def test_a_file_is_read_in_pieces(operations):
    found = await find(operations, b"blocks")  # too large to be put into the page cache
    handle = await operations.open(found.st_ino, os.O_RDONLY, None)
    content = bytes(range(256)) * 4096
    assert await operations.read(handle.fh, 0, 10) == content[:10]
    assert await operations.read(handle.fh, 1_000_000, 4096) == content[1_000_000:1_004_096]
    assert await operations.read(handle.fh, len(content) - 3, 100) == content[-3:]
    assert await operations.read(handle.fh, len(content), 100) == b""
    await operations.release(handle.fh)


async def test_release_closes_what_open_opened(operations):
    found = await find(operations, b"blocks")
    before = len(os.listdir(OPEN_FDS))
    handles = [await operations.open(found.st_ino, os.O_RDONLY, None) for _ in range(5)]
    assert len(os.listdir(OPEN_FDS)) == before + 5
    for handle in handles:
        await operations.release(handle.fh)
    assert len(os.listdir(OPEN_FDS)) == before


async def test_a_file_is_open_even_if_the_page_cache_cannot_be_filled(operations):
    """Filling it is an optimisation; here it fails because there is no session."""
    found = await find(operations, b"etc/kept")
    before = len(os.listdir(OPEN_FDS))
    handle = await operations.open(found.st_ino, os.O_RDONLY, None)
    assert await operations.read(handle.fh, 0, 100) == b"kept"
    await operations.release(handle.fh)
    assert len(os.listdir(OPEN_FDS)) == before


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
async def test_open_for_writing_is_refused(operations, flags):
    found = await find(operations, b"blocks")
    with pytest.raises(FUSEError) as caught:
        await operations.open(found.st_ino, flags, None)
    assert number_of(caught) == errno.EROFS


async def test_flush_tells_the_kernel_not_to_ask_again(operations):
    with pytest.raises(FUSEError) as caught:
        await operations.flush(0)
    assert number_of(caught) == errno.ENOSYS


# -- xattrs, statfs, access ---------------------------------------------------------------------------


async def test_xattrs_are_listed_and_read(operations):
    found = await find(operations, b"caps")
    assert await operations.listxattr(found.st_ino, None) == [b"security.capability"]
    assert await operations.getxattr(found.st_ino, b"security.capability", None) == zoo.CAPABILITY


@pytest.mark.parametrize(
    "name",
    [
        b"user.absent",
        b"user.containers.override_stat",
        b"user.containers.override_security.capability",
        b"user.overlay.opaque",
        b"trusted.overlay.opaque",
        b"user.fuseoverlayfs.opaque",
        b"security.selinux",
    ],
)
async def test_xattrs_that_are_absent_or_the_stores_own_are_no_data(operations, name):
    for path in (b"caps", b"opaque"):
        found = await find(operations, path)
        with pytest.raises(FUSEError) as caught:
            await operations.getxattr(found.st_ino, name, None)
        assert number_of(caught) == errno.ENODATA


async def test_the_stores_own_xattrs_are_not_listed(operations):
    for path, expected in zoo.EXPECTED.items():
        if path and expected["type"] in ("file", "directory"):
            found = await find(operations, os.fsencode(path))
            names = {os.fsdecode(name) for name in await operations.listxattr(found.st_ino, None)}
            assert names == {name for name in expected["xattrs"] if not name.startswith("trusted.")}


async def test_statfs_is_the_backing_filesystems(operations, driver):
    backing, reply = os.statvfs(driver.diff_directory(driver.list_layers()[0])), await operations.statfs(None)
    assert (reply.f_bsize, reply.f_blocks, reply.f_namemax) == (
        backing.f_bsize,
        backing.f_blocks,
        backing.f_namemax,
    )


@pytest.mark.parametrize(
    ("path", "mode", "allowed"),
    [
        (b"bin/su", os.R_OK | os.X_OK, True),
        (b"bin/closed", os.R_OK | os.W_OK, True),  # as for root
        (b"bin/closed", os.X_OK, False),
        (b"etc/kept", os.R_OK | os.X_OK, False),
        (b"locked", os.R_OK | os.X_OK, True),
    ],
)
async def test_access_is_what_root_may_do(operations, path, mode, allowed):
    found = await find(operations, path)
    assert await operations.access(found.st_ino, mode, None) is allowed


# -- what goes wrong ----------------------------------------------------------------------------------


CALLS = [
    lambda operations: operations.getattr(99, None),
    lambda operations: operations.lookup(99, b"x", None),
    lambda operations: operations.readlink(99, None),
    lambda operations: operations.open(99, os.O_RDONLY, None),
    lambda operations: operations.opendir(99, None),
    lambda operations: operations.readdir(99, 0, None),
    lambda operations: operations.releasedir(99),
    lambda operations: operations.getxattr(99, b"user.x", None),
    lambda operations: operations.listxattr(99, None),
    lambda operations: operations.access(99, os.R_OK, None),
    lambda operations: operations.read("not a handle", 0, 1),
    lambda operations: operations.release("not a handle"),
]


@pytest.mark.parametrize("call", CALLS)
async def test_a_bug_becomes_an_io_error_and_a_line_in_the_log(operations, caplog, call):
    with caplog.at_level(logging.ERROR), pytest.raises(FUSEError) as caught:
        await call(operations)
    assert number_of(caught) == errno.EIO
    (record,) = caplog.records
    assert record.exc_info
    assert (await find(operations, b"etc/kept")).st_size == 4


async def test_a_closed_handle_is_its_own_error(operations):
    with pytest.raises(FUSEError) as caught:
        await operations.read(100_000, 0, 1)
    assert number_of(caught) == errno.EBADF


# -- calling back -------------------------------------------------------------------------------------


def test_the_handshake_is_reported(operations, events):
    operations.init()
    assert events == ["started"]


async def test_a_listing_may_be_cached_once_it_is_open(operations, events):
    handle = await operations.opendir(ROOT, None)
    assert events == ["cache listing"]
    await operations.releasedir(handle)
    with pytest.raises(FUSEError):
        await operations.opendir(99, None)
    assert events == ["cache listing"]


async def test_nothing_is_left_of_ten_thousand_lookups(operations, union):
    names = [os.fsencode(path) for path in zoo.EXPECTED if path and "/" not in path]
    replies = [
        (await operations.lookup(ROOT, name, None)).st_ino
        for _ in range(10_000 // len(names))
        for name in names
    ]
    gc.collect()
    await operations.forget([(number, 1) for number in replies])
    for number in set(replies):
        with pytest.raises(KeyError):
            union.node(number)
