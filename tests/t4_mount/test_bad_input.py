"""Whatever is wrong with what the user gives: one line that says so, exit 125, and the store is as it was."""

import fcntl
import gzip
import json
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from support_real import layouts, tars
from support_real.commands import FUSESTORE, eventually, namespace

GOOD = tars.tar([tars.file(b"good", b"good" * 1000), tars.directory(b"d", mode=0o500), tars.file(b"d/f")])
SECOND = tars.tar([tars.file(b"second", bytes(range(256)) * 1000)])


def layout(tmp_path, *layers, **more):
    return layouts.oci(tmp_path / "oci", layers or (GOOD, SECOND), **more)


def changed(path, change):
    """Replace a blob although its name says what it must be."""
    path.write_bytes(change(path.read_bytes()))


# -- each gives the arguments of `load`, and what the line must say -----------------------------------


def missing_file(tmp_path):
    return [tmp_path / "nothing.tar"], "nothing.tar: No such file or directory"


def missing_layout(tmp_path):
    return [f"oci:{tmp_path}/nothing:ref"], "No such file or directory"


def empty_directory(tmp_path):
    return [tmp_path], "oci-layout"


def missing_reference(tmp_path):
    return [f"oci:{layout(tmp_path)}:other"], "no such reference; it has test"


def index_of_nothing(tmp_path):
    top = layout(tmp_path)
    (top / "index.json").write_text('{"schemaVersion": 2, "manifests": []}')
    return [top], "it holds no image"


def several_images(tmp_path):
    top = layout(tmp_path)
    index = json.loads((top / "index.json").read_bytes())
    index["manifests"] *= 2
    index["manifests"][1] = index["manifests"][0] | {
        "annotations": {"org.opencontainers.image.ref.name": "b"}
    }
    (top / "index.json").write_text(json.dumps(index))
    return [top], "several images"


def another_platform(tmp_path):
    top = layout(tmp_path)
    index = json.loads((top / "index.json").read_bytes())
    index["manifests"][0]["platform"] = {"os": "windows", "architecture": "amd64"}
    index["manifests"] *= 2
    (top / "index.json").write_text(json.dumps(index))
    return [top], "windows/amd64"


def broken_json(tmp_path):
    top = layout(tmp_path)
    (top / "index.json").write_text('{"schemaVersion": 2,')
    return [top], "not valid JSON"


def wrong_layout_version(tmp_path):
    top = layout(tmp_path)
    (top / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    return [top], "version 1"


def wrong_digest(tmp_path):
    top = layout(tmp_path)
    changed(layouts.layer_blobs(top)[1], another_time)
    return [top], "expected sha256:"


def another_time(blob):
    """The time in a gzip header: size and content are as before, only the digest is not."""
    return blob[:4] + b"\1" + blob[5:]


def damaged_gzip(tmp_path):
    top = layout(tmp_path)
    changed(layouts.layer_blobs(top)[1], lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    return [top], "layer"


def another_blob(tmp_path):
    top = layout(tmp_path)
    changed(layouts.layer_blobs(top)[1], lambda data: layouts.gzipped(GOOD + SECOND))
    return [top], "expected"


def wrong_configuration(tmp_path):
    top = layout(tmp_path)
    manifest = json.loads(manifest_of(top).read_bytes())
    changed(
        top / "blobs/sha256" / manifest["config"]["digest"][7:], lambda data: data.replace(b"amd64", b"arm64")
    )
    return [top], "expected sha256:"


def manifest_of(top):
    (entry,) = json.loads((top / "index.json").read_bytes())["manifests"]
    return top / "blobs/sha256" / entry["digest"][7:]


def wrong_manifest(tmp_path):
    top = layout(tmp_path)
    changed(manifest_of(top), lambda data: data + b" ")
    return [top], "expected"


def wrong_diff_id(tmp_path):
    """The blob is what its descriptor says, but it is not the layer that the configuration names."""
    archive = layouts.docker_archive([GOOD, SECOND])
    return [stored(tmp_path, archive.replace(b"goodgood", b"goodbood", 1))], "expected sha256:"


def missing_blob(tmp_path):
    top = layout(tmp_path)
    layouts.layer_blobs(top)[1].unlink()
    return [top], "there is no blobs/sha256/"


def blob_that_is_a_link(tmp_path):
    top = layout(tmp_path)
    blob = layouts.layer_blobs(top)[1]
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    return [top], "blobs/sha256/"


def blob_that_is_a_fifo(tmp_path):
    top = layout(tmp_path)
    blob = layouts.layer_blobs(top)[1]
    blob.unlink()
    os.mkfifo(blob)
    return [top], "not a regular file"


def truncated_gzip(tmp_path):
    top = layout(
        tmp_path, pack=lambda tar: layouts.gzipped(tar)[:-40] if tar is SECOND else layouts.gzipped(tar)
    )
    return [top], "damaged or cut"


def truncated_archive(tmp_path):
    return [stored(tmp_path, layouts.docker_archive([GOOD, SECOND])[:-20_000])], "truncated"


def truncated_compressed_archive(tmp_path):
    return [stored(tmp_path, gzip.compress(layouts.docker_archive([GOOD, SECOND]))[:-9])], "damaged or cut"


def truncated_layer(tmp_path):
    return [layout(tmp_path, GOOD, SECOND[:5000])], "truncated"


def damaged_header(tmp_path):
    return [layout(tmp_path, GOOD, SECOND.replace(b"ustar", b"usTar", 1))], "invalid layer"


def layer_that_is_no_tar(tmp_path):
    return [layout(tmp_path, GOOD, b"not a tar at all" * 100)], "invalid layer"


def layer_that_leaves_its_directory(tmp_path):
    return [
        layout(tmp_path, GOOD, tars.tar([tars.hard_link(b"x", b"../../../../../etc/passwd")]))
    ], "etc/passwd"


def invalid_whiteout(tmp_path):
    return [layout(tmp_path, GOOD, tars.tar([tars.file(b"d/.wh...")]))], "invalid whiteout"


def text_file(tmp_path):
    return [stored(tmp_path, b"Dear all,\n" * 100)], "not an image"


def empty_file(tmp_path):
    return [stored(tmp_path, b"")], "not an"


def noise(tmp_path):
    return [stored(tmp_path, os.urandom(100_000))], "not an image"


def compressed_noise(tmp_path):
    return [stored(tmp_path, gzip.compress(os.urandom(100_000)))], "not an image"


def tar_of_something_else(tmp_path):
    return [stored(tmp_path, GOOD)], "not an OCI or Docker archive"


def archive_of_another_kind(tmp_path):
    return [f"oci-archive:{stored(tmp_path, layouts.docker_archive([GOOD]))}"], "oci-archive"


def manifest_without_layers(tmp_path):
    return [stored(tmp_path, layouts.archive({"manifest.json": b'[{"Config": "x"}]'}))], "x"


def fifo(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    return [tmp_path / "fifo"], "not a regular file"


def closed_file(tmp_path):
    path = stored(tmp_path, layouts.docker_archive([GOOD]))
    os.chmod(path, 0)
    return [path], "Permission denied"


def bad_tag(tmp_path):
    return [layout(tmp_path), "--tag", "Upper/Case"], "lower case"


def stored(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    return tmp_path / "file"


LOADS = [
    missing_file, missing_layout, empty_directory, missing_reference, index_of_nothing, several_images,
    another_platform, broken_json, wrong_layout_version, wrong_digest, another_blob, wrong_configuration,
    damaged_gzip, wrong_manifest, wrong_diff_id, missing_blob, blob_that_is_a_link, blob_that_is_a_fifo,
    truncated_gzip,
    truncated_archive, truncated_compressed_archive, truncated_layer, damaged_header, layer_that_is_no_tar,
    layer_that_leaves_its_directory, invalid_whiteout, text_file, empty_file, noise, compressed_noise,
    tar_of_something_else, archive_of_another_kind, manifest_without_layers, fifo, closed_file, bad_tag,
]  # fmt: skip


@pytest.mark.parametrize("bad", LOADS)
def test_a_bad_image_is_refused_in_one_line_and_leaves_nothing(place, tmp_path, bad):
    arguments, reason = bad(tmp_path)
    said = place.fails("load", "--quiet", *arguments)
    assert said.startswith("fusestore: ")
    assert reason in said
    assert place.is_empty()


@pytest.mark.parametrize(
    "data",
    [b"", b"text\n" * 1000, layouts.docker_archive([GOOD, SECOND])[:-20_000], gzip.compress(GOOD)[:100]],
    ids=["empty", "text", "truncated", "truncated gzip"],
)
@pytest.mark.parametrize("arguments", [[], ["-"], ["docker-archive:-"]])
def test_a_bad_image_on_stdin_is_refused_in_one_line_and_leaves_nothing(place, data, arguments):
    assert "stdin" in place.fails("load", *arguments, input=data)
    assert place.is_empty()


def test_what_was_there_before_survives_a_bad_image(owned, tmp_path):
    before = owned.listed("images"), owned.listed("layers")
    owned.fails("load", "--quiet", *wrong_diff_id(tmp_path)[0])
    assert (owned.listed("images"), owned.listed("layers")) == before
    assert owned.half_made() == []
    assert owned.ok("cat", "zoo:/etc/kept") == "kept"


def test_a_wrong_blob_is_refused_though_the_store_has_its_layer(place, tmp_path):
    place.ok("load", layouts.oci(tmp_path / "first", [GOOD, SECOND], "first"))
    layout(tmp_path)
    changed(layouts.layer_blobs(tmp_path / "oci")[0], another_time)
    assert "expected sha256:" in place.fails("load", "--quiet", tmp_path / "oci")
    assert [image["Names"] for image in place.listed("images")] == [["localhost/first:latest"]]


def test_names_from_an_image_cannot_steer_the_terminal(place, tmp_path):
    name = b"\x1b]0;owned\x07\n\x9b2J"
    said = place.fails("load", "--quiet", layout(tmp_path, tars.tar([tars.hard_link(name, b"nothing")])))
    assert said.isprintable()
    assert place.is_empty()


# -- images from stdin that are good ------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["-"], ["--input", "-"], ["docker-archive:-"]])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_archive_is_read_from_a_pipe(place, arguments, pack):
    archive = pack(layouts.docker_archive([GOOD, SECOND], "localhost/piped:1"))
    assert place.ok("load", *arguments, input=archive) == "localhost/piped:1"
    assert place.ok("cat", "piped:1:/good") == "good" * 1000
    assert place.half_made() == []


def test_an_archive_is_read_from_a_redirected_file(place, tmp_path):
    with open(stored(tmp_path, layouts.docker_archive([GOOD])), "rb") as file:
        assert place.ok("load", stdin=file) == "localhost/test:latest"


# -- interrupted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_load_leaves_nothing_behind_for_the_next_command(place, tmp_path, number):
    archive = layouts.docker_archive([GOOD, tars.tar([tars.file(b"big", bytes(30 << 20))])])
    command = ["env", "--default-signal=INT", *FUSESTORE, "load"]  # a shell's background jobs ignore it
    slow = subprocess.Popen(command, env=place.environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    with slow:
        slow.stdin.write(archive[: len(archive) // 2])
        slow.stdin.flush()
        eventually(lambda: waits_for_input(slow), "a load in the middle of its input")
        slow.send_signal(number)
        said = slow.stderr.read().decode()
        assert slow.wait(30) in (-number, 130)
    assert "Traceback" not in said
    place.ok("images")
    assert place.is_empty()
    place.ok("load", input=archive)


def waits_for_input(process):
    """True when it has read all that we wrote and sleeps."""
    unread = int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder)
    return unread == 0 and Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_load_that_was_killed_while_it_unpacked_leaves_nothing_behind(place, tmp_path):
    many = tars.tar(tars.file(b"%d" % n, b"x" * 5000) for n in range(5000))
    layout(tmp_path, many, GOOD)
    slow = subprocess.Popen(
        [*FUSESTORE, "load", tmp_path / "oci"], env=place.environment(), stderr=subprocess.PIPE
    )
    with slow:
        eventually(lambda: list((place.root / "tmp").glob("*/diff/1")), "a half-made layer")
        slow.kill()
    assert place.half_made()
    place.ok("images")
    assert place.is_empty()


def test_a_reader_sees_nothing_of_a_load_that_is_not_finished(place):
    archive = layouts.docker_archive([GOOD, SECOND])
    slow = subprocess.Popen(
        [*FUSESTORE, "load"], env=place.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with slow:
        slow.stdin.write(archive[:-5000])
        slow.stdin.flush()
        eventually(lambda: waits_for_input(slow), "a load in the middle of its input")
        assert place.listed("images") == []
        slow.stdin.write(archive[-5000:])
        slow.stdin.close()
        assert slow.stdout.read() == b"localhost/test:latest\n"
    assert len(place.listed("images")) == 1


# -- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zooo", "zo:latest", "localhost/zoo:lates", "zoo:other", "quay.io/zoo"])
def test_an_unknown_name_suggests_near_ones(menagerie, name):
    said = menagerie.fails("inspect", name)
    assert said == f"fusestore: {name}: image not known; did you mean localhost/zoo:latest?"


@pytest.mark.parametrize("command", ["mount", "rmi", "ls", "cat"])
def test_every_command_suggests_near_names(menagerie, command):
    where = "zo:latest:/x" if command in ("ls", "cat") else "zo:latest"
    assert "zo:latest: image not known; did you mean localhost/zoo:latest?" in menagerie.fails(command, where)


@pytest.mark.parametrize(
    "name", ["nothing-like-it", "", "UPPER", "a b", "../x", "0123456789ab", "sha256:" + "0" * 64]
)
def test_an_unknown_name_is_one_line(menagerie, name):
    assert "image not known" in menagerie.fails("inspect", name)


def test_a_path_that_is_not_there_is_one_line(menagerie):
    for command in ("ls", "cat"):
        assert "no/such: No such file or directory" in menagerie.fails(command, "zoo:/no/such")


def test_an_ambiguous_id_is_refused(menagerie, place, tmp_path):
    ids = set()
    for number in range(40):
        data = layouts.docker_archive([tars.tar([tars.file(b"%d" % number)])], tag="not/A/name")
        ids.add(place.ok("load", "-q", input=data))
        first = [i[0] for i in ids]
        double = next((digit for digit in first if first.count(digit) > 1), None)
        if double:
            break
    assert "more than one" in place.fails("inspect", double)


# -- a full disk --------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path):
    """A directory of 8 MiB, and what to put before a command to be where it is."""
    (tmp_path / "small").mkdir()
    with namespace(f"mount -t tmpfs -o size=8m none '{tmp_path}/small'") as inside:
        yield type("Small", (), {"path": tmp_path / "small", "inside": inside})


@pytest.mark.parametrize("piped", [False, True])
def test_a_full_disk_is_one_line_and_leaves_nothing(place, tmp_path, small, piped):
    where = ["--root", small.path / "store", "--runroot", small.path / "run"]
    archive = layouts.docker_archive([GOOD, tars.tar([tars.file(b"big", os.urandom(12 << 20))])])
    source = {"input": archive} if piped else {}
    arguments = [] if piped else [stored(tmp_path, archive)]
    said = place.fails(*where, "load", "-q", *arguments, before=small.inside, **source)
    assert "No space left on device" in said
    assert place.listed(*where, "images", before=small.inside) == []
    assert place.listed(*where, "layers", before=small.inside) == []
    left = subprocess.check_output([*small.inside, "find", small.path / "store/tmp", "-mindepth", "1"])
    assert left == b""
    place.ok(*where, "load", input=layouts.docker_archive([GOOD]), before=small.inside)
    assert place.ok(*where, "cat", "test:/good", before=small.inside) == "good" * 1000


def test_a_filesystem_without_user_xattrs_is_refused_in_one_line(place, tmp_path):
    (tmp_path / "ramfs").mkdir()
    with namespace(f"mount -t ramfs none '{tmp_path}/ramfs'") as inside:
        where = ["--root", tmp_path / "ramfs/store"]
        assert "has no user xattrs" in place.fails(*where, "images", before=inside)
        result = place.run(*where, "doctor", before=inside)
        assert "choose another place with --root" in result.stdout.decode()


def test_a_read_only_root_is_one_line(place, tmp_path):
    with namespace("true") as inside:
        assert "Permission denied" in place.fails("--root", "/usr/fusestore", "images", before=inside)
