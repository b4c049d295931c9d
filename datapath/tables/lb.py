"""Backends and services in the kernel: ids given to backends, and tables computed, filled and swapped in one step each."""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice

from tidegate.datapath import maglev
from tidegate.datapath.layout import Fields, fields
from tidegate.datapath.table import TableError
from tidegate.datapath.tables.maps import ArrayTable
from tidegate.datapath.tables.slots import Filled, SlotTables

_BEFORE = ("before_size", "before_seed", "before_until")

AT_ONCE = 128
"""Tables that are swapped together: as many inner maps are open at a time."""

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
    """A row of `tg_service`, less what belongs to the table before; `recipe` is known of wanted rows only."""

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

    def read(self) -> Mapping[Fields, Fields]:
        """Return the backends that have an id."""
        self.ids, self._born, found = {}, {}, {}
        for key, value in self._rows.read().items():
            named = dict(value)
            if born := int(named.pop("born", 0)):
                backend = fields(addr=named.get("addr", b""), port=named.get("port", 0))
                self.ids[backend], self._born[backend] = int(dict(key).get("value", 0)), born
                found[backend] = fields(flags=named.get("flags", 0))
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


def preferred_id(key: Fields, size: int) -> int:
    """Return the id, 1 to `size` - 1, that a backend has if nobody else has it already."""
    named = dict(key)
    written = bytes(named.get("addr", b"")) + int(named.get("port", 0)).to_bytes(2, sys.byteorder)
    hashed = hashlib.blake2b(written, digest_size=8).digest()
    return int.from_bytes(hashed, "little") % (size - 1) + 1


class ServiceTable:
    """Services by number, each with its table. A table that did not change is never computed, equal ones are one map."""

    name = "tg_service"

    def __init__(
        self,
        rows: ArrayTable,
        tables: SlotTables,
        backends: BackendTable,
        monotonic_ns: Callable[[], int],
        now: Callable[[], datetime],
    ) -> None:
        self._rows, self._tables, self._backends = rows, tables, backends
        self._monotonic_ns, self._now = monotonic_ns, now
        self._present: dict[int, _Row] = {}
        self._ready: dict[int, _Row] = {}
        self.changes: dict[int, Change] = {}

    def read(self) -> Mapping[int, Service]:
        """Return the services that are there; what belongs to the table before is kept aside for the next swap."""
        self._ready = {}
        self._present = {int(dict(key).get("value", 0)): dict(value) for key, value in self._rows.read().items()}
        return {
            number: Service(fields(**{name: value for name, value in named.items() if name not in _BEFORE}))
            for number, named in self._present.items()
            # Without its table a service is not there, whatever its row says.
            if self._tables.holds(number)
        }

    def prepare(self, wanted: Mapping[int, Service]) -> None:
        """Swap the tables of many services together; what cannot be swapped is tried, and said, by `put`."""
        self._ready = {}
        work = {key: value for key, value in wanted.items() if value.recipe is not None and self._is_other(key, value)}
        left = iter(work.items())
        while some := dict(islice(left, AT_ONCE)):
            # One that cannot be filled stops its batch; `put` then takes each of them alone.
            with suppress(TableError):
                self._swap(some)

    def put(self, key: int, value: Service) -> None:
        """Make the service be there. Its table is swapped at once if it changed, and the one before counts for a while.

        The digest is written last: whatever a crash leaves half done is done again.
        """
        if value.recipe is None:
            raise TableError("a service without its recipe cannot be put")
        if key not in self._ready and self._is_other(key, value):
            self._swap({key: value})
        old = self._present.get(key, {})
        held = self._ready.pop(key, {name: old[name] for name in _BEFORE if name in old})
        row = fields(**dict(value.row), **held)
        self._rows.put(fields(value=key), row)
        self._present[key] = dict(row)

    def drop(self, key: int) -> None:
        """Remove the service and both its tables."""
        self._rows.drop(fields(value=key))
        self._tables.clear(key)
        self._present.pop(key, None)
        self.changes.pop(key, None)

    def _is_other(self, key: int, value: Service) -> bool:
        old, new = self._present.get(key, {}), dict(value.row)
        return any(old.get(name) != new.get(name) for name in ("digest", "seed")) or not self._tables.holds(key)

    def _swap(self, wanted: Mapping[int, Service]) -> None:
        """Fill new tables and put them in place, and note what each row shall say of the table before."""
        filled = {key: self._fill(value.recipe) for key, value in wanted.items() if value.recipe is not None}
        with ExitStack() as stack:
            found = {key: stack.enter_context(self._tables.current(key)) for key in filled if key in self._present}
            before = {key: table for key, table in found.items() if table is not None}
            grace = {key: value.recipe.grace_s if value.recipe else 0 for key, value in wanted.items()}
            self._tables.keep({key: table for key, table in before.items() if grace[key]})
            for key, table in before.items():
                self._retire(key, wanted[key], table, filled[key], grace[key])
            self._tables.put(filled)
        self._ready |= {key: self._ready.get(key, {}) for key in filled}
        self._tables.trim()

    def _fill(self, recipe: Recipe) -> Filled:
        names = sorted(name for name, weight in recipe.weights.items() if weight)
        missing = [name for name in names if recipe.backends[name] not in self._backends.ids]
        if missing:
            raise TableError(f"{', '.join(missing)}: no id could be given, so the table stays as it is")
        ids = array("I", [self._backends.ids[recipe.backends[name]] for name in names])
        return self._tables.fill(recipe.digest, ids, lambda: maglev.build(recipe.weights, recipe.size, recipe.seed))

    def _retire(self, key: int, value: Service, before: Filled, after: Filled, grace_s: int) -> None:
        """Prepare the row for both tables, and count what the swap will move."""
        old, new = self._present[key], dict(value.row)
        size, seed = int(old["size"]), old.get("seed", 0)
        held: _Row = {}
        if grace_s:
            until = self._monotonic_ns() + grace_s * 10**9
            held = {"before_size": size, "before_seed": seed, "before_until": until}
        # A packet may meet the row of one step and the table of the next: the smaller size is right for both.
        meanwhile = {"size": min(size, int(new["size"])), "seed": seed, "digest": old.get("digest", 0)}
        self._rows.put(fields(value=key), fields(**{**new, **held, **meanwhile}))
        self._ready[key] = held
        one, other = before.slots(size), after.slots(int(new["size"]))
        share = maglev.share_moved(one, other, is_same_seed=seed == new.get("seed", 0))
        self.changes[key] = Change(round(share * len(other)), self._now())
