"""One of many processes that change a mount together; a program: ``python writers.py TOP NUMBER SECONDS``.

It works in an area of its own, where its model must always hold, and in areas that all share, where each has
a protocol that allows a verdict afterwards: a file is claimed by renaming it away, and only one may succeed;
a name is won by O_EXCL; a line is appended; a counter is counted up under a lock; a file is replaced, and
whoever reads it finds one version or the other.  At the end it says on stdout, as JSON, what its area holds
and what was acknowledged to it.  Whatever is not as it should be ends it with a traceback.
"""

import errno
import fcntl
import hashlib
import json
import os
import random
import stat
import sys
import time
import zlib

LOWER_FILES, POOL = 12, 200  # in each own area; in the pool for all


class File:
    """An inode: what all its names share."""

    def __init__(self, content=b"", mode=0o600):
        self.content, self.mode, self.names = bytearray(content), mode, 0


def content_of(what: str) -> bytes:
    """The content that the lower tree gives a file."""
    return (what + "\n").encode() * (zlib.crc32(what.encode()) % 3000)


class Writer:
    """The own area: path below it -> File, the mode of a directory, or the target of a symlink."""

    def __init__(self, top, number):
        self.top, self.number = top, number
        self.random = random.Random(number)
        self.own = os.path.join(top, f"own/{number}")
        self.model, self.made = {"": 0o755, "sub": 0o755}, 0
        for at in range(LOWER_FILES):
            self._name(f"sub/{at}" if at % 2 else f"{at}", File(content_of(f"{number} {at}"), 0o644))
        self.said = {"claimed": [], "dropped": [], "taken": [], "won": [], "lines": 0, "counted": 0}

    # -- the model --------------------------------------------------------------------------------------

    def _name(self, path, node):
        self._unname(path)
        self.model[path] = node
        if isinstance(node, File):
            node.names += 1

    def _unname(self, path):
        node = self.model.pop(path, None)
        if isinstance(node, File):
            node.names -= 1

    def _full(self, path):
        return os.path.join(self.own, path) if path else self.own

    def _fresh(self):
        """A name that is not there, in some directory."""
        self.made += 1
        return os.path.join(self._one(int), f"n{self.made}")

    def _one(self, kind):
        """Some path whose node is of this kind, or None."""
        paths = [path for path, node in self.model.items() if isinstance(node, kind)]
        return self.random.choice(paths) if paths else None

    def _data(self):
        return self.random.randbytes(self.random.choice([0, 1, 100, 4096, 5000, 20_000]))

    # -- the own area -----------------------------------------------------------------------------------

    def create(self):
        path, node = self._fresh(), File(self._data())
        fd = os.open(self._full(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, node.mode)
        os.write(fd, node.content)
        os.close(fd)
        self._name(path, node)

    def overwrite(self):
        if (path := self._one(File)) is not None:
            node, data = self.model[path], self._data()
            at = self.random.randrange(len(node.content) + 1)
            with open(self._full(path), "r+b", buffering=0) as file:
                file.seek(at)
                file.write(data)
            node.content[at : at + len(data)] = data

    def append(self):
        if (path := self._one(File)) is not None:
            data = self._data()
            with open(self._full(path), "ab", buffering=0) as file:
                file.write(data)
            self.model[path].content += data

    def replace(self):
        """As editors do: a new file over the old name."""
        if (path := self._one(File)) is not None:
            node = File(self._data())
            fd = os.open(self._full(path) + "~", os.O_CREAT | os.O_EXCL | os.O_WRONLY, node.mode)
            os.write(fd, node.content)
            os.close(fd)
            os.rename(self._full(path) + "~", self._full(path))
            self._name(path, node)

    def truncate(self):
        if (path := self._one(File)) is not None:
            node = self.model[path]
            size = self.random.choice([0, len(node.content) // 2, len(node.content) + 3000])
            os.truncate(self._full(path), size)
            node.content[size:] = bytes(max(0, size - len(node.content)))

    def chmod(self):
        if (path := self._one((File, int))) and not os.path.islink(self._full(path)):
            mode = self.random.choice([0o600, 0o644, 0o640, 0o700, 0o755])
            if isinstance(node := self.model[path], File):
                node.mode = mode
            else:
                self.model[path] = mode = mode | 0o700
            os.chmod(self._full(path), mode)

    def verify(self):
        if (path := self._one(File)) is not None:
            node = self.model[path]
            with open(self._full(path), "rb", buffering=0) as file:
                st = os.fstat(file.fileno())
                assert file.readall() == node.content, path
            found = (st.st_size, stat.S_IMODE(st.st_mode), st.st_nlink)
            assert found == (len(node.content), node.mode, node.names), (path, found)

    def list(self):
        path = self._one(int)
        names = {name for above, _, name in (p.rpartition("/") for p in self.model if p) if above == path}
        assert set(os.listdir(self._full(path))) == names, path

    def link(self):
        if (path := self._one(File)) is not None:
            other = self._fresh()
            os.link(self._full(path), self._full(other))
            self._name(other, self.model[path])

    def symlink(self):
        path, target = self._fresh(), f"to/{self.made}"
        os.symlink(target, self._full(path))
        self._name(path, target)
        assert os.readlink(self._full(path)) == target

    def unlink(self):
        if (path := self._one((File, str))) is not None:
            os.unlink(self._full(path))
            self._unname(path)
            assert not os.path.lexists(self._full(path))

    def unlink_open(self):
        """A file that has lost its last name can still be used."""
        if (path := self._one(File)) is not None:
            node = self.model[path]
            with open(self._full(path), "r+b", buffering=0) as file:
                os.unlink(self._full(path))
                self._unname(path)
                assert file.readall() == node.content
                assert os.fstat(file.fileno()).st_nlink == node.names
                file.write(b"more")
                node.content += b"more"
                assert os.pread(file.fileno(), 4, len(node.content) - 4) == b"more"

    def mkdir(self):
        path = self._fresh()
        os.mkdir(self._full(path), 0o700)
        self._name(path, 0o700)

    def rmdir(self):
        if path := self._one(int):
            is_empty = not any(other.startswith(path + "/") for other in self.model)
            outcome = 0
            try:
                os.rmdir(self._full(path))
                self._unname(path)
            except OSError as exc:
                outcome = exc.errno
            assert outcome == (0 if is_empty else errno.ENOTEMPTY), (path, outcome)

    def rename(self):
        """A file or symlink, to a new name or over another."""
        if (path := self._one((File, str))) is not None:
            other = self.random.choice([self._fresh(), self._one((File, str))])
            os.rename(self._full(path), self._full(other))
            if self.model[path] is not self.model.get(other):  # two names of one file: nothing happens
                self._name(other, self.model[path])
                self._unname(path)

    def rename_directory(self):
        if path := self._one(int):
            other = self._fresh()
            if other.startswith(path + "/"):
                return
            os.rename(self._full(path), self._full(other))
            for below in [p for p in self.model if p == path or p.startswith(path + "/")]:
                self.model[other + below[len(path) :]] = self.model.pop(below)

    # -- what all share ---------------------------------------------------------------------------------

    def _shared(self, name):
        return os.path.join(self.top, "shared", name)

    def claim(self):
        """A lower file: only one can have it."""
        names = os.listdir(self._shared("pool"))
        if not names:
            return
        name, path = self.random.choice(names), self._fresh()
        if self._take(self._shared(f"pool/{name}"), path):
            self.said["claimed"].append(int(name))
            self._name(path, File(content_of(f"pool {name}"), 0o644))

    def drop(self):
        """Put down what another may take."""
        name = f"{self.number}-{len(self.said['dropped'])}"
        path = self._full("put-down")
        with open(path, "wb", opener=lambda path, flags: os.open(path, flags, 0o644)) as file:
            file.write(content_of(name))
        os.rename(path, self._shared(f"drop/{name}"))
        self.said["dropped"].append(name)

    def take(self):
        names = os.listdir(self._shared("drop"))
        if not names:
            return
        name, path = self.random.choice(names), self._fresh()
        if self._take(self._shared(f"drop/{name}"), path):
            self.said["taken"].append(name)
            self._name(path, File(content_of(name), 0o644))

    def _take(self, source, path):
        try:
            os.rename(source, self._full(path))
        except FileNotFoundError:
            return False
        return True

    def win(self):
        """The first to make a name has it."""
        name = str(self.random.randrange(5000))
        try:
            fd = os.open(self._shared(f"race/{name}"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return
        os.write(fd, b"%d" % self.number)
        os.close(fd)
        self.said["won"].append(name)

    def log(self):
        fd = os.open(self._shared("log"), os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"%d %d\n" % (self.number, self.said["lines"]))
        os.close(fd)
        self.said["lines"] += 1

    def count(self):
        """Read, add one, replace; under a lock on another file."""
        with open(self._shared("lock"), "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with open(self._shared("counter"), "rb") as file:
                value = int(file.read())
            with open(self._shared("counter~"), "wb") as file:
                file.write(b"%d" % (value + 1))
            os.rename(self._shared("counter~"), self._shared("counter"))
        self.said["counted"] += 1

    def publish(self):
        """Replace what all read: one version or the other, never half of one, never none."""
        path = self._shared(f"latest-{self.number}")
        data = self._data()
        with open(path, "wb") as file:
            file.write(b"%08x" % zlib.crc32(data) + data)
        os.rename(path, self._shared("latest"))
        with open(self._shared("latest"), "rb") as file:
            found = file.read()
        assert found[:8] == b"%08x" % zlib.crc32(found[8:])

    def come_and_go(self):
        """Names in a directory where all others make theirs."""
        path = self._shared(f"common/{self.number}")
        os.mkdir(path)
        with open(f"{path}/file", "wb") as file:
            file.write(b"x")
        os.link(f"{path}/file", f"{path}-link")
        assert {str(self.number), f"{self.number}-link"} <= set(os.listdir(self._shared("common")))
        os.rename(f"{path}/file", f"{path}-file")
        os.rmdir(path)
        os.unlink(f"{path}-link")
        assert os.stat(f"{path}-file").st_nlink == 1
        os.unlink(f"{path}-file")

    # ---------------------------------------------------------------------------------------------------

    def work(self, seconds):
        """Do anything in any order until time is up."""
        grow = [self.create, self.mkdir, self.link, self.symlink, self.claim]
        shrink = [self.unlink, self.unlink_open, self.rmdir]
        change = [self.overwrite, self.append, self.replace, self.truncate, self.chmod, self.rename]
        change += [self.rename_directory, self.verify, self.verify, self.list]
        together = [self.drop, self.take, self.win, self.log, self.count, self.publish, self.come_and_go]
        end, done = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            size = grow if len(self.model) < 60 else shrink
            self.random.choice([*change, *together, *size, *size])()
            done += 1
        return done

    def report(self, done):
        """All that the parent needs for its verdict."""
        groups = {}
        for path, node in self.model.items():
            if isinstance(node, File):
                groups.setdefault(id(node), []).append(f"own/{self.number}/{path}")
        tree = {}
        for path, node in self.model.items():
            seen = tree[f"own/{self.number}/{path}".rstrip("/")] = {}
            if isinstance(node, File):
                seen |= {"type": "file", "mode": f"{node.mode:04o}", "size": len(node.content)}
                seen |= {
                    "content": hashlib.sha256(node.content).hexdigest(),
                    "links": sorted(groups[id(node)]),
                }
            elif isinstance(node, int):
                seen |= {"type": "directory", "mode": f"{node:04o}"}
            else:
                seen |= {"type": "symlink", "target": node}
        return {"tree": tree, "done": done, **self.said}


if __name__ == "__main__":
    os.umask(0o022)
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    json.dump(writer.report(writer.work(float(sys.argv[3]))), sys.stdout)
