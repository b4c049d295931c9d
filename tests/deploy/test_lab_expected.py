"""Which source address is right for a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from tidegate.crds.egress import EgressPolicy
from tidegate.lab import legacy
from tidegate.lab.expected import NOTHING, Pod, expected_source

POD = Pod(
    name="web-1",
    labels={"app": "web"},
    namespace_labels={"kubernetes.io/metadata.name": "demo"},
    node_labels={"zone": "a"},
    node_addresses=("172.30.0.11", "fd30::11"),
)
TARGET = "198.51.100.10"


def policy(name: str = "p", given: Sequence[str] = ("172.30.0.200", "fd30::200"), **spec: Any) -> EgressPolicy:
    wire = {
        "metadata": {"name": name, "creationTimestamp": spec.pop("created", "2026-01-01T00:00:00Z")},
        "spec": {
            "selectors": [{"podSelector": {"matchLabels": {"app": "web"}}}],
            "destinationCIDRs": ["198.51.100.0/24", "2001:db8:100::/64"],
            "gateways": [],
            **spec,
        },
        "status": {"gateways": [{"node": "node3", "addresses": list(given)}] if given else []},
    }
    return msgspec.convert(wire, EgressPolicy)


def test_without_a_policy_it_is_the_nodes_address_of_the_same_family() -> None:
    assert expected_source(POD, TARGET, []) == {"172.30.0.11"}
    assert expected_source(POD, "2001:db8:100::10", []) == {"fd30::11"}


def test_a_policy_that_selects_pod_and_destination_gives_its_gateways_address() -> None:
    assert expected_source(POD, TARGET, [policy()]) == {"172.30.0.200"}
    assert expected_source(POD, "2001:db8:100::10", [policy()]) == {"fd30::200"}
    assert expected_source(POD, "203.0.113.10", [policy()]) == {"172.30.0.11"}


@pytest.mark.parametrize(
    "selector",
    [
        {"podSelector": {"matchLabels": {"app": "other"}}},
        {"podSelector": {"matchLabels": {"app": "web"}}, "namespaceSelector": {"matchLabels": {"team": "x"}}},
        {"nodeSelector": {"matchLabels": {"zone": "b"}}},
    ],
)
def test_all_fields_of_a_selector_must_match(selector: dict[str, Any]) -> None:
    assert expected_source(POD, TARGET, [policy(selectors=[selector])]) == {"172.30.0.11"}


def test_an_excluded_destination_leaves_as_without_a_policy() -> None:
    assert expected_source(POD, TARGET, [policy(excludedCIDRs=["198.51.100.10/32"])]) == {"172.30.0.11"}


def test_without_a_gateway_the_policy_says_whether_anything_leaves() -> None:
    assert expected_source(POD, TARGET, [policy(given=())]) == {NOTHING}
    assert expected_source(POD, TARGET, [policy(given=(), whenNoGateway="Allow")]) == {"172.30.0.11"}


def test_a_gateway_without_an_address_of_the_family_lets_nothing_out() -> None:
    assert expected_source(POD, "2001:db8:100::10", [policy(given=("172.30.0.200",))]) == {NOTHING}


def test_priority_then_destination_then_age_then_name_decide() -> None:
    low, high = policy("low", ("192.0.2.1",)), policy("high", ("192.0.2.2",), priority=1)
    wide = policy("wide", ("192.0.2.3",), destinationCIDRs=["198.51.0.0/16"])
    young = policy("a", ("192.0.2.4",), created="2026-02-01T00:00:00Z")
    same = policy("m", ("192.0.2.5",))
    for policies, wanted in (
        ([low, high], "192.0.2.2"),
        ([wide, low], "192.0.2.1"),
        ([young, low], "192.0.2.1"),
        ([same, low], "192.0.2.1"),
    ):
        assert expected_source(POD, TARGET, policies) == {wanted}
        assert expected_source(POD, TARGET, policies[::-1]) == {wanted}


def _tcp(flags: int) -> bytes:
    return bytes.fromhex("1234 1f90") + bytes(8) + bytes([0x50, flags]) + bytes(6)


def _ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    head = bytes([0x45, 0, 0, 0, 0, 0]) + fragment.to_bytes(2, "big") + bytes([64, protocol, 0, 0])
    return head + bytes([10, 0, 0, 1, 198, 51, 100, 10]) + payload


def test_the_sniffer_notes_what_asks_and_nothing_else() -> None:
    seen = legacy.parse_packet(0x0800, _ipv4(6, _tcp(0x02)), 1.5)
    assert seen == legacy.Seen(1.5, "tcp", "10.0.0.1", 0x1234, "198.51.100.10", 8080)
    assert legacy.parse_line(seen.line()) == seen
    assert legacy.parse_packet(0x0800, _ipv4(6, _tcp(0x12)), 0) is None
    assert legacy.parse_packet(0x0800, _ipv4(17, bytes(8), fragment=5), 0) is None
    assert legacy.parse_packet(0x0806, bytes(28), 0) is None


def test_the_sniffer_reads_through_ipv6_extension_headers() -> None:
    addresses = bytes.fromhex("fd30" + "00" * 13 + "11" + "20010db8" + "00" * 11 + "10")
    packet = bytes([0x60, 0, 0, 0, 0, 28, 0, 64]) + addresses + bytes([6, 0]) + bytes(6) + _tcp(0x02)
    seen = legacy.parse_packet(0x86DD, packet, 0)
    assert seen is not None
    assert (seen.protocol, seen.source, seen.source_port) == ("tcp", "fd30::11", 0x1234)


@pytest.mark.parametrize("length", range(0, 60, 3))
def test_the_sniffer_survives_packets_cut_anywhere(length: int) -> None:
    for protocol, whole in ((0x0800, _ipv4(6, _tcp(0x02))), (0x86DD, bytes([0x60]) + bytes(59))):
        legacy.parse_packet(protocol, whole[:length], 0)
