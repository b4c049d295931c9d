"""From LoadBalancers to the rows of a backend, and of a machine without pods, without a kernel."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.crds.cluster_state import BalancedService, Peer
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec
from tidegate.crds.meta import LabelSelector
from tidegate.crds.node_state import NodeStateSpec
from tidegate.crds.routing import ClusterNetworkSpec
from tidegate.datapath import inputs
from tidegate.datapath.facts import Facts, Interface
from tidegate.datapath.layout import fields
from tidegate.datapath.lower import lower
from tidegate.datapath.lowering import lb, lb_backend
from tidegate.datapath.order import LocalPod, Order, mapped

OWN = (ip_address("172.30.0.11"), ip_address("fd30::11"))
UPLINK = Interface("eth0", 2, "02:00:00:00:00:01", 1500, OWN)
FACTS = Facts(uplinks=(UPLINK,), interfaces=(UPLINK,), own_addresses=OWN)
FOUR, SIX = Frontend(address="192.0.2.10", port=80), Frontend(address="2001:db8::10", port=80)
HERE, AWAY = Backend(address="172.30.0.11", port=8080), Backend(address="172.30.0.12", port=8080)
POD = LocalPod("demo", "web", (ip_address("10.40.1.1"), ip_address("fd40::1")), "tgweb", "02:", 9, {}, {})


def service(number: int = 5, name: str = "web", **changes: Any) -> BalancedService:
    given: dict[str, Any] = {"frontends": [FOUR], "backends": [HERE, AWAY]}
    return BalancedService(name=name, uid=name, number=number, spec=LoadBalancerSpec(**(given | changes)))


def port(number: int) -> int:
    return int.from_bytes(number.to_bytes(2, "big"), sys.byteorder)


def ways(*services: BalancedService, facts: Facts = FACTS, **order: Any) -> dict[Any, Any]:
    """Rows as (outer, VIP, port, quoted) -> (target, target port, VIP's port, MTU)."""
    found = {}
    for row in lb_backend.lower(Order(node="n", dsr=services, **order), facts):
        key, value = dict(row.key), dict(row.value)
        named = (key["outer"], key["vip"], key["port"], key.get("quoted", 0))
        found[named] = (value["target"], value["target_port"], value["vip_port"], value["mtu"])
    return found


def failures(*services: BalancedService, facts: Facts = FACTS, **order: Any) -> list[str]:
    return [failed.message for failed in lb_backend.failures(Order(node="n", dsr=services, **order), facts)]


def raw(text: str) -> bytes:
    return mapped(ip_address(text))


def test_only_what_is_here() -> None:
    """A backend elsewhere has no row; one here has one for packets and one for ICMP errors."""
    to = (raw("172.30.0.11"), port(8080), port(80), 1480)
    outer, vip = raw("172.30.0.11"), raw("192.0.2.10")
    assert ways(service()) == {(outer, vip, port(80), 0): to, (outer, vip, port(80), 1): to}
    assert ways(service(backends=[AWAY])) == {}
    assert failures(service(), service(6, backends=[AWAY])) == []


def test_inner_port_of_the_backend() -> None:
    """Packets come to the backend's port, ICMP errors still name the frontend's."""
    found = ways(service(innerPort="Backend"))
    assert {(at, quoted) for _, _, at, quoted in found} == {(port(8080), 0), (port(80), 1)}
    assert {(value[1], value[2]) for value in found.values()} == {(port(8080), port(80))}


@pytest.mark.parametrize("state", [{"state": "draining"}, {"weight": 0}])
def test_who_takes_no_new_connections_keeps_the_old(state: dict[str, Any]) -> None:
    backend = Backend(address="172.30.0.11", port=8080, **state)
    assert len(ways(service(backends=[backend]))) == 2


def test_mixed_families() -> None:
    """Who listens has the frontend's family, and the outer header's length leaves the rest to the inner packet."""
    found = ways(service(frontends=[FOUR, SIX], backends=[HERE, Backend(address="fd30::11", port=8080)]))
    packets = {(outer, vip): value for (outer, vip, _, quoted), value in found.items() if not quoted}
    assert {key: (value[0], value[3]) for key, value in packets.items()} == {
        (raw("172.30.0.11"), raw("192.0.2.10")): (raw("172.30.0.11"), 1480),
        (raw("172.30.0.11"), raw("2001:db8::10")): (raw("fd30::11"), 1480),
        (raw("fd30::11"), raw("192.0.2.10")): (raw("172.30.0.11"), 1460),
        (raw("fd30::11"), raw("2001:db8::10")): (raw("fd30::11"), 1460),
    }


def test_pod() -> None:
    """A pod is a backend by its own addresses; one of a single family is none for the other."""
    backend = Backend(address="10.40.1.1", port=8080)
    found = ways(service(frontends=[SIX], backends=[backend]), pods=(POD,))
    assert {value[0] for value in found.values()} == {raw("fd40::1")}
    alone = replace(POD, addresses=POD.addresses[:1])
    (message,) = failures(service(frontends=[FOUR, SIX], backends=[backend]), pods=(alone,))
    assert "10.40.1.1:8080" in message
    assert "IPv6" in message
    assert len(ways(service(frontends=[FOUR, SIX], backends=[backend]), pods=(alone,))) == 2


def test_network_mtu() -> None:
    """A configured MTU counts before the device's."""
    found = ways(service(), network=ClusterNetworkSpec(mtu=9000))
    assert {value[3] for value in found.values()} == {8980}


def test_backends_that_cannot_be_told_apart() -> None:
    """Two ports of one address need innerPort: Backend; then ICMP errors have a row for each."""
    two = [HERE, Backend(address="172.30.0.11", port=8081)]
    (message,) = failures(service(backends=two))
    assert "172.30.0.11:8081" in message
    assert "innerPort: Backend" in message
    assert {value[1] for value in ways(service(backends=two)).values()} == {port(8080)}
    found = ways(service(backends=two, innerPort="Backend"))
    assert {(key[2], key[3]): value[1] for key, value in found.items()} == {
        (port(8080), 0): port(8080),
        (port(8081), 0): port(8081),
        (port(80), 1): port(8080),
        (port(80), 2): port(8081),
    }


def test_frontends_that_cannot_be_told_apart() -> None:
    """Two frontends whose packets come to one port need innerPort: Frontend; the service of the lower number has it."""
    both = [FOUR, Frontend(address="192.0.2.10", port=443)]
    (message,) = failures(service(frontends=both, innerPort="Backend"))
    assert "innerPort: Frontend" in message
    other = service(3, "other", frontends=[both[1]], innerPort="Backend")
    for services in ((service(innerPort="Backend"), other), (other, service(innerPort="Backend"))):
        found = lb_backend.failures(Order(node="n", dsr=services), FACTS)
        assert [failed.owner for failed in found] == ["LoadBalancer/web"]


def test_no_more_than_the_programs_look_through() -> None:
    many = [Backend(address="172.30.0.11", port=8080 + n) for n in range(lb_backend.QUOTED + 1)]
    found = ways(service(backends=many, innerPort="Backend"))
    assert max(key[3] for key in found) == lb_backend.QUOTED
    (message,) = failures(service(backends=many, innerPort="Backend"))
    assert "8088" in message


def test_the_balancer_knows_its_own() -> None:
    """A backend that is this machine or its pod is marked: no route leads there."""
    spec = service(backends=[HERE, AWAY, Backend(address="10.40.1.1", port=1)])
    rows = lb.lower(Order(node="n", services=(spec,), pods=(POD,)), FACTS)
    found = {dict(row.key)["addr"]: row.value for row in rows if row.table == "tg_backend"}
    here = fields(flags=lb.BACKEND_HERE)
    assert found == {raw("172.30.0.11"): here, raw("172.30.0.12"): (), raw("10.40.1.1"): here}


def test_services_that_others_balance() -> None:
    """A backend learns of every service with direct return, whatever nodes balance it."""
    chosen = LabelSelector(matchLabels={"role": "lb"})
    services = [service(1, nodeSelector=chosen), service(2, "nat", mode="DNAT", nodeSelector=chosen)]
    heard = inputs.Inputs(
        network=ClusterNetworkSpec(), cluster_cidrs=[], peers=[], rules=[], state=NodeStateSpec(), state_generation=1,
        shards={}, node_labels={}, namespaces={}, pods={}, services=services,
    )  # fmt: skip
    found = inputs.order("n", heard, [])
    assert (found.services, found.dsr) == ((), (services[0],))
    mine = inputs.order("n", msgspec.structs.replace(heard, node_labels={"role": "lb"}), [])
    assert len(mine.services) == 2


def tables(order: Order, facts: Facts = FACTS) -> set[str]:
    return {row.table for row in lower(order, facts)}


def test_a_machine_without_pods() -> None:
    """A balancer forwards; a backend has the uplink's programs; neither has a tunnel, rules, routes or NOTRACK rules."""
    balancer = Order(node="n", services=(service(backends=[AWAY]),), dsr=(service(backends=[AWAY]),))
    backend = Order(node="n", dsr=(service(),))
    assert tables(balancer) == {"sysctls", "tg_config", "tg_source"}
    assert tables(backend) == {"tg_config", "programs", "tg_dsr", "tg_source"}
    assert tables(Order(node="n")) == {"tg_source"}


@pytest.mark.parametrize(
    "pods",
    [
        {"cluster_cidrs": ("10.40.0.0/16",)},
        {"state": NodeStateSpec(podCIDRs=["10.40.1.0/24"])},
        {"peers": (Peer(node="other", addresses=["172.30.0.12"]),)},
        {"pods": (POD,)},
    ],
)
def test_a_machine_with_pods(pods: dict[str, Any]) -> None:
    """Anything of a network of pods brings all of it."""
    assert {"links", "rules", "notrack", "programs", "sysctls"} <= tables(Order(node="n", **pods))
