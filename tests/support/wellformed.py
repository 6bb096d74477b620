"""Well-formed tars of random trees, by three writers, and what two other readers make of a tar.

Trees have what each format can say: long and odd names, long symlinks, hard links, modes, owners, times with
nanoseconds, sparse files.  GNU tar's reading is what it leaves on disk as far as a user without root sees it,
tarfile's is what its members say.  Both come as `Facts` by path, as does our own.
"""

import io
import os
import stat
import subprocess
import tarfile
from pathlib import Path
from random import Random
from typing import NamedTuple

from support.layers import tree, union_of, unpacked

from fusestore import tar_writer
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.files import remove_tree

PLAIN = [b"a", b"b", b"File", b"some name", b"-rf", b"*"]
ODD = [*PLAIN, "naïve".encode(), b"\xff\xfe", b"new\nline", b"x" * 60]
LONG = [*ODD, b"long" * 50, b"l" * 255]
#: Names, and the longest path, that a format can hold.  tarfile takes a long or odd name of a PAX sparse file
#: from the wrong record.
LIMITS = {"v7": (ODD, 90), "ustar": (ODD, 90), "sparse": (PLAIN, 60)}
MODES = [0o644, 0o755, 0o600, 0o4755, 0o2711, 0o1777, 0o444, 0o500]
CONTENTS = [b"", b"x", b"data\n" * 300, bytes(512), bytes(range(256)) * 40, bytes(70_000) + b"behind a hole"]
TARGETS = [b"a", b"../up", b"/abs/olute", b"\xff", b"t" * 80]
TIMES = [0, 1, 1_700_000_000, 2**33 - 1]
TARFILE = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "posix": tarfile.PAX_FORMAT}
GNU_TAR = ["v7", "ustar", "oldgnu", "gnu", "posix", "sparse gnu", "sparse 0.0", "sparse 0.1", "sparse 1.0"]
_UTF8 = {"encoding": "utf-8", "errors": "surrogateescape"}


class Facts(NamedTuple):
    """What a reader says of an entry.  `peers` are all names of the file."""

    kind: int
    mode: int
    mtime_ns: int
    content: bytes
    peers: tuple[bytes, ...]
    ids: tuple[int, int] = (0, 0)


class Item(NamedTuple):
    """An entry to be written.  `hard`: a hard link to this path, which came before."""

    path: bytes
    kind: int
    mode: int
    mtime_ns: int
    content: bytes
    ids: tuple[int, int]
    hard: bytes = b""


def items(random: Random, form: str, *, nanoseconds: bool) -> list[Item]:
    """A tree: directories before what is in them, each path once, hard links after their file."""
    words, longest = LIMITS.get(form.split()[0], (LONG, 2000))
    kinds = [stat.S_IFREG] * 4 + [stat.S_IFDIR] * 3 + [stat.S_IFLNK] * 2 + [stat.S_IFIFO] * (form != "v7")
    directories: list[bytes] = [b""]
    found: dict[bytes, Item] = {}
    for _ in range(random.randint(1, 14)):
        path = os.path.join(random.choice(directories), random.choice(words))
        if path in found or len(path) > longest:
            continue
        kind = random.choice(kinds)
        mode, content = random.choice(MODES), b""
        files = [item for item in found.values() if item.kind == stat.S_IFREG and not item.hard]
        if kind == stat.S_IFREG and files and not random.randint(0, 3):
            file = random.choice(files)
            found[path] = file._replace(path=path, hard=file.path)
            continue
        if kind == stat.S_IFREG:
            content = random.choice(CONTENTS)
        elif kind == stat.S_IFLNK:
            mode, content = 0o777, random.choice(TARGETS) * random.choice([1, 5 if longest > 100 else 1])
        elif kind == stat.S_IFDIR:
            directories.append(path)
            mode = mode & ~0o2000 | 0o700  # whose children GNU tar would leave setgid too
        mtime_ns = random.choice(TIMES) * 10**9 + (123_456_789 if nanoseconds else 0)
        found[path] = Item(
            path, kind, mode, mtime_ns, content, random.choice([(0, 0), (7, 8), (2**21 - 1, 5)])
        )
    return list(found.values())


# -- writers -------------------------------------------------------------------------------------------------


def by_us(random: Random) -> bytes:
    """Our own writer."""
    found = []
    for item in items(random, "posix", nanoseconds=bool(random.randint(0, 1))):
        data = item.content if item.kind == stat.S_IFREG and not item.hard else b""
        link = item.hard or (item.content if item.kind == stat.S_IFLNK else b"")
        fields = {"size": len(data), "link": link, "hard": bool(item.hard)}
        found.append(tar_writer.header(item.path, item.kind | item.mode, *item.ids, item.mtime_ns, **fields))
        found.append(data + tar_writer.padding(len(data)))
    return b"".join(found) + tar_writer.END


def by_tarfile(random: Random, form: str) -> bytes:
    """Python's, in one of its formats."""
    kinds = {stat.S_IFREG: b"0", stat.S_IFDIR: b"5", stat.S_IFLNK: b"2", stat.S_IFIFO: b"6"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=TARFILE[form], **_UTF8) as archive:
        for item in items(random, form, nanoseconds=False):
            info = tarfile.TarInfo(os.fsdecode(item.path))
            info.type, info.mode, info.mtime = kinds[item.kind], item.mode, item.mtime_ns // 10**9
            info.uid, info.gid = item.ids
            if item.hard:
                info.type, info.linkname = b"1", os.fsdecode(item.hard)
            elif item.kind == stat.S_IFLNK:
                info.linkname = os.fsdecode(item.content)
            elif item.kind == stat.S_IFREG:
                info.size = len(item.content)
            archive.addfile(info, io.BytesIO(item.content))
    return buffer.getvalue()


def by_gnu_tar(random: Random, form: str, place: Path) -> bytes:
    """GNU tar's, of a tree on disk, in one of its formats or with sparse files."""
    place.mkdir()
    found = items(random, form, nanoseconds="." in form or form == "posix")
    for item in found:
        path = os.path.join(os.fsencode(place), item.path)
        if item.hard:
            os.link(os.path.join(os.fsencode(place), item.hard), path)
        elif item.kind == stat.S_IFREG:
            _write(path, item.content)
        elif item.kind == stat.S_IFDIR:
            os.mkdir(path)
        elif item.kind == stat.S_IFLNK:
            os.symlink(item.content, path)
        else:
            os.mkfifo(path)
    for item in reversed(found):
        path = os.path.join(os.fsencode(place), item.path)
        if item.kind != stat.S_IFLNK:
            os.chmod(path, item.mode | 0o400)
        os.utime(path, ns=(item.mtime_ns, item.mtime_ns), follow_symlinks=False)
    options = [f"--format={form}"]
    if form.startswith("sparse"):
        version = form.split()[1]
        options = ["--sparse", "--format=gnu" if version == "gnu" else "--format=posix"]
        options += [f"--sparse-version={version}"] if version != "gnu" else []
    command = ["tar", *options, "--owner=:7", "--group=:8", "--numeric-owner", "-C", place, "-c", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


def _write(path: bytes, content: bytes) -> None:
    """A file in which a long run of zeros is a hole."""
    with open(path, "xb") as file:
        file.seek(len(content) - len(content.lstrip(b"\0")))
        file.write(content.lstrip(b"\0"))
        file.truncate(len(content))


# -- readers -------------------------------------------------------------------------------------------------


def ours(archive: bytes, place: Path) -> dict[bytes, Facts]:
    """The tree that our unpacker makes of it, without its root."""
    unpacked(archive, place)
    with union_of(place, ownership=Ownership.OVERRIDE, spelling=Spelling.DEVICE) as union:
        shown = tree(union)
    remove_tree(place)
    names: dict[int, list[bytes]] = {}
    for path, entry in shown.items():
        names.setdefault(entry.ino, []).append(path)
    return {
        path: Facts(
            *(entry.kind, entry.mode, entry.mtime_ns, entry.content or b"", tuple(sorted(names[entry.ino]))),
            ids=(entry.uid, entry.gid),
        )
        for path, entry in shown.items()
        if path
    }


def gnu_tars(archive: bytes, place: Path) -> dict[bytes, Facts]:
    """The tree that GNU tar extracts; owners are the caller's, so they are left out.."""
    place.mkdir()
    command = ["tar", "-x", "--numeric-owner", "--preserve-permissions", "-C", place]
    subprocess.run(command, input=archive, check=True, capture_output=True)
    found, names, directories = {}, {}, [b""]
    for above in directories:  # grows while we walk
        for name in os.listdir(os.path.join(os.fsencode(place), above)):
            path = os.path.join(above, name)
            full = os.path.join(os.fsencode(place), path)
            st = os.lstat(full)
            names.setdefault(st.st_ino, []).append(path)
            content = b""
            if stat.S_ISREG(st.st_mode):
                os.chmod(full, 0o600)
                content = Path(os.fsdecode(full)).read_bytes()
                os.chmod(full, stat.S_IMODE(st.st_mode))
            elif stat.S_ISLNK(st.st_mode):
                content = os.readlink(full)
            elif stat.S_ISDIR(st.st_mode):
                directories.append(path)
            found[path] = st, content
    remove_tree(place)
    return {
        path: Facts(
            *(stat.S_IFMT(st.st_mode), stat.S_IMODE(st.st_mode), st.st_mtime_ns, content),
            tuple(sorted(names[st.st_ino])),
        )
        for path, (st, content) in found.items()
    }


def tarfiles(archive: bytes) -> dict[bytes, Facts]:
    """What tarfile's members say, to the second."""
    kinds = {b"5": stat.S_IFDIR, b"2": stat.S_IFLNK, b"6": stat.S_IFIFO}
    found, links = {}, {}
    with tarfile.open(fileobj=io.BytesIO(archive), errorlevel=2, ignore_zeros=False, **_UTF8) as reader:
        for info in reader:
            path = os.fsencode(os.path.normpath(info.name))
            if path == b".":
                continue
            first = links.get(os.fsencode(os.path.normpath(info.linkname)), []) if info.islnk() else []
            first.append(path)
            links[path] = first
            content = os.fsencode(info.linkname) if info.issym() else b""
            if info.isreg():
                content = reader.extractfile(info).read()
            facts = Facts(
                *(kinds.get(info.type, stat.S_IFREG), info.mode, int(info.mtime) * 10**9, content, ()),
                ids=(info.uid, info.gid),
            )
            found[path] = found[first[0]] if info.islnk() else facts
    return {path: facts._replace(peers=tuple(sorted(links[path]))) for path, facts in found.items()}
