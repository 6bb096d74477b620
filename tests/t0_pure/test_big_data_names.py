"""The file of a big-data key has containers/storage's name (seeds.md 10.4), but never lies elsewhere (D33).

Upstream's loop looks at all letters but the last, so that ``fooA`` is plain and ``Foo`` is not.  What it lets
through is refused here: names that are directories, and names with a slash.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import InvalidBigDataName
from fusestore.store.bigdata import big_data_name, directory_name, item_name

# seeds.md 1.5 and 10.4
NAMES = {
    "manifest": "manifest",
    "sha256:ab": "=c2hhMjU2OmFi",
    "signature-1": "=c2lnbmF0dXJlLTE=",
    "signature-": "signature-",
    "A": "A",
    "fooA": "fooA",
    "Foo": "=Rm9v",
    "manifest-sha256:abc": "=bWFuaWZlc3Qtc2hhMjU2OmFiYw==",
    "big-item-1": "=YmlnLWl0ZW0tMQ==",
    "a/b": "=YS9i",
    "é": "é",
    "éa": "=w6lh",
    "...": "...",
    "..a": "..a",
    "=": "=",
    "a\nb": "=YQpi",
    "\udcffa": "=/2E=".replace("/", "_"),
}
REFUSED = ["", ".", "..", "/", "foo/", "\0", "a\0"]


@pytest.mark.parametrize(("key", "name"), NAMES.items(), ids=repr)
def test_names_are_upstreams(key, name):
    assert big_data_name(key) == name


@pytest.mark.parametrize("key", REFUSED, ids=repr)
def test_what_would_lie_elsewhere_is_refused(key):
    with pytest.raises(InvalidBigDataName, match="not a key for big data") as caught:
        big_data_name(key)
    assert caught.value.key == key


def test_no_slash_comes_out_of_base64():
    key = "\u00ff\u00ff\u00ffx"  # its base64 has slashes
    assert "/" not in big_data_name(key)
    assert big_data_name(key).startswith("=")


TEXT = st.text(alphabet=st.sampled_from("azAZ09./=~-_é\udcff\n:") | st.characters(), max_size=12)


@given(TEXT, TEXT)
def test_different_keys_have_different_files(one, other):
    try:
        names = big_data_name(one), big_data_name(other)
    except InvalidBigDataName:
        return
    assert (names[0] == names[1]) == (one == other)
    for name in names:
        assert "/" not in name
        assert name not in ("", ".", "..")


@given(TEXT, TEXT)
def test_different_items_have_different_directories(one, other):
    kinds = ("layer", "image", "container")
    names = {directory_name(kind, item) for kind in kinds for item in (one, other)}
    assert len(names) == (3 if one == other else 6)
    assert not any("/" in name or name in ("", ".", "..") for name in names)


def test_ordinary_ids_are_their_own_directories():
    assert item_name("0123456789abcdef" * 4) == "0123456789abcdef" * 4
    assert item_name("Layer") != "Layer"
