"""The receipts of all nodes with a living agent, sorted by the resources that they speak about."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tidegate.crds.node_state import CaptureReceipt, ServiceReceipt
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster
from tidegate.operator.plan import Finding
from tidegate.operator.planners.ipam import shorten


@dataclass(frozen=True)
class Receipts:
    """Receipts by the resource's `Kind/name` (failures) or name."""

    cluster: Cluster
    agents: Sequence[str]
    failures: Mapping[str, Sequence[tuple[str, str]]]
    pods: Mapping[str, int]
    services: Mapping[str, Sequence[tuple[str, ServiceReceipt]]]
    captures: Mapping[str, Sequence[tuple[str, CaptureReceipt]]]
    lagging: Callable[[tuple[str, int]], Sequence[str]]


def read_receipts(cluster: Cluster) -> Receipts:
    """Sort the receipts once, for however many resources."""
    agents = sorted(cluster.alive & cluster.nodes.keys())
    failures: dict[str, list[tuple[str, str]]] = defaultdict(list)
    pods: dict[str, int] = defaultdict(int)
    services: dict[str, list[tuple[str, ServiceReceipt]]] = defaultdict(list)
    captures: dict[str, list[tuple[str, CaptureReceipt]]] = defaultdict(list)
    for name in agents:
        if name in cluster.states:
            for failure in cluster.states[name].status.failures:
                failures[failure.owner].append((name, failure.message))
            for each in cluster.states[name].status.policies:
                pods[each.name] += each.matchedPods
            for service in cluster.states[name].status.services:
                services[service.name].append((name, service))
            for capture in cluster.states[name].status.captures:
                captures[capture.name].append((name, capture))
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

    return Receipts(cluster, agents, failures, pods, services, captures, lagging)


def progress(
    receipts: Receipts, at: tuple[str, int] | None, owner: str, among: Collection[str] | None = None
) -> tuple[str, Finding]:
    """Return `k/n` and what it means; `at` is None for what is not published yet, `among` the nodes that it concerns."""
    agents: Sequence[str] = receipts.agents
    late: Sequence[str] = receipts.lagging(at) if at is not None else agents
    if among is not None:
        agents, late = ([name for name in names if name in among] for names in (agents, late))
    total = len(agents)
    if total == 0:
        return "0/0", Finding(False, Reason.NO_AGENTS, "no node has a living agent: look at the pods of tidegate-agent")
    count = f"{total - len(late)}/{total}"
    if failed := receipts.failures.get(owner):
        texts = [f"{node}: {message}" for node, message in failed]
        return count, Finding(False, Reason.NODE_FAILED, shorten(texts))
    if late:
        return count, Finding(False, Reason.PROGRAMMING, f"{count} nodes have it; waiting for {shorten(late)}")
    return count, Finding(True, Reason.PROGRAMMED, f"{count} nodes have it.")
