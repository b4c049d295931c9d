"""Which egress policy decides for a destination: a set of rules compiled into one longest-prefix table."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

from tidegate.crds.cluster_state import EgressRule

Network = IPv4Network | IPv6Network


def compile_rules(rules: Iterable[EgressRule]) -> dict[Network, EgressRule | None]:
    """Return the winner at every prefix that a rule names; None where all of them step aside.

    A rule stands for a prefix if the longest of its own CIDRs around it is a destination and not an exclusion. Of those,
    the best wins: higher priority, then longer destination, then older, then by name. The order of `rules` does not matter.
    """
    known = [(rule, _cidrs(rule)) for rule in rules]
    prefixes = {prefix for _, cidrs in known for prefix in cidrs}
    return {prefix: _winner(prefix, known) for prefix in prefixes}


def _cidrs(rule: EgressRule) -> dict[Network, bool]:
    """A rule's CIDRs, and whether each is a destination; an exclusion beats a destination of the same CIDR."""
    destinations = {ip_network(text): True for text in rule.destinationCIDRs}
    return destinations | {ip_network(text): False for text in rule.excludedCIDRs}


def _winner(prefix: Network, known: list[tuple[EgressRule, dict[Network, bool]]]) -> EgressRule | None:
    standing = []
    for rule, cidrs in known:
        around = [cidr for cidr in cidrs if cidr.version == prefix.version and prefix.subnet_of(cidr)]  # type: ignore[arg-type]
        if not around:
            continue
        longest = max(around, key=lambda cidr: cidr.prefixlen)
        if cidrs[longest]:
            standing.append((-rule.priority, -longest.prefixlen, rule.created, rule.name, rule))
    return min(standing, key=lambda entry: entry[:4])[4] if standing else None
