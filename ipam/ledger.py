"""The ledger of one node: what it has in the cloud, and how it is changed; and what is remembered beside it. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
