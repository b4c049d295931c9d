"""From an order to rows: one pure function a feature, and the tables in the order in which rows depend on each other."""

from __future__ import annotations

from tidegate.datapath.facts import Facts
from tidegate.datapath.lowering import egress, lb_backend, pods, routing
from tidegate.datapath.order import Order
from tidegate.datapath.table import Row

LOWERINGS = (routing.lower, egress.lower, pods.lower, lb_backend.lower)

DEPENDENCY_ORDER = (
    "sysctls",
    "links",
    "rules",
    "routes",
    "neighbours",
    "announcements",
    "notrack",
    "tg_config",
    "tg_range",
    "tg_source",
    "tg_path",
    "tg_egress",
    "tg_local",
    "tg_endpoint",
    "tg_dsr",
    "programs",
)
"""Puts go down this list and drops up: a pod refers to its class, a class to its policies, a program to all of them."""


def lower(order: Order, facts: Facts) -> list[Row]:
    """Return every row that `order` asks for on a node with these `facts`."""
    return [row for lowering in LOWERINGS for row in lowering(order, facts)]
