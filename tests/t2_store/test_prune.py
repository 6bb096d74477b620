"""What prune plans and deletes, and that disk usage says beforehand what it will free.

The store is that of `support.town`, plus what makes layers shared and images dangling.
"""

import pytest
from support.fsck import problems
from support.images import configuration, dumped, sha256
from support.stores import DRIVERS, opened
from support.tars import Stream
from support.town import BASE, GRAPH, IMAGE, LAYER, LONE, RW, Copy

from fusestore.digest import chain_id
from fusestore.store.items import Image
from fusestore.store.storage import NewImage
from fusestore.store.upkeep.prune import plan, prune
from fusestore.store.upkeep.sizes import Sizes
from fusestore.store.upkeep.usage import usage

DANGLING = dumped(configuration([BASE, LONE]) | {"config": {"Labels": {"stage": "test"}}})
DANGLING_ID = sha256(DANGLING)[7:]
ON_BASE = chain_id(sha256(BASE), sha256(LONE))
ALL = {"LAYER", "BASE", "IMAGE", "other", "made", "c", "c-layer", "rw", sha256(RW), sha256(LONE), GRAPH}
ALL |= {DANGLING_ID, ON_BASE}


@pytest.fixture(params=DRIVERS)
def copy(request, tmp_path_factory, tmp_path):
    copy = Copy(tmp_path_factory.getbasetemp(), tmp_path / "copy", request.param)
    with copy.open() as store:
        store.layer_store.register(Stream(LONE), sha256(BASE))
        store.create_images([NewImage([], ON_BASE, DANGLING, b"{}")])
    yield copy
    assert problems(copy.root) == []


def pruned(store, **options):
    sizes = Sizes(store)
    planned = plan(store, sizes, **options)
    found = prune(store, planned, sizes)
    assert found.size == planned.size
    assert {*found.layers} == {layer.id for layer in planned.layers}
    return found


UNNAMED = {DANGLING_ID, ON_BASE, sha256(LONE)}


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({}, UNNAMED),
        ({"everything": True}, UNNAMED | {"IMAGE", "LAYER", "BASE"}),
        ({"containers": True}, UNNAMED | {"c", "c-layer"}),
        ({"everything": True, "containers": True}, ALL - {"rw", sha256(RW), GRAPH}),
        ({"wanted": lambda item: isinstance(item, Image)}, UNNAMED - {sha256(LONE)}),
        ({"wanted": lambda item: item.id == "made", "everything": True}, set()),
        ({"wanted": lambda item: item.id == IMAGE, "everything": True}, {"IMAGE", "LAYER"}),
        ({"wanted": lambda item: item.id == sha256(LONE)}, {sha256(LONE)}),
    ],
    ids=["dangling", "all", "containers", "all and containers", "images", "used", "named", "a layer"],
)
def test_prune(copy, options, gone):
    with copy.open() as store:
        pruned(store, **options)
        assert copy.items() == ALL - gone
        assert pruned(store, **options).size == 0


def test_layers_with_names_stay_unless_all_go(copy):
    with copy.open() as store:
        store.add_names(sha256(LONE), ["keep"])
        pruned(store)
        assert sha256(LONE) in copy.items()
        pruned(store, everything=True)
        assert sha256(LONE) not in copy.items()


def test_what_others_took_meanwhile_stays(copy):
    with copy.open() as store:
        sizes = Sizes(store)
        planned = plan(store, sizes)
        store.add_names(DANGLING_ID, ["localhost/keep:1"])
        store.put_layer("on it", sha256(LONE))
        assert prune(store, planned, sizes).size == 0
        assert copy.items() == ALL | {"on it"}
        held = store.layer_store.get(chain_id(sha256(BASE), sha256(LONE)))
        store.untag(["localhost/keep:1"])
        assert prune(store, planned, sizes).images == {}
        store.layer_store.release(held)


def test_usage_is_what_content_there_is_and_what_pruning_frees(copy):
    with copy.open() as store:
        store.set_container_directory_file("c", "file", b"f" * 7)
        found = usage(store)
        images, containers, layers, mounts = found.summaries
        documents = {image.id: sum(blob.size for blob in image.big_data.values()) for image in store.images()}
        assert (images.total, images.active) == (3, 1)
        assert images.size == 601 + 650 + 36 + 45 + 10 + sum(documents.values())
        assert (containers.total, containers.active, containers.size) == (1, 0, 14 + 7)
        assert (layers.total, layers.active, layers.size) == (3, 2, 36 + 72)
        assert (mounts.total, mounts.active, mounts.size) == (0, 0, 0)
        shown = {row.image.id: (row.shared, row.unique, row.containers) for row in found.images}
        assert shown[IMAGE] == (601, 650 + documents[IMAGE], 0)
        assert shown[DANGLING_ID] == (601, 36 + documents[DANGLING_ID], 0)
        assert shown["made"] == (0, 45 + 10 + documents["made"], 1)
        assert [(container.id, size) for container, size in found.containers] == [("c", 21)]
        assert [size for layer, size in found.layers if layer.id == LAYER] == [650]
        freed = pruned(store, everything=True)
        assert freed.size == images.reclaimable + layers.reclaimable
        assert pruned(store, containers=True).containers == {"c": containers.reclaimable}


def test_a_borrowed_layer_takes_nothing_here(copy, tmp_path):
    if copy.driver == "fuse":
        with opened(tmp_path / "mine", tmp_path / "run", "fuse", copy.root) as store:
            store.create_container("mine", image="made")
            assert [summary.size for summary in usage(store).summaries] == [0, 0, 0, 0]
            assert pruned(store, everything=True).size == 0
            assert pruned(store, containers=True).containers == {"mine": 0}
            assert store.layer_items.all() == []
