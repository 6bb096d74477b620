"""What containers/storage tests of its options (seeds.md 4.5), by the names of its tests.

Upstream: types/options_test.go and pkg/config/config_test.go; the option keys are those of overlay's
parseOptions.  Where we differ on purpose, the comment says why.
"""

import logging

import pytest
from support.configuration import Home

from fusestore import config
from fusestore.errors import InvalidOption, NotSupported


def podmans(home: Home, *lines: str) -> str:
    """Write a storage.conf that CONTAINERS_STORAGE_CONF names; its path."""
    home.environment({"CONTAINERS_STORAGE_CONF": "~/storage.conf"})
    return str(home.write(*lines, name="storage.conf"))


# A driver in podman's file that we do not have falls back, as there for a user without root.
@pytest.mark.parametrize(
    ("driver", "ours"),
    [
        ("", "fuse"),
        ("overlay", "fuse"),
        ("overlay2", "fuse"),
        ("vfs", "vfs"),
        ("aufs", "fuse"),
        ("zfs", "fuse"),
        ("devmapper", "fuse"),
        ("btrfs", "fuse"),  # upstream has btrfs without root
    ],
)
def test_get_rootless_storage_opts_system_driver(home: Home, driver, ours):
    podmans(home, "[storage]", f"driver = '{driver}'")
    assert config.options().graph_driver_name == ours


# STORAGE_DRIVER is taken at its word.  Upstream then fails when it opens the store.
@pytest.mark.parametrize("driver", ["btrfs", "zfs"])
def test_get_rootless_storage_opts_storage_driver(home: Home, driver):
    podmans(home, "[storage]", "driver = 'vfs'")
    home.environment({"STORAGE_DRIVER": driver})
    with pytest.raises(NotSupported, match=f"STORAGE_DRIVER: there is no driver {driver}"):
        config.options()


# There for rootless_storage_path, which we do not have: graphroot is the user's own.
def test_get_rootless_storage_opts_2_expands_home_and_uid(home: Home):
    home.environment({"_CONTAINERS_ROOTLESS_UID": "2000"})
    home.write("[storage]", "graphroot = '/$HOME/$UID/containers/storage'")
    assert config.options().graph_root == home.directory / "2000/containers/storage"


def test_reload_configuration_file_broken(home: Home, caplog):
    lines = ["foo = 'bar'", "[storage]", "runroot = '/run/containers/test'"]
    path = home.write(*lines, "[storage.options]", "graphroot = '/var/lib'")
    assert str(config.options().run_root) == "/run/containers/test"
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: unknown keys: foo, storage.options.graphroot"
    ]


# Upstream prints the error and goes on with its defaults.
def test_reload_configuration_file_that_is_not_toml(home: Home):
    path = podmans(home, "[storage]", "driver = ")
    with pytest.raises(InvalidOption) as caught:
        config.options()
    assert str(caught.value) == f"{path}: not TOML: Invalid value (at line 2, column 10)"


@pytest.mark.parametrize("names", [(), ("storage1",), ("storage1", "storage2")])
def test_reload_configuration_file_imagestore(home: Home, names):
    paths = [home.directory / name for name in names]
    for path in paths:
        path.mkdir()
    podmans(home, "[storage.options]", f"additionalimagestores = {[str(path) for path in paths]}")
    assert list(config.options().additional_stores) == paths


def test_storage_opts_replaces_the_options_of_the_file(home: Home):
    podmans(home, "[storage]", "[storage.options.overlay]", "size = '1G'", "inodes = '5'")
    assert config.options().graph_options == ("fuse.size=1G", "fuse.inodes=5")
    home.environment({"STORAGE_OPTS": "overlay.size=2G"})
    assert config.options().graph_options == ("fuse.size=2G",)
    home.environment({"STORAGE_OPTS": ""})
    assert config.options().graph_options == ()


# GetGraphDriverOptions.  What upstream hands to its driver and we do not is in the log instead.
@pytest.mark.parametrize(
    ("driver", "lines", "said"),
    [
        ("overlay", [], []),
        ("overlay", ["vfs.ignore_chown_errors = 'true'"], []),
        ("overlay", ["overlay.ignore_chown_errors = 'true'"], ["ignore_chown_errors"]),
        ("overlay", ["overlay.ignore_chown_errors = 'false'"], ["ignore_chown_errors"]),
        ("overlay", ["ignore_chown_errors = 'true'"], ["ignore_chown_errors"]),
        ("overlay", ["mountopt = 'foobar'"], ["mountopt"]),
        ("overlay", ["mountopt = 'foobar'", "overlay.mountopt = 'nodev'"], ["mountopt"]),
        ("overlay", ["mount_program = '/usr/bin/root_overlay'"], ["mount_program"]),
        ("overlay", ["zfs.mountopt = 'nodev'"], ["zfs"]),
        ("overlay", ["size = '200'"], "size=200"),
        ("overlay", ["size = '200'", "overlay.size = '100'"], "size=100"),
        ("overlay", ["size = '200'", "zfs.size = '100'"], "size=200"),
        ("vfs", ["overlay.ignore_chown_errors = 'true'"], []),
        ("vfs", ["vfs.ignore_chown_errors = 'true'"], ["ignore_chown_errors"]),
        ("vfs", ["ignore_chown_errors = 'true'"], ["ignore_chown_errors"]),
        ("vfs", ["overlay.size = '100'"], []),
    ],
)
def test_driver_options_of_files(home: Home, caplog, driver, lines, said):
    caplog.set_level(logging.INFO)
    podmans(home, "[storage]", f"driver = '{driver}'", "[storage.options]", *lines)
    options = config.options()
    if isinstance(said, str):
        assert options.graph_options == (f"{options.graph_driver_name}.{said}",)
    else:
        assert options.graph_options == ()
        assert [word for word in said if f"{word} is ignored" in caplog.text] == [
            word for word in said if word != "zfs"
        ]
        assert len(caplog.records) == len(said)


# parseOptions.  The prefixes are all the driver's; others are unknown, with upstream's words.
@pytest.mark.parametrize("prefix", ["overlay.", "overlay2.", ".", "", "fuse."])
def test_parse_options_prefixes(home: Home, prefix):
    home.environment({"STORAGE_OPTS": f"{prefix}size=10G"})
    assert config.options().graph_options == ("fuse.size=10G",)
    home.environment({"STORAGE_OPTS": f"{prefix}unheard=1"})
    with pytest.raises(InvalidOption, match=f"unknown option {prefix}unheard"):
        config.options()


@pytest.mark.parametrize(
    "size", ["32", "32b", "32B", "32k", "32K", "32kb", "32Kb", "32Mb", "32Gb", "32Tb", "32Pb"]
)
@pytest.mark.parametrize("form", ["{}", " {} "])
def test_parse_options_sizes(home: Home, size, form):
    assert config.options(storage_opts=[f"size={form.format(size)}"]).graph_options == (f"fuse.size={size}",)


# Go's strconv.ParseBool.
@pytest.mark.parametrize(
    "word", ["1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"]
)
def test_parse_options_booleans(home: Home, caplog, word):
    caplog.set_level(logging.INFO)
    assert config.options(storage_opts=[f"overlay.skip_mount_home={word}"]).graph_options == ()
    assert "skip_mount_home is ignored" in caplog.text
