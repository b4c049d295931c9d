"""Packets follow policies and labels: what a server outside sees is what was asked for last."""

from __future__ import annotations

from typing import Any

import probes
import pytest
from cluster import LEGACY1, LEGACY2, NAMESPACE, Cluster, Pod, eventually, node_path, pod_path, selecting

pytestmark = pytest.mark.cluster

BOTH = [f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"]
ADDRESSES = ("172.30.0.210", "fd30::210")
OTHERS = ("172.30.0.211", "fd30::211")
PROTOCOLS: Any = ("tcp", "udp", "icmp")


@pytest.fixture(autouse=True)
def _gateway(cluster: Cluster) -> Any:
    with cluster.labelled(node_path("node3"), follows="gateway"):
        yield


def spec(**changes: Any) -> dict[str, Any]:
    """Return a policy for pods labelled follows=yes, by node3."""
    gateway = {"nodeSelector": selecting(follows="gateway"), "egressIPs": list(ADDRESSES)}
    base = {"selectors": [{"podSelector": selecting(follows="yes")}], "destinationCIDRs": BOTH, "gateways": [gateway]}
    return base | changes


@pytest.mark.parametrize("home", ["node1", "node3"])
def test_every_protocol_leaves_with_the_egress_address(cluster: Cluster, pods: dict[str, Pod], home: str) -> None:
    """TCP, UDP and ping of both families carry the egress address, from another node and from the gateway itself."""
    with cluster.labelled(pod_path(home), follows="yes"), cluster.policy("follows", **spec()):
        eventually(lambda: cluster.sources(pods[home], LEGACY1), ADDRESSES)
        for protocol in PROTOCOLS:
            assert cluster.sources(pods[home], LEGACY1, protocol) == ADDRESSES, protocol
        assert cluster.sources(pods[home], LEGACY2) == cluster.host_addresses(home)


def test_create_edit_delete(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A policy's addresses and destinations hold from the moment it is Ready, and end with it."""
    pod, own = pods["node2"], cluster.host_addresses("node2")
    assert cluster.sources(pod, (*LEGACY1, *LEGACY2)) == own * 2
    with cluster.labelled(pod_path("node2"), follows="yes"):
        with cluster.policy("follows", **spec()):
            assert cluster.sources(pod, (*LEGACY1, *LEGACY2)) == (*ADDRESSES, *own)
            gateway = {"nodeSelector": selecting(follows="gateway"), "egressIPs": list(OTHERS)}
            both = [f"{address}/{128 if ':' in address else 32}" for address in LEGACY2]
            cluster.write_policy("follows", **spec(gateways=[gateway], destinationCIDRs=both))
            cluster.in_force("follows")
            assert cluster.sources(pod, (*LEGACY1, *LEGACY2)) == (*own, *OTHERS)
        eventually(lambda: cluster.sources(pod, LEGACY2), own)


def test_excluded_destinations(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """What is excluded leaves with the node's own address, the rest of the network with the egress address."""
    networks = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"]
    excluded = [f"{LEGACY2[0]}/32", "2001:db8:203::/64"]
    with (
        cluster.labelled(pod_path("node1"), follows="yes"),
        cluster.policy("follows", **spec(destinationCIDRs=networks, excludedCIDRs=excluded)),
    ):
        assert cluster.sources(pods["node1"], (*LEGACY1, *LEGACY2)) == (*ADDRESSES, *cluster.host_addresses("node1"))


def test_pod_labels(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A running pod is caught when it gets the label and let go when it loses it; its neighbour never is."""
    own = cluster.host_addresses("node1")
    with cluster.policy("follows", **spec()):
        assert cluster.sources(pods["node1"], LEGACY1) == own
        with cluster.labelled(pod_path("node1"), follows="yes"):
            eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
            assert cluster.sources(pods["node1b"], LEGACY1) == own
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), own)


def test_namespace_labels(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """All pods of a namespace follow its labels."""
    selectors = [{"namespaceSelector": selecting(follows="namespace")}]
    with cluster.policy("follows", **spec(selectors=selectors)):
        assert cluster.sources(pods["node2"], LEGACY1) == cluster.host_addresses("node2")
        with cluster.labelled(f"/api/v1/namespaces/{NAMESPACE}", follows="namespace"):
            eventually(lambda: cluster.sources(pods["node2"], LEGACY1), ADDRESSES)
            eventually(lambda: cluster.sources(pods["node3"], LEGACY1), ADDRESSES)
        eventually(lambda: cluster.sources(pods["node2"], LEGACY1), cluster.host_addresses("node2"))


def test_node_labels_select_pods(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A nodeSelector among the selectors takes the pods of labelled nodes only; fields of one item must all match."""
    selectors = [{"podSelector": selecting(follows="yes"), "nodeSelector": selecting(zone="a")}]
    with (
        cluster.labelled(pod_path("node1"), follows="yes"),
        cluster.labelled(pod_path("node2"), follows="yes"),
        cluster.policy("follows", **spec(selectors=selectors)),
    ):
        with cluster.labelled(node_path("node2"), zone="a"):
            eventually(lambda: cluster.sources(pods["node2"], LEGACY1), ADDRESSES)
            assert cluster.sources(pods["node1"], LEGACY1) == cluster.host_addresses("node1")
        eventually(lambda: cluster.sources(pods["node2"], LEGACY1), cluster.host_addresses("node2"))


def test_selectors_add_up(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A pod that matches any of several selectors is caught."""
    selectors = [{"podSelector": selecting(follows="yes")}, {"podSelector": selecting(follows="also")}]
    with (
        cluster.labelled(pod_path("node1"), follows="yes"),
        cluster.labelled(pod_path("node2"), follows="also"),
        cluster.policy("follows", **spec(selectors=selectors)),
    ):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
        eventually(lambda: cluster.sources(pods["node2"], LEGACY1), ADDRESSES)


def test_cluster_destinations_are_never_caught(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A policy for every destination leaves traffic to pods, nodes and Services alone."""
    everything = spec(destinationCIDRs=["0.0.0.0/0", "::/0"])
    with (
        cluster.labelled(pod_path("node1"), follows="yes"),
        cluster.policy("follows", **everything),
        probes.Echo(pods["node2"].namespace, 7000),
        probes.Echo(cluster.host("node2"), 7001),
    ):
        assert cluster.sources(pods["node1"], LEGACY2) == ADDRESSES
        for address in pods["node2"].addresses:
            assert probes.says(pods["node1"].namespace, address, 7000) == pods["node1"].to(address)
        for address in cluster.host_addresses("node2"):
            assert probes.says(pods["node1"].namespace, address, 7001) not in ("", *ADDRESSES)
        assert probes.reaches(pods["node1"].namespace, "10.96.0.1", port=443)
