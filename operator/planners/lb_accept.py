"""Which LoadBalancers can be taken as they are, and what is wrong with the others; nothing here trusts an API server."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tidegate.crds import cidr
from tidegate.crds.cidr import Address
from tidegate.crds.lb import Backend, Frontend, HealthCheck, LoadBalancer, LoadBalancerSpec
from tidegate.crds.memo import remembered
from tidegate.crds.primes import is_prime, next_prime
from tidegate.crds.reasons import Reason
from tidegate.operator.plan import ACCEPTED, Finding

SIZES = range(251, 131072)
SLOTS_A_BACKEND = 100
"""Below it a change of one backend moves more than about a percent of the connections of the others."""

Claim = tuple[Address, int, str]
"""A frontend: address, port and protocol."""

_STATUSES = re.compile(r"[1-5]\d\d(-[1-5]\d\d)?(,[1-5]\d\d(-[1-5]\d\d)?)*")


class Refused(Exception):
    """The finding that says why a LoadBalancer cannot be taken."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.finding = Finding(False, reason, message)


@dataclass(frozen=True, slots=True)
class Examined:
    """What a spec says by itself: its frontends, as far as they can be read, and the finding."""

    claims: Sequence[Claim]
    finding: Finding


@dataclass(frozen=True, slots=True)
class Taken:
    """Which addresses are not free: frontends by the LoadBalancer that has them, and the nodes' own by node."""

    frontends: Mapping[Claim, str] = field(default_factory=dict)
    nodes: Mapping[Address, str] = field(default_factory=dict)


def judge(resource: LoadBalancer, taken: Taken) -> Finding:
    """Return the finding for one LoadBalancer; those that are older hold their frontends already."""
    examined = examine(resource.spec)
    if not examined.finding.holds:
        return examined.finding
    for number, claim in enumerate(examined.claims):
        address, port, protocol = claim
        where = f"spec.frontends[{number}]"
        if address in taken.nodes:
            message = f"{where}: {address} is an address of node {taken.nodes[address]}: choose one that no machine has"
            return Finding(False, Reason.VIP_IS_NODE, message)
        if claim in taken.frontends:
            message = (
                f"{where}: {address} {protocol} port {port} belongs to the older LoadBalancer {taken.frontends[claim]}: "
                "choose another address or port"
            )
            return Finding(False, Reason.FRONTEND_CLAIMED, message)
    return examined.finding


@remembered
def examine(spec: LoadBalancerSpec) -> Examined:
    """Judge a spec without regard to others."""
    try:
        _check(spec)
    except Refused as refused:
        return Examined(_claims(spec), refused.finding)
    return Examined(_claims(spec), _check_share(spec))


def _claims(spec: LoadBalancerSpec) -> Sequence[Claim]:
    found = []
    for each in spec.frontends:
        with suppress(cidr.AddressError):
            found.append((cidr.address(each.address), each.port, each.protocol))
    return found


def _check_share(spec: LoadBalancerSpec) -> Finding:
    count = sum(takes_connections(each) for each in spec.backends)
    if spec.algorithm == "Random" or spec.tableSize >= SLOTS_A_BACKEND * count:
        return ACCEPTED
    wanted = next_prime(SLOTS_A_BACKEND * count)
    remedy = f"set it to {wanted}" if wanted in SIZES else "spread the backends over several LoadBalancers"
    message = (
        f"spec.tableSize: {spec.tableSize} is less than {SLOTS_A_BACKEND} times the {count} backends, so that a "
        f"change of one moves connections of others: {remedy}"
    )
    return Finding(True, Reason.TABLE_SMALL, message)


def takes_connections(backend: Backend) -> bool:
    """Tell whether a backend shall get new connections, as far as its author says."""
    return backend.state == "active" and backend.weight > 0


def _check(spec: LoadBalancerSpec) -> None:
    if not spec.frontends:
        raise Refused(Reason.INVALID, "spec.frontends: at least one is needed")
    frontends = list(_endpoints("spec.frontends", spec.frontends))
    backends = list(_endpoints("spec.backends", spec.backends))
    _check_table(spec)
    _check_ranges(spec)
    if spec.healthCheck is not None:
        _check_health(spec.healthCheck)
    for number, backend in enumerate(spec.backends):
        if not 0 <= backend.weight <= 256:
            raise Refused(Reason.INVALID, f"spec.backends[{number}].weight: {backend.weight} does not lie between 0 and 256")
    claims = _claims(spec)
    for number, claim in enumerate(claims):
        if claim in claims[:number]:
            where = f"spec.frontends[{number}]: {claim[0]} {claim[2]} port {claim[1]}"
            raise Refused(Reason.INVALID, f"{where} is listed twice: remove one")
    vips = {address for address, _ in frontends}
    seen: set[tuple[Address, int]] = set()
    for number, (address, port) in enumerate(backends):
        if address in vips:
            raise Refused(
                Reason.INVALID,
                f"spec.backends[{number}]: {address} is a frontend itself, packets would go round: remove it",
            )
        if (address, port) in seen:
            raise Refused(Reason.INVALID, f"spec.backends[{number}]: {address} port {port} is listed twice: remove one")
        seen.add((address, port))
    families = {address.version for address, _ in backends}
    for number, (address, _) in enumerate(frontends):
        if spec.mode == "DNAT" and backends and address.version not in families:
            message = (
                f"spec.frontends[{number}]: {address} is IPv{address.version} and no backend is: "
                f"add a backend with an IPv{address.version} address, or use mode DSR"
            )
            raise Refused(Reason.FAMILY_MISSING, message)


def _endpoints(where: str, given: Sequence[Frontend | Backend]) -> Iterator[tuple[Address, int]]:
    for number, each in enumerate(given):
        try:
            address = cidr.address(each.address)
        except cidr.AddressError as error:
            raise Refused(Reason.INVALID, f"{where}[{number}].address: {error}") from error
        if address.is_multicast or address.is_unspecified or address.is_loopback or getattr(address, "ipv4_mapped", None):
            raise Refused(Reason.INVALID, f"{where}[{number}].address: {address} is no address of one machine on a network")
        if not 1 <= each.port <= 65535:
            raise Refused(Reason.INVALID, f"{where}[{number}].port: {each.port} is no port: write one of 1 to 65535")
        yield address, each.port


def _check_table(spec: LoadBalancerSpec) -> None:
    if spec.tableSize not in SIZES:
        message = f"spec.tableSize: {spec.tableSize} does not lie between {SIZES.start} and {SIZES.stop - 1}"
        raise Refused(Reason.TABLE_NOT_PRIME, message)
    if not is_prime(spec.tableSize):
        near = next_prime(spec.tableSize)
        raise Refused(Reason.TABLE_NOT_PRIME, f"spec.tableSize: {spec.tableSize} is no prime: write {near}")
    if len(spec.hashSeed.encode()) > 64:
        raise Refused(Reason.INVALID, "spec.hashSeed: more than 64 bytes")
    if spec.algorithm == "Random" and not spec.flowTable:
        message = "spec.flowTable: algorithm Random needs it, or each packet would go to another backend"
        raise Refused(Reason.INVALID, message)
    if not 0 <= spec.graceSeconds <= 86400:
        raise Refused(Reason.INVALID, f"spec.graceSeconds: {spec.graceSeconds} does not lie between 0 and 86400")
    if spec.sessionAffinity is not None and not 1 <= spec.sessionAffinity.timeoutSeconds <= 86400:
        message = f"spec.sessionAffinity.timeoutSeconds: {spec.sessionAffinity.timeoutSeconds} does not lie between 1 and 86400"
        raise Refused(Reason.INVALID, message)


def _check_ranges(spec: LoadBalancerSpec) -> None:
    named: list[tuple[str, str, tuple[int, ...]]]
    named = [(f"spec.sourceRanges[{number}]", text, (4, 6)) for number, text in enumerate(spec.sourceRanges)]
    named += [("spec.outerSourcePrefix.ipv4", spec.outerSourcePrefix.ipv4, (4,))] if spec.outerSourcePrefix.ipv4 else []
    named += [("spec.outerSourcePrefix.ipv6", spec.outerSourcePrefix.ipv6, (6,))] if spec.outerSourcePrefix.ipv6 else []
    for where, text, versions in named:
        try:
            network = cidr.network(text)
        except cidr.AddressError as error:
            raise Refused(Reason.INVALID, f"{where}: {error}") from error
        if network.version not in versions:
            raise Refused(Reason.INVALID, f"{where}: {text} is of the other family")


def _check_health(check: HealthCheck) -> None:
    where = "spec.healthCheck"
    limits = (
        ("port", check.port, 0, 65535),
        ("intervalMilliseconds", check.intervalMilliseconds, 100, 3600000),
        ("timeoutMilliseconds", check.timeoutMilliseconds, 10, check.intervalMilliseconds),
        ("rise", check.rise, 1, 100),
        ("fall", check.fall, 1, 100),
        ("maxRemovedPercent", check.maxRemovedPercent, 0, 100),
    )
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise Refused(Reason.INVALID, f"{where}.{name}: {value} does not lie between {low} and {high}")
    if not re.fullmatch(r"/[!-~]*", check.path):
        raise Refused(Reason.INVALID, f"{where}.path: must begin with / and have no space in it")
    if not re.fullmatch(r"[A-Za-z0-9.:-]*", check.host):
        raise Refused(Reason.INVALID, f"{where}.host: {check.host!r} is no host name")
    if not _STATUSES.fullmatch(check.statuses):
        raise Refused(Reason.INVALID, f"{where}.statuses: {check.statuses!r} is not like 200,204 or 200-399")
