"""A program for an unprivileged user: borrows layers, mounts them, says what is seen and what is refused.

``python borrower.py ROOT RUNROOT``, with JSON on stdin: the layers' specs, bottom first, and the files to
append something to in an RW layer on top of them.  It prints JSON: the mounted tree with "EACCES" in the
place of each listing and content that is refused, which files could not be changed, and how the others are
kept.
"""

import hashlib
import json
import os
import stat
import sys
from pathlib import Path

from fusestore.digest import new_cache_id
from fusestore.driver.fuse import FuseDriver
from fusestore.driver.layout import LayerSpec
from fusestore.driver.ownership import OVERRIDE_STAT

_KEPT = ("mode", "uid", "gid", "mtime", "xattrs", "size", "target", "device", "content", "listing")


def comparable(tree: dict[str, dict]) -> dict[str, dict]:
    """What `described` says, of a tree that `support_real.trees` has described."""
    return {
        path: {key: seen[key] for key in ("type", *_KEPT) if key in seen and seen[key] is not None}
        for path, seen in tree.items()
    }


def described(top: bytes) -> dict[str, dict]:
    """Path below `top` -> attributes, as `support_real.trees` has them; nothing that is refused ends it."""
    found, todo = {}, [b""]
    while todo:
        path = todo.pop()
        full = os.path.join(top, path) if path else top
        seen = found[os.fsdecode(path)] = _attributes(full)
        if seen["type"] == "directory":
            try:
                todo += [os.path.join(path, name) for name in os.listdir(full)]
            except PermissionError:
                seen["listing"] = "EACCES"
    return found


def _attributes(full: bytes) -> dict:
    st = os.lstat(full)
    names = os.listxattr(full, follow_symlinks=False)
    seen = {
        "mode": f"{stat.S_IMODE(st.st_mode):04o}",
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime": st.st_mtime_ns,
        "xattrs": {name: os.getxattr(full, name, follow_symlinks=False).hex() for name in sorted(names)},
    }
    if stat.S_ISDIR(st.st_mode):
        return seen | {"type": "directory"}
    if stat.S_ISLNK(st.st_mode):
        return seen | {"type": "symlink", "size": st.st_size, "target": os.fsdecode(os.readlink(full))}
    if not stat.S_ISREG(st.st_mode):
        kind = {stat.S_IFCHR: "char", stat.S_IFBLK: "block"}.get(stat.S_IFMT(st.st_mode), "fifo")
        device = [os.major(st.st_rdev), os.minor(st.st_rdev)]
        return seen | {"type": kind} | ({"device": device} if kind != "fifo" else {})
    try:
        with open(full, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        content = "EACCES"
    return seen | {"type": "file", "size": st.st_size, "content": content}


def _append(top: Path, names: list[str]) -> list[str]:
    """Write a little into each of the files; those that it was refused for."""
    refused = []
    for name in names:
        try:
            with open(top / name, "ab") as file:
                file.write(b" and ours")
        except PermissionError:
            refused.append(name)
    return refused


def main() -> None:
    """Do it."""
    order = json.load(sys.stdin)
    driver, layer = FuseDriver(Path(sys.argv[1]), Path(sys.argv[2])), None
    for spec in order["specs"]:
        below, layer = layer, new_cache_id()
        driver.borrow(layer, below, LayerSpec.from_json(spec)).close()
    assert layer is not None
    tree = described(driver.get(layer))
    driver.put(layer)
    changed = new_cache_id()
    driver.create_read_write(changed, layer)
    refused = _append(Path(os.fsdecode(driver.get(changed))), order["append"])
    driver.put(changed)
    upper = driver.diff_directory(changed)
    kept = {
        name: [os.getxattr(upper / name, OVERRIDE_STAT).decode(), (upper / name).read_text()]
        for name in order["append"]
        if name not in refused
    }
    json.dump({"tree": tree, "refused": refused, "kept": kept}, sys.stdout)


if __name__ == "__main__":
    main()
