"""The only writer: it makes the API server hold the plan, and leaves alone what is there already."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from kubernetes_asyncio.client import ApiException

from tidegate.crds.cluster_state import ClusterStateSpec
from tidegate.crds.meta import API_VERSION, Condition
from tidegate.crds.node_state import NodeState, NodeStateSpec
from tidegate.crds.reasons import Reason
from tidegate.kube.client import ApiError, Unreachable
from tidegate.operator import metrics
from tidegate.operator.cluster import Rejected, Resource
from tidegate.operator.connect import Access
from tidegate.operator.parse import KINDS
from tidegate.operator.store import SHARDS, STATES, TIDEGATE, Store
from tidegate.operator.verdicts import Status
from tidegate.operator.wire import encoded

log = structlog.get_logger()

FIELD_MANAGER = "tidegate-operator"
AT_ONCE = 32
"""Writes under way together; the API server's own fairness queues begin to wait at a few hundred."""

QUIET = {Reason.PROGRAMMING.value, Reason.NOT_ACCEPTED.value}
"""Reasons that pass by themselves or only follow from another one: no Event for them."""


class Publisher:
    """Writes orders and statuses by server-side apply, one patch an object and round."""

    def __init__(self, access: Access, store: Store, identity: str) -> None:
        self._client, self._events, self._store, self._identity = access.client, access.events, store, identity
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._notes: set[asyncio.Task[None]] = set()

    async def orders(self, states: Mapping[str, NodeStateSpec], shards: Mapping[str, ClusterStateSpec]) -> bool:
        """Write what changed; returns whether everything is written.

        Nodes come first: a rule must not name a gateway that has not been told to hold its address. New shards come
        before the others, whose `count` tells readers to expect them; removed ones go last.
        """
        held_states, held_shards = self._store.states.items, self._store.shards.items
        new_states = [name for name in states if not _has_order(held_states.get(name), states[name])]
        if not await self._all(self._state(name, states[name]) for name in new_states):
            return False
        changed = [name for name in shards if not _holds(held_shards.get(name), shards[name])]
        for batch in (
            [name for name in changed if name not in held_shards],
            [name for name in changed if name in held_shards],
        ):
            if not await self._all(self._shard(name, shards[name]) for name in batch):
                return False
        gone_states = self._unwanted(held_states.keys() - states.keys(), "NodeState", STATES)
        gone_shards = self._unwanted(held_shards.keys() - shards.keys(), "ClusterState", SHARDS)
        return await self._all([*gone_states, *gone_shards])

    async def statuses(self, statuses: Mapping[str, Status]) -> bool:
        """Write the statuses that changed, and an Event for each new finding; returns whether all are written."""
        work = []
        for key, status in statuses.items():
            kind, _, name = key.partition("/")
            held = self._store.resources[kind].get(name)
            if held is not None and (isinstance(held, Rejected) or encoded(held.status) != encoded(status)):
                if isinstance(held, Rejected) and encoded(held.conditions) == encoded(status.conditions):
                    continue
                work.append(self._status(kind, held, status))
        return await self._all(work)

    async def _all(self, work: Iterable[Awaitable[bool]]) -> bool:
        return all(await asyncio.gather(*work))

    async def _state(self, name: str, spec: NodeStateSpec) -> bool:
        raw = await self._write("NodeState", f"{STATES}/{name}", _body("NodeState", name, spec=spec))
        if raw is not None:
            self._store.states.learn(raw)
        return raw is not None

    async def _shard(self, name: str, spec: ClusterStateSpec) -> bool:
        raw = await self._write("ClusterState", f"{SHARDS}/{name}", _body("ClusterState", name, spec=spec))
        if raw is not None:
            self._store.shards.learn(raw)
        return raw is not None

    async def _status(self, kind: str, held: Resource | Rejected, status: Status) -> bool:
        name = held.metadata.name
        path = f"{TIDEGATE}/{KINDS[kind].plural}/{name}/status"
        raw = await self._write(kind, path, _body(kind, name, status=status))
        if raw is None:
            return False
        if raw:
            before = held.conditions if isinstance(held, Rejected) else held.status.conditions
            for condition in _news(before, status.conditions):
                self._note(kind, held, condition)
            self._store.take(kind, msgspec.json.decode(raw))
        return True

    def _unwanted(self, names: Iterable[str], kind: str, path: str) -> list[Awaitable[bool]]:
        return [self._delete(kind, path, name) for name in sorted(names)]

    async def _delete(self, kind: str, path: str, name: str) -> bool:
        async with self._slots:
            try:
                await self._client.delete(f"{path}/{name}")
            except (ApiError, Unreachable) as error:
                metrics.WRITES.labels(kind, "failed").inc()
                log.warning("not deleted", resource=f"{kind}/{name}", reason=str(error))
                return False
        metrics.WRITES.labels(kind, "deleted").inc()
        (self._store.states if path == STATES else self._store.shards).forget(name)
        return True

    async def _write(self, kind: str, path: str, body: Mapping[str, Any]) -> bytes | None:
        """Apply one object: its new text, nothing where it is gone meanwhile, None where it failed."""
        async with self._slots:
            try:
                raw = await self._client.apply(path, body, FIELD_MANAGER)
            except (ApiError, Unreachable) as error:
                if isinstance(error, ApiError) and error.status == 404 and path.endswith("/status"):
                    return b""
                metrics.WRITES.labels(kind, "failed").inc()
                log.warning("not written", resource=f"{kind}/{body['metadata']['name']}", reason=str(error))
                return None
        metrics.WRITES.labels(kind, "written").inc()
        return raw

    def _note(self, kind: str, held: Resource | Rejected, condition: Condition) -> None:
        log.info(
            "condition", resource=f"{kind}/{held.metadata.name}", condition=condition.type, status=condition.status,
            reason=condition.reason, message=condition.message,
        )  # fmt: skip
        if condition.reason in QUIET:
            return
        body = {
            "metadata": {"name": f"{held.metadata.name[:200]}.{secrets.token_hex(8)}", "namespace": "default"},
            "eventTime": datetime.now(UTC),
            "reportingController": "tidegate.io/operator",
            "reportingInstance": self._identity[:128],
            "action": condition.type,
            "reason": condition.reason,
            "note": condition.message[:1024],
            "type": "Normal" if condition.status == "True" else "Warning",
            "regarding": {
                "apiVersion": API_VERSION, "kind": kind, "name": held.metadata.name, "uid": held.metadata.uid,
            },
        }  # fmt: skip
        task = asyncio.create_task(self._send_event(body))
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _send_event(self, body: Mapping[str, Any]) -> None:
        try:
            async with self._slots:
                await self._events.create_namespaced_event("default", body)
        except (ApiException, OSError, TimeoutError) as error:
            # An Event is a courtesy: the condition says the same, so it is not sent again.
            reason = error.body if isinstance(error, ApiException) else str(error)
            log.warning("event not sent", resource=body["regarding"]["name"], reason=reason)


def _body(kind: str, name: str, **content: msgspec.Struct) -> dict[str, Any]:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, **content}


def _has_order(held: NodeState | None, spec: NodeStateSpec) -> bool:
    return held is not None and encoded(msgspec.structs.replace(held.spec, cloud=None)) == encoded(spec)


def _holds(held: Any, spec: msgspec.Struct) -> bool:
    return held is not None and encoded(held.spec) == encoded(spec)


def _news(before: Sequence[Condition], after: Sequence[Condition]) -> list[Condition]:
    known = {(each.type, each.status, each.reason) for each in before}
    return [each for each in after if (each.type, each.status, each.reason) not in known]
