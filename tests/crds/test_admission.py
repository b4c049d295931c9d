"""Facts about what a real API server accepts and refuses, and that it names the field and the remedy."""

from __future__ import annotations

import copy
from typing import Any

import apiserver
import pytest

from tidegate.kube import client
from tidegate.kube.client import ApiError

pytestmark = pytest.mark.apiserver

GATEWAY = {"nodeSelector": {"matchLabels": {"gw": "yes"}}}
POLICY = {
    "selectors": [{"podSelector": {"matchLabels": {"app": "web"}}}],
    "destinationCIDRs": ["198.51.100.0/24", "2001:db8:100::/64"],
    "gateways": [GATEWAY | {"egressIPs": ["192.0.2.1", "2001:db8::1"]}],
}
POOL = {"ranges": [{"cidr": "10.40.0.0/16", "nodeMaskSize": 24}, {"cidr": "fd40::/48", "nodeMaskSize": 64}]}
CLOUD = {"provider": "aws", "subnets": {"tags": {"role": "pods"}}, "families": ["IPv4", "IPv6"], "addresses": "Prefix"}
BALANCER = {
    "frontends": [{"address": "192.0.2.10", "port": 80}, {"address": "2001:db8::10", "port": 80, "protocol": "UDP"}],
    "backends": [{"address": "10.0.0.1", "port": 8080, "weight": 0}, {"address": "fd00::1", "port": 8080, "state": "draining"}],
    "sessionAffinity": {},
    "healthCheck": {"type": "HTTP", "statuses": "200,204,300-399"},
    "outerSourcePrefix": {"ipv4": "172.16.0.0/16", "ipv6": "100::/64"},
    "sourceRanges": ["198.51.100.0/24"],
}
CAPTURE = {"filters": [{"destination": "192.0.2.10/32", "destinationPort": 80, "protocol": "TCP"}, {"protocol": "ICMP"}]}
PLURALS = {
    "EgressPolicy": "egresspolicies",
    "IPPool": "ippools",
    "ClusterNetwork": "clusternetworks",
    "LoadBalancer": "loadbalancers",
    "PacketCapture": "packetcaptures",
}
FRONTEND, BACKEND = {"address": "192.0.2.10", "port": 80}, {"address": "10.0.0.1", "port": 80}

IN_DESTINATIONS, IN_EXCLUDED, HOST_BITS = "spec.destinationCIDRs[0]", "spec.excludedCIDRs[0]", "right of the prefix"

BAD = [
    ("EgressPolicy", POLICY | {"selectors": []}, "spec.selectors", "at least 1"),
    ("EgressPolicy", POLICY | {"gateways": []}, "spec.gateways", "at least 1"),
    ("EgressPolicy", POLICY | {"destinationCIDRs": ["198.51.100.7/24"]}, IN_DESTINATIONS, HOST_BITS),
    ("EgressPolicy", POLICY | {"destinationCIDRs": ["198.51.100.0/33"]}, IN_DESTINATIONS, "must be a CIDR"),
    ("EgressPolicy", POLICY | {"destinationCIDRs": ["example.org"]}, IN_DESTINATIONS, "must be a CIDR"),
    ("EgressPolicy", POLICY | {"excludedCIDRs": ["2001:db8:100::1/64"]}, IN_EXCLUDED, HOST_BITS),
    ("EgressPolicy", POLICY | {"gateways": [GATEWAY | {"interface": "eth1", "egressIPs": ["192.0.2.1"]}]},
     "spec.gateways[0]", "exclude each other"),
    ("EgressPolicy", POLICY | {"gateways": [GATEWAY | {"egressIPs": ["192.0.2.1", "192.0.2.2"]}]},
     "spec.gateways[0].egressIPs", "at most one address a family"),
    ("EgressPolicy", POLICY | {"gateways": [GATEWAY | {"egressIPs": ["192.0.2.1/32"]}]},
     "spec.gateways[0].egressIPs[0]", "without a prefix length"),
    ("EgressPolicy", POLICY | {"gateways": [{}]}, "spec.gateways[0].nodeSelector", "Required"),
    ("EgressPolicy", POLICY | {"whenNoGateway": "Maybe"}, "spec.whenNoGateway", "Drop"),
    ("EgressPolicy", POLICY | {"gatways": []}, "spec.gatways", "unknown field"),
    ("EgressPolicy", POLICY | {"selectors": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]},
     "spec.selectors[0].podSelector.matchExpressions[0]", "at least one"),
    ("IPPool", {"ranges": []}, "spec.ranges", "at least 1"),
    ("IPPool", {"ranges": [{"cidr": "10.40.0.1/16", "nodeMaskSize": 24}]}, "spec.ranges[0].cidr", HOST_BITS),
    ("IPPool", {"ranges": [{"cidr": "10.40.0.0/16", "nodeMaskSize": 12}]}, "spec.ranges[0]", "nodeMaskSize must lie"),
    ("IPPool", {"ranges": [{"cidr": "10.40.0.0/16", "nodeMaskSize": 32}]}, "spec.ranges[0]", "nodeMaskSize must lie"),
    ("IPPool", {"ranges": [{"cidr": "fd40::/48", "nodeMaskSize": 96}]}, "spec.ranges[0]", "24 bits"),
    ("IPPool", {}, "spec", "exactly one of ranges"),
    ("IPPool", POOL | {"cloud": CLOUD}, "spec", "exactly one of ranges"),
    ("IPPool", {"cloud": {"provider": "gcp"}}, "spec.cloud.provider", "alibaba"),
    ("IPPool", {"cloud": CLOUD | {"subnets": {"ids": ["a"], "tags": {"b": "c"}}}}, "spec.cloud.subnets", "not both"),
    ("IPPool", {"cloud": CLOUD | {"minAllocate": 9, "maxAllocate": 8}}, "spec.cloud", "less than minAllocate"),
    ("IPPool", {"cloud": CLOUD | {"tags": {"aws:x": "y"}}}, "spec.cloud.tags", "reserved"),
    ("IPPool", {"cloud": CLOUD | {"provider": "azure"}}, "spec.cloud", "leave them out"),
    ("IPPool", {"cloud": CLOUD | {"budget": {"percent": 0}}}, "spec.cloud.budget.percent", "greater than or equal to 1"),
    ("ClusterNetwork", {"mtu": 600}, "spec.mtu", "1280"),
    ("ClusterNetwork", {"serviceCIDRs": ["10.96.0.1/16"]}, "spec.serviceCIDRs[0]", HOST_BITS),
    ("ClusterNetwork", {"masquerade": {"portRange": "2000-1000"}}, "spec.masquerade.portRange", "lower one first"),
    ("ClusterNetwork", {"owned": {"routingTable": 254}}, "spec.owned.routingTable", "kernel's own"),
    ("ClusterNetwork", {"tunnel": {"vniBase": 16777215}}, "spec.tunnel.vniBase", "15728639"),
    ("LoadBalancer", BALANCER | {"frontends": []}, "spec.frontends", "at least 1"),
    ("LoadBalancer", BALANCER | {"frontends": [FRONTEND | {"port": 0}]}, "spec.frontends[0].port", "greater than or equal to 1"),
    ("LoadBalancer", BALANCER | {"frontends": [FRONTEND | {"address": "example.org"}]},
     "spec.frontends[0].address", "prefix length"),
    ("LoadBalancer", BALANCER | {"backends": [BACKEND | {"port": 65536}]}, "spec.backends[0].port", "65535"),
    ("LoadBalancer", BALANCER | {"backends": [BACKEND | {"weight": 257}]}, "spec.backends[0].weight", "256"),
    ("LoadBalancer", BALANCER | {"backends": [BACKEND | {"state": "gone"}]}, "spec.backends[0].state", "draining"),
    ("LoadBalancer", BALANCER | {"tableSize": 16384}, "spec.tableSize", "must be a prime"),
    ("LoadBalancer", BALANCER | {"tableSize": 130321}, "spec.tableSize", "must be a prime"),
    ("LoadBalancer", BALANCER | {"sourceRanges": ["198.51.100.7/24"]}, "spec.sourceRanges[0]", HOST_BITS),
    ("LoadBalancer", BALANCER | {"outerSourcePrefix": {"ipv4": "100::/64"}}, "spec.outerSourcePrefix.ipv4", "IPv4 CIDR"),
    ("LoadBalancer", BALANCER | {"outerSourcePrefix": {"ipv6": "100::1/64"}}, "spec.outerSourcePrefix.ipv6", HOST_BITS),
    ("LoadBalancer", BALANCER | {"healthCheck": {"statuses": "2xx"}}, "spec.healthCheck.statuses", "200-399"),
    ("LoadBalancer", BALANCER | {"healthCheck": {"path": "a b"}}, "spec.healthCheck.path", "begin with /"),
    ("LoadBalancer", BALANCER | {"healthCheck": {"timeoutMilliseconds": 3000}}, "spec", "must not be longer"),
    ("PacketCapture", {"filters": []}, "spec.filters", "at least 1"),
    ("PacketCapture", {"filters": [{"source": "192.0.2.1/24"}]}, "spec.filters[0].source", HOST_BITS),
    ("PacketCapture", {"filters": [{"protocol": "ICMP", "sourcePort": 1}]}, "spec.filters[0]", "ICMP has no ports"),
    ("PacketCapture", CAPTURE | {"triggers": [{"type": "HealthChange"}]}, "spec", "mode Ring"),
    ("PacketCapture", CAPTURE | {"mode": "Ring", "triggers": [{"type": "DropReason"}]}, "spec.triggers[0]", "needs one"),
    ("PacketCapture", CAPTURE | {"taps": ["Middle"]}, "spec.taps[0]", "Received"),
]  # fmt: skip


async def create(server: apiserver.ApiServer, kind: str, spec: Any, name: str = "default") -> None:
    body = {"apiVersion": "tidegate.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    path = f"/apis/tidegate.io/v1alpha1/{PLURALS[kind]}?dryRun=All&fieldValidation=Strict"
    async with await client.connect(str(server.kubeconfig("admin", server.token))) as api:
        await api.create(path, body)


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("EgressPolicy", POLICY),
        ("IPPool", POOL),
        ("IPPool", {"cloud": CLOUD}),
        ("IPPool", {"cloud": {"provider": "azure", "credentials": {"secretName": "azure"}}}),
        ("ClusterNetwork", {}),
        ("EgressPolicy", POLICY | {"selectors": [{}]}),
        ("LoadBalancer", BALANCER),
        ("LoadBalancer", BALANCER | {"backends": [], "tableSize": 131071}),
        ("PacketCapture", CAPTURE),
        ("PacketCapture", CAPTURE | {"mode": "Ring", "triggers": [{"type": "DropReason", "reason": "no_backend"}]}),
    ],
)
async def test_good_objects_are_accepted(api_server: apiserver.ApiServer, kind: str, spec: Any) -> None:
    """What the guides show passes, and an empty selector selects everything."""
    await create(api_server, kind, copy.deepcopy(spec))


@pytest.mark.parametrize(("kind", "spec", "where", "remedy"), BAD, ids=[f"{kind}-{remedy}" for kind, _, _, remedy in BAD])
async def test_bad_objects_are_refused(api_server: apiserver.ApiServer, kind: str, spec: Any, where: str, remedy: str) -> None:
    """The message has the path of the field, and says what would be right."""
    with pytest.raises(ApiError) as refused:
        await create(api_server, kind, spec)
    assert where in refused.value.message
    assert remedy in refused.value.message


async def test_there_is_one_network(api_server: apiserver.ApiServer) -> None:
    """A ClusterNetwork by another name is refused."""
    with pytest.raises(ApiError, match="named default"):
        await create(api_server, "ClusterNetwork", {}, "other")


def test_kubectl_explains_every_kind(api_server: apiserver.ApiServer) -> None:
    """`kubectl explain` and the short names work."""
    assert "egressIPs" in api_server.kubectl("explain", "egp.spec.gateways").stdout
    assert "maintenance" in api_server.kubectl("explain", "tlb.spec.backends").stdout
    assert "every port" in api_server.kubectl("explain", "pcap.spec.filters").stdout
    assert "VXLAN" in api_server.kubectl("explain", "clusternetwork.spec.tunnel").stdout
