"""Where podman's stores are found, by the rules of both generations of podman; podman itself is not on PATH.

All is real but the files of the system, which only root can write: those are in
tests/t5_real/test_config_of_podman.py, with podman.  A graphroot is what containers/storage begins with.
"""

import pytest
from support.configuration import Home

from fusestore import podman
from fusestore.errors import InvalidOption

DEFAULT = ".local/share/containers/storage"
USERS = ".config/containers/storage.conf"


@pytest.fixture
def home(home: Home) -> Home:
    home.environment({"PATH": "~/empty"})
    return home


def relative(home: Home, found) -> list[str]:
    return [str(path.relative_to(home.directory)) for path in found]


def test_a_graphroot_is_known_by_its_lock_or_its_images(home: Home):
    assert podman.is_graphroot(home.graphroot("overlay"))
    assert podman.is_graphroot(home.graphroot("vfs", "vfs"))
    assert podman.is_graphroot(home.write(name="locked/storage.lock").parent)
    assert not podman.is_graphroot(home.write(name="other/store.db").parent)
    assert not podman.is_graphroot(home.directory / "absent")


@pytest.mark.parametrize(
    ("files", "environment", "exist", "found"),
    [
        # The default, wherever it is.
        ({}, {}, [DEFAULT], [DEFAULT]),
        ({}, {"XDG_DATA_HOME": "~/data"}, [DEFAULT, "data/containers/storage"], ["data/containers/storage"]),
        # The user's file, and what may stand in its place.
        ({USERS: "graphroot = '$HOME/a'"}, {}, ["a"], ["a"]),
        ({USERS: "graphroot = ''"}, {}, ["a", DEFAULT], [DEFAULT]),
        ({USERS: "rootless_storage_path = '$HOME/a'"}, {}, ["a"], ["a"]),
        ({USERS: "graphroot = '/$HOME/b'\nrootless_storage_path = '$HOME/a'"}, {}, ["a", "b"], ["b"]),
        ({"x/containers/storage.conf": "graphroot = '$HOME/a'"}, {"XDG_CONFIG_HOME": "~/x"}, ["a"], ["a"]),
        ({"c": "graphroot = '$HOME/a'", USERS: "x"}, {"CONTAINERS_STORAGE_CONF": "~/c"}, ["a"], ["a"]),
        # From podman 6 on: files dropped in, the last one of a name, and the override.
        ({f"{USERS}.d/1.conf": "graphroot = '$HOME/a'"}, {}, ["a"], ["a"]),
        (
            {
                USERS: "graphroot = '/absent'",
                f"{USERS}.d/2.conf": "graphroot = '$HOME/b'",
                f"{USERS}.d/1.conf": "graphroot = '$HOME/a'",
                f"{USERS}.d/3.toml": "not TOML",
            },
            {},
            ["a", "b"],
            ["b"],
        ),
        ({"o": "graphroot = '$HOME/b'"}, {"CONTAINERS_STORAGE_CONF_OVERRIDE": "~/o"}, ["b"], ["b"]),
        # The generations differ, and both stores exist: the younger one's first.
        (
            {USERS: "graphroot = '$HOME/a'", f"{USERS}.d/1.conf": "graphroot = '$HOME/b'"},
            {},
            ["a", "b"],
            ["b", "a"],
        ),
        ({USERS: "graphroot = '$HOME/a'"}, {}, ["a", DEFAULT], ["a", DEFAULT]),
        # As root, or in a user namespace that is not podman's: what users have does not count.
        ({USERS: "rootless_storage_path = '$HOME/a'"}, {"_CONTAINERS_ROOTLESS_UID": "0"}, ["a", DEFAULT], []),
        ({USERS: "graphroot = '$HOME/a'"}, {"_CONTAINERS_ROOTLESS_UID": "0"}, ["a", DEFAULT], ["a"]),
        ({USERS: "graphroot = '$HOME/$UID'"}, {"_CONTAINERS_ROOTLESS_UID": "77"}, ["77"], ["77"]),
        ({USERS: "graphroot = '$HOME/$UID'"}, {"_CONTAINERS_ROOTLESS_UID": "x"}, ["x"], []),
    ],
)
def test_own_stores(home: Home, files, environment, exist, found):
    for name, text in files.items():
        home.write("[storage]", text, name=name)
    home.environment(environment)
    for name in exist:
        home.graphroot(name)
    assert relative(home, podman.graphroots()) == found
    if found:
        assert relative(home, podman.stores()) == found
    else:
        with pytest.raises(InvalidOption, match=r"podman: it has no store at .*; name the directory of one"):
            podman.stores()


def test_stores_that_podman_adds_to_its_own_come_behind_it(home: Home):
    for name in (DEFAULT, "images", "shared", "nfs"):
        home.graphroot(name)
    home.write(
        *("[storage]", "imagestore = '$HOME/images'", "[storage.options]"),
        "additionalimagestores = ['$HOME/shared', '/absent', '$HOME/shared']",
        name=USERS,
    )
    home.write(
        "storage.options.additionalimagestores = ['$HOME/nfs', {append = true}]", name=f"{USERS}.d/1.conf"
    )
    assert relative(home, podman.stores()) == [DEFAULT, "images", "shared", "nfs"]


def test_unknown_keys_of_podmans_are_podmans_affair(home: Home, caplog):
    home.graphroot(DEFAULT)
    home.write("[storage]", "new_in_podman_9 = true", name=USERS)
    assert relative(home, podman.stores()) == [DEFAULT]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[storage", "not TOML"),
        ("storage.graphroot = 3", "must be a string"),
        ("storage.graphroot = '$NOWHERE'", "not set"),
    ],
)
def test_a_broken_file_of_podmans_is_named(home: Home, text, reason):
    path = home.write(text, name=USERS)
    with pytest.raises(InvalidOption, match=reason) as caught:
        podman.stores()
    assert caught.value.source == str(path)


def test_a_closed_directory_holds_no_store(home: Home):
    home.graphroot(DEFAULT)
    closed = home.directory / ".local/share/containers"
    closed.chmod(0)
    try:
        assert podman.graphroots() == []
    finally:
        closed.chmod(0o700)


# -- asking podman ------------------------------------------------------------------------------------
# A program that is podman to us.  The real one is asked in tests/t5_real/test_config_of_podman.py.


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ('echo \'{"store": {"graphRoot": "\'$HOME/asked\'"}}\'', ["asked"]),
        ('echo \'{"store": {"graphRoot": "/absent"}}\'', ["a", DEFAULT]),
        ('echo \'{"store": {"graphRoot": 3}}\'', ["a", DEFAULT]),
        ("echo '[]'", ["a", DEFAULT]),
        ("echo podman", ["a", DEFAULT]),
        ('echo \'{"store": {"graphRoot": "\'$HOME/asked\'"}}\'; exit 125', ["a", DEFAULT]),
        ("kill -9 $$", ["a", DEFAULT]),
    ],
)
def test_of_several_stores_that_is_taken_which_podman_says(home: Home, script, found):
    for name in ("a", "asked", DEFAULT):
        home.graphroot(name)
    home.write("[storage]", "graphroot = '$HOME/a'", name=USERS)
    program = home.write(
        "#!/bin/sh", 'test "$*" = "--remote=false info --format json" || exit 1', script, name="bin/podman"
    )
    program.chmod(0o755)
    home.environment({"PATH": "~/bin:/usr/bin:/bin"})
    assert relative(home, podman.stores()) == found


def test_podman_is_not_asked_where_one_store_exists(home: Home):
    home.graphroot(DEFAULT)
    home.write("#!/bin/sh", 'echo asked >> "$HOME/asked"', name="bin/podman").chmod(0o755)
    home.environment({"PATH": "~/bin:/usr/bin:/bin"})
    assert relative(home, podman.stores()) == [DEFAULT]
    assert not (home.directory / "asked").exists()
    home.graphroot("a")
    home.write("[storage]", "graphroot = '$HOME/a'", name=USERS)
    podman.stores()
    assert (home.directory / "asked").exists()
