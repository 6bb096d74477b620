"""Large programs work inside a writable mount: git, SQLite, make and gcc, pip, npm.

Each has an oracle of its own (fsck, integrity_check, a program that runs, hashes that it recorded), says in
the mount what it says on a plain disk, and has to be content again after the mount was made afresh.
"""

import base64
import functools
import hashlib
import io
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile
import zlib

import pytest
from support_real import writable


@pytest.fixture(params=writable.KINDS)
def mounted(request, tmp_path):
    """A writable mount of a lower tree, as a context."""
    return functools.partial(writable.mounted, request.param, tmp_path / "mount")


# -- git ----------------------------------------------------------------------------------------------

COMMITS = 300
GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    **{
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "a"), ("EMAIL", "a@b"), ("DATE", "1000000000 +0000"))
    },
}


def history():
    """A stream for git fast-import: many small commits to 60 files in 12 directories."""
    out = io.BytesIO()
    for number in range(COMMITS):
        out.write(b"commit refs/heads/main\ncommitter a <a@b> %d +0000\n" % (900_000_000 + number))
        out.write(b"data 7\nc%06d\n" % number)
        for touched in {number % 60, number * 7 % 60}:
            content = b"".join(b"%d %d\n" % (line, number // (line + 1)) for line in range(touched + 5))
            out.write(
                b"M 100644 inline d%d/f%d\ndata %d\n" % (touched % 12, touched, len(content))
                + content
                + b"\n"
            )
    return out.getvalue()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A bare repository with loose objects and packs, and a checkout of it with its own history."""
    top = tmp_path_factory.mktemp("git") / "lower"
    top.mkdir()
    environment = os.environ | GIT
    git = functools.partial(subprocess.run, cwd=top, env=environment, check=True, capture_output=True)
    git(["git", "init", "--bare", "--initial-branch=main", "origin.git"])
    git(["git", "-C", "origin.git", "-c", "fastimport.unpackLimit=10000", "fast-import"], input=history())
    git(["git", "clone", "-q", "--no-hardlinks", "origin.git", "work"])
    git(["git", "-C", "work", "remote", "set-url", "origin", "../origin.git"])
    for number in range(5):
        (top / f"work/d{number + 6}/new").write_text(str(number))
        git(["git", "-C", "work", "add", "."])
        git(["git", "-C", "work", "commit", "-m", str(number)])
    return top


# Not the ctime: the kernel keeps its own while it caches writes, and the disk gets one when they are flushed,
# which may be in the next second, and git records seconds.
CLEAN = """
    for r in work clone; do
        git -C $r -c core.trustctime=false diff-files --quiet  # size, mtime, inode number are as recorded
        git -C $r -c core.trustctime=false status --porcelain --branch
        git -C $r fsck --full --strict
        git -C $r rev-parse HEAD
        git -C $r rev-list --objects --all | git -C $r cat-file --batch | sha256sum
    done
"""


def test_git_clones_merges_packs_and_finds_all_clean(mounted, repositories, tmp_path):
    script = f"""
        git clone -q origin.git clone  # with hard links to the objects below
        cd clone
        git log --oneline | wc -l
        git checkout -q -b topic HEAD~100
        echo topic >d5/topic
        git mv d1 moved
        git add .
        git commit -qam topic
        git merge -q --no-edit main
        echo stashed >>d3/f3
        git stash -q
        git worktree add -q ../tree HEAD~3
        git -C ../tree commit -q --allow-empty -m tree
        git worktree remove ../tree
        git stash pop -q
        git rm -q d2/f14
        git commit -qam popped
        git checkout -q main
        echo main >>d4/main
        git add .
        git commit -qm main
        git rebase -q topic
        git gc -q --prune=now
        git push -q origin topic
        cd ../work
        git status --porcelain
        git checkout -q HEAD~200
        git checkout -q main
        git reset -q --hard HEAD~1
        git clean -qfdx
        git repack -q -a -d
        git pull -q --no-rebase --no-edit origin topic
        git prune
        git -C ../origin.git gc -q --prune=now
        git -C ../origin.git fsck --full
        cd ..
        {CLEAN}
    """
    with mounted(repositories) as tree:
        script = f"export {' '.join(f'{name}={value!r}' for name, value in GIT.items())}\n{script}"
        said = writable.says_what_it_says_on_disk(tree, repositories, tmp_path / "plain", script)
        assert said.startswith(f"{COMMITS}\n")
        tree.remount()
        assert said.endswith(writable.run(tree.top, CLEAN))


# -- SQLite -------------------------------------------------------------------------------------------

WRITER = """
import os, sqlite3, sys
path, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
db = sqlite3.connect(path, timeout=60, isolation_level=None)
db.execute("PRAGMA synchronous = NORMAL")
for number in range(count):
    db.execute("BEGIN IMMEDIATE")
    (last,) = db.execute("SELECT coalesce(max(n), 0) FROM log").fetchone()
    db.execute("INSERT INTO log VALUES (?, ?, ?)", (last + 1, who, os.urandom(700)))
    db.execute("UPDATE account SET amount = amount - 7 WHERE id = ?", (number % 10,))
    db.execute("UPDATE account SET amount = amount + 7 WHERE id = ?", (number * 3 % 10,))
    db.execute("COMMIT")
    print(last + 1, flush=True)
"""


def bank(path, mode):
    """A database with money in it, which no transaction makes more or less."""
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA journal_mode = {mode}")
    database.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, who TEXT, data BLOB)")
    database.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER)")
    database.executemany("INSERT INTO account VALUES (?, 1000)", [(number,) for number in range(10)])
    database.commit()
    database.close()


def audited(path):
    """The numbers of all transactions of a sound database, in order."""
    database = sqlite3.connect(path, timeout=60)
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("SELECT sum(amount) FROM account").fetchone() == (10_000,)
    rows = database.execute("SELECT n, who FROM log ORDER BY n").fetchall()
    database.close()
    return rows


@pytest.mark.parametrize("place", ["lower", "new"])
@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_sqlite_loses_no_transaction_of_two_writers_and_survives_the_death_of_a_third(
    mounted, tmp_path, mode, place
):
    lower = tmp_path / "lower"
    lower.mkdir()
    if place == "lower":
        bank(lower / "db", mode)
    with mounted(lower) as tree:
        path = tree.top / "db"
        if place == "new":
            bank(path, mode)
        command = [sys.executable, "-c", WRITER, path]
        count = {"wal": "400", "delete": "60"}[mode]  # of which each takes some fsync
        start = functools.partial(subprocess.Popen, stdout=subprocess.PIPE)
        with start([*command, "0", "100000"]) as doomed, start([*command, "1", count]) as one:
            with start([*command, "2", count]) as two:
                acknowledged = [int(doomed.stdout.readline()) for _ in range(20)]
                doomed.send_signal(signal.SIGKILL)
                said = {"1": one.communicate()[0], "2": two.communicate()[0]}
            acknowledged += [int(line) for line in doomed.stdout.read().split(b"\n")[:-1]]
        assert (one.returncode, two.returncode, doomed.returncode) == (0, 0, -signal.SIGKILL)
        rows = audited(path)
        tree.remount()
        assert audited(path) == rows
        assert [number for number, _ in rows] == list(range(1, len(rows) + 1))
        for who, lines in said.items():
            assert [number for number, writer in rows if writer == who] == [
                int(line) for line in lines.split()
            ]
        theirs = [number for number, writer in rows if writer == "0"]
        assert theirs[: len(acknowledged)] == acknowledged
        assert len(theirs) - len(acknowledged) in (0, 1)  # killed between COMMIT and print


ROWS, PAYLOAD = 4000, 3900


def packages(path):
    """A database like rpm's: each row about a page, with a checksum."""
    generator = random.Random(475)
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE package (id INTEGER PRIMARY KEY, sum INTEGER, blob BLOB)")
    blobs = (generator.randbytes(PAYLOAD) for _ in range(ROWS))
    database.executemany(
        "INSERT INTO package VALUES (?, ?, ?)",
        ((number, zlib.crc32(blob), blob) for number, blob in enumerate(blobs)),
    )
    database.commit()
    database.close()


def sums(path, mmap):
    """Every row's checksum, after it was compared with the row."""
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA mmap_size = {mmap}")
    found = {}
    for number, checksum, blob in database.execute("SELECT * FROM package"):
        assert zlib.crc32(blob) == checksum, f"row {number}"
        found[number] = checksum
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    return found


@pytest.mark.parametrize("mode", ["wal", "delete"])
@pytest.mark.parametrize("mmap", [0, 1 << 28])
def test_sqlite_finds_every_page_where_it_wrote_it(mounted, tmp_path, mode, mmap):
    """fuse-overlayfs #475: pages of rpm's database, from a lower layer, at wrong places."""
    lower = tmp_path / "lower"
    lower.mkdir()
    packages(lower / "db")
    generator = random.Random(f"{mode} {mmap}")
    with mounted(lower) as tree:
        path = tree.top / "db"
        model = sums(path, mmap)  # the pages of the lower are cached now
        database = sqlite3.connect(path)
        database.execute(f"PRAGMA mmap_size = {mmap}")
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = 20")  # pages are read again and again
        for turn in range(8):
            for number in generator.sample(range(ROWS), 250):
                blob = generator.randbytes(generator.choice([PAYLOAD, PAYLOAD, 50, 3 * PAYLOAD]))
                model[number] = zlib.crc32(blob)
                database.execute("REPLACE INTO package VALUES (?, ?, ?)", (number, model[number], blob))
            database.commit()
            if turn == 5:
                database.execute("DELETE FROM package WHERE id % 3 = 0")
                model = {number: checksum for number, checksum in model.items() if number % 3}
                database.commit()
                database.execute("VACUUM")
        assert sums(path, mmap) == model
        database.close()
        tree.remount()
        assert sums(path, 0) == model


# -- a C project --------------------------------------------------------------------------------------

MODULES = 50
MAKEFILE = """
CFLAGS = -O0 -MMD -Iinclude
objects = $(patsubst src/%.c,build/%.o,$(wildcard src/*.c))
program: build/main.o libmodules.a
\t$(CC) -o $@ $^
libmodules.a: $(filter-out build/main.o,$(objects))
\t$(AR) rcs $@ $^
build/%.o: src/%.c | build
\t$(CC) $(CFLAGS) -c -o $@ $<
build:
\tmkdir build
install: program
\tinstall -D -m 4755 program $(DESTDIR)/usr/bin/program
\tinstall -D -m 644 -t $(DESTDIR)/usr/include include/*.h
clean:
\trm -rf build program libmodules.a
-include $(wildcard build/*.d)
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A C project, built, and as a tarball of its sources."""
    top = tmp_path_factory.mktemp("project") / "lower"
    for directory in ("project/src", "project/include"):
        (top / directory).mkdir(parents=True)
    source = top / "project"
    (source / "Makefile").write_text(MAKEFILE)
    for number in range(MODULES):
        (source / f"include/m{number}.h").write_text(
            f"#define VALUE{number} {number}\nint m{number}(void);\n"
        )
        (source / f"src/m{number}.c").write_text(
            f'#include "m{number}.h"\n#include "m{(number + 1) % MODULES}.h"\n'
            f"int m{number}(void) {{ return VALUE{number}; }}\n"
        )
    includes = "".join(f'#include "m{number}.h"\n' for number in range(MODULES))
    calls = " + ".join(f"m{number}()" for number in range(MODULES))
    (source / "src/main.c").write_text(
        f'#include <stdio.h>\n{includes}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    subprocess.run(["tar", "-C", top, "-cf", top / "project.tar", "project"], check=True)
    subprocess.run(["make", "-s", "-j2", "-C", source], check=True)
    return top


BUILT = "for p in project unpacked/project; do make -C $p -q; $p/program; done"


def test_make_builds_what_changed_and_nothing_else(mounted, project, tmp_path):
    script = f"""
        mkdir unpacked
        tar -C unpacked -xf project.tar
        make -s -j2 -C unpacked/project
        {BUILT}
        cd project
        sed -i 's/VALUE7 7/VALUE7 1007/' include/m7.h
        make --no-print-directory | sort
        ./program
        touch src/m1[0-3].c
        make -s -n | wc -l
        mv src moved && ! make -q 2>/dev/null
        mv moved src
        make -s install DESTDIR="$PWD/../root"
        ../root/usr/bin/program
        stat -c '%a %s' ../root/usr/bin/program
        make -s clean
        make -s -j2
        cd ..
        {BUILT}
    """
    with mounted(project) as tree:
        said = writable.says_what_it_says_on_disk(tree, project, tmp_path / "plain", script)
        total = sum(range(MODULES))
        assert said.startswith(f"{total}\n{total}\n")
        assert said.endswith(f"{total + 1000}\n{total}\n")
        tree.remount()
        assert writable.run(tree.top, BUILT) == f"{total + 1000}\n{total}\n"


# -- pip ----------------------------------------------------------------------------------------------


def wheel(directory, version, modules):
    """A wheel made by hand, as small as one may be: a package, a program, the record of both."""
    info = f"demo-{version}.dist-info"
    files = {f"demo/m{number}.py": f"value = {number}\n" for number in range(modules)} | {
        "demo/__init__.py": f"version = '{version}'\n\ndef main():\n    print('demo', version)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: demo\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ndemo = demo:main\n",
    }  # fmt: skip
    record = "".join(f"{name},sha256={digest(data.encode())},{len(data)}\n" for name, data in files.items())
    with zipfile.ZipFile(directory / f"demo-{version}-py3-none-any.whl", "w") as archive:
        for name, data in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}).items():
            archive.writestr(name, data)


def digest(data):
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


BACKEND = """
import os, shutil
def get_requires_for_build_wheel(settings=None):
    return []
def build_wheel(directory, settings=None, metadata=None):
    shutil.copy("prepared.whl", os.path.join(directory, "demo-3-py3-none-any.whl"))
    return "demo-3-py3-none-any.whl"
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "demo"
version = "3"
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Two wheels and the source of a third version."""
    top = tmp_path_factory.mktemp("wheels") / "lower"
    (top / "demo-3").mkdir(parents=True)
    for version, modules in (("1", 40), ("2", 60), ("3", 20)):
        wheel(top, version, modules)
    (top / "demo-3-py3-none-any.whl").rename(top / "demo-3/prepared.whl")
    (top / "demo-3/backend.py").write_text(BACKEND)
    (top / "demo-3/pyproject.toml").write_text(PYPROJECT)
    (top / "demo-3/PKG-INFO").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 3\n")
    return top


RECORDED = """
import base64, csv, glob, hashlib
(record,) = glob.glob("venv/lib/python*/site-packages/demo-*/RECORD")
top = record.rsplit("/", 2)[0]
for name, digest, size in csv.reader(open(record)):
    if digest:
        data = open(f"{top}/{name}", "rb").read()
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        print(name, len(data) == int(size), digest == f"sha256={found}")
"""


def test_pip_installs_upgrades_builds_and_removes_in_a_virtual_environment(mounted, wheels):
    pip = "PYTHONDONTWRITEBYTECODE= PIP_NO_INDEX=1 venv/bin/pip --disable-pip-version-check --no-cache-dir -q"
    with mounted(wheels) as tree:
        script = f"""
            export TMPDIR="$PWD"
            {sys.executable} -m venv venv
            for file in *-1-*.whl *-2-*.whl demo-3; do
                {pip} install ./$file
                venv/bin/demo
            done
            {pip} uninstall -y demo
            [ ! -e venv/bin/demo ]
            {pip} install --find-links . demo
            {pip} check
            venv/bin/demo
        """
        assert writable.run(tree.top, script) == "demo 1\ndemo 2\ndemo 3\ndemo 2\n"
        tree.remount()
        assert writable.run(tree.top, "venv/bin/demo") == "demo 2\n"
        lines = writable.run(tree.top, f"venv/bin/python -c '{RECORDED}'").splitlines()
        assert len(lines) > 60
        assert [line for line in lines if not line.endswith(" True True")] == []


# -- npm ----------------------------------------------------------------------------------------------

if shutil.which("npm"):  # not in Debian's base; where there is none, this says nothing

    def test_npm_packs_and_installs_without_a_network(mounted, tmp_path):
        lower = tmp_path / "lower"
        for name, more in (("leaf", ""), ("tool", ', "dependencies": {"leaf": "file:../leaf-1.0.0.tgz"}')):
            (lower / name / "lib").mkdir(parents=True)
            package = (
                f'{{"name": "{name}", "version": "1.0.0", "bin": "main.js", "main": "lib/index.js"{more}}}'
            )
            (lower / name / "package.json").write_text(package)
            (lower / name / "main.js").write_text(f'#!/usr/bin/env node\nconsole.log(require("{name}"))\n')
            (lower / name / "lib/index.js").write_text(f'module.exports = "{name}"\n')
        npm = "npm --offline --no-audit --no-fund --no-update-notifier --loglevel=error --cache $PWD/cache"
        script = f"""
            (cd leaf; npm pack --silent; mv leaf-1.0.0.tgz ..)
            mkdir app
            cd app
            echo '{{"name": "app", "version": "1.0.0"}}' >package.json
            {npm} install ../leaf-1.0.0.tgz --silent
            node_modules/.bin/leaf
            node -p 'require("leaf")'
            {npm} uninstall leaf --silent
            {npm} install ../tool ../leaf-1.0.0.tgz --silent --install-links
            node_modules/.bin/leaf
        """
        with mounted(lower) as tree:
            said = writable.run(tree.top, script)
            assert [line for line in said.splitlines() if line == "leaf"] == ["leaf"] * 3
            tree.remount()
            assert writable.run(tree.top, "app/node_modules/.bin/leaf") == "leaf\n"
