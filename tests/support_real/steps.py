"""An image in four layers that holds every change that a build step can make, and what must come out.

`base` is the first layer.  The scripts /steps/1 to /steps/3 in it are the steps of `CONTAINERFILE`: each
changes, deletes and renames what the layers below it hold.  `_TREE` is what there is in the end below /lower
and /made.  Owners other than root are for users with subordinate ids; others see root in their place, and
their steps leave chown out.
"""

import difflib
import io
import tarfile
from pathlib import Path

from support_real import tars
from support_real.tars import directory, fifo, file, hard_link, symlink

_ONE = r"""
own() { [ -z "$OWNERS" ] || chown -h "$@"; }
cd /lower
rm gone
rm -r dead
mv moved now
mv tree trunk
rm -r dir-to-file; echo file >dir-to-file
rm file-to-dir; mkdir file-to-dir; echo in >file-to-dir/inner
mkdir -p /made/deep/er; chmod 0700 /made/deep
echo one >/made/file; own 1000:1001 /made/file; chmod 4711 /made/file
ln /made/file /made/second
mkfifo -m 0620 /made/pipe
ln -s ../lower/keep /made/link; own 3:4 /made/link
mkdir -m 1777 /made/sticky
mkdir /made/setgid; own 0:50 /made/setgid; chmod 2775 /made/setgid
echo x >/made/gone; mkdir -p /made/dead/sub; echo y >/made/dead/sub/y
echo old >/made/old
mkdir /made/many; for i in $(seq 40); do echo $i >/made/many/$i; done
"""
_TWO = r"""
own() { [ -z "$OWNERS" ] || chown -h "$@"; }
rm /made/gone
rm -r /made/dead
mv /made/old /made/new
mv /made/deep /made/shallow
for i in $(seq 2 40); do rm /made/many/$i; done
mkdir /lower/dead; echo z >/lower/dead/z
mv /lower/trunk/sub/leaf /lower/trunk/fallen
echo more >>/lower/touched
chmod 0755 /lower/setuid
chmod 2750 /lower/closed
chmod 4755 /lower/plain
own 7:8 /lower/owned
own 9:10 /lower/symlink
ln /lower/linked /lower/trunk/linked
echo more >>/lower/pair/one
: >/lower/cut
echo middle | dd of=/lower/big bs=1000 seek=2000 conv=notrunc 2>/dev/null
rm /lower/link; ln -s elsewhere /lower/link
"""
_THREE = r"""
mkdir /made/dead; echo again >/made/dead/again
rm /lower/dead/z
mv /lower/file-to-dir /lower/dir
echo over >/made/over; mv /made/over /made/new
ln /made/second /made/third; rm /made/file
rm -r /made/shallow/er
mv /made/setgid /lower/setgid
mv /made/many/1 /lower/trunk/sub/1; rmdir /made/many
chmod 0511 /lower/trunk
rm /lower/now; mkdir /lower/now
"""

_BIG = bytes(range(256)) * 15625  # 4 MB
CHANGED = b"%b%b%b" % (_BIG[:2_000_000], b"middle\n", _BIG[2_000_007:])


def _script(number, text):
    return file(b"steps/%d" % number, text.encode())


def base() -> list[tars.Entry]:
    """What is in the first layer."""
    busybox = Path("/bin/busybox").read_bytes()
    return [
        directory(b"bin"),
        file(b"bin/busybox", busybox, 0o755),
        symlink(b"bin/sh", b"busybox"),
        directory(b"tmp", 0o1777),
        directory(b"steps"),
        *(_script(number + 1, text) for number, text in enumerate((_ONE, _TWO, _THREE))),
        directory(b"lower"),
        file(b"lower/keep", b"keep\n", 0o640, uid=5, gid=6),
        file(b"lower/gone", b"gone\n"),
        file(b"lower/moved", b"moved\n", 0o4755),
        file(b"lower/touched", b"some\n", 0o604, uid=1000, gid=1000),
        file(b"lower/setuid", b"setuid\n", 0o4755),
        file(b"lower/plain", b"plain\n"),
        file(b"lower/owned", b"owned\n", uid=1),
        file(b"lower/cut", b"cut\n"),
        file(b"lower/big", _BIG),
        file(b"lower/linked", b"linked\n"),
        symlink(b"lower/link", b"keep"),
        symlink(b"lower/symlink", b"\xff dangling", uid=2, gid=2),
        fifo(b"lower/pipe", 0o604),
        directory(b"lower/pair", 0o750),
        file(b"lower/pair/one", b"pair\n"),
        hard_link(b"lower/pair/two", b"lower/pair/one"),
        directory(b"lower/tree", 0o711, uid=11, gid=12),
        file(b"lower/tree/root", b"root\n", uid=13),
        directory(b"lower/tree/sub", 0o1755, gid=14),
        file(b"lower/tree/sub/leaf", b"leaf\n", 0o400, uid=15),
        directory(b"lower/dead"),
        file(b"lower/dead/x", b"x\n"),
        directory(b"lower/dead/sub"),
        directory(b"lower/closed", 0o700, uid=16),
        file(b"lower/closed/secret", b"secret\n", 0o600, uid=16),
        file(b"lower/file-to-dir", b"file\n"),
        directory(b"lower/dir-to-file"),
        file(b"lower/dir-to-file/inner", b"inner\n"),
    ]


CONTAINERFILE = """
FROM localhost/base
RUN ["sh", "-eu", "/steps/1"]
RUN ["sh", "-eu", "/steps/2"]
RUN ["sh", "-eu", "/steps/3"]
LABEL steps=3
CMD ["sh", "-c", "cat /made/new; id -u"]
"""

# path, type, mode, owner, whether its mtime is still that of the base, then the content or the target
_TREE = """
lower               dir     0755 0:0       new
lower/big           file    0644 0:0       new big
lower/closed        dir     2750 16:0      old
lower/closed/secret file    0600 16:0      old secret
lower/cut           file    0644 0:0       new
lower/dead          dir     0755 0:0       new
lower/dir           dir     0755 0:0       new
lower/dir-to-file   file    0644 0:0       new file
lower/dir/inner     file    0644 0:0       new in
lower/keep          file    0640 5:6       old keep
lower/link          symlink 0777 0:0       new elsewhere
lower/linked        file    0644 0:0       old linked
lower/now           dir     0755 0:0       new
lower/owned         file    0644 7:8       old owned
lower/pair          dir     0750 0:0       old
lower/pair/one      file    0644 0:0       new pair more
lower/pair/two      file    0644 0:0       new pair more
lower/pipe          fifo    0604 0:0       old
lower/plain         file    4755 0:0       old plain
lower/setgid        dir     2775 0:50      new
lower/setuid        file    0755 0:0       old setuid
lower/symlink       symlink 0777 9:10      old \udcff dangling
lower/touched       file    0604 1000:1000 new some more
lower/trunk         dir     0511 11:12     new
lower/trunk/fallen  file    0400 15:0      old leaf
lower/trunk/linked  file    0644 0:0       old linked
lower/trunk/root    file    0644 13:0      old root
lower/trunk/sub     dir     1755 0:14      new
lower/trunk/sub/1   file    0644 0:0       new 1
made                dir     0755 0:0       new
made/dead           dir     0755 0:0       new
made/dead/again     file    0644 0:0       new again
made/link           symlink 0777 3:4       new ../lower/keep
made/new            file    0644 0:0       new over
made/pipe           fifo    0620 0:0       new
made/second         file    4711 1000:1001 new one
made/shallow        dir     0700 0:0       new
made/sticky         dir     1777 0:0       new
made/third          file    4711 1000:1001 new one
"""
_LINKS = ("lower/pair/one = lower/pair/two",)
# podman compares mounts, and there a file that got another link has not changed: such links become copies.
WITHIN_ONE_LAYER = ("lower/linked = lower/trunk/linked", "made/second = made/third")
_DIFF = """
A /lower/dir
A /lower/dir/inner
A /lower/setgid
A /lower/trunk/sub/1
A /made/dead
A /made/dead/again
A /made/third
C /lower
C /lower/dead
C /lower/now
C /lower/trunk
C /lower/trunk/sub
C /made
C /made/new
C /made/shallow
D /lower/dead/z
D /lower/file-to-dir
D /made/file
D /made/many
D /made/setgid
D /made/shallow/er
"""
# What the last step has changed, in podman's words.
DIFF = set(_DIFF.strip().splitlines())

_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.FIFOTYPE: "fifo",
}


def wrong(archive: bytes, owners: bool, more: tuple[str, ...] = ()) -> str:
    """What a tar of the finished image has wrong: lines of `_TREE` that it lacks (-) or has besides (+)."""
    return differences([*_expected(owners), *more], listed(archive))


def _expected(owners: bool) -> list[str]:
    found = [*_LINKS]
    for line in _TREE.strip().splitlines():
        path, kind, mode, owner, *rest = line.split(None, 5)
        found.append(" ".join([path, kind, mode, owner if owners else "0:0", *rest]))
    return found


def listed(archive: bytes) -> list[str]:
    """A tar in the words of `_TREE` and `_LINKS`, without what is neither below lower/ nor below made/."""
    lines, groups = [], {}
    with tarfile.open(fileobj=io.BytesIO(archive), errors="surrogateescape") as members:
        for member in members:
            path = member.name.removeprefix("./")
            if path.split("/")[0] in ("lower", "made"):
                if member.islnk():
                    groups.setdefault(member.linkname, [member.linkname]).append(member.name)
                lines.append(_line(path, members, member))
    links = (sorted(name.removeprefix("./") for name in group) for group in groups.values())
    return lines + [" = ".join(names) for names in links]


def _line(path: str, members: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    if member.islnk():
        member = members.getmember(member.linkname)
    content = member.linkname if member.issym() else ""
    if member.isfile():
        data = members.extractfile(member).read()
        content = "big" if data == CHANGED else " ".join(data[:100].decode(errors="replace").split())
    age = "old" if int(member.mtime) * 10**9 == tars.NOON else "new"
    kind = _KINDS[member.type]
    return f"{path} {kind} {member.mode & 0o7777:04o} {member.uid}:{member.gid} {age} {content}".rstrip()


def differences(one: list[str], other: list[str]) -> str:
    return "\n".join(line for line in difflib.ndiff(sorted(one), sorted(other)) if line[0] in "+-")
