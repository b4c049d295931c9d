"""The node agent: one loop that joins all inputs, makes the kernel's tables match, and writes the receipt."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import msgspec
import structlog

from tidegate.crds.cluster_state import ClusterState
from tidegate.crds.meta import API_VERSION
from tidegate.crds.node_state import Failure as FailureReceipt
from tidegate.crds.node_state import InterfaceFact, NodeState, NodeStateStatus, PolicyReceipt
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.cni.endpoints import Endpoint
from tidegate.datapath.cni.pods import ProgrammingFailed
from tidegate.datapath.facts import Facts
from tidegate.datapath.inputs import Inputs, Labelled
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.lowering.egress import matching
from tidegate.datapath.order import Order
from tidegate.datapath.table import Receipt
from tidegate.kube.client import ApiError, Client
from tidegate.kube.watch import Reflector

log = structlog.get_logger()

VERSION = metadata.version("tidegate")

AUDIT_S = 5.0
"""How often the kernel is read even if nobody said that something changed."""

GATHER_S = 0.003
"""How long changes are gathered before they are applied: a burst of events becomes one pass."""

KNOWN_WAIT_S = 5.0
"""How long CNI ADD waits for the labels of a pod. Then the pod starts, but may not leave the cluster until they are there."""

PROGRAMMED_WAIT_S = 20.0


class Agent:
    """Everything that outlives one pass. `changed` may be called at any time from the event loop."""

    def __init__(self, node: str, kernel: Kernel, client: Client, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        self.node = node
        self.kernel = kernel
        self.facts: Facts | None = None
        self.order: Order | None = None
        self.receipt = Receipt()
        self.passes = 0
        self._client = client
        self._endpoints = endpoints
        self._wake = asyncio.Event()
        self._passed = asyncio.Condition()
        self._saved: Inputs | None = inputs_module.load(kernel.places.state / "inputs.json")
        self._published: bytes = b""
        self._states = Reflector(
            client, "/apis/tidegate.io/v1alpha1/nodestates", NodeState, self.changed, field_selector=f"metadata.name={node}"
        )
        self._shards = Reflector(client, "/apis/tidegate.io/v1alpha1/clusterstates", ClusterState, self.changed)
        self._pods = Reflector(client, "/api/v1/pods", Labelled, self.changed, field_selector=f"spec.nodeName={node}")
        self._namespaces = Reflector(client, "/api/v1/namespaces", Labelled, self.changed)
        self._nodes = Reflector(client, "/api/v1/nodes", Labelled, self.changed, field_selector=f"metadata.name={node}")
        self.reflectors: tuple[Reflector[Any], ...] = (
            self._states,
            self._shards,
            self._pods,
            self._namespaces,
            self._nodes,
        )

    def changed(self) -> None:
        """Say that something may be different: the loop looks again."""
        self._wake.set()

    @property
    def is_synced(self) -> bool:
        """Whether every watch has delivered its first list."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    def inputs(self) -> Inputs | None:
        """What is to be applied: the newest complete picture, else the saved one, else nothing."""
        sections = inputs_module.join_shards(self._shards.items.values()) if self.is_synced else None
        own = self._states.items.get(self.node)
        labels = self._nodes.items.get(self.node)
        if sections is None or own is None or labels is None:
            return self._saved
        return Inputs(
            network=sections.network,
            cluster_cidrs=sections.cluster_cidrs,
            peers=sections.peers,
            rules=sections.rules,
            services=sections.services,
            captures=sections.captures,
            state=own.spec,
            state_generation=own.metadata.generation,
            shards={state.metadata.name: state.metadata.generation for state in self._shards.items.values()},
            node_labels=labels.metadata.labels,
            namespaces={name: item.metadata.labels for name, item in self._namespaces.items.items()},
            pods=inputs_module.known_pods(self._pods.items),
        )

    async def run(self) -> None:
        """Loop until cancelled. A pass that raises is a bug: it is logged, and the datapath stays as it is."""
        async with asyncio.TaskGroup() as group:
            for reflector in self.reflectors:
                group.create_task(reflector.run())
            group.create_task(self._loop())

    async def _loop(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), AUDIT_S)
            await asyncio.sleep(GATHER_S)
            self._wake.clear()
            try:
                await self._pass()
            except Exception:
                log.exception("pass failed", bug=True, node=self.node)
                await asyncio.sleep(1)

    async def _pass(self) -> None:
        inputs = self.inputs()
        if inputs is None:
            return
        order = inputs_module.order(self.node, inputs, self._endpoints())
        is_fresh = inputs is not self._saved or self.is_synced
        facts, self.receipt = await asyncio.to_thread(self.kernel.apply, order, may_drop=is_fresh)
        self.facts = facts
        async with self._passed:
            self.order = order
            self.passes += 1
            self._passed.notify_all()
        if inputs != self._saved:
            await asyncio.to_thread(inputs_module.save, self.kernel.places.state / "inputs.json", inputs)
            self._saved = inputs
        if self.is_synced:
            await self._publish(status(order, inputs, facts, self.receipt))

    async def _publish(self, receipt: NodeStateStatus) -> None:
        body = msgspec.json.encode(receipt)
        if body == self._published:
            return
        path = f"/apis/tidegate.io/v1alpha1/nodestates/{self.node}"
        document: dict[str, Any] = {
            "apiVersion": API_VERSION,
            "kind": "NodeState",
            "metadata": {"name": self.node},
            "status": msgspec.json.decode(body),
        }
        try:
            await self._client.patch_status(path, document, "tidegate-agent")
            self._published = body
        except (ApiError, OSError) as error:
            log.warning("receipt not written; the next pass tries again", node=self.node, reason=str(error))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds after a pass."""
        async with self._passed:
            await self._passed.wait_for(condition)

    async def programmed(self, endpoint: Endpoint) -> None:
        """Return when the pod's rows are in the kernel. Raises ProgrammingFailed; called as the last step of CNI ADD."""
        loop = asyncio.get_running_loop()
        start = loop.time()
        before = self.passes
        self.changed()
        owner = f"Pod/{endpoint.namespace}/{endpoint.name}"
        async with self._passed:
            while True:
                waited = loop.time() - start
                pod = next((p for p in (self.order.pods if self.order else ()) if p.device == endpoint.host_device), None)
                if self.passes > before and pod is not None and pod.born == endpoint.born:
                    failed = [failure for failure in self.receipt.failures if failure.owner == owner]
                    if not failed and (pod.is_known or waited > KNOWN_WAIT_S):
                        return
                    if failed and waited > KNOWN_WAIT_S:
                        raise ProgrammingFailed("; ".join(f"{f.table} {f.key}: {f.message}" for f in failed))
                if waited > PROGRAMMED_WAIT_S:
                    raise ProgrammingFailed("the agent has no order for this node yet: is the operator running?")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._passed.wait(), 1.0)


def status(order: Order, inputs: Inputs, facts: Facts, receipt: Receipt) -> NodeStateStatus:
    """Fold what was done into the receipt that the operator reads."""
    failed = {(failure.table, failure.owner) for failure in receipt.failures}
    broken = {owner for _, owner in failed}
    # What could not be dropped is still answered for: the operator must not give it to another node yet.
    kept = [f.key.partition("/")[0] for f in receipt.failures if f.table == "routes" and not f.owner and f.key]
    held = [item.address for item in order.state.egressAddresses if item.owner not in broken] + kept
    matched: dict[str, int] = {rule.name: 0 for rule in order.rules}
    for pod in order.pods:
        for rule in matching(order, pod) if pod.is_known else ():
            matched[rule.name] += 1
    uplinks = {uplink.name for uplink in facts.uplinks}
    return NodeStateStatus(
        observedGeneration=inputs.state_generation,
        observedShards=inputs.shards,
        agentVersion=VERSION,
        kernel=facts.kernel,
        mtu=min((uplink.mtu for uplink in facts.uplinks), default=0),
        interfaces=[
            InterfaceFact(
                name=item.name,
                addresses=[str(address) for address in item.addresses],
                mtu=item.mtu,
                isUplink=item.name in uplinks,
            )
            for item in facts.interfaces
        ],
        heldAddresses=held,
        policies=[PolicyReceipt(name=name, matchedPods=count) for name, count in matched.items() if count],
        failures=[FailureReceipt(owner=f.owner, table=f.table, key=f.key, message=f.message) for f in receipt.failures[:50]],
        podAddresses=sum(len(pod.addresses) for pod in order.pods),
    )
