"""What the node says of itself, in a namespace where all of it is known."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from namespace import sh

from tidegate.crds.routing import Owned
from tidegate.datapath import facts
from tidegate.datapath.facts import Hop, read_facts
from tidegate.datapath.tables.netlink import Netlink


def test_facts(netlink: Netlink) -> None:
    """Uplinks are the devices of default routes; addresses are ranked; ours and lo are no interfaces."""
    sh("""
    ip address add 192.0.2.77/24 dev up0
    ip address add fd00::1/64 dev up0 nodad
    ip address add 2001:db8::dead/64 dev up0 nodad preferred_lft 0
    ip link add tgvxlan type vxlan external dstport 8472
    ip link add tg0123456789a type veth peer name pod
    ip address add 203.0.113.1/32 dev lo
    ip address add 198.51.100.1/24 dev up1
    ip route add default via 192.0.2.254
    """)
    peers = [ip_address(text) for text in ("192.0.2.7", "203.0.113.99", "2001:db8::7", "192.0.2.1", "2002::1")]
    found = read_facts(netlink, Owned(), (), peers)

    assert [one.name for one in found.uplinks] == ["up0"]
    assert {one.name for one in found.interfaces} == {"up0", "up1"}
    up0 = found.interface("up0")
    assert up0 == found.uplinks[0]
    assert up0 is not None
    assert (up0.mac, up0.mtu, up0.ifindex) == ("02:00:00:00:00:10", 1500, netlink.index("up0"))
    assert [str(one) for one in up0.addresses] == ["192.0.2.1", "192.0.2.77", "2001:db8::1", "fd00::1"]
    assert found.links == {name: netlink.index(name) for name in ("tgvxlan", "tg0123456789a")}
    assert {str(one) for one in found.own_addresses} == {
        *map(str, up0.addresses),
        "2001:db8::dead",
        "203.0.113.1",
        "198.51.100.1",
    }
    assert found.next_hops == {
        peers[0]: Hop("up0", up0.ifindex),
        peers[1]: Hop("up0", up0.ifindex, ip_address("192.0.2.254")),
        peers[2]: Hop("up0", up0.ifindex),
    }
    assert found.interface("none") is None
    assert [one.name for one in read_facts(netlink, Owned(), ["up1"]).uplinks] == ["up1"]


def test_multipath_and_ipv6_uplinks(netlink: Netlink) -> None:
    """Every hop of a multipath default route, and an IPv6 default route, makes an uplink."""
    assert read_facts(netlink, Owned()).uplinks == ()
    sh("ip -6 route add default via fe80::9 dev up1")
    assert [one.name for one in read_facts(netlink, Owned()).uplinks] == ["up1"]
    sh("ip link add up2 type veth peer name x; ip link set up2 up; ip address add 198.18.0.1/24 dev up2")
    sh("ip -6 route del default; ip route add default nexthop via 192.0.2.254 nexthop via 198.18.0.254")
    assert {one.name for one in read_facts(netlink, Owned()).uplinks} == {"up0", "up2"}


async def test_changes_are_told(host: None) -> None:
    """Each kind of change is told; a neighbour that the kernel learned is not."""
    told = asyncio.Event()
    watch = asyncio.create_task(facts.watch_changes(told.set))
    await asyncio.sleep(0.2)
    changes = (
        "ip link add new type veth peer name x",
        "ip address add 10.9.0.1/24 dev up0",
        "ip address add fd09::1/64 dev up0 nodad",
        "ip route add 10.8.0.0/24 dev up0",
        "ip -6 route add fd08::/64 dev up0",
        "ip rule add pref 1076 lookup 7",
        "ip -6 rule add pref 1076 lookup 7",
        "ip neigh add 192.0.2.9 dev up0 lladdr 02:00:00:00:00:09 protocol 176",
        "ip neigh del 192.0.2.9 dev up0",
    )
    for change in changes:
        told.clear()
        await asyncio.to_thread(sh, change)
        async with asyncio.timeout(2):
            await told.wait()
    await asyncio.sleep(0.1)
    told.clear()
    sh("ip neigh add 192.0.2.10 dev up0 lladdr 02:00:00:00:00:09")
    await asyncio.sleep(0.1)
    assert not told.is_set()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
