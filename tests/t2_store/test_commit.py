"""Commit: what is in an RW layer becomes a layer on its parent, read once and no more of it than has changed.

Oracle: what a program sees in the RW layer's mount and then in a mount of the new layer; for costs, the
bytes that the kernel counts for this process (proc(5), /proc/PID/io).
"""

import mmap
import os
import stat
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.images import sha256
from support.rw_layers import put_file, seen, tidied
from support.tars import END, Stream, folder, hard_link, member, read, symlink, tar

from fusestore.driver.fuse import FuseDriver
from fusestore.errors import LayerNotFound
from fusestore.store.layer import is_empty

BASE = tar(
    folder("etc"),
    member("etc/passwd", b"root:x:0:0\n", mode=0o640),
    member("etc/shadow", b"secret", mode=0o600),
    folder("usr"),
    folder("usr/bin"),
    member("usr/bin/tool", b"#!/bin/sh\n", mode=0o755),
    hard_link("usr/bin/link", "usr/bin/tool"),
    symlink("bin", "usr/bin"),
    folder("var"),
    folder("var/old"),
    *(member(f"var/old/{i}", b"%d" % i) for i in range(5)),
    folder("tmp", mode=0o1777),
)


def work(path: Path) -> None:
    """One of each kind of change."""
    put_file(path / "etc/passwd", b"root:x:0:0\nme:x:1:1\n", 0o600)
    (path / "etc/shadow").unlink()
    (path / "usr/bin/tool").write_bytes(b"#!/bin/bash\n")  # through a name of two
    (path / "bin").unlink()
    (path / "bin").mkdir(0o750)
    (path / "bin/sh").symlink_to("../usr/bin/tool")
    os.rename(path / "var/old", path / "var/new")
    (path / "var/old").mkdir()
    (path / "var/old/6").write_bytes(b"6")
    (path / "tmp").rmdir()
    (path / "tmp").write_bytes(b"a file now")
    os.link(path / "tmp", path / "temp")
    (path / "usr").chmod(0o711)
    os.utime(path / "etc", ns=(0, 1_600_000_000_123_456_789))
    with (path / "sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(4_000_000)
        file.write(b"end")


@pytest.fixture
def reopened(reopened, runroot):
    yield from tidied(reopened, runroot)


@pytest.fixture
def base(layers):
    """The chain ID of a small system."""
    return layers.register(Stream(BASE)).chain_id


def exact(layer):
    with layer.tar_stream() as stream:
        return stream.read()


def init(path: Path) -> None:
    (path / "etc/hosts").write_bytes(b"127.0.0.1 localhost")
    (path / "dev").mkdir()
    (path / "dev/console").touch()


@pytest.mark.parametrize("init_func", [None, init], ids=["", "init layer"])
def test_a_commit_holds_what_is_in_the_rw_layer(layers, base, init_func):
    """While it is mounted and programs have files open in it, and whatever the init function did."""
    rw = layers.create_rw_layer("work", base, init_func=init_func)
    path = rw.mount()
    work(path)
    with (path / "open").open("wb", buffering=0) as file:
        file.write(b"not flushed")
        layer = layers.commit(rw)
    expected = seen(path)
    rw.unmount()
    assert layer.parent == base
    assert layer.diff_id == sha256(exact(layer))
    with rw.tar_stream() as stream:
        assert sha256(stream.read()) == layer.diff_id
    assert layer.diff_size == rw.size()
    changed = {os.fsdecode(change.path) for change in rw.changes()}
    assert changed & {"dev", "dev/console", "etc/hosts"} == set()

    again = layers.create_rw_layer("again", layer.chain_id)
    found = seen(again.mount())
    again.unmount()
    if init_func:
        for name in ("dev", "dev/console", "etc/hosts"):
            del expected[name]
        expected["."] = found["."]  # its time is when `dev` was made; only the RW layer has that
    assert found == expected
    assert again.changes() == []


WRITTEN = 8 << 20


def written(path):
    """Into a file that stays open."""
    file = path.open("wb", buffering=0)
    for _ in range(8):
        file.write(b"data" * (1 << 18))
    return file


def mapped(path):
    """Through memory that stays mapped, of a file that is closed."""
    with path.open("w+b") as file:
        file.truncate(WRITTEN)
        memory = mmap.mmap(file.fileno(), WRITTEN)
    memory[:] = b"data" * (WRITTEN // 4)
    return memory


@pytest.mark.parametrize("write", [written, mapped])
def test_what_programs_have_just_written_is_committed(layers, base, write):
    """It may be in the kernel only (writeback cache): nobody has called fsync or close."""
    rw = layers.create_rw_layer("work", base)
    path = rw.mount()
    with ExitStack() as writers:
        for count, name in ((1, b"etc/one"), (2, b"etc/two")):
            file = path / os.fsdecode(name)
            writers.enter_context(closing(write(file)))
            archive = exact(layers.commit(rw))
            (found,) = (found for found, _ in read(archive) if found.name == name)
            assert (found.size, found.mtime_ns) == (WRITTEN, file.stat().st_mtime_ns)
            assert archive.count(b"data" * (WRITTEN // 4)) == count
    rw.unmount()


def renamed(path):
    os.rename(path / "var", path / "moved")


def unreadable(path):
    (path / "etc/passwd").chmod(0)


def unlinked(path):
    """It was made with another name first."""
    os.link(path / "etc/passwd", path / "etc/passwd (deleted)")
    (path / "etc/passwd").unlink()


OPENED = {
    "renamed": ("var/old/1", "moved/old/1", renamed),
    "unreadable": ("etc/passwd", "etc/passwd", unreadable),
    "another name": ("etc/passwd", "etc/passwd (deleted)", unlinked),
    "a hard link of a lower layer": ("usr/bin/tool", "usr/bin/link", os.listdir),
    "a strange name": ("new\n (deleted)", "new\n (deleted)", os.listdir),
}


@pytest.mark.parametrize("case", OPENED)
def test_what_was_written_into_an_open_file_is_committed_wherever_it_is(layers, base, case):
    opened, committed, change = OPENED[case]
    rw = layers.create_rw_layer("work", base)
    path = rw.mount()
    with (path / opened).open("ab", buffering=0) as file:
        change(path)
        for _ in range(4):
            file.write(b"data" * (1 << 18))
        archive = exact(layers.commit(rw))
    assert archive.count(b"data" * (1 << 20)) == 1
    named = {found.name: found for found, _ in read(archive)}[committed.encode()]
    assert named.size >= 4 << 20 or named.link
    rw.unmount()


def test_a_commit_does_not_end_the_rw_layer(layers, base):
    """It goes on, and its next commit has the first one's changes and its own."""
    rw = layers.create_rw_layer("work", base)
    path = rw.mount()
    (path / "one").write_bytes(b"1")
    first = layers.commit(rw)
    (path / "two").write_bytes(b"2")
    (path / "one").unlink()
    second = layers.commit(rw)
    rw.unmount()
    assert {first.parent, second.parent} == {base}
    assert first.chain_id != second.chain_id
    assert b"one\0" in exact(first)
    assert b"one\0" not in exact(second)
    assert b"two\0" in exact(second)
    assert layers.release_rw_layer(rw) == []
    assert len(layers.release(first)) == 1


def test_the_same_changes_are_the_same_layer(layers, reopened, base):
    """Two commits, also by another process later, give two handles on one layer."""
    rw = layers.create_rw_layer("work", base)
    work(rw.mount())
    one = layers.commit(rw)
    rw.unmount()
    two = layers.commit(rw)
    other = reopened()
    three = other.commit(other.get_rw_layer("work"))
    assert one is not two
    assert one.chain_id == two.chain_id == three.chain_id
    assert len(layers.map()) == 2


@pytest.mark.parametrize("init_func", [None, init], ids=["", "init layer"])
def test_a_commit_of_nothing_is_the_empty_layer(layers, base, init_func):
    rw = layers.create_rw_layer("work", base, init_func=init_func)
    rw.mount()
    rw.unmount()
    layer = layers.commit(rw)
    assert is_empty(layer.diff_id)
    assert exact(layer) == END
    assert (layer.diff_size, layer.parent) == (0, base)


def test_the_parent_of_an_rw_layer_is_there_for_its_commit(layers, base):
    """The row keeps it, and the new layer then does."""
    rw = layers.create_rw_layer("work", base)
    rw.apply_diff(Stream(tar(member("x", b"x"))))
    for handle in list(layers._handles):
        layers.release(handle)
    layer = layers.commit(rw)
    assert layers.release_rw_layer(rw) == []
    assert [released.chain_id for released in layers.release(layer)] == [layer.chain_id, base]
    with pytest.raises(LayerNotFound):
        layers.get(base)


def test_what_a_tar_did_to_an_rw_layer_is_committed(layers, base):
    """apply_diff, then commit: as if the tar had been registered."""
    changes = tar(
        member("etc/.wh.passwd"), folder("var/old", mode=0o700), member("var/old/.wh..wh..opq"), member("new")
    )
    rw = layers.create_rw_layer("work", base)
    rw.apply_diff(Stream(changes))
    committed, registered = layers.commit(rw), layers.register(Stream(changes), base)
    found = []
    for number, layer in enumerate((committed, registered)):
        again = layers.create_rw_layer(f"look{number}", layer.chain_id)
        found.append(seen(again.mount()))
        again.unmount()
    assert found[0] == found[1]
    assert "etc/passwd" not in found[0]
    assert stat.S_IMODE(found[0]["var/old"][0]) == 0o700


# -- costs -------------------------------------------------------------------------------------------------


def bytes_read():
    """What this process has read until now, from files or the page cache."""
    with open("/proc/self/io") as counters:
        return int(next(line for line in counters if line.startswith("rchar")).split()[1])


UNCHANGED = 32 << 20
CHANGED = 2 << 20
BIG = tar(
    folder("data"),
    *(member(f"data/{i}", os.urandom(UNCHANGED // 4)) for i in range(4)),
    member("data/changed", b"1" * CHANGED),
)


def costs(call):
    before = bytes_read()
    call()
    return bytes_read() - before


def drain(stream):
    with stream:
        while stream.read(1 << 20):
            pass


@pytest.fixture
def changed(layers):
    """An RW layer with one changed and one deleted file among large ones."""
    rw = layers.create_rw_layer("work", layers.register(Stream(BIG)).chain_id)
    path = rw.mount()
    (path / "data/changed").write_bytes(b"2" * CHANGED)
    (path / "data/0").unlink()
    rw.unmount()
    return rw


def test_only_what_has_changed_is_read_and_once(changed):
    """vfs too, which compares whole trees."""
    assert costs(changed.changes) < 1 << 18
    assert costs(changed.size) < 1 << 18
    assert CHANGED <= costs(lambda: drain(changed.tar_stream())) < CHANGED * 1.2


@pytest.mark.parametrize("reopened", [FuseDriver], ids=["fuse"], indirect=True)  # vfs copies the parent
def test_a_commit_reads_only_what_has_changed_and_once(layers, changed):
    assert CHANGED <= costs(lambda: layers.commit(changed)) < CHANGED * 1.2
