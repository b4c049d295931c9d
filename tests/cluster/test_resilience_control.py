"""The control plane goes: packets do not notice, and whoever comes back changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import probes
import pytest
from cluster import LEGACY1, Cluster, Pod, eventually, node_path, pod_path, policy_path, selecting

from tidegate.lab.rollout import API

pytestmark = pytest.mark.cluster

PORT = 7500
ADDRESSES = ("172.30.0.247", "fd30::247")


@pytest.fixture(autouse=True)
def _egress(cluster: Cluster, pods: dict[str, Pod]) -> Iterator[None]:
    """Pods labelled control=yes, at first the one on node1, leave through node3."""
    with (
        cluster.labelled(pod_path("node1"), control="yes"),
        cluster.labelled(node_path("node3"), control="gateway"),
        cluster.policy("control", **SPEC),
    ):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
        yield


SPEC: dict[str, Any] = {
    "selectors": [{"podSelector": selecting(control="yes")}],
    "destinationCIDRs": [f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"],
    "gateways": [{"nodeSelector": selecting(control="gateway"), "egressIPs": list(ADDRESSES)}],
}


@contextmanager
def halted(cluster: Cluster, daemon: str) -> Iterator[None]:
    """Halt a daemon: connections to it hang, which is worse than refused ones."""
    owned = cluster.lab.premises.daemons.find(daemon)
    assert owned
    owned.send(signal.SIGSTOP)
    try:
        yield
    finally:
        owned.send(signal.SIGCONT)


def orders(cluster: Cluster) -> dict[str, Any]:
    """Return what every node is ordered to have, with the generation."""
    items = [*cluster.api.items(f"{API}/nodestates"), *cluster.api.items(f"{API}/clusterstates")]
    return {item["metadata"]["name"]: (item["metadata"]["generation"], item["spec"]) for item in items}


def leads(cluster: Cluster) -> bool:
    """Tell whether the operator leads and has everything."""
    return cluster.http("control", "/readyz").startswith("ok") and cluster.metrics("control")["tidegate_operator_leader"] == 1


def test_everything_goes_on_without_the_operator(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """While it is down new pods run, labels select, an agent restarts; its return rewrites no order."""
    before = orders(cluster)
    cluster.lab.stop_operator()
    try:
        with cluster.pods({"control-new": "node2"}, {"control": "yes"}) as made:
            assert cluster.sources(made["control-new"], LEGACY1) == ADDRESSES
        with cluster.labelled(pod_path("node2"), control="yes"):
            eventually(lambda: cluster.sources(pods["node2"], LEGACY1), ADDRESSES)
        eventually(lambda: cluster.sources(pods["node2"], LEGACY1), cluster.host_addresses("node2"))
        cluster.lab.stop_agent("node1", signal.SIGKILL)
        cluster.lab.start_agent("node1")
        eventually(lambda: cluster.http("node1", "/readyz"))
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    finally:
        cluster.lab.start_operator()
        eventually(lambda: leads(cluster), seconds=40)
    rounds = cluster.metrics("control")["tidegate_operator_rounds_total"]
    cluster.merge(policy_path("control"), {"metadata": {"annotations": {"look": "again"}}})
    eventually(lambda: cluster.metrics("control")["tidegate_operator_rounds_total"] > rounds)
    assert orders(cluster) == before


def test_what_was_written_while_the_operator_was_down_is_done_afterwards(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A policy edited meanwhile takes effect when the operator is back."""
    cluster.lab.stop_operator()
    try:
        gateway = {"nodeSelector": selecting(control="gateway")}
        cluster.write_policy("control", **(SPEC | {"gateways": [gateway]}))
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    finally:
        cluster.lab.start_operator()
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), cluster.host_addresses("node3"), 40)


def test_an_agent_restarts_without_the_api_server(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """The API server hangs and the agent is killed: a new one applies the order it kept, serves its pods, and repairs
    damage; under datagrams of which none is lost."""
    with (
        probes.Echo(pods["node2"].namespace, PORT),
        probes.Stream(pods["node1"].namespace, pods["node2"].addresses[0], PORT) as inner,
        probes.Stream(pods["node1"].namespace, LEGACY1[1], 9001) as outer,
        halted(cluster, "kube-apiserver"),
    ):
        cluster.lab.stop_agent("node1", signal.SIGKILL)
        cluster.lab.start_agent("node1")
        eventually(lambda: cluster.http("node1", "/readyz"), seconds=20)
        rule = cluster.sh("node1", "ip", "rule", "show", "priority", "1076")
        cluster.sh("node1", "ip", "rule", "delete", "priority", "1076")
        eventually(lambda: cluster.sh("node1", "ip", "rule", "show", "priority", "1076"), rule, 12)
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
        assert probes.pings(cluster.host("node1"), pods["node1"].addresses[0])
    assert (inner.lost, outer.lost) == (0, 0), (inner.story, outer.story)
    with cluster.labelled(pod_path("node1b"), control="yes"):
        eventually(lambda: cluster.sources(pods["node1b"], LEGACY1), ADDRESSES, 40)


def test_a_node_without_an_agent_blocks_nobody(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A labelled node that has no agent is no gateway and holds nothing up; it goes without a trace."""
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost", "labels": {"control": "ghost"}}}
    cluster.api.apply(node_path("ghost"), node)
    try:
        spec = SPEC | {"gateways": [{"nodeSelector": selecting(control="ghost")}], "destinationCIDRs": ["203.0.113.0/24"]}
        with cluster.policy("control-ghost", ready=False, **spec):
            eventually(lambda: cluster.conditions("control-ghost").get("Ready"), "False NoLiveGateway")
            with cluster.labelled(node_path("node2"), control="ghost"):
                cluster.in_force("control-ghost")
                assert cluster.source(pods["node1"], "203.0.113.10") == cluster.host_addresses("node2")[0]
        cluster.write_policy("control", **(SPEC | {"priority": 1}))
        cluster.in_force("control")
    finally:
        cluster.delete(node_path("ghost"))
    eventually(lambda: "ghost" not in orders(cluster))
