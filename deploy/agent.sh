#!/bin/sh
# Brings what an agent needs on a fresh Debian or Ubuntu machine, and runs it: agent.sh --manifests DIR (see tidegate agent --help)
set -eu
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then exec sudo -E sh deploy/agent.sh "$@"; fi

. deploy/setup.sh
set_up
exec .venv/bin/tidegate agent "$@"
