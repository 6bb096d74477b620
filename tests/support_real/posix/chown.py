"""chown, fchown, lchown: owner and group and what they take away; who may."""

import errno
import os

from support_real.posix.case import (
    KINDS,
    MEMBER,
    NOT_LINKS,
    OTHER,
    OWNER,
    ROOT,
    acting,
    attributes,
    each,
    equal,
    fails,
    hold,
    make,
    marks,
    mode,
    octal,
    owner,
    read,
)

# What is given, what comes of it for an object of OWNER's.
NUMBERS = {
    "both": (1, 2),
    "user": (1, -1),
    "group": (-1, 2),
    "root": (0, 0),
    "the same": tuple(OWNER[:2]),
    "large": (2**31, 2**31 + 1),
    "largest": (2**32 - 2, 2**32 - 2),
}
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


def _result(uid, gid):
    return tuple(before if new == -1 else new for new, before in zip((uid, gid), OWNER, strict=False))


@each(KINDS, root=True)
def sets_owner_and_group(kind):
    """And updates ctime, also where they were the same before, and changes nothing else."""
    make(kind, "it", 0o640)
    yield
    before = attributes("it", "ctime")
    for uid, gid in NUMBERS.values():
        with marks({"it": "c", ".": ""}):
            os.lchown("it", uid, gid)
        equal(owner("it"), _result(uid, gid))
        os.lchown("it", *OWNER[:2])
    equal(attributes("it", "ctime"), before)


@each(KINDS)
def neither_owner_nor_group(kind):
    make(kind, "it")
    yield
    before = attributes("it", "ctime")
    os.lchown("it", -1, -1)
    equal(attributes("it", "ctime"), before)


@each(KINDS)
def the_same_again(kind):
    """For the owner without privileges too."""
    make(kind, "it")
    yield
    before = attributes("it", "ctime")
    with acting(OWNER):
        os.lchown("it", *OWNER[:2])
        os.lchown("it", -1, OWNER.gid)
        os.lchown("it", OWNER.uid, -1)
    equal(attributes("it", "ctime"), before)


@each(["file", "dir"], root=True)
def of_what_is_open(kind):
    make(kind, "it")
    yield
    it = hold("it", os.O_RDONLY)
    for uid, gid in NUMBERS.values():
        with marks({it: "c", ".": ""}):
            os.fchown(it, uid, gid)
        equal((owner(it), owner("it")), (_result(uid, gid),) * 2)
        os.fchown(it, *OWNER[:2])


@each(NOT_LINKS, root=True)
def symlinks(kind):
    """chown follows them, lchown does not."""
    make(kind, "it")
    make("symlink", "link", content="it")
    yield
    with marks({"it": "c", "link": "", ".": ""}):
        os.chown("link", 1, 2)
    equal((owner("it"), owner("link")), ((1, 2), OWNER[:2]))
    with marks({"it": "", "link": "c", ".": ""}):
        os.lchown("link", 3, 4)
    equal((owner("it"), owner("link")), ((1, 2), (3, 4)))
    equal(os.readlink("link"), "it")


@each(KINDS, root=True)
def by_its_owner(kind):
    """The group may become another of the caller's own, and nothing else may change."""
    make(kind, "it")
    yield
    user = OWNER._replace(groups=(65531, 65530))
    for wanted in ((OTHER.uid, -1), (-1, OTHER.gid), (0, 0), (OTHER.uid, 65531), (OWNER.uid, 0)):
        fails(errno.EPERM, os.lchown, "it", *wanted, by=user)
    with acting(user):
        os.lchown("it", -1, 65530)
        equal(owner("it"), (OWNER.uid, 65530))
        os.lchown("it", OWNER.uid, 65531)
        equal(owner("it"), (OWNER.uid, 65531))
        os.lchown("it", -1, OWNER.gid)
    equal(owner("it"), OWNER[:2])


@each(KINDS, {"other": OTHER, "member": MEMBER}, root=True, situations=("lower",))
def by_somebody_else(kind, user):
    make(kind, "it", 0o777)
    yield
    for wanted in (user[:2], (-1, user.gid), (user.uid, -1), OWNER[:2]):
        fails(errno.EPERM, os.lchown, "it", *wanted, by=user)


@each(
    ["file", "char"],
    {"root": ROOT, "owner": OWNER._replace(groups=(65531,))},
    {"group": (-1, 65531), "same": OWNER[:2], "user": (65533, -1)},
    root=True,
)
def setuid_and_setgid_go(kind, user, uid, gid):
    """Whoever calls; a setgid bit without group execution stays while the caller is root or in the group."""
    make(kind, "it", 0o6755)
    yield
    for before in (0o6755, 0o6745, 0o4644, 0o7711):
        os.chown("it", *OWNER[:2])
        os.chmod("it", before)
        if user != ROOT and uid == OTHER.uid:
            fails(errno.EPERM, os.chown, "it", uid, gid, by=user)
            continue
        with acting(user):
            os.chown("it", uid, gid)
        equal(mode("it"), before & ~(0o6000 if before & 0o010 else 0o4000))


@each(octal(0o2755, 0o6777, 0o7755), {"root": ROOT, "owner": OWNER}, root=True)
def a_directory_keeps_its_bits(before, user):
    make("dir", "it", before)
    yield
    with acting(user._replace(groups=(65531,)) if user == OWNER else user):
        os.chown("it", -1, 65531)
    equal(mode("it"), before)


@each({"path": False, "descriptor": True}, octal(0o6755), root=True)
def of_what_is_open_clears_too(opened, before):
    make("file", "it", before)
    yield
    os.chown(hold("it", os.O_RDONLY) if opened else "it", 1, 1)
    equal(mode("it"), 0o755)


@each(root=True)
def capabilities_go():
    make("file", "it", 0o755)
    os.setxattr("it", "security.capability", CAPABILITY)
    yield
    equal(os.getxattr("it", "security.capability"), CAPABILITY)
    os.chown("it", 1, 1)
    fails(errno.ENODATA, os.getxattr, "it", "security.capability")


@each([kind for kind in KINDS if kind != "dir"], root=True)
def all_names_of_one_file(kind):
    make(kind, "it")
    os.link("it", "too", follow_symlinks=False)
    yield
    with marks({"it": "c", "too": "c", ".": ""}):
        os.lchown("it", 1, 2)
    equal((owner("it"), owner("too")), ((1, 2), (1, 2)))


@each(root=True)
def content_stays():
    make("file", "it", content=b"x" * 100_000)
    yield
    os.chown("it", 1, 2)
    equal(read("it"), b"x" * 100_000)


@each(NOT_LINKS, root=True)
def then_the_new_owner_is_the_owner(kind):
    make(kind, "it", 0o600)
    yield
    os.chown("it", *OTHER[:2])
    fails(errno.EPERM, os.chmod, "it", 0o777, by=OWNER)
    with acting(OTHER):
        os.chmod("it", 0o640)
    equal(mode("it"), 0o640)
