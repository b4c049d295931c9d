#!/bin/sh
# A whole Kubernetes with Tidegate in network namespaces of this machine: lab.sh [up|down|exec|status|kubectl|list ...]
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then exec sudo -E -H sh deploy/lab.sh "$@"; fi

. deploy/setup.sh
mount_root deploy/lab.sh "$@"
if [ $# -eq 0 ]; then
    say "Tidegate's lab: real Kubernetes nodes, an egress gateway, and servers outside, in namespaces of this machine."
    say "The first run installs packages and builds Kubernetes from source: about ten minutes. Later ones: half a minute."
fi
set_up "$(lab_packages)"
exec .venv/bin/tidegate lab "${@:-up}"
