"""Start the node agent: check the machine, load the programs, serve the CNI plugin, and loop."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from tidegate.datapath import ask, facts, health, programs, removal
from tidegate.datapath.agent import Agent
from tidegate.datapath.balancer import Balancer
from tidegate.datapath.capture import server as capture_server
from tidegate.datapath.capture.orders import CaptureOrders
from tidegate.datapath.capture.recorder import Recorder
from tidegate.datapath.capture.shelf import MEGABYTE, Shelf
from tidegate.datapath.cni import install
from tidegate.datapath.cni.endpoints import EndpointStore
from tidegate.datapath.cni.pods import Pods, PodSettings
from tidegate.datapath.cni.server import serve
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.order import tunnel_mtu
from tidegate.datapath.owned import Places
from tidegate.datapath.source import ApiSource, SourceMaker
from tidegate.kube.client import connect
from tidegate.kube.lease import heartbeat

log = structlog.get_logger()

_SIZES = programs.Sizes()
_BALANCER_SIZES = programs.LoadBalancerSizes()

EXIT_UNFIT = 3
"""The machine lacks something that a person must bring."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `tidegate agent` takes."""
    parser.add_argument(
        "action",
        nargs="?",
        default="run",
        choices=("run", "status", "remove"),
        help="run the agent; ask the running one how it is; or take everything that is ours off this node",
    )
    parser.add_argument("--node", default=os.uname().nodename, help="name of this node's Node object (default: host name)")
    parser.add_argument("--kubeconfig", help="default: the service account of the pod")
    parser.add_argument("--state-dir", type=Path, default=Path("/var/lib/tidegate"))
    parser.add_argument("--bpffs", type=Path, default=Path("/sys/fs/bpf/tidegate"), help="folder for pins")
    parser.add_argument("--cni-conf-dir", type=Path, default=Path("/etc/cni/net.d"))
    parser.add_argument("--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"))
    parser.add_argument("--http", default="127.0.0.1:9976", help="address:port of health and metrics")
    parser.add_argument("--captures-megabytes", type=int, default=1024, help="what all files of recordings may take together")
    parser.add_argument("--max-pods", type=int, default=_SIZES.TG_MAX_PODS)
    parser.add_argument("--max-ranges", type=int, default=_SIZES.TG_MAX_RANGES)
    parser.add_argument("--max-policies", type=int, default=_SIZES.TG_MAX_POLICIES)
    parser.add_argument("--max-flows", type=int, default=_SIZES.TG_MAX_FLOWS)
    parser.add_argument(
        "--max-backends", type=int, default=_BALANCER_SIZES.TG_LB_MAX_BACKENDS, help="of load balancers, less one"
    )
    parser.add_argument("--max-slots", type=int, default=_BALANCER_SIZES.TG_LB_MAX_SLOTS, help="of load balancers' tables; even")


Leader = Callable[[Kernel], SourceMaker]
"""Stands in for the API server: then there are no pods either, and nobody waits for a heartbeat."""


def run(arguments: argparse.Namespace, lead: Leader | None = None) -> int:
    """Do what `action` says, led by the API server if `lead` is None; run until a signal comes. Returns an exit status."""
    if arguments.action == "status":
        return ask.show(arguments.http)
    places = Places(arguments.state_dir, arguments.bpffs, arguments.cni_conf_dir, arguments.cni_bin_dir)
    sizes = programs.Sizes(arguments.max_pods, arguments.max_ranges, arguments.max_policies, arguments.max_flows)
    try:
        loaded = programs.ensure_loaded(places, sizes)
    except programs.Unfit as error:
        print(f"tidegate agent: {error}", file=sys.stderr)
        return EXIT_UNFIT
    lb_sizes = programs.LoadBalancerSizes(TG_LB_MAX_BACKENDS=arguments.max_backends, TG_LB_MAX_SLOTS=arguments.max_slots)
    balancer = Balancer(places.bpffs / "lb", lambda: programs.ensure_loaded(places, lb_sizes))
    shelf = Shelf(places.captures, arguments.node, arguments.captures_megabytes * MEGABYTE, lambda: datetime.now(UTC))
    recorder = Recorder(shelf)
    captures = CaptureOrders(recorder, places.state / "captures.json")
    kernel = Kernel(places, loaded, balancer, captures)
    if arguments.action == "remove":
        removal.remove(places, kernel)
        return 0
    try:
        asyncio.run(
            _serve(arguments, places, kernel, recorder) if lead is None else _serve_alone(arguments, kernel, recorder, lead)
        )
    finally:
        captures.close()
    return 0


async def _serve(arguments: argparse.Namespace, places: Places, kernel: Kernel, recorder: Recorder) -> None:
    client = await connect(arguments.kubeconfig)
    store = EndpointStore(places.endpoints)
    agent = Agent(arguments.node, kernel, lambda changed: ApiSource(client, arguments.node, changed), store.list)
    # In a thread, since netlink cannot be used beside a running event loop.
    pods = await asyncio.to_thread(Pods, store, lambda: pod_settings(agent), agent.programmed, agent.changed)
    await _run_until_signal(
        arguments.http,
        agent,
        heartbeat(client, arguments.node),
        serve(places.cni_socket, pods),
        capture_server.serve(places.capture_socket, recorder),
        _install_when_ready(agent, places),
    )
    await client.close()


async def _serve_alone(arguments: argparse.Namespace, kernel: Kernel, recorder: Recorder, lead: Leader) -> None:
    recording = capture_server.serve(kernel.places.capture_socket, recorder)
    await _run_until_signal(arguments.http, Agent(arguments.node, kernel, lead(kernel), tuple), recording)


async def _run_until_signal(address: str, agent: Agent, *others: Coroutine[Any, Any, None]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    host, _, port = address.rpartition(":")
    runner = web.AppRunner(health.application(agent), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, int(port)).start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in (agent.run(), facts.watch_changes(agent.changed), *others)]
        await stop.wait()
        for task in tasks:
            task.cancel()
    await runner.cleanup()


async def _install_when_ready(agent: Agent, places: Places) -> None:
    """The runtime calls a node ready once the configuration is there: not before the first order is in the kernel."""
    await agent.until(lambda: pod_settings(agent) is not None)
    await asyncio.to_thread(install.install, places)
    log.info("CNI plugin installed", node=agent.node, path=str(places.cni_conf))


def pod_settings(agent: Agent) -> PodSettings | None:
    """What new pods get; None until the node's pod ranges are known and its tables are in place."""
    order, facts_now = agent.order, agent.facts
    if order is None or facts_now is None or not order.state.podCIDRs or not facts_now.uplinks:
        return None
    uplink_mtu = order.network.mtu or min(uplink.mtu for uplink in facts_now.uplinks)
    outside = tunnel_mtu(uplink_mtu, order.own_addresses[0] if order.own_addresses else None)
    is_native = order.network.routingMode == "native"
    return PodSettings(
        pod_cidrs=tuple(order.state.podCIDRs),
        device_mtu=uplink_mtu if is_native else outside,
        default_route_mtu=outside if is_native else 0,
        cluster_cidrs=tuple(order.cluster_cidrs) if is_native else (),
    )


def main() -> int:
    """Entry point of `python -m tidegate.datapath.main`."""
    parser = argparse.ArgumentParser(prog="tidegate agent")
    add_arguments(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
