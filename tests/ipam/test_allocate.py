"""Allocation: never two owners, never a leak, and rest for what was released."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ipam import allocate
from tidegate.ipam.allocate import COOL_DOWN_S, Address, ExhaustedError, Network

NETWORKS = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
        st.integers(0, 2**32 - 1),
        st.integers(24, 32),
    ),
    st.builds(
        lambda number, length: IPv6Network((number >> (128 - length) << (128 - length), length)),
        st.integers(0, 2**128 - 1),
        st.integers(48, 128),
    ),
)
STEPS = st.lists(st.one_of(st.just("add"), st.integers(0, 300), st.floats(0, 90)), max_size=120)


@given(NETWORKS, STEPS)
def test_any_history(network: Network, steps: list[str | int | float]) -> None:
    """Whatever is allocated, released and waited for: no address has two owners or too short a rest, none is lost."""
    used: set[Address] = set()
    released: dict[Address, float] = {}
    last: Address | None = None
    now_s = 1000.0
    for step in steps:
        if step == "add":
            try:
                last = allocate.allocate(network, used, released, last, now_s)
            except ExhaustedError:
                resting = allocate.still_resting(released, now_s)
                assert len(used) + len(resting.keys() - used) == allocate.size(network)
                continue
            assert last in network
            assert last not in used
            assert now_s - released.get(last, -1000.0) >= COOL_DOWN_S
            used.add(last)
        elif isinstance(step, int) and used:
            gone = sorted(used)[step % len(used)]
            used.remove(gone)
            released = allocate.still_resting(released, now_s) | {gone: now_s}
        elif isinstance(step, float):
            now_s += step


@given(NETWORKS.filter(lambda network: allocate.size(network) < 300))
def test_whole_range(network: Network) -> None:
    """A range gives each of its addresses once, never the network's own nor the broadcast, and then says how full it is."""
    used: set[Address] = set()
    for _ in range(allocate.size(network)):
        used.add(allocate.allocate(network, used, {}, None, 0.0))
    if network.num_addresses > 2:
        assert network.network_address not in used
        assert network.version == 6 or network.broadcast_address not in used
    with pytest.raises(ExhaustedError, match=f"{len(used)} of {len(used)} in use"):
        allocate.allocate(network, used, {}, None, 0.0)


def test_round_and_round() -> None:
    """A released address comes up again only when all others have had their turn."""
    network = ip_network("10.0.0.0/29")
    last = None
    order = []
    for _ in range(8):
        last = allocate.allocate(network, set(), {}, last, 0.0)
        order.append(int(last) & 7)
    assert order == [1, 2, 3, 4, 5, 6, 1, 2]


def test_rest() -> None:
    """With nothing else free, an address is not given out before its rest is over, and the error says when that is."""
    network = ip_network("10.0.0.0/30")
    used = {ip_address("10.0.0.1")}
    released = {ip_address("10.0.0.2"): 100.0}
    with pytest.raises(ExhaustedError, match=r"1 of 2 in use; the first of 1 released ones is free again in 20 s"):
        allocate.allocate(network, used, released, None, 140.0)
    assert allocate.allocate(network, used, released, None, 160.0) == ip_address("10.0.0.2")


def test_clock_set_back() -> None:
    """A clock that was set back by a day does not make an address rest for a day."""
    released = {ip_address("10.0.0.2"): 86400.0}
    with pytest.raises(ExhaustedError, match="free again in 60 s"):
        allocate.allocate(ip_network("10.0.0.2/32"), set(), released, None, 0.0)


def test_last_of_another_range() -> None:
    """A last address that is not of the range starts at its beginning."""
    assert allocate.allocate(ip_network("10.0.1.0/24"), set(), {}, ip_address("10.0.0.9"), 0.0) == ip_address("10.0.1.1")


def test_wide_range() -> None:
    """An IPv6 range of 2^80 addresses, 5000 of them in use in a row, is searched in no more than 5001 steps."""
    network = IPv6Network("fd00::/48")
    used = {network.network_address + n for n in range(1, 5001)}
    assert allocate.allocate(network, used, {}, None, 0.0) == network.network_address + 5001
