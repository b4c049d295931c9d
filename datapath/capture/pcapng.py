"""Write pcapng, the file format of captured packets, block by block: pure functions from values to bytes.

Source: draft-ietf-opsawg-pcapng. Little-endian sections, nanosecond stamps (`if_tsresol` 9), Ethernet frames.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_COMMENT = 1
_OS, _APPLICATION = 3, 4
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9
_FLAGS, _PACKET_ID, _VERDICT = 2, 5, 7
_BY_XDP = 2
_RECEIVED, _DROPPED, _OS_DROPPED = 4, 5, 7
_ETHERNET = 1
_LONGEST_OPTION = 0xFFFF

INBOUND, OUTBOUND = 1, 2
"""The direction in the lowest bits of `epb_flags`."""

Option = tuple[int, bytes]


def section(application: str, system: str = "", comment: str = "") -> bytes:
    """Begin a file (or a new part of one): what wrote it, on which operating system, and what it is about."""
    options = [(_COMMENT, comment.encode()), (_OS, system.encode()), (_APPLICATION, application.encode())]
    unknown_length = 0xFFFFFFFFFFFFFFFF
    return _block(_SECTION, struct.pack("<IHHQ", 0x1A2B3C4D, 1, 0, unknown_length), options)


def interface(name: str, description: str = "", snaplen: int = 0) -> bytes:
    """Describe an interface; the first one of a section has number 0. `snaplen` in bytes, 0: no limit."""
    options = [(_NAME, name.encode()), (_DESCRIPTION, description.encode()), (_RESOLUTION, b"\x09")]
    return _block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, snaplen), options)


def packet(
    number: int,
    time_ns: int,
    frame: bytes,
    length: int,
    *,
    packet_id: int | None = None,
    direction: int = 0,
    verdict: int | None = None,
    comments: Iterable[str] = (),
) -> bytes:
    """Write one packet of interface `number`.

    `time_ns` is nanoseconds since 1970; `frame` the bytes kept of `length` on the wire; `packet_id` the number that other
    records of the same packet have too (`epb_packetid`); `verdict` an XDP program's (`epb_verdict`). Comments are cut where
    the format's length field ends.
    """
    options: list[Option] = [(_COMMENT, comment.encode()) for comment in comments]
    if direction:
        options.append((_FLAGS, struct.pack("<I", direction)))
    if packet_id is not None:
        options.append((_PACKET_ID, struct.pack("<Q", packet_id)))
    if verdict is not None:
        options.append((_VERDICT, struct.pack("<BQ", _BY_XDP, verdict)))
    head = struct.pack("<IIIII", number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(frame), length)
    return _block(_PACKET, head + _padded(frame), options)


def statistics(number: int, time_ns: int, *, received: int, dropped: int, os_dropped: int, comment: str = "") -> bytes:
    """Close the account of interface `number`: packets that matched, that we lost, and that the kernel's ring had no room for."""
    options: list[Option] = [(_COMMENT, comment.encode())]
    counts = ((_RECEIVED, received), (_DROPPED, dropped), (_OS_DROPPED, os_dropped))
    options += [(code, struct.pack("<Q", count)) for code, count in counts]
    return _block(_STATISTICS, struct.pack("<III", number, time_ns >> 32, time_ns & 0xFFFFFFFF), options)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _option(code: int, content: bytes) -> bytes:
    if len(content) > _LONGEST_OPTION:
        # Not in the middle of a character: readers refuse what is no UTF-8.
        content = content[:_LONGEST_OPTION].decode(errors="ignore").encode()
    return struct.pack("<HH", code, len(content)) + _padded(content)


def _block(kind: int, body: bytes, options: list[Option]) -> bytes:
    packed = b"".join(_option(code, content) for code, content in options if content)
    if packed:
        packed += struct.pack("<HH", 0, 0)
    total = 12 + len(body) + len(packed)
    return struct.pack("<II", kind, total) + body + packed + struct.pack("<I", total)
