"""What is put in order first: calls of unknown outcome, machines that ended, interfaces without a place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tidegate.crds.ipam import CloudPool
from tidegate.crds.node_state import CloudInterface, CloudReceipt, Intent, NodeCloud
from tidegate.ipam.cloud import Abilities, Instance, Kind
from tidegate.ipam.ledger import SETTLE_S, Memory
from tidegate.ipam.plan import plan
from tidegate.ipam.scene import Action, Health, NodeView, Picture

NOW = 10_000.0
POOL = CloudPool(provider="aws", preAllocate=0)
AWS = Abilities(creates_interfaces=True, kinds=frozenset(Kind), prefixes={}, most=50)
AZURE = replace(AWS, creates_interfaces=False)
LATELY = int(NOW) - 1


def node(*interfaces: CloudInterface, intent: Intent | None = None, began: float = NOW - 2, **more: object) -> NodeView:
    """A node whose steward began a moment ago, and has looked."""
    ledger = NodeCloud(pool="p", instance="i", interfaces=interfaces, intents=(intent,) if intent else ())
    machine = Instance(id="i", type="m5.large", zone="a", subnet="s")
    memory = Memory(began=began, changed=began, looked=NOW - 1)
    return replace(NodeView("n", ledger, memory, "i", machine), **more)  # type: ignore[arg-type]


def only(view: NodeView, abilities: Abilities = AWS) -> Action | None:
    found = plan({"n": view}, Picture(abilities, "c"), POOL, Health(), NOW)
    return found[0] if found else None


def interface(*addresses: str, state: str = "InUse", handed: bool = True) -> CloudInterface:
    return CloudInterface(id="a", index=1, subnet="s", addresses=addresses, state=state, handed=handed)  # type: ignore[arg-type]


@pytest.mark.parametrize("verb", ["create", "delete", "unassign"])
def test_our_own_call_that_got_no_answer_is_made_once_more(verb: str) -> None:
    """It is the same call: same token, same words, nothing written anew."""
    intent = Intent(token="t", verb=verb, interface="a", begun=LATELY, form="address4", count=1)  # type: ignore[arg-type]
    view = node(interface(), intent=intent)
    action = only(view)
    assert action
    assert (action.intent, action.ledger) == (intent, view.ledger)


def test_a_predecessors_create_is_looked_for_and_then_made_once_more() -> None:
    """Until its token may be forgotten; what comes of it is the same interface."""
    intent = Intent(token="t", verb="create", begun=LATELY - 5, form="address4", count=1)
    view = node(intent=intent)
    assert only(replace(view, memory=replace(view.memory, looked=0.0))) is None
    action = only(view)
    assert action
    assert action.intent == intent


def test_a_predecessors_unassign_is_made_once_more_when_it_cannot_land_late() -> None:
    """Else it could hit what was assigned again meanwhile."""
    early = Intent(token="t", verb="unassign", interface="a", items=("10.0.0.1",), begun=LATELY - 5)
    late = Intent(token="t", verb="unassign", interface="a", items=("10.0.0.1",), begun=int(NOW - SETTLE_S))
    assert only(node(interface("10.0.0.1"), intent=early)) is None
    action = only(node(interface("10.0.0.1"), intent=late))
    assert action
    assert action.intent == late


@pytest.mark.parametrize("verb", ["assign", "attach", "detach"])
def test_what_cannot_be_repeated_is_looked_up(verb: str) -> None:
    """No call is made before a look shows what came of it."""
    intent = Intent(token="t", verb=verb, interface="a", begun=LATELY, form="address4", count=1)  # type: ignore[arg-type]
    assert only(node(interface(), intent=intent)) is None


def test_interfaces_of_a_machine_that_ended_are_deleted_by_name() -> None:
    """None is forgotten because its machine is gone: each is asked for."""
    action = only(node(interface("10.0.0.1"), ended=True))
    assert action
    assert action.intent
    assert (action.intent.verb, action.intent.interface) == ("delete", "a")
    assert action.ledger.interfaces


def test_addresses_of_a_machine_that_ended_are_given_back() -> None:
    """Where the card is not ours, what we put on it still is."""
    action = only(node(interface("10.0.0.1"), ended=True), AZURE)
    assert action
    assert action.intent
    assert (action.intent.verb, action.intent.items) == ("unassign", ("10.0.0.1",))


def test_the_ledger_is_closed_only_after_a_look_that_shows_nothing() -> None:
    """A cloud that says wrongly that an interface is gone is found out."""
    view = node(ended=True)
    doubting = replace(view, memory=replace(view.memory, doubted=NOW))
    assert only(doubting) is None
    action = only(view)
    assert action
    assert action.ledger.instance == ""


def test_what_pods_may_have_is_not_deleted_for_want_of_a_place() -> None:
    """An interface that was never in use is; one that was needs the agent's word, given to this proposal."""
    full = {"full_until": NOW + 100}
    fresh = only(node(interface("10.0.0.1", state="Available", handed=False), **full))
    assert fresh
    assert fresh.intent
    assert fresh.intent.verb == "delete"
    used = node(interface("10.0.0.1", state="Available"), **full)
    assert only(used) is None
    asked = replace(used, ledger=NodeCloud(**{**_fields(used.ledger), "releasing": ("10.0.0.1",), "round": 3}))
    assert only(replace(asked, receipt=CloudReceipt(round=2, surrendered=("10.0.0.1",)))) is None
    given = only(replace(asked, receipt=CloudReceipt(round=3, surrendered=("10.0.0.1",))))
    assert given
    assert given.intent
    assert given.intent.verb == "delete"


def _fields(ledger: NodeCloud) -> dict[str, object]:
    return {name: getattr(ledger, name) for name in ledger.__struct_fields__}
