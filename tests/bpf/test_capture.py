"""As input: packets and filters. As output: what the taps give. Not faked: programs, maps, perf ring, kernel."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from balancer import DNAT, DROP, PASS, TCP_, TX, Balancer
from packets import addr, frame
from pcapng_reader import read_blocks
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether

from tidegate.datapath.capture.filters import MOST_SHAPES, Filter, Wanted, network, parse
from tidegate.datapath.capture.reader import Reader, wall_offset_ns
from tidegate.datapath.capture.records import NONE, RECEIVED, SENT, Captured, head, record
from tidegate.datapath.layout import fields
from tidegate.datapath.programs import Loaded
from tidegate.datapath.tables.capture import CaptureFilters, read_counts


@dataclass
class Taps:
    """A balancer, the filters, and what came out of the ring."""

    balancer: Balancer
    loaded: Loaded
    filters: CaptureFilters
    reader: Reader | None = None
    got: list[Captured] = field(default_factory=list)

    def send(self, packet: bytes) -> tuple[int, bytes]:
        done = self.balancer.frame(packet)
        return done.verdict, bytes(done.packet)

    def take(self) -> list[Captured]:
        """What was captured since the last time."""
        assert self.reader is not None
        self.reader.drain()
        taken = list(self.got)
        self.got.clear()
        return taken

    def why(self, captured: Captured) -> str:
        """What became of a packet."""
        return self.loaded.layout.reasons[captured.reason]


@pytest.fixture
def taps(balancer: Balancer, loaded_balancer: Loaded) -> Iterator[Taps]:
    taps = Taps(balancer, loaded_balancer, CaptureFilters(loaded_balancer.maps, loaded_balancer.layout))
    taps.filters.apply({})
    taps.reader = Reader(loaded_balancer.maps, loaded_balancer.layout, taps.got.append)
    # Each CPU has a ring of its own, and only within one are records in order.
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    yield taps
    os.sched_setaffinity(0, everywhere)
    taps.filters.close()
    taps.reader.close()


def packet(dport: int = 80, source: str = "198.51.100.7", flags: str = "S") -> bytes:
    return bytes(frame() / IP(src=source, dst="192.0.2.10") / TCP(sport=40000, dport=dport, flags=flags) / (b"x" * 100))


def wants(*texts: str, received: int = 0xFFFF, sent: int = 0xFFFF) -> Wanted:
    return Wanted(filters=tuple(parse(text) for text in texts), received=received, sent=sent)


def test_both_taps_with_one_number(taps: Taps) -> None:
    """A packet is seen as it came and as it left, and both records have the same number."""
    taps.filters.apply({3: wants("192.0.2.10 tcp/80")})
    sent = packet()
    before = time.monotonic_ns()
    verdict, out = taps.send(sent)
    received, left = taps.take()
    assert (verdict, received.tap, left.tap) == (TX, RECEIVED, SENT)
    assert (received.frame, left.frame) == (sent, out)
    assert (received.length, left.length) == (len(sent), len(sent) + 20)
    assert received.packet_id == left.packet_id
    assert (received.captures, left.captures) == (1 << 3, 1 << 3)
    assert (received.service, received.backend, left.service, left.backend) == (1, 0, 1, 1)
    assert (received.verdict, left.verdict, taps.why(left), left.tcp_flags) == (None, TX, "forward_dsr", 2)
    assert before < received.time_ns <= left.time_ns < time.monotonic_ns()
    taps.send(packet())
    assert {one.packet_id for one in taps.take()}.isdisjoint({received.packet_id})


def test_nothing_is_captured_without_a_filter(taps: Taps) -> None:
    """Filters that match nothing, and none at all, give nothing and change no verdict."""
    assert taps.send(packet())[0] == TX
    taps.filters.apply({0: wants("192.0.2.11"), 1: wants("tcp/81"), 2: wants("udp/80"), 3: wants("2001:db8::/32")})
    assert taps.send(packet())[0] == TX
    assert taps.take() == []


@pytest.mark.parametrize(
    "text",
    [
        *("192.0.2.10", "192.0.2.0/24", "0.0.0.0/0", "from 198.51.100.0/25", "from :40000", "tcp", "tcp/80", ":80"),
        "from 198.51.100.7 from :40000 192.0.2.10 tcp/80",
    ],
)
def test_wildcards(taps: Taps, text: str) -> None:
    """What a filter does not say, it does not compare; what it says, it does."""
    taps.filters.apply({0: wants(text)})
    taps.send(packet())
    assert len(taps.take()) == 2


@pytest.mark.parametrize(
    "text",
    [
        *(
            "192.0.2.11",
            "192.0.3.0/24",
            "from 0.0.0.0/1",
            "from 198.51.100.128/25",
            "from :40001",
            "udp",
            "tcp/81",
            "2001:db8::/32",
        ),
        "from 198.51.100.7 from :40000 192.0.2.10 tcp/81",
    ],
)
def test_one_wrong_word_captures_nothing(taps: Taps, text: str) -> None:
    taps.filters.apply({0: wants(text)})
    taps.send(packet())
    assert taps.take() == []


@pytest.mark.parametrize(
    ("text", "records"),
    [
        *(("::/0", 2), ("2001:db8:10::/48", 2), ("from 2001:db8:100::7 2001:db8:10::10 tcp/80", 2), ("tcp/80", 2)),
        *(("0.0.0.0/0", 0), ("2001:db8:2::/48", 0), ("from 2001:db8:100::8", 0), ("tcp/81", 0)),
    ],
)
def test_ipv6(taps: Taps, text: str, records: int) -> None:
    """The same for IPv6; a filter with a prefix is of the prefix's family."""
    taps.filters.apply({0: wants(text)})
    taps.send(bytes(frame() / IPv6(src="2001:db8:100::7", dst="2001:db8:10::10") / TCP(sport=40000, dport=80) / (b"x" * 40)))
    assert len(taps.take()) == records


def test_snap_length_and_single_taps(taps: Taps) -> None:
    """Only the first bytes are kept, of the taps that are wanted; the whole length, and what became of the packet, are told."""
    for number in (81, 82):
        taps.balancer.vip("192.0.2.10", number, TCP_, service=1)
    taps.filters.apply({0: wants("tcp/81", received=54, sent=0), 1: wants("tcp/82", received=0, sent=30)})
    taps.send(packet(81))
    taps.send(packet(82))
    received, end, left = taps.take()
    assert (received.tap, received.frame, received.length) == (RECEIVED, packet(81)[:54], len(packet()))
    assert (end.tap, end.frame, end.packet_id, end.verdict) == (NONE, b"", received.packet_id, TX)
    assert (left.tap, len(left.frame), left.length) == (SENT, 30, len(packet()) + 20)


def test_dropped_packet_has_its_reason(taps: Taps) -> None:
    """A packet that does not leave is seen once, with why, and the next one is not taken for it."""
    taps.filters.apply({0: wants("192.0.2.10")})
    assert taps.send(packet(81))[0] == DROP
    received, end = taps.take()
    assert (received.tap, received.frame, end.tap, end.verdict) == (RECEIVED, packet(81), NONE, DROP)
    assert (received.packet_id, taps.why(end)) == (end.packet_id, "drop_no_frontend")
    assert taps.send(bytes(frame() / IP(dst="203.0.113.99") / TCP(dport=80)))[0] == PASS
    assert taps.take() == []


def test_source_range_and_backend(taps: Taps) -> None:
    """A packet that is dropped later knows as much as was found until then."""
    taps.filters.apply({0: wants("192.0.2.10")})
    taps.balancer.service(1, [0] * 7)
    taps.send(packet())
    assert [taps.why(one) for one in taps.take() if one.verdict is not None] == ["drop_no_backend"]
    taps.balancer.service(1, [1] * 7, source4=addr("0.0.0.0"))
    taps.send(packet())
    (end,) = [one for one in taps.take() if one.verdict is not None]
    assert (taps.why(end), end.service, end.backend) == ("drop_no_source", 1, 1)


def test_what_is_to_no_virtual_address_is_not_recorded(taps: Taps) -> None:
    """However wide the filter: the machine's own connections are nobody's business here."""
    taps.filters.apply({0: wants("0.0.0.0/0")})
    assert taps.send(bytes(frame() / IP(src="198.51.100.7", dst="172.30.0.11") / TCP(dport=22)))[0] == PASS
    assert taps.take() == []


def test_ping_fragment_tag_and_error(taps: Taps) -> None:
    """Packets that are not plain: a ping answered, a later fragment with its first one's ports, a tag, an error of a router."""
    taps.filters.apply({0: wants("192.0.2.10 icmp"), 1: wants("192.0.2.10 udp/80"), 2: wants("192.0.2.10 tcp/80")})
    source = {"src": "198.51.100.7", "dst": "192.0.2.10"}
    ping = bytes(frame() / IP(**source) / ICMP() / b"ping")
    taps.send(ping)
    received, left = taps.take()
    assert (received.frame, Ether(left.frame)[IP].dst, taps.why(left)) == (ping, "198.51.100.7", "forward_echo")
    udp = bytes(UDP(sport=4000, dport=80) / (b"y" * 64))
    taps.send(bytes(frame() / IP(**source, id=9, flags="MF", proto=17) / udp[:40]))
    later = bytes(frame() / IP(**source, id=9, frag=5, proto=17) / udp[40:])
    taps.send(later)
    assert [one.captures for one in taps.take()] == [2] * 4
    tagged = bytes(frame() / Dot1Q(vlan=7) / IP(**source) / TCP(sport=4000, dport=80))
    taps.send(tagged)
    assert taps.take()[0].frame == tagged
    taps.send(packet(flags="A"))
    taps.take()
    quoted = IP(src="192.0.2.10", dst="198.51.100.7") / TCP(sport=80, dport=40000)
    error = bytes(frame() / IP(src="203.0.113.1", dst="192.0.2.10") / ICMP(type=3, code=4) / quoted)
    taps.send(error)
    received, left = taps.take()
    assert (received.frame, received.captures, taps.why(left)) == (error, 4, "forward_dsr_error")


def test_answers_of_translated_connections(taps: Taps) -> None:
    """Both ways of a connection match as the client sees it, and both name the backend."""
    taps.balancer.put("tg_lb_config", 0, icmp_rate=1000, nat4=addr("172.30.0.11"), port_min=10000, port_max=20000)
    taps.balancer.vip("192.0.2.20")
    taps.balancer.vip("192.0.2.20", 80, TCP_, service=2)
    taps.balancer.backend(2, "10.9.0.2", 8080)
    taps.balancer.service(2, [2] * 7, flags=DNAT)
    taps.filters.apply({0: wants("192.0.2.20"), 1: wants("from 192.0.2.20 from :80")})
    _, out = taps.send(bytes(frame() / IP(src="198.51.100.7", dst="192.0.2.20") / TCP(sport=40000, dport=80, flags="S")))
    assert [(one.captures, one.backend) for one in taps.take()] == [(1, 0), (1, 2)]
    there = Ether(out)
    back = frame() / IP(src="10.9.0.2", dst="172.30.0.11") / TCP(sport=8080, dport=there[TCP].sport, flags="RA")
    _, answer = taps.send(bytes(back))
    received, left = taps.take()
    assert (received.frame, left.frame, received.captures) == (bytes(back), answer, 2)
    assert (left.backend, left.tcp_flags, taps.why(left)) == (2, 0x14, "forward_dnat_back")


def test_what_an_earlier_capture_left_behind_is_not_sent(taps: Taps) -> None:
    """Captures that end between two taps of a packet do not join its arrival to another one's leaving."""
    taps.filters.apply({0: wants("tcp/80")})
    ((key, config),) = taps.balancer.rows("tg_capture_config").items()
    left_behind = {"event.captures": 1, "is_received": 1, "snaplen": struct.pack("=2I", 99, 99)}
    other = bytes(frame() / IP(dst="203.0.113.99") / TCP(dport=443))
    assert key == ()
    for generation, records in ((dict(config)["generation"], 1), (int(dict(config)["generation"]) - 1, 0)):
        raw = taps.loaded.layout.maps["tg_capture_seen"].value.pack(fields(generation=generation, **left_behind))
        taps.balancer.set_on_every_cpu("tg_capture_seen", raw)
        # Not received through the tap, as if the captures had begun in its middle.
        taps.balancer.frame(bytes(frame(type=0x0806)))
        assert len(taps.take()) == records
        taps.send(other)
        assert taps.take() == []


def test_captures_overlap(taps: Taps) -> None:
    """A packet that several captures want is recorded once and names all of them."""
    taps.filters.apply({0: wants("192.0.2.10"), 5: wants("tcp/80"), 63: wants("192.0.2.10", received=10)})
    taps.send(packet())
    assert [one.captures for one in taps.take()] == [1 | 1 << 5 | 1 << 63] * 2


def test_every_slot(taps: Taps) -> None:
    """The last of as many shapes as there is room for is asked like the first."""
    others = [Filter(source=network(f"10.0.0.0/{bits}"), protocol=6) for bits in range(8, 33)]
    others += [Filter(destination=network(f"10.0.0.0/{bits}")) for bits in range(8, 8 + MOST_SHAPES - 1 - len(others))]
    taps.filters.apply({0: Wanted(filters=tuple(others))})
    taps.filters.apply({0: Wanted(filters=tuple(others)), 1: wants("192.0.2.10 tcp/80")})
    taps.send(packet())
    assert [one.captures for one in taps.take()] == [2, 2]


def test_full_ring_costs_records_only(taps: Taps) -> None:
    """When nobody reads, packets go on, and the ring's losses are counted."""
    assert taps.reader is not None
    taps.filters.apply({0: wants("tcp/80")})
    taps.send(packet())
    taps.take()
    big = bytes(frame() / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(dport=80) / (b"x" * 1350))
    matched, refused = read_counts(taps.loaded.maps, taps.loaded.layout)
    assert {taps.send(big)[0] for _ in range(300)} == {TX}
    now_matched, now_refused = read_counts(taps.loaded.maps, taps.loaded.layout)
    assert now_matched - matched == 300
    got = taps.take()
    taps.send(packet())
    taps.take()
    assert now_refused - refused == 600 - len(got)
    assert now_refused > refused
    assert taps.reader.lost == now_refused - refused


def test_reader_reports_its_own_failure(taps: Taps) -> None:
    """An error while a packet is handed over is raised where the reader was asked, not lost in a callback."""
    assert taps.reader is not None
    taps.reader.close()

    def refuse(_: Captured) -> None:
        raise ZeroDivisionError

    taps.reader = Reader(taps.loaded.maps, taps.loaded.layout, refuse)
    taps.filters.apply({0: wants("tcp/80")})
    taps.send(packet())
    with pytest.raises(ZeroDivisionError):
        taps.reader.poll(1)


def test_file_of_a_capture(taps: Taps, tmp_path: Path) -> None:
    """From filter to file: the packets that were sent are in it, in their order, with the time of day."""
    taps.filters.apply({0: wants("tcp/80")})
    offset = wall_offset_ns(time.monotonic_ns, time.time_ns)
    before = time.time_ns()
    sent = [packet(source=f"198.51.100.{number}") for number in range(20)]
    out = [taps.send(one)[1] for one in sent]
    file = tmp_path / "x.pcapng"
    file.write_bytes(head("test") + b"".join(record(one, offset) for one in taps.take()))
    blocks = [block for block in read_blocks(file.read_bytes()) if block.kind == 6]
    heads = [struct.unpack_from("<IIIII", block.body) for block in blocks]
    assert [block.body[20 : 20 + kept] for block, (*_, kept, _) in zip(blocks, heads, strict=True)] == [
        one for pair in zip(sent, out, strict=True) for one in pair
    ]
    times = [high << 32 | low for _, high, low, _, _ in heads]
    assert times == sorted(times)
    assert before - 1_000_000 < times[0] <= times[-1] < time.time_ns() + 1_000_000
