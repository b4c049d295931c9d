"""Egress policies on this node: which of its pods go where, and what it sends with where it is a gateway itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from tidegate.crds.cluster_state import EgressRule, RuleGateway
from tidegate.crds.egress import PodSelection
from tidegate.crds.precedence import compile_rules
from tidegate.crds.rendezvous import gateway_slots
from tidegate.datapath.facts import Facts
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.order import Address, LocalPod, Network, Order, mapped, mapped_prefix, of_version
from tidegate.datapath.table import Row
from tidegate.datapath.tables.routes import Route

_MASQUERADE = 0
_SLOT_EMPTY = 255  # tg_abi.h
_PATH_ALLOW = 1


def lower(order: Order, facts: Facts) -> Iterator[Row]:
    """Yield the rows of all policies that concern this node: as the home of selected pods, or as their gateway."""
    for rules in {matching(order, pod) for pod in order.pods if pod.is_known} - {()}:
        yield from _class_rows(rules)
    for rule in order.rules:
        owner = f"EgressPolicy/{rule.name}"
        yield Row("tg_path", fields(value=rule.number), _path(order, rule), owner)
        mine = next((gateway for gateway in rule.gateways if gateway.node == order.node), None)
        if mine:
            yield Row("tg_source", fields(value=rule.number), _source(order, facts, mine), owner)
    yield Row("tg_source", fields(value=_MASQUERADE), _masquerade(order), "ClusterNetwork/default")
    for held in order.state.egressAddresses:
        address = ip_address(held.address)
        if address not in facts.own_addresses:
            yield from _answer_for(address, held.interface, facts, held.owner)


def matching(order: Order, pod: LocalPod) -> tuple[EgressRule, ...]:
    """Return the rules that select a pod, in the order's order. The pod's labels must be known."""
    return tuple(rule for rule in order.rules if any(_selects(part, order, pod) for part in rule.selectors))


def _selects(part: PodSelection, order: Order, pod: LocalPod) -> bool:
    asked = (
        (part.podSelector, pod.labels),
        (part.namespaceSelector, pod.namespace_labels),
        (part.nodeSelector, order.node_labels),
    )
    return all(selector is None or selector.matches(labels or {}) for selector, labels in asked)


def policy_class(order: Order, pod: LocalPod) -> int:
    """Name the set of rules that select a pod by their compiled contents; 0 is the empty set.

    A digest, so that a change of contents is a new class: it is filled first and the pods switch to it in one step.
    """
    rules = matching(order, pod) if pod.is_known else ()
    return class_number(compile_rules(rules)) if rules else 0


def class_number(compiled: dict[Network, EgressRule | None]) -> int:
    """Digest compiled rules into 32 bits that are not zero."""
    lines = sorted(f"{prefix} {rule.number if rule else 0}" for prefix, rule in compiled.items())
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def _class_rows(rules: tuple[EgressRule, ...]) -> Iterator[Row]:
    compiled = compile_rules(rules)
    number = class_number(compiled)
    for prefix, rule in compiled.items():
        length, addr = mapped_prefix(prefix)
        key = fields(prefixlen=32 + length, policy_class=number, addr=addr)
        owner = f"EgressPolicy/{(rule or rules[0]).name}"
        yield Row("tg_egress", key, fields(number=rule.number if rule else 0), owner)


def _path(order: Order, rule: EgressRule) -> Fields:
    """The gateways of a rule as 64 slots; a pod's slot picks one. This node stands there as the zero address."""
    members = b"".join(
        bytes(16) if gateway.node == order.node else mapped(ip_address(gateway.endpoint)) for gateway in rule.gateways
    )
    slots = bytes(gateway_slots(rule.gateways)) or bytes([_SLOT_EMPTY]) * 64
    return fields(slot=slots, gateway=members.ljust(1024, b"\0"), flags=_PATH_ALLOW if rule.whenNoGateway == "Allow" else 0)


def _source(order: Order, facts: Facts, gateway: RuleGateway) -> Fields:
    interface = facts.interface(gateway.interface) if gateway.interface else None
    own = tuple(ip_address(text) for text in gateway.addresses)
    return _source_fields(order, own, interface.ifindex if interface else 0)


def _masquerade(order: Order) -> Fields:
    return _source_fields(order, order.own_addresses, 0)


def _source_fields(order: Order, own: tuple[Address, ...], ifindex: int) -> Fields:
    ip4, ip6 = of_version(own, 4), of_version(own, 6)
    low, high = order.network.masquerade.portRange.split("-")
    return fields(
        ip4=mapped(ip4) if ip4 else b"",
        ip6=mapped(ip6) if ip6 else b"",
        ifindex=ifindex,
        port_min=int(low),
        port_max=int(high),
    )


def _answer_for(address: Address, interface: str, facts: Facts, owner: str) -> Iterator[Row]:
    """Let the node answer for an address that is on none of its devices.

    A local route makes IPv4 answer ARP for it; IPv6 answers neighbour solicitations only for proxy entries.
    """
    yield Row("routes", ip_network(address), Route(device="lo", kind="local"), owner)
    if address.version == 6:
        for device in [interface] if interface else [uplink.name for uplink in facts.uplinks]:
            yield Row("sysctls", f"net/ipv6/conf/{device}/proxy_ndp", "1", owner)
            yield Row("neighbours", (device, address), "proxy", owner)
