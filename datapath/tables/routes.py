"""Routes of both families in our routing table; ours is what has our table *and* our protocol number."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Literal

from tidegate.crds.routing import Owned
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.netlink import Netlink, NetlinkError

Network = IPv4Network | IPv6Network

_GONE = (errno.ESRCH, errno.ENODEV, errno.ENOENT)
_KINDS: dict[str, int] = {"unicast": rtnl.RTN_UNICAST, "local": rtnl.RTN_LOCAL}
_METRIC = {4: 0, 6: 1024}
"""What the kernel uses where nothing is said; IPv6 tells it, IPv4 does not."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a destination goes. `mtu` in bytes, 0 for that of the device; `source` is what the node itself sends with."""

    device: str
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | IPv6Address | None = None
    kind: Literal["unicast", "local", "other"] = "unicast"
    mtu: int = 0
    onlink: bool = False
    is_only: bool = True
    """False in what is read if there are more routes for the destination, or ones with a metric: `put` clears them."""


class RouteTable:
    """Rows: destination network -> `Route`."""

    name = "routes"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._table = owned.routingTable
        self._protocol = owned.routeProtocol
        self._crowded: set[Network] = set()

    def read(self) -> Mapping[Network, Route]:
        """Return our routes; the kernel itself filters by table and protocol."""
        rows: dict[Network, Route] = {}
        for version, family in rtnl.FAMILY.items():
            body = rtnl.rt(family, table=self._table, protocol=self._protocol) + rtnl.u32(rtnl.RTA_TABLE, self._table)
            try:
                bodies = self._netlink.dump(rtnl.GETROUTE, body)
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue  # a table comes into being with its first route
            for body in bodies:
                self._add(rows, version, body)
        self._crowded = {key for key, row in rows.items() if not row.is_only}
        return rows

    def _add(self, rows: dict[Network, Route], version: int, body: bytes) -> None:
        attributes = rtnl.attributes(body, rtnl.RT)
        table = rtnl.number(attributes.get(rtnl.RTA_TABLE)) or body[4]
        flags = rtnl.number(body[8:12])
        if table != self._table or body[5] != self._protocol or flags & 0x200:  # RTM_F_CLONED: a cached copy
            return
        raw = attributes.get(rtnl.RTA_DST, bytes(4 if version == 4 else 16))
        key = ip_network((rtnl.address(raw), body[1]))
        metrics = rtnl.attributes(attributes.get(rtnl.RTA_METRICS, b""))
        kind: Literal["unicast", "local", "other"] = "other"
        if body[7] in _KINDS.values() and rtnl.RTA_MULTIPATH not in attributes:
            kind = "local" if body[7] == rtnl.RTN_LOCAL else "unicast"
        rows[key] = Route(
            device=self._netlink.name(rtnl.number(attributes.get(rtnl.RTA_OIF))) or "",
            gateway=_optional(attributes.get(rtnl.RTA_GATEWAY)),
            source=_optional(attributes.get(rtnl.RTA_PREFSRC)),
            kind=kind,
            mtu=rtnl.number(metrics.get(rtnl.RTAX_MTU)),
            onlink=bool(flags & rtnl.RTNH_ONLINK),
            is_only=key not in rows and rtnl.number(attributes.get(rtnl.RTA_PRIORITY)) == _METRIC[version],
        )

    def put(self, key: Network, value: Route) -> None:
        """Add or replace in one step; another protocol's route for this destination in our table is replaced too."""
        if key in self._crowded:
            self.drop(key)
        index = self._netlink.need_index(value.device)
        scope = rtnl.SCOPE_UNIVERSE
        if key.version == 4 and value.gateway is None:
            scope = rtnl.SCOPE_HOST if value.kind == "local" else rtnl.SCOPE_LINK
        body = self._head(key, _KINDS[value.kind], scope, rtnl.RTNH_ONLINK if value.onlink else 0)
        body += rtnl.u32(rtnl.RTA_OIF, index)
        if value.gateway is not None:
            body += rtnl.attr(rtnl.RTA_GATEWAY, value.gateway.packed)
        if value.source is not None:
            body += rtnl.attr(rtnl.RTA_PREFSRC, value.source.packed)
        if value.mtu:
            body += rtnl.nested(rtnl.RTA_METRICS, rtnl.u32(rtnl.RTAX_MTU, value.mtu))
        self._netlink.change((rtnl.NEWROUTE, rtnl.CREATE | rtnl.REPLACE, body))

    def drop(self, key: Network) -> None:
        """Remove every route of ours for the destination; a delete takes one at a time."""
        # Scope "nowhere" matches every scope; type 0 matches every type.
        request = (rtnl.DELROUTE, rtnl.ACK, self._head(key, 0, 255, 0))
        while (error := self._netlink.try_all([request])[0]) is None:
            pass
        if error.errno not in _GONE:
            raise error

    def _head(self, key: Network, kind: int, scope: int, flags: int) -> bytes:
        family = rtnl.FAMILY[key.version]
        head = rtnl.rt(family, key.prefixlen, self._table, self._protocol, scope, kind, flags)
        head += rtnl.u32(rtnl.RTA_TABLE, self._table)
        return head + (rtnl.attr(rtnl.RTA_DST, key.network_address.packed) if key.prefixlen else b"")


def _optional(raw: bytes | None) -> IPv4Address | IPv6Address | None:
    return None if raw is None else rtnl.address(raw)
