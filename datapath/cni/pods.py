"""CNI's verbs carried out: an address, a link, a record, and then the wait until the kernel knows the pod's policies."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TypeVar

import msgspec
import structlog

from tidegate.datapath.cni import endpoints
from tidegate.datapath.cni.endpoints import Endpoint, EndpointStore
from tidegate.datapath.cni.spec import Attachment, CniError, Code, Request, Result
from tidegate.datapath.owned import POD_GATEWAY_MAC, POD_GATEWAY_V4, POD_GATEWAY_V6
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.podlinks import PodLink, PodLinks, host_device, pod_mac
from tidegate.ipam import allocate

log = structlog.get_logger()

Address = IPv4Address | IPv6Address
T = TypeVar("T")

_GATEWAYS = {4: ip_address(POD_GATEWAY_V4), 6: ip_address(POD_GATEWAY_V6)}
_WORKERS = 4


class ProgrammingFailed(Exception):
    """A pod's rows are not in the kernel; the message says which and why."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What new pods get. MTUs are bytes; `default_route_mtu` is 0 for that of the device.

    `cluster_cidrs` are reached with the device's MTU where the default route has a smaller one. Of `pod_cidrs` the first with a
    free address serves its family.
    """

    pod_cidrs: tuple[str, ...]
    device_mtu: int
    default_route_mtu: int = 0
    cluster_cidrs: tuple[str, ...] = ()


class Pods:
    """The sandboxes of this node. One request at a time for a container, any number for different ones.

    `settings` gives None while the node cannot take pods; `programmed` returns when an endpoint's rows are in the kernel, or
    raises `ProgrammingFailed`; `changed` is called when an endpoint went.
    """

    def __init__(
        self,
        store: EndpointStore,
        settings: Callable[[], PodSettings | None],
        programmed: Callable[[Endpoint], Awaitable[None]],
        changed: Callable[[], None],
        links: PodLinks | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._programmed = programmed
        self._changed = changed
        self._links = links or PodLinks()
        self._clock = clock
        self._reserved: set[Address] = set()
        self._last: dict[allocate.Network, Address] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()
        # Threads of its own: removing a veth takes the kernel 20 ms, and the agent's loop must not queue behind that.
        self._threads = ThreadPoolExecutor(_WORKERS, thread_name_prefix="cni")
        present = self._links.list()
        store.rebuild(present)
        store.forget_dead(present, clock())

    async def add(self, request: Request) -> Result:
        """Connect a pod, or find it connected; the result is the same. Raises `CniError`, and then nothing is left."""
        async with self._only(request.attachment.container_id):
            settings = self._settings()
            if settings is None:
                raise CniError(Code.TRY_AGAIN_LATER, "this node cannot take pods yet", _NOT_READY)
            endpoint = self._store.get(request.attachment)
            if endpoint is not None and endpoint.netns not in ("", request.netns):
                await self._remove(request.attachment)
                endpoint = None
            if endpoint is None:
                addresses = self._reserve(settings)
                try:
                    endpoint = await self._run(
                        self._connect, _endpoint(request, addresses, settings, self._links.prefix), settings
                    )
                finally:
                    self._reserved.difference_update(addresses)
            elif await self._run(self._links.check, _link(endpoint, settings)):
                endpoint = msgspec.structs.replace(endpoint, netns=request.netns)
                endpoint = await self._run(self._connect, endpoint, settings)
            try:
                await self._programmed(endpoint)
            except ProgrammingFailed as error:
                await self._remove(request.attachment)
                raise CniError(Code.TRY_AGAIN_LATER, "the pod's network could not be programmed", str(error)) from error
            return _result(request, endpoint, settings)

    async def delete(self, request: Request) -> None:
        """Disconnect a pod; neither its link, nor its record, nor its namespace need be there."""
        async with self._only(request.attachment.container_id):
            await self._remove(request.attachment)

    async def check(self, request: Request) -> None:
        """Raise `CniError` if the link, the addresses, the routes or prevResult are not as ADD left them."""
        async with self._only(request.attachment.container_id):
            endpoint = self._store.get(request.attachment)
            if endpoint is None:
                raise CniError(Code.UNKNOWN_CONTAINER, "unknown container", request.attachment.container_id)
            endpoint = msgspec.structs.replace(endpoint, netns=request.netns)
            wrong = list(await self._run(self._links.check, _link(endpoint, None)))
            if request.prev_addresses is not None:
                own = {ip_address(text) for text in endpoint.addresses}
                wrong += [f"prevResult lacks {address}" for address in sorted(own - request.prev_addresses, key=str)]
            if wrong:
                raise CniError(Code.CHECK_FAILED, "the pod's network is not as it was made", "; ".join(wrong))

    async def gc(self, request: Request) -> None:
        """Remove every endpoint and pod link that belongs to no valid attachment. Raises `CniError` after trying all."""
        valid = request.valid_attachments
        stale = [endpoint.attachment for endpoint in self._store.list() if endpoint.attachment not in valid]
        failures = []
        for attachment in stale:
            async with self._only(attachment.container_id):
                try:
                    await self._remove(attachment)
                except CniError as error:
                    failures.append(str(error))
        kept = {host_device(one.container_id, one.ifname, self._links.prefix) for one in valid}
        # An ADD may have begun since the runtime counted: what it makes has a record, or will have one at once.
        for device in set(await self._run(self._links.list)) - kept:
            if not self._locks and device not in {endpoint.host_device for endpoint in self._store.list()}:
                log.warning("pod link of no attachment removed", device=device)
                await self._run(self._links.delete, device)
        if failures:
            raise CniError(Code.IO_FAILURE, "some attachments could not be removed", "; ".join(failures))

    async def status(self) -> None:
        """Raise `CniError` while the node cannot take pods. A full range is no reason: pods come and go."""
        if self._settings() is None:
            raise CniError(Code.NOT_AVAILABLE, "this node cannot take pods yet", _NOT_READY)

    def _reserve(self, settings: PodSettings) -> tuple[Address, ...]:
        """Pick one address of each family. On the event loop, so that no two requests can pick the same."""
        networks = [ip_network(text) for text in settings.pod_cidrs]
        used = self._store.used() | self._reserved
        now_s = self._clock()
        picked: list[Address] = []
        for version in sorted({network.version for network in networks}):
            refusals: list[str] = []
            for network in (one for one in networks if one.version == version):
                last = self._last.get(network) or self._newest(network)
                try:
                    address = allocate.allocate(network, used, self._store.released, last, now_s)
                except allocate.ExhaustedError as error:
                    refusals.append(str(error))
                    continue
                self._last[network] = address
                picked.append(address)
                break
            else:
                raise CniError(Code.TRY_AGAIN_LATER, "no pod address is free on this node", "; ".join(refusals))
        self._reserved.update(picked)
        return tuple(picked)

    def _newest(self, network: allocate.Network) -> Address | None:
        """Where an earlier agent stopped, as far as what it left tells: its youngest pod, else what was released last."""
        own = (ip_address(text) for endpoint in reversed(self._store.list()) for text in endpoint.addresses)
        gone = sorted(self._store.released, key=lambda address: self._store.released[address], reverse=True)
        return next((address for address in (*own, *gone) if address in network), None)

    def _connect(self, endpoint: Endpoint, settings: PodSettings) -> Endpoint:
        """Make the link, then the record: between the two, the link's alias is the record."""
        try:
            ifindex = self._links.create(_link(endpoint, settings))
        except TableError as error:
            raise CniError(Code.LINK_FAILED, "the pod's link could not be made", str(error)) from error
        endpoint = msgspec.structs.replace(endpoint, ifindex=ifindex)
        try:
            self._store.add(endpoint)
        except OSError as error:
            self._links.delete(endpoint.host_device)
            raise CniError(Code.IO_FAILURE, "the pod's record could not be written", str(error)) from error
        return endpoint

    async def _remove(self, attachment: Attachment) -> None:
        had_record = self._store.get(attachment) is not None
        await self._run(self._disconnect, attachment)
        if had_record:
            self._changed()

    def _disconnect(self, attachment: Attachment) -> None:
        endpoint = self._store.get(attachment)
        prefix = self._links.prefix
        device = endpoint.host_device if endpoint else host_device(attachment.container_id, attachment.ifname, prefix)
        try:
            self._links.delete(device)
            self._store.remove(attachment, self._clock())
        except (TableError, OSError) as error:
            raise CniError(Code.IO_FAILURE, "the pod's network could not be removed", str(error)) from error

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments))

    @asynccontextmanager
    async def _only(self, container_id: str) -> AsyncIterator[None]:
        """Hold the container's lock; it is forgotten with its last user."""
        lock = self._locks.setdefault(container_id, asyncio.Lock())
        self._waiting[container_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[container_id] -= 1
            if not self._waiting[container_id]:
                del self._waiting[container_id], self._locks[container_id]


_NOT_READY = "the agent has no pod ranges for it; is the operator running, and does an IPPool select this node?"


def _endpoint(request: Request, addresses: Iterable[Address], settings: PodSettings, prefix: str) -> Endpoint:
    container_id, ifname = request.attachment.container_id, request.attachment.ifname
    return Endpoint(
        container_id=container_id,
        ifname=ifname,
        host_device=host_device(container_id, ifname, prefix),
        mac=pod_mac(container_id, ifname),
        addresses=tuple(str(address) for address in addresses),
        born=endpoints.monotonic_ns(),
        netns=request.netns,
        namespace=request.pod.namespace,
        name=request.pod.name,
        uid=request.pod.uid,
        mtu=settings.device_mtu,
    )


def _link(endpoint: Endpoint, settings: PodSettings | None) -> PodLink:
    return PodLink(
        host_device=endpoint.host_device,
        host_alias=endpoints.to_alias(endpoint),
        netns=endpoint.netns,
        mac=endpoint.mac,
        addresses=tuple(ip_address(text) for text in endpoint.addresses),
        mtu=endpoint.mtu,
        default_mtu=settings.default_route_mtu if settings else 0,
        ranges=tuple(ip_network(text) for text in settings.cluster_cidrs) if settings else (),
        device=endpoint.ifname,
    )


def _result(request: Request, endpoint: Endpoint, settings: PodSettings) -> Result:
    return Result(
        attachment=request.attachment,
        netns=request.netns,
        host_device=endpoint.host_device,
        host_mac=POD_GATEWAY_MAC,
        mac=endpoint.mac,
        mtu=endpoint.mtu,
        addresses=tuple(ip_address(text) for text in endpoint.addresses),
        gateways=_GATEWAYS,
        ranges=tuple(ip_network(text) for text in settings.cluster_cidrs),
    )
