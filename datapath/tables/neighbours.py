"""Neighbour entries: permanent ones of pods, and proxies that answer for egress addresses.

Ours is what has our protocol number (kernel 5.2); what the kernel learns by itself has none.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from tidegate.crds.routing import Owned
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.netlink import Netlink

Key = tuple[str, IPv4Address | IPv6Address]
"""(device, address)"""

PROXY = "proxy"
"""The value of an entry that makes the node answer for the address."""

_GONE = (errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO)


class NeighbourTable:
    """Rows: (device, address) -> Ethernet address or `PROXY`."""

    name = "neighbours"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._protocol = owned.routeProtocol

    def read(self) -> Mapping[Key, str]:
        """Return our entries. One that somebody made temporary, or that is there in both forms, has a value of its own."""
        rows: dict[Key, str] = {}
        for family in rtnl.FAMILY.values():
            for flags in (0, rtnl.NTF_PROXY):
                for body in self._netlink.dump(rtnl.GETNEIGH, rtnl.nd(family, flags=flags)):
                    attributes = rtnl.attributes(body, rtnl.ND)
                    device = self._netlink.name(rtnl.number(body[4:8]))
                    if device is None or rtnl.number(attributes.get(rtnl.NDA_PROTOCOL)) != self._protocol:
                        continue
                    key = (device, rtnl.address(attributes[rtnl.NDA_DST]))
                    value = _value(body, attributes)
                    rows[key] = f"{rows[key]} and {value}" if key in rows else value
        return rows

    def put(self, key: Key, value: str) -> None:
        """Add or replace; an entry of the other form, if ours, goes."""
        device, address = key
        index = self._netlink.need_index(device)
        is_proxy = value == PROXY
        if self._is_ours(index, address, not is_proxy):
            self._delete(index, address, not is_proxy)
        state, flags = (0, rtnl.NTF_PROXY) if is_proxy else (rtnl.NUD_PERMANENT, 0)
        body = rtnl.nd(rtnl.FAMILY[address.version], index, state, flags) + rtnl.attr(rtnl.NDA_DST, address.packed)
        if not is_proxy:
            body += rtnl.attr(rtnl.NDA_LLADDR, rtnl.mac_bytes(value))
        body += rtnl.u8(rtnl.NDA_PROTOCOL, self._protocol)
        self._netlink.change((rtnl.NEWNEIGH, rtnl.CREATE | rtnl.REPLACE, body))

    def drop(self, key: Key) -> None:
        """Remove the entry; with a device that is gone its entries are gone too."""
        device, address = key
        index = self._netlink.index(device)
        if index is None:
            return
        for is_proxy in (False, True):
            if self._is_ours(index, address, is_proxy):
                self._delete(index, address, is_proxy)

    def _is_ours(self, index: int, address: IPv4Address | IPv6Address, is_proxy: bool) -> bool:
        body = self._netlink.get(rtnl.GETNEIGH, _head(index, address, is_proxy))
        if body is None:
            return False
        return rtnl.number(rtnl.attributes(body, rtnl.ND).get(rtnl.NDA_PROTOCOL)) == self._protocol

    def _delete(self, index: int, address: IPv4Address | IPv6Address, is_proxy: bool) -> None:
        self._netlink.change((rtnl.DELNEIGH, 0, _head(index, address, is_proxy)), gone=_GONE)


def _head(index: int, address: IPv4Address | IPv6Address, is_proxy: bool) -> bytes:
    flags = rtnl.NTF_PROXY if is_proxy else 0
    return rtnl.nd(rtnl.FAMILY[address.version], index, flags=flags) + rtnl.attr(rtnl.NDA_DST, address.packed)


def _value(body: bytes, attributes: Mapping[int, bytes]) -> str:
    if body[10] & rtnl.NTF_PROXY:
        return PROXY
    mac = rtnl.mac_text(attributes.get(rtnl.NDA_LLADDR, b""))
    return mac if rtnl.number(body[8:10]) == rtnl.NUD_PERMANENT else f"{mac} temporary"
