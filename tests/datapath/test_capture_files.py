"""As input: packets. As output: files as other programs read them. Not faked: pcapng, and tshark where it is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pcapng_reader import read_blocks
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from tidegate.datapath.capture import pcapng
from tidegate.datapath.capture.records import Captured, head, record

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    number=st.integers(0, 5),
    time_ns=st.integers(0, 2**63),
    frame=st.binary(max_size=200),
    more=st.integers(0, 9000),
    packet_id=st.none() | st.integers(0, 2**64 - 1),
    direction=st.sampled_from([0, pcapng.INBOUND, pcapng.OUTBOUND]),
    comments=st.lists(texts, max_size=3),
)
def test_packets_round_trip(
    number: int, time_ns: int, frame: bytes, more: int, packet_id: int | None, direction: int, comments: list[str]
) -> None:
    """Whatever is written about a packet is read back."""
    raw = pcapng.packet(number, time_ns, frame, len(frame) + more, packet_id=packet_id, direction=direction, comments=comments)
    (block,) = read_blocks(raw)
    interface, high, low, kept, length = struct.unpack_from("<IIIII", block.body)
    assert (interface, high << 32 | low, kept, length) == (number, time_ns, len(frame), len(frame) + more)
    assert block.body[20 : 20 + kept] == frame
    assert [value.decode() for value in block.option(1)] == [comment for comment in comments if comment]
    assert block.option(2) == ([struct.pack("<I", direction)] if direction else [])
    assert block.option(5) == ([] if packet_id is None else [struct.pack("<Q", packet_id)])


@given(name=texts, description=texts, snaplen=st.integers(0, 2**32 - 1))
def test_interfaces_round_trip(name: str, description: str, snaplen: int) -> None:
    """An interface is Ethernet, counts in nanoseconds, and has its names."""
    (block,) = read_blocks(pcapng.interface(name, description, snaplen))
    assert struct.unpack("<HHI", block.body) == (1, 0, snaplen)
    assert block.option(9) == [b"\x09"]
    assert (block.option(2), block.option(3)) == ([name.encode()] * bool(name), [description.encode()] * bool(description))


@given(counts=st.tuples(*[st.integers(0, 2**64 - 1)] * 3), comment=texts)
def test_statistics_round_trip(counts: tuple[int, int, int], comment: str) -> None:
    """What was lost, and where, is in the file."""
    received, dropped, os_dropped = counts
    raw = pcapng.statistics(1, 7 << 32 | 9, received=received, dropped=dropped, os_dropped=os_dropped, comment=comment)
    (block,) = read_blocks(raw)
    assert struct.unpack("<III", block.body) == (1, 7, 9)
    assert [struct.unpack("<Q", block.option(code)[0])[0] for code in (4, 5, 7)] == [received, dropped, os_dropped]
    assert block.option(1) == ([comment.encode()] if comment else [])


def test_long_comment_is_cut_between_characters() -> None:
    """A comment longer than the format's length field loses its end, and stays UTF-8."""
    (block,) = read_blocks(pcapng.packet(0, 0, b"", 0, comments=["a" + "é" * 40000]))
    (kept,) = block.option(1)
    assert len(kept) == 65535
    assert kept.decode() == "a" + "é" * 32767
    (odd,) = read_blocks(pcapng.packet(0, 0, b"", 0, comments=["é" * 40000]))
    assert odd.option(1)[0].decode() == "é" * 32767


def test_tshark_reads_it(tmp_path: Path) -> None:
    """Nanoseconds, interfaces, lengths, the number that joins two taps, and comments are what tshark shows."""
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    frame = bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(src="192.0.2.1", dst="192.0.2.10") / TCP(dport=80))
    both = [
        Captured(tap=tap, packet_id=0x1000000000002, time_ns=123 + tap, frame=frame[:40], length=len(frame), captures=1)
        for tap in (0, 1)
    ]
    file = tmp_path / "x.pcapng"
    blocks = [record(one, 1_700_000_000_000_000_000, (f"backend {one.tap}",)) for one in both]
    file.write_bytes(b"".join([head("tidegate test"), *blocks, pcapng.statistics(0, 5, received=2, dropped=1, os_dropped=3)]))
    of_frame = ("time_epoch", "interface_name", "len", "cap_len", "packet_id", "comment")
    names = [*(f"frame.{name}" for name in of_frame), "ip.dst"]
    fields = [word for name in names for word in ("-e", name)]
    done = subprocess.run(
        ["tshark", "-r", file, "-T", "fields", *fields], capture_output=True, text=True, check=True, env={"HOME": str(tmp_path)}
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    number = lines[0][4]
    assert lines == [
        ["1700000000.000000123", "received", "54", "40", number, "backend 0", "192.0.2.10"],
        ["1700000000.000000124", "sent", "54", "40", number, "backend 1", "192.0.2.10"],
    ]
    assert int(number, 0) == 0x1000000000002
