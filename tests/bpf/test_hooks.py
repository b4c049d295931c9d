"""What happens at the uplink, at the tunnel, and to what the stack hands over."""

from __future__ import annotations

import socket
import struct

import pytest
from packets import DROP, PASS, REDIRECT, Harness, addr, frame, network, with_right_checksums
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.packet import Raw

from tidegate.datapath.layout import fields

POD4, POD6 = "10.40.1.1", "fd40:0:0:1::1"
WORLD4, WORLD6 = "198.51.100.10", "2001:db8:100::10"
NODE4, NODE6 = "172.30.0.11", "fd30::11"


def begin(node: Harness, family: int, sport: int = 40000) -> None:
    layer = IP(src=POD4, dst=WORLD4) if family == 4 else IPv6(src=POD6, dst=WORLD6)
    assert node.run("pod_out", frame() / layer / UDP(sport=sport, dport=53)).reason == "forward_masquerade"


def flow_port(node: Harness, port: int) -> int:
    """A port as the flow table has it: network order, read as a host integer."""
    return int(struct.unpack("=H", struct.pack("!H", port))[0])


def test_quoted_packet_too_big(node: Harness) -> None:
    """ "Fragmentation needed" about a translated packet reaches the pod, and quotes what the pod sent."""
    begin(node, 4)
    quoted = IP(src=NODE4, dst=WORLD4) / UDP(sport=40000, dport=53)
    error = frame() / IP(src="172.30.0.1", dst=NODE4) / ICMP(type=3, code=4, nexthopmtu=1280) / quoted

    done = node.run("uplink_in", error, "up0")

    assert (done.verdict, done.reason) == (REDIRECT, "forward_icmp_error")
    assert (network(done.packet).dst, done.packet[ICMP].nexthopmtu) == (POD4, 1280)
    inner = IP(bytes(done.packet[ICMP].payload))
    assert (inner.src, inner[UDP].sport) == (POD4, 40000)
    assert bytes(done.packet)[:42] == bytes(with_right_checksums(done.packet))[:42]
    assert inner.chksum == IP(bytes(IP(src=POD4, dst=WORLD4) / UDP(sport=40000, dport=53))).chksum


@pytest.mark.parametrize("error", [ICMPv6PacketTooBig(mtu=1280), ICMPv6DestUnreach(code=4)])
def test_quoted_ipv6(node: Harness, error: object) -> None:
    """ICMPv6 errors are translated likewise, with a right checksum over all of it."""
    begin(node, 6)
    quoted = IPv6(src=NODE6, dst=WORLD6) / UDP(sport=40000, dport=53)
    done = node.run("uplink_in", frame() / IPv6(src="fd30::1", dst=NODE6) / error / quoted, "up0")

    assert (done.reason, network(done.packet).dst) == ("forward_icmp_error", POD6)
    assert bytes(done.packet) == bytes(with_right_checksums(done.packet))


def test_foreign_packets(node: Harness) -> None:
    """What is the node's own passes: other ports, errors about other connections, tunnel packets."""
    begin(node, 4)
    other = frame() / IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=40001)
    assert (node.run("uplink_in", other, "up0").verdict, node.run("uplink_in", other, "up0").reason) == (PASS, "pass_host")
    quoted = IP(src=NODE4, dst=WORLD4) / UDP(sport=1, dport=53)
    error = frame() / IP(src="172.30.0.1", dst=NODE4) / ICMP(type=3, code=4) / quoted
    assert node.run("uplink_in", error, "up0").reason == "pass_host"
    vxlan = frame() / IP(src="172.30.0.12", dst=NODE4) / UDP(sport=5, dport=8472) / Raw(bytes(40))
    assert node.run("uplink_in", vxlan, "up0").reason == "pass_tunnel"


def test_idle_port_is_taken_over(node: Harness) -> None:
    """A port whose flow has been idle for longer than its time is given to the next pod that wants it."""
    begin(node, 4)
    key = fields(src=addr(WORLD4), dst=addr(NODE4), sport=flow_port(node, 53), dport=flow_port(node, 40000), proto=17, dir=1)
    rows = node.rows("tg_flow")
    old = dict(rows[key]) | {"touched": 1, "created": 1}
    node.maps["tg_flow"].put(key, fields(**old))

    other = frame() / IP(src="10.40.1.2", dst=WORLD4) / UDP(sport=40000, dport=53)
    done = node.run("pod_out", other, "pod1")

    assert done.packet[UDP].sport == 40000
    assert dict(node.rows("tg_flow")[key])["addr"] == addr("10.40.1.2")


def test_no_port_left(node: Harness) -> None:
    """With every port of the range in use the packet is dropped, and that is counted."""
    node.put("tg_source", 0, ip4=addr(NODE4), ip6=addr(NODE6), port_min=2000, port_max=2003)
    seen = set()
    for sport in range(4):
        layer = IP(src=POD4, dst=WORLD4) / UDP(sport=3000 + sport, dport=53)
        seen.add(node.run("pod_out", frame() / layer).packet[UDP].sport)
    assert seen == {2000, 2001, 2002, 2003}
    done = node.run("pod_out", frame() / IP(src=POD4, dst=WORLD4) / UDP(sport=3009, dport=53))
    assert (done.verdict, done.reason) == (DROP, "drop_no_port")


@pytest.mark.parametrize("family", [4, 6])
def test_port_of_a_node_socket(node: Harness, family: int) -> None:
    """A pod is not given the tuple of a connection that the node itself has."""
    own, world = (NODE4, WORLD4) if family == 4 else (NODE6, WORLD6)
    with socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM) as held:
        held.bind((own, 40000))
        held.connect((world, 53))
        layer = IP(src=POD4, dst=WORLD4) if family == 4 else IPv6(src=POD6, dst=WORLD6)
        done = node.run("pod_out", frame() / layer / UDP(sport=40000, dport=53))
    assert done.reason == "forward_masquerade"
    assert done.packet[UDP].sport != 40000


def test_node_yields_to_a_pod(node: Harness) -> None:
    """A connection of the node that would have the tuple of a pod's is moved to another port, there and back."""
    begin(node, 4)
    own = frame() / IP(src=NODE4, dst=WORLD4) / UDP(sport=40000, dport=53)
    done = node.run("uplink_out", own, "up0")
    port = done.packet[UDP].sport
    assert (done.reason, network(done.packet).src) == ("forward_masquerade", NODE4)
    assert port != 40000
    back = node.run("uplink_in", frame() / IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=port), "up0")
    assert (back.verdict, back.reason, back.packet[UDP].dport) == (PASS, "pass_host", 40000)
    assert bytes(back.packet) == bytes(with_right_checksums(back.packet))
    theirs = node.run("uplink_in", frame() / IP(src=WORLD4, dst=NODE4) / UDP(sport=53, dport=40000), "up0")
    assert (theirs.reason, network(theirs.packet).dst) == ("forward_back_local", POD4)


def test_native_connection_from_outside(node: Harness) -> None:
    """A client that reaches a pod directly is answered from the pod's own address."""
    syn = frame() / IP(src=WORLD4, dst=POD4) / TCP(sport=5000, dport=80, flags="S")
    assert node.run("uplink_in", syn, "up0").reason == "forward_local_pod"
    answer = frame() / IP(src=POD4, dst=WORLD4) / TCP(sport=80, dport=5000, flags="SA")
    done = node.run("pod_out", answer)
    assert (done.verdict, done.reason, network(done.packet).src, done.mark) == (PASS, "pass_answer", POD4, 0x0F000000)


def test_service_answers_meet_netfilter_again(node: Harness) -> None:
    """What the stack translated goes back through the stack, and only that."""
    translated = frame() / IP(src=POD4, dst="10.40.1.2") / TCP(sport=40000, dport=8080, flags="S")
    answer = frame() / IP(src="10.40.1.2", dst=POD4) / TCP(sport=8080, dport=40000, flags="SA")
    assert node.run("pod_out", answer, "pod1").reason == "forward_local_pod"
    node.run("pod_in", translated, "pod1")
    assert node.run("pod_out", answer, "pod1").reason == "pass_stack_flow"
    other = frame() / IP(src="10.40.1.2", dst=POD4) / TCP(sport=8080, dport=40001, flags="SA")
    assert node.run("pod_out", other, "pod1").reason == "forward_local_pod"


def test_service_with_outside_backend(node: Harness) -> None:
    """A pod's packet that netfilter sent to an address outside leaves with the node's address, not the pod's."""
    done = node.run("uplink_out", frame() / IP(src=POD4, dst=WORLD4) / TCP(sport=40000, dport=80, flags="S"), "up0")
    assert (done.reason, network(done.packet).src) == ("forward_masquerade", NODE4)
    answer = frame() / IP(src=WORLD4, dst=NODE4) / TCP(sport=80, dport=40000, flags="SA")
    back = node.run("uplink_in", answer, "up0")
    assert (back.verdict, back.reason, network(back.packet).dst) == (PASS, "pass_stack_flow", POD4)


def test_own_packets_at_the_uplink(node: Harness) -> None:
    """The node's own packets pass; what our programs sent passes too and loses its mark."""
    own = frame() / IP(src=NODE4, dst=WORLD4) / TCP()
    assert node.run("uplink_out", own, "up0").reason == "pass_host"
    done = node.run("uplink_out", own, "up0", mark=0x0F000001)
    assert (done.reason, done.mark) == ("pass_sent_by_us", 1)


def test_stack_to_other_node(node: Harness) -> None:
    """The stack's packets to another node's pod are given their tunnel; to a pod range that no node has, they are dropped."""
    assert node.run("tunnel_out", frame() / IP(src=NODE4, dst="10.40.2.5") / TCP(), "tgvxlan").reason == "pass_to_peer"
    assert node.run("tunnel_out", frame() / IP(src=NODE4, dst="10.40.9.5") / TCP(), "tgvxlan").reason == "drop_no_pod"


def test_tunnel_without_key(node: Harness) -> None:
    """A frame that did not come through the tunnel is dropped at its device."""
    done = node.run("tunnel_in", frame() / IP(src="10.40.2.1", dst=POD4) / TCP(), "tgvxlan")
    assert (done.verdict, done.reason) == (DROP, "drop_unknown_vni")
