"""The ledger: what a look at the cloud may change, and what only the cloud's word by name may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tidegate.crds.node_state import CloudInterface, Intent, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam import outcome
from tidegate.ipam.cloud import CloudError, Interface, Trouble
from tidegate.ipam.ledger import NODE_TAG, SETTLE_S, TOKEN_TAG, Memory
from tidegate.ipam.observe import Look, observe
from tidegate.ipam.scene import NodeView

LATE = 10_000.0


def interface(id: str = "eni-1", *addresses: str, state: str = "InUse", handed: bool = True) -> CloudInterface:
    return CloudInterface(id=id, subnet="s", index=1, addresses=addresses, state=state, handed=handed)  # type: ignore[arg-type]


def shown(id: str = "eni-1", *addresses: str, state: str = "InUse", instance: str = "i-1", **tags: str) -> Interface:
    named = {NODE_TAG: "n", **({TOKEN_TAG: tags["token"]} if "token" in tags else {})}
    return Interface(id=id, mac="m", subnet="s", state=state, instance=instance, index=1, addresses=addresses, tags=named)  # type: ignore[arg-type]


def ledger(*interfaces: CloudInterface, intent: Intent | None = None) -> NodeCloud:
    return NodeCloud(pool="p", instance="i-1", interfaces=interfaces, intents=(intent,) if intent else ())


def look(*seen: Interface, began: float = LATE, calm: bool = True, others: Callable[[str], bool] = lambda item: False) -> Look:
    return Look(began, {each.id: each for each in seen}, calm, others, lambda each: outcome.entry("aws", each, ()))


OLD = Memory(began=0.0, changed=0.0)


def seen_by(before: NodeCloud, at: Look, memory: Memory = OLD) -> tuple[NodeCloud, Memory]:
    return observe("n", before, memory, at, adopts_all=False)


@given(st.lists(st.sampled_from(["a", "b"]), unique=True), st.integers(1, 9))
def test_empty_and_partial_looks_delete_nothing(visible: list[str], looks: int) -> None:
    """However often a look shows less interfaces, or none, the ledger keeps every one with its items."""
    before = ledger(interface("a", "10.0.0.1"), interface("b", "10.0.0.2"))
    after, memory = before, OLD
    for number in range(looks):
        there = [shown(id, "10.0.0.1" if id == "a" else "10.0.0.2") for id in visible]
        after, memory = seen_by(after, look(*there, began=LATE + number * 100), memory)
    assert [book.items(each) for each in after.interfaces] == [("10.0.0.1",), ("10.0.0.2",)]
    assert {each.id for each in after.interfaces if each.state == "Missing"} <= {"a", "b"} - set(visible)


def test_an_address_taken_in_the_console_is_dropped_when_it_lacks_twice_apart() -> None:
    """Once is not enough, nor twice in a moment."""
    before = ledger(interface("a", "10.0.0.1", "10.0.0.2"))
    once, memory = seen_by(before, look(shown("a", "10.0.0.1")))
    assert once == before
    soon, memory = seen_by(once, look(shown("a", "10.0.0.1"), began=LATE + 1), memory)
    assert soon == before
    later, _ = seen_by(soon, look(shown("a", "10.0.0.1"), began=LATE + SETTLE_S), memory)
    assert book.items(later.interfaces[0]) == ("10.0.0.1",)


def test_what_was_given_up_is_not_taken_in_again_by_a_late_look() -> None:
    """A look that still shows an address just unassigned brings it back only after that has settled."""
    memory = replace(OLD, changed=LATE - 1, given={"10.0.0.9": LATE - 1})
    after, memory = seen_by(ledger(interface("a")), look(shown("a", "10.0.0.9")), memory)
    assert book.items(after.interfaces[0]) == ()
    assert memory.doubted > LATE
    after, _ = seen_by(after, look(shown("a", "10.0.0.9"), began=LATE + SETTLE_S), memory)
    assert book.items(after.interfaces[0]) == ("10.0.0.9",)


def test_a_successor_takes_nothing_in_before_its_predecessor_has_settled() -> None:
    """It does not know what was just given up."""
    young = Memory(began=LATE - 1, changed=LATE - 1)
    assert book.items(seen_by(ledger(interface("a")), look(shown("a", "10.0.0.9")), young)[0].interfaces[0]) == ()


def test_what_another_ledger_names_is_not_taken_in() -> None:
    """Two owners are impossible, whatever a look says."""
    after, _ = seen_by(ledger(interface("a")), look(shown("a", "10.0.0.9"), others=lambda item: True))
    assert book.items(after.interfaces[0]) == ()


def test_a_look_across_a_call_shows_progress_only() -> None:
    """Attached is attached; everything else waits for a calm look."""
    before = ledger(interface("a", "10.0.0.1", state="Attaching", handed=False))
    after, memory = seen_by(before, look(shown("a", "10.0.0.2"), calm=False))
    assert (after.interfaces[0].state, after.interfaces[0].handed) == ("InUse", True)
    assert book.items(after.interfaces[0]) == ("10.0.0.1",)
    assert memory == OLD


def test_an_interface_made_before_a_crash_is_found_by_its_token() -> None:
    """The intent is over, and what was made is in the ledger with its addresses."""
    intent = Intent(token="t-1", verb="create", form="address4", count=1, begun=int(LATE))
    made = shown("new", "10.0.0.1", state="Available", instance="", token="t-1")
    after, _ = seen_by(ledger(intent=intent), look(made), Memory(began=LATE - 1, changed=LATE - 1))
    assert after.intents == ()
    assert [(each.id, each.addresses, each.state) for each in after.interfaces] == [("new", ("10.0.0.1",), "Available")]


def test_what_a_human_puts_on_another_machine_is_theirs() -> None:
    """It is missing first, and given up when it stays there."""
    there = shown("a", "10.0.0.1", instance="i-2")
    after, memory = seen_by(ledger(interface("a", "10.0.0.1")), look(there))
    assert (after.interfaces[0].state, book.items(after.interfaces[0])) == ("Missing", ("10.0.0.1",))
    assert seen_by(after, look(there, began=LATE + SETTLE_S), memory)[0].interfaces == ()


def test_the_word_by_name_outweighs_looks() -> None:
    """An interface that the cloud says is there is not missing, though looks do not show it."""
    memory = replace(OLD, lacking={"a": LATE - 100}, there={"a": LATE - 50})
    before = ledger(interface("a", "10.0.0.1"))
    assert seen_by(before, look(), memory)[0] == before
    assert seen_by(before, look(), replace(memory, there={}))[0].interfaces[0].state == "Missing"


def gone(view: NodeView, now: float) -> tuple[NodeView, NodeCloud]:
    """Let the cloud say that the interface does not exist."""
    intent = Intent(token="t", verb="attach", interface="a", index=1)
    error = CloudError(Trouble.GONE, "InvalidNetworkInterfaceID.NotFound", "no such interface")
    after, _, change = outcome.fail(view, intent, error, False, now)
    return after, change(view.ledger)


def test_an_interface_is_gone_when_the_cloud_says_so_by_name_twice_apart() -> None:
    """And only while its machine is known to be there: a machine that is gone is another matter."""
    before = ledger(interface("a", "10.0.0.1", state="Missing"))
    view, after = gone(NodeView("n", before, OLD), LATE)
    assert after == before
    assert gone(replace(view, confirmed=LATE + 1), LATE + 1)[1] == before
    assert gone(view, LATE + SETTLE_S)[1] == before
    assert gone(replace(view, confirmed=LATE + 1), LATE + SETTLE_S)[1].interfaces == ()


def test_a_call_that_may_have_had_effect_keeps_its_intent() -> None:
    """One that surely had none does not."""
    view = NodeView("n", ledger(interface("a")), OLD)
    intent = Intent(token="t", verb="assign", interface="a", form="address4", count=1)
    lost = CloudError(Trouble.UNAVAILABLE, "InternalError", "no answer", done=True)
    refused = CloudError(Trouble.EXHAUSTED, "InsufficientFreeAddressesInSubnet", "no free address")
    assert not outcome.fail(view, intent, lost, False, LATE)[1]
    assert outcome.fail(view, intent, refused, False, LATE)[1]


def test_a_new_proposal_voids_old_answers() -> None:
    """Each proposal has a number of its own."""
    first = book.propose(ledger(interface("a", "10.0.0.1")), ["10.0.0.1"])
    withdrawn = book.propose(first, ())
    again = book.propose(withdrawn, ["10.0.0.1"])
    assert len({first.round, withdrawn.round, again.round}) == 3


def test_an_interface_deleted_on_a_false_word_comes_back() -> None:
    """A cloud that said it does not exist, and shows it later: it is the node's again, to be deleted once more."""
    stray = shown("a", "10.0.0.1", state="Available", instance="")
    memory = replace(OLD, changed=LATE - 1, forgotten={"a": LATE - 1})
    assert seen_by(ledger(), look(stray), memory)[0].interfaces == ()
    after, _ = seen_by(ledger(), look(stray, began=LATE + SETTLE_S), memory)
    assert [(each.id, each.state, each.handed) for each in after.interfaces] == [("a", "Available", False)]
