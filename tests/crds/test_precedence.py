"""Facts about which egress rule wins."""

from __future__ import annotations

import random
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from tidegate.crds import precedence
from tidegate.crds.cidr import Address, Network
from tidegate.crds.cluster_state import EgressRule


# Few distinct bits, so that prefixes nest and collide often.
@st.composite
def networks(draw: st.DrawFn) -> str:
    version, length = draw(st.sampled_from((4, 6))), draw(st.integers(0, 6))
    bits = draw(st.integers(0, 2**length - 1)) if length else 0
    width = 32 if version == 4 else 128
    value = bits << (width - length)
    return str(IPv4Network((value, length)) if version == 4 else IPv6Network((value, length)))


@st.composite
def rule_lists(draw: st.DrawFn) -> list[EgressRule]:
    return [
        EgressRule(
            name=f"p{number}",
            uid=str(number),
            number=number + 1,
            selectors=(),
            destinationCIDRs=draw(st.lists(networks(), min_size=1, max_size=4)),
            excludedCIDRs=draw(st.lists(networks(), max_size=3)),
            priority=draw(st.integers(0, 2)),
            created=draw(st.sampled_from(("2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z"))),
        )
        for number in range(draw(st.integers(0, 6)))
    ]


@st.composite
def addresses(draw: st.DrawFn) -> Address:
    top = draw(st.integers(0, 63))
    return ip_address(top << 26) if draw(st.booleans()) else ip_address(top << 122)


def brute_force(rules: list[EgressRule], address: Address) -> EgressRule | None:
    def longest(texts: list[str]) -> int:
        return max((ip_network(text).prefixlen for text in texts if address in ip_network(text)), default=-1)

    applying = []
    for rule in rules:
        destination, excluded = longest(list(rule.destinationCIDRs)), longest(list(rule.excludedCIDRs))
        if destination > excluded:
            applying.append((-rule.priority, -destination, rule.created, rule.name, rule))
    return min(applying, key=lambda found: found[:4])[4] if applying else None


def longest_match(table: dict[IPv4Network | IPv6Network, EgressRule | None], address: Address) -> EgressRule | None:
    found: list[Network] = [prefix for prefix in table if address in prefix]
    return table[max(found, key=lambda prefix: prefix.prefixlen)] if found else None


@given(rule_lists(), st.lists(addresses(), min_size=1, max_size=20))
def test_table_agrees_with_the_definition(rules: list[EgressRule], probes: list[Address]) -> None:
    """Longest-prefix match over the table names the same winner as asking every rule."""
    table = precedence.compile_rules(rules)
    for probe in probes:
        assert longest_match(table, probe) == brute_force(rules, probe)


@given(rule_lists(), st.integers())
def test_input_order_does_not_matter(rules: list[EgressRule], seed: int) -> None:
    """Shuffled rules give the same table, entry order included."""
    shuffled = list(rules)
    random.Random(seed).shuffle(shuffled)
    assert list(precedence.compile_rules(shuffled).items()) == list(precedence.compile_rules(rules).items())


def test_excluded_address_falls_to_the_next_policy() -> None:
    """An exclusion hides only its own policy: a wider one still applies."""
    narrow = EgressRule(
        name="narrow",
        uid="1",
        number=1,
        selectors=(),
        destinationCIDRs=("198.51.100.0/24",),
        excludedCIDRs=("198.51.100.7/32",),
    )
    wide = EgressRule(name="wide", uid="2", number=2, selectors=(), destinationCIDRs=("0.0.0.0/0",))
    table = precedence.compile_rules([narrow, wide])
    assert longest_match(table, ip_address("198.51.100.7")) == wide
    assert longest_match(table, ip_address("198.51.100.8")) == narrow
