"""Alibaba Cloud as a cloud of interfaces: ECS and VPC by the official SDK, whose own retries are off.

Actions and parameters: https://api.aliyun.com/document/Ecs/2014-05-26. The account's budget paces and repeats. Interfaces have no
device index that a client chooses: the agent knows them by their MAC addresses.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self
from urllib.parse import urlsplit

from tidegate.ipam.cloud import (
    Abilities,
    CloudError,
    Instance,
    InstanceType,
    Interface,
    Kind,
    Pace,
    Purpose,
    Subnet,
    Trouble,
    Verb,
)  # fmt: skip
from tidegate.ipam.clouds import alibaba_answers as answers
from tidegate.ipam.clouds.alibaba_answers import Answer
from tidegate.ipam.clouds.kinds import FAMILY_4, the_kind
from tidegate.ipam.clouds.requests import THREADS, Requests

ABILITIES = Abilities(creates_interfaces=True, kinds=frozenset(Kind), prefixes={Kind.PREFIX_4: 28, Kind.PREFIX_6: 80}, most=10)
"""Ten of a kind a call: what the actions take of prefixes and of IPv6 addresses."""

PAGE, SMALL_PAGE, SWITCH_PAGE, TYPE_NAMES = 500, 100, 50, 10
MOST_BY_TAG = 1000
"""A describe by tag shows no more, and does not say that there are more."""

CONNECT_S, ANSWER_S = 5, 30

_COUNT = {
    Kind.ADDRESS_4: "SecondaryPrivateIpAddressCount",
    Kind.ADDRESS_6: "Ipv6AddressCount",
    Kind.PREFIX_4: "Ipv4PrefixCount",
    Kind.PREFIX_6: "Ipv6PrefixCount",
}
_ITEM = {
    Kind.ADDRESS_4: "PrivateIpAddress",
    Kind.ADDRESS_6: "Ipv6Address",
    Kind.PREFIX_4: "Ipv4Prefix",
    Kind.PREFIX_6: "Ipv6Prefix",
}

Ask = Callable[[str, Mapping[str, object]], Answer]


class Alibaba:
    """One account and region. `mine` are the tags that tell this cluster's interfaces from all others.

    `ask(action, parameters)` sends one request and returns its answer.
    """

    abilities = ABILITIES

    def __init__(self, ask: Ask, requests: Requests, mine: Mapping[str, str], close: Callable[[], None]) -> None:
        self._ask, self._requests, self._mine, self._close = ask, requests, dict(mine), close

    @classmethod
    async def open(
        cls, region: str, mine: Mapping[str, str], pace: Pace, keys: Mapping[str, str] | None = None, endpoint: str = ""
    ) -> Self:
        """Connect to `region`.

        `keys` are `accessKeyID`, `secretAccessKey` and, of temporary ones, `sessionToken`, or `role`, the RAM role of the machine
        that we run on; without them `ALIBABA_CLOUD_ACCESS_KEY_ID` and so on of the environment, else the role is looked up. An
        `endpoint` (URL) stands for all products. Raises `CloudError` where the SDK is missing or there are no credentials.
        """
        if not mine:
            raise ValueError("without a tag of its own a cluster would take all interfaces of the account for its own")
        return await asyncio.to_thread(cls._open, region, mine, pace, keys or {}, endpoint)

    @classmethod
    def _open(cls, region: str, mine: Mapping[str, str], pace: Pace, keys: Mapping[str, str], endpoint: str) -> Self:
        from tidegate.ipam.clouds import alibaba_connect as connect

        client = connect.client(region, connect.known(keys, os.environ), urlsplit(endpoint).port, CONNECT_S, ANSWER_S, THREADS)
        requests = Requests(pace, connect.failures(), answers.translate)
        return cls(connect.asking(client, region, endpoint), requests, mine, client.session.close)

    async def close(self) -> None:
        """Give threads and connections back."""
        self._requests.close()
        self._close()

    async def interfaces(self, instances: Sequence[str], purpose: Purpose) -> Sequence[Interface]:
        """Return those with the cluster's tags; `instances` are not needed for that."""
        name, key = "DescribeNetworkInterfaces", "NetworkInterfaceSets.NetworkInterfaceSet"
        found = await self._list(name, key, _tagged(self._mine), purpose, PAGE)
        if len(found) >= MOST_BY_TAG:
            found = await self._list(name, key, {}, purpose, PAGE)
        ours = {each["NetworkInterfaceId"]: each for each in found if self._mine.items() <= answers.read_tags(each).items()}
        return [answers.read_interface(each) for each in ours.values()]

    async def instances(self, ids: Sequence[str], purpose: Purpose) -> Mapping[str, Instance]:
        """Return machines that are not released."""
        found: dict[str, Instance] = {}
        for some in _portions(ids, SMALL_PAGE):
            asked = {"InstanceIds": json.dumps(some)}
            for each in await self._list("DescribeInstances", "Instances.Instance", asked, purpose, SMALL_PAGE):
                found[each["InstanceId"]] = answers.read_instance(each)
        return found

    async def types(self, names: Sequence[str], purpose: Purpose) -> Mapping[str, InstanceType]:
        """Return the limits of types."""
        found: dict[str, InstanceType] = {}
        for some in _portions(names, TYPE_NAMES):
            asked = _numbered("InstanceTypes", some)
            for each in await self._list("DescribeInstanceTypes", "InstanceTypes.InstanceType", asked, purpose, SMALL_PAGE):
                found[each["InstanceTypeId"]] = answers.read_type(each)
        return found

    async def subnets(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Sequence[Subnet]:
        """Return vSwitches, none if neither ids nor tags are given. Ids are asked for one by one."""
        asked: list[dict[str, object]] = [{"VSwitchId": id} for id in sorted(set(ids))] or ([_tagged(tags)] if tags else [])
        return [answers.read_subnet(each) for filters in asked for each in await self._switches(filters, purpose)]

    async def groups(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Mapping[str, str]:
        """Return security groups, none if neither ids nor tags are given."""
        asked: list[dict[str, object]] = [{"SecurityGroupIds": json.dumps(some)} for some in _portions(ids, SMALL_PAGE)]
        if not ids and tags:
            asked = [_tagged(tags)]
        found: dict[str, str] = {}
        for filters in asked:
            for each in await self._list("DescribeSecurityGroups", "SecurityGroups.SecurityGroup", filters, purpose, SMALL_PAGE):
                found[each["SecurityGroupId"]] = each["VpcId"]
        return found

    async def create(
        self, token: str, subnet: str, groups: Sequence[str], tags: Mapping[str, str], kind: Kind, count: int, purpose: Purpose
    ) -> Interface:
        """Make an interface that is released with the machine that it will be attached to."""
        asked = {
            "ClientToken": token,
            "VSwitchId": subnet,
            "Description": "Addresses of pods (Tidegate)",
            "DeleteOnRelease": "true",
            **_numbered("SecurityGroupIds", groups),
            **_tagged({**tags, **self._mine}),
            **({_COUNT[kind]: count} if count else {}),
        }
        try:
            answer = await self._send(Verb.CREATE, purpose, "CreateNetworkInterface", asked)
        except CloudError as error:
            raise answers.for_kind(error, kind) from error
        if not answer.get("NetworkInterfaceId"):
            # Documented: then nothing was made, and the call is to be repeated.
            raise CloudError(Trouble.UNAVAILABLE, "NoNetworkInterfaceId", "the answer names no interface", done=True)
        return answers.read_interface({"Tags": {"Tag": _pairs({**tags, **self._mine})}, **answer})

    async def attach(self, interface: str, instance: str, index: int, purpose: Purpose) -> None:
        """Begin to attach; the provider numbers devices itself. One that is where it shall be is no error."""
        asked = {"NetworkInterfaceId": interface, "InstanceId": instance}
        try:
            await self._send(Verb.ATTACH, purpose, "AttachNetworkInterface", asked)
        except CloudError as error:
            if error.trouble is not Trouble.CONFLICT:
                raise
            there = await self._one(interface, purpose)
            if there.instance != instance or there.state not in ("Attaching", "InUse"):
                raise

    async def assign(self, token: str, interface: str, kind: Kind, count: int, purpose: Purpose) -> Sequence[str]:
        """Give it more, once for a token."""
        action = "AssignPrivateIpAddresses" if kind in FAMILY_4 else "AssignIpv6Addresses"
        asked = {"ClientToken": token, "NetworkInterfaceId": interface, _COUNT[kind]: count}
        try:
            answer = await self._send(Verb.ASSIGN, purpose, action, asked)
        except CloudError as error:
            raise answers.for_kind(error, kind) from error
        return answers.read_assigned(answer, kind)

    async def unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        """Take some away. One that is not there makes the provider refuse all; then the others are asked for alone."""
        if not items:
            return
        try:
            await self._unassign(interface, items, purpose)
        except CloudError as error:
            if error.code != "InvalidIp.IpUnassigned":
                raise
            there = await self._one(interface, purpose)
            if rest := [item for item in items if item in (*there.addresses, *there.prefixes)]:
                if len(rest) == len(items):
                    raise
                await self._unassign(interface, rest, purpose)

    async def detach(self, interface: str, instance: str, purpose: Purpose) -> None:
        """Begin to detach; one that is attached to nothing, or on its way there, is no error."""
        asked = {"NetworkInterfaceId": interface, "InstanceId": instance}
        try:
            await self._send(Verb.DETACH, purpose, "DetachNetworkInterface", asked)
        except CloudError as error:
            if error.trouble is not Trouble.CONFLICT:
                raise
            if (await self._one(interface, purpose)).state not in ("Available", "Detaching"):
                raise

    async def delete(self, interface: str, purpose: Purpose) -> None:
        """Delete it; one that is gone is no error."""
        try:
            await self._send(Verb.DELETE, purpose, "DeleteNetworkInterface", {"NetworkInterfaceId": interface})
        except CloudError as error:
            if error.trouble is not Trouble.GONE:
                raise

    async def _unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        kind = the_kind(items)
        action = "UnassignPrivateIpAddresses" if kind in FAMILY_4 else "UnassignIpv6Addresses"
        asked = {"NetworkInterfaceId": interface, **_numbered(_ITEM[kind], items)}
        await self._send(Verb.UNASSIGN, purpose, action, asked)

    async def _one(self, interface: str, purpose: Purpose) -> Interface:
        """Return one interface. Raises `CloudError` with GONE."""
        asked = _numbered("NetworkInterfaceId", [interface])
        found = await self._list("DescribeNetworkInterfaces", "NetworkInterfaceSets.NetworkInterfaceSet", asked, purpose, PAGE)
        if not found:
            raise CloudError(Trouble.GONE, "InvalidEniId.NotFound", f"{interface} is not shown")
        return answers.read_interface(found[0])

    async def _list(self, action: str, key: str, filters: Mapping[str, object], purpose: Purpose, size: int) -> list[Answer]:
        """Return all pages of a describe that pages by tokens; `key` is where its list is."""
        found: list[Answer] = []
        asked = {**filters, "MaxResults": size}
        while True:
            answer = await self._send(Verb.DESCRIBE, purpose, action, asked)
            found += answers.find(answer, key)
            if not answer.get("NextToken"):
                return found
            asked = {**asked, "NextToken": answer["NextToken"]}

    async def _switches(self, filters: Mapping[str, object], purpose: Purpose) -> list[Answer]:
        """Return all pages of DescribeVSwitches, which pages by numbers."""
        found: list[Answer] = []
        totals: set[int] = set()
        number = 1
        while True:
            asked = {**filters, "PageSize": SWITCH_PAGE, "PageNumber": number}
            answer = await self._send(Verb.DESCRIBE, purpose, "DescribeVSwitches", asked)
            page = answers.find(answer, "VSwitches.VSwitch")
            found += page
            totals.add(answer["TotalCount"])
            if len(page) == SWITCH_PAGE:
                number += 1
                continue
            # One that goes while pages are read moves another one to a page that was read before.
            if totals != {len(found)}:
                raise CloudError(Trouble.UNAVAILABLE, "PartialAnswer", "vSwitches changed while they were listed")
            return found

    async def _send(self, verb: Verb, purpose: Purpose, action: str, asked: Mapping[str, object]) -> Answer:
        return await self._requests.send(verb, purpose, lambda: self._ask(action, asked))


def _numbered(name: str, values: Sequence[str]) -> dict[str, object]:
    return {f"{name}.{number}": value for number, value in enumerate(values, 1)}


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"TagKey": key, "TagValue": value} for key, value in sorted(tags.items())]


def _tagged(tags: Mapping[str, str]) -> dict[str, object]:
    asked: dict[str, object] = {}
    for number, (key, value) in enumerate(sorted(tags.items()), 1):
        asked |= {f"Tag.{number}.Key": key, f"Tag.{number}.Value": value}
    return asked


def _portions(values: Sequence[str], size: int) -> Iterator[list[str]]:
    names = sorted(set(values))
    for begin in range(0, len(names), size):
        yield names[begin : begin + size]
