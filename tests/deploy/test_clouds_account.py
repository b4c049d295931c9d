"""Facts about the account in memory that the virtual clouds share: addresses, time, tokens, faults and limits."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.ipam.cloud import Kind, Verb
from tidegate.lab.clouds.buckets import Limit, TokenBucket
from tidegate.lab.clouds.faults import Fault, Moment, Script
from tidegate.lab.clouds.gate import Call
from tidegate.lab.clouds.records import Nic
from tidegate.lab.clouds.refusals import ConnectionDropped, Refusal, Refused
from tidegate.lab.clouds.rules import RULES, TYPES, Provider
from tidegate.lab.clouds.space import Space
from tidegate.lab.clouds.vpc import VirtualCloud


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def account(provider: Provider = "alibaba", time: Time | None = None, **rules: Any) -> VirtualCloud:
    made = VirtualCloud(replace(RULES[provider], **rules), time or Time())
    made.add_types(TYPES[provider])
    made.add_subnet("s", "v", "z", ["10.0.0.0/24", "2001:db8::/64"])
    made.add_subnet("tiny", "v", "z", ["10.0.1.0/28"])
    made.add_group("g", "v")
    made.launch("i", next(iter(TYPES[provider])), "s", ["g"])
    return made


def create(made: VirtualCloud, token: str = "", count: int = 0, subnet: str = "s", **more: Any) -> Nic:
    return made.create(token, subnet, ["g"], {}, Kind.ADDRESS_4, count, **more)


def why(call: Callable[[], object]) -> Refusal:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.why


# Addresses.


@given(st.lists(st.sampled_from(["one", "block", "give"]), max_size=60), st.integers(0, 2**32))
def test_no_address_has_two_owners_and_none_is_lost(steps: list[str], seed: int) -> None:
    rng = random.Random(seed)
    space = Space(ip_network("10.0.0.0/26"), 28, 4, 1, rng.randrange)
    held: list[str] = []
    for step in steps:
        if step == "give":
            if held:
                space.give(held.pop(rng.randrange(len(held))))
        elif step == "one":
            if space.free:
                held.append(space.take())
            else:
                assert why(space.take) is Refusal.SUBNET_FULL
        elif space.free_blocks:
            held.append(space.take_block())
        else:
            assert why(space.take_block) is Refusal.FRAGMENTED
        owned = [address for item in held for address in ip_network(item)]
        kept = [*range(4), 63]
        assert len({*owned}) == len(owned)
        assert not {ip_network("10.0.0.0/26")[offset] for offset in kept} & {*owned}
        assert space.free == 64 - len(kept) - len(owned)


def test_scattered_addresses_leave_no_whole_prefix_in_a_half_empty_subnet() -> None:
    scattered = Space(ip_network("10.0.0.0/24"), 28, 1, 3, random.Random(1).randrange)
    packed = Space(ip_network("10.0.0.0/24"), 28, 1, 3)
    for space in (scattered, packed):
        for _ in range(100):
            space.take()
    assert scattered.free == packed.free == 152
    assert (scattered.free_blocks, packed.free_blocks) == (0, 8)
    assert why(scattered.take_block) is Refusal.FRAGMENTED


def test_a_part_kept_for_prefixes_stays_whole() -> None:
    space = Space(ip_network("10.0.0.0/24"), 28, 1, 3)
    space.keep("10.0.0.64/26")
    singles = [space.take() for _ in range(252 - 64)]
    assert why(space.take) is Refusal.SUBNET_FULL
    assert not {*ip_network("10.0.0.64/26")} & {address for item in singles for address in ip_network(item)}
    assert [space.take_block() for _ in range(4)] == ["10.0.0.64/28", "10.0.0.80/28", "10.0.0.96/28", "10.0.0.112/28"]
    assert why(space.take_block) is Refusal.FRAGMENTED


def test_a_named_address_is_taken_once() -> None:
    space = Space(ip_network("10.0.0.0/24"), 28, 1, 3)
    assert space.take_this("10.0.0.9") == "10.0.0.9"
    assert why(lambda: space.take_this("10.0.0.9")) is Refusal.IN_USE


# All or nothing.


def test_a_creation_that_finds_no_room_leaves_nothing_behind() -> None:
    made = account()
    free = made.nets["tiny"].spaces["4"].free
    assert why(lambda: create(made, count=free, subnet="tiny")) is Refusal.SUBNET_FULL
    assert made.nets["tiny"].spaces["4"].free == free
    assert [nic.instance for nic in made.nics.values()] == ["i"]


def test_an_assignment_that_finds_no_room_for_all_gives_none() -> None:
    made = account()
    nic = create(made, subnet="tiny")
    free = made.nets["tiny"].spaces["4"].free
    for _ in range(free - 2):
        made.nets["tiny"].spaces["4"].take()
    assert why(lambda: made.assign(nic.id, Kind.ADDRESS_4, 3)) is Refusal.SUBNET_FULL
    assert (nic.items, made.nets["tiny"].spaces["4"].free) == ({}, 2)


def test_of_items_that_are_not_all_there_none_is_taken_away() -> None:
    made = account()
    nic = create(made, count=2)
    items = [*nic.items]
    assert why(lambda: made.unassign(nic.id, [items[0], "10.0.0.250"])) is Refusal.NOT_ASSIGNED
    assert [*nic.items] == items


# Time.


def test_changes_take_their_time_and_are_told() -> None:
    time = Time()
    made = account("aws", time, create_s=1.0, attach_s=3.0, detach_s=2.0, seen_s=0.0)
    heard: list[tuple[str, str]] = []
    made.listeners.append(lambda event, nic: heard.append((event, nic.state)))
    nic = create(made)
    assert why(lambda: made.attach(nic.id, "i")) is Refusal.STATE
    for now_s, change, state in (
        (1.0, lambda: made.attach(nic.id, "i"), "Attaching"),
        (4.0, lambda: made.detach(nic.id, "i"), "Detaching"),
        (6.0, lambda: made.delete(nic.id), "Available"),
    ):
        time.now_s = now_s
        change()
        assert nic.state == state
    assert heard == [("created", "Creating"), ("attached", "InUse"), ("detached", "Available"), ("deleted", "Available")]


def test_a_machine_that_ends_while_it_gets_an_interface_frees_it() -> None:
    time = Time()
    made = account(time=time, attach_s=3.0)
    stays, goes = create(made), create(made, delete_with_instance=True)
    for nic in (stays, goes):
        made.attach(nic.id, "i", delete_with_instance=None)
    made.end("i")
    time.now_s = 10.0
    made.settle()
    assert (stays.state, stays.instance) == ("Available", "")
    assert [*made.nics] == [stays.id]


def test_a_detachment_that_the_end_of_a_machine_overtook_does_not_touch_the_next_one() -> None:
    time = Time()
    made = account(time=time, attach_s=0.0, detach_s=5.0)
    made.launch("next", "ecs.g7.large", "s", ["g"])
    nic = create(made)
    made.attach(nic.id, "i")
    made.detach(nic.id, "i")
    made.end("i")
    made.attach(nic.id, "next")
    time.now_s = 5.0
    made.settle()
    assert (nic.state, nic.instance) == ("InUse", "next")


def test_what_came_with_a_machine_stays_with_it() -> None:
    made = account()
    [native] = made.nics.values()
    assert why(lambda: made.detach(native.id, "i")) is Refusal.STATE
    assert why(lambda: made.attach(create(made).id, "i", 0)) is Refusal.INDEX_TAKEN


def test_describes_show_a_change_later_even_one_that_nobody_watched() -> None:
    time = Time()
    made = account("aws", time, seen_s=5.0, create_s=1.0)
    nic = create(made)
    time.now_s = 5.5
    assert [each.state for each in made.seen() if each.id == nic.id] == ["Creating"]
    time.now_s = 6.0
    assert [each.state for each in made.seen() if each.id == nic.id] == ["Available"]


def test_a_new_interface_is_unknown_by_its_id_at_first() -> None:
    time = Time()
    made = account("aws", time, known_s=2.0, create_s=0.0)
    nic = create(made)
    assert why(lambda: made.assign(nic.id, Kind.ADDRESS_4, 1)) is Refusal.NO_INTERFACE
    time.now_s = 2.0
    assert made.assign(nic.id, Kind.ADDRESS_4, 1)


# Tokens.


def test_a_token_outlives_its_interface() -> None:
    """The provider answers as it did, although the interface is gone: only a look tells."""
    made = account()
    nic = create(made, "t")
    made.delete(nic.id)
    assert create(made, "t").id == nic.id
    assert nic.id not in made.nics


def test_a_failed_creation_uses_up_no_token() -> None:
    made = account()
    assert why(lambda: made.create("t", "s", ["none"], {}, Kind.ADDRESS_4, 0)) is Refusal.NO_GROUP
    assert create(made, "t").id in made.nics


# Azure's way of writing.


def test_named_items_are_made_what_is_wanted_all_or_none() -> None:
    made = account("azure", change_s=0.0)
    [nic] = made.nics.values()
    made.configure(nic.id, {"tg-a": Kind.ADDRESS_4, "tg-b": Kind.ADDRESS_6})
    kept = {name: item for item, name in nic.items.items()}
    made.configure(nic.id, {"tg-a": Kind.ADDRESS_4, "tg-c": Kind.PREFIX_4})
    assert {*nic.items.values()} == {"tg-a", "tg-c"}
    assert nic.items[kept["tg-a"]] == "tg-a"
    before, free = dict(nic.items), made.nets["s"].spaces["4"].free
    wanted = {f"tg-{number}": Kind.PREFIX_4 for number in range(40)}
    assert why(lambda: made.configure(nic.id, wanted)) is Refusal.FRAGMENTED
    assert (nic.items, made.nets["s"].spaces["4"].free) == (before, free)


def test_a_write_from_a_stale_view_or_during_another_is_refused() -> None:
    time = Time()
    made = account("azure", time, change_s=2.0)
    [nic] = made.nics.values()
    version = nic.version
    operation = made.configure(nic.id, {"tg-a": Kind.ADDRESS_4}, version)
    assert operation.done_s == 2.0
    assert why(lambda: made.configure(nic.id, {}, nic.version)) is Refusal.BUSY
    time.now_s = 2.0
    assert why(lambda: made.configure(nic.id, {}, version)) is Refusal.CONFLICT
    failing = made.configure(nic.id, {}, nic.version, fails="SubnetIsFull")
    assert (failing.fails, [*nic.items.values()]) == ("SubnetIsFull", ["tg-a"])


# The gate.


@given(st.integers(1, 1000), st.lists(st.floats(0, 30), max_size=300))
def test_no_minute_sees_more_than_the_limit_of_a_minute(count: int, pauses: list[float]) -> None:
    bucket = TokenBucket(Limit.per_minute(count), 0.0)
    now_s, passed = 0.0, []
    for pause_s in pauses:
        now_s += pause_s
        while bucket.take(now_s) == 0:
            passed.append(now_s)
    for begin_s in passed[:: max(len(passed) // 20, 1)]:
        assert sum(begin_s <= at_s < begin_s + 60 for at_s in passed) <= count + 1


def test_an_empty_bucket_tells_when_the_next_request_may_come() -> None:
    bucket = TokenBucket(Limit(1, 0.5), 0.0)
    assert [bucket.take(0.0), bucket.take(0.0), bucket.take(1.5)] == [0.0, 2.0, 0.5]
    assert bucket.take(2.0) == 0.0


def test_faults_strike_in_their_order_after_those_that_pass() -> None:
    script = Script()
    script.add(Verb.CREATE, [Fault(Refusal.SERVER, skip=2), Fault(None)])
    struck = [script.next(Verb.CREATE, "Create") for _ in range(5)]
    assert [fault and fault.how for fault in struck] == [None, None, Refusal.SERVER, None, None]
    assert (struck[3] is not None, script.left()) == (True, 0)


def test_a_request_is_witnessed_before_and_after_its_effect() -> None:
    made = account()
    seen: list[tuple[str, int]] = []

    def die(stage: str, call: Call) -> None:
        seen.append((stage, len(made.nics)))
        if stage == "after":
            raise KeyboardInterrupt

    made.gate.witness = die
    with pytest.raises(KeyboardInterrupt):
        made.gate.serve(Call(Verb.CREATE, "Create"), lambda: create(made))
    assert seen == [("before", 1), ("after", 2)]


@pytest.mark.parametrize(("moment", "effects"), [(Moment.BEFORE, 0), (Moment.AFTER, 1)])
def test_a_dropped_connection_has_its_effect_or_not(moment: Moment, effects: int) -> None:
    made = account()
    done: list[int] = []
    made.gate.faults.add(Verb.DELETE, [Fault(None, moment)])
    with pytest.raises(ConnectionDropped):
        made.gate.serve(Call(Verb.DELETE, "Delete"), lambda: done.append(1))
    assert len(done) == effects


def test_requests_share_a_bucket_where_the_provider_has_one_for_all_writes() -> None:
    made = account("azure", limits={"write": Limit(1, 0.1)})
    made.gate.serve(Call(Verb.ASSIGN, "Put"), lambda: None)
    assert why(lambda: made.gate.serve(Call(Verb.UNASSIGN, "Put"), lambda: None)) is Refusal.THROTTLED
    assert made.gate.throttled == {Verb.UNASSIGN: 1}
