"""Spreading by rendezvous hashing: who is lost moves only its own share (Thaler and Ravishankar, 1998)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from tidegate.crds.cluster_state import RuleGateway

SLOTS = 64
"""How many parts a policy's pods are spread in; the programs have as many (tg_abi.h)."""


def slot(seed: str) -> int:
    """Return the part, 0..63, to which a pod belongs by its `namespace/name`."""
    return _hash(seed) % SLOTS


def score(member: str, key: str, weight: int = 1) -> float:
    """Rate a member for a key; the highest wins, in proportion to the weights.

    The logarithm makes the shares exact for any weights (Schindelhauer and Schomaker, 2005).
    """
    part = (_hash(f"{member}\n{key}") + 0.5) / 2.0**64
    return -weight / math.log(part)


def gateway_slots(gateways: Sequence[RuleGateway]) -> list[int]:
    """Return for every slot the index of its gateway; empty if there is none. A weight of 0 takes no slot."""
    candidates = [(index, gateway) for index, gateway in enumerate(gateways) if gateway.weight > 0]
    if not candidates:
        return []
    return [
        max(candidates, key=lambda entry: (score(entry[1].node, str(number), entry[1].weight), entry[1].node))[0]
        for number in range(SLOTS)
    ]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
