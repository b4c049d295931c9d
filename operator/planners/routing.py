"""How packets travel: the settings of the pod network, the peers, and the ranges that pods have addresses from."""

from __future__ import annotations

from dataclasses import replace

import msgspec

from tidegate.crds import cidr
from tidegate.crds.cluster_state import Peer
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import NETWORK_NAME, Cluster
from tidegate.operator.plan import Finding, Plan, Verdict


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in the network section and the peers."""
    network = cluster.network
    if not network.serviceCIDRs:
        network = msgspec.structs.replace(network, serviceCIDRs=tuple(cluster.service_cidrs))
    peers = tuple(
        Peer(node=name, addresses=node.addresses, podCIDRs=tuple(plan.pod_cidrs.get(name, ())))
        for name, node in sorted(cluster.nodes.items())
        if node.addresses
    )
    verdicts = {}
    for each in cluster.networks:
        name = each.metadata.name
        verdict = Verdict()
        if name != NETWORK_NAME:
            verdict = Verdict(Finding(False, Reason.NOT_DEFAULT, f"{name} has no effect: name it {NETWORK_NAME}"))
        verdicts[f"ClusterNetwork/{name}"] = verdict
    return replace(
        plan,
        network=network,
        peers=peers,
        cluster_cidrs=_ranges(plan),
        verdicts={**plan.verdicts, **verdicts},
    )


def _ranges(plan: Plan) -> tuple[str, ...]:
    """Add the nodes' blocks to the pools' ranges, leaving out what another one covers."""
    blocks = {cidr.network(text) for given in plan.pod_cidrs.values() for text in given}
    every = sorted({cidr.network(text) for text in plan.cluster_cidrs} | blocks, key=cidr.order)
    kept: list[cidr.Network] = []
    for item in every:
        # Sorted by address with the wider one first, so only the last one kept can cover the next.
        if not (kept and cidr.contains(kept[-1], item)):
            kept.append(item)
    return tuple(str(item) for item in kept)
