"""Random stacks of layers (`support.model.Op`).  Few names, so that layers speak of the same."""

import os
import stat

from hypothesis import strategies as st
from support.filesystem_model import CAPABILITY
from support.model import Op, Thing

from fusestore.driver.ownership import Ownership

PATHS = st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "b/b", "a/b/c", "a/b/d", "b/a/c"])
MODES = st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0o400, 0])


def stacks(ownership: Ownership) -> st.SearchStrategy[list[list[Op]]]:
    """Up to three layers, bottom first.  What is really on the disk must be something that the disk takes."""
    if ownership is Ownership.OVERRIDE:
        xattrs = st.sampled_from([{}, {}, {b"user.k": b"v\0"}, {CAPABILITY: b"\1"}, {b"trusted.t": b""}])
        numbers = [0, os.makedev(1, 3)]
    else:
        xattrs = st.sampled_from([{}, {}, {b"trusted.t": b""}])
        numbers = [os.makedev(1, 3)]
    attributes = {
        "uid": st.sampled_from([0, 0, 1000, 2**32 - 2]),
        "gid": st.sampled_from([0, 0, 42]),
        "mtime": st.integers(-5, 5),
        "xattrs": xattrs,
    }

    def things(kind: int, modes: st.SearchStrategy[int] = MODES, **more) -> st.SearchStrategy[Thing]:
        return st.builds(Thing, st.just(kind), modes, **{**attributes, **more})

    directories = things(stat.S_IFDIR)
    others = st.one_of(
        directories,
        things(stat.S_IFLNK, st.just(0o777), content=st.sampled_from([b"a", b"../b", b"/c/a"])),
        things(stat.S_IFIFO),
        things(stat.S_IFCHR, rdev=st.sampled_from(numbers)),
    )
    ops = st.one_of(
        st.builds(Op, st.just("make"), PATHS, things(stat.S_IFREG, content=st.binary(max_size=5))),
        st.builds(Op, st.just("make"), PATHS, others),
        st.builds(Op, st.just("make"), st.sampled_from(["a", "b", ""]), directories),
        st.builds(Op, st.just("link"), PATHS, st.none(), PATHS),
        st.builds(Op, st.just("link"), PATHS, st.none(), st.sampled_from(["a", "b", "a/a"])),
        st.builds(Op, st.just("delete"), PATHS),
        st.builds(Op, st.just("opaque"), st.one_of(st.just(""), PATHS)),
    )
    return st.lists(st.lists(ops, max_size=8), max_size=3)
