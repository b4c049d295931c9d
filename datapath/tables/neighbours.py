"""Neighbours that are known without asking, and addresses that the node answers for."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address

from tidegate.crds.routing import Owned
from tidegate.datapath.tables.netlink import ENODEV, ENOENT, FAMILY, NTF_PROXY, Netlink, refusals

PROXY = "proxy"
"""The value of an entry that makes the node answer for the address on that device."""

_PERMANENT = 128  # NUD_PERMANENT

NeighbourKey = tuple[str, IPv4Address | IPv6Address]


class NeighbourTable:
    """Key (device, address), value a MAC address or PROXY. Entries that carry our protocol number (kernel 5.0) are ours."""

    name = "neighbours"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._protocol = owned.routeProtocol

    def read(self) -> Mapping[NeighbourKey, str]:
        """Return our entries of both families."""
        devices = dict(socket.if_nameindex())
        found: dict[NeighbourKey, str] = {}
        with refusals():
            for entry in self._netlink.route.get_neighbours():
                if entry.get_attr("NDA_PROTOCOL") == self._protocol and entry["state"] & _PERMANENT:
                    device = devices.get(entry["ifindex"], "")
                    found[device, ip_address(entry.get_attr("NDA_DST"))] = entry.get_attr("NDA_LLADDR")
            for family in FAMILY.values():
                for ifindex, address, protocol in self._netlink.proxies(family):
                    if protocol == self._protocol:
                        found[devices.get(ifindex, ""), address] = PROXY
        return found

    def put(self, key: NeighbourKey, value: str) -> None:
        """Add or replace the entry."""
        flags = {"flags": NTF_PROXY} if value == PROXY else {"lladdr": value, "state": "permanent"}
        with refusals():
            self._netlink.route.neigh("replace", **self._name(key), **flags, NDA_PROTOCOL=self._protocol)

    def drop(self, key: NeighbourKey) -> None:
        """Remove the entry, of whichever kind it is."""
        if key[0] not in {name for _, name in socket.if_nameindex()}:
            return
        with refusals(ENOENT, ENODEV):
            self._netlink.route.neigh("del", **self._name(key))
        with refusals(ENOENT, ENODEV):
            self._netlink.route.neigh("del", **self._name(key), flags=NTF_PROXY)

    def _name(self, key: NeighbourKey) -> dict[str, object]:
        device, address = key
        return {"family": FAMILY[address.version], "dst": str(address), "ifindex": self._netlink.index(device)}
