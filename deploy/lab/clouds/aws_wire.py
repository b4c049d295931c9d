"""How EC2 is spoken on the wire: flat parameters in, XML out, error codes, and signatures that are recomputed.

Query protocol: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Query-Requests.html. Signatures (version 4):
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html. Codes:
https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl, quote
from xml.sax.saxutils import escape

from tidegate.lab.clouds.refusals import Refusal, Refused

VERSION = "2016-11-15"
SKEW_S = 15 * 60
"""How old a request, or how far in the future, may be: the description of `RequestExpired`."""

CODES: Mapping[Refusal, tuple[int, str]] = {
    Refusal.THROTTLED: (503, "RequestLimitExceeded"),
    Refusal.SUBNET_FULL: (400, "InsufficientFreeAddressesInSubnet"),
    Refusal.FRAGMENTED: (400, "InsufficientCidrBlocks"),
    Refusal.INTERFACE_LIMIT: (400, "AttachmentLimitExceeded"),
    Refusal.ADDRESS_LIMIT: (400, "PrivateIpAddressLimitExceeded"),
    Refusal.QUOTA: (400, "NetworkInterfaceLimitExceeded"),
    Refusal.NO_INTERFACE: (400, "InvalidNetworkInterfaceID.NotFound"),
    Refusal.NO_INSTANCE: (400, "InvalidInstanceID.NotFound"),
    Refusal.NO_SUBNET: (400, "InvalidSubnetID.NotFound"),
    Refusal.NO_GROUP: (400, "InvalidSecurityGroupID.NotFound"),
    Refusal.NO_FAMILY: (400, "InvalidParameterValue"),
    Refusal.NO_PREFIXES: (400, "UnsupportedOperation"),
    Refusal.UNSUPPORTED: (400, "UnsupportedOperation"),
    Refusal.OTHER_ZONE: (400, "InvalidParameterCombination"),
    Refusal.OTHER_NETWORK: (400, "InvalidParameter"),
    Refusal.TOO_MANY: (400, "InvalidParameterValue"),
    Refusal.INVALID: (400, "InvalidParameterValue"),
    Refusal.TOKEN_REUSED: (400, "IdempotentParameterMismatch"),
    Refusal.STATE: (400, "IncorrectState"),
    Refusal.IN_USE: (400, "InvalidNetworkInterface.InUse"),
    Refusal.INDEX_TAKEN: (400, "InvalidParameterValue"),
    Refusal.NOT_ATTACHED: (400, "InvalidAttachmentID.NotFound"),
    Refusal.NOT_ASSIGNED: (400, "InvalidParameterValue"),
    Refusal.CONFLICT: (400, "IncorrectState"),
    Refusal.BUSY: (400, "IncorrectState"),
    Refusal.DENIED: (403, "UnauthorizedOperation"),
    Refusal.SIGNATURE: (401, "AuthFailure"),
    Refusal.SKEWED: (400, "RequestExpired"),
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


def filters(parameters: Parameters) -> dict[str, list[str]]:
    """Return the filters of a Describe by name."""
    names = {}
    number = 1
    while name := parameters.get(f"Filter.{number}.Name"):
        names[name] = values(parameters, f"Filter.{number}.Value")
        number += 1
    return names


def tags(parameters: Parameters, of: str) -> dict[str, str]:
    """Return the tags for a type of resource, from its tag specification."""
    found: dict[str, str] = {}
    spec = 1
    while (kind := parameters.get(f"TagSpecification.{spec}.ResourceType")) is not None:
        tag = 1
        while kind == of and (key := parameters.get(f"TagSpecification.{spec}.Tag.{tag}.Key")) is not None:
            found[key] = parameters[f"TagSpecification.{spec}.Tag.{tag}.Value"]
            tag += 1
        spec += 1
    return found


def render(name: str, what: object) -> str:
    """Return XML: mappings are elements, sequences `item`s.

    >>> render("set", [{"id": "a<"}, {"id": True}])
    '<set><item><id>a&lt;</id></item><item><id>true</id></item></set>'
    """
    if isinstance(what, Mapping):
        inner = "".join(render(key, value) for key, value in what.items())
    elif isinstance(what, Sequence) and not isinstance(what, str):
        inner = "".join(render("item", each) for each in what)
    else:
        inner = str(what).lower() if isinstance(what, bool) else escape(str(what))
    return f"<{name}>{inner}</{name}>"


def answer(action: str, what: Mapping[str, object]) -> str:
    """Return the answer to a request that was carried out."""
    body = render("x", {"requestId": "0", **what}).removeprefix("<x>").removesuffix("</x>")
    name = f"{action}Response"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="http://ec2.amazonaws.com/doc/{VERSION}/">{body}</{name}>'


def refusal(code: str, message: str) -> str:
    """Return the answer to a request that was refused."""
    error = {"Errors": {"Error": {"Code": code, "Message": message}}, "RequestID": "0"}
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + render("Response", error)


def check(
    method: str, target: str, headers: Mapping[str, str], body: bytes, secrets: Mapping[str, str], region: str, now_s: float
) -> None:
    """Recompute a request's signature. Raises `Refused` with SIGNATURE or SKEWED.

    `target` is path and query; `secrets` are those of the keys that are known; `headers` must find names in any case.
    """
    form = r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/ec2/aws4_request, *SignedHeaders=([^,]+), *Signature=(\w+)"
    found = re.fullmatch(form, headers.get("Authorization", ""))
    if not found:
        raise Refused(Refusal.SIGNATURE, "request is not signed")
    key, day, signed_region, names, given = found.groups()
    if key not in secrets:
        raise Refused(Refusal.SIGNATURE, "AWS was not able to validate the provided access credentials")
    stamp = headers.get("X-Amz-Date", "")
    sent_s = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if abs(now_s - sent_s) > SKEW_S:
        raise Refused(Refusal.SKEWED, f"request of {stamp} has expired")
    path, _, query = target.partition("?")
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in parse_qsl(query, True))
    lines = [
        method,
        path,
        "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in names.split(";")),
        "",
        names,
        hashlib.sha256(body).hexdigest(),
    ]
    scope = f"{day}/{region}/ec2/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(chr(10).join(lines).encode()).hexdigest()}"
    secret = f"AWS4{secrets[key]}".encode()
    for part in (day, region, "ec2", "aws4_request"):
        secret = hmac.digest(secret, part.encode(), "sha256")
    right = hmac.digest(secret, text.encode(), "sha256").hex()
    if not (stamp.startswith(day) and signed_region == region and hmac.compare_digest(right, given)):
        raise Refused(Refusal.SIGNATURE, "the request signature does not match")
