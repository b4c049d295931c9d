"""The backend's side of LoadBalancers: which packets of balancers are for this node, and who listens for them here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tidegate.crds import cidr
from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, name_backend
from tidegate.crds.memo import remembered
from tidegate.datapath.facts import Facts
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.lowering import lb
from tidegate.datapath.order import Address, Order, mapped, of_version
from tidegate.datapath.table import Failed, Row

QUOTED = 8
"""Backends of one address that ICMP errors about a frontend can be told apart by (tg_abi.h: TG_DSR_QUOTED)."""

_TABLE = "tg_dsr"
_HEADER = {4: 20, 6: 40}


@dataclass(frozen=True, slots=True)
class _Way:
    """One frontend's packets to one backend of this node; `target` is who listens, in the frontend's family."""

    service: BalancedService
    frontend: Frontend
    backend: Backend
    outer: Address
    vip: Address
    target: Address

    @property
    def inner_port(self) -> int:
        """The destination port that the balancer leaves or puts in the inner packet."""
        return self.backend.port if self.service.spec.innerPort == "Backend" else self.frontend.port

    def key(self, port: int, quoted: int = 0) -> Fields:
        """Return the key under which the programs look for this way."""
        return fields(
            outer=mapped(self.outer),
            vip=mapped(self.vip),
            port=lb.network_order(port),
            proto=lb.PROTOCOLS[self.frontend.protocol],
            quoted=quoted,
        )

    def failed(self, message: str) -> Failed:
        """Return the failure that names this backend."""
        name = name_backend(self.backend.address, self.backend.port)
        return Failed(lb.owner(self.service), _TABLE, name, f"backend {name}: {message}")


def lower(order: Order, facts: Facts) -> Iterator[Row]:
    """Yield a row for each frontend of each backend that is here, and one more for ICMP errors about it."""
    found, _ = _resolve(order, facts)
    mtu = order.network.mtu or min((uplink.mtu for uplink in facts.uplinks), default=1500)
    for key, way in found.items():
        value = fields(
            target=mapped(way.target),
            target_port=lb.network_order(way.backend.port),
            vip_port=lb.network_order(way.frontend.port),
            mtu=mtu - _HEADER[way.outer.version],
        )
        yield Row(_TABLE, key, value, lb.owner(way.service))


def failures(order: Order, facts: Facts) -> list[Failed]:
    """Return the backends of this node that cannot serve a frontend, with the reason."""
    return _resolve(order, facts)[1]


def is_backend(order: Order, facts: Facts) -> bool:
    """Return whether any service's packets are for this node."""
    here = frozenset(lb.homes(order, facts))
    return any(not _outers(service).isdisjoint(here) for service in order.dsr)


@remembered
def _outers(service: BalancedService) -> frozenset[Address]:
    return frozenset(cidr.address(backend.address) for backend in service.spec.backends)


def _resolve(order: Order, facts: Facts) -> tuple[dict[Fields, _Way], list[Failed]]:
    found: dict[Fields, _Way] = {}
    failed: list[Failed] = []
    quoted: dict[Fields, int] = defaultdict(int)
    for way in _ways(order, lb.homes(order, facts), failed):
        other = found.setdefault(way.key(way.inner_port), way)
        if other is not way:
            failed.append(way.failed(_confusion(way, other)))
            continue
        about = way.key(way.frontend.port)
        quoted[about] += 1
        if quoted[about] > QUOTED:
            failed.append(way.failed(f"no more than {QUOTED} backends of one address can be told about path MTUs"))
            continue
        found[way.key(way.frontend.port, quoted[about])] = way
    return found, failed


def _ways(order: Order, here: Mapping[Address, tuple[Address, ...]], failed: list[Failed]) -> Iterable[_Way]:
    homes = frozenset(here)
    concerned = (service for service in order.dsr if not _outers(service).isdisjoint(homes))
    for service in sorted(concerned, key=lambda each: each.number):
        for backend in service.spec.backends:
            outer = cidr.address(backend.address)
            if outer not in here:
                continue
            for frontend in service.spec.frontends:
                vip = cidr.address(frontend.address)
                target = outer if outer.version == vip.version else of_version(here[outer], vip.version)
                way = _Way(service, frontend, backend, outer, vip, target)
                if target is None:
                    failed.append(way.failed(f"no address of IPv{vip.version} here can take packets to {vip}: add one"))
                else:
                    yield way


def _confusion(way: _Way, other: _Way) -> str:
    inner = name_backend(way.frontend.address, way.inner_port)
    if way.backend.port != other.backend.port:
        rival = name_backend(other.backend.address, other.backend.port)
        return f"packets to {inner} are {rival}'s: write innerPort: Backend, so that the two can be told apart"
    return f"packets to {inner} are those of frontend port {other.frontend.port}: write innerPort: Frontend"
