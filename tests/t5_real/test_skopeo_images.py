"""Images as skopeo writes them, in every format and compression: the mount is the image all the same."""

import subprocess

import pytest
from support_real import trees, zoo

POLICY = ["--insecure-policy"]
CONVERSIONS = {
    "oci": ["oci:{}/image:zoo"],
    "oci, zstd": ["--dest-compress-format=zstd", "oci:{}/image:zoo"],
    "oci-archive": ["oci-archive:{}/image:zoo"],
    "oci-archive, zstd": ["--dest-compress-format=zstd", "oci-archive:{}/image:zoo"],
    "docker-archive": ["docker-archive:{}/image:example.com/zoo:7"],
    "converted to Docker's manifest": ["--format=v2s2", "oci:{}/image:zoo"],
}


def skopeo(layout, tmp_path, *arguments, **more):
    """Let skopeo copy the zoo; the destination as `load` takes it."""
    *options, to = (argument.format(tmp_path) for argument in arguments)
    command = ["skopeo", *POLICY, "copy", "--quiet", *options, f"oci:{layout}:zoo", to]
    subprocess.run(command, check=True, env=environment(tmp_path), **more)
    return to


def environment(tmp_path):
    """skopeo's own files stay in the test's directory."""
    path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return {"PATH": path, "HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}


def is_the_zoo(top):
    expected, seen = trees.without_trusted(zoo.EXPECTED), trees.described(top)
    for path in zoo.IMPLIED & seen.keys():
        expected[path]["mtime"] = seen[path]["mtime"]
    return trees.differences(seen, expected)


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_every_format_holds_the_same_tree(place, zoo_layout, tmp_path, conversion):
    image = place.ok("load", "--quiet", skopeo(zoo_layout, tmp_path, *CONVERSIONS[conversion]))
    assert is_the_zoo(place.mount(image)) == []


@pytest.mark.parametrize("conversion", ["oci-archive", "docker-archive"])
def test_archives_are_recognised_by_their_content(place, zoo_layout, tmp_path, conversion):
    skopeo(zoo_layout, tmp_path, *CONVERSIONS[conversion])
    image = place.ok("load", "--quiet", tmp_path / "image")
    assert place.ok("cat", f"{image}:/etc/kept") == "kept"
    place.ok("load", "--quiet", "-i", tmp_path / "image")
    assert len(place.listed("images")) == 1


@pytest.mark.parametrize("program", ["cat", "gzip -1", "zstd -q -1", "xz -0", "bzip2 -1"])
def test_an_archive_comes_through_a_pipe_and_any_compressor(place, zoo_layout, tmp_path, program):
    skopeo(zoo_layout, tmp_path, *CONVERSIONS["docker-archive"])
    with (
        open(tmp_path / "image", "rb") as file,
        subprocess.Popen(program.split(), stdin=file, stdout=subprocess.PIPE) as pipe,
    ):
        assert place.ok("load", "--quiet", stdin=pipe.stdout) == "example.com/zoo:7"
    assert place.ok("cat", "example.com/zoo:7:/etc/kept") == "kept"


def test_skopeo_and_inspect_agree(place, zoo_layout, tmp_path):
    to = skopeo(zoo_layout, tmp_path, *CONVERSIONS["oci"])
    place.ok("load", "--quiet", to)
    (ours,) = place.listed("inspect", "zoo")
    command = [
        "skopeo",
        *POLICY,
        "inspect",
        to,
        "--format",
        "{{.Digest}} {{.Architecture}} {{.Os}} {{len .Layers}}",
    ]
    theirs = subprocess.check_output(command, env=environment(tmp_path), text=True).split()
    assert [ours["Digest"], ours["Architecture"], ours["Os"], str(len(ours["RootFS"]["Layers"]))] == theirs


def test_two_formats_of_one_image_share_its_layers(place, zoo_layout, tmp_path):
    for conversion in ("oci", "docker-archive"):
        (tmp_path / conversion).mkdir()
        place.ok("load", "--quiet", skopeo(zoo_layout, tmp_path / conversion, *CONVERSIONS[conversion]))
    assert len(place.listed("layers")) == 3
