"""One recording: what it takes of the captured packets, where it writes them, and what is told of it."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from tidegate.crds.capture import PacketCaptureSpec
from tidegate.crds.node_state import CaptureReceipt
from tidegate.datapath.capture import pcapng, records
from tidegate.datapath.capture.filters import WHOLE_FRAME, Wanted, of_resource, share
from tidegate.datapath.capture.reader import wall_offset_ns
from tidegate.datapath.capture.records import Packet
from tidegate.datapath.capture.ring import Ring
from tidegate.datapath.capture.sink import End, Limits, Sink
from tidegate.datapath.capture.words import Commenter, Names

MOST_FILES = 64
"""Names of files in a receipt."""

TAIL_BYTES = 512
"""Room that is kept for the account at a file's end."""

LINGER_NS = 10 * 10**9
"""How long a slow reader has, once the recording has ended, to take what waits for it."""

State = Literal["Running", "Finished", "QuotaReached", "Failed"]

_STATES: dict[End, State] = {End.QUOTA: "QuotaReached", End.DISK_FULL: "Failed"}

Open = Callable[[], tuple[Path, int]]


def wanted(spec: PacketCaptureSpec) -> Wanted:
    """Return what the taps shall give for a PacketCapture. Raises ValueError."""
    found = tuple(
        one
        for each in spec.filters
        for one in of_resource(
            source=each.source,
            destination=each.destination,
            source_port=each.sourcePort,
            destination_port=each.destinationPort,
            protocol=each.protocol,
        )
    )
    size, taps = spec.snapLength or WHOLE_FRAME, spec.taps or ("Received", "Sent")
    return Wanted(filters=found, received=size * ("Received" in taps), sent=size * ("Sent" in taps))


class Recording:
    """A capture that runs. Not for several threads at a time.

    A Stream writes to `stream` if that is given (a non-blocking socket, closed here), else to a file; a Ring to a file each time
    it is triggered. `open_file` makes these; `quota` is what all of them may take, bytes.
    """

    def __init__(
        self,
        name: str,
        spec: PacketCaptureSpec,
        bit: int,
        open_file: Open,
        quota: int,
        names: Names,
        stream: int | None = None,
        owner: str = "",
        before: CaptureReceipt | None = None,
    ) -> None:
        """`owner` is the resource that orders it; `before` what an earlier agent told of the same recording."""
        before = before or CaptureReceipt(name=name)
        self.name, self.spec, self.bit, self.quota, self.owner = name, spec, bit, quota, owner
        self.wanted = wanted(spec)
        self.files = [Path(text) for text in before.files]
        self.state: State = "Running"
        self.message = ""
        self.matched = before.matched
        self._names = names
        self._commenter = Commenter(name, self.wanted.filters, names)
        self._open = open_file
        self._written, self._lost = before.written, before.lost
        self._missed = 0
        self._written_bytes = sum(path.stat().st_size for path in self.files if path.exists())
        self._begun_ns = time.monotonic_ns()
        self._sink: Sink | None = None
        self._fd = -1
        self._stream = stream
        self._offset_ns = 0
        self._linger_until = 0
        self._ring: Ring | None = None
        if spec.mode == "Ring":
            self._ring = Ring(packets=spec.ring.packets, seconds=spec.ring.seconds)
        else:
            self._begin(stream)

    @property
    def is_over(self) -> bool:
        """Whether it has ended and everything is closed."""
        return self.state != "Running" and self._sink is None

    @property
    def written(self) -> int:
        """Packets in files, or taken by the reader."""
        return self._written + (self._sink.written if self._sink else 0)

    @property
    def written_bytes(self) -> int:
        """Bytes of them, with all that surrounds packets in a file."""
        return self._written_bytes + (self._sink.written_bytes if self._sink else 0)

    @property
    def lost(self) -> int:
        """Packets that were forwarded and could not be written, or that may have been this recording's."""
        return self._lost + self._missed + (self._sink.lost if self._sink else 0)

    def rename(self, names: Names) -> None:
        """Use other names in comments from now on."""
        if names != self._names:
            self._names = names
            self._commenter = Commenter(self.name, self.wanted.filters, names)

    def take(self, packet: Packet) -> bool:
        """Take what this recording wants of a packet; return whether its filters match."""
        if self.state != "Running" or not packet.captures >> self.bit & 1:
            return False
        self.matched += 1
        own = tuple(one for one in (share(record, self.bit, self.wanted) for record in packet.records) if one is not None)
        if not own:
            return True
        mine = Packet(records=own)
        if self._ring is not None:
            self._ring.add(mine)
        elif self._sink is not None:
            self._sink.offer(self._block(mine), mine.time_ns)
            self._note_end()
        return True

    def miss(self, count: int) -> None:
        """Count packets that the kernel's ring had no room for: nobody knows whose they were."""
        if self.state == "Running":
            self._missed += count

    def trigger(self, reason: str) -> None:
        """Write what the ring holds, with the reason, and begin anew. Raises ValueError if this is no running ring."""
        if self._ring is None or self.state != "Running":
            raise ValueError(f"{self.name} is no ring that records: only mode Ring has something to write")
        now = time.monotonic_ns()
        kept = self._ring.trigger(reason, now)
        self._begin(None, comment=f"written because: {reason}; older packets that were let go: {kept.evicted}")
        assert self._sink is not None
        for packet in kept.packets:
            self._sink.offer(self._block(packet), packet.time_ns)
        end = self._sink.end
        self._finish(self._sink)
        limits = self.spec.limits
        if limits.packets and self._written >= limits.packets:
            end = End.PACKETS
        if end is not None:
            self._say(end)

    def tick(self, now_ns: int) -> None:
        """Write what waits, and see whether the time is over."""
        seconds = self.spec.limits.seconds
        if self.state == "Running" and seconds and now_ns - self._begun_ns >= seconds * 10**9:
            self.stop(End.TIME)
        if self.state == "Running" and self._stream is not None and _is_hung_up(self._stream):
            self.stop(End.CONSUMER_GONE)
        if self._sink is None:
            return
        is_written = self._flush(self._sink)
        self._note_end()
        if self.state != "Running" and self._sink is not None and (is_written or now_ns > self._linger_until):
            self._close(self._sink)

    def stop(self, end: End = End.ASKED) -> None:
        """End the recording. A Ring that was not triggered leaves nothing."""
        if self.state != "Running":
            return
        self._say(end)
        if self._sink is not None:
            self._finish(self._sink, end)

    def fail(self, message: str) -> None:
        """End the recording because it cannot go on."""
        self.state, self.message = "Failed", message
        if self._sink is not None:
            self._close(self._sink)

    def receipt(self) -> CaptureReceipt:
        """Tell how it is."""
        return CaptureReceipt(
            name=self.name,
            state=self.state,
            matched=self.matched,
            written=self.written,
            lost=self.lost,
            files=[str(path) for path in self.files[-MOST_FILES:]],
            message=self.message,
        )

    def _begin(self, stream: int | None, comment: str = "") -> None:
        left = self.quota - self._written_bytes
        if stream is None:
            path, self._fd = self._open()
            self.files.append(path)
        else:
            self._fd = stream
        limits = self.spec.limits
        remaining = Limits(
            packets=max(limits.packets - self._written, 1) if limits.packets else 0,
            bytes=max(limits.bytes - self._written_bytes, 1) if limits.bytes else 0,
            quota=left - TAIL_BYTES if stream is None else -1,
        )
        snaplen = self.spec.snapLength
        head = records.head(f"tidegate {self.name}", snaplen, comment)
        self._offset_ns = wall_offset_ns(time.monotonic_ns, time.time_ns)
        self._sink = Sink(self._fd, head, remaining, self._begun_ns)
        self._flush(self._sink)

    def _block(self, packet: Packet) -> bytes:
        comments = self._commenter.comments(packet)
        return b"".join(records.record(one, self._offset_ns, comments) for one in packet.records)

    def _flush(self, sink: Sink) -> bool:
        try:
            return sink.flush()
        except OSError as error:
            self._fail_writing(error)
            return True

    def _note_end(self) -> None:
        if self.state == "Running" and self._sink is not None and self._sink.end is not None:
            self._say(self._sink.end)
            self._finish(self._sink, self._sink.end)

    def _finish(self, sink: Sink, end: End = End.ASKED) -> None:
        now = time.monotonic_ns()
        self._linger_until = now + LINGER_NS
        tail = pcapng.statistics(
            0, now + self._offset_ns, received=self.matched, dropped=sink.lost, os_dropped=self._missed, comment=self.message
        )
        try:
            is_written = sink.finish(tail, end)
        except OSError as error:
            self._fail_writing(error)
            return
        if is_written:
            self._close(sink)

    def _fail_writing(self, error: OSError) -> None:
        self.fail(f"{self.files[-1] if self.files else 'the output'}: {error.strerror}")

    def _close(self, sink: Sink) -> None:
        if sink.end in (End.DISK_FULL, End.CONSUMER_GONE) and self.state != "Failed":
            self._say(sink.end)  # found while the last bytes were written
        os.close(self._fd)
        self._written += sink.written
        self._written_bytes += sink.written_bytes
        self._lost += sink.lost
        self._sink = None

    def _say(self, end: End) -> None:
        self.state, self.message = _STATES.get(end, "Finished"), end.value


def _is_hung_up(fd: int) -> bool:
    """Tell whether nobody can read what is written, though nothing is."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))
