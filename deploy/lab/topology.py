"""Which hosts a lab has, their addresses and links: pure, rendered as input for `ip -batch`.

A switch joins the nodes, the control plane and a router; behind the router stand the servers outside the cluster. Without
Kubernetes the nodes are load balancers and backends, and behind the router stands their client.
"""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from tidegate.lab.options import Options

POD_CIDRS = ("10.40.0.0/16", "fd40::/48")
SERVICE_CIDRS = ("10.96.0.0/16", "fd96::/112")
NODE_MASKS = (24, 64)
API_SERVICE = "10.96.0.1"

CONTROL, ROUTER, SWITCH = "control", "router", "switch"
SERVERS = ("legacy1", "legacy2")
CLIENT = "client"
VIPS = ("192.0.2.80", "2001:db8:80::80")

_OUTSIDE = {
    "legacy1": (ip_interface("198.51.100.10/24"), ip_interface("2001:db8:100::10/64")),
    "legacy2": (ip_interface("203.0.113.10/24"), ip_interface("2001:db8:203::10/64")),
    CLIENT: (ip_interface("198.51.100.10/24"), ip_interface("2001:db8:100::10/64")),
}

Interface = IPv4Interface | IPv6Interface


@dataclasses.dataclass(frozen=True)
class Host:
    """A namespace with an uplink `eth0` that plugs into `port` of the switch or the router."""

    name: str
    addresses: tuple[Interface, ...]
    gateways: tuple[str, ...]
    peer: str

    @property
    def ips(self) -> tuple[str, ...]:
        """Its addresses without masks, IPv4 first."""
        return tuple(str(address.ip) for address in self.addresses)


class Topology:
    """Every host of a lab."""

    def __init__(self, options: Options) -> None:
        self.options = options
        families = 2 if options.dual else 1

        def on_switch(name: str, number: int) -> Host:
            both = (ip_interface(f"172.30.0.{number}/24"), ip_interface(f"fd30::{number}/64"))
            gateways = () if name == ROUTER else ("172.30.0.1", "fd30::1")[:families]
            return Host(name, both[:families], gateways, SWITCH)

        self.router = on_switch(ROUTER, 1)
        self.control = on_switch(CONTROL, 2)
        # fd30::11 is written like its IPv4 sibling .11: a person reads both off the same number.
        self.nodes = tuple(on_switch(name, 10 + number) for number, name in enumerate(options.node_names, 1))
        self.servers = tuple(
            Host(name, _OUTSIDE[name][:families], _first_hosts(name)[:families], ROUTER)
            for name in ((CLIENT,) if options.standalone_lb else SERVERS)
        )
        self.vips = VIPS[:families]
        self.pod_cidrs = POD_CIDRS[:families]
        self.service_cidrs = SERVICE_CIDRS[:families]

    @property
    def plugged(self) -> tuple[Host, ...]:
        """All hosts that have an uplink, in the order in which they are made."""
        control = () if self.options.standalone_lb else (self.control,)
        return (self.router, *control, *self.nodes, *self.servers)

    def namespace(self, host: str) -> str:
        """Name the namespace of a host."""
        return f"tgl-{self.options.name}-{host}"

    @property
    def namespaces(self) -> list[str]:
        """Name all namespaces of the lab."""
        return [self.namespace(name) for name in (SWITCH, *(host.name for host in self.plugged))]

    def creation(self) -> list[str]:
        """Lines for `ip -batch` that make namespaces and cables; no device ever is in the caller's namespace."""
        lines = [f"netns add {name}" for name in self.namespaces]
        lines.append(f"link add bridge netns {self.namespace(SWITCH)} type bridge forward_delay 0 stp_state 0")
        lines += [
            f"link add eth0 netns {self.namespace(host.name)} type veth peer name {host.name} netns {self.namespace(host.peer)}"
            for host in self.plugged
        ]
        return lines

    def switch_setup(self) -> list[str]:
        """Lines that bring the switch up, once its ports are there."""
        ports = [host.name for host in self.plugged if host.peer == SWITCH]
        return [*(f"link set {port} master bridge up" for port in ports), "link set bridge up", "link set lo up"]

    def host_setup(self, host: Host) -> list[str]:
        """Lines that address one host. `nodad`, so that nothing waits for duplicate address detection."""
        lines = ["link set lo up", *(f"address add {address}{_flags(address)} dev eth0" for address in host.addresses)]
        lines.append("link set eth0 up")
        lines += [f"route add default via {gateway} dev eth0" for gateway in host.gateways]
        if host.name == ROUTER:
            for server in self.servers:
                for address, gateway in zip(server.addresses, server.gateways, strict=True):
                    there = ip_interface(f"{gateway}/{address.network.prefixlen}")
                    lines.append(f"address add {there}{_flags(there)} dev {server.name}")
                lines.append(f"link set {server.name} up")
        return lines

    def sysctls(self, host: str) -> dict[str, str]:
        """What is set before a host's links come up: forwarding like a stock machine's, whatever this one has."""
        forwards = "1" if host == ROUTER else "0"
        settings = {"net/ipv4/ip_forward": forwards, "net/ipv6/conf/all/forwarding": forwards}
        for device in ("eth0", *(server.name for server in self.servers if host == ROUTER)):
            settings[f"net/ipv6/conf/{device}/accept_dad"] = "0"
            settings[f"net/ipv6/conf/{device}/disable_ipv6"] = "0" if self.options.dual else "1"
        return settings


def _first_hosts(server: str) -> tuple[str, ...]:
    return tuple(str(address.network[1]) for address in _OUTSIDE[server])


def _flags(address: Interface) -> str:
    return " nodad" if address.version == 6 else ""
