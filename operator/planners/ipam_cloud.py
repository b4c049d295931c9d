"""Which nodes have addresses from which cloud pool, and what the pools' stewards say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidegate.crds.ipam import CloudPool, IPPool
from tidegate.crds.reasons import Reason
from tidegate.ipam import machines
from tidegate.ipam.cloud import Kind
from tidegate.ipam.clouds.providers import ABILITIES
from tidegate.ipam.ledger import is_empty
from tidegate.operator.cluster import CloudFinding, Cluster, by_age
from tidegate.operator.plan import ACCEPTED, CloudTask, Finding, Plan, PoolUse, Verdict

NOT_SERVED = Finding(
    False, Reason.UNSUPPORTED, "spec.cloud: agents of this version hand out no addresses of a cloud yet: use spec.ranges"
)

_KINDS = {4: (Kind.ADDRESS_4, Kind.PREFIX_4), 6: (Kind.ADDRESS_6, Kind.PREFIX_6)}


def choose(cluster: Cluster) -> dict[str, str]:
    """Return the cloud pool of each node that has one: of those that select it the oldest, or where it has something already."""
    found: dict[str, str] = {}
    for pool in sorted(_usable(cluster), key=by_age):
        if pool.metadata.deletionTimestamp is None:
            for node in cluster.selected(pool.spec.nodeSelector):
                found.setdefault(node.metadata.name, pool.metadata.name)
    return found


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Fill in what stewards shall do, and the verdicts of cloud pools."""
    chosen = choose(cluster)
    has = {
        name: state.spec.cloud.pool
        for name, state in cluster.states.items()
        if state.spec.cloud and not is_empty(state.spec.cloud)
    }
    verdicts, uses, tasks = dict(plan.verdicts), dict(plan.pools), dict(plan.clouds)
    usable = {pool.metadata.name for pool in _usable(cluster)}
    for pool in cluster.pools:
        name, cloud = pool.metadata.name, pool.spec.cloud
        if cloud is None:
            continue
        accepted = _judge(cloud) if cluster.serves_clouds else NOT_SERVED
        if name in usable:
            tasks[name] = _task(cluster, pool, cloud, chosen, has)
        finding = cluster.clouds.get(name, CloudFinding())
        verdicts[f"IPPool/{name}"] = Verdict(accepted, _ready(finding) if accepted.holds else None)
        uses[name] = _use(finding)
    ranges = {
        cidr
        for state in cluster.states.values()
        if state.spec.cloud
        for each in state.spec.cloud.interfaces
        for cidr in each.cidrs
    }
    return replace(plan, verdicts=verdicts, pools=uses, clouds=tasks, cluster_cidrs=(*plan.cluster_cidrs, *sorted(ranges)))


def _usable(cluster: Cluster) -> list[IPPool]:
    if not cluster.serves_clouds:
        return []
    return [pool for pool in cluster.pools if pool.spec.cloud is not None and _judge(pool.spec.cloud).holds]


def _judge(pool: CloudPool) -> Finding:
    kinds = ABILITIES[pool.provider].kinds
    for version in pool.versions:
        if kinds.isdisjoint(_KINDS[version]):
            message = f"spec.cloud.families: {pool.provider} gives interfaces no IPv{version} addresses: leave IPv{version} out"
            return Finding(False, Reason.UNSUPPORTED, message)
    return ACCEPTED


def _task(cluster: Cluster, pool: IPPool, cloud: CloudPool, chosen: Mapping[str, str], has: Mapping[str, str]) -> CloudTask:
    name = pool.metadata.name
    # A node that still has something of another pool gives that back first.
    wanted = {node for node, of in chosen.items() if of == name and has.get(node, name) == name}
    concerned = wanted | {node for node, of in has.items() if of == name}
    found = {node: cluster.nodes[node] for node in sorted(concerned & cluster.nodes.keys())}
    regions = (machines.region(node.metadata.labels) for node in found.values())
    return CloudTask(
        pool=cloud,
        machines={
            node: machines.machine(cloud.provider, found[node].spec.providerID) if node in found else ""
            for node in sorted(concerned)
        },
        wanted=frozenset(wanted),
        region=cloud.region or next(filter(None, regions), ""),
    )


def _ready(finding: CloudFinding) -> Finding:
    if finding.trouble:
        return Finding(False, Reason.CLOUD_UNAVAILABLE, finding.trouble)
    use = finding.use
    if use is None:
        return Finding(False, Reason.CLOUD_STARTING, Reason.CLOUD_STARTING.sentence)
    waiting = [each for each in use.nodes if each.waiting or each.message]
    if waiting:
        first = waiting[0]
        more = f" ({len(waiting) - 1} more in status.cloud.nodes)" if len(waiting) > 1 else ""
        said = first.message or f"{first.waiting} pods wait; requests are under way"
        return Finding(False, Reason.NODES_WAITING, f"{first.name}: {said}{more}")
    return Finding(True, Reason.ALLOCATED, f"{use.nodeCount} nodes have what they need.")


def _use(finding: CloudFinding) -> PoolUse:
    return PoolUse(0, 0) if finding.use is None else PoolUse(finding.allocated, finding.used, finding.use)
