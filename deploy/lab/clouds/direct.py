"""The protocol `Cloud` straight on a virtual cloud, without a wire: for simulations on virtual time and enumerated crashes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from tidegate.ipam.cloud import CloudError, Instance, InstanceType, Interface, Kind, Pace, Purpose, Subnet, Trouble, Verb
from tidegate.ipam.clouds.kinds import FAMILY_4, kind_of
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.records import Nic
from tidegate.lab.clouds.refusals import TROUBLE, ConnectionDropped, Refusal, Refused
from tidegate.lab.clouds.vpc import VirtualCloud

Result = TypeVar("Result")
OURS = "tg-"
"""What the names of our own items begin with, where items have names (Azure)."""


def is_ours(nic: Nic, item: str, named: bool) -> bool:
    """Tell whether an item is for pods."""
    return not named or nic.items[item].startswith(OURS)


def interface_of(nic: Nic, named: bool) -> Interface:
    """Return an interface in the protocol's words."""
    ours = [item for item in nic.items if is_ours(nic, item, named)]
    others = [kind_of(item) in FAMILY_4 for item in nic.items if item not in ours]
    return Interface(
        id=nic.id,
        mac=nic.mac,
        subnet=nic.subnet,
        state=nic.state,
        instance=nic.instance,
        index=nic.index,
        primary=nic.primary,
        addresses=[item for item in ours if "/" not in item],
        prefixes=[item for item in ours if "/" in item],
        others={"4": sum(others), "6": len(others) - sum(others)} if others else {},
        groups=nic.groups,
        tags=nic.tags,
    )


class DirectCloud:
    """`Cloud` on a `VirtualCloud`; `tags` are the cluster's own, `sleep` passes the provider's latency."""

    def __init__(
        self, cloud: VirtualCloud, tags: Mapping[str, str], pace: Pace, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.cloud, self.tags, self.pace, self._sleep = cloud, tags, pace, sleep
        self.abilities = cloud.rules.abilities

    async def interfaces(self, instances: Sequence[str], purpose: Purpose) -> Sequence[Interface]:
        """Return ours, page by page; where they are not created, those of the instances, one request each."""
        if self.abilities.creates_interfaces:
            found = await self._pages("DescribeNetworkInterfaces", self._ours, purpose)
        else:
            found = []
            for instance in instances:
                found += await self._pages("DescribeNetworkInterfaces", partial(self._on, instance), purpose)
        return [interface_of(nic, self.cloud.rules.named) for nic in found]

    async def instances(self, ids: Sequence[str], purpose: Purpose) -> Mapping[str, Instance]:
        """Return the machines by id."""
        machines = await self._pages(
            "DescribeInstances",
            lambda: [self.cloud.machines[id] for id in sorted(set(ids)) if id in self.cloud.machines],
            purpose,
        )
        return {
            machine.id: Instance(
                id=machine.id,
                type=machine.type.name,
                zone=machine.zone,
                subnet=machine.subnet,
                groups=machine.groups,
                interfaces=len(machine.interfaces),
            )
            for machine in machines
        }

    async def types(self, names: Sequence[str], purpose: Purpose) -> Mapping[str, InstanceType]:
        """Return limits by name."""
        known = self.cloud.types
        types = await self._pages(
            "DescribeInstanceTypes", lambda: [known[name] for name in sorted(set(names)) if name in known], purpose
        )
        return {type.name: type for type in types}

    async def subnets(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Sequence[Subnet]:
        """Return those with one of the ids, or else with all of the tags."""
        nets = await self._pages(
            "DescribeVSwitches", lambda: [net for net in self.cloud.nets.values() if chosen(net.id, net.tags, ids, tags)], purpose
        )
        return [
            Subnet(id=net.id, network=net.network, zone=net.zone, cidrs=net.cidrs, free=net.spaces["4"].free, tags=net.tags)
            for net in nets
        ]

    async def groups(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Mapping[str, str]:
        """Return security groups by id, each with its network."""
        groups = await self._pages(
            "DescribeSecurityGroups",
            lambda: [group for group in self.cloud.groups.values() if chosen(group.id, group.tags, ids, tags)],
            purpose,
        )
        return {group.id: group.network for group in groups}

    async def create(
        self, token: str, subnet: str, groups: Sequence[str], tags: Mapping[str, str], kind: Kind, count: int, purpose: Purpose
    ) -> Interface:
        """Make an interface."""
        self._creates("create")
        self._has(kind)
        wishes = {**tags, **self.tags}
        nic = await self._call(
            Verb.CREATE,
            "CreateNetworkInterface",
            "",
            purpose,
            lambda: self.cloud.create(token, subnet, groups, wishes, kind, count).copy(),
        )
        return interface_of(nic, self.cloud.rules.named)

    async def attach(self, interface: str, instance: str, index: int, purpose: Purpose) -> None:
        """Begin to attach; one that is where it shall be, or on its way there, is no error."""
        self._creates("attach")

        def effect() -> None:
            nic = self.cloud.nic(interface)
            if nic.instance != instance or nic.state not in {"Attaching", "InUse"}:
                self.cloud.attach(interface, instance, index, True)

        await self._call(Verb.ATTACH, "AttachNetworkInterface", interface, purpose, effect)

    async def assign(self, token: str, interface: str, kind: Kind, count: int, purpose: Purpose) -> Sequence[str]:
        """Give the interface more."""
        self._has(kind)
        once = token if self.cloud.rules.assign_tokens else ""
        names = [f"{OURS}{token}-{number}" for number in range(count)] if self.cloud.rules.named else []
        return await self._call(
            Verb.ASSIGN, "Assign", interface, purpose, lambda: self.cloud.assign(interface, kind, count, names, once)
        )

    async def unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        """Take items away; what is not there any more is no error."""

        def effect() -> None:
            nic = self.cloud.nic(interface)
            here = [item for item in items if item in nic.items and is_ours(nic, item, self.cloud.rules.named)]
            self.cloud.unassign(interface, here)

        await self._call(Verb.UNASSIGN, "Unassign", interface, purpose, effect)

    async def detach(self, interface: str, instance: str, purpose: Purpose) -> None:
        """Begin to detach; one that is attached to nothing, or on its way there, is no error."""
        self._creates("detach")

        def effect() -> None:
            if self.cloud.nic(interface).state not in {"Available", "Detaching"}:
                self.cloud.detach(interface, instance)

        await self._call(Verb.DETACH, "DetachNetworkInterface", interface, purpose, effect)

    async def delete(self, interface: str, purpose: Purpose) -> None:
        """Delete an interface; one that is gone is no error."""
        self._creates("delete")
        try:
            await self._call(Verb.DELETE, "DeleteNetworkInterface", interface, purpose, lambda: self.cloud.delete(interface))
        except CloudError as error:
            if error.trouble is not Trouble.GONE:
                raise

    def _ours(self) -> Sequence[Nic]:
        return [nic for nic in self.cloud.seen() if self.tags.items() <= nic.tags.items()]

    def _on(self, instance: str) -> Sequence[Nic]:
        return [nic for nic in self.cloud.seen() if nic.instance == instance]

    def _creates(self, verb: str) -> None:
        if not self.abilities.creates_interfaces:
            raise CloudError(
                Trouble.UNSUPPORTED, Refusal.UNSUPPORTED.value, f"cannot {verb}: interfaces come with their machines"
            )

    def _has(self, kind: Kind) -> None:
        if kind not in self.abilities.kinds:
            raise CloudError(Trouble.UNSUPPORTED, Refusal.UNSUPPORTED.value, f"{kind.value} does not exist here")

    async def _pages(self, action: str, listed: Callable[[], Sequence[Result]], purpose: Purpose) -> list[Result]:
        """Return a list as it was at the first of its requests, one a page and at least one."""
        found = list(await self._call(Verb.DESCRIBE, action, "", purpose, listed))
        for _ in range(self.cloud.rules.page, len(found), self.cloud.rules.page):
            await self._call(Verb.DESCRIBE, action, "", purpose, lambda: None)
        return found

    async def _call(self, verb: Verb, action: str, of: str, purpose: Purpose, effect: Callable[[], Result]) -> Result:
        await self.pace.wait(verb, purpose)
        half = self.cloud.rules.latency_s / 2
        await self._sleep(half)
        try:
            result = self.cloud.gate.serve(Call(verb, action, of), effect)
        except Refused as refused:
            await self._sleep(half)
            if refused.why is Refusal.THROTTLED:
                self.pace.throttled(verb, refused.retry_s)
            done = refused.why is Refusal.SERVER and verb is not Verb.DESCRIBE
            raise CloudError(
                TROUBLE[refused.why], refused.why.value, refused.message, done=done, retry_s=refused.retry_s
            ) from refused
        except ConnectionDropped as dropped:
            raise CloudError(
                Trouble.UNAVAILABLE, "ConnectionReset", "the connection ended without an answer", done=verb is not Verb.DESCRIBE
            ) from dropped
        await self._sleep(half + (self.cloud.rules.change_s if verb in {Verb.ASSIGN, Verb.UNASSIGN} else 0.0))
        return result


def chosen(id: str, has: Mapping[str, str], ids: Sequence[str], tags: Mapping[str, str]) -> bool:
    """Tell whether a subnet or group is among the ids, or else has all of the tags. Neither ids nor tags choose nothing."""
    return id in ids if ids else bool(tags) and tags.items() <= has.items()
