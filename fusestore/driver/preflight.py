"""What a machine must offer before we can mount, checked one thing at a time, each with its remedy.

libfuse reports nine different troubles with one sentence, so we look for ourselves: before a mount fails this
is ``fusestore doctor``, afterwards it is where `fusestore.driver.mounter` finds the reason.

There are two ways to mount.  Whoever has CAP_SYS_ADMIN (root, or root of a user namespace with its own mount
namespace) calls mount(2).  Everybody else needs the setuid program ``fusermount3``.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from fusestore.syscalls import is_admin, may_mount

DEVICE = "/dev/fuse"
_DEVICE_NUMBER = os.makedev(10, 229)
# libfuse's order: the distribution's own first.  Runner images have shipped another, not setuid, on PATH.
_PLACES = ("/usr/bin/fusermount3", "/bin/fusermount3")
_CAP_SYS_ADMIN = 1 << 21
_APPARMOR_PROFILE = Path("/etc/apparmor.d/fusermount3")
# Where Ubuntu's AppArmor profile (24.10 and later) lets fusermount3 mount, besides the user's own places.
APPARMOR_PLACES = ("/tmp", "/mnt", "/media")

_INSTALL = "run: sudo apt install fuse3"
_WITHOUT_FUSE = "without FUSE these still work: fusestore ls, cat, inspect"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.  `ok` None is a remark: nothing is wrong, but somebody may wonder."""

    ok: bool | None
    finding: str
    remedy: str = ""


def fusermount() -> str | None:
    """The fusermount3 to use."""
    import shutil  # 1 ms that whoever mounts nothing need not spend

    return next((place for place in _PLACES if os.path.exists(place)), None) or shutil.which("fusermount3")


def device() -> Check:
    """/dev/fuse exists, is the FUSE device, and may be opened."""
    try:
        st = os.stat(DEVICE)
    except FileNotFoundError:
        return Check(False, f"{DEVICE} is missing", _missing_device())
    if not stat.S_ISCHR(st.st_mode) or st.st_rdev != _DEVICE_NUMBER:
        remedy = "as root: rm -f /dev/fuse && mknod -m 666 /dev/fuse c 10 229"
        return Check(False, f"{DEVICE} is not the FUSE device (character 10:229)", remedy)
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return Check(False, f"{DEVICE} cannot be opened: {exc.strerror}", _closed_device(exc))
    return Check(True, f"{DEVICE} can be opened")


def _missing_device() -> str:
    if _in_container():
        return "start the container with --device /dev/fuse"
    return "run: sudo modprobe fuse"


def _closed_device(exc: OSError) -> str:
    if exc.errno == errno.EACCES:
        return f"make it open to all, as distributions do: sudo chmod 0666 {DEVICE}"
    if exc.errno == errno.EPERM:
        return (
            "the container's device cgroup refuses it: start it with --device /dev/fuse, "
            "on Kubernetes use a FUSE device plugin"
        )
    return "the kernel has no FUSE: sudo modprobe fuse"


def _in_container() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")


def kernel() -> Check:
    """The kernel knows the filesystem type."""
    with open("/proc/filesystems", encoding="ascii") as lines:
        if any(line.split()[-1] == "fuse" for line in lines):
            return Check(True, "the kernel has FUSE")
    return Check(False, "the kernel has no FUSE", "run: sudo modprobe fuse")


def helper() -> Check:
    """A way to mount: our own capability, or a fusermount3 that is really setuid root."""
    if may_mount():
        return Check(True, "mount(2) is allowed here (CAP_SYS_ADMIN)")
    if is_admin():
        remedy = "in a user namespace of your own, get a mount namespace too: unshare -Urm"
        return Check(False, "the mount namespace here belongs to another user namespace", remedy)
    if os.geteuid() == 0:
        remedy = (
            "as root of a container: start it with --cap-add SYS_ADMIN --device /dev/fuse "
            "--security-opt apparmor=unconfined"
        )
        return Check(False, "this root lacks CAP_SYS_ADMIN", remedy)
    program = fusermount()
    if program is None:
        return Check(False, "fusermount3 is not installed", _INSTALL)
    st = os.stat(program)
    if not st.st_mode & stat.S_ISUID or st.st_uid != 0:
        found = f"{program} has mode {st.st_mode & 0o7777:04o} and owner {st.st_uid}, not 4755 and root"
        return Check(False, found, f"run: sudo chown root {program} && sudo chmod 4755 {program}")
    if not os.access(program, os.X_OK):
        return Check(False, f"{program} may not be executed by you", f"run: sudo chmod 4755 {program}")
    if os.statvfs(program).f_flag & os.ST_NOSUID:
        return Check(False, f"{program} is on a filesystem mounted nosuid", "mount that filesystem with suid")
    return Check(True, f"{program} is setuid root")


def privileges() -> Check:
    """Nothing keeps setuid programs from working."""
    status = _status()
    if may_mount():
        return Check(True, "privileges are as they must be")
    if status.get("NoNewPrivs") == "1":
        remedy = (
            "this process was started with no_new_privs (systemd NoNewPrivileges, docker --security-opt "
            "no-new-privileges, a sandbox); start it without, or try: unshare -Urm"
        )
        return Check(False, "setuid programs are disabled for this process", remedy)
    if not int(status.get("CapBnd", "0"), 16) & _CAP_SYS_ADMIN:
        remedy = "start the container with --cap-add SYS_ADMIN"
        return Check(False, "CAP_SYS_ADMIN is not in the bounding set", remedy)
    return Check(True, "setuid programs work")


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="ascii") as lines:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mountpoints(place: Path) -> Check:
    """Mountpoints can be made where they go by default."""
    # os.path, because Path.exists() raises where we may not even look.
    existing = next(p for p in (place, *place.parents) if os.path.exists(p))
    if not os.access(existing, os.W_OK):
        return Check(
            False, f"{place} cannot be written", "set --runroot or FUSESTORE_RUNROOT to a place of yours"
        )
    if _APPARMOR_PROFILE.exists() and not _apparmor_allows(place):
        remedy = "mount below your home, /tmp, /mnt, /media or $XDG_RUNTIME_DIR"
        return Check(None, f"AppArmor confines fusermount3, and {place} is outside what it allows", remedy)
    return Check(True, f"mountpoints go to {place}")


def _apparmor_allows(place: Path) -> bool:
    allowed = [*APPARMOR_PLACES, os.path.expanduser("~"), os.environ.get("XDG_RUNTIME_DIR", "/run/user")]
    return any(place.is_relative_to(root) for root in allowed)


def allow_other() -> Check:
    """A remark on --allow-other."""
    try:
        lines = Path("/etc/fuse.conf").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    if may_mount() or any(line.strip() == "user_allow_other" for line in lines):
        return Check(True, "--allow-other may be used")
    remedy = "rarely needed; if it is: echo user_allow_other | sudo tee -a /etc/fuse.conf"
    return Check(None, "--allow-other may not be used", remedy)


def namespaces() -> Check:
    """A remark on user namespaces, the second way to mount."""
    try:
        limit = int(Path("/proc/sys/user/max_user_namespaces").read_text())
        restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        closed = restricted.exists() and restricted.read_text().strip() != "0"
    except OSError:
        limit, closed = 0, False
    if limit and not closed:
        return Check(True, "user namespaces may be used (unshare -Urm)")
    return Check(None, "user namespaces are restricted here", "not needed for mounting through fusermount3")


def required(place: Path) -> list[Check]:
    """Everything that a mount below `place` depends on."""
    return [kernel(), device(), helper(), privileges(), mountpoints(place)]


def why_not(place: Path) -> Check | None:
    """The first reason why mounting cannot work here; None when there is none to be seen."""
    return next((check for check in required(place) if check.ok is False), None)


def advice(check: Check) -> str:
    """The remedy of a failed check, and what works all the same."""
    return f"{check.remedy} ({_WITHOUT_FUSE})"
