"""Every exception this package raises on purpose.

Four faults have four spellings, so that a caller knows whom to blame without reading a message:

=============  ==============================================================
the caller     ``ValueError`` / ``TypeError``, or a subclass below (an unknown
               name, a handle released twice)
the input      `InvalidInput`: a tar, a manifest or an archive that is wrong
the machine    ``OSError`` as the kernel raised it, or `FuseUnavailable`
ourselves      `CorruptStore`: an invariant of the store is broken
=============  ==============================================================

What failed is in attributes; ``str()`` is one line that a person can act on.
The union core (`fusestore.driver.union`) raises ``OSError`` and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence


def printable(name: bytes | str) -> str:
    """A name from an image as text that cannot steer a terminal or break a line."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class FusestoreError(Exception):
    """Base of all errors below; the command line prints it and exits 125."""


# -- the caller's fault -------------------------------------------------------------------------------


class ItemNotFound(FusestoreError):
    """No layer, image or container has this name or id (containers/storage: ErrNotAnID)."""

    def __init__(self, name: str, reason: str = "no layer, image or container has this name or id") -> None:
        super().__init__(f"{printable(name)}: {reason}")
        self.name = name


class ImageNotFound(ItemNotFound):
    """No image has this name or id (containers/storage: ErrImageUnknown, ErrNotAnImage)."""

    def __init__(self, name: str, near: Sequence[str] = ()) -> None:
        hint = f"; did you mean {' or '.join(near)}?" if near else "; `fusestore images` lists what there is"
        super().__init__(name, f"image not known{hint}")
        self.near = tuple(near)


class AmbiguousName(FusestoreError):
    """An id prefix that fits more than one image or layer (truncindex: ErrAmbiguousPrefix)."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"{prefix}: fits more than one; give more of the id")
        self.prefix = prefix


class InvalidReference(FusestoreError, ValueError):
    """Not an image name (distribution reference grammar)."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)}: not an image name: {reason}")
        self.name, self.reason = name, reason


class LayerNotFound(ItemNotFound):
    """No such layer (containers/storage: ErrLayerUnknown, ErrNotALayer; moby: ErrLayerDoesNotExist)."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "layer does not exist; `fusestore layers` lists what there is")


class ContainerNotFound(ItemNotFound):
    """No container has this name or id (containers/storage: ErrContainerUnknown, ErrNotAContainer)."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "container not known; `fusestore containers` lists what there is")


class DuplicateID(FusestoreError, ValueError):
    """An item of this kind has this id already (containers/storage: ErrDuplicateID)."""

    def __init__(self, kind: str, item: str) -> None:
        super().__init__(f"{printable(item)}: a {kind} with this id exists; choose another id")
        self.kind, self.item = kind, item


class DuplicateName(FusestoreError, ValueError):
    """Another item of this kind has this name (containers/storage: ErrDuplicateName)."""

    def __init__(self, kind: str, name: str, item: str) -> None:
        super().__init__(
            f'{printable(name)}: the {kind} name is in use by "{printable(item)}"; remove that {kind} or'
            " choose another name"
        )
        self.kind, self.name, self.item = kind, name, item


class ParentIsContainer(FusestoreError, ValueError):
    """A container's layer cannot be the parent of another (containers/storage: ErrParentIsContainer)."""

    def __init__(self, layer: str, container: str) -> None:
        super().__init__(
            f'{printable(layer)}: would-be parent layer belongs to the container "{printable(container)}";'
            " commit the container and use the new layer"
        )
        self.layer, self.container = layer, container


class BigDataNotFound(FusestoreError, KeyError):
    """An item has no big data under this key (containers/storage: os.ErrNotExist)."""

    def __init__(self, item: str, key: str) -> None:
        super().__init__(f"{printable(item)}: big data {printable(key)} does not exist")
        self.item, self.key = item, key

    __str__ = FusestoreError.__str__  # a KeyError shows the repr


class InvalidText(FusestoreError, ValueError):
    """An id, a name or metadata with bytes that are no UTF-8."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{printable(text)}: not text: it must be UTF-8")
        self.text = text


class InvalidBigDataName(FusestoreError, ValueError):
    """A key that big data cannot have (containers/storage: ErrInvalidBigDataName)."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{printable(key) or '(empty)'}: not a key for big data: it cannot be a file name")
        self.key = key


class StoreIsReadOnly(FusestoreError):
    """What is to be changed is in a store that is only read (containers/storage: ErrStoreIsReadOnly)."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{printable(what)}: read-only: it can be looked at, but not changed")
        self.what = what


class InvalidOption(FusestoreError, ValueError):
    """An option of the store that does not exist, or has a value that it cannot have.

    `source` is the flag, the variable or the file that it was given in.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{printable(source)}: {printable(reason)}")
        self.source, self.reason = source, reason


class LayerNotRetained(FusestoreError):
    """A layer handle was released twice (moby: ErrLayerNotRetained)."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(f"{chain_id}: layer not retained")
        self.chain_id = chain_id


class NotReproducible(FusestoreError):
    """The exact tar of a layer cannot be put together again."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(
            f"{chain_id}: the exact tar is lost: it held a path twice, or was loaded before fusestore kept a"
            " record of tars; a diff with the same content can be made (`layer export --diff`)"
        )
        self.chain_id = chain_id


class NotAParent(FusestoreError, ValueError):
    """A layer was to be compared with one that is not below it (moby: TarStreamFrom)."""

    def __init__(self, parent: str) -> None:
        super().__init__(
            f"layer ID '{printable(parent)}' is not a parent of the specified layer: cannot provide diff to"
            " non-parent"
        )
        self.parent = parent


class RWLayerNotFound(FusestoreError):
    """No RW layer has this name (moby: ErrMountDoesNotExist)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{printable(name)}: mount does not exist")
        self.name = name


class MountNameConflict(FusestoreError):
    """An RW layer has this name already (moby: ErrMountNameConflict)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{printable(name)}: mount already exists with name")
        self.name = name


class ActiveMount(FusestoreError):
    """An RW layer cannot be deleted while it is mounted (moby: ErrActiveMount)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{printable(name)}: mount still active; unmount it first")
        self.name = name


class NotMounted(FusestoreError):
    """An RW layer that is not mounted was to be unmounted, or its path asked for (moby: ErrNotMounted)."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{printable(name)}: not mounted")
        self.name = name


class LayerInUse(FusestoreError):
    """The layer cannot be deleted: mounted, or held by another process."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{printable(what)}: in use: {reason}")
        self.what, self.reason = what, reason


class LayerHasChildren(LayerInUse):
    """Other layers are on it (containers/storage: ErrLayerHasChildren)."""


class LayerUsedByImage(LayerInUse):
    """An image is on it (containers/storage: ErrLayerUsedByImage)."""


class LayerUsedByContainer(LayerInUse):
    """It is a container's, or it is mounted (containers/storage: ErrLayerUsedByContainer)."""


class ImageUsedByContainer(FusestoreError):
    """A container is made from it (containers/storage: ErrImageUsedByContainer)."""

    def __init__(self, image: str, container: str) -> None:
        super().__init__(
            f'{printable(image)}: image is in use by the container "{printable(container)}"; remove it first'
        )
        self.image, self.container = image, container


class MaxDepthExceeded(FusestoreError):
    """A chain would get more than 125 layers (moby: ErrMaxDepthExceeded)."""

    def __init__(self, depth: int, limit: int) -> None:
        super().__init__(f"max depth exceeded: layer {depth} of a chain that may have {limit}")
        self.depth, self.limit = depth, limit


class MountNotFound(FusestoreError):
    """Nothing of ours is mounted there."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{printable(what)}: not mounted by fusestore; `fusestore mount` lists mounts")
        self.what = what


class InvalidMountpoint(FusestoreError):
    """The directory asked for cannot be mounted on."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: cannot mount here: {reason}")
        self.path, self.reason = path, reason


# -- the input's fault --------------------------------------------------------------------------------


class InvalidInput(FusestoreError):
    """Bytes from outside that are not what they claim to be."""


class InvalidLayer(InvalidInput):
    """A layer tar that cannot or must not be unpacked; `entry` is the member's name, if one is at fault."""

    def __init__(self, reason: str, entry: bytes | None = None) -> None:
        where = f"entry {printable(entry)}: " if entry is not None else ""
        super().__init__(f"invalid layer: {where}{reason}")
        self.reason, self.entry = reason, entry


class InvalidImage(InvalidInput):
    """A manifest, configuration, index or archive that is not an image we can read."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{printable(source)}: {reason}")
        self.source, self.reason = source, reason


class DigestMismatch(InvalidInput):
    """Content whose digest or size is not the one it was announced with."""

    def __init__(self, what: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{what}: expected {printable(expected)}, got {actual}; the source is damaged or was changed"
        )
        self.what, self.expected, self.actual = what, expected, actual


# -- the machine's fault ------------------------------------------------------------------------------


class FuseUnavailable(FusestoreError):
    """This machine does not let us mount; `hint` is the remedy."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(f"{reason}; {hint}")
        self.reason, self.hint = reason, hint


class MountFailed(FusestoreError):
    """The server behind a mount did not come up; `log` is the tail of what it said."""

    def __init__(self, mountpoint: str, reason: str) -> None:
        super().__init__(f"{printable(mountpoint)}: mount failed: {reason}")
        self.mountpoint, self.reason = mountpoint, reason


class NotSupported(FusestoreError):
    """This store, driver or filesystem cannot do that (graphdriver: ErrNotSupported)."""


# -- our fault ----------------------------------------------------------------------------------------


class CorruptStore(FusestoreError):
    """An invariant of the store is broken; `path` is where."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{printable(path)}: the store is damaged: {reason}")
        self.path, self.reason = path, reason
