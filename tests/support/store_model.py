"""What a `Store` should do, as dictionaries: the model that `support.store_machine` compares it with.

Names of methods are the Store's.  Each returns what `support.store_machine.perform` makes of the Store's
answer, or raises `Refusal` with the name of the error's class; it has changed nothing then, but where the
Store says so.  Layers have files in their root only, with a stamp that says who wrote them; a tar is one of
`support.store_items.TARS`.
"""

from collections.abc import Iterable, Sequence
from copy import deepcopy
from typing import Any

from support.store_items import ARCHIVES, BAD_KEYS, LONG, TARS, Container, Files, Image, Layer, Refusal


class Model:
    """A store in memory."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[str, Any]] = {"layer": {}, "image": {}, "container": {}}
        self._stamp = 0

    @property
    def layers(self) -> dict[str, Layer]:
        return self.kinds["layer"]

    @property
    def images(self) -> dict[str, Image]:
        return self.kinds["image"]

    @property
    def containers(self) -> dict[str, Container]:
        return self.kinds["container"]

    # -- finding --------------------------------------------------------------------------------------

    def exact(self, kind: str, word: str) -> list[str]:
        """The id of what has this id or name."""
        if word in self.kinds[kind]:
            return [word]
        found = [i for i, item in self.kinds[kind].items() if word in item.names]
        if kind == "container":
            found = found or [i for i, item in self.containers.items() if item.layer == word]
        return found

    def find(self, kind: str, word: str) -> str:
        """The id of what `word` means among one kind."""
        words = [word]
        if kind == "image":
            words += [f"localhost/{word}:latest", f"docker.io/library/{word}:latest"]
        found = next(filter(None, (self.exact(kind, w) for w in words)), None)
        found = found or [i for i in self.kinds[kind] if word and i.startswith(word)]
        if len(found) > 1:
            raise Refusal("AmbiguousName")
        if not found:
            raise Refusal(f"{kind.capitalize()}NotFound")
        return found[0]

    def any(self, word: str) -> tuple[str, str]:
        """The kind and id of what `word` means, exact words first."""
        for exact in (True, False):
            for kind, items in self.kinds.items():
                try:
                    found = self.find(kind, word)
                except Refusal:
                    continue
                if not exact or word == found or word in items[found].names:
                    return kind, found
        raise Refusal("ItemNotFound")

    def _item(self, word: str) -> Any:
        kind, found = self.any(word)
        return self.kinds[kind][found]

    def lookup(self, word: str) -> str:
        return self.any(word)[1]

    def exists(self, word: str) -> bool:
        try:
            return bool(self.any(word))
        except Refusal:
            return False

    def _refuse_taken(self, kind: str, item: str, names: Iterable[str]) -> None:
        if item == LONG:
            raise Refusal("ValueError")
        if item in self.kinds[kind]:
            raise Refusal("DuplicateID")
        if any(name in other.names for other in self.kinds[kind].values() for name in names):
            raise Refusal("DuplicateName")

    # -- layers ---------------------------------------------------------------------------------------

    def create_layer(self, item: str, parent: str, names: Sequence[str]) -> str:
        return self._make_layer(item, self._parent(parent), names)

    def put_layer(self, item: str, parent: str, names: Sequence[str], number: int, writeable: bool) -> str:
        return self._make_layer(item, self._parent(parent), names, number, writeable)

    def _parent(self, word: str) -> str:
        found = self.find("layer", word) if word else ""
        if any(container.layer == found for container in self.containers.values()):
            raise Refusal("ParentIsContainer")
        return found

    def _make_layer(
        self,
        item: str,
        parent: str,
        names: Sequence[str] = (),
        number: int | None = None,
        writable: bool = True,
    ) -> str:
        if item.startswith("sha256:"):
            raise Refusal("ValueError")
        self._refuse_taken("layer", item, names)
        if parent:
            self.layers[parent].writable = False
        if number == len(TARS):
            raise Refusal("InvalidLayer")
        files = dict(self.layers[parent].files) if parent else {}
        made = Layer(list(dict.fromkeys(names)), parent=parent, files=files, writable=writable)
        self._apply(made, number)
        made.exact = number
        self.layers[item] = made
        return item

    def _apply(self, layer: Layer, number: int | None) -> None:
        layer.tar = number
        for name, data in TARS[number].items() if number is not None else ():
            layer.files.pop(name, None)
            if data is not None:
                layer.files[name] = 0, data

    def apply_diff(self, word: str, number: int) -> int:
        layer = self.layers[self.find("layer", word)]
        if not layer.writable or layer.mounted:
            raise Refusal("LayerInUse")
        was_empty = layer.files == (self.layers[layer.parent].files if layer.parent else {})
        if number == len(TARS):
            raise Refusal("InvalidLayer")
        self._apply(layer, number)
        layer.exact = number if was_empty else None
        return len(ARCHIVES[number])

    def _refuse_needed(self, layer: str) -> None:
        if any(other.parent == layer for other in self.layers.values()):
            raise Refusal("LayerHasChildren")
        if any(image.layer == layer for image in self.images.values()):
            raise Refusal("LayerUsedByImage")

    def delete_layer(self, word: str) -> None:
        layer = self.find("layer", word)
        self._refuse_needed(layer)
        if any(container.layer == layer for container in self.containers.values()):
            raise Refusal("LayerUsedByContainer")
        del self.layers[layer]

    def _mountable(self, word: str) -> Layer:
        found = [self.containers[c].layer for c in self.exact("container", word)] or self.exact("layer", word)
        if not found:
            found = [c.layer for i, c in self.containers.items() if word and i.startswith(word)]
        return self.layers[found[0] if len(found) == 1 else self.find("layer", word)]

    def mount(self, word: str) -> None:
        layer = self._mountable(word)
        layer.mounted += 1
        if layer.writable:
            layer.exact = None

    def unmount(self, word: str, force: bool) -> bool:
        layer = self._mountable(word)
        if not layer.mounted:
            raise Refusal("NotMounted")
        layer.mounted -= layer.mounted if force else 1
        return layer.mounted > 0

    def mounted(self, word: str) -> int:
        return self._mountable(word).mounted

    def write(self, word: str, number: int) -> bool:
        """Write a file into a layer that is mounted and takes changes."""
        layer = self._mountable(word)
        if not layer.mounted or not layer.writable:
            return False
        self._stamp += 1
        layer.files["w"] = self._stamp, b"%d" % number
        return True

    # -- what is in them ------------------------------------------------------------------------------

    def _changed(self, below: str, word: str) -> tuple[Layer, str, dict[str, bytes | None]]:
        """A layer, what it is compared with, and what it has otherwise."""
        found = self.find("layer", word)
        layer, parent = self.layers[found], self.layers[found].parent
        try:
            parent = self.find("layer", below) if below else parent
        except Refusal as exc:
            if str(exc) != "LayerNotFound":
                raise
        under: Files = self.layers[parent].files if parent else {}
        changed: dict[str, bytes | None] = {n: f[1] for n, f in layer.files.items() if under.get(n) != f}
        return layer, parent, changed | {name: None for name in under if name not in layer.files}

    def changes(self, below: str, word: str) -> list[list[str]]:
        _, parent, changed = self._changed(below, word)
        under: Files = self.layers[parent].files if parent else {}

        def kind(name: str) -> str:
            return "delete" if changed[name] is None else "modify" if name in under else "add"

        return [[kind(name), name] for name in sorted(changed)]

    def diff(self, below: str, word: str) -> list[list[str]]:
        layer, parent, changed = self._changed(below, word)
        if layer.exact is not None and parent == layer.parent:
            changed = TARS[layer.exact]
        named = {f".wh.{n}" if data is None else n: (data or b"").decode() for n, data in changed.items()}
        return [[name, data] for name, data in sorted(named.items())]

    def diff_size(self, below: str, word: str) -> int:
        return sum(len(data or b"") for data in self._changed(below, word)[2].values())

    def layer_size(self, word: str) -> int:
        number = self.layers[self.find("layer", word)].tar
        return -1 if number is None else len(ARCHIVES[number])

    # -- images and containers ------------------------------------------------------------------------

    def create_image(
        self, item: str, names: Sequence[str], layer: str, text: str, keys: Sequence[str]
    ) -> str:
        top = self.find("layer", layer) if layer else ""
        self._refuse_taken("image", item, names)
        if set(keys) & set(BAD_KEYS):
            raise Refusal("InvalidBigDataName")
        self.images[item] = Image(
            list(dict.fromkeys(names)), text, {}, {k: k.encode() for k in keys}, layer=top
        )
        return item

    def delete_image(self, word: str, commit: bool) -> list[str]:
        found = self.find("image", word)
        if any(container.image == found for container in self.containers.values()):
            raise Refusal("ImageUsedByContainer")
        trial = deepcopy(self)
        image, deleted = trial.images.pop(found), []
        layer = image.layer
        while layer:
            try:
                trial._refuse_needed(layer)
            except Refusal:
                break
            if any(container.layer == layer for container in self.containers.values()):
                break
            if commit and self.layers[layer].mounted:
                if not deleted:
                    raise Refusal("LayerInUse")
                break
            deleted.append(layer)
            layer = trial.layers.pop(layer).parent
        if commit:
            self.kinds = trial.kinds
        return deleted

    def image_size(self, word: str) -> int:
        image = self.images[self.find("image", word)]
        size, layer = sum(map(len, image.blobs.values())), image.layer
        while layer:
            size += self.diff_size("", layer) if self.layers[layer].tar is None else self.layer_size(layer)
            layer = self.layers[layer].parent
        return size

    def create_container(self, item: str, names: Sequence[str], image: str, layer: str) -> str:
        found = self.find("image", image) if image else ""
        self._refuse_taken("container", item, names)
        self._make_layer(layer, self.images[found].layer if found else "")
        self.containers[item] = Container(list(dict.fromkeys(names)), image=found, layer=layer)
        return item

    def delete_container(self, word: str) -> None:
        found = self.find("container", word)
        self._refuse_needed(self.containers[found].layer)
        del self.layers[self.containers.pop(found).layer]

    def container_size(self, word: str) -> int:
        container = self.containers[self.find("container", word)]
        blobs = [*container.blobs.values(), *container.directory.values()]
        return self.diff_size("", container.layer) + sum(map(len, blobs))

    def delete(self, word: str) -> None:
        kind, found = self.any(word)
        if kind == "layer":
            self.delete_layer(found)
        elif kind == "container":
            self.delete_container(found)
        elif any(container.image == found for container in self.containers.values()):
            raise Refusal("ImageUsedByContainer")
        else:
            del self.images[found]

    def wipe(self) -> None:
        for items in self.kinds.values():
            items.clear()

    def images_by_top_layer(self, word: str) -> list[str]:
        layer = self.find("layer", word)
        return sorted(i for i, image in self.images.items() if image.layer == layer)

    def layers_by_uncompressed_digest(self, number: int) -> list[str]:
        return sorted(i for i, layer in self.layers.items() if layer.tar == number)

    def container_by_layer(self, word: str) -> str:
        layer = self.find("layer", word)
        for item, container in self.containers.items():
            if container.layer == layer:
                return item
        raise Refusal("ContainerNotFound")

    # -- names, metadata, flags, big data, directories ------------------------------------------------

    def names(self, word: str) -> list[str]:
        return list(self._item(word).names)

    def set_names(self, word: str, names: Sequence[str]) -> None:
        self._rename(word, lambda present: names)

    def add_names(self, word: str, names: Sequence[str]) -> None:
        self._rename(word, lambda present: [*names, *present])

    def remove_names(self, word: str, names: Sequence[str]) -> None:
        self._rename(word, lambda present: [n for n in present if n not in names])

    def _rename(self, word: str, change: Any) -> None:
        kind, found = self.any(word)
        item = self.kinds[kind][found]
        names = list(dict.fromkeys(change(item.names)))
        for other in self.kinds[kind].values():
            other.names = [n for n in other.names if n not in names]
        item.names = names
        if kind == "image":
            item.history = list(dict.fromkeys([*reversed(names), *item.history]))

    def metadata(self, word: str) -> str:
        return str(self._item(word).metadata)

    def set_metadata(self, word: str, text: str) -> None:
        self._item(word).metadata = text

    def set_flag(self, word: str, flag: str, value: object) -> None:
        self._item(word).flags[flag] = value

    def clear_flag(self, word: str, flag: str) -> None:
        self._item(word).flags.pop(flag, None)

    def set_big_data(self, kind: str, word: str, key: str, data: str) -> None:
        item = self.kinds[kind][self.find(kind, word)]
        if key in BAD_KEYS:
            raise Refusal("InvalidBigDataName")
        item.blobs[key] = data.encode()

    def big_data(self, kind: str, word: str, key: str) -> list[object]:
        item = self.kinds[kind][self.find(kind, word)]
        if key not in item.blobs:
            raise Refusal("BigDataNotFound")
        return [item.blobs[key].decode(), len(item.blobs[key]), sorted(item.blobs)]

    def set_container_directory_file(self, word: str, file: str, data: str) -> None:
        container = self.containers[self.find("container", word)]
        if ".." in file:
            raise Refusal("InvalidBigDataName")
        container.directory[file.lstrip("/")] = data.encode()

    def from_container_directory(self, word: str, file: str) -> str:
        container = self.containers[self.find("container", word)]
        if ".." in file:
            raise Refusal("InvalidBigDataName")
        if file.lstrip("/") not in container.directory:
            raise Refusal("FileNotFoundError")
        return container.directory[file.lstrip("/")].decode()
