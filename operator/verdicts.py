"""What users are told: the plan's verdicts and the nodes' receipts folded into the status of each resource."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from tidegate.crds.capture import PacketCaptureStatus
from tidegate.crds.cluster_state import ClusterState, EgressRule, numbered
from tidegate.crds.egress import ChosenGateway, EgressPolicyStatus
from tidegate.crds.ipam import IPPoolStatus
from tidegate.crds.lb import LoadBalancerStatus
from tidegate.crds.meta import Condition, ObjectMeta
from tidegate.crds.reasons import Reason
from tidegate.crds.routing import ClusterNetworkStatus
from tidegate.operator import balancer_status, wire
from tidegate.operator.cluster import NETWORK_NAME, Cluster
from tidegate.operator.conditions import both
from tidegate.operator.plan import Finding, Plan, PoolUse
from tidegate.operator.planners.ipam import shorten
from tidegate.operator.receipts import Receipts, progress, read_receipts

Status = EgressPolicyStatus | IPPoolStatus | ClusterNetworkStatus | LoadBalancerStatus | PacketCaptureStatus

Marks = Mapping[str, tuple[str, int]]
"""For the uid of each item, and for `network`: the shard that carries it, and the generation that last changed it."""


def mark(marks: Marks, before: Mapping[str, ClusterState], after: Mapping[str, ClusterState]) -> Marks:
    """Follow what changed between two readings of the shards.

    A shard's generation changes with every policy in it; a policy that did not change must not seem undone meanwhile.
    """
    found: dict[str, tuple[str, int]] = {}
    for name, shard in after.items():
        if (old := before.get(name)) is shard:
            found |= {key: at for key in _contents(shard) if (at := marks.get(key)) is not None and at[0] == name}
            found |= {key: (name, shard.metadata.generation) for key in _contents(shard) if key not in found}
            continue
        contents, earlier = _contents(shard), _contents(old) if old is not None else {}
        for key, content in contents.items():
            at = marks.get(key)
            unchanged = at is not None and at[0] == name and key in earlier and _same(earlier[key], content)
            found[key] = at if at is not None and unchanged else (name, shard.metadata.generation)
    return found


def _contents(shard: ClusterState) -> dict[str, object]:
    if shard.spec.section == "network":
        return {"network": (shard.spec.network, shard.spec.clusterCIDRs)}
    return {item.uid: item for item in numbered(shard.spec)}


def _same(one: object, other: object) -> bool:
    return one == other or wire.encoded(one) == wire.encoded(other)


def statuses(cluster: Cluster, plan: Plan, marks: Marks, now: datetime) -> dict[str, Status]:
    """Return the status of every resource that users wrote, keyed `Kind/name`."""
    receipts = read_receipts(cluster)
    rules = {rule.name: rule for rule in plan.rules}
    found: dict[str, Status] = {}
    for policy in cluster.policies:
        rule = rules.get(policy.metadata.name)
        found[f"EgressPolicy/{policy.metadata.name}"] = _policy(
            policy.metadata, policy.status.conditions, plan, rule, receipts, marks, now
        )
    for pool in cluster.pools:
        key = f"IPPool/{pool.metadata.name}"
        use = plan.pools.get(pool.metadata.name, PoolUse(0, 0))
        found[key] = IPPoolStatus(
            conditions=both(pool.metadata, pool.status.conditions, plan.verdicts[key], None, now),
            total=use.total,
            used=use.used,
            cloud=use.cloud,
            observedGeneration=pool.metadata.generation,
        )
    for network in cluster.networks:
        key = f"ClusterNetwork/{network.metadata.name}"
        count, ready = progress(receipts, marks.get("network"), key)
        counted = network.metadata.name == NETWORK_NAME
        found[key] = ClusterNetworkStatus(
            conditions=both(network.metadata, network.status.conditions, plan.verdicts[key], ready, now),
            nodesProgrammed=count if counted else "",
            observedGeneration=network.metadata.generation,
        )
    found |= balancer_status.balancers(cluster, plan, receipts, marks, now)
    found |= balancer_status.captures(cluster, plan, receipts, marks, now)
    makers = {
        "EgressPolicy": EgressPolicyStatus,
        "IPPool": IPPoolStatus,
        "ClusterNetwork": ClusterNetworkStatus,
        "LoadBalancer": LoadBalancerStatus,
        "PacketCapture": PacketCaptureStatus,
    }
    for rejected in cluster.rejected:
        key = f"{rejected.kind}/{rejected.metadata.name}"
        found[key] = makers[rejected.kind](
            conditions=both(rejected.metadata, rejected.conditions, plan.verdicts[key], None, now),
            observedGeneration=rejected.metadata.generation,
        )
    return found


def _policy(
    meta: ObjectMeta,
    conditions: Sequence[Condition],
    plan: Plan,
    rule: EgressRule | None,
    receipts: Receipts,
    marks: Marks,
    now: datetime,
) -> EgressPolicyStatus:
    key = f"EgressPolicy/{meta.name}"
    count, ready = progress(receipts, marks.get(meta.uid), key)
    gateways = rule.gateways if rule is not None else ()
    if ready.holds and (missing := _unheld(receipts.cluster, plan, key)):
        ready = Finding(False, Reason.PROGRAMMING, f"{shorten(missing)}: the gateway does not answer for it yet")
    names = sorted({each.node for each in gateways})
    return EgressPolicyStatus(
        conditions=both(meta, conditions, plan.verdicts[key], ready, now),
        gateways=tuple(ChosenGateway(node=each.node, addresses=tuple(each.addresses)) for each in gateways),
        via=shorten(names) if names else "",
        matchedPods=receipts.pods.get(meta.name, 0) if rule is not None else 0,
        nodesProgrammed=count if rule is not None else "",
        observedGeneration=meta.generation,
    )


def _unheld(cluster: Cluster, plan: Plan, owner: str) -> list[str]:
    return [
        f"{each.address} on {node}"
        for node, held in sorted(plan.held.items())
        for each in held
        if each.owner == owner and (node not in cluster.states or each.address not in cluster.states[node].status.heldAddresses)
    ]
