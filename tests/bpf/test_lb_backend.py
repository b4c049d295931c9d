"""What happens at the backend to packets of balancers, and to the answers."""

from __future__ import annotations

import itertools
import socket
from typing import Any

import pytest
from balancer import port
from packets import DROP, PASS, REDIRECT, Harness, addr, frame, network, with_right_checksums
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from tidegate.datapath.layout import fields

CLIENT = {4: "198.51.100.10", 6: "2001:db8:100::10"}
VIP = {4: "192.0.2.10", 6: "2001:db8:10::10"}
OTHER_VIP = {4: "192.0.2.11", 6: "2001:db8:10::11"}
NODE = {4: "172.30.0.11", 6: "fd30::11"}
POD = {4: "10.40.1.1", 6: "fd40:0:0:1::1"}
BALANCER = {4: "172.30.0.9", 6: "fd30::9"}

FAMILIES = list(itertools.product((4, 6), (4, 6)))
PROTO = {"tcp": 6, "udp": 17}


def ip(family: int, src: str, dst: str, **more: Any) -> Packet:
    if family == 4:
        return IP(src=src, dst=dst, **more)
    return IPv6(src=src, dst=dst, **{{"ttl": "hlim", "tos": "tc"}.get(name, name): value for name, value in more.items()})


def within(outer: int, inner: Packet, to: str = "", **more: Any) -> Packet:
    """An inner packet as a balancer sends it."""
    return frame() / ip(outer, BALANCER[outer], to or NODE[outer], **more) / inner


def row(node: Harness, outer: str, vip: str, target: str, at: int = 80, proto: int = 6, quoted: int = 0, **more: Any) -> None:
    key = fields(outer=addr(outer), vip=addr(vip), port=port(at), proto=proto, quoted=quoted)
    given = {"target_port": port(8080), "vip_port": port(80), "mtu": 1480}
    node.put("tg_dsr", key, target=addr(target), **(given | more))


@pytest.fixture
def backend(node: Harness) -> Harness:
    """The node and its first pod listen on port 8080 for port 80 of the virtual address, whatever the outer family."""
    for outer, family in FAMILIES:
        for home in (NODE, POD):
            for proto in PROTO.values():
                row(node, home[outer], VIP[family], home[family], proto=proto)
                row(node, home[outer], VIP[family], home[family], proto=proto, quoted=1)
    return node


L4 = {"tcp": lambda: TCP(sport=40000, dport=80, flags="S", options=[("MSS", 1460)]), "udp": lambda: UDP(sport=40000, dport=80)}


@pytest.mark.parametrize("size", [0, 5, 1000])
@pytest.mark.parametrize("proto", L4)
@pytest.mark.parametrize(("outer", "family"), FAMILIES)
def test_decapsulated(backend: Harness, outer: int, family: int, proto: str, size: int) -> None:
    """The listener gets what the client sent, to its own address and port, with right checksums and nothing else changed."""
    inner = ip(family, CLIENT[family], VIP[family], ttl=63, tos=0x48) / L4[proto]() / Raw(b"x" * size)

    done = backend.run("uplink_in", within(outer, inner), "up0")

    assert (done.verdict, done.reason) == (PASS, "pass_dsr")
    wanted = inner.copy()
    wanted.dst = NODE[family]
    wanted[proto.upper()].dport = 8080
    assert bytes(done.packet) == bytes(frame() / wanted)


@pytest.mark.parametrize("proto", L4)
@pytest.mark.parametrize(("outer", "family"), FAMILIES)
def test_answered(backend: Harness, outer: int, family: int, proto: str) -> None:
    """The answer leaves as the virtual address and port; one to another client, or from another port, leaves as it is."""
    inner = ip(family, CLIENT[family], VIP[family]) / L4[proto]()
    backend.run("uplink_in", within(outer, inner), "up0")
    payload = TCP(sport=8080, dport=40000, flags="SA") if proto == "tcp" else UDP(sport=8080, dport=40000) / Raw(b"hello")

    done = backend.run("uplink_out", frame() / ip(family, NODE[family], CLIENT[family], ttl=64) / payload, "up0")

    assert (done.verdict, done.reason) == (PASS, "pass_dsr_answer")
    wanted = payload.copy()
    wanted.sport = 80
    assert bytes(done.packet) == bytes(frame() / ip(family, VIP[family], CLIENT[family], ttl=64) / wanted)
    for change in ({"sport": 8081}, {"dport": 40001}):
        other = payload.copy()
        for name, value in change.items():
            setattr(other, name, value)
        assert backend.run("uplink_out", frame() / ip(family, NODE[family], CLIENT[family]) / other, "up0").reason == "pass_host"


@pytest.mark.parametrize(("outer", "family"), FAMILIES)
def test_pod(backend: Harness, outer: int, family: int) -> None:
    """A pod is reached at once, and answers past the egress policy that selects it; its own connections do not."""
    backend.put("tg_endpoint", socket.if_nametoindex("pod0"), ip4=addr(POD[4]), ip6=addr(POD[6]), born=1, flags=1)
    inner = ip(family, CLIENT[family], VIP[family]) / TCP(sport=40000, dport=80, flags="A")

    done = backend.run("uplink_in", within(outer, inner, POD[outer]), "up0")
    assert (done.verdict, done.reason) == (REDIRECT, "forward_dsr")
    assert (network(done.packet).dst, done.packet[TCP].dport) == (POD[family], 8080)

    answer = frame() / ip(family, POD[family], CLIENT[family], ttl=64) / TCP(sport=8080, dport=40000, flags="A")
    back = backend.run("pod_out", answer)
    assert (back.verdict, back.reason, back.mark) == (REDIRECT, "forward_dsr_answer", 0x0F000000)
    assert (network(back.packet).src, back.packet[TCP].sport) == (VIP[family], 80)
    assert (back.packet.ttl if family == 4 else back.packet.hlim) == 63
    assert bytes(back.packet) == bytes(with_right_checksums(back.packet))
    begun = frame() / ip(family, POD[family], CLIENT[family]) / TCP(sport=8080, dport=40000, flags="S")
    assert backend.run("pod_out", begun).reason == "drop_held"


def test_pod_of_a_reused_address(backend: Harness) -> None:
    """A connection of an earlier owner of the address is not answered as the virtual address."""
    inner = IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=40000, dport=80, flags="A")
    backend.run("uplink_in", within(4, inner, POD[4]), "up0")
    backend.put("tg_endpoint", socket.if_nametoindex("pod0"), ip4=addr(POD[4]), ip6=addr(POD[6]), born=1 << 62)
    answer = frame() / IP(src=POD[4], dst=CLIENT[4]) / TCP(sport=8080, dport=40000, flags="A")
    assert backend.run("pod_out", answer).reason == "forward_masquerade"


def error_about(family: int, quoted: Packet) -> Packet:
    if family == 4:
        return ICMP(type=3, code=4, nexthopmtu=1280) / quoted
    return ICMPv6PacketTooBig(mtu=1280) / quoted


@pytest.mark.parametrize("home", ["node", "pod"])
@pytest.mark.parametrize(("outer", "family"), FAMILIES)
def test_path_mtu(backend: Harness, outer: int, family: int, home: str) -> None:
    """A router's complaint about an answer reaches the listener, and quotes what the listener sent; no flow is needed."""
    own = NODE if home == "node" else POD
    quoted = ip(family, VIP[family], CLIENT[family]) / TCP(sport=80, dport=40000, flags="A")
    inner = ip(family, CLIENT[family], VIP[family]) / error_about(family, quoted)

    done = backend.run("uplink_in", within(outer, inner, own[outer]), "up0")

    assert done.reason == ("pass_dsr" if home == "node" else "forward_dsr")
    assert network(done.packet).dst == own[family]
    kind = IP if family == 4 else IPv6
    about = kind(bytes(network(done.packet).payload)[8:])
    assert (about.src, about.dst, about[TCP].sport, about[TCP].dport) == (own[family], CLIENT[family], 8080, 40000)
    if family == 6:
        assert bytes(done.packet) == bytes(with_right_checksums(done.packet))
    else:
        assert checksum(bytes(done.packet[IP].payload)) == 0
        assert about.chksum == IP(bytes(ip(4, own[4], CLIENT[4]) / quoted[TCP])).chksum


def test_path_mtu_of_one_of_several(backend: Harness) -> None:
    """Of several listeners behind one frontend the one that has the connection is told."""
    for number in (1, 2, 3):
        row(backend, NODE[4], VIP[4], NODE[4], at=8080 + number, target_port=port(8080 + number))
        row(backend, NODE[4], VIP[4], NODE[4], quoted=number, target_port=port(8080 + number))
    inner = IP(src=CLIENT[4], dst=VIP[4]) / TCP(sport=40000, dport=8082, flags="A")
    assert backend.run("uplink_in", within(4, inner), "up0").packet[TCP].dport == 8082
    quoted = IP(src=VIP[4], dst=CLIENT[4]) / TCP(sport=80, dport=40000)
    error = IP(src=CLIENT[4], dst=VIP[4]) / error_about(4, quoted)
    done = backend.run("uplink_in", within(4, error), "up0")
    assert IP(bytes(done.packet[ICMP].payload))[TCP].sport == 8082


@pytest.mark.parametrize("home", ["node", "pod"])
@pytest.mark.parametrize("family", [4, 6])
def test_refusal(backend: Harness, family: int, home: str) -> None:
    """The listener's own ICMP error comes from the virtual address, and quotes what the client sent."""
    own = NODE if home == "node" else POD
    asked = UDP(sport=40000, dport=80) / Raw(b"abc")
    backend.run("uplink_in", within(4, ip(family, CLIENT[family], VIP[family]) / asked, own[4]), "up0")
    quoted = ip(family, CLIENT[family], own[family]) / UDP(sport=40000, dport=8080) / Raw(b"abc")
    told: Packet = ICMP(type=3, code=3) / quoted if family == 4 else ICMPv6DestUnreach(code=4) / quoted
    packet = frame() / ip(family, own[family], CLIENT[family]) / told

    done = backend.run("uplink_out" if home == "node" else "pod_out", packet, "up0" if home == "node" else "pod0")

    assert done.reason == ("pass_dsr_answer" if home == "node" else "forward_dsr_answer")
    assert network(done.packet).src == VIP[family]
    kind = IP if family == 4 else IPv6
    about = kind(bytes(network(done.packet).payload)[8:])
    assert (about.src, about.dst, about[UDP].dport) == (CLIENT[family], VIP[family], 80)
    if family == 6:
        assert bytes(done.packet) == bytes(with_right_checksums(done.packet))
    else:
        assert checksum(bytes(done.packet[IP].payload)) == checksum(bytes(done.packet[IP])[:20]) == 0


def inner4(**changes: Any) -> Packet:
    return IP(src=CLIENT[4], dst=VIP[4]) / TCP(**({"sport": 40000, "dport": 80, "flags": "A"} | changes))


INNER = inner4()
PASSED = {
    "other-port": within(4, inner4(dport=81)),
    "other-vip": within(4, IP(src=CLIENT[4], dst=OTHER_VIP[4]) / TCP(dport=80)),
    "other-protocol": within(4, IP(src=CLIENT[4], dst=VIP[4], proto=132) / Raw(bytes(20))),
    "other-outer": within(4, INNER, "172.30.0.99"),
    "other-outer-v6": within(6, INNER, "fd30::99"),
    "ping": within(4, IP(src=CLIENT[4], dst=VIP[4]) / ICMP()),
    "later-fragment-unknown": within(4, IP(src=CLIENT[4], dst=VIP[4], proto=6, frag=100, id=99) / Raw(bytes(20))),
    "outer-fragment": within(4, INNER, flags="MF"),
    "outer-later-fragment": within(4, INNER, frag=5),
    "outer-options": within(4, INNER, options=b"\1\1\1\1"),
    "outer-extension": frame() / IPv6(src=BALANCER[6], dst=NODE[6]) / IPv6ExtHdrDestOpt() / INNER,
    "inner-short": within(4, IP(src=CLIENT[4], dst=VIP[4], proto=6) / Raw(bytes(4))),
    "inner-bad-ihl": within(4, IP(src=CLIENT[4], dst=VIP[4], ihl=3) / TCP(dport=80)),
    "inner-version": within(4, IP(src=CLIENT[4], dst=VIP[4], version=5) / TCP(dport=80)),
    "inner-of-the-other-family": within(4, IPv6(src=CLIENT[6], dst=VIP[6]) / TCP(dport=80), proto=4),
    "inner-cut": within(4, Raw(bytes(INNER)[:10]), proto=4),
    "outer-only": frame() / IP(src=BALANCER[4], dst=NODE[4], proto=4),
    "error-about-another": within(
        4, IP(src=CLIENT[4], dst=VIP[4]) / ICMP(type=3, code=4) / IP(src=OTHER_VIP[4], dst=CLIENT[4]) / TCP(sport=80)
    ),
    "error-cut": within(4, IP(src=CLIENT[4], dst=VIP[4]) / ICMP(type=3, code=4) / Raw(bytes(8))),
    "gre": within(4, Raw(bytes(INNER)), proto=47),
    "not-encapsulated": frame() / INNER,
}


@pytest.mark.parametrize("name", PASSED)
def test_not_ours(backend: Harness, name: str) -> None:
    """What no row names passes without a change, for a tunnel of the machine's own; and no answer is changed for it."""
    packet = PASSED[name]
    before = backend.rows("tg_flow")
    done = backend.run("uplink_in", packet, "up0")
    assert (done.verdict, bytes(done.packet)) == (PASS, bytes(packet))
    assert done.reason == "pass_host"
    assert backend.rows("tg_flow") == before


def test_inner_options_and_extensions(backend: Harness) -> None:
    """An inner header may be longer than usual."""
    long4 = IP(src=CLIENT[4], dst=VIP[4], options=b"\1" * 8) / TCP(sport=40000, dport=80)
    long6 = IPv6(src=CLIENT[6], dst=VIP[6]) / IPv6ExtHdrDestOpt() / TCP(sport=40000, dport=80)
    for outer, inner in itertools.product((4, 6), (long4, long6)):
        done = backend.run("uplink_in", within(outer, inner), "up0")
        assert (done.reason, done.packet[TCP].dport) == ("pass_dsr", 8080)
        assert bytes(done.packet) == bytes(with_right_checksums(done.packet))


@pytest.mark.parametrize(("outer", "inner", "reason", "mark"), [
    (3, 2, "pass_dsr", 3), (3, 1, "pass_dsr", 3), (3, 3, "pass_dsr", 3), (3, 0, "drop_ecn", 0),
    (2, 2, "pass_dsr", 2), (0, 1, "pass_dsr", 1), (1, 0, "pass_dsr", 0),
])  # fmt: skip
@pytest.mark.parametrize(("family", "payload"), FAMILIES)
def test_congestion(backend: Harness, family: int, payload: int, outer: int, inner: int, reason: str, mark: int) -> None:
    """Congestion marked on the way from the balancer is told to the connection, or the packet is dropped (RFC 6040)."""
    packet = ip(payload, CLIENT[payload], VIP[payload], tos=inner) / TCP(sport=40000, dport=80)
    done = backend.run("uplink_in", within(family, packet, tos=outer), "up0")
    assert done.reason == reason
    if done.verdict == PASS:
        assert (done.packet.tos if payload == 4 else done.packet.tc) & 3 == mark
        assert bytes(done.packet) == bytes(with_right_checksums(done.packet))
    else:
        assert done.verdict == DROP


def answer_options(backend: Harness, family: int, options: Any, flags: str = "SA") -> Packet:
    backend.run("uplink_in", within(4, ip(family, CLIENT[family], VIP[family]) / L4["tcp"]()), "up0")
    answer = ip(family, NODE[family], CLIENT[family]) / TCP(sport=8080, dport=40000, flags=flags, options=options)
    done = backend.run("uplink_out", frame() / answer, "up0")
    assert done.reason == "pass_dsr_answer"
    assert bytes(done.packet) == bytes(with_right_checksums(done.packet))
    return done.packet[TCP]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    "before", [[], [("NOP", None)], [("NOP", None)] * 3, [("WScale", 7)], [("SAckOK", b""), ("Timestamp", (1, 2))]]
)
def test_segment_size(backend: Harness, family: int, before: list[Any]) -> None:
    """A SYN's answer offers no more than fits into the outer header, wherever the option stands; less is left alone."""
    limit = 1480 - (40 if family == 4 else 60)
    for offered, told in ((1460, limit), (limit + 1, limit), (limit, limit), (536, 536)):
        options = answer_options(backend, family, [*before, ("MSS", offered), ("NOP", None)]).options
        assert dict(options)["MSS"] == told


def test_segment_size_of_others(backend: Harness) -> None:
    """Only a SYN's answer is looked at; options that make no sense are left as they are."""
    assert dict(answer_options(backend, 4, [("MSS", 1460)], flags="A").options)["MSS"] == 1460
    for raw in (b"\x03\x00\x05\xb4", b"\x00\x00\x02\x04\x05\xb4\x00\x00", b"\x02\x03\x05\xb4", b"\x01\x01\x01\x02"):
        segment = TCP(sport=8080, dport=40000, flags="SA", dataofs=5 + len(raw) // 4) / Raw(raw)
        backend.run("uplink_in", within(4, inner4(flags="S")), "up0")
        done = backend.run("uplink_out", frame() / IP(src=NODE[4], dst=CLIENT[4]) / segment, "up0")
        assert bytes(done.packet)[-len(raw) :] == raw


def test_fragments(backend: Harness) -> None:
    """Later fragments follow the first one to the listener."""
    first = IP(src=CLIENT[4], dst=VIP[4], id=5, flags="MF") / UDP(sport=40000, dport=80, len=136) / Raw(bytes(64))
    later = IP(src=CLIENT[4], dst=VIP[4], id=5, frag=9, proto=17) / Raw(bytes(64))
    assert backend.run("uplink_in", within(4, first), "up0").packet[UDP].dport == 8080
    done = backend.run("uplink_in", within(4, later), "up0")
    assert (done.reason, done.packet[IP].dst, bytes(done.packet[IP].payload)) == ("pass_dsr", NODE[4], bytes(64))


def test_one_client_port_for_two_frontends(backend: Harness) -> None:
    """Connections that the listener could not tell apart are not mixed: the second one is dropped until the first has ended."""
    row(backend, NODE[4], OTHER_VIP[4], NODE[4])
    other = within(4, IP(src=CLIENT[4], dst=OTHER_VIP[4]) / TCP(sport=40000, dport=80, flags="S"))
    backend.run("uplink_in", within(4, inner4()), "up0")
    done = backend.run("uplink_in", other, "up0")
    assert (done.verdict, done.reason) == (DROP, "drop_dsr_taken")
    (key,) = (key for key, value in backend.rows("tg_flow").items() if dict(value)["kind"] == 6)
    old = dict(backend.rows("tg_flow")[key])
    backend.maps["tg_flow"].put(key, fields(**(old | {"touched": 1, "created": 1, "idle_limit_s": 1})))
    assert backend.run("uplink_in", other, "up0").reason == "pass_dsr"
    assert dict(backend.rows("tg_flow")[key])["addr"] == addr(OTHER_VIP[4])


def test_datagrams_of_two_frontends(backend: Harness) -> None:
    """A datagram's answer goes out as the address that was asked last."""
    row(backend, NODE[4], OTHER_VIP[4], NODE[4], proto=17)
    for vip in (VIP[4], OTHER_VIP[4], VIP[4]):
        backend.run("uplink_in", within(4, IP(src=CLIENT[4], dst=vip) / UDP(sport=40000, dport=80)), "up0")
        answer = frame() / IP(src=NODE[4], dst=CLIENT[4]) / UDP(sport=8080, dport=40000)
        assert backend.run("uplink_out", answer, "up0").packet[IP].src == vip
