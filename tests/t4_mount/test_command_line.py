"""What every command has in common: help, exit codes, streams, JSON, speed."""

import json
import os
import subprocess
import sys

import pytest
from support_real import layouts, tars, zoo
from support_real.commands import FUSESTORE, namespace

from fusestore.cli import _COMMANDS

# -- help and exit codes ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", sorted(_COMMANDS))
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_explains_itself(place, command, option):
    result = place.run(command, option)
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: fusestore {command} ".encode())
    assert result.stderr == b""
    assert not place.root.exists()


def test_the_overview_lists_every_command_once(place):
    lines = place.ok("--help").split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == sorted(set(_COMMANDS) - {"ps", "umount"})
    assert all(len(line.split()) > 1 for line in lines)


@pytest.mark.parametrize("option", ["--version", "-v"])
def test_the_version_is_told(place, option):
    assert place.ok(option).startswith("fusestore, version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["--no-such-option"],
        ["images", "--no-such-option"],
        ["images", "--format", "yaml"],
        ["inspect"],
        ["cat"],
        ["ls"],
        ["rmi"],
        ["rmi", "--all", "zoo"],
        ["unmount"],
        ["unmount", "--all", "zoo"],
        ["mount", "zoo", "/tmp", "more"],
        ["load", "oci:x", "--input", "y"],
        ["completion", "tcsh"],
    ],
)
def test_wrong_usage_exits_2(place, arguments):
    result = place.run(*arguments)
    assert (result.returncode, result.stdout) == (2, b"")
    assert result.stderr.splitlines()[-1].startswith(b"Error: ")


def test_load_refuses_a_terminal_as_stdin(place):
    ours, theirs = os.openpty()
    try:
        result = place.run("load", stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert result.returncode == 2
    assert b"terminal" in result.stderr


def test_debug_adds_a_traceback(place):
    result = place.run("--debug", "inspect", "nothing")
    assert result.returncode == 125
    assert b"Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith(b"fusestore: nothing: image not known")


# -- places -------------------------------------------------------------------------------------------


def test_options_win_over_the_environment(place, tmp_path):
    other = tmp_path / "other"
    place.ok("--root", other / "store", "--runroot", other / "run", "images")
    assert (other / "store/store.db").exists()
    assert (other / "run").exists()
    assert not place.root.exists()


def test_the_defaults_are_the_xdg_directories(tmp_path):
    (tmp_path / "runtime").mkdir()
    environment = {
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
        **python_of(os.environ),
    }
    subprocess.run([*FUSESTORE, "images"], env=environment, check=True, capture_output=True)
    assert (tmp_path / ".local/share/fusestore/store.db").exists()
    assert (tmp_path / "runtime/fusestore").exists()


def python_of(environment):
    return {key: value for key, value in environment.items() if key in ("PATH", "PYTHONPATH")}


def test_a_runroot_of_somebody_else_is_refused(place):
    assert "not a directory of yours" in place.fails("--runroot", "/", "images")


def test_a_root_that_is_a_file_is_refused(place, tmp_path):
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in place.fails("--root", tmp_path / "file", "images")


# -- streams ------------------------------------------------------------------------------------------


def test_load_reports_progress_on_stderr_and_the_name_on_stdout(place, zoo_layout):
    result = place.run("load", f"oci:{zoo_layout}:zoo")
    assert result.stdout == b"localhost/zoo:latest\n"
    assert result.stderr.count(b"Loading layer ") == 3
    result = place.run("load", "--quiet", f"oci:{zoo_layout}:zoo")
    assert (result.stdout, result.stderr) == (b"localhost/zoo:latest\n", b"")


def test_a_reader_that_leaves_early_is_no_error(menagerie):
    command = f"{' '.join(FUSESTORE)} cat zoo:/blocks zoo:/blocks zoo:/blocks | head -c 10 | wc -c"
    result = subprocess.run(
        ["sh", "-c", command], env=menagerie.environment(), capture_output=True, check=True
    )
    assert (result.stdout.strip(), result.stderr) == (b"10", b"")


@pytest.mark.parametrize(
    "arguments", [["images"], ["cat", "zoo:/blocks"], ["ls", "zoo:/"], ["inspect", "zoo"]]
)
def test_a_full_disk_under_stdout_is_reported(menagerie, arguments):
    with open("/dev/full", "wb") as full:
        result = menagerie.run(*arguments, stdout=full)
    assert result.returncode == 125
    assert result.stderr == b"fusestore: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(loaded, closed):
    """As some daemons start their children; what is opened then gets the numbers 0 to 2."""
    command = ["sh", "-c", f'"$@" mount zoo {closed} || exit; "$@" unmount zoo', "sh", *FUSESTORE]
    result = subprocess.run(command, env=loaded.environment(), capture_output=True, check=False)
    top = f"{loaded.runroot}/mnt/zoo-latest\n".encode()
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == (top if ">&-" in closed else top + top)


def test_a_working_directory_that_was_removed_does_not_matter(loaded, tmp_path):
    """As after the unmount of what one has cd'ed into."""
    (tmp_path / "gone").mkdir()
    in_gone = ("sh", "-c", f'cd "{tmp_path}/gone" && rmdir ../gone; cd . 2>/dev/null; exec "$@"', "sh")
    top = loaded.mount("zoo", before=in_gone)
    (tmp_path / "gone").mkdir()
    assert loaded.ok("ls", "zoo:/etc", before=in_gone)
    (tmp_path / "gone").mkdir()
    assert loaded.ok("unmount", "zoo", before=in_gone) == str(top)


# -- JSON ---------------------------------------------------------------------------------------------

IMAGE = {
    "Id",
    "ParentId",
    "RepoTags",
    "RepoDigests",
    "Size",
    "Labels",
    "Names",
    "Digest",
    "Created",
    "CreatedAt",
}
INSPECTED = {"Id", "Digest", "RepoTags", "RepoDigests", "Created", "Config", "Architecture", "Os", "Size"}
INSPECTED |= {
    "GraphDriver",
    "RootFS",
    "Labels",
    "ManifestType",
    "History",
    "Author",
    "User",
    "Version",
    "Comment",
}


@pytest.mark.parametrize("what", ["images", "layers", "mount"])
def test_an_empty_listing_is_an_empty_array(place, what):
    assert place.ok(what, "--format", "json") == "[]"


def test_images_have_podmans_keys(menagerie):
    (image,) = menagerie.listed("images")
    assert image.keys() >= IMAGE
    assert image["Names"] == image["RepoTags"] == ["localhost/zoo:latest"]
    assert image["Labels"] == {"what": "a test"}
    assert image["CreatedAt"] == "2021-05-04T03:02:01Z"
    assert len(image["Id"]) == 64


def test_inspect_has_podmans_keys(menagerie):
    (image,) = menagerie.listed("inspect", "zoo")
    assert image.keys() >= INSPECTED
    assert image["Config"]["Env"] == ["A=b"]
    assert image["RootFS"]["Type"] == "layers"
    assert len(image["RootFS"]["Layers"]) == 3
    assert image["GraphDriver"]["Name"] == "fuse"


def test_layers_are_listed_with_their_chain(menagerie):
    layers = {layer["ChainID"]: layer for layer in menagerie.listed("layers")}
    assert len(layers) == 3
    assert sorted(bool(layer["Parent"]) for layer in layers.values()) == [False, True, True]
    assert all(layer["Parent"] in layers for layer in layers.values() if layer["Parent"])
    (image,) = menagerie.listed("inspect", "zoo")
    assert {layer["DiffID"] for layer in layers.values()} == set(image["RootFS"]["Layers"])


def test_version_and_doctor_speak_json(menagerie):
    assert menagerie.listed("version").keys() >= {"fusestore", "python", "pyfuse3", "trio"}
    assert all(check.keys() == {"Ok", "Finding", "Remedy"} for check in menagerie.listed("doctor"))


def test_names_that_are_no_text_are_valid_json(menagerie):
    names = {row["Name"] for row in menagerie.listed("ls", "-a", "zoo:/names")}
    assert r"\xff\xfe caf\xe9" in names
    assert "Zürich ☃" in names


# -- tables -------------------------------------------------------------------------------------------


def test_the_image_table_is_podmans(menagerie):
    heading, line = menagerie.ok("images").splitlines()
    assert heading.split("  ")[0] == "REPOSITORY"
    assert heading.split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    (image,) = menagerie.listed("images")
    assert line.split()[:3] == ["localhost/zoo", "latest", image["Id"][:12]]
    assert menagerie.ok("images", "-q") == image["Id"][:12]
    assert menagerie.ok("images", "-q", "--no-trunc") == image["Id"]
    assert menagerie.ok("images", "--noheading") == line


def test_an_empty_table_is_its_heading(place):
    assert place.ok("images").split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert place.ok("mount") == ""


@pytest.mark.parametrize(
    ("name", "count"), [("zoo", 1), ("localhost/zoo", 1), ("zoo:latest", 1), ("zoo:1", 0), ("zo", 0)]
)
def test_images_can_be_asked_for_by_name(menagerie, name, count):
    assert len(menagerie.listed("images", name)) == count


# -- names and removal --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zoo", "zoo:latest", "localhost/zoo", "localhost/zoo:latest"])
def test_an_image_answers_to_every_form_of_its_name(menagerie, name):
    assert menagerie.ok("cat", f"{name}:/etc/kept") == "kept"


def test_an_image_answers_to_its_id_and_digest(menagerie):
    (image,) = menagerie.listed("images")
    for name in (image["Id"], image["Id"][:12], f"sha256:{image['Id']}", *image["RepoDigests"]):
        assert menagerie.listed("inspect", name)[0]["Id"] == image["Id"]


def test_loading_twice_changes_nothing(owned, zoo_layout):
    before = owned.listed("images"), owned.listed("layers")
    result = owned.run("load", f"oci:{zoo_layout}:zoo")
    assert result.stderr.count(b"already exists") == 3
    assert (owned.listed("images"), owned.listed("layers")) == before
    assert owned.half_made() == []


def test_of_several_names_rmi_takes_the_one_that_is_given(owned, zoo_layout):
    owned.ok("load", f"oci:{zoo_layout}:zoo", "--tag", "other:1", "--tag", "quay.io/a/b:c")
    assert owned.ok("rmi", "other:1") == "Untagged: localhost/other:1"
    (image,) = owned.listed("images")
    assert set(image["Names"]) == {"localhost/zoo:latest", "quay.io/a/b:c"}
    assert "several names" in owned.fails("rmi", image["Id"])
    owned.ok("rmi", "--force", image["Id"])
    assert owned.is_empty()


def test_rmi_all_leaves_an_empty_store(owned):
    owned.ok("load", input=layouts.docker_archive([tars.tar([tars.file(b"x")])]))
    assert owned.ok("rmi", "--all").count("Deleted: ") == 2
    assert owned.is_empty()
    assert [p.name for p in (owned.root / "fuse").iterdir() if p.name not in ("home.json", "l")] == []
    assert not list((owned.root / "big").glob("*/*"))


def test_the_umask_does_not_show_in_the_image(place, zoo_layout):
    place.ok("load", f"oci:{zoo_layout}:zoo", before=("sh", "-c", 'umask 077; exec "$@"', "sh"))
    modes = {row["Name"]: row["Permissions"] for row in place.listed("ls", "-a", "zoo:/")}
    assert modes == {path: zoo.EXPECTED[path]["mode"] for path in zoo.EXPECTED if path and "/" not in path}


def test_layers_that_another_image_needs_stay(owned, tmp_path):
    shared, own = tars.tar([tars.file(b"shared", b"s")]), tars.tar([tars.file(b"own")])
    for name, layers in (("one", [shared]), ("two", [shared, own])):
        owned.ok("load", f"oci:{layouts.oci(tmp_path / name, layers, name)}")
    owned.ok("rmi", "one", "zoo")
    assert len(owned.listed("layers")) == 2
    assert owned.ok("cat", "two:/shared") == "s"
    owned.ok("rmi", "two")
    assert owned.is_empty()


# -- reading without a mount --------------------------------------------------------------------------


def test_cat_follows_links_inside_the_image_only(place, tmp_path):
    members = [
        tars.file(b"etc/passwd", b"of the image"),
        tars.symlink(b"absolute", b"/etc/passwd"),
        tars.symlink(b"up", b"../../../../../../etc/passwd"),
        tars.symlink(b"a/dir", b"/etc"),
        tars.symlink(b"loop", b"loop"),
    ]
    place.ok("load", f"oci:{layouts.oci(tmp_path / 'oci', [tars.tar(members)], 'links')}")
    for path in ("absolute", "up", "a/dir/passwd", "a/../etc/passwd", "../../etc/passwd", "etc//./passwd"):
        assert place.ok("cat", f"links:/{path}") == "of the image"
    for path, reason in (
        ("loop", "Too many levels"),
        ("etc", "not a regular file"),
        ("etc/passwd/x", "Not a directory"),
    ):
        assert reason in place.fails("cat", f"links:/{path}")


def test_ls_shows_what_ls_shows(menagerie):
    assert menagerie.ok("ls", "zoo:/bin").splitlines() == sorted(
        ["all", "ash", "busybox", "closed", "sh", "sh-link", "su", "wall"]
    )
    lines = {line.split()[6 + 2]: line.split() for line in menagerie.ok("ls", "-l", "zoo:/bin").splitlines()}
    assert lines["su"][:5] == ["-rwsr-xr-x", "1", "0", "0", "2000"]
    assert lines["ash"][:5] == ["-rwxr-xr-x", "4", "0", "0", "3500"]
    assert lines["sh-link"][-2:] == ["->", "sh"]
    assert menagerie.ok("ls", "-l", "zoo:/dev/high").split()[:6] == [
        "crw-------",
        "1",
        "0",
        "0",
        "4095,",
        "1048575",
    ]
    assert ".hidden" not in menagerie.ok("ls", "zoo:/names")
    assert ".hidden" in menagerie.ok("ls", "-a", "zoo:/names").splitlines()


def test_ls_and_cat_work_where_there_is_no_fuse(menagerie):
    with namespace("mount -t tmpfs none /dev") as inside:
        assert menagerie.ok("cat", "zoo:/etc/kept", before=inside) == "kept"
        assert "kept" in menagerie.ok("ls", "zoo:/etc", before=inside).splitlines()
        assert menagerie.ok("images", "-q", before=inside)


# -- speed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["images"], ["mount"], ["ls", "zoo:/"], ["layers"], ["--help"], ["version"]]
)
def test_commands_that_do_not_mount_do_not_pay_for_fuse(menagerie, arguments):
    command = [sys.executable, "-X", "importtime", "-m", "fusestore", *arguments]
    result = subprocess.run(command, env=menagerie.environment(), capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "fusestore" in imported
    assert imported.isdisjoint({"pyfuse3", "trio", "rich", "asyncio", "httpx2"})


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(place, shell):
    assert "fusestore" in place.ok("completion", shell)


def test_bash_completes_commands(place):
    environment = place.environment() | {
        "_FUSESTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": "fusestore im",
        "COMP_CWORD": "1",
    }
    assert "images" in place.ok(env=environment)


def test_json_of_ls_is_one_array(menagerie):
    rows = json.loads(menagerie.ok("ls", "--format", "json", "zoo:/dev"))
    assert {row["Name"]: row.get("Device") for row in rows}["high"] == "4095:1048575"
