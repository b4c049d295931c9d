"""What Azure Resource Manager answers, as our values: ids, interfaces, machines, subnets, and error codes.

Ids are one text in any case, and Azure itself mixes cases, so ours are in lower case. Error codes:
https://learn.microsoft.com/azure/azure-resource-manager/troubleshooting/common-deployment-errors (`SubnetIsFull` among others);
https://learn.microsoft.com/azure/azure-resource-manager/management/request-limits-and-throttling: a 429 by
`RetryableErrorDueToAnotherOperation` is a locked resource and no matter of rates;
https://github.com/Azure/aks-engine/issues/1741 (`SecondaryIpConfigurationCountPerVMSSVMExceeded`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import aiohttp

from tidegate.ipam.cloud import CloudError, InstanceType, Interface, Subnet, Trouble

Answer = Mapping[str, Any]
"""A part of an answer's JSON, with the names that it has on the wire."""

OURS = "tg-"
"""How the names of our IP configurations begin."""

MOST_CONFIGURATIONS = 256
"""Of one interface, both families and the interface's own together:
https://learn.microsoft.com/azure/azure-resource-manager/management/azure-subscription-service-limits."""

TROUBLES: Mapping[str, Trouble] = {
    "SubscriptionRequestsThrottled": Trouble.THROTTLED,
    "TooManyRequests": Trouble.THROTTLED,
    "TooManyRequestsReceived": Trouble.THROTTLED,
    "SubnetIsFull": Trouble.EXHAUSTED,
    "QuotaExceeded": Trouble.LIMIT,
    "SecondaryIpConfigurationCountPerVMSSVMExceeded": Trouble.LIMIT,
    "InvalidResourceReference": Trouble.INVALID,
    "NotFound": Trouble.GONE,
    "ResourceGroupNotFound": Trouble.GONE,
    "ResourceNotFound": Trouble.GONE,
    "AuthorizationFailed": Trouble.DENIED,
    "ExpiredAuthenticationToken": Trouble.DENIED,
    "InvalidAuthenticationToken": Trouble.DENIED,
    "InvalidAuthenticationTokenTenant": Trouble.DENIED,
    "LinkedAuthorizationFailed": Trouble.DENIED,
    "SubscriptionNotFound": Trouble.DENIED,
    "SubscriptionNotRegistered": Trouble.DENIED,
    "AnotherOperationInProgress": Trouble.CONFLICT,
    "CanceledAndSupersededDueToAnotherOperation": Trouble.CONFLICT,
    "PreconditionFailed": Trouble.CONFLICT,
    "PrivateIPAddressIsAllocated": Trouble.CONFLICT,
    "RetryableErrorDueToAnotherOperation": Trouble.CONFLICT,
    "InternalServerError": Trouble.UNAVAILABLE,
    "RetryableError": Trouble.UNAVAILABLE,
    "ServerTimeout": Trouble.UNAVAILABLE,
}

STATUSES: Mapping[int, Trouble] = {
    401: Trouble.DENIED,
    403: Trouble.DENIED,
    404: Trouble.GONE,
    408: Trouble.UNAVAILABLE,
    409: Trouble.CONFLICT,
    412: Trouble.CONFLICT,
    429: Trouble.THROTTLED,
}
"""What an answer means whose code is not listed; others are `INVALID` below 500 and `UNAVAILABLE` from there on."""


def translate(failure: Exception) -> CloudError:
    """Translate an exception of azure-core or azure-identity."""
    from azure.core import exceptions as sdk

    if not isinstance(failure, sdk.HttpResponseError):
        # Whatever breaks is a ServiceRequestError to the SDK, also after the request had left.
        inner = getattr(failure, "inner_exception", None)
        unsent = isinstance(failure, sdk.ServiceRequestTimeoutError) or isinstance(inner, aiohttp.ClientConnectorError)
        return CloudError(Trouble.UNAVAILABLE, type(failure).__name__, str(failure), done=not unsent)
    if failure.response is None:
        # Credentials that could not be had; azure-identity never quotes them.
        return CloudError(Trouble.DENIED, type(failure).__name__, failure.message)
    status, headers = failure.response.status_code, failure.response.headers
    code = (failure.error and failure.error.code) or ""
    trouble = TROUBLES.get(code) or STATUSES.get(status) or (Trouble.INVALID if 400 <= status < 500 else Trouble.UNAVAILABLE)
    message = (failure.error and failure.error.message) or failure.reason or ""
    return CloudError(trouble, code or str(status), message, done=status >= 500, retry_s=_seconds(headers.get("Retry-After", "")))


def _seconds(text: str) -> float:
    return float(text) if text.strip().isdigit() else 0.0


def read_id(id: str) -> Mapping[str, str]:
    """Return the names in an id by what they name, all in lower case.

    >>> read_id("/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/vm-1")["virtualmachines"]
    'vm-1'
    """
    parts = id.lower().strip("/").split("/")
    return dict(zip(parts[::2], parts[1::2], strict=False))


def machine_id(provider_id: str) -> str:
    """Return a machine's id, also from what a Kubernetes Node calls its provider ID (`azure:///subscriptions/...`)."""
    return "/" + provider_id.lower().removeprefix("azure://").strip("/")


def configurations(nic: Answer) -> Sequence[Answer]:
    """Return the IP configurations of an interface."""
    found: Sequence[Answer] = nic["properties"].get("ipConfigurations", ())
    return found


def read_item(configuration: Answer) -> str:
    """Return the address or prefix of an IP configuration, empty while it has none.

    >>> read_item({"properties": {"privateIPAddress": "10.0.1.16", "privateIPAddressPrefixLength": 28}})
    '10.0.1.16/28'
    """
    what = configuration["properties"]
    address, length = what.get("privateIPAddress") or "", what.get("privateIPAddressPrefixLength")
    if not address:
        return ""
    if "/" in address or length:
        return str(ip_network(address if "/" in address else f"{address}/{length}", strict=False))
    return str(ip_address(address))


def ours(nic: Answer, items: Collection[str]) -> list[str]:
    """Return the names of our IP configurations that have one of the items."""
    return [each["name"] for each in configurations(nic) if each["name"].startswith(OURS) and read_item(each) in items]


def family(configuration: Answer) -> Literal["4", "6"]:
    """Return the family of an IP configuration."""
    return "6" if configuration["properties"].get("privateIPAddressVersion") == "IPv6" else "4"


def primary(nic: Answer) -> Answer:
    """Return the interface's own IP configuration."""
    found = configurations(nic)
    return next((each for each in found if each["properties"].get("primary")), found[0])


def read_interface(nic: Answer, instance: str) -> Interface:
    """Return an interface of a machine. What is not named by us belongs to somebody else, and counts as theirs."""
    own = primary(nic)
    rest = [each for each in configurations(nic) if each is not own]
    items = [read_item(each) for each in rest if each["name"].startswith(OURS)]
    theirs = [family(each) for each in rest if not each["name"].startswith(OURS)]
    counts: dict[Literal["4", "6"], int] = {which: theirs.count(which) for which in sorted(set(theirs))}
    return Interface(
        id=nic["id"].lower(),
        mac=nic["properties"].get("macAddress", "").replace("-", ":").lower(),
        subnet=own["properties"]["subnet"]["id"].lower(),
        state="InUse",
        instance=instance,
        index=0 if nic["properties"].get("primary") else -1,
        primary=read_item(own),
        addresses=[item for item in items if item and "/" not in item],
        prefixes=[item for item in items if "/" in item],
        others=counts,
        groups=groups(nic),
        tags=nic.get("tags") or {},
    )


def groups(nic: Answer) -> list[str]:
    """Return the security group of an interface, if it has one of its own."""
    group = nic["properties"].get("networkSecurityGroup")
    return [group["id"].lower()] if group else []


def read_type(sku: Answer) -> InstanceType:
    """Return the limits of a machine's size from its resource SKU."""
    abilities = {each["name"]: each["value"] for each in sku.get("capabilities", ())}
    return InstanceType(
        name=sku["name"],
        interfaces=int(abilities.get("MaxNetworkInterfaces", 1)),
        ipv4=MOST_CONFIGURATIONS,
        ipv6=MOST_CONFIGURATIONS,
    )


def read_subnets(network: Answer, usage: Mapping[str, int]) -> Iterator[Subnet]:
    """Return the subnets of a virtual network, whose tags they share; `usage` has the free addresses by id."""
    for subnet in network["properties"].get("subnets", ()):
        what = subnet["properties"]
        yield Subnet(
            id=subnet["id"].lower(),
            network=network["id"].lower(),
            zone="",
            cidrs=what.get("addressPrefixes") or [what["addressPrefix"]],
            free=usage.get(subnet["id"].lower(), -1),
            tags=network.get("tags") or {},
        )
