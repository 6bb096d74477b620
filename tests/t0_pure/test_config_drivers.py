"""Drivers, their options, other stores and id maps: what flags, variables and files say, and which counts.

As in test_config.py, the home, the environment and the files are real, and the test's own.
"""

import logging
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.configuration import Home

from fusestore import config
from fusestore.errors import InvalidOption, NotSupported

# -- drivers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "environment", "line", "driver"),
    [
        (None, {}, "", "fuse"),
        (None, {}, "driver = ''", "fuse"),
        (None, {}, "driver = 'vfs'", "vfs"),
        (None, {}, "driver = 'overlay'", "fuse"),
        (None, {"STORAGE_DRIVER": "overlay"}, "driver = 'vfs'", "fuse"),
        (None, {"STORAGE_DRIVER": "vfs"}, "driver = 'zfs'", "vfs"),
        (None, {"STORAGE_DRIVER": ""}, "driver = 'vfs'", "vfs"),
        (None, {"FUSESTORE_DRIVER": "vfs", "STORAGE_DRIVER": "zfs"}, "", "vfs"),
        ("fuse-overlayfs", {"FUSESTORE_DRIVER": "vfs", "STORAGE_DRIVER": "vfs"}, "driver = 'vfs'", "fuse"),
        ("fuse", {}, "driver = 'btrfs'", "fuse"),
        (None, {}, "driver_priority = ['zfs', 'vfs', 'overlay']", "vfs"),
        (None, {}, "driver_priority = ['zfs']", "fuse"),
        (None, {}, "driver = 'overlay'\ndriver_priority = ['vfs']", "fuse"),
    ],
)
def test_a_driver_is_chosen_by_flag_then_variable_then_file(home: Home, flag, environment, line, driver):
    home.environment(environment)
    home.write("[storage]", line)
    assert config.options(driver=flag).graph_driver_name == driver


@pytest.mark.parametrize("name", ["aufs", "btrfs", "zfs", "devicemapper", "windowsfilter", "Fuse", "a\nb"])
@pytest.mark.parametrize("way", ["--storage-driver", "FUSESTORE_DRIVER", "STORAGE_DRIVER", "file"])
def test_a_driver_that_is_not_here_is_refused_and_those_that_are_are_named(home: Home, name, way):
    source = way
    if way == "file":
        source = str(home.write("[storage]", f'driver = "{name}"'.replace("\n", "\\n")))
    elif not way.startswith("--"):
        home.environment({way: name})
    with pytest.raises(NotSupported) as caught:
        config.options(driver=name if way.startswith("--") else None)
    message = str(caught.value)
    assert message.startswith(f"{source}: there is no driver {name} here".replace("\n", "\\n"))
    assert "overlay" in message
    assert "vfs" in message
    assert message.isprintable()


def test_a_driver_that_podmans_file_has_for_podman_is_passed_over(home: Home, caplog):
    caplog.set_level(logging.INFO)
    home.write("[storage]", "driver = 'vfs'")
    path = home.write("[storage]", "driver = 'btrfs'", name="podman.conf")
    home.environment({"CONTAINERS_STORAGE_CONF": "~/podman.conf"})
    assert config.options().graph_driver_name == "vfs"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: storage.driver btrfs is ignored: fusestore has none"
    ]


def test_overlay2_is_overlay_with_a_warning(home: Home, caplog):
    home.environment({"STORAGE_DRIVER": "overlay2"})
    assert config.options().graph_driver_name == "fuse"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("STORAGE_DRIVER: overlay2 is an old name")


@pytest.mark.parametrize(
    ("present", "driver"), [((), "fuse"), (("vfs",), "vfs"), (("fuse",), "fuse"), (("fuse", "vfs"), "fuse")]
)
def test_a_store_keeps_the_driver_that_it_has(home: Home, present, driver):
    for name in present:
        (home.directory / "store" / name).mkdir(parents=True)
    assert config.options(home.path("~/store")).graph_driver_name == driver
    home.write("[storage]", "driver_priority = ['vfs']")
    expected = driver if present else "vfs"
    assert config.options(home.path("~/store")).graph_driver_name == expected


@pytest.mark.parametrize(("has", "asked"), [("fuse", "vfs"), ("vfs", "overlay")])
@pytest.mark.parametrize("way", ["--storage-driver", "FUSESTORE_DRIVER", "STORAGE_DRIVER", "file"])
def test_what_podman_is_told_gives_way_to_the_driver_of_the_store(home: Home, caplog, has, asked, way):
    (home.directory / "store" / has).mkdir(parents=True)
    home.environment({way: asked} if way.isupper() and way[0] != "-" else {})
    source = str(home.write("[storage]", f"driver = '{asked}'")) if way == "file" else way
    flag = asked if way == "--storage-driver" else None
    found = config.options(home.path("~/store"), driver=flag).graph_driver_name
    if way in ("--storage-driver", "FUSESTORE_DRIVER"):  # then the store itself refuses
        assert found != has
        assert caplog.records == []
    else:
        assert found == has
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.getMessage().startswith(f"{source}: the driver ")
        assert record.getMessage().endswith(f" gives way to {has}, which the store has")


def test_one_of_two_drivers_of_a_store_may_be_asked_for(home: Home, caplog):
    for name in ("fuse", "vfs"):
        (home.directory / "store" / name).mkdir(parents=True)
    home.environment({"STORAGE_DRIVER": "vfs"})
    assert config.options(home.path("~/store")).graph_driver_name == "vfs"
    assert caplog.records == []


# -- options ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "variable", "lines", "expected"),
    [
        ((), None, ["options.size = '1G'"], ["fuse.size=1G"]),
        ((), None, ["options.size = '1G'", "options.overlay.size = '2G'"], ["fuse.size=2G"]),
        ((), None, ["options.fuse.size = '3G'", "options.overlay.size = '2G'"], ["fuse.size=3G"]),
        ((), None, ["options.size = '1G'", "options.overlay.size = ''"], ["fuse.size=1G"]),
        ((), None, ["options.size = '1G'", "options.vfs.size = '2G'"], ["fuse.size=1G"]),
        ((), None, ["driver = 'vfs'", "options.size = '1G'", "options.vfs.size = '2G'"], ["vfs.size=2G"]),
        ((), "overlay.size=5G", ["options.overlay.inodes = '6'"], ["fuse.size=5G"]),
        ((), " OVERLAY2.Size = 5 GiB ,.inodes=07", [], ["fuse.size=5 GiB", "fuse.inodes=07"]),
        ((), "size=1g,fuse.size=1.5t", [], ["fuse.size=1.5t"]),
        ((), "", ["options.size = '1G'"], []),
        (["size=4k"], "inodes=9", ["options.size = '1G'"], ["fuse.size=4k"]),
        ([""], "inodes=9", ["options.size = '1G'"], []),
        ((), "overlay.mount_program=/absent,ignore_chown_errors=1,overlay.mountopt=,force_mask=0700", [], []),
        ((), "overlay.override_kernel_check=true,use_composefs=F,overlay.sync=none", [], []),
    ],
)
def test_options_of_a_flag_replace_those_of_the_variable_and_these_those_of_files(
    home: Home, flags, variable, lines, expected
):
    home.write("[storage]", *lines)
    if variable is not None:
        home.environment({"STORAGE_OPTS": variable})
    assert config.options(storage_opts=flags).graph_options == tuple(expected)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("overlay.foo=1", "unknown option overlay.foo of the driver fuse"),
        ("foo=1", "unknown option foo of the driver fuse"),
        ("vfs.size=1", "unknown option vfs.size of the driver fuse"),
        ("zfs.fsname=tank", "unknown option zfs.fsname of the driver fuse"),
        ("overlay.overlay.size=1", "unknown option overlay.overlay.size of the driver fuse"),
        ("=1", "unknown option"),
        ("overlay.size", "overlay.size is not of the form KEY=VALUE"),
        ("size=1,", "an empty option is not of the form KEY=VALUE"),
        ("overlay.size=", "overlay.size must be a size"),
        ("size=-1", "size must be a size"),
        ("size=1Q", "size must be a size, as in 10G, not 1Q"),
        ("inodes=many", "inodes must be a number, not many"),
        ("inodes=\u0661", "inodes must be a number"),
        ("overlay.ignore_chown_errors=on", "must be true or false, not on"),
        ("force_mask=world", "must be shared, private or an octal mode, not world"),
        ("force_mask=10000", "must be shared, private or an octal mode, not 10000"),
        ("imagestore=images", "imagestore must be an absolute path, not images"),
        ("imagestore=/absent", "/absent: there is no such directory"),
    ],
)
@pytest.mark.parametrize("way", ["STORAGE_OPTS", "--storage-opt"])
def test_a_wrong_option_is_an_error(home: Home, option, reason, way):
    flags = option.split(",") if way == "--storage-opt" else ()
    home.environment({} if flags else {way: option})
    with pytest.raises(InvalidOption) as caught:
        config.options(storage_opts=flags)
    assert caught.value.source == way
    assert reason in caught.value.reason
    assert isinstance(caught.value, ValueError)


def test_options_of_the_other_driver_are_unknown(home: Home):
    with pytest.raises(InvalidOption, match=r"unknown option overlay\.size of the driver vfs"):
        config.options(driver="vfs", storage_opts=["overlay.size=1"])
    assert config.options(driver="vfs", storage_opts=["vfs.size=1"]).graph_options == ("vfs.size=1",)


def test_an_ignored_option_is_logged_once_with_its_reason(home: Home, caplog):
    caplog.set_level(logging.INFO)
    home.environment({"STORAGE_OPTS": "overlay.force_mask=shared,force_mask=private,size=1G"})
    assert config.options().graph_options == ("fuse.size=1G",)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "STORAGE_OPTS: force_mask is ignored: the mode of the store's directory"
    )


# A short alphabet: to make one of all letters takes hypothesis a second.
WORDS = st.text("overlay.sizenodfusvm=1Gk,/$ \n\0\x1b\u0661\udcff", max_size=24)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS | WORDS.map("imagestore=/{}".format) | WORDS.map("size={}".format), max_size=3))
def test_no_option_makes_another_error(home: Home, flags):
    try:
        said = str(config.options(storage_opts=flags).graph_options)
    except InvalidOption as exc:
        said = str(exc)
    assert said.isprintable()


# -- other stores -------------------------------------------------------------------------------------


def stores(home: Home, *names: str) -> None:
    for name in names:
        (home.directory / name).mkdir()


def test_other_stores_of_flags_variables_and_files_add_up_in_this_order(home: Home):
    stores(home, "flag", "variable", "file", "named", "both")
    home.write("[storage.options]", "additionalimagestores = ['$HOME/file', '$HOME/both']")
    home.environment({"FUSESTORE_ADDITIONAL_STORES": "~/variable:~/both:"})
    found = config.options(additional_stores=[home.path("~/flag")]).additional_stores
    assert [path.name for path in found] == ["flag", "variable", "both", "file"]
    assert all(path.parent == home.directory for path in found)


@pytest.mark.parametrize("variable", ["CONTAINERS_STORAGE_CONF", None])
def test_stores_in_a_file_of_podmans_are_ours_only_if_it_is_named(home: Home, variable):
    stores(home, "shared")
    name = ".config/containers/storage.conf"
    home.write("[storage.options]", f"additionalimagestores = ['{home.directory}/shared']", name=name)
    home.environment({variable: f"~/{name}"} if variable else {})
    assert config.options().additional_stores == ((home.directory / "shared",) if variable else ())


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({"STORAGE_OPTS": ""}, (), []),
        ({"STORAGE_OPTS": "overlay.imagestore=~/a"}, (), ["a"]),
        ({"STORAGE_OPTS": ".imagestore=~/a,additionalimagestore=~/b"}, (), ["a", "b"]),
        ({}, ["overlay.imagestore=~/b,~/a"], ["b", "a"]),
        ({"STORAGE_OPTS": "imagestore=~/a"}, ["imagestore=~/b"], ["b"]),
        ({"STORAGE_OPTS": "imagestore=", "FUSESTORE_ADDITIONAL_STORES": "~/a"}, (), ["a"]),
    ],
)
def test_options_of_drivers_replace_the_stores_of_files(home: Home, environment, flags, expected):
    stores(home, "a", "b", "file")
    home.write("[storage.options]", "additionalimagestores = ['$HOME/file']")
    home.environment(environment)
    found = config.options(storage_opts=[home.path(flag) for flag in flags])
    assert [path.name for path in found.additional_stores] == expected
    assert found.graph_options == ()


@pytest.mark.parametrize(
    ("main", "more", "expected"),
    [
        ("'$HOME/a'", "'$HOME/b'", ["b"]),
        ("'$HOME/a'", "", []),
        ("'$HOME/a'", "'$HOME/b', {append = true}", ["a", "b"]),
        ("'$HOME/a', {append = true}", "'$HOME/b'", ["a", "b"]),
        ("'$HOME/a', {append = true}", "'$HOME/b', {append = false}", ["b"]),
    ],
)
def test_a_list_replaces_the_one_before_it_unless_it_is_appended(home: Home, main, more, expected):
    stores(home, "a", "b")
    home.write("[storage.options]", f"additionalimagestores = [{main}]")
    home.write("[storage.options]", f"additionalimagestores = [{more}]", name=f"{home.DROP_INS}/1.toml")
    assert [path.name for path in config.options().additional_stores] == expected


def test_a_store_is_not_an_additional_store_of_itself(home: Home):
    stores(home, "a", "own")
    (home.directory / "link").symlink_to("own")
    flags = [home.path(name) for name in ("~/link", "~/a", "~/own", "~/a")]
    options = config.options(home.path("~/own"), additional_stores=flags)
    assert options.additional_stores == (home.directory / "a",)


@pytest.mark.parametrize("way", ["--additional-store", "FUSESTORE_ADDITIONAL_STORES", "file"])
def test_another_store_must_be_a_directory(home: Home, way):
    path = home.write("")
    source = way
    if way == "file":
        source = str(home.write("[storage.options]", f"additionalimagestores = ['{path}']"))
    home.environment({way: str(path)} if way.startswith("FUSESTORE") else {})
    with pytest.raises(InvalidOption) as caught:
        config.options(additional_stores=[str(path)] if way.startswith("--") else ())
    assert caught.value.source == source
    assert caught.value.reason == f"{path}: there is no such directory to take images from"


@pytest.mark.parametrize("way", ["flag", "variable", "option", "file"])
def test_podman_names_podmans_store_wherever_stores_are_named(home: Home, way):
    store = home.graphroot(".local/share/containers/storage")
    environments = {
        "variable": {"FUSESTORE_ADDITIONAL_STORES": "podman"},
        "option": {"STORAGE_OPTS": "imagestore=podman"},
    }
    home.environment(environments.get(way, {}))
    if way == "file":
        home.write("[storage.options]", "additionalimagestores = ['podman']")
    options = config.options(additional_stores=["podman"] if way == "flag" else ())
    assert options.additional_stores == (store,)


def test_a_directory_called_podman_is_named_with_a_slash(home: Home, monkeypatch):
    monkeypatch.chdir(home.directory)
    stores(home, "podman")
    options = config.options(additional_stores=["./podman"])
    assert options.additional_stores == (home.directory / "podman",)


# -- id maps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "uids", "gids"),
    [
        ([], (), ()),
        (["remap-uids = ''"], (), ()),
        (["remap-uids = '0:1668442479:65536'"], ((0, 1668442479, 65536),), ()),
        (["remap-gids = '0:1000:1, 1:100000:65536'"], (), ((0, 1000, 1), (1, 100000, 65536))),
        (["remap-uids = '0:1:2'", "remap-gids = '3:4:5'"], ((0, 1, 2),), ((3, 4, 5),)),
    ],
)
def test_id_maps_are_ranges_of_container_host_and_size(home: Home, lines, uids, gids):
    home.write("[storage.options]", *lines)
    options = config.options()
    assert (options.uid_map, options.gid_map) == (uids, gids)
    assert options.run_root.name == f"fusestore-{os.getuid()}"
