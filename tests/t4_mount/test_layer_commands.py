"""``fusestore layer``: a tar goes in and comes out again, each command a process of its own."""

import gzip
import os

import pytest
from support.images import sha256
from support.tars import member, tar

BASE = tar(member("etc/motd", b"hello\n"), member("big", b"x" * 100_000))
ABOVE = tar(member("etc/.wh.motd"), member("new", b"n"))
TWICE = tar(member("f", b"one"), member("f", b"two"))


@pytest.fixture
def file(tmp_path):
    """Puts bytes into a file; its path."""

    def put(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return put


def test_what_is_registered_is_exported(place, file, tmp_path):
    base = place.ok("layer", "register", file("base.tar", BASE))
    above = place.ok("layer", "register", file("above.tgz", gzip.compress(ABOVE)), "--parent", base[7:19])
    assert base == sha256(BASE)
    listed = {row["ChainID"]: row for row in place.listed("layers")}
    assert (listed[above]["Parent"], listed[above]["DiffID"]) == (base, sha256(ABOVE))
    assert (listed[base]["Parent"], listed[base]["Size"]) == ("", 100_006)
    for chain_id, archive in ((base, BASE), (above, ABOVE)):
        place.ok("layer", "export", chain_id, "-o", tmp_path / "out.tar")
        assert (tmp_path / "out.tar").read_bytes() == archive
        assert place.run("layer", "export", chain_id.removeprefix("sha256:")[:10]).stdout == archive


def test_a_layer_comes_from_stdin_and_twice_is_once(place):
    first = place.run("layer", "register", "-", input=BASE)
    again = place.run("layer", "register", "-", input=gzip.compress(BASE))
    assert (first.returncode, first.stdout) == (0, again.stdout)
    assert len(place.listed("layers")) == 1


def test_progress_is_on_stderr_unless_it_is_not_wanted(place, file):
    path = file("base.tar", BASE)
    size = f"{len(BASE) / 1000:.3g} kB"
    assert place.run("layer", "register", path).stderr == f"Registering base.tar  {size}  done\n".encode()
    assert place.run("layer", "register", path, "-q").stderr == b""


def test_a_path_twice_is_told(place, file, tmp_path):
    chain_id = place.ok("layer", "register", file("twice.tar", TWICE))
    assert place.listed("layers")[0]["Reproducible"] is False
    assert "the exact tar is lost" in place.fails("layer", "export", chain_id, "-o", tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()
    place.ok("layer", "export", "--diff", chain_id, "-o", tmp_path / "out.tar")
    assert place.ok("layer", "register", tmp_path / "out.tar") != chain_id


def test_of_a_damaged_layer_nothing_is_left(place, file, tmp_path):
    chain_id = place.ok("layer", "register", file("base.tar", BASE))
    (damaged,) = place.root.glob("fuse/*/diff/big")
    damaged.write_bytes(b"y" * 100_000)
    before = set(tmp_path.iterdir())
    said = place.fails("layer", "export", chain_id, "-o", tmp_path / "out.tar")
    assert "file integrity checksum failed for big" in said
    assert set(tmp_path.iterdir()) == before


def test_layers_are_deleted_one_by_one_from_the_top(place, file):
    base = place.ok("layer", "register", file("base.tar", BASE))
    above = place.ok("layer", "register", file("above.tar", ABOVE), "--parent", base)
    assert f"{base}: in use: the layer {above} is on it" in place.fails("layer", "rm", base)
    assert place.ok("layer", "rm", above) == f"Deleted: {above}"
    assert [row["ChainID"] for row in place.listed("layers")] == [base]
    assert place.ok("layer", "rm", base) == f"Deleted: {base}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "abc"), "abc: layer does not exist"),
        (("export", "../../etc"), "../../etc: layer does not exist"),
        (("rm", "sha256:"), "layer does not exist"),
        (("register", "no-such-file"), "no-such-file: No such file or directory"),
        (("register", os.devnull, "--parent", "abc"), "abc: layer does not exist"),
        (("register", __file__), "invalid layer: "),
    ],
)
def test_what_cannot_be_is_told_in_one_line(place, arguments, said):
    assert said in place.fails("layer", *arguments)


def test_output_goes_where_it_can(place, file, tmp_path):
    chain_id = place.ok("layer", "register", file("base.tar", BASE))
    assert place.run("layer", "export", chain_id, "-o", "/dev/null").returncode == 0
    said = place.fails("layer", "export", chain_id, "-o", tmp_path / "none" / "out.tar")
    assert f"{tmp_path / 'none'}: no such directory" in said
