"""Random walks: pods, nodes, edits of the pool, faults of the cloud, humans at its console, leaders that change."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import virtual_time
from cloud_world import EPOCH, World, addresses, network
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace as changed

from tidegate.crds.ipam import CloudChoice, CloudPool, Provider
from tidegate.ipam.cloud import Verb
from tidegate.ipam.ledger import items
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.refusals import Refusal
from tidegate.lab.clouds.rules import RULES

LONG = bool(os.environ.get("TIDEGATE_LONG"))
NAMES = ("n0", "n1", "n2", "n3")
PROVIDERS: tuple[Provider, ...] = ("alibaba", "aws", "azure")
HOW = st.sampled_from([Refusal.SERVER, Refusal.THROTTLED, Refusal.SUBNET_FULL, Refusal.CONFLICT, Refusal.NO_INTERFACE, None])


class Walk(RuleBasedStateMachine):
    """One cluster and its cloud. Time passes only within steps."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = virtual_time.VirtualLoop()
        self.world: World | None = None

    def run(self, step: Callable[[World], Any]) -> None:
        """Take a step on the loop."""

        async def take() -> None:
            assert self.world is not None
            step(self.world)
            await asyncio.sleep(0.05)

        self.loop.run_until_complete(take())

    @initialize(
        provider=st.sampled_from(PROVIDERS),
        dual=st.booleans(),
        prefixes=st.booleans(),
        narrow=st.booleans(),
        seen_s=st.sampled_from([0.0, 3.0]),
        slow=st.booleans(),
    )
    def begin(self, provider: Provider, dual: bool, prefixes: bool, narrow: bool, seen_s: float, slow: bool) -> None:
        pool = CloudPool(
            provider=provider,
            subnets=CloudChoice() if provider == "azure" else CloudChoice(ids=(network(provider, 0), network(provider, 1))),
            families=("IPv4", "IPv6") if dual else (),
            addresses="Prefix" if prefixes else "Single",
            preAllocate=3,
            cooldownSeconds=5,
        )
        self.world = World(
            provider,
            lambda: EPOCH + self.loop.time(),
            pool,
            replace(RULES[provider], seen_s=seen_s),
            cidrs=("10.0.0.0/26" if narrow else "10.0.0.0/23", "2001:db8::/64"),
            subnets=2,
            # What one gives back, the next gets.
            pick=lambda n: 0,
            order_s=1.3 if slow else 0.0,
            receipt_s=2.1 if slow else 0.0,
        )
        self.run(lambda world: world.start())

    @rule(name=st.sampled_from(NAMES), pods=st.integers(0, 12))
    def launch(self, name: str, pods: int) -> None:
        assert self.world is not None
        # A name comes again with another machine, also before the former one's ledger is empty.
        if name not in self.world.agents and self.world.cloud.nets[self.world.home].spaces["4"].free:
            self.run(lambda world: world.launch(name, pods))

    @precondition(lambda self: self.world and self.world.agents)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        name = self._one(data)
        self.run(lambda world: world.delete(name))

    @precondition(lambda self: self.world and self.world.agents)
    @rule(data=st.data(), pods=st.integers(0, 30))
    def scale(self, data: st.DataObject, pods: int) -> None:
        name = self._one(data)
        self.run(lambda world: world.scale(name, pods))

    @rule(pre=st.integers(0, 12), above=st.integers(0, 6), release=st.booleans(), prefixes=st.booleans())
    def edit(self, pre: int, above: int, release: bool, prefixes: bool) -> None:
        def step(world: World) -> None:
            form = "Prefix" if prefixes else "Single"
            world.pool = changed(world.pool, preAllocate=pre, maxAboveWatermark=above, release=release, addresses=form)
            world.edited()

        self.run(step)

    @rule(verb=st.sampled_from(list(Verb)), how=HOW, after=st.booleans(), count=st.integers(1, 4))
    def fault(self, verb: Verb, how: Refusal | None, after: bool, count: int) -> None:
        # After the effect a provider answers with a 5xx, or not at all.
        moment = Moment.AFTER if after and how in (None, Refusal.SERVER) else Moment.BEFORE
        self.run(lambda world: world.cloud.gate.faults.add(verb, [Fault(how, moment)] * count))

    @rule(seconds=st.sampled_from([0.1, 0.7, 3.0, 20.0, 240.0]))
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    @rule(pause=st.sampled_from([0.0, 0.3, 40.0]))
    def change_leader(self, pause: float) -> None:
        async def change(world: World) -> None:
            await world.bury()
            await asyncio.sleep(pause)
            world.start()

        assert self.world is not None
        self.loop.run_until_complete(change(self.world))

    @precondition(lambda self: self.world and self.free())
    @rule(data=st.data())
    def take_an_address_in_the_console(self, data: st.DataObject) -> None:
        id, item = data.draw(st.sampled_from(self.free()))
        assert self.world is not None
        # The agent does not know yet, and may give it to a pod.
        self.world.humans = True
        self.run(lambda world: world.cloud.unassign(id, [item]))

    def free(self) -> list[tuple[str, str]]:
        """Return items that no pod has, and their interfaces."""
        assert self.world is not None
        busy = {address for agent in self.world.agents.values() for address in agent.busy()}
        now = self.world.cloud.clock()
        return [
            (nic.id, item)
            for nic in self.world.ours()
            for item in nic.items
            if nic.busy_until <= now and not busy.intersection(addresses(item))
        ]

    def _one(self, data: st.DataObject) -> str:
        assert self.world is not None
        return data.draw(st.sampled_from(sorted(self.world.agents)))

    @invariant()
    def nothing_has_two_owners_or_was_taken(self) -> None:
        if self.world is not None:
            self.world.check_owners()
            if not self.world.humans:
                self.world.check_use()
            assert not self.world.dead

    def teardown(self) -> None:
        if self.world is not None:
            self.loop.run_until_complete(self._end(self.world))
        self.loop.close()

    async def _end(self, world: World) -> None:
        """When all is calm, the ledgers name exactly what is there; when all nodes are gone, nothing is."""
        await world.until(lambda: not world.cloud.gate.faults.left() or world.calm(), 4 * 3600)
        world.cloud.gate.faults = type(world.cloud.gate.faults)()
        for name in world.agents:
            world.scale(name, min(world.agents[name].wanted, 3))
        await world.until(world.calm, 4 * 3600)
        # What a human took is noticed at the next audit.
        await asyncio.sleep(3 * 3600 if world.humans else 60)
        await world.until(world.calm, 4 * 3600)
        world.check_owners()
        world.check_leaks()
        for name in list(world.agents):
            world.delete(name)
        await world.until(world.idle, 4 * 3600)
        world.check_leaks()
        assert [nic.id for nic in world.ours()] == []
        assert not any(items(each) for ledger in world.ledgers.values() for each in ledger.interfaces)
        await world.bury()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=400 if LONG else 25, stateful_step_count=60 if LONG else 25, deadline=None)
