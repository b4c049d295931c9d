"""AWS as a cloud of interfaces: EC2 by boto3, whose own retries are off because the account's budget paces and repeats.

Requests and parameters: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_Operations.html. Lists are read page by page,
and ids are asked for by filters, because EC2 refuses a whole request for one id that it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

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
from tidegate.ipam.clouds import aws_answers as answers
from tidegate.ipam.clouds.aws_answers import Answer
from tidegate.ipam.clouds.aws_connect import connect
from tidegate.ipam.clouds.kinds import FAMILY_4, the_kind
from tidegate.ipam.clouds.requests import Requests

ABILITIES = Abilities(
    creates_interfaces=True,
    kinds=frozenset(Kind),
    prefixes={Kind.PREFIX_4: 28, Kind.PREFIX_6: 80},
    most=49,
)
"""No type of machine has more than 50 addresses on an interface, the interface's own included."""

PAGE = 1000
FILTER_VALUES = 200
LAG_S = (0.5, 1.0, 2.0)
"""Pauses, in seconds, between looks at an interface whose last change is not shown yet."""

_CREATE = {
    Kind.ADDRESS_4: "SecondaryPrivateIpAddressCount",
    Kind.ADDRESS_6: "Ipv6AddressCount",
    Kind.PREFIX_4: "Ipv4PrefixCount",
    Kind.PREFIX_6: "Ipv6PrefixCount",
}
_ITEMS = {
    Kind.ADDRESS_4: "PrivateIpAddresses",
    Kind.ADDRESS_6: "Ipv6Addresses",
    Kind.PREFIX_4: "Ipv4Prefixes",
    Kind.PREFIX_6: "Ipv6Prefixes",
}


class Aws:
    """One account and region. `mine` are the tags that tell this cluster's interfaces from all others.

    `attach` makes two changing requests, because EC2 takes delete-on-termination of attached interfaces only. Repeated after a
    failure or crash in between, it finds the interface attached where it shall be and does what is missing; so whoever keeps an
    intent to attach repeats it even if the interface is seen attached.
    """

    abilities = ABILITIES

    def __init__(self, client: Any, requests: Requests, mine: Mapping[str, str]) -> None:
        self._client, self._requests, self._tags = client, requests, dict(mine)
        self._mine = [{"Name": f"tag:{key}", "Values": [value]} for key, value in sorted(mine.items())]

    @classmethod
    async def open(
        cls, region: str, mine: Mapping[str, str], pace: Pace, keys: Mapping[str, str] | None = None, endpoint: str = ""
    ) -> Self:
        """Connect to `region`, or to that of the environment if it is empty.

        `keys` are `accessKeyID`, `secretAccessKey` and, of temporary ones, `sessionToken`; without them boto3 looks into the
        environment, for a web identity token, and for the instance's role. Raises `CloudError` where the SDK is missing or
        there is no region.
        """
        if not mine:
            raise ValueError("without a tag of its own a cluster would take all interfaces of the account for its own")
        client, failures = await asyncio.to_thread(connect, region, keys or {}, endpoint)
        return cls(client, Requests(pace, failures, answers.translate), mine)

    async def close(self) -> None:
        """Give threads and connections back."""
        self._requests.close()
        self._client.close()

    async def interfaces(self, instances: Sequence[str], purpose: Purpose) -> Sequence[Interface]:
        """Return those with the cluster's tags; `instances` are not needed for that."""
        return [
            answers.read_interface(each)
            for each in await self._list("network_interfaces", "NetworkInterfaces", self._mine, purpose)
        ]

    async def instances(self, ids: Sequence[str], purpose: Purpose) -> Mapping[str, Instance]:
        """Return machines that are not terminated."""
        found: dict[str, Instance] = {}
        for values in _portions(ids):
            asked = [{"Name": "instance-id", "Values": values}]
            for reservation in await self._list("instances", "Reservations", asked, purpose):
                for each in reservation["Instances"]:
                    if each["State"]["Name"] != "terminated":
                        found[each["InstanceId"]] = answers.read_instance(each)
        return found

    async def types(self, names: Sequence[str], purpose: Purpose) -> Mapping[str, InstanceType]:
        """Return the limits of types."""
        found: dict[str, InstanceType] = {}
        for values in _portions(names):
            asked = [{"Name": "instance-type", "Values": values}]
            for each in await self._list("instance_types", "InstanceTypes", asked, purpose, page=100):
                found[each["InstanceType"]] = answers.read_type(each)
        return found

    async def subnets(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Sequence[Subnet]:
        """Return subnets, none if neither ids nor tags are given."""
        return [answers.read_subnet(each) for each in await self._choose("subnets", "Subnets", "subnet-id", ids, tags, purpose)]

    async def groups(self, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose) -> Mapping[str, str]:
        """Return security groups, none if neither ids nor tags are given."""
        found = await self._choose("security_groups", "SecurityGroups", "group-id", ids, tags, purpose)
        return {each["GroupId"]: each["VpcId"] for each in found}

    async def create(
        self, token: str, subnet: str, groups: Sequence[str], tags: Mapping[str, str], kind: Kind, count: int, purpose: Purpose
    ) -> Interface:
        """Make an interface. EC2 keeps a ClientToken for a day at least."""
        asked: dict[str, Any] = {_CREATE[kind]: count} if count else {}
        marks = answers.write_tags({**tags, **self._tags})
        if groups:
            asked["Groups"] = list(groups)
        answer = await self._requests.send(
            Verb.CREATE,
            purpose,
            lambda: self._client.create_network_interface(
                ClientToken=token,
                SubnetId=subnet,
                Description="Addresses of pods (Tidegate)",
                TagSpecifications=[{"ResourceType": "network-interface", "Tags": marks}],
                **asked,
            ),
        )
        made = dict(answer["NetworkInterface"])
        return answers.read_interface({**made, "TagSet": made.get("TagSet") or marks})

    async def attach(self, interface: str, instance: str, index: int, purpose: Purpose) -> None:
        """Attach it and have it deleted with its machine."""
        try:
            answer = await self._requests.send(
                Verb.ATTACH,
                purpose,
                lambda: self._client.attach_network_interface(
                    NetworkInterfaceId=interface, InstanceId=instance, DeviceIndex=index
                ),
            )
            attachment = answer["AttachmentId"]
        except CloudError as error:
            if error.trouble not in (Trouble.CONFLICT, Trouble.INVALID):
                raise
            pauses = LAG_S if error.trouble is Trouble.CONFLICT else ()
            there = await self._attachment(interface, ("attaching", "attached", "detaching"), pauses, purpose)
            if there.get("InstanceId") != instance or there["Status"] == "detaching":
                raise
            if there.get("DeleteOnTermination"):
                return
            attachment = there["AttachmentId"]
        try:
            await self._requests.send(
                Verb.ATTACH,
                purpose,
                lambda: self._client.modify_network_interface_attribute(
                    NetworkInterfaceId=interface, Attachment={"AttachmentId": attachment, "DeleteOnTermination": True}
                ),
            )
        except CloudError as error:
            # The first request did take effect.
            error.done = True
            raise

    async def assign(self, token: str, interface: str, kind: Kind, count: int, purpose: Purpose) -> Sequence[str]:
        """Give it more. EC2 knows no token here."""
        four = kind in FAMILY_4
        ask = self._client.assign_private_ip_addresses if four else self._client.assign_ipv6_addresses
        answer = await self._requests.send(
            Verb.ASSIGN, purpose, lambda: ask(NetworkInterfaceId=interface, **{_CREATE[kind]: count})
        )
        return answers.read_assigned(answer)

    async def unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        """Take some away. EC2 refuses all if one is not there, so then what is there is looked up and asked for alone."""
        if not items:
            return
        try:
            await self._unassign(interface, items, purpose)
        except CloudError as error:
            if error.trouble is not Trouble.INVALID:
                raise
            there = answers.read_interface(await self._ask(interface, purpose))
            rest = [item for item in items if item in there.addresses or item in there.prefixes]
            if len(rest) == len(items):
                raise
            if rest:
                await self._unassign(interface, rest, purpose)

    async def _unassign(self, interface: str, items: Sequence[str], purpose: Purpose) -> None:
        kind = the_kind(items)
        four = kind in FAMILY_4
        ask = self._client.unassign_private_ip_addresses if four else self._client.unassign_ipv6_addresses
        await self._requests.send(
            Verb.UNASSIGN, purpose, lambda: ask(NetworkInterfaceId=interface, **{_ITEMS[kind]: list(items)})
        )

    async def detach(self, interface: str, instance: str, purpose: Purpose) -> None:
        """Detach it from that machine; one that is not attached at all, or is on its way, is no error."""
        there = await self._attachment(interface, (), (), purpose)
        if there["Status"] in ("detaching", "detached"):
            return
        if there["InstanceId"] != instance:
            raise CloudError(Trouble.CONFLICT, "", f"{interface} is attached to {there['InstanceId']}, not to {instance}")
        try:
            await self._requests.send(
                Verb.DETACH, purpose, lambda: self._client.detach_network_interface(AttachmentId=there["AttachmentId"])
            )
        except CloudError as error:
            if error.trouble is not Trouble.CONFLICT:
                raise
            there = await self._attachment(interface, ("detaching", "detached"), LAG_S, purpose)
            if there["Status"] not in ("detaching", "detached"):
                raise

    async def delete(self, interface: str, purpose: Purpose) -> None:
        """Delete it."""
        try:
            await self._requests.send(
                Verb.DELETE, purpose, lambda: self._client.delete_network_interface(NetworkInterfaceId=interface)
            )
        except CloudError as error:
            if error.trouble is not Trouble.GONE:
                raise

    async def _attachment(self, interface: str, states: Sequence[str], pauses: Sequence[float], purpose: Purpose) -> Answer:
        """Return how an interface is attached, after so many pauses at most until it is in one of the states.

        EC2 shows a change a moment after it refused another one because of it.
        """
        there: Answer = (await self._ask(interface, purpose)).get("Attachment", {"Status": "detached"})
        for pause in pauses:
            if there["Status"] in states:
                break
            await asyncio.sleep(pause)
            there = (await self._ask(interface, purpose)).get("Attachment", {"Status": "detached"})
        return there

    async def _ask(self, interface: str, purpose: Purpose) -> Answer:
        """Return what EC2 says of one interface. Raises `GONE`."""
        answer = await self._requests.send(
            Verb.DESCRIBE, purpose, lambda: self._client.describe_network_interfaces(NetworkInterfaceIds=[interface])
        )
        found: Answer = answer["NetworkInterfaces"][0]
        return found

    async def _choose(
        self, what: str, key: str, by: str, ids: Sequence[str], tags: Mapping[str, str], purpose: Purpose
    ) -> list[Answer]:
        if not ids:
            asked = [{"Name": f"tag:{name}", "Values": [value]} for name, value in sorted(tags.items())]
            return await self._list(what, key, asked, purpose) if asked else []
        found: list[Answer] = []
        for values in _portions(ids):
            found += await self._list(what, key, [{"Name": by, "Values": values}], purpose)
        return found

    async def _list(
        self, what: str, key: str, filters: Sequence[Mapping[str, Any]], purpose: Purpose, page: int = PAGE
    ) -> list[Answer]:
        """Return all pages of one Describe call."""
        ask = getattr(self._client, f"describe_{what}")
        found: list[Answer] = []
        more: dict[str, Any] = {}
        while True:
            answer = await self._requests.send(Verb.DESCRIBE, purpose, partial(ask, Filters=filters, MaxResults=page, **more))
            found += answer[key]
            if not answer.get("NextToken"):
                return found
            more = {"NextToken": answer["NextToken"]}


def _portions(values: Sequence[str]) -> Iterator[list[str]]:
    """EC2 takes at most 200 values a filter."""
    names = sorted(set(values))
    for begin in range(0, len(names), FILTER_VALUES):
        yield names[begin : begin + FILTER_VALUES]
