"""What users are told: the plan's verdicts and the nodes' receipts folded into the status of each resource."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tidegate.crds.cluster_state import ClusterState, EgressRule
from tidegate.crds.egress import ChosenGateway, EgressPolicyStatus
from tidegate.crds.ipam import IPPoolStatus
from tidegate.crds.meta import Condition, ObjectMeta
from tidegate.crds.reasons import Reason
from tidegate.crds.routing import ClusterNetworkStatus
from tidegate.operator import wire
from tidegate.operator.cluster import NETWORK_NAME, Cluster
from tidegate.operator.plan import Finding, Plan, PoolUse, Verdict
from tidegate.operator.planners.ipam import shorten

Status = EgressPolicyStatus | IPPoolStatus | ClusterNetworkStatus

Marks = Mapping[str, tuple[str, int]]
"""For each rule's uid, and for `network`: the shard that carries it, and the generation that last changed it."""


def set_condition(
    conditions: Sequence[Condition], kind: str, finding: Finding, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Return `conditions` with one set; the only writer of conditions. Its time changes only when its status does."""
    status = "True" if finding.holds else "False"
    before = next((each for each in conditions if each.type == kind), None)
    since = before.lastTransitionTime if before is not None and before.status == status else ""
    condition = Condition(
        type=kind,
        status="True" if finding.holds else "False",
        reason=finding.reason.value,
        message=finding.message,
        observedGeneration=generation,
        lastTransitionTime=since or now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    others = [each for each in conditions if each.type != kind]
    return tuple(sorted([*others, condition], key=lambda each: each.type))


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
    return {rule.uid: rule for rule in shard.spec.egress}


def _same(one: object, other: object) -> bool:
    return one == other or wire.encoded(one) == wire.encoded(other)


@dataclass(frozen=True)
class _Receipts:
    """The receipts of all nodes with a living agent, sorted by what they speak about."""

    cluster: Cluster
    agents: Sequence[str]
    failures: Mapping[str, Sequence[tuple[str, str]]]
    pods: Mapping[str, int]
    lagging: Callable[[tuple[str, int]], Sequence[str]]


def statuses(cluster: Cluster, plan: Plan, marks: Marks, now: datetime) -> dict[str, Status]:
    """Return the status of every resource that users wrote, keyed `Kind/name`."""
    receipts = _sort(cluster)
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
            conditions=_both(pool.metadata, pool.status.conditions, plan.verdicts[key], None, now),
            total=use.total,
            used=use.used,
            observedGeneration=pool.metadata.generation,
        )
    for network in cluster.networks:
        key = f"ClusterNetwork/{network.metadata.name}"
        count, ready = _progress(receipts, marks.get("network"), key)
        counted = network.metadata.name == NETWORK_NAME
        found[key] = ClusterNetworkStatus(
            conditions=_both(network.metadata, network.status.conditions, plan.verdicts[key], ready, now),
            nodesProgrammed=count if counted else "",
            observedGeneration=network.metadata.generation,
        )
    makers = {"EgressPolicy": EgressPolicyStatus, "IPPool": IPPoolStatus, "ClusterNetwork": ClusterNetworkStatus}
    for rejected in cluster.rejected:
        key = f"{rejected.kind}/{rejected.metadata.name}"
        found[key] = makers[rejected.kind](
            conditions=_both(rejected.metadata, rejected.conditions, plan.verdicts[key], None, now),
            observedGeneration=rejected.metadata.generation,
        )
    return found


def _policy(
    meta: ObjectMeta,
    conditions: Sequence[Condition],
    plan: Plan,
    rule: EgressRule | None,
    receipts: _Receipts,
    marks: Marks,
    now: datetime,
) -> EgressPolicyStatus:
    key = f"EgressPolicy/{meta.name}"
    count, ready = _progress(receipts, marks.get(meta.uid), key)
    gateways = rule.gateways if rule is not None else ()
    if ready.holds and (missing := _unheld(receipts.cluster, plan, key)):
        ready = Finding(False, Reason.PROGRAMMING, f"{shorten(missing)}: the gateway does not answer for it yet")
    names = sorted({each.node for each in gateways})
    return EgressPolicyStatus(
        conditions=_both(meta, conditions, plan.verdicts[key], ready, now),
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


def _both(
    meta: ObjectMeta, conditions: Sequence[Condition], verdict: Verdict, receipt: Finding | None, now: datetime
) -> tuple[Condition, ...]:
    if not verdict.accepted.holds:
        ready = Finding(False, Reason.NOT_ACCEPTED, Reason.NOT_ACCEPTED.sentence)
    else:
        ready = verdict.ready or receipt or Finding(True, Reason.PROGRAMMED, Reason.PROGRAMMED.sentence)
    conditions = set_condition(conditions, "Accepted", verdict.accepted, meta.generation, now)
    return set_condition(conditions, "Ready", ready, meta.generation, now)


def _sort(cluster: Cluster) -> _Receipts:
    agents = sorted(cluster.alive & cluster.nodes.keys())
    failures: dict[str, list[tuple[str, str]]] = defaultdict(list)
    pods: dict[str, int] = defaultdict(int)
    for name in agents:
        if name in cluster.states:
            for failure in cluster.states[name].status.failures:
                failures[failure.owner].append((name, failure.message))
            for each in cluster.states[name].status.policies:
                pods[each.name] += each.matchedPods
    # Thousands of policies share a few marks, so each mark is compared with the nodes once.
    known: dict[tuple[str, int], list[str]] = {}

    def lagging(at: tuple[str, int]) -> Sequence[str]:
        if at not in known:
            shard, generation = at
            known[at] = [
                name
                for name in agents
                if name not in cluster.states or cluster.states[name].status.observedShards.get(shard, 0) < generation
            ]
        return known[at]

    return _Receipts(cluster, agents, failures, pods, lagging)


def _progress(receipts: _Receipts, at: tuple[str, int] | None, owner: str) -> tuple[str, Finding]:
    """Return `k/n` and what it means; `at` is None for what is not published yet."""
    total = len(receipts.agents)
    if total == 0:
        return "0/0", Finding(False, Reason.NO_AGENTS, "no node has a living agent: look at the pods of tidegate-agent")
    behind = list(receipts.lagging(at)) if at is not None else list(receipts.agents)
    count = f"{total - len(behind)}/{total}"
    if failed := receipts.failures.get(owner):
        texts = [f"{node}: {message}" for node, message in failed]
        return count, Finding(False, Reason.NODE_FAILED, shorten(texts))
    if behind:
        return count, Finding(False, Reason.PROGRAMMING, f"{count} nodes have it; waiting for {shorten(behind)}")
    return count, Finding(True, Reason.PROGRAMMED, f"{count} nodes have it.")
