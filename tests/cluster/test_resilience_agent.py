"""Agents die, come back, and find damage: what was programmed keeps carrying packets, and what was lost comes back."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import probes
import pytest
from cluster import LEGACY1, Cluster, Pod, eventually, node_path, pod_path, selecting

pytestmark = pytest.mark.cluster

PORT = 7400
ADDRESSES = ("172.30.0.245", "fd30::245")


@pytest.fixture
def egress(cluster: Cluster, pods: dict[str, Pod]) -> Iterator[None]:
    """The pod on node1 leaves through node2."""
    with (
        cluster.labelled(pod_path("node1"), resilience="yes"),
        cluster.labelled(node_path("node2"), resilience="gateway"),
        cluster.policy(
            "resilience",
            selectors=[{"podSelector": selecting(resilience="yes")}],
            destinationCIDRs=[f"{LEGACY1[0]}/32", f"{LEGACY1[1]}/128"],
            gateways=[{"nodeSelector": selecting(resilience="gateway"), "egressIPs": list(ADDRESSES)}],
        ),
    ):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
        yield


@contextmanager
def streams(pods: dict[str, Pod]) -> Iterator[list[probes.Stream]]:
    """Both families, from node1's pod to node2's and to a server outside; all datagrams must have been answered at the end."""
    with ExitStack() as stack:
        stack.enter_context(probes.Echo(pods["node2"].namespace, PORT))
        targets = [(address, PORT) for address in pods["node2"].addresses] + [(address, 9001) for address in LEGACY1]
        made = [probes.Stream(pods["node1"].namespace, address, port) for address, port in targets]
        with ExitStack() as running:
            for stream in made:
                running.enter_context(stream)
            yield made
    assert {stream.target: stream.lost for stream in made} == {stream.target: 0 for stream in made}
    assert min(stream.sent for stream in made) > 100


def ready(cluster: Cluster, node: str) -> None:
    """Wait until an agent has applied an order and hears the API server."""
    eventually(lambda: json.loads(cluster.http(node, "/status"))["synced"])
    eventually(lambda: cluster.http(node, "/readyz"))


@contextmanager
def stopped(cluster: Cluster, node: str) -> Iterator[None]:
    """Kill an agent and start it again."""
    cluster.lab.stop_agent(node, signal.SIGKILL)
    try:
        yield
    finally:
        cluster.lab.start_agent(node)
        ready(cluster, node)


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_killed_agent_loses_no_packet(cluster: Cluster, pods: dict[str, Pod], egress: None, node: str) -> None:
    """kill -9 and restart, on the pods' node and on the gateway, under 200 datagrams a second each way: all are answered."""
    with streams(pods), stopped(cluster, node):
        eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)


def test_a_stopped_agent_leaves_the_datapath(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """SIGTERM ends the agent and nothing else: packets go on, and a new agent drops nothing."""
    with streams(pods):
        cluster.lab.stop_agent("node1")
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
        cluster.lab.start_agent("node1")
        ready(cluster, "node1")


def test_a_policy_changes_while_an_agent_is_down(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """What was decided meanwhile holds once the agent is back."""
    with stopped(cluster, "node1"):
        cluster.merge(pod_path("node1"), {"metadata": {"labels": {"resilience": "no"}}})
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), cluster.host_addresses("node1"))


def test_corrupt_state_files(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """An order and a pod's record of garbage, a half-written one and an emptied one are set aside: pods keep working, and
    none of their addresses is given away."""
    folder = cluster.lab.premises.node("node1").agent
    with streams(pods):
        with stopped(cluster, "node1"):
            (folder / "inputs.json").write_text('{"network": {"rou')
            pods["node1"].record.write_bytes(b"\xff\0garbage")
            pods["node1b"].record.write_text("")
            (folder / "endpoints/half.json.new").write_text("{")
        assert cluster.sources(pods["node1"], LEGACY1) == ADDRESSES
    eventually(lambda: known(cluster) >= {"tests/node1", "tests/node1b"})
    with cluster.pods({"resilience-new": "node1"}) as made:
        assert not set(made["resilience-new"].addresses) & {*pods["node1"].addresses, *pods["node1b"].addresses}


def known(cluster: Cluster) -> set[str]:
    """Name the pods that the agent of node1 knows with their labels."""
    return {each["pod"] for each in json.loads(cluster.http("node1", "/status"))["pods"] if each["known"]}


def test_a_lost_state_directory(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """All records of pods and the order are gone: the links themselves tell which pods there are."""
    folder = cluster.lab.premises.node("node1").agent
    with streams(pods), stopped(cluster, "node1"):
        for file in [folder / "inputs.json", *folder.glob("endpoints/*")]:
            file.unlink()
    eventually(lambda: known(cluster) >= {"tests/node1", "tests/node1b"})
    with cluster.pods({"resilience-new": "node1"}) as made:
        assert not set(made["resilience-new"].addresses) & {*pods["node1"].addresses, *pods["node1b"].addresses}


def _rows(cluster: Cluster, pods: dict[str, Pod]) -> dict[str, tuple[str, list[str]]]:
    """Commands that damage something on a node, by what it is."""
    pod, other = pods["node1"], pods["node2"]
    block = next(
        cidr
        for cidr in cluster.api.get("/apis/tidegate.io/v1alpha1/nodestates/node2")["spec"]["podCIDRs"]
        if ":" not in cidr
    )
    return {
        "pod route": ("node1", ["ip", "route", "delete", pod.addresses[0], "table", "2076"]),
        "pod route 6": ("node1", ["ip", "-6", "route", "delete", pod.addresses[1], "table", "2076"]),
        "node route": ("node1", ["ip", "route", "delete", block, "table", "2076"]),
        "rule": ("node1", ["ip", "rule", "delete", "priority", "1076"]),
        "neighbour": ("node1", ["ip", "neighbour", "delete", pod.addresses[0], "dev", pod.device]),
        "tunnel": ("node1", ["ip", "link", "delete", "tgvxlan"]),
        "egress address": ("node2", ["ip", "route", "delete", "local", ADDRESSES[0], "table", "2076"]),
        "egress address 6": ("node2", ["ip", "-6", "neighbour", "delete", "proxy", ADDRESSES[1], "dev", "eth0"]),
        "forwarding": ("node1", ["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"]),
        "other node's pod": ("node2", ["ip", "link", "set", other.device, "down"]),
    }


@pytest.mark.parametrize(
    "what",
    ["pod route", "pod route 6", "node route", "rule", "neighbour", "tunnel", "egress address", "egress address 6", "forwarding"],
)
def test_deleted_kernel_objects_come_back(cluster: Cluster, pods: dict[str, Pod], egress: None, what: str) -> None:
    """Somebody deletes one of our rows: within seconds the kernel is as before, and packets flow."""
    node, words = _rows(cluster, pods)[what]
    before = kernel(cluster, node)
    cluster.sh(node, *words)
    assert kernel(cluster, node) != before
    eventually(lambda: kernel(cluster, node), before, 10)
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
    assert all(probes.pings(pods["node1"].namespace, address) for address in pods["node2"].addresses)
    assert probes.pings(cluster.host("node1"), pods["node1"].addresses[0])


def kernel(cluster: Cluster, node: str) -> Any:
    """Return everything of ours in a node's kernel, less what differs from device to device."""
    script = """
    for family in -4 -6; do ip $family route show table 2076 | sort; ip $family rule show priority 1076; done
    ip neigh show nud permanent | sort; ip -6 neigh show proxy
    ip -o -br link show dev tgvxlan | cut -d ' ' -f 1,2
    cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
    """
    return cluster.lab.exec_node(node, "sh", "-c", script).stdout


@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_a_detached_program_comes_back(cluster: Cluster, pods: dict[str, Pod], egress: None, hook: str) -> None:
    """Both the pin and, with it, the attachment of a pod link's program are gone: they come back, and egress is right."""
    pin = cluster.lab.premises.bpffs / "node1/links" / f"{pods['node1'].device}:{hook}"
    if not pin.exists():
        pytest.skip("this kernel attaches programs by filters, not by links")
    pin.unlink()
    eventually(pin.exists, seconds=10)
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)
    assert all(probes.pings(pods["node1"].namespace, address) for address in pods["node2"].addresses)


def test_emptied_maps_are_filled_again(cluster: Cluster, pods: dict[str, Pod], egress: None) -> None:
    """Every row of the maps that hold pods, ranges, policies and paths is deleted: all come back, and egress is right."""
    maps = cluster.lab.premises.bpffs / "node1/maps"
    before = {name: keys(cluster, maps / name) for name in ("tg_endpoint", "tg_local", "tg_egress", "tg_path", "tg_range")}
    for name, rows in before.items():
        assert rows, name
        for row in rows:
            cluster.sh("node1", "bpftool", "map", "delete", "pinned", str(maps / name), "key", "hex", *row)
    for name, rows in before.items():
        eventually(lambda name=name: keys(cluster, maps / name), rows, 10)
    eventually(lambda: cluster.sources(pods["node1"], LEGACY1), ADDRESSES)


def keys(cluster: Cluster, pin: Path) -> set[tuple[str, ...]]:
    """Return a map's keys as bytes in hexadecimal."""
    dump = json.loads(cluster.sh("node1", "bpftool", "-j", "map", "dump", "pinned", str(pin)))
    return {tuple(byte.removeprefix("0x") for byte in each["key"]) for each in dump}
