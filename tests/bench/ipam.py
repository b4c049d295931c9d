"""Measure cloud IPAM on virtual time, under the providers' documented limits: how long pods wait, and how many calls it takes.

    python tests/bench/ipam.py [--nodes 1000] [--pods 30] [--json FILE]

Needs nothing but Python: the clouds are in memory, and the clock jumps. Nothing passes or fails here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import virtual_time
from cloud_world import EPOCH, World, network

from tidegate.crds.ipam import CloudChoice, CloudPool, Provider
from tidegate.ipam.cloud import Kind, Verb
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.refusals import Refusal, Refused
from tidegate.lab.clouds.rules import CHANGING, Rules
from tidegate.lab.clouds.vpc import VirtualCloud

Result = TypeVar("Result")
PROVIDERS: Sequence[Provider] = ("alibaba", "aws", "azure")
PRE_ALLOCATE = 8


def world(provider: Provider) -> World:
    """A cluster that has room for all."""
    loop = asyncio.get_running_loop()
    subnets = CloudChoice() if provider == "azure" else CloudChoice(ids=(network(provider, 0),))
    pool = CloudPool(provider=provider, subnets=subnets, preAllocate=PRE_ALLOCATE)
    made = World(provider, lambda: EPOCH + loop.time(), pool, cidrs=("10.0.0.0/15",))
    # With a thousand nodes they take most of the time; the tests have them, and the end of each run.
    made.checks = False
    return made


def least(rules: Rules, limits: Any, addresses: int) -> Counter[Verb]:
    """Return the fewest changing calls that can bring a node so many addresses."""
    most = rules.abilities.most
    calls: Counter[Verb] = Counter()
    if not rules.abilities.creates_interfaces:
        calls[Verb.ASSIGN] = -(-addresses // most)
        return calls
    each = limits.ipv4 - 1
    while addresses > 0:
        part = min(each, addresses)
        calls[Verb.CREATE] += 1
        calls[Verb.ATTACH] += 1
        calls[Verb.ASSIGN] += -(-max(part - most, 0) // most)
        addresses -= part
    return calls


def bound_s(rules: Rules, calls: Mapping[Verb, int]) -> float:
    """Return how long, in seconds, the provider's buckets need for so many calls, however clever one is."""
    spent: Counter[str] = Counter()
    for verb, count in calls.items():
        spent[rules.shares.get(verb.value, verb.value)] += count
    return max(max(count - rules.limits[name].size, 0) / rules.limits[name].per_s for name, count in spent.items())


def percentile(values: Sequence[float], part: float) -> float:
    """Return a percentile by the nearest rank."""
    ordered = sorted(values)
    return ordered[min(int(part * len(ordered)), len(ordered) - 1)]


async def burst(provider: Provider, nodes: int, pods: int) -> dict[str, Any]:
    """All nodes come up at once, each with its pods waiting."""
    loop = asyncio.get_running_loop()
    made = world(provider)
    for number in range(nodes):
        made.launch(f"n{number}", pods)
    made.start()
    await made.until(made.idle, 6 * 3600)
    done = loop.time()
    # Until the warm pools are full too.
    await asyncio.sleep(120)
    await made.until(made.idle, 6 * 3600)
    made.check_owners()
    made.check_use()
    made.check_leaks()
    waits = [each for agent in made.agents.values() for each in agent.waited]
    calls = made.cloud.gate.counted()
    fewest = least(made.rules, made.cloud.types[made.type], pods + PRE_ALLOCATE)
    whole = Counter({verb: count * nodes for verb, count in fewest.items()})
    # One look at least tells what is attached.
    pages = -(-whole[Verb.CREATE] // made.rules.page) if whole[Verb.CREATE] else nodes
    minimum = sum(whole.values()) + pages
    before = sum(calls.values())
    began = loop.time()
    await asyncio.sleep(3600)
    steady = (sum(made.cloud.gate.counted().values()) - before) / (loop.time() - began) * 60
    await made.bury()
    return {
        "provider": provider,
        "nodes": nodes,
        "pods": nodes * pods,
        "p50_s": percentile(waits, 0.5),
        "p99_s": percentile(waits, 0.99),
        "bound_s": bound_s(made.rules, whole),
        "done_s": done,
        "calls": sum(calls.values()),
        "least": minimum,
        "calls_by_least": sum(calls.values()) / minimum,
        "changing": sum(count for verb, count in calls.items() if verb in CHANGING),
        "describes": calls[Verb.DESCRIBE],
        "throttled": sum(made.cloud.gate.throttled.values()),
        "steady_calls_a_minute": steady,
    }


class SimpleNode:
    """What an allocator on each node by itself does: ask, and when it is throttled, ask again later, each time twice as late."""

    def __init__(self, cloud: VirtualCloud, instance: str, subnet: str, chance: random.Random) -> None:
        self.cloud, self.instance, self.subnet, self.chance = cloud, instance, subnet, chance
        self.kind = cloud.machine(instance).type

    async def call(self, verb: Verb, effect: Callable[[], Result]) -> Result:
        """Make one call until it is not throttled: pauses double from one second to a minute, with jitter."""
        pause = 1.0
        while True:
            await asyncio.sleep(self.cloud.rules.latency_s)
            try:
                return self.cloud.gate.serve(Call(verb, verb.value, self.instance), effect)
            except Refused as refused:
                if refused.why is not Refusal.THROTTLED:
                    raise
            await asyncio.sleep(pause * self.chance.uniform(0.5, 1.0))
            pause = min(pause * 2, 60.0)

    async def run(self, pods: int) -> list[float]:
        """Get addresses for the pods, and return when each had its own (seconds)."""
        loop = asyncio.get_running_loop()
        served: list[float] = []
        most = self.cloud.rules.abilities.most
        native = next(id for id in self.cloud.machine(self.instance).interfaces.values())
        while len(served) < pods:
            room = min(pods - len(served), self.kind.ipv4 - 1)
            nic = native
            first = 0
            if self.cloud.rules.abilities.creates_interfaces:
                first = min(room, most)
                made = await self.call(
                    Verb.CREATE, lambda count=first: self.cloud.create("", self.subnet, ["sg"], {}, Kind.ADDRESS_4, count)
                )
                nic = made.id
                await self._until(nic, "Available")
                await self.call(Verb.ATTACH, lambda id=nic: self.cloud.attach(id, self.instance))
                await self._until(nic, "InUse")
                served += [loop.time()] * first
            while first < room:
                count = min(most, room - first)
                await self.call(Verb.ASSIGN, lambda id=nic, count=count: self.cloud.assign(id, Kind.ADDRESS_4, count))
                served += [loop.time()] * count
                first += count
        return served

    async def _until(self, nic: str, state: str) -> None:
        while True:
            if await self.call(Verb.DESCRIBE, lambda: self.cloud.nic(nic).state) == state:
                return
            await asyncio.sleep(1.0)


async def simple(provider: Provider, nodes: int, pods: int) -> dict[str, Any]:
    """The same burst by allocators on each node."""
    made = world(provider)
    chance = random.Random(1)
    for number in range(nodes):
        made.launch(f"n{number}")
    workers = [SimpleNode(made.cloud, agent.instance, made.home, chance) for agent in made.agents.values()]
    waits = [each for found in await asyncio.gather(*(worker.run(pods) for worker in workers)) for each in found]
    return {
        "provider": provider,
        "nodes": nodes,
        "pods": nodes * pods,
        "p50_s": percentile(waits, 0.5),
        "p99_s": percentile(waits, 0.99),
        "calls": sum(made.cloud.gate.counted().values()),
        "throttled": sum(made.cloud.gate.throttled.values()),
    }


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in columns]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--nodes", type=int, default=1000)
    options.add_argument("--pods", type=int, default=30)
    options.add_argument("--provider", choices=PROVIDERS, action="append")
    options.add_argument("--json", type=Path)
    asked = options.parse_args()
    chosen = asked.provider or PROVIDERS
    begin = time.monotonic()
    large, side = [], []
    for provider in chosen:
        large.append(virtual_time.run(burst(provider, asked.nodes, asked.pods)))
        print(f"{provider}: {time.monotonic() - begin:.0f} s", file=sys.stderr)
    for provider in chosen:
        side.append({"allocator": "tidegate", **virtual_time.run(burst(provider, 150, asked.pods))})
        side.append({"allocator": "a node by itself", **virtual_time.run(simple(provider, 150, asked.pods))})
    columns = ["provider", "nodes", "pods", "p50_s", "p99_s", "bound_s", "calls", "least", "calls_by_least", "throttled"]
    print(table(large, [*columns, "steady_calls_a_minute"]))
    print()
    print(table(side, ["allocator", "provider", "nodes", "p50_s", "p99_s", "calls", "throttled"]))
    print(f"\n{time.monotonic() - begin:.0f} s of real time")
    if asked.json:
        asked.json.write_text(json.dumps({"burst": large, "beside": side}, indent=1) + "\n")


if __name__ == "__main__":
    main()
