"""The command line of fusestore-overlay, which is fuse-overlayfs's: what it takes and what it says.

Podman and buildah run ``PROGRAM -o OPTIONS TARGET``, and use the target as soon as that has ended.

Runs through fusermount3, and again inside ``unshare -Urm`` without it (see test_overlay_in_namespace.py).
"""

import errno
import os
import re
from pathlib import Path

import pytest
from support_real.commands import is_running
from support_real.overlays import FUSE_MAGIC, PROGRAM, file_system, overlay, populate, tree


@pytest.fixture
def over(tmp_path):
    """One lower with the file ``f``, not mounted yet."""
    with overlay(tmp_path) as made:
        (made.lower / "f").write_text("lower")
        yield made


def works(over):
    """What is below shows, and a write reaches the upper directory and nothing else."""
    (over.merged / "f").write_text("changed")
    (over.merged / "new").touch()
    seen = tree(over.merged), tree(over.upper), tree(over.lower)
    return seen == ({"f": "changed", "new": ""}, {"f": "changed", "new": ""}, {"f": "lower"})


# -- options -------------------------------------------------------------------------------------------


def podmans(over):
    return ["-o", over.options(), over.merged]


def several(over):
    lower, upper, work = over.options().split(",")
    return ["-o", lower, "-o", upper, f"-o{work}", over.merged]


def target_first(over):
    return [over.merged, "-o", over.options()]


def empty_options(over):
    return ["-o", f",{over.options()},,", over.merged]


@pytest.mark.parametrize("spelling", [podmans, several, target_first, empty_options])
def test_the_command_line_may_be_spelled_in_several_ways(over, spelling):
    result = over.run(*spelling(over))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert works(over)


def test_options_that_fuse_overlayfs_knows_are_taken_without_a_word(over):
    over.mount(
        *["suid", "nosuid", "dev", "nodev", "exec", "noexec", "exec", "atime", "noatime", "diratime"],
        *[
            "nodiratime",
            "rw",
            "lazytime",
            "default_permissions",
            "fsync=1",
            "noacl",
            "threaded=0",
            "threaded=1",
        ],
        *["writeback=0", "writeback=1", "fast_ino=0", "fast_ino=1", "timeout=1.5", "timeout=60", "xino=off"],
        *["plugins=", "redirect_dir=off", "metacopy=off", "xattr_permissions=0", "noxattrs=0"],
        'context="system_u:object_r:container_file_t:s0:c1,c2"',
    )
    assert works(over)


def test_what_a_label_says_between_quotes_is_not_an_option(over):
    """An SELinux label has a comma in it."""
    result = over.start('context="system_u:object_r:container_file_t:s0:c1,noxattrs=1,c2"', "foo")
    assert (result.returncode, result.stderr.count(b"\n")) == (0, 1)
    assert result.stderr.endswith(b"unknown argument ignored: foo\n")
    os.setxattr(over.merged / "f", "user.key", b"value")


def test_unknown_options_are_ignored_with_a_word_each(over):
    """#404: users pass options of the kernel's overlayfs."""
    result = over.start("foo", "foo=bar=baz", "verity=off")
    assert (result.returncode, result.stdout) == (0, b"")
    said = [line.partition("unknown argument ignored: ")[2] for line in result.stderr.decode().splitlines()]
    assert said == ["foo", "foo=bar=baz", "verity=off"]
    assert works(over)


@pytest.mark.parametrize("options", [["index=off", "userxattr"], ["metacopy=on"], ["redirect_dir=on"]])
def test_options_of_the_kernel_do_no_harm(over, options):
    assert over.start(*options).returncode == 0
    assert works(over)


# -- where the directories are -------------------------------------------------------------------------


def escaped(path, also=""):
    """As the manual says it; podman escapes nothing, and a backslash or a quote in a name means itself."""
    return "".join(f"\\{c}" if c in "," + also else c for c in str(path))


@pytest.mark.parametrize(
    "name",
    ["a:b", "a,b", "back\\slash", " two  blanks ", 'quo"te', "new\nline", "équipe ☃", "-o", "=", "x" * 255],
)
def test_every_directory_may_have_any_name(tmp_path, name):
    with overlay(tmp_path) as plain:
        base = tmp_path / name
        base.mkdir()
        plain.merged, plain.upper, plain.work = base / "merged", base / "upper", base / "work"
        plain.lowers = [base / "one", base / "two"]
        for directory in (plain.merged, plain.upper, plain.work, *plain.lowers):
            directory.mkdir()
        populate(plain.lowers[0], {"a": "1"})
        populate(plain.lowers[1], {"a": "2", "b": "2"})
        lowers = ":".join(escaped(lower, ":") for lower in plain.lowers)
        options = f"lowerdir={lowers},upperdir={escaped(plain.upper)},workdir={escaped(plain.work)}"
        result = plain.run("-o", options, plain.merged)
        assert (result.returncode, result.stderr) == (0, b"")
        (plain.merged / "new").touch()
        assert tree(plain.merged) == {"a": "1", "b": "2", "new": ""}
        assert tree(plain.upper) == {"new": ""}


def test_names_need_not_be_utf_8(over):
    name = os.fsdecode(b"\xff\xfe")
    for directory in (over.lower, over.upper, over.work, over.merged):
        directory.rename(directory.with_name(name + directory.name))
    over.lowers = [over.base / (name + over.lower.name)]
    over.upper, over.work, over.merged = (
        path.with_name(name + path.name) for path in (over.upper, over.work, over.merged)
    )
    over.mount()
    assert works(over)


def test_relative_paths_are_taken_from_the_working_directory(over):
    """Podman works in its graphroot."""
    options = "lowerdir=lower0:./lower0/../lower0,upperdir=upper/,workdir=./work"
    assert over.run("-o", options, "merged").stderr == b""
    assert works(over)


def test_lowers_may_be_reached_through_symlinks(over):
    """As in overlay/l/ of containers/storage; the links may go once it is mounted."""
    (over.base / "l").mkdir()
    (over.base / "l/SHORT").symlink_to("../lower0")
    (over.base / "l/LONGER").symlink_to("SHORT")
    options = over.options().replace("lower0", "l/LONGER")
    assert over.run("-o", options, over.merged).returncode == 0
    for link in (over.base / "l").iterdir():
        link.unlink()
    assert works(over)


def test_the_target_may_be_a_symlink(over):
    (over.base / "link").symlink_to("merged")
    assert over.run("-o", over.options(), "link/").returncode == 0
    assert works(over)


def test_the_target_need_not_be_empty(over):
    """Containers/storage leaves what lay there; the kernel's overlayfs does not mind either."""
    populate(over.merged, {"hidden": "", "d": {"x": ""}})
    over.mount()
    assert works(over)
    over.unmount()
    assert tree(over.merged) == {"hidden": "", "d": {"x": ""}}


def test_one_lower_may_be_given_twice_and_may_be_empty(tmp_path):
    with overlay(tmp_path, lowers=2) as over:
        (over.lowers[1] / "f").write_text("lower")
        over.lowers.append(over.lowers[1])
        over.mount()
        assert tree(over.merged) == {"f": "lower"}


def test_300_lowers_with_few_files_allowed_to_be_open(tmp_path):
    """The soft limit is the caller's, and must be raised to the hard one."""
    with overlay(tmp_path, lowers=300) as over:
        for number, lower in enumerate(over.lowers):
            populate(lower, {f"f{number}": "", "all": str(number), "d": {str(number): ""}})
        over.mount(before=["prlimit", "--nofile=64:"])
        assert (over.merged / "all").read_text() == "0"
        assert len(os.listdir(over.merged)) == 302
        assert sorted(os.listdir(over.merged / "d")) == sorted(map(str, range(300)))
        (over.merged / "d/299").write_text("copied up")
        assert tree(over.upper) == {"d": {"299": "copied up"}}
        soft, hard = limits_of(over.server())
        assert soft == hard


def limits_of(pid):
    (line,) = [
        x for x in Path(f"/proc/{pid}/limits").read_text().splitlines() if x.startswith("Max open files")
    ]
    return line.split()[3:5]


# -- help and version ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-V", "--version"])
def test_version_has_a_first_line_that_podman_info_can_show(over, flag):
    result = over.run(flag)
    assert (result.returncode, result.stderr) == (0, b"")
    assert re.match(r"fusestore-overlay:? (version )?\d+\.\d+", result.stdout.decode())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_goes_to_stdout(over, flag):
    result = over.run(flag)
    assert (result.returncode, result.stderr) == (0, b"")
    for word in ("lowerdir", "upperdir", "workdir", "-f", "-o"):
        assert word in result.stdout.decode()


def test_the_installed_command_is_the_same_program(over):
    installed = Path(PROGRAM[0]).with_name("fusestore-overlay")
    assert over.run("-V", program=[installed]).stdout == over.run("-V").stdout


# -- usable at once ------------------------------------------------------------------------------------


def test_the_target_is_usable_when_the_program_has_ended(over):
    """Containers/storage recognises a mount by the filesystem's magic number and st_dev."""
    script = '"$@" && exec stat -f -c %t merged'
    result = over.run("-o", over.options(), over.merged, before=["sh", "-c", script, "sh"])
    assert result.stdout.decode().strip() == FUSE_MAGIC
    assert os.stat(over.merged).st_dev != os.stat(over.base).st_dev
    assert works(over)
    over.unmount()
    assert file_system(over.merged) != FUSE_MAGIC


def test_df_shows_the_space_of_the_upper_directory(over):
    over.mount()
    shown, true = os.statvfs(over.merged), os.statvfs(over.upper)
    assert (shown.f_blocks, shown.f_frsize, shown.f_files) == (true.f_blocks, true.f_frsize, true.f_files)
    assert 251 <= shown.f_namemax <= true.f_namemax


# -- without an upper directory ------------------------------------------------------------------------


def modifying_calls(top, reader):
    """Every call that would change something, by name; `reader` is an fd of the file f."""
    file, directory, link, new = top / "f", top / "d", top / "link", top / "new"
    return {
        "open to write": lambda: os.open(file, os.O_WRONLY),
        "open to read and write": lambda: os.open(file, os.O_RDWR),
        "open to append": lambda: os.open(file, os.O_WRONLY | os.O_APPEND),
        "open and truncate": lambda: os.open(file, os.O_WRONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_RDWR | os.O_CREAT),
        "create without a name": lambda: os.open(top, os.O_RDWR | os.O_TMPFILE),
        "truncate": lambda: os.truncate(file, 1),
        "chmod": lambda: os.chmod(file, 0o600),
        "fchmod": lambda: os.fchmod(reader, 0o600),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "utimes": lambda: os.utime(file),
        "unlink": lambda: os.unlink(file),
        "rmdir": lambda: os.rmdir(directory / "sub"),
        "mkdir": lambda: os.mkdir(new),
        "symlink": lambda: os.symlink("x", new),
        "mkfifo": lambda: os.mkfifo(new),
        "link": lambda: os.link(file, new),
        "link of a symlink": lambda: os.link(link, new, follow_symlinks=False),
        "rename": lambda: os.rename(file, new),
        "rename of a directory": lambda: os.rename(directory, new),
        "rename onto another": lambda: os.rename(file, link),
        "setxattr": lambda: os.setxattr(file, "user.key", b""),
        "removexattr": lambda: os.removexattr(file, "user.kept"),
    }


@pytest.mark.parametrize("readonly", ["no upperdir", "ro"])
def test_a_mount_without_upper_refuses_every_change(over, readonly):
    populate(over.lower, {"d": {"sub": {}}, "link": Path("f")})
    os.setxattr(over.lower / "f", "user.kept", b"")
    if readonly == "ro":
        over.mount("ro")
    else:
        over.mount(writable=False)
    refused = {}
    with open(over.merged / "f", "rb") as reader:
        for name, call in modifying_calls(over.merged, reader.fileno()).items():
            with pytest.raises(OSError) as caught:
                call()
            refused[name] = errno.errorcode[caught.value.errno]
    allowed = {"create without a name": {"EROFS", "EOPNOTSUPP", "ENOTSUP"}}
    assert {n: e for n, e in refused.items() if e not in allowed.get(n, {"EROFS"})} == {}
    assert tree(over.merged) == {"d": {"sub": {}}, "f": "lower", "link": Path("f")}
    assert os.access(over.merged / "f", os.R_OK)
    assert not os.access(over.merged / "f", os.W_OK)
    assert tree(over.upper) == {}
    assert is_running(over.server())
