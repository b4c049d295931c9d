"""What the load balancer sends to backends, byte for byte."""

from __future__ import annotations

import pytest
from balancer import DROP, PASS, TX, Balancer
from packets import frame
from scapy.layers.inet import IP, TCP, UDP, IPOption_Timestamp
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

CLIENT = {4: "203.0.113.5", 6: "2001:db8:5::5"}
VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
BACKEND = {4: "10.9.0.1", 6: "fd99::1"}
OWN = {4: "172.30.0.11", 6: "fd30::11"}
L4 = {
    "syn": lambda: TCP(sport=40000, dport=80, flags="S"),
    "ack": lambda: TCP(sport=40000, dport=80, flags="A") / Raw(b"x" * 33),
    "udp": lambda: UDP(sport=40000, dport=80) / Raw(b"y" * 10),
}


def ip(family: int, payload: Packet, **changed: object) -> Packet:
    """A packet from the client to the virtual address."""
    if family == 4:
        return IP(**({"src": CLIENT[4], "dst": VIP[4], "ttl": 60, "id": 7} | changed)) / payload
    return IPv6(**({"src": CLIENT[6], "dst": VIP[6], "hlim": 60} | changed)) / payload


def sent(inner: Packet, outer: int, tos: int = 0) -> Packet:
    """What must leave for `inner`, which is given with its hop count already lowered."""
    if outer == 4:
        return IP(src=OWN[4], dst=BACKEND[4], ttl=64, id=0, flags="DF", tos=tos) / inner
    return IPv6(src=OWN[6], dst=BACKEND[6], hlim=64, tc=tos) / inner


def link(*tags: Packet) -> Packet:
    """The Ethernet header to the next hop."""
    head = Ether(dst="02:00:00:00:00:fe", src="02:74:67:00:00:01")
    for tag in tags:
        head = head / tag
    return head


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("proto", L4)
def test_encapsulated(balancer: Balancer, proto: str, inner: int, outer: int) -> None:
    """A packet reaches the backend whole, one hop older, within a header of the backend's family."""
    balancer.backend(1, BACKEND[outer])
    done = balancer.frame(frame() / ip(inner, L4[proto]()))
    aged = {"ttl": 59} if inner == 4 else {"hlim": 59}
    assert (done.verdict, done.reason) == (TX, "forward_dsr")
    assert bytes(done.packet) == bytes(link() / sent(ip(inner, L4[proto](), **aged), outer))


@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("tos", [1, 2, 3, 0xB8, 0xFF])
def test_class_and_congestion(balancer: Balancer, tos: int, inner: int, outer: int) -> None:
    """RFC 6040: the outer header has the inner one's DSCP and ECN."""
    balancer.backend(1, BACKEND[outer])
    named = "tos" if inner == 4 else "tc"
    done = balancer.frame(frame() / ip(inner, L4["syn"](), **{named: tos}))
    aged = {"ttl": 59} if inner == 4 else {"hlim": 59}
    assert bytes(done.packet) == bytes(link() / sent(ip(inner, L4["syn"](), **{named: tos}, **aged), outer, tos))


TAGS = {"one": [Dot1Q(vlan=100, prio=3)], "two": [Dot1AD(vlan=7), Dot1Q(vlan=100)]}


@pytest.mark.parametrize("tags", TAGS)
@pytest.mark.parametrize("family", [4, 6])
def test_tagged(balancer: Balancer, family: int, tags: str) -> None:
    """A tagged packet leaves by the device it came from, with its tags."""
    balancer.backend(1, BACKEND[family])
    head = frame()
    for tag in TAGS[tags]:
        head = head / tag.copy()
    aged = {"ttl": 59} if family == 4 else {"hlim": 59}
    done = balancer.frame(head / ip(family, L4["syn"]()))
    assert done.verdict == TX
    expected = link(*(tag.copy() for tag in TAGS[tags])) / sent(ip(family, L4["syn"](), **aged), family)
    assert bytes(done.packet) == bytes(expected)


def test_ipv4_options(balancer: Balancer) -> None:
    """Options go to the backend untouched."""
    options = {"options": [IPOption_Timestamp(length=12, timestamp=5)]}
    done = balancer.frame(frame() / ip(4, L4["syn"](), **options))
    assert bytes(done.packet) == bytes(link() / sent(ip(4, L4["syn"](), ttl=59, **options), 4))


def test_ipv6_extensions(balancer: Balancer) -> None:
    """The transport header is found behind extension headers."""
    balancer.backend(1, BACKEND[6])
    extended = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]) / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
    done = balancer.frame(frame() / ip(6, extended / L4["syn"]()))
    assert bytes(done.packet) == bytes(link() / sent(ip(6, extended / L4["syn"](), hlim=59), 6))


def test_padded(balancer: Balancer) -> None:
    """What follows the IP packet in a short frame is not counted as part of it."""
    done = balancer.frame(bytes(frame() / ip(4, L4["syn"]())) + bytes(6))
    assert bytes(done.packet) == bytes(link() / sent(ip(4, L4["syn"](), ttl=59), 4)) + bytes(6)


MALFORMED = {
    "short-header": bytes(frame() / ip(4, L4["syn"]()))[:30],
    "ihl-3": frame() / ip(4, L4["syn"](), ihl=3),
    "version-5": frame() / ip(4, L4["syn"](), version=5),
    "length-over-frame": frame() / ip(4, L4["syn"](), len=100),
    "length-under-header": frame() / ip(4, L4["syn"](), len=10),
    "short-tcp": frame() / ip(4, Raw(bytes(12)), proto=6),
    "short-udp": frame() / ip(4, Raw(bytes(4)), proto=17),
    "short-icmp": frame() / ip(4, Raw(bytes(4)), proto=1),
    "v6-short-header": bytes(frame() / ip(6, L4["syn"]()))[:50],
    "v6-version": frame() / ip(6, L4["syn"](), version=4),
    "v6-length": frame() / ip(6, L4["syn"](), plen=100),
    "v6-short-tcp": frame() / ip(6, Raw(bytes(12)), nh=6),
    "v6-endless-extensions": frame() / ip(6, Raw(b"\x00\x3f" + bytes(510) + b"\x06" + bytes(100)), nh=0),
    "v6-extension-over-end": frame() / ip(6, Raw(b"\x06\x00"), nh=0),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(balancer: Balancer, name: str) -> None:
    """Each of these is dropped and counted."""
    done = balancer.frame(MALFORMED[name])
    assert (done.verdict, done.reason) == (DROP, "drop_malformed")


NOT_OURS = {
    "arp": (Ether(type=0x806) / Raw(bytes(46)), "pass_not_ip"),
    "runt": (Ether(type=0x8100) / Raw(b"\x00"), "pass_not_ip"),
    "three-tags": (frame() / Dot1Q() / Dot1Q() / Dot1Q() / ip(4, L4["syn"]()), "pass_not_ip"),
    "other-address": (frame() / ip(4, L4["syn"](), dst="192.0.2.11"), "pass_other"),
    "other-address-v6": (frame() / ip(6, L4["syn"](), dst="2001:db8:10::11"), "pass_other"),
    "other-ping": (frame() / ip(4, Raw(b"\x08" + bytes(7)), dst="192.0.2.11", proto=1), "pass_other"),
    "other-later-fragment": (frame() / ip(4, Raw(bytes(8)), dst="192.0.2.11", proto=17, frag=5), "pass_other"),
}


@pytest.mark.parametrize("name", NOT_OURS)
def test_not_ours(balancer: Balancer, name: str) -> None:
    """What is not to a virtual address goes to the stack as it came."""
    packet, reason = NOT_OURS[name]
    done = balancer.frame(packet)
    assert (done.verdict, done.reason) == (PASS, reason)
    assert bytes(done.packet) == bytes(packet)


UNTAKEN = {
    "port": ip(4, TCP(sport=1, dport=81, flags="S")),
    "protocol": ip(4, UDP(sport=1, dport=443)),
    "sctp": ip(4, Raw(bytes(12)), proto=132),
    "v6-port": ip(6, TCP(sport=1, dport=81, flags="S")),
    "v6-none": ip(6, Raw(b""), nh=59),
}


@pytest.mark.parametrize("name", UNTAKEN)
def test_no_frontend(balancer: Balancer, name: str) -> None:
    """What no frontend takes is dropped, or left to the stack if the address says so."""
    done = balancer.frame(frame() / UNTAKEN[name])
    assert (done.verdict, done.reason) == (DROP, "drop_no_frontend")
    for family in (4, 6):
        balancer.vip(VIP[family], flags=1)
    done = balancer.frame(frame() / UNTAKEN[name])
    assert (done.verdict, done.reason) == (PASS, "pass_no_frontend")
