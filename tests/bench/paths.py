"""The paths that packets are measured on: plain Linux ones to compare with, and Tidegate's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path as File

from cluster_on_one_bridge import cluster, gateway, pod_addresses, rule
from topology import POD_MAC, Topology, topology

POD_A, POD_A6 = "10.40.1.2", "fd40:0:0:1::2"
POD_B, POD_B6 = "10.40.2.2", "fd40:0:0:2::2"
OUTSIDE, OUTSIDE6 = "198.51.100.10", "2001:db8:100::10"


@dataclass
class Path:
    """A built path: `client` and `server` are machines, `address` by family is what the client connects to."""

    name: str
    machines: Topology
    client: str
    server: str
    address: dict[int, str]


def _pods(t: Topology, mtu: int) -> None:
    t.pod_link("node1", "poda", "pa", POD_A, POD_A6, mtu)
    t.pod_link("node2", "podb", "pb", POD_B, POD_B6, mtu)
    for node, device, v4, v6 in (("node1", "pa", POD_A, POD_A6), ("node2", "pb", POD_B, POD_B6)):
        t.sh(
            node,
            f"""
            sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
            ip route add {v4} dev {device}; ip neigh add {v4} dev {device} lladdr {POD_MAC} nud permanent
            ip -6 route add {v6} dev {device}; ip -6 neigh add {v6} dev {device} lladdr {POD_MAC} nud permanent
            """,
        )


def _routed(t: Topology) -> None:
    """node1 and node2 reach each other's pods, and node1 the outside, by plain routes; the server knows the way back."""
    _pods(t, 1500)
    t.sh(
        "node1",
        f"""
        ip route add {POD_B} via 172.30.0.12; ip -6 route add {POD_B6} via fd30::12
        ip route add {OUTSIDE} via 172.30.0.12; ip -6 route add {OUTSIDE6} via fd30::12
        """,
    )
    t.sh("node2", f"ip route add {POD_A} via 172.30.0.11; ip -6 route add {POD_A6} via fd30::11")
    t.sh("server", f"ip route add {POD_A} via 172.30.0.12; ip -6 route add {POD_A6} via fd30::12")


def _tunnelled(t: Topology) -> None:
    """The same over kernel VXLAN between the nodes."""
    _pods(t, 1450)
    for own, other, pod, pod6 in ((1, 2, POD_B, POD_B6), (2, 1, POD_A, POD_A6)):
        t.sh(
            f"node{own}",
            f"""
            ip link add vx type vxlan id 7 dstport 4789 remote 172.30.0.1{other} local 172.30.0.1{own} dev eth0
            ip address add 192.0.2.{own}/24 dev vx; ip address add fd99::{own}/64 dev vx nodad; ip link set vx mtu 1450 up
            ip route add {pod} via 192.0.2.{other}; ip -6 route add {pod6} via fd99::{other}
            """,
        )
    t.sh("node1", f"ip route add {OUTSIDE} via 192.0.2.2; ip -6 route add {OUTSIDE6} via fd99::2")


def _translated(t: Topology) -> None:
    """nftables translates on node2."""
    t.sh(
        "node2",
        f"""
        nft add table inet nat
        nft 'add chain inet nat post {{ type nat hook postrouting priority srcnat; }}'
        nft add rule inet nat post oifname eth0 ip saddr {POD_A} snat ip to 172.30.0.12
        nft add rule inet nat post oifname eth0 ip6 saddr {POD_A6} snat ip6 to fd30::12
        """,
    )


def _vxnft(t: Topology) -> None:
    _tunnelled(t)
    _translated(t)


def _nft2(t: Topology) -> None:
    _routed(t)
    _translated(t)


EGRESS: dict[str, Callable[[Topology], None]] = {"plain2": _routed, "nft2": _nft2, "vxnft": _vxnft}
POD_TO_POD: dict[str, Callable[[Topology], None]] = {"rt-pp": _routed, "vx-pp": _tunnelled}


@contextmanager
def build(scratch: File) -> Iterator[list[Path]]:
    """Build every path side by side, plain Linux and Tidegate's in both routing modes."""
    made: list[Path] = []
    with ExitStack() as stack:
        for name, builder in (EGRESS | POD_TO_POD).items():
            machines = stack.enter_context(topology(2, f"tgb{len(made)}"))
            builder(machines)
            address = {4: OUTSIDE, 6: OUTSIDE6} if name in EGRESS else {4: POD_B, 6: POD_B6}
            made.append(Path(name, machines, "poda", "server" if name in EGRESS else "podb", address))
        for mode in ("tunnel", "native"):
            nodes = stack.enter_context(cluster(scratch, mode, f"tgb{len(made)}"))
            nodes.hold("node2", "172.30.0.200", "fd30::200")
            receipts = nodes.apply(rules=(rule("web", 7, [gateway(2, "172.30.0.200", "fd30::200")]),))
            assert not any(receipt.failures for receipt in receipts.values())
            far = dict(zip((4, 6), pod_addresses("far"), strict=True))
            made.append(Path(f"tidegate-egress-{mode}", nodes.machines, "web", "server", {4: OUTSIDE, 6: OUTSIDE6}))
            made.append(Path(f"tidegate-pp-{mode}", nodes.machines, "web", "far", far))
        yield made


PEERS = {
    "tidegate-egress-tunnel": "vxnft",
    "tidegate-egress-native": "vxnft",
    "tidegate-pp-tunnel": "vx-pp",
    "tidegate-pp-native": "rt-pp",
}
"""What each of Tidegate's paths is compared with: the same work done by the kernel alone."""
