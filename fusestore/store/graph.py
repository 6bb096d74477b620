"""`Graph`: images as docker had them before 1.10, each a layer on top of its parent's (``graph.Graph``).

Upstream keeps a directory per image beside the driver's, and names the driver's layer like the image.  Here
an image is a row that names a layer of the driver, under a cache ID of its own, and the rules are those of
every row: it appears together with its layer, by one transaction, and goes before it.  An image that has
children, or is mounted, or held by anybody, stays.

What there is is kept in memory: images by id, and a `TruncIndex` of their ids.  Whenever another connection
has changed the database all of it is read again, so every process sees every other's images; what this object
changes it puts in order itself, so there is to be one graph for one `Database`.  An image whose layer or
JSON is lost is none that could be got; its id is in `unreadable`, and it can be deleted and registered anew.
"""

from __future__ import annotations

import io
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fusestore import __version__
from fusestore.architecture import architecture
from fusestore.digest import CacheID, Readable, new_cache_id
from fusestore.driver.api import Driver, Held
from fusestore.errors import AmbiguousName, ImageNotFound, InvalidImage, LayerInUse, MaxDepthExceeded
from fusestore.files import scratch, sweep, sweeping
from fusestore.store.database import Database
from fusestore.store.metadata import LayerMetadata
from fusestore.store.registered import RegisteredLayers
from fusestore.store.truncindex import TruncIndex
from fusestore.store.v1image import V1Image, validate_id
from fusestore.tar_stream import tar_stream

#: docker's MaxImageDepth, less one: a container's RW layer and its init layer count, and 127 is too many.
MAX_DEPTH = 126

_SHORT = 12  # digits of an id that are shown
_BUFFER = 1 << 20

#: Told how many bytes are done, and how many there are; 0 of these as long as nobody knows.
Progress = Callable[[int, int], object]


class Graph:
    """All v1 images of the store at `root`, whose rows are in `database` and whose layers `driver` keeps.

    A *name* below is an id or the beginning of it that no other id has; every method that takes one raises
    ImageNotFound and AmbiguousName.  Opening it removes what dead processes have left (docker 1.7: NewGraph).
    """

    def __init__(self, database: Database, driver: Driver, root: Path) -> None:
        self.driver = driver
        self.unreadable: list[str] = []
        self._database, self._tmp = database, root / "tmp"
        self._images: dict[str, V1Image] = {}
        self._cache_ids: dict[str, CacheID] = {}
        self._tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(self._tmp)
        self._layers = RegisteredLayers(LayerMetadata(database), driver)
        self._layers.collect()
        self.restore()

    # -- what there is --------------------------------------------------------------------------------

    def restore(self) -> None:
        """Read all rows; called for whenever another connection has changed the database."""
        seen = self._data_version()
        rows = self._database.select("SELECT * FROM graph_images ORDER BY created, id")
        self._images, self._cache_ids, self.unreadable = {}, {}, []
        for row in rows:
            self._cache_ids[row["id"]] = row["cache_id"]
            image = _load(row["json"], row["id"], row["size"])
            if image is None or not self.driver.exists(row["cache_id"]):
                self.unreadable.append(row["id"])
            else:
                self._images[image.id] = image
        self._index, self._seen = TruncIndex(self._images), seen

    def _data_version(self) -> int:
        """A number that changes with every commit of another connection (SQLite)."""
        return int(self._database.select("PRAGMA data_version")[0][0])

    def _refresh(self) -> None:
        if self._data_version() != self._seen:
            self.restore()

    def get(self, name: str) -> V1Image:
        """An image.  Raises ValueError for "" as well."""
        self._refresh()
        return self._images[self._index.get(name)]

    def exists(self, name: str) -> bool:
        """True where `get` would give an image."""
        try:
            self.get(name)
        except (ImageNotFound, AmbiguousName, ValueError):
            return False
        return True

    def map(self) -> dict[str, V1Image]:
        """All images by id."""
        self._refresh()
        return dict(self._images)

    def walk_all(self) -> Iterator[V1Image]:
        """All images, in the order they were registered in, to the second."""
        return iter(self.map().values())

    def by_parent(self) -> dict[str, list[V1Image]]:
        """The children of every image that has some, by its id."""
        found: dict[str, list[V1Image]] = {}
        for image in self.walk_all():
            if image.parent in self._images:
                found.setdefault(image.parent, []).append(image)
        return found

    def heads(self) -> dict[str, V1Image]:
        """The images that are nobody's parent, by id."""
        images = self.map()
        parents = {image.parent for image in images.values()}
        return {id_: image for id_, image in images.items() if id_ not in parents}

    def cache_id(self, name: str) -> CacheID:
        """What the driver calls the image's layer: ``driver.get`` mounts that."""
        image = self.get(name)  # first: it may read all of them again
        return self._cache_ids[image.id]

    def image_root(self, name: str) -> Path:
        """The directory that the driver keeps for the image (docker 1.7: ImageRoot)."""
        return self.driver.notes(self.cache_id(name))

    def raw_json(self, name: str) -> bytes:
        """The image's JSON as it is stored (docker 1.7: RawJson)."""
        return self.get(name).to_json().encode()

    # -- an image and those below it ------------------------------------------------------------------

    def get_parent(self, name: str) -> V1Image | None:
        """The image below; None for a base image."""
        image = self.get(name)
        return self.get(image.parent) if image.parent else None

    def walk_history(self, name: str) -> Iterator[V1Image]:
        """The image, then its parent, and so on to the base."""
        image: V1Image | None = self.get(name)
        while image is not None:
            yield image
            image = self.get_parent(image.id)

    def history(self, name: str) -> list[V1Image]:
        """The image and all below it, topmost first."""
        return list(self.walk_history(name))

    def get_parents_size(self, name: str) -> int:
        """Bytes of files in all images below this one."""
        return sum(image.size for image in self.history(name)[1:])

    def depth(self, name: str) -> int:
        """How many images there are from this one to its base, both counted."""
        return len(self.history(name))

    def check_depth(self, name: str) -> None:
        """Raises MaxDepthExceeded where the layers of a container would make the chain too long."""
        needed = self.depth(name) + 2
        if needed > MAX_DEPTH:
            raise MaxDepthExceeded(needed, MAX_DEPTH)

    # -- register -------------------------------------------------------------------------------------

    def create(
        self,
        layer_data: Readable | None,
        *,
        container_id: str = "",
        container_image: str = "",
        comment: str = "",
        author: str = "",
        container_config: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> V1Image:
        """Register an image with a fresh id, made now on this machine; raises as `register`.

        Only what was made in a container has a parent, `container_image`, and a container's configuration.
        """
        image = V1Image(
            id=new_cache_id(),
            parent=container_image if container_id else "",
            comment=comment,
            created=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            container=container_id,
            container_config=(container_config or {}) if container_id else {},
            docker_version=f"fusestore {__version__}",
            author=author,
            config=config,
            architecture=architecture()[0],
            os="linux",
        )
        return self.register(image, layer_data)

    def register(self, image: V1Image, layer_data: Readable | None = None) -> V1Image:
        """Unpack the uncompressed tar `layer_data` (None: nothing) as the layer of `image`; it with its size.

        Raises ValueError for an id that is none, or is an image's already, and touches nothing then.  Raises
        ImageNotFound for the parent, InvalidLayer, OSError; nothing is left then, and it can be repeated.
        An unreadable image of this id goes first, or raises LayerInUse where it has children.
        """
        validate_id(image.id)
        self._refresh()
        if image.id in self._images:
            raise ValueError(f"image {image.id} already exists")
        if image.parent and image.parent not in self._images:
            raise ImageNotFound(image.parent)
        if image.id in self.unreadable:
            with suppress(ImageNotFound):  # somebody else has deleted or mended it by now
                self._delete(image.id)
        cache_id = new_cache_id()
        with ExitStack() as stack:
            below = self._hold(image.parent, stack) if image.parent else None
            stack.callback(self.driver.discard, cache_id)
            self.driver.stage(cache_id, below)
            applied = self.driver.apply_diff(cache_id, layer_data or io.BytesIO())
            image = replace(image, size=applied.size)
            self._commit(image, cache_id)
        self._images[image.id], self._cache_ids[image.id] = image, cache_id
        self._index.add(image.id)
        return image

    def _hold(self, id_: str, stack: ExitStack) -> CacheID:
        """Keep an image from being deleted until `stack` is left; the cache ID of its layer."""
        try:
            stack.callback(self.driver.hold(self._cache_ids[id_]).close)
        except FileNotFoundError:
            raise ImageNotFound(id_) from None
        return self._cache_ids[id_]

    def _commit(self, image: V1Image, cache_id: CacheID) -> None:
        """Name a staged layer.  Raises ValueError where somebody else came first, ImageNotFound."""
        published: Held | None = None
        try:
            with self._database.transaction():
                self._insert(image, cache_id)
                published = self.driver.publish(cache_id)
        except BaseException:
            if published is not None:
                self._layers.unpublish(cache_id, published)
            raise
        published.close()

    def _insert(self, image: V1Image, cache_id: CacheID) -> None:
        values = image.id, image.parent or None, cache_id, image.size, image.to_json(), int(time.time())
        try:
            self._database.select("INSERT INTO graph_images VALUES (?, ?, ?, ?, ?, ?)", *values)
        except sqlite3.IntegrityError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
                raise ImageNotFound(image.parent) from None
            raise ValueError(f"image {image.id} already exists") from None

    # -- delete ---------------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Delete an image; one that is unreadable by its whole id.

        Raises LayerInUse while it has children, is mounted, or somebody works with it.
        """
        self._refresh()
        self._delete(name if name in self.unreadable else self._index.get(name))

    def _delete(self, id_: str) -> None:
        """Delete the image of this id that we know; another one that has it by now is not touched."""
        cache_id, which = self._cache_ids[id_], "FROM graph_images WHERE id = ? AND cache_id = ?"
        with ExitStack() as files:
            with self._database.transaction() as execute:
                if not execute(f"SELECT 1 {which}", (id_, cache_id)).fetchone():
                    raise ImageNotFound(id_)
                self._verify_unneeded(id_, cache_id)
                try:
                    files.enter_context(self.driver.removing(cache_id))
                except LayerInUse as exc:
                    raise LayerInUse(id_[:_SHORT], exc.reason) from None
                execute(f"DELETE {which}", (id_, cache_id))
            self._forget(id_)

    def _verify_unneeded(self, id_: str, cache_id: CacheID) -> None:
        """Raises LayerInUse."""
        children = self._database.select("SELECT id FROM graph_images WHERE parent = ? ORDER BY id", id_)
        if children:
            names = ", ".join(child["id"][:_SHORT] for child in children)
            raise LayerInUse(id_[:_SHORT], f"it is the parent of {names}")
        if self.driver.mounted(cache_id):
            raise LayerInUse(id_[:_SHORT], "it is mounted")

    def _forget(self, id_: str) -> None:
        del self._cache_ids[id_]
        if id_ in self.unreadable:
            self.unreadable.remove(id_)
        else:
            self._index.delete(id_)
            del self._images[id_]

    # -- the layer of an image ------------------------------------------------------------------------

    def tar_layer(self, name: str) -> io.BufferedReader:
        """What the image's layer changes, as a tar to read and close (docker 1.7: TarLayer).

        The bytes are the driver's, the same each time, and not those of the tar that was registered.
        """
        image = self.get(name)
        below = self._cache_ids[image.parent] if image.parent else None
        return tar_stream(self.driver.diff(self._cache_ids[image.id], below))

    def temp_layer_archive(self, name: str, progress: Progress | None = None) -> TempArchive:
        """`tar_layer` buffered on disk, so that its size is known; raises OSError as well."""
        with self.tar_layer(name) as tar, ExitStack() as undo:
            file = self._new_temp_file()
            undo.callback(file.close)
            while data := tar.read(_BUFFER):
                file.write(data)
                if progress:
                    progress(file.tell(), 0)
            archive = TempArchive(file)
            if progress:
                progress(archive.size, archive.size)
            undo.pop_all()
        return archive

    def _new_temp_file(self) -> IO[bytes]:
        """A file below ``tmp/`` without a name, so that it is gone with the process.

        Where the filesystem cannot make such, it has a name for a moment in which nobody may sweep.
        """
        with sweeping(self._tmp):
            return tempfile.TemporaryFile(dir=self._tmp)

    def mktemp(self) -> AbstractContextManager[Path]:
        """An empty directory below the store's ``tmp/``, deleted when the context ends.  Raises OSError."""
        return scratch(self._tmp)


class TempArchive:
    """A tar buffered on disk.  Its room is given back once it was read to its end, or closed.

    Also a context manager.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.size = self._left = file.tell()
        self._file = file
        file.seek(0)

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes (-1: all that is left), ``b""`` at the end.

        Raises ValueError when it was closed before.
        """
        if not self._left:
            return b""
        data = self._file.read(size)
        self._left -= len(data)
        if not self._left:
            self.close()
        return data

    def close(self) -> None:
        """Give the room back.  May be called twice."""
        self._file.close()

    def __enter__(self) -> TempArchive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def is_not_exist(exc: BaseException, id_: str) -> bool:
    """True where an error says that what has this id is not there (docker 1.7: IsNotExist)."""
    return isinstance(exc, ImageNotFound | FileNotFoundError) and id_ in str(exc)


def _load(text: str, id_: str, size: int) -> V1Image | None:
    """The image in a row; None when its JSON is damaged, or another image's."""
    try:
        image = V1Image.from_json(text)
    except InvalidImage:
        return None
    return replace(image, size=size) if image.id == id_ else None
