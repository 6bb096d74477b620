"""Check what additional stores have.  They are somebody else's: problems are told, and never repaired.

Their owner goes on working meanwhile; what is gone when it is looked at again was no problem.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from fusestore.errors import (
    BigDataNotFound,
    CorruptStore,
    ImageNotFound,
    InvalidBigDataName,
    LayerNotFound,
    NotSupported,
)
from fusestore.store.additional import AdditionalStore
from fusestore.store.items import Image, LayerItem
from fusestore.store.tarsplit import assemble
from fusestore.store.upkeep.report import INCORRECT_DIGEST, WRONG_DIGEST, Kind, Problem
from fusestore.tar_stream import tar_stream

_CHUNK = 1 << 20


def additional_problems(
    store: AdditionalStore, progress: Callable[[str, int], None], *, quick: bool
) -> Iterator[Problem]:
    """What is wrong with the layers and images of an additional store, as far as we may read them."""
    damaged: dict[str, Problem] = {}
    for layer in store.layers():
        found = damaged.get(layer.parent) or _layer_problem(store, layer, progress, quick=quick)
        if found is not None and store.layer(layer.id) == layer:
            damaged[layer.id] = found
            inherited = found.item != layer.id
            yield Problem(Kind.RO_LAYER, layer.id, str(found)) if inherited else found
    for image in store.images():
        for what in _image_problems(store, image, damaged):
            if store.image(image.id) == image:
                yield Problem(Kind.RO_IMAGE, image.id, what)


def _layer_problem(
    store: AdditionalStore, layer: LayerItem, progress: Callable[[str, int], None], *, quick: bool
) -> Problem | None:
    with suppress(NotSupported, LayerNotFound, PermissionError):
        try:
            gone = [spec.path for spec in store.specs(layer.id) if not os.path.isdir(spec.path)]
            if gone:
                return Problem(Kind.RO_LAYER, layer.id, f"its files at {gone[0]} are missing")
            if not quick:
                progress(layer.id, layer.uncompressed_size or layer.size)
                _read(store, layer)
        except CorruptStore as exc:
            wrong_digest = exc.reason.startswith(WRONG_DIGEST)
            return Problem(Kind.RO_LAYER, layer.id, INCORRECT_DIGEST if wrong_digest else exc.reason)
        except FileNotFoundError as exc:
            return Problem(Kind.RO_LAYER, layer.id, f"{exc.filename} is missing")
    return None


def _read(store: AdditionalStore, layer: LayerItem) -> None:
    """Put the layer's exact tar together, if it can be.  Raises CorruptStore when it is another."""
    with ExitStack() as stack:
        stack.callback(store.hold(layer.id).close)
        record = store.record(layer.id)
        if record is None or layer.uncompressed_digest is None:
            return
        stack.callback(record.close)
        files = store.files(layer.id)
        pieces = assemble(record, files, layer.id)
        tar = stack.enter_context(tar_stream(pieces, layer.uncompressed_digest, files.close))
        while tar.read(_CHUNK):
            pass


def _image_problems(store: AdditionalStore, image: Image, damaged: dict[str, Problem]) -> Iterator[str]:
    if image.top_layer in damaged:
        yield str(damaged[image.top_layer])
    elif image.top_layer is not None and store.layer(image.top_layer) is None:
        yield f"its layer {image.top_layer} does not exist"
    for key, told in image.big_data.items():
        try:
            data = store.big_data("image", image.id, key)
        except (ImageNotFound, InvalidBigDataName):
            continue
        except (BigDataNotFound, FileNotFoundError):
            yield f"image data item {key!r} is missing"
        except CorruptStore as exc:
            yield f"image data item {key!r}: {exc.reason}"
        else:
            if len(data) != told.size:
                yield f"image data item {key!r} was changed: size mismatch"
