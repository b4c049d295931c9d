"""Egress policies on this node: which of its pods go where, and what it sends with where it is a gateway itself."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from tidegate.crds.cluster_state import EgressRule, RuleGateway
from tidegate.crds.egress import PodSelection
from tidegate.crds.precedence import compile_rules
from tidegate.crds.rendezvous import SLOTS, gateway_slots
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
    for number, compiled in {kind.number: kind.compiled for kind in classes(order).values()}.items():
        yield from _class_rows(number, compiled)
    for rule in order.rules:
        owner = f"EgressPolicy/{rule.name}"
        yield Row("tg_path", fields(value=rule.number), _path(order, rule), owner)
        for gateway in rule.gateways:
            if gateway.node == order.node:
                yield Row("tg_source", fields(value=gateway.number), _source(order, facts, gateway), owner)
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


@dataclass(frozen=True, slots=True)
class PolicyClass:
    """The compiled rules that a set of pods shares. `number` is a digest of them.

    A change of contents is therefore a new class: it is filled first, and the pods switch to it in one step.
    """

    number: int
    compiled: Mapping[Network, EgressRule | None]


def classes(order: Order) -> dict[str, PolicyClass]:
    """Return the class of every pod that a rule selects, by the pod's owner name. Pods that are not known have none."""
    made: dict[tuple[int, ...], PolicyClass] = {}
    found = {}
    for pod in order.pods:
        rules = matching(order, pod) if pod.is_known else ()
        if rules:
            key = tuple(rule.number for rule in rules)
            if key not in made:
                compiled = compile_rules(rules)
                made[key] = PolicyClass(_digest(compiled), compiled)
            found[pod.owner] = made[key]
    return found


def _digest(compiled: Mapping[Network, EgressRule | None]) -> int:
    """Digest compiled rules into 32 bits that are not zero: zero is the class of pods without a policy."""
    lines = sorted(f"{prefix} {rule.number if rule else 0}" for prefix, rule in compiled.items())
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def _class_rows(number: int, compiled: Mapping[Network, EgressRule | None]) -> Iterator[Row]:
    for prefix, rule in compiled.items():
        length, addr = mapped_prefix(prefix)
        key = fields(prefixlen=32 + length, policy_class=number, addr=addr)
        owner = f"EgressPolicy/{rule.name}" if rule else ""
        yield Row("tg_egress", key, fields(number=rule.number if rule else 0), owner)


def _path(order: Order, rule: EgressRule) -> Fields:
    """The gateways of a rule as 64 slots; a pod's slot picks one. This node stands there as the zero address."""
    chosen = gateway_slots(rule.gateways)
    # However many gateways there are, no more than 64 of them have a slot.
    members = sorted(set(chosen))
    numbers = b"".join(rule.gateways[index].number.to_bytes(4, sys.byteorder) for index in members)
    packed = b"".join(
        bytes(16) if gateway.node == order.node else mapped(ip_address(gateway.endpoint))
        for gateway in (rule.gateways[index] for index in members)
    )
    slots = bytes(members.index(index) for index in chosen) or bytes([_SLOT_EMPTY]) * SLOTS
    flags = _PATH_ALLOW if rule.whenNoGateway == "Allow" else 0
    return fields(
        slot=slots,
        gateway=packed.ljust(16 * SLOTS, b"\0"),
        number=numbers.ljust(4 * SLOTS, b"\0"),
        flags=flags,
    )


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
    """Let the node answer for an address that is on none of its devices, and say so to the neighbours.

    A local route makes IPv4 answer ARP for it; IPv6 answers neighbour solicitations only for proxy entries.
    """
    yield Row("routes", ip_network(address), Route(device="lo", kind="local"), owner)
    for device in [interface] if interface else [uplink.name for uplink in facts.uplinks]:
        if address.version == 6:
            yield Row("sysctls", f"net/ipv6/conf/{device}/proxy_ndp", "1", owner)
            yield Row("neighbours", (device, address), "proxy", owner)
        yield Row("announcements", (device, address), True, owner)
