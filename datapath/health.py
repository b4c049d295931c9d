"""What the agent says of itself over HTTP: liveness, readiness, metrics, and a status for `tidegate agent status`."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from aiohttp import web
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tidegate.datapath.agent import Agent
from tidegate.datapath.status import PodStatus, Status

_VERDICTS = {
    "pass": ("tidegate_passed_packets", "Packets left to the node's stack, by reason."),
    "forward": ("tidegate_forwards", "Packets forwarded, by way."),
    "drop": ("tidegate_drops", "Packets dropped, by reason."),
}
_STALE_S = 120.0


class _Packets(Collector):
    """The programs' counters, the tables' receipts and the pods, read at scrape time."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        counters = self._agent.kernel.counters()
        for verdict, (name_of_family, words) in _VERDICTS.items():
            family = CounterMetricFamily(name_of_family, words, labels=["reason"])
            for name, count in counters.items():
                if name.startswith(f"{verdict}_"):
                    family.add_metric([name.removeprefix(f"{verdict}_")], count)
            yield family
        receipt = self._agent.receipt
        failures = GaugeMetricFamily("tidegate_failed_rows", "Rows that the kernel refused, by table.", labels=["table"])
        for table in sorted({failure.table for failure in receipt.failures}):
            failures.add_metric([table], sum(failure.table == table for failure in receipt.failures))
        yield failures
        passes = CounterMetricFamily("tidegate_passes", "Reconciliations of the kernel's tables.")
        passes.add_metric([], self._agent.passes)
        yield passes
        pods = GaugeMetricFamily("tidegate_pods", "Pods of this node, by whether their policies are known.", labels=["known"])
        local = self._agent.order.pods if self._agent.order else ()
        for known in (True, False):
            pods.add_metric([str(known).lower()], sum(pod.is_known == known for pod in local))
        yield pods


def status(agent: Agent) -> Status:
    """Describe the agent now."""
    pods = agent.order.pods if agent.order else ()
    return Status(
        node=agent.node,
        synced=agent.is_synced,
        passes=agent.passes,
        pods=[
            PodStatus(f"{pod.namespace}/{pod.name}", pod.device, [str(a) for a in pod.addresses], pod.is_known) for pod in pods
        ],
        failures=[f"{f.owner}: {f.table} {f.key}: {f.message}" for f in agent.receipt.failures],
        counters={name: count for name, count in agent.kernel.counters().items() if count},
    )


def application(agent: Agent) -> web.Application:
    """Build the HTTP application."""
    REGISTRY.register(_Packets(agent))

    async def healthz(_: web.Request) -> web.Response:
        ages = agent.source.ages()
        stale = bool(ages) and max(ages) > _STALE_S
        return web.Response(status=503 if stale else 200, text="watch is stale\n" if stale else "ok\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = agent.passes > 0
        return web.Response(status=200 if ready else 503, text="ok\n" if ready else "no order has been applied yet\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), content_type="text/plain")

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(status(agent)), content_type="application/json")

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
            web.get("/status", describe),
        ]
    )
    return app
