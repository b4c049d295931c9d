"""Looks at the cloud no more often than something can have changed, and tells each node what concerns it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tidegate.crds.node_state import NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam.choose import SubnetView, measure
from tidegate.ipam.cloud import Instance, Interface, Purpose, Subnet, Verb
from tidegate.ipam.observe import Look, observe
from tidegate.ipam.scene import NodeView

if TYPE_CHECKING:
    from tidegate.ipam.steward import Steward

LOOK_S, LOOK_MOST_S = 2.0, 15.0
"""How long, in seconds, after a change it is looked for, and at the longest between two looks while one is awaited."""

LOOK_PART = 0.1
"""What part of the calls may be looks while much changes; while little does, half this part of the rate that describes have."""

AUDIT_PART = 0.02
"""What part of the describes' rate audits may take; where they take more, they are rarer."""

AUDIT_S, SUBNETS_S, CHECK_S = 600.0, 60.0, 15.0
"""How often, in seconds, everything is looked at; subnets while addresses are taken; machines whose end is awaited."""

_NEVER = float("-inf")


class Survey:
    """The looks of one steward. One at a time; a failed one is repeated after a pause."""

    def __init__(self, steward: Steward) -> None:
        self._steward = steward
        self._running = False
        self._not_before = _NEVER
        self._subnets_at = self._groups_at = self._interfaces_at = self._audited_at = self._machines_at = self._checked_at = (
            _NEVER
        )
        self._expected_at = _NEVER
        self._interval, self._audit_s = LOOK_S, AUDIT_S
        self._changes = 0
        self._moved_at = steward.clock()
        self._asked_types: set[str] = set()
        self._doubted: set[str] = set()
        self._taken = True

    def expire(self) -> None:
        """Look at everything anew: the pool changed."""
        self._subnets_at = self._groups_at = _NEVER

    def expect(self, now: float, machine: str = "") -> None:
        """Hear that a call was made whose effect shows later; `machine`: a node whose machine may be gone."""
        self._expected_at = min(self._expected_at, now + LOOK_S)
        self._changes += 1
        self._taken = True
        if machine:
            self._doubted.add(machine)

    def begin(self, tasks: asyncio.TaskGroup) -> None:
        """Start a look if one is due."""
        if not self._running and self._steward.clock() >= self._not_before and self._due(self._steward.clock()):
            self._running = True
            tasks.create_task(self._look())

    def patience(self) -> float:
        """Return how long, in seconds, nothing will be due for sure."""
        now = self._steward.clock()
        return max(self._expected_at - now, self._interfaces_at + self._interval - now, self._not_before - now, 0.2)

    def _due(self, now: float) -> bool:
        return bool(
            self._due_subnets(now)
            or self._unknown_machines(now)
            or self._unknown_types()
            or self._due_interfaces(now)
            or self._ending(now)
        )

    async def _look(self) -> None:
        steward = self._steward
        purpose = steward.purpose()
        now = steward.clock()
        fine, picture = True, steward.picture
        if machines := self._unknown_machines(now):
            fine = await steward.ask(self._see_machines(machines, purpose))
        if fine and (names := self._unknown_types()):
            fine = await steward.ask(self._see_types(names, purpose))
        if fine and self._due_subnets(now):
            fine = await steward.ask(self._see_subnets(purpose))
        if fine and self._due_interfaces(steward.clock()):
            fine = await steward.ask(self._see_interfaces(purpose))
        if fine and (ending := self._ending(steward.clock())):
            await steward.ask(self._see_ends(ending))
        self._not_before = steward.clock() + (0.2 if fine else 3.0)
        self._running = False
        # What a node waited for may be known now: its type's limits, or a subnet.
        steward.wake(*(steward.nodes if steward.picture != picture else ()))

    def _unknown_machines(self, now: float) -> Sequence[NodeView]:
        if now < self._machines_at + LOOK_S:
            return ()
        return [view for view in self._steward.nodes.values() if view.wanted and view.instance and view.machine is None]

    def _unknown_types(self) -> set[str]:
        known = self._steward.picture.types.keys() | self._asked_types
        return {view.machine.type for view in self._steward.nodes.values() if view.machine} - known

    def _due_subnets(self, now: float) -> bool:
        if not self._steward.nodes:
            return False
        return now >= self._subnets_at + (SUBNETS_S if self._taken else AUDIT_S)

    def _due_interfaces(self, now: float) -> bool:
        if not self._steward.nodes:
            return False
        if now >= self._audited_at + self._audit_s:
            return True
        if now < max(self._expected_at, self._interfaces_at + self._interval):
            return False
        if self._pending():
            return True
        doubted = [view.memory.doubted for view in self._steward.nodes.values() if view.memory.looked < view.memory.doubted]
        self._expected_at = min(doubted, default=float("inf"))
        return False

    def _pending(self) -> Sequence[NodeView]:
        """Return the nodes about which only the cloud can tell what comes next."""
        creates = self._steward.picture.abilities.creates_interfaces
        return [
            view
            for view in self._steward.nodes.values()
            if any(each.state not in ("InUse", "Available") for each in view.ledger.interfaces)
            or view.memory.gone
            or view.memory.looked < view.memory.doubted <= self._steward.clock()
            or view.memory.lacking
            or (view.ledger.intents and view.name not in self._steward.flying)
            or (not creates and view.ledger.instance and not view.ledger.interfaces and view.wanted)
        ]

    def _ending(self, now: float) -> Sequence[NodeView]:
        """Return the nodes whose ledger names a machine that may be gone."""
        if now < self._checked_at + CHECK_S:
            return ()
        nodes = self._steward.nodes.values()
        return [
            view
            for view in nodes
            if view.ledger.instance
            and not view.ended
            and (not view.wanted or view.instance != view.ledger.instance or view.name in self._doubted or view.missed)
        ]

    async def _see_machines(self, views: Sequence[NodeView], purpose: Purpose) -> None:
        steward = self._steward
        self._machines_at = steward.clock()
        found = await steward.cloud.instances([view.instance for view in views], purpose)
        for view in views:
            self._note_machine(view.name, found.get(view.instance), self._machines_at)

    def _note_machine(self, name: str, machine: Instance | None, at: float) -> None:
        view = self._steward.nodes.get(name)
        if view is None or machine is None or machine.id not in (view.instance, view.ledger.instance):
            return
        if machine.id == view.instance:
            ours = sum(each.state in ("Attaching", "InUse", "Detaching") for each in view.ledger.interfaces)
            foreign = view.foreign if view.machine else max(machine.interfaces - ours, 1)
            view = replace(view, machine=machine, foreign=foreign)
        self._steward.nodes[name] = replace(view, confirmed=at, missed=0.0)
        self._steward.wake(name)

    async def _see_types(self, names: set[str], purpose: Purpose) -> None:
        steward = self._steward
        found = await steward.cloud.types(sorted(names), purpose)
        self._asked_types |= names
        steward.picture = replace(steward.picture, types={**steward.picture.types, **found})

    async def _see_subnets(self, purpose: Purpose) -> None:
        steward, pool = self._steward, self._steward.pool
        at = steward.clock()
        homes = {view.machine.subnet for view in steward.nodes.values() if view.machine} - set(pool.subnets.ids)
        found: list[Subnet] = []
        if pool.subnets.ids or pool.subnets.tags:
            found += await steward.cloud.subnets(pool.subnets.ids, pool.subnets.tags, purpose)
        eligible = tuple(each.id for each in found)
        if others := sorted(homes - set(eligible)):
            found += await steward.cloud.subnets(others, {}, purpose)
        problem = ""
        if (pool.subnets.ids or pool.subnets.tags) and not eligible:
            problem = "the cloud has no subnet that spec.cloud.subnets chooses: correct its ids or tags"
        groups = steward.picture.groups
        wanted = pool.securityGroups
        if at >= self._groups_at + AUDIT_S and (wanted.ids or wanted.tags):
            groups = await steward.cloud.groups(wanted.ids, wanted.tags, purpose)
            self._groups_at = at
        if wanted.ids or wanted.tags:
            networks = {each.network for each in found if each.id in eligible or not eligible}
            if missing := [id for id in wanted.ids if id not in groups]:
                problem = f"the cloud has no security group {', '.join(missing)}: correct spec.cloud.securityGroups"
            elif not networks.intersection(groups.values()):
                problem = (
                    "no security group that spec.cloud.securityGroups chooses is in the network of the subnets: choose others"
                )
        views = steward.picture.subnets
        fresh = {each.id: replace(views.get(each.id, SubnetView(each)), subnet=each) for each in found}
        steward.picture = replace(steward.picture, subnets=fresh, eligible=eligible, groups=groups, problem=problem)
        self._subnets_at, self._taken = at, False

    async def _see_interfaces(self, purpose: Purpose) -> None:
        steward = self._steward
        began = steward.clock()
        whole = began >= self._audited_at + self._audit_s
        creates = steward.picture.abilities.creates_interfaces
        covered = [view for view in (steward.nodes.values() if whole or creates else self._pending()) if view.ledger.instance]
        self._expected_at = _NEVER
        before = steward.budget.spent[Verb.DESCRIBE]
        if creates:
            found = await steward.cloud.interfaces([view.ledger.instance for view in covered], purpose)
            changes = await self._tell(steward.nodes.keys(), found, began)
            if steward.pool.addresses == "Prefix":
                steward.picture = replace(steward.picture, subnets=measure(steward.picture.subnets, found))
        else:
            # They are asked for machine by machine, so none need wait for another.
            changes = sum(await asyncio.gather(*(self._see_one(view, purpose) for view in covered)))
        cost = max(steward.budget.spent[Verb.DESCRIBE] - before, 1)
        if whole or creates:
            self._audited_at = began
            self._audit_s = max(AUDIT_S, cost / max(AUDIT_PART * steward.budget.rate(Verb.DESCRIBE), 0.01))
        if changes or self._changes:
            self._moved_at = began
        calls_per_s = self._changes / max(began - self._interfaces_at, LOOK_S)
        looks_per_s = LOOK_PART * max(calls_per_s, steward.budget.rate(Verb.DESCRIBE) / 2, 0.1)
        # What has not come for a minute is asked for less and less often.
        quiet = min((began - self._moved_at) / 4, AUDIT_S)
        self._interval = max(LOOK_S, min(cost / looks_per_s, LOOK_MOST_S), quiet if quiet > LOOK_MOST_S else 0.0)
        self._interfaces_at, self._changes = began, 0
        self._expected_at = max(self._expected_at, began + LOOK_S)

    async def _see_one(self, view: NodeView, purpose: Purpose) -> int:
        began = self._steward.clock()
        found = await self._steward.cloud.interfaces([view.ledger.instance], purpose)
        return await self._tell([view.name], found, began)

    async def _tell(self, covered: Collection[str], found: Sequence[Interface], began: float) -> int:
        """Let every node covered learn what was seen; returns how many ledgers changed by that."""
        steward = self._steward
        shown: dict[str, dict[str, Interface]] = {name: {} for name in covered if name in steward.nodes}
        by_id = {each.id: name for name in shown for each in steward.nodes[name].ledger.interfaces}
        by_instance = {steward.nodes[name].ledger.instance: name for name in shown}
        for each in found:
            for name in {by_id.get(each.id), by_instance.get(each.instance or "-"), each.tags.get(book.NODE_TAG)}:
                if name in shown:
                    shown[name][each.id] = each
        results = await asyncio.gather(
            *(self._tell_one(name, seen, began) for name, seen in shown.items() if name in steward.nodes)
        )
        return sum(results)

    async def _tell_one(self, name: str, seen: Mapping[str, Interface], began: float) -> bool:
        steward = self._steward
        adopts_all = not steward.picture.abilities.creates_interfaces
        view = steward.nodes[name]
        # What it showed may be older than the last call for the node: then only progress counts.
        calm = name not in steward.flying and view.memory.changed <= began
        look = Look(began, seen, calm, steward.others(name), steward.entry)
        ledger, memory = observe(name, view.ledger, view.memory, look, adopts_all)
        if calm:
            steward.nodes[name] = replace(view, memory=memory, seen=seen)
        if ledger == view.ledger:
            if view.memory.looked < memory.looked and (view.ledger.intents or memory.lacking):
                steward.wake(name)
            return False

        def again(current: NodeCloud) -> NodeCloud:
            # A call began while the ledger was waited for: only progress of what was seen counts.
            return observe(name, current, steward.nodes[name].memory, replace(look, calm=False), adopts_all)[0]

        await steward.write(name, lambda current: ledger if current is view.ledger else again(current))
        steward.wake(name)
        return True

    async def _see_ends(self, views: Sequence[NodeView]) -> None:
        steward = self._steward
        self._checked_at = at = steward.clock()
        found = await steward.cloud.instances([view.ledger.instance for view in views], Purpose.CLEANING)
        self._doubted.clear()
        for before in views:
            view = steward.nodes.get(before.name)
            if view is None or view.ledger.instance != before.ledger.instance:
                continue
            if machine := found.get(view.ledger.instance):
                self._note_machine(view.name, machine, at)
            elif not view.missed:
                steward.nodes[view.name] = replace(view, missed=at)
            elif at >= view.missed + book.SETTLE_S:
                steward.nodes[view.name] = replace(view, ended=True)
                steward.wake(view.name)
