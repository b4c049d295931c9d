"""Choice of subnets: those with room, in the right place; blocks that are whole."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from tidegate.ipam.choose import Room, SubnetView, widest_block
from tidegate.ipam.cloud import Kind, Subnet

ITEM = st.one_of(
    st.integers(0, 255).map(lambda n: f"10.0.0.{n}"),
    st.integers(0, 15).map(lambda n: f"10.0.0.{n * 16}/28"),
    st.just("10.9.0.1"),
    st.just("2001:db8::1"),
)


@given(st.lists(ITEM, max_size=40))
def test_widest_block_is_that_of_a_search(taken: list[str]) -> None:
    """It is the length that trying every block of every length finds."""
    held = [ip_network(each) for each in taken]
    whole = ip_network("10.0.0.0/24")
    expected = next(
        (
            length
            for length in range(24, 33)
            if any(not any(block.version == each.version and block.overlaps(each) for each in held)
                   for block in whole.subnets(new_prefix=length))
        ),
        -1,
    )  # fmt: skip
    assert widest_block(["2001:db8::/64", "10.0.0.0/24"], taken) == expected


def view(
    name: str, free: int, zone: str = "a", network: str = "vpc", cidrs: tuple[str, ...] = ("10.0.0.0/24",), **more: float
) -> SubnetView:
    subnet = Subnet(id=name, network=network, zone=zone, cidrs=cidrs, free=free)
    return SubnetView(subnet, exhausted_until=more.get("exhausted", 0), fragmented_until=more.get("fragmented", 0),
                      whole=int(more.get("whole", 24)))  # fmt: skip


def choose(*views: SubnetView, kind: Kind = Kind.ADDRESS_4, now: float = 100.0) -> str | None:
    room = Room({each.subnet.id: each for each in views})
    return room.choose([each.subnet.id for each in views], "a", "vpc", kind, 28, now)


def test_the_one_with_most_room_in_zone_and_network() -> None:
    """Neither another zone nor another network counts, however empty."""
    assert choose(view("s1", 10), view("s2", 20), view("s3", 90, zone="b"), view("s4", 90, network="other")) == "s2"
    assert choose(view("s3", 90, zone="b")) is None


def test_prefixes_need_a_whole_block() -> None:
    """A half-empty subnet without a contiguous block is passed over for prefixes, and serves single addresses."""
    torn, whole = view("torn", 120, whole=30), view("whole", 40, whole=27)
    assert choose(torn, whole, kind=Kind.PREFIX_4) == "whole"
    assert choose(torn, kind=Kind.PREFIX_4) is None
    assert choose(torn, whole) == "torn"


def test_a_refusal_is_remembered_for_a_while() -> None:
    """Exhausted counts for everything, fragmented for prefixes only, each until its time is over."""
    assert choose(view("s1", 90, exhausted=101), view("s2", 10)) == "s2"
    assert choose(view("s1", 90, exhausted=99), view("s2", 10)) == "s1"
    assert choose(view("s1", 90, fragmented=101), view("s2", 50), kind=Kind.PREFIX_4) == "s2"
    assert choose(view("s1", 90, fragmented=101), view("s2", 50)) == "s1"


def test_family_must_be_there() -> None:
    """IPv6 comes only of a subnet that has it."""
    assert choose(view("s1", 90), view("s2", 10, cidrs=("10.0.0.0/24", "2001:db8::/64")), kind=Kind.ADDRESS_6) == "s2"


def test_what_a_plan_takes_is_gone_for_the_next() -> None:
    """Two nodes planned together do not both get the last addresses."""
    room = Room({"s1": view("s1", 12)})
    room.take("s1", 11)
    assert room.choose(["s1"], "a", "vpc", Kind.ADDRESS_4, 28, 0.0) is None
    assert room.free("s1") == 1
