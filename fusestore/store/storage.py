"""`Store`: layers and images in one place, and every rule that spans them.

Open one, use it, close it; it is also a context manager.  Any number of processes may have the same store
open.  Opening sweeps ``tmp/`` of what dead processes left.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fusestore import config, digest, reference
from fusestore.digest import ChainID
from fusestore.driver import mounter
from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.mounter import Mounted
from fusestore.driver.union.tree import Union
from fusestore.errors import (
    AmbiguousName,
    ImageNotFound,
    InvalidReference,
    LayerInUse,
    LayerNotFound,
    MountNotFound,
    NotSupported,
)
from fusestore.files import sweep
from fusestore.store.database import Database
from fusestore.store.images import MANIFEST, Image, ImageStore, configuration_key
from fusestore.store.layerstore import LayerStore
from fusestore.store.metadata import LayerMetadata, LayerRecord
from fusestore.store.registered import Released

_PREFIX = re.compile(r"[0-9a-f]{1,64}")
_LABEL = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be added: full names, its topmost layer, and its documents as the exact bytes."""

    names: Sequence[str]
    top_layer: ChainID | None
    configuration: bytes
    manifest: bytes


class Store:
    """A store at `root`, with its mounts recorded at `runroot` (defaults: see `fusestore.config`).

    Raises CorruptStore, NotSupported, OSError.
    """

    def __init__(
        self, root: str | None = None, runroot: str | None = None, *, limits: Limits | None = None
    ) -> None:
        options = config.options(root, runroot)
        self.root = config.private(options.root)
        self.runroot = config.private(options.runroot)
        self.driver = FuseDriver(self.root, self.runroot)
        sweep(self.root / "tmp")
        self._database = Database(self.root / "store.db")
        self._metadata = LayerMetadata(self._database)
        self.layers = LayerStore(self._metadata, self.driver, limits)
        self._images = ImageStore(self._database, self.root)

    def close(self) -> None:
        """Close the database and let go of handles.  Mounts stay."""
        self.layers.close()
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- images ---------------------------------------------------------------------------------------

    def images(self) -> list[Image]:
        """Every image, newest first."""
        return self._images.all()

    def lookup(self, name: str) -> Image:
        """The image of a name, an id, or a unique prefix of an id.  Raises ImageNotFound, AmbiguousName."""
        bare = name.removeprefix("sha256:")
        image = self._images.get(bare) or self._by_name(name)
        if image is not None:
            return image
        if _PREFIX.fullmatch(bare):
            found = self._images.by_prefix(bare)
            if len(found) > 1:
                raise AmbiguousName(name)
            if found and (image := self._images.get(found[0])) is not None:
                return image
        raise ImageNotFound(name, self._near(name))

    def _by_name(self, name: str) -> Image | None:
        try:
            candidates = reference.candidates(name)
        except InvalidReference:
            return None
        for candidate in candidates:
            tagged, at, wanted = candidate.partition("@")
            if at:
                same = [i for i in self.images() if i.digest == wanted and _has_repository(i, tagged)]
                if same:
                    return same[0]
            elif (image := self._images.by_name(candidate)) is not None:
                return image
        return None

    def _near(self, name: str) -> list[str]:
        """Names that may have been meant: spelled alike, or the same repository with another tag."""
        known = {n: n for image in self.images() for n in image.names}
        known |= {n.rpartition("/")[2]: n for n in known}
        known |= {n.partition(":")[0]: full for n, full in known.items()}
        bare = name.rpartition("/")[2].partition(":")[0]
        close = [m for n in (name, bare) for m in difflib.get_close_matches(n, known, n=3, cutoff=0.6)]
        return list(dict.fromkeys(known[n] for n in close))[:3]

    def create_image(
        self, names: Sequence[str], top_layer: ChainID | None, configuration: bytes, manifest: bytes
    ) -> Image:
        """Add one image; see `create_images`."""
        return self.create_images([NewImage(names, top_layer, configuration, manifest)])[0]

    def create_images(self, new: Sequence[NewImage]) -> list[Image]:
        """Add images on layers that the caller holds, all of them or none.

        An image's id is the digest of its configuration.  Raises LayerNotFound, OSError.
        """
        try:
            with self._database.transaction():
                return [self._create_image(image) for image in new]
        except BaseException as exc:
            self._images.collect()
            if isinstance(exc, sqlite3.IntegrityError):
                raise LayerNotFound(", ".join(str(image.top_layer) for image in new)) from None
            raise

    def _create_image(self, new: NewImage) -> Image:
        image_id = digest.encoded(digest.of_bytes(new.configuration))
        size = sum(record.size for record in self._metadata.chain(new.top_layer))
        created, name = _created(new.configuration), digest.of_bytes(new.manifest)
        image = Image(image_id, tuple(new.names), new.top_layer, name, size, created)
        self._images.create(image, {MANIFEST: new.manifest, configuration_key(image_id): new.configuration})
        return self._images.get(image_id) or image

    def untag(self, names: Sequence[str]) -> None:
        """Take full names away from their images; the images stay."""
        self._images.remove_names(names)

    def delete_image(self, image: Image) -> list[Released]:
        """Delete an image and the layers that nothing else needs; those layers.  Raises LayerInUse."""
        with ExitStack() as stack:
            try:
                with self._database.transaction():
                    self._images.delete_row(image.id)
                    released = self.layers.delete_unneeded(image.top_layer, stack)
            except LayerInUse:
                places = self.mounts_of(image)
                reason = f"mounted at {', '.join(places)}" if places else "another process works with it"
                raise LayerInUse(image.names[0] if image.names else image.id[:12], reason) from None
        self._images.delete_blobs(image.id)
        return released

    def configuration(self, image: Image) -> Mapping[str, object]:
        """The image's configuration (OCI image-spec, config.md).  Raises CorruptStore."""
        return dict(json.loads(self._images.big_data(image.id, configuration_key(image.id))))

    def manifest(self, image: Image) -> Mapping[str, object]:
        """The image's manifest.  Raises CorruptStore."""
        return dict(json.loads(self._images.big_data(image.id, MANIFEST)))

    def chain(self, image: Image) -> list[LayerRecord]:
        """The image's layers, topmost first."""
        return self._metadata.chain(image.top_layer)

    def collect(self) -> None:
        """Delete what no row names: leftovers of processes that died."""
        self.layers.collect()
        self._images.collect()

    # -- looking inside -------------------------------------------------------------------------------

    @contextmanager
    def union(self, image: Image) -> Iterator[Union]:
        """The image's files as a library object, without FUSE.  Raises LayerNotFound, OSError.

        The image cannot be deleted meanwhile.
        """
        top = self._top(image)
        with ExitStack() as stack:
            try:
                union = stack.enter_context(self.driver.union(top.cache_id))
            except FileNotFoundError:
                raise LayerNotFound(top.chain_id) from None
            yield union

    def _top(self, image: Image) -> LayerRecord:
        if image.top_layer is None:
            raise NotSupported(f"{image.id[:12]}: an image without layers has no files")
        return self._metadata.get(image.top_layer)

    def mount(self, image: Image, mountpoint: Path | None = None, *, allow_other: bool = False) -> Path:
        """Mount an image read-only on `mountpoint`, by default below the runroot; where it is mounted.

        Already mounted there: nothing changes.  Raises InvalidMountpoint, FuseUnavailable, MountFailed,
        OSError.
        """
        label = image.names[0] if image.names else image.id[:12]
        top = self._top(image)
        with self.driver.hold(top.cache_id):
            spec = self.driver.spec(top.cache_id, label, allow_other=allow_other)
            place = Path(os.path.realpath(mountpoint)) if mountpoint else self._default_mountpoint(image)
            mounter.mount(spec, place, self.runroot)
        return place

    def _default_mountpoint(self, image: Image) -> Path:
        """``mnt/debian-12``; where another image has that already, ``mnt/debian-12-0123456789ab``."""
        directory = config.private(self.runroot / "mnt")
        if not image.names:
            return directory / image.id[:12]
        short = _LABEL.sub("-", image.names[0].rpartition("/")[2])
        present = mounter.find(directory / short, self.runroot)
        if present is None or self._shows(present, image):
            return directory / short
        return directory / f"{short}-{image.id[:12]}"

    def _shows(self, present: Mounted, image: Image) -> bool:
        if image.top_layer is None:
            return False
        return present.spec.layers[0].path == str(self.driver.diff_directory(self._top(image).cache_id))

    def mounts(self) -> list[Mounted]:
        """Every mount of this runroot."""
        return mounter.mounted(self.runroot)

    def mounts_of(self, image: Image) -> list[str]:
        """Where an image is mounted."""
        return [present.mountpoint for present in self.mounts() if self._shows(present, image)]

    def unmount(self, what: str, *, force: bool = False) -> list[str]:
        """Unmount a directory, or an image wherever it is mounted; the directories.

        Raises MountNotFound, LayerInUse when it is busy (`force` takes it away all the same), OSError.
        """
        try:
            place = os.path.realpath(what)
        except FileNotFoundError:  # our working directory is gone, perhaps with a mount; `what` may be a name
            place = what
        found = [m.mountpoint for m in self.mounts() if m.mountpoint == place]
        if not found:
            with suppress(ImageNotFound):
                found = self.mounts_of(self.lookup(what))
        if not found:
            raise MountNotFound(what)
        for mountpoint in found:
            mounter.unmount(Path(mountpoint), self.runroot, force=force)
        return found


def _has_repository(image: Image, name: str) -> bool:
    wanted = reference.repository_and_tag(name)[0]
    return any(reference.repository_and_tag(n)[0] == wanted for n in image.names)


def _created(configuration: bytes) -> int:
    """Seconds since 1970 of the configuration's RFC 3339 ``created``; 0 when it has none that can be read."""
    text = json.loads(configuration).get("created") or ""
    try:
        # Go writes nanoseconds, which fromisoformat refuses.
        moment = datetime.fromisoformat(re.sub(r"\.\d+", "", str(text)))
        return int(moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).timestamp())
    except (ValueError, OverflowError):  # astimezone() too: the first and last years have edges
        return 0
