"""Digests as distinct types, chain IDs, and a reader that hashes what passes through it.

A layer has two names.  Its *diff ID* is the digest of its uncompressed tar.  Its *chain ID* names the
layer together with everything below it:  a base layer's chain ID is its diff ID, any other's is
``sha256(parent chain ID + " " + diff ID)`` over the full ``sha256:...`` strings (OCI image-spec, config.md,
"Layer ChainID").  The *cache ID* is the random name of a layer's directory in the driver and says nothing
about content.

Digests come from the wire, and names are made of them.  `parse` is the one gate: nothing that failed its
expression ever becomes a path.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import NewType, Protocol

Digest = NewType("Digest", str)
DiffID = NewType("DiffID", str)
ChainID = NewType("ChainID", str)
CacheID = NewType("CacheID", str)

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CACHE_ID = re.compile(r"[0-9a-f]{64}")


class Readable(Protocol):
    """Anything that gives bytes: at most `size`, and ``b""`` only at the end."""

    def read(self, size: int, /) -> bytes: ...


def parse(text: object) -> Digest:
    """`text` as a digest.  Raises ValueError unless it is ``sha256:`` and 64 lower-case hex digits."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise ValueError(f"not a sha256 digest: {text!r}")
    return Digest(text)


def parse_cache_id(text: str) -> CacheID:
    """`text` as a cache ID.  Raises ValueError unless it is 64 lower-case hex digits."""
    if not _CACHE_ID.fullmatch(text):
        raise ValueError(f"not a cache ID: {text!r}")
    return CacheID(text)


def encoded(digest: str) -> str:
    """The 64 hex digits of a parsed digest, as used for file names and image ids."""
    return digest.removeprefix("sha256:")


def of_bytes(data: bytes) -> Digest:
    """The digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def chain_id(parent: ChainID | None, diff_id: DiffID) -> ChainID:
    """The chain ID of a layer with `diff_id` on top of `parent` (None: a base layer)."""
    if parent is None:
        return ChainID(diff_id)
    return ChainID(of_bytes(f"{parent} {diff_id}".encode()))


def create_chain_id(diff_ids: Iterable[DiffID]) -> ChainID | None:
    """The chain ID of layers with these diff IDs, lowest first; None for none (moby: CreateChainID)."""
    chain = None
    for diff_id in diff_ids:
        chain = chain_id(chain, diff_id)
    return chain


def new_cache_id() -> CacheID:
    """A fresh random cache ID (moby: stringid.GenerateRandomID)."""
    return CacheID(secrets.token_hex(32))


class HashingReader:
    """Pass bytes on and remember their digest and count."""

    def __init__(self, source: Readable) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.size = 0

    def read(self, size: int = 1 << 20, /) -> bytes:
        """At most `size` bytes of the source; ``b""`` at its end."""
        data = self._source.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def drain(self) -> None:
        """Read on to the end, so that the digest covers every byte."""
        while self.read(1 << 20):
            pass

    def digest(self) -> Digest:
        """The digest of everything read so far."""
        return Digest("sha256:" + self._hash.hexdigest())
