"""The three layers that containers/storage's bats tests fill, and what must be told of them (helpers.bash).

A file has 256 random bytes and the time 0.  The middle layer deletes eight things and adds six; the upper
makes some of the deleted ones again, and adds into a directory of the lowest.
"""

import io
import os
import shutil
import tarfile
from pathlib import Path

from support_real.storage_steps import Steps

LOWER, MIDDLE, UPPER = "lower", "middle", "upper"


def random_file(path: Path) -> None:
    path.write_bytes(os.urandom(256))
    os.utime(path, (0, 0))


def _fill_lower(root: Path) -> None:
    for number in (1, 2, 3):
        random_file(root / f"layer1file{number}")
        (root / f"layerdir{number}").mkdir()
        (root / f"layerdir{number + 3}/layer1subdir").mkdir(parents=True)
        (root / f"layerdir{number + 6}").mkdir()
        random_file(root / f"layerdir{number + 6}/layer1file{number + 3}")


def _fill_middle(root: Path) -> None:
    for number in (1, 2):
        (root / f"layer1file{number}").unlink()
        (root / f"layerdir{number}").rmdir()
        shutil.rmtree(root / f"layerdir{number + 3}")
        shutil.rmtree(root / f"layerdir{number + 6}")
    random_file(root / "layer2file1")
    (root / "layerdir10").mkdir()
    (root / "layerdir11/layer2subdir").mkdir(parents=True)
    (root / "layerdir12").mkdir()
    random_file(root / "layerdir12/layer2file2")


def _fill_upper(root: Path) -> None:
    random_file(root / "layerfile1")
    (root / "layerdir1").mkdir()
    (root / "layerdir4/layer1subdir").mkdir(parents=True)
    (root / "layerdir7").mkdir()
    random_file(root / "layerdir7/layer1file4")
    (root / "layerdir3/layer3subdir/layer3subsubdir").mkdir(parents=True)


def populate(steps: Steps, *, leave_mounted: bool = False) -> None:
    """Make the three layers and fill them."""
    parent = ""
    for layer, fill in ((LOWER, _fill_lower), (MIDDLE, _fill_middle), (UPPER, _fill_upper)):
        steps("create_layer", layer, parent)
        fill(steps.mount(layer))
        if not leave_mounted:
            assert steps("unmount", layer) is False
        parent = layer


_DELETED = ["layer1file1", "layer1file2", *(f"layerdir{n}" for n in (1, 2, 4, 5, 7, 8))]
_MIDDLE = ["layer2file1", "layerdir10", "layerdir11", "layerdir11/layer2subdir", "layerdir12"]
_MIDDLE += ["layerdir12/layer2file2"]
_LOWER = [
    *(f"layer1file{n}" for n in (1, 2, 3)),
    *(f"layerdir{n}" for n in range(1, 10)),
    *(f"layerdir{n}/layer1subdir" for n in (4, 5, 6)),
    *(f"layerdir{n}/layer1file{n - 3}" for n in (7, 8, 9)),
]
_UPPER = ["layerfile1", "layerdir1", "layerdir3/layer3subdir", "layerdir3/layer3subdir/layer3subsubdir"]
_UPPER += ["layerdir4", "layerdir4/layer1subdir", "layerdir7", "layerdir7/layer1file4"]

#: By layer: the 18, 14 and 9 lines of its changes (helpers.bash: checkchanges).
CHANGES = {
    LOWER: sorted(f"A {name}" for name in _LOWER),
    MIDDLE: sorted([*(f"A {name}" for name in _MIDDLE), *(f"D {name}" for name in _DELETED)]),
    UPPER: sorted([*(f"A {name}" for name in _UPPER), "C layerdir3"]),
}
#: By layer: the 18, 14 and 9 members of its diff (helpers.bash: checkdiffs).
MEMBERS = {
    LOWER: sorted(_LOWER),
    MIDDLE: sorted([*_MIDDLE, *(f".wh.{name}" for name in _DELETED)]),
    UPPER: sorted([*_UPPER, "layerdir3"]),
}


def changes(steps: Steps) -> dict[str, list[str]]:
    """The changes of the three layers."""
    return {layer: sorted(steps("changes", "", layer)) for layer in CHANGES}


def diffs(steps: Steps) -> dict[str, bytes]:
    """Their diffs, that of the middle layer compressed."""
    return {layer: steps.raw("diff", "", layer, "gzip" if layer == MIDDLE else "") for layer in CHANGES}


def members(archives: dict[str, bytes]) -> dict[str, list[str]]:
    """What is in such diffs, but for the root, which upstream leaves out."""
    found = {}
    for layer, archive in archives.items():
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz" if layer == MIDDLE else "r:") as tar:
            found[layer] = sorted(name for name in tar.getnames() if name != ".")
    return found
