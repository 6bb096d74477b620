"""Writable mounts to work in, made in both ways that we have, and all that a remount may not change."""

import contextlib
import difflib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from support_real import overlays, trees
from support_real.commands import Place, remove_all

from fusestore.digest import new_cache_id
from fusestore.driver.api import Limits
from fusestore.driver.fuse import FuseDriver

KINDS = ("driver", "program")
_NEW = "new"


class Driven:
    """An RW layer of the graphdriver on a layer that holds what lies in `lower`."""

    numbered = frozenset(("file", "directory", "symlink", "fifo"))

    def __init__(self, base: Path, lower: Path) -> None:
        self._place = Place(base / "store", base / "run")
        self._driver = FuseDriver(self._place.root, self._place.runroot)
        with subprocess.Popen(_archive(lower), stdout=subprocess.PIPE) as tar:
            parent, _ = _applied(self._driver, tar.stdout)
        self._cache_id = new_cache_id()
        self._driver.create_read_write(self._cache_id, parent)
        directory = self._driver.path / self._cache_id
        self.upper, self.work = directory / "diff", directory / "work"
        self.top = Path()

    def mount(self) -> None:
        self.top = Path(os.fsdecode(self._driver.get(self._cache_id)))

    def unmount(self) -> None:
        assert self._place.log(self.top) == ""
        self._driver.put(self._cache_id)
        found = dangers(self.upper)
        assert not found, found

    def server(self) -> int:
        return self._place.server(self.top)

    def destroy(self) -> None:
        self._place.destroy()


class Programmed:
    """A mount by a program with fuse-overlayfs's command line, run by a plain user.

    Nothing can be noted on a symlink or fifo without root, so that one that was copied up has another inode
    number when it is mounted anew.
    """

    numbered = frozenset(("file", "directory"))

    def __init__(self, base: Path, lower: Path) -> None:
        base.mkdir()
        self._overlay = overlays.Overlay(base, 0)
        self._overlay.lowers.append(lower)
        shutil.copystat(lower, self._overlay.upper)  # the top of the mount is that of the upper
        self.upper, self.work, self.top = self._overlay.upper, self._overlay.work, self._overlay.merged

    def mount(self) -> None:
        self._overlay.mount()

    def unmount(self) -> None:
        self._overlay.unmount()

    def server(self) -> int:
        return self._overlay.server()

    def destroy(self) -> None:
        self._overlay.take_away()
        self._overlay.wait_until_gone()


class Writable:
    """A mount and the lower tree that it shows."""

    def __init__(self, kind: str, base: Path, lower: Path) -> None:
        self._made = {"driver": Driven, "program": Programmed}[kind](base, lower)
        self._lower, self._before = lower, trees.described(lower)

    @property
    def top(self) -> Path:
        return self._made.top

    @property
    def upper(self) -> Path:
        return self._made.upper

    def mount(self) -> None:
        self._made.mount()

    def unmount(self) -> None:
        self._made.unmount()
        left = left_in(self._made.work)
        assert not left, left

    def server(self) -> int:
        return self._made.server()

    def destroy(self) -> None:
        self._made.destroy()
        must_be_equal(self._before, trees.described(self._lower))

    def remount(self) -> None:
        """Mount afresh, which must show the same."""
        before = snapshot(self.top, self._made.numbered)
        self.unmount()
        self.mount()
        must_be_equal(before, snapshot(self.top, self._made.numbered))


@contextlib.contextmanager
def mounted(kind: str, base: Path, lower: Path) -> Iterator[Writable]:
    """A writable mount below `base` of what lies in `lower`, which nothing may change."""
    made = Writable(kind, base, lower)
    try:
        made.mount()
        yield made
        made.unmount()
    finally:
        made.destroy()
        remove_all(base)


def _archive(directory: Path) -> list[str]:
    """A layer: all is root's, and ACLs are xattrs, as they are in images."""
    options = [
        "--format=posix",
        "--owner=root:0",
        "--group=root:0",
        "--sparse",
        "--xattrs",
        "--xattrs-include=*",
    ]
    return ["tar", "--create", *options, "--directory", str(directory), "."]


def _applied(driver: FuseDriver, stream):
    cache_id = new_cache_id()
    driver.stage(cache_id, None)
    applied = driver.apply_diff(cache_id, stream, Limits())
    driver.publish(cache_id).close()
    return cache_id, applied


def dangers(upper: Path) -> list[str]:
    """What must not lie in an upper of a store: setuid files, and devices but whiteouts."""
    found = []
    for path in upper.rglob("*"):
        st = path.lstat()
        is_whiteout = stat.S_ISCHR(st.st_mode) and st.st_rdev == 0
        is_plain = stat.S_IFMT(st.st_mode) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        if st.st_mode & 0o7000 or not (is_plain or is_whiteout):
            found.append(f"{path}: {stat.filemode(st.st_mode)}")
    return found


def left_in(work: Path) -> list[str]:
    """What lies in a work directory, of which only the directory ``work`` may stay, empty."""
    found = (path.relative_to(work) for path in work.rglob("*"))
    return sorted(str(path) for path in found if str(path) != "work")


def snapshot(top: Path, numbered: frozenset[str]) -> dict[str, dict]:
    """All that `trees.described` says, and inode numbers of the types `numbered`; each file has as many links
    as it has names."""
    tree = trees.described(top)
    for path, seen in tree.items():
        if seen["type"] in numbered:
            seen["inode"] = os.lstat(top / path).st_ino
        assert "links" not in seen or len(seen["links"]) == seen["nlink"], f"{path}: {seen}"
    return tree


def must_be_equal(one: dict[str, dict], other: dict[str, dict]) -> None:
    """Two trees; fails with every difference."""
    found = trees.differences(one, other)
    assert not found, "\n".join(found)


def since(tree: dict[str, dict], start: int) -> dict[str, dict]:
    """The tree with times from `start` on as "new", and without owners: what two runs have in common."""
    return {
        path: {
            **{name: value for name, value in seen.items() if name not in ("uid", "gid", "inode")},
            "mtime": _NEW if seen["mtime"] >= start else seen["mtime"],
        }
        for path, seen in tree.items()
    }


def run(top: Path, script: str, *arguments, **more) -> str:
    """What a shell script says that works in `top`; it must succeed and say nothing on stderr."""
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script, "sh", *map(str, arguments)],
        **({"cwd": top, "stdin": subprocess.DEVNULL} | more),
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
    return result.stdout


def says_what_it_says_on_disk(tree: Writable, lower: Path, plain: Path, script: str, *arguments) -> str:
    """What a script says, which is the same in the mount and in a copy of its lower, made at `plain`."""
    subprocess.run(["cp", "-a", "--", lower, plain], check=True)
    expected, said = (run(top, script, *arguments) for top in (plain, tree.top))
    assert said == expected, "\n".join(difflib.unified_diff(expected.splitlines(), said.splitlines()))
    return said


def same_as_on_disk(tree: Writable, lower: Path, plain: Path, script: str, *arguments) -> str:
    """The same, and the script also makes the same tree."""
    start = time.time_ns() - 20_000_000  # the kernel's clock for files is coarser
    said = says_what_it_says_on_disk(tree, lower, plain, script, *arguments)
    one, other = (since(trees.described(top), start) for top in (plain, tree.top))
    must_be_equal(one, other)
    return said
