"""The pod sandboxes of this node, one file each, so that a new agent knows the pods that an earlier one connected."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from tidegate.datapath.cni.spec import Attachment
from tidegate.ipam import allocate

log = structlog.get_logger()

Address = IPv4Address | IPv6Address

T = TypeVar("T")

_ALIAS_BYTES = 255  # IFALIASZ - 1 of the kernel
_RELEASED = "released"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment of one sandbox. `born` is CLOCK_MONOTONIC in ns, which BPF programs read too; `mtu` is in bytes.

    `namespace`, `name` and `uid` are the pod's; empty if the runtime did not say, or if a link could not keep them.
    """

    container_id: str
    ifname: str
    host_device: str
    mac: str
    addresses: tuple[str, ...]
    born: int
    netns: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    ifindex: int = 0
    mtu: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no address, which msgspec reports as it does a wrong type."""
        for text in self.addresses:
            ip_address(text)

    @property
    def attachment(self) -> Attachment:
        """What names it."""
        return Attachment(self.container_id, self.ifname)

    @property
    def owner(self) -> str:
        """The resource that it serves."""
        return f"Pod/{self.namespace}/{self.name}"


def to_alias(endpoint: Endpoint) -> str:
    """Return what the link's alias keeps of an endpoint; a pod's name that is too long for the kernel is left out."""
    known = [endpoint.container_id, endpoint.ifname, endpoint.mac, endpoint.born, endpoint.mtu, endpoint.addresses]
    full = msgspec.json.encode([*known, endpoint.namespace, endpoint.name])
    return (full if len(full) <= _ALIAS_BYTES else msgspec.json.encode([*known, "", ""])).decode()


def from_alias(device: str, alias: str) -> Endpoint | None:
    """Return the endpoint that a link's alias describes; None if it describes none.

    >>> pod = Endpoint(container_id="c", ifname="eth0", host_device="tg1", mac="02:..", addresses=("10.0.0.2",), born=7)
    >>> from_alias("tg1", to_alias(pod)) == pod
    True
    """
    try:
        fields = msgspec.json.decode(alias, type=tuple[str, str, str, int, int, tuple[str, ...], str, str])
        container_id, ifname, mac, born, mtu, addresses, namespace, name = fields
        return Endpoint(
            container_id=container_id,
            ifname=ifname,
            host_device=device,
            mac=mac,
            addresses=addresses,
            born=born,
            mtu=mtu,
            namespace=namespace,
            name=name,
        )
    except (msgspec.MsgspecError, ValueError):
        return None


class _Released(msgspec.Struct, frozen=True):
    """When addresses were given back, in seconds since the epoch."""

    since: dict[str, float]

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        for text in self.since:
            ip_address(text)


class EndpointStore:
    """All endpoints in memory and on disk, and when addresses were released (seconds since the epoch).

    `add` and `remove` write first and then remember. Any thread may call them, but one at a time for an attachment.
    Released addresses are written without waiting for the disk: to lose them takes a power failure, which no sandbox
    survives either.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._endpoints: dict[Attachment, Endpoint] = {}
        self.released: dict[Address, float] = {}
        self._load()

    def _load(self) -> None:
        for leftover in self._folder.glob("*.new"):
            leftover.unlink()
        for path in sorted(self._folder.glob("*.json")):
            endpoint = _read(path, Endpoint)
            if endpoint is not None:
                self._endpoints[endpoint.attachment] = endpoint
        released = _read(self._folder / _RELEASED, _Released) or _Released({})
        self.released = {ip_address(text): when for text, when in released.since.items()}

    def list(self) -> Sequence[Endpoint]:
        """Return all endpoints, oldest first."""
        return sorted(self._endpoints.values(), key=lambda endpoint: (endpoint.born, endpoint.container_id))

    def get(self, attachment: Attachment) -> Endpoint | None:
        """Return the endpoint of an attachment, or None."""
        return self._endpoints.get(attachment)

    def used(self) -> set[Address]:
        """Return the addresses that endpoints have."""
        return {ip_address(text) for endpoint in self.list() for text in endpoint.addresses}

    def add(self, endpoint: Endpoint) -> None:
        """Keep an endpoint. Raises OSError if it cannot be written."""
        _write(self._path(endpoint.attachment), endpoint, is_durable=True)
        self._endpoints[endpoint.attachment] = endpoint

    def remove(self, attachment: Attachment, now_s: float) -> None:
        """Forget an endpoint and note when its addresses were released; there need not be one."""
        endpoint = self._endpoints.get(attachment)
        if endpoint is not None:
            # Noted before the file goes: a crash in between must not make the address free at once.
            self.release([ip_address(text) for text in endpoint.addresses], now_s)
            self._path(attachment).unlink(missing_ok=True)
            del self._endpoints[attachment]

    def release(self, addresses: Sequence[Address], now_s: float) -> None:
        """Note when addresses were given back, and drop notes that no longer matter."""
        with self._lock:
            self.released = allocate.still_resting(self.released, now_s) | dict.fromkeys(addresses, now_s)
            notes = _Released({str(address): when for address, when in self.released.items()})
            _write(self._folder / _RELEASED, notes, is_durable=False)

    def rebuild(self, links: Mapping[str, str]) -> None:
        """Add what links (device -> alias) tell of sandboxes whose file was lost."""
        known = {endpoint.host_device for endpoint in self._endpoints.values()}
        for device, alias in links.items():
            if device in known:
                continue
            endpoint = from_alias(device, alias)
            if endpoint is None:
                log.warning("pod link without a record, and its alias tells nothing", device=device, reason=alias)
                continue
            log.warning("record of a sandbox rebuilt from its link", device=device, owner=endpoint.owner)
            self.add(endpoint)

    def forget_dead(self, links: Mapping[str, str], now_s: float) -> None:
        """Drop records of sandboxes that ended with the machine: neither their link nor their namespace is there."""
        for endpoint in self.list():
            if endpoint.host_device not in links and not (endpoint.netns and Path(endpoint.netns).exists()):
                log.info("sandbox is gone", device=endpoint.host_device, owner=endpoint.owner)
                self.remove(endpoint.attachment, now_s)

    def _path(self, attachment: Attachment) -> Path:
        # A digest: an interface's name may hold anything but a slash, and both together may be too long for a file.
        digest = hashlib.blake2b(f"{attachment.container_id}/{attachment.ifname}".encode(), digest_size=16).hexdigest()
        return self._folder / f"{digest}.json"


def monotonic_ns() -> int:
    """Return CLOCK_MONOTONIC, the clock of `bpf_ktime_get_ns`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _read(path: Path, kind: type[T]) -> T | None:
    """Read a file; one that is corrupt is set aside."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        aside = path.with_name(f"{path.name}.corrupt")
        path.replace(aside)
        log.warning("corrupt file set aside", path=str(aside), reason=str(error))
        return None


def _write(path: Path, value: object, *, is_durable: bool) -> None:
    """Write a file in one step: a crash leaves the old one or the new one."""
    temporary = path.with_name(f"{path.name}.new")
    try:
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(value))
            if is_durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
