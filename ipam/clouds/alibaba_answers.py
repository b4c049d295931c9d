"""What Alibaba Cloud answers, in the words of the protocol: interfaces, machines, subnets, and its error codes.

Codes of ECS by action: https://help.aliyun.com/document_detail/85917.html (AssignPrivateIpAddresses), 85919
(UnassignPrivateIpAddresses), 98610 (AssignIpv6Addresses), 58504 (CreateNetworkInterface), and of all actions:
https://error-center.aliyun.com/status/product/Ecs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from tidegate.ipam.cloud import CloudError, Instance, InstanceType, Interface, Kind, Subnet, Trouble
from tidegate.ipam.clouds.kinds import PREFIXES, canonical

Answer = Mapping[str, Any]
State = Literal["Creating", "Available", "Attaching", "InUse", "Detaching"]

TROUBLE: Mapping[str, Trouble] = {
    "Throttling": Trouble.THROTTLED,
    "Throttling.User": Trouble.THROTTLED,
    "Throttling.Api": Trouble.THROTTLED,
    "InvalidVSwitchId.IpNotEnough": Trouble.EXHAUSTED,
    "QuotaExceeded.PrivateIpAddress": Trouble.EXHAUSTED,
    "MaxEniCountExceeded": Trouble.LIMIT,
    "EniPerInstanceLimitExceeded": Trouble.LIMIT,
    "InvalidOperation.EniCountExceeded": Trouble.LIMIT,
    "InvalidOperation.Ipv4CountExceeded": Trouble.LIMIT,
    "InvalidOperation.Ipv6CountExceeded": Trouble.LIMIT,
    "MaxEniIpv6IpsCountExceeded": Trouble.LIMIT,
    "SecurityGroupInstanceLimitExceed": Trouble.LIMIT,
    "InvalidEniId.NotFound": Trouble.GONE,
    "InvalidEcsId.NotFound": Trouble.GONE,
    "InvalidInstanceId.NotFound": Trouble.GONE,
    "InvalidAccessKeyId.NotFound": Trouble.DENIED,
    "InvalidAccessKeyId.Inactive": Trouble.DENIED,
    "InvalidAccessKeySecret": Trouble.DENIED,
    "SignatureDoesNotMatch": Trouble.DENIED,
    "IncompleteSignature": Trouble.DENIED,
    "InvalidTimeStamp.Expired": Trouble.DENIED,
    "InvalidSecurityToken.Expired": Trouble.DENIED,
    "InvalidSecurityToken.Malformed": Trouble.DENIED,
    "Abs.InvalidAccount.NotFound": Trouble.DENIED,
    "Forbidden.RAM": Trouble.DENIED,
    "Forbidden.SubUser": Trouble.DENIED,
    "Forbidden.NotSupportRAM": Trouble.DENIED,
    "NoPermission": Trouble.DENIED,
    "Forbidden.RegionId": Trouble.UNSUPPORTED,
    "InvalidUserType.NotSupported": Trouble.UNSUPPORTED,
    "UnsupportedParameter": Trouble.UNSUPPORTED,
    "InvalidOperation.InvalidEniType": Trouble.UNSUPPORTED,
    "InvalidOperation.Ipv4NotSupport": Trouble.UNSUPPORTED,
    "InvalidOperation.Ipv6NotSupport": Trouble.UNSUPPORTED,
    "InvalidVSwitch.Ipv6NotTurnOn": Trouble.UNSUPPORTED,
    "Operation.Conflict": Trouble.CONFLICT,
    "InvalidOperation.InvalidEniState": Trouble.CONFLICT,
    "InvalidOperation.InvalidEcsState": Trouble.CONFLICT,
    "InvalidIp.IpUnassigned": Trouble.CONFLICT,
    "InvalidIp.IpAssigned": Trouble.CONFLICT,
    "InternalError": Trouble.UNAVAILABLE,
    "UnknownError": Trouble.UNAVAILABLE,
    "ServiceUnavailable": Trouble.UNAVAILABLE,
    "SDK.HttpError": Trouble.UNAVAILABLE,
    "SDK.ServerUnreachable": Trouble.UNAVAILABLE,
    "SDK.EndpointResolvingError": Trouble.UNAVAILABLE,
    "SDK.InvalidCredential": Trouble.DENIED,
    "SDK.GetSessionCredentialFailed": Trouble.DENIED,
}
"""Codes that decide something; any other one is a refusal of what was asked (INVALID) or, from status 500 on, UNAVAILABLE."""

_SECRETIVE = {"SignatureDoesNotMatch", "InvalidAccessKeySecret", "IncompleteSignature"}
"""Codes whose messages repeat the request with its key."""


def translate(failure: Exception) -> CloudError:
    """Return an exception of the SDK in the protocol's words; `done` where it may have taken effect."""
    code = str(getattr(failure, "error_code", "") or type(failure).__name__)
    status = getattr(failure, "http_status", None)
    message = str(getattr(failure, "message", "") or failure)
    if code in _SECRETIVE:
        message = "the signature is wrong: check the access key's secret"
    elif code == "InvalidTimeStamp.Expired":
        message = "the provider's clock and this machine's are more than 15 minutes apart"
    trouble = TROUBLE.get(code, Trouble.UNAVAILABLE if status is None or status >= 500 else Trouble.INVALID)
    return CloudError(trouble, code, message, done=trouble is Trouble.UNAVAILABLE)


def for_kind(error: CloudError, kind: Kind) -> CloudError:
    """Return the error in view of what was asked for: the provider has one code for "no address" and "no whole prefix"."""
    if error.trouble is Trouble.EXHAUSTED and kind in PREFIXES:
        return CloudError(Trouble.FRAGMENTED, error.code, error.message)
    return error


def read_interface(answer: Answer) -> Interface:
    """Return an interface. Everything on it but its own address is for pods."""
    attachment = answer.get("Attachment") or {}
    addresses = [each["PrivateIpAddress"] for each in _list(answer, "PrivateIpSets") if not each.get("Primary")]
    addresses += [each["Ipv6Address"] for each in _list(answer, "Ipv6Sets")]
    prefixes = [each["Ipv4Prefix"] for each in _list(answer, "Ipv4PrefixSets")]
    prefixes += [each["Ipv6Prefix"] for each in _list(answer, "Ipv6PrefixSets")]
    return Interface(
        id=answer["NetworkInterfaceId"],
        mac=answer["MacAddress"].lower(),
        subnet=answer["VSwitchId"],
        state=_STATES.get(answer["Status"], "Creating"),
        instance=answer.get("InstanceId") or attachment.get("InstanceId") or "",
        # Not public yet, and never 0 for one that was attached later.
        index=attachment.get("DeviceIndex") or -1,
        primary=answer["PrivateIpAddress"],
        addresses=list(map(canonical, addresses)),
        prefixes=list(map(canonical, prefixes)),
        groups=_list(answer, "SecurityGroupIds"),
        tags=read_tags(answer),
    )


_STATES: Mapping[str, State] = {
    "Creating": "Creating",
    "Available": "Available",
    "Attaching": "Attaching",
    "InUse": "InUse",
    "Detaching": "Detaching",
    "Deleting": "Detaching",
}


def read_tags(answer: Answer) -> dict[str, str]:
    """Return tags; ECS calls them otherwise than VPC does."""
    return {each.get("TagKey") or each["Key"]: each.get("TagValue", each.get("Value", "")) for each in _list(answer, "Tags")}


def read_instance(answer: Answer) -> Instance:
    """Return a machine."""
    return Instance(
        id=answer["InstanceId"],
        type=answer["InstanceType"],
        zone=answer["ZoneId"],
        subnet=answer["VpcAttributes"]["VSwitchId"],
        groups=_list(answer, "SecurityGroupIds"),
        interfaces=len(_list(answer, "NetworkInterfaces")),
    )


def read_type(answer: Answer) -> InstanceType:
    """Return a type's limits. Whether it can have prefixes is not told; the refusal of one is."""
    return InstanceType(
        name=answer["InstanceTypeId"],
        interfaces=answer["EniQuantity"],
        ipv4=answer["EniPrivateIpAddressQuantity"],
        ipv6=answer.get("EniIpv6AddressQuantity", 0),
    )


def read_subnet(answer: Answer) -> Subnet:
    """Return a vSwitch."""
    return Subnet(
        id=answer["VSwitchId"],
        network=answer["VpcId"],
        zone=answer["ZoneId"],
        cidrs=[cidr for cidr in (answer["CidrBlock"], answer.get("Ipv6CidrBlock")) if cidr],
        free=answer.get("AvailableIpAddressCount", -1),
        tags=read_tags(answer),
    )


def read_assigned(answer: Answer, kind: Kind) -> list[str]:
    """Return what was assigned."""
    match kind:
        case Kind.ADDRESS_4:
            items = find(answer, "AssignedPrivateIpAddressesSet.PrivateIpSet.PrivateIpAddress")
        case Kind.PREFIX_4:
            items = find(answer, "AssignedPrivateIpAddressesSet.Ipv4PrefixSet.Ipv4Prefixes")
        case Kind.ADDRESS_6:
            items = find(answer, "Ipv6Sets.Ipv6Address")
        case Kind.PREFIX_6:
            items = find(answer, "Ipv6PrefixSets.Ipv6Prefix")
    return [canonical(item) for item in items]


def find(answer: Answer, key: str) -> list[Any]:
    """Return the list at a place like `Instances.Instance`, empty if it is not there.

    >>> find({"Instances": {"Instance": [1]}}, "Instances.Instance")
    [1]
    """
    found: Any = answer
    for name in key.split("."):
        found = (found or {}).get(name)
    return list(found or ())


def _list(answer: Answer, name: str) -> list[Any]:
    """A list stands in an object with one field, named like the list in the singular; both may be missing."""
    for inner in (answer.get(name) or {}).values():
        return list(inner or ())
    return []
