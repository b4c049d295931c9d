"""Which nodes are a policy's gateways, with which addresses; an egress address has one holder at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.crds import cidr, rendezvous
from tidegate.crds.cluster_state import EgressRule, RuleGateway
from tidegate.crds.egress import EgressPolicy, GatewaySelection
from tidegate.crds.node_state import HeldAddress, NodeState
from tidegate.crds.reasons import Reason
from tidegate.operator.cluster import Cluster, Node
from tidegate.operator.plan import Finding
from tidegate.operator.planners.ipam import shorten

Entry = tuple[str, int]
"""A policy's name and the index of one of its `gateways`."""


@dataclass(frozen=True)
class Holding:
    """Who holds which egress address, after this decision.

    `holders` has the entries whose addresses may be used now, `waiting` those that still wait for a node to let go.
    """

    held: Mapping[str, Sequence[HeldAddress]] = field(default_factory=dict)
    releasing: Mapping[str, Sequence[str]] = field(default_factory=dict)
    holders: Mapping[Entry, str] = field(default_factory=dict)
    waiting: Mapping[Entry, str] = field(default_factory=dict)


def hold(cluster: Cluster, policies: Sequence[EgressPolicy]) -> Holding:
    """Give each egress address to one node. It moves only when its holder cannot keep it, and only once that let go."""
    ordered = {
        held.address: name
        for name, state in sorted(cluster.states.items())
        if name in cluster.nodes
        for held in state.spec.egressAddresses
    }
    held: dict[str, list[HeldAddress]] = defaultdict(list)
    holders: dict[Entry, str] = {}
    waiting: dict[Entry, str] = {}
    for policy in policies:
        for index, gateway in enumerate(policy.spec.gateways):
            if not gateway.egressIPs:
                continue
            entry, node = (policy.metadata.name, index), _holder(cluster, gateway, ordered)
            if node is None:
                continue
            # What the node was given already it keeps, even while an old holder that was dead comes back and lets go.
            new = [text for text in gateway.egressIPs if ordered.get(text) != node]
            busy = sorted({other for text in new for other in _users(cluster, text) if other != node})
            if busy:
                waiting[entry] = busy[0]
                continue
            holders[entry] = node
            owner = f"EgressPolicy/{policy.metadata.name}"
            held[node] += [HeldAddress(address=text, owner=owner) for text in gateway.egressIPs]
    return Holding(
        held={name: tuple(found) for name, found in held.items()},
        releasing=_releasing(cluster, held),
        holders=holders,
        waiting=waiting,
    )


def _holder(cluster: Cluster, gateway: GatewaySelection, ordered: Mapping[str, str]) -> str | None:
    labelled = {node.metadata.name for node in cluster.selected(gateway.nodeSelector)}
    live = {name for name in labelled if cluster.is_live(name) and cluster.nodes[name].addresses}
    now = next((ordered[text] for text in gateway.egressIPs if text in ordered), None)
    if now in live:
        return now
    key = " ".join(gateway.egressIPs)
    # With nobody alive to take over, the last holder keeps it: its kernel goes on without an agent.
    return rendezvous.choose(key, dict.fromkeys(live, 1)) or (now if now in labelled else None)


def _users(cluster: Cluster, address: str) -> list[str]:
    """Return the nodes with a living agent that may still answer for an address."""
    return [
        name
        for name, state in cluster.states.items()
        if name in cluster.alive
        and (
            any(held.address == address for held in state.spec.egressAddresses)
            or (address in state.spec.releasing and not _has_let_go(state, address))
            or address in state.status.heldAddresses
        )
    ]


def _has_let_go(state: NodeState, address: str) -> bool:
    return state.status.observedGeneration >= state.metadata.generation and address not in state.status.heldAddresses


def _releasing(cluster: Cluster, held: Mapping[str, Sequence[HeldAddress]]) -> dict[str, tuple[str, ...]]:
    found = {}
    for name, state in cluster.states.items():
        kept = {each.address for each in held.get(name, ())}
        taken_away = {each.address for each in state.spec.egressAddresses} - kept
        unproven = {text for text in state.spec.releasing if not _has_let_go(state, text)} - kept
        if taken_away | unproven:
            found[name] = tuple(sorted(taken_away | unproven))
    return found


def choose(
    cluster: Cluster, policy: EgressPolicy, holding: Holding, numbers: Sequence[int]
) -> tuple[tuple[RuleGateway, ...], Finding | None]:
    """Return a policy's gateways, and why it is not ready as far as that is known before any receipt.

    `numbers` are those of its entries on the tunnel.
    """
    families = sorted({cidr.network(text).version for text in policy.spec.destinationCIDRs})
    chosen: list[RuleGateway] = []
    problems: list[Finding] = []
    labelled = 0
    for index, gateway in enumerate(policy.spec.gateways):
        nodes = cluster.selected(gateway.nodeSelector)
        labelled += len(nodes)
        entry = (policy.metadata.name, index)
        if gateway.egressIPs:
            nodes = [cluster.nodes[holding.holders[entry]]] if entry in holding.holders else []
            if entry in holding.waiting:
                problems.append(_moving(gateway, holding.waiting[entry]))
        for node in nodes:
            if cluster.is_live(node.metadata.name) and node.addresses:
                chosen.append(_gateway(cluster, gateway, node, numbers[index]))
                if lacking := _lacking(chosen[-1], families):
                    problems.append(_addressless(index, gateway, node.metadata.name, lacking))
    if chosen:
        # One that can serve every family is better than one that drops half.
        whole = [each for each in chosen if not _lacking(each, families)]
        return _ordered(whole or chosen), problems[0] if problems else None
    if labelled == 0:
        wanted = " or ".join(_describe(gateway) for gateway in policy.spec.gateways)
        return (), Finding(False, Reason.NO_GATEWAY, f"no node has the label {wanted}: label one with kubectl label node")
    if problems:
        return (), problems[0]
    return _last_resort(cluster, policy)


def _last_resort(cluster: Cluster, policy: EgressPolicy) -> tuple[tuple[RuleGateway, ...], Finding]:
    """Nobody is alive. What was in force stays, unless the author prefers packets to leave without a gateway."""
    message = "the nodes that have the label are not Ready, or their agent is silent: look at kubectl get nodes,tidegate"
    finding = Finding(False, Reason.NO_LIVE_GATEWAY, message)
    if policy.spec.whenNoGateway == "Allow":
        return (), finding
    labelled = {node.metadata.name for gateway in policy.spec.gateways for node in cluster.selected(gateway.nodeSelector)}
    last = next((each for shard in cluster.shards.values() for each in shard.spec.egress if _is(each, policy)), None)
    return tuple(each for each in last.gateways if each.node in labelled) if last else (), finding


def _is(rule: EgressRule, policy: EgressPolicy) -> bool:
    return rule.uid == policy.metadata.uid


def _gateway(cluster: Cluster, gateway: GatewaySelection, node: Node, number: int) -> RuleGateway:
    name = node.metadata.name
    available: Sequence[str] = node.addresses
    if gateway.egressIPs:
        available = gateway.egressIPs
    elif gateway.interface:
        facts = cluster.states[name].status.interfaces if name in cluster.states else ()
        available = next((each.addresses for each in facts if each.name == gateway.interface), ())
    first: dict[int, str] = {}
    for text in available:
        first.setdefault(cidr.address(text).version, text)
    return RuleGateway(
        node=name,
        number=number,
        endpoint=node.addresses[0],
        weight=gateway.weight,
        addresses=tuple(text for _, text in sorted(first.items())),
        interface=gateway.interface,
    )


def _lacking(gateway: RuleGateway, families: Sequence[int]) -> list[int]:
    present = {cidr.address(text).version for text in gateway.addresses}
    return [family for family in families if family not in present]


def _ordered(gateways: Sequence[RuleGateway]) -> tuple[RuleGateway, ...]:
    return tuple(sorted(gateways, key=lambda each: (each.node, list(each.addresses))))


def _moving(gateway: GatewaySelection, node: str) -> Finding:
    addresses = " and ".join(gateway.egressIPs)
    return Finding(False, Reason.ADDRESS_MOVING, f"{addresses}: waits until {node} has let go of it")


def _addressless(index: int, gateway: GatewaySelection, node: str, families: Sequence[int]) -> Finding:
    lacking = " and ".join(f"IPv{family}" for family in families)
    if gateway.egressIPs:
        message = f"spec.gateways[{index}].egressIPs has no {lacking} address, which a destination needs: add one"
    elif gateway.interface:
        message = (
            f"gateway {node} has no {lacking} address on interface {gateway.interface}, which a destination needs: "
            "give it one, or change interface"
        )
    else:
        message = (
            f"gateway {node} has no {lacking} internal address, which a destination needs: "
            "start its kubelet with --node-ip of both families, or name an interface or egressIPs"
        )
    return Finding(False, Reason.NO_ADDRESS, message)


def _describe(gateway: GatewaySelection) -> str:
    parts = [f"{key}={value}" for key, value in sorted(gateway.nodeSelector.matchLabels.items())]
    parts += [
        f"{each.key} {each.operator} {list(each.values)}".removesuffix(" []") for each in gateway.nodeSelector.matchExpressions
    ]
    return shorten(parts) or "(any)"
