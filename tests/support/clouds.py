"""Clouds to test against: a virtual account with something in it, and every way there is to reach it by the protocol."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from tidegate.ipam.cloud import Cloud, Interface, Kind, Purpose, Trouble, Verb
from tidegate.ipam.clouds.alibaba import Alibaba
from tidegate.lab.clouds import alibaba as alibaba_front
from tidegate.lab.clouds.direct import DirectCloud
from tidegate.lab.clouds.refusals import Refusal
from tidegate.lab.clouds.rules import RULES, TYPES, Provider
from tidegate.lab.clouds.server import Server
from tidegate.lab.clouds.vpc import VirtualCloud

MINE = {"tidegate.io/cluster": "one"}
NETWORK, ZONE = "vpc-1", "zone-1"
KEY, SECRET = "AKEXAMPLE", "s3cret-of-the-account"


class Clock:
    """Real time that a test may put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def forward(self, seconds: float) -> None:
        self._ahead += seconds


@dataclass
class Heard:
    """A pace that lets everything through and remembers what it was asked and told."""

    waits: list[tuple[Verb, Purpose]] = field(default_factory=list)
    throttles: list[tuple[Verb, float]] = field(default_factory=list)

    async def wait(self, verb: Verb, purpose: Purpose) -> None:
        self.waits.append((verb, purpose))

    def throttled(self, verb: Verb, retry_s: float) -> None:
        self.throttles.append((verb, retry_s))


Opener = Callable[[VirtualCloud, Heard, str], AbstractAsyncContextManager[Cloud]]


@dataclass(frozen=True)
class Setting:
    """A way to reach a virtual account: `open(account, pace, secret)`.

    `name_of` makes ids of a provider's own form out of ours (a kind of thing, a name). `signed`: requests carry a time and a
    signature. `differs` declares what the provider's codes cannot tell apart.
    """

    provider: Provider
    open: Opener
    name_of: Callable[[str, str], str] = lambda _what, name: name
    signed: bool = False
    differs: Mapping[Refusal, Trouble] = field(default_factory=dict)


@asynccontextmanager
async def _direct(account: VirtualCloud, pace: Heard, _secret: str) -> AsyncIterator[Cloud]:
    yield DirectCloud(account, MINE, pace)


@asynccontextmanager
async def _alibaba(account: VirtualCloud, pace: Heard, secret: str) -> AsyncIterator[Cloud]:
    server = Server(alibaba_front.Alibaba(account, "cn-hangzhou", {KEY: SECRET}))
    keys = {"accessKeyID": KEY, "secretAccessKey": secret}
    cloud = await Alibaba.open("cn-hangzhou", MINE, pace, keys, await server.start())
    try:
        yield cloud
    finally:
        await cloud.close()
        await server.stop()


SETTINGS: Mapping[str, Setting] = {
    "direct-alibaba": Setting("alibaba", _direct),
    "direct-aws": Setting("aws", _direct),
    "direct-azure": Setting("azure", _direct),
    "alibaba": Setting("alibaba", _alibaba, signed=True),
}
"""By name. Whoever adds a wire adds a line here, and all facts of tests/ipam/test_clouds.py hold for it."""


@dataclass
class World:
    """One account with subnets, groups and machines, and the cloud under test that reaches it."""

    setting: Setting
    account: VirtualCloud
    cloud: Cloud
    clock: Clock
    pace: Heard

    def id(self, what: str, name: str) -> str:
        return self.setting.name_of(what, name)

    @property
    def machine(self) -> str:
        return self.id("machine", "i-1")

    @property
    def creates(self) -> bool:
        return self.account.rules.abilities.creates_interfaces

    async def create(self, token: str = "token", kind: Kind = Kind.ADDRESS_4, count: int = 0, subnet: str = "large") -> Interface:
        return await self.cloud.create(
            token, self.id("subnet", subnet), [self.id("group", "sg")], {**MINE, "node": "n"}, kind, count, Purpose.WARM_POOL
        )

    async def attached(self, subnet: str = "large", machine: str = "i-1") -> Interface:
        """Return an interface of a machine: a new one, or where none can be made the machine's own."""
        there = self.id("machine", machine)
        if self.creates:
            made = await self.create(f"token-{subnet}-{machine}", subnet=subnet)
            self.forward()
            await self.cloud.attach(made.id, there, 1, Purpose.WARM_POOL)
            self.forward()
            return await self.see(made.id)
        [found] = await self.cloud.interfaces([there], Purpose.LOOKING)
        return found

    async def see(self, interface: str) -> Interface:
        [found] = [each for each in await self.ours() if each.id == interface]
        return found

    async def ours(self) -> list[Interface]:
        machines = [self.id("machine", name) for name in ("i-1", "i-2", "i-old", "i-small")]
        return list(await self.cloud.interfaces(machines, Purpose.LOOKING))

    def forward(self, seconds: float = 60.0) -> None:
        """Let time pass, so that what is under way is done and seen."""
        self.clock.forward(seconds)
        self.account.settle()


@asynccontextmanager
async def world(name: str, *, secret: str = SECRET, **rules: Any) -> AsyncIterator[World]:
    """Open a setting; `rules` replace those of the provider. No request takes longer than it must."""
    setting = SETTINGS[name]
    clock = Clock()
    quick = {"latency_s": 0.0, "change_s": 0.0, **rules}
    account = VirtualCloud(replace(RULES[setting.provider], **quick), clock)

    def id(what: str, name: str) -> str:
        return setting.name_of(what, name)

    account.add_types(TYPES[setting.provider])
    types = list(TYPES[setting.provider])
    sg = [id("group", "sg")]
    account.add_subnet(id("subnet", "large"), NETWORK, ZONE, ["10.64.0.0/16", "2001:db8:0:1::/64"], {"pods": "yes"})
    account.add_subnet(id("subnet", "small"), NETWORK, ZONE, ["10.65.0.0/27"])
    account.add_subnet(id("subnet", "far"), NETWORK, "zone-2", ["10.66.0.0/24"])
    account.add_group(sg[0], NETWORK, {"pods": "yes"})
    account.add_group(id("group", "sg-other"), "vpc-2")
    account.launch(id("machine", "i-1"), types[0], id("subnet", "large"), sg)
    account.launch(id("machine", "i-2"), types[1], id("subnet", "large"), sg)
    account.launch(id("machine", "i-old"), types[-1], id("subnet", "large"), sg)
    account.launch(id("machine", "i-small"), types[0], id("subnet", "small"), sg)
    pace = Heard()
    async with setting.open(account, pace, secret) as cloud:
        yield World(setting, account, cloud, clock, pace)
