"""Pings, packets too big or too old, and ICMP errors about flows."""

from __future__ import annotations

import pytest
from balancer import DROP, PASS, TX, Balancer
from packets import frame
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
)
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
CLIENT = {4: "203.0.113.5", 6: "2001:db8:5::5"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def ip(family: int, payload: Packet, **changed: object) -> Packet:
    if family == 4:
        return IP(**({"src": CLIENT[4], "dst": VIP[4]} | changed)) / payload
    return IPv6(**({"src": CLIENT[6], "dst": VIP[6]} | changed)) / payload


def back(family: int, payload: Packet, *tags: Packet) -> Packet:
    """What the virtual address sends to the client, by the router that brought the client's packet."""
    head = Ether(src="02:74:67:00:00:01", dst="02:00:00:00:00:01")
    for tag in tags:
        head = head / tag
    if family == 4:
        return head / IP(src=VIP[4], dst=CLIENT[4], ttl=64, id=0) / payload
    return head / IPv6(src=VIP[6], dst=CLIENT[6], hlim=64) / payload


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_ping(balancer: Balancer, size: int, family: int) -> None:
    """A virtual address answers pings."""
    data = bytes(range(256)) * 6
    ask, answer = (ICMP(id=5, seq=3), ICMP(type=0, id=5, seq=3))
    if family == 6:
        ask, answer = ICMPv6EchoRequest(id=5, seq=3), ICMPv6EchoReply(id=5, seq=3)
    done = balancer.frame(frame() / ip(family, ask / Raw(data[:size]), **({"id": 0, "ttl": 9} if family == 4 else {})))
    assert (done.verdict, done.reason) == (TX, "forward_echo")
    assert bytes(done.packet) == bytes(back(family, answer / Raw(data[:size])))


def test_tagged_ping(balancer: Balancer) -> None:
    """The answer has the tag of the question."""
    done = balancer.frame(frame() / Dot1Q(vlan=9) / ip(4, ICMP(id=5), id=0))
    assert bytes(done.packet) == bytes(back(4, ICMP(type=0, id=5), Dot1Q(vlan=9)))


@pytest.mark.parametrize("source", ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"])
def test_nobody_to_answer(balancer: Balancer, source: str) -> None:
    """What is no host's address gets no answer."""
    family = 6 if ":" in source else 4
    ask = ICMP() if family == 4 else ICMPv6EchoRequest()
    done = balancer.frame(frame() / ip(family, ask, src=source))
    assert (done.verdict, done.reason) == (DROP, "drop_bad_source")


OTHER_ICMP = {
    "timestamp": ip(4, ICMP(type=13)),
    "echo-reply": ip(4, ICMP(type=0)),
    "v6-echo-reply": ip(6, ICMPv6EchoReply()),
    "error-without-quote": ip(4, ICMP(type=3)),
    "error-about-another-address": ip(4, ICMP(type=3) / IP(src="192.0.2.11", dst=CLIENT[4]) / TCP(sport=80, dport=40000)),
    "error-about-icmp": ip(4, ICMP(type=3) / IP(src=VIP[4], dst=CLIENT[4]) / ICMP()),
    "error-about-later-fragment": ip(4, ICMP(type=3) / IP(src=VIP[4], dst=CLIENT[4], frag=9, proto=6) / Raw(bytes(8))),
    "error-about-another-port": ip(4, ICMP(type=3) / IP(src=VIP[4], dst=CLIENT[4]) / TCP(sport=81, dport=40000)),
    "redirect": ip(4, ICMP(type=5) / IP(src=VIP[4], dst=CLIENT[4]) / TCP(sport=80, dport=40000)),
}


@pytest.mark.parametrize("name", OTHER_ICMP)
def test_other_icmp(balancer: Balancer, name: str) -> None:
    """ICMP about nothing that is balanced is nobody's."""
    done = balancer.frame(frame() / OTHER_ICMP[name])
    assert (done.verdict, done.reason) == (DROP, "drop_no_frontend")


@FAMILIES
@pytest.mark.parametrize("error", ["unreachable", "too-big", "expired"])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_error_reaches_the_flows_backend(balancer: Balancer, proto: str, error: str, family: int) -> None:
    """An ICMP error about what a backend sent goes to that backend, not to the one that the table names now."""
    out, quoted = TCP(sport=40000, dport=80, flags="S"), TCP(sport=80, dport=40000, flags="A")
    if proto == "udp":
        out, quoted = UDP(sport=40000, dport=80), UDP(sport=80, dport=40000)
    balancer.backend(2, "10.9.0.2")
    balancer.frame(frame() / ip(family, out))
    balancer.service(1, [2] * 7)
    if family == 4:
        kinds = {"unreachable": (3, 1), "too-big": (3, 4), "expired": (11, 0)}
        wrong = ICMP(type=kinds[error][0], code=kinds[error][1]) / IP(src=VIP[4], dst=CLIENT[4]) / quoted
        packet = IP(src="198.51.100.1", dst=VIP[4]) / wrong
    else:
        kind = {"unreachable": ICMPv6DestUnreach(), "too-big": ICMPv6PacketTooBig(mtu=1280), "expired": ICMPv6TimeExceeded()}
        packet = IPv6(src="2001:db8:77::1", dst=VIP[6]) / kind[error] / IPv6(src=VIP[6], dst=CLIENT[6]) / quoted
    rows = len(balancer.rows(f"tg_lb_flow{family}"))

    done = balancer.frame(frame() / packet)

    assert (done.verdict, done.reason) == (TX, "forward_dsr_error")
    assert done.packet[IP].dst == "10.9.0.1"
    aged = bytes(done.packet)[34:]
    expected = packet.copy()
    if family == 4:
        expected.ttl -= 1
    else:
        expected.hlim -= 1
    assert aged == bytes(expected)
    assert len(balancer.rows(f"tg_lb_flow{family}")) == rows


SIZES = {4: [28, 64, 128, 256, 512], 6: [48, 128, 256, 512, 1024]}


def quoted(packet: Packet, family: int) -> bytes:
    """The largest of the lengths that an error quotes and the packet has."""
    raw = bytes(packet)
    return raw[: max(size for size in SIZES[family] if size <= len(raw))]


@FAMILIES
@pytest.mark.parametrize("outer", [4, 6])
def test_too_big(balancer: Balancer, outer: int, family: int) -> None:
    """A packet that does not fit with its outer header is refused in the name of the virtual address, with the size that does."""
    balancer.backend(1, "10.9.0.1" if outer == 4 else "fd99::1")
    room = 1500 - (20 if outer == 4 else 40)
    header = 40 if family == 4 else 60
    fits = ip(family, TCP(sport=1, dport=80, flags="A") / Raw(bytes(room - header)))
    assert balancer.frame(frame() / fits).reason == "forward_dsr"
    large = ip(family, TCP(sport=1, dport=80, flags="A") / Raw(bytes(range(256)) * 5 + bytes(room - header - 1279)))
    done = balancer.frame(frame() / large)
    assert (done.verdict, done.reason) == (TX, "forward_too_big")
    error = ICMP(type=3, code=4, nexthopmtu=room) if family == 4 else ICMPv6PacketTooBig(mtu=room)
    assert bytes(done.packet) == bytes(back(family, error / Raw(quoted(large, family))))


@FAMILIES
@pytest.mark.parametrize("hops", [0, 1])
@pytest.mark.parametrize("payload", [0, 1, 30, 100, 300, 700, 1200])
def test_expired(balancer: Balancer, payload: int, hops: int, family: int) -> None:
    """A packet on its last hop is answered with "time exceeded", as from the virtual address."""
    aged = {"ttl": hops} if family == 4 else {"hlim": hops}
    packet = ip(family, UDP(sport=1, dport=80) / Raw(b"z" * payload), **aged)
    done = balancer.frame(frame() / packet)
    assert (done.verdict, done.reason) == (TX, "forward_expired")
    error = ICMP(type=11, code=0) if family == 4 else ICMPv6TimeExceeded()
    assert bytes(done.packet) == bytes(back(family, error / Raw(quoted(packet, family))))


def test_errors_are_limited(balancer: Balancer) -> None:
    """No more errors a second than configured, and none about an error."""
    balancer.put("tg_lb_config", 0, icmp_rate=0)
    expired = ip(4, UDP(sport=1, dport=80), ttl=1)
    done = balancer.frame(frame() / expired)
    assert (done.verdict, done.reason) == (DROP, "drop_icmp_rate")
    balancer.put("tg_lb_config", 0, icmp_rate=1000)
    about = IP(src="198.51.100.1", dst=VIP[4], ttl=1) / ICMP(type=3) / IP(src=VIP[4], dst=CLIENT[4]) / UDP(sport=80, dport=1)
    assert balancer.frame(frame() / about).verdict == DROP
    assert balancer.frame(frame() / ip(4, ICMP(), dst="192.0.2.99")).verdict == PASS
