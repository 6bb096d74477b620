"""A place to unpack hostile tars in: a lower layer, a canary beside, and what must hold after each tar.

Success or `InvalidLayer`; the canary and the lower layer as they were; no fd left open; and what was accepted
is harmless on disk, can be walked and read to the last file, and gives the tar back unless it says it cannot.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from support.layers import tree, union_of, unpacked
from support.tars import CHAR, Stream, folder, hard_link, member, symlink, tar

from fusestore.driver.api import Limits
from fusestore.driver.apply import Unpacked, unpack
from fusestore.driver.below import Layers, Nothing
from fusestore.driver.getter import DiffGetter
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import InvalidLayer
from fusestore.files import remove_tree
from fusestore.store.tarsplit import Writer, assemble

LOWER = tar(
    folder("./"),
    folder("low", 0o700, uid=5),
    member("low/file", b"lower", mode=0o4755),
    hard_link("low/link", "low/file"),
    folder("low/sub"),
    member("low/sub/x", b"1"),
    symlink("lows", "low"),
    symlink("low/owned", "..", uid=3),
    member("low/null", kind=CHAR, major=1, minor=3),
    member("n" * 255, b"long"),
)
LIMITS = Limits(size=4 << 20, entries=500)


def state(directory: Path) -> dict[str, tuple]:
    """Everything about a tree that could have been changed."""
    found = {}
    for place, directories, files in os.walk(directory):
        for path in [place, *(os.path.join(place, name) for name in files + directories)]:
            st = os.lstat(path)
            content = hashlib.sha256(Path(path).read_bytes()).digest() if os.path.isfile(path) else None
            facts = (
                st.st_ino,
                st.st_mode,
                st.st_nlink,
                st.st_uid,
                st.st_size,
                st.st_mtime_ns,
                st.st_ctime_ns,
            )
            found[path] = (*facts, os.listxattr(path, follow_symlinks=False), content)
    return found


def harmful(directory: Path) -> list[str]:
    """What in the layers on disk could hurt the host; however deep they are."""
    found, directories = [], [os.fsencode(directory)]
    for place in directories:  # grows while we walk
        for entry in list(os.scandir(place)):
            st = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(st.st_mode):
                directories.append(entry.path)
            is_whiteout = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
            if stat.S_IFMT(st.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK) and not is_whiteout:
                found.append(f"{entry.path!r} is a special file")
            if st.st_mode & 0o7000 or st.st_uid != os.getuid() or not st.st_mode & 0o400:
                found.append(f"{entry.path!r} has mode {st.st_mode:o} and belongs to {st.st_uid}")
    return found


class Pieces:
    """A stream made while it is read, so that a bomb takes no room here; how much it gave, and when last."""

    def __init__(self, members: Iterable[bytes]) -> None:
        self._pieces, self._rest = iter(members), b""
        self.given, self.last = 0, 0.0

    def read(self, size: int, /) -> bytes:
        while len(self._rest) < size and (piece := next(self._pieces, None)) is not None:
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        self.given, self.last = self.given + len(data), time.process_time()
        return data


@contextmanager
def bounded(*, seconds: float = 5, size: int = 64 << 20) -> Iterator[None]:
    """What is done meanwhile takes no more of the processor's time, and no more memory on top, than this."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins here
    memory, began = _peak(), time.process_time()
    yield
    assert time.process_time() - began <= seconds
    assert _peak() - memory <= size


def _peak() -> int:
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


class Canary:
    """A directory that nobody may touch."""

    def __init__(self, place: Path) -> None:
        self.path = place / "canary"
        (self.path / "sub").mkdir(parents=True)
        (self.path / "hello").write_text("secret")
        (self.path / "sub" / "file").write_text("secret too")
        self._before = state(self.path)

    def verify(self) -> None:
        assert state(self.path) == self._before, "the canary was touched"


class Arena:
    """Unpacks tars into ``layer`` beside the canary, on a base or on a lower layer."""

    def __init__(
        self, place: Path, ownership: Ownership = Ownership.OVERRIDE, spelling: Spelling = Spelling.DEVICE
    ) -> None:
        self._stack = ExitStack()
        self._how = {"ownership": ownership, "spelling": spelling}
        self.canary = Canary(place)
        self._layer, self._lower = place / "layer", place / "lower"
        unpacked(LOWER, self._lower, **self._how)
        self._below = self._stack.enter_context(union_of(self._lower, **self._how))
        self._before = state(self._lower)

    def close(self) -> None:
        """Look at all that must not have changed once more."""
        self._stack.close()
        self.verify()

    def verify(self) -> None:
        """Nothing beside the layer was touched."""
        self.canary.verify()
        assert state(self._lower) == self._before, "the lower layer was changed"

    def ingest(self, data: bytes, *, on_lower: bool) -> Unpacked | None:
        """Unpack a tar and hold it against the rules; None when it was refused."""
        fds = len(os.listdir("/proc/self/fd"))
        self._layer.mkdir()
        try:
            below = Layers(self._below) if on_lower else Nothing()
            record = io.BytesIO()
            arguments = Stream(data), os.fsencode(self._layer), below
            found = unpack(*arguments, **self._how, limits=LIMITS, record=Writer(record))
            self._look(found, on_lower)
            if found.reproducible:
                self._assemble(record, data)
            return found
        except InvalidLayer as exc:
            if not str(exc).isprintable():
                raise AssertionError(repr(str(exc))) from exc
            return None
        finally:
            remove_tree(self._layer)
            assert len(os.listdir("/proc/self/fd")) == fds, "an fd was left open"

    def _assemble(self, record: io.BytesIO, data: bytes) -> None:
        """What can be put together again is."""
        record.seek(0)
        with closing(DiffGetter(os.fsencode(self._layer), self._how["ownership"], ExitStack())) as files:
            assert b"".join(assemble(record, files, "the layer")) == data

    def _look(self, found: Unpacked, on_lower: bool) -> None:
        """What was accepted is harmless on disk, and can be walked and read."""
        assert found.entries <= LIMITS.entries
        assert self._how["ownership"] is Ownership.REAL or harmful(self._layer) == []
        layers = [self._layer, self._lower] if on_lower else [self._layer]
        with union_of(*layers, **self._how) as union:
            for path in tree(union):
                assert not any(part.startswith(b".wh.") for part in path.split(b"/"))
