"""LoadBalancers on this node: frontends, backends by name, and what each service's table is made of."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, LoadBalancerSpec, name_backend
from tidegate.crds.memo import MOST, Same
from tidegate.datapath import maglev
from tidegate.datapath.facts import Facts
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.order import Address, Network, Order, mapped, mapped_prefix, of_version
from tidegate.datapath.table import Row
from tidegate.datapath.tables.lb import Recipe, Service

# lb_abi.h
DNAT, RANDOM, AFFINITY, RANGES, INNER_PORT, STATELESS = (1 << bit for bit in range(6))

BACKEND_HERE = 1

OWNER = "ClusterNetwork/default"

NAT_PORTS = (10000, 32767)
"""Ports that stand for clients' ports with DNAT: below those that kernels give to the machine's own connections."""

ICMP_RATE = 1000
"""ICMP errors that may be sent a second and CPU."""

PROTOCOLS = {"TCP": 6, "UDP": 17}


def lower(order: Order, facts: Facts) -> Iterator[Row]:
    """Yield the rows of all services that this node balances; none at all where there are none."""
    if not order.services:
        return
    here = frozenset(mapped(address) for address in homes(order, facts))
    own = {version: own_address(order, facts, version) for version in (4, 6)}
    nat = {f"nat{version}": mapped(address) for version, address in own.items() if address is not None}
    low, high = NAT_PORTS
    yield Row("tg_lb_config", (), fields(port_min=low, port_max=high, icmp_rate=ICMP_RATE, **nat), OWNER)
    for uplink in facts.uplinks:
        yield Row("xdp", uplink.name, "lb", OWNER)
    # Two services may share an address: its own row belongs to the one of the lower number, for the last one counts.
    for service in sorted(order.services, key=lambda each: -each.number):
        dead = order.dead.get(service.name, frozenset())
        yield from _rows(Same(service), dead, own[4], own[6], here)


@lru_cache(MOST)
def _rows(
    same: Same[BalancedService], dead: frozenset[str], own4: Address | None, own6: Address | None, here: frozenset[bytes]
) -> tuple[Row, ...]:
    """Return the rows of one service, which nothing but these arguments decides: of thousands few change at a time."""
    service, own = same.value, {4: own4, 6: own6}
    serves, rows = owner(service), []
    for backend in service.spec.backends:
        key = backend_key(backend)
        flags = BACKEND_HERE if dict(key)["addr"] in here else 0
        rows.append(Row("tg_backend", key, fields(flags=flags), serves))
    for family in families(service.spec):
        rows.append(Row("tg_service", index(service, family), _service(service, family, dead, own), serves))
        rows += _ranges(service, family, serves)
    for frontend in service.spec.frontends:
        address = ip_address(frontend.address)
        number = index(service, address.version)
        rows.append(_vip(address, 0, 0, number, serves))
        rows.append(_vip(address, frontend.port, PROTOCOLS[frontend.protocol], number, serves))
    return tuple(rows)


def owner(service: BalancedService) -> str:
    """Name the resource that a service's rows serve."""
    return f"LoadBalancer/{service.name}"


def index(service: BalancedService, version: int) -> int:
    """Number a service in the kernel: translation keeps to one family, so each family has a service of its own there."""
    return 2 * service.number + (service.spec.mode == "DNAT" and version == 6)


def families(spec: LoadBalancerSpec) -> tuple[int, ...]:
    """Return an IP version for each service that the kernel has of one LoadBalancer."""
    versions = sorted({ip_address(frontend.address).version for frontend in spec.frontends})
    return tuple(versions) if spec.mode == "DNAT" else tuple(versions[:1])


def weights(service: BalancedService, version: int, dead: frozenset[str]) -> dict[str, int]:
    """Return what the table is made of: the backends that take new connections, by weight."""
    return {
        name: backend.weight
        for backend in service.spec.backends
        if (name := name_backend(backend.address, backend.port)) not in dead
        and backend.state == "active"
        and backend.weight
        and (service.spec.mode == "DSR" or ip_address(backend.address).version == version)
    }


def own_address(order: Order, facts: Facts, version: int) -> Address | None:
    """Return the address that this node sends with, of an IP version, or None."""
    usable = tuple(address for uplink in facts.uplinks for address in uplink.addresses)
    found: Address | None = of_version(order.own_addresses, version) or of_version(usable, version)
    return found


def homes(order: Order, facts: Facts) -> Mapping[Address, tuple[Address, ...]]:
    """Return the addresses under which this node or a pod of it is a backend, each with all that its listener has."""
    usable = tuple(address for uplink in facts.uplinks for address in uplink.addresses)
    own = tuple(dict.fromkeys((*order.own_addresses, *usable, *facts.own_addresses)))
    found = dict.fromkeys(own, own)
    for pod in order.pods:
        found |= dict.fromkeys(pod.addresses, pod.addresses)
    return found


def backend_key(backend: Backend) -> Fields:
    """Return what tells a backend from others in the kernel.

    >>> backend_key(Backend(address="192.0.2.1", port=80)) == fields(addr=mapped(ip_address("192.0.2.1")), port=network_order(80))
    True
    """
    return _key(backend.address, backend.port)


# Services share backends, and each asks for the key more than once.
@lru_cache(MOST)
def _key(address: str, port: int) -> Fields:
    return fields(addr=mapped(ip_address(address)), port=network_order(port))


def network_order(port: int) -> int:
    """Return a port as the maps have it: in network order, read as a number of this machine."""
    return int.from_bytes(struct.pack("!H", port), sys.byteorder)


def _vip(address: Address, port: int, protocol: int, number: int, owner: str) -> Row:
    raw = int.from_bytes(address.packed, sys.byteorder) if address.version == 4 else address.packed
    key = fields(addr=raw, port=network_order(port), proto=protocol)
    return Row(f"tg_vip{address.version}", key, fields(service=number), owner)


def _service(service: BalancedService, family: int, dead: frozenset[str], own: dict[int, Address | None]) -> Service:
    spec = service.spec
    recipe = Recipe(
        weights=weights(service, family, dead),
        backends={name_backend(each.address, each.port): backend_key(each) for each in spec.backends},
        size=spec.tableSize,
        seed=spec.hashSeed,
        grace_s=spec.graceSeconds,
    )
    source4, len4 = _outer_source(spec.outerSourcePrefix.ipv4, own[4])
    source6, len6 = _outer_source(spec.outerSourcePrefix.ipv6, own[6])
    return Service(
        fields(
            size=spec.tableSize,
            seed=maglev.flow_seed(spec.hashSeed),
            flags=_flags(spec),
            affinity_s=_ticks(spec.sessionAffinity.timeoutSeconds) if spec.sessionAffinity else 0,
            digest=recipe.digest,
            source4=source4,
            source6=source6,
            len4=len4,
            len6=len6,
        ),
        recipe,
    )


def _ticks(seconds: int) -> int:
    """Return the least time in the kernel's units, 2^30 ns, that is no less than `seconds`."""
    return -(-seconds * 10**9 >> 30)


def _flags(spec: LoadBalancerSpec) -> int:
    chosen = (
        (DNAT, spec.mode == "DNAT"),
        (RANDOM, spec.algorithm == "Random"),
        (AFFINITY, spec.sessionAffinity is not None),
        (RANGES, bool(spec.sourceRanges)),
        (INNER_PORT, spec.innerPort == "Backend" and spec.mode == "DSR"),
        (STATELESS, not spec.flowTable and spec.mode == "DSR"),
    )
    return sum(flag for flag, is_set in chosen if is_set)


def _outer_source(prefix: str, own: Address | None) -> tuple[bytes, int]:
    """Return address and length: the prefix, else all of the machine's own address, else nothing."""
    if not prefix:
        return (mapped(own), own.max_prefixlen) if own is not None else (b"", 0)
    network: Network = ip_network(prefix)
    return mapped(network.network_address), network.prefixlen


def _ranges(service: BalancedService, family: int, owner: str) -> Iterator[Row]:
    for text in service.spec.sourceRanges:
        length, addr = mapped_prefix(ip_network(text))
        key = fields(prefixlen=32 + length, service=index(service, family), addr=addr)
        yield Row("tg_lb_ranges", key, fields(allow=1), owner)
