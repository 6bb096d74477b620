"""Random sequences of real system calls on two mounts of the same layers: the kernel's overlayfs and ours
agree.

Every call has the same result or errno on both, the trees are the same after it, and again when both are
mounted anew; what ours has written into its upper is then read the same by the kernel and by fuse-overlayfs.

What the kernel does not do by design is done for it by `support_real.lockstep.Kernel`: it does not rename
directories of a lower (EXDEV), and files opened before their copy-up go on showing the lower's content.
Hard links in lowers, which it breaks at copy-up, are left out: tests/t1_core/test_writable_union_model.py
has them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support_real import lockstep
from support_real.commands import IN_NAMESPACE
from support_real.lockstep import LONG_AGO

OURS = (sys.executable, "-bb", "-m", "fusestore.driver.program")
CASES = 250  # sequences on one mount

# Names of every kind that the layers have, and a few that they do not.
DIRECTORIES = ["d", "d/sub", "d/sub/deep", "e", "n", "t", "new", "d/new"]
FILES = ["d/f", "d/g", "d/h", "d/sub/x", "d/sub/y", "d/sub/deep/z", "e/w", "e/z", "f", "u", "setuid", "t/in"]
OTHERS = ["s", "dangling", "p", "v", "v/z", "new/a", "d/a", "n/a", "a", "b"]
DIRECTORY, FILE = st.sampled_from(DIRECTORIES), st.sampled_from([*FILES, "d/a", "a", "b"])
PATH = st.sampled_from([*DIRECTORIES, *FILES, *OTHERS])
SLOT = st.integers(0, 2)
SIZE = st.sampled_from([0, 1, 100, 5000, 70_000])
TEXT = st.sampled_from(["", "x", "some text", "long " * 2000])
MODE = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o444, 0])
DIRECTORY_MODE = st.sampled_from([0o755, 0o700, 0o1777, 0o2755])
TIME = st.sampled_from([0, LONG_AGO - 1, LONG_AGO + 123_456_789])
XATTR = st.sampled_from(["user.a", "user.b", "user.lower1", "trusted.a", "security.a"])

OPERATIONS = {
    "open": (
        SLOT,
        FILE,
        st.builds(
            lambda access, *flags: access | sum(flags),
            st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
            st.sampled_from([0, 0, os.O_CREAT, os.O_CREAT | os.O_EXCL]),
            st.sampled_from([0, 0, 0, os.O_TRUNC]),
            st.sampled_from([0, 0, 0, os.O_APPEND]),
        ),
        MODE,
    ),
    "close": (SLOT,),
    "read": (SLOT, SIZE, SIZE),
    "write": (SLOT, SIZE, TEXT),
    "map": (SLOT, TEXT),
    "ftruncate": (SLOT, SIZE),
    "fallocate": (SLOT, SIZE, st.sampled_from([1, 9000])),
    "copy": (SLOT, SLOT, SIZE),
    "fstat": (SLOT,),
    "fchmod": (SLOT, MODE),
    "futime": (SLOT, TIME),
    "fsetxattr": (SLOT, XATTR, TEXT.filter(lambda text: len(text) < 100)),
    "fsync": (SLOT,),
    "umask": (st.sampled_from([0, 0o022, 0o077]),),
    "mkdir": (PATH, DIRECTORY_MODE),
    "mkfifo": (PATH, MODE),
    "symlink": (st.sampled_from(["f", "../d", "nowhere"]), PATH),
    "link": (PATH, PATH),
    "unlink": (PATH,),
    "rmdir": (DIRECTORY,),
    "rename": (PATH, PATH, st.sampled_from([0, 0, 1, 2, 4])),
    "list": (DIRECTORY,),
    "stat": (PATH,),
    "readlink": (PATH,),
    "access": (PATH, st.sampled_from([os.R_OK, os.W_OK, os.X_OK])),
    "chmod": (PATH, MODE),
    "chown": (PATH, st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0])),
    "truncate": (FILE, SIZE),
    "utime": (PATH, TIME),
    "setxattr": (PATH, XATTR, st.sampled_from(["", "1", "two"]), st.sampled_from([0, 0, 1, 2])),
    "removexattr": (PATH, XATTR),
    "getxattr": (PATH, XATTR),
    "listxattr": (PATH,),
}
# Those that change names, which this is about, come more often.
NAMES = ["open", "write", "mkdir", "unlink", "rmdir", "rename", "rename", "link"]
OPERATION = st.sampled_from([*OPERATIONS, *NAMES]).flatmap(
    lambda name: st.tuples(st.just(name), *OPERATIONS[name])
)


SEQUENCES = st.integers(1, 40).flatmap(lambda length: st.lists(OPERATION, min_size=length, max_size=length))


class Worker:
    """`support_real.lockstep`, running in a namespace."""

    def __init__(self, place: Path, command: tuple[str, ...]) -> None:
        tests = str(Path(__file__).parent.parent)
        self.process = subprocess.Popen(
            [*IN_NAMESPACE, sys.executable, "-bb", "-m", lockstep.__name__, place, *command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ran: list[list] = []
        self.problems: list[str] = []

    def call(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{command} has ended the worker"
        return json.loads(answer)

    def run(self, operations: list) -> list:
        """Run a sequence on a case of its own."""
        if not self.ran:
            self.call("begin", CASES)
        self.ran.append(operations)
        results = self.call("run", operations)
        if len(self.ran) == CASES:
            self.finish()
        return results

    def finish(self) -> None:
        """Look at all the cases of a mount once more, and end it."""
        if self.ran:
            found = zip(self.call("end"), self.ran, strict=True)
            self.problems += [f"{lines}\nafter {operations}" for lines, operations in found if lines]
            self.ran = []

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with self.process:
            self.process.stdin.close()
        assert self.process.returncode == 0


def test_the_kernels_overlayfs_and_ours_agree(tmp_path):
    command = tuple(os.environ.get("FUSESTORE_OVERLAY_PROGRAM", " ".join(OURS)).split())

    with Worker(tmp_path, command) as worker:

        @given(SEQUENCES)
        def agree(operations):
            *results, different = worker.run(operations)
            for operation, (theirs, our) in zip(operations, results, strict=True):
                assert our == theirs, operation
            assert different == []

        agree()
        worker.finish()
        assert not worker.problems, "\n".join(worker.problems)
