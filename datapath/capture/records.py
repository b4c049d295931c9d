"""A captured packet as a value, and as the pcapng records that tell what the balancer made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from tidegate.datapath.capture import pcapng
from tidegate.datapath.layout import Record as Layout

TAPS = ("received", "sent")
"""Names by number: TG_TAP_RECEIVED and TG_TAP_SENT of capture_abi.h."""

RECEIVED, SENT, NONE = range(3)

_FLOW_BYTES = 38
"""Of tg_capture_tuple: addresses, ports, protocol and family."""


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """One packet at one tap. `time_ns` is CLOCK_MONOTONIC; `captures` the bits of those that want it.

    `flow` is the head of a tg_capture_tuple. Until the packet's end `verdict` (an xdp_action) is None and `reason` (an index) 0.
    """

    tap: int
    packet_id: int
    time_ns: int
    frame: bytes
    length: int
    captures: int
    ifindex: int = 0
    service: int = 0
    backend: int = 0
    flow: bytes = bytes(_FLOW_BYTES)
    tcp_flags: int = 0
    verdict: int | None = None
    reason: int = 0


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """All that was captured of one packet, in order; the last record knows its end."""

    records: tuple[Captured, ...]

    @property
    def last(self) -> Captured:
        """What was known at the end."""
        return self.records[-1]

    @property
    def captures(self) -> int:
        """The bits of those that want it."""
        return self.last.captures

    @property
    def time_ns(self) -> int:
        """When it came, by CLOCK_MONOTONIC."""
        return self.records[0].time_ns

    @property
    def size(self) -> int:
        """Bytes kept."""
        return sum(len(one.frame) for one in self.records)


class Decoder:
    """Reads samples of the perf ring."""

    def __init__(self, seen: Layout) -> None:
        """`seen` is the layout of tg_capture_seen, which begins with the event."""
        self._event = seen.member("event")
        self._flow = next(field.offset for field in self._event.fields if field.name == "tuple.src")

    def decode(self, raw: bytes) -> Captured:
        """Return a sample's contents; raises ValueError if it is cut short. The kernel pads samples, so it may be longer."""
        size = self._event.size
        if len(raw) < size:
            raise ValueError(f"a sample of {len(raw)} bytes, of at least {size}")
        event = {name: value for name, value in self._event.read(raw).items() if isinstance(value, int)}
        if len(raw) < size + event["kept"]:
            raise ValueError(f"a sample of {len(raw)} bytes, of at least {size + event['kept']}")
        return Captured(
            tap=event["tap"],
            packet_id=event["id"],
            time_ns=event["time"],
            frame=raw[size : size + event["kept"]],
            length=event["length"],
            captures=event["captures"],
            ifindex=event["ifindex"],
            service=event["service"],
            backend=event["backend"],
            flow=raw[self._flow : self._flow + _FLOW_BYTES],
            tcp_flags=event["tcp_flags"],
            verdict=event["verdict"] if event["tap"] != RECEIVED else None,
            reason=event["reason"],
        )


class Joiner:
    """Puts what one packet left at its taps together. On each CPU no other packet comes between."""

    def __init__(self) -> None:
        self._held: dict[int, Captured] = {}

    def add(self, captured: Captured) -> Iterator[Packet]:
        """Take the next sample of a CPU; yield the packets that are complete now."""
        cpu = captured.packet_id >> 48
        held = self._held.pop(cpu, None)
        if held is not None and held.packet_id != captured.packet_id:
            yield Packet(records=(held,))  # the ring had no room for the rest
            held = None
        if captured.tap == RECEIVED:
            self._held[cpu] = captured
        elif held is None:
            yield Packet(records=(captured,))
        else:
            first = msgspec.structs.replace(
                held, backend=captured.backend, verdict=captured.verdict, reason=captured.reason, captures=captured.captures
            )
            yield Packet(records=(first,) if captured.tap == NONE else (first, captured))

    def rest(self) -> Iterator[Packet]:
        """Yield what still waits for its end, when nothing more will come."""
        held, self._held = self._held, {}
        for captured in held.values():
            yield Packet(records=(captured,))


def head(application: str, snaplen: int = 0, comment: str = "") -> bytes:
    """Begin a file: one interface a tap, numbered as the taps are."""
    described = ("frames as they arrived", "frames as they left")
    taps = zip(TAPS, described, strict=True)
    begin = pcapng.section(application, comment=comment)
    return begin + b"".join(pcapng.interface(name, text, snaplen) for name, text in taps)


def record(captured: Captured, wall_offset_ns: int, comments: Sequence[str] = ()) -> bytes:
    """Return the packet's block. `wall_offset_ns` is what CLOCK_MONOTONIC lacks to the time of day."""
    return pcapng.packet(
        captured.tap,
        captured.time_ns + wall_offset_ns,
        captured.frame,
        captured.length,
        packet_id=captured.packet_id,
        direction=pcapng.OUTBOUND if captured.tap else pcapng.INBOUND,
        verdict=captured.verdict,
        comments=comments,
    )
