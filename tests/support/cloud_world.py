"""A cluster in memory on a virtual cloud: machines, agents with pods, ledgers, and a steward that can be killed and replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Literal

import msgspec

from tidegate.crds.ipam import CloudChoice, CloudPool, Provider
from tidegate.crds.node_state import CloudReceipt, NodeCloud
from tidegate.ipam.budget import Budget, OwnStore
from tidegate.ipam.ledger import CLUSTER_TAG, items
from tidegate.ipam.scene import NodeFacts
from tidegate.ipam.steward import Steward, Stopped
from tidegate.ipam.sweep import GRACE_S, sweep
from tidegate.lab.clouds.direct import DirectCloud
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.records import Nic
from tidegate.lab.clouds.rules import RULES, TYPES, Rules
from tidegate.lab.clouds.vpc import VirtualCloud

EPOCH = 1_700_000_000.0
TYPE: Mapping[Provider, str] = {"alibaba": "ecs.g7.2xlarge", "aws": "m5.xlarge", "azure": "Standard_D4s_v5"}
Stage = Literal["before", "after"]


class Killed(BaseException):
    """The operator's process is killed at this moment."""


class Conflict(Exception):
    """Somebody else wrote the ledger."""


def shifted(cidr: str, number: int) -> str:
    """Return the range of the subnet of a number: far enough from the first one's."""
    first = ip_network(cidr)
    return f"{first.network_address + (number << (64 if first.version == 6 else 16))}/{first.prefixlen}"


def network(provider: Provider, number: int) -> str:
    """Return the id of a subnet."""
    return f"subnet-{provider}-{number}"


@dataclass
class Agent:
    """A node's agent, as far as addresses matter: it gives them to pods, and gives up only what none has or had a moment ago."""

    name: str
    instance: str
    clock: Callable[[], float]
    versions: tuple[int, ...] = (4,)
    cooldown_s: float = 30.0
    wanted: int = 0
    pods: dict[int, dict[int, str]] = field(default_factory=dict)
    resting: dict[str, float] = field(default_factory=dict)
    blocked: frozenset[str] = frozenset()
    ledger: NodeCloud = field(default_factory=lambda: NodeCloud(pool="p"))
    waits: dict[int, float] = field(default_factory=dict)
    waited: list[float] = field(default_factory=list)
    said: NodeFacts | None = None
    news: bool = True
    _number: int = 0
    _turn: int = 0

    def scale(self, pods: int) -> None:
        """Want so many pods; those that go leave their addresses to rest."""
        self.wanted, self.news = pods, True
        now = self.clock()
        for number in sorted(self.pods)[pods:] if len(self.pods) > pods else []:
            for address in self.pods.pop(number).values():
                self.resting[address] = now + self.cooldown_s
        for number in list(self.waits)[: max(len(self.waits) + len(self.pods) - pods, 0)]:
            del self.waits[number]
        while len(self.pods) + len(self.waits) < pods:
            self._number += 1
            self.waits[self._number] = now
        self.serve()

    def order(self, ledger: NodeCloud) -> None:
        """Hear of a ledger: block what is to be released and free, and nothing else."""
        self.ledger, self.news = ledger, True
        busy = self.busy()
        self.blocked = frozenset(item for item in ledger.releasing if not busy.intersection(addresses(item)))
        self.serve()

    def busy(self) -> set[str]:
        """Return the addresses that pods have or that rest."""
        now = self.clock()
        self.resting = {address: until for address, until in self.resting.items() if until > now}
        return {address for pod in self.pods.values() for address in pod.values()} | self.resting.keys()

    def usable(self, version: int) -> Iterator[str]:
        """Yield the addresses that the ledger gives pods."""
        for interface in self.ledger.interfaces:
            if interface.state == "InUse":
                for item in items(interface):
                    if item not in self.blocked and (":" in item) == (version == 6):
                        yield from addresses(item)

    def serve(self) -> None:
        """Give waiting pods what is free."""
        if not self.waits:
            return
        busy = self.busy()
        free = {}
        for version in self.versions:
            usable = list(self.usable(version))
            # Round and round, so that what is used lies anywhere.
            turn = self._turn % max(len(usable), 1)
            free[version] = [each for each in usable[turn:] + usable[:turn] if each not in busy]
        for number in list(self.waits):
            if not all(free[version] for version in self.versions):
                break
            self.pods[number] = {version: free[version].pop(0) for version in self.versions}
            self.waited.append(self.clock() - self.waits.pop(number))
            self._turn += 1

    def receipt(self) -> CloudReceipt:
        """Return what the node reports."""
        busy = self.busy()
        return CloudReceipt(
            used4=sum(":" not in each for each in busy),
            used6=sum(":" in each for each in busy),
            waiting=len(self.waits),
            round=self.ledger.round,
            surrendered=tuple(item for item in self.ledger.releasing if item in self.blocked),
            refused=tuple(item for item in self.ledger.releasing if item not in self.blocked),
        )


def addresses(item: str) -> list[str]:
    """Return the addresses of an item; of an IPv6 prefix as many as any test needs."""
    if "/" not in item:
        return [item]
    first = ip_network(item).network_address
    return [str(first + number) for number in range(16 if first.version == 4 else 64)]


class World:
    """All of it. `at(stage, what)` is called before and after every call of the cloud and every write of a ledger.

    Agents hear of a ledger `order_s` seconds after it was written, and the steward of what they say `receipt_s` later.
    """

    def __init__(
        self,
        provider: Provider,
        clock: Callable[[], float],
        pool: CloudPool | None = None,
        rules: Rules | None = None,
        cidrs: tuple[str, ...] = ("10.0.0.0/22", "2001:db8::/64"),
        type: str = "",
        subnets: int = 1,
        pick: Callable[[int], int] | None = None,
        cluster: str = "c",
        beside: World | None = None,
        order_s: float = 0.0,
        receipt_s: float = 0.0,
    ) -> None:
        self.provider: Provider = provider
        self.clock = clock
        self.rules = rules or RULES[provider]
        self.type = type or TYPE[provider]
        ids = tuple(network(provider, number) for number in range(subnets))
        chosen = CloudChoice() if provider == "azure" else CloudChoice(ids=ids)
        self.pool = pool or CloudPool(provider=provider, subnets=chosen)
        self.cluster = cluster
        self.order_s, self.receipt_s = order_s, receipt_s
        self.home = ids[0]
        self._begin()
        if beside:
            # Another cluster in the same account, network and budget.
            self.cloud, self._store = beside.cloud, beside._store
            return
        self.cloud = VirtualCloud(self.rules, clock, pick)
        self.cloud.add_types(TYPES[provider])
        for number, id in enumerate(ids):
            self.cloud.add_subnet(id, "vpc", "a", [shifted(each, number) for each in cidrs], {"role": "pods"})
        self.cloud.add_group("sg", "vpc")
        self.cloud.gate.witness = self._witness

    def _begin(self) -> None:
        self.checks = self.patience = True
        self.humans = False
        self.agents: dict[str, Agent] = {}
        self.leaving: set[str] = set()
        self.ledgers: dict[str, NodeCloud] = {}
        self.writes = 0
        self.refused_calls = 0
        self.at: Callable[[Stage, str], None] = lambda stage, what: None
        self.steward: Steward | None = None
        self.budget: Budget | None = None
        self._work: asyncio.Task[None] | None = None
        self._store = OwnStore()
        self._terms = 0

    def _witness(self, stage: Stage, call: Call) -> None:
        if stage == "after" and self.checks and not self.humans:
            self.check_use()
        self.at(stage, call.action)

    def launch(self, name: str, pods: int = 0) -> None:
        """Add a node on a machine of its own."""
        self._terms += 1
        instance = f"i-{self.cluster}-{name}-{self._terms}"
        self.cloud.launch(instance, self.type, self.home, ["sg"])
        self.agents[name] = Agent(name, instance, self.clock, self.pool.versions, self.pool.cooldownSeconds)
        # The ledger of a former machine of this name is none of the new one's.
        self.leaving.discard(name)
        self.ledgers.setdefault(name, NodeCloud(pool="p"))
        self.agents[name].scale(pods)

    def delete(self, name: str) -> None:
        """Delete a node with its machine."""
        agent = self.agents.pop(name)
        self.cloud.end(agent.instance)
        self.leaving.add(name)

    def scale(self, name: str, pods: int) -> None:
        """Change how many pods a node has."""
        self.agents[name].scale(pods)

    def start(self) -> None:
        """Let a steward begin, as whoever has the lease now does."""
        term = self._terms = self._terms + 1
        world = self

        class Ledgers:
            async def write(self, node: str, ledger: NodeCloud) -> None:
                if world._terms_alive != term:
                    raise Conflict(node)
                world.at("before", "write")
                await asyncio.sleep(0.01)
                # As it would come back from the API server.
                world.ledgers[node] = msgspec.json.decode(msgspec.json.encode(ledger), type=NodeCloud)
                world.writes += 1
                if world.checks:
                    world.check_owners()
                if (agent := world.agents.get(node)) and ledger.instance in ("", agent.instance):
                    asyncio.get_running_loop().call_later(world.order_s, agent.order, ledger)
                world.at("after", "write")
                await asyncio.sleep(0.01)

        self._terms_alive = term
        self.budget = Budget(self.provider, f"{self.cluster}-{term}", self._store, self.clock)
        cloud = DirectCloud(self.cloud, {CLUSTER_TAG: self.cluster}, self.budget)
        self.steward = Steward(self.cluster, self.pool, cloud, Ledgers(), self.budget, self.clock)
        self._work = asyncio.ensure_future(self._run(self.steward, self.budget))

    async def _run(self, steward: Steward, budget: Budget) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(steward.run())
            tasks.create_task(budget.run())
            tasks.create_task(self._news(steward))

    async def _news(self, steward: Steward) -> None:
        while True:
            self.tell()
            await asyncio.sleep(1.0)

    def tell(self) -> None:
        """Tell the steward how the nodes are now."""
        assert self.steward is not None
        facts = {}
        for name, agent in self.agents.items():
            if agent.news or agent.resting or agent.waits or agent.said is None:
                agent.serve()
                ours = self.ledgers[name].instance in ("", agent.instance)
                receipt = agent.receipt() if ours else CloudReceipt(waiting=len(agent.waits))
                agent.said, agent.news = NodeFacts(name, agent.instance, receipt), not ours
            facts[name] = agent.said
        for name in list(self.leaving):
            ledger = self.ledgers[name]
            if ledger.interfaces or ledger.intents or ledger.instance:
                facts[name] = NodeFacts(name, "", CloudReceipt(), wanted=False)
            else:
                # The operator deletes the NodeState whose ledger is empty.
                self.leaving.discard(name)
                del self.ledgers[name]
        steward = self.steward

        def arrive() -> None:
            # A NodeState that was deleted meanwhile has no news.
            steward.update({name: fact for name, fact in facts.items() if name in self.ledgers}, self.ledgers)

        if self.receipt_s:
            asyncio.get_running_loop().call_later(self.receipt_s, arrive)
        else:
            arrive()

    @property
    def dead(self) -> bool:
        """Whether the steward ended."""
        return self._work is None or self._work.done()

    async def bury(self) -> None:
        """Make an end of the steward, whatever it is doing. Raises what it ended with, unless it was killed or replaced."""
        assert self._work is not None
        self._terms_alive = -1
        self._work.cancel()
        try:
            with suppress(asyncio.CancelledError):
                await self._work
        except BaseExceptionGroup as ended:
            if not _is_end(ended):
                raise

    def check_owners(self) -> None:
        """No item is in two ledgers, and no address has two pods."""
        seen: dict[str, str] = {}
        for name, ledger in self.ledgers.items():
            for interface in ledger.interfaces:
                for item in items(interface):
                    assert seen.setdefault(item, name) == name, f"{item} is in the ledgers of {seen[item]} and {name}"
        if self.humans:
            # A pod may have been given what was taken from its node by hand a moment before.
            return
        pods: dict[str, str] = {}
        for name, agent in self.agents.items():
            for pod in agent.pods.values():
                for address in pod.values():
                    assert address not in pods, f"{address} has two owners: {pods[address]} and {name}"
                    pods[address] = name

    def check_use(self) -> None:
        """Every address that a pod has is on an attached interface of its node's machine."""
        on: dict[str, set[str]] = {}
        for nic in self.cloud.nics.values():
            if nic.instance:
                on.setdefault(nic.instance, set()).update(each for item in nic.items for each in addresses(item))
        for agent in self.agents.values():
            for pod in agent.pods.values():
                for address in pod.values():
                    assert address in on.get(agent.instance, ()), f"{address} was taken from a pod of {agent.name}"

    def ours(self) -> list[Nic]:
        """Return the interfaces of the cloud that are ours, or have items of ours."""
        return [nic for nic in self.cloud.nics.values() if not nic.native or nic.items]

    def check_leaks(self) -> None:
        """The ledgers name exactly what the cloud has of ours."""
        held = {each.id: set(items(each)) for ledger in self.ledgers.values() for each in ledger.interfaces}
        there = {nic.id: set(nic.items) for nic in self.ours()}
        named = {id: here for id, here in held.items() if here or id in there}
        assert there == named, f"there and not named, or named and not there: {_difference(there, named)}"
        if self.rules.abilities.creates_interfaces:
            assert there.keys() == held.keys()
            found = DirectCloud(self.cloud, {CLUSTER_TAG: self.cluster}, _NoPace())
            shown = [_interface(nic, found) for nic in self.cloud.nics.values() if not nic.native]
            first = sweep(self.cluster, shown, self.ledgers.values(), {}, self.clock())
            last = sweep(self.cluster, shown, self.ledgers.values(), first.since, self.clock() + GRACE_S)
            assert not last.lost
            assert not last.odd

    def edited(self) -> None:
        """Let the steward hear that the pool is another one now."""
        assert self.steward is not None
        self.tell()
        self.steward.update(self.steward.facts, self.ledgers, self.pool)

    def calm(self) -> bool:
        """Tell whether nothing is under way, except that pods may wait for what cannot be had."""
        waits, self.patience = self.patience, False
        try:
            return self.idle()
        finally:
            self.patience = waits

    def idle(self) -> bool:
        """Tell whether nothing is under way: no intent, nothing half-way or in doubt, nobody waits or is leaving."""
        steady = all(
            not ledger.intents and not ledger.releasing and all(each.state == "InUse" for each in ledger.interfaces)
            for ledger in self.ledgers.values()
        )
        if self.dead or self.steward is None:
            return False
        sure = all(view.memory.looked >= view.memory.doubted for view in self.steward.nodes.values())
        return steady and sure and not self.leaving and not (self.patience and any(agent.waits for agent in self.agents.values()))

    async def until(self, holds: Callable[[], bool], most_s: float = 3600.0) -> None:
        """Wait until something holds, replacing the steward whenever it was killed."""
        end = self.clock() + most_s
        while not holds():
            assert self.clock() < end, f"not within {most_s} s: {self.state()}"
            if self.dead:
                await self.replace()
            await asyncio.sleep(0.5)

    async def replace(self) -> None:
        """Let a successor take over."""
        await self.bury()
        await asyncio.sleep(1.0)
        self.start()

    def state(self) -> str:
        """Return what is, for a person who reads a failure."""
        assert self.steward is not None
        lines = []
        for name in self.ledgers.keys() & self.steward.nodes.keys():
            receipt = self.agents[name].receipt() if name in self.agents else "gone"
            lines.append(f"{name}: {self.steward.why(name)!r} {self.ledgers[name]} {receipt}")
        return "\n".join(lines)


def _is_end(error: BaseException) -> bool:
    """Tell whether a steward was killed or had a successor, and nothing else happened."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_end(each) for each in error.exceptions)
    return isinstance(error, Killed | Conflict | Stopped)


def _difference(there: Mapping[str, set[str]], named: Mapping[str, set[str]]) -> list[tuple[str, set[str], set[str]]]:
    ids = there.keys() | named.keys()
    pairs = [(id, there.get(id, set()), named.get(id, set())) for id in sorted(ids)]
    return [(id, here - said, said - here) for id, here, said in pairs if here != said or (id in there) != (id in named)]


class _NoPace:
    async def wait(self, verb: object, purpose: object) -> None:
        """Return at once."""

    def throttled(self, verb: object, retry_s: float) -> None:
        """Hear nothing."""


def _interface(nic: Nic, cloud: DirectCloud) -> object:
    from tidegate.lab.clouds.direct import interface_of

    return interface_of(nic, cloud.cloud.rules.named)
