"""All that the agent wants at one moment, as a value: the operator's order joined with the pods of this node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from tidegate.crds.cluster_state import BalancedService, EgressRule, OrderedCapture, Peer
from tidegate.crds.node_state import NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

TUNNEL_OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN adds over an underlay of IPv4 or IPv6: outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14."""


@dataclass(frozen=True, slots=True)
class LocalPod:
    """A pod of this node. `labels` and `namespace_labels` are None until they are known: then nothing leaves the cluster."""

    namespace: str
    name: str
    addresses: tuple[Address, ...]
    device: str
    mac: str
    born: int
    labels: Mapping[str, str] | None = None
    namespace_labels: Mapping[str, str] | None = None

    @property
    def owner(self) -> str:
        """The resource that rows of this pod serve."""
        return f"Pod/{self.namespace}/{self.name}"

    @property
    def is_known(self) -> bool:
        """Whether the policies that select it can be told."""
        return self.labels is not None and self.namespace_labels is not None


@dataclass(frozen=True, slots=True)
class Order:
    """The operator's order for `node`, of services and captures those that it has to do with, and the node's pods.

    `dsr` has all services that use direct return, whoever balances them: the node may be a backend of any of them.
    `dead` has for each service's name the backends, by name, that the health checks have taken out.
    """

    node: str
    network: ClusterNetworkSpec = field(default_factory=ClusterNetworkSpec)
    cluster_cidrs: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    rules: tuple[EgressRule, ...] = ()
    state: NodeStateSpec = field(default_factory=NodeStateSpec)
    node_labels: Mapping[str, str] = field(default_factory=dict)
    pods: tuple[LocalPod, ...] = ()
    services: tuple[BalancedService, ...] = ()
    dsr: tuple[BalancedService, ...] = ()
    captures: tuple[OrderedCapture, ...] = ()
    dead: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def own_addresses(self) -> tuple[Address, ...]:
        """The addresses under which the other nodes know this one."""
        return next((addresses(peer) for peer in self.peers if peer.node == self.node), ())

    @property
    def others(self) -> tuple[Peer, ...]:
        """Every node but this one."""
        return tuple(peer for peer in self.peers if peer.node != self.node)


def addresses(peer: Peer) -> tuple[Address, ...]:
    """Return a node's addresses as objects, in their order."""
    return tuple(ip_address(text) for text in peer.addresses)


def mapped(address: Address) -> bytes:
    """Return 16 bytes as the maps have them: IPv4 as ::ffff:a.b.c.d.

    >>> mapped(IPv4Address("192.0.2.1")).hex()
    '00000000000000000000ffffc0000201'
    """
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def mapped_prefix(network: Network) -> tuple[int, bytes]:
    """Return prefix length and address of a network among mapped addresses."""
    return network.prefixlen + (0 if network.version == 6 else 96), mapped(network.network_address)


def tunnel_mtu(uplink_mtu: int, endpoint: Address | None) -> int:
    """Return the largest inner packet, bytes, for tunnel endpoints of the family of `endpoint`."""
    return uplink_mtu - TUNNEL_OVERHEAD[endpoint.version if endpoint else 4]


def of_version(candidates: tuple[Address, ...], version: int) -> Any:
    """Return the first address of an IP version, or None."""
    return next((address for address in candidates if address.version == version), None)
