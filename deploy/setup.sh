# Sourced in the repository's root by deploy/agent.sh, deploy/lab.sh and tests/run.sh: brings distribution packages and .venv.
#
#   set_up ["EXTRA PACKAGES" ["EXTRA REQUIREMENT FILES"]]
#
# Needs root on Debian 12/13 or Ubuntu 22.04/24.04 and a network. Repeating it takes well under a second.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }

# Run this script again below a mount, where / is none, as in a chroot: runc cannot make containers there.
mount_root() {
    ! awk '$5 == "/" { found = 1 } END { exit !found }' /proc/self/mountinfo || return 0
    [ -z "${TIDEGATE_ROOT:-}" ] || { echo "tidegate: / is no mount point even below $TIDEGATE_ROOT" >&2; exit 1; }
    TIDEGATE_ROOT=/run/tidegate-root
    export TIDEGATE_ROOT
    if ! awk -v at="$TIDEGATE_ROOT" '$5 == at { found = 1 } END { exit !found }' /proc/self/mountinfo; then
        mkdir -p "$TIDEGATE_ROOT"
        mount --rbind / "$TIDEGATE_ROOT"
    fi
    exec chroot "$TIDEGATE_ROOT" sh -c 'cd "$1"; shift; exec sh "$@"' _ "$(pwd -P)" "$@"
}

lab_packages() {
    echo containerd runc containernetworking-plugins busybox-static bash curl ethtool nftables iputils-ping procps util-linux
}

agent_packages() {
    echo python3-bpfcc libbpf1 gcc libc6-dev iproute2 ca-certificates
    . /etc/os-release
    case "${ID:-}-${VERSION_ID:-}" in
        ubuntu-22.04) echo python3.11 python3.11-venv python3.11-dev ;;  # its python3 is 3.10
        *) echo python3 python3-venv python3-dev ;;
    esac
    # bcc wants a header tree, and any version serves: the programs use stable kernel interfaces only.
    if ! ls -d /usr/src/linux-headers-* >/dev/null 2>&1; then
        case "${ID:-}" in
            ubuntu) echo linux-headers-generic ;;
            *) echo "linux-headers-$(dpkg --print-architecture)" ;;
        esac
    fi
}

missing_packages() {
    for package in "$@"; do
        case "$package" in
            libbpf1) [ ! -e /usr/lib/"$(uname -m)"-linux-gnu/libbpf.so.0 ] || continue ;;
        esac
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
    done
}

install_packages() {
    command -v apt-get >/dev/null || { echo "tidegate needs apt-get: Debian 12/13 or Ubuntu 22.04/24.04" >&2; exit 1; }
    # shellcheck disable=SC2086,SC2046
    missing=$(missing_packages $(agent_packages) $*)
    [ -n "$missing" ] || return 0
    say "installing packages (one to three minutes, once): $missing"
    apt-get update -qq
    # A service that starts by itself would be a second containerd, which the lab neither needs nor wants.
    policy=/usr/sbin/policy-rc.d
    made_policy=
    if [ ! -e "$policy" ]; then
        made_policy=$policy
        trap 'rm -f "$made_policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null
    if [ -n "$made_policy" ]; then rm -f "$made_policy"; trap - EXIT; fi
}

find_python() {
    for candidate in /usr/bin/python3 /usr/bin/python3.11 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "tidegate needs Python 3.11 or newer with its venv module" >&2
    return 1
}

make_environment() {
    python=$(find_python)
    key=$({ pwd -P; "$python" --version; cat setup.cfg setup.py datapath/maglev.c "$@"; } | sha256sum | cut -c1-16)
    stamp=.venv/.set-up-$key
    [ ! -e "$stamp" ] || return 0
    say "making the virtual environment .venv (half a minute, once)"
    # A copied clone brings an environment that points to where it was made.
    if ! grep -qsF "$(pwd -P)/.venv" .venv/bin/activate || ! .venv/bin/python -c ''; then rm -rf .venv; fi
    [ -d .venv ] || "$python" -m venv .venv
    for file in "$@"; do
        .venv/bin/python -m pip --disable-pip-version-check -q install --require-hashes -r "$file"
    done
    .venv/bin/python -m pip --disable-pip-version-check -q install --no-deps -e .
    touch "$stamp"
}

set_up() {
    # shellcheck disable=SC2086
    install_packages ${1:-}
    # shellcheck disable=SC2086
    make_environment deploy/requirements.txt ${2:-}
}
