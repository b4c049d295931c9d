"""The network that all pods share: tunnel, routes between nodes, and what the programs must know of the cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

from tidegate.crds.cluster_state import Peer
from tidegate.datapath.facts import Facts, Hop
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.lowering import lb_backend
from tidegate.datapath.order import Network, Order, addresses, mapped, mapped_prefix, of_version, tunnel_mtu
from tidegate.datapath.owned import tunnel_device
from tidegate.datapath.table import Row
from tidegate.datapath.tables.links import VxlanLink
from tidegate.datapath.tables.routes import Route

OWNER = "ClusterNetwork/default"

TUNNEL_MAC = "02:74:67:00:00:02"
"""The same on all nodes, since the programs write it as the destination of every inner frame (tg_rewrite.h)."""

# tg_abi.h
_STACK, _PEER, _NONE, _DIRECT = 1, 2, 3, 4


def lower(order: Order, facts: Facts) -> Iterator[Row]:
    """Yield the rows of the node's network; those that need the tunnel device wait until it is there.

    A machine without pods around it, which only balances or is a backend, has nothing of it but what the programs need.
    """
    if has_pods(order):
        yield from _pod_network(order, facts)
        yield from _uplinks(facts)
    elif order.services or lb_backend.is_backend(order, facts):
        yield Row("tg_config", (), _config(order, 0), OWNER)
        if order.services:
            yield from _forwarding()
        if lb_backend.is_backend(order, facts):
            yield from _uplinks(facts)


def has_pods(order: Order) -> bool:
    """Return whether the node is part of a network of pods."""
    return bool(order.cluster_cidrs or order.state.podCIDRs or order.others or order.pods)


def _forwarding() -> Iterator[Row]:
    yield Row("sysctls", "net/ipv4/ip_forward", "1", OWNER)
    yield Row("sysctls", "net/ipv6/conf/all/forwarding", "1", OWNER)


def _uplinks(facts: Facts) -> Iterator[Row]:
    for uplink in facts.uplinks:
        yield Row("programs", (uplink.name, "ingress"), "uplink_in", OWNER)
        yield Row("programs", (uplink.name, "egress"), "uplink_out", OWNER)


def _pod_network(order: Order, facts: Facts) -> Iterator[Row]:
    network = order.network
    device = tunnel_device(network.owned)
    endpoint = order.own_addresses[0] if order.own_addresses else None
    uplink_mtu = network.mtu or min((uplink.mtu for uplink in facts.uplinks), default=1500)
    link = VxlanLink(network.tunnel.port, tunnel_mtu(uplink_mtu, endpoint), TUNNEL_MAC)
    yield Row("links", device, link, OWNER)
    yield from _forwarding()
    for version in (4, 6):
        yield Row("rules", (version, network.owned.rulePriority), network.owned.routingTable, OWNER)
    # Without an owner: where netfilter is missing nothing is lost, and no resource is less ready for it.
    yield Row("notrack", "tunnel", network.tunnel.port, "")
    if device in facts.links:
        yield Row("tg_config", (), _config(order, facts.links[device]), OWNER)
        yield Row("programs", (device, "ingress"), "tunnel_in", OWNER)
        yield Row("programs", (device, "egress"), "tunnel_out", OWNER)
    for cidr, value in _ranges(order, facts).items():
        prefixlen, addr = mapped_prefix(cidr)
        yield Row("tg_range", fields(prefixlen=prefixlen, addr=addr), value, OWNER)
    for peer in order.others:
        for text in peer.podCIDRs:
            route = _route(order, facts, peer, ip_network(text))
            if route:
                yield Row("routes", ip_network(text), route, f"Node/{peer.node}")


def _config(order: Order, tunnel_ifindex: int) -> Fields:
    network = order.network
    return fields(
        tunnel_ifindex=tunnel_ifindex,
        vni_base=network.tunnel.vniBase,
        mark=network.owned.markMask,
        mark_mask=network.owned.markMask,
        tunnel_port=network.tunnel.port,
    )


def _ranges(order: Order, facts: Facts) -> dict[Network, Fields]:
    """What each destination is; where two say so of the same prefix, the later one here counts."""
    network = order.network
    found: dict[Network, Fields] = {}
    direct = network.masquerade.nonMasqueradeCIDRs if network.masquerade.enabled else ("0.0.0.0/0", "::/0")
    for text in direct:
        found[ip_network(text)] = fields(kind=_DIRECT)
    for text in (*order.cluster_cidrs, *order.state.podCIDRs):
        found[ip_network(text)] = fields(kind=_NONE)
    for text in network.serviceCIDRs:
        found[ip_network(text)] = fields(kind=_STACK)
    for peer in order.others:
        for cidr in (*map(ip_network, peer.podCIDRs), *map(ip_network, addresses(peer))):
            found[cidr] = _towards(order, facts, peer, cidr.version)
    for address in (*facts.own_addresses, *order.own_addresses):
        found[ip_network(address)] = fields(kind=_STACK)
    return found


def _towards(order: Order, facts: Facts, peer: Peer, version: int) -> Fields:
    if order.network.routingMode == "native":
        hop = _next_hop(facts, peer, version)
        return fields(kind=_PEER, via=mapped(hop.gateway), ifindex=hop.ifindex) if hop and hop.gateway else fields(kind=_NONE)
    return fields(kind=_PEER, via=mapped(addresses(peer)[0]))


def _route(order: Order, facts: Facts, peer: Peer, cidr: Network) -> Route | None:
    """The stack's own route to another node's pods: for the node itself, and for what netfilter translates."""
    source = of_version(order.own_addresses, cidr.version)
    if order.network.routingMode == "native":
        hop = _next_hop(facts, peer, cidr.version)
        return Route(device=hop.device, gateway=hop.gateway, source=source) if hop else None
    device = tunnel_device(order.network.owned)
    return Route(device=device, source=source) if device in facts.links else None


def _next_hop(facts: Facts, peer: Peer, version: int) -> Hop | None:
    """The way to a peer; one on the same link is its own gateway."""
    address = of_version(addresses(peer), version)
    hop = facts.next_hops.get(address) if address else None
    return replace(hop, gateway=hop.gateway or address) if hop else None
