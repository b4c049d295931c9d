"""Agents of several nodes as far as the API server can tell: heartbeats, and receipts for every order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.meta import API_VERSION
from tidegate.crds.node_state import NodeState
from tidegate.kube import client, lease
from tidegate.kube.watch import Reflector

STATES = "/apis/tidegate.io/v1alpha1/nodestates"


@dataclass
class Agents:
    """What the agents see, and how they behave."""

    lazy: set[str] = field(default_factory=set)
    failures: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    pods: dict[str, dict[str, int]] = field(default_factory=dict)
    holders: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Every change of who is told to hold or still holds an address: (address, nodes)."""

    async def work(self, kubeconfig: Path, nodes: Iterable[str]) -> None:
        """Beat and obey until cancelled."""
        async with await client.connect(str(kubeconfig)) as api:
            bell = asyncio.Event()
            states = Reflector(api, STATES, NodeState, bell.set)
            shards = Reflector(api, "/apis/tidegate.io/v1alpha1/clusterstates", ClusterState, bell.set)
            beats = (lease.heartbeat(api, node) for node in nodes)
            tasks = [asyncio.create_task(each) for each in (states.run(), shards.run(), *beats)]
            sent: dict[str, dict[str, Any]] = {}
            try:
                while True:
                    await _ring(bell)
                    self._note(states.items)
                    for name, state in list(states.items.items()):
                        status = self._receipt(name, state, shards.items)
                        if name not in self.lazy and sent.get(name) != status:
                            sent[name] = status
                            body = {"apiVersion": API_VERSION, "kind": "NodeState", "metadata": {"name": name}}
                            await api.patch_status(f"{STATES}/{name}", body | {"status": status}, "tidegate-agent")
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _note(self, states: dict[str, NodeState]) -> None:
        users: dict[str, set[str]] = {}
        for name, state in states.items():
            for held in state.spec.egressAddresses:
                users.setdefault(held.address, set()).add(name)
            for address in state.status.heldAddresses:
                users.setdefault(address, set()).add(name)
        self.holders += [(address, frozenset(nodes)) for address, nodes in sorted(users.items())]

    def _receipt(self, name: str, state: NodeState, shards: dict[str, ClusterState]) -> dict[str, Any]:
        return {
            "observedGeneration": state.metadata.generation,
            "observedShards": {key: shard.metadata.generation for key, shard in shards.items()},
            "heldAddresses": [held.address for held in state.spec.egressAddresses],
            "policies": [{"name": key, "matchedPods": count} for key, count in self.pods.get(name, {}).items()],
            "failures": self.failures.get(name, []),
        }


async def _ring(bell: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(0.1):
            await bell.wait()
    except TimeoutError:
        # Behaviour is changed from another thread, so now and then everything is looked at again.
        return
    bell.clear()


@contextmanager
def running(kubeconfig: Path, nodes: Iterable[str]) -> Iterator[Agents]:
    """Run agents for `nodes` in a thread of their own."""
    agents, ready = Agents(), threading.Event()
    stop: list[Callable[[], object]] = []

    async def work() -> None:
        task = asyncio.ensure_future(agents.work(kubeconfig, list(nodes)))
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        ready.set()
        with suppress(asyncio.CancelledError):
            await task
        # TLS connections say goodbye before they are gone.
        await asyncio.sleep(0.2)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    ready.wait()
    try:
        yield agents
    finally:
        stop[0]()
        thread.join()
        loop.close()
