"""The paths that packets are measured on: plain Linux ones to compare with, and Tidegate's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

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
        f"""nft -f - <<END
        table inet nat {{ chain post {{ type nat hook postrouting priority srcnat;
            oifname eth0 ip saddr {POD_A} snat ip to 172.30.0.12
            oifname eth0 ip6 saddr {POD_A6} snat ip6 to fd30::12
        }} }}
END
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


def _path(name: str, t: Topology, is_egress: bool) -> Path:
    if is_egress:
        return Path(name, t, "poda", "server", {4: OUTSIDE, 6: OUTSIDE6})
    return Path(name, t, "poda", "podb", {4: POD_B, 6: POD_B6})


@contextmanager
def build(ours: dict[str, tuple[Callable[[Topology], None], bool]]) -> Iterator[list[Path]]:
    """Build every path side by side; `ours` maps a name to its builder and whether the path leads outside."""
    made: list[Path] = []
    with ExitStack() as stack:
        for name, (builder, is_egress) in {
            **{name: (builder, True) for name, builder in EGRESS.items()},
            **{name: (builder, False) for name, builder in POD_TO_POD.items()},
            **ours,
        }.items():
            t = stack.enter_context(topology(2, f"tgb{len(made)}"))
            builder(t)
            made.append(_path(name, t, is_egress))
        yield made
