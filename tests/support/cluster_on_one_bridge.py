"""Two nodes whose kernels obey an order, as agents would make them obey it, without Kubernetes."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from msgspec import structs
from topology import POD_MAC, Topology, run_in, topology

from tidegate.crds.cluster_state import EgressRule, Peer, RuleGateway
from tidegate.crds.egress import PodSelection
from tidegate.crds.meta import LabelSelector
from tidegate.crds.node_state import HeldAddress, NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath.kernel import Kernel
from tidegate.datapath.order import LocalPod, Order
from tidegate.datapath.owned import Places
from tidegate.datapath.programs import Sizes, ensure_loaded
from tidegate.datapath.table import Receipt

PODS = {"web": (1, 2), "other": (1, 3), "far": (2, 2), "spare": (2, 3)}
"""Name: (node, last part of the address). `web` has the label app=web."""


def pod_addresses(name: str) -> tuple[str, str]:
    """A pod's IPv4 and IPv6 address."""
    node, host = PODS[name]
    return f"10.40.{node}.{host}", f"fd40:0:0:{node}::{host}"


def rule(name: str, number: int, gateways: list[RuleGateway], **fields: Any) -> EgressRule:
    """A rule for pods with app=web towards the server's two networks."""
    defaults: dict[str, Any] = {
        "selectors": [PodSelection(podSelector=LabelSelector(matchLabels={"app": "web"}))],
        "destinationCIDRs": ["198.51.100.0/24", "2001:db8:100::/64"],
    }
    numbered = [structs.replace(each, number=each.number or number) for each in gateways]
    return EgressRule(name=name, uid=name, number=number, gateways=numbered, **(defaults | fields))


def gateway(node: int, *addresses: str, number: int = 0) -> RuleGateway:
    """A gateway on a node, with the node's own addresses if none are given, and the rule's number if none is."""
    own = addresses or (f"172.30.0.{10 + node}", f"fd30::{10 + node}")
    return RuleGateway(node=f"node{node}", number=number, endpoint=f"172.30.0.{10 + node}", addresses=list(own))


@dataclass
class Cluster:
    """The nodes' kernels and orders."""

    machines: Topology
    kernels: dict[str, Kernel] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)

    def apply(self, **changes: Any) -> dict[str, Receipt]:
        """Change every node's order and apply it."""
        receipts = {}
        for node, order in self.orders.items():
            self.orders[node] = replace(order, **changes)
            receipts[node] = self.apply_on(node)
        return receipts

    def apply_on(self, node: str) -> Receipt:
        """Apply a node's order."""
        kernel, order = self.kernels[node], self.orders[node]
        return run_in(self.machines.name(node), lambda: kernel.apply(order, may_drop=True)[1])

    def hold(self, node: str, *addresses: str) -> None:
        """Let a node answer for egress addresses."""
        held = [HeldAddress(address=text, owner="EgressPolicy/web") for text in addresses]
        self.orders[node] = replace(
            self.orders[node], state=NodeStateSpec(podCIDRs=self.orders[node].state.podCIDRs, egressAddresses=held)
        )
        self.apply_on(node)

    def counters(self, node: str) -> dict[str, int]:
        """Packets by reason."""
        return self.kernels[node].counters()


def _pod(name: str) -> LocalPod:
    return LocalPod(
        namespace="demo",
        name=name,
        addresses=tuple(ip_address(text) for text in pod_addresses(name)),
        device=f"tg{name}",
        mac=POD_MAC,
        born=1,
        labels={"app": name},
        namespace_labels={},
    )


@contextlib.contextmanager
def cluster(tmp: Path, mode: str = "tunnel", prefix: str = "tgt", **network: Any) -> Iterator[Cluster]:
    """Two nodes with two pods each, in the given routing mode."""
    pins = Path(f"/sys/fs/bpf/{prefix}-{os.getpid()}-{mode}")
    with topology(2, prefix) as machines:
        made = Cluster(machines)
        try:
            for name, (node, _) in PODS.items():
                mtu = 1450 if mode == "tunnel" else 1500
                machines.pod_link(f"node{node}", name, f"tg{name}", *pod_addresses(name), mtu)
            peers = tuple(
                Peer(
                    node=f"node{n}",
                    addresses=[f"172.30.0.{10 + n}", f"fd30::{10 + n}"],
                    podCIDRs=[f"10.40.{n}.0/24", f"fd40:0:0:{n}::/64"],
                )
                for n in (1, 2)
            )
            for peer in peers:
                build(made, peer, peers, pins, tmp, ClusterNetworkSpec(routingMode=mode, **network))  # type: ignore[arg-type]
            if mode == "native":
                for n in (1, 2):
                    machines.sh(
                        "server",
                        f"ip route add 10.40.{n}.0/24 via 172.30.0.1{n}; ip -6 route add fd40:0:0:{n}::/64 via fd30::1{n}",
                    )
            yield made
        finally:
            for kernel in made.kernels.values():
                kernel.close()
            shutil.rmtree(pins, ignore_errors=True)


def build(made: Cluster, peer: Peer, peers: tuple[Peer, ...], pins: Path, tmp: Path, network: ClusterNetworkSpec) -> None:
    """Load the programs of one node and apply its first order."""
    state = tmp / peer.node
    state.mkdir(exist_ok=True)
    places = Places(state, pins / peer.node, state, state)
    loaded = ensure_loaded(places, Sizes(TG_MAX_PODS=64, TG_MAX_RANGES=1024, TG_MAX_POLICIES=64, TG_MAX_FLOWS=65536))
    made.kernels[peer.node] = Kernel(places, loaded)
    made.orders[peer.node] = Order(
        node=peer.node,
        network=network,
        cluster_cidrs=("10.40.0.0/16", "fd40::/48"),
        peers=peers,
        state=NodeStateSpec(podCIDRs=peer.podCIDRs),
        pods=tuple(_pod(name) for name, (node, _) in PODS.items() if peer.node == f"node{node}"),
    )
    receipt = made.apply_on(peer.node)
    assert receipt.failures == []
