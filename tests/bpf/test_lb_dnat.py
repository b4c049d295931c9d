"""Full NAT: to a backend in this machine's name, and the answers back in the virtual address's."""

from __future__ import annotations

import pytest
from balancer import DNAT, DROP, PASS, TX, Balancer
from packets import Verdict, addr, frame
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
CLIENT = {4: "203.0.113.5", 6: "2001:db8:5::5"}
BACKEND = {4: "10.9.0.1", 6: "fd99::1"}
OWN = {4: "172.30.0.11", 6: "fd30::11"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def translator(balancer: Balancer, family: int) -> Balancer:
    balancer.backend(1, BACKEND[family], 8080)
    balancer.service(1, [1] * 7, flags=DNAT)
    balancer.put("tg_lb_config", 0, nat4=addr(OWN[4]), nat6=addr(OWN[6]), port_min=30000, port_max=60000, icmp_rate=1000)
    return balancer


def ip(family: int, src: str, dst: str, hops: int, payload: Packet, **more: object) -> Packet:
    if family == 4:
        return IP(src=src, dst=dst, ttl=hops, id=3, **more) / payload
    return IPv6(src=src, dst=dst, hlim=hops, **more) / payload


def l4(proto: str, sport: int, dport: int, data: bytes = b"hello") -> Packet:
    return (TCP(sport=sport, dport=dport, flags="S") if proto == "tcp" else UDP(sport=sport, dport=dport)) / Raw(data)


def ask(
    balancer: Balancer, family: int, proto: str = "tcp", sport: int = 40000, client: str = "", data: bytes = b"hello"
) -> Verdict:
    return balancer.frame(frame() / ip(family, client or CLIENT[family], VIP[family], 60, l4(proto, sport, 80, data)))


def own_port(done: Verdict) -> int:
    assert (done.verdict, done.reason) == (TX, "forward_dnat")
    return int(done.packet.payload.payload.sport)


def link() -> Ether:
    return Ether(dst="02:00:00:00:00:fe", src="02:74:67:00:00:01")


@FAMILIES
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_there_and_back(translator: Balancer, proto: str, family: int) -> None:
    """Byte for byte: what the backend gets, and what the client gets for its answer."""
    done = ask(translator, family, proto)
    port = own_port(done)
    assert 30000 <= port <= 60000
    expected = link() / ip(family, OWN[family], BACKEND[family], 59, l4(proto, port, 8080))
    assert bytes(done.packet) == bytes(expected)

    answer = frame() / ip(family, BACKEND[family], OWN[family], 61, l4(proto, 8080, port, b"world!"))
    back = translator.frame(answer)
    assert (back.verdict, back.reason) == (TX, "forward_dnat_back")
    assert bytes(back.packet) == bytes(link() / ip(family, VIP[family], CLIENT[family], 60, l4(proto, 80, 40000, b"world!")))


@FAMILIES
def test_one_port_a_connection(translator: Balancer, family: int) -> None:
    """A connection keeps its port, also when the SYN is sent again; two never share one."""
    port = own_port(ask(translator, family))
    assert own_port(ask(translator, family)) == port
    ports = {own_port(ask(translator, family, sport=sport)) for sport in range(1000, 1050)}
    assert len(ports) == 50
    assert port not in ports


@FAMILIES
def test_no_port_left(translator: Balancer, family: int) -> None:
    """When all ports towards a backend are taken, the next connection is refused."""
    translator.put("tg_lb_config", 0, nat4=addr(OWN[4]), nat6=addr(OWN[6]), port_min=30000, port_max=30003)
    ports = {own_port(ask(translator, family, sport=sport)) for sport in range(4)}
    assert ports == {30000, 30001, 30002, 30003}
    refused = ask(translator, family, sport=9)
    assert (refused.verdict, refused.reason) == (DROP, "drop_no_port")


@FAMILIES
def test_lost_way_back(translator: Balancer, family: int) -> None:
    """A connection whose answer entry was evicted gets the same port again, if nobody has it now."""
    port = own_port(ask(translator, family))
    for key in translator.rows("tg_lb_nat"):
        translator.maps["tg_lb_nat"].drop(key)
    done = translator.frame(frame() / ip(family, CLIENT[family], VIP[family], 60, TCP(sport=40000, dport=80, flags="A")))
    assert own_port(done) == port
    assert len(translator.rows("tg_lb_nat")) == 1


@FAMILIES
def test_foreign_answers(translator: Balancer, family: int) -> None:
    """What this machine asked itself is left to its stack."""
    packet = frame() / ip(family, BACKEND[family], OWN[family], 61, l4("tcp", 8080, 31111))
    done = translator.frame(packet)
    assert (done.verdict, done.reason, bytes(done.packet)) == (PASS, "pass_other", bytes(packet))


@FAMILIES
def test_tagged(translator: Balancer, family: int) -> None:
    """Tags stay."""
    tagged = frame() / Dot1Q(vlan=5) / ip(family, CLIENT[family], VIP[family], 60, l4("tcp", 40000, 80))
    assert translator.frame(tagged).packet[Dot1Q].vlan == 5


@FAMILIES
def test_udp_sum_that_comes_out_as_zero(translator: Balancer, family: int) -> None:
    """RFC 768: a sum of zero is written as all ones."""
    port = own_port(ask(translator, family, "udp", data=b"\0\0"))
    expected = bytes(ip(family, OWN[family], BACKEND[family], 59, l4("udp", port, 8080, b"\0\0")))
    missing = int.from_bytes(expected[-4:-2], "big")  # the data that takes the sum to zero
    done = ask(translator, family, "udp", data=missing.to_bytes(2, "big"))
    assert done.packet[UDP].chksum == 0xFFFF


@pytest.mark.parametrize("family", [4])
def test_mixed_families(translator: Balancer) -> None:
    """IPv4 is not translated to IPv6, nor without an address of the family."""
    translator.backend(1, BACKEND[6], 8080)
    assert ask(translator, 4).reason == "drop_mixed_families"
    translator.backend(1, BACKEND[4], 8080)
    translator.put("tg_lb_config", 0, nat6=addr(OWN[6]), port_min=30000, port_max=60000)
    assert ask(translator, 4).reason == "drop_no_source"


@FAMILIES
def test_sizes_and_hops(translator: Balancer, family: int) -> None:
    """Nothing is added, so the whole MTU may be used; the last hop is told to the client."""
    room = 1500 - (40 if family == 4 else 60)
    full = ip(family, CLIENT[family], VIP[family], 60, TCP(sport=1, dport=80, flags="S") / Raw(bytes(room)))
    assert translator.frame(frame() / full).reason == "forward_dnat"
    over = ip(family, CLIENT[family], VIP[family], 60, TCP(sport=1, dport=80, flags="S") / Raw(bytes(room + 1)))
    assert translator.frame(frame() / over).reason == "forward_too_big"
    old = ip(family, CLIENT[family], VIP[family], 1, l4("tcp", 1, 80))
    assert translator.frame(frame() / old).reason == "forward_expired"
    port = own_port(ask(translator, family))
    late = ip(family, BACKEND[family], OWN[family], 1, l4("tcp", 8080, port))
    assert translator.frame(frame() / late).reason == "drop_expired"


@pytest.mark.parametrize("family", [4])
def test_errors_and_fragments(translator: Balancer) -> None:
    """An ICMP error about a translated flow is counted; later fragments are translated by address."""
    error = IP(src="198.51.100.1", dst=VIP[4]) / ICMP(type=3) / IP(src=VIP[4], dst=CLIENT[4]) / TCP(sport=80, dport=40000)
    ask(translator, 4)
    assert translator.frame(frame() / error).reason == "drop_dnat_error"
    whole = IP(src=CLIENT[4], dst=VIP[4], ttl=60, id=8)
    first = translator.frame(frame() / whole.copy() / Raw(bytes(UDP(sport=7, dport=80, len=72, chksum=9)) + bytes(56)))
    assert first.reason == "drop_no_frontend"
    head = IP(src=CLIENT[4], dst=VIP[4], ttl=60, id=8, flags="MF", proto=17)
    first = translator.frame(frame() / head / UDP(sport=7, dport=80, len=72, chksum=9) / Raw(bytes(56)))
    assert first.reason == "forward_dnat"
    later = translator.frame(frame() / IP(src=CLIENT[4], dst=VIP[4], ttl=60, id=8, frag=8, proto=17) / Raw(b"q" * 8))
    assert later.reason == "forward_dnat"
    expected = IP(src=OWN[4], dst=BACKEND[4], ttl=59, id=8, frag=8, proto=17) / Raw(b"q" * 8)
    assert bytes(later.packet) == bytes(link() / expected)
