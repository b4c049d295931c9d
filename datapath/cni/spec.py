"""The CNI specification as pure functions: requests to values, values to results of each version, errors to codes.

Sources: CNI specification 1.1.0, sections 2 (execution protocol), 4 (configuration) and 5 (result types).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface
from typing import Any

import msgspec

VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The versions we speak. Older ones have another result type, and nobody asks for them any more."""

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_NAMES_POD = ("ADD", "DEL", "CHECK")
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_IFNAME_MAX = 15


class Code(IntEnum):
    """Error codes: up to 99 of the specification, from 100 on ours."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    LINK_FAILED = 100
    CHECK_FAILED = 101
    NOT_PROGRAMMED = 102
    BUG = 199


class CniError(Exception):
    """An answer that is an error: `code`, a short `message`, and `details` for the person who looks."""

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        super().__init__(f"{message}: {details}" if details else message)
        self.code = code
        self.message = message
        self.details = details


@dataclass(frozen=True, slots=True)
class Attachment:
    """A container and the name of its interface: what ADD makes and DEL removes."""

    container_id: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Pod:
    """Whose sandbox it is, as Kubernetes' runtimes say in CNI_ARGS; empty for others."""

    namespace: str = ""
    name: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of the plugin. `prev_addresses` is what CHECK's prevResult has, None without one."""

    command: str
    version: str
    attachment: Attachment = Attachment("", "")
    netns: str = ""
    pod: Pod = Pod()
    prev_addresses: frozenset[IPv4Address | IPv6Address] | None = None
    valid_attachments: frozenset[Attachment] = frozenset()


@dataclass(frozen=True, slots=True)
class Result:
    """What ADD made. `mtu` is that of the pod's device, bytes."""

    attachment: Attachment
    netns: str
    host_device: str
    host_mac: str
    mac: str
    mtu: int
    addresses: tuple[IPv4Address | IPv6Address, ...]
    gateways: Mapping[int, IPv4Address | IPv6Address]
    ranges: tuple[IPv4Network | IPv6Network, ...] = field(default=())


def parse(raw: bytes) -> Request:
    """Read what the plugin sends: `NAME=value` and NUL for each variable, an empty one, then the configuration.

    Raises `CniError` with the code that the specification gives for what is wrong.
    """
    head, _, config = raw.partition(b"\0\0")
    environment = dict(part.partition("=")[::2] for part in head.decode(errors="replace").split("\0"))
    command = environment.get("CNI_COMMAND", "")
    if command not in COMMANDS:
        raise CniError(Code.INVALID_ENVIRONMENT, "unknown CNI_COMMAND", command)
    settings = _decode(config)
    version = settings.get("cniVersion", "")
    if version not in VERSIONS:
        raise CniError(Code.INCOMPATIBLE_VERSION, "incompatible CNI versions", f"config {version!r}, plugin {list(VERSIONS)}")
    if _number(version) < _number(_SINCE.get(command, "0.0.0")):
        raise CniError(Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}", version)
    if command not in _NAMES_POD:
        return Request(command, version, valid_attachments=_valid_attachments(settings) if command == "GC" else frozenset())
    arguments = dict(part.partition("=")[::2] for part in environment.get("CNI_ARGS", "").split(";") if part)
    return Request(
        command,
        version,
        attachment=_attachment(environment),
        netns=_netns(command, environment),
        pod=Pod(*(arguments.get(f"K8S_POD_{name}", "") for name in ("NAMESPACE", "NAME", "UID"))),
        prev_addresses=_prev_addresses(settings) if command == "CHECK" else None,
    )


def version_of(raw: bytes) -> str:
    """Return the version to answer with when `parse` refused: the configuration's if we speak it, else the newest."""
    try:
        version = _decode(raw.partition(b"\0\0")[2]).get("cniVersion")
    except CniError:
        return VERSIONS[-1]
    return version if version in VERSIONS else VERSIONS[-1]


def _decode(config: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(config, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CniError(Code.DECODING_FAILURE, "network configuration cannot be decoded", str(error)) from error


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _attachment(environment: Mapping[str, str]) -> Attachment:
    container_id, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if not _CONTAINER_ID.fullmatch(container_id):
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID is missing or malformed", container_id)
    # The kernel's own rules for device names.
    is_name = 0 < len(ifname) <= _IFNAME_MAX and ifname not in (".", "..") and not re.search(r"[/:\s]", ifname)
    if not is_name:
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_IFNAME is missing or malformed", ifname)
    return Attachment(container_id, ifname)


def _netns(command: str, environment: Mapping[str, str]) -> str:
    netns = environment.get("CNI_NETNS", "")
    if command != "DEL" and not netns:
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS is missing")
    return netns


def _prev_addresses(settings: Mapping[str, Any]) -> frozenset[IPv4Address | IPv6Address] | None:
    previous = settings.get("prevResult")
    if previous is None:
        raise CniError(Code.INVALID_CONFIG, "CHECK needs a prevResult")
    try:
        return frozenset(ip_interface(item["address"]).ip for item in previous.get("ips", ()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CniError(Code.INVALID_CONFIG, "prevResult is malformed", str(error)) from error


def _valid_attachments(settings: Mapping[str, Any]) -> frozenset[Attachment]:
    # An absent list must not read as an empty one, which would remove every pod's network.
    listed = settings.get("cni.dev/valid-attachments")
    if not isinstance(listed, list):
        raise CniError(Code.INVALID_CONFIG, "GC needs cni.dev/valid-attachments")
    try:
        return frozenset(Attachment(str(item["containerID"]), str(item["ifname"])) for item in listed)
    except (KeyError, TypeError) as error:
        raise CniError(Code.INVALID_CONFIG, "cni.dev/valid-attachments is malformed", str(error)) from error


def render(version: str, result: Result) -> bytes:
    """Return ADD's answer as the given version has it."""
    ips: list[dict[str, Any]] = []
    for address in result.addresses:
        entry: dict[str, Any] = {"address": f"{address}/{address.max_prefixlen}", "interface": 1}
        entry["gateway"] = str(result.gateways[address.version])
        if _number(version) < (1, 0, 0):
            entry["version"] = str(address.version)
        ips.append(entry)
    pod = {"name": result.attachment.ifname, "mac": result.mac, "sandbox": result.netns}
    interfaces: Sequence[dict[str, Any]] = ({"name": result.host_device, "mac": result.host_mac}, pod)
    if _number(version) >= (1, 1, 0):
        interfaces = [item | {"mtu": result.mtu} for item in interfaces]
    everywhere = {4: "0.0.0.0/0", 6: "::/0"}
    routes = [
        {"dst": dst, "gw": str(result.gateways[number])}
        for number in sorted({address.version for address in result.addresses})
        for dst in (everywhere[number], *(str(net) for net in result.ranges if net.version == number))
    ]
    body = {"cniVersion": version, "interfaces": interfaces, "ips": ips, "routes": routes, "dns": {}}
    return msgspec.json.encode(body)


def render_versions(version: str) -> bytes:
    """Return VERSION's answer."""
    return msgspec.json.encode({"cniVersion": version, "supportedVersions": VERSIONS})


def render_error(version: str, error: CniError) -> bytes:
    """Return an error as the specification has it."""
    body: dict[str, Any] = {"cniVersion": version, "code": int(error.code), "msg": error.message}
    return msgspec.json.encode(body | ({"details": error.details} if error.details else {}))
