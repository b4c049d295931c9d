"""The load balancer of one node: its programs are loaded when a service wants them, and its tables follow the order."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tidegate.crds.node_state import ServiceReceipt
from tidegate.datapath import libbpf
from tidegate.datapath.facts import Facts
from tidegate.datapath.layout import Fields
from tidegate.datapath.lowering import lb
from tidegate.datapath.order import Order
from tidegate.datapath.programs import Loaded, Unfit
from tidegate.datapath.source import COUNT_S
from tidegate.datapath.table import Failed, Receipt, Table, reconcile
from tidegate.datapath.tables.lb import BackendTable, Change, ServiceTable
from tidegate.datapath.tables.maps import ArrayTable, HashTable, MapTable, read_counters
from tidegate.datapath.tables.slots import SlotRanges
from tidegate.datapath.tables.xdp import XdpTable
from tidegate.datapath.xdp import Mode, XdpLinks


class Tables:
    """The load balancer's maps behind their doors. `loaded` says where the pins are."""

    def __init__(self, loaded: Loaded) -> None:
        names = ("tg_lb_config", "tg_backend", "tg_service")
        arrays = {name: ArrayTable(loaded.maps / name, loaded.layout.maps[name]) for name in names}
        slots = SlotRanges(loaded.maps / "tg_slots", time.monotonic_ns)
        ids = len(arrays["tg_backend"])
        self.backends = BackendTable(arrays["tg_backend"], ids, lambda: secrets.randbits(32))
        self.services = ServiceTable(arrays["tg_service"], slots, self.backends, time.monotonic_ns, lambda: datetime.now(UTC))
        self._loaded = loaded
        self._counters, self._counts = (libbpf.obj_get(loaded.maps / name) for name in ("tg_lb_counters", "tg_lb_count"))
        self.programs = XdpTable(XdpLinks(loaded.links), loaded.programs)
        # Puts go down this list and drops up: a frontend refers to its service, and its table to the backends.
        self.every: Sequence[Table] = (
            arrays["tg_lb_config"],
            self.backends,
            self.services,
            MapTable(loaded.maps / "tg_lb_ranges", loaded.layout.maps["tg_lb_ranges"]),
            *(HashTable(loaded.maps / name, loaded.layout.maps[name]) for name in ("tg_vip4", "tg_vip6")),
            self.programs,
        )

    def counters(self) -> dict[str, int]:
        """Return packets by reason, the verdict first."""
        return read_counters(self._counters, self._loaded.layout, "tg_lb_counters")

    def connections(self, number: int) -> int:
        """Return how many connections the service of this number has begun."""
        one = self._loaded.layout.maps["tg_lb_count"]
        raw = libbpf.lookup(self._counts, number.to_bytes(4, sys.byteorder), one.read_size) or b""
        return one.totals(raw).get("flows", 0)


class Balancer:
    """Everything of the load balancer that outlives one pass."""

    def __init__(self, pins: Path, load: Callable[[], Loaded]) -> None:
        """`load` makes the pins below `pins` be there; it raises Unfit where it cannot."""
        self._pins, self._load = pins, load
        self.loaded: Loaded | None = None
        self._tables: Tables | None = None
        self._connections: dict[int, int] = {}
        self._counted_until = 0.0

    def apply(self, order: Order, facts: Facts, *, may_drop: bool) -> Receipt:
        """Make the tables match the order. Where no service ever was, nothing is loaded."""
        if self._tables is None:
            if not order.services and not order.captures and not self._pins.is_dir():
                return Receipt()
            try:
                self.loaded = self._load()
                self._tables = Tables(self.loaded)
            except Unfit as error:
                return Receipt(failures=[Failed(lb.owner(each), "lb", "", str(error)) for each in order.services])
        return reconcile(self._tables.every, lb.lower(order, facts), may_drop=may_drop)

    def receipts(self, order: Order, failing: Mapping[str, Sequence[str]]) -> list[ServiceReceipt]:
        """Say what the last changes of tables did, whose checks fail, and what the programs counted."""
        tables = self._tables
        if tables is None:
            return receipts(order, {}, failing)
        if time.monotonic() >= self._counted_until:
            numbers = [lb.index(each, version) for each in order.services for version in lb.families(each.spec)]
            self._connections = {number: tables.connections(number) for number in numbers}
            self._counted_until = time.monotonic() + COUNT_S
        modes = set(tables.programs.modes.values())
        xdp: Mode | Literal[""] = "generic" if "generic" in modes else "native" if modes else ""
        return receipts(order, tables.services.changes, failing, xdp, self._connections)

    def backend_ids(self) -> Mapping[Fields, int]:
        """Return the kernel's number of each backend."""
        return self._tables.backends.ids if self._tables else {}

    def counters(self) -> dict[str, int]:
        """Return packets by reason, as `drop_lb_no_backend`; nothing where there is no load balancer."""
        found = self._tables.counters() if self._tables else {}
        return {name.replace("_", "_lb_", 1): count for name, count in found.items()}


def receipts(
    order: Order,
    changes: Mapping[int, Change],
    failing: Mapping[str, Sequence[str]],
    xdp: Mode | Literal[""] = "",
    connections: Mapping[int, int] | None = None,
) -> list[ServiceReceipt]:
    """Return a receipt for each service that there is something to say about; of both halves of one the newer change."""
    found = []
    for service in order.services:
        numbers = {lb.index(service, version) for version in lb.families(service.spec)}
        halves = [changes[number] for number in numbers & changes.keys()]
        newest = max(halves, key=lambda change: change.at, default=None)
        dead = tuple(failing.get(service.name, ()))
        if newest is not None or dead or xdp:
            found.append(
                ServiceReceipt(
                    name=service.name,
                    unhealthy=dead,
                    xdp=xdp,
                    connections=sum((connections or {}).get(number, 0) for number in numbers),
                    slotsMoved=newest.slots_moved if newest else 0,
                    lastChange=newest.at.strftime("%Y-%m-%dT%H:%M:%SZ") if newest else "",
                )
            )
    return found
