"""Weighted rendezvous hashing: all find the same choice alone, and losing a candidate moves only its share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

from tidegate.crds.cluster_state import RuleGateway

SLOTS = 64
"""Shares into which a policy's pods are cut: with 64, gateways of equal weight differ by a few percent."""


def slot(seed: str) -> int:
    """Return the share, 0..63, of whatever `seed` names (a pod)."""
    return _hash(seed) % SLOTS


def choose(key: str, weights: Mapping[str, int]) -> str | None:
    """Return the candidate that holds `key`, or None without candidates; a weight below 1 counts as 1.

    >>> choose("198.51.100.7", {"a": 1, "b": 1}) == choose("198.51.100.7", {"b": 1, "a": 1})
    True
    """
    return max(weights, key=lambda name: (_score(key, name, weights[name]), name), default=None)


def gateway_slots(gateways: Sequence[RuleGateway]) -> list[int]:
    """Return for each of the 64 slots the index of its gateway; an empty list without gateways.

    Independent of the order of `gateways`: removing one moves only its own slots.
    """
    if not gateways:
        return []
    # The addresses are part of the key because one node may hold two of a policy's egress addresses.
    names = [f"{gateway.node} {','.join(gateway.addresses)}" for gateway in gateways]
    index = {name: number for number, name in enumerate(names)}
    weights = {name: gateway.weight for name, gateway in zip(names, gateways, strict=True)}
    return [index[str(choose(str(share), weights))] for share in range(SLOTS)]


def _score(key: str, name: str, weight: int) -> float:
    # The logarithm makes each candidate win in proportion to its weight (Schindelhauer and Schomaker).
    uniform = (_hash(f"{key}\0{name}") + 0.5) / 2**64
    return -max(weight, 1) / math.log(uniform)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
