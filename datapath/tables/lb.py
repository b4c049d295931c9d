"""Backends and services in the kernel: ids given to backends, and tables computed, filled and swapped in one step each."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from tidegate.crds.memo import remembered
from tidegate.datapath import maglev
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.maps import ArrayTable
from tidegate.datapath.tables.slots import REST_NS, Range, SlotRanges

_OURS = ("offset", "before_offset", "before_size", "before_seed", "before_until")
"""Fields of `tg_service` that nobody wants: the door fills them."""

_Row = Mapping[str, int | bytes]


@dataclass(frozen=True)
class Recipe:
    """What a table is computed from, and how long the one before it counts; `backends` has the map key of each name."""

    weights: Mapping[str, int]
    backends: Mapping[str, Fields]
    size: int
    seed: str
    grace_s: int = 0

    @cached_property
    def digest(self) -> int:
        """Name the table without computing it."""
        return maglev.digest(self.weights, self.size, self.seed)


@dataclass(frozen=True)
class Service:
    """A row of `tg_service`, less where its tables are; `recipe` is known of wanted rows only."""

    row: Fields
    recipe: Recipe | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Change:
    """What a swap of a service's table did: slots that now have another backend, and when."""

    slots_moved: int
    at: datetime


class BackendTable:
    """Backends by address and port. Their ids are read back from the kernel, so that they outlive the agent."""

    name = "tg_backend"

    def __init__(self, rows: ArrayTable, size: int, nonce: Callable[[], int]) -> None:
        """`size` is how many ids there are, with 0 for none; `nonce` gives 32 bits that differ from one call to the next."""
        self._rows, self._size, self._nonce = rows, size, nonce
        self.ids: dict[Fields, int] = {}
        self._born: dict[Fields, int] = {}
        self._taken: set[int] = set()
        self._understood = remembered(_understand)

    def read(self) -> Mapping[Fields, Fields]:
        """Return the backends that have an id."""
        self.ids, self._born, found = {}, {}, {}
        for key, value in self._rows.read().items():
            born, backend, row = self._understood(value)
            if born:
                self.ids[backend], self._born[backend] = int(dict(key).get("value", 0)), born
                found[backend] = row
        self._taken = set(self.ids.values())
        return found

    def put(self, key: Fields, value: Fields) -> None:
        """Give a backend the first free id from a hash of it on: machines with the same backends mostly agree.

        One that has its id keeps it, and its connections.
        """
        number = self.ids.get(key)
        if number is None:
            number, self._born[key] = self._free(key), self._nonce() or 1
        self._rows.put(fields(value=number), fields(**dict(key), **dict(value), born=self._born[key]))
        self.ids[key] = number
        self._taken.add(number)

    def drop(self, key: Fields) -> None:
        """Take the id back: flows that have it fall to their service's table."""
        number = self.ids.get(key)
        if number is not None:
            self._rows.drop(fields(value=number))
            del self.ids[key], self._born[key]
            self._taken.discard(number)

    def _free(self, key: Fields) -> int:
        if len(self._taken) >= self._size - 1:
            raise TableError(f"all {self._size - 1} ids are given: raise the number of backends (--max-backends)")
        number = preferred_id(key, self._size)
        while number in self._taken:
            number = number % (self._size - 1) + 1
        return number


def _understand(value: Fields) -> tuple[int, Fields, Fields]:
    """Return a row's nonce, the backend's key and its row as lowering gives them."""
    named = dict(value)
    backend = fields(addr=named.get("addr", b""), port=named.get("port", 0))
    return int(named.get("born", 0)), backend, fields(flags=named.get("flags", 0))


def preferred_id(key: Fields, size: int) -> int:
    """Return the id, 1 to `size` - 1, that a backend has if nobody else has it already."""
    named = dict(key)
    written = bytes(named.get("addr", b"")) + int(named.get("port", 0)).to_bytes(2, sys.byteorder)
    hashed = hashlib.blake2b(written, digest_size=8).digest()
    return int.from_bytes(hashed, "little") % (size - 1) + 1


class ServiceTable:
    """Services by number, each with its table. A table that did not change is never computed, equal ones are one range."""

    name = "tg_service"

    def __init__(
        self,
        rows: ArrayTable,
        slots: SlotRanges,
        backends: BackendTable,
        monotonic_ns: Callable[[], int],
        now: Callable[[], datetime],
    ) -> None:
        self._rows, self._slots, self._backends = rows, slots, backends
        self._monotonic_ns, self._now = monotonic_ns, now
        self._present: dict[int, _Row] = {}
        self._named: Callable[[Fields], _Row] = remembered(dict)
        self._wanted = remembered(_less_ours)
        self._is_held = False
        self.changes: dict[int, Change] = {}

    def read(self) -> Mapping[int, Service]:
        """Return the services that are there; where their tables are is kept aside for the next change."""
        raw = {int(dict(key).get("value", 0)): value for key, value in self._rows.read().items()}
        self._present = {number: self._named(value) for number, value in raw.items()}
        self._is_held = False
        # Without its table a service is not there, whatever its row says.
        return {number: self._wanted(value) for number, value in raw.items() if self._present[number].get("offset")}

    def put(self, key: int, value: Service) -> None:
        """Make the service be there, in one step for every packet. If its table changed, the one before counts for a while."""
        if value.recipe is None:
            raise TableError("a service without its recipe cannot be put")
        old, new = self._present.get(key, {}), dict(value.row)
        if old.get("offset") and all(old.get(name) == new.get(name) for name in ("digest", "seed", "size")):
            ours: _Row = {name: old[name] for name in _OURS if name in old}
        else:
            ours = self._change(key, old, new, value.recipe)
        row = {**new, **ours}
        self._rows.put(fields(value=key), fields(**row))
        self._present[key] = row

    def drop(self, key: int) -> None:
        """Remove the service; its tables are free a while later."""
        self._rows.drop(fields(value=key))
        self._present.pop(key, None)
        self.changes.pop(key, None)

    def range_of(self, number: int) -> Range | None:
        """Return where the table of a service is."""
        return next(_ranges(self._present.get(number, {}), 0), (None, 0))[0]

    def _change(self, key: int, old: _Row, new: _Row, recipe: Recipe) -> _Row:
        """Write a new table, count what it will move, and return what the row shall say of both."""
        if not self._is_held:
            now = self._monotonic_ns()
            self._slots.hold(each for row in self._present.values() for each in _ranges(row, now))
            self._is_held = True
        given = self._fill(recipe)
        before = next(_ranges(old, 0), (None, 0))[0]
        if before is None:
            return {"offset": given.offset}
        one, other = self._slots.read(before), self._slots.read(given)
        share = maglev.share_moved(one, other, is_same_seed=old.get("seed", 0) == new.get("seed", 0))
        self.changes[key] = Change(round(share * len(other)), self._now())
        if not recipe.grace_s:
            return {"offset": given.offset}
        if old.get("before_offset") and int(old.get("before_until", 0)) > self._monotonic_ns():
            # Several changes in a short time: the oldest connections are the most, and the hardest to begin anew.
            return {**{name: old[name] for name in _OURS if name in old}, "offset": given.offset}
        return {
            "offset": given.offset,
            "before_offset": before.offset,
            "before_size": before.size,
            "before_seed": old.get("seed", 0),
            "before_until": self._monotonic_ns() + recipe.grace_s * 10**9,
        }

    def _fill(self, recipe: Recipe) -> Range:
        names = sorted(name for name, weight in recipe.weights.items() if weight)
        missing = [name for name in names if recipe.backends[name] not in self._backends.ids]
        if missing:
            raise TableError(f"{', '.join(missing)}: no id could be given, so the table stays as it is")
        ids = array("I", [self._backends.ids[recipe.backends[name]] for name in names])
        return self._slots.fill(recipe.digest, ids, lambda: maglev.build(recipe.weights, recipe.size, recipe.seed))


def _less_ours(value: Fields) -> Service:
    return Service(tuple((name, content) for name, content in value if name not in _OURS))


def _ranges(row: _Row, now: int) -> Iterator[tuple[Range, int]]:
    """Yield the ranges that a row names, with the digest where it is known; the one before until a little after it counts."""
    if row.get("offset"):
        yield Range(int(row["offset"]), int(row["size"])), int(row.get("digest", 0))
    if row.get("before_offset") and int(row.get("before_until", 0)) + REST_NS > now:
        yield Range(int(row["before_offset"]), int(row["before_size"])), 0
