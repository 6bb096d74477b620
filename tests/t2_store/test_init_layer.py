"""`setup_init_layer` as the init function of RW layers on hostile images, on both drivers."""

import stat

import pytest
from support.layers import tree
from support.tars import CHAR, FIFO, Stream, folder, member, symlink, tar

from fusestore.store.initlayer import setup_init_layer

PLAIN = tar(folder("etc"), member("etc/hosts", b"127.0.0.1"), member("etc/passwd", b"root"), folder("dev"))


def hostile(victim):
    """An image in which every name leads elsewhere, or is something odd."""
    return tar(
        symlink("dev", str(victim), uid=5),
        symlink("etc", "../" * 30 + str(victim)),
        symlink("proc", "/"),
        member("sys", kind=FIFO),
        symlink(".dockerenv", str(victim / "file")),
        member(".dockerinit", kind=CHAR, major=1, minor=3),
    )


@pytest.mark.parametrize("image", ["plain", "hostile", "none"])
def test_an_init_layer_has_the_mount_points(layers, tmp_path, image):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("precious")
    archive = {"plain": PLAIN, "hostile": hostile(victim), "none": None}[image]
    base = layers.register(Stream(archive)) if archive else None
    rw = layers.create_rw_layer("c", base.chain_id if base else None, init_func=setup_init_layer)
    with layers.driver.union(rw.record.mount_id) as union:
        found = tree(union)
    kinds = {path: shown.kind for path, shown in found.items()}
    assert {kinds[path] for path in (b"dev/pts", b"dev/shm", b"proc", b"sys", b"etc")} == {stat.S_IFDIR}
    for path in (b".dockerinit", b".dockerenv", b"etc/resolv.conf", b"etc/hosts", b"dev/console"):
        assert (kinds[path], found[path].mode, found[path].content) == (stat.S_IFREG, 0o755, b"")
    assert found[b"etc/mtab"].content == b"/proc/mounts"
    assert (b"etc/passwd" in found) == (image == "plain")
    assert rw.changes() == []
    assert [(path.name, path.read_text()) for path in victim.iterdir()] == [("file", "precious")]
    layers.release_rw_layer(rw)
    if base:
        layers.release(base)
