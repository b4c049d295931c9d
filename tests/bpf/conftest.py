"""As input: packets and map rows. As output: verdicts, counters, packets. Not faked: the programs and the kernel."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from balancer import TCP_, UDP_, Balancer
from namespace import fresh_namespace, ip
from packets import Harness, addr

from tidegate.datapath.layout import fields
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import LoadBalancerSizes, Loaded, Sizes, ensure_loaded

CONFIG = {"vni_base": 4096, "mark": 0x0F000000, "mark_mask": 0x0F000000, "tunnel_port": 8472}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/bpf/" in str(item.path):
            item.add_marker("bpf")


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    if os.geteuid():
        pytest.skip("needs root")
    state = tmp_path_factory.mktemp("state")
    pins = Path(f"/sys/fs/bpf/tidegate-test-{os.getpid()}")
    sizes = Sizes(TG_MAX_PODS=64, TG_MAX_RANGES=1024, TG_MAX_POLICIES=64, TG_MAX_FLOWS=4096)
    yield ensure_loaded(Places(state, pins, state, state), sizes)
    shutil.rmtree(pins)


def forward_between(*devices: str) -> None:
    """Make devices that end nowhere, and a kernel that forwards between them."""
    made = "".join(
        f"link add {name} type veth peer {name}.peer\nlink set {name} up\nlink set {name}.peer up\n" for name in devices
    )
    ip(f"link set lo up\n{made}")
    for switch in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        (Path("/proc/sys/net") / switch).write_text("1")


@pytest.fixture
def node(loaded: Loaded) -> Iterator[Harness]:
    """A node with two pods on pod0 and pod1, an uplink, a peer, and the world behind 172.30.0.1."""
    with fresh_namespace():
        forward_between("up0", "pod0", "pod1", "tgvxlan")
        ip("""
        address add 172.30.0.11/24 dev up0
        address add fd30::11/64 dev up0 nodad
        route add default via 172.30.0.1
        route add default via fd30::1
        """)
        harness = Harness(loaded)
        import socket

        index = {name: socket.if_nametoindex(name) for name in ("up0", "pod0", "pod1", "tgvxlan")}
        harness.put("tg_config", 0, tunnel_ifindex=index["tgvxlan"], **CONFIG)
        for number, device in enumerate(("pod0", "pod1"), 1):
            v4, v6 = f"10.40.1.{number}", f"fd40:0:0:1::{number}"
            harness.put("tg_endpoint", index[device], ip4=addr(v4), ip6=addr(v6), born=1)
            harness.put("tg_local", fields(addr=addr(v4)), ifindex=index[device])
            harness.put("tg_local", fields(addr=addr(v6)), ifindex=index[device])
        ranges = {
            "10.40.0.0/16": {"kind": 3},
            "fd40::/48": {"kind": 3},
            "10.40.2.0/24": {"kind": 2, "via": addr("172.30.0.12")},
            "fd40:0:0:2::/64": {"kind": 2, "via": addr("172.30.0.12")},
            "172.30.0.12/32": {"kind": 2, "via": addr("172.30.0.12")},
            "172.30.0.11/32": {"kind": 1},
            "10.96.0.0/16": {"kind": 1},
        }
        from ipaddress import ip_network

        from tidegate.datapath.order import mapped_prefix

        for text, value in ranges.items():
            length, address = mapped_prefix(ip_network(text))
            harness.put("tg_range", fields(prefixlen=length, addr=address), **value)
        harness.put("tg_source", 0, ip4=addr("172.30.0.11"), ip6=addr("fd30::11"), port_min=1024, port_max=65535)
        yield harness
        harness.close()


@pytest.fixture(scope="session")
def loaded_balancer(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    state = tmp_path_factory.mktemp("state")
    sizes = LoadBalancerSizes(
        TG_LB_MAX_VIPS=256,
        TG_LB_MAX_SERVICES=64,
        TG_LB_MAX_BACKENDS=64,
        TG_LB_MAX_FLOWS=4096,
        TG_LB_MAX_CLIENTS=256,
        TG_LB_MAX_RANGES=256,
        TG_LB_MAX_SLOTS=65536,
    )
    return ensure_loaded(Places(state, loaded.maps.parent, state, state), sizes)


@pytest.fixture
def balancer(loaded_balancer: Loaded) -> Iterator[Balancer]:
    """A balancer between two routers: 192.0.2.10 and 2001:db8:10::10, TCP and UDP port 80, go to backend 1, which is 10.9.0.1."""
    with fresh_namespace():
        forward_between("up0", "up1")
        ip("""
        link set up0 address 02:74:67:00:00:01
        link set up1 address 02:74:67:00:00:02
        address add 172.30.0.11/24 dev up0
        address add fd30::11/64 dev up0 nodad
        address add 172.31.0.11/24 dev up1
        neighbour add 172.30.0.1 dev up0 lladdr 02:00:00:00:00:fe nud permanent
        neighbour add fd30::1 dev up0 lladdr 02:00:00:00:00:fe nud permanent
        neighbour add 172.31.0.1 dev up1 lladdr 02:00:00:00:00:fd nud permanent
        route add default via 172.30.0.1
        route add default via fd30::1
        route add 10.8.0.0/16 via 172.31.0.1
        route add 10.7.0.0/16 via 172.30.0.77
        """)
        made = Balancer(loaded_balancer)
        for address in ("192.0.2.10", "2001:db8:10::10"):
            made.vip(address)
            for proto in (TCP_, UDP_):
                made.vip(address, 80, proto, service=1)
        made.backend(1, "10.9.0.1")
        made.service(1, [1] * 7)
        yield made
        made.close()
