"""Which subnet a new interface shall lie in, and what blocks of it are still whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tidegate.crds import cidr
from tidegate.crds.ipam import Provider
from tidegate.ipam.cloud import Interface, Kind, Subnet
from tidegate.ipam.clouds.kinds import FAMILY_4, PREFIXES


@dataclass(frozen=True, slots=True)
class SubnetView:
    """A subnet as last seen, and what it refused lately: until when (seconds) it is not asked for anything, or for prefixes.

    `whole` is the length of its widest IPv4 block in which nothing known lies, -1 if there is none.
    """

    subnet: Subnet
    exhausted_until: float = 0.0
    fragmented_until: float = 0.0
    whole: int = 0


@dataclass
class Room:
    """Subnets while plans are made: what one node is given, the next cannot have."""

    subnets: Mapping[str, SubnetView]
    taken: dict[str, int] = field(default_factory=dict)

    def free(self, subnet: str) -> int:
        """Return how many single IPv4 addresses are left; a large number where the provider tells none."""
        view = self.subnets.get(subnet)
        if view is None or view.subnet.free < 0:
            return 1 << 32
        return max(view.subnet.free - self.taken.get(subnet, 0), 0)

    def take(self, subnet: str, count: int) -> None:
        """Note that a plan uses so many IPv4 addresses of it."""
        self.taken[subnet] = self.taken.get(subnet, 0) + count

    def gives(self, subnet: str, kind: Kind, length: int, now: float) -> bool:
        """Tell whether an item of a kind can be expected of a subnet; `length` is that of a prefix."""
        view = self.subnets.get(subnet)
        if view is None:
            return True
        if now < view.exhausted_until:
            return False
        if kind in PREFIXES and now < view.fragmented_until:
            return False
        if kind not in FAMILY_4:
            return any(":" in each for each in view.subnet.cidrs)
        if kind is Kind.PREFIX_4:
            return self.free(subnet) >= 1 << (32 - length) and 0 <= view.whole <= length
        return self.free(subnet) > 0

    def choose(self, ids: Iterable[str], zone: str, network: str, kind: Kind, length: int, now: float) -> str | None:
        """Return the subnet with the most room that is in the zone and network and has the kind of item, or None."""
        fit = [
            each
            for each in ids
            if (view := self.subnets.get(each)) is not None
            and view.subnet.zone in ("", zone)
            and network in ("", view.subnet.network)
            and self.gives(each, kind, length, now)
            # The interface's own address comes on top.
            and self.free(each) > 1
        ]
        return max(fit, key=lambda each: (self.free(each), each), default=None)


def widest_block(cidrs: Sequence[str], taken: Iterable[str]) -> int:
    """Return the prefix length of the widest aligned IPv4 block that no address or prefix of `taken` lies in, -1 if none is left.

    >>> widest_block(["10.0.0.0/24"], ["10.0.0.5", "10.0.0.128/28"])
    26
    """
    networks = [found for each in cidrs if (found := cidr.network(each)).version == 4]
    if not networks:
        return -1
    whole = networks[0]
    first, size = int(whole.network_address), whole.num_addresses
    # Bounds of what lies between taken ranges, the ends of the subnet included.
    spans = sorted(span for each in taken if (span := _span(each)) is not None and first <= span[0] < first + size)
    best, cursor = -1, first
    for begin, end in [*spans, (first + size, first + size)]:
        best = max(best, _widest(cursor, begin))
        cursor = max(cursor, end)
    return -1 if best < 0 else 32 - best


def _span(item: str) -> tuple[int, int] | None:
    if ":" in item:
        return None
    if "/" in item:
        network = cidr.network(item)
        return int(network.network_address), int(network.broadcast_address) + 1
    begin = int(cidr.address(item))
    return begin, begin + 1


def _widest(begin: int, end: int) -> int:
    """Return the largest k such that an aligned block of 2**k lies in [begin, end), -1 if it is empty."""
    for k in range((end - begin).bit_length() - 1 if end > begin else -1, -1, -1):
        if (begin + (1 << k) - 1 >> k << k) + (1 << k) <= end:
            return k
    return -1


def measure(subnets: Mapping[str, SubnetView], found: Iterable[Interface]) -> Mapping[str, SubnetView]:
    """Return the subnets with their widest whole blocks, by what lies in them of a complete look at our interfaces."""
    taken: dict[str, list[str]] = {}
    for each in found:
        own = [each.primary] if each.primary else []
        taken.setdefault(each.subnet, []).extend((*each.addresses, *each.prefixes, *own))
    return {id: replace(view, whole=widest_block(view.subnet.cidrs, taken.get(id, ()))) for id, view in subnets.items()}


_GATEWAYS = {"alibaba": -3, "aws": 1, "azure": 1}


def gateways(provider: Provider, cidrs: Sequence[str]) -> tuple[str, ...]:
    """Return the routers of a subnet: its first address (AWS, Azure), or its third from the end (Alibaba).

    Of IPv6 the first on AWS; elsewhere router advertisements tell, and nothing is returned.

    >>> gateways("alibaba", ["10.0.0.0/24"]), gateways("aws", ["10.0.0.0/24", "2001:db8::/64"])
    (('10.0.0.253',), ('10.0.0.1', '2001:db8::1'))
    """
    networks = [cidr.network(each) for each in cidrs]
    return tuple(str(each[_GATEWAYS[provider]]) for each in networks if each.version == 4 or provider == "aws")
