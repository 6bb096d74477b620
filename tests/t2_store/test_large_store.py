"""What calls cost in a store of twenty times the size: the same, unless they return what the size is of.

Not time is measured, which depends on who else works here, but work: the calls of functions, of Python and of
C, and the steps of SQLite's virtual machine.  Both come out the same each time, but for a few.  A scan of a
table, a look at every item, or a listing of a directory makes more than one for each item that is there; a
b-tree that is one page deeper makes none.  ``scripts/bench --rows store`` has the times, with 10,000 layers.
"""

import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest
from support.fsck import problems
from support.tars import Stream, member, tar

from fusestore.errors import AmbiguousName, DuplicateName, ItemNotFound, LayerInUse
from fusestore.store.storage import NewImage, Store

SMALL, LARGE = 3, 60  # images; layers are twice as many, containers a third
ITEM = SMALL - 1  # the number of one that both stores have
ABOVE = tar(member("above", b"x"))


def fill(store, count):
    """Layers with names, every other one registered; images on pairs of them as loading makes them."""
    for number in range(count):
        base = store.register(Stream(tar(member(f"base-{number}", b"%d" % number))))
        top = store.put_layer(
            "", base.id, [f"layer-{number}"], diff=Stream(tar(member(f"top-{number}", b"x")))
        )
        configuration = json.dumps({"number": number}).encode()
        store.create_images(
            [NewImage([f"localhost/image-{number}:latest"], top.id, configuration, b'{"n":%d}' % number)]
        )
        if number % SMALL == ITEM:
            store.create_container("", [f"container-{number}"], f"image-{number}")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The small and the large one."""
    top = tmp_path_factory.mktemp("stores")
    with ExitStack() as stack:
        opened = {count: stack.enter_context(reopened(top, count)) for count in (SMALL, LARGE)}
        for count, store in opened.items():
            fill(store, count)
        yield top, opened
    assert [problems(top / str(count)) for count in opened] == [[], []]


def reopened(top, count):
    return Store(str(top / str(count)), str(top / f"run-{count}"))


def work(function: Callable[[], object], store=None) -> int:
    """How much a call does: functions called, among them one for each step of a statement."""
    count = 0

    def called(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    connection = store._database._connection if store else None
    if connection:
        connection.set_progress_handler(lambda: 0, 1)
    sys.setprofile(called)
    try:
        function()
    finally:
        sys.setprofile(None)
        if connection:
            connection.set_progress_handler(None, 0)
    return count


def fails(error, function):
    with pytest.raises(error):
        function()


LOOKUPS = {
    "layer by id": lambda s: s.layer(s.layer(f"layer-{ITEM}").id),
    "layer by prefix": lambda s: s.layer(s.layer(f"layer-{ITEM}").id[:20]),
    "layer by digits of its chain ID": lambda s: s.layer(s.layer(f"layer-{ITEM}").parent[7:30]),
    "layer by name": lambda s: s.layer(f"layer-{ITEM}"),
    "image by id": lambda s: s.image(s.image(f"image-{ITEM}").id),
    "image by prefix": lambda s: s.image(s.image(f"image-{ITEM}").id[:20]),
    "image by full name": lambda s: s.image(f"localhost/image-{ITEM}:latest"),
    "image by digest": lambda s: s.image(f"image-{ITEM}@{s.image(f'image-{ITEM}').digest}"),
    "container by name": lambda s: s.container(f"container-{ITEM}"),
    "container by its layer": lambda s: s.container_by_layer(s.container(f"container-{ITEM}").layer),
    "anything": lambda s: [s.lookup(f"{kind}-{ITEM}") for kind in ("layer", "image", "container")],
    "what exists": lambda s: [s.exists(f"{kind}-{ITEM}") for kind in ("layer", "image", "container")],
    "what does not exist": lambda s: [s.exists("localhost/none:latest"), s.exists("0123456789")],
    "what is not found": lambda s: fails(ItemNotFound, lambda: s.lookup("none")),
    "an ambiguous prefix": lambda s: fails(AmbiguousName, lambda: s.layer("sha256:")),
    "names": lambda s: s.names(f"image-{ITEM}"),
    "layers by uncompressed digest": lambda s: s.layers_by_uncompressed_digest(
        s.layer(f"layer-{ITEM}").uncompressed_digest
    ),
    "layers by compressed digest": lambda s: s.layers_by_compressed_digest(
        s.layer(f"layer-{ITEM}").compressed_digest
    ),
    "images by digest": lambda s: s.images_by_digest(s.image(f"image-{ITEM}").digest),
    "images by top layer": lambda s: s.images_by_top_layer(f"layer-{ITEM}"),
    "sizes": lambda s: [s.image_size(f"image-{ITEM}"), s.layer_size(f"layer-{ITEM}")],
    "big data": lambda s: s.image_big_data(f"image-{ITEM}", "manifest"),
    "the layers of an image": lambda s: s.chain(s.image(f"image-{ITEM}")),
    "a handle": lambda s: s.layer_store.release(s.layer_store.get(s.layer(f"layer-{ITEM}").parent)),
}
LISTS = {
    "layers": lambda s: s.layers(),
    "images": lambda s: s.images(),
    "containers": lambda s: s.containers(),
}


def layers(store):
    """Make layers and delete them."""
    store.create_layer("one", f"layer-{ITEM}", ["one-name"])
    store.put_layer("two", "one", diff=Stream(ABOVE))
    fails(DuplicateName, lambda: store.create_layer("three", names=["one-name"]))
    fails(LayerInUse, lambda: store.delete_layer("one"))
    store.delete_layer("two")
    store.delete_layer("one-name")


def images(store):
    """The same with images."""
    store.put_layer("one", f"layer-{ITEM}", diff=Stream(ABOVE))
    store.create_image("two", ["two-name"], "one", big_data={"key": b"value"})
    store.delete_image("two", commit=False)
    store.delete_image("two-name")


def registered(store):
    """The same with registered layers."""
    store.layer_store.release(store.layer_store.register(Stream(ABOVE)))


def containers(store):
    """The same with containers."""
    store.create_container("one", ["one-name"], f"image-{ITEM}")
    store.container_directory("one")
    store.delete_container("one-name")


def facts(kind, store):
    """Change what is known of an item."""
    item = f"{kind}-{ITEM}"
    store.add_names(item, ["another"])
    store.remove_names(item, ["another"])
    store.set_metadata(item, "text")
    store.set_flag(item, "flag", 1)
    getattr(store, f"set_{kind}_big_data")(item, "key", b"value")


CHANGES = {function.__name__: function for function in (layers, images, registered, containers)}
CHANGES |= {f"facts of {kind}s": partial(facts, kind) for kind in ("layer", "image", "container")}


@pytest.mark.parametrize("call", [*LOOKUPS, *CHANGES])
def test_a_call_does_as_much_in_a_large_store_as_in_a_small_one(stores, call):
    function, counts = (LOOKUPS | CHANGES)[call], {}
    for count, store in stores[1].items():
        function(store)  # the first call of a process does more
        counts[count] = work(lambda store=store: function(store), store)
    assert counts[SMALL] > 100
    assert counts[LARGE] - counts[SMALL] < LARGE - SMALL, counts


def test_opening_a_store_does_not_look_at_what_is_in_it(stores):
    counts = {count: work(lambda count=count: reopened(stores[0], count).close()) for count in stores[1]}
    assert counts[SMALL] > 100
    assert counts[LARGE] - counts[SMALL] < LARGE - SMALL, counts


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_costs_the_same_for_each_item_and_a_fixed_number_of_statements(stores, kind):
    costs, statements = {}, {}
    for count, store in stores[1].items():
        run = statements[count] = []
        store._database._connection.set_trace_callback(run.append)
        length = len(LISTS[kind](store))
        store._database._connection.set_trace_callback(None)
        costs[count] = work(lambda store=store: LISTS[kind](store), store) / length
    assert costs[LARGE] < 1.1 * costs[SMALL], costs
    assert statements[LARGE] == statements[SMALL] != []


def test_layers_cost_no_file_descriptors(stores):
    store = stores[1][SMALL]
    before = os.listdir("/proc/self/fd")
    for number in range(10):
        store.register(Stream(tar(member(f"more-{number}", b"x"))))
        store.put_layer(f"more-{number}", diff=Stream(ABOVE))
    assert len(os.listdir("/proc/self/fd")) == len(before)
