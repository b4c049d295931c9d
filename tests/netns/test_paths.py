"""Every path that a pod's packet may take, with real traffic between machines on one bridge."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster_on_one_bridge import PODS, Cluster, cluster, gateway, pod_addresses, rule

from tidegate.crds.egress import PodSelection
from tidegate.crds.meta import LabelSelector
from tidegate.crds.rendezvous import gateway_slots, slot

OUTSIDE = ("198.51.100.10", "2001:db8:100::10")
ECHO = """
import socket, threading
def serve(s):
    while True:
        c, a = s.accept()
        c.sendall(a[0].replace("::ffff:", "").encode() + b"\\n"); c.close()
s = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
serve(s)
"""


@pytest.fixture(scope="module", params=["tunnel", "native"])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp(request.param), request.param) as made:
        servers = [made.machines.popen(machine, "python3", "-c", ECHO) for machine in ("server", "far", "other")]
        time.sleep(0.3)
        yield made
        for server in servers:
            server.kill()
            server.wait()
            assert server.stdout
            server.stdout.close()


@pytest.fixture(autouse=True)
def no_policy(nodes: Cluster) -> None:
    nodes.apply(rules=())


def source(nodes: Cluster, machine: str, address: str) -> str:
    """The source address that a server sees, or nothing."""
    script = f"""python3 -c '
import socket
print(socket.create_connection(("{address}", 9000), 1).recv(99).decode().strip())' 2>/dev/null || true"""
    return nodes.machines.sh(machine, script).strip()


def pings(nodes: Cluster, machine: str, address: str, *flags: str) -> bool:
    said = nodes.machines.sh(machine, f"ping -c1 -W1 {' '.join(flags)} {address}", check=False)
    return " 0% packet loss" in said


def test_applying_again_changes_nothing(nodes: Cluster) -> None:
    """What was put is what is read: a second pass has nothing to do."""
    for receipt in nodes.apply().values():
        assert (receipt.failures, receipt.puts, receipt.drops) == ([], {}, {})


@pytest.mark.parametrize("family", [0, 1])
def test_inside(nodes: Cluster, family: int) -> None:
    """Pods reach pods on both nodes, and nodes and pods reach each other, with their own addresses."""
    own = pod_addresses("web")[family]
    assert source(nodes, "web", pod_addresses("other")[family]) == own
    assert source(nodes, "web", pod_addresses("far")[family]) == own
    for node in (1, 2):
        address = f"172.30.0.{10 + node}" if family == 0 else f"fd30::{10 + node}"
        assert pings(nodes, "web", address)
        assert source(nodes, f"node{node}", pod_addresses("far")[family]) == address


@pytest.mark.parametrize("family", [0, 1])
def test_masquerade(nodes: Cluster, family: int) -> None:
    """Without a policy a pod leaves with its node's address; TCP and echo come back."""
    assert source(nodes, "web", OUTSIDE[family]) == ("172.30.0.11", "fd30::11")[family]
    assert source(nodes, "far", OUTSIDE[family]) == ("172.30.0.12", "fd30::12")[family]
    assert pings(nodes, "web", OUTSIDE[family])


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize("place", [1, 2])
def test_gateway(nodes: Cluster, place: int, family: int) -> None:
    """A selected pod leaves with the egress address, whether the gateway is another node or its own; others do not."""
    nodes.hold(f"node{place}", "172.30.0.200", "fd30::200")
    nodes.apply(rules=(rule("web", 7, [gateway(place, "172.30.0.200", "fd30::200")]),))

    assert source(nodes, "web", OUTSIDE[family]) == ("172.30.0.200", "fd30::200")[family]
    assert pings(nodes, "web", OUTSIDE[family])
    assert source(nodes, "other", OUTSIDE[family]) == ("172.30.0.11", "fd30::11")[family]
    assert source(nodes, "web", pod_addresses("far")[family]) == pod_addresses("web")[family]

    nodes.apply(rules=())
    assert source(nodes, "web", OUTSIDE[family]) == ("172.30.0.11", "fd30::11")[family]
    nodes.hold(f"node{place}")


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize("place", [1, 2])
def test_two_addresses_on_one_node(nodes: Cluster, place: int, family: int) -> None:
    """A node that is a policy's gateway twice sends with both of its addresses, each pod always with one of them."""
    addresses = (("172.30.0.200", "fd30::200"), ("172.30.0.201", "fd30::201"))
    nodes.hold(f"node{place}", *addresses[0], *addresses[1])
    every = [PodSelection(podSelector=LabelSelector())]
    gateways = [gateway(place, *pair, number=number) for number, pair in zip((7, 8), addresses, strict=True)]
    nodes.apply(rules=(rule("web", 7, gateways, selectors=every),))

    seen = {pod: source(nodes, pod, OUTSIDE[family]) for pod in PODS}

    slots = gateway_slots(gateways)
    assert seen == {pod: addresses[slots[slot(f"demo/{pod}")]][family] for pod in PODS}
    assert set(seen.values()) == {pair[family] for pair in addresses}
    nodes.apply(rules=())
    nodes.hold(f"node{place}")


def test_no_gateway(nodes: Cluster) -> None:
    """A policy without a gateway stops its pods at the border, unless it says that they may pass."""
    nodes.apply(rules=(rule("web", 7, []),))
    assert source(nodes, "web", OUTSIDE[0]) == ""
    nodes.apply(rules=(rule("web", 7, [], whenNoGateway="Allow"),))
    assert source(nodes, "web", OUTSIDE[0]) == "172.30.0.11"


def test_largest_packet(nodes: Cluster) -> None:
    """A packet of the pod's whole MTU crosses without being cut, between pods and through the gateway."""
    nodes.apply(rules=(rule("web", 7, [gateway(2)]),))
    is_tunnel = nodes.orders["node1"].network.routingMode == "tunnel"
    assert pings(nodes, "web", pod_addresses("far")[0], "-M do", f"-s {1450 - 28 if is_tunnel else 1500 - 28}")
    assert pings(nodes, "web", OUTSIDE[0], "-M do", "-s 1422")


def test_spoofing(nodes: Cluster) -> None:
    """A pod that takes another address is not heard."""
    nodes.machines.sh("web", "ip address add 10.40.1.99/32 dev eth0")
    assert not pings(nodes, "web", pod_addresses("far")[0], "-I 10.40.1.99")
    nodes.machines.sh("web", "ip address del 10.40.1.99/32 dev eth0")


def test_deleted_rows_come_back(nodes: Cluster) -> None:
    """Routes, rules, neighbours, programs and devices that somebody removes are put again by the next pass."""
    before = source(nodes, "web", pod_addresses("far")[0])
    nodes.machines.sh("node1", "ip route flush table 2076; ip rule del pref 1076; ip link del tgvxlan")
    receipt = nodes.apply_on("node1")
    assert receipt.failures == []
    assert source(nodes, "web", pod_addresses("far")[0]) == before
    assert nodes.apply_on("node1").puts == {}


def test_from_outside(nodes: Cluster) -> None:
    """In native routing a client outside reaches a pod, and the answer carries the pod's address, policy or not."""
    if nodes.orders["node1"].network.routingMode != "native":
        return
    nodes.apply(rules=(rule("web", 7, [gateway(2)]),))
    for family in (0, 1):
        assert source(nodes, "server", pod_addresses("other")[family]) != ""
        assert pings(nodes, "server", pod_addresses("web")[family])
