"""Get and Put are counted, whoever calls them: other threads, other processes, and those that died meanwhile.

Theory: the count is right when the last Put, and no other, takes the mount away, and when whatever happens to
a mount behind our back - its server killed, unmounted by hand, the machine started anew - the next Get makes
it usable and no Put fails.
"""

import os
import shutil
import signal
import subprocess
import threading

import pytest
from support_real.commands import (
    eventually,
    is_a_mountpoint,
    is_dead,
    is_running,
    kill,
    mounted_below,
    unmount_by_hand,
)
from support_real.graphs import graph, graph_of, listing

from fusestore.digest import new_cache_id

__all__ = ["graph"]  # the fixture


@pytest.fixture
def fuse(tmp_path):
    """An empty home of the driver that really mounts."""
    with graph_of("fuse", tmp_path) as made:
        yield made


def file(text="text"):
    return lambda top: (top / "file").write_text(text)


def unmount(graph, top):
    """As a user does who knows nothing of us."""
    server = graph.place.server(top)
    unmount_by_hand(top)
    eventually(lambda: not is_running(server), "the end of the server")


def is_there(graph, top):
    """True while the view at `top` is available."""
    return os.path.exists(top / "file") and (graph.kind == "vfs" or is_a_mountpoint(top))


def test_the_last_put_unmounts(graph):
    """mount-layer.bats: two mounts need two unmounts; one too many does nothing."""
    layer = graph.made(None, file())
    top = graph.get(layer)
    assert graph.get(layer) == top
    assert graph.driver.mounted(layer) == graph.reopened().mounted(layer) == 2
    graph.driver.put(layer)
    assert (graph.driver.mounted(layer), is_there(graph, top)) == (1, True)
    graph.reopened().put(layer)
    assert graph.driver.mounted(layer) == 0
    if graph.kind == "fuse":
        assert mounted_below(graph.place.runroot) == []
    graph.driver.put(layer)
    assert graph.driver.mounted(layer) == 0
    with graph.mounted(layer) as again:
        assert (again, (again / "file").read_text()) == (top, "text")
        assert graph.driver.mounted(layer) == 1


def test_put_of_what_nobody_has_got(graph):
    layer = graph.made()
    graph.driver.put(layer)
    assert graph.driver.mounted(layer) == 0
    graph.driver.put(new_cache_id())
    assert graph.driver.list_layers() == [layer]


def test_other_processes_count(graph):
    """What one process gets, another may put; the paths and counts of both are the same."""
    layer = graph.made(None, file())
    top = graph.get(layer)
    assert graph.elsewhere(f"driver.get({layer!r}).decode()") == str(top)
    assert graph.elsewhere(f"driver.mounted({layer!r})") == "2"
    graph.driver.put(layer)
    assert is_there(graph, top)
    graph.elsewhere(f"driver.put({layer!r})")
    assert graph.driver.mounted(layer) == 0
    assert graph.kind == "vfs" or not is_a_mountpoint(top)


def test_many_at_once(graph):
    """Eight threads get and put one layer: one mount, and the view is there while anybody has it."""
    layer, failures = graph.made(None, file()), []
    begin = threading.Barrier(8)

    def work():
        driver = graph.reopened()
        begin.wait()
        for _ in range(3):
            top = driver.get(layer)
            if not os.path.exists(os.path.join(top, b"file")):
                failures.append(top)
            driver.put(layer)

    threads = [threading.Thread(target=work) for _ in range(8)]
    with graph.mounted(layer) as top:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (failures, graph.driver.mounted(layer), is_there(graph, top)) == ([], 1, True)
        assert len(mounted_below(graph.place.runroot)) == (1 if graph.kind == "fuse" else 0)


def test_a_process_that_died_with_a_mount_leaves_it_usable(fuse):
    """A mount outlives the process that made it, and so does its count."""
    layer = fuse.made(None, file())
    with pytest.raises(subprocess.CalledProcessError) as caught:
        fuse.elsewhere(f"driver.get({layer!r}) and __import__('os').kill(__import__('os').getpid(), 9)")
    assert caught.value.returncode == -signal.SIGKILL
    assert fuse.driver.mounted(layer) == 1
    with fuse.mounted(layer) as top:
        assert (top / "file").read_text() == "text"
        assert fuse.driver.mounted(layer) == 2
    fuse.driver.put(layer)
    assert not is_a_mountpoint(top)


@pytest.mark.parametrize("count", [1, 2])
def test_a_server_that_was_killed_is_replaced(fuse, count):
    """The next Get mounts anew with all that was written; those who got it before still may put."""
    layer = fuse.made()
    for _ in range(count):
        top = fuse.get(layer)
    (top / "file").write_text("text")
    with open(top / "file") as written:
        os.fsync(written.fileno())
    kill(fuse.place.server(top))
    assert is_dead(top)
    assert fuse.get(layer) == top
    assert ((top / "file").read_text(), listing(top)) == ("text", ["file"])
    assert fuse.driver.mounted(layer) == count + 1
    for left in range(count, -1, -1):
        assert is_a_mountpoint(top)
        fuse.driver.put(layer)
        assert fuse.driver.mounted(layer) == left
    assert not is_a_mountpoint(top)


def test_who_looks_in_for_a_moment_does_not_keep_a_mount(fuse):
    """Another process that cleans up, for one."""
    layer = fuse.made(None, file())
    top = fuse.get(layer)
    glance = threading.Timer(0.1, os.close, [os.open(top / "file", os.O_RDONLY)])
    glance.start()
    fuse.driver.put(layer)
    glance.join()
    assert not is_a_mountpoint(top)


def test_put_of_a_mount_of_which_the_server_was_killed(fuse):
    layer = fuse.made(None, file())
    top = fuse.get(layer)
    kill(fuse.place.server(top))
    fuse.driver.put(layer)
    assert (fuse.driver.mounted(layer), mounted_below(fuse.place.runroot)) == (0, [])
    fuse.driver.remove(layer)


def test_changes_and_diff_of_a_layer_of_which_the_server_was_killed(fuse):
    """A dead mount is no obstacle to looking at what it has left."""
    base = fuse.made(None, file("old"))
    layer = fuse.made(base)
    top = fuse.get(layer)
    (top / "new").write_text("text")
    with open(top / "new") as written:
        os.fsync(written.fileno())
    kill(fuse.place.server(top))
    assert fuse.changes(layer, base) == ["A new"]
    assert b"text" in b"".join(fuse.driver.diff(layer, base))
    child = fuse.made(layer)
    with fuse.mounted(child) as shown:
        assert listing(shown) == ["file", "new"]
    fuse.driver.put(layer)


def test_unmounted_behind_our_back(fuse):
    """containers/storage's counter: a path that is found not mounted has no users; theirs are forgotten."""
    layer = fuse.made(None, file())
    top = fuse.get(layer)
    assert fuse.get(layer) == top
    unmount(fuse, top)
    assert fuse.get(layer) == top
    assert (fuse.driver.mounted(layer), (top / "file").read_text()) == (1, "text")
    fuse.driver.put(layer)
    assert (fuse.driver.mounted(layer), is_a_mountpoint(top)) == (0, False)
    fuse.driver.put(layer)


def test_put_of_what_was_unmounted_behind_our_back(fuse):
    layer = fuse.made(None, file())
    unmount(fuse, fuse.get(layer))
    fuse.driver.put(layer)
    assert fuse.driver.mounted(layer) == 0
    fuse.driver.remove(layer)


def test_the_counts_are_gone_with_the_runroot(graph):
    """After a reboot nobody has got anything."""
    layer = graph.made(None, file())
    top = graph.get(layer)
    if graph.kind == "fuse":
        unmount(graph, top)
    shutil.rmtree(graph.place.runroot)
    assert graph.reopened().mounted(layer) == 0
    with graph.mounted(layer) as again:
        assert (again / "file").read_text() == "text"
        assert graph.driver.mounted(layer) == 1


def test_the_count_of_a_removed_layer_is_forgotten(graph):
    """The same id may come again; and what died in between is cleaned up."""
    layer = graph.made(None, file())
    with graph.mounted(layer):
        pass
    graph.driver.remove(layer)
    graph.driver.create_read_write(layer)
    assert graph.driver.mounted(layer) == 0
    with graph.mounted(layer) as top:
        assert listing(top) == []
    counts = graph.place.runroot / "mounts"
    (counts / f"{new_cache_id()}.count").write_text("3")
    graph.reopened().cleanup()
    assert [name for name in os.listdir(counts) if name.endswith(".count")] == [f"{layer}.count"]
