"""What was registered comes out of the store again, byte for byte, or an error says that it does not.

Every dialect and end of an archive (support/archives.py), layers of anything in any order, and each way that
a layer's files or its record can be something else than they were: the reader hears of it by the last read.
"""

import gzip
import json
import os
import posixpath
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import archives, upstream_vectors
from support.disassembler import disassembled
from support.fsck import problems
from support.images import sha256
from support.random_layers import layers as random_layers
from support.tars import Stream, folder, hard_link, member, symlink, tar

from fusestore.errors import CorruptStore, NotReproducible

TESTS = Path(__file__).parents[1]
BASE = tar(folder("usr/lib"), symlink("lib", "usr/lib"), member("foo", b"lower"), member("lib/f", b"abc"))


def exported(layer):
    with layer.tar_stream() as stream:
        return stream.read()


def comes_back(layers, archive, parent=None):
    layer = layers.register(Stream(archive), parent)
    assert layer.reproducible
    assert exported(layer) == archive
    assert layer.diff_id == sha256(archive)
    return layer


@pytest.fixture
def directory(layers, store_root):
    """Where the driver keeps a layer."""
    return lambda layer: store_root / layers.driver_name() / layer.record.cache_id


def record_of(directory):
    return directory / "tar-split.json.gz"


# -- everything comes back -----------------------------------------------------------------------------------


def test_layers_of_every_dialect_come_back(layers):
    handles = {name: comes_back(layers, archive) for name, archive in archives.LAYERS.items()}
    for name, layer in handles.items():
        assert exported(layer) == archives.LAYERS[name]
        layers.release(layer)
    assert layers.map() == {}


@pytest.mark.parametrize("name", upstream_vectors.SUMS)
def test_tar_stream_of_upstreams_archives(layers, name):
    comes_back(layers, upstream_vectors.vector(name))


def test_layers_by_gnu_tar_come_back(layers):
    for options in archives.BY_GNU_TAR:
        comes_back(layers, archives.by_gnu_tar(*options))


@given(st.lists(random_layers(), min_size=1, max_size=9))
@settings(
    max_examples=settings().max_examples // 2, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_chains_of_any_layers_come_back(layers, reopened, chain):
    """Also from a store that was opened later."""
    handles = []
    for archive in chain:
        handles.append(comes_back(layers, archive, handles[-1].chain_id if handles else None))
    later = reopened()
    for archive, handle in zip(chain, handles, strict=True):
        layer = later.get(handle.chain_id)
        assert exported(layer) == archive
        later.release(layer)
    for handle in handles:
        layers.release(handle)
    assert layers.map() == {}


ABOVE = {
    "foo beside .wh.foo": [member(".wh.foo"), member("foo", b"upper")],
    "below what is a symlink in the lower": [member("lib/f", b"here"), member("lib/g", b"abc")],
    "through a symlink that hides a directory": [
        symlink("usr", "elsewhere"),
        member("usr/lib/f", b"abc"),
        member("elsewhere/g", b"g"),
    ],
    "a hard link to a file of the lower": [hard_link("h", "foo"), member("n", b"abc")],
    "a whiteout with content": [member("usr/.wh.lib", b"junk"), member("usr/.wh..wh..opq", b"junk")],
    "files in their place that differ": [member("foo", b"other"), member("usr/lib/f", b"other")],
}


@pytest.mark.parametrize("name", ABOVE)
def test_layers_above_another_come_back(layers, name):
    base = layers.register(Stream(BASE))
    comes_back(layers, tar(*ABOVE[name]), base.chain_id)
    assert exported(base) == BASE


@pytest.mark.parametrize("step", [1, 10240])
def test_a_layer_read_in_small_pieces(layers, step):
    archive = archives.LAYERS["sizes"]
    layer = layers.register(Stream(archive, 777))
    with layer.tar_stream() as stream:
        assert b"".join(iter(lambda: stream.read(step), b"")) == archive


def test_what_the_store_keeps_are_records_that_upstream_reads(layers, directory):
    """It refuses to put together what names a path twice."""
    for name, archive in archives.LAYERS.items():
        layer = layers.register(Stream(archive))
        record = gzip.decompress(record_of(directory(layer)).read_bytes())
        entries = [json.loads(line) for line in record.splitlines()]
        paths = [entry.get("name") or entry.get("name_raw") for entry in entries if entry["type"] == 1]
        clean = [posixpath.normpath(path) for path in paths if path]
        assert len(set(clean)) == len(clean), name
        assert name in archives.NOT_UPSTREAM or record == disassembled(archive), name


# -- what cannot come back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", archives.TWICE)
def test_a_path_twice_registers_but_is_not_reproducible(layers, name):
    """Upstream refuses to register it: "duplicates of file paths not supported"."""
    layer = layers.register(Stream(archives.TWICE[name]))
    assert layer.reproducible is False
    with pytest.raises(NotReproducible, match="path twice"):
        layer.tar_stream()
    again = layers.get(layer.chain_id)
    assert again.reproducible is False


# -- damage --------------------------------------------------------------------------------------------------


def swapped(one, other):
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)


def test_tar_stream_verification(layers, directory):
    """Upstream's: the records of two layers that differ only in a mode change places."""
    tars = [tar(folder("d", mode), member("d/f", b"abc")) for mode in (0o755, 0o700)]
    handles = [layers.register(Stream(archive)) for archive in tars]
    swapped(*(record_of(directory(layer)) for layer in handles))
    for layer in handles:
        with pytest.raises(CorruptStore, match="could not verify layer data"):
            exported(layer)
    swapped(*(record_of(directory(layer)) for layer in handles))
    assert [exported(layer) for layer in handles] == tars


def test_a_changed_content_is_found(layers, directory):
    layer = layers.register(Stream(BASE))
    path = directory(layer) / "diff/foo"
    for wrong in (b"LOWER", b"", b"lower\0"):
        path.write_bytes(wrong)
        with pytest.raises(CorruptStore, match="file integrity checksum failed for foo"):
            exported(layer)
    path.write_bytes(b"lower")
    assert exported(layer) == BASE


def test_a_missing_content_is_found(layers, directory):
    layer = layers.register(Stream(BASE))
    path = directory(layer) / "diff/usr/lib/f"
    for wrong in (lambda: None, path.mkdir, lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path)):
        path.unlink()
        wrong()
        with pytest.raises(CorruptStore, match="lib/f is missing"):
            exported(layer)
        path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(b"abc")
    assert exported(layer) == BASE


def test_nothing_outside_the_layer_is_read_when_a_symlink_was_put_in(layers, directory, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/f").write_bytes(b"abc")
    layer = layers.register(Stream(BASE))
    usr = directory(layer) / "diff/usr"
    usr.rename(tmp_path / "usr")
    usr.symlink_to(tmp_path)
    with pytest.raises(CorruptStore, match="lib/f is missing"):
        exported(layer)
    usr.unlink()
    (tmp_path / "usr").rename(usr)
    assert exported(layer) == BASE


def test_a_record_that_is_cut_missing_or_empty_is_found(layers, directory):
    layer = layers.register(Stream(BASE))
    record = record_of(directory(layer))
    whole = record.read_bytes()
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        record.write_bytes(whole[:size])
        with pytest.raises(CorruptStore):
            exported(layer)
    record.unlink()
    with pytest.raises(CorruptStore, match="missing"):
        exported(layer)
    record.write_bytes(whole)
    assert exported(layer) == BASE


def test_a_record_that_does_not_fit_is_an_error(layers, directory, store_root):
    """A write may take less than it is given, and nothing comes after the last one."""
    archive = tar(member("f", b"abc")) + archives.NOISE * 2
    layer = layers.register(Stream(archive))
    size = record_of(directory(layer)).stat().st_size
    layers.release(layer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for missing in (1, 100_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                layers.register(Stream(archive))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert problems(store_root) == []
    comes_back(layers, archive)


def test_tar_stream_stability(layers, directory):
    """Upstream's: a file put into the driver's directory is none of the layer's, nor of the one above."""
    above = tar(member("foo", b"upper"))
    base = layers.register(Stream(BASE))
    (directory(base) / "diff/usr/extra").write_bytes(b"extra")
    top = layers.register(Stream(above), base.chain_id)
    again = layers.get(base.chain_id)
    layers.release(base)
    assert (exported(again), exported(top)) == (BASE, above)


# -- at other times and places -------------------------------------------------------------------------------


def test_a_layer_comes_back_after_release_and_in_another_store_object(layers, reopened):
    first = layers.register(Stream(BASE))
    again = layers.get(first.chain_id)
    layers.release(first)
    assert exported(again) == BASE
    elsewhere = reopened()
    other = elsewhere.get(first.chain_id)
    assert exported(other) == BASE
    assert layers.release(again) == []
    assert len(elsewhere.release(other)) == 1
    assert layers.map() == {}
    comes_back(layers, BASE)


def test_a_stream_keeps_its_layer(layers):
    archive = tar(member("big", archives.NOISE * 4), member("last", b"x"))
    layer = layers.register(Stream(archive))
    with layer.tar_stream() as stream:
        head = stream.read(1000)
        assert layers.release(layer) == []
        assert head + stream.read() == archive
    assert len(layers.release(layers.get(layer.chain_id))) == 1


def test_a_stream_that_is_given_up_leaves_nothing_open(layers):
    layer = layers.register(Stream(tar(member("big", archives.NOISE * 4))))
    before = os.listdir("/proc/self/fd")
    for size in (0, 1, 1 << 21):
        stream = layer.tar_stream()
        stream.read(size)
        stream.close()
        stream.close()
    assert os.listdir("/proc/self/fd") == before
    assert len(layers.release(layer)) == 1


HEAD = """
import sys
from pathlib import Path
from support.tars import Stream
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.vfs import VfsDriver
from fusestore.store.database import Database
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata
name, root, runroot, argument = sys.argv[1:]
driver = {"fuse": FuseDriver, "vfs": VfsDriver}[name](Path(root), Path(runroot))
layers = LayerStore(LayerMetadata(Database(Path(root, "store.db"))), driver)
"""
EXPORT = """
with layers.get(argument).tar_stream() as stream:
    while data := stream.read(10240):
        sys.stdout.buffer.write(data)
"""
REGISTER = """
class Half(Stream):
    def read(self, size, /):
        data = super().read(50000)
        if self.position > 1000000:
            print("half", flush=True)
            sys.stdin.read()
        return data
layers.register(Half(Path(argument).read_bytes()))
"""


@pytest.fixture
def other_process(layers, store_root, runroot):
    """Starts Python with the same layer store and one argument."""

    def start(code, argument):
        command = [sys.executable, "-c", HEAD + code, layers.driver_name(), store_root, runroot, argument]
        path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes)

    return start


def test_a_layer_is_read_from_another_process(layers, other_process):
    archive = tar(folder("d"), member("d/f", archives.NOISE), symlink("s", "d"), member("s/g", b"abc"))
    layer = layers.register(Stream(archive))
    child = other_process(EXPORT, layer.chain_id)
    assert child.communicate(timeout=30)[0] == archive
    assert child.returncode == 0


def test_a_layer_comes_back_when_its_first_register_was_killed(layers, other_process, tmp_path):
    archive = tar(member("big", archives.NOISE * 2), *(member(f"{i}", b"%d" % i) for i in range(50)))
    (tmp_path / "layer.tar").write_bytes(archive)
    with other_process(REGISTER, tmp_path / "layer.tar") as child:
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
    assert layers.map() == {}
    comes_back(layers, archive)
    layers.cleanup()
