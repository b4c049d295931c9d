"""As input: samples of the ring. As output: whole packets, what is said of them, and whether they trigger a ring."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from tidegate.crds.capture import CaptureFilter, CaptureTrigger, PacketCaptureSpec
from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec
from tidegate.datapath.capture.filters import parse
from tidegate.datapath.capture.recording import wanted
from tidegate.datapath.capture.records import NONE, RECEIVED, SENT, Captured, Joiner, Packet
from tidegate.datapath.capture.triggers import fired, unknown
from tidegate.datapath.capture.words import Commenter, Names, backends, frontends
from tidegate.datapath.lowering.lb import backend_key
from tidegate.datapath.order import mapped

REASONS = ("pass_other", "forward_dsr", "forward_dnat_back", "drop_no_backend")
SPEC = LoadBalancerSpec(frontends=[Frontend(address="192.0.2.10", port=80)], backends=[Backend(address="10.9.0.1", port=8080)])
NAMES = Names(
    frontends=frontends([BalancedService(name="web", uid="u", number=1, spec=SPEC)]),
    backends=backends({backend_key(SPEC.backends[0]): 7}),
    reasons=REASONS,
)
PORTS = (40000).to_bytes(2, "big") + (80).to_bytes(2, "big")
FLOW = mapped(ip_address("198.51.100.7")) + mapped(ip_address("192.0.2.10")) + PORTS + bytes([6, 4])


def sample(tap: int, number: int, cpu: int = 0, reason: str = "", **more: int) -> Captured:
    end = {"verdict": 3, "reason": REASONS.index(reason)} if reason else {}
    return Captured(
        tap=tap, packet_id=cpu << 48 | number, time_ns=number, frame=b"x", length=1, captures=1, flow=FLOW, **(end | more)
    )


def joined(*samples: Captured) -> list[Packet]:
    joiner = Joiner()
    return [packet for one in samples for packet in joiner.add(one)] + list(joiner.rest())


def test_two_taps_are_one_packet() -> None:
    """CPUs do not mix, and the first record learns the end."""
    first, other = sample(RECEIVED, 1), sample(RECEIVED, 1, cpu=3)
    left = sample(SENT, 1, reason="forward_dsr", backend=7)
    end = sample(NONE, 1, cpu=3, reason="drop_no_backend")
    sent, dropped = joined(first, other, left, end)
    assert [one.tap for one in sent.records] == [RECEIVED, SENT]
    assert (sent.records[0].verdict, sent.records[0].backend) == (3, 7)
    assert [one.tap for one in dropped.records] == [RECEIVED]
    assert dropped.last.reason == REASONS.index("drop_no_backend")


def test_samples_that_the_ring_lost() -> None:
    """A packet without its end, and one without its beginning, are packets all the same; they are not joined to one."""
    without_end, without_beginning = joined(sample(RECEIVED, 1), sample(SENT, 2, reason="forward_dsr"))
    assert [(one.tap, one.verdict) for one in without_end.records] == [(RECEIVED, None)]
    assert [one.tap for one in without_beginning.records] == [SENT]
    assert [packet.last.packet_id for packet in joined(sample(RECEIVED, 1), sample(RECEIVED, 2))] == [1, 2]


def test_comments() -> None:
    """Filter, virtual address, backend and end, by their names."""
    commenter = Commenter("x", [parse("192.0.2.11"), parse("192.0.2.0/24 tcp/80")], NAMES)
    (packet,) = joined(sample(SENT, 1, reason="forward_dsr", backend=7))
    assert commenter.comments(packet) == (
        "capture x, filter 192.0.2.0/24 tcp :80",
        "VIP 192.0.2.10:80 of LoadBalancer/web",
        "backend 10.9.0.1:8080",
        "sent: dsr",
    )
    (dropped,) = joined(sample(NONE, 1, reason="drop_no_backend"))
    assert commenter.comments(dropped)[2:] == ("dropped: no_backend",)
    (unfinished,) = joined(sample(RECEIVED, 1))
    assert len(commenter.comments(unfinished)) == 2


@pytest.mark.parametrize(
    ("trigger", "reason", "flags", "why"),
    [
        (CaptureTrigger(type="DropReason", reason="lb_no_backend"), "drop_no_backend", 0, "a packet was dropped: no_backend"),
        (CaptureTrigger(type="DropReason", reason="lb_no_route"), "drop_no_backend", 0, ""),
        (CaptureTrigger(type="BackendReset"), "forward_dsr", 0x14, "a reset by the client"),
        (CaptureTrigger(type="BackendReset"), "forward_dnat_back", 0x04, "a reset by the backend"),
        (CaptureTrigger(type="BackendReset"), "forward_dnat_back", 0x12, ""),
        (CaptureTrigger(type="HealthChange"), "forward_dnat_back", 0x04, ""),
    ],
)
def test_triggers(trigger: CaptureTrigger, reason: str, flags: int, why: str) -> None:
    (packet,) = joined(sample(NONE, 1, reason=reason, tcp_flags=flags))
    assert fired([trigger], packet, NAMES) == why


def test_a_reason_that_is_none() -> None:
    """It is refused with those that there are."""
    assert unknown([CaptureTrigger(type="DropReason", reason="lb_no_backend")], NAMES) == ""
    said = unknown([CaptureTrigger(type="DropReason", reason="boredom")], NAMES)
    assert said == "no packet is dropped for 'boredom'; the reasons are lb_no_backend"


def test_what_a_resource_wants() -> None:
    """Both taps and whole frames unless it says otherwise; one filter of ICMP is one for each family."""
    spec = PacketCaptureSpec(filters=[CaptureFilter(protocol="ICMP")])
    assert (wanted(spec).received, wanted(spec).sent, len(wanted(spec).filters)) == (0xFFFF, 0xFFFF, 2)
    short = wanted(msgspec.structs.replace(spec, snapLength=64, taps=["Sent"]))
    assert (short.received, short.sent) == (0, 64)
