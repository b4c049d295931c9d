"""The load balancer of one node: its programs are loaded when a service wants them, and its tables follow the order."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tidegate.crds.node_state import ServiceReceipt
from tidegate.datapath.facts import Facts
from tidegate.datapath.lowering import lb
from tidegate.datapath.order import Order
from tidegate.datapath.programs import Loaded, Unfit
from tidegate.datapath.table import Failed, Receipt, Table, reconcile
from tidegate.datapath.tables.lb import BackendTable, Change, ServiceTable
from tidegate.datapath.tables.maps import ArrayTable, HashTable, MapTable
from tidegate.datapath.tables.slots import SlotTables

DEPENDENCY_ORDER = ("tg_lb_config", "tg_backend", "tg_service", "tg_lb_ranges", "tg_vip4", "tg_vip6")
"""Puts go down this list and drops up: a frontend refers to its service, and its table to the backends."""


class Tables:
    """The load balancer's maps behind their doors. `loaded` says where the pins are."""

    def __init__(self, loaded: Loaded) -> None:
        arrays = {name: ArrayTable(loaded.maps / name, loaded.layout.maps[name]) for name in DEPENDENCY_ORDER[:3]}
        slots = SlotTables(loaded.maps / "tg_table", loaded.maps / "tg_table_before")
        ids = len(arrays["tg_backend"])
        backends = BackendTable(arrays["tg_backend"], ids, lambda: secrets.randbits(32))
        self.services = ServiceTable(arrays["tg_service"], slots, backends, time.monotonic_ns, lambda: datetime.now(UTC))
        self.every: Sequence[Table] = (
            arrays["tg_lb_config"],
            backends,
            self.services,
            MapTable(loaded.maps / "tg_lb_ranges", loaded.layout.maps["tg_lb_ranges"]),
            *(HashTable(loaded.maps / name, loaded.layout.maps[name]) for name in ("tg_vip4", "tg_vip6")),
        )


class Balancer:
    """Everything of the load balancer that outlives one pass."""

    def __init__(self, pins: Path, load: Callable[[], Loaded]) -> None:
        """`load` makes the pins below `pins` be there; it raises Unfit where it cannot."""
        self._pins, self._load = pins, load
        self._tables: Tables | None = None

    def apply(self, order: Order, facts: Facts, *, may_drop: bool) -> Receipt:
        """Make the tables match the order. Where no service ever was, nothing is loaded."""
        if self._tables is None:
            if not order.services and not self._pins.is_dir():
                return Receipt()
            try:
                self._tables = Tables(self._load())
            except Unfit as error:
                return Receipt(failures=[Failed(lb.owner(each), "lb", "", str(error)) for each in order.services])
        return reconcile(self._tables.every, lb.lower(order, facts), may_drop=may_drop)

    def receipts(self, order: Order, failing: Mapping[str, Sequence[str]]) -> list[ServiceReceipt]:
        """Say what the last changes of tables did, and whose checks fail."""
        return receipts(order, self._tables.services.changes if self._tables else {}, failing)


def receipts(order: Order, changes: Mapping[int, Change], failing: Mapping[str, Sequence[str]]) -> list[ServiceReceipt]:
    """Return a receipt for each service that there is something to say about; of both halves of one the newer change."""
    found = []
    for service in order.services:
        numbers = {lb.index(service, version) for version in lb.families(service.spec)}
        halves = [changes[number] for number in numbers & changes.keys()]
        newest = max(halves, key=lambda change: change.at, default=None)
        dead = tuple(failing.get(service.name, ()))
        if newest is not None or dead:
            found.append(
                ServiceReceipt(
                    name=service.name,
                    unhealthy=dead,
                    slotsMoved=newest.slots_moved if newest else 0,
                    lastChange=newest.at.strftime("%Y-%m-%dT%H:%M:%SZ") if newest else "",
                )
            )
    return found
