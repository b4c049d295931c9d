"""The routing rules that lead to our routing table."""

from __future__ import annotations

from collections.abc import Mapping

from tidegate.crds.routing import Owned
from tidegate.datapath.tables.netlink import EEXIST, ENOENT, FAMILY, Netlink, refusals


class RuleTable:
    """Key (IP version, priority), value routing table. Rules that carry our protocol number (kernel 4.17) are ours."""

    name = "rules"

    def __init__(self, netlink: Netlink, owned: Owned) -> None:
        self._netlink = netlink
        self._protocol = owned.routeProtocol

    def read(self) -> Mapping[tuple[int, int], int]:
        """Return our rules of both families."""
        found = {}
        with refusals():
            for version, family in FAMILY.items():
                for rule in self._netlink.route.get_rules(family=family):
                    if rule.get_attr("FRA_PROTOCOL") == self._protocol:
                        found[version, rule.get_attr("FRA_PRIORITY") or 0] = rule.get_attr("FRA_TABLE")
        return found

    def put(self, key: tuple[int, int], value: int) -> None:
        """Add the rule; one of that priority to another table goes afterwards, so that there is no moment without."""
        version, priority = key
        former = self.read().get(key)
        with refusals(EEXIST):
            self._netlink.route.rule("add", **self._name(version, priority, value))
        if former not in (None, value):
            with refusals(ENOENT):
                self._netlink.route.rule("del", **self._name(version, priority, former))

    def drop(self, key: tuple[int, int]) -> None:
        """Remove the rule."""
        version, priority = key
        table = self.read().get(key)
        if table is not None:
            with refusals(ENOENT):
                self._netlink.route.rule("del", **self._name(version, priority, table))

    def _name(self, version: int, priority: int, table: int | None) -> dict[str, object]:
        return {"family": FAMILY[version], "priority": priority, "table": table, "FRA_PROTOCOL": self._protocol}
