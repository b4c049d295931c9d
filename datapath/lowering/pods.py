"""The pods of this node: their links' programs, routes and neighbours, and what the programs know of each."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from tidegate.crds.rendezvous import slot
from tidegate.datapath.facts import Facts
from tidegate.datapath.layout import fields
from tidegate.datapath.lowering.egress import classes
from tidegate.datapath.order import LocalPod, Order, mapped, of_version
from tidegate.datapath.table import Row
from tidegate.datapath.tables.routes import Route

_HOLD = 1  # tg_abi.h: TG_EP_HOLD


def lower(order: Order, facts: Facts) -> Iterator[Row]:
    """Yield the rows of every pod whose link is there."""
    by_owner = classes(order)
    for pod in order.pods:
        ifindex = facts.links.get(pod.device)
        if ifindex is not None:
            kind = by_owner.get(pod.owner)
            yield from _rows(pod, ifindex, kind.number if kind else 0)


def _rows(pod: LocalPod, ifindex: int, policy_class: int) -> Iterator[Row]:
    ip4, ip6 = of_version(pod.addresses, 4), of_version(pod.addresses, 6)
    endpoint = fields(
        ip4=mapped(ip4) if ip4 else b"",
        ip6=mapped(ip6) if ip6 else b"",
        born=pod.born,
        policy_class=policy_class,
        slot=slot(f"{pod.namespace}/{pod.name}"),
        flags=0 if pod.is_known else _HOLD,
    )
    yield Row("tg_endpoint", fields(value=ifindex), endpoint, pod.owner)
    yield Row("programs", (pod.device, "ingress"), "pod_out", pod.owner)
    yield Row("programs", (pod.device, "egress"), "pod_in", pod.owner)
    for address in pod.addresses:
        yield Row("tg_local", fields(addr=mapped(address)), fields(ifindex=ifindex), pod.owner)
        yield Row("neighbours", (pod.device, address), pod.mac, pod.owner)
        yield Row("routes", ip_network(address), Route(device=pod.device), pod.owner)
