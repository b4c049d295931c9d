#!/bin/sh
# Passes all tests on a fresh Debian or Ubuntu machine; run as root. Arguments choose tiers: lint types unit cloud bpf netns vm cluster.
# The first run sets everything up and builds Kubernetes (about ten minutes on two cores), later ones need about twenty.
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then exec sudo -E "$0" "$@"; fi

. deploy/setup.sh

emulator_packages() {
    echo qemu-system-x86 kmod zstd lz4
    . /etc/os-release
    case "${ID:-}-${VERSION_ID:-}" in
        debian-12 | ubuntu-22.04) ;;  # their qemu-system-common brings a virtiofsd
        *) echo virtiofsd ;;
    esac
}

mount_root tests/run.sh "$@"
tiers=${*:-lint types unit cloud bpf netns vm cluster}
packages="$(lab_packages) git iperf3 tcpdump tshark"
case " $tiers " in *" vm "*) packages="$packages $(emulator_packages)" ;; esac
set_up "$packages" deploy/requirements-dev.txt
PATH="$PWD/.venv/bin:$PATH"
export PATH
failed=

tier() {
    name=$1
    shift
    case " $tiers " in *" $name "*) ;; *) return 0 ;; esac
    begin=$(date +%s)
    echo "== $name"
    "$@" || failed="$failed $name"
    echo "== $name took $(($(date +%s) - begin)) s"
}

lint() { .venv/bin/ruff check . && .venv/bin/ruff format --check .; }
# A tier that this machine can run must run: pytest's "nothing collected" (5) and a tier of skips are failures.
run_tests() { .venv/bin/python tests/support/all_ran.py "$@"; }

tier lint lint
tier types sh tests/types.sh
tier unit run_tests -m "not cloud and not bpf and not netns and not cluster and not apiserver and not vm"
tier cloud run_tests -m cloud
tier bpf run_tests -m bpf
tier netns run_tests -m netns
tier vm run_tests -m vm
tier cluster run_tests -m "cluster or apiserver"
if [ -n "$failed" ]; then
    echo "failed:$failed"
    exit 1
fi
