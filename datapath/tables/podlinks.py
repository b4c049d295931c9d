"""Pod links: a veth pair, and in the pod its addresses, its routes and a gateway that never has to be looked up.

A link carries what the agent must know of its pod as JSON in its alias, so that a lost or corrupt file is rebuilt from the
kernel. Rows that other features add to the host side (routes, programs) are not made here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

from tidegate.datapath.owned import POD_DEVICE, POD_GATEWAY_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.netlink import EEXIST, ENODEV, FAMILY, NO_LINK_LOCAL, Netlink, inside, opened, refusals

_NAME = re.compile(r"[0-9a-f]{11}")
_GATEWAYS = {4: ip_address(POD_GATEWAY_V4), 6: ip_address(POD_GATEWAY_V6)}
_ALIAS_BYTES = 255  # IFALIASZ - 1
_NODAD = 0x02  # IFA_F_NODAD
_UP = 0x1
_LINK_SCOPE = 253


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
    'tg43d3caf8b31'
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
        if len(link.host_alias.encode()) > _ALIAS_BYTES:
            raise TableError(f"the alias of {link.host_device} is longer than {_ALIAS_BYTES} bytes")
        try:
            with opened(link.netns) as netns, Netlink() as netlink:
                self.delete(link.host_device)
                try:
                    index = _make(netlink, link, netns)
                    inside(netns, lambda: _configure_pod(link))
                except (TableError, OSError):
                    self.delete(link.host_device)
                    raise
                return index
        except OSError as error:
            raise TableError(f"network namespace {link.netns}: {error.strerror or error}") from error

    def delete(self, device: str) -> None:
        """Remove a link by its host side; the pod's side goes with it."""
        with Netlink() as netlink, refusals(ENODEV):
            for index in netlink.route.link_lookup(ifname=device):
                netlink.route.link("del", index=index)

    def check(self, link: PodLink) -> list[str]:
        """Return what is not as it should be, in words; empty if all is well."""
        with Netlink() as netlink:
            if not netlink.route.link_lookup(ifname=link.host_device):
                return [f"the host has no device {link.host_device}"]
        try:
            with opened(link.netns) as netns:
                return inside(netns, lambda: _differences(link))
        except OSError as error:
            return [f"network namespace {link.netns}: {error.strerror or error}"]

    def list(self) -> Mapping[str, str]:
        """Return the host sides that are ours by name and kind, each with its alias."""
        found = {}
        with Netlink() as netlink, refusals():
            for item in netlink.route.get_links():
                name = item.get_attr("IFLA_IFNAME")
                is_named = name.startswith(self.prefix) and _NAME.fullmatch(name[len(self.prefix) :])
                if is_named and item.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "veth":
                    found[name] = item.get_attr("IFLA_IFALIAS") or ""
        return found


def _make(netlink: Netlink, link: PodLink, netns: int) -> int:
    # The peer is born in the pod's namespace, so it is never seen, renamed or moved on the host.
    peer = {"ifname": link.device, "address": link.mac, "mtu": link.mtu, "net_ns_fd": netns}
    with refusals(EEXIST):
        netlink.route.link("add", ifname=link.host_device, kind="veth", address=POD_GATEWAY_MAC, mtu=link.mtu, peer=peer)
    index = netlink.index(link.host_device)
    with refusals():
        netlink.route.link("set", index=index, ifalias=link.host_alias, IFLA_AF_SPEC=NO_LINK_LOCAL)
        # A pod could otherwise advertise itself as the node's router wherever forwarding is off.
        _write_if_differs(Path(f"/proc/sys/net/ipv6/conf/{link.host_device}/accept_ra"), "0")
        # Up comes by itself: within one message the kernel raises a device before it reads its address mode.
        netlink.route.link("set", index=index, flags=_UP, change=_UP)
    return index


def _configure_pod(link: PodLink) -> None:
    """Everything inside the pod. Neither an address nor the gateway is ever asked for or probed."""
    conf = Path(f"/proc/sys/net/ipv6/conf/{link.device}")
    if any(address.version == 6 for address in link.addresses):
        # Some runtimes hand over namespaces with IPv6 off.
        _write_if_differs(conf / "disable_ipv6", "0")
    _write_if_differs(conf / "accept_ra", "0")
    with Netlink() as netlink, refusals():
        index, route = netlink.index(link.device), netlink.route
        route.link("set", index=index, IFLA_AF_SPEC=NO_LINK_LOCAL)
        route.link("set", index=index, flags=_UP, change=_UP)
        for address in link.addresses:
            route.addr("add", index=index, address=str(address), prefixlen=address.max_prefixlen, flags=_NODAD)
        for version in sorted({address.version for address in link.addresses}):
            _add_gateway(route, index, version, link)


def _add_gateway(route: Any, index: int, version: int, link: PodLink) -> None:
    gateway, family = _GATEWAYS[version], FAMILY[version]
    route.neigh("replace", family=family, dst=str(gateway), ifindex=index, lladdr=POD_GATEWAY_MAC, state="permanent")
    scope = {"scope": _LINK_SCOPE} if version == 4 else {}
    route.route("replace", family=family, dst=f"{gateway}/{gateway.max_prefixlen}", oif=index, **scope)
    metrics = {"metrics": {"mtu": link.default_mtu}} if link.default_mtu else {}
    route.route("replace", family=family, dst="default", gateway=str(gateway), oif=index, **metrics)
    for network in link.ranges:
        if network.version == version:
            route.route("replace", family=family, dst=str(network), gateway=str(gateway), oif=index)


def _differences(link: PodLink) -> list[str]:
    with Netlink() as netlink, refusals():
        found = []
        indexes = netlink.route.link_lookup(ifname=link.device)
        if not indexes:
            return [f"the pod has no device {link.device}"]
        item = netlink.route.link("get", index=indexes[0])[0]
        if not item["flags"] & _UP:
            found.append(f"{link.device} is down")
        entries = netlink.route.get_addr(index=indexes[0])
        present = {ip_address(entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")) for entry in entries}
        found += [f"{link.device} lacks the address {address}" for address in link.addresses if address not in present]
        for version in sorted({address.version for address in link.addresses}):
            gateway, family = str(_GATEWAYS[version]), FAMILY[version]
            known = {n.get_attr("NDA_DST"): n.get_attr("NDA_LLADDR") for n in netlink.route.get_neighbours(family=family)}
            if known.get(gateway) != POD_GATEWAY_MAC:
                found.append(f"the pod has no neighbour entry for its gateway {gateway}")
            defaults = netlink.route.get_default_routes(family=family)
            if gateway not in {item.get_attr("RTA_GATEWAY") for item in defaults}:
                found.append(f"the pod has no default route by {gateway}")
        return found


def _write_if_differs(path: Path, value: str) -> None:
    """Write a setting; a kernel without IPv6 has none of these."""
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except FileNotFoundError:
        return
