"""Who is alive and who leads, told by Lease objects: a heartbeat of every agent, one leader among the operators."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import structlog

from tidegate.crds.meta import Model, ObjectMeta
from tidegate.kube.client import ApiError, Client, Unreachable

log = structlog.get_logger()

NAMESPACE = "tidegate-system"
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
LEADER = "tidegate-operator"
NODE_PREFIX = "tidegate-"

HEARTBEAT_S = 10.0
ALIVE_S = 35.0
"""An agent is dead after three missed heartbeats and a little for their way."""

LEASE_S, RENEW_DEADLINE_S, RETRY_S = 15.0, 10.0, 2.0
"""client-go's figures: a lease lasts 15 s, its holder gives up after 10 s without renewing, all try every 2 s."""


class LeaseSpec(Model):
    """The fields of a Lease that we use; times are RFC 3339 with microseconds."""

    holderIdentity: str | None = None
    renewTime: str | None = None
    acquireTime: str | None = None
    leaseDurationSeconds: int | None = None
    leaseTransitions: int | None = None


class Lease(Model):
    """A coordination.k8s.io/v1 Lease."""

    metadata: ObjectMeta
    spec: LeaseSpec = LeaseSpec()


def stamp(now: datetime) -> str:
    """Render `now` as the API's MicroTime.

    >>> stamp(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    '2030-01-02T03:04:05.000000Z'
    """
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def heartbeat(client: Client, node: str) -> None:
    """Renew this node's lease every 10 s until cancelled; a server that is away is asked again at the next beat."""
    name = NODE_PREFIX + node
    while True:
        spec = LeaseSpec(holderIdentity=node, leaseDurationSeconds=int(ALIVE_S), renewTime=stamp(datetime.now(UTC)))
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": spec}
        try:
            await client.apply(f"{LEASES}/{name}", body, field_manager="tidegate-agent")
        except (ApiError, Unreachable) as error:
            log.warning("heartbeat not sent", node=node, reason=str(error))
            await asyncio.sleep(RETRY_S)
            continue
        await asyncio.sleep(HEARTBEAT_S)


class Election:
    """One contender for the lease `tidegate-operator`. It never compares its own clock with another's."""

    def __init__(self, client: Client, identity: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._identity, self._clock = client, identity, clock
        self._record: LeaseSpec | None = None
        self._record_seen = 0.0

    async def acquire(self) -> None:
        """Return once we lead."""
        while True:
            if await self._try():
                return
            await asyncio.sleep(RETRY_S)

    async def hold(self) -> None:
        """Renew until the lease is lost, and return then: the caller must stop writing at once."""
        renewed = self._clock()
        while self._clock() - renewed < RENEW_DEADLINE_S:
            await asyncio.sleep(RETRY_S)
            try:
                async with asyncio.timeout(RENEW_DEADLINE_S - (self._clock() - renewed)):
                    if await self._try():
                        renewed = self._clock()
                    elif self._record is not None and self._record.holderIdentity != self._identity:
                        return
            except TimeoutError:
                return

    async def release(self) -> None:
        """Give the lease back on a clean stop, so that the other replica need not wait 15 s."""
        try:
            lease = msgspec.json.decode(await self._client.get(f"{LEASES}/{LEADER}"), type=Lease)
            if lease.spec.holderIdentity == self._identity:
                await self._write(lease, msgspec.structs.replace(lease.spec, holderIdentity="", leaseDurationSeconds=1))
        except (ApiError, Unreachable) as error:
            log.warning("lease not released", reason=str(error))

    async def _try(self) -> bool:
        now = stamp(datetime.now(UTC))
        ours = LeaseSpec(
            holderIdentity=self._identity, leaseDurationSeconds=int(LEASE_S), acquireTime=now, renewTime=now,
            leaseTransitions=0,
        )  # fmt: skip
        try:
            try:
                lease = msgspec.json.decode(await self._client.get(f"{LEASES}/{LEADER}"), type=Lease)
            except ApiError as error:
                if error.status != 404:
                    raise
                await self._client.create(LEASES, _body(None, ours))
                return True
            if lease.spec != self._record:
                self._record, self._record_seen = lease.spec, self._clock()
            if lease.spec.holderIdentity == self._identity:
                ours = msgspec.structs.replace(
                    ours, acquireTime=lease.spec.acquireTime, leaseTransitions=lease.spec.leaseTransitions
                )
            elif lease.spec.holderIdentity and self._clock() - self._record_seen < (lease.spec.leaseDurationSeconds or LEASE_S):
                return False
            else:
                ours = msgspec.structs.replace(ours, leaseTransitions=(lease.spec.leaseTransitions or 0) + 1)
            await self._write(lease, ours)
            return True
        except (ApiError, Unreachable) as error:
            # A conflict is the other contender being faster; anything else is tried again until the deadline.
            log.info("lease not taken", reason=str(error))
            return False

    async def _write(self, lease: Lease, spec: LeaseSpec) -> None:
        await self._client.replace(f"{LEASES}/{LEADER}", _body(lease.metadata.resourceVersion, spec))
        self._record, self._record_seen = spec, self._clock()


def _body(version: str | None, spec: LeaseSpec) -> dict[str, object]:
    meta = {"name": LEADER, "namespace": NAMESPACE} | ({"resourceVersion": version} if version else {})
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}
