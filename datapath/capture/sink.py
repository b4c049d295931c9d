"""Where captured packets go: a file or a pipe, until a limit is reached, the disk is full, or nobody reads any more."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable
from enum import Enum

import msgspec

MOST_WAITING = 16 << 20
"""Bytes that wait for a slow consumer before further packets are counted as lost."""


class End(Enum):
    """Why a recording ended."""

    PACKETS = "the packet limit is reached"
    BYTES = "the byte limit is reached"
    TIME = "the time limit is reached"
    QUOTA = "the storage quota is used up"
    DISK_FULL = "the disk is full"
    CONSUMER_GONE = "the reader has closed"
    ASKED = "stopped"
    AGENT = "the agent has ended"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """When a recording ends; 0 is no limit. `quota` is what is left for its files, bytes; -1: no quota."""

    packets: int = 0
    bytes: int = 0
    seconds: float = 0
    quota: int = -1


class Sink:
    """Writes whole blocks, in order. `lost` counts packets that found no room while the consumer was slow.

    `fd` may be a file or a non-blocking pipe. The recorder calls `offer` for each packet and `flush` between them; neither
    blocks on a non-blocking pipe. Errors other than those of `End` are raised as OSError.
    """

    def __init__(
        self,
        fd: int,
        head: bytes,
        limits: Limits,
        begun_ns: int,
        *,
        write: Callable[[int, bytes], int] = os.write,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._fd = fd
        self._limits = limits
        self._begun_ns = begun_ns
        self._write = write
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[bytes, bool]] = deque([(head, False)])
        self._waiting_bytes = len(head)
        self._sent = 0  # of the first block that waits
        self._accepted = self._accepted_bytes = 0
        self.end: End | None = None
        self.written = self.written_bytes = self.lost = 0

    def offer(self, block: bytes, time_ns: int) -> bool:
        """Take a packet's block, stamped with CLOCK_MONOTONIC `time_ns`; False if the recording has ended or it was lost."""
        if self.end is None:
            self.end = self._limit(len(block), time_ns)
        if self.end is not None:
            return False
        if self._waiting_bytes + len(block) > self._most_waiting:
            self.lost += 1
            return False
        self._accepted += 1
        self._accepted_bytes += len(block)
        self._wait(block, True)
        if self._limits.packets and self._accepted >= self._limits.packets:
            self.end = End.PACKETS
        return True

    def tick(self, now_ns: int) -> None:
        """End the recording if its time is over, though no packet comes."""
        if self.end is None and self._is_over(now_ns):
            self.end = End.TIME

    def flush(self) -> bool:
        """Write what the consumer takes now; return whether nothing waits."""
        while self._waiting:
            block, is_packet = self._waiting[0]
            try:
                done = self._write(self._fd, block[self._sent :])
            except BlockingIOError:
                return False
            except OSError as error:
                self._fail(error)
                return True
            self._sent += done
            self.written_bytes += done
            if self._sent == len(block):
                self._waiting.popleft()
                self._waiting_bytes -= len(block)
                self._sent = 0
                self.written += is_packet
        return True

    def finish(self, tail: bytes, end: End = End.ASKED) -> bool:
        """End the recording and let `tail` follow what waits; return as `flush` does."""
        self.end = self.end or end
        if self.end not in (End.DISK_FULL, End.CONSUMER_GONE):
            self._wait(tail, False)
        return self.flush()

    def _wait(self, block: bytes, is_packet: bool) -> None:
        self._waiting.append((block, is_packet))
        self._waiting_bytes += len(block)

    def _is_over(self, now_ns: int) -> bool:
        return bool(self._limits.seconds) and now_ns - self._begun_ns >= self._limits.seconds * 1e9

    def _limit(self, size: int, time_ns: int) -> End | None:
        limits = self._limits
        if limits.bytes and self._accepted_bytes + size > limits.bytes:
            return End.BYTES
        if self._is_over(time_ns):
            return End.TIME
        if limits.quota >= 0 and self.written_bytes + self._waiting_bytes - self._sent + size > limits.quota:
            return End.QUOTA
        return None

    def _fail(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self.end = End.DISK_FULL
            self._cut_back()
        elif error.errno in (errno.EPIPE, errno.ECONNRESET):
            self.end = End.CONSUMER_GONE
        else:
            raise error
        self.lost += sum(is_packet for _, is_packet in self._waiting)
        self._waiting.clear()
        self._waiting_bytes = self._sent = 0

    def _cut_back(self) -> None:
        # Half a block would make readers refuse the file.
        if self._sent:
            self.written_bytes -= self._sent
            os.ftruncate(self._fd, self.written_bytes)
