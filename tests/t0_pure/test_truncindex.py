"""Ids are found by any beginning that only one of them has, whatever was added and deleted before."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusestore.errors import AmbiguousName, ImageNotFound
from fusestore.store.truncindex import TruncIndex

ID = "99b36c2c326ccc11e726eee6ee78a0baf166ef96"
TWIN = ID[:6] + "blabla"


def answer(index, prefix):
    """What `get` gives, or the kind of its error."""
    try:
        return index.get(prefix)
    except (AmbiguousName, ImageNotFound, ValueError) as exc:
        return type(exc)


@pytest.mark.parametrize(
    ("prefix", "alone", "beside_its_twin"),
    [
        (ID, ID, ID),
        (ID[:1], ID, AmbiguousName),
        (ID[:4], ID, AmbiguousName),
        (ID[:6], ID, AmbiguousName),
        (ID[:7], ID, ID),
        (ID[:15], ID, ID),
        (TWIN, ImageNotFound, TWIN),
        (TWIN[:7], ImageNotFound, TWIN),
        (TWIN[:11], ImageNotFound, TWIN),
        (ID[20:], ImageNotFound, ImageNotFound),
        (ID + "0", ImageNotFound, ImageNotFound),
        ("abracadabra", ImageNotFound, ImageNotFound),
        ("", ValueError, ValueError),
    ],
)
def test_trunc_index(prefix, alone, beside_its_twin):
    """containers/storage: TestTruncIndex."""
    index = TruncIndex()
    assert answer(index, prefix or "foobar") is ImageNotFound
    index.add(ID)
    assert answer(index, prefix) == alone
    index.add(TWIN)
    assert answer(index, prefix) == beside_its_twin
    index.delete(TWIN)
    assert answer(index, prefix) == alone


@pytest.mark.parametrize("wrong", ["I have a space", "", ID])
def test_ids_that_cannot_be_added(wrong):
    index = TruncIndex([ID])
    with pytest.raises(ValueError):
        index.add(wrong)
    assert list(index) == [ID]


@pytest.mark.parametrize("unknown", ["non-existing", "", ID[:7], ID + "0"])
def test_only_a_whole_id_is_deleted(unknown):
    index = TruncIndex([ID])
    with pytest.raises(ImageNotFound):
        index.delete(unknown)
    assert list(index) == [ID]


def test_a_new_index_ignores_what_is_no_id():
    assert list(TruncIndex([TWIN, "", "a b", ID, TWIN])) == [ID, TWIN]


def test_an_id_that_another_one_begins_with_is_ambiguous():
    index = TruncIndex(["ab", "abc"])
    assert answer(index, "ab") is AmbiguousName
    assert answer(index, "abc") == "abc"


def test_ids_may_go_while_one_looks_at_all():
    index = TruncIndex(["a", "b", "c"])
    for id_ in index:
        index.delete(id_)
    assert list(index) == []


IDS = st.text("ab \0é", max_size=4)


@given(st.lists(IDS, max_size=8), st.lists(st.tuples(st.booleans(), IDS), max_size=12), IDS)
def test_it_answers_as_a_search_through_all(ids, steps, prefix):
    index, model = TruncIndex(ids), {i for i in ids if i and " " not in i}
    for add, id_ in steps:
        fits = (id_ and " " not in id_ and id_ not in model) if add else id_ in model
        try:
            (index.add if add else index.delete)(id_)
            assert fits
        except (ValueError, ImageNotFound):
            assert not fits
        model = (model | {id_} if add else model - {id_}) if fits else model
    found = [i for i in model if i.startswith(prefix)]
    kinds = {0: ImageNotFound, 1: found[0] if found else None}
    assert answer(index, prefix) == (kinds.get(len(found), AmbiguousName) if prefix else ValueError)
    assert list(index) == sorted(model)
