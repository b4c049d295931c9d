"""Facts about the doors to the load balancer's maps, on real maps: ids, shared tables, swaps, and what survives an agent."""

from __future__ import annotations

import itertools
import os
import shutil
from array import array
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.crds.cluster_state import BalancedService
from tidegate.crds.lb import Backend, Frontend, LoadBalancerSpec
from tidegate.datapath import libbpf, maglev
from tidegate.datapath.facts import Facts, Interface
from tidegate.datapath.layout import Field, Fields, MapLayout, Record, fields
from tidegate.datapath.lowering import lb
from tidegate.datapath.order import Order
from tidegate.datapath.table import Receipt, reconcile
from tidegate.datapath.tables.lb import BackendTable, ServiceTable, preferred_id
from tidegate.datapath.tables.maps import ArrayTable, HashTable
from tidegate.datapath.tables.slots import REST_NS, Range, SlotRanges

NUMBER = Record(4, (Field("value", 0, 4, True),))
IDS, SERVICES, SLOTS = 64, 64, 16384


def record(*members: tuple[str, int, bool]) -> Record:
    at, made = 0, []
    for name, size, is_integer in members:
        at += -at % min(size, 8)
        made.append(Field(name, at, size, is_integer))
        at += size
    return Record(at + -at % 8, tuple(made))


BACKEND = record(("addr", 16, False), ("port", 2, True), ("born", 4, True))
SERVICE = record(
    ("offset", 4, True), ("size", 4, True), ("before_offset", 4, True), ("before_size", 4, True), ("before_until", 8, True),
    ("digest", 8, True), ("seed", 4, True), ("before_seed", 4, True), ("flags", 4, True), ("affinity_s", 4, True),
    ("source4", 16, False), ("source6", 16, False), ("len4", 1, True), ("len6", 1, True),
)  # fmt: skip
UPLINK = Interface("eth0", 2, "", 1500, (ip_address("172.30.0.11"),))
FACTS = Facts(uplinks=(UPLINK,))


@pytest.fixture
def pins() -> Iterator[Path]:
    if os.geteuid():
        pytest.skip("needs root")
    folder = Path(f"/sys/fs/bpf/tidegate-control-{os.getpid()}")
    folder.mkdir()
    pin(libbpf.map_create(libbpf.MAP_ARRAY, "tg_backend", (4, BACKEND.size), IDS, 0), folder / "tg_backend")
    pin(libbpf.map_create(libbpf.MAP_ARRAY, "tg_service", (4, SERVICE.size), SERVICES, 0), folder / "tg_service")
    pin(libbpf.map_create(libbpf.MAP_ARRAY, "tg_slots", (4, 8), SLOTS // 2, libbpf.F_MMAPABLE), folder / "tg_slots")
    yield folder
    shutil.rmtree(folder)


def pin(fd: int, path: Path) -> None:
    libbpf.obj_pin(fd, path)
    os.close(fd)


class Node:
    """The doors as one agent has them."""

    def __init__(self, pins: Path, nonce: Iterator[int] | None = None) -> None:
        self.pins, self.clock = pins, 1000
        self.rows = ArrayTable(pins / "tg_service", MapLayout("tg_service", NUMBER, SERVICE))
        self.slots = SlotRanges(pins / "tg_slots", lambda: self.clock)
        counter = nonce or itertools.count(1)
        backends = ArrayTable(pins / "tg_backend", MapLayout("tg_backend", NUMBER, BACKEND))
        self.backends = BackendTable(backends, IDS, lambda: next(counter))
        self.services = ServiceTable(
            self.rows, self.slots, self.backends, lambda: self.clock, lambda: datetime(2030, 1, 1, tzinfo=UTC)
        )

    def apply(self, *services: BalancedService, **order: Any) -> Receipt:
        made = lb.lower(Order(node="lb-1", services=services, **order), FACTS)
        wanted = [row for row in made if row.table in ("tg_backend", "tg_service")]
        return reconcile([self.backends, self.services], wanted)

    def names(self, number: int, size: int) -> list[str | None]:
        """What the kernel's table says, with names for ids."""
        by_id = {number: key for key, number in self.backends.ids.items()}
        found = self.range(number)
        assert found is not None
        assert found.size == size
        return [port_of(by_id[each]) if each else None for each in self.slots.read(found)]

    def row(self, number: int) -> dict[str, Any]:
        return dict(self.rows.read().get(fields(value=number), ()))

    def range(self, number: int, before: str = "") -> Range | None:
        row = self.row(number)
        return Range(row[before + "offset"], row[before + "size"]) if before + "offset" in row else None


def port_of(key: Fields) -> str:
    raw = dict(key)["addr"]
    assert isinstance(raw, bytes)
    return str(ip_address(raw[12:]))


def service(number: int, *last: int, name: str = "", **changes: Any) -> BalancedService:
    spec = LoadBalancerSpec(
        frontends=[Frontend(address=f"192.0.2.{number}", port=80)],
        backends=[Backend(address=f"10.0.0.{each}", port=80) for each in last],
        **({"tableSize": 251} | changes),
    )
    return BalancedService(name=name or f"s{number}", uid=f"{number}", number=number, spec=spec)


def test_the_kernel_has_the_canonical_table(pins: Path) -> None:
    """Slot by slot, with ids in place of names; doing it again does nothing."""
    node = Node(pins)
    assert node.apply(service(1, 1, 2, 3)).failures == []
    table = maglev.build({f"10.0.0.{n}:80": 1 for n in (1, 2, 3)}, 251, "tidegate")
    assert node.names(2, 251) == [table.names[slot].removesuffix(":80") for slot in table.slots]
    again = node.apply(service(1, 1, 2, 3))
    assert (again.puts, again.drops) == ({}, {})


def test_equal_tables_are_one_range(pins: Path) -> None:
    """Two services with the same backends share the memory, under every agent, and part when one of them changes."""
    node = Node(pins)
    node.apply(service(1, 1, 2), service(2, 1, 2), service(3, 1))
    assert node.range(2) == node.range(4) != node.range(6)
    fresh = Node(pins, itertools.count(1000))
    fresh.apply(service(1, 1, 2), service(2, 1, 2), service(3, 1, 2))
    assert fresh.range(2) == fresh.range(4) == fresh.range(6)
    node.apply(service(1, 1, 2), service(2, 2), service(3, 1))
    assert node.range(2) != node.range(4)
    assert set(node.names(2, 251)) == {"10.0.0.1", "10.0.0.2"}


def test_ids_outlive_the_agent(pins: Path) -> None:
    """A new agent gives nobody a new id, and computes nothing."""
    node = Node(pins)
    node.apply(service(1, 1, 2, 3))
    ids, table = dict(node.backends.ids), node.range(2)
    fresh = Node(pins, itertools.count(1000))
    assert fresh.apply(service(1, 1, 2, 3)).puts == {}
    assert (fresh.backends.ids, fresh.range(2)) == (ids, table)


def test_an_id_given_anew_is_born_anew(pins: Path) -> None:
    """A flow of the backend that had the id before can be told from one of the next."""
    node = Node(pins)
    node.apply(service(1, 1, 2))
    key = next(key for key in node.backends.ids if port_of(key) == "10.0.0.1")
    number = node.backends.ids[key]
    born = dict(dict(ArrayTable(pins / "tg_backend", MapLayout("b", NUMBER, BACKEND)).read())[fields(value=number)])["born"]
    node.apply(service(1, 2))
    assert key not in node.backends.ids
    node.apply(service(1, 1, 2))
    after = dict(dict(ArrayTable(pins / "tg_backend", MapLayout("b", NUMBER, BACKEND)).read())[fields(value=number)])["born"]
    assert node.backends.ids[key] == number
    assert after != born


def test_the_table_before_counts_for_a_while(pins: Path) -> None:
    """It is the very range that was in force; the row says until when, with its size and seed."""
    node = Node(pins)
    node.apply(service(1, 1, 2, 3, graceSeconds=7))
    old = node.range(2)
    node.apply(service(1, 1, 2, graceSeconds=7, tableSize=509))
    assert node.range(2, "before_") == old
    row = node.row(2)
    assert (row["before_until"], row["before_size"], row["size"]) == (1000 + 7 * 10**9, 251, 509)
    assert row["before_seed"] == row["seed"] == maglev.flow_seed("tidegate")
    # What does not concern the table leaves all that as it is.
    node.clock = 5000
    node.apply(service(1, 1, 2, graceSeconds=7, tableSize=509, innerPort="Backend"))
    assert node.row(2) == row | {"flags": lb.INNER_PORT}


def test_of_several_changes_the_first_ones_table_before_counts(pins: Path) -> None:
    """Within its time it is kept through further changes; after it the next change brings its own."""
    node = Node(pins)
    node.apply(service(1, 1, 2, 3, graceSeconds=7))
    first = node.range(2)
    node.apply(service(1, 1, 2, graceSeconds=7))
    until = node.row(2)["before_until"]
    node.clock += 6 * 10**9
    node.apply(service(1, 1, graceSeconds=7))
    assert (node.range(2, "before_"), node.row(2)["before_until"]) == (first, until)
    node.clock += 2 * 10**9
    last = node.range(2)
    node.apply(service(1, 1, 4, graceSeconds=7))
    assert node.range(2, "before_") == last


def test_without_grace_there_is_no_table_before(pins: Path) -> None:
    """Zero seconds mean what they say."""
    node = Node(pins)
    node.apply(service(1, 1, 2, graceSeconds=0))
    node.apply(service(1, 1, graceSeconds=0))
    assert node.range(2, "before_") is None
    assert "before_until" not in node.row(2)


@pytest.mark.parametrize(("size", "seed"), [(251, "tidegate"), (509, "tidegate"), (251, "other")])
def test_what_moved_is_counted_in_the_kernel(pins: Path, size: int, seed: str) -> None:
    """The measured figure is what the tables say before they are applied."""
    node = Node(pins)
    node.apply(service(1, 1, 2, 3))
    assert node.services.changes == {}
    node.apply(service(1, 1, 2, tableSize=size, hashSeed=seed))
    names = {f"10.0.0.{n}:80": n for n in (1, 2, 3)}
    before = maglev.build(dict.fromkeys(names, 1), 251, "tidegate")
    after = maglev.build(dict.fromkeys(list(names)[:2], 1), size, seed)
    one, other = (maglev.translate(t.slots, array("I", [names[name] for name in t.names])) for t in (before, after))
    expected = maglev.share_moved(one, other, is_same_seed=seed == "tidegate")
    assert node.services.changes[2].slots_moved == round(expected * size) > 0


def test_nobody_left(pins: Path) -> None:
    """Without a backend each slot says none; with one again it works again."""
    node = Node(pins)
    node.apply(service(1))
    assert set(node.names(2, 251)) == {None}
    node.apply(service(1, 1))
    assert set(node.names(2, 251)) == {"10.0.0.1"}


def test_a_service_that_is_gone_leaves_nothing(pins: Path) -> None:
    """Row, both tables and ids."""
    node = Node(pins)
    node.apply(service(1, 1, 2), service(2, 2))
    node.apply(service(1, 1), service(2, 2))
    node.apply(service(2, 2))
    assert (node.row(2), node.range(2), node.range(2, "before_")) == ({}, None, None)
    assert [port_of(key) for key in node.backends.ids] == ["10.0.0.2"]


def test_a_row_that_names_no_table_is_no_service(pins: Path) -> None:
    """Somebody wrote it; it is put again, with its table."""
    node = Node(pins)
    node.apply(service(1, 1))
    row = node.row(2)
    node.rows.put(fields(value=2), fields(**{name: value for name, value in row.items() if name != "offset"}))
    node.apply(service(1, 1))
    assert set(node.names(2, 251)) == {"10.0.0.1"}


def test_a_change_that_a_crash_cut_short_is_done_again(pins: Path) -> None:
    """The row is the last thing that is written, and until then nothing of the table in force is."""
    node = Node(pins)
    node.apply(service(1, 1, 2))
    real, node.rows.put = node.rows.put, crash  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        node.apply(service(1, 2))
    node.rows.put = real  # type: ignore[method-assign]
    assert set(node.names(2, 251)) == {"10.0.0.1", "10.0.0.2"}
    fresh = Node(pins, itertools.count(1000))
    fresh.apply(service(1, 2))
    assert set(fresh.names(2, 251)) == {"10.0.0.2"}


def crash(*_: object) -> None:
    raise KeyboardInterrupt


def test_more_backends_than_ids(pins: Path) -> None:
    """The service says so, and its table stays as it was."""
    node = Node(pins)
    node.apply(service(1, 1))
    failures = node.apply(service(1, *range(1, IDS + 5))).failures
    assert {failure.owner for failure in failures} == {"LoadBalancer/s1"}
    assert any("ids are given" in failure.message for failure in failures)
    assert any(failure.table == "tg_service" for failure in failures)
    assert set(node.names(2, 251)) == {"10.0.0.1"}


def test_ids_collide_and_part(pins: Path) -> None:
    """As many backends as there are ids have one each, near the one that they prefer."""
    node = Node(pins)
    node.apply(service(1, *range(1, IDS)))
    assert sorted(node.backends.ids.values()) == list(range(1, IDS))
    lonely = Node(pins)
    lonely.apply()
    lonely.apply(service(1, 9))
    ((key, number),) = lonely.backends.ids.items()
    assert number == preferred_id(key, IDS)


def test_a_freed_range_rests(pins: Path) -> None:
    """What a packet may still read is not written: neither the table in force, nor the one before, nor one just dropped."""
    node = Node(pins)
    node.apply(service(1, 1, 2, graceSeconds=7))
    first = node.range(2)
    node.apply(service(1, 1, graceSeconds=7))
    second = node.range(2)
    node.clock = 1000 + 7 * 10**9 + REST_NS - 1
    node.apply(service(1, 1, graceSeconds=7), service(2, 2))
    assert node.range(4) not in (first, second, None)
    node.clock += REST_NS + 1
    # It counts no more; from the moment that this is seen on, it rests.
    node.apply(service(1, 1, graceSeconds=7), service(2, 2), service(3, 3))
    assert node.range(6) not in (first, second, node.range(4))
    node.clock += REST_NS
    node.apply(service(1, 1, graceSeconds=7), service(2, 2), service(3, 3), service(4, 4))
    assert node.range(8) == first


def test_a_fresh_agent_writes_over_nothing(pins: Path) -> None:
    """It knows from the rows what is taken."""
    node = Node(pins)
    node.apply(service(1, 1, 2, graceSeconds=7))
    node.apply(service(1, 1, graceSeconds=7))
    fresh = Node(pins, itertools.count(1000))
    fresh.apply(service(1, 1, graceSeconds=7), service(2, 2))
    taken = [fresh.range(2), fresh.range(2, "before_"), fresh.range(4)]
    assert len(set(taken)) == 3
    assert set(fresh.names(2, 251)) == {"10.0.0.1"}


def test_the_array_is_full(pins: Path) -> None:
    """The service says so, and names the remedy; the others stay as they are, and room that becomes free is used."""
    node = Node(pins)
    some = [replace_seed(service(number, 1, graceSeconds=0), f"{number}") for number in range(1, 31)]
    big = service(31, 1, graceSeconds=0, tableSize=10007)
    assert node.apply(*some).failures == []
    failures = node.apply(*some, big).failures
    assert {failure.owner for failure in failures} == {"LoadBalancer/s31"}
    assert "no room for a table of 10007 slots: 30 tables take 7530 of 16384" in failures[0].message
    assert "--max-slots" in failures[0].message
    assert set(node.names(60, 251)) == {"10.0.0.1"}
    node.apply()
    assert node.apply(big).failures != []
    node.clock += REST_NS
    assert node.apply(big).failures == []
    assert set(node.names(62, 10007)) == {"10.0.0.1"}


def replace_seed(given: BalancedService, seed: str) -> BalancedService:
    return msgspec.structs.replace(given, spec=msgspec.structs.replace(given.spec, hashSeed=seed))


def test_a_hash_is_read_whole(pins: Path) -> None:
    """Many rows come in batches, none twice, none missing."""
    hash_kind = 1
    layout = MapLayout("h", NUMBER, NUMBER)
    pin(libbpf.map_create(hash_kind, "h", (4, 4), 20000, 0), pins / "h")
    table = HashTable(pins / "h", layout)
    wanted = {fields(value=n): fields(value=n + 1) for n in range(1, 9001)}
    for key, value in wanted.items():
        table.put(key, value)
    assert table.read() == wanted
    table.drop(fields(value=77))
    del wanted[fields(value=77)]
    assert table.read() == wanted
