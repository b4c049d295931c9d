"""Which kind an address or a prefix is, by its text alone; the adapters of all providers ask it."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from tidegate.ipam.cloud import Kind

FAMILY_4 = frozenset({Kind.ADDRESS_4, Kind.PREFIX_4})
PREFIXES = frozenset({Kind.PREFIX_4, Kind.PREFIX_6})


def kind_of(item: str) -> Kind:
    """Return the kind of an item: an address, or a prefix with its length.

    >>> kind_of("10.0.0.7"), kind_of("2001:db8::/80")
    (<Kind.ADDRESS_4: 'address4'>, <Kind.PREFIX_6: 'prefix6'>)
    """
    if "/" in item:
        return Kind.PREFIX_4 if ip_network(item).version == 4 else Kind.PREFIX_6
    return Kind.ADDRESS_4 if ip_address(item).version == 4 else Kind.ADDRESS_6


def canonical(item: str) -> str:
    """Return the one way in which we write an item.

    >>> canonical("2001:DB8:0:0::7"), canonical("10.0.0.16/28")
    ('2001:db8::7', '10.0.0.16/28')
    """
    return str(ip_network(item)) if "/" in item else str(ip_address(item))


def the_kind(items: Iterable[str]) -> Kind:
    """Return the kind that all items have. Raises `ValueError` for none and for a mixture: one call takes one kind."""
    kinds = {kind_of(item) for item in items}
    if len(kinds) != 1:
        raise ValueError(f"items of one kind are asked for, not {sorted(kind.value for kind in kinds)}")
    return kinds.pop()
