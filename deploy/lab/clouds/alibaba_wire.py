"""How Alibaba Cloud is spoken on the wire: signed parameters of an RPC call in, JSON out, and its error codes.

Signatures (HMAC-SHA1): https://www.alibabacloud.com/help/en/sdk/product-overview/rpc-mechanism. Codes, by action:
https://help.aliyun.com/document_detail/85917.html (AssignPrivateIpAddresses), 85919 (UnassignPrivateIpAddresses), 98610
(AssignIpv6Addresses), 58504 (CreateNetworkInterface); those of all actions: https://error-center.aliyun.com/status/product/Ecs.
Tokens: https://www.alibabacloud.com/help/doc-detail/25693.htm. A subnet without a whole prefix has no code of its own there.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from tidegate.lab.clouds.refusals import RawRefused, Refusal, Refused

SKEW_S = 15 * 60
"""How far a request's time may be from the provider's."""

CODES: Mapping[Refusal, tuple[int, str]] = {
    Refusal.THROTTLED: (400, "Throttling.User"),
    Refusal.SUBNET_FULL: (403, "InvalidVSwitchId.IpNotEnough"),
    Refusal.FRAGMENTED: (403, "InvalidVSwitchId.IpNotEnough"),
    Refusal.INTERFACE_LIMIT: (403, "EniPerInstanceLimitExceeded"),
    Refusal.ADDRESS_LIMIT: (403, "InvalidOperation.Ipv4CountExceeded"),
    Refusal.QUOTA: (403, "MaxEniCountExceeded"),
    Refusal.NO_INTERFACE: (404, "InvalidEniId.NotFound"),
    Refusal.NO_INSTANCE: (404, "InvalidInstanceId.NotFound"),
    Refusal.NO_SUBNET: (404, "InvalidVSwitchId.NotFound"),
    Refusal.NO_GROUP: (404, "InvalidSecurityGroupId.NotFound"),
    Refusal.NO_FAMILY: (403, "InvalidVSwitch.Ipv6NotTurnOn"),
    Refusal.NO_PREFIXES: (400, "UnsupportedParameter"),
    Refusal.UNSUPPORTED: (400, "UnsupportedParameter"),
    Refusal.OTHER_ZONE: (403, "InvalidOperation.AvailabilityZoneMismatch"),
    Refusal.OTHER_NETWORK: (403, "InvalidOperation.VpcMismatch"),
    Refusal.TOO_MANY: (400, "InvalidParameter"),
    Refusal.INVALID: (400, "InvalidParameter"),
    Refusal.TOKEN_REUSED: (400, "IdempotentParameterMismatch"),
    Refusal.STATE: (400, "InvalidOperation.InvalidEniState"),
    Refusal.IN_USE: (400, "InvalidOperation.InvalidEniState"),
    Refusal.INDEX_TAKEN: (403, "Operation.Conflict"),
    Refusal.NOT_ATTACHED: (400, "InvalidOperation.InvalidEniState"),
    Refusal.NOT_ASSIGNED: (403, "InvalidIp.IpUnassigned"),
    Refusal.CONFLICT: (403, "Operation.Conflict"),
    Refusal.BUSY: (403, "Operation.Conflict"),
    Refusal.DENIED: (403, "Forbidden.RAM"),
    Refusal.SIGNATURE: (400, "SignatureDoesNotMatch"),
    Refusal.SKEWED: (400, "InvalidTimeStamp.Expired"),
    Refusal.SERVER: (500, "InternalError"),
}

Parameters = Mapping[str, str]


def values(parameters: Parameters, name: str) -> list[str]:
    """Return `name.1`, `name.2` and so on.

    >>> values({"Ipv6Prefix.2": "b", "Ipv6Prefix.1": "a"}, "Ipv6Prefix")
    ['a', 'b']
    """
    found: list[str] = []
    while (value := parameters.get(f"{name}.{len(found) + 1}")) is not None:
        found.append(value)
    return found


def tags(parameters: Parameters) -> dict[str, str]:
    """Return `Tag.1.Key`, `Tag.1.Value` and so on."""
    found: dict[str, str] = {}
    while (key := parameters.get(f"Tag.{len(found) + 1}.Key")) is not None:
        found[key] = parameters.get(f"Tag.{len(found) + 1}.Value", "")
    return found


def listed(parameters: Parameters, name: str) -> list[str]:
    """Return a parameter that is a list in JSON; empty where it is not given. Raises `Refused` with INVALID."""
    found = json.loads(parameters.get(name, "[]"))
    if not isinstance(found, list) or len(found) > 100:
        raise Refused(Refusal.INVALID, f"{name} is a list of at most 100")
    return found


def code(refused: Refused, action: str) -> tuple[int, str]:
    """Return status and code; the limit of addresses has one for each family."""
    if refused.why is Refusal.ADDRESS_LIMIT and "IPv6" in refused.message:
        return 403, "InvalidOperation.Ipv6CountExceeded"
    if refused.why is Refusal.NO_INSTANCE and action == "DetachNetworkInterface":
        return 404, "InvalidEcsId.NotFound"
    return CODES[refused.why]


def check(method: str, parameters: Parameters, secrets: Mapping[str, str], now_s: float) -> None:
    """Recompute a request's signature. Raises `Refused` with SIGNATURE or SKEWED, `RawRefused` for an unknown key."""
    key = parameters.get("AccessKeyId", "")
    if key not in secrets:
        raise RawRefused(404, "InvalidAccessKeyId.NotFound", "Specified access key is not found.")
    sent = datetime.strptime(parameters.get("Timestamp", ""), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    if abs(sent.timestamp() - now_s) > SKEW_S:
        raise Refused(Refusal.SKEWED, "Specified time stamp or date value is expired.")
    pairs = sorted((name, value) for name, value in parameters.items() if name != "Signature")
    text = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in pairs)
    signed = f"{method}&%2F&{_quoted(text)}"
    right = base64.b64encode(hmac.digest(f"{secrets[key]}&".encode(), signed.encode(), "sha1")).decode()
    if not hmac.compare_digest(right, parameters.get("Signature", "")):
        message = f"Specified signature is not matched with our calculation. server string to sign is:{signed}"
        raise Refused(Refusal.SIGNATURE, message)


def page(ids: Sequence[str], parameters: Parameters, most: int) -> tuple[Sequence[str], str]:
    """Return the ids of one page, and the token of the next one; a page has 10 to `most` of them, whatever is asked."""
    size = min(max(int(parameters.get("MaxResults", "10")), 10), most)
    last = base64.urlsafe_b64decode(parameters.get("NextToken", "")).decode()
    rest = sorted(id for id in ids if id > last)
    return rest[:size], base64.urlsafe_b64encode(rest[size - 1].encode()).decode() if len(rest) > size else ""


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
