"""Facts that hold for every cloud, however it is reached; what a provider cannot do, it says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import clouds
import pytest
from clouds import MINE, SECRET, SETTINGS, World

from tidegate.ipam.cloud import CloudError, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds.kinds import FAMILY_4, PREFIXES, kind_of
from tidegate.lab.clouds.buckets import Limit
from tidegate.lab.clouds.faults import Fault, Moment
from tidegate.lab.clouds.refusals import TROUBLE, Refusal

POD, WARM, LOOK = Purpose.WAITING_POD, Purpose.WARM_POOL, Purpose.LOOKING
NAMES = sorted(SETTINGS)
CREATING = [name for name in NAMES if not name.endswith("azure")]


@pytest.fixture(params=NAMES)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with clouds.world(request.param) as made:
        yield made


@pytest.fixture(params=CREATING)
async def creating(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with clouds.world(request.param) as made:
        yield made


async def refused(call: Awaitable[object]) -> CloudError:
    with pytest.raises(CloudError) as caught:
        await call
    assert caught.value.message
    return caught.value


# What a provider can do at all.


async def test_abilities_are_those_of_the_provider(world: World) -> None:
    mine, theirs = world.cloud.abilities, world.account.rules.abilities
    assert (mine.creates_interfaces, mine.kinds, mine.prefixes) == (theirs.creates_interfaces, theirs.kinds, theirs.prefixes)
    assert 0 < mine.most <= theirs.most


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CREATING])
async def test_without_the_ability_interfaces_are_refused_before_any_request(name: str) -> None:
    async with clouds.world(name) as world:
        nic = await world.attached()
        calls = len(world.account.gate.calls)
        for call in (
            world.create(),
            world.cloud.attach(nic.id, world.machine, 1, WARM),
            world.cloud.detach(nic.id, world.machine, WARM),
            world.cloud.delete(nic.id, WARM),
        ):
            error = await refused(call)
            assert (error.trouble, error.done) == (Trouble.UNSUPPORTED, False)
        assert len(world.account.gate.calls) == calls


@pytest.mark.parametrize("kind", Kind)
async def test_each_kind_is_given_and_taken_or_refused_before_any_request(world: World, kind: Kind) -> None:
    nic = await world.attached()
    calls = len(world.account.gate.calls)
    if kind not in world.cloud.abilities.kinds:
        error = await refused(world.cloud.assign("token", nic.id, kind, 1, POD))
        assert error.trouble is Trouble.UNSUPPORTED
        assert len(world.account.gate.calls) == calls
        return
    first = await world.cloud.assign("one", nic.id, kind, 1, POD)
    world.forward()
    more = await world.cloud.assign("two", nic.id, kind, 2, POD)
    world.forward()
    assert (len(first), len(more), len({*first, *more})) == (1, 2, 3)
    assert {kind_of(item) for item in (*first, *more)} == {kind}
    if kind in PREFIXES:
        assert {int(item.partition("/")[2]) for item in more} == {world.cloud.abilities.prefixes[kind]}
    seen = await world.see(nic.id)
    assert {*(seen.prefixes if kind in PREFIXES else seen.addresses)} == {*first, *more}
    assert nic.primary not in seen.addresses
    await world.cloud.unassign(nic.id, more, WARM)
    world.forward()
    seen = await world.see(nic.id)
    assert [*seen.addresses, *seen.prefixes] == [*first]


# A whole life.


async def test_an_interface_lives_from_create_to_delete(creating: World) -> None:
    cloud = creating.cloud
    made = await creating.create(count=2)
    assert (made.state in {"Creating", "Available"}, made.instance, len(made.addresses)) == (True, "", 2)
    creating.forward()
    assert (await creating.see(made.id)).state == "Available"
    await cloud.attach(made.id, creating.machine, 1, POD)
    creating.forward(0.1)
    assert creating.account.nic(made.id).state == "Attaching"
    creating.forward()
    seen = await creating.see(made.id)
    assert (seen.state, seen.instance, seen.mac, seen.primary) == ("InUse", creating.machine, made.mac, made.primary)
    assert seen.index in (1, -1)
    assert (seen.subnet, list(seen.groups)) == (creating.id("subnet", "large"), [creating.id("group", "sg")])
    assert seen.tags.items() >= {**MINE, "node": "n"}.items()
    assert {*seen.addresses} == {*made.addresses}
    await cloud.unassign(made.id, seen.addresses, WARM)
    await cloud.detach(made.id, creating.machine, WARM)
    creating.forward()
    seen = await creating.see(made.id)
    assert (seen.state, seen.instance, seen.addresses) == ("Available", "", [])
    await cloud.delete(made.id, WARM)
    creating.forward()
    assert await creating.ours() == []
    assert made.id not in creating.account.nics


async def test_interfaces_of_others_are_never_shown(creating: World) -> None:
    account = creating.account
    subnet, groups = creating.id("subnet", "large"), [creating.id("group", "sg")]
    account.create("", subnet, groups, {}, Kind.ADDRESS_4, 0)
    account.create("", subnet, groups, {"tidegate.io/cluster": "two"}, Kind.ADDRESS_4, 0)
    mine = await creating.create()
    creating.forward()
    assert [nic.id for nic in await creating.ours()] == [mine.id]


async def test_an_interface_goes_with_its_machine(creating: World) -> None:
    nic = await creating.attached()
    creating.account.end(creating.machine)
    creating.forward()
    assert await creating.ours() == []
    assert nic.id not in creating.account.nics
    assert await creating.cloud.instances([creating.machine], LOOK) == {}


@pytest.mark.parametrize("kind", Kind)
async def test_an_interface_is_made_with_items_of_any_kind(creating: World, kind: Kind) -> None:
    made = await creating.create(kind=kind, count=2)
    assert [kind_of(item) for item in (*made.addresses, *made.prefixes)] == [kind, kind]


# Repeating.


async def test_the_same_token_makes_one_interface(creating: World) -> None:
    one, again = await creating.create(count=1), await creating.create(count=1)
    other = await creating.create("another", count=1)
    assert (one.id, one.addresses) == (again.id, again.addresses)
    assert other.id != one.id
    error = await refused(creating.create(count=2))
    assert error.trouble is Trouble.INVALID


async def test_the_same_token_assigns_once_where_the_provider_keeps_tokens(world: World) -> None:
    nic = await world.attached()
    one = await world.cloud.assign("t1", nic.id, Kind.ADDRESS_4, 2, POD)
    world.forward()
    again = await world.cloud.assign("t1", nic.id, Kind.ADDRESS_4, 2, POD)
    world.forward()
    keeps = world.account.rules.assign_tokens or world.account.rules.named
    assert ({*one} == {*again}) is keeps
    assert len((await world.see(nic.id)).addresses) == (2 if keeps else 4)


async def test_what_is_done_already_is_no_error(creating: World) -> None:
    cloud = creating.cloud
    nic = await creating.create(count=2)
    creating.forward()
    for _ in range(2):
        await cloud.attach(nic.id, creating.machine, 1, POD)
    creating.forward()
    await cloud.attach(nic.id, creating.machine, 1, POD)
    for _ in range(2):
        await cloud.detach(nic.id, creating.machine, WARM)
    creating.forward()
    await cloud.detach(nic.id, creating.machine, WARM)
    for _ in range(2):
        await cloud.delete(nic.id, WARM)
    assert nic.id not in creating.account.nics


async def test_taking_away_what_is_gone_is_no_error_and_takes_the_rest(world: World) -> None:
    nic = await world.attached()
    items = await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 3, POD)
    world.forward()
    world.account.unassign(nic.id, items[:1])
    world.forward()
    await world.cloud.unassign(nic.id, items, WARM)
    world.forward()
    await world.cloud.unassign(nic.id, items, WARM)
    assert (await world.see(nic.id)).addresses == []


async def test_an_interface_of_another_machine_is_not_taken(creating: World) -> None:
    nic = await creating.attached()
    other = creating.id("machine", "i-2")
    assert (await refused(creating.cloud.attach(nic.id, other, 1, POD))).trouble is Trouble.CONFLICT
    assert (await refused(creating.cloud.detach(nic.id, other, WARM))).trouble is Trouble.CONFLICT
    assert (await refused(creating.cloud.delete(nic.id, WARM))).trouble is Trouble.CONFLICT
    assert (await creating.see(nic.id)).instance == creating.machine


# Reading.


async def test_machines_types_subnets_and_groups_are_read_and_unknown_ones_missing(world: World) -> None:
    cloud, account = world.cloud, world.account
    nic = await world.attached()
    machine = (await cloud.instances([world.machine, world.id("machine", "i-none")], LOOK))[world.machine]
    held = account.machine(world.machine)
    assert (machine.type, machine.zone, machine.subnet) == (held.type.name, held.zone, nic.subnet)
    assert (list(machine.groups), machine.interfaces) == (list(held.groups), len(held.interfaces))
    name = held.type.name
    found = await cloud.types([name, "none.such"], LOOK)
    assert [*found] == [name]
    assert (found[name].interfaces, found[name].ipv4, found[name].ipv6) == (
        held.type.interfaces,
        held.type.ipv4,
        held.type.ipv6,
    )
    large, small = world.id("subnet", "large"), world.id("subnet", "small")
    for subnets in (await cloud.subnets([large], {}, LOOK), await cloud.subnets([], {"pods": "yes"}, LOOK)):
        [subnet] = subnets
        assert (subnet.id, list(subnet.cidrs)) == (large, ["10.64.0.0/16", "2001:db8:0:1::/64"])
        assert subnet.free in (-1, account.nets[large].spaces["4"].free)
    assert {each.id for each in await cloud.subnets([large, small], {}, LOOK)} == {large, small}
    sg = world.id("group", "sg")
    assert [*await cloud.groups([sg], {}, LOOK)] == [*await cloud.groups([], {"pods": "yes"}, LOOK)] == [sg]
    assert await cloud.subnets([], {}, LOOK) == []
    assert await cloud.groups([], {}, LOOK) == {}


@pytest.mark.parametrize("name", CREATING)
async def test_more_interfaces_than_a_page_or_a_tag_shows_are_all_returned(name: str) -> None:
    async with clouds.world(name) as world:
        subnet, groups = world.id("subnet", "large"), [world.id("group", "sg")]
        made = {world.account.create("", subnet, groups, MINE, Kind.ADDRESS_4, 0).id for _ in range(1050)}
        world.account.create("", subnet, groups, {}, Kind.ADDRESS_4, 0)
        world.forward()
        found = await world.ours()
        assert len(found) == len(made)
        assert {nic.id for nic in found} == made
        assert world.account.gate.counted()[Verb.DESCRIBE] > 1


async def test_a_picture_that_fails_halfway_is_no_picture(world: World) -> None:
    async def look() -> None:
        await world.ours()

    await world.attached()
    before = world.account.gate.counted()[Verb.DESCRIBE]
    await look()
    requests = world.account.gate.counted()[Verb.DESCRIBE] - before
    world.account.gate.faults.add(Verb.DESCRIBE, [Fault(Refusal.SERVER, skip=requests - 1)])
    error = await refused(look())
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, False)


@pytest.mark.parametrize("name", CREATING)
async def test_describes_lag_behind(name: str) -> None:
    async with clouds.world(name, seen_s=5.0) as world:
        made = await world.create()
        assert await world.ours() == []
        world.forward(6.0)
        assert [nic.id for nic in await world.ours()] == [made.id]
        await world.cloud.delete(made.id, WARM)
        assert [nic.id for nic in await world.ours()] == [made.id]
        world.forward(6.0)
        assert await world.ours() == []


# Pace.


async def test_every_request_waits_for_its_turn(world: World) -> None:
    nic = await world.attached()
    await world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, POD)
    await world.cloud.groups([world.id("group", "sg")], {}, LOOK)
    assert [verb for verb, _ in world.pace.waits] == [call.verb for call in world.account.gate.calls]
    assert (Verb.ASSIGN, POD) in world.pace.waits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", [Verb.ASSIGN, Verb.DESCRIBE])
async def test_a_throttled_request_is_not_repeated_but_told(name: str, verb: Verb) -> None:
    async with clouds.world(name) as world:
        nic = await world.attached()
        rules = world.account.rules
        calls = {
            Verb.ASSIGN: lambda: world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 1, POD),
            Verb.DESCRIBE: world.ours,
        }
        world.account.gate.limit({rules.shares.get(verb.value, verb.value): Limit(0.0, 0.1)})
        before = world.account.gate.counted()
        error = await refused(calls[verb]())
        assert (error.trouble, error.done) == (Trouble.THROTTLED, False)
        assert world.pace.throttles == [(verb, error.retry_s)]
        assert (error.retry_s > 0) is rules.tells_retry
        assert (world.account.gate.counted() - before)[verb] == 1


# What goes wrong.


@pytest.mark.parametrize("why", [why for why in Refusal if why is not Refusal.THROTTLED], ids=lambda why: why.name)
async def test_each_refusal_is_understood(world: World, why: Refusal) -> None:
    nic = await world.attached()
    kind = Kind.PREFIX_4 if why is Refusal.FRAGMENTED else Kind.ADDRESS_4
    world.account.gate.faults.add(Verb.ASSIGN, [Fault(why)])
    error = await refused(world.cloud.assign("t", nic.id, kind, 1, POD))
    assert world.account.gate.faults.left() == 0
    assert error.trouble is world.setting.differs.get(why, TROUBLE[why])
    assert error.code
    assert error.done is (why is Refusal.SERVER)
    assert world.pace.throttles == []


@pytest.mark.parametrize("how", [Refusal.SERVER, None], ids=["5xx", "reset"])
@pytest.mark.parametrize("moment", Moment)
async def test_a_request_without_an_answer_may_have_taken_effect(world: World, how: Refusal | None, moment: Moment) -> None:
    nic = await world.attached()
    world.account.gate.faults.add(Verb.ASSIGN, [Fault(how, moment)])
    error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_4, 2, POD))
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, True)
    assert len(world.account.nic(nic.id).addresses) == (2 if moment is Moment.AFTER else 0)


@pytest.mark.parametrize("moment", Moment)
async def test_a_lost_creation_is_found_by_its_token(creating: World, moment: Moment) -> None:
    creating.account.gate.faults.add(Verb.CREATE, [Fault(None, moment)])
    before = len(creating.account.nics)
    assert (await refused(creating.create())).done
    made = await creating.create()
    assert len(creating.account.nics) == before + 1
    assert made.id in creating.account.nics


@pytest.mark.parametrize("how", [Refusal.SERVER, None], ids=["5xx", "reset"])
async def test_a_failed_look_changes_nothing(world: World, how: Refusal | None) -> None:
    world.account.gate.faults.add(Verb.DESCRIBE, [Fault(how)])
    error = await refused(world.ours())
    assert (error.trouble, error.done) == (Trouble.UNAVAILABLE, False)


async def test_a_right_that_is_missing_is_said(world: World) -> None:
    world.account.gate.denied.add(Verb.DESCRIBE)
    assert (await refused(world.ours())).trouble is Trouble.DENIED


@pytest.mark.parametrize("name", [name for name in NAMES if SETTINGS[name].signed])
async def test_wrong_keys_and_wrong_clocks_are_denied_and_no_secret_is_told(name: str) -> None:
    async with clouds.world(name, secret="another secret") as world:
        error = await refused(world.ours())
        assert error.trouble is Trouble.DENIED
        assert all(word not in str(error) for word in (SECRET, "another secret", clouds.KEY))
    for skew_s in (-3600.0, 3600.0):
        async with clouds.world(name) as world:
            world.account.gate.skew_s = skew_s
            error = await refused(world.ours())
            assert error.trouble is Trouble.DENIED
            assert clouds.KEY not in str(error)
            world.account.gate.skew_s = 0.0
            await world.ours()


# Limits, as they are met.


async def test_a_full_subnet_and_one_without_a_whole_prefix_are_told_apart(world: World) -> None:
    nic = await world.attached("small", "i-small")
    space = world.account.nets[nic.subnet].spaces["4"]
    taken = []
    while space.free_blocks:
        taken.append(space.take())
    assert (await refused(world.cloud.assign("p", nic.id, Kind.PREFIX_4, 1, POD))).trouble is Trouble.FRAGMENTED
    while space.free:
        taken.append(space.take())
    assert (await refused(world.cloud.assign("a", nic.id, Kind.ADDRESS_4, 1, POD))).trouble is Trouble.EXHAUSTED
    space.give(taken[0])
    assert await world.cloud.assign("b", nic.id, Kind.ADDRESS_4, 1, POD) == [taken[0]]


async def test_a_machine_has_so_many_addresses(world: World) -> None:
    nic = await world.attached()
    for kind in (Kind.ADDRESS_4, Kind.ADDRESS_6):
        limits = world.account.machine(world.machine).type
        room = limits.ipv4 - 1 if kind in FAMILY_4 else limits.ipv6
        while room:
            count = min(room, world.cloud.abilities.most)
            await world.cloud.assign(f"{kind}{room}", nic.id, kind, count, POD)
            world.forward()
            room -= count
        assert (await refused(world.cloud.assign(f"{kind}more", nic.id, kind, 1, POD))).trouble is Trouble.LIMIT


async def test_a_machine_has_so_many_interfaces(creating: World) -> None:
    limit = creating.account.machine(creating.machine).type.interfaces
    nics = [await creating.create(f"token-{number}") for number in range(limit)]
    creating.forward()
    for number, nic in enumerate(nics[:-1], 1):
        await creating.cloud.attach(nic.id, creating.machine, number, POD)
    error = await refused(creating.cloud.attach(nics[-1].id, creating.machine, limit, POD))
    assert error.trouble is Trouble.LIMIT
    await creating.cloud.delete(nics[-1].id, WARM)


@pytest.mark.parametrize("name", CREATING)
async def test_an_account_has_so_many_interfaces(name: str) -> None:
    async with clouds.world(name, most_interfaces=5) as world:
        await world.create("last")
        assert (await refused(world.create("more"))).trouble is Trouble.LIMIT


async def test_what_is_gone_is_gone(world: World) -> None:
    nic = await world.attached()
    gone = world.id("interface", nic.id[:-1] + "f")
    assert (await refused(world.cloud.assign("t", gone, Kind.ADDRESS_4, 1, POD))).trouble is Trouble.GONE
    if world.creates:
        assert (await refused(world.cloud.attach(gone, world.machine, 1, POD))).trouble is Trouble.GONE
        spare = await world.create("spare")
        world.forward()
        nobody = world.id("machine", "i-none")
        assert (await refused(world.cloud.attach(spare.id, nobody, 1, POD))).trouble is Trouble.GONE


async def test_what_cannot_be_is_invalid(creating: World) -> None:
    cloud = creating.cloud
    large, sg = creating.id("subnet", "large"), creating.id("group", "sg")
    other = creating.id("group", "sg-other")
    for subnet, group in ((creating.id("subnet", "none"), sg), (large, creating.id("group", "none")), (large, other)):
        error = await refused(cloud.create("t", subnet, [group], MINE, Kind.ADDRESS_4, 1, WARM))
        assert error.trouble is Trouble.INVALID
    nic = await creating.create("far", subnet="far")
    creating.forward()
    assert (await refused(cloud.attach(nic.id, creating.machine, 1, WARM))).trouble is Trouble.INVALID


async def test_a_subnet_without_ipv6_has_none(world: World) -> None:
    nic = await world.attached("small", "i-small")
    error = await refused(world.cloud.assign("t", nic.id, Kind.ADDRESS_6, 1, POD))
    assert error.trouble is world.setting.differs.get(Refusal.NO_FAMILY, Trouble.UNSUPPORTED)


async def test_an_old_machine_has_no_prefixes(world: World) -> None:
    held = world.account.machine(world.id("machine", "i-old")).type
    nic = await world.attached(machine="i-old")
    call: Callable[[], Awaitable[object]] = lambda: world.cloud.assign("t", nic.id, Kind.PREFIX_4, 1, POD)  # noqa: E731
    if held.prefixes:
        assert await call()
    else:
        error = await refused(call())
        assert error.trouble is world.setting.differs.get(Refusal.NO_PREFIXES, Trouble.UNSUPPORTED)
