"""Stores for tests that mount: empty ones, and one that holds the zoo."""

import pytest
from support.fsck import problems
from support_real import layouts, tars, zoo
from support_real.commands import Place


def _place(directory):
    place = Place(directory / "store", directory / "run")
    yield place
    place.unmount_all()
    left = problems(place.root) if (place.root / "tmp").exists() else []
    place.destroy()
    assert left == []


@pytest.fixture
def place(tmp_path):
    """An empty store of this test's own; unmounted and deleted at its end."""
    yield from _place(tmp_path)


@pytest.fixture(scope="session")
def zoo_layout(tmp_path_factory):
    """The zoo as an OCI layout."""
    return layouts.oci(
        tmp_path_factory.mktemp("zoo") / "oci", [tars.tar(layer) for layer in zoo.LAYERS], "zoo"
    )


@pytest.fixture(scope="module")
def menagerie(tmp_path_factory, zoo_layout):
    """A store with the zoo in it, for tests that leave it as it is."""
    for place in _place(tmp_path_factory.mktemp("menagerie")):
        place.ok("load", f"oci:{zoo_layout}:zoo")
        yield place


@pytest.fixture(scope="module")
def mounted(menagerie):
    """Where the zoo is mounted."""
    return menagerie.mount("zoo")


@pytest.fixture
def loaded(menagerie, tmp_path):
    """The store with the zoo in it, with mounts of this test's own."""
    place = Place(menagerie.root, tmp_path / "run")
    yield place
    place.unmount_all()


@pytest.fixture
def owned(place, zoo_layout):
    """A store of this test's own with the zoo in it, for tests that change it."""
    place.ok("load", f"oci:{zoo_layout}:zoo")
    return place
