"""Take everything that is ours off a node: `tidegate agent remove`, for the day that Tidegate goes."""

from __future__ import annotations

import shutil

import structlog

from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath import inputs
from tidegate.datapath.cni import install
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.order import Order
from tidegate.datapath.owned import Places

log = structlog.get_logger()


def remove(places: Places, kernel: Kernel) -> None:
    """Remove the CNI configuration first, so that no pod comes meanwhile, then all rows, pins and records.

    Pods that still run lose their network with their links' programs; drain the node before.
    """
    for path in install.remove(places):
        log.info("removed", path=str(path))
    saved = inputs.load(places.state / "inputs.json", inputs.Inputs)
    receipt = kernel.clear(Order(node="", network=saved.network if saved else ClusterNetworkSpec()))
    kernel.close()
    for failure in receipt.failures:
        log.warning("left behind", table=failure.table, key=failure.key, reason=failure.message)
    for folder in (places.bpffs, places.state):
        shutil.rmtree(folder, ignore_errors=False)
        log.info("removed", path=str(folder))
