# What the scripts beside this file share; sourced, never run. It installs Debian packages, opens /dev/fuse, keeps a
# virtual environment in the user's cache, and gives root an unprivileged user to hand the work to.
# Whatever needs root runs through as_root: directly, or through sudo where that is possible.
# shellcheck shell=bash disable=SC2034  # the variables are for the scripts that source this
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")/.."

RUN=(fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv)
DEMO=(debootstrap gpgv umoci)
TEST=("${DEMO[@]}" acl attr buildah busybox-static crun fuse-overlayfs git libcap2-bin make patch podman rsync skopeo strace
    uidmap zstd)
BENCH=("${TEST[@]}")

test_user=fusestore-test
venv=${XDG_CACHE_HOME:-$HOME/.cache}/fusestore/venv

# Nothing here runs without an end. On a terminal the command keeps the foreground, for Ctrl-C and sudo's question.
limit=(timeout --kill-after=10)
if [[ -t 0 ]]; then limit+=(--foreground); fi

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

have_root() { ((EUID == 0)) || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; }; }

# The timeout goes inside sudo: from outside, a user cannot signal a process of root.
as_root() { if ((EUID == 0)); then "${limit[@]}" 1800 "$@"; else sudo -- "${limit[@]}" 1800 "$@"; fi; }

# install_packages NAME...: those that are missing; no network is touched when none is.
install_packages() {
    command -v dpkg-query >/dev/null || die "this needs Debian or Ubuntu, with the packages: $*"
    local name missing=()
    for name; do
        # shellcheck disable=SC2016  # dpkg-query's own variable
        [[ $(dpkg-query -W -f '${db:Status-Status} ' "$name" 2>/dev/null) == installed* ]] || missing+=("$name")
    done
    ((${#missing[@]})) || return 0
    have_root || die "missing packages; an administrator can run: sudo apt-get install --yes ${missing[*]}"
    say "installing packages: ${missing[*]}"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=300)
    as_root "${apt[@]}" update || say "apt-get update failed; trying with the package lists there are"
    as_root "${apt[@]}" install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# Root may open any device, so for root the mode alone tells whether others can.
fuse_is_open() { [[ $(stat -c %a /dev/fuse) == *6 ]] || { ((EUID)) && [[ -r /dev/fuse && -w /dev/fuse ]]; }; }

open_fuse() {
    [[ -e /dev/fuse ]] || ! have_root || as_root modprobe fuse || true
    [[ -e /dev/fuse ]] || die "no /dev/fuse: run 'sudo modprobe fuse', or start the container with --device /dev/fuse"
    ! fuse_is_open || return 0
    have_root || die "/dev/fuse is closed to $(id -un); an administrator can run: sudo chmod 0666 /dev/fuse"
    say "opening /dev/fuse to all users: chmod 0666 /dev/fuse (what udev does)"
    as_root chmod 0666 /dev/fuse
}

# A mount namespace that a test makes keeps a copy of every mount, and so its server, unless it hears of the unmount.
share_mounts() {
    [[ $(findmnt -no PROPAGATION /) != shared ]] && have_root || return 0
    say "sharing mounts with mount namespaces: mount --make-rshared / (what systemd does)"
    as_root mount --make-rshared /
}

find_python() {
    local python
    # The distribution's first: it has the headers of python3-dev, and every user can run it.
    for python in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    die "no Python 3.11 or later found"
}

# make_venv EXTRAS: this checkout, editable, in $venv and first on PATH. The stamp holds what the result depends on;
# one with the extra "test" serves those who need less.
make_venv() {
    local extras=$1 python stamp
    python=$(find_python)
    stamp=$(realpath . "$python" && "$python" --version && cat pyproject.toml)
    if [[ $stamp != "$(cat "$venv/installed$extras" 2>/dev/null)" &&
        $stamp != "$(cat "$venv/installed[test]" 2>/dev/null)" ]]; then
        say "installing fusestore$extras into $venv (pyfuse3 is compiled: about a minute)"
        rm -f "$venv"/installed*
        "$python" -m venv "$venv"
        "${limit[@]}" 900 "$venv/bin/pip" install --quiet --disable-pip-version-check --editable ".$extras"
        printf '%s\n' "$stamp" >"$venv/installed$extras"
    fi
    PATH=$venv/bin:$PATH
}

# Started with this, a command sees nothing of our environment but what is named here.
clean=(env -i PATH=/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin LANG=C.UTF-8)
for name in CI FUSESTORE_NO_SKIP TERM http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_CERT; do
    [[ ! -v $name ]] || clean+=("$name=${!name}")
done

# As root: the unprivileged user, and in their home a fresh copy of this checkout (what git knows or would add).
prepare_user() {
    if ! id "$test_user" &>/dev/null; then
        say "creating the user $test_user, with no subordinate ids"
        useradd --create-home --shell /bin/bash -K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 "$test_user"
    fi
    user_home=$(getent passwd "$test_user" | cut -d: -f6)
    user_checkout=$user_home/checkout
    # shellcheck disable=SC2016  # for the inner shell
    runuser -u "$test_user" -- sh -c 'cd / && rm -rf --one-file-system "$1" && mkdir "$1"' sh "$user_checkout"
    list_files | tar -c --null --files-from=- | as_user tar -x
}

list_files() {
    local name list=(git -c 'safe.directory=*' ls-files -z --cached --others --exclude-standard)
    "${list[@]}" &>/dev/null || list=(find . -name .git -prune -o ! -type d -print0)
    # git also lists what was deleted but not yet committed.
    "${list[@]}" | while IFS= read -rd '' name; do if [[ -e $name || -L $name ]]; then printf '%s\0' "$name"; fi; done
}

# As root, after prepare_user: a command in the copy, as the user.
as_user() {
    "${clean[@]}" HOME="$user_home" USER="$test_user" LOGNAME="$test_user" FUSESTORE_HANDED_OVER=1 \
        runuser -u "$test_user" -- env -C "$user_checkout" "$@"
}
