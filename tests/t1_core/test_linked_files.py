"""Hard links of a lower layer stay one file, whatever is done to one name and whichever the kernel has seen.

Theory: a node knows its file by one path, and a directory that nobody has looked up has no node that lasts.
So each way to change a linked file is tried on each name, with nothing, everything or one single name looked
up before, on groups in one directory, in several, and deep below a directory that is moved.
"""

import itertools
import stat
import tempfile
from pathlib import Path

import pytest
from support import model
from support.filesystem_model import Filesystem
from support.layers import find, tree
from support.model import Op, Thing, above
from support.union_on_disk import Directories

from fusestore.driver.ownership import Metadata, Ownership
from fusestore.driver.whiteout import Spelling

GROUPS = {
    "beside": ["d/a", "d/b"],
    "in two directories": ["a", "d/b"],
    "two in one directory": ["a", "d/x/1", "d/x/2"],
    "deep": ["d/x/y/a", "d/x/y/b"],
    "at each depth": ["d/a", "d/x/a", "d/x/y/a"],
    "in two trees": ["d/x/a", "e/x/a", "e/x/b"],
}


class Both:
    """A union of one layer with a group of links and an empty directory, and the model of it."""

    def __init__(self, place, group, told, metacopy):
        folders = {directory for path in group for directory in above(path) if directory}
        ops = [Op("make", path, Thing(stat.S_IFDIR, 0o755)) for path in sorted({*folders, "other"})]
        ops.append(Op("make", group[0], Thing(stat.S_IFREG, 0o644, content=b"linked")))
        ops += [Op("link", path, None, group[0]) for path in group[1:]]
        lower, archives = model.stacked([ops])
        self.fs = Filesystem(lower)
        how = {"told": told, "metacopy": metacopy, "redirect": metacopy}
        self.disk = Directories(place, archives, Ownership.OVERRIDE, Spelling.DEVICE, **how)
        self.disk.make_upper(Metadata(stat.S_IFDIR | 0o755))
        self.union = self.disk.mount()
        self.modes = 0o600

    def split(self, path):
        """The directory of `path` on both sides, and its name."""
        directory, _, name = path.encode().rpartition(b"/")
        return find(self.union, directory), self.fs.find(directory), name

    def chmod(self, path):
        self.modes += 1
        self.union.setattr(find(self.union, path.encode()), mode=self.modes)
        self.fs.chmod(self.fs.find(path.encode()), self.modes)

    def link(self, path):
        there, model_of_there, new = self.split("other/new")
        self.union.link(find(self.union, path.encode()), there, new)
        self.fs.link(self.fs.find(path.encode()), model_of_there, new)

    def unlink(self, path):
        ino, inode, name = self.split(path)
        self.union.unlink(ino, name)
        self.fs.unlink(inode, name)

    def rename(self, path):
        (ino, inode, name), (there, model_of_there, new) = self.split(path), self.split("other/new")
        self.union.rename(ino, name, there, new, 0)
        self.fs.rename(inode, name, model_of_there, new, 0)

    def move_nearest(self, path):
        """The directory that it is in."""
        self.rename(path.rpartition("/")[0])

    def move_topmost(self, path):
        self.rename(path.partition("/")[0])

    def remount(self):
        self.disk.unmount()
        self.union = self.disk.mount()

    def check(self, *, mounted):
        """What lies on the disk.  Of a mounted one, a file may have one more link, in the work directory."""
        found, expected = {}, {}
        with self.disk.view() as union:
            for path, entry in tree(union).items():
                if stat.S_ISREG(entry.kind):
                    assert entry.content == b"linked"
                    nlink = 0 if mounted else entry.nlink
                    found.setdefault((entry.ino, entry.kind | entry.mode, nlink), []).append(path)
        for path, inode in self.fs.walk().items():
            if inode.is_file:
                expected.setdefault((inode, inode.mode, 0 if mounted else inode.links), []).append(path)
        assert _groups(found) == _groups(expected)


def _groups(found):
    return sorted((sorted(names), mode, nlink) for (_, mode, nlink), names in found.items())


CHANGES = [Both.chmod, Both.link, Both.unlink, Both.rename, Both.move_nearest, Both.move_topmost]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_names_of_one_file_stay_one_file(tmp_path, group, change):
    orders = [[], group, *([name] for name in group)]
    paths = [path for path in group if "/" in path or change not in (Both.move_nearest, Both.move_topmost)]
    hows = itertools.cycle([(True, True), (False, True), (True, False)])  # told of links, redirects
    for (path, seen), (told, metacopy) in zip(itertools.product(paths, orders), hows, strict=False):
        place = Path(tempfile.mkdtemp(dir=tmp_path))
        both = Both(place, group, told, metacopy)
        for name in seen:
            find(both.union, name.encode())
        change(both, path)
        both.check(mounted=True)
        both.chmod(next(left.decode() for left, inode in both.fs.walk().items() if inode.is_file))
        both.check(mounted=True)
        both.remount()
        both.check(mounted=False)
        both.disk.unmount()


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_names_go_one_after_the_other(tmp_path, group):
    """The first of them, then the directory of another moves; the file knows how many are left."""
    for seen, redirect in itertools.product([[], group, *([name] for name in group)], (True, False)):
        both = Both(Path(tempfile.mkdtemp(dir=tmp_path)), group, True, redirect)
        for name in seen:
            find(both.union, name.encode())
        both.unlink(group[-1])
        if "/" in group[0]:
            both.move_topmost(group[0])
        left = [path.decode() for path, inode in both.fs.walk().items() if inode.is_file]
        ino, inode = find(both.union, left[0].encode()), both.fs.find(left[0].encode())
        for path in left:
            both.check(mounted=True)
            assert both.union.attr(both.union.node(ino)).nlink == inode.links
            both.unlink(path)
        assert both.union.attr(both.union.node(ino)).nlink == 0
        both.disk.pull_the_plug()
