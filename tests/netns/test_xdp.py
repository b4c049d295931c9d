"""The load balancer on a real device: attached, replaced, detached, and in the path of real connections."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancer import TCP_, Balancer
from namespace import sh
from packets import addr
from topology import Topology, run_in

from tidegate.datapath import libbpf
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import LoadBalancerSizes, Loaded, ensure_loaded
from tidegate.datapath.xdp import Attached, XdpLinks

SUPPORT = Path(__file__).parent.parent / "support"
VIP4, VIP6 = "192.0.2.10", "2001:db8:10::10"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    state = tmp_path_factory.mktemp("state")
    pins = Path(f"/sys/fs/bpf/tidegate-test-xdp-{os.getpid()}")
    sizes = LoadBalancerSizes(64, 64, 64, 4096, 64, 64, 65536)
    yield ensure_loaded(Places(state, pins, state, state), sizes)
    shutil.rmtree(pins)


def program(loaded: Loaded) -> int:
    return libbpf.obj_get(loaded.programs / "lb")


def test_attach_replace_detach(loaded: Loaded, host: None) -> None:
    """A veth runs the program natively; again replaces it; another's program is not touched; detaching leaves nothing."""
    links, index = XdpLinks(loaded.links), socket.if_nametoindex("up0")
    with libbpf.opened(program(loaded)) as fd:
        assert links.attached("up0", index) is None
        assert links.attach("up0", index, fd) == "native"
        assert links.attached("up0", index) == Attached(libbpf.prog_id(fd), "native")
        assert links.attach("up0", index, fd) == "native"
        others = XdpLinks(loaded.links.parent)
        with pytest.raises(libbpf.BpfError) as refused:
            others.attach("up0", index, fd)
        assert refused.value.errno in (errno.EBUSY, errno.EEXIST)
        assert links.left_over(["up0"]) == []
        assert links.left_over([]) == ["up0"]
    links.detach("up0")
    assert links.attached("up0", index) is None
    assert "prog/xdp" not in sh("ip link show up0")


def test_generic(loaded: Loaded, host: None) -> None:
    """A device whose driver has no XDP runs it in the generic path, and says so."""
    sh("ip link add br9 type bridge")
    links, index = XdpLinks(loaded.links), socket.if_nametoindex("br9")
    with libbpf.opened(program(loaded)) as fd:
        assert links.attach("br9", index, fd) == "generic"
        assert links.attached("br9", index) == Attached(libbpf.prog_id(fd), "generic")
        assert links.attach("br9", index, fd) == "generic"
    links.detach("br9")


def test_device_came_anew(loaded: Loaded, host: None) -> None:
    """A link of an earlier device of the same name is not mistaken for this one's."""
    links = XdpLinks(loaded.links)
    with libbpf.opened(program(loaded)) as fd:
        links.attach("up0", socket.if_nametoindex("up0"), fd)
        sh("ip link delete up0; ip link add up0 type veth peer up1")
        index = socket.if_nametoindex("up0")
        assert links.attached("up0", index) is None
        assert links.attach("up0", index, fd) == "native"
    links.detach("up0")


@pytest.fixture
def machines() -> Iterator[Topology]:
    """A client, a router, a balancer and a backend, each a namespace; the router sends the virtual addresses to the balancer."""
    made = Topology(f"tgx{os.getpid()}")
    try:
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
                sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
                """,
            )
        made.sh("client", "ethtool -K eth0 tx off tso off >/dev/null; ip link set eth0 mtu 1400")
        made.sh("router", f"ip route add {VIP4} via 172.30.2.2; ip route add {VIP6} via fd30:0:0:2::2")
        made.sh("back", f"ip address add {VIP4}/32 dev lo; ip address add {VIP6}/128 dev lo nodad")
        made.sh("back", "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
        yield made
    finally:
        for name in made.names:
            subprocess.run(["ip", "netns", "delete", made.name(name)], check=False)


@pytest.mark.parametrize("outer", ["172.30.3.2", "fd30:0:0:3::2"])
@pytest.mark.parametrize("vip", [VIP4, VIP6])
def test_connection_by_direct_return(loaded: Loaded, machines: Topology, vip: str, outer: str) -> None:
    """A client's request reaches the backend through the tunnel, and the answer comes from the virtual address directly."""
    balancer = Balancer(loaded)
    balancer.vip(vip)
    balancer.vip(vip, 80, TCP_, service=1)
    balancer.backend(1, outer)
    balancer.service(1, [1] * 7, source4=addr("172.30.2.2"), source6=addr("fd30:0:0:2::2"))
    links = XdpLinks(loaded.links)
    index = run_in(machines.name("lb"), lambda: socket.if_nametoindex("eth0"))
    decapsulator = machines.popen("back", sys.executable, str(SUPPORT / "decapsulate.py"), "dec0")
    assert decapsulator.stdout
    assert decapsulator.stdout.readline() == "ready\n"
    machines.sh("back", "ip link set dec0 up; sysctl -qw net.ipv4.conf.dec0.rp_filter=0")
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    server = run_in(machines.name("back"), lambda: socket.create_server((vip, 80), family=family))
    with libbpf.opened(program(loaded)) as fd:
        assert run_in(machines.name("lb"), lambda: links.attach("eth0", index, fd)) == "native"
        # A veth gives what XDP_TX sends to a peer that runs a program, too.
        peer = run_in(machines.name("router"), lambda: socket.if_nametoindex("lb"))
        run_in(machines.name("router"), lambda: links.attach("lb", peer, fd))
    try:
        client = run_in(machines.name("client"), lambda: socket.create_connection((vip, 80), timeout=5))
        accepted, _ = server.accept()
        body = os.urandom(200_000)
        with client, accepted:
            client.settimeout(10)
            accepted.settimeout(10)
            received = b""
            for at in range(0, len(body), 20_000):
                client.sendall(body[at : at + 20_000])
                while len(received) < at + 20_000:
                    received += accepted.recv(65536)
            assert received == body
            accepted.sendall(body[:1000])
            assert client.recv(1000, socket.MSG_WAITALL) == body[:1000]
        ping = machines.sh("client", f"ping -c 1 -W 2 {vip}")
        assert "1 received" in ping
        counted = balancer.counters()
        assert counted["forward_dsr"] > 100
        assert counted["forward_echo"] >= 1
    finally:
        links.detach("eth0")
        links.detach("lb")
        server.close()
        decapsulator.kill()
        decapsulator.wait()
        decapsulator.stdout.close()
