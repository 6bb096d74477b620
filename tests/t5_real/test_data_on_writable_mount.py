"""Data in a writable mount: copied out and in, written by several processes at once, mapped, locked, punched.

What a test writes it knows, so each compares with a model of its own; and always with a fresh mount.
"""

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import random
import subprocess
import sys

import pytest
from support_real import trees, writable

PAGE = 4096
IN_LOWER = 5000


@pytest.fixture(params=writable.KINDS)
def mounted(request, tmp_path):
    """A writable mount of a lower tree, as a context."""
    return functools.partial(writable.mounted, request.param, tmp_path / "mount")


@pytest.fixture
def lower(tmp_path):
    """An empty tree, to be filled and then mounted."""
    directory = tmp_path / "lower"
    directory.mkdir()
    return directory


# -- whole trees --------------------------------------------------------------------------------------


def everything(top):
    """Files of all sizes, holes, hard links across directories, symlinks, xattrs, ACLs, old and odd times."""
    for number in range(60):
        directory = top / f"d{number % 7}/{number % 3}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"file {number}"
        path.write_bytes(random.Random(number).randbytes([0, 1, 4095, 4096, 70_000, 300_000][number % 6]))
        if number % 4 != 3:  # tar cannot set one on a file that it may not write
            os.setxattr(path, "user.number", b"%d\0\xff" % number)
        if number % 4 == 0:
            os.link(path, top / f"d{number % 7}/link {number}")
        (directory / f"symlink {number}").symlink_to(f"../../d{number % 5}/link {number}")
        path.chmod([0o644, 0o600, 0o4755, 0o444][number % 4])
        os.utime(path, ns=(0, number * 987_654_321_987_654_321 // 60))
    with open(top / "holes", "wb") as file:
        for at in range(0, 40 << 20, 10 << 20):
            file.seek(at + 12_345)
            file.write(b"data")
        file.truncate(50 << 20)
    subprocess.run(["setfacl", "-m", "u:4:rw,g:5:r", top / "d1/1/file 1"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:4:rwx", top / "d2"], check=True)
    os.mkfifo(top / "fifo")
    (top / "empty").mkdir(mode=0o1770)


def unowned(top):
    return {path: {**seen, "uid": 0, "gid": 0} for path, seen in trees.described(top).items()}


TAR = """
    mkdir "$2"
    tar -C "$1" -c --acls --xattrs --sparse --format=posix . | tar -C "$2" -xp --acls --xattrs
"""


@pytest.mark.parametrize(
    "copy",
    [
        ["rsync", "-aHAXS", "--modify-window=-1"],  # -1: in nanoseconds
        ["cp", "--archive", "--no-target-directory"],
        ["sh", "-ec", TAR, "sh"],
    ],
    ids=["rsync", "cp", "tar"],
)
def test_a_tree_copied_out_of_the_mount_and_in_again_is_the_same(mounted, lower, tmp_path, copy):
    (lower / "tree").mkdir()
    everything(lower / "tree")
    outside = tmp_path / "outside"
    with mounted(lower) as tree:
        inside, again = tree.top / "tree", tree.top / "again"
        must_be = functools.partial(writable.must_be_equal, unowned(lower / "tree"))
        end = "/" if copy[0] == "rsync" else ""
        subprocess.run([*copy, f"{inside}{end}", outside], check=True)
        must_be(unowned(outside))
        subprocess.run([*copy, f"{outside}{end}", again], check=True)
        must_be(unowned(again))
        assert os.stat(again / "holes").st_blocks < 1000
        if copy[0] == "rsync":
            nothing = [*copy, "--delete", "--itemize-changes"]
            assert subprocess.check_output([*nothing, f"{inside}/", outside]) == b""
            assert subprocess.check_output([*nothing, f"{outside}/", again]) == b""
            assert subprocess.check_output([*nothing, "--checksum", f"{again}/", inside]) == b""
        tree.remount()
        must_be(unowned(again))
        must_be(unowned(inside))


def test_a_directory_of_5000_entries_from_the_lower_is_moved_and_deleted(mounted, lower):
    (lower / "big").mkdir()
    for number in range(IN_LOWER):
        (lower / f"big/{number}").touch() if number % 10 else (lower / f"big/{number}").mkdir()
    with mounted(lower) as tree:
        os.rename(tree.top / "big", tree.top / "moved")  # not EXDEV
        assert not (tree.top / "big").exists()
        names = {str(number) for number in range(IN_LOWER)}
        for number in range(0, IN_LOWER, 3):
            path = tree.top / f"moved/{number}"
            path.unlink() if number % 10 else path.rmdir()
        names -= {str(number) for number in range(0, IN_LOWER, 3)}
        assert set(os.listdir(tree.top / "moved")) == names
        tree.remount()
        assert set(os.listdir(tree.top / "moved")) == names
        subprocess.run(["rm", "-r", tree.top / "moved"], check=True)
        (tree.top / "big").mkdir()
        assert os.listdir(tree.top / "big") == []
        tree.remount()
        assert os.listdir(tree.top) == ["big"]


def test_a_directory_of_5000_entries_is_deleted_where_it_lies(mounted, lower):
    (lower / "big/sub").mkdir(parents=True)
    for number in range(IN_LOWER):
        (lower / f"big/{'sub/' * (number % 2)}{number}").touch()
    with mounted(lower) as tree:
        subprocess.run(["rm", "-r", tree.top / "big"], check=True)
        assert os.listdir(tree.top) == []
        tree.remount()
        assert os.listdir(tree.top) == []


def test_directories_from_the_lower_are_renamed_by_rename_alone(mounted, lower):
    for path in ("a/b/c", "a/x", "other/empty"):
        (lower / path).mkdir(parents=True)
    for path in ("a/1", "a/b/2", "a/b/c/3", "other/4"):
        (lower / path).write_text(path)
    with mounted(lower) as tree:
        os.chdir(tree.top)
        try:
            os.rename("a/b", "a/renamed")
            os.rename("a/renamed/c", "c")
            os.rename("a", "other/a")
            with open("other/a/renamed/2", "a") as file:
                file.write(" and more")
            os.rename("other/a/renamed", "other/empty")  # over an empty directory
            os.rename("other", "b")
            os.mkdir("a")
            os.rename("c", "a/b")
            with pytest.raises(OSError) as caught:
                os.rename("a", "b")
            assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
        finally:
            os.chdir("/")
        expected = {"a/b/3": "a/b/c/3", "b/4": "other/4", "b/a/1": "a/1", "b/empty/2": "a/b/2 and more"}
        for _ in range(2):
            found = {path: (tree.top / path).read_text() for path in expected}
            assert found == expected
            assert len(trees.described(tree.top)) == 1 + 4 + len({"a", "a/b", "b", "b/a", "b/a/x", "b/empty"})
            tree.remount()


def test_owners_are_changed_by_who_mounted(lower, tmp_path):
    """Where the mounting user stands for root; on a tree from the lower, with hard links and symlinks.

    Without ACLs: who has given a file away may not set one, whoever they are to us; the kernel sees to that.
    """
    options = "--format=posix --sparse --xattrs --xattrs-include=user.*"
    (lower / "tree").mkdir()
    everything(lower / "tree")
    with writable.mounted("driver", tmp_path / "mount", lower) as tree:
        top = tree.top / "tree"
        writable.run(tree.top, "setfacl -R -P -b tree")
        before = trees.described(top)
        writable.run(
            tree.top, "chown -R -h 33:34 tree; chown 5 tree/holes; chgrp 6 tree/fifo; chown :7 tree/empty"
        )
        for seen in before.values():
            seen |= {"uid": 33, "gid": 34}
            if seen["type"] == "file":
                seen["mode"] = f"0{seen['mode'][1:]}"  # as always: setuid goes with the owner
        before["holes"]["uid"], before["fifo"]["gid"], before["empty"]["gid"] = 5, 6, 7
        writable.must_be_equal(before, trees.described(top))
        lines = writable.run(top, "ls -ln d0/0 | tail -n +2").splitlines()
        assert {tuple(line.split()[2:4]) for line in lines} == {("33", "34")}
        tree.remount()
        writable.run(
            tree.top, f"mkdir copy; tar -C tree -c {options} . | tar -C copy -x {options} -p --same-owner"
        )
        writable.must_be_equal(before, trees.described(tree.top / "copy"))
        tree.remount()


# -- several processes --------------------------------------------------------------------------------

APPENDER = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    line = f"{sys.argv[2]} {number} {'x' * (number * 37 % 600)}\\n".encode()
    assert os.write(fd, line) == len(line)
"""
ADDER = """
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    at = (number + int(sys.argv[2])) % 4 * 8
    fcntl.lockf(fd, fcntl.LOCK_EX, 8, at)
    (value,) = struct.unpack("q", os.pread(fd, 8, at))
    os.pwrite(fd, struct.pack("q", value + 1), at)
    fcntl.lockf(fd, fcntl.LOCK_UN, 8, at)
"""


def at_once(program, path, count, turns):
    """Run `count` processes on one file that all start at the same time."""
    command = [sys.executable, "-c", program, path]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen([*command, str(who), str(turns)], stdin=subprocess.PIPE))
            for who in range(count)
        ]
        for process in processes:
            process.stdin.write(b"go\n")
            process.stdin.close()
    assert [process.returncode for process in processes] == [0] * count


def test_four_processes_append_to_one_file_and_no_line_is_lost(mounted, lower):
    (lower / "log").write_text("first\n" * 1000)
    with mounted(lower) as tree:
        for name, before in (("log", 1000), ("new", 0)):
            at_once(APPENDER, tree.top / name, 4, 400)
            lines = (tree.top / name).read_text().splitlines()
            assert lines[:before] == ["first"] * before
            for who in range(4):
                theirs = [line.split(" ") for line in lines[before:] if line.startswith(f"{who} ")]
                assert [(int(n), len(x)) for _, n, x in theirs] == [(n, n * 37 % 600) for n in range(400)]
            assert len(lines) == before + 1600
        tree.remount()


def test_four_processes_count_together_under_fcntl_locks(mounted, lower):
    (lower / "counters").write_bytes(bytes(32))
    with mounted(lower) as tree:
        at_once(ADDER, tree.top / "counters", 4, 400)
        content = (tree.top / "counters").read_bytes()
        assert [int.from_bytes(content[at : at + 8], "little") for at in range(0, 32, 8)] == [400] * 4
        tree.remount()


def test_a_lock_of_one_process_is_seen_by_another(mounted, lower):
    (lower / "file").write_bytes(bytes(100))
    probe = (
        "import fcntl, struct, sys; f = open(sys.argv[1], 'r+b');"
        "query = struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, int(sys.argv[2]), 10, 0);"
        "kind, _, start, length, pid = struct.unpack('hhqqi4x', fcntl.fcntl(f, fcntl.F_GETLK, query));"
        "print(kind == fcntl.F_UNLCK or (start, length, pid))"
    )

    def seen(at):
        return subprocess.check_output([sys.executable, "-c", probe, tree.top / "file", str(at)], text=True)

    with mounted(lower) as tree:
        with open(tree.top / "file", "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 20, 30)
            assert [seen(at) for at in (0, 25, 49, 50)] == [
                "True\n",
                *[f"(30, 20, {os.getpid()})\n"] * 2,
                "True\n",
            ]
            fcntl.lockf(file, fcntl.LOCK_UN, 10, 30)
            assert seen(25) == "True\n"
        assert seen(49) == "True\n"
        tree.remount()


# -- maps ---------------------------------------------------------------------------------------------

MAPPED_READER = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    seen = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
    print(seen[:4].decode(), flush=True)
    for line in sys.stdin:
        at = int(line)
        file.seek(at)
        print(seen[at : at + 8].hex(), file.read(8).hex(), flush=True)
"""


@pytest.mark.parametrize("place", ["lower", "new"])
def test_what_one_process_writes_into_a_shared_map_another_sees_in_its_own(mounted, lower, place):
    """Also a reader that had mapped the lower file before it was copied up."""
    size = 64 * PAGE
    if place == "lower":
        (lower / "file").write_bytes(b"old " + bytes(size - 4))
    with mounted(lower) as tree:
        path = tree.top / "file"
        if place == "new":
            path.write_bytes(b"old " + bytes(size - 4))
        command = [sys.executable, "-c", MAPPED_READER, path]
        model = bytearray(path.read_bytes())
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
            assert reader.stdout.readline() == b"old \n"
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), size) as ours:
                for number in range(40):
                    at = number * 7919 * 8 % size
                    data = model[at : at + 8] = b"%08d" % number
                    if number % 3:
                        ours[at : at + 8] = data
                    else:
                        os.pwrite(file.fileno(), data, at)
                    reader.stdin.write(b"%d\n" % at)
                    reader.stdin.flush()
                    assert reader.stdout.readline().decode().split() == [data.hex()] * 2
                ours.flush()
            reader.stdin.close()
            assert reader.wait() == 0
        assert path.read_bytes() == model
        tree.remount()
        assert path.read_bytes() == model


@pytest.mark.parametrize("seed", range(3))
def test_pages_rewritten_by_every_way_are_read_by_every_way(mounted, lower, seed):
    """fuse-overlayfs #475 without SQLite: two fds, a map, truncation and growth on one lower file."""
    generator = random.Random(seed)
    model = bytearray(generator.randbytes(600 * PAGE + 123))
    (lower / "file").write_bytes(model)
    os.link(lower / "file", lower / "its second name")
    with mounted(lower) as tree, contextlib.ExitStack() as stack:
        names = [tree.top / "file", tree.top / "its second name"]
        early = stack.enter_context(open(names[0], "rb", buffering=0))
        assert early.read(PAGE) == model[:PAGE]
        one = stack.enter_context(open(names[0], "r+b", buffering=0)).fileno()
        two = stack.enter_context(open(names[1], "r+b", buffering=0)).fileno()
        for turn in range(600):
            at = generator.randrange(len(model))
            data = generator.randbytes(generator.choice([1, 100, PAGE, 3 * PAGE]))
            match generator.randrange(20):
                case 0:
                    os.ftruncate(one, at)
                    del model[at:]
                case 1:
                    os.ftruncate(two, len(model) + 5 * PAGE + 17)
                    model += bytes(5 * PAGE + 17)
                case 2:
                    os.fsync(one)
                case 3 | 4 | 5 | 6:
                    data = data[: len(model) - at]
                    with mmap.mmap(two, 0) as mapped:
                        mapped[at : at + len(data)] = data
                    model[at : at + len(data)] = data
                case way:
                    at -= at % PAGE if way % 2 else 0
                    os.pwrite((one, two)[way % 3 == 0], data, at)
                    model[at : at + len(data)] = data
            if len(model) < 50 * PAGE:
                model += data
                os.pwrite(one, data, len(model) - len(data))
            look = generator.randrange(len(model))
            assert {os.pread(fd, 2 * PAGE, look) for fd in (one, two, early.fileno())} == {
                bytes(model[look : look + 2 * PAGE])
            }, f"turn {turn}"
        assert [name.read_bytes() == model for name in names] == [True, True]
        stack.close()
        tree.remount()
        assert [name.read_bytes() == model for name in names] == [True, True]


def test_an_overwritten_lower_file_is_the_new_one(mounted, lower):
    """fuse-overlayfs #475, second report: old bytes, then zeros up to the new length."""
    generator = random.Random(2)
    old = {f"{number}": generator.randbytes(generator.choice([0, 10, PAGE, 50_000])) for number in range(60)}
    new = {name: generator.randbytes(generator.choice([0, 11, PAGE + 1, 90_000])) for name in old}
    for name, data in old.items():
        (lower / name).write_bytes(data)
    with mounted(lower) as tree:
        for number, (name, data) in enumerate(new.items()):
            path = tree.top / name
            if number % 2:
                path.read_bytes()  # cached
            match number % 4:
                case 0 | 1:
                    path.write_bytes(data)
                case 2:
                    subprocess.run(["cp", "/dev/stdin", path], input=data, check=True)
                case 3:
                    with open(path, "r+b") as file:
                        file.write(data)
                        file.truncate()
        assert {name: (tree.top / name).read_bytes() for name in new} == new
        tree.remount()
        assert {name: (tree.top / name).read_bytes() for name in new} == new


# -- holes --------------------------------------------------------------------------------------------


def test_fallocate_does_it_or_says_that_it_cannot(mounted, lower):
    """EOPNOTSUPP, which programs expect of filesystems; then nothing has changed."""
    model = bytearray(random.Random(3).randbytes(10 * PAGE))
    (lower / "file").write_bytes(model)
    (lower / "fresh").touch()
    with mounted(lower) as tree:

        def attempt(name, *options):
            command = ["fallocate", *options, tree.top / name]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert result.returncode == 0 or "supported" in result.stderr, result.stderr
            return result.returncode == 0

        if attempt("file", "--length", str(12 * PAGE)):
            model += bytes(2 * PAGE)
        if attempt("file", "--keep-size", "--length", str(20 * PAGE)):
            assert os.stat(tree.top / "file").st_size == len(model)
        if attempt("file", "--punch-hole", "--offset", str(2 * PAGE), "--length", str(3 * PAGE)):
            model[2 * PAGE : 5 * PAGE] = bytes(3 * PAGE)
        if attempt("file", "--zero-range", "--offset", str(6 * PAGE), "--length", str(PAGE)):
            model[6 * PAGE : 7 * PAGE] = bytes(PAGE)
        attempt("file", "--dig-holes")
        assert (tree.top / "file").read_bytes() == model
        with open(tree.top / "fresh", "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 3 * PAGE)  # the C library writes zeros where it must
        assert (tree.top / "fresh").read_bytes() == bytes(3 * PAGE)
        tree.remount()
        assert (tree.top / "file").read_bytes() == model


def test_a_size_beyond_the_largest_is_refused_and_changes_nothing(mounted, lower):
    (lower / "file").write_bytes(b"content")
    with mounted(lower) as tree:
        with pytest.raises(OSError) as caught:
            os.truncate(tree.top / "file", 1 << 60)
        assert caught.value.errno == errno.EFBIG
        assert (tree.top / "file").read_bytes() == b"content"
        tree.remount()
