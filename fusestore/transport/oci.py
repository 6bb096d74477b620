"""An OCI image layout (image-layout.md): ``oci-layout``, ``index.json``, ``blobs/sha256/<hex>``.

It may be a directory or a tar of one; `Blobs` hides which.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fusestore import digest, reference
from fusestore.digest import Digest, Readable
from fusestore.errors import DigestMismatch, InvalidImage, InvalidReference
from fusestore.transport import document
from fusestore.transport.archive import Archive, Piece
from fusestore.transport.document import SIZE_LIMIT, Descriptor
from fusestore.transport.source import ImageSource, LayerSource

_REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_MAX_NESTING = 4  # of indexes


class Blobs(Protocol):
    """Where the files of a layout are."""

    name: str

    def open(self, name: str) -> Piece:
        """The file `name`.  Raises InvalidImage when there is none."""


class Directory:
    """A layout in a directory.  Blobs must be regular files in it: no symlinks, no fifos."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def open(self, name: str) -> Piece:
        """The file `name`.  Raises InvalidImage when there is none."""
        try:
            fd = os.open(self._path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            raise InvalidImage(self.name, f"there is no {name}") from None
        except OSError as exc:
            if exc.errno != errno.ELOOP:
                raise
            raise InvalidImage(self.name, f"{name} is a symlink, not a file") from None
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            os.close(fd)
            raise InvalidImage(self.name, f"{name} is not a regular file")
        return _OwnPiece(fd, 0, st.st_size)


class _OwnPiece(Piece):
    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class Layout:
    """An open layout."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._where = blobs.name
        marker = document.parse(self._small("oci-layout"), f"{self._where}/oci-layout")
        if not str(marker.get("imageLayoutVersion", "")).startswith("1."):
            raise InvalidImage(self._where, "not an OCI image layout of version 1")

    def image(self, ref: str | None) -> ImageSource:
        """The image that `ref` names, or the only one.  Raises InvalidImage, DigestMismatch."""
        index = document.parse(self._small("index.json"), f"{self._where}/index.json")
        if not document.is_index(index, f"{self._where}/index.json"):
            raise InvalidImage(self._where, "index.json is not an index")
        entry = self._choose(document.manifests(index, self._where), ref)
        manifest_bytes, manifest = self._manifest(entry)
        config, layers = document.layers(manifest, self._where)
        configuration = self._verified(config)
        diff_ids = document.diff_ids(document.parse(configuration, "the configuration"), self._where)
        if len(diff_ids) != len(layers):
            raise InvalidImage(self._where, f"{len(layers)} layers but {len(diff_ids)} diff IDs")
        sources = [
            LayerSource(diff_id, layer.digest, layer.size, self._opener(layer))
            for diff_id, layer in zip(diff_ids, layers, strict=True)
        ]
        return ImageSource(self._names(entry, ref), manifest_bytes, configuration, sources)

    def _choose(self, entries: list[Descriptor], ref: str | None) -> Descriptor:
        if ref is not None:
            named = [
                e for e in entries if ref in (e.annotations.get(_REF_NAME), e.annotations.get(_FULL_NAME))
            ]
            if named:
                return (
                    document.for_this_platform(named, f"{self._where}:{ref}") if len(named) > 1 else named[0]
                )
            raise InvalidImage(f"{self._where}:{ref}", f"no such reference; it has {_offer(entries)}")
        if len({e.annotations.get(_REF_NAME) for e in entries}) > 1:
            raise InvalidImage(self._where, f"it holds several images; add one of :{_offer(entries)}")
        if not entries:
            raise InvalidImage(self._where, "it holds no image")
        return document.for_this_platform(entries, self._where) if len(entries) > 1 else entries[0]

    def _manifest(self, entry: Descriptor) -> tuple[bytes, dict[str, Any]]:
        """The manifest behind an entry, through nested indexes."""
        for _ in range(_MAX_NESTING):
            data = self._verified(entry)
            parsed = document.parse(data, entry.digest)
            if not document.is_index(parsed, entry.digest):
                return data, parsed
            entry = document.for_this_platform(document.manifests(parsed, entry.digest), self._where)
        raise InvalidImage(self._where, "indexes are nested too deeply")

    def _names(self, entry: Descriptor, ref: str | None) -> Sequence[str]:
        """The full name an entry brings along: its reference, as podman reads it, else the layout's."""
        base = Path(self._where).resolve().name.split(".")[0].lower()
        tagged = f"{base}:{ref}" if ref else base
        named = (entry.annotations.get(_FULL_NAME), entry.annotations.get(_REF_NAME), ref, tagged, base)
        for name in named:
            with suppress(InvalidReference):
                parsed = reference.parse(str(name or ""))
                foreign = parsed.domain or (parsed.tag and name != tagged)
                return [parsed.full() if foreign else parsed.full(reference.LOCAL_DOMAIN)]
        return []

    # -- blobs ----------------------------------------------------------------------------------------

    def _small(self, name: str) -> bytes:
        with closing(self._blobs.open(name)) as piece:
            if piece.size > SIZE_LIMIT:
                raise InvalidImage(self._where, f"{name} is over the limit of {SIZE_LIMIT} bytes")
            return piece.read(SIZE_LIMIT)

    def _verified(self, blob: Descriptor) -> bytes:
        """A small blob, its size and digest checked."""
        if blob.size > SIZE_LIMIT:
            raise InvalidImage(self._where, f"{blob.digest} is over the limit of {SIZE_LIMIT} bytes")
        data = self._small(_path(blob.digest))
        if len(data) != blob.size or digest.of_bytes(data) != blob.digest:
            raise DigestMismatch(self._where, blob.digest, digest.of_bytes(data))
        return data

    def _opener(self, layer: Descriptor) -> Any:  # noqa: ANN401
        @contextmanager
        def opened() -> Iterator[Readable]:
            with closing(self._blobs.open(_path(layer.digest))) as piece:
                if piece.size != layer.size:
                    expected, actual = f"{layer.size} bytes", f"{piece.size} bytes"
                    raise DigestMismatch(f"layer {layer.digest}", expected, actual)
                yield piece

        return opened


def _path(name: Digest) -> str:
    return f"blobs/sha256/{digest.encoded(name)}"


def _offer(entries: list[Descriptor]) -> str:
    names = [str(e.annotations[_REF_NAME]) for e in entries if _REF_NAME in e.annotations]
    return ", ".join(sorted(set(names))) or "none"


def is_layout(archive: Archive) -> bool:
    """True for a tar that holds a layout."""
    return "oci-layout" in archive and "index.json" in archive
