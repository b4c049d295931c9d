"""Services by kube-proxy beside us: from pods, nodes and outside, both families."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import probes
import pytest
from cluster import LEGACY1, NAMESPACE, Cluster, Pod, eventually, pod_path

pytestmark = pytest.mark.cluster

PORT = 7300


@dataclass
class Service:
    """A Service with a backend on node2."""

    addresses: tuple[str, ...]
    node_port: int


@pytest.fixture(scope="module", params=["Cluster", "Local"])
def service(cluster: Cluster, pods: dict[str, Pod], request: pytest.FixtureRequest) -> Iterator[Service]:
    """A dual-stack NodePort Service of either external traffic policy."""
    path = f"/api/v1/namespaces/{NAMESPACE}/services/web"
    spec: dict[str, Any] = {
        "type": "NodePort",
        "selector": {"service": "web"},
        "ipFamilyPolicy": "RequireDualStack",
        "externalTrafficPolicy": request.param,
        "ports": [{"port": 80, "targetPort": PORT}],
    }
    with cluster.labelled(pod_path("node2"), service="web"), probes.Echo(pods["node2"].namespace, PORT):
        cluster.api.apply(path, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
        try:
            made = cluster.api.get(path)["spec"]
            found = Service(tuple(made["clusterIPs"]), made["ports"][0]["nodePort"])
            for address in found.addresses:
                eventually(lambda address=address: probes.says(pods["node1"].namespace, address, 80, patience=0.5))
            yield found
        finally:
            cluster.delete(path)


@pytest.mark.parametrize("client", ["node1", "node2", "node3"])
def test_cluster_address_from_pods(pods: dict[str, Pod], service: Service, client: str) -> None:
    """From any node, and from the backend to itself; another pod is seen with its own address."""
    for address in service.addresses:
        seen = eventually(lambda address=address: probes.says(pods[client].namespace, address, 80))
        assert client == "node2" or seen == pods[client].to(address)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_cluster_address_from_nodes(cluster: Cluster, service: Service, node: str) -> None:
    """From the backend's node and from another."""
    for address in service.addresses:
        assert eventually(lambda address=address: probes.says(cluster.host(node), address, 80))


def test_node_port_from_outside(cluster: Cluster, service: Service) -> None:
    """Through the backend's node the answer comes, with the client's own address seen where the policy is Local."""
    local = _policy(cluster) == "Local"
    for address, client in zip(cluster.host_addresses("node2"), LEGACY1, strict=True):
        seen = eventually(lambda address=address: probes.says(cluster.host("legacy1"), address, service.node_port))
        assert seen == client or not local


def test_node_port_through_another_node(cluster: Cluster, service: Service) -> None:
    """A node without a backend passes a client on where the policy is Cluster, and does not answer where it is Local."""
    local = _policy(cluster) == "Local"
    for address in cluster.host_addresses("node1"):
        if local:
            assert not probes.says(cluster.host("legacy1"), address, service.node_port, patience=0.3)
        else:
            assert eventually(lambda address=address: probes.says(cluster.host("legacy1"), address, service.node_port))


@pytest.mark.parametrize("node", ["node2", "node3"])
def test_node_port_from_pods(cluster: Cluster, pods: dict[str, Pod], service: Service, node: str) -> None:
    """A pod uses the node port of its own node and of the backend's."""
    for target in {node, "node2"} if _policy(cluster) == "Cluster" else {"node2"}:
        for address in cluster.host_addresses(target):
            assert eventually(lambda address=address: probes.says(pods[node].namespace, address, service.node_port))


def _policy(cluster: Cluster) -> str:
    spec = cluster.api.get(f"/api/v1/namespaces/{NAMESPACE}/services/web")["spec"]
    return str(spec["externalTrafficPolicy"])
