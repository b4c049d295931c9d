"""From LoadBalancers to rows, without a kernel."""

from __future__ import annotations

import sys
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from tidegate.crds.cluster_state import BalancedService, Peer
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec, OuterSource, SessionAffinity
from tidegate.datapath.facts import Facts, Interface
from tidegate.datapath.layout import fields
from tidegate.datapath.lowering import lb
from tidegate.datapath.order import Order, mapped
from tidegate.datapath.tables.lb import Service

OWN = (ip_address("172.30.0.11"), ip_address("fd30::11"))
UPLINK = Interface("eth0", 2, "02:00:00:00:00:01", 1500, OWN)
FACTS = Facts(uplinks=(UPLINK,), interfaces=(UPLINK,), own_addresses=OWN)
FOUR, SIX = Frontend(address="192.0.2.10", port=80), Frontend(address="2001:db8::10", port=80)
ONE, TWO = Backend(address="10.0.0.1", port=8080), Backend(address="fd00::1", port=8080, weight=3)


def service(number: int = 5, name: str = "web", **changes: Any) -> BalancedService:
    given: dict[str, Any] = {"frontends": [FOUR, SIX], "backends": [ONE, TWO], "tableSize": 251}
    return BalancedService(name=name, uid=name, number=number, spec=LoadBalancerSpec(**(given | changes)))


def rows(table: str, *services: BalancedService, facts: Facts = FACTS, **order: Any) -> dict[Any, Any]:
    made = lb.lower(Order(node="lb-1", services=services, **order), facts)
    return {row.key: row.value for row in made if row.table == table}


def network(number: int) -> int:
    return int.from_bytes(number.to_bytes(2, "big"), sys.byteorder)


def vip4(address: str, port: int, proto: int) -> Any:
    return fields(addr=int.from_bytes(ip_address(address).packed, sys.byteorder), port=network(port), proto=proto)


def row_of(given: Service) -> dict[str, Any]:
    return dict(given.row)


def test_nothing_without_services() -> None:
    """A node that balances nothing has no row for it."""
    assert list(lb.lower(Order(node="n"), FACTS)) == []


def test_each_frontend_and_its_address_are_known() -> None:
    """The address alone has a row, for pings and later fragments."""
    udp = Frontend(address="192.0.2.10", port=53, protocol="UDP")
    found = rows("tg_vip4", service(frontends=[FOUR, udp]))
    wanted = [vip4("192.0.2.10", 0, 0), vip4("192.0.2.10", 80, 6), vip4("192.0.2.10", 53, 17)]
    assert found == dict.fromkeys(wanted, fields(service=10))
    six = fields(addr=ip_address("2001:db8::10").packed, port=network(80), proto=6)
    assert rows("tg_vip6", service())[six] == fields(service=10)


def test_an_address_of_two_services_belongs_to_the_lower_number() -> None:
    """In whatever order the services come."""
    one, other = service(5), service(3, "other", frontends=[Frontend(address="192.0.2.10", port=443)])
    for services in ((one, other), (other, one)):
        assert rows("tg_vip4", *services)[vip4("192.0.2.10", 0, 0)] == fields(service=6)


def test_dsr_is_one_service_for_both_families() -> None:
    """The outer header may be of another family, so that all frontends share all backends."""
    (found,) = rows("tg_service", service()).items()
    number, given = found
    assert number == 10
    assert given.recipe.weights == {"10.0.0.1:8080": 1, "[fd00::1]:8080": 3}
    assert row_of(given)["digest"] == given.recipe.digest


def test_dnat_is_a_service_a_family() -> None:
    """Translation keeps to one family."""
    found = rows("tg_service", service(mode="DNAT"))
    assert {number: dict(given.recipe.weights) for number, given in found.items()} == {
        10: {"10.0.0.1:8080": 1},
        11: {"[fd00::1]:8080": 3},
    }
    six = fields(addr=ip_address("2001:db8::10").packed, port=network(80), proto=6)
    assert rows("tg_vip6", service(mode="DNAT"))[six] == fields(service=11)


@pytest.mark.parametrize(
    ("changes", "flags"),
    [
        ({}, 0),
        ({"mode": "DNAT"}, lb.DNAT),
        ({"algorithm": "Random"}, lb.RANDOM),
        ({"sessionAffinity": SessionAffinity(timeoutSeconds=60)}, lb.AFFINITY),
        ({"sourceRanges": ["198.51.100.0/24"]}, lb.RANGES),
        ({"innerPort": "Backend"}, lb.INNER_PORT),
        ({"innerPort": "Backend", "mode": "DNAT"}, lb.DNAT),
        ({"flowTable": False}, lb.STATELESS),
        ({"flowTable": False, "mode": "DNAT"}, lb.DNAT),
    ],
)  # fmt: skip
def test_flags(changes: dict[str, Any], flags: int) -> None:
    """Each wish has its bit; translation remembers its connections and writes the port anyway."""
    assert row_of(rows("tg_service", service(**changes))[10]).get("flags", 0) == flags


@pytest.mark.parametrize("seconds", [1, 60, 10800, 86400])
def test_affinity_lasts_as_long_as_asked(seconds: int) -> None:
    """No less than that, and not a whole unit of 2^30 ns more; or nothing."""
    found = row_of(rows("tg_service", service(sessionAffinity=SessionAffinity(timeoutSeconds=seconds)))[10])["affinity_s"]
    assert (found - 1) * 2**30 < seconds * 10**9 <= found * 2**30
    assert "affinity_s" not in row_of(rows("tg_service", service())[10])


def test_draining_and_maintenance_keep_their_ids() -> None:
    """They leave the table, and stay backends: their connections must find them."""
    drained = [ONE, Backend(address="10.0.0.2", port=80, state="draining"), Backend(address="10.0.0.3", port=80, weight=0)]
    given = service(backends=drained)
    assert rows("tg_service", given)[10].recipe.weights == {"10.0.0.1:8080": 1}
    assert len(rows("tg_backend", given)) == 3


def test_the_dead_leave_the_table_and_keep_their_ids() -> None:
    """Only of the service that found them dead."""
    dead = {"web": frozenset({"10.0.0.1:8080"})}
    found = rows("tg_service", service(), service(6, "other", frontends=[Frontend(address="192.0.2.11", port=80)]), dead=dead)
    assert found[10].recipe.weights == {"[fd00::1]:8080": 3}
    assert found[12].recipe.weights == {"10.0.0.1:8080": 1, "[fd00::1]:8080": 3}
    assert len(rows("tg_backend", service(), dead=dead)) == 2


def test_outer_source() -> None:
    """The prefix where there is one, else the machine's own address, else nothing."""
    prefix = OuterSource(ipv4="172.16.0.0/16")
    given = row_of(rows("tg_service", service(outerSourcePrefix=prefix))[10])
    assert (given["source4"], given["len4"]) == (mapped(ip_address("172.16.0.0")), 16)
    assert (given["source6"], given["len6"]) == (mapped(OWN[1]), 128)
    alone = replace(FACTS, uplinks=(replace(UPLINK, addresses=OWN[:1]),))
    bare = row_of(rows("tg_service", service(), facts=alone)[10])
    assert (bare["source4"], bare["len4"]) == (mapped(OWN[0]), 32)
    assert not {"source6", "len6"} & bare.keys()


def test_what_other_nodes_know_comes_before_what_the_device_has() -> None:
    """In a cluster a balancer sends with its internal address."""
    found = rows("tg_lb_config", service(), peers=(Peer(node="lb-1", addresses=["172.30.0.99"]),))[()]
    assert dict(found)["nat4"] == mapped(ip_address("172.30.0.99"))
    assert dict(found)["nat6"] == mapped(OWN[1])


def test_source_ranges_of_each_service() -> None:
    """Both families, behind the service's number."""
    given = service(mode="DNAT", sourceRanges=["198.51.100.0/24", "2001:db8::/32"])
    keys = {(dict(key)["service"], dict(key)["prefixlen"]) for key in rows("tg_lb_ranges", given)}
    assert keys == {(10, 32 + 96 + 24), (10, 32 + 32), (11, 32 + 96 + 24), (11, 32 + 32)}


def test_equal_backends_have_one_digest() -> None:
    """Services that differ in all else compute one table; another weight is another one."""
    one = rows("tg_service", service())[10]
    other = rows("tg_service", service(7, "other", frontends=[SIX], mode="DSR", algorithm="Random"))[14]
    heavier = rows("tg_service", service(backends=[ONE, replace_weight(TWO)]))[10]
    assert one.recipe.digest == other.recipe.digest != heavier.recipe.digest


def replace_weight(backend: Backend) -> Backend:
    return Backend(address=backend.address, port=backend.port, weight=4)
