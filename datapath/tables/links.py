"""The tunnel device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.crds.routing import Owned
from tidegate.datapath.tables.netlink import ENODEV, NO_LINK_LOCAL, Netlink, refusals

_NOARP = 0x80
_UP = 0x1


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """A VXLAN device whose destinations and VNIs come with each packet (collect-metadata mode, kernel 4.3)."""

    port: int
    mtu: int
    mac: str


class LinkTable:
    """Key device name, value VxlanLink. VXLAN devices whose name has our prefix are ours."""

    name = "links"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._prefix = owned.devicePrefix

    def read(self) -> Mapping[str, VxlanLink]:
        """Return our tunnel devices; one that is down or resolves neighbours shows an MTU of zero, so that it is mended."""
        found = {}
        with refusals():
            for link in self._netlink.route.get_links():
                kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
                device = link.get_attr("IFLA_IFNAME")
                if kind != "vxlan" or not device.startswith(self._prefix):
                    continue
                data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
                is_right = link["flags"] & _UP and link["flags"] & _NOARP and data.get_attr("IFLA_VXLAN_COLLECT_METADATA")
                mtu = link.get_attr("IFLA_MTU") if is_right else 0
                found[device] = VxlanLink(data.get_attr("IFLA_VXLAN_PORT"), mtu, link.get_attr("IFLA_ADDRESS"))
        return found

    def put(self, key: str, value: VxlanLink) -> None:
        """Make the device, or mend it: only a changed port needs a new one."""
        there = self.read().get(key)
        if there and there.port != value.port:
            self.drop(key)
            there = None
        with refusals():
            if not there:
                self._netlink.route.link(
                    "add",
                    ifname=key,
                    kind="vxlan",
                    vxlan_collect_metadata=True,
                    vxlan_port=value.port,
                    vxlan_learning=False,
                )
            index = self._netlink.index(key)
            # Without addresses of its own: neighbours are never asked for, and nothing must be sent unasked.
            self._netlink.route.link("set", index=index, IFLA_AF_SPEC=NO_LINK_LOCAL)
            self._netlink.route.link(
                "set", index=index, address=value.mac, mtu=value.mtu, flags=_UP | _NOARP, change=_UP | _NOARP
            )

    def drop(self, key: str) -> None:
        """Remove the device."""
        with refusals(ENODEV):
            for index in self._netlink.route.link_lookup(ifname=key):
                self._netlink.route.link("del", index=index)
