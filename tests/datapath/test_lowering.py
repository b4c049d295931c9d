"""From an order to rows, without a kernel."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tidegate.crds.cluster_state import EgressRule, Peer, RuleGateway
from tidegate.crds.egress import PodSelection
from tidegate.crds.meta import LabelSelector
from tidegate.crds.node_state import HeldAddress, NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec, Masquerade
from tidegate.datapath.facts import Facts, Hop, Interface
from tidegate.datapath.layout import fields
from tidegate.datapath.lower import DEPENDENCY_ORDER, lower
from tidegate.datapath.order import LocalPod, Order, mapped
from tidegate.datapath.tables.routes import Route

OWN = (ip_address("172.30.0.11"), ip_address("fd30::11"))
UPLINK = Interface("eth0", 2, "02:00:00:00:00:01", 1500, OWN)
FACTS = Facts(uplinks=(UPLINK,), interfaces=(UPLINK,), own_addresses=OWN, links={"tgvxlan": 5, "tgweb": 6, "tgdb": 7})
PEERS = tuple(
    Peer(node=f"node{n}", addresses=[f"172.30.0.1{n}", f"fd30::1{n}"], podCIDRs=[f"10.40.{n}.0/24", f"fd40:0:0:{n}::/64"])
    for n in (1, 2)
)


def pod(name: str, number: int, **changes: Any) -> LocalPod:
    made = LocalPod("demo", name, (ip_address(f"10.40.1.{number}"),), f"tg{name}", "02:", 9, {"app": name}, {})
    return replace(made, **changes)


def rule(name: str, number: int, *gateways: str, **changes: Any) -> EgressRule:
    given: dict[str, Any] = {
        "selectors": [PodSelection(podSelector=LabelSelector(matchLabels={"app": "web"}))],
        "destinationCIDRs": ["198.51.100.0/24"],
        "gateways": [
            RuleGateway(node=node, number=number, endpoint=f"172.30.0.1{node[-1]}", addresses=["172.30.0.200"])
            for node in gateways
        ],
    }
    return EgressRule(name=name, uid=name, number=number, **(given | changes))


ORDER = Order(node="node1", peers=PEERS, cluster_cidrs=("10.40.0.0/16",), pods=(pod("web", 1), pod("db", 2)))


def rows(order: Order, table: str, facts: Facts = FACTS) -> dict[Any, Any]:
    return {row.key: row.value for row in lower(order, facts) if row.table == table}


def range_of(order: Order, cidr: str, facts: Facts = FACTS) -> dict[str, Any]:
    network = ip_network(cidr)
    length = network.prefixlen + (96 if network.version == 4 else 0)
    return dict(rows(order, "tg_range", facts)[fields(prefixlen=length, addr=mapped(network.network_address))])


def test_every_row_has_a_table_and_a_place() -> None:
    """No feature names a table that is not in the order of dependence, and no two rows have one key."""
    made = lower(ORDER, FACTS)
    assert {row.table for row in made} <= set(DEPENDENCY_ORDER)
    assert len({(row.table, row.key) for row in made}) == len(made)


def test_tunnel() -> None:
    """Another node's pods are behind its tunnel endpoint; unknown pod ranges are nowhere; the node itself is the stack's."""
    assert range_of(ORDER, "10.40.2.0/24") == {"kind": 2, "via": mapped(ip_address("172.30.0.12"))}
    assert range_of(ORDER, "fd40:0:0:2::/64") == {"kind": 2, "via": mapped(ip_address("172.30.0.12"))}
    assert range_of(ORDER, "10.40.0.0/16") == {"kind": 3}
    assert range_of(ORDER, "172.30.0.11/32") == {"kind": 1}
    assert rows(ORDER, "routes")[ip_network("10.40.2.0/24")] == Route("tgvxlan", source=OWN[0])
    assert rows(ORDER, "links")["tgvxlan"].mtu == 1450


def test_native() -> None:
    """In native routing another node's pods are behind its next hop, and nowhere while it has none."""
    order = replace(ORDER, network=ClusterNetworkSpec(routingMode="native"))
    peer = ip_address("172.30.0.12")
    facts = replace(FACTS, next_hops={peer: Hop("eth0", 2, None)})
    assert range_of(order, "10.40.2.0/24", facts) == {"kind": 2, "via": mapped(peer), "ifindex": 2}
    assert rows(order, "routes", facts)[ip_network("10.40.2.0/24")] == Route("eth0", peer, OWN[0])
    assert range_of(order, "10.40.2.0/24") == {"kind": 3}


def test_without_tunnel_device() -> None:
    """What names the tunnel's index waits until there is one; what makes the device does not."""
    facts = replace(FACTS, links={})
    assert rows(ORDER, "tg_config", facts) == {}
    assert list(rows(ORDER, "links", facts)) == ["tgvxlan"]


def test_masquerade_off() -> None:
    """Without masquerading everything outside is direct, of both families."""
    order = replace(ORDER, network=ClusterNetworkSpec(masquerade=Masquerade(enabled=False)))
    assert range_of(order, "0.0.0.0/0") == {"kind": 4}
    assert range_of(order, "::/0") == {"kind": 4}


def test_selected_pod() -> None:
    """A selected pod has a class whose rows lead to the policy; another pod has none; an unknown one is held."""
    order = replace(ORDER, rules=(rule("web", 7, "node2"),), pods=(*ORDER.pods, pod("late", 3, device="tglate", labels=None)))
    facts = replace(FACTS, links={**FACTS.links, "tglate": 8})
    endpoints = {dict(key)["value"]: dict(value) for key, value in rows(order, "tg_endpoint", facts).items()}
    egress = {dict(key)["policy_class"]: dict(value) for key, value in rows(order, "tg_egress", facts).items()}
    assert egress == {endpoints[6]["policy_class"]: {"number": 7}}
    assert "policy_class" not in endpoints[7]
    assert (endpoints[8]["flags"], "policy_class" in endpoints[8]) == (1, False)


def test_class_follows_contents() -> None:
    """Changed destinations are another class, so that pods switch in one step; a changed gateway is the same class."""

    def named(changed: EgressRule) -> set[int]:
        return {dict(key)["policy_class"] for key in rows(replace(ORDER, rules=(changed,)), "tg_egress")}

    before = named(rule("web", 7, "node2"))
    assert named(rule("web", 7, "node1")) == before
    assert named(rule("web", 7, "node2", destinationCIDRs=["198.51.100.0/25"])) != before


def test_gateways() -> None:
    """This node stands among the gateways as the zero address, and sends with the policy's addresses."""
    order = replace(
        ORDER, rules=(rule("web", 7, "node1"), rule("far", 8, "node2"), rule("none", 9), rule("any", 10, whenNoGateway="Allow"))
    )
    paths = {dict(key)["value"]: dict(value) for key, value in rows(order, "tg_path").items()}
    assert paths[7] == {"number": (7).to_bytes(4, sys.byteorder).ljust(256, b"\0")}
    assert paths[8]["gateway"][:16] == mapped(ip_address("172.30.0.12"))
    assert paths[9] == {"slot": b"\xff" * 64}
    assert paths[10] == {"slot": b"\xff" * 64, "flags": 1}
    sources = {dict(key).get("value", 0): dict(value) for key, value in rows(order, "tg_source").items()}
    assert set(sources) == {0, 7}
    assert sources[7]["ip4"] == mapped(ip_address("172.30.0.200"))
    assert sources[0]["ip6"] == mapped(OWN[1])


@pytest.mark.parametrize("address", ["172.30.0.200", "fd30::200"])
def test_held_address(address: str) -> None:
    """A held address is answered for and announced; one that is on the node's own device needs nothing."""
    held = HeldAddress(address=address, owner="EgressPolicy/web")
    order = replace(ORDER, state=NodeStateSpec(egressAddresses=[held]))
    assert rows(order, "routes")[ip_network(address)] == Route("lo", kind="local")
    assert rows(order, "announcements") == {("eth0", ip_address(address)): True}
    assert (rows(order, "neighbours").get(("eth0", ip_address(address))) == "proxy") == (":" in address)
    mine = replace(FACTS, own_addresses=(*OWN, ip_address(address)))
    assert ip_network(address) not in rows(order, "routes", mine)
