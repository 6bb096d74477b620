"""The calls of a `Store` with their arguments, for machines that try them at random and compare with a model.

`OPERATIONS` says what each call takes; `drawn` draws that, `perform` does it.  What comes back is plain JSON,
the same as from `support.store_model.Model`.  `described` and `expected` tell all that is in a store and what
should be.
"""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.layers import data, find, paths
from support.store_items import ARCHIVES, BAD_KEYS, DIGESTS, LONG, TARS, Refusal
from support.store_model import Model
from support.tars import Stream, member, tar

from fusestore import config
from fusestore.errors import FusestoreError
from fusestore.store.items import Item, LayerItem
from fusestore.store.storage import Store

Choose = Callable[[Sequence[Any]], Any]

#: What each call takes; see `drawn`.  A word with "?" may be "".
OPERATIONS = {
    "create_layer": ("new layer", "layer?", "names"),
    "put_layer": ("new layer", "layer?", "names", "tar", "bool"),
    "apply_diff": ("layer", "tar"),
    "delete_layer": ("layer",),
    "mount": ("mountable",),
    "unmount": ("mountable", "bool"),
    "mounted": ("mountable",),
    "write": ("mountable", "number"),
    "changes": ("layer?", "layer"),
    "diff": ("layer?", "layer"),
    "diff_size": ("layer?", "layer"),
    "layer_size": ("layer",),
    "layers_by_uncompressed_digest": ("digest",),
    "create_image": ("new image", "names", "layer?", "text", "keys"),
    "delete_image": ("image", "bool"),
    "image_size": ("image",),
    "images_by_top_layer": ("layer",),
    "create_container": ("new container", "names", "image?", "container's layer"),
    "delete_container": ("container",),
    "container_size": ("container",),
    "container_by_layer": ("mountable",),
    "set_container_directory_file": ("container", "file", "text"),
    "from_container_directory": ("container", "file"),
    "delete": ("any",),
    "lookup": ("any",),
    "exists": ("any",),
    "names": ("any",),
    "set_names": ("any", "names"),
    "add_names": ("any", "names"),
    "remove_names": ("any", "names"),
    "metadata": ("any",),
    "set_metadata": ("any", "text"),
    "set_flag": ("any", "flag", "number"),
    "clear_flag": ("any", "flag"),
    "set_layer_big_data": ("layer", "key", "text"),
    "set_image_big_data": ("image", "key", "text"),
    "set_container_big_data": ("container", "key", "text"),
    "layer_big_data": ("layer", "key"),
    "image_big_data": ("image", "key"),
    "container_big_data": ("container", "key"),
    "wipe": (),
}
_FLAT = tuple(range(len(TARS)))
_PLAIN = {
    "number": range(100),
    "bool": (False, False, True),
    "text": ("", "some text", "t" * 300),
    "flag": ("f", "g"),
    "key": ("manifest", "k", "manifest-K/2", *BAD_KEYS),
    "file": ("f", "d/g", "/f", "../f"),
    "digest": _FLAT,
    "tar": (*_FLAT, *_FLAT, len(TARS)),  # the last one is no tar
}
_LISTS = {"keys": (["manifest"], ["k", "manifest"], [], ["k", "."])}


def words(kind: str, space: str) -> list[str]:
    """Ids, names and beginnings, most of which may mean something of `kind`; all begin with `space`."""
    ids = [f"{space}{kind[0]}{number}" for number in range(3)]
    layers = [f"{space}k{number}" for number in range(2)] if kind != "image" else []
    names = [f"{space}n{number}" for number in range(4)]
    return [*ids, *ids, *layers, *names, f"{space}{kind[0]}", f"{space}short", f"{space}nothing", space + "c"]


def drawn(operation: str, choose: Choose, space: str) -> list[Any]:
    """Arguments for an operation."""
    return [_drawn(kind, choose, space) for kind in OPERATIONS[operation]]


def _drawn(kind: str, choose: Choose, space: str) -> Any:
    if kind in _PLAIN:
        return choose(_PLAIN[kind])
    if kind in _LISTS:
        return choose(_LISTS[kind])
    if kind == "names":
        known = [f"{space}n{number}" for number in range(4)] + [f"localhost/{space}short:latest"]
        return [choose(known) for _ in range(choose((0, 1, 1, 1, 2, 3)))]
    if kind == "container's layer":
        return choose([f"{space}k0", f"{space}k1", f"{space}k2", f"{space}l0"])
    if kind.startswith("new "):
        letter = kind[4]
        ids = [f"{space}{letter}{number}" for number in range(4)] * 3
        return choose([*ids, "sha256:x", LONG] if letter == "l" else [*ids, LONG])
    if kind == "any":
        return choose([word for k in ("layer", "image", "container") for word in words(k, space)])
    if kind == "mountable":
        return choose([*words("layer", space), *words("container", space)])
    optional = kind.endswith("?")
    return choose(words(kind.removesuffix("?"), space) + [""] * (4 * optional))


def prelude(space: str) -> list[tuple[str, list[Any]]]:
    """What to begin with."""
    return [
        ("put_layer", [f"{space}l0", "", [f"{space}n0"], 0, False]),
        ("put_layer", [f"{space}l1", f"{space}l0", [], 1, True]),
        ("create_image", [f"{space}i0", [f"{space}n1"], f"{space}l0", "text", ["manifest"]]),
        ("create_container", [f"{space}c0", [f"{space}n2"], f"{space}i0", f"{space}k0"]),
    ]


# -- doing them -------------------------------------------------------------------------------------------


def opened(place: Path, driver: str, *additional: Path) -> Store:
    """The store below `place`."""
    options = config.options(str(place / "store"), str(place / "run"))
    return Store(options=replace(options, graph_driver_name=driver, additional_stores=additional))


def perform(store: Store, operation: str, arguments: Sequence[Any]) -> Any:
    """What a store says to an operation; ``!`` and the error's class when it refuses."""
    try:
        return _performed(store, operation, arguments)
    except (FusestoreError, ValueError, FileNotFoundError) as exc:
        return f"!{type(exc).__name__}"


def foreseen(model: Model, operation: str, arguments: Sequence[Any]) -> Any:
    """The same of a model."""
    if operation.endswith("big_data"):
        kind = operation.removeprefix("set_").removesuffix("_big_data")
        call = getattr(model, "set_big_data" if operation.startswith("set_") else "big_data")
        arguments = [kind, *arguments]
    else:
        call = getattr(model, operation)
    try:
        return call(*arguments)
    except Refusal as exc:
        return f"!{exc}"


def _performed(store: Store, operation: str, arguments: Sequence[Any]) -> Any:
    if operation in _SPECIAL:
        return _SPECIAL[operation](store, *arguments)
    if operation in ("layer_big_data", "image_big_data", "container_big_data"):
        return _big_data(store, operation, *arguments)
    answer = getattr(store, operation)(*_encoded(operation, arguments))
    if isinstance(answer, Item):
        return answer.id
    if isinstance(answer, bytes):
        return answer.decode()
    if isinstance(answer, tuple | list):
        return [part.id if isinstance(part, Item) else part for part in answer]
    return answer


def _encoded(operation: str, arguments: Sequence[Any]) -> list[Any]:
    """Data as bytes."""
    if operation.startswith("set_") and operation.endswith(("big_data", "file")):
        return [*arguments[:-1], arguments[-1].encode()]
    return list(arguments)


def _stream(number: int) -> Stream:
    return Stream(ARCHIVES[number] if number < len(TARS) else tar(member("never", b"1" * 600))[:700])


def _create_image(
    store: Store, item: str, names: Sequence[str], layer: str, text: str, keys: Sequence[str]
) -> str:
    return store.create_image(item, names, layer, text, big_data={key: key.encode() for key in keys}).id


def _put_layer(
    store: Store, item: str, parent: str, names: Sequence[str], number: int, writeable: bool
) -> str:
    return store.put_layer(item, parent, names, writeable=writeable, diff=_stream(number)).id


def _write(store: Store, word: str, number: int) -> bool:
    if not store.mounted(word):
        return False
    place = store.mount(word)
    try:
        record = store.layer_items.record(store._mountable(word))
        if not store.graph_driver.is_read_write(record.cache_id):
            return False
        (place / "w").write_bytes(b"%d" % number)
    finally:
        store.unmount(word)
    return True


def _diff(store: Store, below: str, word: str) -> list[list[str]]:
    with store.diff(below, word) as stream:
        return contents(stream.read())


def contents(archive: bytes) -> list[list[str]]:
    """Names and data of the members of a tar, sorted."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened_tar:
        members = [m for m in opened_tar if m.isfile()]
        return sorted([m.name, opened_tar.extractfile(m).read().decode()] for m in members)  # type: ignore[union-attr]


def _changes(store: Store, below: str, word: str) -> list[list[str]]:
    changes = store.changes(below, word)
    return [[change.kind.name.lower(), change.path.decode().lstrip("/")] for change in changes]


def _big_data(store: Store, operation: str, word: str, key: str) -> list[object]:
    data = getattr(store, operation)(word, key)
    size, keys = getattr(store, operation + "_size")(word, key), getattr(store, "list_" + operation)(word)
    assert getattr(store, operation + "_digest")(word, key).startswith("sha256:")
    return [data.decode(), size, keys]


_SPECIAL: dict[str, Callable[..., Any]] = {
    "create_image": _create_image,
    "put_layer": _put_layer,
    "apply_diff": lambda store, word, number: store.apply_diff(word, _stream(number)),
    "mount": lambda store, word: store.mount(word) and None,
    "unmount": lambda store, word, force: store.unmount(word, force=force),
    "delete_image": lambda store, word, commit: store.delete_image(word, commit=commit),
    "write": _write,
    "changes": _changes,
    "diff": _diff,
    "images_by_top_layer": lambda store, word: sorted(i.id for i in store.images_by_top_layer(word)),
    "layers_by_uncompressed_digest": lambda store, number: sorted(
        layer.id for layer in store.layers_by_uncompressed_digest(DIGESTS[number])
    ),
}


# -- all of it --------------------------------------------------------------------------------------------


def described(store: Store, space: str) -> dict[str, Any]:
    """Everything in a store that has an id in `space`, by kind and id."""
    found: dict[str, Any] = {}
    for layer in store.layers():
        if layer.id.startswith(space):
            more = {} if layer.read_only else _of_layer(store, layer)
            found[f"layer {layer.id}"] = _common(store, layer) | more
    for image in store.images():
        if image.id.startswith(space):
            more = {"layer": image.top_layer or "", "history": list(image.names_history)}
            found[f"image {image.id}"] = _common(store, image) | more
    for container in store.containers():
        if container.id.startswith(space):
            more = {"image": container.image, "layer": container.layer}
            found[f"container {container.id}"] = _common(store, container) | more
    return found


def _common(store: Store, item: Item) -> dict[str, Any]:
    blobs = {key: store.big_data(item, key).decode() for key in item.big_data}
    return {
        "names": list(item.names),
        "metadata": item.metadata,
        "flags": dict(item.flags),
        "big data": blobs,
    }


def _of_layer(store: Store, layer: LayerItem) -> dict[str, Any]:
    record = store.layer_items.record(layer.id)
    with store.graph_driver.union(record.cache_id) as union:
        files = {path.decode(): len(data(union, find(union, path))) for path in paths(union)}
    return {
        "parent": layer.parent,
        "files": files,
        "tar": DIGESTS.index(layer.uncompressed_digest) if layer.uncompressed_digest else None,
        "exact": record.reproducible,
        "mounted": store.mounted(layer.id),
        "writable": store.graph_driver.is_read_write(record.cache_id),
    }


def expected(model: Model) -> dict[str, Any]:
    """The same of a model."""
    found: dict[str, Any] = {}
    for kind, items in model.kinds.items():
        for name, item in items.items():
            blobs = {key: data.decode() for key, data in item.blobs.items()}
            found[f"{kind} {name}"] = {
                "names": item.names,
                "metadata": item.metadata,
                "flags": item.flags,
                "big data": blobs,
            }
    for name, layer in model.layers.items():
        files = {file: len(data) for file, (_, data) in layer.files.items()}
        found[f"layer {name}"] |= {"parent": layer.parent, "files": files, "tar": layer.tar}
        more = {"exact": layer.exact is not None, "mounted": layer.mounted, "writable": layer.writable}
        found[f"layer {name}"] |= more
    for name, image in model.images.items():
        found[f"image {name}"] |= {"layer": image.layer, "history": image.history}
    for name, container in model.containers.items():
        found[f"container {name}"] |= {"image": container.image, "layer": container.layer}
    return found


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """What is otherwise, field by field."""
    return [
        f"{name}, {field}: {here.get(field)}, not {there.get(field)}"
        for name in sorted({*found, *wanted})
        for here, there in [(found.get(name, {}), wanted.get(name, {}))]
        for field in sorted({*here, *there})
        if here.get(field) != there.get(field)
    ]
