"""What a decision about one node can depend on: the node, the picture of the cloud, the pool and the cloud's health."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tidegate.crds.ipam import CloudPool
from tidegate.crds.node_state import CloudReceipt, Intent, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam.choose import Room, SubnetView
from tidegate.ipam.cloud import Abilities, Instance, InstanceType, Interface, Purpose
from tidegate.ipam.ledger import Memory
from tidegate.ipam.limits import TYPES
from tidegate.ipam.need import Stock

IDLE_S = 180.0
"""How long, in seconds, a node has more than it needs before any of it is released."""

REFUSED_S = 60.0
"""For how long, in seconds, an agent is not asked again for what it refused."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node as the cluster knows it: `wanted` says that it is there and the pool selects it, `instance` names its machine."""

    name: str
    instance: str
    receipt: CloudReceipt
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node and what is known of it.

    `instance` is its machine by the provider's name, empty while unknown; `machine` what the cloud says of it. `foreign` counts
    interfaces on it that are not ours. `wanted`: there is such a node and the pool selects it. `ended`: the cloud said twice
    that the machine of the ledger is gone; `confirmed` is when it last said that it is there, and
    `missed` when it first said that it is not. `seen` holds its interfaces as last looked at.

    Times in seconds: nothing is done before `not_before`; no interface is added before `full_until`; `crowded` says until when an
    interface is given no more, `refused` when the agent may be asked for an item again; `idle_since` is when the node began
    to have more than it needs. `bad_indexes` are places on the machine that the cloud refused.
    """

    name: str
    ledger: NodeCloud
    memory: Memory
    instance: str = ""
    machine: Instance | None = None
    receipt: CloudReceipt = field(default_factory=CloudReceipt)
    wanted: bool = True
    ended: bool = False
    confirmed: float = float("-inf")
    missed: float = 0.0
    foreign: int = 1
    seen: Mapping[str, Interface] = field(default_factory=dict)
    not_before: float = 0.0
    full_until: float = 0.0
    crowded: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, float] = field(default_factory=dict)
    idle_since: float = float("inf")
    bad_indexes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Picture:
    """What is known of the cloud: `subnets` all that matter, `eligible` those that the pool chooses (none: the node's own).

    `groups` maps the pool's security groups to their networks; none: those of the machine. `problem` says why no interface can be
    made at all.
    """

    abilities: Abilities
    cluster: str
    subnets: Mapping[str, SubnetView] = field(default_factory=dict)
    eligible: Sequence[str] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    types: Mapping[str, InstanceType] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """How the cloud is bearing us: at level 1 nothing is released, at 2 nothing is warmed, at 3 only waiting pods are served."""

    level: int = 0


@dataclass(frozen=True, slots=True)
class Action:
    """One step for a node: write `ledger`, and then make the call of `intent`, if there is one."""

    node: str
    purpose: Purpose
    ledger: NodeCloud
    intent: Intent | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """One node in its surroundings, while its action is decided; `stocks` are computed once."""

    view: NodeView
    picture: Picture
    pool: CloudPool
    health: Health
    room: Room
    now: float
    stocks: dict[int, Stock] = field(default_factory=dict)

    def call(self, purpose: Purpose, intent: Intent, ledger: NodeCloud | None = None) -> Action:
        """Return an action that makes a call, with its intent and token filled in."""
        base = self.view.ledger if ledger is None else ledger
        begun = int(self.now)
        token = book.new_token(self.picture.cluster, self.view.name, base.instance, base.counter, begun)
        whole = Intent(
            token=token, verb=intent.verb, interface=intent.interface, form=intent.form, count=intent.count, items=intent.items,
            subnet=intent.subnet, groups=intent.groups, index=intent.index, begun=begun,
        )  # fmt: skip
        return Action(self.view.name, purpose, book.begin(base, whole), whole)

    def write(self, purpose: Purpose, ledger: NodeCloud) -> Action:
        """Return an action that only changes the ledger."""
        return Action(self.view.name, purpose, ledger)

    def limits(self) -> InstanceType | None:
        """Return the limits of the node's type of machine: the provider's word, else the shipped table's."""
        machine = self.view.machine
        if machine is None:
            return None
        return self.picture.types.get(machine.type) or TYPES[self.pool.provider].get(machine.type)

    def stock(self, version: int) -> Stock:
        """Return what the node has of an IP version."""
        if version not in self.stocks:
            receipt = self.view.receipt
            used = receipt.used4 if version == 4 else receipt.used6
            self.stocks[version] = Stock(book.summary(self.view.ledger, version), used, receipt.waiting)
        return self.stocks[version]

    def short(self) -> bool:
        """Tell whether a pod waits for an address that is not there."""
        return any(self.stock(version).short for version in self.pool.versions)

    def urgency(self) -> Purpose:
        """Return for whom more is wanted."""
        return Purpose.WAITING_POD if self.short() else Purpose.WARM_POOL


def hear(view: NodeView, fact: NodeFacts, now: float) -> NodeView:
    """Return the node with what its cluster says of it now."""
    refused = view.refused
    if fact.receipt.round == view.ledger.round and fact.receipt.refused != view.receipt.refused:
        refused = {**refused, **dict.fromkeys(fact.receipt.refused, now + REFUSED_S)}
    machine = view.machine if fact.instance == view.instance else None
    return replace(view, instance=fact.instance, machine=machine, receipt=fact.receipt, wanted=fact.wanted, refused=refused)
