"""Debian's podman and buildah, run by a user without subordinate ids, with mounts made by fusestore-overlay.

One podman with one image in four layers (support_real/steps.py) serves all tests; each deletes its
containers, and after the last nothing may be left.  Whatever reads the image must see the same tree: podman's
export, a process in a container, a mount of the image, fusestore itself, and fuse-overlayfs as the mount
program of the same store.

FUSESTORE_OVERLAY_PROGRAM in the environment names another program, to see what the tests say of that one.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support_real import steps
from support_real.commands import eventually
from support_real.engine import HIDE_CGROUPS, IMAGE, NEVER_PULL, Engine, members

PROGRAM = os.environ.get("FUSESTORE_OVERLAY_PROGRAM") or str(
    Path(sys.executable).with_name("fusestore-overlay")
)
FUSE_OVERLAYFS = "/usr/bin/fuse-overlayfs"
RUNS = int(os.environ.get("FUSESTORE_TEST_RUNS", "30"))

pytestmark = pytest.mark.xdist_group("podman")  # they share what takes seconds to build


@pytest.fixture(scope="module")
def engine():
    """podman with the image."""
    engine = Engine(PROGRAM, 'ignore_chown_errors = "true"')
    try:
        engine.start()
        engine.load_steps(owners=False)
        yield engine
        engine.remove_everything()
    finally:
        engine.destroy()


@pytest.fixture(autouse=True)
def _no_containers(engine):
    """Each test leaves no container, no process and no mount, and the mount program that it has found."""
    yield
    engine.use(PROGRAM)
    engine.clean()


@pytest.fixture
def shared(engine):
    """An empty directory, /shared in containers that run with the option `--volume={shared}:/shared`."""
    return Path(tempfile.mkdtemp(dir=engine.work))


def test_podman_asks_the_program_for_its_version(engine):
    options = json.loads(engine.podman("info", "--format=json"))["store"]["graphOptions"]
    said = subprocess.check_output([PROGRAM, "--version"], text=True)
    assert options["overlay.mount_program"] == {
        "Executable": PROGRAM,
        "Package": "Unknown",
        "Version": said.strip(),
    }


def test_the_image_runs(engine):
    assert engine.podman("run", "--rm", IMAGE).split() == ["over", "0"]


def test_an_export_is_what_the_steps_have_made(engine):
    assert steps.wrong(engine.tree(IMAGE), owners=False) == ""


def test_a_container_sees_what_the_steps_have_made(engine):
    seen = engine.ok("podman", "run", "--rm", IMAGE, "busybox", "tar", "-c", "-C", "/", "lower", "made")
    assert steps.wrong(seen, owners=False) == ""


def test_a_mount_of_the_image_shows_what_the_steps_have_made(engine):
    said = engine.inside(
        f"""
        cd "$(podman image mount {IMAGE})"
        tar -cf "$OLDPWD/mount.tar" lower made
        touch lower/keep 2>&1 || true
        cd -
        podman image unmount {IMAGE}
        """
    )
    assert "Read-only file system" in said
    assert steps.wrong((engine.work / "mount.tar").read_bytes(), owners=False) == ""


def test_the_saved_image_is_whole(engine, place):
    archive = engine.work / "saved"
    engine.podman("save", "--quiet", "--format=oci-archive", f"--output={archive}", IMAGE)
    inspected = json.loads(engine.ok("skopeo", "inspect", f"oci-archive:{archive}"))
    assert inspected["Labels"]["steps"] == "3"
    assert len(inspected["Layers"]) == 4
    top = place.mount(place.ok("load", "--quiet", archive))
    # podman keeps the tar of the first layer, with all its owners.
    tar = ["tar", "-c", "-C", top, "--owner=:0", "--group=:0", "lower", "made"]
    assert steps.wrong(subprocess.check_output(tar), owners=False) == ""


def test_diff_names_what_the_last_step_has_changed(engine):
    assert set(engine.podman("diff", IMAGE).splitlines()) == steps.DIFF


CHANGE = """
rm -r lower/pair lower/keep
mkdir lower/pair
echo new >lower/pair/new
mv lower/trunk lower/stem
chmod 0600 made/new
echo more >>lower/plain
ln lower/big lower/same
ln -s new made/symlink
mv made/sticky made/pipe /tmp
touch /tmp/file && rm /tmp/file
echo changed
"""
CHANGES = {
    "A /lower/pair/new",
    "A /lower/same",
    "A /lower/stem",
    "A /lower/stem/fallen",
    "A /lower/stem/linked",
    "A /lower/stem/root",
    "A /lower/stem/sub",
    "A /lower/stem/sub/1",
    "A /made/symlink",
    "A /tmp/pipe",
    "A /tmp/sticky",
    "C /lower",
    "C /lower/pair",
    "C /lower/plain",
    "C /made",
    "C /made/new",
    "C /tmp",
    "D /lower/keep",
    "D /lower/pair/one",
    "D /lower/pair/two",
    "D /lower/trunk",
    "D /made/pipe",
    "D /made/sticky",
}
PODMANS = {"C /etc", "C /run"}


def test_commit_keeps_what_a_container_has_changed(engine):
    engine.podman("run", "--name=changed", IMAGE, "sh", "-euc", CHANGE)
    assert set(engine.podman("diff", "changed").splitlines()) - PODMANS == CHANGES
    before = steps.listed(engine.exported("changed"))
    assert "lower/stem/sub/1 file 0644 0:0 new 1" in before
    engine.podman("commit", "--quiet", "changed", "localhost/committed")
    after = steps.listed(engine.tree("localhost/committed"))
    engine.podman("rmi", "localhost/committed")
    assert steps.differences(before, after) == "- lower/big = lower/same"  # one of them was as before


WRITER = r"""
mkdir -p /data && cd /data
n=0
if [ -e log ]; then
    while read -r line; do n=$((n + 1)); [ "$line" = "$n" ] || exit 3; done <log
    last=$(cat current)
    [ "$last" = "$n" ] || [ "$last" = $((n - 1)) ] || exit 4
fi
echo $n >/shared/found
while :; do
    n=$((n + 1))
    echo $n >>log
    echo $n >new && mv new current
    echo $n >/shared/new && mv /shared/new /shared/progress
done
"""


def test_a_container_killed_while_it_writes_goes_on_where_it_was(engine, shared):
    options = ["--detach", "--name=writer", f"--volume={shared}:/shared"]
    engine.podman("run", *options, IMAGE, "sh", "-euc", WRITER)
    progress(shared)
    for _ in range(2):
        engine.podman("kill", "--signal=KILL", "writer")
        assert engine.podman("wait", "writer") == "137"
        engine.wait_until_idle()
        reached = number(shared / "progress")
        (shared / "found").unlink()
        engine.podman("start", "writer")
        eventually((shared / "found").exists, "the second run")
        progress(shared)
        assert reached <= number(shared / "found") <= reached + 1


def progress(shared):
    """Wait until the container has got on."""
    before = number(shared / "progress")
    eventually(lambda: number(shared / "progress") > before + 50, "progress")


def number(path):
    return int(path.read_text() or 0) if path.exists() else 0


PAIR = r"""
touch /shared/$ME
until [ -e /shared/$YOU ]; do :; done
for i in $(seq 30); do
    echo $ME $i >>/lower/plain
    rm /lower/keep && echo $ME >/lower/keep
    mkdir /made/$i && echo $i >/made/$i/$ME && mv /made/$i /made/dir$i
    rm -r /made/dir$((i - 1)) 2>/dev/null || true
done
"""


def test_two_containers_of_one_image_do_not_see_each_other(engine, shared):
    names = ("one", "two")
    before = engine.tree(IMAGE)
    for me, you in (names, reversed(names)):
        options = [f"--env=ME={me}", f"--env=YOU={you}", f"--name={me}", f"--volume={shared}:/shared"]
        engine.podman("run", "--detach", *options, IMAGE, "sh", "-euc", PAIR)
    for me in names:
        assert engine.podman("wait", me) == "0"
        changes = set(engine.podman("diff", me).splitlines()) - PODMANS - {"A /shared"}
        assert changes == {
            *("C /lower", "C /lower/keep", "C /lower/plain"),
            *("C /made", "A /made/dir30", f"A /made/dir30/{me}"),
        }
        engine.podman("cp", f"{me}:/lower/plain", f"plain-{me}")
        said = "".join(f"{me} {i}\n" for i in range(1, 31))
        assert (engine.work / f"plain-{me}").read_text() == f"plain\n{said}"
    assert steps.differences(steps.listed(before), steps.listed(engine.tree(IMAGE))) == ""


def test_files_are_copied_into_and_out_of_a_container(engine):
    engine.podman("create", "--name=copied", IMAGE)
    (engine.work / "tree/sub").mkdir(parents=True)
    (engine.work / "tree/sub/file").write_text("copied")
    engine.podman("cp", "tree", "copied:/lower/dead")
    engine.podman("cp", "copied:/lower", "lower")
    assert (engine.work / "lower/dead/tree/sub/file").read_text() == "copied"
    assert (engine.work / "lower/big").read_bytes() == steps.CHANGED


def test_a_container_that_is_deleted_at_its_end_may_sync(engine):
    """Its mount is "volatile"."""
    script = """
    echo one >/made/one; sync
    dd if=/lower/big of=/made/copy conv=fsync bs=1M 2>/dev/null
    cmp /lower/big /made/copy && cat /made/one
    """
    assert engine.shell(IMAGE, script) == "one"


@pytest.mark.parametrize(
    ("option", "can"),
    [
        ("--volume={work}/volume:/over:O", "write"),
        (f"--mount=type=image,source={IMAGE},destination=/over,rw=true", "write"),
        (f"--mount=type=image,source={IMAGE},destination=/over", "read"),
    ],
)
def test_volumes_that_are_overlays_leave_what_is_below_them_alone(engine, option, can):
    """Those of images are mounts on mounts."""
    lower = engine.work / "volume/lower"
    lower.mkdir(parents=True, exist_ok=True)
    (lower / "plain").write_text("plain\n")
    script = """
    cd /over/lower
    cat plain
    echo more >>plain && mv plain moved && cat moved && mkdir -p a/b && rm -r a && echo wrote || echo refused
    """
    said = engine.shell(IMAGE, script, option.format(work=engine.work)).split()
    assert said == (["plain", "plain", "more", "wrote"] if can == "write" else ["plain", "refused"])
    assert [path.name for path in lower.iterdir()] == ["plain"]
    assert (lower / "plain").read_text() == "plain\n"
    assert engine.shell(IMAGE, "cat /lower/plain") == "plain"


def test_many_containers_leave_nothing_behind(engine):
    """FUSESTORE_TEST_RUNS of them, two at a time; 100 took 38 s of CPU time."""
    stored = sorted(engine.stored())
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda n: engine.shell(IMAGE, f"echo {n} >/made/n; cat /made/n"), range(RUNS)))
    assert said == [str(n) for n in range(RUNS)]
    engine.wait_until_idle()
    assert sorted(engine.stored()) == stored


def test_what_is_deleted_is_gone_from_the_disk(engine):
    stored = sorted(engine.stored())
    engine.podman("run", "--name=doomed", IMAGE, "sh", "-c", "rm -r /lower; mkdir -m 0 /lower /lower/closed")
    engine.podman("commit", "--quiet", "doomed", "localhost/doomed")
    assert len(engine.stored()) > len(stored)
    engine.podman("rm", "doomed")
    engine.podman("rmi", "localhost/doomed")
    assert sorted(engine.stored()) == stored


def test_the_death_of_a_mounts_server_costs_one_container(engine, shared):
    for name in ("other", "victim"):
        options = ["--detach", f"--name={name}", f"--volume={shared}:/shared"]
        script = (
            f"echo 1 >/data; touch /shared/{name}; while [ -e /shared/{name} ]; do sleep 0.1; done; cat data"
        )
        known = set(engine.servers())
        engine.podman("run", *options, IMAGE, "sh", "-euc", script)
        eventually((shared / name).exists, name)
    (server,) = set(engine.servers()) - known
    os.kill(server, signal.SIGKILL)
    (shared / "victim").unlink()
    assert engine.podman("wait", "victim") != "0"
    assert engine.podman("exec", "other", "busybox", "cat", "/data") == "1"
    (shared / "other").unlink()
    assert engine.podman("wait", "other") == "0"
    engine.wait_until_idle()
    engine.podman("cp", "victim:/data", "data")
    assert (engine.work / "data").read_text() == "1\n"


CHANGE_AGAIN = """
rm lower/pair/new
mkdir lower/keep made/sticky
mv lower/stem lower/root
mv made/new made/dead/new
echo still >>lower/plain
rm lower/same
chmod 4711 lower/touched
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [(PROGRAM, FUSE_OVERLAYFS), (FUSE_OVERLAYFS, PROGRAM)],
    ids=["ours first", "ours second"],
)
def test_a_store_may_change_between_fuse_overlayfs_and_ours(engine, first, second):
    """Images, and containers with what was written to them."""
    engine.use(first)
    name = IMAGE
    if first != PROGRAM:
        name = "localhost/mixed"
        engine.podman("build", NEVER_PULL, "--no-cache", f"--tag={name}", ".")
    script = f"if [ -e /changed ]; then {CHANGE_AGAIN}\nelse touch /changed\n{CHANGE}\nfi"
    image = steps.listed(engine.tree(name))
    engine.podman("run", "--name=mixed", name, "sh", "-euc", script)
    once = steps.listed(engine.exported("mixed"))
    engine.use(second)
    assert steps.differences(image, steps.listed(engine.tree(name))) == ""
    assert steps.differences(once, steps.listed(engine.exported("mixed"))) == ""
    engine.podman("start", "--attach", "mixed")
    twice = steps.listed(engine.exported("mixed"))
    assert "made/dead/new file 0600 0:0 new over" in twice
    engine.use(first)
    assert steps.differences(twice, steps.listed(engine.exported("mixed"))) == ""


BUILDAH = f"""
{HIDE_CGROUPS}
readlink /proc/self/ns/user
container=$(buildah from --pull-never localhost/base)
buildah config --cmd sh "$container"
for step in 1 2 3; do buildah run "$container" sh -eu /steps/$step; done
top=$(buildah mount "$container")
tar -cf built.tar -C "$top" lower made
rm -r "$top/made"
echo by hand >"$top/lower/by-hand"
buildah umount "$container" >/dev/null
buildah commit --quiet "$container" localhost/by-buildah >/dev/null
"""


def test_buildah_builds_the_same_in_one_layer_and_by_hand(engine):
    namespace = engine.ok("buildah", "unshare", "sh", "-euc", BUILDAH).decode().strip()
    eventually(lambda: not members(namespace), "the end of buildah's namespace")
    built = (engine.work / "built.tar").read_bytes()
    assert steps.wrong(built, owners=False, more=steps.WITHIN_ONE_LAYER) == ""
    committed = steps.listed(engine.tree("localhost/by-buildah"))
    assert "lower/by-hand file 0644 0:0 new by hand" in committed
    assert not [line for line in committed if line.startswith("made")]
    engine.inside("buildah rm --all && podman rmi localhost/by-buildah")
