"""As input: packets. As output: what is kept, written and counted. Not faked: files and pipes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from pcapng_reader import read_blocks

from tidegate.datapath.capture.records import Captured, Packet, head, record
from tidegate.datapath.capture.ring import Ring
from tidegate.datapath.capture.sink import End, Limits, Sink

HEAD = head("test")
SECOND = 1_000_000_000


def captured(number: int, time_ns: int = 0, size: int = 20) -> Captured:
    return Captured(tap=0, packet_id=number, time_ns=time_ns, frame=bytes([number % 256]) * size, length=size, captures=1)


def block(number: int) -> bytes:
    return record(captured(number), 0)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "x.pcapng", os.O_RDWR | os.O_CREAT, 0o600)
    yield fd
    os.close(fd)


def packets_in(fd: int) -> int:
    return sum(one.kind == 6 for one in read_blocks(os.pread(fd, 1 << 20, 0)))


@pytest.mark.parametrize(
    ("limits", "end", "kept"),
    [
        (Limits(packets=3), End.PACKETS, 3),
        (Limits(bytes=2 * len(block(0))), End.BYTES, 2),
        (Limits(seconds=4), End.TIME, 4),
        (Limits(quota=len(HEAD) + len(block(0)) + 1), End.QUOTA, 1),
        (Limits(quota=0), End.QUOTA, 0),
        (Limits(), None, 9),
    ],
)
@pytest.mark.parametrize("flush_often", [True, False])
def test_limits(file: int, limits: Limits, end: End | None, kept: int, flush_often: bool) -> None:
    """A recording ends at its first limit, says which, and the file holds just the packets before."""
    sink = Sink(file, HEAD, limits, begun_ns=0)
    for number in range(9):
        sink.offer(block(number), number * SECOND)
        if flush_often:
            sink.flush()
    sink.flush()
    assert (sink.end, sink.written, packets_in(file), sink.lost) == (end, kept, kept, 0)


def test_time_ends_without_packets(file: int) -> None:
    """A capture of which nothing matches ends all the same."""
    sink = Sink(file, HEAD, Limits(seconds=1), begun_ns=5 * SECOND)
    sink.tick(6 * SECOND - 1)
    assert sink.end is None
    sink.tick(6 * SECOND)
    assert sink.end is End.TIME


def test_full_disk_leaves_a_readable_file(file: int) -> None:
    """When the disk is full, that is said, what waits is counted as lost, and the file ends with a whole block."""
    room = len(HEAD) + len(block(0)) * 2 + 10

    def write(fd: int, raw: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = os.write(fd, raw[:room])
        room -= done
        return done

    sink = Sink(file, HEAD, Limits(), begun_ns=0, write=write)
    assert [sink.offer(block(number), 0) for number in range(5)] == [True] * 5
    assert sink.flush()
    assert (sink.end, sink.written, sink.lost, packets_in(file)) == (End.DISK_FULL, 2, 3, 2)
    assert not sink.offer(block(6), 0)
    assert sink.finish(b"never written")
    assert packets_in(file) == 2


def test_slow_consumer_is_counted_and_gets_whole_blocks() -> None:
    """A pipe that nobody empties costs packets, not memory and not blocks cut in half."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)
    sink = Sink(writer, HEAD, Limits(), begun_ns=0, most_waiting=1 << 16)
    large = record(captured(1, size=60000), 0)
    for _ in range(5):
        sink.offer(large, 0)
        assert not sink.flush() or sink.written == 1
    assert (sink.lost > 0, sink.end) == (True, None)
    got = b""
    while not sink.flush():
        got += os.read(reader, 1 << 20)
    got += os.read(reader, 1 << 20)
    assert [len(one.body) for one in read_blocks(got) if one.kind == 6] == [60020] * sink.written
    assert sink.written + sink.lost == 5
    os.close(reader)
    sink.offer(large, 0)
    sink.flush()
    assert sink.end is End.CONSUMER_GONE
    os.close(writer)


def test_other_errors_are_raised(tmp_path: Path) -> None:
    """A file that cannot be written for another reason is a bug or a broken disk, and is not hidden."""
    (tmp_path / "x").touch()
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    sink = Sink(fd, HEAD, Limits(), begun_ns=0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sink.flush()
    os.close(fd)


def test_finish_adds_the_tail(file: int) -> None:
    """The account of what was lost is the last block."""
    sink = Sink(file, HEAD, Limits(), begun_ns=0)
    sink.offer(block(1), 0)
    assert sink.finish(block(2))
    assert (sink.end, packets_in(file), sink.written) == (End.ASKED, 2, 1)


def packet(number: int, time_ns: int = 0, size: int = 20) -> Packet:
    return Packet(records=(captured(number, time_ns, size),))


def test_ring_keeps_the_last_packets() -> None:
    ring = Ring(packets=3)
    for number in range(10):
        ring.add(packet(number, number))
    kept = ring.trigger("reset by a backend", 9)
    assert ([one.last.packet_id for one in kept.packets], kept.evicted, kept.reason) == ([7, 8, 9], 7, "reset by a backend")
    assert len(ring) == 0
    assert ring.trigger("again", 9).packets == ()


def test_ring_keeps_the_last_seconds() -> None:
    """The span is counted back from the trigger, also when no packet has come since."""
    ring = Ring(seconds=2)
    for number in range(10):
        ring.add(packet(number, number * SECOND))
    assert len(ring) == 3
    assert [one.last.packet_id for one in ring.trigger("asked", 10 * SECOND).packets] == [8, 9]


def test_ring_bounds_its_memory() -> None:
    ring = Ring(size=100)
    for number in range(10):
        ring.add(packet(number, number, size=30))
    assert [one.last.packet_id for one in ring.trigger("asked", 0).packets] == [7, 8, 9]
    ring.add(packet(1, size=101))
    assert len(ring) == 0


def test_ring_puts_packets_of_several_cpus_in_order() -> None:
    ring = Ring(packets=8)
    for time_ns in (5, 2, 9, 1):
        ring.add(packet(time_ns, time_ns))
    assert [one.last.packet_id for one in ring.trigger("asked", 9).packets] == [1, 2, 5, 9]
