"""What EC2 answers, as our values: interfaces, machines, types, subnets, and error codes.

Error codes: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html; `InsufficientCidrBlocks` (no free /28 or
/80 in one piece): https://docs.aws.amazon.com/eks/latest/best-practices/prefix-mode-linux.html.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tidegate.ipam.cloud import CloudError, Instance, InstanceType, Interface, Subnet, Trouble
from tidegate.ipam.clouds.kinds import canonical

Answer = Mapping[str, Any]
"""A part of an answer, as botocore parsed it from the XML."""

TROUBLES: Mapping[str, Trouble] = {
    "RequestLimitExceeded": Trouble.THROTTLED,
    "Throttling": Trouble.THROTTLED,
    "ThrottlingException": Trouble.THROTTLED,
    "InsufficientFreeAddressesInSubnet": Trouble.EXHAUSTED,
    "InsufficientCidrBlocks": Trouble.FRAGMENTED,
    "AttachmentLimitExceeded": Trouble.LIMIT,
    "NetworkInterfaceLimitExceeded": Trouble.LIMIT,
    "PrivateIpAddressLimitExceeded": Trouble.LIMIT,
    "InvalidInstanceID.NotFound": Trouble.GONE,
    "InvalidNetworkInterfaceID.NotFound": Trouble.GONE,
    "AuthFailure": Trouble.DENIED,
    "Blocked": Trouble.DENIED,
    "ExpiredToken": Trouble.DENIED,
    "IncompleteSignature": Trouble.DENIED,
    "InvalidClientTokenId": Trouble.DENIED,
    "InvalidSecurity.RequestHasExpired": Trouble.DENIED,
    "MissingAuthenticationToken": Trouble.DENIED,
    "OptInRequired": Trouble.DENIED,
    "PendingVerification": Trouble.DENIED,
    "RequestExpired": Trouble.DENIED,
    "SignatureDoesNotMatch": Trouble.DENIED,
    "UnauthorizedOperation": Trouble.DENIED,
    "InvalidAction": Trouble.UNSUPPORTED,
    "OperationNotPermitted": Trouble.UNSUPPORTED,
    "Unsupported": Trouble.UNSUPPORTED,
    "UnsupportedOperation": Trouble.UNSUPPORTED,
    "DependencyViolation": Trouble.CONFLICT,
    "IncorrectInstanceState": Trouble.CONFLICT,
    "InvalidAttachmentID.NotFound": Trouble.CONFLICT,
    "IncorrectState": Trouble.CONFLICT,
    "InvalidNetworkInterface.InUse": Trouble.CONFLICT,
    "InvalidState": Trouble.CONFLICT,
    "InternalError": Trouble.UNAVAILABLE,
    "InternalFailure": Trouble.UNAVAILABLE,
    "ServiceUnavailable": Trouble.UNAVAILABLE,
    "Unavailable": Trouble.UNAVAILABLE,
}
"""Codes not listed, those of unknown subnets and groups too, are `INVALID` from a 4xx answer and `UNAVAILABLE` from a 5xx one."""


def translate(failure: Exception) -> CloudError:
    """Translate an exception of botocore: a refusal of EC2's, or why there was no answer."""
    from botocore import exceptions as sdk

    lacking = (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.CredentialRetrievalError, sdk.MetadataRetrievalError)
    wrong = (sdk.ParamValidationError, sdk.NoRegionError, sdk.InvalidRegionError)
    unsent = (sdk.EndpointConnectionError, sdk.ConnectTimeoutError, sdk.ProxyConnectionError, sdk.SSLError)
    if isinstance(failure, sdk.ClientError):
        return read_refusal(failure.response)
    trouble = Trouble.UNAVAILABLE
    if isinstance(failure, lacking):
        trouble = Trouble.DENIED
    elif isinstance(failure, wrong):
        trouble = Trouble.INVALID
    # Anything else broke after the request had left, or its answer could not be read.
    done = trouble is Trouble.UNAVAILABLE and not isinstance(failure, unsent)
    return CloudError(trouble, type(failure).__name__, str(failure), done=done)


def read_refusal(answer: Answer) -> CloudError:
    """Translate an error answer; after a 5xx other than throttling the request may have taken effect."""
    code, message = answer["Error"].get("Code", ""), answer["Error"].get("Message", "")
    failed = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)) >= 500
    trouble = TROUBLES.get(code, Trouble.UNAVAILABLE if failed else Trouble.INVALID)
    return CloudError(trouble, code, message, done=failed and trouble is not Trouble.THROTTLED)


def read_tags(tags: Sequence[Answer]) -> dict[str, str]:
    """Return tags as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in tags}


def write_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a mapping as EC2 takes tags."""
    return [{"Key": key, "Value": value} for key, value in sorted(tags.items())]


def read_interface(answer: Answer) -> Interface:
    """Return one interface of DescribeNetworkInterfaces or CreateNetworkInterface."""
    attachment = answer.get("Attachment", {})
    ours = [each["PrivateIpAddress"] for each in answer.get("PrivateIpAddresses", ()) if not each.get("Primary")]
    ours += [each["Ipv6Address"] for each in answer.get("Ipv6Addresses", ())]
    prefixes = [each["Ipv4Prefix"] for each in answer.get("Ipv4Prefixes", ())]
    prefixes += [each["Ipv6Prefix"] for each in answer.get("Ipv6Prefixes", ())]
    return Interface(
        id=answer["NetworkInterfaceId"],
        mac=answer.get("MacAddress", ""),
        subnet=answer["SubnetId"],
        state=_state(answer.get("Status", ""), attachment.get("Status", "")),
        instance=attachment.get("InstanceId", ""),
        index=attachment.get("DeviceIndex", -1),
        primary=answer.get("PrivateIpAddress", ""),
        addresses=[canonical(each) for each in ours],
        prefixes=[canonical(each) for each in prefixes],
        groups=[group["GroupId"] for group in answer.get("Groups", ())],
        tags=read_tags(answer.get("TagSet", ())),
    )


def _state(status: str, attachment: str) -> Literal["Creating", "Available", "Attaching", "InUse", "Detaching"]:
    match status, attachment:
        case ("attaching", _) | (_, "attaching"):
            return "Attaching"
        case ("detaching", _) | (_, "detaching"):
            return "Detaching"
        case "available", _:
            return "Available"
        case "pending", _:
            return "Creating"
    return "InUse"


def read_assigned(answer: Answer) -> list[str]:
    """Return the items that an answer to an assignment names, which are of one kind."""
    found = [each["PrivateIpAddress"] for each in answer.get("AssignedPrivateIpAddresses", ())]
    found += [each["Ipv4Prefix"] for each in answer.get("AssignedIpv4Prefixes", ())]
    found += [*answer.get("AssignedIpv6Addresses", ()), *answer.get("AssignedIpv6Prefixes", ())]
    return [canonical(each) for each in found]


def read_instance(answer: Answer) -> Instance:
    """Return one machine of DescribeInstances."""
    return Instance(
        id=answer["InstanceId"],
        type=answer["InstanceType"],
        zone=answer.get("Placement", {}).get("AvailabilityZone", ""),
        subnet=answer.get("SubnetId", ""),
        groups=[group["GroupId"] for group in answer.get("SecurityGroups", ())],
        interfaces=len(answer.get("NetworkInterfaces", ())),
    )


def read_type(answer: Answer) -> InstanceType:
    """Return the limits of one type of DescribeInstanceTypes.

    The limit of a type with several network cards is that of all together, but we attach to the default one. Prefixes need Nitro.
    """
    network = answer["NetworkInfo"]
    most = network["MaximumNetworkInterfaces"]
    for card in network.get("NetworkCards", ()):
        if card["NetworkCardIndex"] == network.get("DefaultNetworkCardIndex", 0):
            most = min(most, card["MaximumNetworkInterfaces"])
    return InstanceType(
        name=answer["InstanceType"],
        interfaces=most,
        ipv4=network["Ipv4AddressesPerInterface"],
        ipv6=network.get("Ipv6AddressesPerInterface", 0) if network.get("Ipv6Supported") else 0,
        prefixes=answer.get("Hypervisor") == "nitro" or bool(answer.get("BareMetal")),
    )


def read_subnet(answer: Answer) -> Subnet:
    """Return one subnet of DescribeSubnets."""
    sixes = answer.get("Ipv6CidrBlockAssociationSet", ())
    live = [each["Ipv6CidrBlock"] for each in sixes if each.get("Ipv6CidrBlockState", {}).get("State") == "associated"]
    return Subnet(
        id=answer["SubnetId"],
        network=answer["VpcId"],
        zone=answer["AvailabilityZone"],
        cidrs=[cidr for cidr in (answer.get("CidrBlock", ""), *live) if cidr],
        free=answer.get("AvailableIpAddressCount", -1),
        tags=read_tags(answer.get("Tags", ())),
    )
