"""What users reported of fuse-overlayfs (numbers are its issues unless said otherwise), each as a small test.

One mount serves all; every issue has a directory of its own in the lower.  Those about wrong options,
overlapping directories and dead servers are in test_overlay_program.py and test_overlay_life.py, those
about what other programs left in layers in test_overlay_layers.py.

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py).
"""

import concurrent.futures
import contextlib
import errno
import hashlib
import mmap
import os
import random
import sqlite3
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from support_real import dents
from support_real.commands import is_running, may_call_mount
from support_real.overlays import overlay, populate, tree

from fusestore.syscalls import rename

RENAME_NOREPLACE = 1
AT_FDCWD = -100
BIG = 3 << 20

LOWER = {
    "17": {"file": "lower", "d": {"x": ""}},
    "33": {"d": {"x": "x", "sub": {"y": "y"}}, "other": {}},
    "69": {"schemas": {"compiled": "old", "a.xml": ""}},
    "108": {},
    "135": {"d": {"x": ""}},
    "136": {"dir1": {"dir2": {"foo": "", "sub": {"bar": ""}}}},
    "189": {"d": {"x": ""}, "e": {"x": ""}, "f": {"y": ""}},
    "210": {"d": {"x": ""}},
    "262": {"d": {"s1": {}, "s2": {}}},
    "265": {"file": "hello\n"},
    "271": {"a": {"b": {"c": "c", "d": "d"}}},
    "273": {"f": "f", "g": "g", "h": "h"},
    "279": {"a.txt": "a", "d": {"x": ""}},
    "306": {"a": {"b": {}}},
    "307": {"foo": "foo", "bar": "bar", "d": {"x": ""}},
    "325": {"v": {"A": {"x": ""}}},
    "327": {"keep": ""},
    "330": {"target": "0"},
    "337": {"link": Path("elsewhere"), "elsewhere": {"hidden": ""}},
    "354": {"testfile": "1", "testfile2": "2"},
    "368": {"source": "lower source"},
    "376": {"a": {"b": {"c": {f"f{n}": "" for n in range(20)}}}},
    "384": {f"d{n}": {"x": "x", "y": "y"} for n in range(20)},
    "391": {"bin": {"busybox": "busybox"}},
    "435": {},
    "448": {f"file-{n:04}": "" for n in range(1500)},
    "466": {},
    "470": {"secret": {"x": "", "deeper": {"y": ""}}},
    "475": {},
    "478": {"parent": {"tree": {"a": {"b": {"info": "info", "page": "page"}}}}},
}


@pytest.fixture(scope="module")
def over(tmp_path_factory):
    with overlay(tmp_path_factory.mktemp("issues"), lowers=2) as made:
        lower = made.lowers[1]
        populate(lower, LOWER)
        make_database(lower / "475/db")
        populate(lower / "475", {"big": random.Random(475).randbytes(BIG), "overwritten": b"old" * 40_000})
        for number, names in {"435": "abc", "108": "ab", "391/bin": ["busybox", "arch"]}.items():
            (lower / number / names[0]).write_text("linked")
            for name in names[1:]:
                os.link(lower / number / names[0], lower / number / name)
        populate(made.lowers[0], {"391": {"bin": {"busybox": "newer", "arch": Path("busybox")}}})
        for name in ("466/written", "466/emptied", "466/shortened"):
            (lower / name).write_text("content")
            (lower / name).chmod(0o6755)
        for name, mode in {"307/foo": 0o444, "307/bar": 0, "325/v/A": 0o555, "325/v": 0o555}.items():
            (lower / name).chmod(mode)
        for name, mode in {"470/secret": 0o700, "470/secret/deeper": 0o711}.items():
            (lower / name).chmod(mode)
        made.mount()
        yield made


@pytest.fixture
def area(over, request):
    """The directory of the issue that the test is named after."""
    number = request.node.name.partition("[")[0].split("_")[1]
    yield over.merged / number
    assert is_running(over.server())


@pytest.fixture
def upper(over, area):
    return over.upper / area.name


def shell(area, script):
    """Run a script there; it must say nothing on stderr."""
    result = subprocess.run(["sh", "-ec", script], cwd=area, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


# -- data ----------------------------------------------------------------------------------------------


def make_database(path):
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE packages (id INTEGER PRIMARY KEY, blob BLOB)")
        rows = random.Random(0)
        db.executemany("INSERT INTO packages VALUES (?, ?)", ((n, rows.randbytes(900)) for n in range(1500)))


def rewrite(path, seed, mode):
    """What an rpm transaction does: pages all over the file change, in several commits."""
    numbers = random.Random(seed)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        for _ in range(8):
            with db:
                for _ in range(40):
                    change = (numbers.randbytes(numbers.randrange(200, 1500)), numbers.randrange(1500))
                    db.execute("UPDATE packages SET blob = ? WHERE id = ?", change)
                db.execute("DELETE FROM packages WHERE id = ?", (numbers.randrange(1500),))
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT * FROM packages ORDER BY id").fetchall()


@pytest.mark.parametrize("mode", ["DELETE", "WAL"])
def test_475_a_database_of_a_lower_is_rewritten_without_corruption(over, area, tmp_path, mode):
    twin = tmp_path / "twin"
    twin.write_bytes((area / "db").read_bytes())
    for seed in range(3):
        assert rewrite(area / "db", seed, mode) == rewrite(twin, seed, mode)
    over.remount()
    assert rewrite(area / "db", 9, mode) == rewrite(twin, 9, mode)


def test_475_a_shorter_file_written_over_a_lower_one_has_no_zeros_after_it(over, area):
    (area / "overwritten").write_bytes(b"new" * 1000)
    over.remount()
    assert (area / "overwritten").read_bytes() == b"new" * 1000


def test_475_writes_of_every_kind_reach_a_big_lower_file(over, area):
    """pwrite, mmap, truncate and append from several fds while it is copied up; #134, #333."""
    numbers, model = random.Random(1), bytearray(random.Random(475).randbytes(BIG))
    with open(area / "big", "r+b") as one, open(area / "big", "r+b") as two:
        with mmap.mmap(one.fileno(), BIG) as mapped:
            for _ in range(300):
                at, data = numbers.randrange(BIG - 9000), numbers.randbytes(numbers.randrange(1, 9000))
                if numbers.random() < 0.5:
                    mapped[at : at + len(data)] = data
                else:
                    os.pwrite(two.fileno(), data, at)
                model[at : at + len(data)] = data
            mapped.flush()
        os.ftruncate(two.fileno(), BIG - 5000)
        del model[BIG - 5000 :]
    with open(area / "big", "ab") as file:
        file.write(b"end")
    model += b"end"
    digest = hashlib.sha256(model).digest()
    for _ in range(2):
        assert hashlib.sha256((area / "big").read_bytes()).digest() == digest
        over.remount()


def test_134_many_files_copied_at_once_are_complete(over, area, tmp_path):
    """Files came out empty, depending on the number of processors; #333."""
    area.mkdir()
    content = {str(n): random.Random(n).randbytes(1 << (n % 18)) for n in range(200)}
    populate(tmp_path, content)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = [list(content)[n::8] for n in range(8)]
        list(pool.map(lambda some: subprocess.check_call(["cp", *some, area], cwd=tmp_path), names))
    over.remount()
    assert {path.name: path.read_bytes() for path in area.iterdir()} == content


def test_385_reads_of_any_size_are_whole(over):
    path = over.lowers[1] / "475/big"
    content, numbers = path.read_bytes(), random.Random(3)
    (over.merged / "385").write_bytes(content)
    over.remount()
    fd = os.open(over.merged / "385", os.O_RDONLY)
    for _ in range(200):
        at, size = numbers.randrange(BIG), 1 << numbers.randrange(21)
        assert os.pread(fd, size, at) == content[at : at + size]
    os.close(fd)


# -- hard links and inodes -----------------------------------------------------------------------------


def test_435_links_are_counted_before_their_other_names_are_seen(over, area):
    """#192, #183: links made in the mount too."""
    over.remount()
    assert [(area / name).stat().st_nlink for name in "bac"] == [3, 3, 3]
    assert len({(area / name).stat().st_ino for name in "abc"}) == 1
    (area / "new").touch()
    os.link(area / "new", area / "new2")
    assert [(area / name).stat().st_nlink for name in ("new", "new2")] == [2, 2]
    os.link(area / "a", area / "d")
    (area / "b").unlink()
    assert [(area / name).stat().st_nlink for name in "acd"] == [3, 3, 3]


def test_108_a_change_through_one_name_shows_through_the_other(over, area):
    """T6: dnf broke containers; also after a remount."""
    (area / "b").read_text()
    with open(area / "a", "r+") as file, mmap.mmap(file.fileno(), 6) as mapped:
        mapped[:6] = b"LINKED"
    assert (area / "b").read_text() == "LINKED"
    with open(area / "b", "a") as file:
        file.write("!")
    assert (area / "a").read_text() == "LINKED!"
    over.remount()
    assert (area / "b").read_text() == (area / "a").read_text() == "LINKED!"
    assert (area / "a").stat().st_ino == (area / "b").stat().st_ino


def test_391_a_symlink_and_a_file_are_not_one_inode_because_they_are_below(over, area):
    """What a listing says is what stat says."""
    listed = {entry.name: entry.inode() for entry in os.scandir(area / "bin")}
    assert listed == {path.name: os.lstat(path).st_ino for path in (area / "bin").iterdir()}
    assert len(set(listed.values())) == 2
    assert (area / "bin/busybox").stat().st_nlink == 1


def test_376_fast_inodes_show_the_right_entries(over, area):
    over.remount("fast_ino=1", "threaded=1", "static_nlink")
    assert sorted(os.listdir(area / "a/b/c")) == sorted(f"f{n}" for n in range(20))
    listed = {entry.name: entry.inode() for entry in os.scandir(area / "a/b/c")}
    assert listed == {path.name: path.stat().st_ino for path in (area / "a/b/c").iterdir()}
    over.remount()


def test_359_directories_that_are_one_on_disk_are_both_shown(tmp_path):
    """A bind mount in a lower, which takes a mount namespace of one's own; #437."""
    with overlay(tmp_path) as over:
        populate(over.lower, {"a": {"b": {}}, "b": {}})
        if may_call_mount():
            subprocess.run(["mount", "--bind", over.lower / "a/b", over.lower / "b"], check=True)
        over.mount()
        assert sorted(os.listdir(over.merged)) == ["a", "b"]
        assert os.listdir(over.merged / "a") == ["b"]
        over.unmount()


def test_262_a_new_file_does_not_change_a_directorys_links(area):
    """But a directory of two layers has one link, in the kernel's overlayfs too: nobody has counted."""
    before = (area / "d").stat().st_nlink
    for change in ("touch d/file", "rm d/file", "mkdir d/s3"):
        shell(area, change)
        assert (area / "d").stat().st_nlink in (1, before)
    assert (area / "d").stat().st_nlink == 1


def test_384_reading_changes_nothing_that_tar_looks_at(over, area):
    """podman#16897: `file changed as we read it`."""
    over.remount()
    before = {path: path.stat().st_ctime_ns for path in (over.merged, area)}
    for _ in range(2):
        command = ["tar", "-cf", "/dev/null", "--totals", area.name]
        result = subprocess.run(command, cwd=over.merged, capture_output=True, text=True, check=True)
        assert "changed" not in result.stderr
    assert {path: path.stat().st_ctime_ns for path in (over.merged, area)} == before


def test_448_files_deleted_while_a_directory_is_read_do_not_hide_others(area):
    fd, deleted = os.open(area, os.O_RDONLY), []
    for name, _ in dents.entries(fd, 2048):
        if name not in (b".", b".."):
            os.unlink(name, dir_fd=fd)
            deleted.append(os.fsdecode(name))
    os.close(fd)
    assert sorted(deleted) == sorted(LOWER["448"])
    assert os.listdir(area) == []


# -- whiteouts and opaque directories ------------------------------------------------------------------


def test_478_entries_do_not_come_back_in_nested_directories_made_again(over, area):
    """A cache that is cleaned and made again, by rename and by hand."""
    for _ in range(2):
        shell(area, 'rm -r parent/tree; mkdir -p parent/tree/a/b; test -z "$(ls parent/tree/a/b)"')
        shell(
            area, "touch parent/tree/a/b/new parent/tree/x; mv parent/tree/a parent/moved; rm parent/tree/x"
        )
        shell(area, "rm -r parent/moved; rmdir parent/tree; mkdir -p parent/tree/a/b; rmdir parent/tree/a/b")
        assert tree(area) == {"parent": {"tree": {"a": {}}}}
        over.remount()
        assert tree(area) == {"parent": {"tree": {"a": {}}}}


def test_136_a_directory_deleted_and_made_again_is_empty(over, area):
    """#324, #138, #160, #93."""
    shell(area, "rm -r dir1; mkdir -p dir1/dir2/sub")
    over.remount()
    assert tree(area) == {"dir1": {"dir2": {"sub": {}}}}
    shell(area, "rm -r dir1; mkdir dir1")
    over.remount()
    assert tree(area) == {"dir1": {}}


def test_279_a_symlink_made_in_the_place_of_a_deleted_file_stays(over, area):
    shell(area, "mv a.txt a2.txt; touch a3.txt; ln -s a3.txt a.txt; rm -r d; ln -s a2.txt d")
    wanted = {"a.txt": Path("a3.txt"), "a2.txt": "a", "a3.txt": "", "d": Path("a2.txt")}
    for _ in range(2):
        assert tree(area) == wanted
        over.remount()


@pytest.mark.parametrize("made", ["mkdir", "mkfifo", "touch", "ln keep", "ln -s x"])
def test_17_whatever_is_made_in_the_place_of_a_deleted_file_stays(over, area, made):
    shell(area, f"touch keep; for n in file d; do rm -rf $n; {made} $n; done")
    before = {name: os.lstat(area / name).st_mode for name in ("file", "d")}
    over.remount()
    assert {name: os.lstat(area / name).st_mode for name in ("file", "d")} == before
    assert not os.path.lexists(area / "d/x")


def test_354_a_file_moved_onto_a_deleted_one_leaves_a_whiteout(over, area):
    shell(area, "rm testfile2; echo new >testfile; mv -n testfile testfile2")
    over.remount()
    assert tree(area) == {"testfile2": "new\n"}


def test_327_no_whiteout_is_left_of_what_no_lower_has(area, upper):
    """`sed -i` left one of its temporary file in every layer; #306, #309."""
    shell(area, "echo hello >file; for n in 1 2 3; do sed -i s/h/H/ file; done; mkdir d; mv d e; rmdir e")
    shell(area, "touch x; mv x y; mv y file; mkdir -p p/q; mv p/q .; rm -r p q; ln file z; mv z zz; rm zz")
    assert tree(upper) == {"file": ""}


def test_306_no_whiteout_is_made_in_an_opaque_directory(area, upper):
    """The kernel's overlayfs lists such a whiteout as a file."""
    shell(area, "rm -r a; mkdir -p a/b; mv a/b b; touch a/x; rm a/x")
    assert tree(upper) == {"a": {}, "b": {}}


# -- rename --------------------------------------------------------------------------------------------


def test_33_a_directory_of_a_lower_can_be_renamed(over, area):
    """T14; moby#25409, rustup#1239, podman#13123, conda#6711."""
    os.rename(area / "d", area / "moved")
    os.rename(area / "moved", area / "other/again")
    (area / "other/again/sub/z").touch()
    for _ in range(2):
        assert tree(area) == {"other": {"again": {"x": "x", "sub": {"y": "y", "z": ""}}}}
        over.remount()


def test_273_a_rename_that_must_not_replace_looks_at_the_union(over, area):
    (area / "g").unlink()
    old, new = os.fsencode(area / "f"), os.fsencode(area / "g")
    rename(AT_FDCWD, old, AT_FDCWD, new, RENAME_NOREPLACE)
    with pytest.raises(FileExistsError):
        rename(AT_FDCWD, new, AT_FDCWD, os.fsencode(area / "h"), RENAME_NOREPLACE)
    over.remount()
    assert tree(area) == {"g": "f", "h": "h"}


def test_271_a_directory_moved_onto_a_deleted_one_has_only_its_own(over, area):
    shell(area, "cp -r a bak; rm -r a; mv bak/b/c bak/b/c2; mv bak a")
    for _ in range(2):
        assert tree(area) == {"a": {"b": {"c2": "c", "d": "d"}}}
        over.remount()


def test_189_a_directory_moved_onto_one_that_was_emptied_has_only_its_own(over, area):
    os.unlink(area / "e/x")
    os.rename(area / "d", area / "e")
    with pytest.raises(OSError) as caught:
        os.rename(area / "e", area / "f")
    assert caught.value.errno in (errno.ENOTEMPTY, errno.EEXIST)
    for _ in range(2):
        assert tree(area) == {"e": {"x": ""}, "f": {"y": ""}}
        over.remount()


def test_69_a_file_moved_onto_a_deleted_lower_one(over, area):
    """What glib-compile-schemas does; it ended the server."""
    shell(
        area, "rm schemas/compiled; echo new >schemas/compiled.tmp; mv schemas/compiled.tmp schemas/compiled"
    )
    over.remount()
    assert tree(area) == {"schemas": {"compiled": "new\n", "a.xml": ""}}


def test_330_a_file_that_is_replaced_is_never_missing(area):
    """The first replacement hides a lower file, the others one of the upper."""
    stop, seen, missing = threading.Event(), set(), []

    def read():
        while not stop.is_set():
            try:
                seen.add((area / "target").read_text())
            except OSError as exc:
                missing.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        (area / "temporary").write_text(str(number))
        os.rename(area / "temporary", area / "target")
    stop.set()
    reader.join()
    assert missing == []
    assert seen <= {str(number) for number in range(300)}


def test_337_a_directory_of_the_upper_may_cover_a_symlink(over, area):
    shell(area, "rm link; mkdir link; touch link/new")
    over.remount()
    assert tree(area) == {"link": {"new": ""}, "elsewhere": {"hidden": ""}}


# -- modes and owners ----------------------------------------------------------------------------------


def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))


def test_470_a_private_directory_stays_private_when_it_is_copied_up(over, area):
    """T4: it was reported as a security problem."""
    (area / "secret/new").touch()
    (area / "secret/deeper/y").write_text("changed")
    for _ in range(2):
        assert (mode(area / "secret"), mode(area / "secret/deeper")) == ("0o700", "0o711")
        over.remount()
    assert mode(over.upper / "470/secret") == "0o700"


def written(path):
    with open(path, "a") as file:
        file.write("x")


def emptied(path):
    with open(path, "w"):
        pass


def shortened(path):
    os.truncate(path, 1)


@pytest.mark.parametrize("change", [written, emptied, shortened])
def test_466_setuid_is_lost_by_who_may_not_keep_it(over, area, tmp_path, change):
    """By the rules of the disk's own filesystem, for this user."""
    twin = tmp_path / "twin"
    twin.write_text("content")
    twin.chmod(0o6755)
    change(twin)
    change(area / change.__name__)
    for _ in range(2):
        assert mode(area / change.__name__) == mode(twin)
        over.remount()


def test_127_setuid_given_after_the_last_write_stays(over, area):
    """pacman: write, fchown, fchmod, close; the write came last."""
    area.mkdir()
    fd = os.open(area / "suid", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"1" * 10_000)
    os.fchown(fd, os.getuid(), os.getgid())
    os.fchmod(fd, 0o4755)
    os.close(fd)
    assert mode(area / "suid") == "0o4755"
    over.remount()
    assert mode(area / "suid") == "0o4755"


def test_307_a_file_without_permissions_can_be_changed_moved_and_deleted(over, area):
    """#377, #414, #349."""
    shell(area, "mv foo foo0; chmod u+w foo0; echo more >>foo0; rm -f bar; mkdir -m 0555 closed; chmod 0 d/x")
    shell(area, "chmod u+rw d/x; echo x >d/x; touch t; chmod a-rwx t; chmod u+rw t")
    over.remount()
    assert tree(area) == {"foo0": "foomore\n", "d": {"x": "x\n"}, "closed": {}, "t": ""}
    assert mode(area / "closed") == "0o555"
    assert mode(area / "foo0") == "0o644"


def test_325_directories_that_may_not_be_written_below_can_be_deleted(over, area):
    shell(area, "chmod -R u+w v; rm -r v")
    over.remount()
    assert tree(area) == {}


def test_265_a_file_edited_in_place_keeps_its_mode(over, area):
    """#348: mode 000 and EACCES from fchown."""
    (area / "file").chmod(0o640)
    shell(area, "sed -i s/hello/HELLO/ file")
    over.remount()
    assert (area / "file").read_text() == "HELLO\n"
    assert mode(area / "file") == "0o640"


def test_135_a_directory_closed_to_its_owner_can_be_opened_and_deleted(area):
    shell(area, "chmod a-rw d; mkdir e; chmod a-rw e; chmod u+rwx d e; rm -r d e")
    assert tree(area) == {}


# -- files that are gone -------------------------------------------------------------------------------


def test_368_a_deleted_file_can_be_copied_from(area):
    """Bash's here-documents: copy_file_range(2) on a file without a name; T1, #256."""
    for name, flags in (("source", os.O_RDONLY), ("made", os.O_RDWR | os.O_CREAT)):
        with open(os.open(area / name, flags, 0o600), "rb") as source, open(area / "copy", "wb") as target:
            os.unlink(area / name)
            if flags != os.O_RDONLY:
                os.write(source.fileno(), b"written after")
                os.fchmod(source.fileno(), 0o640)
                os.utime(source.fileno(), (5, 5))
            wanted = b"lower source" if flags == os.O_RDONLY else b"written after"
            assert os.copy_file_range(source.fileno(), target.fileno(), 100, 0) == len(wanted)
            assert os.fstat(source.fileno()).st_size == len(wanted)
            assert os.fstat(source.fileno()).st_nlink == 0
            assert Path(f"/proc/self/fd/{source.fileno()}").read_bytes() == wanted
            if flags != os.O_RDONLY:
                os.ftruncate(source.fileno(), 3)
                assert os.fstat(source.fileno()).st_size == 3
        assert (area / "copy").read_bytes() == wanted
    assert sorted(os.listdir(area)) == ["copy"]


def test_210_nothing_stays_open_in_the_server(over, area):
    """mkdir and rmdir until EMFILE; PR 92: create and unlink; #289: failed renames."""

    def churn():
        for _ in range(60):
            os.mkdir(area / "temp")
            os.rmdir(area / "temp")
            (area / "file").write_text("x")
            os.rename(area / "file", area / "file2")
            with pytest.raises(OSError):
                os.rename(area / "file2", area / "d")
            os.symlink("x", area / "link")
            os.link(area / "file2", area / "hard")
            os.listdir(area)
            for name in ("link", "hard", "file2"):
                os.unlink(area / name)

    def opened():
        return len(os.listdir(f"/proc/{over.server()}/fd"))

    churn()
    before = opened()
    churn()
    assert opened() <= before + 5
