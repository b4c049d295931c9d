"""How a look at the cloud changes what a node's ledger says. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from msgspec.structs import replace as changed

from tidegate.crds.node_state import CloudInterface, NodeCloud
from tidegate.ipam.cloud import Interface
from tidegate.ipam.ledger import (
    NODE_TAG,
    SETTLE_S,
    SOON_S,
    TOKEN_TAG,
    TRUST_S,
    Memory,
    add,
    drop,
    find,
    finish,
    give,
    items,
    set_state,
    take,
)  # fmt: skip

_PROGRESS = {"Creating": 0, "Available": 1, "Attaching": 2, "InUse": 3}


@dataclass(frozen=True, slots=True)
class Look:
    """One complete look at the interfaces: when it began (seconds), and what it showed, by id.

    `calm`: no call for the node was under way since it began. `others`: tells whether another node's ledger names an item.
    `describe` makes a ledger's entry of what is seen.
    """

    began: float
    seen: Mapping[str, Interface]
    calm: bool
    others: Callable[[str], bool]
    describe: Callable[[Interface], CloudInterface]


def observe(node: str, ledger: NodeCloud, memory: Memory, look: Look, adopts_all: bool) -> tuple[NodeCloud, Memory]:
    """Return the ledger and memory after a look.

    Progress counts whenever it is seen. Everything else needs a calm look that began after the last change had settled; what is
    lacking must lack twice, apart, and a whole interface is never dropped here. `adopts_all`: interfaces come with the machine
    (Azure), so each one on it is the node's.
    """
    settled = look.calm and look.began >= memory.changed + SETTLE_S
    certain = look.calm and look.began >= max(memory.changed, memory.began + SETTLE_S)
    before = ledger
    lacking: dict[str, float] = {}
    for interface in ledger.interfaces:
        shown = look.seen.get(interface.id)
        if shown is None:
            if look.calm:
                lacking[interface.id] = memory.lacking.get(interface.id, look.began)
                trusted = look.began < memory.there.get(interface.id, float("-inf")) + TRUST_S
                late = look.began >= lacking[interface.id] + SETTLE_S and not trusted
                if late and interface.state in ("InUse", "Attaching"):
                    ledger = set_state(ledger, interface.id, "Missing")
            continue
        if settled and shown.instance and shown.instance != ledger.instance:
            # Somebody put it on another machine: it is theirs now, unless it is put back soon.
            lacking[interface.id] = memory.lacking.get(interface.id, look.began)
            moved = look.began >= lacking[interface.id] + SETTLE_S and not ledger.intents
            ledger = drop(ledger, interface.id) if moved else set_state(ledger, interface.id, "Missing")
            continue
        ledger = _observe_state(ledger, interface, shown, settled)
        ledger = _observe_items(ledger, interface, shown, look, memory, settled, certain, lacking)
    for shown in look.seen.values():
        if find(ledger, shown.id) is None:
            ledger = _observe_stranger(node, ledger, shown, look, memory, certain, adopts_all)
    ledger = _conclude(before, ledger, look, memory)
    if not look.calm:
        return ledger, memory
    # Those that were seen again are there after all.
    gone = {id: when for id, when in memory.gone.items() if id not in look.seen}
    # What is there beyond the ledger, or is only shown still, is looked at again.
    more = any(not set(items(each)).issuperset(items(look.seen[each.id])) for each in ledger.interfaces if each.id in look.seen)
    doubted = look.began + SETTLE_S if more else memory.doubted
    return ledger, replace(memory, looked=max(memory.looked, look.began), lacking=lacking, gone=gone, doubted=doubted)


def _observe_state(ledger: NodeCloud, interface: CloudInterface, shown: Interface, settled: bool) -> NodeCloud:
    state: str = shown.state
    if shown.instance and shown.instance != ledger.instance:
        return ledger
    if interface.state == "Detaching":
        return set_state(ledger, interface.id, "InUse") if settled and state == "InUse" and not ledger.intents else ledger
    if interface.state == "Missing":
        forward = settled
    else:
        forward = _PROGRESS.get(state, -1) > _PROGRESS[interface.state]
    if state == "Detaching":
        # Somebody takes it away; when it is detached, it is attached again.
        return set_state(ledger, interface.id, "Missing") if settled else ledger
    moved = forward or (settled and state != interface.state)
    return set_state(ledger, interface.id, state, shown.index) if moved else ledger


def _observe_items(
    ledger: NodeCloud,
    interface: CloudInterface,
    shown: Interface,
    look: Look,
    memory: Memory,
    settled: bool,
    certain: bool,
    lacking: dict[str, float],
) -> NodeCloud:
    ours, there = set(items(interface)), items(shown)
    fresh = [item for item in there if item not in ours and _adoptable(item, look, memory)] if certain else []
    if fresh:
        ledger = give(ledger, interface.id, fresh)
    lost = []
    for item in ours.difference(there):
        if settled:
            lacking[item] = memory.lacking.get(item, look.began)
            if look.began >= lacking[item] + SETTLE_S and not ledger.intents:
                lost.append(item)
    return take(ledger, interface.id, lost) if lost else ledger


def _adoptable(item: str, look: Look, memory: Memory) -> bool:
    return look.began >= memory.given.get(item, float("-inf")) + SETTLE_S and not look.others(item)


def _observe_stranger(
    node: str, ledger: NodeCloud, shown: Interface, look: Look, memory: Memory, certain: bool, adopts_all: bool
) -> NodeCloud:
    """Take in an interface that the ledger does not name: made by an intent, on the machine, or tagged for the node.

    A cloud may say of an interface just made that it does not exist: one that was deleted on that word comes back here.
    """
    made = any(intent.verb == "create" and intent.token == shown.tags.get(TOKEN_TAG) for intent in ledger.intents)
    here = bool(shown.instance) and shown.instance == ledger.instance
    ours = adopts_all or shown.tags.get(NODE_TAG) == node
    known = certain and look.began >= memory.forgotten.get(shown.id, float("-inf")) + SETTLE_S
    if not made and not (ours and (here or not shown.instance) and (known or adopts_all)):
        return ledger
    entry = look.describe(shown)
    kept = [item for item in items(entry) if _adoptable(item, look, memory)] if certain or made else []
    ledger = add(ledger, changed(entry, addresses=(), prefixes=()))
    ledger = set_state(ledger, shown.id, "Missing" if shown.state == "Detaching" else shown.state, shown.index)
    return give(ledger, shown.id, kept)


def _conclude(before: NodeCloud, ledger: NodeCloud, look: Look, memory: Memory) -> NodeCloud:
    """Remove an intent whose outcome the look shows, or shows not to have come."""
    for intent in ledger.intents:
        shown = look.seen.get(intent.interface)
        waited = look.calm and look.began >= max(memory.changed, intent.begun) + SOON_S
        match intent.verb:
            case "create":
                over = any(each.tags.get(TOKEN_TAG) == intent.token for each in look.seen.values())
            case "attach":
                over = waited or (shown is not None and shown.instance == ledger.instance)
            case "detach":
                loose = shown is not None and shown.instance != ledger.instance
                over = waited or loose
                if loose:
                    ledger = set_state(ledger, intent.interface, "Detaching")
            case "assign":
                over = waited or find(before, intent.interface) != find(ledger, intent.interface)
            case _:
                # Taking away and deleting are repeated instead: twice is no error.
                over = False
        if over:
            ledger = finish(ledger)
    return ledger
