#!/bin/sh
# Strict typing of all rooms: mypy cannot see setup.cfg's package_dir, so it gets a view of symlinks laid out like the package.
set -eu
cd "$(dirname "$0")/.."
rm -rf .typing && mkdir -p .typing/tidegate
for room in cli crds datapath ipam kube operator; do ln -s "../../$room" ".typing/tidegate/$room"; done
ln -s ../../deploy/lab .typing/tidegate/lab
MYPYPATH=.typing exec "${PYTHON:-python}" -m mypy --strict --namespace-packages --explicit-package-bases -p tidegate "$@"
