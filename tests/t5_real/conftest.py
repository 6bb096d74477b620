"""A store of each test's own, and the zoo as an OCI layout for clients to convert."""

import pytest
from support.fsck import problems
from support_real import layouts, tars, zoo
from support_real.commands import Place


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "store", tmp_path / "run")
    yield place
    place.unmount_all()
    assert not (place.root / "tmp").exists() or problems(place.root) == []
    place.destroy()


@pytest.fixture(scope="session")
def zoo_layout(tmp_path_factory):
    return layouts.oci(
        tmp_path_factory.mktemp("zoo") / "oci", [tars.tar(layer) for layer in zoo.LAYERS], "zoo"
    )
