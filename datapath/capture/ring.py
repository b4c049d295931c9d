"""A flight recorder: the last packets stay in memory until something happens that they are wanted for."""

from __future__ import annotations

from collections import deque

import msgspec

from tidegate.datapath.capture.records import Packet


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What a ring held when it was triggered. `evicted` packets had made room since the ring began."""

    reason: str
    time_ns: int
    packets: tuple[Packet, ...]
    evicted: int


class Ring:
    """Keeps the last `packets` packets (0: any number), none older than `seconds` (0: however old), and at most `size` bytes.

    Time is the packets' own, so that the ring needs no clock.
    """

    def __init__(self, *, packets: int = 0, seconds: float = 0, size: int = 64 << 20) -> None:
        self._most = packets
        self._span_ns = int(seconds * 1e9)
        self._size = size
        self._held: deque[Packet] = deque()
        self._bytes = 0
        self._newest_ns = 0
        self._evicted = 0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, packet: Packet) -> None:
        """Take a packet and let go of those that it displaces; one larger than the whole ring is let go of itself."""
        self._held.append(packet)
        self._bytes += packet.size
        # CPUs' rings are read one after the other, so that packets come a little out of order.
        self._newest_ns = max(self._newest_ns, packet.time_ns)
        while self._held and self._is_too_much():
            self._bytes -= self._held.popleft().size
            self._evicted += 1

    def trigger(self, reason: str, time_ns: int) -> Kept:
        """Hand over what led up to `reason`, oldest first, and begin anew. The span ends at `time_ns` (CLOCK_MONOTONIC)."""
        oldest = time_ns - self._span_ns if self._span_ns else 0
        packets = sorted((one for one in self._held if one.time_ns >= oldest), key=lambda one: one.time_ns)
        kept = Kept(reason=reason, time_ns=time_ns, packets=tuple(packets), evicted=self._evicted)
        self._held.clear()
        self._bytes = self._evicted = 0
        return kept

    def _is_too_much(self) -> bool:
        too_many = bool(self._most) and len(self._held) > self._most
        too_old = bool(self._span_ns) and self._held[0].time_ns < self._newest_ns - self._span_ns
        return too_many or too_old or self._bytes > self._size
