"""From a place that a user names to images in a store.

For each layer: blob -> digest of what is read -> decompressed, a thread ahead -> diff ID -> unpacked.  The
blob's digest is compared when its end is reached, the diff ID before the layer is named, and the image is
named last.  Whatever goes wrong, the layers that this import made are given back, and the store is as before.

Layers that the store has already are not unpacked again, but their blobs are still verified.  The images of
one archive are named together or not at all.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from fusestore.compression import ahead, decompressed
from fusestore.digest import ChainID, DiffID, HashingReader, Readable, chain_id
from fusestore.errors import DigestMismatch, InvalidImage, LayerNotFound
from fusestore.store.items import Image
from fusestore.store.layer import Layer
from fusestore.store.layeritems import media_type
from fusestore.store.storage import NewImage, Store
from fusestore.transport import archive, docker, oci
from fusestore.transport.source import ImageSource, LayerSource, Progress, Quiet

TRANSPORTS = ("oci", "oci-archive", "docker-archive")


@contextmanager
def _sources(place: str, tmp: Path, stdin: IO[bytes] | None) -> Iterator[list[ImageSource]]:
    """The images at `place`: ``TRANSPORT:PATH[:REF]``, a path, or ``-``.  Raises InvalidImage, OSError."""
    transport, colon, rest = place.partition(":")
    if not colon or transport not in TRANSPORTS:
        transport, rest = "", place
    path, ref = (rest, None) if rest == "-" else _split(rest)
    if rest != "-":
        os.stat(path)  # one clear error for what is not there
    if transport == "oci" or (not transport and os.path.isdir(path)):
        yield [oci.Layout(oci.Directory(Path(path))).image(ref)]
        return
    stream = stdin or sys.stdin.buffer
    with archive.opened(Path(path) if path != "-" else stream, tmp) as opened:
        yield _in_archive(opened, transport, ref)


def _in_archive(opened: archive.Archive, transport: str, ref: str | None) -> list[ImageSource]:
    # Docker since 25 writes both kinds into one tar; manifest.json has the full names.
    if transport != "oci-archive" and docker.is_docker(opened):
        return docker.images(opened, ref)
    if transport != "docker-archive" and oci.is_layout(opened):
        return [oci.Layout(opened).image(ref)]
    kind = {"": "an OCI or Docker archive"}.get(transport, f"an {transport}:")
    raise InvalidImage(opened.name, f"not {kind}")


def _split(rest: str) -> tuple[str, str | None]:
    """PATH[:REF]; the path is the longest part before a colon that exists."""
    if os.path.exists(rest):
        return rest, None
    for position in range(len(rest) - 1, 0, -1):
        if rest[position] == ":" and os.path.exists(rest[:position]):
            return rest[:position], rest[position + 1 :]
    return rest, None


def load(
    store: Store,
    place: str,
    *,
    names: Sequence[str] = (),
    progress: Progress | None = None,
    stdin: IO[bytes] | None = None,
) -> list[Image]:
    """Import the images at `place` and name them: by the full names in `names` and by their own.

    Those come first in the `Image.names` of what is returned, before names an image has from earlier loads.
    Raises InvalidImage, InvalidLayer, DigestMismatch, MaxDepthExceeded, OSError.
    """
    store.collect()
    with ExitStack() as handles, _sources(place, store.graph_root / "tmp", stdin) as sources:
        new = [_import(store, source, names, progress or Quiet(), handles) for source in sources]
        return store.create_images(new)


def _import(
    store: Store, source: ImageSource, names: Sequence[str], progress: Progress, handles: ExitStack
) -> NewImage:
    """Register an image's layers; they stay held until `handles` is left."""
    top: ChainID | None = None
    for layer in source.layers:
        handle = _layer(store, layer, top, progress)
        handles.callback(store.layer_store.release, handle)
        top = handle.chain_id
    return NewImage([*names, *source.names], top, source.configuration, source.manifest)


def _layer(store: Store, source: LayerSource, parent: ChainID | None, progress: Progress) -> Layer:
    progress.start((source.digest or source.diff_id).removeprefix("sha256:")[:12], source.size)
    with source.open() as blob:
        verified = _Verified(blob, source, progress)
        plain = decompressed(verified)
        with ahead(plain) as stream:
            try:
                handle = store.layer_store.get(chain_id(parent, source.diff_id))
            except LayerNotFound:
                handle = store.layer_store.register_with_descriptor(
                    stream, parent, _descriptor(source, plain.format), source.diff_id
                )
                outcome = "done"
            else:
                handle, outcome = _verify_unread(store, handle, stream), "already exists"
    progress.finish(outcome)
    return handle


def _descriptor(source: LayerSource, form: str) -> dict[str, object]:
    """What the layer came as; nothing where the source does not name a compressed blob's digest."""
    if source.digest is None and form:
        return {}
    return {"mediaType": media_type(form), "digest": source.digest or source.diff_id, "size": source.size}


def _verify_unread(store: Store, handle: Layer, stream: Readable) -> Layer:
    """A layer that is there already was found by what the image claims; its blob must bear that out."""
    reader = HashingReader(stream)
    try:
        reader.drain()
        if DiffID(reader.digest()) != handle.diff_id:
            raise DigestMismatch("layer", handle.diff_id, reader.digest())
    except BaseException:
        store.layer_store.release(handle)
        raise
    return handle


class _Verified:
    """A blob that raises DigestMismatch at its end if it was not what its descriptor says."""

    def __init__(self, blob: Readable, source: LayerSource, progress: Progress) -> None:
        self._hashing = HashingReader(blob)
        self._source = source
        self._progress = progress

    def read(self, size: int, /) -> bytes:
        data = self._hashing.read(size)
        self._progress.advance(len(data))
        expected = self._source.digest
        if not data and expected is not None and self._hashing.digest() != expected:
            raise DigestMismatch(f"layer blob {expected}", expected, self._hashing.digest())
        return data
