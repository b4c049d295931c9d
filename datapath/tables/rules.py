"""Routing rules that lead to our table; ours is every rule with our protocol number (kernel 4.17)."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

from tidegate.crds.routing import Owned
from tidegate.datapath.tables import rtnl
from tidegate.datapath.tables.netlink import Netlink

Key = tuple[Any, ...]
"""(IP version, priority), or (IP version, priority, mark, mask). What is read may have a longer key: a rule of ours with
parts that we never write, which is only ever dropped."""

_GONE = (errno.ENOENT, errno.ESRCH)
_NO_SUPPRESSION = 0xFFFFFFFF
_PLAIN = {
    rtnl.FRA_PRIORITY,
    rtnl.FRA_TABLE,
    rtnl.FRA_PROTOCOL,
    rtnl.FRA_SUPPRESS_PREFIXLEN,
    rtnl.FRA_FWMARK,
    rtnl.FRA_FWMASK,
}


class RuleTable:
    """Rows: `Key` -> number of the routing table to look into."""

    name = "rules"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._protocol = owned.routeProtocol

    def read(self) -> Mapping[Key, int]:
        """Return our rules. Of two with one key and different tables one has a longer key, so that it is dropped."""
        rows: dict[Key, int] = {}
        for version, family in rtnl.FAMILY.items():
            for body in self._netlink.dump(rtnl.GETRULE, rtnl.rt(family)):
                attributes = rtnl.attributes(body, rtnl.RT)
                if rtnl.number(attributes.get(rtnl.FRA_PROTOCOL)) != self._protocol:
                    continue
                key = _key(version, body, attributes)
                rows[key if key not in rows else (version, "double", body)] = rtnl.number(attributes.get(rtnl.FRA_TABLE))
        return rows

    def put(self, key: Key, value: int) -> None:
        """Add the rule, then remove ours of that key that lead elsewhere: rules cannot be replaced."""
        others = [found for found, table in self._matching(key) if table != value]
        request = (rtnl.NEWRULE, rtnl.CREATE | rtnl.EXCL, self._body(key, value))
        self._netlink.change(request, gone=[errno.EEXIST])
        if others:
            self._netlink.change(*((rtnl.DELRULE, 0, body) for body in others), gone=_GONE)

    def drop(self, key: Key) -> None:
        """Remove our rules with that key."""
        bodies = [key[2]] if key[1] == "double" else [body for body, _ in self._matching(key)]
        if bodies:
            self._netlink.change(*((rtnl.DELRULE, 0, body) for body in bodies), gone=_GONE)

    def _matching(self, key: Key) -> list[tuple[bytes, int]]:
        found = []
        for body in self._netlink.dump(rtnl.GETRULE, rtnl.rt(rtnl.FAMILY[key[0]])):
            attributes = rtnl.attributes(body, rtnl.RT)
            if rtnl.number(attributes.get(rtnl.FRA_PROTOCOL)) == self._protocol and _key(key[0], body, attributes) == key:
                found.append((body, rtnl.number(attributes.get(rtnl.FRA_TABLE))))
        return found

    def _body(self, key: Key, table: int) -> bytes:
        version, priority, *mark = key
        body = rtnl.rt(rtnl.FAMILY[version], table=table, kind=rtnl.FR_ACT_TO_TBL)
        body += rtnl.u32(rtnl.FRA_PRIORITY, priority) + rtnl.u32(rtnl.FRA_TABLE, table)
        if mark:
            body += rtnl.u32(rtnl.FRA_FWMARK, mark[0]) + rtnl.u32(rtnl.FRA_FWMASK, mark[1])
        return body + rtnl.u8(rtnl.FRA_PROTOCOL, self._protocol)


def _key(version: int, body: bytes, attributes: Mapping[int, bytes]) -> Key:
    priority = rtnl.number(attributes.get(rtnl.FRA_PRIORITY))
    suppression = rtnl.number(attributes.get(rtnl.FRA_SUPPRESS_PREFIXLEN, b"\xff" * 4))
    is_plain = (
        not attributes.keys() - _PLAIN
        and suppression == _NO_SUPPRESSION
        and (body[1], body[2], body[3], body[7]) == (0, 0, 0, rtnl.FR_ACT_TO_TBL)
        and rtnl.number(body[8:12]) == 0
    )
    if not is_plain:
        return (version, priority, "other", body)
    mark = rtnl.number(attributes.get(rtnl.FRA_FWMARK))
    mask = rtnl.number(attributes.get(rtnl.FRA_FWMASK))
    return (version, priority, mark, mask) if mask else (version, priority)
