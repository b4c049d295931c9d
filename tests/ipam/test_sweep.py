"""The sweeper: it finds what no ledger names, and never what is another cluster's, a human's, or being made."""

from __future__ import annotations

from tidegate.crds.node_state import CloudInterface, Intent, NodeCloud
from tidegate.ipam.cloud import Interface
from tidegate.ipam.ledger import CLUSTER_TAG, TOKEN_TAG
from tidegate.ipam.sweep import GRACE_S, sweep

LEDGERS = [
    NodeCloud(pool="p", interfaces=(CloudInterface(id="named"),)),
    NodeCloud(pool="q", intents=(Intent(token="t-1", verb="create"), Intent(token="t-2", verb="delete", interface="going"))),
]


def interface(id: str, cluster: str = "c", instance: str = "", **tags: str) -> Interface:
    state = "InUse" if instance else "Available"
    return Interface(id=id, mac="", subnet="s", state=state, instance=instance, tags={CLUSTER_TAG: cluster, **tags})  # type: ignore[arg-type]


FOUND = [
    interface("named"),
    interface("going"),
    interface("being-made", **{TOKEN_TAG: "t-1"}),
    interface("of-another-cluster", cluster="d"),
    interface("lost"),
    interface("attached", instance="i-1"),
    Interface(id="of-a-human", mac="", subnet="s", state="Available"),
]


def test_lost_is_what_no_ledger_and_no_intent_names_for_long() -> None:
    """Of any pool; what is attached is only told of."""
    first = sweep("c", FOUND, LEDGERS, {}, 1000.0)
    assert (list(first.lost), list(first.odd)) == ([], [])
    later = sweep("c", FOUND, LEDGERS, first.since, 1000.0 + GRACE_S)
    assert [each.id for each in later.lost] == ["lost"]
    assert [each.id for each in later.odd] == ["attached"]


def test_it_must_be_without_a_ledger_in_every_look() -> None:
    """One that was named in between begins anew."""
    first = sweep("c", FOUND, LEDGERS, {}, 1000.0)
    named = sweep("c", FOUND, [*LEDGERS, NodeCloud(pool="p", interfaces=(CloudInterface(id="lost"),))], first.since, 1500.0)
    assert not sweep("c", FOUND, LEDGERS, named.since, 1000.0 + GRACE_S).lost
