"""A `Cluster` made from yaml documents instead of an API server's watches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tidegate.crds.capture import PacketCapture
from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.egress import EgressPolicy
from tidegate.crds.ipam import IPPool
from tidegate.crds.lb import LoadBalancer
from tidegate.crds.memo import remembered
from tidegate.crds.node_state import NodeState
from tidegate.crds.routing import ClusterNetwork
from tidegate.kube.lease import NODE_PREFIX, Lease
from tidegate.operator import parse
from tidegate.operator.cluster import Cluster, Node, Rejected, Resource, ServiceCIDR

FOREIGN = {
    "Node": Node,
    "NodeState": NodeState,
    "ClusterState": ClusterState,
    "Lease": Lease,
    "ServiceCIDR": ServiceCIDR,
}


def cluster(documents: Iterable[Mapping[str, Any]]) -> Cluster:
    """Sort documents into a cluster; kinds that we do not read are passed over.

    Where there is no Lease at all every node's agent counts as alive, else those that have one. Raises
    msgspec.ValidationError for a malformed document of a kind that users do not write.
    """
    found: dict[str, list[Any]] = {kind: [] for kind in (*parse.KINDS, *FOREIGN)}
    rejected: list[Rejected] = []
    for document in documents:
        kind = document.get("kind", "")
        if kind in parse.KINDS:
            resource = _parsed(document)
            if isinstance(resource, Rejected):
                rejected.append(resource)
            else:
                found[kind].append(resource)
        elif kind in FOREIGN:
            found[kind].append(msgspec.convert(document, FOREIGN[kind]))
    policies: list[EgressPolicy] = found["EgressPolicy"]
    pools: list[IPPool] = found["IPPool"]
    networks: list[ClusterNetwork] = found["ClusterNetwork"]
    balancers: list[LoadBalancer] = found["LoadBalancer"]
    captures: list[PacketCapture] = found["PacketCapture"]
    nodes = {each.metadata.name: each for each in found["Node"]}
    leases = {each.metadata.name.removeprefix(NODE_PREFIX) for each in found["Lease"]}
    return Cluster(
        policies=policies,
        pools=pools,
        networks=networks,
        balancers=balancers,
        captures=captures,
        rejected=rejected,
        nodes=nodes,
        states={each.metadata.name: each for each in found["NodeState"]},
        shards={each.metadata.name: each for each in found["ClusterState"]},
        alive=frozenset(leases or nodes),
        service_cidrs=sorted({text for each in found["ServiceCIDR"] for text in each.spec.cidrs}),
    )


@remembered
def _parsed(document: Mapping[str, Any]) -> Resource | Rejected:
    return parse.parse(document["kind"], _identified(document))


def _identified(document: Mapping[str, Any]) -> dict[str, Any]:
    """Give a document that no server has seen the uid that it would have got."""
    meta = document.get("metadata") or {}
    name = meta.get("name", "")
    return {**document, "metadata": {"uid": f"{document.get('kind')}/{name}", **meta}}
