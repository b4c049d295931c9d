"""How a plan is laid out as NodeStates and ClusterStates: pure, and stable from one plan to the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import msgspec

from tidegate.crds.cluster_state import (
    BalancedService,
    ClusterState,
    ClusterStateSpec,
    EgressRule,
    OrderedCapture,
    Peer,
    numbered,
)
from tidegate.crds.memo import remembered
from tidegate.crds.node_state import NodeStateSpec
from tidegate.ipam.ledger import is_empty
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Plan

SHARD_BYTES = 192 * 1024
"""Entries of one shard: with metadata and managed fields it stays under 256 KiB."""

Item = TypeVar("Item", Peer, EgressRule, BalancedService, OrderedCapture)
Section = Literal["peers", "egress", "lb", "capture"]


def encoded(value: object) -> bytes:
    """Encode a value so that equal values give equal bytes: lists and tuples alike, maps sorted."""
    return msgspec.json.encode(value, order="deterministic")


def orders(cluster: Cluster, plan: Plan) -> dict[str, NodeStateSpec]:
    """Return the spec of every node's NodeState, less its ledger of the cloud, which the steward writes.

    A node that is gone keeps its own until nothing of it is left in the cloud.
    """
    leaving = {
        name: msgspec.structs.replace(state.spec, cloud=None)
        for name, state in cluster.states.items()
        if name not in cluster.nodes and not is_empty(state.spec.cloud)
    }
    return leaving | {
        name: NodeStateSpec(
            podCIDRs=tuple(plan.pod_cidrs.get(name, ())),
            egressAddresses=tuple(plan.held.get(name, ())),
            releasing=tuple(plan.releasing.get(name, ())),
        )
        for name in sorted(cluster.nodes)
    }


def shards(cluster: Cluster, plan: Plan) -> dict[str, ClusterStateSpec]:
    """Return the spec of every ClusterState; each section has one at least, so that agents know that it is empty."""
    found = {"network-0": ClusterStateSpec(section="network", network=plan.network, clusterCIDRs=tuple(plan.cluster_cidrs))}
    peers = _spread("peers", {peer.node: peer for peer in plan.peers}, cluster.shards)
    for index, part in enumerate(peers):
        found[f"peers-{index}"] = ClusterStateSpec(section="peers", index=index, count=len(peers), peers=part)
    rules = _spread("egress", {rule.uid: rule for rule in plan.rules}, cluster.shards)
    for index, share in enumerate(rules):
        last = plan.last_number if index == 0 else 0
        found[f"egress-{index}"] = ClusterStateSpec(
            section="egress", index=index, count=len(rules), egress=share, lastNumber=last
        )
    services = _spread("lb", {service.uid: service for service in plan.services}, cluster.shards)
    for index, part_of_services in enumerate(services):
        last = plan.last_service if index == 0 else 0
        found[f"lb-{index}"] = ClusterStateSpec(
            section="lb", index=index, count=len(services), services=part_of_services, lastNumber=last
        )
    captures = _spread("capture", {capture.uid: capture for capture in plan.captures}, cluster.shards)
    for index, part_of_captures in enumerate(captures):
        last = plan.last_capture if index == 0 else 0
        found[f"capture-{index}"] = ClusterStateSpec(
            section="capture", index=index, count=len(captures), captures=part_of_captures, lastNumber=last
        )
    return found


def _spread(section: Section, items: Mapping[str, Item], published: Mapping[str, ClusterState]) -> list[tuple[Item, ...]]:
    """Put each item into the shard where it is already, or else into the first with room: one change, one shard."""
    places = {key: shard.spec.index for shard in published.values() for key in _keys(section, shard.spec)}
    sizes = {key: _size(item) for key, item in items.items()}
    shares: list[list[Item]] = [[]]
    used = [0]
    for key, item in sorted(items.items(), key=lambda pair: (pair[0] not in places, places.get(pair[0], 0), pair[0])):
        wanted: list[int] = [places[key]] if key in places else []
        index = next(
            (each for each in (*wanted, *range(len(shares))) if _fits(used, each, sizes[key])),
            len(shares),
        )
        while len(shares) <= index:
            shares.append([])
            used.append(0)
        shares[index].append(item)
        used[index] += sizes[key]
    while len(shares) > 1 and not shares[-1]:
        shares.pop()
    return [tuple(sorted(share, key=_name)) for share in shares]


@remembered
def _size(item: object) -> int:
    return len(encoded(item)) + 1


def _fits(used: Sequence[int], index: int, size: int) -> bool:
    return index >= len(used) or used[index] == 0 or used[index] + size <= SHARD_BYTES


def _keys(section: str, spec: ClusterStateSpec) -> Iterable[str]:
    if spec.section != section:
        return ()
    if section == "peers":
        return (peer.node for peer in spec.peers)
    return (item.uid for item in numbered(spec))


def _name(item: Peer | EgressRule | BalancedService | OrderedCapture) -> str:
    return item.node if isinstance(item, Peer) else item.name
