"""Pod links: a veth pair, and in the pod its addresses, its routes and a gateway that never has to be looked up.

A link carries what the agent must know of its pod as JSON in its alias, so that a lost or corrupt file is rebuilt from the
kernel. Rows that other features add to the host side (routes, programs) are not made here.
"""

from __future__ import annotations

import errno
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path

from tidegate.datapath.owned import POD_DEVICE, POD_GATEWAY_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6
from tidegate.datapath.table import TableError
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.links import no_link_local
from tidegate.datapath.tables.netlink import Netlink, NetlinkError, Request, inside, opened

_NAME = re.compile(r"[0-9a-f]{11}")
_KIND = b"veth"
_GATEWAYS = {4: ip_address(POD_GATEWAY_V4), 6: ip_address(POD_GATEWAY_V6)}
_ALIAS_BYTES = 255  # IFALIASZ - 1


@dataclass(frozen=True, slots=True)
class PodLink:
    """What a pod's link shall be. `mtu` and `default_mtu` are bytes; the latter is that of the default route, 0 for the same.

    `ranges` are destinations that go by the gateway with the device's whole MTU whatever the default route has.
    """

    host_device: str
    host_alias: str
    netns: str
    mac: str
    addresses: tuple[IPv4Address | IPv6Address, ...]
    mtu: int
    default_mtu: int = 0
    ranges: tuple[IPv4Network | IPv6Network, ...] = ()
    device: str = POD_DEVICE


def host_device(container_id: str, ifname: str, prefix: str = "tg") -> str:
    """Name the host side of a pod's link: the prefix and 11 hexadecimal digits, 15 characters at most.

    >>> host_device("3f2a", "eth0")
    'tgefbc44c25ef'
    """
    return prefix + _digest(container_id, ifname).hex()[:11]


def pod_mac(container_id: str, ifname: str) -> str:
    """Return the pod side's Ethernet address: locally administered, the same whenever the link is made again."""
    return "02:" + _digest(container_id, ifname)[-5:].hex(":")


def _digest(container_id: str, ifname: str) -> bytes:
    return hashlib.blake2b(f"{container_id}/{ifname}".encode(), digest_size=16).digest()


class PodLinks:
    """Makes and removes pod links in the namespace of the calling thread; every verb is idempotent and blocks."""

    def __init__(self, prefix: str = "tg") -> None:
        self.prefix = prefix

    def create(self, link: PodLink) -> int:
        """Make the link and configure the pod; return the host side's index. A link of that name is made anew.

        Raises `TableError`, and then leaves no link behind.
        """
        try:
            with opened(link.netns) as netns, Netlink() as netlink:
                index = _make(netlink, link, netns)
                try:
                    inside(netns, lambda: _configure_pod(link))
                except (TableError, OSError):
                    netlink.change(_removal(link.host_device), gone=[errno.ENODEV])
                    raise
                return index
        except OSError as error:
            raise TableError(f"network namespace {link.netns}: {error.strerror or error}") from error

    def delete(self, device: str) -> None:
        """Remove a link by its host side; the pod's side goes with it."""
        with Netlink() as netlink:
            netlink.change(_removal(device), gone=[errno.ENODEV])

    def check(self, link: PodLink) -> list[str]:
        """Return what is not as it should be, in words; empty if all is well."""
        with Netlink() as netlink:
            if netlink.index(link.host_device) is None:
                return [f"the host has no device {link.host_device}"]
        try:
            with opened(link.netns) as netns:
                return inside(netns, lambda: _differences(link))
        except OSError as error:
            return [f"network namespace {link.netns}: {error.strerror or error}"]

    def list(self) -> Mapping[str, str]:
        """Return the host sides that are ours by name and kind, each with its alias."""
        found = {}
        body = rtnl.ifinfo() + rtnl.u32(rtnl.IFLA_EXT_MASK, rtnl.SKIP_STATS)
        with Netlink() as netlink:
            for raw in netlink.dump(rtnl.GETLINK, body):
                attributes = rtnl.attributes(raw, rtnl.IFINFO)
                name = rtnl.string(attributes.get(rtnl.IFLA_IFNAME))
                kind = rtnl.attributes(attributes.get(rtnl.IFLA_LINKINFO, b"")).get(rtnl.INFO_KIND, b"")
                is_named = name.startswith(self.prefix) and _NAME.fullmatch(name[len(self.prefix) :])
                if is_named and kind.rstrip(b"\0") == _KIND:
                    found[name] = rtnl.string(attributes.get(rtnl.IFLA_IFALIAS))
        return found


def _removal(device: str) -> Request:
    return (rtnl.DELLINK, 0, rtnl.ifinfo() + rtnl.text(rtnl.IFLA_IFNAME, device))


def _make(netlink: Netlink, link: PodLink, netns: int) -> int:
    if len(link.host_alias.encode()) > _ALIAS_BYTES:
        raise TableError(f"the alias of {link.host_device} is longer than {_ALIAS_BYTES} bytes")
    name = rtnl.text(rtnl.IFLA_IFNAME, link.host_device)
    mtu = rtnl.u32(rtnl.IFLA_MTU, link.mtu)
    # The peer is born in the pod's namespace, so it is never seen, renamed or moved on the host.
    peer = rtnl.ifinfo() + rtnl.text(rtnl.IFLA_IFNAME, link.device) + mtu
    peer += rtnl.attr(rtnl.IFLA_ADDRESS, rtnl.mac_bytes(link.mac)) + rtnl.u32(rtnl.IFLA_NET_NS_FD, netns)
    info = rtnl.nested(
        rtnl.IFLA_LINKINFO,
        rtnl.attr(rtnl.INFO_KIND, _KIND),
        rtnl.nested(rtnl.INFO_DATA, rtnl.nested(rtnl.VETH_PEER, peer)),
    )
    mac = rtnl.attr(rtnl.IFLA_ADDRESS, rtnl.mac_bytes(POD_GATEWAY_MAC))
    alias = rtnl.attr(rtnl.IFLA_IFALIAS, link.host_alias.encode())
    create = (rtnl.NEWLINK, rtnl.CREATE | rtnl.EXCL, rtnl.ifinfo() + name + mac + mtu + info)
    # Up comes last and by itself: within one message the kernel raises a device before it reads its address mode.
    settings = (rtnl.SETLINK, 0, rtnl.ifinfo() + name + alias + no_link_local())
    up = (rtnl.SETLINK, 0, rtnl.ifinfo(flags=rtnl.IFF_UP, change=rtnl.IFF_UP) + name)
    errors = netlink.try_all([create, settings, up])
    if errors[0] is not None and errors[0].errno == errno.EEXIST and netlink.index(link.host_device) is not None:
        errors = netlink.try_all([_removal(link.host_device), create, settings, up])[1:]
    failed = next((error for error in errors if error is not None), None)
    if failed is not None:
        if errors[0] is None:
            netlink.change(_removal(link.host_device), gone=[errno.ENODEV])
        raise TableError(f"veth {link.host_device}: {failed}")
    # A pod could otherwise advertise itself as the node's router wherever forwarding is off.
    _write_if_differs(Path(f"/proc/sys/net/ipv6/conf/{link.host_device}/accept_ra"), "0")
    return netlink.need_index(link.host_device)


def _configure_pod(link: PodLink) -> None:
    has_v6 = any(address.version == 6 for address in link.addresses)
    conf = Path(f"/proc/sys/net/ipv6/conf/{link.device}")
    if has_v6:
        # Some runtimes hand over namespaces with IPv6 off.
        _write_if_differs(conf / "disable_ipv6", "0")
    _write_if_differs(conf / "accept_ra", "0")
    with Netlink() as netlink:
        for error in netlink.try_all(_pod_requests(netlink.need_index(link.device), link)):
            if error is not None:
                raise TableError(f"{link.device} of the pod: {error}")


def _pod_requests(index: int, link: PodLink) -> list[Request]:
    """Everything inside the pod as one batch. Neither an address nor the gateway is ever asked for or probed."""
    requests: list[Request] = [
        (rtnl.SETLINK, 0, rtnl.ifinfo(index) + no_link_local()),
        (rtnl.SETLINK, 0, rtnl.ifinfo(index, rtnl.IFF_UP, rtnl.IFF_UP)),
    ]
    create = rtnl.CREATE | rtnl.REPLACE
    gateway_mac = rtnl.mac_bytes(POD_GATEWAY_MAC)
    for address in link.addresses:
        family = rtnl.FAMILY[address.version]
        head = rtnl.ifaddr(family, address.max_prefixlen, index=index) + rtnl.attr(rtnl.IFA_LOCAL, address.packed)
        body = head + rtnl.attr(rtnl.IFA_ADDRESS, address.packed) + rtnl.u32(rtnl.IFA_FLAGS, rtnl.IFA_F_NODAD)
        requests.append((rtnl.NEWADDR, create, body))
    oif = rtnl.u32(rtnl.RTA_OIF, index)
    for version in sorted({address.version for address in link.addresses}):
        gateway = _GATEWAYS[version]
        family = rtnl.FAMILY[version]
        neighbour = rtnl.nd(family, index, rtnl.NUD_PERMANENT) + rtnl.attr(rtnl.NDA_DST, gateway.packed)
        requests.append((rtnl.NEWNEIGH, create, neighbour + rtnl.attr(rtnl.NDA_LLADDR, gateway_mac)))
        on_link = _route(family, gateway.max_prefixlen, rtnl.SCOPE_LINK) + rtnl.attr(rtnl.RTA_DST, gateway.packed)
        requests.append((rtnl.NEWROUTE, create, on_link + oif))
        via = rtnl.attr(rtnl.RTA_GATEWAY, gateway.packed) + oif
        metrics = rtnl.nested(rtnl.RTA_METRICS, rtnl.u32(rtnl.RTAX_MTU, link.default_mtu)) if link.default_mtu else b""
        requests.append((rtnl.NEWROUTE, create, _route(family, 0) + via + metrics))
        for network in link.ranges:
            if network.version == version:
                head = _route(family, network.prefixlen) + rtnl.attr(rtnl.RTA_DST, network.network_address.packed)
                requests.append((rtnl.NEWROUTE, create, head + via))
    return requests


def _route(family: int, prefixlen: int, scope: int = rtnl.SCOPE_UNIVERSE) -> bytes:
    return rtnl.rt(family, prefixlen, rtnl.TABLE_MAIN, rtnl.PROTO_BOOT, scope, rtnl.RTN_UNICAST)


def _differences(link: PodLink) -> list[str]:
    with Netlink() as netlink:
        index = netlink.index(link.device)
        if index is None:
            return [f"the pod has no device {link.device}"]
        found = []
        body = netlink.get(rtnl.GETLINK, rtnl.ifinfo(index))
        if body is None or not rtnl.number(body[8:12]) & rtnl.IFF_UP:
            found.append(f"{link.device} is down")
        present = set()
        for body in netlink.dump(rtnl.GETADDR, rtnl.ifaddr(0, index=index)):
            attributes = rtnl.attributes(body, rtnl.IFADDR)
            present.add(rtnl.address(attributes.get(rtnl.IFA_LOCAL) or attributes[rtnl.IFA_ADDRESS]))
        found += [f"{link.device} lacks the address {address}" for address in link.addresses if address not in present]
        for version in sorted({address.version for address in link.addresses}):
            found += _gateway_differences(netlink, index, version)
        return found


def _gateway_differences(netlink: Netlink, index: int, version: int) -> list[str]:
    gateway = _GATEWAYS[version]
    family = rtnl.FAMILY[version]
    found = []
    head = rtnl.nd(family, index) + rtnl.attr(rtnl.NDA_DST, gateway.packed)
    try:
        entry = netlink.get(rtnl.GETNEIGH, head)
    except NetlinkError as error:
        return [f"the neighbour {gateway} cannot be read: {error}"]
    mac = rtnl.attributes(entry, rtnl.ND).get(rtnl.NDA_LLADDR, b"") if entry else b""
    if mac != rtnl.mac_bytes(POD_GATEWAY_MAC):
        found.append(f"the pod has no neighbour entry for its gateway {gateway}")
    routes = netlink.dump(rtnl.GETROUTE, rtnl.rt(family, table=rtnl.TABLE_MAIN))
    defaults = [rtnl.attributes(body, rtnl.RT) for body in routes if body[1] == 0]
    if not any(route.get(rtnl.RTA_GATEWAY) == gateway.packed for route in defaults):
        found.append(f"the pod has no default route by {gateway}")
    return found


def _write_if_differs(path: Path, value: str) -> None:
    """Write a setting; a kernel without IPv6 has none of these."""
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except FileNotFoundError:
        return
