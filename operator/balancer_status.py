"""What is told of LoadBalancers and PacketCaptures: verdicts, and what the nodes measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from tidegate.crds.capture import NodeCapture, PacketCapture, PacketCaptureStatus
from tidegate.crds.lb import Backend, BackendStatus, LoadBalancer, LoadBalancerStatus, name_backend
from tidegate.crds.node_state import CaptureReceipt, ServiceReceipt
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster
from tidegate.operator.conditions import both
from tidegate.operator.plan import Finding, Plan
from tidegate.operator.planners.lb_accept import takes_connections
from tidegate.operator.receipts import Receipts, progress

Marks = Mapping[str, tuple[str, int]]


def balancers(cluster: Cluster, plan: Plan, receipts: Receipts, marks: Marks, now: datetime) -> dict[str, LoadBalancerStatus]:
    """Return the status of every LoadBalancer, keyed `LoadBalancer/name`."""
    return {
        f"LoadBalancer/{each.metadata.name}": _balancer(each, cluster, plan, receipts, marks, now) for each in cluster.balancers
    }


def _balancer(
    each: LoadBalancer, cluster: Cluster, plan: Plan, receipts: Receipts, marks: Marks, now: datetime
) -> LoadBalancerStatus:
    key, meta = f"LoadBalancer/{each.metadata.name}", each.metadata
    nodes = {node.metadata.name for node in cluster.selected(each.spec.nodeSelector)}
    count, ready = progress(receipts, marks.get(meta.uid), key, nodes)
    told = [receipt for node, receipt in receipts.services.get(meta.name, ()) if node in nodes]
    asked = len(nodes.intersection(receipts.agents))
    backends = _backends(each, told, asked)
    up = sum(takes_connections(backend) and _may_live(state) for backend, state in zip(each.spec.backends, backends, strict=True))
    if ready.holds and not up:
        ready = Finding(False, Reason.NO_BACKEND, "every balancer finds all backends dead")
    newest = max(told, key=lambda receipt: receipt.lastChange, default=ServiceReceipt(name=meta.name))
    return LoadBalancerStatus(
        conditions=both(meta, each.status.conditions, plan.verdicts[key], ready, now),
        backends=backends,
        healthy=f"{up}/{len(backends)}",
        xdp=_counted(Counter(receipt.xdp for receipt in told if receipt.xdp), len(told)),
        connections=sum(receipt.connections for receipt in told),
        lastChange=newest.lastChange,
        slotsMoved=newest.slotsMoved,
        nodesProgrammed=count,
        observedGeneration=meta.generation,
    )


def _counted(words: Mapping[Any, int], nodes: int) -> str:
    """Join words, with their numbers if there is more than one node to speak of."""
    return ", ".join(f"{number} {word}" if nodes > 1 else word for word, number in sorted(words.items()))


def _may_live(state: BackendStatus) -> bool:
    return state.health != "Unhealthy"


def _backends(resource: LoadBalancer, told: Sequence[ServiceReceipt], asked: int) -> tuple[BackendStatus, ...]:
    dead = Counter(name for receipt in told for name in receipt.unhealthy)
    check = resource.spec.healthCheck
    is_checked = check is not None and check.type != "None" and asked > 0

    def health(backend: Backend) -> Literal["Healthy", "Unhealthy", "Mixed", "Unchecked"]:
        votes = dead[name_backend(backend.address, backend.port)]
        if not is_checked:
            return "Unchecked"
        if votes == 0:
            return "Healthy"
        return "Unhealthy" if votes >= asked else "Mixed"

    found = [BackendStatus(address=each.address, port=each.port, health=health(each)) for each in resource.spec.backends]
    weights = [
        backend.weight if takes_connections(backend) and _may_live(state) else 0
        for backend, state in zip(resource.spec.backends, found, strict=True)
    ]
    total = sum(weights)
    return tuple(
        BackendStatus(
            address=state.address, port=state.port, health=state.health, share=f"{100 * weight / total if total else 0:.2f}%"
        )
        for state, weight in zip(found, weights, strict=True)
    )


def captures(cluster: Cluster, plan: Plan, receipts: Receipts, marks: Marks, now: datetime) -> dict[str, PacketCaptureStatus]:
    """Return the status of every PacketCapture, keyed `PacketCapture/name`."""
    return {
        f"PacketCapture/{each.metadata.name}": _capture(each, cluster, plan, receipts, marks, now) for each in cluster.captures
    }


def _capture(
    each: PacketCapture, cluster: Cluster, plan: Plan, receipts: Receipts, marks: Marks, now: datetime
) -> PacketCaptureStatus:
    key, meta = f"PacketCapture/{each.metadata.name}", each.metadata
    nodes = {node.metadata.name for node in cluster.selected(each.spec.nodeSelector)}
    count, ready = progress(receipts, marks.get(meta.uid), key, nodes)
    told = [(node, receipt) for node, receipt in receipts.captures.get(meta.name, ()) if node in nodes]
    states = Counter(receipt.state for _, receipt in told)
    return PacketCaptureStatus(
        conditions=both(meta, each.status.conditions, plan.verdicts[key], ready, now),
        state=_counted(states, len(told)),
        nodes=tuple(_node(node, receipt) for node, receipt in told),
        matched=sum(receipt.matched for _, receipt in told),
        written=sum(receipt.written for _, receipt in told),
        lost=sum(receipt.lost for _, receipt in told),
        nodesProgrammed=count,
        observedGeneration=meta.generation,
    )


def _node(node: str, receipt: CaptureReceipt) -> NodeCapture:
    return NodeCapture(
        node=node, state=receipt.state, matched=receipt.matched, written=receipt.written, lost=receipt.lost,
        files=receipt.files, message=receipt.message,
    )  # fmt: skip
