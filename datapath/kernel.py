"""The kernel's tables behind one verb: make them match an order, and say what could not be done."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from tidegate.datapath import facts as facts_module
from tidegate.datapath import libbpf
from tidegate.datapath.balancer import Balancer
from tidegate.datapath.capture.orders import CaptureOrders
from tidegate.datapath.facts import Facts
from tidegate.datapath.lower import DEPENDENCY_ORDER, lower
from tidegate.datapath.lowering import lb, lb_backend
from tidegate.datapath.order import Order
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import Loaded
from tidegate.datapath.table import Failed, Receipt, Table, reconcile
from tidegate.datapath.tables.announcements import AnnouncementTable
from tidegate.datapath.tables.links import LinkTable
from tidegate.datapath.tables.maps import ArrayTable, HashTable, MapTable, read_counters
from tidegate.datapath.tables.neighbours import NeighbourTable
from tidegate.datapath.tables.netlink import Netlink
from tidegate.datapath.tables.notrack import NotrackTable
from tidegate.datapath.tables.programs import ProgramTable
from tidegate.datapath.tables.routes import RouteTable
from tidegate.datapath.tables.rules import RuleTable
from tidegate.datapath.tables.sysctls import SysctlTable
from tidegate.datapath.tc import Attachments, Filters, Links

_KINDS: Mapping[str, type[MapTable]] = {"tg_config": ArrayTable, "tg_dsr": HashTable}


class Kernel:
    """Owns every table. Its methods block: the agent calls them in a worker thread, one at a time."""

    def __init__(
        self, places: Places, loaded: Loaded, balancer: Balancer | None = None, captures: CaptureOrders | None = None
    ) -> None:
        self.places = places
        self.loaded = loaded
        self.balancer = balancer
        self.captures = captures
        self._lock = threading.Lock()
        self._netlink = Netlink()
        self._announcements = AnnouncementTable()
        self._notrack = NotrackTable()
        self._maps = [
            _KINDS.get(name, MapTable)(loaded.maps / name, loaded.layout.maps[name])
            for name in DEPENDENCY_ORDER
            if name.startswith("tg_")
        ]
        self._counter = libbpf.obj_get(loaded.maps / "tg_counter")

    def close(self) -> None:
        """Close the netlink socket; the tables stay as they are."""
        self._netlink.close()

    def _tables(self, order: Order) -> Sequence[Table]:
        owned = order.network.owned
        links = self.loaded.links
        attachments: Attachments = Links(links) if facts_module.has_tcx() else Filters(owned.rulePriority)
        tables: list[Table] = [
            SysctlTable(),
            LinkTable(self._netlink, owned),
            RuleTable(self._netlink, owned),
            RouteTable(self._netlink, owned),
            NeighbourTable(self._netlink, owned),
            self._announcements,
            self._notrack,
            *self._maps,
            ProgramTable(attachments, self.loaded.programs),
        ]
        return sorted(tables, key=lambda table: DEPENDENCY_ORDER.index(table.name))

    def apply(self, order: Order, *, may_drop: bool) -> tuple[Facts, Receipt]:
        """Make every table match `order`; return the facts that it was lowered with and the receipt."""
        with self._lock:
            facts, receipt = self._pass(order, may_drop)
            if receipt.puts.get("links"):
                # Rows that name a device's index could not be written before there was one.
                facts, receipt = self._pass(order, may_drop)
            return facts, receipt

    def _pass(self, order: Order, may_drop: bool) -> tuple[Facts, Receipt]:
        facts = self.read_facts(order)
        receipt = reconcile(self._tables(order), lower(order, facts), may_drop=may_drop)
        receipt.failures += lb_backend.failures(order, facts)
        if self.balancer is not None:
            receipt.add(self.balancer.apply(order, facts, may_drop=may_drop))
            if self.captures is not None:
                receipt.add(self.captures.apply(order, self.balancer.loaded, self.balancer.backend_ids()))
        else:
            lost = "this agent was started without a load balancer"
            receipt.failures += [Failed(lb.owner(each), "lb", "", lost) for each in order.services]
        return facts, receipt

    def clear(self, order: Order) -> Receipt:
        """Drop every row that is ours by the numbers and names of `order`."""
        with self._lock:
            return reconcile(self._tables(order), [])

    def read_facts(self, order: Order) -> Facts:
        """Read what only this node knows."""
        peers = [ip_address(text) for peer in order.others for text in peer.addresses]
        wanted = peers if order.network.routingMode == "native" else []
        return facts_module.read_facts(self._netlink, order.network.owned, order.network.uplinks, wanted)

    def counters(self) -> dict[str, int]:
        """Return packets by reason since the maps were made, summed over all CPUs."""
        own = read_counters(self._counter, self.loaded.layout, "tg_counter")
        return own | (self.balancer.counters() if self.balancer else {})
