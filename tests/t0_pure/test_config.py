"""Where a store is and how it works: what flags, variables and files say, and which of them counts.

Every test has a home, an environment and configuration files of its own, all real; nothing of the caller's
gets in.  Drivers, their options and other stores are in test_config_drivers.py, what containers/storage tests
of its options in test_config_upstream.py, and where podman's stores are found in test_podman_stores.py.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.configuration import Home

from fusestore import config
from fusestore.errors import InvalidOption, NotSupported

# -- places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "text", "graph_root", "run_root"),
    [
        ((), {}, "", "~/.local/share/fusestore", f"/tmp/fusestore-{os.getuid()}"),
        ((), {"XDG_DATA_HOME": "~/data"}, "", "~/data/fusestore", None),
        ((), {"XDG_DATA_HOME": "~/data"}, "graphroot = '$HOME/file'", "~/file", None),
        ((), {"FUSESTORE_ROOT": "~/env"}, "graphroot = '$HOME/file'", "~/env", None),
        (("~/flag", None), {"FUSESTORE_ROOT": "~/env"}, "graphroot = '$HOME/file'", "~/flag", None),
        ((), {"FUSESTORE_ROOT": ""}, "graphroot = ''", "~/.local/share/fusestore", None),
        ((), {"XDG_RUNTIME_DIR": "/does/not/exist"}, "", None, f"/tmp/fusestore-{os.getuid()}"),
        ((), {"XDG_RUNTIME_DIR": "/etc"}, "", None, f"/tmp/fusestore-{os.getuid()}"),
        ((), {"XDG_RUNTIME_DIR": ""}, "", None, f"/tmp/fusestore-{os.getuid()}"),
        ((), {"XDG_RUNTIME_DIR": "/dev/shm"}, "", None, "/dev/shm/fusestore"),
        ((), {"XDG_RUNTIME_DIR": "/dev/shm"}, "runroot = '$HOME/file'", None, "~/file"),
        ((), {"FUSESTORE_RUNROOT": "~/env"}, "runroot = '$HOME/file'", None, "~/env"),
        ((None, "~/flag"), {"FUSESTORE_RUNROOT": "~/env"}, "runroot = '$HOME/file'", None, "~/flag"),
    ],
)
def test_a_flag_goes_before_a_variable_and_that_before_a_file(
    home: Home, flags, environment, text, graph_root, run_root
):
    home.environment(environment)
    home.write("[storage]", text)
    options = config.options(*map(home.path, flags))
    assert graph_root is None or options.graph_root == Path(home.path(graph_root))
    assert run_root is None or options.run_root == Path(home.path(run_root))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$HOME/store", "~/store"),
        ("${HOME}/a/../store", "~/store"),
        ("$HOME/$UID", f"~/{os.getuid()}"),
        ("${HOME}/${UID}-$SHIP", f"~/{os.getuid()}-vasa"),
        ("/$HOME//link/store", "~/target/store"),
    ],
)
def test_paths_in_files_have_variables_and_lose_symlinks(home: Home, written, meant):
    home.environment({"SHIP": "vasa"})
    (home.directory / "target").mkdir()
    (home.directory / "link").symlink_to("target")
    home.write("[storage]", f"graphroot = '{written}'", f"runroot = '{written}-run'")
    options = config.options()
    assert options.graph_root == Path(home.path(meant))
    assert options.run_root == Path(home.path(f"{meant}-run"))


def test_paths_of_flags_and_variables_are_relative_to_the_working_directory(home: Home, monkeypatch):
    monkeypatch.chdir(home.directory)
    home.environment({"FUSESTORE_RUNROOT": "$run"})
    (home.directory / "more").mkdir()
    options = config.options("store", additional_stores=["more"])
    assert options.graph_root == home.directory / "store"
    assert options.run_root == home.directory / "$run"  # the shell's affair
    assert options.additional_stores == (home.directory / "more",)


@pytest.mark.parametrize("mark", ["storage.lock", "overlay-images/images.json", "vfs-images/images.lock"])
@pytest.mark.parametrize("way", ["flag", "variable", "file", "default", "symlink"])
def test_a_store_of_podman_is_never_ours(home: Home, mark, way):
    graphroot = home.directory / ".local/share/fusestore"
    (graphroot / mark).parent.mkdir(parents=True)
    (graphroot / mark).touch()
    (home.directory / "link").symlink_to(graphroot)
    before = sorted(home.directory.rglob("*"))
    if way == "variable":
        home.environment({"FUSESTORE_ROOT": str(graphroot)})
    if way == "file":
        home.environment({"FUSESTORE_CONFIG": home.path("~/own.toml")})
        before.append(home.write("[storage]", f"graphroot = '{graphroot}'", name="own.toml"))
    flag = {"flag": str(graphroot), "symlink": home.path("~/link")}.get(way)
    with pytest.raises(NotSupported) as caught:
        config.options(flag)
    assert f"--additional-store {graphroot}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(home.directory.rglob("*")) == sorted(before)


def test_private_directories_are_for_their_owner_only(tmp_path):
    made = config.private(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert config.private(tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_a_directory_of_somebody_else_is_refused():
    with pytest.raises(NotSupported, match="not a directory of yours"):
        config.private(Path("/etc"))


def test_a_symlink_in_the_place_of_a_directory_is_refused(tmp_path):
    (tmp_path / "target").mkdir(mode=0o755)
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(NotSupported, match="not a directory of yours"):
        config.private(tmp_path / "link")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o755


# -- files --------------------------------------------------------------------------------------------


def test_drop_ins_go_over_our_file_in_the_order_of_their_names(home: Home):
    home.write("[storage]", "graphroot = '/a'", "runroot = '/a'", "driver = 'vfs'")
    home.write("[storage]", "graphroot = '/c'", name=f"{home.DROP_INS}/20.toml")
    home.write("[storage]", "graphroot = '/b'", "runroot = '/b'", name=f"{home.DROP_INS}/10.toml")
    home.write("not TOML", name=f"{home.DROP_INS}/30.conf")
    options = config.options()
    assert (options.graph_root, options.run_root) == (Path("/c"), Path("/b"))
    assert options.graph_driver_name == "vfs"


def test_drop_ins_count_without_a_main_file(home: Home):
    home.write("[storage]", "graphroot = '/c'", name=f"{home.DROP_INS}/20.toml")
    assert config.options().graph_root == Path("/c")


def test_xdg_config_home_moves_our_file(home: Home):
    home.environment({"XDG_CONFIG_HOME": "~/elsewhere"})
    home.write("[storage]", "graphroot = '/moved'", name="elsewhere/fusestore/config.toml")
    home.write("[storage]", "graphroot = '/unmoved'")
    assert config.options().graph_root == Path("/moved")


def test_fusestore_config_takes_the_place_of_our_file_and_its_drop_ins(home: Home):
    home.write("not TOML")
    home.write("not TOML", name=f"{home.DROP_INS}/10.toml")
    home.write("[storage]", "graphroot = '/named'", name="named")
    home.environment({"FUSESTORE_CONFIG": "~/named"})
    assert config.options().graph_root == Path("/named")
    home.environment({"FUSESTORE_CONFIG": "/dev/null"})
    assert config.options().graph_root == home.directory / ".local/share/fusestore"


@pytest.mark.parametrize(
    "variable", ["FUSESTORE_CONFIG", "CONTAINERS_STORAGE_CONF", "CONTAINERS_STORAGE_CONF_OVERRIDE"]
)
def test_a_named_file_must_exist(home: Home, variable):
    home.environment({variable: "~/absent"})
    with pytest.raises(FileNotFoundError) as caught:
        config.options()
    assert str(caught.value.filename) == home.path("~/absent")


def test_a_named_file_of_podmans_goes_over_ours_but_its_places_are_podmans(home: Home):
    home.write("[storage]", "graphroot = '/ours'", "driver = 'vfs'", "[storage.options]", "size = '1G'")
    home.write(
        *("[storage]", "graphroot = '/theirs'", "runroot = '/theirs'", "driver = 'overlay'"),
        *("[storage.options.overlay]", "size = '2G'", "inodes = '7'"),
        name="podman.conf",
    )
    home.environment({"CONTAINERS_STORAGE_CONF": "~/podman.conf"})
    options = config.options()
    assert options.graph_root == Path("/ours")
    assert options.run_root == Path(f"/tmp/fusestore-{os.getuid()}")
    assert options.graph_driver_name == "fuse"
    assert options.graph_options == ("fuse.size=2G", "fuse.inodes=7")
    home.write("[storage.options.overlay]", "inodes = '8'", name="over.conf")
    home.environment({"CONTAINERS_STORAGE_CONF_OVERRIDE": "~/over.conf"})
    assert config.options().graph_options == ("fuse.size=2G", "fuse.inodes=8")


def test_files_of_podmans_that_nobody_names_are_not_read(home: Home):
    home.write("not TOML", name=".config/containers/storage.conf")
    home.write("not TOML", name=".config/containers/storage.conf.d/10.conf")
    assert config.options() == config.StoreOptions(
        home.directory / ".local/share/fusestore", Path(f"/tmp/fusestore-{os.getuid()}")
    )


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"[storage]\ndriver: vfs\n", "line 2"),
        (b"[storage]\n\n\ndriver = 'vfs\n", "line 4"),
        (b"[storage]\nx = [\n1,\n", "line 3, the end"),
        (b"[storage]\nx = 1\nx = 2\n", "line 3"),
        (b"[storage]\r\n\xff = 1\r\n", "line 2"),
        (b"\xef\xbb\xbf[storage]\n", "line 1"),
        (b"\0", "line 1"),
    ],
)
@pytest.mark.parametrize("variable", ["FUSESTORE_CONFIG", "CONTAINERS_STORAGE_CONF"])
def test_a_file_that_is_not_toml_is_an_error_which_names_the_line(home: Home, content, where, variable):
    home.environment({variable: "~/file"})
    (home.directory / "file").write_bytes(content)
    with pytest.raises(InvalidOption) as caught:
        config.options()
    assert caught.value.source == home.path("~/file")
    assert "not TOML" in caught.value.reason
    assert where in caught.value.reason
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("storage.graphroot = 3", "must be a string"),
        ("storage.graphroot = 'store'", "must be an absolute path, not store"),
        ("storage.graphroot = '~/store'", "must be an absolute path"),
        ("storage.graphroot = '$NOWHERE/store'", "has $NOWHERE, which is not set"),
        ("storage.graphroot = '/${NO_WHERE}'", "has ${NO_WHERE}, which is not set"),
        ('storage.graphroot = "/\\u0000"', "null"),
        ("storage.runroot = ['/run']", "must be a string"),
        ("storage.driver = true", "must be a string"),
        ("storage.driver_priority = 'vfs'", "must be a list of strings"),
        ("storage.options.additionalimagestores = '/a'", "must be a list of strings"),
        ("storage.options.additionalimagestores = [1]", "must be a string"),
        ("storage.options.additionalimagestores = ['a']", "must be an absolute path, not a"),
        ("storage.options.size = 10", "must be a string"),
        ("storage.options.size = 'much'", "must be a size, as in 10G, not much"),
        ("storage.options.overlay.inodes = '-1'", "must be a number, not -1"),
        ("storage.options.ignore_chown_errors = 'yes'", "must be true or false, not yes"),
        ("storage.options.force_mask = '888'", "must be shared, private or an octal mode"),
        ("storage.options.force_mask = true", "must be shared, private or an octal mode"),
        ("storage.options.force_mask = 8192", "must be shared, private or an octal mode"),
        ("storage.options.remap-uids = '0:1'", "must be CONTAINER:HOST:SIZE"),
        ("storage.options.remap-gids = '0:1:4294967296'", "must be CONTAINER:HOST:SIZE"),
    ],
)
def test_a_wrong_value_is_an_error_which_names_the_file_and_the_key(home: Home, line, reason):
    path = home.write(line)
    with pytest.raises(InvalidOption) as caught:
        config.options()
    assert caught.value.source == str(path)
    assert line.split(" ")[0].rpartition(".")[2] in caught.value.reason
    assert reason in caught.value.reason


def test_an_unknown_key_is_warned_of_and_the_rest_counts(home: Home, caplog):
    path = home.write("foo = 1", "[storage]", "graphroot = '/g'", '"a\\u001bb" = {c = 1}', "driver.x = 2")
    assert config.options().graph_root == Path("/g")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{path}: unknown keys: foo, storage.a\\x1bb.c, storage.driver.x"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("imagestore = '/a'", "images are kept in graphroot"),
        ("options.imagestore = '/a'", "images are kept in graphroot"),
        ("rootless_storage_path = '/a'", "graphroot"),
        ("transient_store = true", "until they are removed"),
        ("options.additionallayerstores = ['/a']", "from images only"),
        ("options.auto-userns-min-size = 1", "no user namespaces"),
        ("options.disable-volatile = true", "volatile"),
        ("options.pull_options = {enable_partial_images = 'true'}", "whole layers"),
        ("options.remap-user = 'me'", "remap-uids"),
        ("options.zfs.fsname = 'tank'", "no such driver"),
        ("options.thinpool.size = '1'", "no such driver"),
        ("options.ignore_chown_errors = 'true'", "owners are kept beside the files"),
        ("options.ignore_chown_errors = false", "owners are kept beside the files"),
        ("options.overlay.force_mask = 'shared'", "mode of the store's directory"),
        ("options.force_mask = 0o755", "mode of the store's directory"),
        ("options.overlay.mount_program = '/absent'", "mounts by itself"),
        ("options.mountopt = 'nodev,metacopy=on'", "nodev and nosuid"),
        ("options.overlay.skip_mount_home = 'false'", "bind-mounted"),
        ("options.overlay.use_composefs = 'T'", "plain directories"),
    ],
)
def test_what_means_nothing_here_is_ignored_and_the_log_says_why(home: Home, caplog, line, reason):
    caplog.set_level(logging.INFO)
    path = home.write("[storage]", line)
    assert config.options().graph_options == ()
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage().startswith(f"{path}: ")
    assert " is ignored: " in record.getMessage()
    assert reason in record.getMessage()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=60) | st.text("[]{}='\"\n storagedvexp#,1.", max_size=60).map(str.encode))
def test_no_file_makes_another_error(home: Home, content):
    home.environment({"FUSESTORE_CONFIG": "~/fuzz"})
    (home.directory / "fuzz").write_bytes(content)
    try:
        said = config.options().graph_driver_name
    except (InvalidOption, NotSupported) as exc:
        said = str(exc)
    assert said.isprintable()


def test_without_files_nothing_is_loaded_to_read_them(home: Home):
    code = (
        "import sys; from fusestore import config; config.options(); "
        "print(*sorted({'tomllib', 'subprocess', 'json', 'trio', 'pyfuse3'} & sys.modules.keys()))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=30
    )
    assert answer.stdout == "\n"


def test_a_file_in_the_place_of_the_directory_for_drop_ins_is_none(home: Home):
    home.write("[storage]", "graphroot = '/main'")
    home.write("not TOML", name=home.DROP_INS)
    assert config.options().graph_root == Path("/main")


def test_a_closed_configuration_directory_is_none(home: Home):
    home.write("[storage]", "graphroot = '/hidden'")
    home.write("[storage]", "graphroot = '/hidden'", name=f"{home.DROP_INS}/1.toml")
    closed = home.directory / ".config"
    closed.chmod(0)
    try:
        assert config.options().graph_root == home.directory / ".local/share/fusestore"
    finally:
        closed.chmod(0o700)
