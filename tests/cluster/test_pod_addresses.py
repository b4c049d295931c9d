"""Addresses of pods: given, given back, rested, and never moved."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cluster import Cluster, Pod, eventually, pod_path

from tidegate.lab.rollout import API

pytestmark = pytest.mark.cluster

POOL = f"{API}/ippools/default"


def test_released_addresses_rest(cluster: Cluster) -> None:
    """A pod that follows a deleted one on its node has other addresses; the record of the old one is gone."""
    with cluster.pods({"address-one": "node2"}) as made:
        first = made["address-one"]
    eventually(lambda: not first.record.exists())
    with cluster.pods({"address-two": "node2"}) as made:
        assert not set(made["address-two"].addresses) & set(first.addresses)


def test_a_deleted_pod_leaves_nothing_on_its_node(cluster: Cluster) -> None:
    """Its link, routes, neighbours, pins and its place in the agent's status go with it."""
    with cluster.pods({"address-gone": "node3"}) as made:
        pod = made["address-gone"]
        assert trace(cluster, pod)
    eventually(lambda: not trace(cluster, pod))


def trace(cluster: Cluster, pod: Pod) -> list[str]:
    """Return everything on a pod's node that names its device or addresses."""
    script = "ip -o link; ip route show table all; ip -6 route show table all; ip neigh; ip -6 neigh"
    shown = cluster.sh(pod.node, "sh", "-c", script) + cluster.http(pod.node, "/status").replace("}", "\n")
    pins = [str(path) for path in (cluster.lab.premises.bpffs / pod.node / "links").iterdir()]
    names = (pod.device, f"{pod.addresses[0]} ", f'"{pod.addresses[0]}"')
    return [line for line in [*shown.splitlines(), *pins] if any(name in line for name in names)]


def test_pods_made_at_once_have_different_addresses(cluster: Cluster) -> None:
    """Ten pods on one node, created together: twenty addresses."""
    with cluster.pods({f"address-{number}": "node1" for number in range(10)}) as made:
        assert len({address for pod in made.values() for address in pod.addresses}) == 20


def test_a_pool_that_shrinks_moves_nobody(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A pool is edited so that the nodes' blocks lie outside: they keep them, new pods run, the pool says so, and recovers."""
    before = {each["metadata"]["name"]: each["spec"]["podCIDRs"] for each in cluster.api.items(f"{API}/nodestates")}
    ranges = cluster.api.get(POOL)["spec"]["ranges"]
    cluster.merge(POOL, {"spec": {"ranges": [{"cidr": "10.41.0.0/16", "nodeMaskSize": 24}, ranges[1]]}})
    try:
        eventually(lambda: _ready(cluster)["reason"] == "PoolShrunk")
        assert {each["metadata"]["name"]: each["spec"]["podCIDRs"] for each in cluster.api.items(f"{API}/nodestates")} == before
        with cluster.pods({"address-shrunk": "node1"}) as made:
            assert made["address-shrunk"].addresses[0].startswith("10.40.")
        events = json.loads(cluster.lab.kubectl("get", "events", "-o", "json"))["items"]
        assert "PoolShrunk" in {each["reason"] for each in events if each["involvedObject"]["name"] == "default"}
    finally:
        cluster.merge(POOL, {"spec": {"ranges": ranges}})
    eventually(lambda: _ready(cluster)["status"] == "True")
    assert all(cluster.exists(pod_path(name)) for name in pods)


def test_pools_that_overlap(cluster: Cluster) -> None:
    """The younger of two pools with one range is not accepted, and names the older."""
    body = {"apiVersion": "tidegate.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "overlapping"}}
    path = f"{API}/ippools/overlapping"
    cluster.api.apply(path, body | {"spec": {"ranges": [{"cidr": "10.40.128.0/17", "nodeMaskSize": 24}]}})
    try:
        found = eventually(lambda: _condition(cluster, path, "Accepted"))
        assert (found["status"], found["reason"]) == ("False", "PoolOverlap")
        assert "default" in found["message"]
    finally:
        cluster.delete(path)


def _ready(cluster: Cluster) -> Any:
    return _condition(cluster, POOL, "Ready")


def _condition(cluster: Cluster, path: str, kind: str) -> Any:
    conditions = cluster.api.get(path).get("status", {}).get("conditions", ())
    return next((each for each in conditions if each["type"] == kind), None)
