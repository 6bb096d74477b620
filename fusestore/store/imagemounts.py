"""`ImageMounts`: look into images, as a library object or as a read-only mount.

A mount of an image is not counted: mounting it again changes nothing, and unmounting takes it away.  Images
of additional stores are read where they are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fusestore import config
from fusestore.driver import below, mounter
from fusestore.driver.api import Held
from fusestore.driver.layout import LayerSpec, MountSpec, View
from fusestore.driver.mounter import Mounted
from fusestore.driver.union.tree import Union
from fusestore.errors import ImageNotFound, LayerNotFound, MountNotFound, NotSupported
from fusestore.store.catalog import Catalog, top_layer
from fusestore.store.items import Image, Item

_LABEL = re.compile(r"[^A-Za-z0-9._-]+")


class ImageMounts(Catalog):
    """The part of `fusestore.store.storage.Store` that shows what is in images."""

    @contextmanager
    def union(self, item: Item) -> Iterator[Union]:
        """The files of an image, container or layer as a library object, without FUSE.

        It cannot be deleted meanwhile.  Raises LayerNotFound, OSError.
        """
        top = files_of(item)
        with ExitStack() as stack:
            if self.layer_items.exists(top):
                cache_id = self.layer_items.record(top).cache_id
                try:
                    union = stack.enter_context(self.graph_driver.union(cache_id))
                except FileNotFoundError:
                    raise LayerNotFound(top) from None
            else:
                specs = self._specs_held(top, stack)
                driver = self.graph_driver
                union = stack.enter_context(below.opened(specs, driver.ownership, driver.spelling))
            yield union

    def _specs_held(self, layer: str, stack: ExitStack) -> Sequence[LayerSpec]:
        """Where a layer and those below it are; held until `stack` is left."""
        held: Held
        if self.layer_items.exists(layer):
            cache_id = self.layer_items.record(layer).cache_id
            held = self.graph_driver.hold(cache_id)
            stack.callback(held.close)
            return self.graph_driver.layer_specs(self.graph_driver.chain(cache_id))
        store = self.additional_of(layer)
        if store is None:
            raise LayerNotFound(layer)
        held = store.hold(layer)
        stack.callback(held.close)
        return store.specs(layer)

    def driver_data(self, image: Image) -> dict[str, object]:
        """The driver's name and where it keeps the topmost layer, as podman's inspect tells it."""
        if image.top_layer is None:
            return {"Name": self.graph_driver.name, "Data": {}}
        if self.layer_items.exists(image.top_layer):
            cache_id = self.layer_items.record(image.top_layer).cache_id
            return {"Name": self.graph_driver.name, "Data": self.graph_driver.metadata(cache_id)}
        with ExitStack() as stack:
            upper, *lowers = [spec.path for spec in self._specs_held(image.top_layer, stack)]
        data = {"UpperDir": upper} | ({"LowerDir": ":".join(lowers)} if lowers else {})
        store = self.additional_of(image.top_layer)
        return {"Name": store.driver_name if store else "", "Data": data}

    def mount_image(self, image: Image, mountpoint: Path | None = None, *, allow_other: bool = False) -> Path:
        """Mount an image read-only on `mountpoint`, by default below the runroot; where it is mounted.

        Already mounted there: nothing changes.  Raises InvalidMountpoint, FuseUnavailable, MountFailed,
        OSError.
        """
        label = image.names[0] if image.names else image.id[:12]
        with ExitStack() as stack:
            specs = tuple(self._specs_held(files_of(image), stack))
            driver = self.graph_driver
            spec = MountSpec(
                specs,
                str(driver.path),
                driver.ownership,
                driver.spelling,
                label,
                allow_other,
                view=View(as_root=not allow_other),
            )
            place = Path(os.path.realpath(mountpoint)) if mountpoint else self._default_mountpoint(image)
            mounter.mount(spec, place, self.run_root)
        return place

    def _default_mountpoint(self, image: Image) -> Path:
        """``mnt/debian-12``; where another image has that already, ``mnt/debian-12-0123456789ab``."""
        directory = config.private(self.run_root / "mnt")
        if not image.names:
            return directory / image.id[:12]
        short = _LABEL.sub("-", image.names[0].rpartition("/")[2])
        present = mounter.find(directory / short, self.run_root)
        if present is None or self._shows(present, image):
            return directory / short
        return directory / f"{short}-{image.id[:12]}"

    def _shows(self, present: Mounted, image: Image) -> bool:
        if image.top_layer is None or present.spec.upper is not None:
            return False
        with ExitStack() as stack, suppress(LayerNotFound, OSError):
            return present.spec.layers[0].path == self._specs_held(image.top_layer, stack)[0].path
        return False

    def mounts(self) -> list[Mounted]:
        """Every mount of this runroot: of images, layers and containers."""
        return mounter.mounted(self.run_root)

    def mounts_of(self, image: Image) -> list[str]:
        """Where an image is mounted."""
        return [present.mountpoint for present in self.mounts() if self._shows(present, image)]

    def is_mountpoint(self, place: str) -> bool:
        """True when one of ours is mounted on the directory `place`."""
        return bool(self._mounted_at(place))

    def _mounted_at(self, what: str) -> list[str]:
        try:
            place = os.path.realpath(what)
        except FileNotFoundError:  # our working directory is gone, perhaps with a mount; `what` may be a name
            place = what
        return [m.mountpoint for m in self.mounts() if m.mountpoint == place]

    def unmount_image(self, what: str, *, force: bool = False) -> list[str]:
        """Unmount a directory, or an image wherever it is mounted; the directories.

        Raises MountNotFound, LayerInUse when it is busy (`force` takes it away all the same), OSError.
        """
        found = self._mounted_at(what)
        if not found:
            with suppress(ImageNotFound):
                found = self.mounts_of(self.image(what))
        if not found:
            raise MountNotFound(what)
        for mountpoint in found:
            mounter.unmount(Path(mountpoint), self.run_root, force=force)
        return found


def files_of(item: Item) -> str:
    """The id of the layer with an item's files.  Raises NotSupported for an image without layers."""
    layer = top_layer(item)
    if layer is None:
        raise NotSupported(f"{item.id[:12]}: an image without layers has no files")
    return layer
