"""The files of layers in graphroots written by hand: where they are, what they hold, whose they are.

The format of the records is in test_graphroot.py.  A tree is what a union of the layer's directories shows.
"""

import io
import os
import shutil
import tarfile

import pytest
from support.graphroots import Written, sha256, tree
from support.tarsplits import recorded

from fusestore.driver.layout import Origin
from fusestore.driver.stack import open_layer
from fusestore.errors import (
    BigDataNotFound,
    CorruptStore,
    ImageNotFound,
    InvalidBigDataName,
    LayerNotFound,
    NotSupported,
)
from fusestore.store.additional import foreign
from fusestore.store.graphroot_owners import Owner, owner_of, shown_in
from fusestore.store.tarsplit import assemble

ME = os.getuid()
OURS = Origin(uids=((ME, 0, 1),), gids=((os.getgid(), 0, 1),))


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path / "storage")


@pytest.fixture
def stack(written):
    """Three layers, the upper two with whiteouts."""
    written.layer("base", files={"a": b"1", "b": b"1", "d/e": b"1"})
    written.layer("middle", "base", {"a": b"2", "b": None})
    written.layer("top", "middle", {"d": None, "c": b"3"})
    return written


# -- directories --------------------------------------------------------------------------------------


def test_a_layer_is_its_directory_and_those_of_its_parents(stack):
    root = stack.open()
    assert [(spec.path, spec.origin) for spec in root.specs("top")] == [
        (str(stack.path / f"overlay/{layer}/diff"), OURS) for layer in ("top", "middle", "base")
    ]
    assert tree(root.specs("base")) == {"a": b"1", "b": b"1", "d": None, "d/e": b"1"}
    assert tree(root.specs("middle")) == {"a": b"2", "d": None, "d/e": b"1"}
    assert tree(root.specs("top")) == {"a": b"2", "c": b"3"}


def test_neither_links_nor_lower_files_are_needed(stack):
    """containers/storage makes them again when they are lost (overlay-recreate.bats)."""
    links = stack.path / "overlay/l"
    links.mkdir()
    for index, layer in enumerate(("base", "middle", "top")):
        (links / f"{index:026}").symlink_to(f"../{layer}/diff")
        (links.parent / layer / "link").write_text(f"{index:026}")
    found = stack.open().specs("top")
    shutil.rmtree(links)
    (links.parent / "top/link").unlink()
    assert stack.open().specs("top") == found


def test_older_parts_of_a_layer_lie_below_it(stack):
    """After UpdateLayerIDMap: diff is the newest."""
    for name, content in (("diff1", b"y"), ("diff2", b"z"), ("diff4", b"!")):
        (stack.path / "overlay/middle" / name).mkdir()
        (stack.path / "overlay/middle" / name / "a").write_bytes(content)
        (stack.path / "overlay/middle" / name / name).write_bytes(content)
    specs = stack.open().specs("top")
    assert [spec.path.rpartition("overlay/")[2] for spec in specs] == [
        "top/diff", "middle/diff", "middle/diff1", "middle/diff2", "base/diff",
    ]  # fmt: skip
    assert tree(specs) == {"a": b"2", "c": b"3", "diff1": b"y", "diff2": b"z"}


def test_a_layer_of_an_additional_layer_store_is_behind_a_symlink(stack, tmp_path):
    diff = stack.path / "overlay/middle/diff"
    diff.rename(tmp_path / "elsewhere")
    diff.symlink_to(tmp_path / "elsewhere")
    (diff.parent / "additionallayer").write_text(str(tmp_path))
    assert tree(stack.open().specs("top")) == {"a": b"2", "c": b"3"}


def test_parents_may_be_in_other_image_stores(stack, tmp_path):
    above = Written(tmp_path / "above")
    above.layer("container", "top", {"a": None})
    above.image("img", "container")
    stack.layers[0] |= {"diff-digest": sha256(b""), "diff-size": 50}
    stack.put("layers", stack.layers)
    with pytest.raises(CorruptStore, match="top is not there"):
        above.open().specs("container")
    empty = Written(tmp_path / "empty")
    root = above.open(image_stores=[empty.path, stack.path])
    assert tree(root.specs("container")) == {"c": b"3"}
    assert [layer.id for layer in root.layers()] == ["container"], "they are not in this store"
    assert root.image("img").size == 50
    stack.layers[0]["diff-size"] = 60
    stack.put("layers", stack.layers)
    assert root.image("img").size == 60


def test_a_layer_of_vfs_is_one_directory(tmp_path):
    written = Written(tmp_path, "vfs")
    written.layer("base", files={"a": b"1", "b": b"1"})
    written.layer("top", "base", {"a": b"2"})
    root = written.open()
    assert [spec.path for spec in root.specs("top")] == [str(tmp_path / "vfs/dir/top")]
    assert tree(root.specs("top")) == {"a": b"2"}
    written.layer("loose", "gone", {})
    with pytest.raises(CorruptStore, match="gone"):
        root.specs("loose")


def test_unknown_and_broken_layers(stack):
    stack.layer("loose", "gone")
    stack.layer("egg", "hen")
    stack.layer("hen", "egg")
    stack.layer("composed", "base")
    (stack.path / "overlay/composed/composefs-data").mkdir()
    (stack.path / "overlay/composed/composefs-data/composefs.blob").touch()
    shutil.rmtree(stack.path / "overlay/base")
    root = stack.open()
    for call in (root.specs, root.record, root.files, root.unreadable):
        with pytest.raises(LayerNotFound):
            call("absent")
    for layer, says in (("top", "base"), ("loose", "gone"), ("egg", "egg")):
        with pytest.raises(CorruptStore, match=says):
            root.specs(layer)
    with pytest.raises(NotSupported, match="composefs"):
        root.specs("composed")


def test_owners_in_xattrs_are_shown(written):
    """As podman with force_mask keeps them; then no map of ids counts."""
    diff = written.layer("base", files={"a": b"1"})
    for path, value in ((diff, b"0:0:0755:dir"), (diff / "a", b"70:71:4755:file")):
        os.setxattr(path, "user.containers.override_stat", value)
    (spec,) = written.open().specs("base")
    with open_layer(spec, None, None) as layer:
        attr = layer.look(b"a")
    assert (attr.uid, attr.gid, attr.mode) == (70, 71, 0o104755)


# -- big data and records -----------------------------------------------------------------------------

KEYS = ("manifest", "A", "signature-", "sha256:ab", "signature-1", "Foo", "a.b", "é", "éa")


def test_big_data_is_found_by_the_key_and_verified(written):
    written.image("img", "", {key: key.encode() * 3 for key in KEYS})
    root = written.open()
    assert list(root.image("img").big_data) == list(KEYS)
    assert {key: root.big_data("image", "img", key) for key in KEYS} == {k: k.encode() * 3 for k in KEYS}
    directory = written.path / "overlay-images/img"
    (directory / "manifest").write_bytes(b"changed")
    (directory / "=c2hhMjU2OmFi").unlink()
    for key, path in (("manifest", "manifest"), ("sha256:ab", "=c2hhMjU2OmFi")):
        with pytest.raises(CorruptStore) as caught:
            root.big_data("image", "img", key)
        assert caught.value.path == str(directory / path)
    assert root.big_data("image", "img", "A") == b"AAA"


def test_big_data_without_a_digest_that_we_know(written):
    digests = {"big-data-digests": {"x": "sha512:" + "0" * 128}}
    written.image("img", "", {"x": b"data", "y": b"more"}, **digests)
    directory = written.path / "overlay-layers/base"
    written.layer("base", **{"big-data-names": ["chunked-manifest-cache"]})
    directory.mkdir()
    (directory / "=Y2h1bmtlZC1tYW5pZmVzdC1jYWNoZQ==").write_bytes(b"\0")
    root = written.open()
    assert root.big_data("image", "img", "x") == b"data"
    assert root.big_data("image", "img", "y") == b"more"
    assert root.big_data("layer", "base", "chunked-manifest-cache") == b"\0"
    assert root.layer("base").big_data["chunked-manifest-cache"].size == 1


def test_big_data_that_is_not_there(written):
    written.image("img", "", {"x": b"data"}, **{"big-data-names": ["x", "..", "a/"]})
    written.layer("base")
    root = written.open()
    asked = [
        ("image", "img", "y", BigDataNotFound), ("image", "im", "x", ImageNotFound),
        ("layer", "base", "x", BigDataNotFound), ("layer", "img", "x", LayerNotFound),
        ("image", "img", "..", InvalidBigDataName), ("image", "img", "a/", InvalidBigDataName),
    ]  # fmt: skip
    for kind, item, key, error in asked:
        with pytest.raises(error):
            root.big_data(kind, item, key)


def test_the_tar_of_a_layer_comes_back(stack):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in (("a", b"2"), (".wh.b", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    record = stack.path / "overlay-layers/middle.tar-split.gz"
    record.write_bytes(recorded(data.getvalue())[0])
    root = stack.open()
    assert root.record("base") is None
    files = root.files("middle")
    with root.record("middle") as stream:
        assert stream.read() == record.read_bytes()
        stream.seek(0)
        assert b"".join(assemble(stream, files, "middle")) == data.getvalue()
    files.close()
    files.close()


def test_nothing_is_written_even_where_it_could_not(stack):
    stack.image("img", "top", {"manifest": b"{}"})
    paths = [stack.path, *stack.path.rglob("*")]
    modes = {path: path.stat().st_mode for path in paths if not path.is_char_device()}
    state = {path: path.lstat() for path in paths}
    for path, mode in modes.items():
        path.chmod(mode & 0o555)
    try:
        root = stack.open()
        assert (len(root.images()), len(root.layers())) == (1, 3)
        assert root.big_data("image", "img", "manifest") == b"{}"
        hold = root.hold("top")
        assert tree(root.specs("top")) == {"a": b"2", "c": b"3"}
        assert root.unreadable("top") is root.record("top") is None
        root.files("top").close()
        hold.close()
        hold.close()
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert {path: path.lstat().st_mtime_ns for path in paths} == {p: s.st_mtime_ns for p, s in state.items()}
    assert set(stack.path.rglob("*")) == set(paths[1:])


# -- owners -------------------------------------------------------------------------------------------

SUBIDS = {
    "none": ("", "", [], []),
    "other users only": ("somebody:1:2\n", f"{ME + 1}:1:2", [], []),
    "one range": (f"{ME}:100000:65536\n", f"{ME}:200000:10\n", [(100000, 1, 65536)], [(200000, 1, 10)]),
    "several, in order of their number": (
        f"x:5:5\n{ME}:3000:10\n\n# {ME}:1:1\n{ME}:2000:5",
        f"{ME}:7:1",
        [(2000, 1, 5), (3000, 6, 10)],
        [(7, 1, 1)],
    ),
    "lines that are none": (
        f"{ME}:1\n{ME}:a:b\n{ME}:-5:2\n{ME}\n{ME}:50:2:3\n{ME}:9:1",
        f"{ME}:7:1",
        [(9, 1, 1)],
        [(7, 1, 1)],
    ),
    "groups are missing": (f"{ME}:100000:65536", "", [], []),
}


@pytest.mark.parametrize(("subuid", "subgid", "uids", "gids"), SUBIDS.values(), ids=SUBIDS)
def test_subordinate_ids_follow_ones_own(tmp_path, subuid, subgid, uids, gids):
    (tmp_path / "subuid").write_text(subuid)
    (tmp_path / "subgid").write_text(subgid)
    expected = Owner(ME, ((ME, 0, 1), *uids), ((os.getgid(), 0, 1), *gids))
    assert owner_of(tmp_path, tmp_path) == expected


def test_without_tables_there_is_one_id_and_root_has_no_map(tmp_path):
    assert owner_of(tmp_path, tmp_path) == Owner(ME, OURS.uids, OURS.gids)
    assert owner_of(tmp_path / "/etc", tmp_path) == Owner(0, (), ())


OUTER = ((1000, 0, 1), (100000, 1, 1000))
INNER = {
    "none": ((), OUTER),
    "all of it": (((0, 0, 1001),), ((1000, 0, 1), (100000, 1, 1000))),
    "shifted": (((0, 1, 500),), ((100000, 0, 500),)),
    "across two ranges": (((10, 0, 3),), ((1000, 10, 1), (100000, 11, 2))),
    "in pieces": (((0, 5, 1), (1, 900, 200)), ((100004, 0, 1), (100899, 1, 101))),
    "outside: nothing is shown": (((0, 5000, 10),), ((0, 0, 0),)),
}


@pytest.mark.parametrize(("inner", "shown"), INNER.values(), ids=INNER)
def test_maps_in_one_another(inner, shown):
    assert shown_in(OUTER, inner) == shown


def test_maps_of_a_store_of_roots():
    assert shown_in((), ((0, 5000, 10), (10, 1, 1))) == ((5000, 0, 10), (1, 10, 1))


MINE = ((ME, 0, 1), (100000, 1, 100))
THEIRS = ((ME + 1, 0, 1), (100000, 1, 100))
FOREIGN = {
    "my root is me": (ME, MINE, {0}, []),
    "a subordinate user": (ME, MINE, {0, 70}, ["uid 70 (100069 here)"]),
    "one that could not be stored": (ME, ((ME, 0, 1),), {0, 70}, []),
    "one beyond the range": (ME, MINE, {101}, []),
    "another user's store": (
        ME + 1,
        THEIRS,
        {0, 1, 500},
        [f"uid 0 ({ME + 1} here)", "uid 1 (100000 here)", f"uid 500 ({ME + 1} here)"],
    ),
    "a system store": (0, (), {0, ME, 70}, ["uid 0", "uid 70"]),
}


@pytest.mark.parametrize(("owner", "ranges", "shown", "found"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_owners(owner, ranges, shown, found):
    assert [str(one) for one in sorted(foreign(owner, ranges, shown))] == found


def test_unreadable_files_are_predicted_where_owners_are_recorded(written):
    """With subordinate ids: tests/root/test_graphroot_with_subids.py."""
    written.layer("base", uidset=[0, 5])
    written.layer("middle", "base")
    written.layer("top", "middle", uidset=[0, 7])
    masked = written.layer("masked", "base")
    os.setxattr(masked, "user.containers.override_stat", b"0:0:0755:dir")
    root = written.open()
    predicted = {layer.id: root.unreadable(layer.id) for layer in root.layers()}
    assert predicted == {"base": (), "middle": None, "top": None, "masked": ()}
