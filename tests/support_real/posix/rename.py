"""rename and renameat2: every type over every other, directories with what is in them, and who may."""

import errno
import itertools
import os

from support_real.posix.case import (
    KINDS,
    NOT_DIRS,
    OTHER,
    OWNER,
    ROOT,
    acting,
    at,
    attributes,
    each,
    equal,
    fails,
    gone,
    hold,
    kind_of,
    libc,
    make,
    marks,
    mode,
    read,
    remove,
    write,
)

USERS = {"root": ROOT, "owner": OWNER}
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
HERE = -100


def rename2(old, new, flags):
    libc("renameat2", HERE, os.fsencode(old), HERE, os.fsencode(new), flags)


# Both give a new name to what is there.
WAYS = {"": os.rename, "noreplace": lambda old, new: rename2(old, new, NOREPLACE)}


def _wrong(kind, over):
    """What comes of renaming one kind over another."""
    if kind == over == "dir" or "dir" not in (kind, over):
        return 0
    return errno.ENOTDIR if kind == "dir" else errno.EISDIR


@each(KINDS, {"here": ("new", ROOT), "elsewhere": ("dir/new", OWNER)}, WAYS)
def a_new_name(kind, new, user, way):
    make("dir", "dir")
    make(kind, "it")
    yield
    inode, before = at("it").st_ino, attributes("it", "ctime")
    with marks({".": "mc"} if new == "new" else {".": "mc", "dir": "mc"}), acting(user):
        way("it", new)
    gone("it")
    equal((at(new).st_ino, attributes(new, "ctime")), (inode, before))
    equal(os.path.basename(new) in os.listdir(os.path.dirname(new) or "."), True)
    fails(errno.ENOENT, way, "it", "newer")


@each(KINDS, KINDS)
def over_what_is_there(kind, over):
    yield from _over(kind, over)


@each(["file", "dir", "symlink"], ["file", "dir", "symlink"], ["new source", "new target"])
def over_what_is_there_with_one_of_them_new(kind, over, later):
    yield from _over(kind, over, later)


def _over(kind, over, later=None):
    if later != "new source":
        make(kind, "it", 0o751)
    if later != "new target":
        make(over, "there")
    yield
    if later == "new source":
        make(kind, "it", 0o751)
    if later == "new target":
        make(over, "there")
    if number := _wrong(kind, over):
        fails(number, os.rename, "it", "there")
        return
    before = attributes("it", "ctime")
    with marks({".": "mc"}):
        os.rename("it", "there")
    gone("it")
    equal(os.listdir(), ["there"])
    equal(attributes("there", "ctime"), before)
    remove(kind, "there")
    gone("there")


@each(KINDS, KINDS, situations=("lower", "copied"))
def over_a_name_that_was_deleted(kind, was):
    make(kind, "it")
    make(was, "there")
    yield
    remove(was, "there")
    rename2("it", "there", NOREPLACE)
    equal((os.listdir(), kind_of("there")), (["there"], kind))
    make(was, "it")
    equal(kind_of("it"), was)


@each(KINDS)
def over_a_full_directory(kind):
    make("dir", "it")
    make("dir", "there")
    make(kind, "there/below")
    make("file", "it/file")
    yield
    fails(errno.ENOTEMPTY, os.rename, "it", "there")
    remove(kind, "there/below")
    os.rename("it", "there")
    equal((os.listdir(), os.listdir("there")), (["there"], ["file"]))
    equal(read("there/file"), b"content")


@each(KINDS)
def not_over_what_is_there(kind):
    make(kind, "it")
    for there in KINDS:
        make(there, there)
    yield
    for there in (*KINDS, "it"):
        fails(errno.EEXIST, rename2, "it", there, NOREPLACE)


@each(KINDS, KINDS, situations=("lower", "copied"))
def exchanged(kind, other):
    where = "." if kind == other else "dir"
    make("dir", "dir")
    make(kind, "it", 0o751)
    make(other, f"{where}/other", 0o640)
    if kind == "dir":
        make("file", "it/below")
    yield
    one, two = attributes("it", "ctime"), attributes(f"{where}/other", "ctime")
    inodes = at("it").st_ino, at(f"{where}/other").st_ino
    with marks({".": "mc", where: "mc"}):
        rename2("it", f"{where}/other", EXCHANGE)
    equal((attributes(f"{where}/other", "ctime"), attributes("it", "ctime")), (one, two))
    equal((at(f"{where}/other").st_ino, at("it").st_ino), inodes)
    if kind == "dir":
        equal(read(f"{where}/other/below"), b"content")
    rename2("it", f"{where}/other", EXCHANGE)
    equal((attributes("it", "ctime"), attributes(f"{where}/other", "ctime")), (one, two))


@each(KINDS)
def exchanged_with_nothing(kind):
    make(kind, "it")
    yield
    fails(errno.ENOENT, rename2, "it", "absent", EXCHANGE)
    fails(errno.ENOENT, rename2, "absent", "it", EXCHANGE)


@each(KINDS, root=True)
def no_such_flags(kind):
    """Whiteouts are the overlay's own affair."""
    make(kind, "it")
    yield
    for flags in (WHITEOUT, EXCHANGE | NOREPLACE, EXCHANGE | WHITEOUT, 8):
        fails(errno.EINVAL, rename2, "it", "new", flags)


@each(KINDS, USERS, situations=("upper", "lower"))
def over_itself(kind, user):
    make(kind, "it")
    yield
    with marks({"it": "", ".": ""}), acting(user):
        os.rename("it", "it")
        os.rename("it", "./it")
    equal(os.listdir(), ["it"])


@each(NOT_DIRS)
def over_another_name_of_itself(kind):
    """Nothing happens, and both names stay."""
    make("dir", "dir")
    make(kind, "it")
    for name in ("too", "dir/third"):
        os.link("it", name, follow_symlinks=False)
    yield
    with marks({"it": "", ".": "", "dir": ""}):
        os.rename("it", "too")
        os.rename("too", "dir/third")
    equal([at(name).st_nlink for name in ("it", "too", "dir/third")], [3, 3, 3])


BELOW_ITSELF = {
    "its child": ("dir", "dir/new", errno.EINVAL),
    "its grandchild": ("dir", "dir/below/new", errno.EINVAL),
    "over its child": ("dir", "dir/below", errno.EINVAL),
    "over its parent": ("dir/below", "dir", errno.ENOTEMPTY),
    "over its grandparent": ("dir/below/it", "dir", errno.ENOTEMPTY),
}


@each(BELOW_ITSELF, USERS, situations=("lower",))
def a_directory_below_itself(old, new, number, user):
    make("dir", "dir")
    make("dir", "dir/below")
    make("dir", "dir/below/it")
    yield
    fails(number, os.rename, old, new, by=user)
    if new.startswith(old) and new != "dir/below":
        return
    fails(errno.EINVAL if number == errno.ENOTEMPTY else number, rename2, old, new, EXCHANGE, by=user)


def _tree(top):
    make("dir", top)
    make("dir", f"{top}/below")
    make("file", f"{top}/file")
    make("file", f"{top}/below/file", content=b"below")
    make("file", f"{top}/below/deleted")
    for kind in KINDS:
        make(kind, f"{top}/below/{kind}-it")


@each({"here": "new", "elsewhere": "dir/new"}, USERS)
def a_directory_takes_its_content_along(new, user):
    make("dir", "dir")
    _tree("it")
    yield
    os.unlink("it/below/deleted")
    make("file", "it/below/made", content=b"made")
    reader = hold("it/below/file", os.O_RDONLY)
    with acting(user):
        os.rename("it", new)
    gone("it")
    equal(sorted(os.listdir(new)), ["below", "file"])
    equal(sorted(os.listdir(f"{new}/below")), sorted(["file", "made", *(f"{kind}-it" for kind in KINDS)]))
    equal({kind: kind_of(f"{new}/below/{kind}-it") for kind in KINDS}, {kind: kind for kind in KINDS})
    write(f"{new}/below/file", b"BE")
    equal((read(f"{new}/below/file"), os.pread(reader, 10, 0)), (b"BElow", b"BElow"))
    equal(at(f"{new}/..").st_ino, at(os.path.dirname(new) or ".").st_ino)
    os.mkdir("it")
    equal(os.listdir("it"), [])
    os.rename(new, "it")
    equal((read("it/below/made"), sorted(os.listdir("it"))), (b"made", ["below", "file"]))


@each(["a b c", "a b a", "a b c a b c"])
def again_and_again(names):
    names = names.split()
    _tree(names[0])
    yield
    os.unlink(f"{names[0]}/below/deleted")
    for number, (old, new) in enumerate(itertools.pairwise(names)):
        os.rename(old, new)
        gone(old)
        make("file", f"{new}/below/{number}")
    equal(os.listdir(), [new])
    made = [str(number) for number in range(len(names) - 1)]
    equal(sorted(os.listdir(f"{new}/below")), sorted(["file", *made, *(f"{kind}-it" for kind in KINDS)]))
    equal(read(f"{new}/below/file"), b"below")


@each()
def directories_change_places_by_hand():
    _tree("one")
    _tree("two")
    yield
    write("one/file", b"ONE")
    os.rename("one", "tmp")
    os.rename("two", "one")
    os.rename("tmp", "two")
    equal((read("two/file"), read("one/file"), read("one/below/file")), (b"ONEtent", b"content", b"below"))
    os.rename("one/below", "two/moved")
    equal(sorted(os.listdir("two")), ["below", "file", "moved"])
    os.rename("two/below/file", "one/file")
    equal((os.listdir("one"), read("one/file")), (["file"], b"below"))


@each()
def a_file_replaced_while_it_is_open():
    """As every editor does when it saves."""
    make("file", "it", 0o640)
    yield
    reader = hold("it", os.O_RDONLY)
    for number in range(3):
        make("file", "new", 0o640, content=b"%d" % number)
        os.rename("new", "it")
        equal((read("it"), os.pread(reader, 10, 0)), (b"%d" % number, b"content"))
    equal((os.listdir(), mode("it")), (["it"], 0o640))


CLOSED = {
    "source": (0o555, 0o755),
    "target": (0o755, 0o555),
    "source unsearchable": (0o666, 0o755),
    "target unsearchable": (0o755, 0o666),
}


@each(CLOSED, KINDS, situations=("lower",))
def closed_directories(source, target, kind):
    make("dir", "one")
    make("dir", "two")
    make(kind, "one/it", 0o777)
    os.chmod("one", source)
    os.chmod("two", target)
    yield
    fails(errno.EACCES, os.rename, "one/it", "two/new", by=OWNER)
    if source == 0o755:
        with acting(OWNER):
            os.rename("one/it", "one/new")
        equal(os.listdir("one"), ["new"])
    else:
        os.rename("one/it", "two/new")
        equal((os.listdir("one"), os.listdir("two")), ([], ["new"]))


@each({"unwritable": 0o555, "closed": 0o000})
def a_directory_gets_another_parent_only_by_who_may_write_it(closed):
    """Its ".." is written; within one directory that is not so."""
    make("dir", "it", closed)
    make("dir", "other")
    yield
    fails(errno.EACCES, os.rename, "it", "other/new", by=OWNER)
    with acting(OWNER):
        os.rename("it", "new")
    os.rename("new", "other/new")
    equal(mode("other/new"), closed)


@each(KINDS, root=True)
def out_of_and_into_a_sticky_directory(kind):
    make("dir", "sticky", 0o1777, ROOT)
    make("dir", "open", 0o777, ROOT)
    for name in ("sticky/it", "open/it"):
        make(kind, name, 0o777)
    yield
    fails(errno.EPERM, os.rename, "sticky/it", "open/new", by=OTHER)
    fails(errno.EPERM, os.rename, "open/it", "sticky/it", by=OTHER)
    with acting(OTHER):
        os.rename("open/it", "sticky/new")
    fails(errno.EPERM, os.rename, "sticky/new", "open/it", by=OTHER)
    fails(errno.EPERM, rename2, "sticky/new", "sticky/it", EXCHANGE, by=OTHER)
    with acting(OWNER):
        os.rename("sticky/new", "open/it")
    equal((os.listdir("sticky"), os.listdir("open")), (["it"], ["it"]))
