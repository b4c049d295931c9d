#!/bin/sh
# A whole Kubernetes with Tidegate on this machine, in network namespaces: deploy/lab.sh [up|down|exec|status|kubectl|list ...]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
. "$root/deploy/setup.sh"
as_root "$0" "$@"
if [ $# -eq 0 ]; then
    say "Tidegate's lab: real Kubernetes nodes, an egress gateway and two servers outside, in namespaces of this machine."
    say "The first run installs packages and builds Kubernetes from source: about ten minutes. Later runs: half a minute."
fi
set_up "$root" "" ""
exec "$root/.venv/bin/tidegate" lab "${@:-up}"
