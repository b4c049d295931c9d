"""Take captured packets out of the kernel's ring and hand them on as values."""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path

from tidegate.datapath import libbpf
from tidegate.datapath.capture.records import Captured, Decoder
from tidegate.datapath.layout import Layout

RING_PAGES = 64
"""Memory pages of each CPU's ring: 256 KiB, some thousand short packets."""


class Reader:
    """Delivers each captured packet; `lost` counts those that came while the ring was full. `close` it."""

    def __init__(self, maps: Path, layout: Layout, deliver: Callable[[Captured], None], pages: int = RING_PAGES) -> None:
        decoder = Decoder(layout.maps["tg_capture_seen"].value)
        self.lost = 0
        self._map = libbpf.obj_get(maps / "tg_capture_events")
        self._ring = libbpf.PerfRing(self._map, pages, lambda raw: deliver(decoder.decode(raw)), self._lose)

    def _lose(self, count: int) -> None:
        self.lost += count

    def poll(self, timeout_s: float) -> None:
        """Wait for packets and deliver them; raises what `deliver` raises, and `libbpf.BpfError`."""
        self._ring.poll(int(timeout_s * 1000))

    def wait(self, timeout_s: float) -> None:
        """Wait until there are packets, and deliver none: others may drain meanwhile."""
        select.select([self._ring.fd], [], [], timeout_s)

    def drain(self) -> None:
        """Deliver what is there now."""
        self._ring.drain()

    def close(self) -> None:
        """Let go of the ring; the programs find no reader, and packets pass as before."""
        self._ring.close()
        os.close(self._map)


def wall_offset_ns(monotonic_ns: Callable[[], int], wall_ns: Callable[[], int], probes: int = 25) -> int:
    """Return what `monotonic_ns` lacks to `wall_ns`, by the probe that was disturbed least.

    >>> wall_offset_ns(iter([0, 10, 20, 22]).__next__, iter([1005, 1021]).__next__, probes=2)
    1000
    """
    best = None
    for _ in range(probes):
        before = monotonic_ns()
        wall = wall_ns()
        took = monotonic_ns() - before
        if best is None or took < best[0]:
            best = took, wall - before - took // 2
    assert best is not None
    return best[1]
