"""Alibaba Cloud before a virtual cloud: a server that speaks the RPC calls of ECS and VPC to the real SDK.

Answers are shaped as the SDK's own documentation of each action says: https://api.aliyun.com/document/Ecs/2014-05-26. A describe
by tag shows a thousand results at most, as it does there
(https://www.alibabacloud.com/help/en/ecs/developer-reference/api-describenetworkinterfaces).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from tidegate.ipam.cloud import Kind, Verb
from tidegate.lab.clouds import alibaba_wire as wire
from tidegate.lab.clouds.alibaba_wire import Parameters
from tidegate.lab.clouds.direct import chosen
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.records import Nic
from tidegate.lab.clouds.refusals import RawRefused, Refusal, Refused
from tidegate.lab.clouds.vpc import VirtualCloud

Answer = dict[str, Any]
ECS, VPC = "2014-05-26", "2016-04-28"
MOST_BY_TAG = 1000

_COUNTS = {
    "SecondaryPrivateIpAddressCount": Kind.ADDRESS_4,
    "Ipv4PrefixCount": Kind.PREFIX_4,
    "Ipv6AddressCount": Kind.ADDRESS_6,
    "Ipv6PrefixCount": Kind.PREFIX_6,
}


class Alibaba:
    """One account and region. `secrets` are those of its access keys; `now` tells the time that requests are signed with."""

    def __init__(
        self, cloud: VirtualCloud, region: str, secrets: Mapping[str, str], now: Callable[[], float] = time.time
    ) -> None:
        self.cloud, self.region, self._secrets, self._now = cloud, region, secrets, now
        self._numbers = itertools.count(1)

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        """Return the answer to one request."""
        parameters = dict(request.query)
        action = parameters.get("Action", "")
        id = {"RequestId": f"00000000-0000-0000-0000-{next(self._numbers):012d}"}
        try:
            wire.check(request.method, parameters, self._secrets, self._now() + self.cloud.gate.skew_s)
            return web.json_response({**id, **self._carry_out(action, parameters)})
        except Refused as refused:
            status, code = wire.code(refused, action)
            return web.json_response({**id, "Code": code, "Message": refused.message}, status=status)
        except RawRefused as refused:
            return web.json_response({**id, "Code": refused.code, "Message": refused.message}, status=refused.status)

    def _carry_out(self, action: str, parameters: Parameters) -> Answer:
        version, verb, effect = ACTIONS.get(action, ("", Verb.DESCRIBE, _nothing))
        if version != parameters.get("Version") or parameters.get("Format") != "JSON":
            raise RawRefused(404, "InvalidAction.NotFound", f"{action} of {parameters.get('Version')}")
        if parameters.get("RegionId") != self.region:
            raise RawRefused(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist.")
        call = Call(verb, action, parameters.get("NetworkInterfaceId", ""))
        return self.cloud.gate.serve(call, lambda: effect(self.cloud, parameters))


def _nothing(cloud: VirtualCloud, asked: Parameters) -> Answer:
    raise RawRefused(404, "InvalidAction.NotFound", "no such action")


def _create(cloud: VirtualCloud, asked: Parameters) -> Answer:
    counts = [(kind, int(asked[name])) for name, kind in _COUNTS.items() if name in asked]
    if len(counts) > 1:
        raise Refused(Refusal.INVALID, "this fake gives one kind at creation")
    kind, count = counts[0] if counts else (Kind.ADDRESS_4, 0)
    if kind is not Kind.ADDRESS_4 and count > 10:
        raise Refused(Refusal.TOO_MANY, f"{count} at once, at most 10")
    nic = cloud.create(
        asked.get("ClientToken", ""),
        asked["VSwitchId"],
        wire.values(asked, "SecurityGroupIds") or [asked["SecurityGroupId"]],
        wire.tags(asked),
        kind,
        count,
        asked.get("Description", ""),
        delete_with_instance=asked.get("DeleteOnRelease", "").lower() == "true",
    )
    return _interface(nic)


def _attach(cloud: VirtualCloud, asked: Parameters) -> Answer:
    cloud.attach(asked["NetworkInterfaceId"], asked["InstanceId"], delete_with_instance=None)
    return {}


def _detach(cloud: VirtualCloud, asked: Parameters) -> Answer:
    cloud.detach(asked["NetworkInterfaceId"], asked["InstanceId"])
    return {}


def _delete(cloud: VirtualCloud, asked: Parameters) -> Answer:
    cloud.delete(asked["NetworkInterfaceId"])
    return {}


def _assign(cloud: VirtualCloud, asked: Parameters) -> Answer:
    id = asked["NetworkInterfaceId"]
    for name, kind in _COUNTS.items():
        if name in asked:
            items = cloud.assign(id, kind, int(asked[name]), token=asked.get("ClientToken", ""))
            given = {each: list(items) if each is kind else [] for each in Kind}
            if kind in (Kind.ADDRESS_6, Kind.PREFIX_6):
                sets = {
                    "Ipv6Sets": {"Ipv6Address": given[Kind.ADDRESS_6]},
                    "Ipv6PrefixSets": {"Ipv6Prefix": given[Kind.PREFIX_6]},
                }
                return {"NetworkInterfaceId": id, **sets}
            addresses, prefixes = {"PrivateIpAddress": given[Kind.ADDRESS_4]}, {"Ipv4Prefixes": given[Kind.PREFIX_4]}
            fours = {"NetworkInterfaceId": id, "PrivateIpSet": addresses, "Ipv4PrefixSet": prefixes}
            return {"AssignedPrivateIpAddressesSet": fours}
    raise RawRefused(403, "MissingParameter", "no count")


def _unassign(cloud: VirtualCloud, asked: Parameters) -> Answer:
    names = ("PrivateIpAddress", "Ipv4Prefix", "Ipv6Address", "Ipv6Prefix")
    cloud.unassign(asked["NetworkInterfaceId"], [item for name in names for item in wire.values(asked, name)])
    return {}


def _interfaces(cloud: VirtualCloud, asked: Parameters) -> Answer:
    ids, wanted = wire.values(asked, "NetworkInterfaceId"), wire.tags(asked)
    found = {
        nic.id: nic
        for nic in cloud.seen()
        if (not ids or nic.id in ids)
        and wanted.items() <= nic.tags.items()
        and asked.get("InstanceId", nic.instance) == nic.instance
        and asked.get("VpcId", nic.network) == nic.network
    }
    shown = sorted(found)[:MOST_BY_TAG] if wanted else sorted(found)
    page, following = wire.page(shown, asked, 500)
    sets = [_interface(found[id]) for id in page]
    return {"NetworkInterfaceSets": {"NetworkInterfaceSet": sets}, "NextToken": following}


def _interface(nic: Nic) -> Answer:
    fours = [{"PrivateIpAddress": nic.primary, "Primary": True}]
    fours += [{"PrivateIpAddress": item, "Primary": False} for item in nic.of(Kind.ADDRESS_4)]
    return {
        "NetworkInterfaceId": nic.id,
        "Status": nic.state,
        "Type": "Primary" if nic.native and not nic.index else "Secondary",
        "VpcId": nic.network,
        "VSwitchId": nic.subnet,
        "ZoneId": nic.zone,
        "PrivateIpAddress": nic.primary,
        "MacAddress": nic.mac,
        "Description": nic.description,
        "InstanceId": nic.instance,
        "DeleteOnRelease": nic.delete_with_instance,
        "SecurityGroupIds": {"SecurityGroupId": list(nic.groups)},
        "PrivateIpSets": {"PrivateIpSet": fours},
        "Ipv6Sets": {"Ipv6Set": [{"Ipv6Address": item} for item in nic.of(Kind.ADDRESS_6)]},
        "Ipv4PrefixSets": {"Ipv4PrefixSet": [{"Ipv4Prefix": item} for item in nic.of(Kind.PREFIX_4)]},
        "Ipv6PrefixSets": {"Ipv6PrefixSet": [{"Ipv6Prefix": item} for item in nic.of(Kind.PREFIX_6)]},
        "Tags": {"Tag": [{"TagKey": key, "TagValue": value} for key, value in nic.tags.items()]},
    }


def _instances(cloud: VirtualCloud, asked: Parameters) -> Answer:
    ids = wire.listed(asked, "InstanceIds")
    cloud.settle()
    page, following = wire.page([id for id in cloud.machines if not ids or id in ids], asked, 100)
    return {"Instances": {"Instance": [_instance(cloud, id) for id in page]}, "NextToken": following}


def _instance(cloud: VirtualCloud, id: str) -> Answer:
    machine = cloud.machines[id]
    nics = [cloud.nics[each] for each in machine.interfaces.values()]
    return {
        "InstanceId": id,
        "InstanceType": machine.type.name,
        "ZoneId": machine.zone,
        "Status": "Running",
        "VpcAttributes": {"VpcId": machine.network, "VSwitchId": machine.subnet},
        "SecurityGroupIds": {"SecurityGroupId": list(machine.groups)},
        "NetworkInterfaces": {"NetworkInterface": [{"NetworkInterfaceId": nic.id, "MacAddress": nic.mac} for nic in nics]},
    }


def _types(cloud: VirtualCloud, asked: Parameters) -> Answer:
    names = wire.values(asked, "InstanceTypes")
    if len(names) > 10:
        raise Refused(Refusal.INVALID, "at most 10 InstanceTypes")
    page, following = wire.page([name for name in cloud.types if not names or name in names], asked, 100)
    types = [
        {
            "InstanceTypeId": name,
            "EniQuantity": cloud.types[name].interfaces,
            "EniPrivateIpAddressQuantity": cloud.types[name].ipv4,
            "EniIpv6AddressQuantity": cloud.types[name].ipv6,
        }
        for name in page
    ]
    return {"InstanceTypes": {"InstanceType": types}, "NextToken": following}


def _groups(cloud: VirtualCloud, asked: Parameters) -> Answer:
    ids, wanted = wire.listed(asked, "SecurityGroupIds"), wire.tags(asked)
    all_ = not ids and not wanted
    found = [id for id, group in cloud.groups.items() if all_ or chosen(id, group.tags, ids, wanted)]
    page, following = wire.page(found, asked, 100)
    groups = [{"SecurityGroupId": id, "VpcId": cloud.groups[id].network} for id in page]
    return {"SecurityGroups": {"SecurityGroup": groups}, "NextToken": following}


def _switches(cloud: VirtualCloud, asked: Parameters) -> Answer:
    id, wanted = asked.get("VSwitchId", ""), wire.tags(asked)
    found = [net for net in cloud.nets.values() if id in ("", net.id) and wanted.items() <= net.tags.items()]
    number, size = int(asked.get("PageNumber", "1")), int(asked.get("PageSize", "10"))
    if not 1 <= size <= 50:
        raise Refused(Refusal.INVALID, f"PageSize is {size}, at most 50")
    switches = [
        {
            "VSwitchId": net.id,
            "VpcId": net.network,
            "ZoneId": net.zone,
            "CidrBlock": str(net.spaces["4"].network),
            "Ipv6CidrBlock": str(net.spaces["6"].network) if "6" in net.spaces else "",
            "AvailableIpAddressCount": net.spaces["4"].free,
            "Tags": {"Tag": [{"Key": key, "Value": value} for key, value in net.tags.items()]},
        }
        for net in found[(number - 1) * size : number * size]
    ]
    return {"VSwitches": {"VSwitch": switches}, "TotalCount": len(found), "PageNumber": number, "PageSize": size}


ACTIONS: Mapping[str, tuple[str, Verb, Callable[[VirtualCloud, Parameters], Answer]]] = {
    "CreateNetworkInterface": (ECS, Verb.CREATE, _create),
    "AttachNetworkInterface": (ECS, Verb.ATTACH, _attach),
    "AssignPrivateIpAddresses": (ECS, Verb.ASSIGN, _assign),
    "AssignIpv6Addresses": (ECS, Verb.ASSIGN, _assign),
    "UnassignPrivateIpAddresses": (ECS, Verb.UNASSIGN, _unassign),
    "UnassignIpv6Addresses": (ECS, Verb.UNASSIGN, _unassign),
    "DetachNetworkInterface": (ECS, Verb.DETACH, _detach),
    "DeleteNetworkInterface": (ECS, Verb.DELETE, _delete),
    "DescribeNetworkInterfaces": (ECS, Verb.DESCRIBE, _interfaces),
    "DescribeInstances": (ECS, Verb.DESCRIBE, _instances),
    "DescribeInstanceTypes": (ECS, Verb.DESCRIBE, _types),
    "DescribeSecurityGroups": (ECS, Verb.DESCRIBE, _groups),
    "DescribeVSwitches": (VPC, Verb.DESCRIBE, _switches),
}
"""The actions that are there, each with the version of its product's API."""
