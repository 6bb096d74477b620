"""Images built by buildah and saved by buildah and podman, all without root and without subordinate ids."""

import json
import subprocess

import pytest
from support_real import trees
from support_real.commands import IN_NAMESPACE

# In a user namespace of one id these programs think they are root, and need no newuidmap.
BUILD = r"""
set -eu
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
cd "$1"
export HOME=$PWD TMPDIR=$PWD XDG_RUNTIME_DIR=$PWD STORAGE_DRIVER=vfs
where="--root $PWD/graph --runroot /run/graph"
container=$(buildah $where from scratch)
top=$(buildah $where mount "$container")
mkdir -p "$top/bin" "$top/etc/opt" "$top/gone/sub" "$top/home/me"
cp /bin/busybox "$top/bin/busybox"
chmod 4755 "$top/bin/busybox"
ln "$top/bin/busybox" "$top/bin/sh"
ln "$top/bin/busybox" "$top/bin/ls"
ln -s busybox "$top/bin/cat"
mkfifo "$top/pipe"
head -c 300000 /dev/urandom >"$top/etc/noise"
truncate -s 5M "$top/sparse"
echo secret >"$top/home/me/.file name"
chmod 700 "$top/home/me"
setfattr -n user.note -v "by buildah" "$top/etc/noise"
find "$top" -exec touch -h -d @1600000000 {} +
buildah $where config --env A=b --label who=buildah "$container"
buildah $where commit -q "$container" localhost/one >/dev/null
second=$(buildah $where from localhost/one)
top=$(buildah $where mount "$second")
rm -r "$top/gone" "$top/bin/ls" "$top/pipe"
echo file >"$top/pipe"
echo more >>"$top/etc/noise"
touch -h -d @1600000001 "$top/pipe" "$top/etc/noise" "$top/bin" "$top/etc" "$top"
buildah $where commit -q "$second" localhost/two >/dev/null
buildah $where push -q localhost/two "oci-archive:$PWD/buildah-oci:two"
buildah $where push -q localhost/two "docker-archive:$PWD/buildah-docker:localhost/two:latest"
podman $where save -q --format oci-archive -o podman-oci localhost/two
podman $where save -q --format docker-archive -o podman-docker localhost/two
podman $where save -q --multi-image-archive -o podman-both localhost/one localhost/two
"$2" "$3" "$top" >tree.json
buildah $where umount --all >/dev/null
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A directory with archives of one image of two layers, and ``tree.json``: what its builder has."""
    top = tmp_path_factory.mktemp("built")
    arguments = [str(top), "/usr/bin/python3", trees.__file__]
    result = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", BUILD, "sh", *arguments], stderr=subprocess.PIPE, check=False, timeout=100
    )
    assert result.returncode == 0, result.stderr.decode()
    return top


@pytest.fixture
def tree(built):
    """What was built, but what no image says: the root, and links of the vfs driver across layers."""
    found = json.loads((built / "tree.json").read_bytes())
    for attributes in found.values():
        if "links" in attributes:
            attributes["nlink"] = len(attributes["links"])
    del found[""]
    return found


def mounted_tree(top):
    found = trees.described(top)
    del found[""]
    return found


@pytest.mark.parametrize("archive", ["buildah-oci", "buildah-docker", "podman-oci", "podman-docker"])
def test_what_is_mounted_is_what_was_built(place, built, tree, archive):
    image = place.ok("load", "--quiet", built / archive)
    top = place.mount(image)
    assert trees.differences(mounted_tree(top), tree) == []
    (inspected,) = place.listed("inspect", image)
    assert inspected["Labels"] == {
        "who": "buildah",
        "io.buildah.version": inspected["Labels"]["io.buildah.version"],
    }
    assert "A=b" in inspected["Config"]["Env"]
    assert len(inspected["RootFS"]["Layers"]) == 2


def test_an_archive_of_several_images_gives_all_of_them(place, built):
    names = place.ok("load", "--quiet", built / "podman-both").splitlines()
    assert sorted(names) == ["localhost/one:latest", "localhost/two:latest"]
    assert len(place.listed("layers")) == 2
    assert "ls" in place.ok("ls", "one:/bin").splitlines()
    assert "ls" not in place.ok("ls", "two:/bin").splitlines()
    place.ok("rmi", "two")
    assert (
        place.ok("load", "--quiet", f"docker-archive:{built / 'podman-both'}:localhost/two:latest")
        == names[1]
    )


def test_a_shell_of_the_image_runs_in_a_chroot_on_the_mount(place, built):
    top = place.mount(place.ok("load", "--quiet", built / "podman-oci"))
    script = "cat /pipe && /bin/busybox stat -c %a /bin/sh && /bin/busybox id -u"
    command = ["unshare", "-Ur", "chroot", str(top), "/bin/sh", "-c", script]
    assert subprocess.check_output(command, env={"PATH": "/bin:/usr/sbin:/sbin"}, text=True).split() == [
        "file",
        "4755",
        "0",
    ]


def test_a_copy_of_the_mount_is_what_was_built(place, built, tree, tmp_path):
    top = place.mount(place.ok("load", "--quiet", built / "podman-oci"))
    subprocess.run(["cp", "-a", f"{top}/.", tmp_path / "copy"], check=True)
    copy = mounted_tree(tmp_path / "copy")
    for attributes in (*tree.values(), *copy.values()):
        attributes |= {"uid": 0, "gid": 0}
        attributes["mode"] = attributes["mode"][1:]  # cp drops setuid bits of files that it could not chown
    assert trees.differences(copy, tree) == []
