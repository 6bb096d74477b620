"""All that can happen to the store of `support.town` behind its back.

A `Damage` is done to a copy that nobody has open; it says what a check must then tell, and what a repair may
delete.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.images import dumped, sha256
from support.town import BASE, CONFIGURATION, IMAGE, LAYER, LONE, RW, Copy

from fusestore.store.tarsplit import RECORD


@dataclass(frozen=True)
class Damage:
    """What happens, what a check says of it, line by line, and what is gone after a repair.

    In the lines ``LAYER``, ``BASE`` and ``IMAGE`` stand for ids, ``*`` for anything.  `force` says that the
    repair needs it, `quick` that a quick check finds it too.
    """

    act: Callable[[Copy], object]
    lines: tuple[str, ...]
    gone: frozenset[str] = frozenset()
    force: bool = False
    quick: bool = True


_PAIR = frozenset({"LAYER", "BASE", "IMAGE"})
_MADE = frozenset({"other", "made", "c", "c-layer"})


def _keeping_times(path: Path, act: Callable[[Path], object]) -> None:
    """Do something to a file or in a directory that its times do not tell."""
    st = os.lstat(path)
    act(path)
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def _top(what: str, path: str, act: Callable[[Path], object], *, quick: bool = False) -> Damage:
    """Something in the directory of the image's topmost layer."""
    lines = (f"layer LAYER: {what}", f"image IMAGE: layer LAYER: {what}")
    return Damage(lambda copy: _keeping_times(copy.directory(LAYER) / path, act), lines, _PAIR, quick=quick)


def _base(what: str, path: str, act: Callable[[Path], object]) -> Damage:
    """Something in that of the layer below."""
    lines = tuple(
        f"{item}: {what}" for item in ("layer BASE", "layer LAYER: layer BASE", "image IMAGE: layer BASE")
    )
    return Damage(
        lambda copy: _keeping_times(copy.directory(sha256(BASE)) / path, act), lines, _PAIR, quick=False
    )


def _modified(changes: str, path: str, act: Callable[[Path], object]) -> Damage:
    return _top(f"{changes}, layer content modified", f"diff/{path}", act)


def _image(act: Callable[[Copy], object], *lines: str) -> Damage:
    return Damage(act, tuple(f"image IMAGE: {line}" for line in lines), _PAIR)


def _made(act: Callable[[Copy], object], *lines: str, quick: bool = True) -> Damage:
    """Something with what has a container."""
    return Damage(act, lines, _MADE, force=True, quick=quick)


def _mended(act: Callable[[Copy], object], *lines: str, quick: bool = True) -> Damage:
    """Something after which nothing has to go."""
    return Damage(act, lines, quick=quick)


def _sql(statement: str, *values: object) -> Callable[[Copy], object]:
    return lambda copy: copy.sql(statement, *values)


def _override(value: bytes) -> Callable[[Path], object]:
    return lambda path: os.setxattr(path, "user.containers.override_stat", value)


def _xattr(name: str, value: bytes) -> Callable[[Path], object]:
    return lambda path: os.setxattr(path, name, value)


def _unlink(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def _unlinked(directory: Path) -> None:
    """Make a name that was one of two another file's."""
    shutil.copy2(directory / "g", directory / "new")
    (directory / "new").rename(directory / "g")


def _documents(**changed: object) -> Callable[[Copy], None]:
    """Another configuration, of which the row of the blob is right."""

    def act(copy: Copy) -> None:
        data, key = dumped({**json.loads(CONFIGURATION), **changed}), f"sha256:{IMAGE}"
        copy.blob("image", IMAGE, key).write_bytes(data)
        copy.sql("UPDATE big_data SET digest = ?, size = ? WHERE key = ?", sha256(data), len(data), key)

    return act


def _manifest(act: Callable[[Path], object]) -> Callable[[Copy], object]:
    return lambda copy: act(copy.blob("image", IMAGE, "manifest"))


def _swapped(copy: Copy) -> None:
    """Two links, each in the other's place."""
    one, two = copy.link("other"), copy.link("rw")
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)


_WRONG = "layer other: layer content incorrect digest"
_GONE = "its directory * is missing"

#: In layers; on both drivers.
CONTENT = {
    "a file changed": _top(
        "file integrity checksum failed for b", "diff/b", lambda p: p.write_bytes(b"c" * 50)
    ),
    "a file longer": _top(
        "file integrity checksum failed for b", "diff/b", lambda p: p.write_bytes(b"b" * 51)
    ),
    "a file empty": _top("file integrity checksum failed for b", "diff/b", lambda p: p.write_bytes(b"")),
    "a file gone": _top("b is missing", "diff", _unlink("b")),
    "a file too many": _modified("+/datafile3", "", lambda p: (p / "datafile3").touch()),
    "a directory too many": _modified("+/d/new", "d", lambda p: (p / "new").mkdir()),
    "a hard link gone": _modified("-/h", "", _unlink("h")),
    "a time": Damage(
        lambda copy: os.utime(copy.directory(LAYER) / "diff/b", (1, 1)),
        ("layer LAYER: */b (time), layer content modified", "image IMAGE: layer LAYER: */b (time), *"),
        _PAIR,
        quick=False,
    ),
    "a mode": _modified("*/d (mode)", "d", _override(b"0:0:0755:dir")),
    "an owner": _modified("*/b (owner)", "b", _override(b"1:0:0644:file")),
    "an owner that is none": _modified("*/b (damaged override_stat)", "b", _override(b"7:")),
    "an xattr": _modified("*/b (xattr user.x)", "b", _xattr("user.x", b"2")),
    "an xattr too many": _modified("*/d (xattr user.y)", "d", _xattr("user.y", b"2")),
    "a digest in the row": _made(
        _sql("UPDATE layers SET diff_id = ? WHERE id = 'other'", sha256(b"")),
        *(_WRONG, f"layer c-layer: {_WRONG}", f"image made: {_WRONG}", f"container c: {_WRONG}"),
        quick=False,
    ),
}

#: In layers; what is not as on ``vfs``, or does not depend on the driver.
LAYERS = {
    "a type": _modified("*/b (another type)", "b", _override(b"0:0:0644:pipe")),
    "a whiteout": _modified("+/s", "", lambda p: os.mknod(p / "s", stat.S_IFCHR)),
    "an opaque mark": _modified("*/d (opaque mark)", "d", _xattr("user.overlay.opaque", b"y")),
    "a link's target": _base(
        "*/s (size, target), layer content modified", "diff/s", lambda p: p.write_bytes(b"x/y")
    ),
    "a hard link's file": _base("*/d/g (links), layer content modified", "diff/d", _unlinked),
    "the record gone": _top("its tar-split record is missing", "", _unlink(RECORD), quick=True),
    "the record junk": _top(
        "its tar-split record cannot be read: *", RECORD, lambda p: p.write_bytes(b"junk")
    ),
    "the files gone": _top(
        "its files in */diff are missing", "", lambda p: shutil.rmtree(p / "diff"), quick=True
    ),
    "a directory gone": Damage(
        lambda copy: shutil.rmtree(copy.directory(LAYER)),
        (f"layer LAYER: {_GONE}", f"image IMAGE: layer LAYER: {_GONE}"),
        _PAIR,
    ),
    "the layer of a container": Damage(
        lambda copy: shutil.rmtree(copy.directory("c-layer")),
        (f"layer c-layer: {_GONE}", f"container c: layer c-layer: {_GONE}"),
        frozenset({"c", "c-layer"}),
        force=True,
    ),
    "an RW layer": Damage(
        lambda copy: shutil.rmtree(copy.directory("rw")),
        (f"RW layer rw: {_GONE}",),
        frozenset({"rw", sha256(RW)}),
        force=True,
    ),
    "a link": _mended(lambda copy: copy.link(LAYER).unlink(), "layer LAYER: l/* is missing or wrong"),
    "a link elsewhere": _mended(
        _swapped, "layer other: l/* is missing or wrong", "RW layer rw: l/* is missing or wrong"
    ),
    "the parents": _mended(
        lambda copy: (copy.directory(LAYER) / "lower").write_text("l/X"),
        "layer LAYER: */lower is missing or wrong",
    ),
    "a lock": _mended(
        lambda copy: (copy.directory("other") / "lock").unlink(), "layer other: its lock is missing"
    ),
}

#: In the database and in big data.
RECORDS = {
    "a layer's size": _mended(
        _sql("UPDATE layers SET size = 1 WHERE id = ?", sha256(LONE)),
        f"layer {sha256(LONE)}: its size is written down as 1, that of its files is 36",
        quick=False,
    ),
    "an image's size": _mended(
        _sql("UPDATE images SET size = 1 WHERE id = ?", IMAGE),
        "image IMAGE: its size is written down as 1, that of its layers is *",
    ),
    "a chain ID": Damage(
        _sql("UPDATE layers SET diff_id = ? WHERE id = ?", sha256(b""), sha256(LONE)),
        (f"layer {sha256(LONE)}: that is not the chain ID of its parent and diff ID",),
        frozenset({sha256(LONE)}),
    ),
    "flags": _image(_sql("UPDATE images SET flags = '{' WHERE id = ?", IMAGE), "its flags are no JSON"),
    "a manifest gone": _image(_manifest(Path.unlink), "image data item 'manifest' is missing"),
    "a manifest changed": _image(
        _manifest(lambda p: p.write_bytes(b"{" * 17)),
        "image data item 'manifest' was changed: checksum failure",
    ),
    "a manifest cut": _image(
        _manifest(lambda p: p.write_bytes(b"{")), "image data item 'manifest' was changed: size mismatch"
    ),
    "a data item's size": _mended(
        _sql("UPDATE big_data SET size = 3 WHERE key = 'manifest'"),
        "image IMAGE: image data item 'manifest': its size is written down as 3, it has 17 bytes",
    ),
    "a configuration": _image(_documents(os="plan9"), "its id is not the digest of its configuration"),
    "a configuration's layers": _image(
        _documents(rootfs={"diff_ids": []}),
        "its id is not the digest of its configuration",
        "its layers are not those of its configuration",
    ),
    "a configuration that is none": _image(
        _documents(rootfs=[]),
        "its documents cannot be read",
        "its id is not the digest of its configuration",
    ),
    "a digest": _mended(
        _sql("UPDATE images SET digest = ? WHERE id = ?", sha256(b""), IMAGE),
        "image IMAGE: its digest is not that of its manifest",
    ),
    "a layer's data": _made(
        lambda copy: copy.blob("layer", "other", "k").unlink(),
        "layer other: layer data item 'k' is missing",
        *(
            f"{item}: layer other: layer data item 'k' is missing"
            for item in ("layer c-layer", "image made", "container c")
        ),
    ),
    "an image's data": _made(
        lambda copy: copy.blob("image", "made", "k").unlink(),
        "image made: image data item 'k' is missing",
        "container c: image made: image data item 'k' is missing",
    ),
    "a container's data": Damage(
        lambda copy: copy.blob("container", "c", "k").write_bytes(b"?"),
        ("container c: container data item 'k' was changed: size mismatch",),
        frozenset({"c", "c-layer"}),
        force=True,
    ),
    "a row of a layer": Damage(
        _sql("DELETE FROM layers WHERE id = ?", LAYER),
        (
            "database store.db: a row of images refers to one of layers that is not there",
            "image IMAGE: its layer LAYER does not exist",
            "driver layer *: layer in lower level storage driver not accounted for",
        ),
        _PAIR - {"BASE"},
    ),
    "a row of a parent": Damage(
        _sql("DELETE FROM layers WHERE id = ?", sha256(BASE)),
        (
            "database store.db: a row of layers refers to one of layers that is not there",
            "layer LAYER: its parent BASE does not exist",
            "image IMAGE: layer LAYER: its parent BASE does not exist",
            "driver layer *: layer in lower level storage driver not accounted for",
        ),
        _PAIR,
    ),
    "a row of an image": Damage(
        _sql("DELETE FROM images WHERE id = 'made'"),
        ("container c: its image made does not exist", "file big/made: no row names it"),
        _MADE - {"other"},
        force=True,
    ),
    "rows of nothing": _mended(
        lambda copy: (
            copy.sql("INSERT INTO names VALUES ('image', 'n:1', 'nothing', 0)"),
            copy.sql("INSERT INTO big_data SELECT kind, 'nothing', key, size, digest, 'x' FROM big_data"),
        ),
        "database names: the name n:1 is that of the image nothing, which does not exist",
        "database big_data: the data item * is the * nothing's, which does not exist",
    ),
}

#: Files that no row names, below the root.
GARBAGE = {
    "big/image.stray/": "no row names it",
    "big/made/stray": "no row names it",
    "containers/stray/": "no row names it",
    "tmp/stray": "nobody works with it",
    "tmp/stray-removing/": "nobody works with it",
}
