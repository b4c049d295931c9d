"""Somebody damages what the agent made in the kernel: within seconds all is as before."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_network
from typing import Any

import probes
import pytest
from cluster import LEGACY1, Cluster, Pod, eventually, node_path, pod_path, selecting

from tidegate.datapath.layout import read_layout
from tidegate.datapath.tables.maps import MapTable

pytestmark = pytest.mark.cluster

ADDRESSES = ("172.30.0.246", "fd30::246")
MAPS = ("tg_endpoint", "tg_local", "tg_egress", "tg_path", "tg_range")
AUDIT_S = 12
"""The agent reads the kernel every five seconds, if nothing tells it earlier."""

WAYS = {
    "route to a pod": ("node1", "ip route delete {pod4} table 2076"),
    "IPv6 route to a pod": ("node1", "ip -6 route delete {pod6} table 2076"),
    "route to a node": ("node1", "ip route delete {block} table 2076"),
    "rule": ("node1", "ip rule delete priority 1076"),
    "IPv6 rule": ("node1", "ip -6 rule delete priority 1076"),
    "neighbour": ("node1", "ip neighbour delete {pod4} dev {device}"),
    "tunnel": ("node1", "ip link delete tgvxlan"),
    "tunnel's state": ("node1", "ip link set tgvxlan down"),
    "egress address": ("node2", f"ip route delete local {ADDRESSES[0]} table 2076"),
    "IPv6 egress address": ("node2", f"ip -6 neighbour delete proxy {ADDRESSES[1]} dev eth0"),
    "forwarding": ("node1", "echo 0 > /proc/sys/net/ipv4/ip_forward"),
}


@pytest.fixture(scope="module", autouse=True)
def _egress(cluster: Cluster, pods: dict[str, Pod]) -> Iterator[None]:
    """The pod on node1 leaves through node2."""
    with (
        cluster.labelled(pod_path("node1"), drift="yes"),
        cluster.labelled(node_path("node2"), drift="gateway"),
        cluster.policy(
            "drift",
            selectors=[{"podSelector": selecting(drift="yes")}],
            destinationCIDRs=[f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"],
            gateways=[{"nodeSelector": selecting(drift="gateway"), "egressIPs": list(ADDRESSES)}],
        ),
    ):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
        yield


@contextmanager
def unnoticed(cluster: Cluster, node: str) -> Iterator[None]:
    """Halt a node's agent meanwhile: it is so quick that the damage could not be seen."""
    agent = cluster.lab.premises.daemons.find(f"agent-{node}")
    assert agent
    agent.send(signal.SIGSTOP)
    try:
        yield
    finally:
        agent.send(signal.SIGCONT)


def works(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """Egress, other nodes' pods, and the node itself are reached."""
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
    assert all(probes.pings(pods["node1"].namespace, address) for address in pods["node2"].addresses)
    assert all(probes.pings(cluster.host("node1"), address) for address in pods["node1"].addresses)


@pytest.mark.parametrize("what", WAYS)
def test_a_deleted_object_comes_back(cluster: Cluster, pods: dict[str, Pod], what: str) -> None:
    """Routes, rules, neighbours, the tunnel, egress addresses and settings."""
    node, script = WAYS[what]
    blocks = cluster.api.get("/apis/tidegate.io/v1alpha1/nodestates/node2")["spec"]["podCIDRs"]
    block = next(text for text in blocks if ip_network(text).version == 4)
    pod = pods["node1"]
    before = kernel(cluster, node)
    with unnoticed(cluster, node):
        words = script.format(pod4=pod.addresses[0], pod6=pod.addresses[1], block=block, device=pod.device)
        cluster.sh(node, "sh", "-c", words)
        assert kernel(cluster, node) != before
    eventually(lambda: kernel(cluster, node), before, AUDIT_S)
    works(cluster, pods)


def kernel(cluster: Cluster, node: str) -> str:
    """Return everything of ours in a node's kernel, less what differs from device to device."""
    script = """
    for family in -4 -6; do ip $family route show table 2076 | sort; ip $family rule show priority 1076; done
    ip neigh show nud permanent | sort; ip -6 neigh show proxy
    ip -o link show dev tgvxlan | grep -o '<.*mtu [0-9]*'
    cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
    """
    return cluster.lab.exec_node(node, "sh", "-c", script).stdout


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_detached_program_comes_back(cluster: Cluster, pods: dict[str, Pod], hook: str) -> None:
    """The pin that holds a program on a pod's link is deleted."""
    pin = cluster.lab.premises.bpffs / "node1/links" / f"{pods['node1'].device}:{hook}"
    if not pin.exists():
        pytest.skip("this kernel attaches programs by filters, not by links")
    pin.unlink()
    eventually(pin.exists, seconds=AUDIT_S)
    works(cluster, pods)


def test_an_unpinned_folder_comes_back(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """All of a node's links are detached at once, those of the uplink and the tunnel too."""
    folder = cluster.lab.premises.bpffs / "node1/links"
    before = {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    eventually(lambda: {path.name for path in folder.iterdir()}, before, AUDIT_S)
    works(cluster, pods)


@pytest.mark.parametrize("name", MAPS)
def test_an_emptied_map_is_filled_again(cluster: Cluster, pods: dict[str, Pod], name: str) -> None:
    """Every row of a map is deleted."""
    table = _map(cluster, name)
    before = dict(table.read())
    assert before
    with unnoticed(cluster, "node1"):
        for key in before:
            table.drop(key)
        assert not table.read()
    eventually(lambda: dict(table.read()), before, AUDIT_S)
    works(cluster, pods)


def test_a_changed_row_is_put_right(cluster: Cluster, pods: dict[str, Pod]) -> None:
    """A pod's row is given to no policy: it is selected again."""
    table = _map(cluster, "tg_endpoint")
    before: Mapping[Any, Any] = dict(table.read())
    with unnoticed(cluster, "node1"):
        for key, value in before.items():
            table.put(key, tuple(each for each in value if each[0] != "policy_class"))
        assert table.read() != before
    eventually(lambda: dict(table.read()), before, AUDIT_S)
    works(cluster, pods)


def _map(cluster: Cluster, name: str) -> MapTable:
    (described,) = cluster.lab.premises.node("node1").agent.glob("layout-*.json")
    return MapTable(cluster.lab.premises.bpffs / "node1/maps" / name, read_layout(described).maps[name])
