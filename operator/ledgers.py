"""The stewards' own writing: nodes' ledgers and the accounts' budgets, each on condition that nobody else wrote meanwhile."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from tidegate.crds.meta import API_VERSION
from tidegate.crds.node_state import NodeCloud, NodeState
from tidegate.ipam.share import Account
from tidegate.kube.client import ApiError, Client
from tidegate.operator.store import STATES, TIDEGATE, Store
from tidegate.operator.wire import encoded

FIELD_MANAGER = "tidegate-ipam"
"""Owns `spec.cloud` of NodeStates and nothing else: the operator's own manager writes the rest."""

NAMESPACE = "/api/v1/namespaces/tidegate-system"
FINALIZER = "tidegate.io/cloud"
"""Keeps a cloud pool until nothing of it is left in the cloud."""

_TRIES = 5


class Conflict(Exception):
    """Somebody else wrote a ledger: this process leads no longer, or a person edited it."""


class _Data(msgspec.Struct):
    data: Mapping[str, str] = {}
    metadata: Mapping[str, Any] = {}


class Ledgers:
    """Writes ledgers. `known` has what is on the server, as far as we know, by node."""

    def __init__(self, client: Client, store: Store) -> None:
        self._client, self._store = client, store
        self._known: dict[str, bytes] = {}

    def read(self, node: str, pool: str) -> NodeCloud:
        """Return a node's ledger for a pool, from when on we alone write it."""
        state = self._store.states.items.get(node)
        there = state.spec.cloud if state is not None else None
        self._known[node] = encoded(there)
        if there is None or there.pool == pool:
            return there or NodeCloud(pool=pool)
        # What another pool had here is gone; its numbers are not used again.
        return NodeCloud(pool=pool, counter=there.counter, round=there.round)

    async def write(self, node: str, ledger: NodeCloud) -> None:
        """Write a ledger. Raises Conflict if it is not as we know it, ApiError and Unreachable."""
        path = f"{STATES}/{node}"
        state = self._store.states.items.get(node)
        version = state.metadata.resourceVersion if state is not None else ""
        for _ in range(_TRIES):
            meta = {"name": node} | ({"resourceVersion": version} if version else {})
            body = {"apiVersion": API_VERSION, "kind": "NodeState", "metadata": meta, "spec": {"cloud": ledger}}
            try:
                raw = await self._client.apply(path, body, FIELD_MANAGER)
            except ApiError as error:
                if error.status != 409:
                    raise
                # Receipts change the version, too.
                found = msgspec.json.decode(await self._client.get(path), type=NodeState)
                if encoded(found.spec.cloud) != self._known[node]:
                    raise Conflict(f"somebody else wrote the ledger of {node}") from error
                version = found.metadata.resourceVersion
                continue
            self._known[node] = encoded(ledger)
            self._store.states.learn(raw)
            return
        raise Conflict(f"{node} changes faster than its ledger can be written")


class Budgets:
    """The object of one account: a ConfigMap that all who spend from it change in turn."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, f"tidegate-budget-{name}"

    async def exchange(self, change: Callable[[Account], Account]) -> Account:
        """Apply a change to what is there. Raises ApiError and Unreachable."""
        path = f"{NAMESPACE}/configmaps"
        for _ in range(_TRIES):
            version = ""
            account = Account()
            try:
                found = msgspec.json.decode(await self._client.get(f"{path}/{self._name}"), type=_Data)
                version = found.metadata["resourceVersion"]
                account = msgspec.json.decode(found.data.get("account", "{}"), type=Account)
            except ApiError as error:
                if error.status != 404:
                    raise
            after = change(account)
            meta = {"name": self._name} | ({"resourceVersion": version} if version else {})
            data = {"account": encoded(after).decode()}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data}
            try:
                if version:
                    await self._client.replace(f"{path}/{self._name}", body)
                else:
                    await self._client.create(path, body)
            except ApiError as error:
                if error.status != 409:
                    raise
                continue
            return after
        raise Conflict(f"the budget {self._name} changes faster than it can be written")


async def read_secret(client: Client, namespace: str, name: str) -> Mapping[str, str]:
    """Return a Secret's contents. Raises ApiError, Unreachable and ValueError."""
    raw = await client.get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
    return {key: base64.b64decode(value).decode() for key, value in msgspec.json.decode(raw, type=_Data).data.items()}


async def read_cluster_id(client: Client) -> str:
    """Return what tells this cluster from all others: the uid of its oldest namespace. Raises ApiError and Unreachable."""
    found = msgspec.json.decode(await client.get("/api/v1/namespaces/kube-system"), type=_Data)
    return str(found.metadata["uid"])


async def set_finalizer(client: Client, pool: str, *, is_held: bool) -> None:
    """Add our finalizer to a pool, or take it away; others' are left as they are. Raises ApiError and Unreachable."""
    path = f"{TIDEGATE}/ippools/{pool}"
    for _ in range(_TRIES):
        meta = msgspec.json.decode(await client.get(path), type=_Data).metadata
        finalizers = [each for each in meta.get("finalizers", ()) if each != FINALIZER] + [FINALIZER] * is_held
        try:
            await client.merge(path, {"metadata": {"finalizers": finalizers, "resourceVersion": meta["resourceVersion"]}})
            return
        except ApiError as error:
            # Its status is written at the same time.
            if error.status != 409:
                raise
    raise Conflict(f"{pool} changes faster than its finalizers can be written")
