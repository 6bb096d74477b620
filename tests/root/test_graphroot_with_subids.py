"""The store of a podman with subordinate ids, read by its owner, by root and by strangers.

On disk are the outer ids: what belongs to others inside of podman's namespace belongs to strangers outside,
and some of it is closed to the owner of the store.  What the owner may read has to be as podman shows it;
what not, has to be refused, named, and predicted.  Root reads all, and has to see the same owners.

The reader is this process in a fork that has become the user: the user need not be able to run fusestore.
"""

import json
import os
import pickle
import pwd
import secrets
import subprocess
import tempfile
from pathlib import Path

import pytest
from support_real import layouts, steps, tars, trees, unions
from support_real.commands import remove_all
from support_real.engine import IMAGE, Engine

from fusestore.store.graphroot import GraphRoot

USER = "fusestore-subids"
FUSE_OVERLAYFS = "/usr/bin/fuse-overlayfs"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # version 2: CAP_NET_RAW

MORE = [
    tars.file(b"lower/capable", b"x", 0o755, xattrs={b"security.capability": CAPABILITY}),
    tars.file(b"lower/noted", b"x", 0o644, uid=70, xattrs={b"user.note": b"of 70"}),
    tars.file(b"lower/ours", b"x", 0o600, gid=70),
    tars.directory(b"lower/listed", 0o744, uid=70),
    tars.file(b"lower/listed/inside", b"x"),
    tars.file(b"lower/two", b"two names", 0o604, uid=71),
    tars.hard_link(b"lower/names", b"lower/two"),
]


@pytest.fixture(scope="module")
def account():
    """The user with subordinate ids; see test_podman_with_subids.py."""
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        counts = ("-K", "SUB_UID_COUNT=65536", "-K", "SUB_GID_COUNT=65536")
        subprocess.run(["useradd", "--create-home", "--shell", "/bin/bash", *counts, USER], check=True)
        return pwd.getpwnam(USER)


def become(account, function, *arguments):
    """What a function returns, or the OSError that it raises, in a process of another user."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        answer = None
        try:
            os.setgroups([])
            os.setresgid(*[account.pw_gid] * 3)
            os.setresuid(*[account.pw_uid] * 3)
            answer = function(*arguments)
        except Exception as exc:
            answer = exc if isinstance(exc, OSError) else AssertionError(repr(exc))
        finally:
            with os.fdopen(theirs, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(pid, 0)
    if isinstance(answer, Exception):
        raise answer
    return answer


@pytest.fixture(scope="module")
def engine(account):
    engine = Engine(
        FUSE_OVERLAYFS, before=("runuser", "-u", USER, "--"), owner=(account.pw_uid, account.pw_gid)
    )
    try:
        engine.start()
        engine.build([*steps.base(), *MORE], steps.CONTAINERFILE, "--change=ENV OWNERS=yes")
        yield engine
        engine.remove_everything()
    finally:
        engine.destroy()


def mounted(engine, image):
    """The tree that podman mounts; fuse-overlayfs shows what it keeps in xattrs of its own."""
    script = f'/usr/bin/python3 {trees.__file__} "$(podman image mount {image})"'
    tree = json.loads(engine.inside(f"{script}; podman image unmount --all >/dev/null"))
    for seen in tree.values():
        seen["xattrs"].pop("user.containers.override_stat", None)
    return tree


@pytest.fixture(scope="module")
def told(engine):
    """By id of the image: what podman shows."""
    listed = json.loads(engine.podman("images", "--all", "--format", "json"))
    return {image: mounted(engine, image) for image in {entry["Id"] for entry in listed}}


@pytest.fixture(scope="module")
def root(engine):
    return GraphRoot(engine.graph)


def without(tree, *keys):
    return {path: {k: v for k, v in seen.items() if k not in keys} for path, seen in tree.items()}


def differences(found, told):
    """fuse-overlayfs counts the links that it has met so far."""
    return trees.differences(without(found, "nlink"), without(told, "nlink"))


def is_closed(seen):
    """True for what the owner of the store, 0:0 inside of it, may not read or look into."""
    shift = 6 if seen["uid"] == 0 else 3 if seen["gid"] == 0 else 0
    needed = {"file": 4, "directory": 5}.get(seen["type"], 0)
    return int(seen["mode"], 8) >> shift & needed != needed


def test_root_sees_what_podman_shows(root, told):
    assert {image.id for image in root.images()} == told.keys()
    for image in root.images():
        found, closed = unions.tree(root, image.top_layer)
        assert differences(found, told[image.id]) == []
        assert closed == set()
        assert root.unreadable(image.top_layer) == ()
    owners = {(seen["uid"], seen["gid"]) for seen in found.values()}
    assert {(16, 0), (1000, 1000), (0, 70)} <= owners
    assert found["lower/capable"]["xattrs"] == {"security.capability": CAPABILITY.hex()}


def test_the_owner_sees_all_that_the_modes_let_them(account, root, told):
    for image in root.images():
        found, closed = become(account, unions.tree, root, image.top_layer)
        tree = dict(told[image.id])
        by_mode = {path for path, seen in found.items() if is_closed(seen)}
        assert closed == by_mode | {"lower/closed"}, "which a step has opened, but not the directory below it"
        for path in list(tree):
            if any(path.startswith(f"{above}/") for above in closed):
                del tree[path]
            elif path in closed:
                tree[path] = {key: value for key, value in tree[path].items() if key in found[path]}
        assert differences(found, tree) == []
    assert {"lower/closed", "lower/keep", "lower/listed"} <= closed
    assert {"lower/noted", "lower/ours", "lower/two"} <= found.keys() - closed


def test_what_is_closed_to_the_owner_is_predicted(account, root, told):
    for image in root.images():
        found, closed = become(account, unions.tree, root, image.top_layer)
        owners = {one.shown: one.stored for one in become(account, root.unreadable, image.top_layer)}
        assert {found[path]["uid"] for path in closed} <= owners.keys()
        assert owners.keys() >= {seen["uid"] for seen in told[image.id].values()} - {0}
        first = first_subordinate()
        assert owners == {uid: first + uid - 1 for uid in owners}
    assert f"uid 70 ({first + 69} here)" in map(str, become(account, root.unreadable, image.top_layer))


def first_subordinate():
    lines = Path("/etc/subuid").read_text().splitlines()
    return min(int(line.split(":")[1]) for line in lines if line.startswith(f"{USER}:"))


def links(root, layer):
    """The names of the file lower/two, which takes a look through all of a layer."""
    with unions.below.opened(root.specs(layer), None, None) as union:
        path, entry = union.walk(b"lower/two")
        return union.links(path, entry)


def test_closed_directories_do_not_hide_links(account, root):
    (image,) = (image for image in root.images() if f"{IMAGE}:latest" in image.names)
    assert sorted(become(account, links, root, image.top_layer)) == [b"lower/names", b"lower/two"]


def test_tars_come_back_whole_or_not_at_all(account, root):
    known = [layer for layer in root.layers() if layer.uncompressed_digest]
    assert len(known) == 4
    for layer in known:
        tar = unions.tar(root, layer.id)
        assert layouts.sha256(tar) == layer.uncompressed_digest
        if become(account, root.unreadable, layer.id) == ():
            assert become(account, unions.tar, root, layer.id) == tar
        else:
            with pytest.raises(PermissionError) as caught:
                become(account, unions.tar, root, layer.id)
            assert caught.value.filename.startswith((b"lower/", b"made/"))


def test_a_stranger_is_refused(user, root, engine):
    """The home of the store's owner is closed, as it should be."""
    (image, *_) = root.images()
    for call in (GraphRoot, lambda path: unions.tree(root, image.top_layer)):
        with pytest.raises(PermissionError):
            become(user, call, engine.graph)


MAPS = ("--uidmap=0:3:1000", "--uidmap=1000:5000:1000", "--gidmap=0:3:2000")
WITHOUT_CAPABILITIES = [entry for entry in [*steps.base(), *MORE] if entry.xattrs.keys() <= {b"user.note"}]


def test_a_layer_with_a_map_of_its_own_shows_the_same_owners(engine):
    """For a container whose map is in pieces podman makes a chowned copy of the top layer.

    With vfs: fuse-overlayfs cannot chown a FIFO, and sometimes forgets a file.  podman leaves the root out,
    makes second links anew, and takes the id that becomes root's for root (there is no file of it here).
    """
    graph = engine.top / "home/vfs"
    where = ("--root", graph, "--runroot", engine.top / "run/vfs", "--storage-driver", "vfs")
    (engine.work / "plain.tar").write_bytes(tars.tar(WITHOUT_CAPABILITIES))
    engine.podman(*where, "import", "plain.tar", "localhost/plain")
    root = GraphRoot(graph)
    (image,) = root.images()
    engine.podman(*where, "create", *MAPS, "localhost/plain", "sh")
    records = json.loads((graph / "vfs-layers/layers.json").read_bytes())
    (copied,) = (record["id"] for record in records if "uidmap" in record and "diff-digest" in record)
    found, told = (without(unions.tree(root, layer)[0], "mtime") for layer in (copied, image.top_layer))
    assert found.pop("").keys() == told.pop("").keys()
    assert differences(found, told) == []
    (spec,) = root.specs(copied)
    on_disk = {path.lstat().st_uid for path in Path(spec.path).rglob("*")}
    assert first_subordinate() + 2 in on_disk, "0 there is 3 in podman's namespace"
    assert root.image(image.id).size == image.size


MASKED = """
FROM localhost/base
COPY base.tar /made/
"""


def test_owners_that_podman_keeps_in_xattrs_are_shown_to_all_alike(account):
    """With `force_mask` every file belongs to the owner of the store, who can read all.

    podman then cannot unpack a FIFO, and loses special bits and owners of symlinks.  It keeps capabilities as
    they are, which fusestore takes for the disk's own.
    """
    ids = (account.pw_uid, account.pw_gid)
    engine = Engine(FUSE_OVERLAYFS, 'force_mask = "shared"', before=("runuser", "-u", USER, "--"), owner=ids)
    try:
        engine.start()
        engine.build([entry for entry in WITHOUT_CAPABILITIES if entry.kind != tars.FIFO], MASKED)
        root = GraphRoot(engine.graph)
        for image in root.images():
            told = mounted(engine, image.id)
            found, closed = become(account, unions.tree, root, image.top_layer)
            assert closed == set()
            assert differences(found, told) == []
            assert become(account, root.unreadable, image.top_layer) == ()
        assert found["lower/closed/secret"]["uid"] == 16
        engine.remove_everything()
    finally:
        engine.destroy()


# -- stores of root's ---------------------------------------------------------------------------------

UNDER = [
    tars.file(b"%s/old" % name, b"hidden") for name in (b"opaque", b"deep/opaque", b"\xff", b"open", b"gone")
]
OVER = [
    tars.directory(b"opaque", 0o700, uid=70),
    *(tars.opaque(name) for name in (b"opaque", b"./deep//opaque", b"\xff")),
    *(tars.file(b"%s/new" % name, b"seen") for name in (b"deep/opaque", b"\xff", b"open")),
    tars.whiteout(b"gone"),
]


class System:
    """A graphroot of root's, made by podman, and the tree that podman mounts."""

    def __init__(self, top, driver):
        self.top, self.graph = top, top / "graph"
        where = ("--root", self.graph, "--runroot", top / "run", "--storage-driver", driver)
        self._where = [*map(str, where)]
        layouts.oci(top / "oci", [tars.tar([*steps.base(), *MORE, *UNDER]), tars.tar(OVER)], "system")
        image = self.podman("pull", "--quiet", f"oci:{top}/oci:system")
        self.told = trees.described(self.podman("image", "mount", image))
        self.podman("image", "unmount", "--all")

    def podman(self, *command):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.top), "TMPDIR": str(self.top)}
        done = subprocess.run(
            ["podman", *self._where, *command], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def publish(self):
        """Let everybody read all but what the layers' own modes close."""
        parts = ("", "*", "*-layers/*", "*-images/**/*", "vfs/*", "overlay/*")
        found = [path for part in parts for path in ([self.graph] if not part else self.graph.glob(part))]
        for path in (self.top, *found):
            path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


@pytest.fixture(scope="module", params=["vfs", "overlay"])
def system(request):
    # podman makes a name of the path; one with tempfile's underscores may be none.
    directory = Path(tempfile.gettempdir(), f"fusestore-root-{secrets.token_hex(8)}")
    directory.mkdir(mode=0o700)
    yield System(directory, request.param)
    remove_all(directory)


def test_a_store_of_roots_has_the_owners_on_disk(account, system):
    root = GraphRoot(system.graph)
    (image,) = root.images()
    found, closed = unions.tree(root, image.top_layer)
    assert trees.differences(*map(without_merged, (found, system.told))) == []
    assert (closed, root.unreadable(image.top_layer)) == (set(), ())
    with pytest.raises(PermissionError):
        become(account, root.images)


def without_merged(tree):
    """Nobody tells the links of a file in the same way; the kernel knows no other name of it."""
    return without(tree, "nlink", "links")


def test_a_store_of_roots_that_others_may_read_shows_them_the_same(account, system):
    """Also where only root sees which directories are opaque.  The store stays open to all."""
    system.publish()
    image, found, closed, predicted = become(account, read, system.graph)
    told = without_merged(system.told)
    for path in list(told):
        if any(path.startswith(f"{above}/") for above in closed):
            del told[path]
        elif path in closed:
            told[path] = {key: value for key, value in told[path].items() if key in found[path]}
    assert trees.differences(without_merged(found), told) == []
    assert {"opaque", "lower/closed", "lower/keep", "lower/ours"} <= closed
    assert {"deep/opaque/new", "\udcff/new", "open/new", "open/old"} <= found.keys()
    assert predicted == {uid for layer in GraphRoot(system.graph).layers() for uid in layer.uids}
    assert image.size > 4_000_000


def read(path):
    root = GraphRoot(path)
    (image,) = root.images()
    predicted = {one.shown for one in root.unreadable(image.top_layer)}
    return image, *unions.tree(root, image.top_layer), predicted
