"""``fusestore-overlay``: the command line of fuse-overlayfs, for podman's and buildah's ``mount_program``.

::

    fusestore-overlay [-f] [-d] -o lowerdir=A:B,upperdir=U,workdir=W[,...] TARGET

What callers count on (containers/storage, drivers/overlay/overlay.go; moby's fuse-overlayfs driver): it
returns when TARGET can be used, with exit code 0, or says on stderr why not and returns 1; nobody keeps
stderr open, which they read to its end; the server leaves by itself when TARGET is unmounted.  Options that
it does not know are named on stderr and ignored.

Defaults are fuse-overlayfs's: root gets ``default_permissions,allow_other,suid,noatime``, others
``default_permissions,noatime``.  What is written into the upper can be read by fuse-overlayfs and by the
kernel's overlayfs, unless ``metacopy=on`` or ``redirect_dir=on`` ask for more.

Everything is opened before TARGET is mounted, in the process that is called, so that it can say what is
wrong; the server is its child.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fusestore.driver.acl import ACCESS
from fusestore.driver.layout import LayerSpec, MountSpec, UpperSpec, View
from fusestore.driver.ownership import OVERRIDE_STAT, Metadata, encode, set_xattr
from fusestore.driver.whiteout import Spelling
from fusestore.errors import FusestoreError, InvalidMountpoint
from fusestore.syscalls import MOUNT_FLAGS

NAME = "fusestore-overlay"
_USAGE = f"""\
usage: {NAME} [options] -o lowerdir=DIR[:DIR...][,upperdir=DIR,workdir=DIR][,OPTION...] TARGET

Merge directories into one and mount it on TARGET; compatible with fuse-overlayfs.

  -f              stay in the foreground
  -d, --debug     stay in the foreground and log to stderr
  -o OPTION,...   mount options, see below
  -V, --version   print the version
  -h, --help      print this

  lowerdir=A:B        read-only directories, topmost first (`\\:` for a colon in a name)
  upperdir=U          where changes go; without it the mount is read-only
  workdir=W           an empty directory on the filesystem of upperdir
  uidmapping=H:T:N[:...], gidmapping=...   show ids H.. of the disk as T.., N of them
  squash_to_root, squash_to_uid=N, squash_to_gid=N   show every file as owned by that id
  xattr_permissions=0|1|2   1, 2: keep owners and modes in {OVERRIDE_STAT.decode()}
  metacopy=on, redirect_dir=on   copy no data for a chmod, no files for a rename of a directory
  volatile, fsync=0|1 let fsync do nothing
  static_nlink, noacl, noxattrs=1, writeback=0|1, timeout=SECONDS
  allow_other, allow_root, default_permissions, ro, [no]suid, [no]dev, [no]exec, [no]atime, ...

FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT in the environment: write whiteouts as .wh. files.
"""

_DEADLINE = 30  # seconds for the server to come up; our callers wait for ever

# Understood by fuse-overlayfs or the kernel, without a meaning here.
_IGNORED = {
    "async", "auto_unmount", "atime", "big_writes", "context", "defcontext", "dev", "diratime", "exec",
    "fast_ino", "fast_ino_check", "fscontext", "fsname", "index", "ino32_t", "kernel_cache", "max_write",
    "nfs_export", "nolazytime", "norelatime", "plugins", "rootcontext", "rw", "splice_move", "splice_read",
    "splice_write", "subtype", "suid", "threaded", "userxattr", "xino",
}  # fmt: skip


@dataclass
class Options:
    """What ``-o`` says, as text."""

    values: dict[str, str | None] = field(default_factory=dict)
    flags: dict[str, bool] = field(default_factory=dict)  # of mount(2), by positive or negative name

    def on(self, name: str, *, default: bool = False) -> bool:
        """True for NAME, NAME=1, NAME=on."""
        value = self.values.get(name, "1" if default else "0")
        return value is None or value in ("1", "on", "yes", "true", "")

    def number(self, name: str) -> int | None:
        """The value of NAME=N.  Raises ValueError."""
        value = self.values.get(name)
        if value is None:
            return None
        if not re.fullmatch(r"\d+", value):
            raise ValueError(f"{name}={value}: not a number")
        return int(value)


def split(text: str, separator: str) -> list[str]:
    r"""`text` at each separator that is not escaped by a backslash nor in a value in double quotes.

    An escaped separator loses its backslash; any other backslash stays.
    """
    parts, quoted, position = [""], False, 0
    while position < len(text):
        char = text[position]
        if char == "\\" and text[position + 1 : position + 2] == separator:
            char, position = separator, position + 1
        elif char == '"' and (quoted or parts[-1].endswith("=")):
            quoted = not quoted
        elif char == separator and not quoted:
            parts.append("")
            position += 1
            continue
        parts[-1] += char
        position += 1
    return parts


def parse(texts: Sequence[str], warn: Callable[[str], None]) -> Options:
    """The options of all ``-o`` together; of one given twice the last counts."""
    root = os.geteuid() == 0
    options = Options(flags={"nosuid": not root, "nodev": True, "noatime": True})
    for text in texts:
        for part in filter(None, split(text, ",")):
            name, equals, value = part.partition("=")
            positive = name.removeprefix("no")
            if name in MOUNT_FLAGS or f"no{positive}" in options.flags or f"no{name}" in MOUNT_FLAGS:
                _set_flag(options.flags, name)
            elif name in _VALUES:
                options.values[name] = value if equals else None
            elif name not in _IGNORED:
                warn(f"unknown argument ignored: {part}")
    return options


def _set_flag(flags: dict[str, bool], name: str) -> None:
    if f"no{name}" in MOUNT_FLAGS:
        flags[f"no{name}"] = False
    else:
        flags[name] = True


_VALUES = {
    "allow_other", "allow_root", "default_permissions", "fsync", "gidmapping", "lowerdir", "metacopy",
    "noacl", "noxattrs", "redirect_dir", "squash_to_gid", "squash_to_root", "squash_to_uid", "static_nlink",
    "sync", "timeout", "uidmapping", "upperdir", "volatile", "workdir", "writeback", "xattr_permissions",
}  # fmt: skip


def plan(options: Options, target: Path) -> MountSpec:
    """What to mount on `target`.  Raises ValueError, OSError."""
    texts = split(options.values.get("lowerdir") or "", ":")
    lowers = [_directory("lowerdir", path) for path in texts if path]
    upper = _upper(options)
    if not lowers:
        raise ValueError("lowerdir is missing: -o lowerdir=DIR[:DIR...]")
    places = [*lowers, *([upper.path, upper.work] if upper else [])]
    for name, place in zip(("upperdir", "workdir"), places[len(lowers) :], strict=False):
        if target != Path(place) and target.is_relative_to(place):
            raise ValueError(f"{target} is inside {name}={place}; mount somewhere else")
    view = _view(options, upper.path if upper else lowers[0])
    if upper is not None:
        os.makedirs(upper.work, mode=0o700, exist_ok=True)
        with contextlib.suppress(PermissionError):
            os.chmod(upper.work, 0o700)  # the kernel's overlayfs leaves it closed
        if options.number("xattr_permissions"):
            _mark(upper.path)
    root = os.geteuid() == 0
    return MountSpec(
        tuple(LayerSpec(path) for path in lowers),
        "" if any(Path(place).is_relative_to(target) for place in places) else os.path.commonpath(places),
        None,
        None,
        f"{NAME}:{upper.path}" if upper else NAME,
        allow_other=options.on("allow_other", default=root),
        allow_root=options.on("allow_root"),
        options=tuple(name for name, given in options.flags.items() if given),
        upper=upper,
        view=view,
    )


def _directory(option: str, path: str) -> str:
    real = os.path.realpath(path)
    if not os.path.isdir(real):
        number = errno.ENOTDIR if os.path.exists(real) else errno.ENOENT
        raise OSError(number, os.strerror(number), f"{option}={path}")
    return real


def _upper(options: Options) -> UpperSpec | None:
    path = options.values.get("upperdir")
    if path is None:
        return None
    workdir = options.values.get("workdir")
    if workdir is None:
        raise ValueError("upperdir needs workdir=DIR, an empty directory on the same filesystem")
    path, workdir = _directory("upperdir", path), _directory("workdir", workdir)
    if os.stat(path).st_dev != os.stat(workdir).st_dev:
        raise ValueError(f"workdir={workdir} is not on the filesystem of upperdir={path}")
    if Path(path).is_relative_to(workdir) or Path(workdir).is_relative_to(path):
        raise ValueError("neither of upperdir and workdir may be inside the other")
    disabled = os.environ.get("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT") is not None
    return UpperSpec(
        path,
        os.path.join(workdir, "work"),
        spelling=Spelling.NAME if disabled else None,
        metacopy=options.on("metacopy"),
        redirect=options.on("redirect_dir"),
        plain_symlinks=True,
        sync=_syncs(options),
    )


def _syncs(options: Options) -> bool:
    return (
        not options.on("volatile") and options.on("fsync", default=True) and options.on("sync", default=True)
    )


def _mark(upper: str) -> None:
    """Say on the root of the upper that its owners are in xattrs, unless it says so already."""
    if OVERRIDE_STAT.decode() not in os.listxattr(upper):
        st = os.stat(upper)
        set_xattr(os.fsencode(upper), OVERRIDE_STAT, encode(Metadata(st.st_mode, st.st_uid, st.st_gid)))


def _view(options: Options, top: str) -> View:
    squash = 0 if options.on("squash_to_root") else None
    uid, gid = options.number("squash_to_uid"), options.number("squash_to_gid")
    return View(
        as_root=False,
        uids=_mapping("uidmapping", options),
        gids=_mapping("gidmapping", options),
        squash_uid=squash if uid is None else uid,
        squash_gid=squash if gid is None else gid,
        static_nlink=options.on("static_nlink"),
        xattrs=not options.on("noxattrs"),
        acls=not options.on("noacl") and _has_acls(top),
        timeout=_timeout(options),
        writeback=options.on("writeback", default=True),
        fsync=_syncs(options),
    )


def _mapping(name: str, options: Options) -> tuple[tuple[int, int, int], ...]:
    text = options.values.get(name)
    if text is None:
        return ()
    numbers = text.strip(":").split(":")
    if len(numbers) % 3 or not all(re.fullmatch(r"\d+", number) for number in numbers):
        raise ValueError(f"{name}={text}: not triples of numbers, HOST:SHOWN:COUNT")
    values = [int(number) for number in numbers]
    return tuple((values[i], values[i + 1], values[i + 2]) for i in range(0, len(values), 3))


def _timeout(options: Options) -> float:
    text = options.values.get("timeout")
    if text is None:
        return View().timeout
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= View().timeout:
        raise ValueError(f"timeout={text}: not a number of seconds")
    return seconds


def _has_acls(directory: str) -> bool:
    try:
        os.getxattr(directory, os.fsdecode(ACCESS))
    except OSError as exc:
        return exc.errno == errno.ENODATA
    return True


# -- running ----------------------------------------------------------------------------------------------


def _run(spec: MountSpec, target: Path, *, foreground: bool, debug: bool) -> None:
    """Mount, and serve: here, or in a child, and then return when it can be used."""
    from fusestore.driver import mounter, server  # 0.1 s, which --help need not take

    if mounter.is_dead(target):
        mounter.detach(str(target))
    if not target.is_dir():
        raise InvalidMountpoint(str(target), "no such directory; create it first")
    union = server.open_union(spec, str(target))
    signal.pthread_sigmask(signal.SIG_BLOCK, server.ENDING)
    fd = mounter.open_fuse(spec, target)
    if foreground:
        server.serve(union, spec, fd, str(target), lambda: None, debug=debug)
        return
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.close(ours)
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        server.serve(union, spec, fd, str(target), lambda: _detach(theirs))
        os._exit(0)
    os.close(theirs)
    os.close(fd)
    if not select.select([ours], [], [], _DEADLINE)[0] or not os.read(ours, 1):
        mounter.detach(str(target))
        raise FusestoreError("the server ended before it could be used")


def _detach(ready: int) -> None:
    """Let go of everything that is our caller's, and tell our parent to return."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    os.close(null)
    os.write(ready, b"1")
    os.close(ready)


def _close_inherited() -> None:
    """Callers leave pipes open in us that somebody waits to be closed, or close what everybody has."""
    while os.open(os.devnull, os.O_RDWR) <= 2:
        pass
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:  # the one of the listing itself
                pass


def _version() -> str:
    from fusestore import __version__

    return f"{NAME}: version {__version__}\nFUSE union filesystem, options of fuse-overlayfs 1.14"


def _arguments(arguments: Sequence[str]) -> tuple[list[str], set[str], list[str]]:
    """The texts of -o, the switches, and the rest.  Raises ValueError."""
    texts, switches, rest = [], set(), []
    todo = list(arguments)
    while todo:
        word = todo.pop(0)
        if word == "-o" and not todo:
            raise ValueError("-o needs an argument")
        if word == "-o":
            texts.append(todo.pop(0))
        elif word.startswith("-o"):
            texts.append(word[2:])
        elif word in ("-f", "-d", "--debug", "-h", "--help", "-V", "--version"):
            switches.add({"--debug": "d", "--help": "h", "--version": "V"}.get(word, word[1:]))
        elif word == "--":
            rest += todo
            break
        elif word.startswith("-") and word != "-":
            raise ValueError(f"unknown option {word}; see --help")
        else:
            rest.append(word)
    return texts, switches, rest


def main() -> None:
    """The program: exits 0 when mounted (with -f: unmounted), 1 when not."""
    try:
        texts, switches, rest = _arguments(sys.argv[1:])
        if switches & {"h", "V"}:
            sys.stdout.write(_USAGE if "h" in switches else _version() + "\n")
            return
        if len(rest) != 1:
            raise ValueError("one TARGET directory is needed; see --help")
        _log_to_stderr_or_not("d" in switches)
        foreground = bool(switches & {"d", "f"})
        if not foreground:
            _close_inherited()
        target = Path(os.path.realpath(rest[0]) if not _is_stale(rest[0]) else os.path.abspath(rest[0]))
        _run(plan(parse(texts, _warn), target), target, foreground=foreground, debug="d" in switches)
    except (ValueError, OSError, FusestoreError) as exc:
        _warn(_reason(exc))
        sys.exit(1)


def _is_stale(path: str) -> bool:
    try:
        os.statvfs(path)  # of a dead mount stat(2) may come from the kernel's cache
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def _log_to_stderr_or_not(debug: bool) -> None:
    log = os.environ.get("FUSE_OVERLAYFS_DEBUG_LOG")
    level = logging.DEBUG if debug else logging.INFO
    logging.basicConfig(level=level, filename=log, format="%(asctime)s %(name)s %(levelname)s %(message)s")


def _warn(message: str) -> None:
    sys.stderr.write(f"{NAME}: {message}\n")
    sys.stderr.flush()


def _reason(exc: Exception) -> str:
    if isinstance(exc, OSError):
        where = f"{os.fsdecode(exc.filename)}: " if exc.filename else ""
        return f"{where}{exc.strerror or exc}"
    return str(exc)


if __name__ == "__main__":
    main()
