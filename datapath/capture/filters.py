"""Turn filters that a person writes into the masks and rules that the kernel compares packets with."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import msgspec

from tidegate.datapath.capture.records import Captured
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.order import mapped_prefix

Network = IPv4Network | IPv6Network

MOST_SHAPES = 32
"""TG_CAPTURE_MASKS of capture_abi.h."""
MOST_CAPTURES = 64
"""Bits of `tg_capture_rule.captures`."""
WHOLE_FRAME = 0xFFFF
"""A snap length above any frame's."""
PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58}

_GOLDEN = 2654435769
_BLOOM_BITS = 256


class TooManyShapes(ValueError):
    """The filters differ in more ways (fields and prefix lengths) than the kernel's table has room for."""


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Packets for which everything given is true. None and 0 match everything."""

    source: Network | None = None
    destination: Network | None = None
    source_port: int = 0
    destination_port: int = 0
    protocol: int = 0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What one capture takes. Snap lengths in bytes, by tap; 0: not this tap."""

    filters: tuple[Filter, ...]
    received: int = WHOLE_FRAME
    sent: int = WHOLE_FRAME

    @property
    def kept(self) -> tuple[int, int, int]:
        """Snap lengths by tap; at TG_TAP_NONE there is nothing to keep."""
        return self.received, self.sent, 0


class Mask(msgspec.Struct, frozen=True, kw_only=True):
    """A shape: which bits of a packet's tuple are compared."""

    source_bits: int
    destination_bits: int
    source_port: bool
    destination_port: bool
    protocol: bool
    family: bool


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of tg_capture_mask by slot (None: free), and of tg_capture_rule."""

    slots: tuple[Mask | None, ...]
    masks: Mapping[int, Fields]
    rules: Mapping[Fields, Fields]


def parse(text: str) -> Filter:
    """Read a filter as the command line has it; raises ValueError with the word that is wrong.

    The words are prefixes, protocols and ports; what stands after `from` is the sender's, everything else the receiver's.

    >>> parse("192.0.2.10 tcp/80").destination_port
    80
    >>> parse("from 198.51.100.0/24 from :53 udp").source_port
    53
    """
    found = Filter()
    side = "destination"
    for word in text.split():
        if word in ("from", "to"):
            side = "source" if word == "from" else "destination"
            continue
        given = _read(word, side)
        for name in given:
            if getattr(found, name):
                raise ValueError(f"{word!r} gives the {name.replace('_', ' ')} a second time")
        found = msgspec.structs.replace(found, **given)
        side = "destination"
    if text.split()[-1:] in (["from"], ["to"]):
        raise ValueError(f"{text!r} ends in the middle")
    if found.source and found.destination and found.source.version != found.destination.version:
        raise ValueError(f"{text!r} mixes IPv4 and IPv6")
    if found == Filter():
        raise ValueError("an empty filter; 0.0.0.0/0 or ::/0 matches everything of a family")
    return found


def of_resource(
    *, source: str = "", destination: str = "", source_port: int = 0, destination_port: int = 0, protocol: str = "Any"
) -> tuple[Filter, ...]:
    """Read one filter of a PacketCapture: what is empty, 0 or "Any" matches everything. Raises ValueError.

    "ICMP" is two protocols, one a family: without a prefix to tell which is meant, it takes two filters.
    """
    sides = [network(text) if text else None for text in (source, destination)]
    versions = {side.version for side in sides if side}
    if len(versions) == 2:
        raise ValueError(f"{source} and {destination} mix IPv4 and IPv6")
    if protocol == "ICMP":
        numbers = [{4: PROTOCOLS["icmp"], 6: PROTOCOLS["icmp6"]}[version] for version in sorted(versions or {4, 6})]
    else:
        numbers = [0 if protocol == "Any" else PROTOCOLS[protocol.lower()]]
    return tuple(
        Filter(
            source=sides[0],
            destination=sides[1],
            source_port=source_port,
            destination_port=destination_port,
            protocol=number,
        )
        for number in numbers
    )


def share(captured: Captured, bit: int, wanted: Wanted) -> Captured | None:
    """Return what the capture with this bit gets of a packet that the taps took for all of them; None: nothing.

    The kernel keeps as many bytes as the capture that wants most, at the taps that any of them wants.
    """
    kept = wanted.kept[captured.tap]
    if not captured.captures >> bit & 1 or not kept:
        return None
    return msgspec.structs.replace(captured, frame=captured.frame[:kept])


def matching(filters: Sequence[Filter], flow: bytes) -> Filter | None:
    """Return the first filter that takes a packet of this flow (the head of a tg_capture_tuple)."""
    return next((one for one in filters if _masked(flow, _mask_bytes(shape(one))) == _key(one)), None)


def render(one: Filter) -> str:
    """Write a filter as `parse` reads it.

    >>> render(parse("192.0.2.10 tcp/80")), render(parse("from :53 udp"))
    ('192.0.2.10/32 tcp :80', 'from :53 udp')
    """
    words = []
    if one.source is not None:
        words += ["from", str(one.source)]
    if one.source_port:
        words += ["from", f":{one.source_port}"]
    if one.destination is not None:
        words.append(str(one.destination))
    words += [name for name, number in PROTOCOLS.items() if number == one.protocol]
    if one.destination_port:
        words.append(f":{one.destination_port}")
    return " ".join(words) or "everything"


def network(text: str) -> Network:
    """Read a prefix or an address; raises ValueError that names it."""
    try:
        return ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no address, prefix or protocol: {error}") from None


def lower(captures: Mapping[int, Wanted], held: Sequence[Mask | None] = ()) -> Rows:
    """Return the tables for captures by their bit (0..63).

    `held` are the slots in use now: a shape keeps its slot, so that captures that go on miss nothing while others come and
    go. Raises `TooManyShapes`.
    """
    rules: dict[tuple[Mask, bytes], tuple[int, int, int]] = {}
    for bit, wanted in captures.items():
        for one in wanted.filters:
            at = shape(one), _key(one)
            bits, received, sent = rules.get(at, (0, 0, 0))
            rules[at] = bits | 1 << bit, max(received, wanted.received), max(sent, wanted.sent)
    slots = _place([mask for mask, _ in rules], held)
    masks = {}
    for slot, mask in enumerate(slots):
        if mask is not None:
            bloom = 0
            for other, key in rules:
                bloom |= 1 << bloom_bit(key) if other == mask else 0
            words = struct.pack("=4Q", *(bloom >> 64 * word & 0xFFFFFFFFFFFFFFFF for word in range(_BLOOM_BITS // 64)))
            masks[slot] = _named(_mask_bytes(mask), slot=1, prefix="tuple.", bloom=words)
    return Rows(
        slots=slots,
        masks=masks,
        rules={
            _named(key, slot=slots.index(mask)): fields(captures=bits, snaplen=struct.pack("=II", received, sent))
            for (mask, key), (bits, received, sent) in rules.items()
        },
    )


def shape(one: Filter) -> Mask:
    """Tell which bits a filter compares: with a prefix also the family, since IPv4 addresses are mapped into IPv6's."""
    return Mask(
        source_bits=0 if one.source is None else mapped_prefix(one.source)[0],
        destination_bits=0 if one.destination is None else mapped_prefix(one.destination)[0],
        source_port=bool(one.source_port),
        destination_port=bool(one.destination_port),
        protocol=bool(one.protocol),
        family=_family(one) != 0,
    )


def bloom_bit(key: bytes) -> int:
    """Return the bit of a masked tuple in its mask's Bloom filter: `tg_capture_hash` of capture.h."""
    folded = key[36]
    for (word,) in struct.iter_unpack("=I", key[:36]):
        folded ^= word
    return (folded * _GOLDEN & 0xFFFFFFFF) >> 24


def _read(word: str, side: str) -> dict[str, Any]:
    spoken = re.fullmatch(r"([a-z]+6?)?(?:[/:](\d+))?", word)
    if spoken is None:
        return {side: network(word)}
    protocol, port = spoken[1], spoken[2]
    given: dict[str, Any] = {}
    if protocol is not None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"{word!r}: the protocol is one of {', '.join(PROTOCOLS)}")
        given["protocol"] = PROTOCOLS[protocol]
    if port is not None:
        if protocol in ("icmp", "icmp6") or not 1 <= int(port) <= 65535:
            raise ValueError(f"{word!r}: a port is 1..65535, and of tcp or udp")
        given[f"{side}_port"] = int(port)
    return given


def _place(wanted: Sequence[Mask], held: Sequence[Mask | None]) -> tuple[Mask | None, ...]:
    slots = [mask if mask in wanted else None for mask in held]
    for mask in dict.fromkeys(wanted):
        if mask in slots:
            continue
        if None in slots:
            slots[slots.index(None)] = mask
        else:
            slots.append(mask)
    while slots and slots[-1] is None:
        slots.pop()
    if len(slots) > MOST_SHAPES:
        raise TooManyShapes(f"{len(slots)} shapes of filters; {MOST_SHAPES} are the most: give prefixes equal lengths")
    return tuple(slots)


def _key(one: Filter) -> bytes:
    source = bytes(16) if one.source is None else mapped_prefix(one.source)[1]
    destination = bytes(16) if one.destination is None else mapped_prefix(one.destination)[1]
    return source + destination + struct.pack("!HHBB", one.source_port, one.destination_port, one.protocol, _family(one))


def _mask_bytes(mask: Mask) -> bytes:
    addresses = b"".join(_ones(bits).to_bytes(16, "big") for bits in (mask.source_bits, mask.destination_bits))
    rest = (0xFFFF * mask.source_port, 0xFFFF * mask.destination_port, 0xFF * mask.protocol, 0xFF * mask.family)
    return addresses + struct.pack("!HHBB", *rest)


def _masked(flow: bytes, mask: bytes) -> bytes:
    return bytes(a & b for a, b in zip(flow, mask, strict=True))


def _family(one: Filter) -> int:
    given = one.source or one.destination
    return given.version if given else 0


def _ones(bits: int) -> int:
    return (1 << 128) - (1 << 128 - bits)


def _named(packed: bytes, *, slot: int, prefix: str = "", **more: bytes) -> Fields:
    # Ports are in network order, which the layout's integers read as the machine's.
    sport, dport = (int.from_bytes(packed[at : at + 2], sys.byteorder) for at in (32, 34))
    tuple_fields: dict[str, int | bytes] = {
        "src": packed[:16],
        "dst": packed[16:32],
        "sport": sport,
        "dport": dport,
        "proto": packed[36],
        "family": packed[37],
        "slot": slot,
    }
    return fields(**{prefix + name: value for name, value in tuple_fields.items()}, **more)
