"""Which address a new pod gets from its node's range: the next one, round and round.

Pure: the caller says what is in use, what was released when, and what was handed out last. Addresses are not listed but tried
one after the other from the last one on, so that the size of a range does not matter.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sized
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

COOL_DOWN_S = 60.0
"""How long a released address rests: others may still send to it, or hold connections with the pod that had it."""


class Used(Container[Address], Sized, Protocol):
    """Addresses in use: a set, or the keys of a mapping."""


class ExhaustedError(Exception):
    """No address is free. Those that rest are not given out early: a rare wait is better than a stranger's packets."""

    def __init__(self, network: Network, used: int, resting: int, ready_in_s: float) -> None:
        self.ready_in_s = ready_in_s
        after = f"; the first of {resting} released ones is free again in {ready_in_s:.0f} s" if resting else ""
        super().__init__(f"no free address in {network}: {used} of {size(network)} in use{after}")


def size(network: Network) -> int:
    """Return how many addresses of a range may be given to pods.

    >>> size(IPv4Network("10.0.0.0/24")), size(IPv4Network("10.0.0.0/31")), size(IPv4Network("10.0.0.7/32"))
    (254, 2, 1)
    """
    first, last = _bounds(network)
    return last - first + 1


def _bounds(network: Network) -> tuple[int, int]:
    """The first and last usable address: not the network's own, nor IPv4's broadcast, unless there is nothing else."""
    first, last = int(network.network_address), int(network.broadcast_address)
    if network.num_addresses <= 2:
        return first, last
    return first + 1, last - 1 if network.version == 4 else last


def allocate(network: Network, used: Used, released: Mapping[Address, float], last: Address | None, now_s: float) -> Address:
    """Return the next free address after `last`, going round at the end of the range.

    `released` tells when (seconds, on the clock of `now_s`) an address was given back; within `COOL_DOWN_S` of that it is not
    given out. Since the search goes on from the last address, one that was released comes up again only when all others have
    had their turn. Raises `ExhaustedError`.

    >>> net = IPv4Network("10.0.0.0/30")
    >>> one = allocate(net, set(), {}, None, 0.0)
    >>> one, allocate(net, set(), {}, one, 0.0)
    (IPv4Address('10.0.0.1'), IPv4Address('10.0.0.2'))
    """
    first, end = _bounds(network)
    count = end - first + 1
    begin = int(last) + 1 - first if last is not None and last in network and first <= int(last) <= end else 0
    resting: list[float] = []
    in_use = 0
    # At most so many can be taken, so one step more always meets a free one, if the range has it.
    for step in range(min(count, len(used) + len(released) + 1)):
        candidate = network.network_address + (first - int(network.network_address) + (begin + step) % count)
        if candidate in used:
            in_use += 1
            continue
        ready_in_s = _rest_s(released.get(candidate), now_s)
        if ready_in_s <= 0:
            return candidate
        resting.append(ready_in_s)
    raise ExhaustedError(network, in_use, len(resting), min(resting, default=0.0))


def _rest_s(released_s: float | None, now_s: float) -> float:
    if released_s is None:
        return 0.0
    # A clock that was set back must not make an address rest for hours.
    return min(released_s + COOL_DOWN_S - now_s, COOL_DOWN_S)


def still_resting(released: Mapping[Address, float], now_s: float) -> dict[Address, float]:
    """Return the released addresses that must still be remembered."""
    return {address: when for address, when in released.items() if _rest_s(when, now_s) > 0}
