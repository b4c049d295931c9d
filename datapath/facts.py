"""What only this node knows: its uplinks, addresses and next hops; and a word whenever any of it may have changed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network

from tidegate.crds.routing import Owned
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.netlink import Netlink, NetlinkError

Address = IPv4Address | IPv6Address

_UNUSABLE = rtnl.IFA_F_DADFAILED | rtnl.IFA_F_DEPRECATED | rtnl.IFA_F_TENTATIVE
_ULA = IPv6Network("fc00::/7")

# linux/rtnetlink.h: group n is bit n - 1. Links, neighbours, and addresses, routes and rules of both families.
_GROUPS = sum(1 << (group - 1) for group in (1, 3, 5, 7, 8, 9, 11, 19))


@dataclass(frozen=True, slots=True)
class Interface:
    """A device that may serve as uplink or egress interface; `mtu` in bytes, `addresses` those usable, the best first."""

    name: str
    ifindex: int
    mac: str
    mtu: int
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Hop:
    """Where the node's own routes send packets for an address; no `gateway` means that it is on the link."""

    device: str
    ifindex: int
    gateway: Address | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that was read in one go. `links` are the devices with our prefix, pod links and the tunnel, by name."""

    uplinks: tuple[Interface, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    own_addresses: tuple[Address, ...] = ()
    links: Mapping[str, int] = field(default_factory=dict)
    next_hops: Mapping[Address, Hop] = field(default_factory=dict)
    kernel: str = ""

    def interface(self, name: str) -> Interface | None:
        """Return the interface of that name, or None."""
        return next((interface for interface in self.interfaces if interface.name == name), None)


@dataclass(frozen=True, slots=True)
class _Link:
    name: str
    ifindex: int
    mac: str
    mtu: int
    flags: int


def read_facts(
    netlink: Netlink, owned: Owned, configured_uplinks: Sequence[str] = (), wanted_hops: Iterable[Address] = ()
) -> Facts:
    """Read this node. Uplinks are those configured, else the devices of default routes of either family.

    Raises `NetlinkError` if the kernel refuses an answer.
    """
    links = [_link(body) for body in netlink.dump(rtnl.GETLINK, rtnl.ifinfo() + rtnl.u32(rtnl.IFLA_EXT_MASK, rtnl.SKIP_STATS))]
    ours = {link.name: link.ifindex for link in links if link.name.startswith(owned.devicePrefix)}
    foreign = [link for link in links if link.name not in ours]
    usable, own = _addresses(netlink, {link.ifindex for link in foreign})
    interfaces = tuple(
        Interface(link.name, link.ifindex, link.mac, link.mtu, tuple(usable.get(link.ifindex, ())))
        for link in foreign
        if link.flags & rtnl.IFF_UP and not link.flags & rtnl.IFF_LOOPBACK
    )
    outgoing = _default_route_devices(netlink) if not configured_uplinks else ()
    return Facts(
        uplinks=tuple(one for one in interfaces if one.name in configured_uplinks or one.ifindex in outgoing),
        interfaces=interfaces,
        own_addresses=own,
        links=ours,
        next_hops={address: hop for address in wanted_hops if (hop := next_hop(netlink, address))},
        kernel=os.uname().release,
    )


def next_hop(netlink: Netlink, address: Address) -> Hop | None:
    """Ask the kernel where it sends packets for an address; None if nowhere, or if the address is its own."""
    head = rtnl.rt(rtnl.FAMILY[address.version], address.max_prefixlen) + rtnl.attr(rtnl.RTA_DST, address.packed)
    body = netlink.get(rtnl.GETROUTE, head)
    if body is None or body[7] != rtnl.RTN_UNICAST:
        return None
    attributes = rtnl.attributes(body, rtnl.RT)
    ifindex = rtnl.number(attributes.get(rtnl.RTA_OIF))
    gateway = attributes.get(rtnl.RTA_GATEWAY)
    return Hop(netlink.name(ifindex) or "", ifindex, rtnl.address(gateway) if gateway else None)


def has_tcx() -> bool:
    """Whether the kernel attaches programs to tc hooks by link (6.6)."""
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 6)


async def watch_changes(changed: Callable[[], None]) -> None:
    """Call `changed` after every change of links, addresses, routes, rules and marked neighbours, until cancelled.

    What changed is not told: whoever is called reads again. Neighbours that the kernel learns do not count.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE) as events:
        events.bind((0, _GROUPS))
        loop = asyncio.get_running_loop()

        def ready() -> None:
            try:
                raw = events.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError as error:
                # The queue was full and events are lost, so that anything may have changed.
                if error.errno != errno.ENOBUFS:
                    raise
                changed()
                return
            if any(_counts(kind, body) for kind, _, _, body in rtnl.messages(raw)):
                changed()

        loop.add_reader(events, ready)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            loop.remove_reader(events)


def _counts(kind: int, body: bytes) -> bool:
    if kind not in (rtnl.NEWNEIGH, rtnl.DELNEIGH):
        return True
    return rtnl.NDA_PROTOCOL in rtnl.attributes(body, rtnl.ND)


def _link(body: bytes) -> _Link:
    index, flags = struct.unpack_from("=iI", body, 4)
    attributes = rtnl.attributes(body, rtnl.IFINFO)
    return _Link(
        name=rtnl.string(attributes.get(rtnl.IFLA_IFNAME)),
        ifindex=index,
        mac=rtnl.mac_text(attributes.get(rtnl.IFLA_ADDRESS, b"")),
        mtu=rtnl.number(attributes.get(rtnl.IFLA_MTU)),
        flags=flags,
    )


def _addresses(netlink: Netlink, devices: set[int]) -> tuple[dict[int, list[Address]], tuple[Address, ...]]:
    """Return the usable addresses of each device, best first, and all that packets may be for, usable or not."""
    ranked: dict[int, list[tuple[int, int, int, Address]]] = {}
    own: list[Address] = []
    for place, body in enumerate(netlink.dump(rtnl.GETADDR, rtnl.ifaddr(0))):
        index = rtnl.number(body[4:8])
        attributes = rtnl.attributes(body, rtnl.IFADDR)
        raw = attributes.get(rtnl.IFA_LOCAL) or attributes.get(rtnl.IFA_ADDRESS)
        if index not in devices or raw is None:
            continue
        address = rtnl.address(raw)
        if address.is_link_local or address.is_loopback:
            continue
        own.append(address)
        flags = rtnl.number(attributes.get(rtnl.IFA_FLAGS)) or body[2]
        if flags & _UNUSABLE:
            continue
        # IPv4 first; global before unique local; secondary (IPv4) and temporary (IPv6) ones, the same bit, last.
        is_ula = address.version == 6 and address in _ULA
        rank = (address.version, 2 * bool(flags & rtnl.IFA_F_SECONDARY) + is_ula, place, address)
        ranked.setdefault(index, []).append(rank)
    usable = {index: [address for *_, address in sorted(ranks, key=lambda rank: rank[:3])] for index, ranks in ranked.items()}
    return usable, tuple(dict.fromkeys(own))


def _default_route_devices(netlink: Netlink) -> set[int]:
    devices = set()
    for family in rtnl.FAMILY.values():
        try:
            bodies = netlink.dump(rtnl.GETROUTE, rtnl.rt(family, table=rtnl.TABLE_MAIN))
        except NetlinkError as error:
            # A machine without any address of this family: the table comes into being with its first route.
            if error.errno != errno.ENOENT:
                raise
            continue
        for body in bodies:
            attributes = rtnl.attributes(body, rtnl.RT)
            if body[1] or body[4] != rtnl.TABLE_MAIN or body[7] != rtnl.RTN_UNICAST:
                continue
            devices.add(rtnl.number(attributes.get(rtnl.RTA_OIF)))
            hops = attributes.get(rtnl.RTA_MULTIPATH, b"")
            while len(hops) >= 8:
                length, _, _, index = struct.unpack_from("=HBBi", hops)
                devices.add(index)
                if length < 8:
                    break
                hops = hops[(length + 3) & ~3 :]
    return devices - {0}
