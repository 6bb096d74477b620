"""dpkg installs, upgrades, removes and verifies Debian packages in a writable mount, without root.

The packages are made here, byte for byte the same each time, with what packages have: conffiles, symlinks,
hard links, setuid files, a maintainer's script, files that move from one package to another, names that
become another type.  Fifteen are installed in the lower tree.  The oracle is a plain disk: dpkg must say the
same there and leave the same tree, owners aside, which it cannot set there.
"""

import functools
import io
import os
import subprocess
import tarfile

import pytest
from support_real import writable

COUNT, INSTALLED = 30, 15
TIME = 1_200_000_000


def deb(directory, number, version, files, **fields):
    """Write a package; `files` is path -> text, or (text, mode), or ("symlink"|"link", target), or None."""
    name = f"pkg{number:02d}"
    control = {"Package": name, "Version": version, "Architecture": "all", "Maintainer": "a <a@b>"}
    control |= {field.capitalize(): text for field, text in fields.items() if field != "postinst"}
    inside = {
        "control": "".join(f"{field}: {text}\n" for field, text in control.items()) + "Description: x\n"
    }
    inside["conffiles"] = "".join(f"/{path}\n" for path in files if path.startswith("etc/"))
    if "postinst" in fields:
        inside["postinst"] = (fields["postinst"], 0o755)
    members = {b"debian-binary": b"2.0\n", b"control.tar": tar(inside), b"data.tar": tar(files)}
    with open(directory / f"{name}_{version}.deb", "wb") as out:
        out.write(b"!<arch>\n")
        for title, data in members.items():
            out.write(b"%-16s%-12d0     0     100644  %-10d`\n" % (title, TIME, len(data)))
            out.write(data + b"\n"[: len(data) % 2])


def tar(files):
    """Directories are made from the names; a name that ends in a slash is one of mode 2775."""
    out, made = io.BytesIO(), set()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(path, kind, mode, data=b"", target=""):
            info = tarfile.TarInfo(f"./{path}")
            info.type, info.mode, info.linkname, info.mtime = kind, mode, target, TIME
            info.size, info.uname, info.gname = len(data), "root", "root"
            archive.addfile(info, io.BytesIO(data))

        add("", tarfile.DIRTYPE, 0o755)
        for path, content in sorted(files.items()):
            parts = path.split("/")[:-1]
            for depth in range(len(parts)):
                above = "/".join(parts[: depth + 1])
                if above not in made:
                    made.add(above)
                    add(above + "/", tarfile.DIRTYPE, 0o2775 if above + "/" == path else 0o755)
            match content:
                case "symlink", target:
                    add(path, tarfile.SYMTYPE, 0o777, target=target)
                case "link", target:
                    add(path, tarfile.LNKTYPE, 0o644, target=f"./{target}")
                case text, mode:
                    add(path, tarfile.REGTYPE, mode, text.encode())
                case str(text):
                    add(path, tarfile.REGTYPE, 0o644, text.encode())
    return out.getvalue()


def contents(number, version):
    """What a package holds; some of it changes its type from one version to the next."""
    name, new = f"pkg{number:02d}", version == "2"
    own = f"usr/lib/{name}"
    files = {
        f"usr/bin/{name}": (f"#!/bin/sh\necho {name} {version}\n", 0o755),
        f"etc/{name}.conf": f"{version if number % 2 else 'the same in both'}\n",
        f"usr/share/doc/{name}/copyright": name * 300,
        f"{own}/linked": f"{version} " * number,
        f"{own}/linked too": ("link", f"{own}/linked"),
        f"{own}/symlink": ("symlink", f"../../bin/{name}"),
        f"{own}/only-in-{version}/file": version,
        f"{own}/shared/" + ("x" * 100): version,
    }
    files |= {f"{own}/data/{at}": f"{at} {version if at % 3 else ''}\n" * at for at in range(12)}
    kinds = {
        "file": {"": "file"},
        "symlink": {"": ("symlink", "data")},
        "directory": {"/a": "a", "/b/c": "b"},
    }
    before, after = (("file", "symlink"), ("symlink", "file"), ("file", "directory"))[number % 3]
    files |= {f"{own}/changing{end}": what for end, what in kinds[after if new else before].items()}
    if number % 5 == 0:
        # Not one name in both versions: dpkg would link the old file, which the kernel forbids whoever is not
        # its owner (fs.protected_hardlinks), and in a mount the owner may be one that dpkg could set there.
        files[f"usr/sbin/{name}-{version}"] = ("setuid", 0o4755)
        files[f"var/spool/{name}/"] = None
    moved = number + (3 if new else 0)  # the next package but two takes it over
    files[f"usr/share/moving/{moved}"] = f"moved {moved}\n"
    return files


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Thirty packages in two versions."""
    directory = tmp_path_factory.mktemp("debs")
    for number in range(COUNT):
        for version in ("1", "2"):
            more = {"replaces": f"pkg{number + 3:02d} (<< 2)"}
            if number == 7:
                more["postinst"] = '#!/bin/sh\necho "$1 $2" >>"$DPKG_ROOT/var/log/pkg07"\n'
            deb(directory, number, version, contents(number, version), **(more if version == "2" else {}))
    return directory


DPKG = """
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
    dpkg() {
        local force=(--force-not-root --force-script-chrootless --force-confdef --force-confold)
        /usr/bin/dpkg --root="$PWD" --log=/dev/null "${force[@]}" "$@" 2>&1 | sed "s|$PWD|ROOT|g"
    }
    divert() { dpkg-divert --root="$PWD" "$@"; }
    debs() { printf "$1/pkg%02d_$2.deb\\n" $(seq $3 $4); }
"""


@pytest.fixture(scope="module")
def lower(tmp_path_factory, archive):
    """A root filesystem where half of the packages are installed."""
    top = tmp_path_factory.mktemp("debian") / "lower"
    for directory in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"):
        (top / directory).mkdir(parents=True)
    (top / "var/lib/dpkg/status").touch()
    writable.run(top, f'{DPKG} dpkg -i $(debs "$1" 1 0 {INSTALLED - 1})', archive)
    return top


LIFE = f"""
    dpkg --unpack $(debs "$1" 1 {INSTALLED} {COUNT - 1})
    dpkg --configure --pending
    dpkg --audit
    dpkg --verify
    for n in 01 03 05 17; do echo changed by hand >>etc/pkg$n.conf; done
    rm etc/pkg06.conf usr/lib/pkg08/data/5
    divert --rename --add /usr/bin/pkg09
    dpkg --verify
    dpkg --refuse-downgrade -i $(debs "$1" 2 0 {COUNT - 1})
    dpkg --verify
    cat var/log/pkg07 usr/bin/pkg09* etc/pkg0[135].conf
    dpkg -S usr/share/moving/9 usr/lib/pkg20/shared
    dpkg -L pkg20
    dpkg --remove pkg0{{0..9}}
    dpkg --purge pkg1{{0..9}} pkg09
    divert --rename --remove /usr/bin/pkg09
    dpkg -i $(debs "$1" 1 0 4)
    dpkg --force-downgrade --force-confnew --force-overwrite -i $(debs "$1" 1 20 29)
    dpkg --verify
    dpkg --audit
    dpkg -l | tail -n +6
    find . -printf '%y %m %p -> %l\\n' | sort
"""


@pytest.fixture(params=writable.KINDS)
def mounted(request, tmp_path):
    """A writable mount of a lower tree, as a context."""
    return functools.partial(writable.mounted, request.param, tmp_path / "mount")


def test_dpkg_installs_upgrades_and_removes_as_on_a_disk(mounted, lower, archive, tmp_path):
    with mounted(lower) as tree:
        said = writable.same_as_on_disk(tree, lower, tmp_path / "plain", DPKG + LIFE, archive)
        for words in (
            "Setting up pkg29 (2)",
            "Purging configuration files for pkg11",
            "missing     /usr/lib/pkg08/data/5",
            "4755 ./usr/sbin/",
        ):
            assert words in said, said
        tree.remount()
        assert writable.run(tree.top, DPKG + "dpkg --verify; dpkg --audit; dpkg -l | tail -n +6") in said


def test_dpkg_unpacks_without_installing(mounted, archive, tmp_path):
    lower = tmp_path / "lower"
    lower.mkdir()
    script = """
        mkdir control
        for deb in "$1"/*_2.deb; do dpkg -x "$deb" all; dpkg-deb -e "$deb" control/${deb##*/}; done
        dpkg -X "$1/pkg05_2.deb" all
        cat control/pkg07_2.deb/control
    """
    with mounted(lower) as tree:
        assert "usr" in writable.same_as_on_disk(tree, lower, tmp_path / "plain", script, archive)
        tree.remount()


def test_what_dpkg_gives_to_root_is_shown_as_the_users_own(lower, archive, tmp_path):
    """Only where the mounting user stands for root."""
    assert os.geteuid() != 0
    with writable.mounted("driver", tmp_path / "mount", lower) as tree:
        writable.run(tree.top, f'{DPKG} dpkg -i $(debs "$1" 2 0 {COUNT - 1})', archive)
        tree.remount()
        command = ["stat", "-c", "%u:%g %a", "usr/sbin/pkg05-2", "usr/lib/pkg05/symlink", "var/spool/pkg20"]
        lines = subprocess.check_output(command, cwd=tree.top, text=True).splitlines()
        assert lines == [f"{os.getuid()}:{os.getgid()} {mode}" for mode in ("4755", "777", "2775")]
