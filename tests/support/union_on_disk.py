"""The directories of a writable union, mounted without any FUSE, and unmounted in more than one way."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from support.layers import Shown, tree, unpacked

from fusestore.driver import below, diff
from fusestore.driver.api import Change
from fusestore.driver.apply import Unpacked
from fusestore.driver.layout import LayerSpec
from fusestore.driver.ownership import Metadata, Ownership, finish
from fusestore.driver.union.layerdir import LayerDir
from fusestore.driver.union.merged import MergedUnion
from fusestore.driver.union.tree import Union
from fusestore.driver.union.upper import Upper
from fusestore.driver.union.writable import WritableUnion
from fusestore.driver.whiteout import Spelling


class Directories:
    """Lower layers made of `archives` (bottom first), an upper and a work directory, all in `place`.

    `told`: the layers know their ownership, spelling and hard links, as in a driver's home; otherwise all of
    that has to be seen from the directories alone.  `options` are those of `Upper`.
    """

    def __init__(
        self,
        place: Path,
        archives: list[bytes],
        ownership: Ownership,
        spelling: Spelling,
        *,
        told: bool,
        **options: bool,
    ) -> None:
        self.upper, self.work = place / "upper", place / "work"
        self.lowers: list[Path] = []  # topmost first
        self._place, self._ownership, self._spelling, self._told = place, ownership, spelling, told
        self._options = options
        self._open: list[LayerDir] = []
        for number, archive in enumerate(archives):
            directory = place / f"lower{number}"
            with below.under(self._merged()) as under:
                made = unpacked(archive, directory, below=under, ownership=ownership, spelling=spelling)
            self._write_links(directory, made)
            self.lowers.insert(0, directory)
        self.work.mkdir()

    @staticmethod
    def _write_links(directory: Path, made: Unpacked) -> None:
        groups = [json.dumps([os.fsdecode(name) for name in group]) + "\n" for group in made.links]
        directory.with_suffix(".links").write_text("".join(groups), encoding="ascii")

    def _merged(self) -> AbstractContextManager[Union] | None:
        specs = [LayerSpec(str(path), str(path.with_suffix(".links"))) for path in self.lowers]
        return below.opened(specs, self._ownership, self._spelling) if specs else None

    def make_upper(self, root: Metadata) -> None:
        """The upper, of which the root has the attributes of the merged root."""
        self.upper.mkdir()
        fd = os.open(self.upper, os.O_RDONLY)
        finish(fd, root, self._ownership)
        os.close(fd)

    def _layer(self, path: Path) -> LayerDir:
        if self._told:
            layer = LayerDir(str(path), self._ownership, self._spelling, str(path.with_suffix(".links")))
        else:
            layer = LayerDir(str(path))
        return layer

    def mount(self) -> WritableUnion:
        lowers = [self._layer(path) for path in self.lowers]
        upper, work = self._layer(self.upper), LayerDir(str(self.work), self._ownership, self._spelling)
        self._open = [upper, work, *lowers]
        return WritableUnion(Upper(upper, work, self._spelling, **self._options), lowers)

    @contextmanager
    def view(self) -> Iterator[MergedUnion]:
        """What somebody else finds in the directories, whoever may be changing them."""
        with ExitStack() as stack:
            lowers = [stack.enter_context(self._layer(path)) for path in self.lowers]
            told = (self._ownership, self._spelling) if self._told else ()
            tree = stack.enter_context(LayerDir(str(self.upper), *told))  # nothing is recorded of its links
            yield MergedUnion(tree, lowers)

    def differences(self) -> tuple[list[Change], dict[bytes, Shown]]:
        """What the upper changes, and what it is when applied as a layer on the same lowers."""
        with self.view() as union:
            changed = diff.changes(union, union.lower())
            archive = b"".join(diff.diff(union, union.lower()))
        with below.under(self._merged()) as under:
            layer = self._place / "applied"
            made = unpacked(archive, layer, below=under, ownership=self._ownership, spelling=self._spelling)
            self._write_links(layer, made)
        self.lowers.insert(0, layer)
        with self._merged() as union:
            return changed, tree(union)

    def unmount(self) -> None:
        """Close the layers; open files are the mount's business."""
        while self._open:
            self._open.pop().close()

    def pull_the_plug(self) -> None:
        """What is left of a process that was killed: no fd."""
        self._open = []
        for fd in open_below(self._place):
            os.close(fd)

    def remove(self) -> None:
        shutil.rmtree(self._place)


def open_below(place: Path) -> list[int]:
    """Our fds of files below `place`, deleted ones included."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # that of the listing itself
            if os.readlink(f"/proc/self/fd/{fd}").startswith(f"{place}/"):
                found.append(fd)
    return found


class Seen(NamedTuple):
    """All that must stay as it is of something in a lower layer."""

    path: bytes
    mode: int
    ino: int
    nlink: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    content: bytes
    xattrs: list[tuple[str, bytes]]


def fingerprint(directories: list[Path]) -> list[Seen]:
    """Everything in some lower layers."""
    found = []
    for directory in directories:
        for place, _, files, fd in os.fwalk(os.fsencode(directory)):
            for name in [b".", *files]:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                path = os.path.join(place, name)
                xattrs = [
                    (attribute, os.getxattr(path, attribute, follow_symlinks=False))
                    for attribute in os.listxattr(path, follow_symlinks=False)
                ]
                content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(st.st_mode) else b""
                owner = st.st_uid, st.st_gid
                facts = st.st_mode, st.st_ino, st.st_nlink, owner, st.st_size, st.st_mtime_ns, content
                found.append(Seen(path, *facts, sorted(xattrs)))
    return sorted(found)
