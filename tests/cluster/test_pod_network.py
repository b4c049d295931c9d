"""Pods reach pods, nodes and the world as Kubernetes asks, and only with addresses that are theirs."""

from __future__ import annotations

import itertools
import json
import socket
from ipaddress import ip_address, ip_network

import probes
import pytest
from cluster import LEGACY1, Cluster, Pod, eventually

pytestmark = pytest.mark.cluster

PORT = 7100
ENDS = [("node1", "node1b"), ("node1", "node2"), ("node3", "node1b")]


@pytest.mark.parametrize(("one", "other"), ENDS)
def test_pods_reach_pods_with_their_own_addresses(pods: dict[str, Pod], one: str, other: str) -> None:
    """On one node and across nodes, both families, TCP, UDP and ping: nobody translates in between."""
    for client, server in itertools.permutations((pods[one], pods[other])):
        with probes.Echo(server.namespace, PORT):
            for address in server.addresses:
                assert probes.says(client.namespace, address, PORT) == client.to(address)
                assert probes.reaches(client.namespace, address, "udp", PORT)
                assert probes.pings(client.namespace, address)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_nodes_reach_pods(cluster: Cluster, pods: dict[str, Pod], node: str) -> None:
    """A node reaches its own pods, which kubelet's probes need, and those of other nodes, with its own address."""
    with probes.Echo(pods["node1"].namespace, PORT):
        for address, own in zip(pods["node1"].addresses, cluster.host_addresses(node), strict=True):
            assert probes.says(cluster.host(node), address, PORT) == own
            assert probes.pings(cluster.host(node), address)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_pods_reach_nodes(cluster: Cluster, pods: dict[str, Pod], node: str) -> None:
    """A pod reaches its own node and others, and they answer."""
    with probes.Echo(cluster.host(node), PORT):
        for address in cluster.host_addresses(node):
            assert probes.says(pods["node1"].namespace, address, PORT)
            assert probes.pings(pods["node1"].namespace, address)


def test_pods_reach_the_world_with_their_nodes_address(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """Without a policy a server outside sees the node's address, for TCP, UDP and ping."""
    protocols: tuple[probes.Protocol, ...] = ("tcp", "udp", "icmp")
    for protocol in protocols:
        assert cluster.sources(pods["node2"], LEGACY1, protocol) == cluster.host_addresses("node2")


@pytest.mark.parametrize(("one", "other"), ENDS)
def test_the_pods_mtu_is_what_the_path_carries(cluster: Cluster, pods: dict[str, Pod], one: str, other: str) -> None:
    """A packet of exactly the pod's MTU arrives unfragmented; the device refuses a byte more."""
    shown = cluster.sh("node1", "nsenter", f"--net={pods[one].namespace}", "ip", "-j", "link", "show", "eth0")
    mtu = int(json.loads(shown)[0]["mtu"])
    assert 1280 <= mtu < 1500
    for address, headers in zip(pods[other].addresses, (28, 48), strict=True):
        assert probes.pings(pods[one].namespace, address, mtu - headers, fragments=False)
        assert not probes.pings(pods[one].namespace, address, mtu - headers + 1, fragments=False, patience=0.3)


def test_large_pings_are_fragmented(pods: dict[str, Pod]) -> None:
    """Datagrams larger than the MTU arrive in fragments, across nodes."""
    for address in pods["node2"].addresses:
        assert probes.pings(pods["node1"].namespace, address, 4000)


def test_a_pod_cannot_send_from_a_foreign_address(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """Datagrams with another pod's address, or with any other, go nowhere; those with its own do, right before and after."""
    receiver = probes.inside(pods["node2"].namespace, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with receiver:
        receiver.bind(("::", PORT))
        receiver.settimeout(2)
        for number, target in enumerate(pods["node2"].addresses):
            own, foreign = pods["node1"].addresses[number], pods["node3"].addresses[number]
            outside = ("192.0.2.9", "2001:db8:9::9")[number]
            for source in (own, foreign, outside, own):
                _send(pods["node1"], source, target)
            assert [receiver.recvfrom(100)[0].decode() for _ in range(2)] == [own, own]
    assert cluster.metrics("node1")['tidegate_drops_total{reason="spoofed"}'] >= 4


def _send(pod: Pod, source: str, target: str) -> None:
    """Send a datagram that names its source, from that address whether the pod has it or not."""
    level, option = (socket.IPPROTO_IPV6, 75) if ":" in target else (socket.IPPROTO_IP, 19)  # IPV6_/IP_TRANSPARENT
    with probes.inside(pod.namespace, lambda: socket.socket(probes.family(target), socket.SOCK_DGRAM)) as sender:
        sender.setsockopt(level, option, 1)
        sender.bind((source, 0))
        sender.sendto(source.encode(), (target, PORT))


def test_pods_have_an_address_of_each_family_from_their_nodes_range(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """What Kubernetes shows of a pod is what its device has, out of the blocks that its node was given."""
    for pod in pods.values():
        state = cluster.api.get(f"/apis/tidegate.io/v1alpha1/nodestates/{pod.node}")
        blocks = [ip_network(text) for text in state["spec"]["podCIDRs"]]
        assert [ip_address(text).version for text in pod.addresses] == [4, 6]
        assert all(any(ip_address(text) in block for block in blocks) for text in pod.addresses)
        shown = eventually(lambda pod=pod: cluster.sh("node1", "nsenter", f"--net={pod.namespace}", "ip", "-br", "address"))
        assert all(f" {text}/" in shown for text in pod.addresses)
