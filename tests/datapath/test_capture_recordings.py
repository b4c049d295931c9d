"""As input: packets, limits and triggers. As output: files and receipts. Not faked: files and the folder they are in."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pcapng_reader import read_blocks

from tidegate.crds.capture import CaptureFilter, CaptureLimits, PacketCaptureSpec
from tidegate.datapath.capture.recording import Recording
from tidegate.datapath.capture.records import Captured, Packet
from tidegate.datapath.capture.shelf import Shelf
from tidegate.datapath.capture.words import Names

ANY = [CaptureFilter(destination="192.0.2.0/24")]
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def shelf(folder: Path, total: int = 1 << 30) -> Shelf:
    ticks = iter(range(1 << 20))
    return Shelf(folder, "node/1", total, lambda: NOW + timedelta(seconds=next(ticks)))


def recording(folder: Path, quota: int = 1 << 20, **spec: Any) -> Recording:
    made = shelf(folder)
    return Recording("web", PacketCaptureSpec(**({"filters": ANY} | spec)), 0, lambda: made.open("web"), quota, Names())


def packet(number: int, captures: int = 1) -> Packet:
    one = Captured(tap=0, packet_id=number, time_ns=number, frame=bytes(60), length=60, captures=captures)
    return Packet(records=(one,))


def packets_in(path: Path | str) -> int:
    return sum(block.kind == 6 for block in read_blocks(Path(path).read_bytes()))


def test_stream_ends_at_its_limit(tmp_path: Path) -> None:
    """Exactly as many packets, with the account at the end; what comes later is not counted."""
    made = recording(tmp_path, limits=CaptureLimits(packets=3))
    assert [made.take(packet(number)) for number in range(5)] == [True, True, True, False, False]
    made.tick(0)
    receipt = made.receipt()
    assert (receipt.state, receipt.matched, receipt.written, made.is_over) == ("Finished", 3, 3, True)
    assert packets_in(receipt.files[0]) == 3
    assert read_blocks(Path(receipt.files[0]).read_bytes())[-1].kind == 5


def test_others_packets_are_not_taken(tmp_path: Path) -> None:
    made = recording(tmp_path)
    assert not made.take(packet(1, captures=2))
    made.stop()
    assert made.receipt().matched == 0


def test_quota_holds_over_several_files(tmp_path: Path) -> None:
    """A ring that is written again and again ends when its files have used the quota up."""
    made = recording(tmp_path, quota=4000, mode="Ring")
    for number in range(200):
        made.take(packet(number))
        if number % 10 == 9 and made.state == "Running":
            made.trigger("asked")
    assert made.receipt().state == "QuotaReached"
    assert sum(Path(path).stat().st_size for path in made.receipt().files) <= 4000


def test_losses_of_the_ring_are_lost(tmp_path: Path) -> None:
    made = recording(tmp_path)
    made.miss(4)
    made.stop()
    assert made.receipt().lost == 4


def test_only_a_ring_can_be_triggered(tmp_path: Path) -> None:
    made = recording(tmp_path)
    with pytest.raises(ValueError, match="only mode Ring"):
        made.trigger("asked")
    made.stop()


def test_a_recording_goes_on_where_an_earlier_agent_left_it(tmp_path: Path) -> None:
    """Its limit counts what is written already, and the files of before are named first."""
    first = recording(tmp_path, limits=CaptureLimits(packets=5))
    for number in range(3):
        first.take(packet(number))
    first.stop()
    before = first.receipt()
    again = shelf(tmp_path / "more")
    spec = PacketCaptureSpec(filters=ANY, limits=CaptureLimits(packets=5))
    second = Recording("web", spec, 0, lambda: again.open("web"), 1 << 20, Names(), before=before)
    taken = [second.take(packet(number)) for number in range(4)]
    assert taken == [True, True, False, False]
    assert (second.receipt().written, list(second.receipt().files[:1])) == (5, list(before.files))


def test_names_and_modes_of_files(tmp_path: Path) -> None:
    """For root alone, and no name leads out of the folder."""
    path, fd = shelf(tmp_path / "x").open("../web")
    os.close(fd)
    assert path.name == "___web.node_1.20300101T000000.000000Z.pcapng"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_room(tmp_path: Path) -> None:
    """Files of recordings that are gone make room, the oldest first; those that are known stay."""
    folder = tmp_path / "x"
    made = shelf(folder, total=1000)
    paths = []
    for number in range(3):
        path, fd = made.open(f"web{number}")
        os.write(fd, bytes(300))
        os.close(fd)
        os.utime(path, (number, number))
        paths.append(path)
    assert made.room(0, paths, 500) == 100
    assert made.room(0, [paths[0]], 400) == 400
    assert [path.exists() for path in paths] == [True, False, True]
    assert made.room(700, [paths[0]], 400) == 0
    assert [path.exists() for path in paths] == [True, False, False]
