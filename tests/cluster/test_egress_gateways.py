"""Gateways come, go and move; policies compete: no packet leaves with an address that is not the policy's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from cluster import LEGACY1, LEGACY2, Cluster, Pod, eventually, node_path, pod_path, policy_path, selecting

pytestmark = pytest.mark.cluster

BOTH = ["198.51.100.0/24", "2001:db8:100::/64"]
ADDRESSES = ("172.30.0.220", "fd30::220")
OTHERS = ("172.30.0.221", "fd30::221")
NOTHING = ("", "")


def spec(egress_ips: tuple[str, ...] = ADDRESSES, **changes: Any) -> dict[str, Any]:
    """Return a policy for pods labelled gateways=yes, by nodes labelled so."""
    gateway = {"nodeSelector": selecting(gateways="yes"), "egressIPs": list(egress_ips)}
    base = {"selectors": [{"podSelector": selecting(gateways="yes")}], "destinationCIDRs": BOTH, "gateways": [gateway]}
    return base | changes


@pytest.fixture
def pod(cluster: Cluster, pods: dict[str, Pod]) -> Iterator[Pod]:
    """The pod on node1, labelled so that the policies here select it."""
    with cluster.labelled(pod_path("node1"), gateways="yes"):
        yield pods["node1"]


def message(cluster: Cluster, name: str, kind: str) -> str:
    """Return what a condition says."""
    (found,) = [each for each in cluster.api.get(policy_path(name))["status"]["conditions"] if each["type"] == kind]
    return str(found["message"])


@contextmanager
def watched(cluster: Cluster, address: str) -> Iterator[set[int]]:
    """Count the holders of an address, again and again."""
    counts: set[int] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            counts.add(len(cluster.holders(address)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield counts
    finally:
        stop.set()
        thread.join()


def test_without_a_gateway_packets_are_dropped_until_there_is_one(cluster: Cluster, pod: Pod) -> None:
    """No node has the label: nothing leaves, the policy says why; labelling a node is enough, and unlabelling it too."""
    with cluster.policy("gateways", ready=False, **spec()):
        eventually(lambda: cluster.conditions("gateways").get("Ready"), "False NoGateway")
        eventually(lambda: cluster.sources(pod, LEGACY1), NOTHING)
        assert cluster.sources(pod, LEGACY2) == cluster.host_addresses("node1")
        with cluster.labelled(node_path("node2"), gateways="yes"):
            cluster.in_force("gateways")
            eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)
        eventually(lambda: cluster.sources(pod, LEGACY1), NOTHING)
        assert cluster.conditions("gateways")["Ready"] == "False NoGateway"


def test_without_a_gateway_allow_means_the_nodes_address(cluster: Cluster, pod: Pod) -> None:
    """whenNoGateway Allow: pods leave as without a policy, until a gateway is there."""
    with cluster.policy("gateways", ready=False, **spec(whenNoGateway="Allow")):
        eventually(lambda: cluster.conditions("gateways").get("Ready"), "False NoGateway")
        assert cluster.sources(pod, LEGACY1) == cluster.host_addresses("node1")
        with cluster.labelled(node_path("node2"), gateways="yes"):
            eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)


def test_a_gateway_without_egress_addresses_uses_its_own(cluster: Cluster, pod: Pod) -> None:
    """Neither address nor interface given: packets carry the gateway node's addresses."""
    gateway = {"nodeSelector": selecting(gateways="yes")}
    with cluster.labelled(node_path("node3"), gateways="yes"), cluster.policy("gateways", **spec(gateways=[gateway])):
        eventually(lambda: cluster.sources(pod, LEGACY1), cluster.host_addresses("node3"))


def test_an_interface_names_the_address(cluster: Cluster, pod: Pod) -> None:
    """A gateway with `interface` sends with that interface's addresses."""
    gateway = {"nodeSelector": selecting(gateways="yes"), "interface": "eth0"}
    with cluster.labelled(node_path("node2"), gateways="yes"), cluster.policy("gateways", **spec(gateways=[gateway])):
        eventually(lambda: cluster.sources(pod, LEGACY1), cluster.host_addresses("node2"))


def test_egress_addresses_move_and_never_have_two_holders(cluster: Cluster, pod: Pod) -> None:
    """The label goes from one node to another: the addresses follow; neither orders nor receipts ever name two nodes."""
    with watched(cluster, ADDRESSES[0]) as holders, watched(cluster, ADDRESSES[1]) as holders6, ExitStack() as labels:
        labels.enter_context(cluster.labelled(node_path("node2"), gateways="yes"))
        with cluster.policy("gateways", **spec()):
            eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)
            for there in ("node3", "node1"):
                labels.close()
                labels.enter_context(cluster.labelled(node_path(there), gateways="yes"))
                eventually(lambda there=there: cluster.holders(ADDRESSES[0]) == cluster.holders(ADDRESSES[1]) == [there])
                eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)
        eventually(lambda: cluster.holders(ADDRESSES[0]), [])
    assert holders | holders6 == {0, 1}


def test_two_policies_want_one_address(cluster: Cluster, pod: Pod) -> None:
    """The younger of two policies with one egress address is not accepted and names the older; it recovers by itself."""
    late = spec(destinationCIDRs=["203.0.113.0/24"])
    with (
        cluster.labelled(node_path("node2"), gateways="yes"),
        cluster.policy("gateways", **spec()),
        cluster.policy("gateways-late", ready=False, **late),
    ):
        eventually(lambda: cluster.conditions("gateways-late").get("Accepted"), "False EgressIPClaimed")
        assert "gateways" in message(cluster, "gateways-late", "Accepted")
        assert cluster.sources(pod, LEGACY1) == ADDRESSES
        assert cluster.holders(ADDRESSES[0]) == ["node2"]
        cluster.delete(policy_path("gateways"))
        cluster.in_force("gateways-late")
        eventually(lambda: cluster.source(pod, LEGACY2[0]), ADDRESSES[0])


def test_an_egress_address_inside_the_cluster_is_refused(cluster: Cluster, pod: Pod) -> None:
    """An egress address out of the pod range is not accepted, and no node answers for it."""
    with (
        cluster.labelled(node_path("node2"), gateways="yes"),
        cluster.policy("gateways", ready=False, **spec(("10.40.0.77",), destinationCIDRs=["198.51.100.0/24"])),
    ):
        eventually(lambda: cluster.conditions("gateways").get("Accepted"), "False EgressIPInsideCluster")
        assert cluster.holders("10.40.0.77") == []


def test_a_gateway_without_an_address_of_a_needed_family(cluster: Cluster, pod: Pod) -> None:
    """Both families are destinations, the gateway has an IPv4 address only: not ready, with the reason."""
    with (
        cluster.labelled(node_path("node2"), gateways="yes"),
        cluster.policy("gateways", ready=False, **spec(ADDRESSES[:1])),
    ):
        eventually(lambda: cluster.conditions("gateways").get("Ready"), "False GatewayWithoutAddress")
        eventually(lambda: cluster.sources(pod, LEGACY1)[1], "")
        cluster.write_policy("gateways", **spec())
        cluster.in_force("gateways")
        eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)


def test_priority_decides_before_length(cluster: Cluster, pod: Pod) -> None:
    """Of two policies for a destination the longer prefix wins, unless the other one has the higher priority."""
    narrow = [f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"]
    with (
        cluster.labelled(node_path("node2"), gateways="yes"),
        cluster.policy("gateways-wide", **spec()),
        cluster.policy("gateways-narrow", **spec(OTHERS, destinationCIDRs=narrow)),
    ):
        eventually(lambda: cluster.sources(pod, LEGACY1), OTHERS)
        cluster.write_policy("gateways-wide", **spec(priority=10))
        eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)


def test_of_equals_the_older_policy_wins(cluster: Cluster, pod: Pod) -> None:
    """Same priority and prefix: the older policy keeps the pods, whatever the names; the younger one names it."""
    with cluster.labelled(node_path("node2"), gateways="yes"), cluster.policy("gateways-z", **spec()):
        eventually(lambda: cluster.sources(pod, LEGACY1), ADDRESSES)
        # Ages are whole seconds: the second policy must be younger by one.
        born = cluster.api.get(policy_path("gateways-z"))["metadata"]["creationTimestamp"]
        eventually(lambda: now() > born)
        with cluster.policy("gateways-a", **spec(OTHERS)):
            assert cluster.conditions("gateways-a")["Accepted"] == "True Shadowed"
            assert "gateways-z" in message(cluster, "gateways-a", "Accepted")
            assert cluster.sources(pod, LEGACY1) == ADDRESSES


def now() -> str:
    """Return the time as resources carry it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
