"""As input: packets and filters. As output: what the taps give. Not faked: programs, maps, perf ring, kernel."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import load_capture
import pytest
from packets import frame
from pcapng_reader import read_blocks
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6

from tidegate.datapath import libbpf
from tidegate.datapath.capture.filters import MOST_SHAPES, Filter, Wanted, network, parse
from tidegate.datapath.capture.reader import Reader, wall_offset_ns
from tidegate.datapath.capture.records import Captured, head, record
from tidegate.datapath.programs import Loaded
from tidegate.datapath.tables.capture import CaptureFilters, read_counts

XDP_DROP, XDP_TX = 1, 3


@dataclass
class Taps:
    """The program with the taps, its filters, and what came out of the ring."""

    program: int
    loaded: Loaded
    filters: CaptureFilters
    reader: Reader | None = None
    got: list[Captured] = field(default_factory=list)

    def send(self, packet: bytes) -> tuple[int, bytes]:
        verdict, out, _, _ = libbpf.prog_test_run(self.program, packet)
        return verdict, out

    def take(self) -> list[Captured]:
        """What was captured since the last time."""
        assert self.reader is not None
        self.reader.drain()
        taken = list(self.got)
        self.got.clear()
        return taken


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    if os.geteuid():
        pytest.skip("needs root")
    with load_capture.loaded(tmp_path_factory.mktemp("state")) as found:
        yield found


@pytest.fixture
def taps(loaded: Loaded) -> Iterator[Taps]:
    with libbpf.opened(libbpf.obj_get(loaded.programs / "tapped")) as program:
        taps = Taps(program, loaded, CaptureFilters(loaded.maps, loaded.layout))
        taps.reader = Reader(loaded.maps, loaded.layout, taps.got.append)
        yield taps
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
    assert (verdict, received.tap, left.tap) == (XDP_TX, 0, 1)
    assert (received.frame, left.frame) == (sent, out)
    assert (received.length, left.length) == (len(sent), len(sent) - 20)
    assert received.packet_id == left.packet_id
    assert (received.captures, left.captures) == (1 << 3, 1 << 3)
    assert (received.service, received.backend, left.service, left.backend) == (0, 0, 7, 9)
    assert before < received.time_ns <= left.time_ns < time.monotonic_ns()
    taps.send(packet())
    assert {one.packet_id for one in taps.take()}.isdisjoint({received.packet_id})


def test_nothing_is_captured_without_a_filter(taps: Taps) -> None:
    """Filters that match nothing, and none at all, give nothing and change no verdict."""
    assert taps.send(packet())[0] == XDP_TX
    taps.filters.apply({0: wants("192.0.2.11"), 1: wants("tcp/81"), 2: wants("udp/80"), 3: wants("2001:db8::/32")})
    assert taps.send(packet())[0] == XDP_TX
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
        *(("::/0", 2), ("2001:db8:1::/48", 2), ("from 2001:db8:100::7 2001:db8:1::10 tcp/80", 2), ("tcp/80", 2)),
        *(("0.0.0.0/0", 0), ("2001:db8:2::/48", 0), ("from 2001:db8:100::8", 0), ("tcp/81", 0)),
    ],
)
def test_ipv6(taps: Taps, text: str, records: int) -> None:
    """The same for IPv6; a filter with a prefix is of the prefix's family."""
    taps.filters.apply({0: wants(text)})
    taps.send(bytes(frame() / IPv6(src="2001:db8:100::7", dst="2001:db8:1::10") / TCP(sport=40000, dport=80) / (b"x" * 40)))
    assert len(taps.take()) == records


def test_snap_length_and_single_taps(taps: Taps) -> None:
    """Only the first bytes are kept, of the taps that are wanted; the whole length is told."""
    taps.filters.apply({0: wants("tcp/80", received=54, sent=0), 1: wants("tcp/81", received=0, sent=30)})
    taps.send(packet())
    taps.send(packet(81))
    received, left = taps.take()
    assert (received.tap, received.frame, received.length) == (0, packet()[:54], len(packet()))
    assert (left.tap, len(left.frame), left.length) == (1, 30, len(packet()) - 20)


def test_dropped_packet_has_one_record(taps: Taps) -> None:
    """A packet that does not leave is seen once, and the next one is not taken for it."""
    taps.filters.apply({0: wants("tcp/80")})
    assert taps.send(packet(flags="R"))[0] == XDP_DROP
    assert taps.send(packet(81))[0] == XDP_TX
    assert [one.tap for one in taps.take()] == [0]


def test_what_an_earlier_capture_left_behind_is_not_sent(taps: Taps) -> None:
    """Captures that end and begin between two packets do not join the first one's arrival to the second one's leaving."""
    taps.filters.apply({0: wants("tcp/80")})
    taps.send(packet(flags="R"))
    taps.filters.apply({})
    taps.filters.apply({0: wants("tcp/80")})
    assert [one.tap for one in taps.take()] == [0]
    assert taps.send(packet(flags="U"))[0] == XDP_TX
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
    big = bytes(frame() / IP(src="198.51.100.7", dst="192.0.2.10") / TCP(dport=80) / (b"x" * 1400))
    matched, refused = read_counts(taps.loaded.maps, taps.loaded.layout)
    assert {taps.send(big)[0] for _ in range(300)} == {XDP_TX}
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
