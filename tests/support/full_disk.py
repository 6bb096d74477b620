"""Fill a disk for real: load an image into stores on a tmpfs that gets larger step by step, until it fits.

To be run in a user namespace (``unshare -Urm python -m support.full_disk IMAGE PLACE``), where anybody may
mount one.  Prints how many sizes were too small; says why and exits 1 when a store was not sound afterwards.
"""

import errno
import gc
import sys
from pathlib import Path

from support.fsck import broken, problems

from fusestore.errors import FusestoreError, NotSupported
from fusestore.store.storage import Store
from fusestore.syscalls import mount, umount
from fusestore.transport.pipeline import load

_MS_REMOUNT = 32
_LARGE = b"size=64m,nr_inodes=10000"


#: Disks that are full by their bytes, and those that are full by their number of files.
SIZES = [
    [b"size=%dk,nr_inodes=10000" % kibibytes for kibibytes in range(4, 4096, 28)],
    [b"size=64m,nr_inodes=%d" % inodes for inodes in range(2, 200)],
]


def attempt(image: str, place: Path) -> str:
    """``fits``, or ``full`` when the disk was and that is said, or what else was said."""
    try:
        with Store(str(place / "store"), str(place / "run")) as store:
            load(store, image)
    except (OSError, FusestoreError) as exc:
        told = str(exc)
        # SQLite has its own words for having no room, such as "unable to open database file".
        known = exc.errno == errno.ENOSPC if isinstance(exc, OSError) and exc.errno else "store.db: " in told
        return "full" if known else repr(exc)
    return "fits"


def complaints(image: str, place: Path, options: bytes) -> tuple[str, list[str]]:
    """Whether the image fits on such a disk, and what is wrong with the store afterwards."""
    mount(b"none", bytes(place), b"tmpfs", 0, options)
    outcome = attempt(image, place)
    found = broken(place / "store")
    if outcome not in ("full", "fits"):
        found.append(f"it says {outcome}")
    if outcome != "fits":
        found += [f"left behind: {path}" for path in (place / "store" / "tmp").glob("*")]
        mount(b"none", bytes(place), b"tmpfs", _MS_REMOUNT, _LARGE)
        if attempt(image, place) != "fits":
            found.append("it does not fit on a larger disk either")
    found += problems(place / "store")
    gc.collect()  # what a failed open still holds goes with its traceback
    umount(bytes(place))
    return outcome, [f"{options.decode()}: {complaint}" for complaint in found]


def main(image: str, place: Path) -> None:
    too_small, said = 0, []
    for options in SIZES:
        for option in options:
            outcome, found = complaints(image, place, option)
            said += found
            if outcome == "fits":
                break
            too_small += 1
    print(too_small)
    sys.exit("\n".join(said) or None)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except NotSupported as exc:  # a tmpfs has no user xattrs before Linux 6.6
        print(exc)
