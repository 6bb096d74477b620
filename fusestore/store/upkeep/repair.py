"""Repair: mend what a check has found, as far as it can be proved (containers/storage: ``Store.Repair``).

Before anything is done its reason is looked at again, under the lock that keeps it so, for the report may be
old: what no row names is collected as always, a layer is deleted only while its row names the directory that
was read.  Each step is one that the store takes anyway, so a repair that was killed has done a part of it,
and another one does the rest.

What is damaged is deleted, with what is on it, topmost first; the containers among that, and RW layers, only
with `force`, as they hold somebody's work.  Without it, and where something is mounted, what they are on
stays too.  What the rows do not tell cannot be made anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fusestore import digest
from fusestore.digest import CacheID, ChainID
from fusestore.driver import mounter
from fusestore.driver.mounter import Mounted
from fusestore.errors import FusestoreError, ItemNotFound, LayerInUse, RWLayerNotFound
from fusestore.files import write_durably
from fusestore.store.database import Database
from fusestore.store.images import configuration_key
from fusestore.store.metadata import LayerMetadata
from fusestore.store.storage import Store
from fusestore.store.upkeep.check import check, furniture, place_of
from fusestore.store.upkeep.leftovers import miscounted
from fusestore.store.upkeep.report import Kind, Problem, Remedy, Report
from fusestore.store.upkeep.rows import Rows

_WORK = (Kind.CONTAINER, Kind.RW_LAYER)  # what somebody has put work into
_WORK_TABLES = ("containers", "rw_layers")
_TIES = (("layers", "parent"), ("images", "top_layer"), ("rw_layers", "parent"))  # that refer to layers
_DOCUMENTS: dict[str, dict[str, str | None]] = {
    "layers": {"flags": "{}", "descriptor": None, "owners": None},
    "images": {"flags": "{}", "history": "[]"},
    "containers": {"flags": "{}"},
}  # JSON columns, and what they are when they are empty


#: The digest of an image that was loaded, and so has a configuration, is its manifest's.
_DIGEST = """UPDATE images SET digest = m.digest FROM big_data AS m, big_data AS c
    WHERE images.id = ?1 AND (m.kind, m.item, m.key) = ('image', ?1, 'manifest')
    AND (c.kind, c.item, c.key) = ('image', ?1, ?2)"""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was done, as lines, and what is left, with the reason."""

    done: Sequence[str]
    left: Sequence[Problem]


def repair(store: Store, report: Report, *, force: bool = False) -> Repaired:
    """Mend what `report` has; `force` deletes damaged containers and RW layers too.  Raises OSError."""
    with closing(Database(store.graph_root / "store.db", read_only=store.read_only)) as database:
        return _Repair(store, database, report, force=force).run()


class _Repair:
    def __init__(self, store: Store, database: Database, report: Report, *, force: bool) -> None:
        self._store, self._database, self._report, self._force = store, database, report, force
        self._metadata = LayerMetadata(database)
        self._done: list[str] = []
        self._left: list[Problem] = []

    def run(self) -> Repaired:
        if self._store.read_only:
            return Repaired((), [_because(p, "the store is read-only") for p in self._report.problems])
        steps: dict[Remedy, Callable[[list[Problem]], None]] = {
            Remedy.COLLECT: self._collect,
            Remedy.UNMOUNT: self._unmount,
            Remedy.UNNAME: self._unname,
            Remedy.RESTORE: self._restore,
            Remedy.RESIZE: self._resize,
            Remedy.DELETE: self._delete,
            Remedy.NONE: self._left.extend,
        }
        for remedy, step in steps.items():
            if found := self._report.of(remedy=remedy):
                step(found)
        return Repaired(self._done, self._left)

    def _say(self, verb: str, problem: Problem) -> None:
        line = f"{verb} {problem.kind.value} {problem.item}"
        if line not in self._done:
            self._done.append(line)

    # -- what is left over ----------------------------------------------------------------------------

    def _collect(self, found: list[Problem]) -> None:
        driver = self._store.graph_driver
        for problem in found:
            if problem.kind is Kind.DRIVER_LAYER:
                with suppress(FileNotFoundError):
                    _make_lock(driver.path / problem.item)  # without one nobody can delete it
        self._store.collect(deep=True)
        for problem in found:
            home = driver.path if problem.kind is Kind.DRIVER_LAYER else self._store.graph_root
            if os.path.lexists(home / problem.item):
                self._left.append(_because(problem, "another process works with it"))
            else:
                self._say("deleted", problem)

    def _unmount(self, found: list[Problem]) -> None:
        for present in self._store.mounts():
            if not present.alive:
                self._detach(present)
        self._store.graph_driver.cleanup()
        miscounted(self._store, correct=True)
        own = self._store.run_root / "mnt"
        for problem in found:
            place = Path(problem.item)
            if mounter.is_dead(place) or (place.parent == own and place.exists() and not place.is_mount()):
                self._left.append(_because(problem, "it cannot be taken away"))
            else:
                self._say("cleared", problem)

    def _detach(self, present: Mounted) -> None:
        """Take away a mount of which the server is dead."""
        with suppress(FusestoreError, OSError):  # it is told as left
            mounter.unmount(Path(present.mountpoint), self._store.run_root)

    def _unname(self, found: list[Problem]) -> None:
        """Delete names and data items of what does not exist."""
        with self._database.transaction() as execute:
            for table in ("names", "big_data"):
                exists = " OR ".join(
                    f"(kind = '{kind}' AND EXISTS (SELECT 1 FROM {kind}s WHERE id = item))"
                    for kind in ("layer", "image", "container")
                )
                execute(f"DELETE FROM {table} WHERE NOT ({exists})")
        for problem in found:
            self._done.append(f"deleted a row of {problem.item}: {problem.what}")
        self._store.collect(deep=True)

    # -- what the rows say ----------------------------------------------------------------------------

    def _restore(self, found: list[Problem]) -> None:
        """Write the driver's files again."""
        rows = Rows.read(self._database)
        for problem in found:
            place = place_of(rows, CacheID(problem.cache_id))
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                if place is not None:
                    self._furnish(place.cache_id, place.below)
                    self._say("restored", problem)

    def _furnish(self, cache_id: CacheID, below: Sequence[CacheID]) -> None:
        """Write again what a driver has beside a layer.  Raises FileNotFoundError when that is gone."""
        driver = self._store.graph_driver
        _make_lock(driver.path / cache_id)
        with closing(driver.hold(cache_id)):
            for name, content in furniture(cache_id, below, stacked=driver.stacked).items():
                path = driver.path / name
                if path.parent != driver.links:
                    write_durably(path, content.encode(), driver.tmp)
                elif not path.is_symlink() or os.readlink(path) != content:
                    path.unlink(missing_ok=True)
                    path.symlink_to(content)

    def _resize(self, found: list[Problem]) -> None:
        """Write down what is known to be so: sizes, and the digests of manifests."""
        for problem in found:
            with suppress(FileNotFoundError, ItemNotFound):  # it was deleted meanwhile
                if problem.kind is Kind.LAYER and problem.cache_id:
                    self._resize_layer(problem)
                self._resize_data(problem.item)
                self._say("restored", problem)
        with self._database.transaction() as execute:
            self._resize_images(Rows.read(self._database))
            for problem in found:
                if problem.kind is Kind.IMAGE:
                    execute(_DIGEST, (problem.item, configuration_key(problem.item)))

    def _resize_layer(self, problem: Problem) -> None:
        """Of a layer that is what its tar says, the size on disk is its size."""
        record = self._metadata.get(ChainID(problem.item))
        if record.reproducible and record.cache_id == problem.cache_id:
            size = self._store.graph_driver.usage(record.cache_id).size
            with self._database.transaction() as execute:
                which = "id = ? AND cache_id = ? AND reproducible"
                execute(f"UPDATE layers SET size = ? WHERE {which}", (size, problem.item, record.cache_id))

    def _resize_data(self, item: str) -> None:
        """Write down the true sizes of an item's data that have their digests."""
        with self._database.transaction() as execute:
            for row in execute("SELECT * FROM big_data WHERE item = ?", (item,)).fetchall():
                with suppress(FileNotFoundError):
                    data = (self._store.graph_root / "big" / row["file"]).read_bytes()
                    if digest.of_bytes(data) == row["digest"]:
                        which = "kind = ? AND item = ? AND key = ?"
                        execute(f"UPDATE big_data SET size = ? WHERE {which}", (len(data), *tuple(row)[:3]))

    def _resize_images(self, rows: Rows) -> None:
        for item, row in rows.images.items():
            chain = rows.chain(row["top_layer"])
            is_fixed = all(layer["id"].startswith("sha256:") for layer in chain)
            if is_fixed and rows.is_whole(row["top_layer"]):
                size = sum(layer["size"] for layer in chain)
                if size != row["size"]:
                    self._database.select("UPDATE images SET size = ? WHERE id = ?", size, item)

    # -- what is damaged ------------------------------------------------------------------------------

    def _delete(self, found: list[Problem]) -> None:
        """Delete what is damaged and what is on it: containers, RW layers, images, layers topmost first."""
        still = self._still(found)
        self._untie()
        deletes = {
            Kind.CONTAINER: self._delete_container,
            Kind.RW_LAYER: self._delete_rw_layer,
            Kind.IMAGE: self._delete_image,
            Kind.LAYER: self._delete_layer,
        }
        for kind, delete in deletes.items():
            for problem in self._in_order(kind, still):
                try:
                    if kind in _WORK and not self._force:
                        raise LayerInUse(problem.item, "it is deleted only with --force")
                    delete(problem)
                except (FusestoreError, OSError) as exc:
                    reason = exc.reason if isinstance(exc, LayerInUse) else exc
                    self._left.append(_because(problem, reason))
                else:
                    if not (kind is Kind.LAYER and self._metadata.find(ChainID(problem.item))):  # made anew
                        self._say("deleted", problem)
        self._left += [p for p in still if p.kind not in deletes]

    def _still(self, found: list[Problem]) -> list[Problem]:
        """The damage that is still there: a quick check sees it, or it is on a layer not made anew."""
        again = {(p.kind, p.item) for p in check(self._store, quick=True).problems if p.is_damage}
        rows = Rows.read(self._database)
        damaged = {
            p.item
            for p in found
            if p.item in rows.layers and p.cache_id in ("", rows.layers[p.item]["cache_id"])
        }
        columns = {
            Kind.LAYER: (rows.layers, "id"),
            Kind.IMAGE: (rows.images, "top_layer"),
            Kind.CONTAINER: (rows.containers, "layer"),
            Kind.RW_LAYER: (rows.rw_layers, "parent"),
        }

        def is_there(problem: Problem) -> bool:
            table, column = columns.get(problem.kind, ({}, ""))
            if (problem.kind, problem.item) in again or problem.item not in table:
                return True
            return any(row["id"] in damaged for row in rows.chain(table[problem.item][column]))

        return [problem for problem in found if is_there(problem)]

    def _untie(self) -> None:
        """Make what will be deleted such that it can be read, and refers to nothing that is not there."""
        with self._database.transaction() as execute:
            for table, column in _TIES:
                if table not in _WORK_TABLES or self._force:
                    gone = f"{column} IS NOT NULL AND {column} NOT IN (SELECT id FROM layers)"
                    execute(f"UPDATE {table} SET {column} = NULL WHERE {gone}")
            for table, columns in _DOCUMENTS.items():
                if table not in _WORK_TABLES or self._force:
                    for column, empty in columns.items():
                        execute(f"UPDATE {table} SET {column} = ? WHERE NOT json_valid({column})", (empty,))
            if self._force:
                execute("DELETE FROM containers WHERE layer NOT IN (SELECT id FROM layers)")

    def _in_order(self, kind: Kind, found: list[Problem]) -> Iterator[Problem]:
        """The problems of a kind, the first of each item; layers topmost first."""
        problems = {problem.item: problem for problem in reversed(found) if problem.kind is kind}
        if kind is Kind.LAYER:
            order = [row["id"] for row in reversed(Rows.read(self._database).base_up())]
            problems = {item: problems[item] for item in (*order, *problems) if item in problems}
        return iter(problems.values())

    def _delete_container(self, problem: Problem) -> None:
        if self._store.container_store.exists(problem.item):
            self._store.delete_container(problem.item)

    def _delete_rw_layer(self, problem: Problem) -> None:
        with suppress(RWLayerNotFound):
            self._store.layer_store.delete_mount(problem.item)

    def _delete_image(self, problem: Problem) -> None:
        """Its layers go as far as nothing else needs them, damaged or not."""
        if not self._store.image_store.exists(problem.item):
            return
        image = self._store.image_store.get(problem.item)
        if places := self._store.mounts_of(image):
            raise LayerInUse(image.id[:12], f"it is mounted at {', '.join(places)}")
        self._store.delete_image(image.id)

    def _delete_layer(self, problem: Problem) -> None:
        """Delete a layer if it is still the one that was found damaged, and nothing is on it."""

        def choose() -> list[str]:
            record = self._metadata.find(ChainID(problem.item))
            if record is None or problem.cache_id not in ("", record.cache_id):
                return []
            if self._store.graph_driver.mounted(record.cache_id):
                raise LayerInUse(problem.item, "it is mounted")
            self._metadata.refuse_needed(record.chain_id)
            return [problem.item]

        self._store.delete_layers(choose)


def _because(problem: Problem, reason: object) -> Problem:
    return replace(problem, what=f"{problem.what} ({reason})")


def _make_lock(directory: Path) -> None:
    """Raises FileNotFoundError when the layer's directory is gone."""
    os.close(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
