"""The node agent: one loop that joins all inputs, makes the kernel's tables match, and writes the receipt."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import msgspec
import structlog

from tidegate.crds.meta import API_VERSION
from tidegate.crds.node_state import CaptureReceipt, InterfaceFact, NodeStateStatus, PolicyReceipt, ServiceReceipt
from tidegate.crds.node_state import Failure as FailureReceipt
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath.cni.endpoints import Endpoint
from tidegate.datapath.cni.pods import ProgrammingFailed
from tidegate.datapath.facts import Facts
from tidegate.datapath.inputs import Inputs
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.lowering.egress import matching
from tidegate.datapath.order import Order
from tidegate.datapath.probes import Prober
from tidegate.datapath.source import SourceMaker
from tidegate.datapath.table import Receipt
from tidegate.kube.client import ApiError

log = structlog.get_logger()

VERSION = metadata.version("tidegate")

AUDIT_S = 5.0
"""How often the kernel is read even if nobody said that something changed."""

GATHER_S = 0.003
"""From the end of a pass until the next one: a lone change is applied at once, a burst becomes few passes."""

KNOWN_WAIT_S = 5.0
"""How long CNI ADD waits for the labels of a pod. Then the pod starts, but may not leave the cluster until they are there."""

PROGRAMMED_WAIT_S = 20.0


@dataclass(frozen=True, slots=True)
class _Done:
    """What the latest pass had in hand, and what came of it."""

    order: Order
    inputs: Inputs
    facts: Facts
    receipt: Receipt


class Agent:
    """Everything that outlives one pass. `changed` may be called at any time from the event loop."""

    def __init__(self, node: str, kernel: Kernel, make_source: SourceMaker, endpoints: Callable[[], Sequence[Endpoint]]) -> None:
        self.node = node
        self.kernel = kernel
        self.facts: Facts | None = None
        self.order: Order | None = None
        self.receipt = Receipt()
        self.passes = 0
        self._endpoints = endpoints
        self._wake = asyncio.Event()
        self._report = asyncio.Event()
        self._done: _Done | None = None
        self._passed = asyncio.Condition()
        self._saved: Inputs | None = inputs_module.load(kernel.places.state / "inputs.json", Inputs)
        self._published: bytes = b""
        self.prober = Prober(self.changed, random.random, self._saved.dead if self._saved else {})
        self.source = make_source(self.changed)

    def changed(self) -> None:
        """Say that something may be different: the loop looks again."""
        self._wake.set()

    @property
    def is_synced(self) -> bool:
        """Whether the source has delivered everything that it knows."""
        return self.source.is_synced

    def inputs(self) -> Inputs | None:
        """What is to be applied: the newest complete picture, else the saved one, else nothing."""
        found = self.source.inputs()
        return msgspec.structs.replace(found, dead=self.prober.dead()) if found is not None else self._saved

    async def run(self) -> None:
        """Loop until cancelled. A pass that raises is a bug: it is logged, and the datapath stays as it is."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.source.run())
            group.create_task(self._loop())
            group.create_task(self._report_loop())

    async def _loop(self) -> None:
        loop, ended = asyncio.get_running_loop(), 0.0
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), AUDIT_S)
            await asyncio.sleep(ended + GATHER_S - loop.time())
            self._wake.clear()
            try:
                await self._pass()
                self.prober.want(self.order.services if self.order else ())
            except Exception:
                log.exception("pass failed", bug=True, node=self.node)
                await asyncio.sleep(1)
            ended = loop.time()

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
        self._done = _Done(order, inputs, facts, self.receipt)
        self._report.set()

    async def _report_loop(self) -> None:
        """Save and publish what the latest pass did, beside the passes: neither disk nor API server delays the next."""
        while True:
            await self._report.wait()
            self._report.clear()
            done = self._done
            if done is None:
                continue
            try:
                if done.inputs != self._saved:
                    await asyncio.to_thread(inputs_module.save, self.kernel.places.state / "inputs.json", done.inputs)
                    self._saved = done.inputs
                if self.is_synced:
                    services, captures = await asyncio.to_thread(self._parts, done.order, self.prober.failing())
                    await self._publish(status(done.order, done.inputs, done.facts, done.receipt, services, captures))
            except Exception:
                log.exception("report failed", bug=True, node=self.node)

    def _parts(
        self, order: Order, failing: Mapping[str, Sequence[str]]
    ) -> tuple[Sequence[ServiceReceipt], Sequence[CaptureReceipt]]:
        """Return what the balancer and the recorder add to the receipt. Reads maps and files, so not for the event loop."""
        balancer, captures = self.kernel.balancer, self.kernel.captures
        return balancer.receipts(order, failing) if balancer else (), captures.told() if captures else ()

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
            await self.source.publish(path, document)
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


def status(
    order: Order,
    inputs: Inputs,
    facts: Facts,
    receipt: Receipt,
    services: Sequence[ServiceReceipt] = (),
    captures: Sequence[CaptureReceipt] = (),
) -> NodeStateStatus:
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
        services=services,
        captures=captures,
        failures=[FailureReceipt(owner=f.owner, table=f.table, key=f.key, message=f.message) for f in receipt.failures[:50]],
        podAddresses=sum(len(pod.addresses) for pod in order.pods),
    )
