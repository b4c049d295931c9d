"""The budget: by purpose, within the rate, shared without a moment of too much, and nobody starves."""

from __future__ import annotations

import asyncio

import virtual_time
from cloud_world import EPOCH, World
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ipam.budget import Budget, OwnStore
from tidegate.ipam.cloud import Purpose, Verb
from tidegate.ipam.limits import RATES, Rate
from tidegate.ipam.share import EXPIRY_S, FLOOR, Account, fair, renew

WANTS = st.lists(st.floats(0, 50), max_size=4)


@given(st.floats(0.1, 100), st.dictionaries(st.sampled_from("abcd"), WANTS, min_size=1))
def test_fair_parts_add_up_and_nobody_is_without(rate: float, wants: dict[str, list[float]]) -> None:
    """The whole rate is shared out, and each has at least its floor."""
    parts = fair(rate, wants)
    assert abs(sum(parts.values()) - rate) < 1e-6 * rate
    assert all(part >= rate * FLOOR / len(wants) - 1e-9 for part in parts.values())


@given(st.floats(1, 100), st.lists(st.floats(0, 100), min_size=2, max_size=5))
def test_one_who_wants_little_gets_it(rate: float, wants: list[float]) -> None:
    """Nobody gets more than another who still wants something (max-min fairness), but for the rest that nobody wants."""
    parts = fair(rate, {str(number): [want] for number, want in enumerate(wants)})
    if sum(wants) >= rate:
        lacking = [parts[str(n)] for n, want in enumerate(wants) if parts[str(n)] < want - 1e-6]
        assert all(part <= least + rate * FLOOR + 1e-6 for least in lacking for part in parts.values())


def test_waiting_pods_of_one_go_before_warm_pools_of_another() -> None:
    """Purpose counts across holders."""
    parts = fair(10.0, {"warm": [0.0, 100.0], "pods": [8.0, 0.0]})
    assert parts["pods"] > 7.9
    assert parts["warm"] < 2.1


STEP = st.tuples(st.sampled_from("abc"), st.floats(0, 40), st.booleans(), st.floats(0.1, 45))


@given(st.lists(STEP, max_size=60))
def test_parts_never_exceed_the_rate(steps: list[tuple[str, float, bool, float]]) -> None:
    """Whoever renews when, dies, comes back or is throttled: what all have together is never more than the account's rate."""
    documented = {"create": Rate(10.0, 20)}
    account, now = Account(), 1000.0
    total = 0.0
    for name, want, throttled, passed in steps:
        now += passed
        account = renew(account, name, {"create": [want]}, {"create"} if throttled else (), documented, now)
        before, total = total, sum(holder.taken["create"] for holder in account.holders.values())
        # A rate that has just been cut shrinks the parts as their holders renew.
        assert total <= max(account.rates["create"], before) + 1e-9
        assert total <= 10.0 + 1e-9
        assert 0.2 <= account.rates["create"] <= 10.0


def test_a_dead_holder_leaves_its_part() -> None:
    """After its time the others have it all."""
    documented = {"create": Rate(10.0, 20)}
    account = renew(Account(), "dead", {"create": [50.0]}, (), documented, 0.0)
    account = renew(account, "b", {"create": [50.0]}, (), documented, 1.0)
    assert account.holders["b"].taken["create"] < 0.01
    account = renew(account, "b", {"create": [50.0]}, (), documented, EXPIRY_S + 1.0)
    assert account.holders["b"].taken["create"] == 10.0


def budget(store: OwnStore, name: str = "a") -> Budget:
    loop = asyncio.get_running_loop()
    return Budget("aws", name, store, lambda: EPOCH + loop.time())


def test_the_most_urgent_first() -> None:
    """With an empty bucket, what waits is served by purpose, and in the order of arrival within it."""

    async def go() -> list[str]:
        mine = budget(OwnStore())
        for _ in range(RATES["aws"]["create"].burst):
            await mine.wait(Verb.CREATE, Purpose.LOOKING)
        order: list[str] = []

        async def ask(purpose: Purpose, name: str) -> None:
            await mine.wait(Verb.CREATE, purpose)
            order.append(name)

        async with asyncio.TaskGroup() as tasks:
            for purpose, name in ((2, "clean"), (1, "warm"), (0, "pod 1"), (0, "pod 2")):
                tasks.create_task(ask(Purpose(purpose), name))
                await asyncio.sleep(0)
        return order

    assert virtual_time.run(go()) == ["pod 1", "pod 2", "warm", "clean"]


def test_a_permit_counts_once_and_comes_back_unused() -> None:
    """A request that was admitted passes without waiting again; one that was not made costs nothing."""

    async def go() -> int:
        mine = budget(OwnStore())
        async with mine.admit(Verb.CREATE, Purpose.WAITING_POD):
            await mine.wait(Verb.CREATE, Purpose.WAITING_POD)
        async with mine.admit(Verb.CREATE, Purpose.WAITING_POD):
            pass
        return mine.spent[Verb.CREATE]

    assert virtual_time.run(go()) == 1


async def spend(mine: Budget, times: list[float], purpose: Purpose, until: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        await mine.wait(Verb.CREATE, purpose)
        times.append(loop.time())


def most_within(times: list[float], window_s: float) -> int:
    """Return the most requests within any window."""
    ordered, first, most = sorted(times), 0, 0
    for last, time in enumerate(ordered):
        while ordered[first] < time - window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_two_holders_together_stay_within_the_rate_and_neither_starves() -> None:
    """Two that want everything, one of them coming later and less urgent."""

    async def go() -> tuple[list[float], list[float]]:
        store = OwnStore()
        one, other = budget(store, "one"), budget(store, "other")
        times: tuple[list[float], list[float]] = [], []
        async with asyncio.timeout(200), asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(one.run())]
            tasks.create_task(spend(one, times[0], Purpose.WAITING_POD, 120))
            await asyncio.sleep(20)
            runs.append(tasks.create_task(other.run()))
            tasks.create_task(spend(other, times[1], Purpose.WARM_POOL, 120))
            await asyncio.sleep(130)
            for run in runs:
                run.cancel()
        return times

    one, other = virtual_time.run(go())
    rate = RATES["aws"]["create"]
    for window in (1.0, 10.0, 60.0):
        assert most_within(one + other, window) <= rate.burst + rate.per_s * window + 2
    assert len(one) + len(other) > 0.9 * rate.per_s * 115
    late = [time for time in other if time > 40]
    # The less urgent one has its floor.
    assert len(late) >= 0.8 * FLOOR / 2 * rate.per_s * 80


def test_throttling_slows_down_at_once_and_is_forgotten() -> None:
    """A refusal pauses as long as the provider asks, cuts the rate, and the rate comes back."""

    async def go() -> tuple[float, float, float]:
        loop = asyncio.get_running_loop()
        store = OwnStore()
        mine = budget(store)
        keeper = asyncio.ensure_future(mine.run())
        await mine.wait(Verb.CREATE, Purpose.WAITING_POD)
        mine.throttled(Verb.CREATE, 4.0)
        await mine.wait(Verb.CREATE, Purpose.WAITING_POD)
        paused = loop.time()
        await asyncio.sleep(5)
        cut = store.account.rates["create"]
        await asyncio.sleep(60)
        keeper.cancel()
        return paused, cut, store.account.rates["create"]

    paused, cut, later = virtual_time.run(go())
    assert paused >= 4.0
    assert cut < 0.8 * RATES["aws"]["create"].per_s
    assert later == RATES["aws"]["create"].per_s


def test_without_renewal_nothing_is_spent() -> None:
    """Whoever cannot reach the common object stops before its part may be somebody else's."""

    async def go() -> int:
        mine = budget(OwnStore())
        await mine.renew()
        await asyncio.sleep(EXPIRY_S)
        task = asyncio.ensure_future(mine.wait(Verb.CREATE, Purpose.WAITING_POD))
        await asyncio.sleep(100)
        task.cancel()
        return mine.spent[Verb.CREATE]

    assert virtual_time.run(go()) == 0


def test_two_clusters_in_one_account() -> None:
    """Both come up beside each other, are never throttled, and are done at about the same time."""

    async def go() -> tuple[int, list[float]]:
        loop = asyncio.get_running_loop()
        one = World("aws", lambda: EPOCH + loop.time(), cidrs=("10.0.0.0/19",))
        two = World("aws", one.clock, cidrs=("10.0.0.0/19",), cluster="d", beside=one)
        for world in (one, two):
            for number in range(40):
                world.launch(f"n{number}", 20)
            world.start()
        done = []
        for world in (one, two):
            await world.until(world.idle)
            done.append(max(max(agent.waited) for agent in world.agents.values()))
            world.check_owners()
        for world in (one, two):
            await world.bury()
        return sum(one.cloud.gate.throttled.values()), done

    throttled, (first, second) = virtual_time.run(go())
    assert throttled == 0
    assert max(first, second) <= 3 * min(first, second)
