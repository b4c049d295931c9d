"""As input: filters as people write them. As output: what the kernel compares. Not faked: nothing is needed."""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tidegate.datapath.capture.filters import (
    MOST_SHAPES,
    Filter,
    Rows,
    TooManyShapes,
    Wanted,
    bloom_bit,
    lower,
    of_resource,
    parse,
    share,
)
from tidegate.datapath.capture.records import Captured
from tidegate.datapath.layout import Fields
from tidegate.datapath.order import Address, mapped

Tuple = tuple[bytes, bytes, int, int, int, int]


NUMBERS = ("sport", "dport", "proto", "family")


def integer(name: str, row: Fields) -> int:
    value = dict(row).get(name, 0)
    assert isinstance(value, int)
    return value


def octets(name: str, row: Fields, size: int) -> bytes:
    value = dict(row).get(name, bytes(size))
    assert isinstance(value, bytes)
    return value


def masked(packet: Tuple, mask: Fields, slot: int) -> tuple[object, ...]:
    source, destination, *_ = packet
    pairs = zip((source, destination), (octets("tuple.src", mask, 16), octets("tuple.dst", mask, 16)), strict=True)
    addresses = [bytes(a & b for a, b in zip(value, bits, strict=True)) for value, bits in pairs]
    numbers = [value & integer(f"tuple.{name}", mask) for name, value in zip(NUMBERS, packet[2:], strict=True)]
    return (*addresses, *numbers, slot)


def wanted_by(rows: Rows, packet: Tuple) -> int:
    """Which captures the kernel would find, in Python: masks, Bloom filter, rules."""
    captures = 0
    keys = {
        (
            octets("src", rule, 16), octets("dst", rule, 16),
            *(integer(name, rule) for name in (*NUMBERS, "slot")),
        ): value
        for rule, value in rows.rules.items()
    }  # fmt: skip
    for slot, mask in rows.masks.items():
        key = masked(packet, mask, slot)
        raw = b"".join(part for part in key[:2] if isinstance(part, bytes)) + struct.pack("=HHBB", *key[2:6])
        bit = bloom_bit(raw)
        bloom = struct.unpack("=4Q", octets("bloom", mask, 32))
        if key in keys and bloom[bit // 64] >> bit % 64 & 1:
            captures |= integer("captures", keys[key])
    return captures


def packet(
    source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address, ports: tuple[int, int], proto: int
) -> Tuple:
    sport, dport = (int.from_bytes(struct.pack("!H", port), sys.byteorder) for port in ports)
    return mapped(source), mapped(destination), sport, dport, proto, source.version


def test_the_readme_filter() -> None:
    assert parse("192.0.2.10 tcp/80") == Filter(destination=ip_network("192.0.2.10"), protocol=6, destination_port=80)


def test_all_words() -> None:
    """Source and destination have prefix and port each; the protocol is said once."""
    got = parse("from 2001:db8::/32 to 2001:db8:1::1 udp/53 from :1024")
    assert got == Filter(
        source=ip_network("2001:db8::/32"), destination=ip_network("2001:db8:1::1"),
        source_port=1024, destination_port=53, protocol=17,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("192.0.2.300", "192.0.2.300"),
        ("192.0.2.1/24", "host bits"),
        ("sctp/80", "sctp"),
        ("tcp/0", "tcp/0"),
        ("tcp/65536", "65536"),
        ("icmp/8", "icmp/8"),
        ("udp tcp/80", "protocol a second time"),
        ("192.0.2.1 from", "from"),
        ("192.0.2.1 192.0.2.2", "second time"),
        ("from 192.0.2.1 2001:db8::1", "mixes"),
        ("", "empty"),
    ],
)
def test_wrong_words_are_named(text: str, word: str) -> None:
    """A filter that says nothing sensible is refused, naming the word."""
    with pytest.raises(ValueError, match=word):
        parse(text)


addresses = st.one_of(
    st.integers(0, 7).map(lambda low: IPv4Address(0xC0000200 + low)),
    st.integers(0, 7).map(lambda low: IPv6Address((0x20010DB8 << 96) + low)),
)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network | IPv6Network | None:
    address = draw(st.none() | addresses)
    if address is None:
        return None
    bits = draw(st.sampled_from([0, 8, address.max_prefixlen - 2, address.max_prefixlen]))
    return ip_network((address, bits), strict=False)


@st.composite
def filters(draw: st.DrawFn) -> Filter:
    ports = st.sampled_from([0, 53, 80])
    source, destination = draw(networks()), draw(networks())
    assume(source is None or destination is None or source.version == destination.version)
    return Filter(
        source=source, destination=destination, source_port=draw(ports), destination_port=draw(ports),
        protocol=draw(st.sampled_from([0, 6, 17])),
    )  # fmt: skip


def matches(one: Filter, source: object, destination: object, ports: tuple[int, int], proto: int) -> bool:
    return (
        (one.source is None or source in one.source)
        and (one.destination is None or destination in one.destination)
        and one.source_port in (0, ports[0])
        and one.destination_port in (0, ports[1])
        and one.protocol in (0, proto)
    )


@given(
    captures=st.dictionaries(st.integers(0, 63), st.lists(filters(), min_size=1, max_size=4), max_size=4),
    source=addresses,
    destination=addresses,
    ports=st.tuples(*[st.sampled_from([53, 80, 443])] * 2),
    proto=st.sampled_from([6, 17]),
)
def test_tables_mean_what_the_filters_mean(
    captures: dict[int, list[Filter]],
    source: Address,
    destination: Address,
    ports: tuple[int, int],
    proto: int,
) -> None:
    """A packet is found by exactly the captures of which a filter matches, however they overlap."""
    rows = lower({bit: Wanted(filters=tuple(each)) for bit, each in captures.items()})
    assume(source.version == destination.version)
    meant = 0
    for bit, each in captures.items():
        meant |= any(matches(one, source, destination, ports, proto) for one in each) << bit
    assert wanted_by(rows, packet(source, destination, ports, proto)) == meant


def test_a_shape_keeps_its_slot() -> None:
    """While captures come and go, one that stays is found under the same slot."""
    first, second, third = (Wanted(filters=(parse(text),)) for text in ("192.0.2.1", "tcp/80", "from 192.0.2.0/24"))
    before = lower({0: first, 1: second})
    after = lower({1: second}, before.slots)
    assert (before.slots[1], after.slots[0]) == (after.slots[1], None)
    again = lower({1: second, 2: third}, after.slots)
    assert (again.slots[1], len(again.slots)) == (before.slots[1], 2)
    assert lower({}, again.slots).slots == ()


def test_too_many_shapes() -> None:
    """The kernel's table ends somewhere, and the message says what to do."""
    every = tuple(Filter(destination=ip_network((0, bits))) for bits in range(MOST_SHAPES))
    assert len(lower({0: Wanted(filters=every)}).slots) == MOST_SHAPES
    with pytest.raises(TooManyShapes, match="equal lengths"):
        lower({0: Wanted(filters=(*every, parse("tcp")))})


def test_the_longest_snap_length_wins() -> None:
    """Two captures of the same filter share a rule, which keeps what either wants."""
    one = parse("tcp")
    rows = lower({0: Wanted(filters=(one,), received=64, sent=0), 5: Wanted(filters=(one,), received=0, sent=128)})
    (value,) = rows.rules.values()
    assert dict(value) == {"captures": 0b100001, "snaplen": struct.pack("=II", 64, 128)}


def test_filters_of_a_resource() -> None:
    """A resource's filter means what the same words mean on the command line."""
    (one,) = of_resource(source="198.51.100.0/24", destination="192.0.2.10", destination_port=80, protocol="TCP")
    assert one == parse("from 198.51.100.0/24 to 192.0.2.10 tcp/80")
    assert of_resource() == (Filter(),)


@pytest.mark.parametrize(
    ("source", "protocols"), [("", [1, 58]), ("192.0.2.0/24", [1]), ("2001:db8::/32", [58])]
)  # fmt: skip
def test_icmp_of_a_resource(source: str, protocols: list[int]) -> None:
    """ICMP is that of the prefix's family, and without a prefix both families'."""
    assert [one.protocol for one in of_resource(source=source, protocol="ICMP")] == protocols


def test_families_of_a_resource_agree() -> None:
    with pytest.raises(ValueError, match="mix"):
        of_resource(source="192.0.2.1", destination="2001:db8::1")


def test_each_capture_gets_what_it_asked_for() -> None:
    """A capture gets neither bytes nor taps that only another one wanted."""
    taken = Captured(tap=1, packet_id=1, time_ns=1, frame=b"x" * 100, length=200, captures=0b101)
    headers = Wanted(filters=(), received=0, sent=40)
    got = share(taken, 0, headers)
    assert got is not None
    assert (got.frame, got.length, got.packet_id) == (b"x" * 40, 200, 1)
    assert share(taken, 1, headers) is None
    assert share(taken, 2, Wanted(filters=(), sent=0)) is None
