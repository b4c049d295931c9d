"""Each netlink table against the kernel: what is put is read, what is foreign stays, and any way leads to the last order."""

from __future__ import annotations

import random
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from namespace import fresh_namespace, sh

from tidegate.crds.routing import Owned
from tidegate.datapath.facts import read_facts
from tidegate.datapath.table import Row, Table, TableError, reconcile
from tidegate.datapath.tables.links import LinkTable, VxlanLink
from tidegate.datapath.tables.neighbours import NeighbourTable
from tidegate.datapath.tables.netlink import Netlink
from tidegate.datapath.tables.routes import Route, RouteTable
from tidegate.datapath.tables.rules import RuleTable
from tidegate.datapath.tables.sysctls import SysctlTable

_STEPS = 40
OWNED = Owned()
MAC = "02:74:67:00:00:02"
GW4, GW6 = IPv4Address("192.0.2.9"), IPv6Address("2001:db8::9")
OWN4, OWN6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")

LINKS: dict[Any, list[Any]] = {
    "tgvxlan": [VxlanLink(8472, 1450, MAC), VxlanLink(8472, 1400, MAC), VxlanLink(8473, 1400, "02:74:67:00:00:03")],
}
ROUTES: dict[Any, list[Any]] = {
    ip_network("10.0.0.0/24"): [Route("up0", GW4), Route("up0", GW4, OWN4), Route("up1"), Route("up0", GW4, mtu=1300)],
    ip_network("10.1.0.1/32"): [Route("up1"), Route("lo", kind="local"), Route("up0")],
    ip_network("0.0.0.0/0"): [Route("up1", IPv4Address("198.51.100.1"), onlink=True), Route("up0", GW4)],
    ip_network("fd10::/64"): [Route("up0", GW6), Route("up0", GW6, OWN6, mtu=1300), Route("up1"), Route("up0")],
    ip_network("fd10:1::1/128"): [Route("up1"), Route("lo", kind="local"), Route("up0", GW6)],
    ip_network("fd00::/8"): [Route("up0", IPv6Address("fe80::9")), Route("up0", GW6)],
}
RULES: dict[Any, list[Any]] = {
    (4, 1076): [2076, 2077, 100],
    (6, 1076): [2076, 2077],
    (4, 1077, 0x1000000, 0xF000000): [2076, 5],
    (6, 1077, 0x1000000, 0xF000000): [2076],
}
NEIGHBOURS: dict[Any, list[Any]] = {
    ("up0", ip_address("192.0.2.7")): [MAC, "02:00:00:00:00:07"],
    ("up0", ip_address("2001:db8::7")): [MAC, "proxy", "02:00:00:00:00:07"],
    ("up1", ip_address("2001:db8::8")): ["proxy", MAC],
    ("up1", ip_address("203.0.113.8")): ["proxy", MAC],
}


def tables(netlink: Netlink) -> dict[str, tuple[Table, Mapping[Any, list[Any]]]]:
    """Every table with a choice of values for some keys."""
    return {
        "links": (LinkTable(netlink, OWNED), LINKS),
        "rules": (RuleTable(netlink, OWNED), RULES),
        "routes": (RouteTable(netlink, OWNED), ROUTES),
        "neighbours": (NeighbourTable(netlink, OWNED), NEIGHBOURS),
    }


def snapshot() -> str:
    """What the namespace has, in iproute2's words, without what the kernel does by the way."""
    return sh(
        "ip -o link | cut -d: -f2- | sort; ip -4 route show table all | sort; ip -6 route show table all | grep -v fe80 | sort;"
        "ip rule; ip -6 rule; ip neigh show nud permanent; ip neigh show proxy"
    )


@pytest.mark.parametrize("name", ["links", "rules", "routes", "neighbours"])
def test_rows(netlink: Netlink, name: str) -> None:
    """A row is read as it was put, whatever was under its key before; repeated verbs change nothing."""
    table, choices = tables(netlink)[name]
    for key, values in choices.items():
        for value in (*values, *reversed(values)):
            table.put(key, value)
            assert table.read()[key] == value
            before = snapshot()
            table.put(key, value)
            assert (table.read()[key], snapshot()) == (value, before)
    assert set(table.read()) == set(choices)
    for key in choices:
        table.drop(key)
        assert key not in table.read()
        table.drop(key)
    assert table.read() == {}


def test_default_routes(netlink: Netlink) -> None:
    """The widest prefix is a row like any other, though the kernel leaves it out of what it tells."""
    table = RouteTable(netlink, OWNED)
    rows = {ip_network("0.0.0.0/0"): Route("up0", GW4), ip_network("::/0"): Route("up0", GW6)}
    for key, value in rows.items():
        table.put(key, value)
    assert table.read() == rows
    for key in rows:
        table.drop(key)
    assert table.read() == {}


def test_foreign_rows(netlink: Netlink) -> None:
    """What other programs made is not read, and survives our rows and their end."""
    sh("""
    ip link add tgother type veth peer name tgpeer
    ip link add vx0 type vxlan external dstport 4789
    ip route add 10.9.0.0/24 dev up0
    ip route add 10.9.1.0/24 dev up0 table 2076
    ip route add 10.9.2.0/24 dev up0 proto 176
    ip -6 route add fd09::/64 dev up0 table 2076
    ip rule add pref 1076 lookup 7
    ip rule add pref 1090 from 10.0.0.0/8 lookup 2076
    ip neigh add 192.0.2.99 dev up0 lladdr 02:00:00:00:00:99
    ip -6 neigh add proxy 2001:db8::99 dev up0
    """)
    before = snapshot()
    every = tables(netlink).values()
    assert [table.read() for table, _ in every] == [{}] * 4
    rows = [Row(table.name, key, values[0], "x") for table, choices in every for key, values in choices.items()]
    assert reconcile([table for table, _ in every], rows).failures == []
    assert reconcile([table for table, _ in every], []).failures == []

    assert snapshot() == before


def test_damage_is_put_right(netlink: Netlink) -> None:
    """Rows that somebody deleted, changed or doubled are as ordered after one reconciliation."""
    every = [table for table, _ in tables(netlink).values()]
    rows = [
        Row("links", "tgvxlan", LINKS["tgvxlan"][0], "x"),
        Row("routes", ip_network("10.0.0.0/24"), Route("up0", GW4), "x"),
        Row("routes", ip_network("10.1.0.1/32"), Route("up1"), "x"),
        Row("routes", ip_network("fd10::/64"), Route("tgvxlan"), "x"),
        Row("rules", (4, 1076), 2076, "x"),
        Row("neighbours", ("up0", ip_address("192.0.2.7")), MAC, "x"),
    ]
    reconcile(every, rows)
    before = snapshot()
    damage = """
    ip link del tgvxlan
    ip link set tgvxlan down
    ip link set tgvxlan type vxlan learning; ip link set tgvxlan mtu 1300
    ip route del 10.1.0.1 table 2076
    ip route replace 10.0.0.0/24 dev up1 table 2076 proto 176
    ip route add 10.0.0.0/24 dev up1 metric 7 table 2076 proto 176
    ip -6 route add fd10::/64 dev up0 metric 7 table 2076 proto 176
    ip -6 route append fd10::/64 via 2001:db8::5 dev up0 table 2076 proto 176
    ip route flush table 2076; ip -6 route flush table 2076
    ip rule del pref 1076
    ip rule add pref 1076 lookup 9 protocol 176
    ip rule add pref 1079 iif up0 lookup 9 protocol 176
    ip neigh replace 192.0.2.7 dev up0 lladdr 02:00:00:00:00:66 nud stale
    ip neigh del 192.0.2.7 dev up0
    ip link set up0 down; ip link set up0 up; ip address add 2001:db8::1/64 dev up0 nodad
    """
    for script in damage.strip().splitlines():
        sh(script)
        for table in every:  # a route may need another pass: its device comes first
            table.read()
        receipt = reconcile(every, rows)
        assert receipt.failures == [], script
        assert {table.name: dict(table.read()) for table in every} == {
            name: {row.key: row.value for row in rows if row.table == name} for name in ("links", "rules", "routes", "neighbours")
        }, script
        again = reconcile(every, rows)
        assert (again.puts, again.drops) == ({}, {}), script
    assert [line for line in snapshot().splitlines() if "176" in line] == [line for line in before.splitlines() if "176" in line]


def test_namespace_of_first_use(host: None) -> None:
    """A Netlink acts in the namespace of the thread that uses it first, wherever it was made."""
    made = Netlink()
    with fresh_namespace(), made:
        assert made.index("up0") is None
        RuleTable(made, OWNED).put((4, 1076), 2076)
        assert "1076" in sh("ip rule")
    assert "1076" not in sh("ip rule")


def test_refusals_are_explained(netlink: Netlink) -> None:
    """What the kernel refuses is a TableError in the kernel's words."""
    every = tables(netlink)
    with pytest.raises(TableError, match=r"No such device.*nowhere"):
        every["routes"][0].put(ip_network("10.0.0.0/24"), Route("nowhere"))
    with pytest.raises(TableError, match=r"ENETUNREACH.*invalid gateway"):
        every["routes"][0].put(ip_network("10.0.0.0/24"), Route("up0", IPv4Address("198.51.100.1")))
    with pytest.raises(TableError, match="No such device"):
        every["neighbours"][0].put(("nowhere", OWN4), MAC)
    with pytest.raises(TableError, match="MTU"):
        every["links"][0].put("tgvxlan", VxlanLink(8472, 10_000_000, MAC))
    every["neighbours"][0].drop(("nowhere", OWN4))
    every["routes"][0].drop(ip_network("10.0.0.0/24"))


def test_sysctls(host: None) -> None:
    """A setting is written where it differs, and stays when nobody asks for it any more."""
    table = SysctlTable()
    key = "net/ipv4/conf/up0/rp_filter"
    Path("/proc/sys", key).write_text("1")

    first = reconcile([table], [Row("sysctls", key, "0", "x"), Row("sysctls", "net/ipv4/ip_forward", "1", "x")])
    again = reconcile([table], [Row("sysctls", key, "0", "x"), Row("sysctls", "net/ipv4/ip_forward", "1", "x")])
    gone = reconcile([table], [])

    assert first.failures == []
    assert (again.puts, gone.drops) == ({}, {})
    assert Path("/proc/sys", key).read_text() == "0\n"
    missing = reconcile([table], [Row("sysctls", "net/ipv4/conf/none/rp_filter", "0", "x")])
    assert "cannot be set to 0" in missing.failures[0].message


def test_a_machine_without_any_address_has_facts() -> None:
    """Before the first address there is no main routing table, which reads as one without routes."""
    with fresh_namespace(), Netlink() as netlink:
        found = read_facts(netlink, OWNED)
        assert (found.uplinks, found.own_addresses) == ((), ())
        assert RouteTable(netlink, OWNED).read() == {}


@pytest.mark.parametrize("seed", range(5))
def test_random_walk(netlink: Netlink, seed: int) -> None:
    """Any sequence of row sets ends in the last one, and repeating it does nothing."""
    choose = random.Random(seed)
    for _ in range(_STEPS):
        every = tables(netlink)
        rows = [
            Row(name, key, choose.choice(values), "x")
            for name, (_, choices) in every.items()
            for key, values in choices.items()
            if choose.random() < 0.6
        ]
        ordered = [table for table, _ in every.values()]
        receipt = reconcile(ordered, rows)
        again = reconcile(ordered, rows)

        assert receipt.failures == []
        for table in ordered:
            assert dict(table.read()) == {row.key: row.value for row in rows if row.table == table.name}
        assert (again.puts, again.drops) == ({}, {})
