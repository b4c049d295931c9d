"""Prefixes and addresses as the vocabulary writes them: parsed strictly once, compared as values from then on."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class AddressError(ValueError):
    """Text that is no CIDR or no address; the message quotes it and says what would be right."""


@lru_cache(maxsize=65536)
def network(text: str) -> Network:
    """Parse a CIDR; bits to the right of the prefix must be zero. Raises AddressError.

    >>> network("10.0.0.0/8")
    IPv4Network('10.0.0.0/8')
    """
    if "/" not in text:
        raise AddressError(f"{text!r} has no prefix length: write {text}/32 or {text}/128 for one address")
    try:
        return ip_network(text)
    except ValueError as error:
        try:
            remedy = f": write {ip_network(text, strict=False)}"
        except ValueError:
            remedy = ""
        raise AddressError(f"{text!r} is not a CIDR{remedy}" if remedy else f"{text!r} is not a CIDR") from error


@lru_cache(maxsize=65536)
def address(text: str) -> Address:
    """Parse an address; no zone, no prefix. Raises AddressError."""
    try:
        found = ip_address(text)
    except ValueError as error:
        raise AddressError(f"{text!r} is not an IP address") from error
    if isinstance(found, IPv6Address) and found.scope_id is not None:
        raise AddressError(f"{text!r} has a zone, which means nothing on another machine")
    return found


def contains(outer: Network, inner: Network) -> bool:
    """Tell whether every address of `inner` is in `outer`; never across families.

    >>> contains(network("10.0.0.0/8"), network("10.1.0.0/16"))
    True
    """
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and int(inner.network_address) >> (outer.max_prefixlen - outer.prefixlen)
        == int(outer.network_address) >> (outer.max_prefixlen - outer.prefixlen)
    )


def overlap(one: Network, other: Network) -> bool:
    """Tell whether two prefixes share an address."""
    return contains(one, other) or contains(other, one)


def covering(networks: Iterable[Network], inside: Network | Address) -> Network | None:
    """Return the first of `networks` that contains `inside`, or None."""
    inner = inside if isinstance(inside, IPv4Network | IPv6Network) else ip_network(inside)
    return next((outer for outer in networks if contains(outer, inner)), None)


def order(item: Network) -> tuple[int, int, int]:
    """Sort key over both families: IPv4 first, then by address, the wider prefix first."""
    return item.version, int(item.network_address), item.prefixlen
