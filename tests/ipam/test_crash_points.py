"""The operator is killed before and after every call and every write of a run; whoever comes after it loses nothing.

The run scales up, scales down and deletes nodes. Points are enumerated: one run for each of them, killed exactly there. With
TIDEGATE_LONG set there are more ways to go through it (families, prefixes, late looks), and successors are killed as well.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import virtual_time
from cloud_world import EPOCH, Killed, Stage, World, network

from tidegate.crds.ipam import CloudChoice, CloudPool, Provider
from tidegate.ipam.ledger import summary
from tidegate.lab.clouds.rules import RULES

LONG = bool(os.environ.get("TIDEGATE_LONG"))


@dataclass(frozen=True)
class Way:
    """How a run goes: with prefixes, both families, and for how long (seconds) looks show what was before."""

    provider: Provider
    prefixes: bool = False
    dual: bool = False
    seen_s: float = 0.0

    def __str__(self) -> str:
        return "-".join(
            [self.provider, *(["prefixes"] if self.prefixes else []), *(["dual"] if self.dual else []), f"{self.seen_s:g}s"]
        )


PROVIDERS: tuple[Provider, ...] = ("alibaba", "aws", "azure")
WAYS = [
    Way("alibaba"),
    Way("aws", seen_s=1.0),
    Way("azure"),
    Way("alibaba", prefixes=True, dual=True, seen_s=5.0),
]
LONG_WAYS = [
    Way(provider, prefixes, dual, seen)
    for provider in PROVIDERS
    for prefixes in (False, True)
    for dual in (False, True)
    for seen in (0.0, 5.0)
]


def world(way: Way) -> World:
    loop = asyncio.get_running_loop()
    pool = CloudPool(
        provider=way.provider,
        subnets=CloudChoice() if way.provider == "azure" else CloudChoice(ids=(network(way.provider, 0),)),
        families=("IPv4", "IPv6") if way.dual else (),
        addresses="Prefix" if way.prefixes else "Single",
        preAllocate=2,
        cooldownSeconds=5,
    )
    rules = replace(RULES[way.provider], seen_s=way.seen_s)
    # What one gives back, the next gets; and agents take their time.
    return World(way.provider, lambda: EPOCH + loop.time(), pool, rules, pick=lambda n: 0, order_s=0.2, receipt_s=0.3)


async def story(world: World) -> None:
    """Scale up, down, and delete nodes, one of them while it is being given more; all there is to lose is there at some time."""
    world.launch("n0", 3)
    world.launch("n1", 2)
    world.start()
    await world.until(world.idle)
    world.check_leaks()
    world.scale("n0", 20)
    world.launch("n2", 1)
    await world.until(world.idle)
    world.scale("n0", 1)
    await asyncio.sleep(1.0)
    world.scale("n1", 12)
    await asyncio.sleep(0.7)
    world.delete("n1")
    await world.until(lambda: world.idle() and held(world, "n0") <= 20)
    world.check_leaks()
    world.delete("n0")
    world.delete("n2")
    await world.until(world.idle)
    world.check_leaks()
    assert world.ours() == []
    await world.bury()


def held(world: World, name: str) -> int:
    """Return how many IPv4 addresses a node has."""
    return summary(world.ledgers[name], 4)


class Reaper:
    """Kills at the given points, counted over the whole run; `points` says afterwards how many there were."""

    def __init__(self, *deaths: int) -> None:
        self.deaths = set(deaths)
        self.points = 0

    def __call__(self, stage: Stage, what: str) -> None:
        self.points += 1
        if self.points in self.deaths:
            raise Killed(f"{stage} {what}")


async def live(way: Way, *deaths: int) -> int:
    """Live through the story with these deaths; returns how many points it had."""
    there = world(way)
    reaper = Reaper(*deaths)
    there.at = reaper
    await story(there)
    return reaper.points


def share(points: int, parts: int, part: int) -> Iterator[int]:
    """Yield every point that belongs to a part."""
    yield from range(1 + part, points + 1, parts)


PARTS = 4


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_point(way: Way, part: int) -> None:
    """Nothing is leaked, has two owners, or is taken from a pod, wherever the operator dies."""
    points = virtual_time.run(live(way))
    assert points > 90
    for point in share(points, PARTS, part):
        try:
            virtual_time.run(live(way, point))
        except BaseException as error:
            error.add_note(f"killed at point {point} of {way}")
            raise


@pytest.mark.skipif(not LONG, reason="ten thousand points take long: set TIDEGATE_LONG=1")
@pytest.mark.parametrize("gap", [0, 3, 20])
@pytest.mark.parametrize("way", LONG_WAYS, ids=str)
def test_every_point_and_the_successor_dies_too(way: Way, gap: int) -> None:
    """The same, and the successor is killed so many points later; 0: it is not."""
    points = virtual_time.run(live(way))
    for point in range(1, points + 1):
        try:
            virtual_time.run(live(way, point, point + gap))
        except BaseException as error:
            error.add_note(f"killed at points {point} and {point + gap} of {way}")
            raise
