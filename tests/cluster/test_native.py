"""Native routing, with Kubernetes cutting the pod ranges: the fabric carries pod addresses themselves."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import Any

import probes
import pytest
from cluster import LEGACY1, LEGACY2, Cluster, Pod, eventually, node_path, pod_path, selecting

pytestmark = pytest.mark.cluster

PORT = 7200
ADDRESSES = ("172.30.0.240", "fd30::240")


@pytest.fixture(scope="module")
def two(native: Cluster) -> Iterator[dict[str, Pod]]:
    """A pod on each node."""
    with native.pods({"native1": "node1", "native2": "node2"}) as made:
        yield made


def test_nodes_use_the_ranges_that_kubernetes_gave_them(native: Cluster, two: dict[str, Pod]) -> None:
    """The node's spec.podCIDRs are its NodeState's, and its pods' addresses come from them."""
    for pod in two.values():
        given = native.api.get(node_path(pod.node))["spec"]["podCIDRs"]
        assert native.api.get(f"/apis/tidegate.io/v1alpha1/nodestates/{pod.node}")["spec"]["podCIDRs"] == given
        assert all(any(ip_address(text) in ip_network(cidr) for cidr in given) for text in pod.addresses)


def test_pods_reach_pods_without_encapsulation(native: Cluster, two: dict[str, Pod]) -> None:
    """Across nodes with own addresses and the uplink's full MTU, which leaves no room for a tunnel header."""
    one, other = two["native1"], two["native2"]
    with probes.Echo(other.namespace, PORT):
        for address, headers in zip(other.addresses, (28, 48), strict=True):
            assert probes.says(one.namespace, address, PORT) == one.to(address)
            assert probes.pings(one.namespace, address, 1500 - headers, fragments=False)


def test_the_world_reaches_pods(native: Cluster, two: dict[str, Pod]) -> None:
    """A server outside connects to a pod, and the answers carry the pod's address."""
    with probes.Echo(two["native1"].namespace, PORT):
        for address, own in zip(two["native1"].addresses, LEGACY1, strict=True):
            assert probes.says(native.host("legacy1"), address, PORT) == own
            assert probes.reaches(native.host("legacy1"), address, "udp", PORT)
            assert probes.pings(native.host("legacy1"), address)


@pytest.mark.parametrize("home", ["native1", "native2"])
def test_egress(native: Cluster, two: dict[str, Pod], home: str) -> None:
    """A policy works here as in tunnel mode, from the gateway's own node and from another; the world still reaches the pod."""
    gateway = {"nodeSelector": selecting(native="gateway"), "egressIPs": list(ADDRESSES)}
    protocols: Any = ("tcp", "udp", "icmp")
    with (
        native.labelled(pod_path(home), native="yes"),
        native.labelled(node_path("node2"), native="gateway"),
        native.policy(
            "native",
            selectors=[{"podSelector": selecting(native="yes")}],
            destinationCIDRs=["198.51.100.0/24", "2001:db8:100::/64"],
            gateways=[gateway],
        ),
        probes.Echo(two[home].namespace, PORT),
    ):
        eventually(lambda: native.sources(two[home], LEGACY1), ADDRESSES)
        for protocol in protocols:
            assert native.sources(two[home], LEGACY1, protocol) == ADDRESSES
        assert native.sources(two[home], LEGACY2) == native.host_addresses(two[home].node)
        for address, own in zip(two[home].addresses, LEGACY1, strict=True):
            assert probes.says(native.host("legacy1"), address, PORT) == own
