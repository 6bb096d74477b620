"""What a directory tree holds, in every attribute that an image has, as plain data that can be compared.

Also a program, for trees that only another user may read: ``python trees.py DIR`` prints it as JSON.
"""

import errno
import hashlib
import json
import os
import stat
import sys

_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def described(top: str | os.PathLike[str]) -> dict[str, dict]:
    """Path below `top` -> attributes; the root is "".  Sizes and links of directories are left out."""
    found, inodes, todo = {}, {}, [b""]
    base = os.fsencode(top)
    while todo:
        path = todo.pop()
        full = os.path.join(base, path) if path else base
        st = os.lstat(full)
        seen = found[os.fsdecode(path)] = _attributes(full, st)
        if stat.S_ISDIR(st.st_mode):
            todo += [os.path.join(path, name) for name in os.listdir(full)]
        else:
            group = inodes.setdefault((st.st_dev, st.st_ino), [])
            group.append(os.fsdecode(path))
            seen["links"] = group
    for group in inodes.values():
        group.sort()
    return found


def _attributes(full: bytes, st: os.stat_result) -> dict:
    kind = _TYPES[stat.S_IFMT(st.st_mode)]
    seen = {
        "type": kind,
        "mode": f"{stat.S_IMODE(st.st_mode):04o}",
        "uid": st.st_uid,
        "gid": st.st_gid,
        "mtime": st.st_mtime_ns,
        "xattrs": _xattrs(full),
    }
    if kind != "directory":
        seen["nlink"] = st.st_nlink
    if kind in ("file", "symlink"):
        seen["size"] = st.st_size
    if kind in ("char", "block"):
        seen["device"] = [os.major(st.st_rdev), os.minor(st.st_rdev)]
    if kind == "symlink":
        seen["target"] = os.fsdecode(os.readlink(full))
    if kind == "file":
        with open(full, "rb") as data:
            seen["content"] = hashlib.file_digest(data, "sha256").hexdigest()
    return seen


def _xattrs(full: bytes) -> dict[str, str]:
    """Those that may be read: ``trusted.*`` only by root."""
    found = {}
    for name in sorted(os.listxattr(full, follow_symlinks=False)):
        try:
            found[name] = os.getxattr(full, name, follow_symlinks=False).hex()
        except OSError as exc:
            if exc.errno != errno.ENODATA:
                raise
    return found


def without_trusted(tree: dict[str, dict]) -> dict[str, dict]:
    """The tree as somebody who is not root sees it."""
    return {
        path: {
            **attributes,
            "xattrs": {n: v for n, v in attributes["xattrs"].items() if not n.startswith("trusted.")},
        }
        for path, attributes in tree.items()
    }


def differences(one: dict[str, dict], other: dict[str, dict]) -> list[str]:
    """Every path and attribute in which two trees differ, as text."""
    lines = [f"{path!r}: only in the first" for path in one.keys() - other.keys()]
    lines += [f"{path!r}: only in the second" for path in other.keys() - one.keys()]
    for path in one.keys() & other.keys():
        here, there = one[path], other[path]
        for key in here.keys() | there.keys():
            if here.get(key) != there.get(key):
                lines.append(f"{path!r}: {key}: {here.get(key)!r}, then {there.get(key)!r}")
    return sorted(lines)


if __name__ == "__main__":
    json.dump(described(sys.argv[1]), sys.stdout)
