"""CNI from end to end: the real plugin, the socket, an agent in a process of its own, pods in namespaces of their own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from namespace import sh

from tidegate.datapath.cni import install
from tidegate.datapath.cni.endpoints import EndpointStore
from tidegate.datapath.owned import Places
from tidegate.datapath.tables.podlinks import PodLinks, host_device

RANGES = ("10.40.1.0/24", "fd40:0:0:1::/64")
Reply = tuple[int, dict[str, Any]]


class Node:
    """A node with the plugin installed; its agent comes and goes."""

    def __init__(self, root: Path) -> None:
        self.places = Places(root / "state", root / "bpf", root / "net.d", root / "bin")
        self.places.state.mkdir()
        install.install(self.places)
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self, *ranges: str, programming_s: float = 0.0) -> None:
        """Start an agent and wait for its socket."""
        before = self.places.cni_socket.stat().st_ino if self.places.cni_socket.exists() else 0
        script = Path(__file__).with_name("cni_agent.py")
        command = [sys.executable, str(script), str(self.places.state), str(programming_s), *ranges]
        self.agent = subprocess.Popen(command)
        for _ in range(1000):
            if self.places.cni_socket.exists() and self.places.cni_socket.stat().st_ino != before:
                return
            time.sleep(0.01)
        raise AssertionError("the agent does not start")

    def kill(self) -> None:
        """kill -9."""
        if self.agent:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    def call(self, command: str, pod: str = "", netns: str = "", version: str = "1.1.0", **config: Any) -> Reply:
        """Run the plugin as a container runtime does; return its exit status and what it printed."""
        environment = {"CNI_COMMAND": command, "CNI_PATH": str(self.places.cni_bin)}
        if pod:
            names = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};K8S_POD_UID=u-{pod}"
            environment |= {
                "CNI_CONTAINERID": container(pod),
                "CNI_IFNAME": "eth0",
                "CNI_NETNS": netns,
                "CNI_ARGS": names,
            }
        body = {"cniVersion": version, "name": "tidegate", "type": "tidegate-cni"} | config
        plugin = self.places.cni_bin / install.PLUGIN
        done = subprocess.run([plugin], env=environment, input=json.dumps(body).encode(), capture_output=True, check=False)
        assert done.stderr == b""
        return done.returncode, json.loads(done.stdout or b"{}")

    def records(self) -> dict[str, tuple[str, ...]]:
        """Pods and their addresses, as the files have them."""
        return {one.name: one.addresses for one in EndpointStore(self.places.endpoints).list()}


def container(pod: str) -> str:
    return f"{pod:0>64}"


@pytest.fixture
def node(host: None, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.kill()


def inside(netns: str, script: str) -> str:
    return sh(f"nsenter --net={netns} sh -ec '{script}'")


def addresses(reply: Reply) -> list[str]:
    assert reply[0] == 0, reply
    return [item["address"].partition("/")[0] for item in reply[1]["ips"]]


def test_add_check_del(node: Node, sandbox: Callable[[], str]) -> None:
    """A pod gets one address a family, its routes and its gateway; a second ADD tells the same; DEL leaves nothing."""
    node.start(*RANGES)
    netns = sandbox()
    first = node.call("ADD", "web", netns)

    device = host_device(container("web"), "eth0")
    assert addresses(first) == ["10.40.1.1", "fd40:0:0:1::1"]
    assert [item["name"] for item in first[1]["interfaces"]] == [device, "eth0"]
    assert first[1]["interfaces"][1] | {"mac": ""} == {"name": "eth0", "mac": "", "sandbox": netns, "mtu": 1450}
    routes4 = inside(netns, "ip -4 route").splitlines()
    assert [" ".join(line.split()) for line in routes4] == [
        "default via 169.254.1.1 dev eth0 mtu 1400",
        "10.40.0.0/16 via 169.254.1.1 dev eth0",
        "169.254.1.1 dev eth0 scope link",
    ]
    routes6 = inside(netns, "ip -6 route")
    assert "fd40::/48 via fe80::1 dev eth0" in routes6
    assert "default via fe80::1 dev eth0 metric 1024 mtu 1400" in routes6
    assert "02:74:67:00:00:01 PERMANENT" in inside(netns, "ip neigh show 169.254.1.1")
    assert "02:74:67:00:00:01 PERMANENT" in inside(netns, "ip neigh show fe80::1")
    assert "tentative" not in inside(netns, "ip address")
    assert "addrgenmode none" in sh(f"ip -d link show {device}")
    assert sh(f"ip -6 address show dev {device}") == ""

    assert node.call("ADD", "web", netns) == first
    assert node.call("CHECK", "web", netns, prevResult=first[1]) == (0, {})
    for version in ("0.4.0", "1.0.0"):
        old = node.call("ADD", "web", netns, version=version)
        assert node.call("CHECK", "web", netns, version=version, prevResult=old[1]) == (0, {})
        assert ("version" in old[1]["ips"][0], "mtu" in old[1]["interfaces"][0]) == (version == "0.4.0", False)

    assert node.call("DEL", "web", netns) == (0, {})
    assert node.call("DEL", "web", netns) == (0, {})
    assert (PodLinks().list(), node.records()) == ({}, {})
    assert node.call("CHECK", "web", netns, prevResult=first[1])[1]["code"] == 3


def test_pods_reach_each_other(node: Node, sandbox: Callable[[], str]) -> None:
    """With routes and neighbours on the host side, as the agent's tables make them, two pods exchange packets at once."""
    node.start(*RANGES)
    pods = {name: (sandbox(), host_device(container(name), "eth0")) for name in ("one", "two")}
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for name, (netns, device) in pods.items():
        reply = node.call("ADD", name, netns)
        for address in addresses(reply):
            mac = reply[1]["interfaces"][1]["mac"]
            sh(f"ip route add {address} dev {device}; ip neigh add {address} dev {device} lladdr {mac}")
    inside(pods["one"][0], "ping -qc1 -W1 10.40.1.2; ping -qc1 -W1 fd40:0:0:1::2; ping -qc1 -W1 -s 1372 -M do 192.0.2.1")


def test_check_names_the_damage(node: Node, sandbox: Callable[[], str]) -> None:
    """CHECK says what is missing; ADD makes it again with the same addresses."""
    node.start(*RANGES)
    netns = sandbox()
    first = node.call("ADD", "web", netns)
    damage = {
        "ip address del 10.40.1.1/32 dev eth0": "lacks the address 10.40.1.1",
        "ip route del default": "no default route by 169.254.1.1",
        "ip -6 neigh del fe80::1 dev eth0": "no neighbour entry for its gateway fe80::1",
        "ip link set eth0 down": "eth0 is down",
        "ip link del eth0": "the host has no device",
    }
    for script, words in damage.items():
        inside(netns, script)
        status, error = node.call("CHECK", "web", netns, prevResult=first[1])
        assert (status, error["code"]) == (1, 101)
        assert words in error["details"]
        assert node.call("ADD", "web", netns) == first
        assert node.call("CHECK", "web", netns, prevResult=first[1]) == (0, {})
    wrong = first[1] | {"ips": [{"address": "10.40.1.99/32"}]}
    assert "prevResult lacks 10.40.1.1" in node.call("CHECK", "web", netns, prevResult=wrong)[1]["details"]


def test_del_without_namespace(node: Node, sandbox: Callable[[], str]) -> None:
    """DEL succeeds when the namespace, the link, or everything is gone already, and without CNI_NETNS."""
    node.start(*RANGES)
    netns = sandbox()
    node.call("ADD", "web", netns)
    subprocess.run(["ip", "netns", "del", Path(netns).name], check=True)
    assert node.call("DEL", "web", netns) == (0, {})
    other = sandbox()
    node.call("ADD", "db", other)
    sh(f"ip link del {host_device(container('db'), 'eth0')}")
    assert node.call("DEL", "db") == (0, {})
    assert node.call("DEL", "never") == (0, {})
    assert node.records() == {}


def test_gc(node: Node, sandbox: Callable[[], str]) -> None:
    """GC removes what belongs to no valid attachment, records and links alike; without a list it refuses."""
    node.start(*RANGES)
    kept, lost = sandbox(), sandbox()
    node.call("ADD", "kept", kept)
    node.call("ADD", "lost", lost)
    sh(f"ip link add {host_device('orphan', 'eth0')} type veth peer name orphan")
    assert node.call("GC")[1]["code"] == 7
    assert set(node.records()) == {"kept", "lost"}

    valid = [{"containerID": container("kept"), "ifname": "eth0"}]
    assert node.call("GC", **{"cni.dev/valid-attachments": valid}) == (0, {})

    assert set(node.records()) == {"kept"}
    assert set(PodLinks().list()) == {host_device(container("kept"), "eth0")}
    assert node.call("GC", version="1.0.0")[1]["code"] == 1


def test_without_agent(node: Node, sandbox: Callable[[], str]) -> None:
    """VERSION is always answered; STATUS says 50 and the others 11 while the agent is away; a node without ranges likewise."""
    versions = {"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}
    assert node.call("VERSION") == (0, versions)
    status, error = node.call("STATUS", version="1.1.0")
    assert (status, error["code"], error["cniVersion"]) == (1, 50, "1.1.0")
    begin = time.monotonic()
    status, error = node.call("ADD", "web", sandbox(), version="1.0.0")
    assert (status, error["code"], error["cniVersion"]) == (1, 11, "1.0.0")
    assert 4 < time.monotonic() - begin < 8
    node.start()
    assert node.call("VERSION") == (0, versions)
    assert node.call("STATUS")[1]["code"] == 50
    assert node.call("ADD", "web", sandbox())[1]["code"] == 11
    assert node.call("DEL", "web") == (0, {})
    node.kill()
    node.start(*RANGES)
    assert node.call("STATUS") == (0, {})


def test_add_that_cannot_be_programmed(node: Node, sandbox: Callable[[], str]) -> None:
    """If the pod's rows cannot be put, ADD fails with the reason, to be tried again, and leaves nothing."""
    node.start(*RANGES)
    status, error = node.call("ADD", "unlucky", sandbox())
    assert (status, error["code"], error["details"]) == (1, 11, "tg_endpoint 7: no space left")
    assert (PodLinks().list(), node.records()) == ({}, {})
    status, error = node.call("ADD", "web", "/run/netns/none")
    assert (status, error["code"]) == (1, 100)
    assert "/run/netns/none" in error["details"]


def test_exhaustion(node: Node, sandbox: Callable[[], str]) -> None:
    """A full range is a clear error; a released address rests before it is given out again."""
    node.start("10.40.1.0/30")
    netns = [sandbox() for _ in range(3)]
    assert [addresses(node.call("ADD", f"p{n}", netns[n])) for n in range(2)] == [["10.40.1.1"], ["10.40.1.2"]]
    status, error = node.call("ADD", "p2", netns[2])
    assert (status, error["code"]) == (1, 11)
    assert "no free address in 10.40.1.0/30: 2 of 2 in use" in error["details"]
    node.call("DEL", "p0", netns[0])
    node.kill()
    node.start("10.40.1.0/30")
    status, error = node.call("ADD", "p2", netns[2])
    assert (status, "free again in" in error["details"]) == (1, True)


def test_concurrent_adds(node: Node, sandbox: Callable[[], str]) -> None:
    """Thirty pods at once, each named twice, get different addresses; and all go at once."""
    node.start(*RANGES, programming_s=0.05)
    netns = {f"p{n}": sandbox() for n in range(30)}
    with ThreadPoolExecutor(60) as threads:
        begin = time.monotonic()
        replies = list(threads.map(lambda pod: (pod, node.call("ADD", pod, netns[pod])), [*netns, *netns]))
        took_ms = (time.monotonic() - begin) * 1e3
        by_pod = {pod: addresses(reply) for pod, reply in replies}
        assert all(addresses(reply) == by_pod[pod] for pod, reply in replies)
        assert len({address for pair in by_pod.values() for address in pair}) == 60
        gone = list(threads.map(lambda pod: node.call("DEL", pod), [*netns, *netns]))
    print(f"\n30 pods, 60 ADDs at once: {took_ms:.0f} ms")
    assert gone == [(0, {})] * 60
    assert (PodLinks().list(), node.records()) == ({}, {})


def test_agent_killed_in_the_middle(node: Node, sandbox: Callable[[], str]) -> None:
    """After kill -9 during ADDs nothing has two owners, what was made is known, and DEL and ADD work as ever."""
    node.start(*RANGES, programming_s=1.0)
    netns = {f"p{n}": sandbox() for n in range(10)}
    with ThreadPoolExecutor(10) as threads:
        calls = [threads.submit(node.call, "ADD", pod, path) for pod, path in netns.items()]
        time.sleep(0.3)
        node.kill()
        replies = [call.result() for call in calls]
    assert {(status, reply["code"]) for status, reply in replies} == {(1, 11)}
    node.start(*RANGES)
    links = set(PodLinks().list())
    assert links == {one.host_device for one in EndpointStore(node.places.endpoints).list()}
    for pod in list(netns)[:5]:
        assert node.call("DEL", pod, netns[pod]) == (0, {})
    taken = [address for pod in netns for address in addresses(node.call("ADD", pod, netns[pod]))]
    assert len(set(taken)) == 20
    for pod, path in netns.items():
        assert node.call("DEL", pod, path) == (0, {})
    assert (PodLinks().list(), node.records()) == ({}, {})


@pytest.mark.parametrize("damage", ["corrupt", "truncated", "lost", "all lost"])
def test_record_rebuilt(node: Node, sandbox: Callable[[], str], damage: str) -> None:
    """A record that is corrupt, half-written or lost is rebuilt from the link; its address is not given out twice."""
    node.start(*RANGES)
    netns = sandbox()
    first = node.call("ADD", "web", netns)
    node.kill()
    before = EndpointStore(node.places.endpoints).list()
    for path in list(node.places.endpoints.iterdir()):
        if damage == "corrupt":
            path.write_bytes(b"\xff{]")
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[:40])
        elif damage == "lost":
            path.unlink()
    if damage == "all lost":
        sh(f"rm -r {node.places.endpoints}")
    node.start(*RANGES)

    after = EndpointStore(node.places.endpoints).list()
    assert [(one.attachment, one.addresses, one.born, one.namespace, one.name) for one in after] == [
        (one.attachment, one.addresses, one.born, one.namespace, one.name) for one in before
    ]
    assert len(list(node.places.endpoints.glob("*.corrupt"))) == (1 if damage in ("corrupt", "truncated") else 0)
    assert addresses(node.call("ADD", "db", sandbox())) == ["10.40.1.2", "fd40:0:0:1::2"]
    assert node.call("ADD", "web", netns) == first
    assert node.call("DEL", "web", netns) == (0, {})


def test_records_after_a_reboot(node: Node, sandbox: Callable[[], str]) -> None:
    """Records of sandboxes that ended with the machine are dropped at the start."""
    node.start(*RANGES)
    netns = sandbox()
    node.call("ADD", "web", netns)
    node.kill()
    subprocess.run(["ip", "netns", "del", Path(netns).name], check=True)
    while PodLinks().list():
        time.sleep(0.01)
    node.start(*RANGES)
    assert node.records() == {}


def test_only_root_is_answered(node: Node) -> None:
    """The socket is closed to others, and one who gets in all the same is not answered."""
    node.start(*RANGES)
    assert node.places.cni_socket.stat().st_mode & 0o777 == 0o600
    node.places.cni_socket.chmod(0o666)
    for folder in node.places.cni_socket.parents:
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o755)
    plugin = node.places.cni_bin / install.PLUGIN
    done = subprocess.run([plugin], user=65534, input=b"{}", env={"CNI_COMMAND": "STATUS"}, capture_output=True, check=False)
    # Hung up on, it notices when it writes or when it reads.
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 50)
    assert json.loads(done.stdout)["details"] in ("the request could not be sent", "it ended before it answered")
    assert node.call("STATUS") == (0, {})


def test_time(node: Node, sandbox: Callable[[], str]) -> None:
    """Prints how long the plugin takes to start, and ADD and DEL through all of it; never a pass or fail on a time."""
    node.start(*RANGES)
    netns = [sandbox() for _ in range(100)]

    def timed(*arguments: str) -> float:
        begin = time.perf_counter()
        assert node.call(*arguments)[0] == 0
        return (time.perf_counter() - begin) * 1e3

    starts = sorted(timed("VERSION") for _ in range(100))
    adds = sorted(timed("ADD", f"p{n}", netns[n]) for n in range(100))
    dels = sorted(timed("DEL", f"p{n}", netns[n]) for n in range(100))
    print()
    for name, times in (("plugin alone", starts), ("ADD", adds), ("DEL", dels)):
        print(f"{name}: p50 {statistics.median(times):.1f} ms, p99 {times[98]:.1f} ms (with the start of the process)")
