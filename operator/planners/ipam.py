"""Which pod ranges a node has: blocks cut from the pools, given once and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tidegate.crds import cidr
from tidegate.crds.cidr import Network
from tidegate.crds.ipam import IPPool
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster, Node, by_age
from tidegate.operator.plan import ACCEPTED, Finding, Plan, PoolUse, Verdict
from tidegate.operator.planners import ipam_cloud

_FAMILIES = (4, 6)


def plan(cluster: Cluster, plan: Plan) -> Plan:
    """Give every node that a pool selects one block a family. What a node has stays, whatever becomes of the pool."""
    pools, verdicts = _accepted(cluster)
    if cluster.network.podCIDRSource == "Node":
        given = {name: _sorted(node.spec.podCIDRs) for name, node in cluster.nodes.items()}
        return _result(cluster, plan, pools, given, verdicts)
    blocks: dict[str, list[Network]] = {
        name: [cidr.network(text) for text in cluster.states[name].spec.podCIDRs] if name in cluster.states else []
        for name in cluster.nodes
    }
    # Blocks of a node that is gone from Kubernetes but still has a NodeState count until that is deleted.
    held = [cidr.network(text) for state in cluster.states.values() for text in state.spec.podCIDRs]
    ranges = {
        pool.metadata.name: [_Range(cidr.network(each.cidr), each.nodeMaskSize, held) for each in pool.spec.ranges]
        for pool in pools
    }
    every = [each for found in ranges.values() for each in found]
    in_clouds = ipam_cloud.choose(cluster)
    for name, node in sorted(cluster.nodes.items()):
        for family in _FAMILIES if name not in in_clouds else ():
            if any(block.version == family for block in blocks[name]):
                continue
            block = _next_block(node, family, pools, ranges)
            if block is not None:
                blocks[name].append(block)
                # Ranges of one pool may overlap each other; a block is gone from all of them.
                for each in every:
                    each.take(block)
    given = {name: _sorted(str(block) for block in found) for name, found in blocks.items()}
    return _result(cluster, plan, pools, given, verdicts)


@dataclass
class _Range:
    """A range being cut up. Blocks are counted from its start; `taken` has every one that cannot be given any more."""

    network: Network
    mask: int
    held: Iterable[Network] = ()
    taken: set[int] = field(default_factory=set)
    lowest: int = 0

    def __post_init__(self) -> None:
        self.total = 1 << (self.mask - self.network.prefixlen)
        for block in self.held:
            self.take(block)

    def take(self, block: Network) -> None:
        if cidr.contains(block, self.network):
            self.lowest = self.total
        elif cidr.contains(self.network, block):
            shift = self.network.max_prefixlen - self.mask
            first = (int(block.network_address) - int(self.network.network_address)) >> shift
            last = (int(block.broadcast_address) - int(self.network.network_address)) >> shift
            self.taken.update(range(first, last + 1))

    def free(self) -> Network | None:
        while self.lowest in self.taken:
            self.lowest += 1
        if self.lowest >= self.total:
            return None
        shift = self.network.max_prefixlen - self.mask
        return type(self.network)((int(self.network.network_address) + (self.lowest << shift), self.mask))


def _next_block(node: Node, family: int, pools: Sequence[IPPool], ranges: dict[str, list[_Range]]) -> Network | None:
    for pool in pools:
        if pool.spec.nodeSelector.matches(node.metadata.labels):
            for each in ranges[pool.metadata.name]:
                if each.network.version == family and (block := each.free()) is not None:
                    return block
    return None


def _accepted(cluster: Cluster) -> tuple[list[IPPool], dict[str, Verdict]]:
    """Sort out pools that are malformed or overlap an older one or the Services."""
    accepted: list[IPPool] = []
    verdicts: dict[str, Verdict] = {}
    taken: list[tuple[Network, str]] = []
    for text in cluster.network.serviceCIDRs or cluster.service_cidrs:
        taken.append((cidr.network(text), "the Services"))
    for pool in sorted((each for each in cluster.pools if each.spec.cloud is None), key=by_age):
        name = pool.metadata.name
        finding = _judge(pool, taken)
        verdicts[f"IPPool/{name}"] = Verdict(finding)
        if finding.holds:
            accepted.append(pool)
            taken += [(cidr.network(each.cidr), f"IPPool {name}") for each in pool.spec.ranges]
    return accepted, verdicts


def _judge(pool: IPPool, taken: Sequence[tuple[Network, str]]) -> Finding:
    try:
        ranges = [(cidr.network(each.cidr), each.nodeMaskSize) for each in pool.spec.ranges]
    except cidr.AddressError as error:
        return Finding(False, Reason.INVALID, f"spec.ranges: {error}")
    for number, (network, mask) in enumerate(ranges):
        if not network.prefixlen <= mask <= network.max_prefixlen - 2 or mask - network.prefixlen > 24:
            message = f"spec.ranges[{number}].nodeMaskSize: {mask} cannot cut {network}"
            return Finding(False, Reason.INVALID, message)
        others = [*taken, *((other, "this pool itself") for other, _ in ranges[:number])]
        for other, owner in others:
            if cidr.overlap(network, other):
                message = f"spec.ranges[{number}]: {network} overlaps {other} of {owner}: choose a range apart from it"
                return Finding(False, Reason.POOL_OVERLAP, message)
    return ACCEPTED


def _result(
    cluster: Cluster,
    plan: Plan,
    pools: Sequence[IPPool],
    given: dict[str, tuple[str, ...]],
    verdicts: dict[str, Verdict],
) -> Plan:
    networks = {name: [cidr.network(text) for text in texts] for name, texts in given.items()}
    every = [cidr.network(each.cidr) for pool in pools for each in pool.spec.ranges]
    uses = {}
    for pool in pools:
        ranges = [(cidr.network(each.cidr), each.nodeMaskSize) for each in pool.spec.ranges]
        used = sum(any(cidr.contains(network, block) for network, _ in ranges) for found in networks.values() for block in found)
        total = sum(1 << (mask - network.prefixlen) for network, mask in ranges)
        uses[pool.metadata.name] = PoolUse(total, used)
        if cluster.network.podCIDRSource == "IPPool":
            ready = _state(cluster, pool, networks, every)
        else:
            ready = Finding(True, Reason.ALLOCATED, "Not used: ClusterNetwork takes the ranges that nodes have already.")
        verdicts[f"IPPool/{pool.metadata.name}"] = Verdict(ACCEPTED, ready)
    ranges_of_pools = tuple(str(network) for network in every) if cluster.network.podCIDRSource == "IPPool" else ()
    return replace(
        plan,
        pod_cidrs=given,
        cluster_cidrs=ranges_of_pools,
        pools=uses,
        verdicts={**plan.verdicts, **verdicts},
    )


def _state(cluster: Cluster, pool: IPPool, given: dict[str, list[Network]], every: Sequence[Network]) -> Finding:
    selected = [node.metadata.name for node in cluster.selected(pool.spec.nodeSelector)]
    families = {cidr.network(each.cidr).version for each in pool.spec.ranges}
    lacking = [
        f"{name} (IPv{family})"
        for name in selected
        for family in sorted(families)
        if not any(block.version == family for block in given.get(name, ()))
    ]
    if lacking:
        message = f"no block left for {shorten(lacking)}: add a range, or delete nodes that are gone"
        return Finding(False, Reason.POOL_EXHAUSTED, message)
    outside = [
        f"{name} ({block})"
        for name in selected
        for block in given.get(name, ())
        if block.version in families and cidr.covering(every, block) is None
    ]
    if outside:
        message = f"{shorten(outside)} keep blocks that lie in no pool: widen a range, or drain and delete the nodes"
        return Finding(False, Reason.POOL_SHRUNK, message)
    return Finding(True, Reason.ALLOCATED, f"{len(selected)}/{len(selected)} nodes have their blocks.")


def shorten(names: Sequence[str], most: int = 3) -> str:
    """Join a few names, and count the rest.

    >>> shorten(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _sorted(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(texts, key=lambda text: cidr.order(cidr.network(text))))
