"""A client, a router, a balancer and a backend with a pod, whose kernels obey a LoadBalancerSpec as agents make them obey it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topology import POD_MAC, Topology, run_in

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec
from tidegate.crds.meta import LabelSelector
from tidegate.crds.node_state import NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath import inputs as inputs_module
from tidegate.datapath import libbpf
from tidegate.datapath.balancer import Balancer
from tidegate.datapath.cni.endpoints import Endpoint
from tidegate.datapath.inputs import Inputs
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import LoadBalancerSizes, Sizes, ensure_loaded
from tidegate.datapath.table import Receipt
from tidegate.datapath.xdp import XdpLinks

VIPS = {4: "192.0.2.10", 6: "2001:db8:10::10"}
CLIENT = {4: "172.30.1.2", 6: "fd30:0:0:1::2"}
BALANCER = {4: "172.30.2.2", 6: "fd30:0:0:2::2"}
BACKEND = {4: "172.30.3.2", 6: "fd30:0:0:3::2"}
POD = {4: "10.40.3.2", 6: "fd40:0:0:3::2"}

FRONT, BACK = 80, 8080

_SERVER = Path(__file__).parent / "echo_server.py"


@dataclass
class Paths:
    """The machines, and the kernels of balancer and backend."""

    machines: Topology
    kernels: dict[str, Kernel] = field(default_factory=dict)

    def order(self, backends: Sequence[str | Backend], **spec: Any) -> dict[str, Receipt]:
        """Order port 80 of both virtual addresses, TCP and UDP, to the backends, those without a port to their 8080."""
        frontends = [Frontend(address=vip, port=FRONT, protocol=p) for vip in VIPS.values() for p in ("TCP", "UDP")]  # type: ignore[arg-type]
        given: dict[str, Any] = {
            "frontends": frontends,
            "backends": [Backend(address=b, port=BACK) if isinstance(b, str) else b for b in backends],
            "tableSize": 251,
            "nodeSelector": LabelSelector(matchLabels={"role": "lb"}),
        }
        service = BalancedService(name="web", uid="web", number=5, spec=LoadBalancerSpec(**(given | spec)))
        return {name: self.apply(name, [service]) for name in self.kernels}

    def apply(self, name: str, services: Sequence[BalancedService]) -> Receipt:
        """Let one machine's agent take an order."""
        has_pod = name == "back"
        inputs = Inputs(
            network=ClusterNetworkSpec(routingMode="native"),
            cluster_cidrs=["10.40.0.0/16", "fd40::/48"] if has_pod else [],
            peers=[],
            rules=[],
            state=NodeStateSpec(podCIDRs=["10.40.3.0/24", "fd40:0:0:3::/64"] if has_pod else []),
            state_generation=1,
            shards={},
            node_labels={"role": name},
            namespaces={"demo": {}},
            pods={},
            services=services,
        )
        endpoint = Endpoint(
            container_id="c", ifname="eth0", host_device="tgpod", mac=POD_MAC, addresses=tuple(POD.values()), born=1,
            namespace="demo", name="pod", uid="1",
        )  # fmt: skip
        order = inputs_module.order(name, inputs, [endpoint] if has_pod else [])
        kernel = self.kernels[name]
        return run_in(self.machines.name(name), lambda: kernel.apply(order, may_drop=True)[1])

    def counters(self, name: str) -> dict[str, int]:
        """Packets by reason on the balancer or the backend."""
        return self.kernels[name].counters()

    @contextlib.contextmanager
    def serving(self, machine: str, port: int = BACK) -> Iterator[None]:
        """Run the echo server on a machine."""
        server = self.machines.popen(machine, sys.executable, str(_SERVER), str(port))
        assert server.stdout
        try:
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()
            server.wait()
            server.stdout.close()

    def connect(self, family: int, kind: int = socket.SOCK_STREAM, port: int = FRONT) -> socket.socket:
        """Connect the client to the virtual address."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, kind)
            made.settimeout(10)
            made.connect((VIPS[family], port))
            return made

        return run_in(self.machines.name("client"), make)

    def narrow(self, mtu: int) -> None:
        """Set what the router lets through to the client, without the client's knowing."""
        lock = f"mtu lock {mtu}"
        self.machines.sh(
            "router",
            f"ip route replace 172.30.1.0/24 dev client {lock}; ip -6 route replace fd30:0:0:1::/64 dev client {lock}",
        )
        for machine in ("lb", "back", "pod"):
            self.machines.sh(machine, "ip route flush cache; ip -6 route flush cache")


def _machines(made: Topology) -> None:
    for name in ("router", "client", "lb", "back"):
        made.add(name)
    made.sh("router", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    for number, name in enumerate(("client", "lb", "back"), 1):
        made.sh(
            "router",
            f"""
            ip link add {name} type veth peer name eth0 netns {made.name(name)}
            ip link set {name} up
            ip address add 172.30.{number}.1/24 dev {name}
            ip address add fd30:0:0:{number}::1/64 dev {name} nodad
            ethtool -K {name} tx off tso off >/dev/null
            """,
        )
        made.sh(
            name,
            f"""
            ip link set eth0 up
            ip address add 172.30.{number}.2/24 dev eth0
            ip address add fd30:0:0:{number}::2/64 dev eth0 nodad
            ip route add default via 172.30.{number}.1
            ip -6 route add default via fd30:0:0:{number}::1
            """,
        )
    made.sh("client", "ethtool -K eth0 tx off tso off >/dev/null")
    # As a network card's driver does: segments are joined before any program sees them, outer headers and all.
    made.sh("back", "ethtool -K eth0 gro on")
    made.sh(
        "router",
        f"""
        ip route add {VIPS[4]} via {BALANCER[4]}; ip route add {VIPS[6]} via {BALANCER[6]}
        ip route add 10.40.3.0/24 via {BACKEND[4]}; ip route add fd40:0:0:3::/64 via {BACKEND[6]}
        """,
    )
    made.pod_link("back", "pod", "tgpod", POD[4], POD[6], 1500)


@contextlib.contextmanager
def dsr_paths(tmp: Path, ours: Sequence[str] = ("lb", "back")) -> Iterator[Paths]:
    """Make the machines and load the programs of those that are `ours`; all is gone afterwards."""
    pins = Path(f"/sys/fs/bpf/tidegate-test-paths-{os.getpid()}")
    made = Paths(Topology(f"tgd{os.getpid()}"))
    try:
        _machines(made.machines)
        for name in ours:
            (tmp / name).mkdir()
            places = Places(tmp / name, pins / name, tmp / name, tmp / name)
            loaded = ensure_loaded(places, Sizes(TG_MAX_PODS=64, TG_MAX_RANGES=1024, TG_MAX_POLICIES=64, TG_MAX_FLOWS=4096))
            sizes = LoadBalancerSizes(64, 64, 64, 4096, 64, 64)
            balancer = Balancer(pins / name / "lb", lambda places=places, sizes=sizes: ensure_loaded(places, sizes))  # type: ignore[misc]
            made.kernels[name] = Kernel(places, loaded, balancer)
        made.order([BACKEND[4]])
        _accept_what_the_balancer_sends(made.machines, pins)
        yield made
    finally:
        for kernel in made.kernels.values():
            kernel.close()
        for machine in made.machines.names:
            subprocess.run(["ip", "netns", "delete", made.machines.name(machine)], check=False)
        shutil.rmtree(pins, ignore_errors=True)


def _accept_what_the_balancer_sends(machines: Topology, pins: Path) -> None:
    """A veth gives what XDP_TX sends to a peer that runs a program, too: any program that lets it pass."""
    (program,) = (pins / "lb" / "lb" / "programs").glob("*/lb")
    (pins / "router").mkdir()
    index = run_in(machines.name("router"), lambda: socket.if_nametoindex("lb"))
    with libbpf.opened(libbpf.obj_get(program)) as fd:
        run_in(machines.name("router"), lambda: XdpLinks(pins / "router").attach("lb", index, fd))


def upload_and_download(paths: Paths, family: int, size: int = 300_000, port: int = 80) -> None:
    """One connection with a large transfer in each direction; the server has seen the client's own address."""
    body = os.urandom(size)
    with paths.connect(family, port=port) as client:
        own = client.getsockname()
        writer = threading.Thread(target=client.sendall, args=(f"{size:08}".encode() + body,))
        writer.start()
        with client.makefile("rb") as answer:
            assert answer.readline() == f"{CLIENT[family]} {own[1]}\n".encode()
            assert answer.read(size) == body
        writer.join()


def _receive(client: socket.socket) -> bytes | None:
    """Return an answer, or None where the kernel was told that the question was too large for the path."""
    try:
        return client.recv(65536)
    except OSError as error:
        if error.errno != errno.EMSGSIZE:
            raise
        return None


def datagram(paths: Paths, family: int, size: int = 100) -> None:
    """One datagram and its answer; where the path is too narrow for it, the first answer may be lost."""
    with paths.connect(family, socket.SOCK_DGRAM) as client:
        body = os.urandom(size)
        client.settimeout(2)
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                client.send(body)
                answer = _receive(client)
                if answer is None:
                    continue
                assert answer == f"{CLIENT[family]} {client.getsockname()[1]}\n".encode() + body
                return
        raise AssertionError("no answer")
