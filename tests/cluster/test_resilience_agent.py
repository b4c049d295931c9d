"""Agents die, come back, and find damage: what was programmed keeps carrying packets, and what was lost comes back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import probes
import pytest
from cluster import LEGACY1, Cluster, Pod, eventually, node_path, pod_path, selecting

pytestmark = pytest.mark.cluster

PORT = 7400
ADDRESSES = ("172.30.0.245", "fd30::245")


@pytest.fixture
def egress(cluster: Cluster, pods: dict[str, Pod]) -> Iterator[None]:
    """The pod on node1 leaves through node2."""
    with (
        cluster.labelled(pod_path("node1"), resilience="yes"),
        cluster.labelled(node_path("node2"), resilience="gateway"),
        cluster.policy(
            "resilience",
            selectors=[{"podSelector": selecting(resilience="yes")}],
            destinationCIDRs=[f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"],
            gateways=[{"nodeSelector": selecting(resilience="gateway"), "egressIPs": list(ADDRESSES)}],
        ),
    ):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
        yield


@contextmanager
def streams(pods: dict[str, Pod]) -> Iterator[list[probes.Stream]]:
    """Both families, from node1's pod to node2's and to a server outside; all datagrams must have been answered at the end."""
    with ExitStack() as stack:
        stack.enter_context(probes.Echo(pods["node2"].namespace, PORT))
        targets = [(address, PORT) for address in pods["node2"].addresses] + [(address, 9001) for address in LEGACY1]
        made = [probes.Stream(pods["node1"].namespace, address, port) for address, port in targets]
        with ExitStack() as running:
            for stream in made:
                running.enter_context(stream)
            yield made
    assert not any(stream.lost for stream in made), {stream.target: stream.story for stream in made}
    assert min(stream.sent for stream in made) > 100


def ready(cluster: Cluster, node: str) -> None:
    """Wait until an agent has applied an order and hears the API server."""
    eventually(lambda: json.loads(cluster.http(node, "/status"))["synced"])
    eventually(lambda: cluster.http(node, "/readyz"))


@contextmanager
def stopped(cluster: Cluster, node: str) -> Iterator[None]:
    """Kill an agent and start it again."""
    cluster.lab.stop_agent(node, signal.SIGKILL)
    try:
        yield
    finally:
        cluster.lab.start_agent(node)
        ready(cluster, node)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_killed_agent_loses_no_packet(cluster: Cluster, pods: dict[str, Pod], egress: None, node: str) -> None:
    """kill -9 and restart, on the pods' node and on the gateway, under 200 datagrams a second each way: all are answered."""
    with streams(pods), stopped(cluster, node):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)


def test_a_stopped_agent_leaves_the_datapath(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """SIGTERM ends the agent and nothing else: packets go on, and a new agent drops nothing."""
    with streams(pods):
        cluster.lab.stop_agent("node1")
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
        cluster.lab.start_agent("node1")
        ready(cluster, "node1")


def test_a_policy_changes_while_an_agent_is_down(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """What was decided meanwhile holds once the agent is back."""
    with stopped(cluster, "node1"):
        cluster.merge(pod_path("node1"), {"metadata": {"labels": {"resilience": "no"}}})
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), cluster.host_addresses("node1"))


def test_corrupt_state_files(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """An order and a pod's record of garbage, a half-written one and an emptied one are set aside: pods keep working, and
    none of their addresses is given away."""
    folder = cluster.lab.premises.node("node1").agent
    with streams(pods):
        with stopped(cluster, "node1"):
            (folder / "inputs.json").write_text('{"network": {"rou')
            pods["node1"].record.write_bytes(b"\xff\0garbage")
            pods["node1b"].record.write_text("")
            (folder / "endpoints/half.json.new").write_text("{")
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    eventually(lambda: known(cluster) >= {"tests/node1", "tests/node1b"})
    with cluster.pods({"resilience-new": "node1"}) as made:
        assert not set(made["resilience-new"].addresses) & {*pods["node1"].addresses, *pods["node1b"].addresses}


def known(cluster: Cluster) -> set[str]:
    """Name the pods that the agent of node1 knows with their labels."""
    return {each["pod"] for each in json.loads(cluster.http("node1", "/status"))["pods"] if each["known"]}


def test_a_lost_state_directory(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """All records of pods and the order are gone: the links themselves tell which pods there are."""
    folder = cluster.lab.premises.node("node1").agent
    with streams(pods), stopped(cluster, "node1"):
        for file in [folder / "inputs.json", *folder.glob("endpoints/*")]:
            file.unlink()
    eventually(lambda: known(cluster) >= {"tests/node1", "tests/node1b"})
    with cluster.pods({"resilience-new": "node1"}) as made:
        assert not set(made["resilience-new"].addresses) & {*pods["node1"].addresses, *pods["node1b"].addresses}
