"""Hostile tars (reliability.md 1.2-1.8): each is refused or stays inside; the directory beside is as it was.

Every case is unpacked with a canary directory as the layer's neighbour, which it tries to read, to change or
to link to. Afterwards the canary must be the same to the byte and the nanosecond, and no file of the layer on
disk may be a device or carry a special mode bit.
"""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.layers import add, dangers, paths, stack, tree, union_of, unpacked
from support.tars import (
    CHAR,
    DEVICE,
    FIFO,
    folder,
    hard_link,
    header,
    member,
    pax,
    symlink,
    tar,
)

from fusestore.driver.api import Limits
from fusestore.driver.apply import unpack
from fusestore.driver.below import Nothing
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import InvalidLayer


def state(directory):
    """Everything about a tree that could have been changed."""
    found = {}
    for place, directories, files in os.walk(directory):
        for path in [place, *(os.path.join(place, name) for name in files + directories)]:
            st = os.lstat(path)
            content = hashlib.sha256(Path(path).read_bytes()).digest() if os.path.isfile(path) else None
            facts = (
                st.st_ino,
                st.st_mode,
                st.st_nlink,
                st.st_uid,
                st.st_size,
                st.st_mtime_ns,
                st.st_ctime_ns,
            )
            found[path] = (*facts, os.listxattr(path, follow_symlinks=False), content)
    return found


@pytest.fixture
def arena(tmp_path):
    """A directory with the canary, and with what looks like the layer's directory but is not."""
    for name in ("canary", "layer-evil"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "hello").write_text("secret")
        (tmp_path / name / "sub" / "file").write_text("secret too")
    (tmp_path / "canary" / "hello").chmod(0o640)
    before = state(tmp_path / "canary"), state(tmp_path / "layer-evil")
    yield tmp_path
    if (tmp_path / "layer").exists():
        assert dangers(tmp_path / "layer") == []
    assert (state(tmp_path / "canary"), state(tmp_path / "layer-evil")) == before
    assert set(os.listdir(tmp_path)) <= {"canary", "layer-evil", "layer", "root"}


def case(*members):
    """A tar whose names may speak of the canary's absolute path."""
    return lambda canary: tar(*(m(canary) if callable(m) else m for m in members))


def on_canary(make, *arguments, **fields):
    return lambda canary: make(*(a.replace("CANARY", canary) for a in arguments), **fields)


REFUSED = {
    # P1, P3: names that lead out, also those that come back
    "dotdot": case(member("../canary/hello", b"x")),
    "slash dotdot": case(member("/../canary/hello", b"x")),
    "dotdot later": case(member("a/../../canary/hello", b"x")),
    "dotdot from a directory": case(folder("a"), member("a/b/../../../canary/new", b"x")),
    "dotdot directory": case(folder("../canary/sub", 0o777)),
    "only dotdot": case(folder("..")),
    "out and back": case(member("../layer/x", b"x")),
    "dotdot of a symlink": case(symlink("../canary/link", "x")),
    "dotdot of a hard link": case(member("f"), hard_link("../canary/link", "f")),
    "dotdot of a device": case(member("../canary/node", kind=CHAR, major=1, minor=3)),
    "dotdot whiteout": case(member("../canary/.wh.hello")),
    "dotdot opaque": case(member("../canary/.wh..wh..opq")),
    # P4, P5, P6
    "nul in a name": case(member("x", extra={"path": "etc/shadow\0.txt"})),
    "nul in a link": case(symlink("x", "y", extra={"linkpath": "y\0z"})),
    "component of 256": case(member("n" * 256)),
    "component of 256 inside": case(member("n" * 256 + "/f")),
    "3000 levels": case(member("d/" * 3000 + "f")),
    "path of a megabyte": case(member("d/" * 500_000 + "f")),
    # P9, L6
    "symlink for the root": case(on_canary(symlink, "./", "CANARY")),
    "symlink for the root, then through it": case(on_canary(symlink, "/", "CANARY"), member("hello", b"x")),
    "hard link for the root": case(member("f"), hard_link("./", "f")),
    "empty name": case(member("")),
    "device for the root": case(member("/", kind=DEVICE)),
    # L7
    "symlink loop": case(symlink("a", "b"), symlink("b", "a"), member("a/x", b"x")),
    "symlink to itself": case(symlink("a", "a"), member("a/x", b"x")),
    "growing symlink loop": case(symlink("a", "a/a/a"), member("a/x", b"x")),
    "41 symlinks": case(
        folder("d"),
        symlink("l0", "d"),
        *(symlink(f"l{i}", f"l{i - 1}") for i in range(1, 41)),
        member("l40/x"),
    ),
    "empty symlink": case(symlink("a", "")),
    "symlink over PATH_MAX": case(symlink("a", "t" * 4096)),
    "owned symlink over PATH_MAX": case(symlink("a", "t" * 4096, uid=1)),
    "child of a file": case(member("f", b"x"), member("f/child", b"x")),
    "child of a device": case(member("f", kind=CHAR, major=1, minor=3), member("f/child", b"x")),
    # H1 - H8
    "hard link dotdot": case(hard_link("h", "../canary/hello")),
    "hard link slash dotdot": case(hard_link("h", "/../canary/hello")),
    "hard link absolute": case(on_canary(hard_link, "h", "CANARY/hello")),
    "hard link to passwd": case(hard_link("h", "/etc/passwd")),
    "hard link through symlink": case(on_canary(symlink, "s", "CANARY"), hard_link("h", "s/hello")),
    "hard link through owned symlink": case(
        on_canary(symlink, "s", "CANARY", uid=9), hard_link("h", "s/hello")
    ),
    "hard link through relative symlink": case(symlink("s", "../canary"), hard_link("h", "s/hello")),
    "hard link through missing directory": case(symlink("s", "no/../../canary"), hard_link("h", "s/hello")),
    "hard link by prefix": case(hard_link("h", "../layer-evil/hello")),
    "hard link to the working directory": case(hard_link("h", "hello")),
    "hard link to /proc": case(hard_link("h", "/proc/self/cwd/hello")),
    "hard link forward": case(hard_link("h", "f"), member("f")),
    "hard link to itself": case(hard_link("h", "h")),
    "hard link to itself, spelled otherwise": case(folder("d"), symlink("s", "d"), hard_link("d/h", "s/h")),
    "hard link to a directory": case(folder("d"), hard_link("h", "d")),
    "hard link to the root": case(hard_link("h", "/")),
    "hard link to nothing": case(hard_link("h", "")),
    "hard link below a file": case(member("f"), hard_link("h", "f/x")),
    # S1 and others of the format
    "cut in data": case(lambda _: member("f", b"x" * 2000)[:1000]),
    "unknown type": case(member("f", kind=b"Z")),
    "hole of 2**62": case(pax([("GNU.sparse.size", str(1 << 62)), ("GNU.sparse.map", "0,0")]), member("f")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(arena, name, monkeypatch):
    monkeypatch.chdir(arena / "canary")
    archive = REFUSED[name](str(arena / "canary"))
    with pytest.raises(InvalidLayer) as caught:
        unpacked(archive, arena / "layer")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name", [name for name in REFUSED if "root" not in name and name != "hard link by prefix"]
)
def test_refused_on_a_lower_layer_too(arena, name, monkeypatch, tmp_path_factory):
    """The same with layers below, where a name may be found that is not in the tar."""
    from fusestore.driver.fuse import FuseDriver

    monkeypatch.chdir(arena / "canary")
    driver = FuseDriver(tmp_path_factory.mktemp("root"), tmp_path_factory.mktemp("run"))
    below = stack(driver, tar(folder("./"), folder("no"), folder("sub"), folder("layer")))
    with pytest.raises(InvalidLayer):
        add(driver, REFUSED[name](str(arena / "canary")), below)
    assert os.listdir(driver.diff_directory(below).parents[2] / "tmp") == []


INSIDE = {
    # P2: absolute names are the image's
    "absolute name": (case(on_canary(member, "CANARY/hello")), {"CANARY/hello"}),
    "slashes": (case(on_canary(member, "//CANARY//hello")), {"CANARY/hello"}),
    # L1 - L3: through symlinks, made earlier, that point out
    "through an absolute symlink": (
        case(on_canary(symlink, "s", "CANARY"), member("s/hello", b"x")),
        {"s", "CANARY/hello"},
    ),
    "through an owned absolute symlink": (
        case(on_canary(symlink, "s", "CANARY", uid=7), member("s/hello", b"x")),
        {"s", "CANARY/hello"},
    ),
    "through a relative symlink": (
        case(symlink("s", "../canary"), member("s/hello", b"x")),
        {"s", "canary", "canary/hello"},
    ),
    "through many dotdots": (
        case(symlink("s", "../" * 30 + "canary"), member("s/sub/file", b"x")),
        {"s", "canary/sub/file"},
    ),
    "through symlinks that escape together": (
        case(symlink("a", "."), symlink("b", "a/.."), symlink("c", "b/../canary"), member("c/hello", b"x")),
        {"a", "b", "c", "canary/hello"},
    ),
    "through a directory and a symlink": (
        case(
            folder("d"), symlink("d/up", ".."), symlink("d/out", "up/../canary"), member("d/out/hello", b"x")
        ),
        {"d/up", "d/out", "canary/hello"},
    ),
    "through a long symlink": (
        case(folder("d"), symlink("s", "./" * 2000 + "d"), member("s/x")),
        {"s", "d/x"},
    ),
    "through a long owned symlink": (
        case(folder("d"), symlink("s", "./" * 2000 + "d", uid=4), member("s/x")),
        {"s", "d/x"},
    ),
    "directory through a symlink": (
        case(on_canary(symlink, "s", "CANARY"), folder("s/sub", 0o777), folder("s/new")),
        {"s", "CANARY/sub", "CANARY/new"},
    ),
    "symlink through a symlink": (
        case(symlink("s", "../canary"), symlink("s/hello", "x")),
        {"s", "canary/hello"},
    ),
    "device through a symlink": (
        case(symlink("s", "/dev"), member("s/null", kind=CHAR, major=1, minor=3)),
        {"s", "dev/null"},
    ),
    "40 symlinks": (
        case(
            folder("d"),
            symlink("l0", "d"),
            *(symlink(f"l{i}", f"l{i - 1}") for i in range(1, 40)),
            member("l39/x"),
        ),
        {"l0", "l39", "d/x"},
    ),
    # L4: a symlink, then an entry of the same name
    "file over a symlink": (case(on_canary(symlink, "s", "CANARY/hello"), member("s", b"x")), {"s"}),
    "file over an owned symlink": (
        case(on_canary(symlink, "s", "CANARY/hello", uid=3), member("s", b"x")),
        {"s"},
    ),
    "directory over a symlink": (
        case(on_canary(symlink, "s", "CANARY"), folder("s", 0o777), member("s/hello", b"x")),
        {"s/hello"},
    ),
    "device over a symlink": (
        case(on_canary(symlink, "s", "CANARY/hello"), member("s", kind=DEVICE, major=8)),
        {"s"},
    ),
    "hard link over a symlink": (
        case(member("f"), on_canary(symlink, "s", "CANARY/hello"), hard_link("s", "f")),
        {"s", "f"},
    ),
    "metadata on a symlink": (
        case(on_canary(symlink, "s", "CANARY/hello", uid=7, mtime=8, extra={"SCHILY.xattr.user.a": "1"})),
        {"s"},
    ),
    # H2, H5: hard links to symlinks
    "hard link to a symlink": (
        case(on_canary(symlink, "s", "CANARY/hello"), hard_link("h", "s", mode=0o4777, mtime=9)),
        {"s", "h"},
    ),
    "file over a hard link to a symlink": (
        case(on_canary(symlink, "s", "CANARY/hello"), hard_link("h", "s"), member("h", b"x")),
        {"s", "h"},
    ),
    "file over a hard link": (case(member("f", b"1"), hard_link("h", "f"), member("h", b"2")), {"f", "h"}),
    # W2, W7: markers below symlinks, markers that are symlinks
    "whiteout through a symlink": (
        case(on_canary(symlink, "s", "CANARY"), member("s/.wh.hello"), member("s/.wh.sub")),
        {"s"},
    ),
    "opaque through a symlink": (case(on_canary(symlink, "s", "CANARY"), member("s/.wh..wh..opq")), {"s"}),
    "opaque marker as a symlink": (case(on_canary(symlink, ".wh..wh..opq", "CANARY/new")), set()),
    "aufs hard link store": (case(member(".wh..wh.plnk/1.2", b"x"), folder(".wh..wh.plnk")), set()),
    # D1 - D3, D6
    "devices": (
        case(
            member("null", kind=CHAR, major=1, minor=3),
            member("sda", kind=DEVICE, major=8),
            member("p", kind=FIFO),
        ),
        {"null", "sda", "p"},
    ),
    "file over a fifo": (case(member("p", kind=FIFO), member("p", b"x")), {"p"}),
    "file over a device": (case(member("n", kind=CHAR, major=1, minor=3), member("n", b"x")), {"n"}),
    "setuid": (
        case(member("su", b"x", mode=0o6755), folder("d", 0o7777), member("d/f", mode=0o104755)),
        {"su", "d", "d/f"},
    ),
    "replaced while open": (
        case(folder("d"), member("d/f"), symlink("d", "../canary"), member("d/hello", b"x")),
        {"d", "canary/hello"},
    ),
}


@pytest.mark.parametrize("name", INSIDE)
@pytest.mark.timeout(20)
def test_inside(arena, name):
    make, expected = INSIDE[name]
    canary = str(arena / "canary")
    unpacked(make(canary), arena / "layer")
    with union_of(arena / "layer", ownership=Ownership.OVERRIDE, spelling=Spelling.DEVICE) as union:
        found = {path.decode() for path in paths(union)}
    assert {path.replace("CANARY", canary).lstrip("/") for path in expected} <= found
    if not expected:
        assert found == set()


def test_realpath_overflow(arena):
    """CVE-2025-4517: symlinks whose real path is longer than PATH_MAX, then one that relies on it."""
    entries, path = [], ""
    for letter in "abcdefghijklmnop":
        entries += [folder(f"{path}{'d' * 247}"), symlink(f"{path}{letter}", "d" * 247)]
        path += "d" * 247 + "/"
    chain = "/".join("abcdefghijklmnop")
    entries += [
        symlink(f"{chain}/{'l' * 254}", "../" * 16),
        symlink("escape", f"{chain}/{'l' * 254}/../canary"),
    ]
    entries += [hard_link("flag", "escape/hello"), member("escape/hello", b"x")]
    with pytest.raises(InvalidLayer):
        unpacked(tar(*entries), arena / "layer")


@pytest.mark.parametrize("owner", [0, 5])
def test_a_symlink_of_a_lower_layer_redirects_nothing(arena, driver, owner):
    """L5: GNU tar into one directory escapes that way.  The upper layer's own tree has no such link."""
    canary = str(arena / "canary")
    lower = stack(driver, tar(symlink("s", canary, uid=owner), symlink("t", "../canary", uid=owner)))
    before = state(driver.diff_directory(lower))
    upper = [member("s/hello", b"x"), member("t/.wh.hello"), member("t/.wh..wh..opq"), folder("t/sub", 0o777)]
    top, _ = add(driver, tar(*upper), lower)
    with driver.union(top) as union:
        found = tree(union)
    assert found[b"s/hello"].content == b"x"
    assert found[b"t/sub"].mode == 0o777
    assert canary.encode()[1:] + b"/hello" not in found
    for target in ("s/hello", "t/hello", "t/sub/file"):
        with pytest.raises(InvalidLayer):
            add(driver, tar(hard_link("h", target)), lower)
    assert state(driver.diff_directory(lower)) == before


def test_lower_layers_do_not_change(arena, driver):
    """H9: neither by links to their files, nor by new attributes, nor by deletion."""
    lower = stack(
        driver,
        tar(folder("d", 0o700), member("d/f", b"1" * 5000), hard_link("g", "d/f"), symlink("s", "g", uid=1)),
    )
    before = state(driver.diff_directory(lower))
    upper = [
        hard_link("h", "d/f"),
        hard_link("i", "s"),
        folder("d", 0o777, uid=3),
        member("g", b"2"),
        member(".wh.s"),
    ]
    add(driver, tar(*upper), lower)
    assert state(driver.diff_directory(lower)) == before


# -- moby's tests of the same -------------------------------------------------------------------------------


def moby(arena, *entries, escapes):
    """moby's testBreakout: whatever the tar does, the victim's content comes nowhere into the layer."""
    archive = tar(*entries)
    if escapes:
        with pytest.raises(InvalidLayer):
            unpacked(archive, arena / "layer")
    else:
        unpacked(archive, arena / "layer")
    for place, _, files in os.walk(arena / "layer"):
        for name in files:
            path = Path(place, name)
            assert path.is_symlink() or b"secret" not in path.read_bytes()
            assert path.is_symlink() or path.stat().st_nlink == 1


@pytest.mark.parametrize("name", ["../canary/dotdot", "/../canary/slash-dotdot"])
def test_apply_layer_invalid_filenames(arena, name):
    moby(arena, member(name), escapes=True)


@pytest.mark.parametrize(
    "entries",
    [
        [hard_link("dotdot", "../canary/hello")],
        [hard_link("slash-dotdot", "/../canary/hello")],
        [hard_link("loophole", "../canary"), member("loophole/file")],
        [hard_link("loophole", "../canary"), symlink("symlink", "loophole/hello")],
        [hard_link("loophole", "../canary"), hard_link("hardlink", "loophole/hello")],
        [hard_link("loophole", "../canary"), member("loophole")],
    ],
)
def test_apply_layer_invalid_hardlink(arena, entries):
    moby(arena, *entries, escapes=True)


@pytest.mark.parametrize(
    ("entries", "escapes"),
    [
        ([symlink("dotdot", "../canary/hello")], False),
        ([symlink("slash-dotdot", "/../canary/hello")], False),
        ([symlink("loophole", "../canary"), member("loophole/file")], False),
        ([symlink("loophole", "../canary"), symlink("symlink", "loophole/hello")], False),
        ([symlink("loophole", "../canary"), hard_link("hardlink", "loophole/hello")], True),
        ([symlink("loophole", "../canary"), member("loophole")], False),
    ],
)
def test_apply_layer_invalid_symlink(arena, entries, escapes):
    moby(arena, *entries, escapes=escapes)


# -- bombs --------------------------------------------------------------------------------------------------


class Endless:
    """A start, then one thing for ever."""

    def __init__(self, start, repeated):
        self._rest, self._repeated = start, repeated
        self.given = 0

    def read(self, size, /):
        while len(self._rest) < size:
            self._rest += self._repeated
        data, self._rest = self._rest[:size], self._rest[size:]
        self.given += len(data)
        return data


def bomb(arena, stream, limits):
    (arena / "layer").mkdir()
    directory = os.fsencode(arena / "layer")
    return unpack(stream, directory, Nothing(), Ownership.OVERRIDE, Spelling.DEVICE, limits)


def test_a_file_over_the_limit_is_refused_within_a_buffer(arena):
    stream = Endless(header(b"f", size=1 << 40), bytes(1 << 20))
    with pytest.raises(InvalidLayer):
        bomb(arena, stream, Limits(size=10 << 20))
    assert stream.given <= 13 << 20


def test_many_files_over_the_limit_are_refused_within_a_buffer(arena):
    stream = Endless(b"", member("f", b"x" * (1 << 20)))
    with pytest.raises(InvalidLayer):
        bomb(arena, stream, Limits(size=10 << 20))
    assert stream.given <= 13 << 20


@pytest.mark.parametrize(
    "entry", [member("f"), folder("d"), symlink("s", "t"), member(".wh.f"), member("d/.wh..wh..opq")]
)
def test_entries_over_the_limit_are_refused(arena, entry):
    stream = Endless(b"", entry * 100)
    with pytest.raises(InvalidLayer):
        bomb(arena, stream, Limits(entries=1000))
    assert stream.given <= 2 << 20


@pytest.mark.parametrize("size", [1 << 40, 1 << 50])
def test_a_huge_hole_takes_no_space(arena, size):
    archive = tar(pax([("GNU.sparse.size", str(size)), ("GNU.sparse.map", "0,0")]), member("f"))
    try:
        unpacked(archive, arena / "layer")
    except InvalidLayer:  # more than a file may have here
        return
    assert os.stat(arena / "layer" / "f").st_blocks == 0


MEMORY = """
import os, sys
from fusestore.driver.api import Limits
from fusestore.driver.apply import unpack
from fusestore.driver.below import Nothing
from fusestore.driver.ownership import Ownership
from fusestore.driver.whiteout import Spelling
from fusestore.errors import InvalidLayer
from support.tars import GNU, Stream, header, long, member, padded, pax, records, tar

def big(kind, data):
    return header(b"x", kind=kind, size=len(data), magic=GNU) + padded(data)

def old_sparse(count):
    block = b"".join(b"%011o\\0%011o\\0" % (i, 0) for i in range(21)) + b"\\1" + bytes(7)
    tail = bytes(41) + bytes(96) + b"\\1" + b"%011o\\0" % 100
    return header(b"s", kind=b"S", magic=GNU, tail=tail) + block * count

full = 1 << 20
SPARSE_1_0 = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")]
PAIR = [("GNU.sparse.offset", "1"), ("GNU.sparse.numbytes", "0")]
NUMBERS = ",".join(["123", "0"] * 170000)

KEYS = [(f"SCHILY.xattr.user.{i}", "") for i in range(34000)]

def filled(kind):
    return [big(kind, records([(f"V.{i}", "v" * (full - 40))])) for i in range(200)]

CASES = {
    "long names": lambda: [big(b"L", b"n" * (full - 1)) for _ in range(200)],
    "extended headers": lambda: filled(b"x"),
    "global headers": lambda: filled(b"g"),
    "many keys": lambda: [big(b"x", records(KEYS)), member("f")],
    "pax map": lambda: [pax([("GNU.sparse.size", "9999999"), ("GNU.sparse.map", NUMBERS)]), member("f")],
    "pax pairs": lambda: [pax([("GNU.sparse.size", "9"), *PAIR * 18000]), member("f")],
    "sparse 1.0 map": lambda: [pax(SPARSE_1_0), member("f", b"500000\\n" + b"0\\n" * 1000000)],
    "old sparse map": lambda: [old_sparse(3000)],
    "one big file": lambda: [member("f", bytes(100 << 20))],
}
entries = CASES[sys.argv[1]]()
stream = Stream(tar(*entries))
del entries
open("/proc/self/clear_refs", "w").write("5")  # the peak begins here
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
base = peak()
try:
    unpack(stream, os.fsencode(sys.argv[2]), Nothing(), Ownership.OVERRIDE, Spelling.DEVICE, Limits())
except InvalidLayer:
    pass
except OSError as exc:
    assert exc.errno == 7, exc  # more xattrs than fit
print(peak() - base)
"""
CASES = [
    "long names",
    "extended headers",
    "global headers",
    "many keys",
    "pax map",
    "pax pairs",
    "sparse 1.0 map",
    "old sparse map",
    "one big file",
]


@pytest.mark.parametrize("name", CASES)
def test_memory_stays_bounded(arena, name):
    """S8: 64 MB over what there was before, whatever the headers say."""
    (arena / "layer").mkdir()
    command = [sys.executable, "-c", MEMORY, name, arena / "layer"]
    tests = str(Path(__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": f"{tests}:{os.path.dirname(tests)}"}
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) * 1024 <= 64 << 20


def test_file_descriptors_stay_few(arena):
    """A limit of 256 open files is the smallest one meets; nothing may leak."""
    entries = [member(f"{'/'.join('abcdef'[i:] + str(j))}/f") for i in range(5) for j in range(400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        unpacked(tar(*entries), arena / "layer")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before
