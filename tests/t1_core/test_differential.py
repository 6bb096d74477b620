"""Of a well-formed tar we make the tree that GNU tar and tarfile make; of a malformed one nobody takes, none.

FUSESTORE_DIFFERENTIAL is how many tars of each kind are tried (1,000 and more for a long look).
"""

import io
import os
import stat
import subprocess
import tarfile
from random import Random

import pytest
from support import wellformed as w
from support.tars import BLOCK, padded, read
from support.wild import sealed

from fusestore.errors import InvalidLayer

COUNT = int(os.environ.get("FUSESTORE_DIFFERENTIAL", "250"))
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


# -- malformed -----------------------------------------------------------------------------------------------

JUNK = [
    b"8",
    b"-1",
    b"0x1f",
    b"garbage",
    b"1 1",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\xc0",
    b"1e3",
    b"\x7f",
]
SIZE = 124
FIELDS = [(100, 8), (108, 8), (116, 8), (SIZE, 12), (136, 12)]


def headers(data, kinds=b"01256xLK", *, described=True):
    """Where headers of these types begin; without those that PAX records come before, if so wanted."""
    found, before = [], 0
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        if data[start + 257 : start + 262] == b"ustar":
            if data[start + 156] in kinds and (described or before not in b"xLK"):
                found.append(start)
            before = data[start + 156]
    return found


def cut(random, data):
    del data[random.randrange(len(data)) :]


def flip(random, data):
    data[random.choice(headers(data)) + random.randrange(BLOCK)] ^= 1 << random.randrange(8)


def spoil_number(random, data):
    """A field that counts: not one that a PAX record overrides, nor the size of what has no data."""
    offset, width = random.choice(FIELDS)
    starts = headers(data, b"0xLK" if offset == SIZE else b"01256", described=False)
    if starts:
        start = random.choice(starts) + offset
        data[start : start + width] = random.choice(JUNK)[:width].ljust(width, b"\0")
    seal(data)


def change_size(random, data):
    starts = headers(data, b"0xLK")
    if starts:
        start = random.choice(starts) + SIZE
        data[start : start + 12] = b"%011o\0" % random.choice([0, 1, 511, 512, 513, 5000, 1 << 30])
    seal(data)


def change_type(random, data):
    data[random.choice(headers(data)) + 156] = random.choice(b"089AVMNSXZ\xff")
    seal(data)


def spoil_records(random, data):
    starts = headers(data, b"x")
    if starts:
        data[random.choice(starts) + BLOCK + random.randrange(12)] = random.choice(b"0129 =\n\0x")


def lose_block(random, data):
    start = random.randrange(len(data) // BLOCK) * BLOCK
    del data[start : start + BLOCK]


def repeat_block(random, data):
    start = random.randrange(len(data) // BLOCK) * BLOCK
    data[start:start] = data[start : start + BLOCK]


def insert_block(random, data):
    start = random.choice(headers(data))
    data[start:start] = random.choice([bytes(BLOCK), random.randbytes(BLOCK), b"text\n".ljust(BLOCK)])


DAMAGES = [
    cut,
    flip,
    spoil_number,
    change_size,
    change_type,
    spoil_records,
    lose_block,
    repeat_block,
    insert_block,
]


def seal(data):
    data[:] = sealed(bytes(data))


def damaged(random, damage):
    forms = [w.by_us, *(lambda random, form=form: w.by_tarfile(random, form) for form in w.TARFILE)]
    data = bytearray(random.choice(forms)(random))
    damage(random, data)
    return bytes(data)


def gnu_tar_refuses(archive):
    command = ["tar", "--extract", "--to-stdout"]
    return subprocess.run(command, input=archive, capture_output=True).returncode != 0


def tarfile_refuses(archive):
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), errorlevel=2, ignore_zeros=False) as reader:
            for info in reader:
                if info.isreg():
                    reader.extractfile(info).read()
    except tarfile.ReadError:
        return True
    return False


def refused_by_us(archive):
    try:
        read(archive)
    except InvalidLayer:
        return True
    return False


@pytest.mark.parametrize("damage", DAMAGES)
def test_malformed(damage):
    """Whatever GNU tar or tarfile refuses, so do we; but the last file's padding may be missing."""
    for seed in range(COUNT // len(DAMAGES) + 1):
        archive = damaged(Random(f"{damage.__name__} {seed}"), damage)
        if not refused_by_us(archive):
            assert not gnu_tar_refuses(padded(archive)), f"seed {seed}"
            assert not tarfile_refuses(padded(archive)), f"seed {seed}"
