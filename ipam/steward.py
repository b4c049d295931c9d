"""Carries plans out: one call a node at a time, many nodes at once, each call written down before it is made.

A steward ends with an exception as soon as a ledger cannot be written, since then somebody else may be the leader. Whoever comes
after it finds every call whose outcome is unknown as an intent in a ledger, and settles that first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from tidegate.crds.ipam import CloudPool
from tidegate.crds.node_state import CloudInterface, NodeCloud
from tidegate.ipam import ledger as book
from tidegate.ipam import outcome
from tidegate.ipam.budget import Budget
from tidegate.ipam.calls import make
from tidegate.ipam.choose import Room
from tidegate.ipam.cloud import Cloud, CloudError, Interface, Purpose, Trouble, Verb
from tidegate.ipam.ledger import Memory
from tidegate.ipam.owners import Owners
from tidegate.ipam.plan import alike, decide, explain, is_restless, plan
from tidegate.ipam.release import is_idle
from tidegate.ipam.scene import Action, NodeFacts, NodeView, Picture, Scene, hear
from tidegate.ipam.survey import Survey

TICK_S, ROUND_S = 5.0, 60.0
"""How often, in seconds, nodes that time alone may change are looked over, and all of them."""

GATHER_S = 0.05
"""For how long, in seconds, news is gathered before it is looked at."""


class Ledger(Protocol):
    """Where ledgers are written."""

    async def write(self, node: str, ledger: NodeCloud) -> None:
        """Write a node's ledger if nobody else wrote it since; raises otherwise, and when it is not known to be written."""


class Stopped(Exception):
    """The steward ended; nothing more is done in its name."""


class Steward:
    """Looks after the nodes of one pool. `clock` tells Unix time in seconds; stewards of one cluster share `owners`."""

    def __init__(
        self,
        cluster: str,
        pool: CloudPool,
        cloud: Cloud,
        ledgers: Ledger,
        budget: Budget,
        clock: Callable[[], float],
        owners: Owners | None = None,
    ) -> None:
        self.cluster, self.pool, self.cloud, self.clock = cluster, pool, cloud, clock
        self.nodes: dict[str, NodeView] = {}
        self.picture = Picture(cloud.abilities, cluster)
        self.troubles: dict[str, CloudError] = {}
        self.problem = ""
        self._ledgers, self.budget = ledgers, budget
        self._survey = Survey(self)
        self.facts: dict[str, NodeFacts] = {}
        self._owners = owners or Owners()
        self._queued: dict[str, tuple[Action, asyncio.Task[None]]] = {}
        self.flying: dict[str, asyncio.Task[None]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._paused_until, self._denials = 0.0, 0
        self._stopped = False

    def update(self, facts: Mapping[str, NodeFacts], ledgers: Mapping[str, NodeCloud], pool: CloudPool | None = None) -> None:
        """Hear how the nodes are. A ledger is taken from `ledgers` only for a node not known yet; later ones are our own."""
        if pool is not None and pool != self.pool:
            self.pool = pool
            self._survey.expire()
            self._dirty |= self.nodes.keys()
        for name, fact in facts.items():
            view = self.nodes.get(name)
            if view is not None and self.facts.get(name) == fact:
                continue
            self.facts[name] = fact
            if view is None:
                now = self.clock()
                # What somebody before did last may show late.
                doubted = now + book.SETTLE_S if ledgers[name].instance else float("-inf")
                view = NodeView(name, ledgers[name], Memory(began=now, changed=now, doubted=doubted))
                self._locks[name] = asyncio.Lock()
                self._name_items(name, NodeCloud(pool=""), view.ledger)
            after = hear(view, fact, self.clock())
            if after != self.nodes.get(name):
                self.nodes[name] = after
                self._dirty.add(name)
        for name in self.nodes.keys() - facts.keys() - self.flying.keys():
            self._name_items(name, self.nodes.pop(name).ledger, NodeCloud(pool=""))
            self.troubles.pop(name, None)
            self.facts.pop(name, None)
            self._dirty.add(name)
        if self._dirty:
            self._wake.set()

    def why(self, node: str) -> str:
        """Return why a node is given nothing at the moment, with the provider's own words if a call failed; else empty."""
        said = self.problem or explain(self.nodes[node], self.picture, self.pool, self.budget.health(), self.clock())
        trouble = self.troubles.get(node)
        return f"{said}: {trouble}" if said and trouble else said

    async def run(self) -> None:
        """Work until cancelled. Raises what a ledger's write raised."""
        ticked = rounded = self.clock()
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    now = self.clock()
                    if now >= rounded + ROUND_S:
                        ticked = rounded = now
                        self._dirty |= self.nodes.keys()
                    elif now >= ticked + TICK_S:
                        ticked = now
                        self._dirty |= {name for name, view in self.nodes.items() if is_restless(view)}
                    self._wake.clear()
                    if now >= self._paused_until:
                        self._dispatch(tasks)
                    self._survey.begin(tasks)
                    with suppress(TimeoutError):
                        # Not wait_for, which before Python 3.12 loses a cancellation that comes with the event.
                        async with asyncio.timeout(min(self._survey.patience(), TICK_S)):
                            await self._wake.wait()
                        # What comes together is looked at together.
                        await asyncio.sleep(GATHER_S)
        finally:
            self._stopped = True

    def wake(self, *nodes: str) -> None:
        """Look again, at some nodes or in general."""
        self._dirty.update(nodes)
        self._wake.set()

    def _dispatch(self, tasks: asyncio.TaskGroup) -> None:
        now = self.clock()
        for name in self._dirty & self.nodes.keys():
            self.nodes[name] = self._note_idleness(self.nodes[name], now)
        views = {name: self.nodes[name] for name in self._dirty & self.nodes.keys() if name not in self.flying}
        gone = [name for name in self._dirty if name not in self.nodes]
        self._dirty.clear()
        actions = {action.node: action for action in plan(views, self.picture, self.pool, self.budget.health(), now)}
        for name in (*views, *gone):
            before, action = self._queued.get(name), actions.get(name)
            if before and action and alike(before[0], action):
                continue
            if before:
                before[1].cancel()
                del self._queued[name]
        for name, action in actions.items():
            if name not in self._queued:
                self._queued[name] = action, tasks.create_task(self._carry_out(action))

    def _note_idleness(self, view: NodeView, now: float) -> NodeView:
        idle = is_idle(self._scene(view, now))
        if idle == (view.idle_since < float("inf")):
            return view
        return replace(view, idle_since=now if idle else float("inf"))

    def _scene(self, view: NodeView, now: float) -> Scene:
        return Scene(view, self.picture, self.pool, self.budget.health(), Room(self.picture.subnets), now)

    async def _carry_out(self, queued: Action) -> None:
        """Wait for the call's turn, decide once more with what is known by then, and do that."""
        if queued.intent is None:
            await self._step(queued)
        else:
            async with self.budget.admit(Verb(queued.intent.verb), queued.purpose):
                await self._step(queued)
        del self.flying[queued.node]
        self.wake(queued.node)

    async def _step(self, queued: Action) -> None:
        name = queued.node
        task = asyncio.current_task()
        assert task is not None
        self.flying[name] = task
        self._queued.pop(name, None)
        if name not in self.nodes:
            return
        base = self.nodes[name].ledger
        action = decide(self._scene(self.nodes[name], self.clock()))
        if not isinstance(action, Action) or not alike(queued, action):
            return
        await self.write(name, lambda current: action.ledger if current is base else current)
        intent = action.intent
        if intent is None or self.nodes[name].ledger != action.ledger:
            return
        repeat = intent in base.intents
        if self._stopped:
            raise Stopped
        try:
            result = await make(self.cloud, self.cluster, self.pool.tags, action)
        except CloudError as error:
            await self._fail(action, error, repeat)
            return
        self.budget.report(True)
        self._denials, self.problem = 0, ""
        self.troubles.pop(name, None)
        contested = await self._wait_for_owners(name, result)
        now = self.clock()
        view = self.nodes[name]
        self.nodes[name] = outcome.remember(view, intent, contested, now)
        self.picture = outcome.spend(self.picture, view.ledger, intent)
        await self.write(name, lambda ledger: outcome.apply(ledger, intent, result, self.entry, self.others(name)))
        self._survey.expect(now)

    async def _fail(self, action: Action, error: CloudError, repeat: bool) -> None:
        name, intent, now = action.node, action.intent, self.clock()
        assert intent is not None
        self.budget.report(error.trouble not in (Trouble.THROTTLED, Trouble.UNAVAILABLE, Trouble.DENIED))
        self.troubles[name] = error
        if error.trouble is Trouble.DENIED:
            self._denials += 1
            self._paused_until = now + min(15.0 * 2 ** min(self._denials, 5), 300.0)
            self.problem = "the cloud refuses the credentials: check the Secret or role, and what it may do"
        view = self.nodes[name]
        self.nodes[name], over, ledger = outcome.fail(view, intent, error, repeat, now)
        self.picture = outcome.learn(self.picture, view.ledger, intent, error, now)
        if over:
            await self.write(name, lambda before: book.finish(ledger(before)))
        self._survey.expect(now, machine=name if error.trouble is Trouble.GONE else "")
        asyncio.get_running_loop().call_later(max(self.nodes[name].not_before - now, 0.0), self.wake, name)

    async def _wait_for_owners(self, name: str, result: Interface | tuple[str, ...]) -> bool:
        """Wait until whoever just gave such an item up has written that down; tells whether somebody still has one."""
        fresh = book.items(result) if isinstance(result, Interface) else result
        owners = {owner for item in fresh for owner in self._owners.others(name, item)}
        if pending := [self.flying[owner] for owner in owners if owner in self.flying]:
            await asyncio.wait(pending, timeout=book.SETTLE_S)
        return any(map(self.others(name), fresh))

    def others(self, name: str) -> Callable[[str], bool]:
        """Return what tells whether another node's ledger names an item."""
        return lambda item: bool(self._owners.others(name, item))

    def entry(self, interface: Interface) -> CloudInterface:
        """Return the ledger's entry of an interface."""
        view = self.picture.subnets.get(interface.subnet)
        return outcome.entry(self.pool.provider, interface, view.subnet.cidrs if view else ())

    async def write(self, name: str, change: Callable[[NodeCloud], NodeCloud]) -> None:
        """Change a node's ledger, written before anything else happens on its ground. Stops the steward when that fails."""
        async with self._locks[name]:
            if self._stopped:
                raise Stopped
            before = self.nodes[name].ledger
            after = change(before)
            if after == before:
                return
            try:
                await self._ledgers.write(name, after)
            except BaseException:
                self._stopped = True
                raise
            self._name_items(name, before, after)
            self.nodes[name] = replace(self.nodes[name], ledger=after)
            if after.instance != before.instance:
                # Another machine, of which nothing is known yet.
                self.nodes[name] = NodeView(
                    name, after, self.nodes[name].memory, self.nodes[name].instance, self.nodes[name].machine,
                    self.nodes[name].receipt, self.nodes[name].wanted,
                )  # fmt: skip
            self.wake(name)

    def _name_items(self, name: str, before: NodeCloud, after: NodeCloud) -> None:
        had = {item for each in before.interfaces for item in book.items(each)}
        has = {item for each in after.interfaces for item in book.items(each)}
        self._owners.change(name, had - has, has - had)

    async def ask(self, request: Awaitable[object]) -> bool:
        """Await a describe of the survey; tells whether it went well, and remembers how it did not."""
        try:
            await request
        except CloudError as error:
            self.budget.report(error.trouble not in (Trouble.THROTTLED, Trouble.UNAVAILABLE, Trouble.DENIED))
            self.troubles[""] = error
            return False
        self.budget.report(True)
        self.troubles.pop("", None)
        return True

    def purpose(self) -> Purpose:
        """Return for whom the cloud is looked at now."""
        waits = any(self._scene(view, self.clock()).short() for view in self.nodes.values())
        return Purpose.WAITING_POD if waits else Purpose.LOOKING
