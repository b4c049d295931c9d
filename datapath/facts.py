"""What only this node knows: its devices, addresses and next hops, read from the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from tidegate.crds.routing import Owned
from tidegate.datapath.tables.netlink import FAMILY, Netlink, refusals

Address = IPv4Address | IPv6Address

_UNUSABLE = 0x08 | 0x20 | 0x40  # IFA_F_DADFAILED, IFA_F_DEPRECATED, IFA_F_TENTATIVE
_GROUPS = sum(1 << (group - 1) for group in (1, 5, 7, 8, 9, 11, 19))
"""Links, and addresses, routes and rules of both families (linux/rtnetlink.h). Not neighbours: the kernel learns all day."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A device that may carry packets out; `addresses` are usable ones, IPv4 first, global before private."""

    name: str
    ifindex: int
    mtu: int
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Hop:
    """The way to an address: `gateway` is None if it is a neighbour."""

    device: str
    ifindex: int
    gateway: Address | None


@dataclass(frozen=True, slots=True)
class Facts:
    """`links` holds the index of every device that has our prefix."""

    uplinks: tuple[Interface, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    own_addresses: frozenset[Address] = frozenset()
    links: Mapping[str, int] = field(default_factory=dict)
    next_hops: Mapping[Address, Hop] = field(default_factory=dict)
    kernel: str = ""

    def interface(self, name: str) -> Interface | None:
        """Return a device by name."""
        return next((item for item in self.interfaces if item.name == name), None)


def read_facts(netlink: Netlink, owned: Owned, uplinks: Sequence[str], destinations: Iterable[Address]) -> Facts:
    """Read everything; `uplinks` names the devices that lead out (empty: those of the default routes)."""
    with refusals():
        links = {item.get_attr("IFLA_IFNAME"): item for item in netlink.route.get_links()}
        by_index: dict[int, list[Address]] = {}
        for entry in netlink.route.get_addr():
            # Point-to-point devices have the own address in LOCAL and the other end's in ADDRESS.
            address = ip_address(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS"))
            if _is_usable(address, entry.get_attr("IFA_FLAGS") or entry["flags"]):
                by_index.setdefault(entry["index"], []).append(address)
        leading_out = set(uplinks) or _default_devices(netlink, links)
    interfaces = tuple(
        Interface(name, item["index"], item.get_attr("IFLA_MTU"), tuple(sorted(by_index.get(item["index"], ()), key=_rank)))
        for name, item in links.items()
        if not name.startswith(owned.devicePrefix) and name != "lo"
    )
    return Facts(
        uplinks=tuple(item for item in interfaces if item.name in leading_out),
        interfaces=tuple(item for item in interfaces if item.addresses),
        own_addresses=frozenset(address for addresses in by_index.values() for address in addresses),
        links={name: item["index"] for name, item in links.items() if name.startswith(owned.devicePrefix)},
        next_hops={address: hop for address in destinations if (hop := _next_hop(netlink, address))},
        kernel=os.uname().release,
    )


def _is_usable(address: Address, flags: int) -> bool:
    return not (address.is_link_local or address.is_loopback or flags & _UNUSABLE)


def _rank(address: Address) -> tuple[int, bool]:
    # The kernel lists primary addresses first; the sort is stable and keeps that.
    return address.version, address.is_private


def _default_devices(netlink: Netlink, links: Mapping[str, Any]) -> set[str]:
    names = {item["index"]: name for name, item in links.items()}
    found = set()
    for family in FAMILY.values():
        for route in netlink.route.get_default_routes(family=family, table=254):
            hops = route.get_attr("RTA_MULTIPATH") or ()
            for index in [route.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]:
                if index in names:
                    found.add(names[index])
    return found


def _next_hop(netlink: Netlink, address: Address) -> Hop | None:
    route = netlink.route_to(address)
    if route is None:
        return None
    index, gateway = route.get_attr("RTA_OIF"), route.get_attr("RTA_GATEWAY")
    return Hop(socket.if_indextoname(index), index, ip_address(gateway) if gateway else None)


def has_tcx() -> bool:
    """Whether the kernel attaches tc programs by links (6.6)."""
    release = os.uname().release.split("-")[0].split(".")
    return (int(release[0]), int(release[1])) >= (6, 6)


async def watch_changes(changed: Callable[[], None]) -> None:
    """Call `changed` whenever devices, addresses, routes or rules change, until cancelled.

    What changed is not said: the tables are read again anyway, and an overrun queue must count as a change too.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as events:
        events.bind((0, _GROUPS))

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        events.recv(65536)
                    except OSError as error:
                        if error.errno != errno.ENOBUFS:
                            raise
            changed()

        loop.add_reader(events, readable)
        try:
            await asyncio.Event().wait()
        finally:
            loop.remove_reader(events)
