"""Proves that nothing of ours is lost in the cloud: interfaces with the cluster's tag that no ledger and no intent names. Pure.

It must find nothing. What it finds nevertheless, attached to nothing and for long enough, may be deleted: no ledger can come to
name it any more, and to delete it twice is no error, so that this one call needs no intent. What is attached is only told of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tidegate.crds.node_state import NodeCloud
from tidegate.ipam.cloud import Interface
from tidegate.ipam.ledger import CLUSTER_TAG, TOKEN_TAG

GRACE_S = 900.0
"""For how long, in seconds, an interface must have been without a ledger in every look before it counts as lost."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a look found: `since` when each interface without a ledger is known, `lost` those to delete, `odd` those attached."""

    since: Mapping[str, float]
    lost: Sequence[Interface]
    odd: Sequence[Interface]


def sweep(
    cluster: str, found: Iterable[Interface], ledgers: Iterable[NodeCloud], before: Mapping[str, float], now: float
) -> Sweep:
    """Compare a complete look with all ledgers of the cluster, whatever pool they are of; `before` is the last one's `since`."""
    named: set[str] = set()
    tokens: set[str] = set()
    for ledger in ledgers:
        named.update(each.id for each in ledger.interfaces)
        named.update(intent.interface for intent in ledger.intents)
        tokens.update(intent.token for intent in ledger.intents)
    strays = [
        each
        for each in found
        if each.tags.get(CLUSTER_TAG) == cluster and each.id not in named and each.tags.get(TOKEN_TAG) not in tokens
    ]
    since = {each.id: before.get(each.id, now) for each in strays}
    old = [each for each in strays if now >= since[each.id] + GRACE_S]
    return Sweep(
        since,
        lost=[each for each in old if not each.instance and each.state == "Available"],
        odd=[each for each in old if each.instance],
    )
