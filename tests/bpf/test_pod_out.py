"""What happens to the packets of a pod."""

from __future__ import annotations

import sys

import pytest
from packets import DROP, PASS, REDIRECT, Harness, addr, frame, network, with_right_checksums
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from tidegate.datapath.layout import fields

POD4, POD6 = "10.40.1.1", "fd40:0:0:1::1"
WORLD4, WORLD6 = "198.51.100.10", "2001:db8:100::10"

L4 = {"tcp": lambda: TCP(sport=40000, dport=80, flags="S"), "udp": lambda: UDP(sport=40000, dport=53) / Raw(b"x" * 11)}


def v4(dst: str, payload: Packet, src: str = POD4) -> Packet:
    return frame() / IP(src=src, dst=dst, ttl=64) / payload


def v6(dst: str, payload: Packet, src: str = POD6) -> Packet:
    return frame() / IPv6(src=src, dst=dst, hlim=64) / payload


@pytest.mark.parametrize("proto", L4)
@pytest.mark.parametrize("family", [4, 6])
def test_masquerade(node: Harness, family: int, proto: str) -> None:
    """A pod without a policy leaves the cluster with the node's address, its port, right checksums and one hop less."""
    packet = v4(WORLD4, L4[proto]()) if family == 4 else v6(WORLD6, L4[proto]())

    done = node.run("pod_out", packet)

    assert (done.verdict, done.reason) == (REDIRECT, "forward_masquerade")
    assert network(done.packet).src == ("172.30.0.11" if family == 4 else "fd30::11")
    assert (done.packet[proto.upper()].sport, done.packet[proto.upper()].dport) == (40000, packet[proto.upper()].dport)
    assert (done.packet.ttl if family == 4 else done.packet.hlim) == 63
    assert bytes(done.packet) == bytes(with_right_checksums(done.packet))


def test_masquerade_echo(node: Harness) -> None:
    """An echo request is translated by its id, in both families."""
    for packet in (v4(WORLD4, ICMP(id=77)), v6(WORLD6, ICMPv6EchoRequest(id=77))):
        done = node.run("pod_out", packet)
        assert done.reason == "forward_masquerade"
        assert network(done.packet).payload.id == 77
        assert bytes(done.packet) == bytes(with_right_checksums(done.packet))


def test_answer_comes_back(node: Harness) -> None:
    """The answer to a translated packet reaches the pod with the pod's address and port."""
    node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="S")))

    answer = frame() / IP(src=WORLD4, dst="172.30.0.11", ttl=60) / TCP(sport=80, dport=40000, flags="SA")
    done = node.run("uplink_in", answer, "up0")

    assert (done.verdict, done.reason) == (REDIRECT, "forward_back_local")
    assert (network(done.packet).dst, done.packet[TCP].dport) == (POD4, 40000)
    assert bytes(done.packet) == bytes(with_right_checksums(done.packet))


@pytest.mark.parametrize("family", [4, 6])
def test_taken_port(node: Harness, family: int) -> None:
    """A second pod with the same port to the same server gets another port, and each answer finds its own pod."""
    world = WORLD4 if family == 4 else WORLD6
    build = v4 if family == 4 else v6
    other = "10.40.1.2" if family == 4 else "fd40:0:0:1::2"
    node.run("pod_out", build(world, TCP(sport=40000, dport=80, flags="S")))

    done = node.run("pod_out", build(world, TCP(sport=40000, dport=80, flags="S"), src=other), "pod1")

    port = done.packet[TCP].sport
    assert port != 40000
    layer = IP(src=world, dst="172.30.0.11") if family == 4 else IPv6(src=world, dst="fd30::11")
    back = node.run("uplink_in", frame() / layer / TCP(sport=80, dport=port, flags="SA"), "up0")
    assert (network(back.packet).dst, back.packet[TCP].dport) == (other, 40000)


def with_policy(node: Harness, gateway: str = "172.30.0.12", **path: object) -> None:
    import socket

    index = socket.if_nametoindex("pod0")
    node.put("tg_endpoint", index, ip4=addr(POD4), ip6=addr(POD6), born=1, policy_class=9)
    for prefix, length in ((WORLD4, 96 + 24), (WORLD6, 64)):
        raw = bytearray(addr(prefix))
        raw[length // 8 :] = bytes(16 - length // 8)
        node.put("tg_egress", fields(prefixlen=32 + length, policy_class=9, addr=bytes(raw)), number=7)
    members = (addr(gateway) if gateway else bytes(16)).ljust(1024, b"\0")
    node.put("tg_path", 7, gateway=members, number=(7).to_bytes(4, sys.byteorder), **path)


@pytest.mark.parametrize("family", [4, 6])
def test_policy_to_gateway(node: Harness, family: int) -> None:
    """A selected packet goes untranslated into the tunnel, from its first packet on."""
    with_policy(node)

    done = node.run("pod_out", v4(WORLD4, L4["tcp"]()) if family == 4 else v6(WORLD6, L4["tcp"]()))

    assert (done.verdict, done.reason) == (REDIRECT, "forward_gateway")
    assert network(done.packet).src == (POD4 if family == 4 else POD6)
    assert done.mark == 0x0F000000


def test_policy_on_own_node(node: Harness) -> None:
    """A gateway on the pod's own node translates at once to the egress address."""
    with_policy(node, gateway="")
    node.put("tg_source", 7, ip4=addr("172.30.0.200"), ip6=addr("fd30::200"), port_min=1024, port_max=65535)

    done = node.run("pod_out", v4(WORLD4, L4["tcp"]()))

    assert (done.reason, network(done.packet).src) == ("forward_snat", "172.30.0.200")
    assert node.run("pod_out", v6(WORLD6, L4["tcp"]())).packet[IPv6].src == "fd30::200"


def test_policy_elsewhere(node: Harness) -> None:
    """A destination that no policy names is masqueraded; one inside the cluster is never caught."""
    with_policy(node)
    assert node.run("pod_out", v4("203.0.113.10", L4["tcp"]())).reason == "forward_masquerade"
    assert node.run("pod_out", v4("10.40.2.9", L4["tcp"]())).reason == "forward_tunnel"
    assert node.run("pod_out", v4("172.30.0.12", L4["tcp"]())).reason == "forward_tunnel"


def test_no_gateway(node: Harness) -> None:
    """Without a gateway the packet is dropped, or leaves with the node's address if the policy allows it."""
    with_policy(node, slot=b"\xff" * 64)
    assert node.run("pod_out", v4(WORLD4, L4["tcp"]())).reason == "drop_no_gateway"
    with_policy(node, slot=b"\xff" * 64, flags=1)
    assert node.run("pod_out", v4(WORLD4, L4["tcp"]())).reason == "forward_masquerade"


def test_connection_keeps_its_path(node: Harness) -> None:
    """A connection begun before the policy keeps the node's address; one begun after it takes the gateway."""
    node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="S")))
    with_policy(node)
    assert node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="A"))).reason == "forward_masquerade"
    assert node.run("pod_out", v4(WORLD4, TCP(sport=40001, dport=80, flags="S"))).reason == "forward_gateway"
    assert node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="S"))).reason == "forward_gateway"


def test_reused_address(node: Harness) -> None:
    """Flows of an earlier owner of the address do not bind the new pod."""
    import socket
    import time

    node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="S")))
    with_policy(node)
    born = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 10**9
    index = socket.if_nametoindex("pod0")
    node.put("tg_endpoint", index, ip4=addr(POD4), ip6=addr(POD6), born=born, policy_class=9)
    assert node.run("pod_out", v4(WORLD4, TCP(sport=40000, dport=80, flags="A"))).reason == "forward_gateway"


def test_held(node: Harness) -> None:
    """A pod whose policies are unknown reaches the cluster but not the world."""
    import socket

    node.put("tg_endpoint", socket.if_nametoindex("pod0"), ip4=addr(POD4), ip6=addr(POD6), born=1, flags=1)
    assert node.run("pod_out", v4(WORLD4, L4["tcp"]())).reason == "drop_held"
    assert node.run("pod_out", v4("10.40.1.2", L4["tcp"]())).reason == "forward_local_pod"
    assert node.run("pod_out", v4("10.96.0.1", L4["tcp"]())).reason == "pass_stack_range"


REFUSED = {
    "spoofed": (v4(WORLD4, TCP(), src="10.40.1.2"), "drop_spoofed"),
    "spoofed-ipv6": (v6(WORLD6, TCP(), src="fd40:0:0:1::2"), "drop_spoofed"),
    "multicast": (v4("224.0.0.1", UDP()), "drop_link_local"),
    "link-local": (v6("fe80::1", UDP(), src="fe80::2"), "drop_link_local"),
    "arp": (frame() / ARP(pdst="169.254.1.1"), "drop_not_ip"),
    "no-such-pod": (v4("10.40.9.9", TCP()), "drop_no_pod"),
    "sctp": (frame() / IP(src=POD4, dst=WORLD4, proto=132) / Raw(bytes(12)), "drop_unknown_protocol"),
    "bad-ihl": (frame() / IP(src=POD4, dst=WORLD4, ihl=3) / TCP(), "drop_malformed"),
    "ipv6-in-ipv4-frame": (frame(type=0x800) / IPv6(src=POD6, dst=WORLD6) / TCP(), "drop_malformed"),
    "short-tcp": (frame() / IP(src=POD4, dst=WORLD4, proto=6) / Raw(bytes(8)), "drop_malformed"),
    "later-fragment": (frame() / IP(src=POD4, dst=WORLD4, proto=17, frag=100) / Raw(bytes(8)), "drop_fragment"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(node: Harness, name: str) -> None:
    """Each of these is dropped under its own reason."""
    packet, reason = REFUSED[name]
    done = node.run("pod_out", packet)
    assert (done.verdict, done.reason) == (DROP, reason)


def test_expired_hop_count(node: Harness) -> None:
    """A packet on its last hop goes to the stack, which tells the pod."""
    packet = frame() / IP(src=POD4, dst=WORLD4, ttl=1) / UDP()
    assert (node.run("pod_out", packet).verdict, node.run("pod_out", packet).reason) == (PASS, "pass_ttl")


def test_fragments(node: Harness) -> None:
    """Later fragments carry the same translated address as the first one."""
    first = frame() / IP(src=POD4, dst=WORLD4, id=5, flags="MF") / UDP(sport=40000, dport=53) / Raw(bytes(64))
    later = frame() / IP(src=POD4, dst=WORLD4, id=5, frag=9, proto=17) / Raw(bytes(64))
    assert node.run("pod_out", first).packet[IP].src == "172.30.0.11"
    done = node.run("pod_out", later)
    assert (done.reason, done.packet[IP].src) == ("forward_masquerade", "172.30.0.11")
