"""Of a well-formed tar we make the tree that GNU tar and tarfile make; of a malformed one nobody takes, none.

FUSESTORE_DIFFERENTIAL is how many tars of each kind are tried (1,000 and more for a long look).
"""

import os
import stat
from random import Random

import pytest
from support import wellformed as w

COUNT = int(os.environ.get("FUSESTORE_DIFFERENTIAL", "150"))
WRITERS = ["fusestore", *(f"tarfile {form}" for form in w.TARFILE), *(f"tar {form}" for form in w.GNU_TAR)]


def written(writer, random, place):
    program, _, form = writer.partition(" ")
    if program == "tar":
        return w.by_gnu_tar(random, form, place)
    return w.by_tarfile(random, form) if form else w.by_us(random)


@pytest.mark.parametrize("writer", WRITERS)
def test_well_formed(tmp_path, writer):
    for seed in range(COUNT // len(WRITERS) + 1):
        archive = written(writer, Random(f"{writer} {seed}"), tmp_path / f"tree{seed}")
        found = w.ours(archive, tmp_path / "ours")
        assert found, f"seed {seed}"
        theirs = w.gnu_tars(archive, tmp_path / "theirs")
        assert changed(for_gnu, found) == changed(for_gnu, theirs), f"seed {seed}"
        assert changed(for_tarfile, found) == w.tarfiles(archive), f"seed {seed}"


def changed(change, found):
    return {path: change(facts) for path, facts in found.items()}


def for_gnu(facts):
    """Without owners, which it could not set, and the times of directories, which it does not keep."""
    return facts._replace(ids=(0, 0), mtime_ns=0 if facts.kind == stat.S_IFDIR else facts.mtime_ns)


def for_tarfile(facts):
    """Without fractions of a second, which it keeps as floats."""
    return facts._replace(mtime_ns=facts.mtime_ns // 10**9 * 10**9)


# What GNU tar says when it refuses what we take on purpose.
WARNINGS = rb"Removing leading|Substituting|Ignoring unknown|A lone zero block|Exiting|Error is not recoverable"
EXCUSED = {
    "a .. that stays inside is cleaned": rb"Member name contains '\.\.'",
    "what sparse records say of other files is not read": rb"Malformed extended header: \w+ GNU\.sparse\.",
    "an empty value takes a record back (POSIX)": rb"Malformed extended header: invalid \w+=$",
    "nor is what a record overrides, or a device number of a file": (
        rb"out of \w+ range|where numeric \w+ value expected"
    ),
}


def gnu_tar_complains(archive):
    """What GNU tar finds wrong with the format, and nothing excuses."""
    command = ["tar", "--extract", "--to-stdout"]
    answer = subprocess.run(command, input=archive, capture_output=True, env=os.environ | {"LC_ALL": "C"})
    if not answer.returncode:
        return []
    serious = [line for line in answer.stderr.splitlines() if not re.search(WARNINGS, line)]
    return [line for line in serious if not any(re.search(excuse, line) for excuse in EXCUSED.values())]


def tarfile_complains(archive):
    """What tarfile finds wrong with it, reading it all."""
    try:
        w.tarfiles(archive)
    except tarfile.ReadError as exc:
        return str(exc)
    return None


def spoiled(seed):
    random = Random(seed)
    make = random.choice([w.by_us, *(lambda random, form=form: w.by_tarfile(random, form) for form in w.TARFILE)])
    return wild.mutated(random, make(random))
