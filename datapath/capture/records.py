"""A captured packet as a value, and as the pcapng record that tells what the balancer made of it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tidegate.datapath.capture import pcapng
from tidegate.datapath.layout import Record as Layout

TAPS = ("received", "sent")
"""Names by number: TG_TAP_RECEIVED and TG_TAP_SENT of capture_abi.h."""

Describe = Callable[["Captured"], tuple[str, ...]]
"""Gives a packet's comments: the names behind its service, backend and filters."""


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """One packet at one tap. `time_ns` is CLOCK_MONOTONIC; `captures` the bits of those that want it."""

    tap: int
    packet_id: int
    time_ns: int
    frame: bytes
    length: int
    captures: int
    ifindex: int = 0
    service: int = 0
    backend: int = 0


def decode(layout: Layout, raw: bytes) -> Captured:
    """Read a sample of the perf ring, given the layout of tg_capture_seen; raises ValueError if it is cut short.

    The kernel pads samples, so there may be more bytes than were kept.
    """
    names = {field.name: field for field in layout.fields if field.name.startswith("event.")}
    size = max(field.offset + field.size for field in names.values())
    if len(raw) < size:
        raise ValueError(f"a sample of {len(raw)} bytes, of at least {size}")
    event = {
        name.removeprefix("event."): int.from_bytes(raw[field.offset : field.offset + field.size], "little")
        for name, field in names.items()
    }
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
    )


def head(application: str, snaplen: int = 0) -> bytes:
    """Begin a file: one interface a tap, numbered as the taps are."""
    described = ("frames as they arrived", "frames as they left")
    taps = zip(TAPS, described, strict=True)
    return pcapng.section(application) + b"".join(pcapng.interface(name, text, snaplen) for name, text in taps)


def record(captured: Captured, wall_offset_ns: int, comments: tuple[str, ...] = ()) -> bytes:
    """Return the packet's block. `wall_offset_ns` is what CLOCK_MONOTONIC lacks to the time of day."""
    return pcapng.packet(
        captured.tap,
        captured.time_ns + wall_offset_ns,
        captured.frame,
        captured.length,
        packet_id=captured.packet_id,
        direction=pcapng.OUTBOUND if captured.tap else pcapng.INBOUND,
        comments=comments,
    )
