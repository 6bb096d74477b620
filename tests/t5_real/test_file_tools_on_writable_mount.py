"""Debian's everyday tools in a writable mount do what they do on a plain disk.

The oracle is the disk: each script runs in a copy of the lower tree and in a mount of it, and says and leaves
the same there, in every attribute but owner and inode number; times that the script did not make are equal
to the nanosecond.  Then the mount is made again, and must show what it showed before, also the same inode
numbers; and the lower tree is as it was.
"""

import functools
import os
import subprocess

import pytest
from support_real import writable

OLD = 1_000_000_000_123_456_789  # ns
LINES = "".join(f"line {number} of a text\n" for number in range(50))


def workshop(top):
    """Makes what the scripts work on: texts, a directory of everything, packages of text, a sparse file."""
    (top / "t").mkdir()
    for number in range(20):
        (top / f"t/{number}").write_text(LINES.replace("text", f"text {number}"))
    directory = top / "d"
    for name in ("sub/deep/deeper", "empty", "other/sub"):
        (directory / name).mkdir(parents=True)
    for number in range(40):
        (directory / f"other/f{number:02d}.txt").write_text(f"{number}\n" * number)
    (directory / "a").write_text("one file, three names\n")
    os.link(directory / "a", directory / "b")
    os.link(directory / "a", directory / "sub/c")
    for name, target in (
        ("relative", "sub/c"),
        ("dangling", "no/such"),
        ("to-dir", "sub"),
        ("sub/up", "../a"),
    ):
        (directory / name).symlink_to(target)
    os.mkfifo(directory / "fifo", 0o640)
    for name, mode in (("private", 0o600), ("read-only", 0o444), ("tool", 0o755), ("suid", 0o4755)):
        (directory / name).write_text(f"{name}\n")
        (directory / name).chmod(mode)
    (directory / "sub").chmod(0o2775)
    (directory / "other").chmod(0o1777)
    for name in ("spaces in the name", "neue\nZeile", "größe", "-n", "'\"$(x)\\"):
        (directory / "other/sub" / name).write_text(name)
    (directory / "other/sub").joinpath(os.fsdecode(b"raw\xff\xfe")).write_text("not UTF-8")
    os.setxattr(directory / "tool", "user.note", b"a note\0with a zero")
    os.setxattr(directory / "sub", "user.note", b"of a directory")
    subprocess.run(["setfacl", "-m", "u:7:r,g:8:rw", directory / "private"], check=True)
    with open(top / "sparse", "wb") as file:
        for at in (0, 1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 1024)
        file.truncate(8 << 20)
    for place, directories, files in os.walk(top, topdown=False):
        for name in (*files, *directories):
            os.utime(os.path.join(place, name), ns=(OLD, OLD), follow_symlinks=False)
    os.utime(top, ns=(OLD, OLD))


@pytest.fixture(scope="module")
def lower(tmp_path_factory):
    top = tmp_path_factory.mktemp("workshop") / "lower"
    top.mkdir()
    workshop(top)
    return top


@pytest.fixture(params=writable.KINDS)
def mounted(request, tmp_path):
    """A writable mount of a lower tree, as a context."""
    return functools.partial(writable.mounted, request.param, tmp_path / "mount")


SCRIPTS = {
    "sed -i": """
        sed -i 's/line/LINE/' t/*
        sed -i.bak '/^LINE 1/d' t/3 d/read-only d/a
        sed -i --follow-symlinks 's/one/1/' d/sub/up
        sed -i s/x/y/ d/private d/suid d/tool
        stat -c '%a %s %n' d/private d/suid d/tool
        cat t/3 t/3.bak d/a d/b
    """,
    "perl -i": """
        perl -i.orig -pe 's/of a/OF A/; $_ = "" if $. % 2' t/1?
        cat t/1?
    """,
    "patch": r"""
        cp -a t new
        sed -i '3,5d; s/line 40/line forty/' new/1
        rm new/2
        echo fresh >new/fresh
        printf 'no newline at end' >>new/3
        diff -ruN t new >p || [ $? = 1 ]
        patch -d t -p1 -b <p
        diff -r -x '*.orig' t new
        patch -d t -p1 -R -E <p
        rm p
        ls t
    """,
    "install": """
        install -D -m 4755 t/1 x/y/z/prog
        install -d -m 2775 q/r
        install -b -p t/2 d/tool
        install -t q t/3 t/4
        install -m 600 t/5 d/a
        cat d/a d/b
        find x q d -printf '%m %s %p\\n' | sort
    """,
    "ln": """
        ln d/a d/again
        ln d/a t/elsewhere
        ln -f t/1 t/2
        ln -sf t/3 t/4
        ln -sfn ../t d/to-dir
        ln -P d/dangling d/dangling-too
        ln -b t/5 t/6
        ln t/7 t/8 2>&1 || ln -s new d/newlink
        echo appended >>d/sub/c
        cat d/again t/elsewhere
        find . -type f -printf '%n %p\\n' -o -type l -printf '%p -> %l\\n' | sort
    """,
    "touch": """
        touch t/1 new
        touch -d 2001-02-03T04:05:06.123456789 t/2 d d/sub
        touch -r t/2 t/3 d/a
        touch -h -d 1999-01-01 d/dangling
        touch -m -d @7 t/4
        touch -a -d @8 t/5
        touch -c none
        stat -c '%y %n' t/2 t/3 t/4 d/b d/sub/c d/dangling
        stat -c %x t/5
    """,
    "chmod -R": """
        chmod -R g+w,o-rwx d
        chmod 0 t/1
        chmod u+s,g+s t/2
        chmod +t t
        chmod 2711 d/empty
        chmod 400 d/sub/c
        chmod --reference=d/tool d/read-only
        chmod 4711 d/suid
        find . ! -type l -printf '%m %p\\n' | sort
        chmod u+r t/1
    """,
    "mv": """
        mv t/1 t/one
        mv t/2 t/3
        mv -b t/4 t/5
        mv t/6 d/sub
        mv d/a d/moved
        mv d/dangling d/fifo t
        mv -n t/7 t/8
        mv -T d/empty e
        mv d/to-dir d/sub/deep/deeper
        mv d/tool d/b
        mv d d/sub 2>&1 || mv -T t d 2>&1 || mv t t/9 2>&1 || ls -A t d d/sub e
        cat d/sub/c t/3
    """,
    "mv of directories": """
        mv d/sub d/renamed
        echo new >d/renamed/new
        mv d/renamed .
        mkdir d/sub
        touch d/sub/fresh
        mv d/other/sub other
        mv -T other d/empty
        mv d dd
        mv dd/other dd/empty/inner
        mkdir -p d/sub
        mv dd d/sub
        mv d/sub/dd/empty/inner inner
        rm -r d/sub/dd/empty
        find . -printf '%y %p\\n' | sort
    """,
    "rm -r": """
        rm -r d/sub
        mkdir d/sub
        ls -A d/sub
        rm t/1?
        rmdir d/empty
        rmdir d/other 2>&1 || rm -f none
        rm -r d
        mkdir d
        touch d/a
        ls -A d
        rm -r d
        ln -s t d
        ls -A d/
    """,
    "another type under the same name": """
        rm t/1; mkdir t/1; touch t/1/x
        rm -r t/1; ln -s 2 t/1
        rm t/1; mkfifo t/1
        rm t/1; echo file >t/1
        rm -r d/other; echo file >d/other
        rm d/other; mkdir d/other
        rm d/to-dir; mkdir d/to-dir
        rm d/fifo; echo plain >d/fifo
        ls -A d/other d/to-dir
    """,
    "find -delete": """
        find d -name '*1*.txt' -delete
        find d -type l -delete
        find t -newermt 2000-01-01 -name 1 -delete
        find d -depth -type d -empty -delete
        find d -links +1 ! -type d -delete
        find . -print | sort
    """,
    "find": """
        for f in d/a d/tool t/7 d/sub; do find . -inum "$(stat -c %i $f)" | sort; done
        find . -samefile d/a | sort
        find . -type f -links 3 | sort
        find . -size +1M -printf '%s %p\\n'
        find d -perm -4000 -o -perm -2000 -o -perm -1000 | sort
        find . -newermt 2001-09-09T01:46:40.2Z | sort
        find d -xtype l
    """,
    "du and stat count a file of three names once": """
        cp -a d copy
        du --inodes -s . d copy d/other
        find d copy -type f -print0 | du -bc --files0-from=- | tail -1
        du -bc d/a d/b d/sub/c
        du -lbc d/a d/b d/sub/c
        stat -c '%h %s %F' d/a copy/sub/c d/relative
        rm d/b
        echo x >>d/a
        stat -c '%h %s' d/a d/sub/c
        du -bc d/a d/sub/c
    """,
    "editors": """
        cp -p t/1 t/1~                                   # nano: a copy, then in place
        echo 'as nano does' >t/1
        mv t/2 t/2~                                      # vim: out of the way, a new file
        { cat t/2~; echo 'as vim does'; } >t/2
        chmod --reference=t/2~ t/2
        rm t/2~
        { cat t/3; echo 'as many do'; } >t/.3.tmp        # a new file over the old one
        sync t/.3.tmp
        mv t/.3.tmp t/3
        ln -s me@host.1:2 't/.#4'                        # emacs: a lock, a link for the old one
        ln t/4 t/4~
        echo 'as emacs does' >t/#4#
        mv t/#4# t/4
        rm 't/.#4'
        ln d/a d/a.bak
        { cat d/a.bak; echo more; } >d/.a.swp
        mv -f d/.a.swp d/a
        tail -n 1 t/[1-4] t/4~ d/a d/b
        ls -A t
    """,
    "truncate": """
        truncate -s 0 t/1
        truncate -s 100000 t/2
        truncate -s +10 t/3
        truncate -s -10 t/4
        : >t/5
        truncate -s '<100' t/6
        truncate -r t/6 t/7
        truncate -s 5G huge
        truncate -s 3M sparse d/b
        stat -c '%s %n' t/* huge sparse d/a
        sha256sum t/* sparse d/a d/sub/c
        rm huge
    """,
    "dd": """
        dd if=/dev/zero of=t/1 bs=1 seek=10 count=5 conv=notrunc status=none
        dd if=sparse of=holes bs=64k conv=sparse status=none
        dd if=t/2 of=t/3 oflag=append conv=notrunc status=none
        dd if=sparse of=t/4 bs=4k skip=256 count=1 seek=3 status=none
        dd if=t/5 of=t/6 conv=fsync status=none
        dd if=t/7 of=new conv=excl,fdatasync status=none
        dd if=t/8 of=d/sub/c conv=swab,nocreat status=none
        dd if=/dev/zero of=sparse bs=4096 seek=512 count=3 conv=notrunc status=none
        dd if=/dev/zero of=direct bs=64k count=4 oflag=direct,sync status=none
        dd if=direct of=direct bs=64k count=1 iflag=direct oflag=direct seek=7 conv=notrunc status=none
        cmp -n 2000000 holes sparse
        sha256sum t/[1-8] d/a holes sparse direct new
    """,
    "cp": """
        cp -a d copy
        cp -al d/sub linked
        cp -as "$PWD/d/other" symlinked
        cp -u t/1 t/2 t/3 copy
        cp --backup=numbered t/1 t/2
        cp --parents d/sub/c copy
        cp --remove-destination t/3 d/read-only
        cp -rL d/sub/deep x
        cp --attributes-only -p d/tool t/4
        cp -P d/relative t
        cp --remove-destination t/5 d/to-dir
        cp --preserve=all d/tool with-note
        getfattr -n user.note --only-values with-note copy/tool | tr '\\0' 0
        diff -r --no-dereference -x fifo d/other copy/other
        find symlinked -type l -printf '%f\\n' | sort
        rm -r symlinked
    """,
    "cp of holes": """
        cp --reflink=auto --sparse=always sparse always
        cp --sparse=auto sparse auto
        cp --sparse=never sparse never
        cp --reflink=auto t/1 d/a
        truncate -s 9M never
        cp --sparse=always never again
        for f in always again; do echo $(($(stat -c %b $f) < 12000)) $f; done
        sha256sum always auto never again d/b
    """,
    "a sparse file stays one when it is copied up": """
        echo end >>sparse
        echo $(($(stat -c %b sparse) < 12000))
        sha256sum sparse
    """,
    "setfattr": """
        setfattr -n user.note -v changed d/tool
        setfattr -x user.note d/sub
        setfattr -n user.a -v 1 d/b t t/1
        setfattr -n user.empty d/empty
        find d t ! -type l -print0 | sort -z | xargs -0 getfattr -d -m -
        getfattr -n user.a d/a d/sub/c
        setfattr -x user.none t/2 2>&1 || getfattr -n user.note d/sub 2>&1 || [ $? = 1 ]
    """,
    "tar": """
        tar --create --xattrs --acls --sparse --format=posix -f all.tar d t sparse
        mkdir out
        tar --extract --xattrs --acls -p -f all.tar -C out
        rm all.tar
        diff -r --no-dereference -x fifo d out/d
        rm -r d t
        mv out/d out/t .
        getfattr -n user.note --only-values d/tool | tr '\\0' 0
        tar --create --remove-files -f t.tar t
        tar -xf t.tar
        rm t.tar
        tar --create -C out . | tar --list
    """,
    "gzip, xz": """
        gzip t/*
        gunzip t/[1-9].gz
        xz -k t/1
        stat -c %y t/1 t/12.gz t/1.xz
        rm t/*.xz
        gzip -dc t/1?.gz | sha256sum
    """,
    "sort -o, split, tee, shred": """
        sort -r -o t/1 t/1
        split -n l/3 t/2 t/part.
        echo tee | tee -a t/3 t/4 >t/5
        shred -n 1 -u t/6
        tac t/7 >t/8
        sort -u -o d/a t/1 t/7
        cat t/part.* t/[1-5] t/[78] d/sub/c
    """,
    "redirections": """
        exec 3<>t/1 4>>t/2 5<t/3
        echo over >&3
        echo end >&4
        echo new >t/3
        cat <&5
        rm t/3
        echo again >>t/2
        echo last >&4
        exec 3>&- 4>&- 5<&-
        cat t/1 t/2
        set -C
        echo over 2>/dev/null >t/4 || echo fresh >t/fresh
    """,
    "a file that is deleted while it is used": """
        exec 3<>t/1 4<t/2
        rm t/1 t/2
        echo written >&3
        cat <&3 | tail -n 1
        tail -n 1 <&4
        truncate -s 5 /proc/self/fd/3
        stat -L -c '%s %h' /proc/self/fd/3
        head -c 5 /proc/self/fd/3
        cd d/sub
        rm -r ../sub
        ls -A
        touch here 2>&1 || [ $? = 1 ]
    """,
    "fifos": """
        mkfifo new
        cat new >out &
        echo through >new
        wait
        cat d/fifo >>out &
        echo lower >d/fifo
        wait
        cat out
        touch -d @5 new d/fifo  # the kernel does not tell a filesystem of its own that a fifo was written to
        stat -c '%F %a' new d/fifo
    """,
    "flock": """
        mkfifo held done
        flock t/1 sh -c 'echo >held; read -r _ <done' &
        read -r _ <held
        flock -n -E 9 t/1 true || echo $?
        flock -w 0.1 -E 8 t/1 true || echo $?
        flock -n t/2 echo another file
        echo >done
        flock -w 20 t/1 echo free
        wait
        flock -n d/a flock -n -E 7 d/b true || echo $?
        flock d echo directory
    """,
    "a counter under flock": r"""
        echo 0 >count
        printf '%s\n' {1..4} | xargs -P4 -I{} bash -c '
            for i in {1..15}; do flock d/a bash -c "echo \$((\$(<count) + 1)) >c{}; mv c{} count"; done'
        cat count
    """,
    "bash globs and loops": """
        for f in d/other/sub/*; do mv -- "$f" "$f.x"; done
        shopt -s globstar
        printf '%q\\n' **/*.x
        while read -r line; do echo "$line" >>"t/${line:5:1}"; done <t/10
        cat t/[1-4]
        cd d/sub
        cd ../other
        pwd | grep -o '/d/.*'
        if [ f01.txt -ot . ]; then exit 1; fi
        [ ../a -ef ../sub/c ]
        [ -p ../fifo ]
    """,
    "mkdir and rmdir": """
        mkdir -p a/b/c/d/e d/sub/deep/x/y
        mkdir -m 700 private
        rmdir -p a/b/c/d/e
        rm d/a
        mkdir d/a
        rmdir d/a
        mkdir -m 1777 d/a
        (umask 077; mkdir d/u; : >d/f)
        rmdir d 2>&1 || mkdir t/1 2>&1 || mkdir t 2>&1 || rmdir t/1 2>&1 || ls -A d
        stat -c '%a %n' d/a d/u d/f private
    """,
    "rsync in place, over what is there": """
        rsync -aHXS d/ t/
        rsync -aHXS --delete --itemize-changes d/ t/
        diff -r --no-dereference -x fifo d t
        sed -i 1d t/other/f07.txt
        rsync -ac --inplace --no-whole-file --itemize-changes d/ t/
        rsync -a --remove-source-files --backup --suffix=.was d/other/ t/other/
        find d t -type f | sort
    """,
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_does_what_it_does_on_a_disk(mounted, lower, tmp_path, script):
    with mounted(lower) as tree:
        writable.same_as_on_disk(tree, lower, tmp_path / "plain", script)
        tree.remount()
