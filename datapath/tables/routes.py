"""The routes of our routing table."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Literal

from tidegate.crds.routing import Owned
from tidegate.datapath.tables.netlink import ENOENT, ESRCH, FAMILY, Netlink, refusals

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_LOCAL = 2  # RTN_LOCAL
_SCOPE_HOST, _SCOPE_LINK, _SCOPE_UNIVERSE = 254, 253, 0


@dataclass(frozen=True, slots=True)
class Route:
    """Where packets to a destination go; `source` is what the node itself sends with."""

    device: str
    gateway: Address | None = None
    source: Address | None = None
    kind: Literal["unicast", "local"] = "unicast"


class RouteTable:
    """Key destination network, value Route. Routes of our table that carry our protocol number are ours."""

    name = "routes"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._table = owned.routingTable
        self._protocol = owned.routeProtocol

    def read(self) -> Mapping[Network, Route]:
        """Return our routes of both families."""
        devices = dict(socket.if_nameindex())
        found = {}
        with refusals():
            for version, family in FAMILY.items():
                for route in self._netlink.route.get_routes(family=family, table=self._table):
                    if route["proto"] == self._protocol:
                        found[_destination(route, version)] = _value(route, devices)
        return found

    def put(self, key: Network, value: Route) -> None:
        """Add the route, or replace it in one step."""
        scope = _SCOPE_HOST if value.kind == "local" else _SCOPE_UNIVERSE if value.gateway else _SCOPE_LINK
        wanted: dict[str, Any] = {"oif": self._netlink.index(value.device), "type": value.kind}
        if key.version == 4:
            wanted["scope"] = scope
        if value.gateway:
            wanted["gateway"] = str(value.gateway)
        if value.source:
            wanted["prefsrc"] = str(value.source)
        with refusals():
            self._netlink.route.route("replace", **self._name(key), **wanted)

    def drop(self, key: Network) -> None:
        """Remove the route."""
        with refusals(ENOENT, ESRCH):
            self._netlink.route.route("del", **self._name(key))

    def _name(self, key: Network) -> dict[str, Any]:
        return {"family": FAMILY[key.version], "dst": str(key), "table": self._table, "proto": self._protocol}


def _destination(route: Any, version: int) -> Network:
    everything = "0.0.0.0" if version == 4 else "::"
    return ip_network(f"{route.get_attr('RTA_DST') or everything}/{route['dst_len']}")


def _value(route: Any, devices: dict[int, str]) -> Route:
    gateway, source = route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_PREFSRC")
    return Route(
        device=devices.get(route.get_attr("RTA_OIF"), ""),
        gateway=ip_address(gateway) if gateway else None,
        source=ip_address(source) if source else None,
        kind="local" if route["type"] == _LOCAL else "unicast",
    )
