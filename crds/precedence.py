"""Which egress rule wins for an address: priority, then the most specific destination, then age, then the name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network

from tidegate.crds import cidr
from tidegate.crds.cidr import Network
from tidegate.crds.cluster_state import EgressRule


def compile_rules(rules: Iterable[EgressRule]) -> dict[IPv4Network | IPv6Network, EgressRule | None]:
    """Flatten `rules` to a table whose longest-prefix match gives the winner for any address, None meaning no rule.

    Every destination and excluded CIDR becomes one entry, however many rules there are. A rule applies to a prefix when
    the most specific of its own CIDRs around it is a destination; an exclusion wins over a destination of equal length.
    That makes longest-prefix match right: two addresses with the same longest entry lie in exactly the same CIDRs. The
    result does not depend on the order of `rules`. Raises AddressError for a malformed CIDR.
    """
    # Prefix -> what each rule says about it: True for a destination, False for an exclusion.
    said: dict[Network, dict[int, tuple[EgressRule, bool]]] = {}
    for number, rule in enumerate(rules):
        for text in rule.destinationCIDRs:
            said.setdefault(cidr.network(text), {})[number] = (rule, True)
        for text in rule.excludedCIDRs:
            said.setdefault(cidr.network(text), {})[number] = (rule, False)
    lengths: dict[int, list[int]] = {}
    for prefix in said:
        lengths.setdefault(prefix.version, []).append(prefix.prefixlen)
    descending = {version: sorted(set(found), reverse=True) for version, found in lengths.items()}
    return {prefix: _winner(prefix, said, descending[prefix.version]) for prefix in sorted(said, key=cidr.order)}


def rank(rule: EgressRule, prefixlen: int) -> tuple[int, int, str, str]:
    """Sort key among rules that apply to one address, the winner first; `prefixlen` is its destination's."""
    return -rule.priority, -prefixlen, rule.created, rule.name


def _winner(
    prefix: Network, said: Mapping[Network, Mapping[int, tuple[EgressRule, bool]]], lengths: Iterable[int]
) -> EgressRule | None:
    heard: set[int] = set()
    best: tuple[tuple[int, int, str, str], EgressRule] | None = None
    for around in _around(prefix, lengths):
        for number, (rule, is_destination) in said.get(around, {}).items():
            if number in heard:
                continue
            heard.add(number)
            if is_destination and (best is None or rank(rule, around.prefixlen) < best[0]):
                best = rank(rule, around.prefixlen), rule
    return best[1] if best else None


def _around(prefix: Network, lengths: Iterable[int]) -> Iterator[Network]:
    """Yield the prefixes of the given lengths that contain `prefix`, the most specific first."""
    for length in lengths:
        if length <= prefix.prefixlen:
            yield prefix.supernet(new_prefix=length)
