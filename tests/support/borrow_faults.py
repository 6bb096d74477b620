"""Let the borrowing of a layer fail, or its process die, at every call by which it changes or opens a file.

    LD_PRELOAD=shim.so python -m support.borrow_faults PLACE

Each point in a home of its own under PLACE, by a child; then the home is opened and cleaned up as after any
death.  Either the layer is there, whole, or nothing of it is; the same again succeeds; and nothing of what
was lent has changed.  Prints the number of points of each fault.
"""

import os
import sys
import traceback
from pathlib import Path

from support import shim
from support.foreign import MAPPED, made, state
from support.layers import add, tree
from support.tars import member, tar

from fusestore.digest import CacheID
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import LayerSpec

LAYER = CacheID("ab" * 32)
TREE = [b"", b"base", b"lent"]


def _attempt(driver: FuseDriver, spec: LayerSpec, parent: CacheID, fault: str, number: int) -> None:
    """In a child: what fails leaves no layer and no fd."""
    before, failed = os.listdir("/proc/self/fd"), False
    shim.arm(fault, number)
    try:
        driver.borrow(LAYER, parent, spec).close()
    except OSError as exc:
        failed = True
        traceback.clear_frames(exc.__traceback__)
    shim.disarm()
    assert driver.exists(LAYER) is not failed
    assert os.listdir("/proc/self/fd") == before, "left open"


def _in_child(driver: FuseDriver, *what: object) -> int:
    pid = os.fork()
    if not pid:
        status = 1
        try:
            _attempt(driver, *what)  # type: ignore[arg-type]
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _verify(place: Path, spec: LayerSpec, parent: CacheID) -> None:
    """A layer that died without a link is one that no row names, and is deleted as such."""
    driver = FuseDriver(place / "root", place / "run")
    driver.cleanup()
    assert os.listdir(driver.tmp) == []
    for _ in range(2):
        assert len(os.listdir(driver.links)) <= len(driver.list_layers())
        if driver.exists(LAYER):
            with driver.union(LAYER) as union:
                assert sorted(tree(union)) == TREE
            driver.remove(LAYER)
        assert driver.list_layers() == [parent]
        driver.borrow(LAYER, parent, spec).close()
    driver.remove(LAYER)


def main() -> None:
    """All points of all faults."""
    top = Path(sys.argv[1])
    theirs = made(top / "theirs", {"lent": b"data"})
    spec, before = LayerSpec(str(theirs), origin=MAPPED), state(theirs)
    for fault in ("kill", "torn", "ENOSPC", "EMFILE"):
        place = top / fault
        driver = FuseDriver(place / "root", place / "run")
        parent, _ = add(driver, tar(member("base")))
        shim.arm(fault, 0)
        driver.borrow(LAYER, parent, spec).close()
        points = shim.calls(fault, shim.disarm())
        driver.remove(LAYER)
        for number, call in points.items():
            status = _in_child(driver, spec, parent, fault, number)
            assert status == (-9 if fault in ("kill", "torn") else 0), f"{fault} at {call}#{number}: {status}"
            _verify(place, spec, parent)
        print(fault, len(points))
    assert state(theirs) == before


if __name__ == "__main__":
    main()
