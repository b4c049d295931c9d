"""What follows from a call: for the ledger when it went well, for what is tried next when it failed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from msgspec.structs import replace as changed

from tidegate.crds.ipam import Provider
from tidegate.crds.node_state import CloudInterface, Intent, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam.choose import gateways
from tidegate.ipam.cloud import CloudError, Interface, Trouble
from tidegate.ipam.scene import NodeView, Picture

EXHAUSTED_S, FRAGMENTED_S, FULL_S = 60.0, 300.0, 300.0
"""For how long, in seconds, a subnet is not asked again for anything, or for prefixes, and a machine for one more."""

_AGAIN_S = 10.0
_BACKOFF_S = {
    Trouble.THROTTLED: 1.0,
    Trouble.CONFLICT: 2.0,
    Trouble.UNAVAILABLE: 2.0,
    Trouble.GONE: 2.0,
    Trouble.INVALID: 30.0,
    Trouble.UNSUPPORTED: 30.0,
    Trouble.DENIED: 30.0,
}


def entry(provider: Provider, interface: Interface, cidrs: Sequence[str]) -> CloudInterface:
    """Return the ledger's entry of an interface as the cloud shows it."""
    return CloudInterface(
        id=interface.id,
        mac=interface.mac,
        index=interface.index,
        subnet=interface.subnet,
        cidrs=tuple(cidrs),
        gateways=gateways(provider, cidrs),
        addresses=tuple(interface.addresses),
        prefixes=tuple(interface.prefixes),
        state=interface.state,
        handed=interface.state == "InUse",
    )


def apply(
    ledger: NodeCloud,
    intent: Intent,
    result: Interface | tuple[str, ...],
    describe: Callable[[Interface], CloudInterface],
    others: Callable[[str], bool],
) -> NodeCloud:
    """Return the ledger after a call that went well. Items that another node's ledger names are left to a later look."""
    ledger = book.finish(ledger)
    match intent.verb:
        case "create":
            assert isinstance(result, Interface)
            made = describe(result)
            ledger = book.add(ledger, changed(made, addresses=(), prefixes=()))
            return book.give(ledger, result.id, [item for item in book.items(result) if not others(item)])
        case "attach":
            if _is_missing(ledger, intent.interface):
                # It was asked for by name, and is where it shall be.
                return book.set_state(ledger, intent.interface, "InUse")
            return book.set_state(ledger, intent.interface, "Attaching", intent.index)
        case "assign":
            assert isinstance(result, tuple)
            return book.give(ledger, intent.interface, [item for item in result if not others(item)])
        case "unassign":
            return book.take(ledger, intent.interface, intent.items)
        case "detach":
            return book.set_state(ledger, intent.interface, "Detaching")
        case "delete":
            return book.drop(ledger, intent.interface)


def remember(view: NodeView, intent: Intent, contested: bool, now: float) -> NodeView:
    """Return the node with what a successful call leaves to be remembered; `contested`: another ledger has an item it brought."""
    memory = replace(view.memory, changed=now, doubted=now + book.SETTLE_S if contested else view.memory.doubted)
    match intent.verb:
        case "unassign":
            recent = {item: when for item, when in memory.given.items() if now < when + 2 * book.SETTLE_S}
            memory = replace(memory, given={**recent, **dict.fromkeys(intent.items, now)})
        case "delete":
            known = {id: when for id, when in memory.forgotten.items() if now < when + 2 * book.SETTLE_S}
            memory = replace(memory, forgotten={**known, intent.interface: now}, doubted=now + book.SETTLE_S)
        case "attach":
            there = {**memory.there, intent.interface: now}
            return replace(view, memory=replace(memory, there=there), bad_indexes=frozenset())
        case _:
            pass
    return replace(view, memory=memory)


def spend(picture: Picture, ledger: NodeCloud, intent: Intent) -> Picture:
    """Return the picture with the addresses that a call took or gave counted, so that subnets need not be asked each time."""
    subnet = intent.subnet
    if not subnet:
        interface = book.find(ledger, intent.interface)
        subnet = interface.subnet if interface else ""
    each = 16 if intent.form == "prefix4" else 1
    match intent.verb:
        case "create":
            taken = intent.count * each * (intent.form in ("address4", "prefix4")) + 1
        case "assign":
            taken = intent.count * each * (intent.form in ("address4", "prefix4"))
        case "unassign":
            taken = -sum(book.size(item) for item in intent.items if book.is_version(item, 4))
        case _:
            taken = 0
    view = picture.subnets.get(subnet)
    if view is None or view.subnet.free < 0 or not taken:
        return picture
    fresh = replace(view, subnet=changed(view.subnet, free=max(view.subnet.free - taken, 0)))
    return replace(picture, subnets={**picture.subnets, subnet: fresh})


def learn(picture: Picture, ledger: NodeCloud, intent: Intent, error: CloudError, now: float) -> Picture:
    """Return the picture with what a refusal says of a subnet."""
    interface = book.find(ledger, intent.interface)
    subnet = intent.subnet or (interface.subnet if interface else "")
    view = picture.subnets.get(subnet)
    if view is None:
        return picture
    if error.trouble is Trouble.EXHAUSTED:
        view = replace(view, exhausted_until=now + EXHAUSTED_S)
    elif error.trouble is Trouble.FRAGMENTED or (error.trouble is Trouble.UNSUPPORTED and intent.form.startswith("prefix")):
        view = replace(view, fragmented_until=now + FRAGMENTED_S)
    else:
        return picture
    return replace(picture, subnets={**picture.subnets, subnet: view})


def fail(
    view: NodeView, intent: Intent, error: CloudError, repeat: bool, now: float
) -> tuple[NodeView, bool, Callable[[NodeCloud], NodeCloud]]:
    """Return the node after a call that failed, whether its outcome is known by that, and how the ledger changes then.

    A call that may have taken effect leaves its intent, which is settled before anything else is done for the node. So does one
    that was made once more, unless a look shows by now that the first had no effect.
    """
    memory = replace(view.memory, changed=now)
    # Between two tries of one call there is time for a look, which may end the matter.
    wait = max(error.retry_s, _BACKOFF_S.get(error.trouble, 1.0), _AGAIN_S if repeat else 0.0)
    view = replace(view, memory=memory, not_before=now + wait)
    over = not error.done
    if error.done:
        view = replace(view, memory=replace(memory, doubted=now + book.SETTLE_S))
        memory = view.memory
    ledger: Callable[[NodeCloud], NodeCloud] = _same
    if repeat and intent.verb == "create":
        over = over and view.memory.looked >= intent.begun + book.SETTLE_S
    elif repeat:
        over = over and error.trouble not in (Trouble.THROTTLED, Trouble.UNAVAILABLE)
    match error.trouble:
        case Trouble.GONE if intent.interface:
            first = memory.gone.get(intent.interface)
            if intent.verb == "unassign" and view.ended:
                ledger = _dropping(intent.interface)
            elif first is None:
                view = replace(view, memory=replace(memory, gone={**memory.gone, intent.interface: now}))
            elif now >= first + book.SETTLE_S and view.confirmed > first:
                # Said twice, apart, of a machine that is there.
                ledger = _dropping(intent.interface)
        case Trouble.LIMIT if intent.verb in ("create", "attach"):
            view = replace(view, full_until=now + FULL_S)
        case Trouble.LIMIT:
            view = replace(view, crowded={**view.crowded, intent.interface: now + FULL_S})
        case Trouble.CONFLICT if intent.verb == "attach" and _is_missing(view.ledger, intent.interface):
            # It was asked for by name, and is there.
            view = replace(view, memory=replace(memory, there={**memory.there, intent.interface: now}))
            ledger = _back(intent.interface)
        case Trouble.CONFLICT | Trouble.INVALID if intent.verb in ("attach", "detach"):
            # It may be on its way there already: a look tells.
            over = False
            tried = view.bad_indexes | {intent.index} if intent.verb == "attach" else view.bad_indexes
            view = replace(view, bad_indexes=tried if len(tried) < 16 else frozenset(), not_before=now + 2.0)
        case _:
            pass
    return view, over, ledger


def _same(ledger: NodeCloud) -> NodeCloud:
    return ledger


def _is_missing(ledger: NodeCloud, id: str) -> bool:
    interface = book.find(ledger, id)
    return interface is not None and interface.state == "Missing"


def _back(id: str) -> Callable[[NodeCloud], NodeCloud]:
    return lambda ledger: book.set_state(ledger, id, "InUse")


def _dropping(id: str) -> Callable[[NodeCloud], NodeCloud]:
    return lambda ledger: book.drop(ledger, id)
