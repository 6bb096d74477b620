"""The layer on top of a writable union: the only one that changes, and the only writer to disk of the union.

Everything that appears in the upper appears by one rename, complete: it is made in the work directory,
which is on the same filesystem, and moved into place with its owner, mode and xattrs on it.  What
disappears goes the same way back: one rename puts a whiteout into its place (RENAME_WHITEOUT).  So a
process that is killed leaves a valid upper, and some garbage in the work directory, which is emptied when
it is next used.

A file that lost its last name while it was open lives on in the work directory ("hidden").  Only a file
with several names takes several steps to appear; what is to be linked is written down before (`intend`),
and done by whoever comes next if it was not.

xattrs ("marks"), all invisible in a mount, of which only opaque and origin are written where not asked for
more:

``user.overlay.opaque``             ``y``: this directory hides those below
``user.overlay.redirect``           this directory, or the data of this file, has another path in the lowers
``user.overlay.metacopy``           this file has no data; they are in the lower file
``user.overlay.fusestore.origin``   ``LAYER:PATH`` of the lower object that this is the copy of (LAYER
counted from
                                    the bottom, which a new layer on top does not change): its inode number
                                    stays

The first three are the kernel overlayfs's, so that it can read our uppers; where we are the host's root
they are ``trusted.overlay.``, as its are then.  The kernel's own origin is a file handle, which without
root can be made but not used.  What can have no xattr (a symlink or device whose owner is on the inode)
gets another number with the next mount, as with the kernel's overlayfs.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterable

from fusestore.driver import whiteout
from fusestore.driver.ownership import (
    OVERRIDE_STAT,
    Metadata,
    Ownership,
    backing_mode,
    backing_xattr,
    create_file,
    create_special,
    create_symlink,
    describe,
    encode,
    is_internal,
    set_xattr,
)
from fusestore.driver.union.layerdir import OPAQUE, ORIGIN, Attr, LayerDir, Place
from fusestore.driver.whiteout import Spelling
from fusestore.syscalls import RENAME_EXCHANGE, RENAME_WHITEOUT, owns_every_id, rename

_INTENT = b"links-"
_PREFIXES = b"user.overlay.", b"trusted.overlay."


class Upper:
    """An upper directory with its work directory, which are on one filesystem.  Methods raise OSError.

    `tree` is the upper; `work` is ours alone, and emptied here.  `metacopy` and `redirect` allow those
    xattrs.  A symlink of which the owner is kept in xattrs is a file, unless `plain_symlinks` (then one of
    0:0 is a symlink).  Without `sync` a power failure may cost copied data.  With `claim` it fails (EBUSY)
    while another has the same directories.  Paths are relative to `tree`, or absolute (through a directory
    fd, where they would be too long).
    """

    def __init__(
        self,
        tree: LayerDir,
        work: LayerDir,
        spelling: Spelling,
        *,
        metacopy: bool = False,
        redirect: bool = False,
        plain_symlinks: bool = False,
        sync: bool = True,
        claim: bool = True,
    ) -> None:
        self.tree = tree
        tree.mutable = work.mutable = True
        self.work = work
        self.ownership = tree.ownership
        self.spelling = spelling
        self.metacopy = metacopy
        self.redirect = redirect
        self.plain_symlinks = plain_symlinks
        self.sync = sync
        self._count = 0
        self._prefix = _PREFIXES[owns_every_id()]
        self._ids = os.geteuid(), os.getegid()
        umask = os.umask(0)
        os.umask(umask)
        self._masked = umask != 0
        if claim:
            _claim(tree)
            _claim(work)
        self._carry_out()
        for name in os.listdir(work.fd):
            _remove_tree(work.fd, os.fsencode(name))

    def close(self) -> None:
        """Close both directories."""
        self.tree.close()
        self.work.close()

    # -- the work directory ---------------------------------------------------------------------------

    def stage(self) -> bytes:
        """A new name in the work directory."""
        self._count += 1
        return b"%d" % self._count

    def discard(self, staged: bytes) -> None:
        """Delete a file or directory from the work directory, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            try:
                os.unlink(staged, dir_fd=self.work.fd)
            except IsADirectoryError:
                _remove_tree(self.work.fd, staged)

    def place(self, staged: bytes, path: bytes, *, covered: bool, directory: bool = False) -> None:
        """Move what was staged to `path`, where nothing is, or (`covered`) a whiteout."""
        if covered and directory and self.tree.exists(path):  # a directory replaces no device; they swap
            rename(self.work.fd, staged, self.tree.fd, path, RENAME_EXCHANGE)
            os.unlink(staged, dir_fd=self.work.fd)
        elif directory:
            self._place_directory(staged, path)
        else:
            rename(self.work.fd, staged, self.tree.fd, path)
        if covered:
            self._uncover(path)

    def _place_directory(self, staged: bytes, path: bytes) -> None:
        try:
            rename(self.work.fd, staged, self.tree.fd, path)
        except PermissionError:
            # Its ".." changes, which takes write permission on the directory itself.
            mode = stat.S_IMODE(os.stat(staged, dir_fd=self.work.fd).st_mode)
            os.chmod(staged, mode | 0o700, dir_fd=self.work.fd)
            rename(self.work.fd, staged, self.tree.fd, path)
            os.chmod(path, mode, dir_fd=self.tree.fd)

    # -- making objects -------------------------------------------------------------------------------

    def make_file(self, path: bytes, meta: Metadata, *, covered: bool) -> int:
        """A new empty file; its fd, open for reading and writing."""
        if not covered and self._is_plain(meta):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(path, flags, meta.mode & 0o7777, dir_fd=self.tree.fd)
        staged = self.stage()
        fd = create_file(self.work.fd, staged)
        try:
            describe(fd, meta, self.ownership)
            self.place(staged, path, covered=covered)
        except BaseException:
            os.close(fd)
            self.discard(staged)
            raise
        return fd

    def make_directory(self, path: bytes, meta: Metadata, *, covered: bool) -> None:
        """A new empty directory; opaque if it takes the place of a whiteout."""
        if not covered and self._is_plain(meta):
            os.mkdir(path, meta.mode & 0o7777, dir_fd=self.tree.fd)
            return
        staged = self.stage_directory(meta, {OPAQUE: b"y"} if covered else {})
        self._place_or_discard(staged, path, covered=covered, directory=True)

    def stage_directory(self, meta: Metadata, marks: dict[bytes, bytes]) -> bytes:
        """A new directory in the work directory."""
        staged = self.stage()
        os.mkdir(staged, 0o700, dir_fd=self.work.fd)
        fd = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.work.fd)
        try:
            self.set_marks(fd, marks)  # before the mode, which may forbid it
            describe(fd, meta, self.ownership)
        except BaseException:
            self.discard(staged)
            raise
        finally:
            os.close(fd)
        return staged

    def make_other(self, path: bytes, meta: Metadata, target: bytes, *, covered: bool) -> None:
        """A new symlink to `target`, device, fifo or socket; its times are now."""
        staged = self.stage_other(meta, target)
        self._place_or_discard(staged, path, covered=covered)

    def stage_other(self, meta: Metadata, target: bytes, marks: dict[bytes, bytes] | None = None) -> bytes:
        """The same in the work directory, with its times."""
        staged = self.stage()
        try:
            if stat.S_ISLNK(meta.mode):
                create_symlink(
                    self.work.fd, staged, target, meta, self.ownership, as_file=not self.plain_symlinks
                )
            else:
                create_special(self.work.fd, staged, meta, self.ownership)
            self.set_marks(self.work.named(staged), marks or {})
        except BaseException:
            self.discard(staged)
            raise
        return staged

    def _place_or_discard(
        self, staged: bytes, path: bytes, *, covered: bool, directory: bool = False
    ) -> None:
        try:
            self.place(staged, path, covered=covered, directory=directory)
        except BaseException:
            self.discard(staged)
            raise

    def _is_plain(self, meta: Metadata) -> bool:
        """True when open(2) and mkdir(2) give an object all that `meta` says."""
        return (
            self.ownership is Ownership.REAL
            and not self._masked
            and (meta.uid, meta.gid) == self._ids
            and not meta.xattrs
            and not meta.mode & 0o6000
        )

    def link(self, place: Place, path: bytes, *, covered: bool) -> None:
        """One more name for a file that the upper has at `place`."""
        layer, old = place
        if covered and self.tree.exists(path):
            staged = self.stage()
            os.link(old, staged, src_dir_fd=layer.fd, dst_dir_fd=self.work.fd, follow_symlinks=False)
            self._place_or_discard(staged, path, covered=True)
        else:
            os.link(old, path, src_dir_fd=layer.fd, dst_dir_fd=self.tree.fd, follow_symlinks=False)
            if covered:
                self._uncover(path)

    # -- several names at once ------------------------------------------------------------------------

    def intend(self, paths: list[bytes]) -> bytes | None:
        """Write down that `paths` are going to be names of one file; the name of the note in the work
        directory.

        None where a path only holds for this process.
        """
        if any(path.startswith(b"/") for path in paths):
            return None
        note = _INTENT + self.stage()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(note, flags, 0o600, dir_fd=self.work.fd), "w", encoding="ascii") as file:
            json.dump([os.fsdecode(path) for path in paths], file)
        return note

    def _carry_out(self) -> None:
        """Finish what a process that died had written down."""
        for note in os.listdir(self.work.fd):
            if not note.startswith(os.fsdecode(_INTENT)):
                continue
            with open(os.open(note, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.work.fd), "rb") as file:
                text = file.read()
            with contextlib.suppress(ValueError):  # it died while writing, before it did anything
                self._link_all([os.fsencode(path) for path in json.loads(text)])

    def _link_all(self, paths: list[bytes]) -> None:
        done = [path for path in paths if self.tree.look(path) is not None]
        for path in [path for path in paths if done and path not in done]:
            above = path.rpartition(b"/")[0] or b"."
            st = os.stat(above, dir_fd=self.tree.fd)
            self.link((self.tree, done[0]), path, covered=False)
            os.utime(above, ns=(st.st_atime_ns, st.st_mtime_ns), dir_fd=self.tree.fd)

    # -- taking away ----------------------------------------------------------------------------------

    def cover(self, path: bytes) -> None:
        """Put a whiteout where the upper has nothing."""
        if self.spelling is Spelling.DEVICE:
            os.mknod(path, stat.S_IFCHR | 0o600, 0, dir_fd=self.tree.fd)
        else:
            flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(_whiteout_name(path), flags, 0o600, dir_fd=self.tree.fd))

    def _uncover(self, path: bytes) -> None:
        """Remove the whiteout file beside `path`, if there is one."""
        if self.tree.exists(_whiteout_name(path)):
            os.unlink(_whiteout_name(path), dir_fd=self.tree.fd)

    def hide(self, path: bytes, *, cover: bool) -> bytes:
        """Move what is at `path` to the work directory, with a whiteout in its place if `cover`; its name
        there."""
        staged = self.stage()
        if cover:
            self._rename_and_cover(path, self.work.fd, staged)
        else:
            rename(self.tree.fd, path, self.work.fd, staged)
        return staged

    def keep(self, path: bytes) -> bytes:
        """Give the file at `path` a name in the work directory too."""
        staged = self.stage()
        os.link(path, staged, src_dir_fd=self.tree.fd, dst_dir_fd=self.work.fd, follow_symlinks=False)
        return staged

    def remove(self, path: bytes, *, cover: bool) -> None:
        """Delete the file at `path`, with a whiteout in its place if `cover`."""
        if cover:
            self.discard(self.hide(path, cover=True))
        else:
            os.unlink(path, dir_fd=self.tree.fd)

    def remove_directory(self, path: bytes, *, cover: bool) -> None:
        """Delete the directory at `path`, in which there are but whiteouts."""
        if not cover:
            try:
                os.rmdir(path, dir_fd=self.tree.fd)
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return
        self.discard(self.hide(path, cover=cover))

    def move(self, old: bytes, new: bytes, *, cover: bool, covered: bool, directory: bool) -> None:
        """Rename within the upper.  `cover`: leave a whiteout; `covered`: there is one in the new place."""
        if covered and directory and self.tree.exists(new):
            rename(self.tree.fd, old, self.tree.fd, new, RENAME_EXCHANGE)
            if not cover:
                os.unlink(old, dir_fd=self.tree.fd)
        elif cover:
            self._rename_and_cover(old, self.tree.fd, new)
        else:
            rename(self.tree.fd, old, self.tree.fd, new)
        if covered:
            self._uncover(new)

    def _rename_and_cover(self, path: bytes, directory: int, new: bytes) -> None:
        if self.spelling is Spelling.NAME:
            self.cover(path)
            rename(self.tree.fd, path, directory, new)
        else:
            rename(self.tree.fd, path, directory, new, RENAME_WHITEOUT)

    def exchange(self, path: bytes, other: bytes) -> None:
        """Swap two objects of the upper."""
        rename(self.tree.fd, path, self.tree.fd, other, RENAME_EXCHANGE)

    def clear(self, path: bytes, meta: Metadata, *, opaque: bool) -> None:
        """Replace a directory that holds but whiteouts by one that holds nothing."""
        staged = self.stage_directory(meta, {OPAQUE: b"y"} if opaque else {})
        rename(self.work.fd, staged, self.tree.fd, path, RENAME_EXCHANGE)
        self.discard(staged)

    # -- attributes -----------------------------------------------------------------------------------

    def mark(self, path: bytes, mark: bytes, value: bytes) -> None:
        """Set one of the union's own xattrs."""
        set_xattr(self.tree.named(path), self._prefix + mark, value)

    def set_marks(self, target: int | bytes, marks: dict[bytes, bytes]) -> None:
        """Set several, on an fd or a path.  Where there is no room for the origin the object gets another
        number."""
        for mark, value in marks.items():
            try:
                set_xattr(target, self._prefix + mark, value)
            except OSError:
                if mark != ORIGIN:
                    raise

    def unmark(self, place: Place, marks: Iterable[bytes]) -> None:
        """Remove some of the union's own xattrs."""
        layer, path = place
        for mark in marks:
            for prefix in _PREFIXES:
                _remove_xattr(layer.named(path), prefix + mark)

    def set_owner_and_mode(self, place: Place, attr: Attr) -> None:
        """Let the object at `place` have the owner and permissions of `attr`."""
        layer, path = place
        if self.ownership is Ownership.OVERRIDE:
            self._set_override(place, attr)
            return
        st = os.stat(path or b".", dir_fd=layer.fd, follow_symlinks=False)
        if (st.st_uid, st.st_gid) != (attr.uid, attr.gid) or stat.S_ISLNK(st.st_mode):
            uid = -1 if st.st_uid == attr.uid else attr.uid
            gid = -1 if st.st_gid == attr.gid else attr.gid
            os.chown(path or b".", uid, gid, dir_fd=layer.fd, follow_symlinks=False)
        if not stat.S_ISLNK(attr.mode):
            os.chmod(path or b".", attr.mode & 0o7777, dir_fd=layer.fd)

    def _set_override(self, place: Place, attr: Attr) -> None:
        layer, path = place
        st = os.stat(path or b".", dir_fd=layer.fd, follow_symlinks=False)
        if stat.S_ISLNK(st.st_mode) and not attr.uid and not attr.gid:
            return
        meta = Metadata(attr.mode, attr.uid, attr.gid, rdev=attr.rdev)
        if stat.S_ISREG(st.st_mode) or stat.S_ISDIR(st.st_mode):
            set_xattr(layer.named(path), layer.override or OVERRIDE_STAT, encode(meta))
            os.chmod(path or b".", backing_mode(st.st_mode & 0o170000 | attr.mode & 0o777), dir_fd=layer.fd)
            return
        # A symlink or a special file of the host, which cannot carry the xattr, becomes a file that can.
        target = layer.readlink(path) if stat.S_ISLNK(st.st_mode) else b""
        meta.atime_ns, meta.mtime_ns = st.st_atime_ns, st.st_mtime_ns
        staged = self.stage_other(meta, target)
        rename(self.work.fd, staged, layer.fd, path)

    def set_times(self, place: Place, atime_ns: int, mtime_ns: int) -> None:
        """Set both times, in ns."""
        layer, path = place
        os.utime(path or b".", ns=(atime_ns, mtime_ns), dir_fd=layer.fd, follow_symlinks=not path)

    def set_xattr(self, place: Place, name: bytes, value: bytes) -> None:
        """Set an xattr of the image."""
        if is_internal(name):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        layer, path = place
        backing = backing_xattr(name, self.ownership)
        if len(backing) > 255:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        set_xattr(layer.named(path), backing, value)

    def remove_xattr(self, place: Place, name: bytes) -> None:
        """Remove an xattr of the image.  ENODATA when there is none."""
        if is_internal(name):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        layer, path = place
        os.removexattr(layer.named(path), backing_xattr(name, self.ownership), follow_symlinks=False)

    def open(self, place: Place, flags: int) -> int:
        """The regular file at `place` as an fd."""
        layer, path = place
        return layer.open(path, flags)


def _whiteout_name(path: bytes) -> bytes:
    directory, slash, name = path.rpartition(b"/")
    return directory + slash + whiteout.PREFIX + name


def _remove_xattr(path: bytes, name: bytes) -> None:
    try:
        os.removexattr(path, name, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            raise


def _claim(directory: LayerDir) -> None:
    """Two users of one upper or work directory would destroy each other's files."""
    try:
        fcntl.flock(directory.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "it is in use by another mount", directory.path) from None


def _remove_tree(directory: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        os.chmod(name, 0o700, dir_fd=directory)  # the kernel's overlayfs leaves some closed
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            for inner in os.listdir(fd):
                _remove_tree(fd, os.fsencode(inner))
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=directory)
