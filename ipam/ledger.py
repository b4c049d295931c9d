"""The ledger of one node: what it has in the cloud, and how each result and each look at the cloud changes that. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec.structs import replace as changed

from tidegate.crds.node_state import CloudInterface, Intent, NodeCloud
from tidegate.ipam.cloud import Interface
from tidegate.ipam.clouds.kinds import FAMILY_4, kind_of

CLUSTER_TAG, NODE_TAG, TOKEN_TAG = "tidegate.io/cluster", "tidegate.io/node", "tidegate.io/token"
"""What every interface that we make is tagged with, in the call that makes it."""

SETTLE_S = 30.0
"""How long, in seconds, a look may still show what was before a change, and a call of a process that died may still land."""

TRUST_S = 600.0
"""For how long, in seconds, the cloud's word by name that an interface is there outweighs looks that do not show it."""

SOON_S = 5.0
"""How long, in seconds, a look is waited for that shows a call's effect; to do it once more then does no harm."""

_PROGRESS = {"Creating": 0, "Available": 1, "Attaching": 2, "InUse": 3}


@dataclass(frozen=True, slots=True)
class Memory:
    """What a steward remembers of a node beside its ledger; times in seconds. A successor begins with none of it.

    `began`: since when it is looked after, and until when somebody before may have made calls. `changed`: when the last call for
    it ended. `looked`: when the last look began that shows all of that. `given` and `forgotten`: items and interfaces
    given up, and when, which stale looks may still show. `lacking`: items and interfaces of the ledger that looks do not
    show, and since when. `gone`: when the cloud first said by name that an interface does not exist, `there`: when it
    last said so that one does. `doubted`: when a look shall begin, since a call may have had effects that no ledger
    tells of.
    """

    began: float
    changed: float
    looked: float = float("-inf")
    given: Mapping[str, float] = field(default_factory=dict)
    forgotten: Mapping[str, float] = field(default_factory=dict)
    lacking: Mapping[str, float] = field(default_factory=dict)
    gone: Mapping[str, float] = field(default_factory=dict)
    there: Mapping[str, float] = field(default_factory=dict)
    doubted: float = float("-inf")


def new_token(cluster: str, node: str, instance: str, number: int, begun: int) -> str:
    """Return the token of a call; equal only for the same call of the same life of a node.

    >>> new_token("c", "n", "i-1", 7, 0) == new_token("c", "n", "i-1", 7, 0)
    True
    """
    return f"tg-{hashlib.sha256(f'{cluster}/{node}/{instance}/{number}/{begun}'.encode()).hexdigest()[:32]}"


def items(interface: CloudInterface | Interface) -> Sequence[str]:
    """Return all addresses and prefixes of an interface."""
    return (*interface.addresses, *interface.prefixes)


def size(item: str) -> int:
    """Return how many pods an item serves.

    >>> size("10.0.0.16/28"), size("10.0.0.1")
    (16, 1)
    """
    if "/" not in item:
        return 1
    # An IPv6 prefix serves more pods than a node ever has.
    return 1 << min((32 if ":" not in item else 128) - int(item.partition("/")[2]), 16)


def is_version(item: str, version: int) -> bool:
    """Tell whether an item is of an IP version."""
    return (":" in item) == (version == 6)


def begin(ledger: NodeCloud, intent: Intent) -> NodeCloud:
    """Note that a call is going to be made. A node has one at a time."""
    return changed(ledger, intents=(intent,), counter=ledger.counter + 1)


def finish(ledger: NodeCloud) -> NodeCloud:
    """Note that the call's result is known."""
    return changed(ledger, intents=())


def find(ledger: NodeCloud, id: str) -> CloudInterface | None:
    """Return an interface by its id."""
    return next((each for each in ledger.interfaces if each.id == id), None)


def add(ledger: NodeCloud, interface: CloudInterface) -> NodeCloud:
    """Note an interface, once."""
    return changed(ledger, interfaces=(*(each for each in ledger.interfaces if each.id != interface.id), interface))


def drop(ledger: NodeCloud, id: str) -> NodeCloud:
    """Forget an interface and what was on it."""
    interface = find(ledger, id)
    gone = set(items(interface)) if interface else set()
    return changed(
        ledger,
        interfaces=tuple(each for each in ledger.interfaces if each.id != id),
        releasing=tuple(item for item in ledger.releasing if item not in gone),
    )


def set_state(ledger: NodeCloud, id: str, state: str, index: int = -1) -> NodeCloud:
    """Note how far an interface is; an index of -1 leaves the one that is known."""
    return _edit(
        ledger,
        id,
        lambda each: changed(each, state=state, index=each.index if index < 0 else index, handed=each.handed or state == "InUse"),
    )


def give(ledger: NodeCloud, id: str, fresh: Iterable[str]) -> NodeCloud:
    """Note items that an interface was given."""
    here = [*fresh]

    def more(each: CloudInterface) -> CloudInterface:
        addresses = dict.fromkeys((*each.addresses, *(item for item in here if "/" not in item)))
        prefixes = dict.fromkeys((*each.prefixes, *(item for item in here if "/" in item)))
        return changed(each, addresses=tuple(addresses), prefixes=tuple(prefixes))

    return _edit(ledger, id, more)


def take(ledger: NodeCloud, id: str, gone: Iterable[str]) -> NodeCloud:
    """Note that items were taken from an interface; they are not to be released any more."""
    away = set(gone)

    def less(each: CloudInterface) -> CloudInterface:
        return changed(
            each,
            addresses=tuple(item for item in each.addresses if item not in away),
            prefixes=tuple(item for item in each.prefixes if item not in away),
        )

    return changed(_edit(ledger, id, less), releasing=tuple(item for item in ledger.releasing if item not in away))


def propose(ledger: NodeCloud, releasing: Iterable[str]) -> NodeCloud:
    """Ask the agent to give up exactly these items. Answers to what was asked before count no more."""
    return changed(ledger, releasing=tuple(releasing), round=ledger.round + 1)


def _edit(ledger: NodeCloud, id: str, change: Callable[[CloudInterface], CloudInterface]) -> NodeCloud:
    return changed(ledger, interfaces=tuple(change(each) if each.id == id else each for each in ledger.interfaces))


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


def is_empty(ledger: NodeCloud | None) -> bool:
    """Tell whether a node has nothing in the cloud, and no call for it is under way."""
    return ledger is None or not (ledger.interfaces or ledger.intents)


def summary(ledger: NodeCloud, version: int) -> int:
    """Return how many addresses of an IP version pods may count on: on interfaces that stay, and not about to be released."""
    leaving = frozenset(ledger.releasing)
    total = 0
    for each in ledger.interfaces:
        # What looks do not show is counted until the cloud says by name that it is gone: it is not made a second time.
        if each.state == "Detaching":
            continue
        # Nodes are decided about often: comprehensions, and no call an address.
        total += len([item for item in each.addresses if (":" in item) == (version == 6) and item not in leaving])
        total += sum(size(item) for item in each.prefixes if is_version(item, version) and item not in leaving)
    return total


def count(ledger: NodeCloud, id: str, version: int) -> int:
    """Return how many items of an IP version an interface has."""
    interface = find(ledger, id)
    return sum((kind_of(item) in FAMILY_4) == (version == 4) for item in items(interface)) if interface else 0
