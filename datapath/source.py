"""Where an agent's order comes from and its receipt goes to: an API server, or whatever stands for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.node_state import NodeState
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.inputs import Inputs, Labelled
from tidegate.kube.client import Client
from tidegate.kube.watch import Reflector

FIELD_MANAGER = "tidegate-agent"

COUNT_S = 30.0
"""How often counts that go on are told anew in a receipt: each time is a write to the API server."""


class Source(Protocol):
    """What the agent's loop needs of the world outside its node."""

    @property
    def is_synced(self) -> bool:
        """Whether the picture is as whole as it will be: only then may rows be dropped for what is not in it."""

    def inputs(self) -> Inputs | None:
        """Return the newest complete picture, or None while there is none."""

    def ages(self) -> Sequence[float]:
        """Return how many seconds ago each part of the source showed a sign of life."""

    async def publish(self, path: str, document: Mapping[str, Any]) -> None:
        """Hand over the receipt of the NodeState at `path`. Raises ApiError and OSError."""

    async def run(self) -> None:
        """Listen until cancelled."""


SourceMaker = Callable[[Callable[[], None]], Source]
"""Makes a source that calls the given function after every change."""


class ApiSource:
    """The watches of one node."""

    def __init__(self, client: Client, node: str, changed: Callable[[], None]) -> None:
        self._client, self._node = client, node
        self._states = Reflector(
            client, "/apis/tidegate.io/v1alpha1/nodestates", NodeState, changed, field_selector=f"metadata.name={node}"
        )
        self._shards = Reflector(client, "/apis/tidegate.io/v1alpha1/clusterstates", ClusterState, changed)
        self._pods = Reflector(client, "/api/v1/pods", Labelled, changed, field_selector=f"spec.nodeName={node}")
        self._namespaces = Reflector(client, "/api/v1/namespaces", Labelled, changed)
        self._nodes = Reflector(client, "/api/v1/nodes", Labelled, changed, field_selector=f"metadata.name={node}")
        self._reflectors: tuple[Reflector[Any], ...] = (
            self._states,
            self._shards,
            self._pods,
            self._namespaces,
            self._nodes,
        )

    @property
    def is_synced(self) -> bool:
        """Whether every watch has delivered its first list."""
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    def inputs(self) -> Inputs | None:
        """Join what the watches have delivered."""
        sections = inputs_module.join_shards(self._shards.items.values()) if self.is_synced else None
        own = self._states.items.get(self._node)
        labels = self._nodes.items.get(self._node)
        if sections is None or own is None or labels is None:
            return None
        return inputs_module.join(
            sections,
            own,
            self._shards.items.values(),
            node_labels=labels.metadata.labels,
            namespaces={name: item.metadata.labels for name, item in self._namespaces.items.items()},
            pods=inputs_module.known_pods(self._pods.items),
        )

    def ages(self) -> Sequence[float]:
        """Return how long each watch that has begun has been silent."""
        return [reflector.last_event_age() for reflector in self._reflectors if reflector.synced.is_set()]

    async def publish(self, path: str, document: Mapping[str, Any]) -> None:
        """Write the receipt by server-side apply."""
        await self._client.patch_status(path, document, FIELD_MANAGER)

    async def run(self) -> None:
        """Run all watches."""
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())
