"""The tunnel device: VXLAN whose remote end and VNI each packet brings along (collect-metadata mode).

Ours is what is of kind vxlan and has our name prefix. Pod links are not rows of this table: CNI ADD and DEL make them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.crds.routing import Owned
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.netlink import Netlink

_KIND = b"vxlan"


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """UDP `port`, `mtu` in bytes, Ethernet address `mac`. What is read is not `is_intact` if somebody changed the rest."""

    port: int
    mtu: int
    mac: str
    is_intact: bool = True


class LinkTable:
    """Rows: device name -> `VxlanLink`."""

    name = "links"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._prefix = owned.devicePrefix

    def read(self) -> Mapping[str, VxlanLink]:
        """Return our tunnel devices."""
        return {name: link for name, (link, _) in self._found().items()}

    def put(self, key: str, value: VxlanLink) -> None:
        """Create or change the device. MTU, address and flags change in place; anything else makes it anew."""
        present = self._found().get(key)
        if present is not None and (present[0].port != value.port or not present[1]):
            self.drop(key)
            present = None
        settings = rtnl.u32(rtnl.IFLA_MTU, value.mtu)
        name = rtnl.text(rtnl.IFLA_IFNAME, key)
        flags = rtnl.IFF_UP | rtnl.IFF_NOARP
        if present is None:
            data = rtnl.nested(
                rtnl.INFO_DATA,
                rtnl.u8(rtnl.VXLAN_COLLECT_METADATA, 1),
                rtnl.u8(rtnl.VXLAN_LEARNING, 0),
                rtnl.be16(rtnl.VXLAN_PORT, value.port),
                # Senders may leave the outer IPv6 checksum out: the inner packet has its own.
                rtnl.u8(rtnl.VXLAN_ZERO_CSUM6_RX, 1),
            )
            info = rtnl.nested(rtnl.IFLA_LINKINFO, rtnl.attr(rtnl.INFO_KIND, _KIND), data)
            mac = rtnl.attr(rtnl.IFLA_ADDRESS, rtnl.mac_bytes(value.mac))
            create = (rtnl.NEWLINK, rtnl.CREATE | rtnl.EXCL, rtnl.ifinfo() + name + mac + settings + info)
            self._netlink.change(create, (rtnl.SETLINK, 0, rtnl.ifinfo() + name + no_link_local()))
        elif present[0].mac != value.mac:
            mac = rtnl.attr(rtnl.IFLA_ADDRESS, rtnl.mac_bytes(value.mac))
            self._netlink.change((rtnl.SETLINK, 0, rtnl.ifinfo() + name + mac))
        self._netlink.change((rtnl.SETLINK, 0, rtnl.ifinfo(flags=flags, change=flags) + name + settings))

    def drop(self, key: str) -> None:
        """Remove the device."""
        request = (rtnl.DELLINK, 0, rtnl.ifinfo() + rtnl.text(rtnl.IFLA_IFNAME, key))
        self._netlink.change(request, gone=[errno.ENODEV])

    def _found(self) -> dict[str, tuple[VxlanLink, bool]]:
        """Our devices; beside each whether what cannot be changed in place is right."""
        info = rtnl.nested(rtnl.IFLA_LINKINFO, rtnl.attr(rtnl.INFO_KIND, _KIND))
        mask = rtnl.u32(rtnl.IFLA_EXT_MASK, rtnl.SKIP_STATS)
        found = {}
        for body in self._netlink.dump(rtnl.GETLINK, rtnl.ifinfo() + info + mask):
            attributes = rtnl.attributes(body, rtnl.IFINFO)
            name = rtnl.string(attributes.get(rtnl.IFLA_IFNAME))
            kind = rtnl.attributes(attributes.get(rtnl.IFLA_LINKINFO, b""))
            # The kernel filters by kind only while the module is loaded; else it dumps every link.
            if not name.startswith(self._prefix) or kind.get(rtnl.INFO_KIND, b"").rstrip(b"\0") != _KIND:
                continue
            data = rtnl.attributes(kind.get(rtnl.INFO_DATA, b""))
            is_kept = (
                rtnl.number(data.get(rtnl.VXLAN_COLLECT_METADATA)) == 1
                and rtnl.number(data.get(rtnl.VXLAN_LEARNING)) == 0
                and rtnl.number(data.get(rtnl.VXLAN_ZERO_CSUM6_RX)) == 1
            )
            flags = rtnl.number(body[8:12])
            link = VxlanLink(
                port=int.from_bytes(data.get(rtnl.VXLAN_PORT, b""), "big"),
                mtu=rtnl.number(attributes.get(rtnl.IFLA_MTU)),
                mac=rtnl.mac_text(attributes.get(rtnl.IFLA_ADDRESS, b"")),
                is_intact=is_kept and flags & rtnl.IFF_UP != 0 and flags & rtnl.IFF_NOARP != 0,
            )
            found[name] = (link, is_kept)
        return found


def no_link_local() -> bytes:
    """Return the attribute that keeps a device from making itself an IPv6 link-local address."""
    inet6 = rtnl.nested(rtnl.FAMILY[6], rtnl.u8(rtnl.INET6_ADDR_GEN_MODE, rtnl.ADDR_GEN_NONE))
    return rtnl.nested(rtnl.IFLA_AF_SPEC, inet6)
