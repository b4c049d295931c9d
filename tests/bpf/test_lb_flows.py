"""Which backend a packet goes to, and that a connection stays with its own."""

from __future__ import annotations

import time
from collections import Counter
from ipaddress import ip_address, ip_network

import pytest
from balancer import AFFINITY, DROP, INNER_PORT, PASS, RANDOM, RANGES, REDIRECT, STATELESS, TX, Balancer, port, word
from packets import Verdict, addr, frame, network, with_right_checksums
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from tidegate.datapath.layout import fields

VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
CLIENT = {4: "203.0.113.5", 6: "2001:db8:5::5"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def three(balancer: Balancer) -> Balancer:
    """Backends 1 to 3, of which the table names 1."""
    for number in (2, 3):
        balancer.backend(number, f"10.9.0.{number}")
    return balancer


def send(balancer: Balancer, family: int, layer: Packet, client: str = "") -> Verdict:
    source = client or CLIENT[family]
    head = IP(src=source, dst=VIP[family]) if family == 4 else IPv6(src=source, dst=VIP[family])
    return balancer.frame(frame() / head / layer)


def tcp(flags: str, sport: int = 40000) -> Packet:
    return TCP(sport=sport, dport=80, flags=flags)


def udp(sport: int = 40000) -> Packet:
    return UDP(sport=sport, dport=80) / Raw(b"x")


def backend_of(done: Verdict) -> int:
    assert done.reason == "forward_dsr"
    return int(ip_address(network(done.packet).dst)) & 0xFF


@FAMILIES
def test_connection_stays(three: Balancer, family: int) -> None:
    """A connection keeps its backend when the table changes; a new one on the same ports takes the new backend."""
    assert backend_of(send(three, family, tcp("S"))) == 1
    three.service(1, [2] * 7)
    assert backend_of(send(three, family, tcp("A"))) == 1
    assert backend_of(send(three, family, tcp("SA"))) == 1
    assert backend_of(send(three, family, tcp("S"))) == 2
    assert backend_of(send(three, family, tcp("A"))) == 2


@FAMILIES
def test_backend_is_gone(three: Balancer, family: int) -> None:
    """A flow whose backend is gone, or whose backend's number was given to another, falls to the table."""
    for gone in (lambda: three.put("tg_backend", 1), lambda: three.backend(1, "10.9.0.9")):
        three.backend(1, "10.9.0.1")
        three.service(1, [1] * 7)
        send(three, family, tcp("S"))
        three.service(1, [2] * 7)
        gone()
        assert backend_of(send(three, family, tcp("A"))) == 2


@FAMILIES
def test_grace(three: Balancer, family: int) -> None:
    """For a while after a change, a packet without a flow goes where the table before says; a new connection never does."""
    before = {"before_offset": three.table([3] * 5), "before_size": 5, "before_seed": 7}
    soon = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 10**10
    three.service(1, [2] * 7, before_until=soon, **before)
    assert backend_of(send(three, family, tcp("S", 1))) == 2
    assert backend_of(send(three, family, tcp("A", 2))) == 3
    assert backend_of(send(three, family, udp(2))) == 2
    three.put("tg_backend", 3)
    assert backend_of(send(three, family, tcp("A", 4))) == 2
    three.backend(3, "10.9.0.3")
    three.service(1, [2] * 7, before_until=1, **before)
    assert backend_of(send(three, family, tcp("A", 3))) == 2


@FAMILIES
def test_udp_begins_anew(three: Balancer, family: int) -> None:
    """A UDP flow keeps its backend until it has been silent for thirty seconds."""
    assert backend_of(send(three, family, udp())) == 1
    three.service(1, [2] * 7)
    assert backend_of(send(three, family, udp())) == 1
    (key, value), *_ = three.rows(f"tg_lb_flow{family}").items()
    long_ago = dict(value)["seen_s"] - 29
    three.maps[f"tg_lb_flow{family}"].put(key, fields(**(dict(value) | {"seen_s": long_ago})))
    assert backend_of(send(three, family, udp())) == 2


@FAMILIES
def test_stateless(three: Balancer, family: int) -> None:
    """With the flow table off nothing is remembered."""
    three.service(1, [1] * 7, flags=STATELESS)
    send(three, family, tcp("S"))
    assert three.rows(f"tg_lb_flow{family}") == {}
    three.service(1, [2] * 7, flags=STATELESS)
    assert backend_of(send(three, family, tcp("A"))) == 2


@FAMILIES
def test_affinity(three: Balancer, family: int) -> None:
    """A client's connections all go to one backend, for as long as the service says, and other clients' do not follow."""
    three.service(1, [1] * 7, flags=AFFINITY, affinity_s=1000)
    assert backend_of(send(three, family, tcp("S", 1))) == 1
    three.service(1, [2] * 7, flags=AFFINITY, affinity_s=1000)
    assert backend_of(send(three, family, tcp("S", 2))) == 1
    other = "203.0.113.6" if family == 4 else "2001:db8:5::6"
    assert backend_of(send(three, family, tcp("S", 2), other)) == 2
    three.put("tg_backend", 1)
    assert backend_of(send(three, family, tcp("S", 3))) == 2
    three.backend(1, "10.9.0.1")
    assert backend_of(send(three, family, tcp("S", 4))) == 2
    (key, value), *_ = [row for row in three.rows("tg_lb_affinity").items() if dict(row[0])["addr"] == addr(CLIENT[family])]
    three.maps["tg_lb_affinity"].put(key, fields(**(dict(value) | {"seen_s": (dict(value)["seen_s"] - 1001) % 2**32})))
    three.service(1, [3] * 7, flags=AFFINITY, affinity_s=1000)
    assert backend_of(send(three, family, tcp("S", 5))) == 3


@FAMILIES
def test_table_is_even_and_the_same_everywhere(three: Balancer, family: int) -> None:
    """Clients spread over the slots; the destination address takes no part; with affinity the client's port neither."""
    three.service(1, [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], flags=STATELESS)
    other = {4: "192.0.2.20", 6: "2001:db8:10::20"}[family]
    three.vip(other, 80, 6, service=1)
    seen: Counter[int] = Counter()
    for sport in range(100):
        chosen = backend_of(send(three, family, tcp("A", sport)))
        seen[chosen] += 1
        head = IP(src=CLIENT[4], dst=other) if family == 4 else IPv6(src=CLIENT[6], dst=other)
        assert backend_of(three.frame(frame() / head / tcp("A", sport))) == chosen
    assert min(seen.values()) > 15
    three.service(1, [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], flags=STATELESS | AFFINITY, affinity_s=1)
    assert len({backend_of(send(three, family, tcp("A", sport))) for sport in range(50)}) == 1


@FAMILIES
def test_seed_changes_the_slots(three: Balancer, family: int) -> None:
    """Another seed shares out differently."""
    shares = []
    for seed in (1, 2):
        three.service(1, [1, 2, 3], flags=STATELESS, seed=seed)
        shares.append([backend_of(send(three, family, tcp("A", sport))) for sport in range(40)])
    assert shares[0] != shares[1]


@FAMILIES
def test_random(three: Balancer, family: int) -> None:
    """At random each new connection takes any slot, and keeps it."""
    three.service(1, [1, 2, 3], flags=RANDOM)
    seen = {backend_of(send(three, family, tcp("S"))) for _ in range(60)}
    assert seen == {1, 2, 3}
    assert len({backend_of(send(three, family, tcp("A"))) for _ in range(20)}) == 1


@FAMILIES
def test_source_ranges(three: Balancer, family: int) -> None:
    """Only clients within an allowed range are served; a longer prefix can take some out again."""
    three.service(1, [1] * 7, flags=RANGES)
    refused = send(three, family, tcp("S"))
    assert (refused.verdict, refused.reason) == (DROP, "drop_source_range")
    wide, narrow = ("203.0.113.0/24", "203.0.113.5/32") if family == 4 else ("2001:db8:5::/48", "2001:db8:5::5/128")
    for text, allow in ((wide, 1), (narrow, 0)):
        net = ip_network(text)
        length = net.prefixlen + 32 + (96 if family == 4 else 0)
        key = fields(prefixlen=length, service=1, addr=addr(str(net.network_address)))
        three.maps["tg_lb_ranges"].put(key, fields(allow=allow))
        expected = "forward_dsr" if allow else "drop_source_range"
        assert send(three, family, tcp("S")).reason == expected


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_inner_port(balancer: Balancer, proto: str, family: int) -> None:
    """The inner destination port becomes the backend's, with a right checksum."""
    balancer.backend(1, "10.9.0.1", 8080)
    balancer.service(1, [1] * 7, flags=INNER_PORT)
    layer = tcp("S") if proto == "tcp" else udp()
    done = send(balancer, family, layer)
    inner = done.packet[IP].payload
    assert inner[proto.upper()].dport == 8080
    assert bytes(inner) == bytes(with_right_checksums(frame() / inner))[14:]


def test_inner_port_without_checksum(balancer: Balancer) -> None:
    """A UDP packet without a checksum is left without one."""
    balancer.backend(1, "10.9.0.1", 8080)
    balancer.service(1, [1] * 7, flags=INNER_PORT)
    done = send(balancer, 4, UDP(sport=40000, dport=80, chksum=0) / Raw(b"x"))
    assert (done.packet[UDP].dport, done.packet[UDP].chksum) == (8080, 0)


def test_outer_source_prefix(balancer: Balancer) -> None:
    """The outer source lies in the given prefix; it differs between flows and not within one."""
    prefixes = {"source4": addr("172.16.0.0"), "len4": 12, "source6": addr("100::"), "len6": 64}
    balancer.service(1, [1] * 7, **prefixes)
    for outer, address, prefix in ((4, "10.9.0.1", "172.16.0.0/12"), (6, "fd99::1", "100::/64")):
        balancer.backend(1, address)
        for family in (4, 6):
            sources = [send(balancer, family, tcp("S", sport)).packet.payload.src for sport in (*range(20), *range(20))]
            assert all(ip_address(source) in ip_network(prefix) for source in sources), outer
            assert sources[:20] == sources[20:]
            assert len(set(sources)) > 15


@FAMILIES
def test_fragments(three: Balancer, family: int) -> None:
    """Later fragments follow the first one; without it they are dropped."""
    head = IP(src=CLIENT[4], dst=VIP[4], id=5) if family == 4 else IPv6(src=CLIENT[6], dst=VIP[6])
    data = bytes(64)

    def fragment(offset: int, more: bool, number: int, payload: Packet, proto: int = 17) -> Packet:
        if family == 4:
            return IP(src=CLIENT[4], dst=VIP[4], id=number, frag=offset, flags=int(more), proto=proto) / payload
        return head / IPv6ExtHdrFragment(offset=offset, m=int(more), id=number, nh=proto) / payload

    lost = three.frame(frame() / fragment(9, False, 6, Raw(data)))
    assert (lost.verdict, lost.reason) == (DROP, "drop_fragment")
    first = three.frame(frame() / fragment(0, True, 5, UDP(sport=1, dport=80, len=136, chksum=1) / Raw(data)))
    assert backend_of(first) == 1
    three.service(1, [2] * 7)
    assert backend_of(three.frame(frame() / fragment(9, False, 5, Raw(data)))) == 1
    three.vip(VIP[family], flags=1)
    passed = three.frame(frame() / fragment(9, False, 6, Raw(data)))
    assert (passed.verdict, passed.reason) == (PASS, "pass_no_frontend")


def test_ways(balancer: Balancer) -> None:
    """Back by the device it came from, by another one, up the stack to find a neighbour, or nowhere."""
    assert send(balancer, 4, tcp("S")).verdict == TX
    balancer.backend(1, "10.8.0.1")
    assert send(balancer, 4, tcp("S")).verdict == REDIRECT
    balancer.backend(1, "10.7.0.1")
    unknown = send(balancer, 4, tcp("S"))
    assert (unknown.verdict, unknown.reason) == (PASS, "pass_no_neighbour")
    assert (unknown.packet.dst, unknown.packet[IP].src, unknown.packet[IP].dst) == ("02:74:67:00:00:01", CLIENT[4], "10.7.0.1")
    balancer.backend(1, "127.0.0.1")
    assert send(balancer, 4, tcp("S")).reason == "drop_no_route"


def test_no_backend(balancer: Balancer) -> None:
    """An empty table, a backend that is not there, and no source of the backend's family."""
    balancer.service(1, [0] * 7)
    assert send(balancer, 4, tcp("S")).reason == "drop_no_backend"
    balancer.service(1, [5] * 7)
    assert send(balancer, 4, tcp("S")).reason == "drop_no_backend"
    balancer.service(1, [1] * 7, source4=b"")
    assert send(balancer, 4, tcp("S")).reason == "drop_no_source"
    balancer.vip(VIP[4], 80, 6, service=9)
    assert send(balancer, 4, tcp("S")).reason == "drop_no_backend"


def test_counts(balancer: Balancer) -> None:
    """Packets, bytes and new flows are counted by service and by backend."""

    def counted(table: str) -> dict[str, int]:
        from tidegate.datapath import libbpf

        layout = balancer.layout.maps[table]
        raw = libbpf.lookup(balancer.maps[table]._fd, (1).to_bytes(4, "little"), layout.read_size)
        assert raw
        return {name: layout.totals(raw).get(name, 0) for name in ("packets", "bytes", "flows")}

    before = [counted(table) for table in ("tg_lb_count", "tg_hop")]
    for flags in ("S", "A", "A"):
        send(balancer, 4, tcp(flags))
    after = [counted(table) for table in ("tg_lb_count", "tg_hop")]
    for old, new in zip(before, after, strict=True):
        assert {name: new[name] - old[name] for name in new} == {"packets": 3, "bytes": 120, "flows": 1}


def test_flow_table_names_the_client(balancer: Balancer) -> None:
    """The flow table's rows say who and which backend."""
    send(balancer, 4, tcp("S"))
    key = fields(saddr=word(b"\xcb\x00\x71\x05"), daddr=word(b"\xc0\x00\x02\x0a"), sport=port(40000), dport=port(80), proto=6)
    assert dict(balancer.rows("tg_lb_flow4")[key])["backend"] == 1
