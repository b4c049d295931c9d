"""The steward: what it does when the cloud, a human or another leader does what nobody hopes for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import virtual_time
from cloud_world import EPOCH, Conflict, World, network
from msgspec.structs import replace as changed

from tidegate.crds.ipam import CloudChoice, CloudPool, Provider
from tidegate.ipam.cloud import Kind, Verb
from tidegate.ipam.ledger import items
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.refusals import Refusal
from tidegate.lab.clouds.rules import CHANGING

PROVIDERS: list[Provider] = ["alibaba", "aws", "azure"]


def play(provider: Provider, act: Callable[[World], Awaitable[None]], pool: CloudPool | None = None, **more: Any) -> None:
    """Act with a world whose steward has begun."""

    async def go() -> None:
        loop = asyncio.get_running_loop()
        world = World(provider, lambda: EPOCH + loop.time(), pool, pick=lambda n: 0, **more)
        world.start()
        await act(world)
        if not world.dead:
            await world.bury()

    virtual_time.run(go())


def changing(world: World) -> int:
    return sum(count for verb, count in world.cloud.gate.counted().items() if verb in CHANGING)


def why(world: World, node: str) -> str:
    assert world.steward
    return world.steward.why(node)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_nothing_is_asked_when_nothing_can_have_changed(provider: Provider) -> None:
    """A quiet hour costs a handful of looks and no other call; pods that come and go within the warm pool cost none either."""

    async def act(world: World) -> None:
        for number in range(5):
            world.launch(f"n{number}", 4)
        await world.until(world.idle)
        await asyncio.sleep(120)
        world.scale("n0", 6)
        await asyncio.sleep(120)
        before, calls = changing(world), len(world.cloud.gate.calls)
        for _ in range(30):
            world.scale("n0", 4)
            await asyncio.sleep(60)
            world.scale("n0", 6)
            await asyncio.sleep(60)
        assert changing(world) == before
        # Six audits of an interface describe (on Azure one a node), and as many of the subnets.
        assert len(world.cloud.gate.calls) - calls <= 7 * (1 + 5 if provider == "azure" else 2)

    play(provider, act, _quiet(provider))


def _quiet(provider: Provider) -> CloudPool:
    subnets = CloudChoice() if provider == "azure" else CloudChoice(ids=(network(provider, 0),))
    return CloudPool(provider=provider, subnets=subnets, maxAboveWatermark=4)


def test_an_address_that_two_could_have_has_one_owner() -> None:
    """A human takes a node's free address, which the cloud gives to another: it has it when the first ledger has not."""

    async def act(world: World) -> None:
        world.launch("n0", 2)
        world.launch("n1", 2)
        await world.until(world.idle)
        interface = world.ledgers["n0"].interfaces[0]
        busy = world.agents["n0"].busy()
        free = next(item for item in items(interface) if item not in busy)
        world.humans = True
        world.cloud.unassign(interface.id, [free])
        world.scale("n1", 5)
        await world.until(world.idle)
        await asyncio.sleep(20)
        nic = next(nic for nic in world.ours() if free in nic.items)
        assert nic.id == world.ledgers["n1"].interfaces[0].id
        assert free not in items(world.ledgers["n1"].interfaces[0])
        await world.until(lambda: free in items(world.ledgers["n1"].interfaces[0]), 300)
        assert free not in items(world.ledgers["n0"].interfaces[0])

    play("alibaba", act)


def test_a_ledger_that_somebody_else_wrote_stops_the_steward() -> None:
    """It ends with that, and makes no call any more."""

    async def act(world: World) -> None:
        world.launch("n0", 2)
        await world.until(world.idle)
        world._terms_alive = -1
        calls = changing(world)
        world.scale("n0", 12)
        await asyncio.sleep(30)
        assert world.dead
        assert changing(world) == calls
        with pytest.raises(ExceptionGroup) as ended:
            await _result(world)
        assert ended.value.subgroup(Conflict)

    play("alibaba", act)


async def _result(world: World) -> None:
    assert world._work
    await world._work


@pytest.mark.parametrize("provider", ["alibaba", "aws"])
def test_an_interface_that_a_human_detached_is_attached_again(provider: Provider) -> None:
    """Found, and repaired."""

    async def act(world: World) -> None:
        world.launch("n0", 2)
        await world.until(world.idle)
        nic = world.ours()[0]
        world.humans = True
        world.cloud.detach(nic.id, nic.instance)
        await asyncio.sleep(1300)
        await world.until(world.idle)
        assert nic.state == "InUse"
        world.check_leaks()

    play(provider, act)


@pytest.mark.parametrize("provider", ["alibaba", "aws"])
def test_an_interface_that_cannot_be_attached_is_deleted(provider: Provider) -> None:
    """Somebody else took the last place of the machine meanwhile: nothing is leaked, and the reason is said."""

    async def act(world: World) -> None:
        world.launch("n0", 1)
        await world.until(world.idle)
        machine = world.cloud.machine(world.agents["n0"].instance)
        while len(machine.interfaces) < machine.type.interfaces:
            made = world.cloud.create("", world.home, ["sg"], {}, Kind.ADDRESS_4, 0)
            await asyncio.sleep(2)
            world.cloud.attach(made.id, machine.id)
        world.scale("n0", 25)
        await asyncio.sleep(200)
        ours = [nic for nic in world.cloud.nics.values() if "tidegate.io/cluster" in nic.tags]
        assert [nic.id for nic in ours] == [each.id for each in world.ledgers["n0"].interfaces]
        assert "all are taken" in why(world, "n0")
        # It is not tried over and over (15,877 interfaces in four days, elsewhere).
        assert world.cloud.gate.counted()[Verb.CREATE] <= 3

    play(provider, act, rules=None)


@pytest.mark.parametrize("provider", ["alibaba", "aws"])
def test_an_empty_look_deletes_nothing(provider: Provider) -> None:
    """The cloud shows no interface for half an hour: pods keep what they have, and nothing is made in its place."""

    async def act(world: World) -> None:
        for number in range(3):
            world.launch(f"n{number}", 5)
        await world.until(world.idle)
        before = {name: [items(each) for each in ledger.interfaces] for name, ledger in world.ledgers.items()}
        calls = world.cloud.gate.counted()
        shown, world.cloud.sight._shown = world.cloud.sight._shown, {}
        await asyncio.sleep(1800)
        world.cloud.sight._shown = shown
        assert {name: [items(each) for each in ledger.interfaces] for name, ledger in world.ledgers.items()} == before
        for verb in (Verb.CREATE, Verb.UNASSIGN, Verb.DETACH, Verb.DELETE):
            assert world.cloud.gate.counted()[verb] == calls[verb]
        await asyncio.sleep(1800)
        await world.until(world.idle)
        world.check_leaks()

    play(provider, act)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_refused_credentials_are_not_tried_over_and_over(provider: Provider) -> None:
    """The reason and the remedy are said, few calls are made, and all goes on when they are mended."""

    async def act(world: World) -> None:
        world.cloud.gate.denied = {Verb.CREATE, Verb.ASSIGN}
        for number in range(20):
            world.launch(f"n{number}", 5)
        await asyncio.sleep(600)
        assert "check the Secret or role" in why(world, "n0")
        assert changing(world) <= 150
        world.cloud.gate.denied = set()
        await world.until(world.idle, 900)
        assert why(world, "n0") == ""

    play(provider, act)


def test_a_group_of_another_network_is_said() -> None:
    """Nothing is made, and the pool's field is named."""

    async def act(world: World) -> None:
        world.cloud.add_group("elsewhere", "vpc-2")
        world.launch("n0", 1)
        await asyncio.sleep(60)
        assert "in the network of the subnets" in why(world, "n0")
        assert changing(world) == 0

    pool = CloudPool(
        provider="aws", subnets=CloudChoice(ids=(network("aws", 0),)), securityGroups=CloudChoice(ids=("elsewhere",))
    )
    play("aws", act, pool)


def test_an_unknown_subnet_is_said_and_corrected() -> None:
    """When the pool is edited, all goes on."""

    async def act(world: World) -> None:
        world.launch("n0", 1)
        await asyncio.sleep(60)
        assert "no subnet that spec.cloud.subnets chooses" in why(world, "n0")
        world.pool = changed(world.pool, subnets=CloudChoice(ids=(network("aws", 0),)))
        world.edited()
        await world.until(world.idle, 120)

    play("aws", act, CloudPool(provider="aws", subnets=CloudChoice(ids=("subnet-typo",))))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_answers_that_never_came_cost_nothing(provider: Provider) -> None:
    """Each changing call of a run loses its answer once, after its effect: nothing is leaked or given twice."""

    async def act(world: World) -> None:
        for verb in CHANGING:
            world.cloud.gate.faults.add(verb, [Fault(None, Moment.AFTER)] * 2)
        world.launch("n0", 12)
        world.launch("n1", 3)
        await world.until(world.idle)
        world.check_leaks()
        world.scale("n0", 1)
        await asyncio.sleep(600)
        await world.until(world.idle)
        world.check_leaks()
        world.delete("n0")
        world.delete("n1")
        await world.until(world.idle)
        assert world.ours() == []

    play(provider, act)


def test_a_call_of_unknown_outcome_that_is_refused_later_ends() -> None:
    """The answer to a create is lost before it had effect, and then no block is left: it is not asked for over and over."""

    async def act(world: World) -> None:
        space = world.cloud.nets[world.home].spaces["4"]
        world.cloud.gate.faults.add(Verb.CREATE, [Fault(None)])
        world.launch("n0", 12)
        await world.until(lambda: bool(world.ledgers["n0"].intents))
        for block in range(16):
            space.take_this(f"10.0.0.{block * 16 + 9}")
        await world.until(world.idle, 120)
        # Two of them are those that succeed.
        assert world.cloud.gate.counted()[Verb.CREATE] <= 9

    pool = CloudPool(provider="aws", subnets=CloudChoice(ids=(network("aws", 0),)), addresses="Prefix")
    play("aws", act, pool, cidrs=("10.0.0.0/24",))


def test_waiting_pods_are_served_while_the_cloud_fails() -> None:
    """Half of all assigns fail: nothing is released or warmed, and every pod gets its address."""

    async def act(world: World) -> None:
        world.cloud.gate.faults.add(Verb.ASSIGN, [Fault(Refusal.SERVER)] * 30)
        world.launch("n0", 30)
        await world.until(lambda: not world.agents["n0"].waits, 1200)

    play("azure", act)


def test_a_torn_subnet_serves_single_addresses() -> None:
    """No block is whole, and half of the subnet is free: pods asked for prefixes get addresses, and do not wait."""

    async def act(world: World) -> None:
        space = world.cloud.nets[world.home].spaces["4"]
        for block in range(16):
            space.take_this(f"10.0.0.{block * 16 + 9}")
        world.launch("n0", 12)
        await world.until(world.idle, 120)
        assert world.ledgers["n0"].interfaces[0].prefixes in ((), [])

    pool = CloudPool(provider="aws", subnets=CloudChoice(ids=(network("aws", 0),)), addresses="Prefix")
    play("aws", act, pool, cidrs=("10.0.0.0/24",))


def test_looks_that_come_late_double_nothing() -> None:
    """Describes are twenty seconds behind: a node gets no more interfaces than it needs."""

    async def act(world: World) -> None:
        world.launch("n0", 10)
        await world.until(world.idle)
        assert world.cloud.gate.counted()[Verb.CREATE] == 2
        assert world.cloud.gate.counted()[Verb.ATTACH] == 2

    late = World("aws", lambda: EPOCH).rules
    play("aws", act, rules=replace(late, seen_s=20.0))
